"""Several tables: joined into one, trained on beside one's own, and what must not be in two.

Classes are joined by name. A class that a table does not have is `UNMENTIONED` in its rows, and
what that means for the loss is the setting `data.unmentioned` (`zero` in the paper, section 2.2,
`ignore` by default).
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np

from lingula.images.files import image_path, relative_cell
from lingula.settings.label_space import LabelSpace, fold
from lingula.system import files
from lingula.system.errors import ImageError, InputError, examples
from lingula.tables.mapping import LabelMap, check_names, map_classes
from lingula.tables.splits import Person, distinct_rows, number_of, people_of
from lingula.tables.table import SPLITS, UNMENTIONED, Table, plain_paths, rows_of, subset

log = logging.getLogger("lingula")

_COLUMNS = ("ids", "patients", "studies", "views", "splits", "ages", "sexes")
# How to fix it where one id means two people.
_STATE_SOURCES = (
    "Or, if they are different people with the same ids, say so: give each table a column `source` "
    "with a name of its own in every row (such as hospital-a), since ids of unstated sources are "
    "taken for the same."
)
_HEAD = 16384  # bytes; enough to tell nearly all different images of one size apart


def union_space(tables: Sequence[Table]) -> LabelSpace:
    """Every class of the tables, in the order of first appearance."""
    names = {fold(name): name for t in reversed(tables) for name in reversed(t.space.classes)}
    order = dict.fromkeys(fold(name) for table in tables for name in table.space.classes)
    classes = tuple(names[key] for key in order)
    same = [t.space.name for t in tables if t.space.classes == classes]
    return LabelSpace(classes, same[0] if same else "own")


def union(
    tables: Sequence[Table], space: LabelSpace | None = None, rules: LabelMap | None = None
) -> Table:
    """One table of all rows, in the order given, below the folder that all images have in common.

    Args:
        tables: each with classes, root and meaning of blank cells of its own, all of which stay. A
            table without sources becomes a source, by its file's name.
        space: the classes; None takes every class of any of them.
        rules: for classes that are not found by name, in tables that have the terms.

    Raises:
        InputError: tables that name one source and know different classes of it; the same image in
            two tables; phantoms beside real images; roots on two drives.
    """
    if len({table.phantom for table in tables}) > 1:
        raise InputError("Phantoms and real images can't be in one table.")
    wanted = space or union_space(tables)
    check_names(rules or LabelMap(), wanted, [table.space for table in tables])
    own = [_add_source(table, tables) for table in tables]
    parts = [map_classes(table, wanted, rules, strict=False) for table in own]
    for table in tables:
        dropped = [name for name in table.space.classes if name not in wanted]
        if dropped:
            log.info("%s: not in the joined table: %s.", table.path, examples(dropped, 26))
    blanks = _check_sources(parts)
    try:
        root = Path(os.path.commonpath([table.root.resolve() for table in tables]))
    except ValueError:
        raise InputError("The images of the tables are on different drives.") from None
    images = tuple(image for table in parts for image in _paths_below(table, root))
    _check_once(images, root)
    columns: dict[str, Any] = {}
    for name in _COLUMNS:
        cells = [getattr(part, name) or ("",) * len(part) for part in parts]
        stated = any(getattr(part, name) for part in parts)
        columns[name] = tuple(cell for part in cells for cell in part) if stated else None
    meaning: Literal["ignore", "zero"] = "zero" if set(blanks.values()) == {"zero"} else "ignore"
    return Table(
        images=images,
        root=root,
        space=wanted,
        labels=np.concatenate([part.labels for part in parts]),
        sources=tuple(source for part in parts for source in part.sources or ()),
        blank=meaning,
        blanks={s: b for s, b in blanks.items() if b != meaning},
        made_from={str(t.path.name): t.sha256 for t in tables if t.path is not None},
        phantom=tables[0].phantom,
        **columns,
    )


def _add_source(table: Table, tables: Sequence[Table]) -> Table:
    """The table with a source in every row."""
    if table.sources is not None and all(table.sources):
        return table
    stem = table.path.stem if table.path is not None else "table"
    alike = [t for t in tables if t.sources is None and t.path and t.path.stem == stem]
    if len(alike) > 1:
        raise InputError(
            f"{examples(t.path for t in alike)} have no `source` column and the same name. Add the "
            "column, or rename a file: the source would be called after it."
        )
    if table.sources is not None and table.patients is not None:
        # Named after the file, the rows without a source would become other patients.
        rows = dict.fromkeys(zip(table.sources, table.patients, strict=True))
        stated = {patient for source, patient in rows if source and patient}
        both = [patient for source, patient in rows if not source and patient in stated]
        if both:
            raise InputError(
                f"{table.path}: patients with a `source` in some rows and none in others: "
                f"{examples(both)}. Fill the column in."
            )
    return replace(table, sources=tuple(s or stem for s in table.sources or ("",) * len(table)))


def _check_sources(parts: Sequence[Table]) -> dict[str, Literal["ignore", "zero"]]:
    """What blank cells of each source mean; its tables must agree on that, and on what it knows."""
    knows: dict[str, tuple[Table, tuple[bool, ...]]] = {}
    blanks: dict[str, Literal["ignore", "zero"]] = {}
    for part in parts:
        sources = np.array(part.sources)
        for source in dict.fromkeys(part.sources or ()):
            known = tuple((part.labels[sources == source] != UNMENTIONED).any(axis=0).tolist())
            meaning = part.blanks.get(source, part.blank)
            other, before = knows.setdefault(source, (part, known))
            if before != known or blanks.setdefault(source, meaning) != meaning:
                differing = [
                    n for n, a, b in zip(part.space.classes, before, known, strict=True) if a != b
                ]
                raise InputError(
                    f"{other.path} and {part.path} both have the source '{source}', but only one "
                    f"knows {examples(differing)}. Choose classes that both know (--classes), or "
                    "name a source apart."
                    if differing
                    else f"{other.path} and {part.path} both have the source '{source}', but blank "
                    "cells mean different things there."
                )
    return blanks


def _paths_below(table: Table, root: Path) -> list[str]:
    here = table.root.resolve()
    head = "" if here == root else here.relative_to(root).as_posix() + "/"
    # An absolute path, and one with backslashes, must become one below the common root.
    odd = ("/", "file:")
    return [
        head + (relative_cell(here, cell) if cell.startswith(odd) or "\\" in cell else cell)
        for cell in table.images
    ]


def _check_once(images: Sequence[str], root: Path) -> None:
    plain = plain_paths(images, root)
    if len(set(plain)) == len(plain):
        return
    seen: set[str] = set()
    twice = [image for image in plain if image in seen or seen.add(image)]  # type: ignore[func-returns-value]
    raise InputError(f"Images that are in two of the tables: {examples(twice)}. Keep one.")


@dataclass(frozen=True)
class Outside:
    """The training rows of a table, its cells in the order of another label space.

    Attributes:
        table: labels (N, K) of that space.
        lacks: classes of that space that the table does not know.
        dropped: classes that only the table has.
    """

    table: Table
    lacks: tuple[str, ...]
    dropped: tuple[str, ...]


def outside(table: Table, space: LabelSpace) -> Outside:
    """The rows of a table to train on beside another: its train split, or all without splits.

    Raises `InputError` if it has no class of `space`, or no rows to train on.
    """
    lacks = tuple(name for name in space.classes if name not in table.space)
    if len(lacks) == len(space):
        raise InputError(
            f"{table.path} has none of the classes to train: {examples(table.space.classes)} "
            f"there, {examples(space.classes)} wanted."
        )
    part = table if table.splits is None else subset(table, rows_of(table, "train"))
    if not len(part):
        raise InputError(f"{table.path} has no rows with split 'train' to add.")
    dropped = tuple(name for name in table.space.classes if name not in space)
    return Outside(map_classes(part, space), lacks, dropped)


def check_apart(own: Table, others: Table) -> None:
    """Refuse outside rows of patients of one's own dev and test splits: they would leak.

    A patient is the same if the id is, unless both tables state their sources and these differ: the
    patient `1` of one hospital is not the patient `1` of another. Where patients and sources do not
    tell, file names do: one that both have is one too many, but for tables of different sources,
    where a few may be chance.
    """
    measured = np.concatenate([rows_of(own, "dev"), rows_of(own, "test")])
    ours = subset(own, measured)
    found = overlap([ours, others], images=False).patients
    if found:
        raise InputError(
            f"{others.path} has patients of the dev or test split of {own.path}: "
            f"{examples(found)}. Take them out of one of the two. {_STATE_SOURCES}"
        )
    stated = all(t.sources is not None and all(t.sources) for t in (ours, others))
    if stated and ours.patients and others.patients:
        return
    apart = stated and set(ours.sources or ()).isdisjoint(others.sources or ())
    names = {PurePath(image).name for image in ours.images}
    same = [image for image in others.images if PurePath(image).name in names]
    if len(same) > (len(others) // 100 if apart else 0):
        raise InputError(
            f"{others.path} has images named as in the dev or test split of {own.path}: "
            f"{examples(same)}. Take them out of one of the two; or, if they are not the same "
            "images, give both tables a `source` (a name of its own for each) and a `patient` "
            "column."
        )


@dataclass(frozen=True)
class Overlap:
    """What tables share.

    Attributes:
        patients: patients that are in more than one table, with their source or splits if known.
        images: pairs of image files, in different tables, with the same bytes.
        split: those of `images` that are in different splits.
    """

    patients: tuple[str, ...]
    images: tuple[tuple[str, str], ...]
    split: tuple[tuple[str, str], ...]


def overlap(tables: Sequence[Table], images: bool = True) -> Overlap:
    """Find the patients and images that are in more than one of the tables.

    Patients are the same if their id is, unless both rows state their sources and these differ: the
    patient `1` of one hospital is not the patient `1` of another. Rows without a patient are their
    study's. With `images`, files are compared by their SHA-256; those that can't be read are passed
    over.
    """
    patients = tuple(_find_people_in_several(tables))
    pairs = tuple(_find_same_files(tables)) if images else ()
    same = tuple((str(a.path), str(b.path)) for a, b in pairs)
    split = tuple(
        (f"{a.path} ({a.split or 'no split'})", f"{b.path} ({b.split or 'no split'})")
        for a, b in pairs
        if a.split != b.split
    )
    return Overlap(patients, same, split)


def _find_people_in_several(tables: Sequence[Table]) -> Iterator[str]:
    """The patients, or studies of rows without one, of more than one table, as they are named.

    Who is one patient is what `splits.people_of` says; `p77` of one table is the `77` of another.
    """
    studies = not all(all(table.patients or ("",)) for table in tables)
    rows = [
        (*row, number)
        for number, table in enumerate(tables)
        for row in distinct_rows(table, studies)
    ]
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


@dataclass(frozen=True)
class _File:
    """An image file, the number of its table and its split."""

    path: Path
    table: int
    split: str


def _find_same_files(tables: Sequence[Table]) -> Iterator[tuple[_File, _File]]:
    """Pairs of the same bytes in two tables; only files of one size, then of one head, are read."""
    found: list[_File] = []
    for number, table in enumerate(tables):
        for image, split in zip(table.images, table.splits or ("",) * len(table), strict=True):
            try:
                found.append(_File(image_path(table.root, image), number, split))
            except ImageError:
                continue
    groups = [found]
    for key in (_size, _head, files.sha256):
        groups = [alike for group in groups for alike in _group_alike(group, key)]
    for first, *others in groups:
        yield from ((first, other) for other in others if other.table != first.table)


def _group_alike(found: Sequence[_File], key: Callable[[Path], Hashable]) -> list[list[_File]]:
    """The files by what `key` says of them, where those of two tables share it."""
    groups: dict[Hashable, list[_File]] = defaultdict(list)
    for file in found:
        try:
            groups[key(file.path)].append(file)
        except OSError:
            continue
    return [group for group in groups.values() if len({file.table for file in group}) > 1]


def _size(path: Path) -> int:
    return path.stat().st_size


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return hashlib.sha256(stream.read(_HEAD)).digest()


def check_overlap(tables: Sequence[Table], found: Overlap) -> None:
    """Refuse tables that share patients, or images in different splits; both are named."""
    named = examples(str(table.path or "a table") for table in tables)
    if found.patients:
        raise InputError(
            f"{named}: {len(found.patients)} patients are in more than one: "
            f"{examples(found.patients)}. A model might be measured on patients it was trained on. "
            f"Take them out of one (lingula data filter). {_STATE_SOURCES}"
        )
    if found.split:
        shown = [f"{a} = {b}" for a, b in found.split]
        raise InputError(
            f"{named}: {len(shown)} images are in two, in different splits: {examples(shown)}. "
            "Take them out of one."
        )
