"""A table as a config's `data` section reads it, and what its cells mean there."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lingula.config import Data
from lingula.data.reading import read_frame, read_table
from lingula.data.table import Table, targets
from lingula.labels import fold, label_space


def configured_table(data: Data, path: Path | None = None, named: Collection[str] = ()) -> Table:
    """The section's table; or `path`, a copy that lingula wrote, which has no columns to ignore.

    Classes that are `named` elsewhere may be called as helpers are.
    """
    return read_table(
        data.table if path is None else path,
        classes=None if data.classes is None else label_space(data.classes),
        root=None if data.root is None else Path(data.root),
        ignore_columns=data.ignore_columns if path is None else (),
        soft=data.soft,
        named=named,
    )


def configured_targets(data: Data, table: Table) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Targets and mask (N, K), unknown cells as the section says."""
    return targets(table, uncertain=data.uncertain, blank=data.blank, unmentioned=data.unmentioned)


def configured_outside(data: Data, path: Path) -> Table:
    """Another table to train on, with classes and image root of its own.

    Of `ignore_columns` those apply that it has.
    """
    folded = {fold(name) for name in read_frame(path).columns}
    ignored = tuple(name for name in data.ignore_columns if fold(name) in folded)
    return read_table(path, ignore_columns=ignored, soft=data.soft)
