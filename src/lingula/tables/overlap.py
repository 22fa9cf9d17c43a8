"""Patients and images that stand in two tables: what would let a model be tested on what it saw."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lingula.images.files import image_path
from lingula.system import files
from lingula.system.errors import ImageError, InputError, examples
from lingula.tables.splits import Person, number_of, people_of, told
from lingula.tables.table import SPLITS, Table

# How to mend it where one id means two people.
STATE_SOURCES = (
    "Or, if they are different people with the same ids, say so: give each table a column `source` "
    "with a name of its own in every row (such as hospital-a), since ids of unstated sources are "
    "taken for the same."
)

_HEAD = 16384  # bytes; enough to tell nearly all different images of one size apart


@dataclass(frozen=True)
class Overlap:
    """What tables share.

    Attributes:
        patients: patients that stand in more than one table, with their source or splits if known.
        images: pairs of image files, in different tables, with the same bytes.
        split: those of `images` that are in different splits.
    """

    patients: tuple[str, ...]
    images: tuple[tuple[str, str], ...]
    split: tuple[tuple[str, str], ...]


def overlap(tables: Sequence[Table], images: bool = True) -> Overlap:
    """What stands in more than one of the tables.

    Patients are the same if their id is, unless both rows state their sources and these differ: the
    patient `1` of one hospital is not the patient `1` of another. Rows without a patient are their
    study's. With `images`, files are compared
    by their SHA-256; those that can't be read are passed over.
    """
    patients = tuple(_in_several(tables))
    pairs = tuple(_same_files(tables)) if images else ()
    same = tuple((str(a[0]), str(b[0])) for a, b in pairs)
    split = tuple(
        (f"{a[0]} ({a[1] or 'no split'})", f"{b[0]} ({b[1] or 'no split'})")
        for a, b in pairs
        if a[1] != b[1]
    )
    return Overlap(patients, same, split)


def _in_several(tables: Sequence[Table]) -> Iterator[str]:
    """The patients, or studies of rows without one, of more than one table, as they are named.

    Who is one patient is what `splits.people` says; `p77` of one table is the `77` of another.
    """
    studies = not all(all(table.patients or ("",)) for table in tables)
    rows = [(*row, number) for number, table in enumerate(tables) for row in told(table, studies)]
    whose = people_of(
        [source for source, *_ in rows],
        [number_of(patient) for _, patient, *_ in rows],
        [study for _, _, study, *_ in rows],
        [""] * len(rows),
    )
    seen: dict[Person, set[int]] = defaultdict(set)
    for person, row in zip(whose, rows, strict=True):
        seen[person].add(row[4])
    shared = [p for p in seen if p[0] != "image" and len(seen[p]) > 1]
    spelled: dict[Person, set[str]] = defaultdict(set)
    splits: dict[Person, set[str]] = defaultdict(set)
    for person, (_, patient, _, split, _) in zip(whose, rows, strict=True):
        if len(seen[person]) > 1:
            spelled[person].add(patient)
            splits[person].add(split)
    for person in shared:
        kind, source, name = person
        names = " = ".join(sorted(spelled[person] - {""})) if kind == "patient" else f"study {name}"
        where = [source] * bool(source) + [part for part in SPLITS if part in splits[person]]
        yield f"{names} ({', '.join(where)})" if where else names


_Film = tuple[Path, str]


def _same_files(tables: Sequence[Table]) -> Iterator[tuple[_Film, _Film]]:
    """Pairs (path, split) of the same bytes in two tables; only files of one size are read."""
    by_size: dict[object, list[tuple[int, _Film]]] = defaultdict(list)
    for number, table in enumerate(tables):
        for i, image in enumerate(table.images):
            try:
                path = image_path(table.root, image)
                size = path.stat().st_size
            except (ImageError, OSError):
                continue
            split = "" if table.splits is None else table.splits[i]
            by_size[size].append((number, (path, split)))
    for alike in _in_two_tables(by_size):
        by_head: dict[object, list[tuple[int, _Film]]] = defaultdict(list)
        for number, film in alike:
            with film[0].open("rb") as stream:
                by_head[hashlib.sha256(stream.read(_HEAD)).digest()].append((number, film))
        for same_head in _in_two_tables(by_head):
            whole: dict[object, list[tuple[int, _Film]]] = defaultdict(list)
            for number, film in same_head:
                whole[files.sha256(film[0])].append((number, film))
            for same in _in_two_tables(whole):
                first, one = same[0]
                yield from ((one, other) for number, other in same[1:] if number != first)


def _in_two_tables(
    groups: dict[object, list[tuple[int, _Film]]],
) -> Iterator[list[tuple[int, _Film]]]:
    return (group for group in groups.values() if len({number for number, _ in group}) > 1)


def check_overlap(tables: Sequence[Table], found: Overlap) -> None:
    """Refuse tables that share patients, or images in different splits; both are named."""
    named = examples(str(table.path or "a table") for table in tables)
    if found.patients:
        raise InputError(
            f"{named}: {len(found.patients)} patients stand in more than one: "
            f"{examples(found.patients)}. A model might be measured on patients it was trained on. "
            f"Take them out of one (lingula data filter). {STATE_SOURCES}"
        )
    if found.split:
        shown = [f"{a} = {b}" for a, b in found.split]
        raise InputError(
            f"{named}: {len(shown)} images stand in two, in different splits: {examples(shown)}. "
            "Take them out of one."
        )
