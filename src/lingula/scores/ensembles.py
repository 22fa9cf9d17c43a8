"""Ensembles on scores files (paper section 2.2): rules that weight members, and their application.

A rule gives each member a weight for each class. Rules that look at labels choose on dev; what they
chose is kept by name and only applied elsewhere.

The guarded rule adds members greedily. Greedy selection on one dev set overfits it, so two things
limit it: the weights are the mean over all steps of the way, and a class's own weights count
n / (n + SHRINK), where n is its positives on dev; the rest is one choice for all classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lingula.scores import metrics
from lingula.scores.members import Members, Sample, failed_in_any, first_of, same_rows
from lingula.scores.metrics import Floats
from lingula.scores.predictions import Predictions, class_columns, failed, select_rows
from lingula.system.errors import InputError, examples, nearest

# Chosen by cross-fitting over the patients of a dev set (docs/ensembles.md), never on test.
STEPS = 20  # members that a choice adds up, with replacement
SHRINK = 300.0  # positives at which a class's own choice counts as much as the common one
MOST = 8  # the largest k among the plain top-k rules

Search = NDArray[np.float32]
Column = tuple[Search, NDArray[np.bool_]]  # one class: scores (M, n) of its known rows, and labels


@dataclass(frozen=True)
class Ensemble:
    """A rule's outcome: for each class the weight of each member, which sum to one.

    `dev_ap` is {class: {member: AP on dev, or None}}; empty for a rule that looks at no labels.
    """

    rule: str
    members: tuple[str, ...]
    weights: Mapping[str, Mapping[str, float]]
    dev_ap: Mapping[str, Mapping[str, float | None]]

    def matrix(self, classes: Sequence[str]) -> Floats:
        """The weights (M, K) of these classes."""
        columns = [[self.weights[name].get(m, 0.0) for m in self.members] for name in classes]
        return np.array(columns, dtype=np.float64).reshape(-1, len(self.members)).T


def model_wise(members: Mapping[str, Predictions]) -> Ensemble:
    """Every member with the same weight for every class."""
    share = {name: 1 / len(members) for name in members}
    return Ensemble(
        "model-wise", tuple(members), dict.fromkeys(first_of(members).classes, share), {}
    )


def class_wise(sample: Sample, top_k: int = 3) -> Ensemble:
    """For each class the plain mean of the `top_k` members with the best AP on dev (`top_weights`).

    Raises `InputError` for `top_k` below 1.
    """
    if top_k < 1:
        raise InputError(f"top_k is the number of members per class: at least 1, not {top_k}.")
    aps = member_aps(sample)
    return name_weights("class-wise", top_weights(aps, top_k), sample, aps)


def guarded(sample: Sample) -> Ensemble:
    """The guarded choice on a sample (`guarded_weights`)."""
    return name_weights("guarded", guarded_weights(sample), sample, member_aps(sample))


def name_weights(rule: str, weights: Floats, sample: Sample, aps: Floats | None = None) -> Ensemble:
    """Weights (M, K), and the members' APs on dev, by class and member; no weight is left out."""
    named: dict[str, Mapping[str, float]] = {}
    dev_ap: dict[str, Mapping[str, float | None]] = {}
    for k, class_name in enumerate(sample.classes):
        shares = zip(sample.members, weights[:, k].tolist(), strict=True)
        named[class_name] = {name: share for name, share in shares if share > 0}
        if aps is not None:
            known = zip(sample.members, aps[:, k].tolist(), strict=True)
            dev_ap[class_name] = {name: None if np.isnan(ap) else ap for name, ap in known}
    return Ensemble(rule, sample.members, named, dev_ap)


def member_aps(sample: Sample) -> Floats:
    """AP (M, K) of each member by itself; NaN for a class without positives."""
    found = [metrics.measure_classes(one, sample.positive, sample.mask).ap for one in sample.scores]
    return np.array(found)


def top_weights(aps: Floats, top_k: int) -> Floats:
    """Weights (M, K): for each class the same for the `top_k` members with the best AP.

    Equal APs are settled by the order of the members. All members have the same weight in a class
    that has no AP, and where there are no more than `top_k`.
    """
    members, classes = aps.shape
    weights = np.full((members, classes), 1 / members)
    for k in np.flatnonzero(~np.isnan(aps).any(axis=0)):
        best = np.argsort(-aps[:, k], kind="stable")[:top_k]
        weights[:, k] = 0
        weights[best, k] = 1 / len(best)
    return weights


def plain_rules(sample: Sample) -> dict[str, Floats]:
    """Weights (M, K) of the rules that a user would try on this sample, by name.

    The plain mean; the mean of the k members with the best mAP; for each class that of the k with
    the best AP. Equal ones are settled by the order of the members.
    """
    members, _, classes = sample.scores.shape
    aps = member_aps(sample)
    known = ~np.isnan(aps).any(axis=0)
    found = {"model-wise": np.full((members, classes), 1 / members)}
    for top in range(1, min(MOST, members - 1) + 1):
        if known.any():
            overall = top_weights(aps[:, known].mean(axis=1, keepdims=True), top)
            found[f"global top-{top}"] = np.repeat(overall, classes, axis=1)
        found[f"class-wise top-{top}"] = top_weights(aps, top)
    return found


def guarded_weights(sample: Sample) -> Floats:
    """Weights (M, K) of the guarded rule: each class's own greedy choice, shrunk to the common one.

    A class without positives on dev gets the common choice; without any positive at all, that is
    the plain mean. The same sample gives the same weights, whatever the order of its rows.
    """
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


def weighted_mean(weights: Floats, scores: Iterable[Floats]) -> Floats:
    """Scores (N, K) from M members' scores (N, K) under weights (M, K), within [0, 1]."""
    total = sum(share * member for share, member in zip(weights, scores, strict=True))
    # A mean of numbers in [0, 1] may leave it by a rounding.
    return np.asarray(np.clip(total, 0, 1), dtype=np.float64)


def apply(ensemble: Ensemble, members: Mapping[str, Predictions]) -> Predictions:
    """The ensemble's scores of its members' images: rows as in the first, classes as it has them.

    An image that failed in any member fails in the result. Raises `InputError` naming what is
    missing or extra among members, images and classes.
    """
    missing = [name for name in ensemble.members if name not in members]
    extra = [name for name in members if name not in ensemble.members]
    if missing or extra:
        wrong = (missing or extra)[0]
        raise InputError(
            f"The ensemble's members are {', '.join(ensemble.members)}; "
            f"{'missing' if missing else 'unknown'}: {', '.join(missing or extra)}."
            f"{nearest(wrong, members if missing else ensemble.members)}"
        )
    alike = same_rows({name: members[name] for name in ensemble.members})
    first = first_of(alike)
    classes = tuple(ensemble.weights)
    columns = class_columns(first, classes)
    unknown = [name for k, name in enumerate(first.classes) if k not in set(columns.tolist())]
    if unknown:
        raise InputError(
            f"{first.origin} has classes that the ensemble was not made for: {examples(unknown)}."
        )
    scores = (member.probabilities[:, columns] for member in alike.values())
    mean = weighted_mean(ensemble.matrix(classes), scores)
    mean[failed_in_any(alike)] = np.nan
    return replace(first, classes=classes, probabilities=mean, origin="the ensemble")


def combine(ensemble: Ensemble, members: Members, missing: str) -> Predictions:
    """The ensemble's scores, by what is done with images that some members lack.

    `error`: as `apply`. `intersect`: of the images that all members have. `average`: of all images,
    over the members that have scores of them, with their weights scaled to sum to one; a class
    whose weighted members all lack an image gets the plain mean of the others.
    """
    found = apply(ensemble, members.scores)  # also checks members and classes
    if missing == "intersect":
        return select_rows(found, np.flatnonzero(members.complete))
    return _fill_in(found, ensemble, members.scores) if missing == "average" else found


def _fill_in(
    found: Predictions, ensemble: Ensemble, members: Mapping[str, Predictions]
) -> Predictions:
    """The scores of the rows that some member lacks, as means over the members that have them."""
    known = np.stack([~failed(members[name]) for name in ensemble.members], axis=1)
    part = known.any(axis=1) & ~known.all(axis=1)
    values = found.probabilities.copy()
    for k, (name, shares) in enumerate(
        zip(found.classes, ensemble.matrix(found.classes).T, strict=True)
    ):
        weights = known[part] * shares
        weights = np.where(weights.any(axis=1, keepdims=True), weights, known[part])
        columns = [
            members[member].probabilities[part, class_columns(members[member], (name,))[0]]
            for member in ensemble.members
        ]
        scores = np.nan_to_num(np.stack(columns, axis=1))
        values[part, k] = (scores * weights).sum(axis=1) / weights.sum(axis=1)
    return replace(found, probabilities=values.clip(0, 1))


def to_json(ensemble: Ensemble) -> dict[str, Any]:
    """The ensemble as plain values, for `ensemble.json`."""
    return {
        "format": 1,
        "rule": ensemble.rule,
        "members": list(ensemble.members),
        "weights": {name: dict(weights) for name, weights in ensemble.weights.items()},
        "dev_ap": {name: dict(found) for name, found in ensemble.dev_ap.items()},
    }


def from_json(value: Any, where: str) -> Ensemble:
    """The ensemble that `to_json` wrote; `InputError` naming `where` for anything else."""
    try:
        if value["format"] != 1:
            raise InputError(f"{where} has format {value['format']}; this version reads 1.")
        weights = {
            str(name): {str(member): float(w) for member, w in shares.items()}
            for name, shares in value["weights"].items()
        }
        made = Ensemble(
            str(value["rule"]), tuple(value["members"]), weights, value.get("dev_ap", {})
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(f"{where} is not an ensemble made by `lingula ensemble`.") from None
    for name, shares in weights.items():
        odd = [member for member in shares if member not in made.members]
        if odd or not np.isclose(sum(shares.values()), 1) or min(shares.values()) < 0:
            raise InputError(
                f"{where} is damaged: the weights of '{name}' must belong to its members, be at "
                "least 0 and sum to 1."
            )
    return made
