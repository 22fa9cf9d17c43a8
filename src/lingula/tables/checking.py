"""The common faults of a table and its images, all found in one pass, with counts and examples."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lingula.images.dicom.facts import ODDITIES, find_oddities, read_facts_if_dicom
from lingula.images.files import REMARKS, Remark, collect_remarks, image_path
from lingula.images.reading import is_blank, read_pixels
from lingula.settings.config import Data
from lingula.settings.label_space import group_by_prevalence
from lingula.system.errors import ImageError, InputError
from lingula.tables.cells import Fault
from lingula.tables.configured import check_trainable, checked_table, with_own_split
from lingula.tables.splits import classes_missing, patients_in_two_splits, patients_spelled_twice
from lingula.tables.table import (
    BLANK,
    SPLITS,
    UNCERTAIN,
    UNMENTIONED,
    Table,
    class_counts,
    describe_blanks,
    rows_of,
    subset,
    with_splits,
)

EXAMPLES = 5
_SIDE = 64  # enough to compare pixels; a JPEG is decoded whole all the same
_AT_ONCE = 2048
FLAT = 0.03  # of the range, between the 2nd and 98th percentile
NARROW = 0.55  # sides below this ratio are no chest film's
_BESIDE_NO_FINDING = ("No Finding", "Support Devices")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CheckReport:
    """The faults that must be fixed, those to know of, and the facts of the table.

    `bad` are the images that can't be read; `odd` are images worth looking at, by their fault.
    """

    table: str
    problems: tuple[Fault, ...]
    warnings: tuple[Fault, ...]
    facts: dict[str, Any]
    bad: tuple[str, ...] = ()
    odd: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def fit(self) -> bool:
        """Whether the table can be trained on as it is."""
        return not self.problems


def check(
    path: str | Path,
    *,
    images: bool = True,
    data: Data | None = None,
    splits: tuple[str, ...] | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Look for every fault of a table and, with `images`, of the files that it names.

    A table that can't be read at all is a report with that one problem. `data` says how it is read,
    as in training; the table that it names is not looked at. `splits` are taken instead of the
    table's own, for a training by folds on all of `dev`; images of other splits are not read then.
    """
    data = data or Data()
    try:
        table, problems = checked_table(path, data)
    except InputError as error:
        unread = Fault("the table can't be read", str(error), 1, (str(error),))
        return CheckReport(str(path), (unread,), (), {})
    if splits is not None:
        table = with_splits(table, splits)
    warnings: list[Fault] = []
    labelled = all(fault.what != "no class columns" for fault in problems)
    _check_rows(table, labelled, problems, warnings)
    if labelled and splits is None and not any(fault.fatal for fault in problems):
        _check_training(table, data, problems)
    bad: tuple[str, ...] = ()
    odd: dict[str, tuple[str, ...]] = {}
    if images:
        part = table if splits is None else subset(table, rows_of(table, "dev"))
        bad, odd = _check_images(part, problems, warnings, progress)
    facts = count_facts(table) if labelled else {"images": len(table)}
    return CheckReport(str(path), _shorten(problems), _shorten(warnings), facts, bad, odd)


def _shorten(faults: Sequence[Fault]) -> tuple[Fault, ...]:
    return tuple(replace(fault, examples=fault.examples[:EXAMPLES]) for fault in faults)


def _fault(what: str, found: Iterable[object], fix: str) -> Fault:
    every = tuple(str(item) for item in found)
    shown = ", ".join(every[:EXAMPLES]) + (", ..." if len(every) > EXAMPLES else "")
    return Fault(what, f"{len(every)} {what}: {shown}. {fix}", len(every), every)


def _check_rows(table: Table, labelled: bool, problems: list[Fault], warnings: list[Fault]) -> None:
    shared = patients_in_two_splits(table)
    if shared:
        found = [f"{patient} ({', '.join(splits)})" for patient, splits in shared.items()]
        fix = "Give each patient one split, or drop the split column."
        problems.append(_fault("patients in more than one split", found, fix))
    twice = patients_spelled_twice(table)
    if twice:
        fix = "Write each patient's id one way, or give different people different sources."
        problems.append(_fault("patients whose ids are spelled in two ways", twice, fix))
    for name, column in (("patient", table.patients), ("split", table.splits)):
        if column is not None and "" in column:
            rows = [table.images[i] for i, cell in enumerate(column) if not cell]
            warnings.append(_fault(f"images without a {name}", rows, "Fill them in."))
    if not labelled:
        return
    lacking = classes_missing(table)
    if table.splits is None:
        counts = class_counts(table)
        lacking = {"the table": tuple(name for name, count in counts.items() if not count)}
    for split, names in lacking.items():
        if names:
            what = f"classes without a positive in {split}"
            warnings.append(_fault(what, names, "Their metrics are undefined there."))
    contradictions = _find_contradictions(table)
    if contradictions:
        what = "images with No Finding and a finding"
        warnings.append(_fault(what, contradictions, "One of the two is wrong."))


def _check_training(table: Table, data: Data, problems: list[Fault]) -> None:
    """What training with the usual settings would refuse at once, in its own words."""
    try:
        if table.splits is None:
            patients = data.images_are_patients
            table = with_own_split(table, seed=0, images_are_patients=patients)
        check_trainable(table, data)
    except InputError as error:
        problems.append(Fault("no training can use it", str(error)))


def _find_contradictions(table: Table) -> list[str]:
    if "No Finding" not in table.space:
        return []
    # No Finding and Support Devices may occur together (the challenge's own rule).
    others = [k for k, c in enumerate(table.space.classes) if c not in _BESIDE_NO_FINDING]
    normal = table.labels[:, table.space.index("No Finding")] == 1
    rows = np.flatnonzero(normal & (table.labels[:, others] == 1).any(1))
    return [table.images[i] for i in rows]


@dataclass(frozen=True)
class _Look:
    """One image: what keeps it from being read; or a hash of its pixels and what is odd."""

    kind: str = ""
    reason: str = ""
    digest: bytes = b""
    bits: int = 16
    odd: tuple[str, ...] = ()


_BLANK, _DARK = "images: blank", "images: mis-scaled"
_FLAT, _SHAPED = "images: almost without contrast", "images: of an odd shape"
_SAME = "images with the same pixels"
_ADVICE = {
    _BLANK: "All their pixels are the same; remove them, or let the model see them as they are.",
    _DARK: "No level of these 16-bit files needs more than {bits} bits: data.bits={bits}?",
    _FLAT: "Their levels hardly differ: a wrong window, or not a radiograph.",
    _SHAPED: "Chest films are nearly square: a strip, a photograph of a screen, another part?",
    **ODDITIES,
    **{
        f"images: {remark}": f"{advice[0].upper()}{advice[1:]}"
        for remark, advice in REMARKS.items()
    },
}
_IN_HEADERS = (Remark.BURNED_IN, Remark.FRAMES)  # among `ODDITIES` already


def _look(root: Path, name: str) -> _Look:
    try:
        path = image_path(root, name)
        with collect_remarks() as remarked:
            pixels = read_pixels(path, at_least=_SIDE)
        facts = read_facts_if_dicom(path)
    except ImageError as error:
        return _Look(error.kind, str(error))
    said = [f"images: {what}" for what in dict.fromkeys(remarked) if what not in _IN_HEADERS]
    said += [] if facts is None else find_oddities(facts)
    if is_blank(pixels):
        return _Look(odd=(_BLANK, *said))
    shape = str((pixels.dtype, pixels.shape)).encode()
    digest = hashlib.blake2b(pixels.tobytes() + shape, digest_size=16).digest()
    bits = int(pixels.max()).bit_length() if pixels.dtype == np.uint16 else 16
    low, high = np.percentile(pixels[:: max(1, len(pixels) // 64)], [2, 98])
    full = 255.0 if pixels.dtype == np.uint8 else float(max(1, pixels.max()))
    faults = {
        _DARK: bits < 15,
        _FLAT: bool((high - low) / full < FLAT),
        _SHAPED: not NARROW <= pixels.shape[1] / pixels.shape[0] <= 1 / NARROW,
    }
    odd = [what for what, is_so in faults.items() if is_so]
    return _Look(digest=digest, bits=bits if bits < 15 else 0, odd=(*odd, *said))


def _check_images(
    table: Table, problems: list[Fault], warnings: list[Fault], progress: Progress | None
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Add the faults of the images; those that can't be read, and the odd ones by fault."""
    broken: dict[str, list[str]] = defaultdict(list)
    reasons: dict[str, str] = {}
    odd: dict[str, list[str]] = {what: [] for what in (*_ADVICE, _SAME)}
    same: dict[bytes, list[str]] = defaultdict(list)
    bits = 0
    for name, look in _look_at_all(table.root, sorted(set(table.images) - {""}), progress):
        if look.kind:
            broken[look.kind].append(name)
            reasons.setdefault(look.kind, look.reason)
        if look.digest:
            same[look.digest].append(name)
            bits = max(bits, look.bits)
        for what in look.odd:
            odd[what].append(name)
    for kind, names in sorted(broken.items()):
        fix = f"{reasons[kind]} Fix or remove these rows."
        problems.append(_fault(f"images: {kind}", names, fix))
    for what, fix in _ADVICE.items():
        if odd[what]:
            warnings.append(_fault(what, odd[what], fix.format(bits=bits)))
    repeats = [names for names in same.values() if len(names) > 1]
    _check_repeats(table, repeats, warnings)
    odd[_SAME] = [name for names in repeats for name in names]
    bad = tuple(sorted(name for names in broken.values() for name in names))
    return bad, {what: tuple(names) for what, names in odd.items() if names}


def _look_at_all(
    root: Path, names: list[str], progress: Progress | None
) -> Iterable[tuple[str, _Look]]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for begin in range(0, len(names), _AT_ONCE):
            part = names[begin : begin + _AT_ONCE]
            looks = pool.map(lambda name: _look(root, name), part)
            for done, (name, look) in enumerate(zip(part, looks, strict=True), begin + 1):
                yield name, look
                if progress is not None:
                    progress(done, len(names))


def _check_repeats(table: Table, repeats: list[list[str]], warnings: list[Fault]) -> None:
    """Images with the same pixels; those in two splits apart, since they leak."""
    if not repeats:
        return
    splits = table.splits or ("",) * len(table)
    split_of = dict(zip(table.images, splits, strict=True))
    leaks = [found for found in repeats if len({split_of[name] for name in found} - {""}) > 1]
    shown = [" = ".join(found) for found in repeats]
    warnings.append(_fault(_SAME, shown, "Are they meant to repeat?"))
    if leaks:
        shown = [" = ".join(f"{name} ({split_of[name]})" for name in found) for found in leaks]
        fix = "The model is tested on what it was trained on: remove one of each."
        warnings.append(_fault(f"{_SAME} in two splits", shown, fix))


def count_facts(table: Table) -> dict[str, Any]:
    """Rows, patients, sources; positives by class and split; cells of each kind of not knowing.

    Head, medium and tail are by the positives in train, or in all rows where there is no split.
    """
    rows = {split: rows_of(table, split) for split in SPLITS}
    rows = {split: here for split, here in rows.items() if len(here)}
    counts = {split: class_counts(table, here) for split, here in rows.items()}
    counts["all"] = class_counts(table)
    known = counts.get("train", counts["all"])
    total = len(rows["train"]) if "train" in rows else len(table)
    return {
        "images": len(table),
        "patients": None if table.patients is None else len(set(table.patients) - {""}),
        "splits": {split: len(here) for split, here in rows.items()},
        "sources": dict(sorted(Counter(table.sources or ()).items())),
        "positives": {
            name: {split: found[name] for split, found in counts.items()}
            for name in table.space.classes
        },
        "together": _count_pairs(table),
        "groups": {
            group: list(names) for group, names in group_by_prevalence(known, total).items()
        },
        "uncertain_cells": int((table.labels == UNCERTAIN).sum()),
        "blank_cells": int((table.labels == BLANK).sum()),
        "unmentioned_cells": int((table.labels == UNMENTIONED).sum()),
        "blank_means": describe_blanks(table),
        "root": str(table.root),
        "sha256": table.sha256,
    }


def _count_pairs(table: Table) -> list[dict[str, Any]]:
    """Pairs of classes that occur in the same image, the commonest first."""
    has = (table.labels >= 0.5).astype(np.float32)
    both = np.triu(has.T @ has, 1).astype(int)
    places = np.argsort(-both, axis=None, kind="stable")[:50]
    names, many = table.space.classes, len(table.space)
    return [
        {"classes": [names[k // many], names[k % many]], "images": int(both.flat[k])}
        for k in places
        if both.flat[k] > 0
    ]


def to_json(report: CheckReport) -> dict[str, Any]:
    """The report as plain values."""

    def plain(faults: tuple[Fault, ...]) -> list[dict[str, Any]]:
        keys = ("what", "message", "count")
        return [
            {key: getattr(fault, key) for key in keys} | {"examples": list(fault.examples)}
            for fault in faults
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
    if "positives" in report.facts:
        lines = _facts_as_lines(report.facts)
    for word, faults in (("PROBLEM", report.problems), ("note", report.warnings)):
        lines += [f"{word}: {fault.message}" for fault in faults]
    lines.append("fit to train on" if report.fit else "not fit to train on: fix the problems")
    return "\n".join(lines)


def _facts_as_lines(facts: dict[str, Any]) -> list[str]:
    shown = ", ".join(f"{n} {split}" for split, n in facts["splits"].items())
    patients = "unknown" if facts["patients"] is None else facts["patients"]
    lines = [f"{facts['images']} images, {patients} patients; {shown or 'no split'}"]
    group_of = {name: group for group, names in facts["groups"].items() for name in names}
    width = max(len(name) for name in facts["positives"])
    for name, found in facts["positives"].items():
        counts = "  ".join(f"{split} {n:>6}" for split, n in found.items())
        lines.append(f"  {name:<{width}}  {group_of[name]:<6}  {counts}")
    lines.append(
        f"cells: {facts['uncertain_cells']} uncertain, {facts['blank_cells']} blank (meaning "
        f"{facts['blank_means']}), {facts['unmentioned_cells']} of classes unknown to their source"
    )
    return lines
