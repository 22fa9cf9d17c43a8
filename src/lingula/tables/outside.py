"""Tables from outside: other data sets trained on beside one's own (paper section 2.2).

Each has a label space of its own. Classes are joined by name; a class that the other table does not
have is `UNMENTIONED` there, and what that means for the loss is the setting `data.unmentioned`
(`zero` in the paper, `ignore` by default).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import PurePath

import numpy as np

from lingula.settings.label_space import LabelSpace, fold
from lingula.system.errors import InputError, examples
from lingula.tables.overlap import STATE_SOURCES, overlap
from lingula.tables.table import UNMENTIONED, Table, rows_of, subset


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
    """The part of a table that others train on: its train split, or all of it if it has none.

    Raises `InputError` if it has no class of `space`, or no rows to train on.
    """
    known = {fold(name): k for k, name in enumerate(table.space.classes)}
    columns = [known.get(fold(name)) for name in space.classes]
    lacks = tuple(n for n, k in zip(space.classes, columns, strict=True) if k is None)
    if len(lacks) == len(space):
        raise InputError(
            f"{table.path} has none of the classes to train: {examples(table.space.classes)} "
            f"there, {examples(space.classes)} wanted."
        )
    part = table if table.splits is None else subset(table, rows_of(table, "train"))
    if not len(part):
        raise InputError(f"{table.path} has no rows with split 'train' to add.")
    cells = np.full((len(part), len(space)), UNMENTIONED, dtype=np.float32)
    for column, k in enumerate(columns):
        if k is not None:
            cells[:, column] = part.labels[:, k]
    wanted = {fold(name) for name in space.classes}
    dropped = tuple(name for name in table.space.classes if fold(name) not in wanted)
    return Outside(replace(part, labels=cells, space=space), lacks, dropped)


def check_apart(own: Table, others: Table) -> None:
    """Refuse outside rows of patients on whom one's own dev and test splits will be measured.

    A patient is the same if the id is, unless both tables state their sources and these differ: the
    patient `1` of one hospital is not the patient `1` of another. Where patients and sources do not
    tell, file names do: one that both have is one too many, but for tables of different sources,
    where a few may be chance.
    """
    measured = np.concatenate([rows_of(own, "dev"), rows_of(own, "test")])
    held = subset(own, measured)
    found = overlap([held, others], images=False).patients
    if found:
        raise InputError(
            f"{others.path} holds patients of the dev or test split of {own.path}: "
            f"{examples(found)}. Take them out of one of the two. {STATE_SOURCES}"
        )
    told = all(t.sources is not None and all(t.sources) for t in (held, others))
    if told and held.patients and others.patients:
        return
    apart = told and set(held.sources or ()).isdisjoint(others.sources or ())
    names = {PurePath(image).name for image in held.images}
    same = [image for image in others.images if PurePath(image).name in names]
    if len(same) > (len(others) // 100 if apart else 0):
        raise InputError(
            f"{others.path} has images named as in the dev or test split of {own.path}: "
            f"{examples(same)}. Take them out of one of the two; or, if they are not the same "
            "films, give both tables a `source` (a name of its own for each) and a `patient` "
            "column."
        )
