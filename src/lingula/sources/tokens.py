"""Findings listed in one cell (`Mass|Nodule`) or one a row, as columns of 1 and 0."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lingula.settings.label_space import LabelSpace, canonical


def one_hot(
    rows: NDArray[np.intp], tokens: pl.Series, space: LabelSpace, height: int
) -> NDArray[np.float32]:
    """Cells (height, K): 1 where a row has a token of the class, by the whole name; else 0.

    Tokens that are no class of `space` are passed over.
    """
    cells = np.zeros((height, len(space)), dtype=np.float32)
    distinct = tokens.unique().to_list()
    column = {token: space.index(token) if token in space else -1 for token in distinct}
    k = tokens.replace_strict(column, return_dtype=pl.Int64).to_numpy()
    cells[rows[k >= 0], k[k >= 0]] = 1.0
    return cells


def spread(lists: Sequence[Sequence[str]]) -> tuple[NDArray[np.intp], pl.Series]:
    """Row number and token of every token of the lists."""
    rows = np.repeat(np.arange(len(lists)), [len(tokens) for tokens in lists])
    flat = [token for tokens in lists for token in tokens]
    return rows, pl.Series("token", flat, dtype=pl.String)


def space_of(tokens: Iterable[str], order: Sequence[str], name: str) -> LabelSpace:
    """The classes that occur: those of `order` in its order, then any others by the alphabet."""
    found = dict.fromkeys(canonical(token) for token in sorted(tokens, key=str.casefold))
    classes = [c for c in order if c in found] + [c for c in found if c not in set(order)]
    return LabelSpace(tuple(classes), name if tuple(classes) == tuple(order) else "own")
