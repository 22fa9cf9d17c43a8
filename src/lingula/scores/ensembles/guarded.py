"""The guarded ensemble: weights a class, chosen on dev, that few positives pull to a common choice.

Greedy selection on one dev set chases its luck. Two things hold it back: the weights are the mean
over all steps of the way, and a class's own weights count n / (n + SHRINK), n its positives on dev;
the rest is one choice for all classes. What it is worth is estimated within dev, by patients that
the choice did not see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lingula.scores import metrics
from lingula.scores.ensembles.weighting import Ensemble
from lingula.scores.intervals import Interval, bootstrap, interval, mean_by_draw
from lingula.scores.metrics import Floats
from lingula.scores.predictions import Predictions, failed
from lingula.system.errors import InputError

# Chosen by cross-fitting over the patients of a dev set (docs/ensembles.md), never on test.
STEPS = 20  # members that a choice adds up, with replacement
SHRINK = 300.0  # positives at which a class's own choice counts as much as the common one
FOLDS = 5
MOST = 8  # the largest k among the plain top-k rules

Search = NDArray[np.float32]
Column = tuple[Search, NDArray[np.bool_]]  # a class: scores (M, n) of its known rows, and labels


@dataclass(frozen=True)
class Sample:
    """Scores of M members on N rows and K classes, with labels and what rows belong to.

    Attributes:
        scores: (M, N, K) probabilities, no NaN.
        positive: (N, K).
        mask: (N, K) known cells.
        units: N names; rows of one name (a patient) are never parted.
    """

    scores: Floats
    positive: NDArray[np.bool_]
    mask: NDArray[np.bool_]
    units: tuple[str, ...]


@dataclass(frozen=True)
class Guard:
    """What the guarded choice is worth, by dev alone.

    Attributes:
        baseline: the plain rule with the best cross-fitted mAP: the one that dev would have picked.
        dev: mAP on the rows that the choice was made on, guarded and baseline: too high.
        crossfitted: mAP on patients that the choice did not see, guarded and baseline.
        gain_ci: of the cross-fitted gain, by patients in pairs.
        expected: prediction interval of the mAP on a test set of `test_units` patients like dev's.
        rules: cross-fitted mAP of every rule.
    """

    baseline: str
    dev: tuple[float, float]
    crossfitted: tuple[float, float]
    gain_ci: Interval
    expected: Interval
    test_units: int
    units: int
    draws: int
    rules: Mapping[str, float]


def sample_of(
    members: Mapping[str, Predictions],
    targets: NDArray[np.float32],
    mask: NDArray[np.bool_],
    patients: Sequence[str] | None,
) -> Sample:
    """Members with rows and classes of the targets, in that order; failed images are left out.

    A target of at least 0.5 is positive. Rows without a patient stand for themselves, by their
    image's name. Raises `InputError` if fewer than two patients have scores.
    """
    first = next(iter(members.values()))
    whole = ~np.any([failed(member) for member in members.values()], axis=0)
    names = patients or ("",) * len(first)
    units = [name or f"\0{image}" for name, image in zip(names, first.images, strict=True)]
    kept = np.flatnonzero(whole)
    sample = Sample(
        np.stack([member.probabilities[kept] for member in members.values()]),
        targets[kept] >= 0.5,
        mask[kept],
        tuple(units[row] for row in kept),
    )
    if len(set(sample.units)) < 2:
        raise InputError(
            "guarded checks its choice on patients that it did not see: it needs at least two "
            f"patients with scores of all members on dev, and {first.origin} has "
            f"{len(set(sample.units))}."
        )
    return sample


def guarded(members: Mapping[str, Predictions], sample: Sample) -> Ensemble:
    """The guarded choice on a sample of these members, in their order, as an `Ensemble`.

    A class without positives on dev gets the common choice; without any positive at all, that is
    the plain mean. The same sample gives the same weights, in whatever order its rows are.
    """
    alone = _singles(sample)
    names = tuple(members)
    classes = next(iter(members.values())).classes
    dev_ap: dict[str, Mapping[str, float | None]] = {}
    for k, class_name in enumerate(classes):
        found = zip(names, alone[:, k].tolist(), strict=True)
        dev_ap[class_name] = {name: None if np.isnan(ap) else ap for name, ap in found}
    weights = _by_name(guarded_weights(sample), names, classes)
    return Ensemble("guarded", names, weights, dev_ap)


def plain(rule: str, members: Mapping[str, Predictions], sample: Sample) -> Ensemble:
    """The plain rule of this name (`plain_rules`) on a sample of these members, in their order."""
    names = tuple(members)
    classes = next(iter(members.values())).classes
    return Ensemble(rule, names, _by_name(plain_rules(sample)[rule], names, classes), {})


def _by_name(
    weights: Floats, names: tuple[str, ...], classes: tuple[str, ...]
) -> dict[str, Mapping[str, float]]:
    """Weights (M, K) by class and member; a member without weight is left out."""
    return {
        class_name: {name: share for name, share in zip(names, column, strict=True) if share > 0}
        for class_name, column in zip(classes, weights.T.tolist(), strict=True)
    }


def guarded_weights(sample: Sample) -> Floats:
    """Weights (M, K), a class's sum to one: its own greedy choice, shrunk to the common one."""
    members, _, classes = sample.scores.shape
    columns: dict[int, Column] = {}
    for k in range(classes):
        rows = np.flatnonzero(sample.mask[:, k])
        if sample.positive[rows, k].any():
            search = np.ascontiguousarray(sample.scores[:, rows, k], dtype=np.float32)
            columns[k] = (search, sample.positive[rows, k])
    common = np.full(members, 1 / members)
    if columns:
        common = _greedy(list(columns.values()), members)
    weights: Floats = np.repeat(common[:, None], classes, axis=1)
    for k, column in columns.items():
        trust = column[1].sum() / (column[1].sum() + SHRINK)
        weights[:, k] = trust * _greedy([column], members) + (1 - trust) * common
    return weights


def _greedy(columns: Sequence[Column], members: int) -> Floats:
    """Shares (M,) of the members that, added one after another, raise the columns' mean AP most.

    The mean of the shares after 1, 2, ... `STEPS` members, so that early members, of which dev is
    surest, count most and no lucky last step much. Ties are settled by the order of the members.
    """
    counts, shares = np.zeros(members), np.zeros(members)
    sums = [np.zeros(scores.shape[1], dtype=np.float32) for scores, _ in columns]
    for step in range(1, STEPS + 1):
        gained = np.zeros(members)
        for total, (scores, positive) in zip(sums, columns, strict=True):
            gained += step_precisions(total + scores, positive)
        best = int(np.argmax(gained))
        counts[best] += 1
        shares += counts / step
        sums = [total + scores[best] for total, (scores, _) in zip(sums, columns, strict=True)]
    return shares / STEPS


def step_precisions(candidates: Floats | Search, positive: NDArray[np.bool_]) -> Floats:
    """AP (C,) of many scorings (C, n) of the same rows, of which at least one is positive.

    The same number as `metrics.average_precision`: the mean over the positives of the precision
    among all rows that score at least as high. Sorting values is several times faster than sorting
    places.
    """
    negatives = np.sort(candidates[:, ~positive], axis=1)
    positives = np.sort(candidates[:, positive], axis=1)
    found = np.empty(len(candidates))
    for i, (low, high) in enumerate(zip(negatives, positives, strict=True)):
        true = len(high) - np.searchsorted(high, high, side="left")
        false = len(low) - np.searchsorted(low, high, side="left")
        found[i] = (true / (true + false)).mean()
    return found


def _singles(sample: Sample) -> Floats:
    """AP (M, K) of each member by itself; NaN for a class without positives."""
    members, _, classes = sample.scores.shape
    found = np.full((members, classes), np.nan)
    for k in range(classes):
        rows = np.flatnonzero(sample.mask[:, k])
        positive = sample.positive[rows, k]
        if positive.any():
            found[:, k] = step_precisions(sample.scores[:, rows, k], positive)
    return found


def plain_rules(sample: Sample) -> dict[str, Floats]:
    """Weights (M, K) of the rules that a user would try on this sample, by name.

    The plain mean; the mean of the k members with the best mAP; for each class that of the k with
    the best AP (all members for a class without positives). Ties go by the members' order.
    """
    members, _, classes = sample.scores.shape
    alone = _singles(sample)
    known = ~np.isnan(alone).any(axis=0)
    found = {"model-wise": np.full((members, classes), 1 / members)}
    by_mean = np.argsort(-alone[:, known].mean(axis=1), kind="stable") if known.any() else None
    for top in range(1, min(MOST, members - 1) + 1):
        if by_mean is not None:
            shares = np.zeros((members, classes))
            shares[by_mean[:top]] = 1 / top
            found[f"global top-{top}"] = shares
        shares = np.full((members, classes), 1 / members)
        for k in np.flatnonzero(known):
            shares[:, k] = 0
            shares[np.argsort(-alone[:, k], kind="stable")[:top], k] = 1 / top
        found[f"class-wise top-{top}"] = shares
    return found


def mixed(weights: Floats, scores: Floats) -> Floats:
    """Scores (N, K) of members' scores (M, N, K) under weights (M, K)."""
    return np.asarray(np.einsum("mk,mnk->nk", weights, scores), dtype=np.float64)


def mean_ap(scores: Floats, sample: Sample) -> float:
    """mAP of scores (N, K) on the sample's rows."""
    return metrics.classwise(scores, sample.positive, sample.mask).mAP


def part_of(sample: Sample, rows: NDArray[np.bool_] | NDArray[np.intp]) -> Sample:
    """The sample of these rows."""
    units = np.array(sample.units, dtype=object)[rows]
    return Sample(
        sample.scores[:, rows], sample.positive[rows], sample.mask[rows], tuple(units.tolist())
    )


def crossfitted(
    sample: Sample,
    rules: Callable[[Sample], Mapping[str, Floats]],
    *,
    folds: int = FOLDS,
    seed: int = 0,
) -> dict[str, Floats]:
    """Scores (N, K) a rule, each row's by weights chosen on the patients of the other folds."""
    names, unit_of_row = np.unique(sample.units, return_inverse=True)
    parts = min(folds, len(names))
    fold_of_row = (np.random.default_rng((seed, 1)).permutation(len(names)) % parts)[unit_of_row]
    found: dict[str, Floats] = {}
    for fold in range(parts):
        here = fold_of_row == fold
        for name, weights in rules(part_of(sample, ~here)).items():
            scores = found.setdefault(name, np.full(sample.positive.shape, np.nan))
            scores[here] = mixed(weights, sample.scores[:, here])
    # A rule that some fold could not make (no positives at all there) is no candidate.
    return {name: scores for name, scores in found.items() if not np.isnan(scores).any()}


def guard(
    sample: Sample, *, test_units: int | None = None, draws: int = 1000, seed: int = 0
) -> Guard:
    """Measure the guarded rule against the best plain one, within dev.

    Args:
        sample: dev.
        test_units: patients of the test set that the expectation is for; None: as many as here.
        draws: of the bootstrap over patients.
        seed: of the folds and the draws.

    The best plain rule is picked by the same cross-fitted scores that it is then measured on, so
    the comparison leans towards it. A fold chooses on fewer rows than the final choice has, so the
    expectation leans low.
    """

    def every(part: Sample) -> dict[str, Floats]:
        return {"guarded": guarded_weights(part), **plain_rules(part)}

    found = crossfitted(sample, every, seed=seed)
    value = {name: mean_ap(scores, sample) for name, scores in found.items()}
    others = {name: ap for name, ap in value.items() if name != "guarded"}
    best = max(others, key=lambda name: -np.inf if np.isnan(others[name]) else others[name])
    here = every(sample)
    ours, theirs, other = (
        _draws(found[name], sample, draws, (seed, number), size)
        for name, number, size in (
            ("guarded", 2, None),
            (best, 2, None),
            ("guarded", 3, test_units),
        )
    )
    # The dev estimate errs by as much as dev's patients are a draw, and test by as much as its are.
    noise = interval(other - ours)
    level = value["guarded"]
    return Guard(
        baseline=best,
        dev=(
            mean_ap(mixed(here["guarded"], sample.scores), sample),
            mean_ap(mixed(here[best], sample.scores), sample),
        ),
        crossfitted=(level, value[best]),
        gain_ci=interval(ours - theirs),
        expected=None
        if noise is None
        else (max(level + noise[0], 0.0), min(level + noise[1], 1.0)),
        test_units=test_units or len(set(sample.units)),
        units=len(set(sample.units)),
        draws=draws,
        rules=value,
    )


def _draws(
    scores: Floats, sample: Sample, draws: int, seed: tuple[int, int], size: int | None
) -> Floats:
    """mAP of each resample of the patients (draws,); `size` patients a draw."""
    found = bootstrap(
        scores,
        sample.positive.astype(np.float32),
        sample.mask,
        sample.units,
        draws=draws,
        seed=seed,
        size=size,
    )
    return mean_by_draw(found.ap, np.ones(scores.shape[1], dtype=bool))


def compared(
    pair: tuple[Ensemble, Ensemble], sample: Sample, *, draws: int, seed: int
) -> tuple[float, float, Interval]:
    """mAP of two ensembles of the sample's members and classes, in their order there.

    The third value is the interval of the first minus the second, in pairs.
    """
    found = []
    for one in pair:
        weights = [[shares.get(m, 0.0) for shares in one.weights.values()] for m in one.members]
        found.append(mixed(np.array(weights), sample.scores))
    ours, theirs = (_draws(scores, sample, draws, (seed, 4), None) for scores in found)
    return mean_ap(found[0], sample), mean_ap(found[1], sample), interval(ours - theirs)
