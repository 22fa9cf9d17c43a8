"""Scores of one image or of a table: batches of images through one or several models."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn

from lingula.loading.batches import Memory, Radiographs, consecutive_batches, load
from lingula.model.devices import autocast_to, send
from lingula.model.network import Network
from lingula.scoring.folding import for_scoring
from lingula.scoring.views import VIEWS, View, key_of, merge_views
from lingula.system import files
from lingula.system.errors import InputError


def check_images(images: Tensor) -> None:
    """Refuse what is not grey uint8 (B, 1, H, W): levels already scaled give wrong scores."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 1:
        raise InputError(
            "Images must be uint8 grey levels 0 to 255, shape (B, 1, H, W); got "
            f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}. The model scales "
            "and normalises them itself."
        )


@torch.no_grad()
def score_batch(
    network: Network,
    images: Tensor,
    views: Sequence[View],
    merge: str,
    forward: Callable[[Tensor], Tensor],
    keys: Sequence[int],
    layout: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Probabilities (B, K) float64 of a uint8 batch (B, 1, H, W) on the network's device.

    `keys` are the images' own numbers (`key_of`), which random crops are drawn from. The network
    gets its input in the memory layout `layout`, and of few images several views at once.
    """
    check_images(images)
    # One image at a time leaves a machine idle; more than this many at once gain nothing. Groups
    # are of one size, so that the order of the views does not show in a score's last digits.
    groups = -(-len(views) // max(1, _TOGETHER // len(images)))
    at_once = -(-len(views) // groups)
    seen: list[Tensor] = []
    plain: Tensor | None = None
    for begin in range(0, len(views), at_once):
        ready: list[Tensor] = []
        for view in views[begin : begin + at_once]:
            if view.side != 1.0 or view.crop is not None:
                ready.append(network.prepare(view(images, keys), layout))
                continue
            # The film and its mirror image are scaled and normalised once. (A mirrored warp is
            # not the warp of the mirror image, bit for bit: those are made each.)
            plain = network.prepare(images, layout) if plain is None else plain
            ready.append(plain.flip(-1) if view.flip else plain)
        logits = forward(ready[0] if len(ready) == 1 else torch.cat(ready))
        seen += torch.split(logits.float(), len(images))
    return merge_views(torch.stack(seen), merge)


_TOGETHER = 16


@dataclass(frozen=True)
class Scored:
    """Probabilities (N, K) float64, NaN rows for the images that failed, and why they did."""

    probabilities: NDArray[np.float64]
    failures: dict[int, str]


@dataclass(frozen=True)
class Scorer:
    """A model and how it looks at images: its test-time views, and how they are merged."""

    network: Network
    tta: str = "none"
    merge: str = "geometric"
    layout: torch.memory_format = torch.contiguous_format


@dataclass(frozen=True)
class ScoredBatch:
    """Rows (B,) of a data set, their scores by each of M models (M, B, K), and why rows failed.

    The scores of a row that failed are NaN.
    """

    rows: NDArray[np.intp]
    probabilities: NDArray[np.float64]
    failures: Mapping[int, str]


def score_batches(
    scorers: Sequence[Scorer],
    dataset: Radiographs,
    batches: Sequence[NDArray[np.intp]],
    *,
    fabric: Fabric,
    memory: Memory | None = None,
    workers: int = 0,
    exact: bool = False,
) -> Iterator[ScoredBatch]:
    """The scores of these batches, one after the other, while the next ones are being decoded.

    All models score the same decoded images and have the same number of classes. With `exact` they
    compute in fp32, whatever format the fabric was made for.
    """
    cast = None if exact else autocast_to(fabric)
    ready = [for_scoring(s.network, dataset.size, s.layout, cast) for s in scorers]

    def forward(network: Network, images: Tensor) -> Tensor:
        with torch.autocast(fabric.device.type, cast, enabled=cast is not None):
            logits: Tensor = network(images)
        return logits

    loading = load(dataset, batches, memory=memory, workers=workers)
    for batch, loaded in zip(batches, loading, strict=True):
        found = np.full((len(scorers), len(batch), len(scorers[0].network.embeddings)), np.nan)
        if len(loaded.indices):
            images = send(loaded.images, fabric.device)
            keys = [key_of(str(dataset.paths[i])) for i in loaded.indices]
            there = np.isin(batch, loaded.indices)
            for scores, s, network in zip(found, scorers, ready, strict=True):
                look = (VIEWS[s.tta], s.merge, partial(forward, network), keys, s.layout)
                scores[there] = score_batch(network, images, *look).cpu().numpy()
        yield ScoredBatch(batch, found, dict(loaded.failures))


# Of the memory, for the network's largest layer and what its library needs beside it.
_SHARE, _SPARE, _MOST = 0.25, 6, {"cuda": 512}


@torch.no_grad()
def fitting_batch(network: Network, size: int, fabric: Fabric, tta: str = "none") -> int:
    """Images of `size` pixels to score at once: a power of two, at most 512 on CUDA, else 32.

    It follows from the sizes of layers and of the machine's memory, never from what happens to be
    free or from a timing, so that the same machine always takes the same.
    """
    largest = 0

    def look(_: nn.Module, given: tuple[object, ...], found: object) -> None:
        nonlocal largest
        tensors = [x for x in (*given, found) if isinstance(x, Tensor)]
        largest = max(largest, sum(x.numel() * x.element_size() for x in tensors))

    hooks = [module.register_forward_hook(look) for module in network.modules()]
    was_training = network.training
    try:
        blank = torch.zeros((1, 1, size, size), dtype=torch.uint8, device=fabric.device)
        network.eval()(network.prepare(blank))
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    kind = fabric.device.type
    if kind == "cuda":
        memory = torch.cuda.get_device_properties(fabric.device).total_memory
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // fabric.world_size
    views = len(VIEWS[tta])
    many = int(memory * _SHARE / (largest * _SPARE + views * size * size * 16))
    return 1 << (max(1, min(many, _MOST.get(kind, 32))).bit_length() - 1)


def score(
    network: Network,
    dataset: Radiographs,
    *,
    fabric: Fabric,
    tta: str = "none",
    merge: str = "geometric",
    batch_size: int = 32,
    memory: Memory | None = None,
    workers: int = 0,
    layout: torch.memory_format = torch.contiguous_format,
    exact: bool = False,
    tick: Callable[[int, int], None] | None = None,
) -> Scored:
    """Scores of every image, the same whatever the batch size (to 1e-5 in fp32).

    With `exact` they are computed in fp32, whatever format the fabric was made for. With several
    processes each takes every n-th batch and all of them return all rows.
    """
    rows = np.full((len(dataset), len(network.embeddings)), np.nan)
    failures: dict[int, str] = {}
    batches = consecutive_batches(
        len(dataset), batch_size, rank=fabric.global_rank, world=fabric.world_size
    )
    done = 0
    for found in score_batches(
        [Scorer(network, tta, merge, layout)],
        dataset,
        batches,
        fabric=fabric,
        memory=memory,
        workers=workers,
        exact=exact,
    ):
        rows[found.rows] = found.probabilities[0]
        failures.update(found.failures)
        done += len(found.rows)
        if tick is not None:
            tick(done, len(dataset))
    return _gathered(Scored(rows, failures), fabric)


def score_features(
    network: Network, features: NDArray[np.float32], fabric: Fabric, batch_size: int
) -> Scored:
    """Scores from the features (N, C, h, w) of a frozen encoder, one view an image."""
    was_training = network.training
    network.eval()
    rows = np.full((len(features), len(network.embeddings)), np.nan)
    for batch in consecutive_batches(
        len(features), batch_size, rank=fabric.global_rank, world=fabric.world_size
    ):
        part = send(np.ascontiguousarray(features[batch]), fabric.device)
        with torch.no_grad(), fabric.autocast():
            logits = network(part, encoded=True)
        rows[batch] = logits.double().sigmoid().cpu().numpy()
    network.train(was_training)
    return _gathered(Scored(rows, {}), fabric)


@torch.no_grad()
def encode(
    network: Network,
    dataset: Radiographs,
    out: Path,
    *,
    fabric: Fabric,
    flips: bool,
    batch_size: int = 32,
    memory: Memory | None = None,
    workers: int = 0,
    tick: Callable[[int, int], None] | None = None,
    may_fail: bool = False,
) -> NDArray[np.float32]:
    """The encoder's maps of every image, and with `flips` of its mirror image: (V, N, C, h, w).

    They are kept in the file `out` (.npy), which is mapped, not read, so that many fit. An image
    that can't be read has NaN with `may_fail`, and raises `InputError` otherwise.
    """
    network.eval()
    maps: Any = None
    views = VIEWS["flip" if flips else "none"]
    done, lost = 0, list[int]()
    with files.write_atomically(out) as temporary:
        for loaded in load(
            dataset, consecutive_batches(len(dataset), batch_size), memory=memory, workers=workers
        ):
            if loaded.failures and not may_fail:
                raise InputError(f"An image can't be read: {loaded.failures[0][1]}")
            lost += [row for row, _ in loaded.failures]
            if not len(loaded.indices):
                continue
            images = send(loaded.images, fabric.device)
            for number, view in enumerate(views):
                with fabric.autocast():
                    features = network.encoder(network.prepare(view(images, ())))
                if maps is None:
                    shape = (len(views), len(dataset), *features.shape[1:])
                    maps = np.lib.format.open_memmap(
                        temporary, mode="w+", dtype=np.float32, shape=shape
                    )
                maps[number, loaded.indices] = features.float().cpu().numpy()
            done += len(loaded.indices)
            if tick is not None:
                tick(done, len(dataset))
        if maps is None:
            raise InputError(f"None of the {len(dataset)} images can be read.")
        maps[:, lost] = np.nan
        maps.flush()
    kept: NDArray[np.float32] = np.load(out, mmap_mode="r")
    return kept


def _gathered(own: Scored, fabric: Fabric) -> Scored:
    """All processes' rows together. Each row was scored by one process and is NaN elsewhere."""
    if fabric.world_size == 1:
        return own
    everyone: list[Scored] = [own] * fabric.world_size
    torch.distributed.all_gather_object(everyone, own)
    rows = own.probabilities
    failures: dict[int, str] = {}
    for other in everyone:
        rows = np.where(np.isnan(rows), other.probabilities, rows)
        failures.update(other.failures)
    return Scored(rows, dict(sorted(failures.items())))


@torch.no_grad()
def attend(
    network: Network, images: Tensor
) -> tuple[NDArray[np.float64], NDArray[np.float32] | None]:
    """Probabilities (B, K) and cross-attention maps (B, K, h, w) of uint8 images (B, 1, H, W).

    The maps are those of the last decoder layer, averaged over heads; each sums to 1 over the image
    whether or not its finding is there. None for a network without a decoder.
    """
    check_images(images)
    network.eval()
    logits, attention = network.look(network.prepare(images))
    maps = None if attention is None else attention.float().cpu().numpy()
    return logits.double().sigmoid().cpu().numpy(), maps
