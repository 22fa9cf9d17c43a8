"""Whether a reproduction can run: all that is missing is reported before the first step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from lingula.loading.batches import MEMORY_LIMIT
from lingula.loading.order import Rows
from lingula.model.encoders import recompute_activations
from lingula.reproduction.jobs import (
    Job,
    is_exogenous,
    list_predictions,
    list_trainings,
    runnable_rows,
    start_weights,
)
from lingula.reproduction.request import Request, count
from lingula.settings.config import Config, read_config, vary
from lingula.settings.label_space import SPACES
from lingula.settings.recipes import EXOGENOUS
from lingula.system import files, processes
from lingula.system.errors import InputError, differences
from lingula.system.files import check_room
from lingula.tables.configured import check_table, configured_outside, configured_table
from lingula.tables.joins import Outside, check_apart, outside
from lingula.tables.reading import read_table
from lingula.tables.table import SPLITS, Table, rows_of, subset
from lingula.training import optim, run_folder
from lingula.training.examples import (
    Sizes,
    all_features,
    check_images_exist,
    dataset_of,
    describe_reading,
    sizes_of,
)
from lingula.training.origins import build, resolve
from lingula.training.run_folder import data_sha256

log = logging.getLogger("lingula")

Result = TypeVar("Result")
Given = ParamSpec("Given")


@dataclass(frozen=True)
class Images:
    """The images to train and measure on: how many, and the tables once they exist.

    `table` is None where a phantom is yet to be drawn.
    """

    train: int
    outside: int
    dev: int
    test: int
    table: Table | None = None
    others: tuple[Outside, ...] = ()

    def rows(self, config: Config) -> Rows:
        """The rows of an epoch of a training."""
        extra = self.outside if config.data.outside else 0
        return Rows(self.train + extra, extra, config.data.outside_ratio)


def check_readiness(
    request: Request, jobs: Mapping[str, Job], faults: list[str], *, join: bool, here: bool
) -> Images:
    """Check everything that the trainings need; return the images that they work on.

    Args:
        request: what to reproduce.
        jobs: its trainings.
        faults: what is known to be wrong so far.
        join: nothing is to be trained: only check that all is finished.
        here: the trainings run on this machine.

    Raises:
        InputError: one list of all that is wrong or missing. What only some rows lack is logged, in
            one list too.
    """
    missing: dict[str, list[str]] = {}
    for job in jobs.values():
        if job.missing:
            missing.setdefault(job.missing.removeprefix("not run: "), []).append(job.name)
    reasons = [f"{', '.join(names)}: {why}" for why, names in missing.items()]
    if not runnable_rows(request, jobs):
        faults += [f"No row of {request.table} can be run.", *reasons]
    elif reasons and processes.is_first():
        lines = [f"- {reason}" for reason in reasons]
        log.warning("\n".join(["Some rows are not run because they lack something:", *lines]))
    images = read_images(request, jobs, faults)
    _check_run_folders(request, jobs, images, faults)
    rest = list_trainings(request, jobs)
    if join:
        faults += [f"{request.run(job.name, seed)} is not finished." for job, seed in rest]
        unscored = map(_why_not_scored, list_predictions(request, jobs))
        faults += [why for why in unscored if why]
    elif rest:
        check_trainings(request, rest, images, faults, here=here)
    raise_faults(faults)
    return images


def raise_faults(faults: list[str]) -> None:
    """Raise one `InputError` for all faults, if there are any."""
    if faults:
        lines = [f"- {line}" for line in dict.fromkeys(faults)]
        raise InputError("\n".join(["Before the first step, fix the following:", *lines]))


def _try(
    faults: list[str], call: Callable[Given, Result], *args: Given.args, **named: Given.kwargs
) -> Result | None:
    """The result of a call; None if it refuses its input, whose message is added to the faults."""
    try:
        return call(*args, **named)
    except InputError as error:
        faults.append(str(error))
        return None


def _why_not_scored(arguments: Mapping[str, Any]) -> str:
    """Why a prediction is not what a table needs; empty if it is. No image is read for it."""
    out, model = arguments["out"], arguments["run"] / "best" / "model.json"
    made = out.with_suffix(".made.json")
    if not out.is_file() or not made.is_file():
        return f"{out} is not there."
    by, trained = files.read_object(made), files.read_object(model, absent_ok=True)
    same = (by.get("model"), by.get("tta")) == (trained.get("weights_sha256"), arguments["tta"])
    return "" if same else f"{out} was not made by {arguments['run']}, or with other views."


def read_images(request: Request, jobs: Mapping[str, Job], faults: list[str]) -> Images:
    """The tables as the trainings read them; what is wrong with them is added to `faults`."""
    config = next(iter(jobs.values())).config
    outside_counts = {training.name: len(training.outside) for training in EXOGENOUS}
    needed = max((outside_counts.get(job.recipe, 0) for job in jobs.values()), default=0)
    _check_outside(request, needed, faults)
    size = request.size
    dev, test = (round(share * size.images) for share in size.shares)
    drawn = Images(size.images - dev - test, needed * size.outside, dev, test)
    outside_tables = request.outside_tables if needed else ()
    places = (request.main_table, *outside_tables)
    if request.data is None and not all(path.is_file() for path in places):
        return drawn
    table = _try(faults, _read_main, config, request)
    others = [_try(faults, _read_outside, config, path, table) for path in outside_tables]
    joined = tuple(other for other in others if other is not None)
    if table is None or len(joined) < len(others):
        return drawn
    counts = {split: len(rows_of(table, split)) for split in SPLITS}
    return Images(**counts, outside=sum(len(o.table) for o in joined), table=table, others=joined)


def _check_outside(request: Request, needed: int, faults: list[str]) -> None:
    given = len(request.outside)
    if given and not needed:
        log.warning("--outside is not used: none of these rows has outside data.")
    elif given and given != needed:
        faults.append(
            f"--outside was given {count(given, 'table')}, but {needed} are needed: "
            "ChestX-ray14's and CheXpert's."
        )
    elif len(set(request.outside)) < given:
        faults.append(f"--outside names one table twice: {request.outside[0]}.")


def _read_main(config: Config, request: Request) -> Table:
    """The table to train and measure on, with the splits that every row shares."""
    path = Path(config.data.table)
    if not path.is_file():
        raise InputError(f"There is no table {path} (--data).")
    table = configured_table(config.data)
    if table.splits is None:
        raise InputError(
            f"{path} has no split column, and all rows must be measured on the same images. "
            f"`lingula data split {path} --out NEW` makes one by patient."
        )
    empty = [split for split in SPLITS if not len(rows_of(table, split))]
    if empty:
        raise InputError(
            f"{path} has no rows with split {' and '.join(empty)}: the models are trained on "
            "train, chosen on dev and measured on test."
        )
    check_table(table, config)
    if request.table == "table2":
        read_table(path)  # as the ensembles do, whatever the trainings leave out
    return table


def _read_outside(config: Config, path: Path, main: Table | None) -> Outside | None:
    """A table from outside, joined to the classes by name."""
    if not path.is_file():
        raise InputError(f"There is no table {path} (--outside).")
    table = configured_outside(config.data, path)
    if main is None:
        return None
    joined = outside(table, main.space)
    check_apart(main, joined.table)
    return joined


def _check_run_folders(
    request: Request, jobs: Mapping[str, Job], images: Images, faults: list[str]
) -> None:
    """Find run folders that contain runs with other settings or on other data than requested."""
    for job in jobs.values():
        for seed in range(request.seeds if job.trains else 0):
            run = request.run(job.name, seed)
            if not (run / "config.yaml").is_file():
                continue
            there = read_config(run / "config.yaml")
            changed = run_folder.changed_settings(there, job.seeded(seed), finished=True)
            if changed:
                faults.append(f"{run} is a run with other settings:\n{differences(changed)}")
            before = run_folder.read_environment(run).get("data_sha256")
            others = images.others if is_exogenous(job.recipe) else ()
            if images.table is not None and before not in (None, data_sha256(images.table, others)):
                faults.append(f"{run} was begun on another table, or before this one changed.")


def check_trainings(
    request: Request,
    rest: Sequence[tuple[Job, int]],
    images: Images,
    faults: list[str],
    *,
    here: bool,
) -> None:
    """Try what each training does first: the model, the batches, the images, the disk, the device.

    The device is tried only for trainings on this machine.
    """
    built: dict[str, Sizes | None] = {}
    kept, features = [0], [0]
    for job, seed in rest:
        config = job.seeded(seed)
        start = start_weights(request, config.model.encoder)
        if config.model.weights == str(start) and not start.is_file():
            config = vary(config, model__weights="none")  # the start is trained first
        key = config.model.model_dump_json()
        if key not in built:
            built[key] = _try(faults, _build, config, images)
        sizes = built[key] or Sizes(0, 0)
        kept.append(sizes.run)
        features.append(all_features(sizes, config, images.rows(config), images.dev))
        _try(faults, _check_steps, config, images, request.run(job.name, seed), here)
    _check_images(rest, images, faults)
    # One after the other they need room for the features of one; as jobs, for those of all.
    needed = sum(kept) + (max(features) if here else sum(features))
    kinds = "checkpoints and features" if sum(features) else "checkpoints"
    what = f"the {kinds} of {count(len(rest), 'training')}"
    _try(faults, check_room, request.folder, needed, what)


def _build(config: Config, images: Images) -> Sizes:
    """Build the model as its training does; what the training takes on disk."""
    space = SPACES["cxr-lt-2023"]
    undrawn = Table((), Path(), space, np.zeros((0, len(space)), dtype=np.float32))
    network, _, _ = build(config, images.table or undrawn, {})
    if config.model.checkpointing:
        recompute_activations(network.encoder)
    return sizes_of(network, config)


def _check_steps(config: Config, images: Images, run: Path, here: bool) -> None:
    optim.plan(config, images.rows(config), processes.read_ranks().count if here else 1)
    if not here:
        return
    now, before = resolve(config), run / "config.yaml"
    changed = run_folder.changed_settings(read_config(before), now) if before.is_file() else {}
    if changed:
        raise InputError(f"{run} was begun with other settings:\n{differences(changed)}")


def _check_images(rest: Sequence[tuple[Job, int]], images: Images, faults: list[str]) -> None:
    """Check that every image exists or is cached; log what an epoch reads, if that is much."""
    if images.table is None:
        return
    config, splits = rest[0][0].config, np.array(images.table.splits or ())
    used = np.flatnonzero(np.isin(splits, SPLITS))
    parts = [(images.table.path, subset(images.table, used), splits[used] == "train")]
    if any(job.config.data.outside for job, _ in rest):
        tables = [other.table for other in images.others]
        parts += [(table.path, table, np.ones(len(table), dtype=np.bool_)) for table in tables]
    read: list[str] = []
    for path, table, in_epoch in parts:
        dataset = _try(faults, dataset_of, table, config)
        if dataset is not None:
            _try(faults, check_images_exist, dataset, f"{path}'s")
            read += dataset.paths[in_epoch].tolist() if dataset.cached is None else []
    size = config.model.image_size
    if len(read) * size**2 > MEMORY_LIMIT and processes.is_first():
        log.info("%s", describe_reading(read, size))
