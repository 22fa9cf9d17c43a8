"""Whether probabilities mean what they say: reliability curves, calibration error, Brier score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lingula.scores.intervals import Interval, mean_interval, resample, unit_names
from lingula.scores.metrics import Floats

BINS = 15  # of the calibration error


@dataclass(frozen=True)
class Bin:
    """Rows with scores from `low` to `high`: their number, mean score and share of positives."""

    low: float
    high: float
    n: int
    score: float
    share: float
    ci: Interval


@dataclass(frozen=True)
class Reliability:
    """One class's curve.

    Attributes:
        bins: from the lowest scores to the highest; empty for a class without known rows.
        error: mean |score - share| over the bins, weighted by rows (expected calibration error);
            NaN without rows.
        brier: mean squared distance of the scores from the labels; NaN without rows.
    """

    bins: tuple[Bin, ...]
    error: float
    brier: float


def reliability_curves(
    scores: Floats,
    targets: NDArray[np.float32] | NDArray[np.bool_],
    mask: NDArray[np.bool_] | None = None,
    bins: int = 10,
    *,
    patients: Sequence[str] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[Reliability, ...]:
    """One curve per class, with intervals of the shares by drawing patients.

    Args:
        scores: (N, K) probabilities, no NaN.
        targets: (N, K); at least 0.5 is positive.
        mask: (N, K) known cells; None: all.
        bins: bins of equal numbers of rows, as nearly as equal scores allow: they share a bin, so
            there may be fewer. Equal widths would leave a rare finding with one bin.
        patients: N names; rows with an empty one are drawn by themselves. None: every row is.
        draws: resamples; 0 for no intervals.
        seed: of the resamples.

    It is the probability of the positive label that is judged, so a score of 0.01 for a finding
    that is there is far off. Raises `ValueError` for NaN scores and for fewer than one bin.
    """
    if np.isnan(scores).any() or bins < 1:
        raise ValueError("Reliability needs scores without NaN, and at least one bin.")
    positive = np.asarray(targets, dtype=float) >= 0.5
    known = np.ones(positive.shape, dtype=bool) if mask is None else mask
    names, unit = np.unique(unit_names(patients, range(len(scores))), return_inverse=True)
    random = np.random.default_rng(seed)
    drawn = resample(random, len(names), draws if len(names) else 0).astype(float)
    found = []
    for k in range(positive.shape[1]):
        rows = np.flatnonzero(known[:, k])
        found.append(_measure_curve(scores[rows, k], positive[rows, k], bins, unit[rows], drawn))
    return tuple(found)


def _measure_curve(
    scores: Floats,
    positive: NDArray[np.bool_],
    bins: int,
    unit: NDArray[np.intp],
    drawn: Floats,
) -> Reliability:
    if not len(scores):
        return Reliability((), float("nan"), float("nan"))
    inner = np.quantile(scores, np.arange(1, bins) / bins, method="inverted_cdf")
    # A score that equals an edge belongs below it, whatever the order of the rows.
    place = np.searchsorted(np.unique(inner), scores, side="left")
    found: list[Bin] = []
    for number in np.unique(place):
        here = place == number
        share = float(positive[here].mean())
        mean = float(scores[here].mean())
        low, high = float(scores[here].min()), float(scores[here].max())
        ci = mean_interval(positive[here].astype(float), unit[here], drawn)
        found.append(Bin(low, high, int(here.sum()), mean, share, ci))
    far = sum(abs(one.score - one.share) * one.n for one in found) / len(scores)
    return Reliability(tuple(found), far, brier(scores, positive))


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
