"""Patients and images that stand in two tables: what would let a model be tested on what it saw."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lingula import files
from lingula.data.table import Table, image_path
from lingula.errors import ImageError, InputError, examples

_HEAD = 16384  # bytes; enough to tell nearly all different images of one size apart


@dataclass(frozen=True)
class Overlap:
    """What tables share.

    Attributes:
        patients: (source, patient) that stand in more than one table.
        images: pairs of image files, in different tables, with the same bytes.
        split: those of `images` that are in different splits.
    """

    patients: tuple[tuple[str, str], ...]
    images: tuple[tuple[str, str], ...]
    split: tuple[tuple[str, str], ...]


def overlap(tables: Sequence[Table], images: bool = True) -> Overlap:
    """What stands in more than one of the tables.

    Patients are the same if their source is: the patient `1` of one hospital is not the patient `1`
    of another. A table without sources is one of its own. With `images`, files are compared by
    their SHA-256; those that can't be read are passed over.
    """
    seen: dict[tuple[str, str], set[int]] = defaultdict(set)
    for number, table in enumerate(tables):
        sources = table.sources or (f"\0{table.path or number}",) * len(table)
        people = zip(sources, table.patients or ("",) * len(table), strict=True)
        for source, patient in dict.fromkeys(people):
            if patient:
                seen[source, patient].add(number)
    patients = tuple(key for key, where in seen.items() if len(where) > 1)
    pairs = tuple(_same_files(tables)) if images else ()
    same = tuple((str(a[0]), str(b[0])) for a, b in pairs)
    split = tuple(
        (f"{a[0]} ({a[1] or 'no split'})", f"{b[0]} ({b[1] or 'no split'})")
        for a, b in pairs
        if a[1] != b[1]
    )
    return Overlap(patients, same, split)


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
        shown = [f"{patient} ({source})" for source, patient in found.patients]
        shown = [text if "\0" not in text else text.split(" (")[0] for text in shown]
        raise InputError(
            f"{named}: {len(found.patients)} patients stand in more than one: {examples(shown)}. "
            "A model might be measured on patients it was trained on. Take them out of one "
            "(lingula data filter), or give the tables sources of their own if they are others."
        )
    if found.split:
        shown = [f"{a} = {b}" for a, b in found.split]
        raise InputError(
            f"{named}: {len(shown)} images stand in two, in different splits: {examples(shown)}. "
            "Take them out of one."
        )
