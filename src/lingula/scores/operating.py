"""What a class's probabilities are worth at a threshold, and as probabilities.

All of it in float64 over the known cells only; what is undefined is NaN. The calibration error is
that of the positive label's probability, in `BINS` bins of equal width (see `calibration_error`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lingula.scores.metrics import Floats, Ranking, counts, mean_defined

BINS = 15  # of the calibration error
LEVEL = 0.9  # the specificity, and the sensitivity, at which the other is given


@dataclass(frozen=True)
class Operating:
    """Measures of K classes, arrays (K,); undefined ones are NaN.

    `sensitivity_at` is the highest sensitivity with at least `level` specificity, and
    `specificity_at` the highest specificity with at least `level` sensitivity.
    """

    threshold: Floats
    precision: Floats
    recall: Floats
    specificity: Floats
    f1: Floats
    sensitivity_at: Floats
    specificity_at: Floats
    brier: Floats
    ece: Floats
    level: float = LEVEL

    @property
    def mF1(self) -> float:
        """Mean F1 over the classes with positives; NaN if none has."""
        return mean_defined(self.f1)

    @property
    def mECE(self) -> float:
        """Mean calibration error over the classes with known cells; NaN if none has."""
        return mean_defined(self.ece)


def operating(
    probabilities: Floats,
    targets: NDArray[np.float32],
    mask: NDArray[np.bool_],
    thresholds: Floats,
    ranked: Sequence[Ranking],
    level: float = LEVEL,
) -> Operating:
    """Measures of (N, K) arrays at thresholds (K,).

    A score at or above its class's threshold is a finding; a target of at least 0.5 is positive.
    `ranked` is what `metrics.rankings` made of the same arrays.
    """
    columns = []
    for k, ranking in enumerate(ranked):
        kept = mask[:, k]
        scores, positive = probabilities[kept, k].astype(float), targets[kept, k] >= 0.5
        steps = counts(ranking)
        columns.append(
            (
                *at_threshold(scores, positive, float(thresholds[k])),
                sensitivity_at(*steps, level),
                specificity_at(*steps, level),
                brier(scores, positive),
                calibration_error(scores, positive),
            )
        )
    values = np.array(columns, dtype=float).reshape(-1, 8)
    return Operating(
        threshold=np.asarray(thresholds, dtype=float),
        precision=values[:, 0],
        recall=values[:, 1],
        specificity=values[:, 2],
        f1=values[:, 3],
        sensitivity_at=values[:, 4],
        specificity_at=values[:, 5],
        brier=values[:, 6],
        ece=values[:, 7],
        level=level,
    )


def at_threshold(
    scores: Floats, positive: NDArray[np.bool_], threshold: float
) -> tuple[float, float, float, float]:
    """Precision, recall, specificity and F1 of one class (N,), at or above a threshold.

    Precision is NaN where nothing is found; recall and F1 without positives; specificity without
    negatives.
    """
    found = scores >= threshold
    true = int((found & positive).sum())
    hits, present, known = int(found.sum()), int(positive.sum()), len(scores)
    negative = known - present
    return (
        _share(true, hits),
        _share(true, present),
        _share(negative - (hits - true), negative),
        _share(2 * true, hits + present) if present else float("nan"),
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def sensitivity_at(true: Floats, false: Floats, specificity: float) -> float:
    """The highest sensitivity among thresholds with at least this specificity.

    From the cumulative counts of `metrics.counts`; a threshold above every score counts too.
    NaN without positives or without negatives.
    """
    if not len(true) or true[-1] <= 0 or false[-1] <= 0:
        return float("nan")
    allowed = (false[-1] - false) / false[-1] >= specificity
    return float(true[allowed].max() / true[-1]) if allowed.any() else 0.0


def specificity_at(true: Floats, false: Floats, sensitivity: float) -> float:
    """The highest specificity among thresholds with at least this sensitivity; else as above."""
    if not len(true) or true[-1] <= 0 or false[-1] <= 0:
        return float("nan")
    if sensitivity <= 0:
        return 1.0
    enough = true / true[-1] >= sensitivity
    return float((false[-1] - false[enough]).max() / false[-1])


def brier(scores: Floats, positive: NDArray[np.bool_]) -> float:
    """Mean squared difference of a class's probability and its label; NaN without rows."""
    return float(np.mean((scores - positive) ** 2)) if len(scores) else float("nan")


def calibration_error(scores: Floats, positive: NDArray[np.bool_], bins: int = BINS) -> float:
    """Expected calibration error of the positive label's probability; NaN without rows.

    Bins [0, 1/bins), [1/bins, 2/bins), ..., the last with its end; the mean over rows of the gap
    between their bin's mean score and its share of positives. Empty bins count for nothing.
    """
    if not len(scores):
        return float("nan")
    place = np.minimum((scores * bins).astype(np.intp), bins - 1)
    claimed = np.bincount(place, weights=scores, minlength=bins)
    present = np.bincount(place, weights=positive.astype(float), minlength=bins)
    return float(np.abs(claimed - present).sum() / len(scores))
