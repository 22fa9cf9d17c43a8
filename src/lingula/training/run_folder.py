"""The run folder: its plan, its files, and whether a command may continue it; no torch.

config.yaml  environment.json  metrics.jsonl  train.log  tensorboard/  checkpoints/
best/  scores/{dev,test}.csv  report.html  finished.json (written last)  .lock (while it trains)
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lingula import about
from lingula.settings.config import (
    Config,
    diff,
    override_settings,
    read_config,
    with_absolute_paths,
    write_config,
)
from lingula.system import files
from lingula.system.claims import claim, lock_folder
from lingula.system.errors import InputError, differences

if TYPE_CHECKING:  # they take longer to import than the answer to wrong settings takes
    from lingula.tables.joins import Outside
    from lingula.tables.table import Table

log = logging.getLogger("lingula")

# Goes up by one whenever the same settings, seed and data give other weights than before.
TRAINING = 2

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "lightning-fabric",
    "numpy",
    "polars",
    "pillow",
    "simplejpeg",
    "opencv-python-headless",
)
Standing = Literal["new", "unfinished", "finished"]


@dataclass(frozen=True)
class Plan:
    """A training to start: its settings, its tables and its run folder.

    With `split_made` the table had no split; the one made for it is kept in the run folder.
    """

    config: Config
    table: Table
    run: Path
    split_made: bool = False
    outside: tuple[Outside, ...] = ()


def data_sha256(table: Table, others: Sequence[Outside] = ()) -> str:
    """The hash of the table, or if there are outside tables the hash of all their hashes."""
    every = [table.sha256, *(other.table.sha256 for other in others)]
    if len(every) == 1:
        return every[0]
    return hashlib.sha256("\n".join(every).encode()).hexdigest()


def describe_plan(plan: Plan) -> str:
    """The numbers of classes, images and steps, in a sentence."""
    from lingula.tables.table import SPLITS, rows_of

    config, table = plan.config, plan.table
    train, dev, test = (len(rows_of(table, split)) for split in SPLITS)
    added, ratio = sum(len(other.table) for other in plan.outside), config.data.outside_ratio
    if added and ratio is not None:
        added = round(ratio * train)
    steps = -(-(train + added) // config.optim.batch_size) * config.optim.epochs
    outside = f", {added} per epoch from outside" if added else ""
    return (
        f"{len(table.space)} classes; {train} train, {dev} dev, {test} test images{outside}; "
        f"{steps} steps of {config.optim.batch_size}."
    )


def claim_run(run: Path, config: Config) -> Standing:
    """Claim a run folder for `config`; raises `InputError` as `find_standing` does."""
    standing = find_standing(run, config)
    if standing == "new":
        run.mkdir(parents=True, exist_ok=True)
        write_config(config, run / "config.yaml")
    return standing


def find_standing(run: Path, config: Config) -> Standing:
    """Whether a folder is free for a run with these settings, or is one, unfinished or finished.

    Raises `InputError`, with the difference, if it is a run with other settings, and if it contains
    something else.
    """
    settings = run / "config.yaml"
    if not settings.is_file():
        claim(run, _NOT_A_RUN, overwrite=None, leftovers=_MADE_BEFORE_CONFIG)
        return "new"
    done, there = is_finished(run), read_config(settings)
    changed = changed_settings(there, config, finished=done)
    if changed:
        claim(run, f"a run with other settings:\n{differences(changed)}")
    other = {key: pair for key, pair in diff(there, config).items() if key in _COMPUTED}
    if other and done:
        log.info("%s was computed otherwise than asked for now:\n%s", run, differences(other))
    return "finished" if done else "unfinished"


# What changes neither weights nor scores is the user's own affair, and may have to change before a
# run can go on; how a run was computed is a fact about it once it is finished.
_OWN_AFFAIR = ("data.workers", "model.checkpointing")
_COMPUTED = ("device", "precision", "channels_last", "compile")


def changed_settings(
    there: Config, now: Config, finished: bool = False
) -> dict[str, tuple[Any, Any]]:
    """What differs between a run's settings and those given now, except what changes no result.

    The places of inputs are left out: their content is compared where it is known.
    """
    passed = {*_OWN_AFFAIR, *PLACES, *(_COMPUTED if finished else ())}
    tagged, asked = there.model.encoder, now.model.encoder
    if finished and "." not in asked and tagged.partition(".")[0] == asked:
        passed.add("model.encoder")  # the weights that timm took by itself then
    return {key: pair for key, pair in diff(there, now).items() if key not in passed}


def settings_to_resume(run: Path, overrides: Sequence[str]) -> Config:
    """A run's own settings; `overrides` may change only what changes no result.

    Raises `InputError` for other changes, and if the folder or its table is not there.
    """
    if not (run / "config.yaml").is_file():
        inside = (run.parent / "config.yaml").is_file() and run.is_file()
        hint = f" Did you mean {run.parent}?" if inside else ""
        raise InputError(f"{run} is no run folder: it has no config.yaml.{hint}")
    stored = read_config(run / "config.yaml")
    data = stored.data.model_copy(update={"table": str(find_table(run, stored.data.table))})
    config = override_settings(stored.model_copy(update={"data": data}), overrides)
    changed = changed_settings(stored, config)
    if changed:
        raise InputError(f"A resumed run keeps its settings; these differ:\n{differences(changed)}")
    config = with_absolute_paths(config)
    table = config.data.table
    if table != "phantom" and not Path(table).is_file():
        raise InputError(
            f"There is no table {table}, on which {run} was begun. If it is elsewhere now: "
            f"lingula train --resume {run} data.table=TABLE."
        )
    return config


PLACES = (
    "data.table",
    "data.root",
    "data.outside",
    "data.cache",
    "model.weights",
    "model.text",
)


def find_table(run: Path, table: str) -> Path:
    """A run's table; the phantom in or near its folder if that was moved together with it."""
    path = Path(table)
    if path.is_file() or path.parent.name not in _PHANTOMS:
        return path
    beside = (place / path.parent.name / path.name for place in (run, *run.absolute().parents[:2]))
    return next((place for place in beside if place.is_file()), path)


_NOT_A_RUN = "and is not a run."
_PHANTOMS = ("phantom", "phantom-nih", "phantom-chexpert")
_MADE_BEFORE_CONFIG = (*_PHANTOMS, "table.csv", "table.json")
_WRITTEN = (
    r"config|environment|table|metrics|model|step-\d+|(dev|test)(\.failed)?|attention|report"
    r"|finished"
)


@contextlib.contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Keep other processes from training in `run`, a folder that is created if need be."""
    if run.is_file():
        claim(run, _NOT_A_RUN, overwrite=None)
    with lock_folder(run, "training in") as alone:
        if alone:  # what was left half-written is nobody's now
            for name in (".", "best", "checkpoints", "scores"):
                files.remove_temporary_files(run / name, _WRITTEN)
        yield


def is_finished(run: Path) -> bool:
    """Whether the run's training, scores and report are all done."""
    return (run / "finished.json").is_file()


def read_environment(run: Path) -> dict[str, Any]:
    """What `environment.json` says; nothing if it is not there."""
    return files.read_object(run / "environment.json", absent_ok=True)


def check_same_data(run: Path, sha256: str) -> None:
    """Refuse to go on with tables that differ from those that the run was begun with."""
    before = read_environment(run).get("data_sha256")
    if before is not None and before != sha256:
        raise InputError(
            f"The table has changed since {run} was begun (its hash differs). Put the old one "
            "back, or choose another --out."
        )


def check_same_training(run: Path) -> None:
    """Refuse to go on with a run that was begun by a version that trains to other weights."""
    begun = read_environment(run)
    if begun and begun.get("training", 1) != TRAINING:
        other = begun["lingula"]
        raise InputError(
            f"{run} was begun by lingula {other}. lingula {about.__version__} trains to other "
            "weights from the same settings (CHANGELOG.md says what changed), so it can't go on "
            f"with it. Finish it with that version (pip install lingula=={other}); or start again: "
            "--overwrite sets it aside, and model.weights=RUN starts from its best model."
        )


def describe_environment(config: Config, data_sha256: str, threads: int) -> dict[str, Any]:
    """Versions, machine, seed and data hash: what the same weights can be expected on."""
    return {
        "lingula": about.__version__,
        "python": platform.python_version(),
        "packages": {name: installed_version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": threads,
        "device": config.device,
        "precision": config.precision,
        "training": TRAINING,
        "scored_in": "fp32",
        "seed": config.seed,
        "data_sha256": data_sha256,
    }


def installed_version(package: str) -> str | None:
    """An installed package's version; None if it is absent."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


class _LogFile(logging.FileHandler):
    """A log file that a full disk may cut short; whatever matters more fails by itself then."""

    def handleError(self, record: logging.LogRecord) -> None:
        """One line instead of a traceback for each line that can't be written."""
        sys.stderr.write(f"{self.baseFilename} can't be written; a line of the log is lost.\n")


@contextlib.contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Also append what `lingula` logs to a file, with times."""
    try:
        handler = _LogFile(path, encoding="utf-8")
    except OSError as error:
        raise files.unwritable(path, error) from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    level = log.level
    log.setLevel(min(level or logging.INFO, logging.INFO))
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(handler)
        handler.close()


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add an epoch's row; rows of this epoch or later, left by a killed run, go first."""
    kept = [old for old in read_rows(path) if old["epoch"] < row["epoch"]]
    files.write_text(path, "".join(json.dumps(r) + "\n" for r in [*kept, dict(row)]))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, or none if there is no such file."""
    if not path.is_file():
        return []
    lines = enumerate(path.read_bytes().splitlines(), start=1)
    return [files.parse_object(line, f"{path}, line {n},", "epoch") for n, line in lines]
