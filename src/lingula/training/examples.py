"""What a run trains and is scored on: decoded, cached or as features; and the room it needs."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray

from lingula.images.cache import locate, open_cache
from lingula.images.files import estimate_bytes, find_absent, image_path
from lingula.loading.batches import (
    Loaded,
    Memory,
    Radiographs,
    concatenate,
    decode_all,
    fits_in_memory,
    load,
    load_features,
)
from lingula.loading.order import Rows, training_batches
from lingula.model.network import Network
from lingula.scoring.scoring import encode
from lingula.settings.config import Config
from lingula.system import files
from lingula.system.errors import InputError, examples
from lingula.system.files import check_room
from lingula.system.progress import count_only, progress
from lingula.tables.configured import configured_targets
from lingula.tables.joins import Outside
from lingula.tables.table import Table, rows_of, subset
from lingula.training.optim import Schedule

log = logging.getLogger("lingula")


@dataclass(frozen=True)
class Examples:
    """Images with targets (N, K) float32 in [0, 1] and the mask (N, K) of known cells.

    The last `outside` of them are from other tables. `features` (V, N, C, h, w) are those of a
    frozen encoder: of the images and, where V is 2, of their mirror images.
    """

    dataset: Radiographs
    targets: NDArray[np.float32]
    mask: NDArray[np.bool_]
    memory: Memory | None = None
    outside: int = 0
    features: NDArray[np.float32] | None = None


def rows_of_epoch(train: Examples, config: Config) -> Rows:
    """The rows that an epoch is made of."""
    return Rows(len(train.dataset), train.outside, config.data.outside_ratio)


def load_batches(
    train: Examples, config: Config, fabric: Fabric, schedule: Schedule, *, start: int
) -> Generator[Loaded, None, None]:
    """This process's share of every batch from step `start` to the end of the last epoch.

    A batch has images, or the features of a frozen encoder in their place.
    """
    batches = training_batches(
        rows_of_epoch(train, config),
        config.optim.batch_size,
        seed=config.seed,
        epochs=config.optim.epochs,
        start=start,
        rank=fabric.global_rank,
        world=fabric.world_size,
    )
    if train.features is None:
        return load(train.dataset, batches, memory=train.memory, workers=config.data.workers)
    return load_features(
        train.features,
        batches,
        config.augment.flip,
        seed=config.seed,
        start=start,
        steps_per_epoch=schedule.steps_per_epoch,
    )


def examples_of(config: Config, table: Table, split: str, *, decode: bool = True) -> Examples:
    """A split's images and targets; the images are decoded now if they fit into memory."""
    part = subset(table, rows_of(table, split))
    dataset = dataset_of(part, config)
    check_images_exist(dataset, split)
    memory = _read_ahead(dataset, split, [str(table.path)], config) if decode else None
    values, mask = configured_targets(config.data, part)
    return Examples(dataset, values, mask, memory)


def with_features(
    config: Config, network: Network, examples: Examples, path: Path, fabric: Fabric
) -> Examples:
    """The examples with the frozen encoder's features, computed once and kept in `path`."""
    flips = path.stem == "train" and config.augment.flip > 0
    shape = (2 if flips else 1, len(examples.dataset))
    if path.is_file():
        kept = read_features(path)
        if kept.shape[:2] == shape:
            return replace(examples, features=kept)
    if fabric.global_rank == 0:
        needed = features_bytes(network, examples.dataset.size, shape[1], shape[0])
        check_room(path.parent, needed, f"the features of {path.stem}")
        with progress(f"features of {path.stem}") as tick:
            encode(
                network,
                examples.dataset,
                path,
                fabric=fabric,
                flips=flips,
                batch_size=config.optim.batch_size,
                memory=examples.memory,
                workers=config.data.workers,
                tick=count_only(tick),
                may_fail=path.stem == "dev",
            )
    fabric.barrier()
    return replace(examples, features=read_features(path))


def read_features(path: Path) -> NDArray[np.float32]:
    """The features in a file, mapped; `InputError` for a pickle, which could run anything."""
    try:
        kept: NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise InputError(
            f"{path} contains no features: {error}. Remove it; it will be computed again."
        ) from None
    return kept


def warn_of_missing_test(config: Config, table: Table) -> None:
    """Warn before the first step of test images that are missing and so will have no scores.

    Raises `InputError` if a cache lacks them, since then none of them would have scores.
    """
    rows = rows_of(table, "test")
    missing = _missing(dataset_of(subset(table, rows), config)) if len(rows) else []
    if missing:
        log.warning(
            "%d of %d test images are missing and will have no scores, first: %s.",
            len(missing),
            len(rows),
            missing[0],
        )


def _missing(dataset: Radiographs) -> list[str]:
    """The image files that are missing; none are needed for images in a cache."""
    if dataset.cached is not None:
        return []
    return [str(dataset.paths[place]) for place in find_absent(dataset.paths.tolist())]


def check_images_exist(dataset: Radiographs, what: str) -> None:
    """Raise `InputError` if image files are missing; none are needed for images in a cache."""
    missing = _missing(dataset)
    if missing:
        raise InputError(
            f"{len(missing)} of {len(dataset)} {what} images are missing, first: {missing[0]}. "
            "Say data.root=FOLDER if the paths are relative to another folder."
        )


def describe_reading(paths: Sequence[str], size: int) -> str:
    """What an epoch reads from image files, and how to avoid that, in two sentences."""
    amount = files.format_bytes(estimate_bytes(paths))
    return (
        f"Without a cache every epoch reads and decodes {amount} of image files ({len(paths)}). "
        f"`lingula data cache TABLE --size {size} --out DIR` decodes them once; "
        "data.cache=DIR (`lingula reproduce`: --cache DIR) trains on what it kept."
    )


def _read_ahead(
    dataset: Radiographs, what: str, tables: Sequence[str], config: Config
) -> Memory | None:
    """All images, decoded, if they fit into memory; else None, and what each epoch reads is logged.

    Raises `InputError` if images can't be read; on dev only if none can.
    """
    if config.data.workers > 0 or not fits_in_memory(dataset):
        if what != "dev" and dataset.cached is None:
            log.info("%s", describe_reading(dataset.paths.tolist(), dataset.size))
        return None
    with progress(f"reading {what} images") as tick:
        memory = decode_all(dataset, count_only(tick))
    if memory.failures and what != "dev":
        raise InputError(
            f"{len(memory.failures)} {what} images can't be read: "
            f"{examples(memory.failures.values(), 3)} `lingula data check "
            f"{' '.join(tables)}` lists them all."
        )
    if memory.failures:
        told = f"{len(memory.failures)} of {len(dataset)} dev images can't be read"
        reasons = examples(memory.failures.values(), 3)
        if len(memory.failures) == len(dataset):
            raise InputError(f"{told}: {reasons} No epoch could be chosen by them.")
        log.warning("%s and are left out: %s", told, reasons)
    return memory


def with_outside(config: Config, own: Examples, others: Sequence[Outside]) -> Examples:
    """The table's own examples, followed by those of other tables."""
    tables = [other.table for other in others]
    dataset = concatenate([own.dataset, *_datasets(tables, config)])
    check_images_exist(dataset, "outside")
    read = [configured_targets(config.data, table) for table in tables]
    named = [config.data.table, *(str(table.path) for table in tables)]
    memory = _read_ahead(dataset, "train and outside", named, config)
    return Examples(
        dataset,
        np.concatenate([own.targets, *(values for values, _ in read)]),
        np.concatenate([own.mask, *(mask for _, mask in read)]),
        memory,
        outside=len(dataset) - len(own.dataset),
    )


def _datasets(tables: Sequence[Table], config: Config) -> list[Radiographs]:
    """The images of several tables; one error for all that are not in the cache."""
    found: list[Radiographs] = []
    lost: list[str] = []
    for table in tables:
        try:
            found.append(dataset_of(table, config))
        except InputError as error:
            lost.append(str(error))
    if lost:
        raise InputError("\n".join(dict.fromkeys(lost)))
    return found


def dataset_of(table: Table, config: Config) -> Radiographs:
    """The images of a table, to be read at the model's size from their files or from the caches."""
    paths = [image_path(table.root, name) for name in table.images]
    cached, places = None, config.data.cache
    if places is not None:
        index = open_cache(places)
        cached = locate(index, table.root, table.images, paths, _as_argument(table, config))
        if cached.settings.codec == "jpeg":
            log.info("Images are read from the cache %s, which is lossy.", index.folder)
    return Radiographs(paths, config.model.image_size, config.data.bits, cached)


def _as_argument(table: Table, config: Config) -> str:
    """The table as an argument of `lingula data cache`."""
    if table.path is None:
        return "TABLE"
    root = config.data.root
    named = root is not None and Path(root).resolve() == table.root.resolve()
    return f"{table.path} --root {root}" if named else str(table.path)


def run_bytes(network: Network, config: Config) -> int:
    """The most bytes that the checkpoints and the best model of a training take on disk.

    Two checkpoints and one that is being written, each of weights, AdamW's two moments and perhaps
    the averaged weights; the best model and the one that takes its place.
    """
    copies = 3 * (3 if config.optim.ema is None else 4) + 2
    tensors = network.state_dict().values()
    return copies * sum(int(t.numel()) * int(t.element_size()) for t in tensors)


@dataclass(frozen=True)
class Sizes:
    """Bytes on disk: of a training's checkpoints and best model, and of one image's features."""

    run: int
    features: int


def sizes_of(network: Network, config: Config) -> Sizes:
    """What a training takes on disk; only a frozen encoder's features are kept."""
    size = config.model.image_size
    one = features_bytes(network, size, 1, 1) if config.model.frozen else 0
    return Sizes(run_bytes(network, config), one)


def all_features(sizes: Sizes, config: Config, rows: Rows, dev: int) -> int:
    """Bytes of all features of a training, which it keeps until it ends."""
    views = 2 if config.augment.flip > 0 else 1
    return sizes.features * (views * rows.all + dev)


@torch.no_grad()
def features_bytes(network: Network, image_size: int, images: int, views: int) -> int:
    """Bytes of a frozen encoder's features of some images, each in some views."""
    device = network.mean.device
    blank = torch.zeros((1, 1, image_size, image_size), dtype=torch.uint8, device=device)
    was_training = network.training
    features = network.eval().encoder(network.prepare(blank))
    network.train(was_training)
    return 4 * images * views * int(features.numel())
