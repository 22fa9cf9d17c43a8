"""All that a reproduction lacks, told at once and before the first step of any training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from lingula.loading.order import Rows
from lingula.reproduction.jobs import (
    Job,
    config_of,
    is_exogenous,
    missing_of,
    outside_wanted,
    runnable,
    scorings,
    unfinished,
)
from lingula.reproduction.reproduction import Reproduction
from lingula.settings.config import Config, read_config
from lingula.system import files
from lingula.system.errors import InputError, differences
from lingula.system.processes import is_first
from lingula.tables.configured import check_table, configured_outside, configured_table
from lingula.tables.outside import Outside, check_apart, outside
from lingula.tables.reading import read_table
from lingula.tables.table import SPLITS, Table, rows_of
from lingula.training import run_folder
from lingula.training.plan import data_sha256

log = logging.getLogger("lingula")

Found = TypeVar("Found")
Given = ParamSpec("Given")


@dataclass(frozen=True)
class Films:
    """What is trained and measured on; the tables are None where a phantom is yet to be drawn."""

    train: int
    outside: int
    dev: int
    test: int
    table: Table | None = None
    others: tuple[Outside, ...] = ()

    def rows(self, config: Config) -> Rows:
        """What an epoch of a training consists of."""
        extra = self.outside if config.data.outside else 0
        return Rows(self.train + extra, extra, config.data.outside_ratio)


def make_ready(
    asked: Reproduction, jobs: Mapping[str, Job], faults: list[str], *, join: bool, here: bool
) -> Films:
    """Look for everything that the trainings need; what they work on.

    Args:
        asked: the reproduction.
        jobs: its trainings.
        faults: what was found to be wrong so far.
        join: nothing is to be trained: only look whether all is finished.
        here: the trainings run on this machine.

    Raises:
        InputError: one list of all that is wrong or missing. Weights that only some rows lack are
            told in the log, in one list too.
    """
    if not runnable(asked, jobs):
        faults.append(f"No row of {asked.table} can be run.")
        faults += [f"{', '.join(names)}: {why}" for why, names in missing_of(jobs).items()]
    elif is_first():
        _tell_of_missing(jobs)
    films = films_of(asked, jobs, faults)
    _check_folders(asked, jobs, films, faults)
    rest = unfinished(asked, jobs)
    if join:
        faults += [f"{asked.run(job.name, seed)} is not finished." for job, seed in rest]
        faults += [told for wanted in scorings(asked, jobs) if (told := _not_scored(wanted))]
    elif rest:
        from lingula.reproduction.starting import check_starts  # imports torch

        check_starts(asked, rest, films, faults, here=here)
    refuse(faults)
    return films


def _not_scored(wanted: Mapping[str, Any]) -> str:
    """Why a prediction is not what a table needs; empty if it is. No image is looked at for it."""
    out, model = wanted["out"], wanted["run"] / "best" / "model.json"
    made = out.with_suffix(".made.json")
    if not out.is_file() or not made.is_file():
        return f"{out} is not there."
    by, trained = files.read_object(made), files.read_object(model, absent_ok=True)
    same = (by.get("model"), by.get("tta")) == (trained.get("weights_sha256"), wanted["tta"])
    return "" if same else f"{out} was not made by {wanted['run']}, or with other views."


def refuse(faults: list[str]) -> None:
    """Raise one `InputError` for all faults, if there are any."""
    if faults:
        lines = [f"- {line}" for line in dict.fromkeys(faults)]
        raise InputError("\n".join(["Before the first step:", *lines]))


def tried(
    faults: list[str], make: Callable[Given, Found], *args: Given.args, **named: Given.kwargs
) -> Found | None:
    """What is made of these; None if that is wrong input, whose message is added to the faults."""
    try:
        return make(*args, **named)
    except InputError as error:
        faults.append(str(error))
        return None


def _tell_of_missing(jobs: Mapping[str, Job]) -> None:
    missing = missing_of(jobs)
    if missing:
        lines = [f"- {', '.join(names)}: {why}" for why, names in missing.items()]
        log.warning("\n".join(["Not run, for what they lack:", *lines]))


def films_of(asked: Reproduction, jobs: Mapping[str, Job], faults: list[str]) -> Films:
    """The tables as the trainings read them; what is wrong with them is added to `faults`."""
    first = next(iter(jobs.values()))
    wanted = outside_wanted(jobs)
    _check_outside(asked, wanted, faults)
    size = asked.size
    dev, test = (round(share * size.images) for share in size.shares)
    nothing = Films(size.images - dev - test, wanted * size.outside, dev, test)
    drawn = [asked.own, *(asked.others if wanted else ())]
    if asked.data is None and not all(path.is_file() for path in drawn):
        return nothing
    table = tried(faults, _own, first.config, asked)
    others = [
        tried(faults, _other, first.config, path, table)
        for path in (asked.others if wanted else ())
    ]
    if table is None or None in others:
        return nothing
    joined = tuple(other for other in others if other is not None)
    counts = {split: len(rows_of(table, split)) for split in SPLITS}
    return Films(**counts, outside=sum(len(o.table) for o in joined), table=table, others=joined)


def _check_outside(asked: Reproduction, wanted: int, faults: list[str]) -> None:
    given = len(asked.outside)
    if given and not wanted:
        log.warning("--outside is not used: none of these rows has outside data.")
    elif given and given != wanted:
        faults.append(
            f"--outside was given {given} table{'s' if given > 1 else ''}, and {wanted} are meant: "
            "ChestX-ray14's and CheXpert's."
        )
    elif len(set(asked.outside)) < given:
        faults.append(f"--outside names one table twice: {asked.outside[0]}.")


def _own(config: Config, asked: Reproduction) -> Table:
    """The table to train and measure on, with the splits that every row shares."""
    path = Path(config.data.table)
    if not path.is_file():
        raise InputError(f"There is no table {path} (--data).")
    table = configured_table(config.data)
    if table.splits is None:
        raise InputError(
            f"{path} has no split column, and all rows must be measured on the same films. "
            f"`lingula data split {path} --out NEW` makes one by patient."
        )
    empty = [split for split in SPLITS if not len(rows_of(table, split))]
    if empty:
        raise InputError(
            f"{path} has no rows with split {' and '.join(empty)}: the rows are trained on train, "
            "chosen on dev and measured on test."
        )
    check_table(table, config)
    if asked.table == "table2":
        read_table(path)  # as the ensembles do, whatever the trainings leave out
    return table


def _other(config: Config, path: Path, own: Table | None) -> Outside | None:
    """A table from outside, joined to the classes by name."""
    if not path.is_file():
        raise InputError(f"There is no table {path} (--outside).")
    table = configured_outside(config.data, path)
    if own is None:
        return None
    joined = outside(table, own.space)
    check_apart(own, joined.table)
    return joined


def _check_folders(
    asked: Reproduction, jobs: Mapping[str, Job], films: Films, faults: list[str]
) -> None:
    """Folders of trainings that hold other runs, or runs on other data, than are asked for."""
    for job in jobs.values():
        for seed in range(asked.seeds if job.same_as is None and not job.missing else 0):
            run = asked.run(job.name, seed)
            if not (run / "config.yaml").is_file():
                continue
            there = read_config(run / "config.yaml")
            changed = run_folder.changed_settings(there, config_of(job, seed), finished=True)
            if changed:
                faults.append(f"{run} is a run with other settings:\n{differences(changed)}")
            before = run_folder.read_environment(run).get("data_sha256")
            others = films.others if is_exogenous(job.recipe) else ()
            if films.table is not None and before not in (None, data_sha256(films.table, others)):
                faults.append(f"{run} was begun on another table, or on this one before a change.")
