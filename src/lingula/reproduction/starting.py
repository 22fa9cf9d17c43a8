"""Whether the trainings of a reproduction could start: tried with each, before the first does."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lingula.loading.batches import MEMORY_LIMIT
from lingula.model.encoders import recompute_activations
from lingula.reproduction.jobs import Job, config_of, start_weights
from lingula.reproduction.readiness import Films, tried
from lingula.reproduction.reproduction import Reproduction
from lingula.settings.config import Config, read_config, vary
from lingula.settings.label_space import SPACES
from lingula.system import processes
from lingula.system.errors import InputError, differences
from lingula.system.processes import is_first
from lingula.tables.table import SPLITS, Table, subset
from lingula.training import run_folder, steps
from lingula.training.examples import check_there, dataset_of, reading
from lingula.training.fitting import build, resolved
from lingula.training.space import Sizes, all_features, check_room, sizes_of

log = logging.getLogger("lingula")


def check_starts(
    asked: Reproduction,
    rest: Sequence[tuple[Job, int]],
    films: Films,
    faults: list[str],
    *,
    here: bool,
) -> None:
    """Try what each of these trainings does first; what is wrong is added to `faults`.

    That is: a network with its weights and class embeddings, the shares of each step's batch, the
    images or the cache, room on the disk, and, where they run on this machine, the device.
    """
    built: dict[str, Sizes | None] = {}
    kept, features = [0], [0]
    for job, seed in rest:
        config = config_of(job, seed)
        start = start_weights(asked, config.model.encoder)
        if config.model.weights == str(start) and not start.is_file():
            config = vary(config, model__weights="none")  # it is trained first
        key = config.model.model_dump_json()
        if key not in built:
            built[key] = tried(faults, _built, config, films)
        sizes = built[key] or Sizes(0, 0)
        kept.append(sizes.run)
        features.append(all_features(sizes, config, films.rows(config), films.dev))
        tried(faults, _check_steps, config, films, asked.run(job.name, seed), here)
    _check_films(rest, films, faults)
    # One after the other they need room for the features of one; as jobs, for those of all.
    needed = sum(kept) + (max(features) if here else sum(features))
    what = f"{len(rest)} trainings (checkpoints{', features' if sum(features) else ''})"
    tried(faults, check_room, asked.folder, needed, what)


def _built(config: Config, films: Films) -> Sizes:
    """Build the network as its training would begin with it; what that takes on disk."""
    network, _, _ = build(config, films.table or _blank(), {})
    if config.model.checkpointing:
        recompute_activations(network.encoder)
    return sizes_of(network, config)


def _blank() -> Table:
    """A table without rows, with the phantom's classes, where that is yet to be drawn."""
    space = SPACES["cxr-lt-2023"]
    return Table((), Path(), space, np.zeros((0, len(space)), dtype=np.float32))


def _check_steps(config: Config, films: Films, run: Path, here: bool) -> None:
    steps.plan(config, films.rows(config), processes.here().count if here else 1)
    if not here:
        return
    settled = resolved(config)
    there = run / "config.yaml"
    changed = run_folder.changed_settings(read_config(there), settled) if there.is_file() else {}
    if changed:
        raise InputError(f"{run} was begun with other settings:\n{differences(changed)}")


def _check_films(rest: Sequence[tuple[Job, int]], films: Films, faults: list[str]) -> None:
    """Whether every image is there or in the cache; and what an epoch reads, if that is much."""
    if films.table is None:
        return
    config, splits = rest[0][0].config, np.array(films.table.splits or ())
    used = np.flatnonzero(np.isin(splits, SPLITS))
    trained = splits[used] == "train"
    parts = [(films.table.path, subset(films.table, used), trained)]
    if any(job.config.data.outside for job, _ in rest):
        for other in films.others:
            parts.append((other.table.path, other.table, np.ones(len(other.table), dtype=np.bool_)))
    read: list[str] = []
    for path, table, each_epoch in parts:
        dataset = tried(faults, dataset_of, table, config)
        if dataset is not None:
            tried(faults, check_there, dataset, f"{path}'s")
            read += dataset.paths[each_epoch].tolist() if dataset.cached is None else []
    size = config.model.image_size
    if len(read) * size**2 > MEMORY_LIMIT and is_first():
        log.info("%s", reading(read, size))
