"""Bootstrap intervals by drawing patients, on weights over scores that are sorted once.

A draw gives each patient a count; its images get that weight. No draw sorts again. A class that
loses all its positives in a draw is left out of that draw's mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lingula.metrics import Floats, Ranking, rank

Interval = tuple[float, float] | None
CHUNK = 16  # draws at a time: bounds the memory


@dataclass(frozen=True)
class Draws:
    """AP and AUROC of every draw and class, arrays (draws, K); NaN where undefined in a draw.

    `units` is the number of patients (or of rows, without patients) that were drawn from.
    """

    ap: Floats
    auroc: Floats
    units: int = 0


@dataclass(frozen=True)
class _Steps:
    """Where a class's positives stand among its n sorted rows; S scores have positives.

    Attributes:
        order: rows of the table, by falling score (n,).
        begins: position in `order` of the first row with each such score (S,).
        ends: position after the last one (S,).
        positives: positions of the positives in `order`.
        first: index in `positives` of the first positive of each such score (S,).
    """

    order: NDArray[np.intp]
    begins: NDArray[np.intp]
    ends: NDArray[np.intp]
    positives: NDArray[np.intp]
    first: NDArray[np.intp]


def bootstrap(
    probabilities: Floats,
    targets: NDArray[np.float32],
    mask: NDArray[np.bool_],
    patients: Sequence[str] | None,
    *,
    draws: int,
    seed: int | Sequence[int] = 0,
    size: int | None = None,
) -> Draws:
    """AP and AUROC a class over `draws` resamples of the patients (of the rows without patients).

    The same seed and patients give the same resamples, whatever the scores: two models' draws pair.

    Args:
        probabilities: (N, K) scores without NaN.
        targets: (N, K); at least 0.5 is positive.
        mask: (N, K) True where a cell counts.
        patients: N names; rows with an empty one stand for themselves. None: every row does.
        draws: how many resamples.
        seed: of the resamples.
        size: patients a draw; None: as many as there are.
    """
    rows, classes = probabilities.shape
    units, unit_of_row = np.unique(_units(patients, rows), return_inverse=True)
    positive = targets >= 0.5
    steps = []
    for k in range(classes):
        kept = np.flatnonzero(mask[:, k])
        steps.append(_steps(rank(probabilities[kept, k].astype(float), positive[kept, k]), kept))
    random = np.random.default_rng(seed)
    ap = np.full((draws, classes), np.nan)
    auroc = np.full((draws, classes), np.nan)
    share = np.full(len(units), 1 / len(units)) if rows else np.ones(0)
    for start in range(0, draws if rows else 0, CHUNK):
        part = slice(start, min(start + CHUNK, draws))
        counts = random.multinomial(size or len(units), share, size=part.stop - start).astype(
            np.int32
        )
        for k, found in enumerate(steps):
            if len(found.positives):
                weights = np.take(counts, unit_of_row[found.order], axis=1)
                ap[part, k], auroc[part, k] = _weighted(found, weights)
    return Draws(ap, auroc, len(units))


def _units(patients: Sequence[str] | None, rows: int) -> NDArray[np.str_]:
    """The name of what is drawn, for every row: its patient, or the row itself."""
    if patients is None:
        return np.arange(rows).astype(str)
    return np.array([name or f"\0{row}" for row, name in enumerate(patients)], dtype=str)


def _steps(ranking: Ranking, rows: NDArray[np.intp]) -> _Steps:
    """Find the scores that matter in a ranking of `rows` (indices into the whole table)."""
    positives = np.flatnonzero(ranking.positive)
    starts = np.concatenate([[0], ranking.ends + 1]).astype(np.intp)
    tier = np.searchsorted(ranking.ends, positives)
    tiers, first = np.unique(tier, return_index=True)
    return _Steps(rows[ranking.order], starts[tiers], starts[tiers + 1], positives, first)


def _weighted(steps: _Steps, weights: NDArray[np.int32]) -> tuple[Floats, Floats]:
    """AP and AUROC (draws,) for integer weights (draws, n) of the rows in falling order of score.

    Only scores that some positive has contribute. All counts are whole numbers: exact.
    """
    running = np.zeros((len(weights), weights.shape[1] + 1), dtype=np.int32)
    np.cumsum(weights, axis=1, dtype=np.int32, out=running[:, 1:])
    every = np.take(running, steps.ends, axis=1)
    gain = np.take(weights, steps.positives, axis=1)
    if len(steps.first) < len(steps.positives):
        gain = np.add.reduceat(gain, steps.first, axis=1)
    true = np.cumsum(gain, axis=1, dtype=np.int32)
    total = true[:, -1].astype(float)
    negative = running[:, -1] - total
    # Twice the mean number of negatives at or above each step, ties counted half.
    above = every + np.take(running, steps.begins, axis=1) - 2 * true + gain
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = true / np.maximum(every, 1)
        ap = np.where(total > 0, np.einsum("ds,ds->d", gain, precision) / total, np.nan)
        outranked = np.einsum("ds,ds->d", gain, above, dtype=float) / 2
        auroc = 1 - outranked / (total * negative)
    return ap, np.where((total > 0) & (negative > 0), auroc, np.nan)


def interval(values: Floats, level: float = 0.95) -> Interval:
    """Percentile interval of the draws that are defined; None if none is."""
    kept = values[~np.isnan(values)]
    if not len(kept):
        return None
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_by_draw(values: Floats, classes: NDArray[np.bool_]) -> Floats:
    """The mean over the chosen classes that are defined, a draw at a time (draws,)."""
    chosen = values[:, classes]
    known = (~np.isnan(chosen)).sum(axis=1)
    total = np.where(np.isnan(chosen), 0.0, chosen).sum(axis=1)
    return np.where(known > 0, total / np.maximum(known, 1), np.nan)
