"""The table: one row per image, with ids, split and a label cell for every class.

A label cell is a probability in [0, 1] (1 present, 0 absent) or one of three kinds of not knowing:
`UNCERTAIN`, `BLANK` (not stated) and `UNMENTIONED` (the row's source does not know the class).
What these mean for a loss or a metric is chosen when the table is used (`targets`), never here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lingula.images.files import relative_cell
from lingula.settings.label_space import LabelSpace
from lingula.system.errors import InputError, nearest

UNCERTAIN = -1.0
BLANK = -2.0
UNMENTIONED = -3.0

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Table:
    """N images with their labels. Text columns are tuples of N strings, or None where absent.

    Attributes:
        images: paths as the file has them, relative to `root`.
        root: the folder that `images` are relative to.
        space: the K classes.
        labels: (N, K) float32 cells, as described in the module's docstring.
        ids: e.g. dicom_id. An empty string is a missing value, here and in the columns below.
        patients: patient ids, always text.
        studies: study ids, always text.
        views: e.g. `PA`, `AP`, `LATERAL`.
        splits: `train`, `dev` or `test`, or empty for rows in no split.
        ages: years as text, as the file has them.
        sexes: as the file has them.
        sources: the data set that a row came from. Patients of two sources are two patients.
        blank: what an empty cell means unless the user says otherwise.
        blanks: the same for the rows of single sources, where that differs.
        made_from: names of the label files that the table was made from, with their SHA-256.
        phantom: the images were drawn by `lingula data phantom`.
        path: the file that the table was read from.
        sha256: hash of that file's bytes.
    """

    images: tuple[str, ...]
    root: Path
    space: LabelSpace
    labels: NDArray[np.float32]
    ids: tuple[str, ...] | None = None
    patients: tuple[str, ...] | None = None
    studies: tuple[str, ...] | None = None
    views: tuple[str, ...] | None = None
    splits: tuple[str, ...] | None = None
    ages: tuple[str, ...] | None = None
    sexes: tuple[str, ...] | None = None
    sources: tuple[str, ...] | None = None
    blank: Literal["ignore", "zero"] = "ignore"
    blanks: Mapping[str, Literal["ignore", "zero"]] = field(default_factory=dict)
    made_from: Mapping[str, str] = field(default_factory=dict)
    phantom: bool = False
    path: Path | None = None
    sha256: str = field(default="")

    def __len__(self) -> int:
        return len(self.images)


def targets(
    table: Table,
    *,
    uncertain: Literal["ignore", "zero", "one"] = "ignore",
    blank: Literal["ignore", "zero"] | None = None,
    unmentioned: Literal["ignore", "zero"] = "ignore",
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Targets (N, K) in [0, 1] and a mask (N, K), True where the target counts.

    `blank=None` takes the table's own meaning. A masked target is 0, so it is always finite.
    """
    cells = table.labels
    values = np.where(cells > 0, cells, np.float32(0))  # a NaN too is no target, and not known
    mask = cells >= 0
    if uncertain == "one":
        values[cells == UNCERTAIN] = 1.0
    if uncertain != "ignore":
        mask |= cells == UNCERTAIN
    if unmentioned != "ignore":
        mask |= cells == UNMENTIONED
    mask |= (cells == BLANK) & rows_with_zero_blanks(table, blank)[:, None]
    return values, mask


def rows_with_zero_blanks(
    table: Table, blank: Literal["ignore", "zero"] | None = None
) -> NDArray[np.bool_]:
    """For each of the N rows, whether its blank cells say that a finding is absent."""
    rows = np.full(len(table), (blank or table.blank) == "zero")
    if blank is None and table.sources is not None and table.blanks:
        sources = np.array(table.sources)
        for source, meaning in table.blanks.items():
            rows[sources == source] = meaning == "zero"
    return rows


def describe_blanks(table: Table) -> str:
    """What a blank cell means, as text: `zero`, `ignore`, or `ignore, but zero in mimic-cxr`."""
    other: dict[str, list[str]] = {}
    for source, meaning in table.blanks.items():
        if meaning != table.blank:
            other.setdefault(meaning, []).append(source)
    return ", but ".join(
        [table.blank, *(f"{meaning} in {', '.join(names)}" for meaning, names in other.items())]
    )


def rows_of(table: Table, split: str) -> NDArray[np.intp]:
    """Indices of the rows of a split; an unknown split's name is an error."""
    if split not in SPLITS:
        raise InputError(
            f"There is no split '{split}'.{nearest(split, SPLITS)} There are train, dev and test."
        )
    if table.splits is None:
        return np.zeros(0, dtype=np.intp)
    return np.flatnonzero(np.array(table.splits) == split)


_TEXT_COLUMNS = (
    "images",
    "ids",
    "patients",
    "studies",
    "views",
    "splits",
    "ages",
    "sexes",
    "sources",
)


def subset(table: Table, rows: NDArray[np.intp]) -> Table:
    """The table of these rows, in this order."""
    picked: dict[str, Any] = {
        name: None if column is None else tuple(column[i] for i in rows)
        for name in _TEXT_COLUMNS
        for column in (getattr(table, name),)
    }
    return replace(table, labels=table.labels[rows], **picked)


def class_counts(table: Table, rows: NDArray[np.intp] | None = None) -> dict[str, int]:
    """Positives of each class (cells of at least 0.5), over `rows` or all rows."""
    cells = table.labels if rows is None else table.labels[rows]
    return dict(zip(table.space.classes, (cells >= 0.5).sum(axis=0).tolist(), strict=True))


def with_splits(table: Table, splits: tuple[str, ...]) -> Table:
    """The table with another split column."""
    return replace(table, splits=splits)


def plain_paths(cells: Sequence[str], root: Path) -> list[str]:
    """The one spelling of each image cell; '' stays.

    `./f//a.png`, `f/a.png`, `ROOT/f/a.png` and, with a backslash, `f\\a.png` are one image.
    """
    if not pl.Series(cells, dtype=pl.String).str.contains(_ODD).any():
        return list(cells)
    return [relative_cell(root, cell) if cell else "" for cell in cells]


_ODD = r"^\.{0,2}/|^file:|\\|//|/\.{1,2}/|/\.{0,2}$"
