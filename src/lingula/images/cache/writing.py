"""Making an image cache: each image read once, into few large files, in threads and in parts."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import socket
import time
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from lingula.images.cache.files import (
    CacheSettings,
    Entry,
    index_files,
    key,
    open_cache,
    source_of,
    write_index,
)
from lingula.images.cache.reading import currents
from lingula.images.presence import image_path
from lingula.images.reading import read_image
from lingula.phantom import is_phantom
from lingula.system import files
from lingula.system.csv_cells import plain_csv
from lingula.system.errors import ImageError, StoppedError

IMAGES_A_FILE = 4096  # 1 GiB of raw images at 512 pixels; what a kill costs at most
_BYTES_A_FILE = 2**30
_PROBES = 16


@dataclass(frozen=True)
class Part:
    """Part `number` (from 1) of `of`: every `of`-th image, in files of its own."""

    number: int = 1
    of: int = 1

    @property
    def name(self) -> str:
        """`003-of-016`, which its files' names begin with."""
        return f"{self.number:03}-of-{self.of:03}"


@dataclass(frozen=True)
class Expected:
    """What is to be done: images to read, their bytes in the cache, and seconds."""

    images: int
    bytes: int
    seconds: float
    workers: int


@dataclass(frozen=True)
class Filled:
    """What a part of a cache holds now: images made by this run, kept from before, and failed."""

    made: int
    kept: int
    failures: dict[str, str]


def fill(
    folder: Path,
    settings: CacheSettings,
    root: Path,
    names: Sequence[str],
    *,
    part: Part = Part(),
    workers: int = 0,
    images_a_file: int = IMAGES_A_FILE,
    announce: Callable[[Expected], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Filled:
    """Put a part of these images into a cache (already claimed); what is there is kept.

    Images that can't be read are recorded with their reason, and tried again by the next run.

    Args:
        folder: the cache.
        settings: its settings.
        root: the folder that `names` are relative to.
        names: image cells of a table.
        part: which of them.
        workers: decoding threads; 0 is one a core.
        images_a_file: finished files survive a kill, so this is what it costs at most.
        announce: told what is to be done before it is begun.
        progress: called with images done and in all.
    """
    workers = workers or os.cpu_count() or 1
    mine = sorted({key(name) for name in names})[part.number - 1 :: part.of]
    todo, kept, before, retimed = _todo(folder, root, mine)
    if announce is not None and todo:
        announce(_expected(root, todo, settings, workers))
    room = max(1, min(images_a_file, _BYTES_A_FILE // settings.size**2))
    found: list[Entry] = []

    def tick() -> None:
        if progress is not None:
            progress(len(found), len(todo))

    if retimed:
        write_index(folder / f"{part.name}-{_next_number(folder, part):05}.jsonl", retimed)
    with _workplace(folder) as work, contextlib.closing(_read(root, todo, settings, workers)) as it:
        for begin in range(0, len(todo), room):
            some = itertools.islice(it, min(room, len(todo) - begin))
            _write_file(folder, work, part, some, before, found, tick)
    failures = {entry.image: entry.reason for entry in found if not entry.file}
    _write_failures(folder, part, failures)
    facts = {"images": len(mine), "failed": len(failures)}
    files.write_json(folder / f"{part.name}.finished.json", facts)
    return Filled(len(found) - len(failures), kept, failures)


def _todo(
    folder: Path, root: Path, names: Sequence[str]
) -> tuple[list[str], int, dict[str, Entry], list[Entry]]:
    """What is in the cache of these images, and what is not.

    Returns:
        Names to be read; the number of those that need not be; the entries of those that failed
        before; and new entries for sources that got another time, but not another content.
    """
    todo: list[str] = []
    before: dict[str, Entry] = {}
    retimed: list[Entry] = []
    paths = [_path(root, name) for name in names]
    for name, path, entry in zip(
        names, paths, currents(open_cache(folder), names, paths), strict=True
    ):
        if entry is None or not entry.file:
            todo.append(name)
            if entry is not None:
                before[name] = entry
            continue
        now = replace(source_of(path), sha256=entry.source.sha256)
        if now.size >= 0 and now != entry.source:
            retimed.append(replace(entry, source=now))
    return todo, len(names) - len(todo), before, retimed


def _path(root: Path, name: str) -> Path:
    """Where a name points; where no file can be if it leads out of the root."""
    try:
        return image_path(root, name)
    except ImageError:
        return root / "\0"


def _made(root: Path, name: str, settings: CacheSettings) -> tuple[Entry, bytes]:
    """One image's entry, not yet placed, and its bytes; for one that can't be read, no bytes."""
    path = _path(root, name)
    # The facts before the content: a file that changes in between is then stale.
    source = replace(source_of(path), sha256=_sha256(path))
    try:
        image = read_image(image_path(root, name), settings.size, bits=settings.bits)
        data = encoded(image, settings)
    except ImageError as error:
        return Entry(name, source, kind=error.kind, reason=str(error)), b""
    entry = Entry(
        name,
        source,
        length=len(data),
        crc32=zlib.crc32(data),
        phantom=is_phantom(path),
    )
    return entry, data


def _sha256(path: Path) -> str:
    """Hash of a file; empty for one that can't be read, for which `read_image` says why."""
    try:
        return files.sha256(path)
    except (OSError, ValueError):
        return ""


def encoded(image: NDArray[np.uint8], settings: CacheSettings) -> bytes:
    """The bytes of one image (size, size) in the cache."""
    if settings.codec == "raw":
        return image.tobytes()
    data: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(image)[..., None],
        quality=settings.quality,
        colorspace="GRAY",
        colorsubsampling="GRAY",
        fastdct=False,
    )
    return data


def _read(
    root: Path, names: Sequence[str], settings: CacheSettings, workers: int
) -> Generator[tuple[Entry, bytes], None, None]:
    """Every image in order, read a little ahead in threads (the decoders release Python's lock)."""
    ahead: deque[Future[tuple[Entry, bytes]]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for name in names:
            ahead.append(pool.submit(_made, root, name, settings))
            if len(ahead) > 4 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _expected(root: Path, names: Sequence[str], settings: CacheSettings, workers: int) -> Expected:
    """Bytes and seconds, by making a few of the images and throwing them away."""
    probes = names[:: max(1, len(names) // _PROBES)][:_PROBES]
    began = time.perf_counter()
    sizes = [len(data) for _, data in _read(root, probes, settings, workers)]
    seconds = time.perf_counter() - began
    good = [size for size in sizes if size]
    each = settings.size**2 if settings.codec == "raw" else int(np.mean(good)) if good else 0
    return Expected(
        len(names), len(names) * each, seconds / len(probes) * len(names), min(workers, len(names))
    )


def _write_file(
    folder: Path,
    work: Path,
    part: Part,
    images: Iterable[tuple[Entry, bytes]],
    before: Mapping[str, Entry],
    found: list[Entry],
    tick: Callable[[], None],
) -> None:
    """Write one file of pixels and its index, each whole or not at all; add entries to `found`."""
    name = f"{part.name}-{_next_number(folder, part):05}.pixels"
    entries: list[Entry] = []
    try:
        with (work / name).open("wb") as stream:
            for entry, data in images:
                placed = entry
                if data:
                    placed = replace(entry, file=name, start=stream.tell())
                    stream.write(data)
                entries.append(placed)
                found.append(placed)
                tick()
            stream.flush()
            os.fsync(stream.fileno())
        new = [entry for entry in entries if entry.file or entry != before.get(entry.image)]
        if any(entry.file for entry in entries):
            (work / name).replace(folder / name)
        if new:
            write_index((folder / name).with_suffix(".jsonl"), new)
    except OSError as error:
        raise StoppedError(
            f"{folder} can't be written: {error.strerror}. Make room or mend it; the same line "
            "again continues with the files that are finished."
        ) from None


def _next_number(folder: Path, part: Part) -> int:
    taken = [int(p.stem.rpartition("-")[2]) for p in index_files(folder) if part.name in p.name]
    return max(taken, default=-1) + 1


@contextlib.contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    """A folder in the cache for files that are being written, removed at the end.

    Those of this machine's processes that died are removed too.
    """
    host = socket.gethostname()
    for left in folder.glob(f".making-{host}-*"):
        if not _alive(int(left.name.rpartition("-")[2])):
            shutil.rmtree(left, ignore_errors=True)
    work = folder / f".making-{host}-{os.getpid()}"
    work.mkdir(exist_ok=True)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _write_failures(folder: Path, part: Part, failures: Mapping[str, str]) -> None:
    """`PART.failed.csv`, or none where nothing failed."""
    path = failed_path(folder, part)
    if not failures:
        path.unlink(missing_ok=True)
        return
    files.write_text(path, plain_csv(["image", "reason"], failures.items()))


def failed_path(folder: Path, part: Part) -> Path:
    """Where the images that could not be read are named."""
    return folder / f"{part.name}.failed.csv"


def parts_missing(folder: Path) -> list[str]:
    """The parts that are not finished, as `3/16`; none if there is a number of which all are."""
    done = [path.name.split(".")[0] for path in folder.glob("*-of-*.finished.json")]
    begun = {path.name[:10] for path in index_files(folder)} | set(done)
    lacking = [
        [f"{n}/{of}" for n in range(1, of + 1) if Part(n, of).name not in done]
        for of in {int(name[-3:]) for name in begun}
    ]
    return min(lacking, key=len, default=[])
