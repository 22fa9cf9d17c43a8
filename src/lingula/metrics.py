"""Average precision and AUROC, exact, in float64, a class at a time; undefined is NaN.

AP is the step-wise sum over distinct scores (scikit-learn's), so ties never depend on row order. A
class without positives has no AP; one with a single label value has no AUROC.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    scores: Floats, positive: NDArray[np.bool_], weights: Floats | None = None
) -> float:
    """AP of one class: scores (N,), labels (N,), weights (N,); NaN without positives."""
    return ap_of(*counts(rank(np.asarray(scores, float), np.asarray(positive, bool)), weights))


def auroc(scores: Floats, positive: NDArray[np.bool_], weights: Floats | None = None) -> float:
    """AUROC of one class; NaN if all labels are the same."""
    return auroc_of(*counts(rank(np.asarray(scores, float), np.asarray(positive, bool)), weights))


def classwise(
    probabilities: Floats,
    targets: NDArray[np.float32] | NDArray[np.bool_],
    mask: NDArray[np.bool_] | None = None,
) -> Classwise:
    """Metrics of every class from (N, K) arrays; a target of at least 0.5 is positive.

    Cells outside `mask` are as if their row were not there. Raises `ValueError` for NaN scores.
    """
    if np.isnan(probabilities).any():
        raise ValueError("NaN scores can't be ranked; leave failed rows out first.")
    positive = np.asarray(targets, dtype=float) >= 0.5
    known = np.ones(positive.shape, dtype=bool) if mask is None else mask
    pairs = []
    for k in range(positive.shape[1]):
        kept = known[:, k]
        found = counts(rank(probabilities[kept, k].astype(float), positive[kept, k]))
        pairs.append((ap_of(*found), auroc_of(*found)))
    values = np.array(pairs, dtype=float).reshape(-1, 2)
    return Classwise(values[:, 0], values[:, 1], (positive & known).sum(0), known.sum(0))


def roc_curve(scores: Floats, positive: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """False and true positive rates, from (0, 0) to (1, 1)."""
    true, false = counts(rank(scores, positive))
    return (
        np.concatenate([[0.0], false / max(false[-1], 1)]),
        np.concatenate([[0.0], true / max(true[-1], 1)]),
    )


def precision_recall_curve(scores: Floats, positive: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Recall and precision at each distinct score, recall rising."""
    true, false = counts(rank(scores, positive))
    return true / max(true[-1], 1), true / (true + false)


def max_f1_threshold(scores: Floats, positive: NDArray[np.bool_]) -> float:
    """The score at or above which F1 is highest; NaN without positives."""
    ranking = rank(scores, positive)
    true, false = counts(ranking)
    if not len(true) or true[-1] <= 0:
        return float("nan")
    f1 = 2 * true / (true + false + true[-1])
    return float(scores[ranking.order][ranking.ends][int(np.argmax(f1))])
