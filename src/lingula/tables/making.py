"""New tables: looking for their images, writing them, and a summary; rows left out of a table."""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from lingula.images.files import find_absent, image_path
from lingula.system import files
from lingula.system.claims import OTHER_CONTENT, check_not_an_input, claim
from lingula.system.csv_cells import escape_cell
from lingula.system.errors import ImageError, InputError, examples
from lingula.tables.cells import read_frame
from lingula.tables.columns import known_columns
from lingula.tables.mapping import Known, coverage, coverage_text
from lingula.tables.reading import read_description, write_table
from lingula.tables.splits import classes_missing
from lingula.tables.table import (
    BLANK,
    SPLITS,
    UNCERTAIN,
    UNMENTIONED,
    Table,
    describe_blanks,
    rows_of,
    subset,
)

log = logging.getLogger("lingula")


@dataclass(frozen=True)
class NewTable:
    """A table that was written: where, its content, and what is known of its classes.

    `missing` names the images that are not there, `dropped` says whether their rows were left out.
    """

    path: Path
    table: Table
    coverage: tuple[Known, ...]
    missing: tuple[str, ...] = ()
    dropped: bool = False


def _path_to_try(root: Path, name: str) -> Path:
    """Where an image is looked for; a cell that is no path inside the root is looked for as is."""
    try:
        return image_path(root, name)
    except ImageError:
        return root / name


def _find_images(table: Table, drop: bool) -> tuple[Table, tuple[str, ...]]:
    """The table and the names of images that are not there; without their rows if `drop`.

    Raises `InputError` if all are missing, with one full path that was tried.
    """
    rows = find_absent([_path_to_try(table.root, name) for name in table.images])
    if not rows:
        return table, ()
    names = tuple(table.images[i] for i in rows)
    if len(rows) == len(table):
        raise InputError(
            f"None of the {len(rows)} images was found; tried, e.g., "
            f"{image_path(table.root, names[0]).absolute()}. Name their folder; or "
            "make the table without looking for images: --no-images"
        )
    what = "their rows are left out" if drop else "their rows stay (--drop-missing leaves them out)"
    shown = examples(names)
    log.warning("%d of %d images are not there; %s: %s.", len(rows), len(table), what, shown)
    if drop:
        table = subset(table, np.setdiff1d(np.arange(len(table)), rows))
    return table, names


def write_new_table(
    table: Table,
    out: str | Path,
    *,
    images: bool,
    drop_missing: bool = False,
    overwrite: bool = False,
) -> NewTable:
    """Write a table, with `images` after looking for its images.

    A table that is the same already stays. Raises `InputError` if something else is there, unless
    `overwrite`, which renames a table that lingula wrote, and nothing else.
    """
    missing: tuple[str, ...] = ()
    if images:
        table, missing = _find_images(table, drop_missing)
    path = Path(out)
    files.check_suffix(path, (".csv", ".parquet"), "a table")
    there = [file for file in (path, path.with_suffix(".json")) if file.exists()]
    place, *beside = there or [path]
    if len(there) == 2 and _is_same(table, path):
        claim(path, None)
    else:
        if there and "sha256" not in read_description(path):  # as lingula writes it
            claim(place, "and lingula did not write it.", overwrite=None)
        claim(place, OTHER_CONTENT, overwrite=overwrite, beside=beside).make_room()
        write_table(table, path)
    return NewTable(path, table, coverage([table], table.space), missing, drop_missing)


def _is_same(table: Table, out: Path) -> bool:
    """Whether a file and its description are what `table` would be written as."""
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.stem}.") as folder:
        again = Path(folder) / out.name
        write_table(table, again)
        if files.sha256(again) != files.sha256(out):
            return False
        new = _read_described(again)
    return new == _read_described(out)


def _read_described(table: Path) -> dict[str, Any] | None:
    try:
        found = files.read_object(table.with_suffix(".json"))
        return found | {"root": (table.parent / found["root"]).resolve().as_posix()}
    except (OSError, InputError, KeyError, TypeError):
        return None


def summary_as_json(made: NewTable) -> dict[str, Any]:
    """The summary as plain values."""
    table = made.table
    return {
        "table": str(made.path),
        "images": len(table),
        "patients": _count_distinct(table.patients),
        "studies": _count_distinct(table.studies),
        "splits": _count_splits(table),
        "sources": {
            known.source: {
                "images": known.images,
                "knows": list(known.knows),
                "lacks": list(known.lacks),
                "unknown_cells": known.filled,
                "uncertain_cells": known.uncertain,
                "blank_cells": known.blank,
            }
            for known in made.coverage
        },
        "classes": _count_cells(table),
        "blank_means": describe_blanks(table),
        "without_positive": {s: list(n) for s, n in classes_missing(table).items()},
        "missing_images": len(made.missing),
        "missing_dropped": made.dropped and bool(made.missing),
        "sexes": dict(sorted(Counter(table.sexes or ()).items())),
        "ages_known": sum(bool(age) for age in table.ages or ()),
    }


def summary_as_text(made: NewTable) -> str:
    """The summary as lines for a terminal; the table's path is last."""
    facts = summary_as_json(made)
    splits = ", ".join(f"{n} {split}" for split, n in facts["splits"].items())
    people = "patients unknown" if facts["patients"] is None else f"{facts['patients']} patients"
    lines = [f"{facts['images']} images, {people}; {splits or 'no split: training makes one'}"]
    if made.table.sexes is not None:
        shown = ", ".join(f"{n} {sex or 'not stated'}" for sex, n in facts["sexes"].items())
        lines.append(f"sex: {shown}")
    if made.table.ages is not None:
        lines.append(
            f"age: {facts['ages_known']} known, {facts['images'] - facts['ages_known']} not"
        )
    width = max(len(name) for name in facts["classes"])
    heads = ("present", "absent", "unsure", "blank", "unknown")
    lines.append(f"  {'':<{width}}  " + " ".join(f"{head:>8}" for head in heads))
    for name, counts in facts["classes"].items():
        lines.append(f"  {name:<{width}}  " + " ".join(f"{n:>8}" for n in counts.values()))
    lines.append(f"blank cells: {facts['blank_means']}")
    lines.append(coverage_text(made.coverage, made.table.space))
    known = {name for source in made.coverage for name in source.knows}
    for split, every in facts["without_positive"].items():
        names = [name for name in every if name in known]  # the others are named above
        if names:
            lines.append(f"without a positive in {split}: {examples(names, 26)}")
    if facts["splits"].get("train") and "dev" not in facts["splits"]:
        lines.append(
            f"no dev split: lingula data split {made.path} --within train --fractions .9 .1 0 "
            "--out NEW"
        )
    if made.missing:
        what = "left out" if made.dropped else "still in the table"
        lines.append(f"images that are not there ({what}): {examples(made.missing)}")
    lines.append(str(made.path))
    return "\n".join(lines)


def _count_distinct(column: tuple[str, ...] | None) -> int | None:
    return None if column is None else len(set(column) - {""})


def _count_splits(table: Table) -> dict[str, int]:
    if table.splits is None:
        return {}
    counts = {split: len(rows_of(table, split)) for split in SPLITS}
    counts["in none"] = len(table) - sum(counts.values())
    return {split: count for split, count in counts.items() if count}


def _count_cells(table: Table) -> dict[str, dict[str, int]]:
    cells = table.labels
    kinds = {
        "present": cells >= 0.5,
        "absent": (cells >= 0) & (cells < 0.5),
        "uncertain": cells == UNCERTAIN,
        "blank": cells == BLANK,
        "unmentioned": cells == UNMENTIONED,
    }
    totals = {kind: here.sum(axis=0).tolist() for kind, here in kinds.items()}
    return {
        name: {kind: counts[k] for kind, counts in totals.items()}
        for k, name in enumerate(table.space.classes)
    }


def keep_rows(table: Path, out: Path, wanted: Callable[[str], bool]) -> int:
    """Write the rows whose image is wanted to a new table, with the JSON beside it; how many.

    The old table stays. A .parquet table stays one, any other becomes .csv. Raises `InputError` if
    `out` is the table itself, is there already with something else in it, or has another suffix.
    """
    suffix = table.suffix if table.suffix in (".csv", ".parquet") else ".csv"
    if out.suffix != suffix:
        raise InputError(f"{out}: the new table's name ends in {suffix}.")
    check_not_an_input(out, [table])
    frame = read_frame(table)
    column = next(name for name, field in known_columns(frame.columns).items() if field == "images")
    kept = frame.filter(pl.Series([wanted(image.strip()) for image in frame[column].to_list()]))
    if not kept.height:
        raise InputError(f"No row of {table} is left.")
    if not out.exists() or not read_frame(out).equals(kept):
        claim(out, OTHER_CONTENT, overwrite=None)
    with files.write_atomically(out) as temporary:
        if out.suffix == ".parquet":
            kept.write_parquet(temporary)
        else:
            kept.rename(escape_cell).write_csv(temporary)
    described = table.with_suffix(".json")
    about = files.read_object(described, absent_ok=True) or {"format": 1}
    root = (table.parent / str(about.get("root", "."))).resolve()
    files.write_json(
        out.with_suffix(".json"), about | {"root": str(root), "sha256": files.sha256(out)}
    )
    return kept.height
