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

CHUNK = 64  # draws at a time: bounds the memory


@dataclass(frozen=True)
class Draws:
    """AP and AUROC of every draw and class, arrays (draws, K); NaN where undefined in a draw."""

    ap: Floats
    auroc: Floats


def bootstrap(
    probabilities: Floats,
    targets: NDArray[np.float32],
    mask: NDArray[np.bool_],
    patients: Sequence[str] | None,
    *,
    draws: int,
    seed: int = 0,
) -> Draws:
    """AP and AUROC a class over `draws` resamples of the patients (of the rows without patients).

    The same seed and patients give the same resamples, whatever the scores: two models' draws pair.
    """
    rows, classes = probabilities.shape
    names = np.arange(rows).astype(str) if patients is None else np.asarray(patients)
    units, unit_of_row = np.unique(names, return_inverse=True)
    positive = targets >= 0.5
    kept = [np.flatnonzero(mask[:, k]) for k in range(classes)]
    rankings = [
        rank(probabilities[rows_k, k].astype(float), positive[rows_k, k])
        for k, rows_k in enumerate(kept)
    ]
    random = np.random.default_rng(seed)
    ap = np.full((draws, classes), np.nan)
    auroc = np.full((draws, classes), np.nan)
    share = np.full(len(units), 1 / len(units))
    for start in range(0, draws, CHUNK):
        size = min(CHUNK, draws - start)
        weights = random.multinomial(len(units), share, size=size)[:, unit_of_row].astype(np.int32)
        for k, ranking in enumerate(rankings):
            found = _weighted(ranking, weights[:, kept[k]])
            ap[start : start + size, k], auroc[start : start + size, k] = found
    return Draws(ap, auroc)


def _weighted(ranking: Ranking, weights: NDArray[np.int32]) -> tuple[Floats, Floats]:
    """AP and AUROC (draws,) for integer weights (draws, n)."""
    ordered = weights[:, ranking.order]
    every = np.cumsum(ordered, axis=1)[:, ranking.ends].astype(float)
    only = np.flatnonzero(ranking.positive)
    # Positives are few: their running sum is taken at the ends by counting how many came before.
    running = np.concatenate(
        [np.zeros((len(weights), 1)), np.cumsum(ordered[:, only], axis=1)], axis=1
    )
    true = running[:, np.searchsorted(only, ranking.ends, side="right")]
    steps = np.diff(true, axis=1, prepend=0.0)
    total = true[:, -1] if true.shape[1] else np.zeros(len(weights))
    negative = (every - true)[:, -1] if true.shape[1] else total
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(every > 0, true / every, 0.0)
        ap = np.where(total > 0, (steps * precision).sum(1) / total, np.nan)
        false_steps = np.diff(every - true, axis=1, prepend=0.0)
        area = (false_steps * (true - steps / 2)).sum(1)
        auroc = np.where((total > 0) & (negative > 0), area / (total * negative), np.nan)
    return ap, auroc


def interval(values: Floats, level: float = 0.95) -> tuple[float, float] | None:
    """Percentile interval of the draws that are defined; None if none is."""
    kept = values[~np.isnan(values)]
    if not len(kept):
        return None
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_by_draw(values: Floats, classes: NDArray[np.bool_]) -> Floats:
    """The mean over the chosen classes that are defined, a draw at a time (draws,)."""
    chosen = values[:, classes]
    known = (~np.isnan(chosen)).sum(1)
    with np.errstate(invalid="ignore"):
        return np.where(known > 0, np.nansum(chosen, axis=1) / np.maximum(known, 1), np.nan)
