"""Several tables as one: classes joined by name, what a source does not know stays unmentioned."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lingula.images.files import relative_cell
from lingula.settings.label_space import LabelSpace, fold
from lingula.system.errors import InputError, examples, nearest
from lingula.tables.mapping import LabelMap, mapped
from lingula.tables.table import UNMENTIONED, Table, plain_paths

log = logging.getLogger("lingula")

_COLUMNS = ("ids", "patients", "studies", "views", "splits", "ages", "sexes")


def union_space(tables: Sequence[Table]) -> LabelSpace:
    """Every class of the tables, in the order in which they first stand there."""
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
            two tables; phantoms beside real films; roots on two drives.
    """
    if len({table.phantom for table in tables}) > 1:
        raise InputError("Phantoms and real films can't be in one table.")
    wanted = space or union_space(tables)
    _check_rules(tables, wanted, rules)
    own = [_with_source(table, tables) for table in tables]
    parts = [mapped(table, wanted, rules, strict=False) for table in own]
    for table in tables:
        dropped = [name for name in table.space.classes if name not in wanted]
        if dropped:
            log.info("%s: not in the joined table: %s.", table.path, examples(dropped, 26))
    blanks = _check_sources(parts)
    try:
        root = Path(os.path.commonpath([table.root.resolve() for table in tables]))
    except ValueError:
        raise InputError("The images of the tables are on different drives.") from None
    images = tuple(image for table in parts for image in _below(table, root))
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


def _check_rules(tables: Sequence[Table], space: LabelSpace, rules: LabelMap | None) -> None:
    """Every class of a map must be wanted, and every term be known to one of the tables."""
    if rules is None:
        return
    known = list(dict.fromkeys(name for table in tables for name in table.space.classes))
    for kind in (rules.same, rules.narrower, rules.broader):
        for target, terms in kind.items():
            space.index(target)
            for term in terms:
                if not any(term in table.space for table in tables):
                    raise InputError(
                        f"Map {rules.name}: no table has a class '{term}' (for '{target}')."
                        f"{nearest(term, known)}"
                    )
    for term in rules.apart:
        if not any(term in table.space for table in tables):
            raise InputError(
                f"Map {rules.name}: no table has a class '{term}'.{nearest(term, known)}"
            )


def _with_source(table: Table, tables: Sequence[Table]) -> Table:
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


def _below(table: Table, root: Path) -> list[str]:
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
    raise InputError(f"Images that stand in two of the tables: {examples(twice)}. Keep one.")
