"""From image files to uint8 batches: the one `Dataset`, and loading ahead."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lingula.images.cache import CachedImages, check_cached, join_cached, read_cached
from lingula.images.reading import read_image
from lingula.loading.order import draws_per_item
from lingula.system.errors import ImageError, StoppedError

# Up to this many bytes of decoded images are kept in memory when no worker processes are used.
MEMORY_LIMIT = 2**30
# How worker processes start: never by forking, which does not mix with threads.
START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"

GRACE = 10  # seconds that a worker process goes on after it was asked to end


@dataclass(frozen=True)
class Loaded:
    """The readable images (B, 1, S, S) uint8 of a batch, their indices (B,), and the failures."""

    indices: NDArray[np.intp]
    images: Tensor
    failures: tuple[tuple[int, str], ...] = ()


class Radiographs(Dataset[NDArray[np.uint8]]):
    """N image files read to (S, S) grey uint8. Has NumPy arrays only, so workers share them.

    With `cached`, the same N images in a cache, the files themselves are not read.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        size: int,
        bits: int | None = None,
        cached: CachedImages | None = None,
    ) -> None:
        self.paths = np.array([os.fspath(path) for path in paths], dtype=np.str_)
        self.size = size
        self.bits = bits
        self.cached = cached
        if cached is not None:
            check_cached(cached, len(paths), size, bits)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """One image; raises `ImageError` if it can't be read."""
        if self.cached is not None:
            return read_cached(self.cached, index)
        return read_image(Path(str(self.paths[index])), self.size, bits=self.bits)

    def read_into(self, index: int, place: NDArray[np.uint8]) -> None:
        """One image into its place (S, S) in a batch; raises `ImageError` if it can't be read."""
        if self.cached is not None:
            read_cached(self.cached, index, place)
        else:
            place[:] = self[index]


def concatenate(parts: Sequence[Radiographs]) -> Radiographs:
    """The images of several data sets of one size, one after the other."""
    caches = [part.cached for part in parts if part.cached is not None]
    return Radiographs(
        [Path(str(path)) for part in parts for path in part.paths],
        parts[0].size,
        parts[0].bits,
        join_cached(caches) if caches else None,
    )


@dataclass(frozen=True)
class Memory:
    """Decoded images (N, S, S) uint8, and the reason for each that could not be read."""

    images: NDArray[np.uint8]
    failures: dict[int, str]


def fits_in_memory(dataset: Radiographs) -> bool:
    """Whether the decoded images are few enough to keep."""
    return len(dataset) * dataset.size**2 <= MEMORY_LIMIT


def decode_all(dataset: Radiographs, progress: Callable[[int, int], None] | None = None) -> Memory:
    """Decode every image once, in threads (the decoders release Python's lock)."""
    images = np.zeros((len(dataset), dataset.size, dataset.size), dtype=np.uint8)
    failures: dict[int, str] = {}

    def decode(index: int) -> None:
        failures.update(_fill(dataset, np.array([index]), images[index : index + 1]))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, _ in enumerate(pool.map(decode, range(len(dataset))), 1):
            if progress is not None:
                progress(done, len(dataset))
    return Memory(images, dict(sorted(failures.items())))


def load(
    dataset: Radiographs,
    batches: Iterator[NDArray[np.intp]] | Sequence[NDArray[np.intp]],
    *,
    memory: Memory | None = None,
    workers: int = 0,
) -> Generator[Loaded, None, None]:
    """The batches' images, read ahead of their use by threads or by `workers` processes."""
    if memory is not None:
        return (_from_memory(memory, batch) for batch in batches)
    if workers > 0:
        return _from_workers(dataset, batches, workers)
    return _from_threads(dataset, batches)


def load_features(
    features: NDArray[np.float32],
    batches: Iterator[NDArray[np.intp]],
    flip: float,
    *,
    seed: int,
    start: int,
    steps_per_epoch: int,
) -> Generator[Loaded, None, None]:
    """Features (V, N, C, h, w) of a frozen encoder in place of images, from step `start` on.

    Where V is 2 an image's mirror image is taken with the chance `flip`, drawn from the seed, the
    epoch and the image alone.
    """
    for step, batch in enumerate(batches, start):
        view = np.zeros(len(batch), dtype=np.intp)
        if len(features) > 1:
            own = draws_per_item(seed, step // steps_per_epoch, "mirror", batch.tolist())
            view[:] = [generator.random() < flip for generator in own]
        yield Loaded(batch, torch.from_numpy(np.ascontiguousarray(features[view, batch])))


def _from_memory(memory: Memory, batch: NDArray[np.intp]) -> Loaded:
    bad = tuple((int(i), memory.failures[int(i)]) for i in batch if int(i) in memory.failures)
    if bad:
        batch = np.array([i for i in batch if int(i) not in memory.failures], dtype=np.intp)
    return Loaded(batch, torch.from_numpy(memory.images[batch]).unsqueeze(1), bad)


def _from_threads(
    dataset: Radiographs, batches: Iterator[NDArray[np.intp]] | Sequence[NDArray[np.intp]]
) -> Generator[Loaded, None, None]:
    # From a cache an image takes less time than it takes to hand it to a thread.
    at_once = 1 if dataset.cached is None else _AT_ONCE
    ahead: deque[tuple[NDArray[np.intp], NDArray[np.uint8], list[Future[dict[int, str]]]]] = deque()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for batch in batches:
            # Read to where they are needed: joined afterwards, memory would be taken twice.
            images = np.empty((len(batch), dataset.size, dataset.size), np.uint8)
            starts = range(0, len(batch), at_once)
            parts = [(batch[i : i + at_once], images[i : i + at_once]) for i in starts]
            ahead.append((batch, images, [pool.submit(_fill, dataset, *part) for part in parts]))
            if len(ahead) > 2:
                yield _joined(*ahead.popleft())
        while ahead:
            yield _joined(*ahead.popleft())


_AT_ONCE = 4


def _fill(
    dataset: Radiographs, batch: NDArray[np.intp], images: NDArray[np.uint8]
) -> dict[int, str]:
    """Read some images to their places; the reason for each that can't be read, by index."""
    failures: dict[int, str] = {}
    for place, index in enumerate(batch.tolist()):
        try:
            dataset.read_into(index, images[place])
        except ImageError as error:
            failures[index] = str(error)
    return failures


def _joined(
    batch: NDArray[np.intp], images: NDArray[np.uint8], parts: Sequence[Future[dict[int, str]]]
) -> Loaded:
    return _filled(batch, images, {i: why for part in parts for i, why in part.result().items()})


def _filled(batch: NDArray[np.intp], images: NDArray[np.uint8], failed: dict[int, str]) -> Loaded:
    """A batch whose images were read to their places, without those that failed."""
    if failed:
        good = np.array([index not in failed for index in batch.tolist()])
        bad = tuple((index, failed[index]) for index in batch.tolist() if index in failed)
        return Loaded(batch[good], torch.from_numpy(images[good]).unsqueeze(1), bad)
    return Loaded(batch, torch.from_numpy(images).unsqueeze(1))


class _Reader(Dataset[Loaded]):
    """What a worker process runs: whole batches, whose failures are values."""

    def __init__(self, dataset: Radiographs) -> None:
        self.dataset = dataset

    def __getitems__(self, batch: NDArray[np.intp]) -> Loaded:
        images = np.empty((len(batch), self.dataset.size, self.dataset.size), np.uint8)
        return _filled(batch, images, _fill(self.dataset, batch, images))


def _handed_over(loaded: Loaded) -> Loaded:
    """In a worker: the images put into shared memory here and now.

    Left to the thread that sends them, a shared memory that is full would lose the batch without a
    word, and the main process would wait for it for ever.
    """
    loaded.images.share_memory_()  # type: ignore[no-untyped-call]
    return loaded


def _from_workers(
    dataset: Radiographs,
    batches: Iterator[NDArray[np.intp]] | Sequence[NDArray[np.intp]],
    workers: int,
) -> Generator[Loaded, None, None]:
    loader: DataLoader[Any] = DataLoader(
        _Reader(dataset),
        batch_sampler=batches,  # type: ignore[arg-type]  # any iterable of index lists will do
        num_workers=workers,
        multiprocessing_context=START,
        collate_fn=_handed_over,  # type: ignore[arg-type]  # gets what `__getitems__` gives
        worker_init_fn=_serve_while_needed,
        pin_memory=False,
    )
    try:
        yield from loader
    except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
        # One that dies while its images are handed over breaks the connection instead.
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        reason = str(error).strip().rpartition("\n")[2]
        raise StoppedError(
            f"A decoding process died ({reason}). Use fewer of them (data.workers=0, or --workers "
            "0, decodes in threads), or give the container more shared memory (docker: "
            "--shm-size=2g) or more memory; the same line again, with another data.workers if "
            "need be, continues."
        ) from error


def _serve_while_needed(worker: int) -> None:
    """In a worker: outlive a signal for a while, but never the main process.

    A signal to all processes of a job is the main one's to answer, and it still needs its images
    for that. One that is killed leaves workers that would wait for it for ever.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _soon)
    threading.Thread(target=_end_with_the_main_process, daemon=True).start()


def _soon(number: int, frame: FrameType | None) -> None:
    """End in some seconds; a second signal changes nothing."""
    if hasattr(signal, "alarm"):
        signal.alarm(min(signal.alarm(0) or GRACE, GRACE))


def _end_with_the_main_process() -> None:
    main = multiprocessing.parent_process()
    if main is not None:
        main.join()
        os._exit(1)


def consecutive_batches(
    rows: int, batch_size: int, rank: int = 0, world: int = 1
) -> list[NDArray[np.intp]]:
    """Rows in order, in batches; process `rank` has every `world`-th batch."""
    starts = range(0, rows, batch_size)
    return [np.arange(i, min(i + batch_size, rows)) for i in starts][rank::world]
