"""The common faults of a table and its images, all found in one pass, with counts and examples."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from lingula.data.images import read_pixels
from lingula.data.reading import CELLS, COLUMNS, read_description, read_frame, read_table
from lingula.data.splits import classes_missing, patients_in_two_splits
from lingula.data.table import BLANK, SPLITS, UNCERTAIN, Table, image_path, rows_of
from lingula.errors import ImageError, InputError
from lingula.labels import canonical, fold, is_known


@dataclass(frozen=True)
class Fault:
    """One kind of fault: what it is, how often it occurs, up to five examples, and the mend."""

    what: str
    count: int
    examples: tuple[str, ...]
    mend: str


@dataclass(frozen=True)
class CheckReport:
    """The faults that must be mended, those to know of, and the facts of the table."""

    table: str
    problems: tuple[Fault, ...]
    warnings: tuple[Fault, ...]
    facts: dict[str, Any]

    @property
    def fit(self) -> bool:
        """Whether the table can be trained on as it is."""
        return not self.problems


def check(
    path: Path, *, images: bool = True, progress: Callable[[int, int], None] | None = None
) -> CheckReport:
    """Look for every fault of a table and, with `images`, of the files that it names."""
    problems, warnings = _check_cells(path)
    table, facts = None, {}
    try:
        table = read_table(path)
    except InputError as error:
        if not problems:
            problems.append(Fault("the table can't be read", 1, (str(error),), "see there"))
    if table is not None:
        facts = facts_of(table)
        _check_rows(table, problems, warnings)
    names, root = _names(path)
    if images and names:
        _check_images(root, names, problems, warnings, progress)
    return CheckReport(str(path), tuple(problems), tuple(warnings), facts)


def _fault(what: str, found: Iterable[object], mend: str) -> Fault:
    every = [str(item) for item in found]
    return Fault(what, len(every), tuple(every[:5]), mend)


def _names(path: Path) -> tuple[list[str], Path]:
    try:
        frame = read_frame(path)
    except InputError:
        return [], path.parent
    root = path.parent / read_description(path).get("root", ".")
    column = next((c for c in frame.columns if COLUMNS.get(fold(c)) == "images"), None)
    return (frame[column].to_list() if column else []), root


def _check_cells(path: Path) -> tuple[list[Fault], list[Fault]]:
    """Faults that keep a table from being read, all of them and not only the first."""
    try:
        frame = read_frame(path)
    except InputError as error:
        return [Fault("the table can't be read", 1, (str(error),), "see there")], []
    problems: list[Fault] = []
    by_class: dict[str, list[str]] = defaultdict(list)
    for column in frame.columns:
        field = COLUMNS.get(fold(column))
        if field == "images":
            problems += _repeated_rows(frame, column)
        if field is None and is_known(column):
            by_class[canonical(column)].append(column)
            problems += _wrong_cells(frame, column)
    doubled = [f"{' and '.join(c)}" for c in by_class.values() if len(c) > 1]
    if doubled:
        problems.append(_fault("columns of the same class", doubled, "keep one of each"))
    return problems, []


def _repeated_rows(frame: pl.DataFrame, column: str) -> list[Fault]:
    twice = [name for name, n in Counter(frame[column].to_list()).items() if n > 1]
    return [_fault("images in more than one row", twice, "keep one row an image")] if twice else []


def _wrong_cells(frame: pl.DataFrame, column: str) -> list[Fault]:
    text = frame[column].str.strip_chars().str.to_lowercase()
    rows = np.flatnonzero(~text.is_in(list(CELLS)).to_numpy())
    if not len(rows):
        return []
    found = [f"row {row + 2}: {frame[column][int(row)]!r}" for row in rows]
    return [_fault(f"cells of '{column}' that are no labels", found, "use 1, 0, -1 or blank")]


def _check_rows(table: Table, problems: list[Fault], warnings: list[Fault]) -> None:
    shared = patients_in_two_splits(table)
    if shared:
        found = [f"{patient} ({', '.join(splits)})" for patient, splits in shared.items()]
        mend = "give each patient one split, or drop the split column"
        problems.append(_fault("patients in more than one split", found, mend))
    for split, names in classes_missing(table).items():
        if names:
            what = f"classes without a positive in {split}"
            warnings.append(_fault(what, names, "they are undefined there, and not learned"))
    contradictions = _contradictions(table)
    if contradictions:
        warnings.append(
            _fault("images with No Finding and a finding", contradictions, "mend one of the two")
        )
    if table.patients is not None and "" in table.patients:
        rows = [table.images[i] for i, name in enumerate(table.patients) if not name]
        warnings.append(_fault("images without a patient id", rows, "fill them in"))


def _contradictions(table: Table) -> list[str]:
    if "No Finding" not in table.space:
        return []
    # No Finding may stand beside Support Devices (the challenge's own rule).
    others = [k for k, c in enumerate(table.space.classes) if c not in _BESIDE_NO_FINDING]
    normal = table.labels[:, table.space.index("No Finding")] == 1
    rows = np.flatnonzero(normal & (table.labels[:, others] == 1).any(1))
    return [table.images[i] for i in rows]


_BESIDE_NO_FINDING = ("No Finding", "Support Devices")


def _look(path: Path) -> tuple[str, str]:
    """What is wrong with an image ('' if nothing), and a hash of its pixels."""
    pixels = read_pixels(path)
    top = int(pixels.max())
    digest = hashlib.sha256(pixels.tobytes() + str(pixels.shape).encode()).hexdigest()
    if int(pixels.min()) == top:
        return "blank", digest
    if pixels.dtype == np.uint16 and top < 2**14:
        return f"dark: {top.bit_length()} of 16 bits in use", digest
    return "", digest


def _check_images(
    root: Path,
    names: list[str],
    problems: list[Fault],
    warnings: list[Fault],
    progress: Callable[[int, int], None] | None,
) -> None:
    broken: dict[str, list[str]] = defaultdict(list)
    odd: dict[str, list[str]] = defaultdict(list)
    by_content: dict[str, list[str]] = defaultdict(list)

    def look(name: str) -> tuple[str, str, str]:
        try:
            return "", *_look(image_path(root, name))
        except ImageError as error:
            return error.kind, str(error), ""

    unique = sorted(set(names))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, (name, found) in enumerate(
            zip(unique, pool.map(look, unique), strict=True), start=1
        ):
            kind, remark, digest = found
            if kind:
                broken[kind].append(name)
            else:
                by_content[digest].append(name)
                if remark:
                    odd[remark].append(name)
            if progress is not None:
                progress(done, len(unique))
    for kind, found_names in sorted(broken.items()):
        problems.append(_fault(f"images: {kind}", found_names, "mend or remove these rows"))
    for remark, found_names in sorted(odd.items()):
        mend = "say data.bits=N" if remark.startswith("dark") else "look at them"
        warnings.append(_fault(f"images: {remark}", found_names, mend))
    same = [" = ".join(group) for group in by_content.values() if len(group) > 1]
    if same:
        warnings.append(_fault("images with the same pixels", same, "are they meant to repeat?"))


def facts_of(table: Table) -> dict[str, Any]:
    """Rows, patients, and positives a class and split."""
    splits = [s for s in SPLITS if len(rows_of(table, s))]
    positives = {
        name: {split: int((table.labels[rows_of(table, split), k] == 1).sum()) for split in splits}
        | {"all": int((table.labels[:, k] == 1).sum())}
        for k, name in enumerate(table.space.classes)
    }
    return {
        "images": len(table),
        "patients": None if table.patients is None else len(set(table.patients) - {""}),
        "splits": {split: len(rows_of(table, split)) for split in splits},
        "positives": positives,
        "uncertain_cells": int((table.labels == UNCERTAIN).sum()),
        "blank_cells": int((table.labels == BLANK).sum()),
        "blank_means": table.blank,
    }


def to_json(report: CheckReport) -> dict[str, Any]:
    """The report as plain values."""

    def plain(faults: tuple[Fault, ...]) -> list[dict[str, Any]]:
        return [
            {"what": f.what, "count": f.count, "examples": list(f.examples), "mend": f.mend}
            for f in faults
        ]

    return {
        "table": report.table,
        "fit": report.fit,
        "problems": plain(report.problems),
        "warnings": plain(report.warnings),
        "facts": report.facts,
    }


def to_text(report: CheckReport) -> str:
    """The report as lines for a terminal."""
    lines = []
    if report.facts:
        f = report.facts
        shown = ", ".join(f"{n} {split}" for split, n in f["splits"].items())
        patients = "unknown" if f["patients"] is None else f["patients"]
        lines.append(f"{f['images']} images, {patients} patients; {shown or 'no split'}")
        width = max(len(name) for name in f["positives"])
        for name, found in f["positives"].items():
            counts = "  ".join(f"{split} {n}" for split, n in found.items())
            lines.append(f"  {name:<{width}}  {counts}")
    for word, faults in (("PROBLEM", report.problems), ("note", report.warnings)):
        for fault in faults:
            more = ", ..." if fault.count > len(fault.examples) else ""
            lines.append(
                f"{word}: {fault.count} {fault.what}: {', '.join(fault.examples)}{more} "
                f"({fault.mend})"
            )
    lines.append("fit to train on" if report.fit else "not fit to train on: mend the problems")
    return "\n".join(lines)
