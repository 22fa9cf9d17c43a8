"""A table as a config's `data` section reads it, and what its cells mean there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lingula.config import Data
from lingula.data.reading import read_frame, read_table
from lingula.data.table import Table, targets
from lingula.labels import fold, label_space


def configured_table(data: Data, path: Path | None = None) -> Table:
    """The section's table; or `path`, a copy that lingula wrote, which has no columns to ignore."""
    return read_table(
        data.table if path is None else path,
        classes=None if data.classes is None else label_space(data.classes),
        root=None if data.root is None else Path(data.root),
        ignore_columns=data.ignore_columns if path is None else (),
        soft=data.soft,
    )


def moved_table(data: Data, path: Path) -> Table:
    """The section's table where it lies now, or another one in its place, read in the same way.

    Of `ignore_columns` those apply that it has. Its images lie where the section says, or, if that
    is not there any more, where the table does.
    """
    root = None if data.root is None or not Path(data.root).is_dir() else Path(data.root)
    return read_table(
        path,
        classes=None if data.classes is None else label_space(data.classes),
        root=root,
        ignore_columns=_ignored(data, path),
        soft=data.soft,
    )


def configured_targets(data: Data, table: Table) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Targets and mask (N, K), unknown cells as the section says."""
    return targets(table, uncertain=data.uncertain, blank=data.blank, unmentioned=data.unmentioned)


def configured_outside(data: Data, path: Path) -> Table:
    """Another table to train on, with classes and image root of its own.

    Of `ignore_columns` those apply that it has.
    """
    return read_table(path, ignore_columns=_ignored(data, path), soft=data.soft)


def _ignored(data: Data, path: Path) -> tuple[str, ...]:
    if not data.ignore_columns:
        return ()
    folded = {fold(name) for name in read_frame(path).columns}
    return tuple(name for name in data.ignore_columns if fold(name) in folded)
