"""Average precision and AUROC, exact, in float64, one class at a time; undefined is NaN.

AP is the step-wise sum over distinct scores (scikit-learn's), so ties never depend on row order. A
class without positives has no AP; one with a single label value has no AUROC.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
FEW = 20  # with fewer positives or negatives a class is marked: its numbers mean little


@dataclass(frozen=True)
class Ranking:
    """One class's scores sorted once, falling; ties share a step.

    Attributes:
        order: indices of the rows, by falling score, in any order among equal ones.
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


def rank(
    scores: Floats, positive: NDArray[np.bool_], rows: NDArray[np.intp] | None = None
) -> Ranking:
    """Sort one class's scores (N,) once; every metric here is a sum over the result.

    With `rows`, the order is in those indices: the rows that the N scores have in a whole table.
    """
    falling = -scores
    # The fast, unstable sort: equal scores share a step, so their order means nothing.
    order = np.argsort(falling)
    ordered = falling[order]
    last = np.ones(len(ordered), dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=last[:-1])
    return Ranking(order if rows is None else rows[order], np.flatnonzero(last), positive[order])


def rank_classes(
    probabilities: Floats,
    targets: NDArray[np.float32] | NDArray[np.bool_],
    mask: NDArray[np.bool_] | None = None,
) -> tuple[Ranking, ...]:
    """The known cells of every class of (N, K) arrays, sorted once for all that is measured.

    Raises `ValueError` for NaN scores and for arrays of different shapes.
    """
    return tuple(_rank_each(probabilities, targets, mask))


def _rank_each(
    probabilities: Floats,
    targets: NDArray[np.float32] | NDArray[np.bool_],
    mask: NDArray[np.bool_] | None,
) -> Iterator[Ranking]:
    """One class at a time: a caller that needs each only once needs memory for one."""
    positive = np.asarray(targets >= np.float32(0.5))
    known = np.ones(positive.shape, dtype=bool) if mask is None else mask
    if not probabilities.shape == positive.shape == known.shape:
        raise ValueError(
            f"Scores {probabilities.shape}, targets {positive.shape} and mask {known.shape} must "
            "have the same rows and classes."
        )
    columns = (_by_class(part) for part in (np.asarray(probabilities, float), positive, known))
    for scores, present, counted in zip(*columns, strict=True):
        kept = None if counted.all() else np.flatnonzero(counted)
        if kept is not None:
            scores, present = scores[kept], present[kept]
        _refuse_nan(scores)
        yield rank(scores, present, kept)


def _by_class(values: NDArray[Any], block: int = 1024) -> NDArray[Any]:
    """(N, K) as (K, N) in memory: the cells of one class are side by side.

    In blocks of rows that fit in the processor's cache: four times faster than at once.
    """
    turned = np.empty(values.shape[::-1], dtype=values.dtype)
    for start in range(0, len(values), block):
        turned[:, start : start + block] = values[start : start + block].T
    return turned


def _refuse_nan(scores: Floats) -> None:
    if np.isnan(scores).any():
        raise ValueError("NaN scores can't be ranked; leave failed rows out first.")


def counts(ranking: Ranking, weights: Floats | None = None) -> tuple[Floats, Floats]:
    """Weighted true and false positives at each distinct score, from the highest."""
    if weights is None:
        true = np.cumsum(ranking.positive.astype(float))
        if len(ranking.ends) < len(true):
            true = true[ranking.ends]
        return true, ranking.ends + 1.0 - true
    ordered = weights[ranking.order]
    true = np.cumsum(np.where(ranking.positive, ordered, 0.0))[ranking.ends]
    every = np.cumsum(ordered)[ranking.ends]
    return true, every - true


def ap_of(true: Floats, false: Floats) -> float:
    """AP from cumulative counts: sum of precision times the step in recall."""
    if not len(true) or true[-1] <= 0:
        return float("nan")
    every = true + false
    precision = np.divide(true, every, out=np.zeros_like(true), where=every > 0)
    precision[1:] *= true[1:] - true[:-1]
    precision[:1] *= true[:1]
    return float(precision.sum() / true[-1])


def auroc_of(true: Floats, false: Floats) -> float:
    """AUROC from cumulative counts: ties count half."""
    if not len(true) or true[-1] <= 0 or false[-1] <= 0:
        return float("nan")
    heights = true.copy()
    heights[1:] += true[:-1]
    heights[1:] *= false[1:] - false[:-1]
    heights[:1] *= false[:1]
    return float(heights.sum() / 2 / (true[-1] * false[-1]))


def average_precision(
    scores: Floats,
    targets: NDArray[Any],
    weights: Floats | None = None,
    mask: NDArray[np.bool_] | None = None,
) -> float:
    """AP of one class: scores, targets, weights and mask (N,); NaN without positives.

    A target of at least 0.5 is positive; rows outside `mask` are as if they were not there.
    """
    return ap_of(*_count_cells(scores, targets, weights, mask))


def auroc(
    scores: Floats,
    targets: NDArray[Any],
    weights: Floats | None = None,
    mask: NDArray[np.bool_] | None = None,
) -> float:
    """AUROC of one class, with the arguments of `average_precision`; NaN if all are alike."""
    return auroc_of(*_count_cells(scores, targets, weights, mask))


def _count_cells(
    scores: Floats,
    targets: NDArray[Any],
    weights: Floats | None,
    mask: NDArray[np.bool_] | None,
) -> tuple[Floats, Floats]:
    positive = np.asarray(targets, dtype=float) >= 0.5
    kept = np.ones(len(positive), dtype=bool) if mask is None else np.asarray(mask)
    found = np.asarray(scores, dtype=float)[kept]
    _refuse_nan(found)
    heavy = None if weights is None else np.asarray(weights, dtype=float)[kept]
    return counts(rank(found, positive[kept]), heavy)


def measure_classes(
    probabilities: Floats,
    targets: NDArray[np.float32] | NDArray[np.bool_],
    mask: NDArray[np.bool_] | None = None,
    *,
    ranked: Sequence[Ranking] | None = None,
) -> Classwise:
    """Metrics of every class from (N, K) arrays; a target of at least 0.5 is positive.

    Cells outside `mask` are as if their row were not there. `ranked` is what `rank_classes` made of
    the same arrays, where it is there already. Raises `ValueError` as `rank_classes` does.
    """
    rows = []
    for ranking in _rank_each(probabilities, targets, mask) if ranked is None else ranked:
        steps = counts(ranking)
        many = (ranking.positive.sum(), len(ranking.order))
        rows.append((ap_of(*steps), auroc_of(*steps), *many))
    values = np.array(rows, dtype=float).reshape(-1, 4)
    return Classwise(
        values[:, 0], values[:, 1], values[:, 2].astype(np.int64), values[:, 3].astype(np.int64)
    )


def roc_curve(
    scores: Floats, positive: NDArray[np.bool_], points: int | None = None
) -> tuple[Floats, Floats]:
    """False and true positive rates, from (0, 0) to (1, 1), at no more than `points` places.

    A rate is NaN without positives (or without negatives).
    """
    true, false = counts(rank(scores, positive))
    rates = [
        np.concatenate([[0.0], value / value[-1] if len(value) and value[-1] else value * np.nan])
        for value in (false, true)
    ]
    return _thin(rates[0], rates[1], points)


def precision_recall_curve(
    scores: Floats, positive: NDArray[np.bool_], points: int | None = None
) -> tuple[Floats, Floats]:
    """Recall and precision at each distinct score, recall rising; NaN recall without positives.

    AP is not the area under straight lines through these points: it is the step-wise sum.
    """
    true, false = counts(rank(scores, positive))
    recall = true / true[-1] if len(true) and true[-1] else true * np.nan
    return _thin(recall, true / (true + false), points)


def _thin(x: Floats, y: Floats, points: int | None) -> tuple[Floats, Floats]:
    """At most `points` of a curve's points, the ends among them, evenly along its length."""
    if points is None or len(x) <= points:
        return x, y
    steps = np.abs(np.diff(x)) + np.abs(np.diff(y))
    length = np.concatenate([[0.0], np.cumsum(np.nan_to_num(steps))])
    kept = np.searchsorted(length, np.linspace(0, length[-1], max(points, 2)))
    kept[0], kept[-1] = 0, len(x) - 1
    chosen = np.unique(kept)
    return x[chosen], y[chosen]
