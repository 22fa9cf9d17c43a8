"""Bootstrap intervals by drawing patients, on weights over scores that are sorted once.

A draw gives each patient a count; its images get that weight. No draw sorts again. A class that
loses all its positives in a draw is left out of that draw's mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lingula.scores.metrics import Floats, Ranking, rank_classes

Interval = tuple[float, float] | None

CHUNK = 12  # the fewest draws at a time
CELLS = 300_000  # rows times draws at a time, where that is more draws: bounds the memory


def unit_names(patients: Sequence[str] | None, rows: Iterable[object]) -> list[str]:
    """The name of what is drawn for each row: its patient, or the row itself where it has none.

    `rows` are the rows' own names; no patient's name is one of theirs.
    """
    own = [f"\0{row}" for row in rows]
    return own if patients is None else [a or b for a, b in zip(patients, own, strict=True)]


def fold_numbers(
    units: Sequence[str] | NDArray[Any], folds: int, seed: int | Sequence[int]
) -> NDArray[np.intp]:
    """(N,) the fold of each row, from 0: rows of one unit are in one fold, units are shuffled.

    There are as many folds as units where those are fewer.
    """
    names, unit_of_row = np.unique(units, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    return np.asarray(order % max(1, min(folds, len(names))), dtype=np.intp)[unit_of_row]


def resample(
    random: np.random.Generator, units: int, draws: int, size: int | None = None
) -> NDArray[np.int64]:
    """How often each unit is drawn (draws, units); `size` per draw, None: as many as there are.

    One draw is made at a time, so that the draws are the same in whatever chunks they are made.
    """
    drawn = np.zeros((draws, units), dtype=np.int64)
    for counts in drawn:
        chosen = random.integers(0, units, units if size is None else size)
        counts[:] = np.bincount(chosen, minlength=units)
    return drawn


def mean_interval(values: Floats, unit_of_row: NDArray[np.intp], counts: Floats) -> Interval:
    """Interval of the mean of rows (n,) over draws (draws, units) of the units they belong to."""
    units = counts.shape[1]
    rows = counts @ np.bincount(unit_of_row, minlength=units)
    total = counts @ np.bincount(unit_of_row, weights=values, minlength=units)
    return interval(np.where(rows > 0, total / np.maximum(rows, 1), np.nan))


@dataclass(frozen=True)
class Draws:
    """AP and AUROC of every draw and class, arrays (draws, K); NaN where undefined in a draw.

    `units` is the number of patients (or of rows, without patients) that were drawn from, and
    `positives` (K,) how many of them have a positive of the class.
    """

    ap: Floats
    auroc: Floats
    units: int
    positives: NDArray[np.int64]


@dataclass(frozen=True)
class _Steps:
    """A class's sorted rows cut into runs; S is the number of scores that some positive has.

    Attributes:
        units: the unit of each row, by falling score (n,).
        cuts: position of the first row of each run.
        begins: of each of the S scores, the number of runs before it.
        ends: and the number of runs up to its end.
        positives: the unit of each positive, by falling score.
        first: index in `positives` of the first positive of each of the S scores.
    """

    units: NDArray[np.intp]
    cuts: NDArray[np.intp]
    begins: NDArray[np.intp]
    ends: NDArray[np.intp]
    positives: NDArray[np.intp]
    first: NDArray[np.intp]


def bootstrap(
    probabilities: Floats,
    targets: NDArray[np.float32] | NDArray[np.bool_],
    mask: NDArray[np.bool_],
    patients: Sequence[str] | None,
    *,
    draws: int,
    seed: int | Sequence[int] = 0,
    size: int | None = None,
    ranked: Sequence[Ranking] | None = None,
) -> Draws:
    """AP and AUROC per class over `draws` resamples of the patients (of the rows without patients).

    The same seed and patients give the same resamples, whatever the scores: two models' draws pair.

    Args:
        probabilities: (N, K) scores without NaN.
        targets: (N, K); at least 0.5 is positive.
        mask: (N, K) True where a cell counts.
        patients: N names; rows with an empty one are drawn by themselves. None: every row is.
        draws: how many resamples.
        seed: of the resamples.
        size: patients per draw; None: as many as there are.
        ranked: what `metrics.rank_classes` made of the same arrays, where it is there already.
    """
    rows, classes = probabilities.shape
    units, unit_of_row = np.unique(unit_names(patients, range(rows)), return_inverse=True)
    steps = [
        _cut_runs(r, unit_of_row) for r in ranked or rank_classes(probabilities, targets, mask)
    ]
    rows_of_unit = np.bincount(unit_of_row, minlength=len(units))
    random = np.random.default_rng(seed)
    ap = np.full((draws, classes), np.nan)
    auroc = np.full((draws, classes), np.nan)
    chunk = max(CHUNK, CELLS // max(rows, 1))
    for start in range(0, draws if rows else 0, chunk):
        part = slice(start, min(start + chunk, draws))
        counts = resample(random, len(units), part.stop - start, size)
        most = int((counts @ rows_of_unit).max())
        bits = (2 * most).bit_length()  # twice: ends and begins are added
        packed = pack_draws(counts, bits)
        for k, found in enumerate(steps):
            if len(found.first):
                ap[part, k], auroc[part, k] = _measure_draws(found, packed, bits, len(counts))
    positives = [len(np.unique(found.positives)) for found in steps]
    return Draws(ap, auroc, len(units), np.array(positives, dtype=np.int64))


def pack_draws(counts: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """Counts (draws, units) with several draws in each 64-bit word: (words, units).

    Sums of words are sums of all their draws at once, exact while no draw's sum exceeds `bits`
    bits: three to five times less work than one number per draw.
    """
    share = max(1, 63 // bits)
    packed = np.zeros((-(-len(counts) // share), counts.shape[1]), dtype=np.int64)
    for draw, row in enumerate(counts):
        packed[draw // share] |= row << (draw % share) * bits
    return packed


def unpack_sums(packed: NDArray[np.int64], bits: int, draws: int) -> Floats:
    """Sums (words, S) back as whole numbers (draws, S)."""
    share = max(1, 63 // bits)
    apart = np.empty((len(packed), share, packed.shape[1]))
    for at in range(share):
        apart[:, at] = (packed >> at * bits) & ((1 << bits) - 1)
    return apart.reshape(-1, packed.shape[1])[:draws]


def _cut_runs(ranking: Ranking, unit_of_row: NDArray[np.intp]) -> _Steps:
    """Cut a ranking into runs of rows at the scores that matter: those that some positive has."""
    positives = np.flatnonzero(ranking.positive)
    starts = np.concatenate([[0], ranking.ends + 1]).astype(np.intp)
    tiers, first = np.unique(np.searchsorted(ranking.ends, positives), return_index=True)
    begins, ends = starts[tiers], starts[tiers + 1]
    n = len(ranking.order)
    cuts = np.unique(np.concatenate([np.zeros(min(n, 1), np.intp), begins, ends, [n]]))
    units = unit_of_row[ranking.order]
    return _Steps(
        units=units,
        cuts=cuts[:-1],
        begins=np.searchsorted(cuts, begins),
        ends=np.searchsorted(cuts, ends),
        positives=units[positives],
        first=first,
    )


def _measure_draws(
    steps: _Steps, packed: NDArray[np.int64], bits: int, draws: int
) -> tuple[Floats, Floats]:
    """AP and AUROC (draws,) from the units' packed counts (words, units).

    Only scores that some positive has contribute. All counts are whole numbers: exact.
    """
    sums = np.add.reduceat(np.take(packed, steps.units, axis=1), steps.cuts, axis=1)
    running = np.zeros((len(packed), len(steps.cuts) + 1), dtype=np.int64)
    np.cumsum(sums, axis=1, out=running[:, 1:])
    tied = np.take(packed, steps.positives, axis=1)
    if len(steps.first) < len(steps.positives):
        tied = np.add.reduceat(tied, steps.first, axis=1)
    above = np.take(running, steps.ends, axis=1)
    gain, true, every = (
        unpack_sums(part, bits, draws) for part in (tied, np.cumsum(tied, axis=1), above)
    )
    above += np.take(running, steps.begins, axis=1)
    total = true[:, -1]
    negative = unpack_sums(running[:, -1:], bits, draws)[:, 0] - total
    # A positive is outranked by the mean of the negatives above its score and those at it too;
    # the positives among those rows are total ** 2 in all, whatever their order.
    outranked = np.einsum("ds,ds->d", gain, unpack_sums(above, bits, draws)) - total**2
    with np.errstate(invalid="ignore", divide="ignore"):
        ap = np.einsum("ds,ds->d", gain, true / np.maximum(every, 1)) / total
        auroc = 1 - outranked / 2 / (total * negative)
    return np.where(total > 0, ap, np.nan), np.where((total > 0) & (negative > 0), auroc, np.nan)


def interval(values: Floats, level: float = 0.95) -> Interval:
    """Percentile interval of the defined draws; None without any."""
    kept = values[~np.isnan(values)]
    if not len(kept):
        return None
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def logit_interval(
    value: float, draws: Floats, positives: int | None = None, level: float = 0.95
) -> Interval:
    """Interval of a share such as AP or AUROC: around its value, by the draws' spread.

    Made on the log-odds scale, with the standard deviation of the draws that are defined, and so
    within [0, 1]. Draws of AP lie too high, since repeated positives help each other's rank: their
    percentiles miss low truths, this does not (docs/metrics.md has both, measured). At 0 or 1,
    which have no log-odds, it is the percentiles, widened to contain the value. None without a
    value or draws, and where it would have no width: draws that are all alike, as those of a single
    positive that ranks first, say nothing of what another sample would give.

    Args:
        value: what was measured on all rows.
        draws: the same of every draw.
        positives: units (patients) with a positive; few of them widen the interval, as Student's
            t does. None: a mean over classes, which has no such number.
        level: the share of intervals that should contain the truth.
    """
    kept = draws[~np.isnan(draws)]
    if not len(kept) or np.isnan(value):
        return None
    if not 0 < value < 1:
        low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
        return _interval_or_none(min(float(low), value), max(float(high), value))
    if kept.min() == kept.max():
        return None  # their standard deviation may be a rounding above 0
    middle = np.log(value / (1 - value))
    reach = reach_of(positives, level) * float(kept.std()) / (value * (1 - value))
    # The logistic function, in the form that can't overflow.
    low, high = (1 + np.tanh(np.array([middle - reach, middle + reach]) / 2)) / 2
    return _interval_or_none(min(float(low), value), max(float(high), value))


def _interval_or_none(low: float, high: float) -> Interval:
    return (low, high) if low < high else None


def reach_of(positives: int | None, level: float) -> float:
    """Standard deviations to each side: Student's t, and m / (m - 1) of the variance, for m units.

    A bootstrap's variance is that of a sample of m without its m - 1. The quantile of t is the
    expansion of Fisher and Cornish: to 0.1 % from three degrees of freedom.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    if positives is None:
        return z
    m = max(positives, 2)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    quantile = float(sum(term / (m - 1) ** power for power, term in enumerate(terms)))
    return quantile * float(np.sqrt(m / (m - 1)))


def mean_by_draw(values: Floats, classes: NDArray[np.bool_]) -> Floats:
    """The mean over the chosen classes that are defined, for each draw (draws,)."""
    chosen = values[:, classes]
    known = (~np.isnan(chosen)).sum(axis=1)
    total = np.where(np.isnan(chosen), 0.0, chosen).sum(axis=1)
    return np.where(known > 0, total / np.maximum(known, 1), np.nan)


def p_value(differences: Floats) -> float:
    """Two-sided p of a paired difference from its draws: NaN draws left out, NaN without any.

    Twice the share of the draws on the rarer side of zero, with one draw added to each side, so
    that it is never below 2 / (draws + 1): more draws show smaller ones.
    """
    kept = differences[~np.isnan(differences)]
    if not len(kept):
        return float("nan")
    side = min(int((kept <= 0).sum()), int((kept >= 0).sum()))
    return min(1.0, 2 * (side + 1) / (len(kept) + 1))


def holm(p: Floats) -> Floats:
    """Holm's adjusted p values (K,): at most `alpha` that any rejection is wrong; NaN stays."""
    adjusted = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted


def benjamini_hochberg(p: Floats) -> Floats:
    """Benjamini and Hochberg's adjusted p values (K,): a bound on the share of false findings."""
    adjusted = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")][::-1]  # the largest first
    steps = p[order] * len(order) / np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.minimum.accumulate(steps))
    return adjusted
