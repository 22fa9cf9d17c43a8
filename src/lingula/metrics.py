"""Average precision and AUROC, exact, in float64, a class at a time; undefined is NaN.

AP is the step-wise sum over distinct scores (scikit-learn's), so ties never depend on row order. A
class without positives has no AP; one with a single label value has no AUROC.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ranking:
    """One class's scores sorted once, falling; ties share a step.

    Attributes:
        order: indices of the rows, by falling score.
        ends: position of the last row of each run of equal scores.
        positive: whether each row, in that order, is positive.
    """

    order: NDArray[np.intp]
    ends: NDArray[np.intp]
    positive: NDArray[np.bool_]


@dataclass(frozen=True)
class Classwise:
    """Metrics of K classes, arrays (K,); undefined ones are NaN."""

    ap: Floats
    auroc: Floats
    positives: NDArray[np.int64]
    known: NDArray[np.int64]

    @property
    def prevalence(self) -> Floats:
        """Share of positives among the known cells."""
        return np.where(self.known > 0, self.positives / np.maximum(self.known, 1), np.nan)

    @property
    def mAP(self) -> float:
        """Mean AP over the classes that have one; NaN if none has."""
        return mean_defined(self.ap)

    @property
    def macro_auroc(self) -> float:
        """Mean AUROC over the classes that have one; NaN if none has."""
        return mean_defined(self.auroc)


def mean_defined(values: Floats) -> float:
    """The mean of what is not NaN, or NaN."""
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if len(kept) else float("nan")


def rank(scores: Floats, positive: NDArray[np.bool_]) -> Ranking:
    """Sort one class's scores (N,) once; every metric here is a sum over the result."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    ends = np.flatnonzero(np.append(np.diff(ordered) != 0, True)) if len(ordered) else order
    return Ranking(order, ends, positive[order])


def counts(ranking: Ranking, weights: Floats | None = None) -> tuple[Floats, Floats]:
    """Weighted true and false positives at each distinct score, from the highest."""
    ordered = np.ones(len(ranking.order)) if weights is None else weights[ranking.order]
    true = np.cumsum(np.where(ranking.positive, ordered, 0.0))[ranking.ends]
    every = np.cumsum(ordered)[ranking.ends]
    return true, every - true


def ap_of(true: Floats, false: Floats) -> float:
    """AP from cumulative counts: sum of precision times the step in recall."""
    if not len(true) or true[-1] <= 0:
        return float("nan")
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(true + false > 0, true / (true + false), 0.0)
    return float((np.diff(true, prepend=0.0) * precision).sum() / true[-1])


def auroc_of(true: Floats, false: Floats) -> float:
    """AUROC from cumulative counts: ties count half."""
    if not len(true) or true[-1] <= 0 or false[-1] <= 0:
        return float("nan")
    steps = np.diff(false, prepend=0.0)
    heights = true - np.diff(true, prepend=0.0) / 2
    return float((steps * heights).sum() / (true[-1] * false[-1]))


def average_precision(
    scores: Floats,
    targets: NDArray[Any],
    weights: Floats | None = None,
    mask: NDArray[np.bool_] | None = None,
) -> float:
    """AP of one class: scores, targets, weights and mask (N,); NaN without positives.

    A target of at least 0.5 is positive; rows outside `mask` are as if they were not there.
    """
    return ap_of(*_counted(scores, targets, weights, mask))


def auroc(
    scores: Floats,
    targets: NDArray[Any],
    weights: Floats | None = None,
    mask: NDArray[np.bool_] | None = None,
) -> float:
    """AUROC of one class, with the arguments of `average_precision`; NaN if all are alike."""
    return auroc_of(*_counted(scores, targets, weights, mask))


def _counted(
    scores: Floats,
    targets: NDArray[Any],
    weights: Floats | None,
    mask: NDArray[np.bool_] | None,
) -> tuple[Floats, Floats]:
    positive = np.asarray(targets, dtype=float) >= 0.5
    kept = np.ones(len(positive), dtype=bool) if mask is None else np.asarray(mask)
    found = np.asarray(scores, dtype=float)[kept]
    if np.isnan(found).any():
        raise ValueError("NaN scores can't be ranked; leave failed rows out first.")
    heavy = None if weights is None else np.asarray(weights, dtype=float)[kept]
    return counts(rank(found, positive[kept]), heavy)


def classwise(
    probabilities: Floats,
    targets: NDArray[np.float32] | NDArray[np.bool_],
    mask: NDArray[np.bool_] | None = None,
) -> Classwise:
    """Metrics of every class from (N, K) arrays; a target of at least 0.5 is positive.

    Cells outside `mask` are as if their row were not there. Raises `ValueError` for NaN scores
    and for arrays of different shapes.
    """
    positive = np.asarray(targets, dtype=float) >= 0.5
    known = np.ones(positive.shape, dtype=bool) if mask is None else mask
    if not probabilities.shape == positive.shape == known.shape:
        raise ValueError(
            f"Scores {probabilities.shape}, targets {positive.shape} and mask {known.shape} must "
            "have the same rows and classes."
        )
    pairs = []
    for k in range(positive.shape[1]):
        found = _counted(probabilities[:, k], positive[:, k], None, known[:, k])
        pairs.append((ap_of(*found), auroc_of(*found)))
    values = np.array(pairs, dtype=float).reshape(-1, 2)
    return Classwise(values[:, 0], values[:, 1], (positive & known).sum(axis=0), known.sum(axis=0))


def roc_curve(
    scores: Floats, positive: NDArray[np.bool_], points: int | None = None
) -> tuple[Floats, Floats]:
    """False and true positive rates, from (0, 0) to (1, 1), at no more than `points` places.

    A rate that has nothing to be a share of is NaN.
    """
    true, false = counts(rank(scores, positive))
    rates = [
        np.concatenate([[0.0], value / value[-1] if len(value) and value[-1] else value * np.nan])
        for value in (false, true)
    ]
    return _thinned(rates[0], rates[1], points)


def precision_recall_curve(
    scores: Floats, positive: NDArray[np.bool_], points: int | None = None
) -> tuple[Floats, Floats]:
    """Recall and precision at each distinct score, recall rising; NaN recall without positives.

    AP is not the area under straight lines through these points: it is the step-wise sum.
    """
    true, false = counts(rank(scores, positive))
    recall = true / true[-1] if len(true) and true[-1] else true * np.nan
    return _thinned(recall, true / (true + false), points)


def _thinned(x: Floats, y: Floats, points: int | None) -> tuple[Floats, Floats]:
    """At most `points` of a curve's points, the ends among them, evenly along its length."""
    if points is None or len(x) <= points:
        return x, y
    steps = np.abs(np.diff(x)) + np.abs(np.diff(y))
    length = np.concatenate([[0.0], np.cumsum(np.nan_to_num(steps))])
    kept = np.searchsorted(length, np.linspace(0, length[-1], max(points, 2)))
    kept[0], kept[-1] = 0, len(x) - 1
    chosen = np.unique(kept)
    return x[chosen], y[chosen]


def max_f1_threshold(scores: Floats, positive: NDArray[np.bool_]) -> float:
    """The score at or above which F1 is highest; NaN without positives."""
    ranking = rank(scores, positive)
    true, false = counts(ranking)
    if not len(true) or true[-1] <= 0:
        return float("nan")
    f1 = 2 * true / (true + false + true[-1])
    return float(scores[ranking.order][ranking.ends][int(np.argmax(f1))])
