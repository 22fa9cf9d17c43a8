"""A table as a config's `data` section reads it, what its cells mean there, and what it lacks."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lingula.settings.config import Config, Data
from lingula.settings.label_space import label_space
from lingula.system.errors import InputError, examples
from lingula.tables.cells import Fault
from lingula.tables.joins import Outside, check_apart, outside
from lingula.tables.reading import read_checked, read_table
from lingula.tables.splits import (
    check_parts,
    patients_in_two_splits,
    patients_spelled_twice,
    split_by_patient,
)
from lingula.tables.table import Table, rows_of, targets, with_splits

log = logging.getLogger("lingula")

SHARES = (0.7, 0.1, 0.2)
"""Of train, dev and test in the split of a table that has none."""


def configured_table(data: Data, path: Path | None = None, named: Collection[str] = ()) -> Table:
    """The section's table; or `path`, a copy that lingula wrote, which has no columns to ignore.

    Classes that are `named` elsewhere may be called as helpers are.
    """
    choices = _choices(data) | ({} if path is None else {"ignore_columns": ()})
    return read_table(data.table if path is None else path, named=named, **choices)


def checked_table(path: str | Path, data: Data) -> tuple[Table, list[Fault]]:
    """A table as the section reads it, with all its faults (see `read_checked`)."""
    return read_checked(path, **_choices(data))


def moved_table(data: Data, path: Path) -> Table:
    """The section's table where it lies now, or another one in its place, read in the same way.

    Of `ignore_columns` those apply that it has. Its images lie where the section says, or, if that
    is not there any more, where the table does.
    """
    choices = _choices(data)
    if data.root is not None and not Path(data.root).is_dir():
        choices["root"] = None
    return read_table(path, ignore_absent=True, **choices)


def configured_outside(data: Data, path: Path) -> Table:
    """Another table to train on, with classes and image root of its own.

    Of `ignore_columns` those apply that it has.
    """
    return read_table(path, ignore_columns=data.ignore_columns, ignore_absent=True, soft=data.soft)


def _choices(data: Data) -> dict[str, Any]:
    """The arguments of `read_table` that the section chooses."""
    return {
        "classes": None if data.classes is None else label_space(data.classes),
        "root": None if data.root is None else Path(data.root),
        "ignore_columns": data.ignore_columns,
        "soft": data.soft,
    }


@dataclass(frozen=True)
class Meaning:
    """What the three kinds of unknown cells count as; `blank=None` is what the table says."""

    uncertain: Literal["ignore", "zero", "one"] = "ignore"
    blank: Literal["ignore", "zero"] | None = None
    unmentioned: Literal["ignore", "zero"] = "ignore"


def configured_targets(
    data: Data | Meaning, table: Table
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Targets and mask (N, K), unknown cells as the section, or the `Meaning`, says."""
    return targets(table, uncertain=data.uncertain, blank=data.blank, unmentioned=data.unmentioned)


def with_own_split(table: Table, *, seed: int, images_are_patients: bool) -> Table:
    """The table with a split by patient of its own, in `SHARES`.

    Raises `InputError` where patients are missing or too few.
    """
    made = split_by_patient(
        table, fractions=SHARES, seed=seed, images_are_patients=images_are_patients
    )
    check_parts(made, SHARES, table.path)
    return with_splits(table, made)


def check_trainable(table: Table, data: Data) -> None:
    """Refuse, by `InputError`, a table with splits that no training can use."""
    shared = patients_in_two_splits(table)
    if shared:
        named = [f"{name} ({', '.join(splits)})" for name, splits in shared.items()]
        raise InputError(
            f"{table.path}: patients in more than one split: {examples(named)}. Give each patient "
            "one split, or remove the split column and let a patient-wise one be made."
        )
    spelled = [
        f"{ids} ({', '.join(splits)})"
        for ids, splits in patients_spelled_twice(table).items()
        if len(splits) > 1
    ]
    if spelled:
        raise InputError(
            f"{table.path}: patients in more than one split, by ids spelled in two ways: "
            f"{examples(spelled)}. Write each patient's id one way, or give different people "
            "different sources."
        )
    rows = {split: rows_of(table, split) for split in ("train", "dev")}
    for split, here in rows.items():
        if not len(here):
            raise InputError(f"{table.path} has no rows with split '{split}'; training needs them.")
    if len(rows["train"]) < 2 and not data.outside:
        raise InputError(f"{table.path}: there is 1 image to train on, but a step needs two.")
    values, mask = configured_targets(data, table)
    if not ((values >= 0.5) & mask)[rows["train"]].any():
        raise InputError(f"{table.path}: no class has a positive in the train split.")


def check_table(table: Table, config: Config) -> None:
    """Refuse a table with splits that can't be trained on as the config says; name odd classes."""
    check_trainable(table, config.data)
    _name_empty_classes(table, config)
    for name in config.loss.class_weights:
        table.space.index(name)


def _name_empty_classes(table: Table, config: Config) -> None:
    values, mask = configured_targets(config.data, table)
    here = (values >= 0.5) & mask
    for split, so in (
        ("train", "nothing is learned"),
        ("dev", "no epoch, threshold or calibration is chosen by the AP"),
        ("test", "no AP is measured"),
    ):
        rows = rows_of(table, split)
        empty = [table.space.classes[i] for i in np.flatnonzero(~here[rows].any(0))]
        if empty and len(rows):
            log.warning("No positives in %s, so %s of: %s.", split, so, examples(empty, 26))


def prepared_table(config: Config) -> tuple[Table, bool]:
    """The table as the config reads it, with disjoint splits; and whether they were made here."""
    data = config.data
    table = configured_table(data)
    split_made = table.splits is None
    if split_made:
        table = with_own_split(
            table, seed=config.seed, images_are_patients=data.images_are_patients
        )
        log.info("The table has no split; made one by patient (70 % train, 10 % dev, 20 % test).")
    check_table(table, config)
    return table, split_made


def prepared_outside(config: Config, own: Table) -> tuple[Outside, ...]:
    """The tables of `data.outside`, their classes joined by name; logs which classes they lack."""
    found = []
    for place in config.data.outside:
        joined = outside(configured_outside(config.data, Path(place)), own.space)
        check_apart(own, joined.table)
        log.info(
            "%s: %d images to train on; it does not know %s%s.",
            place,
            len(joined.table),
            examples(joined.lacks, 26) or "nothing (it has every class)",
            f"; left out: {examples(joined.dropped)}" if joined.dropped else "",
        )
        found.append(joined)
    return tuple(found)
