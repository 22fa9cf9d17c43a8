"""Thresholds: chosen on dev by a rule, and what a class's scores are worth at them.

All in float64 over the known cells only; what is undefined is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lingula.scores.metrics import Floats, Ranking, counts, mean_defined, rank
from lingula.scores.reliability import brier, calibration_error
from lingula.system.errors import InputError, nearest

RULES = ("max-f1", "youden", "sensitivity=X", "specificity=X", "cost=FN:FP")
FALLBACK = 0.5
LEVEL = 0.9  # the specificity, and the sensitivity, at which the other is given


@dataclass(frozen=True)
class Threshold:
    """A finding is called where the raw score is at least `score`, the calibrated `calibrated`.

    Each is chosen on its own scale; they call the same images unless the map ties scores.
    `sensitivity` and `specificity` are those of `score` on dev, None without positives or without
    negatives; `note` says so where the rule could not be followed.
    """

    score: float
    calibrated: float
    sensitivity: float | None
    specificity: float | None
    note: str = ""


@dataclass(frozen=True)
class Rule:
    """A parsed rule: its `name` as given, its `kind`, and its numbers."""

    name: str
    kind: str
    values: tuple[float, ...] = ()


def parse_rule(text: str) -> Rule:
    """A rule from its text, such as `sensitivity=0.9` or `cost=10:1`; `InputError` for others."""
    kind, equals, rest = text.partition("=")
    if kind in ("max-f1", "youden") and not equals:
        return Rule(text, kind)
    try:
        values = tuple(float(part) for part in rest.split(":"))
    except ValueError:
        values = ()
    if kind in ("sensitivity", "specificity") and len(values) == 1 and 0 < values[0] <= 1:
        return Rule(text, kind, values)
    positive = len(values) == 2 and min(values) > 0 and np.isfinite(values).all()
    if kind == "cost" and positive:
        return Rule(text, kind, values)
    raise InputError(
        f"There is no threshold rule '{text}'.{nearest(text, RULES)} There are {', '.join(RULES)}; "
        "X is a share above 0 and at most 1, FN and FP are the costs of a missed finding and of a "
        "false one, above 0."
    )


def choose_threshold(
    rule: Rule,
    scores: Floats,
    calibrated: Floats,
    positive: NDArray[np.bool_],
    *,
    where: str = "on dev",
) -> Threshold:
    """The threshold of a rule on a class's known dev rows (n,); `where` they are, for its note.

    `max-f1` and `youden` take the highest of equals; `sensitivity` the highest that reaches it;
    `specificity` the lowest that reaches it; `cost` the one with the least cost. A threshold just
    above the highest score calls nothing. A class without what a rule needs (positives, or
    negatives) falls back to 0.5, `cost` to FP / (FN + FP), and says so.
    """
    needed = {"sensitivity": (True,), "specificity": (False,)}.get(rule.kind, (True, False))
    lacking = [kind for kind in needed if not (positive == kind).any()]
    if lacking:
        value = FALLBACK
        if rule.kind == "cost":
            value = rule.values[1] / sum(rule.values)
        words = " and no ".join("positives" if kind else "negatives" for kind in lacking)
        note = f"no {words} {where}: {value:g} by default"
        return Threshold(value, value, *_rates(scores, positive, value), note)
    raw = _choose(rule, scores, positive)
    return Threshold(raw, _choose(rule, calibrated, positive), *_rates(scores, positive, raw))


def _choose(rule: Rule, scores: Floats, positive: NDArray[np.bool_]) -> float:
    """Among the distinct scores, and one above them all, that which the rule prefers."""
    ranking = rank(scores, positive)
    true, false = counts(ranking)
    steps = scores[ranking.order][ranking.ends]
    # From the threshold that calls nothing to the one that calls everything.
    steps = np.concatenate([[np.nextafter(steps[0], np.inf)], steps])
    true, false = np.concatenate([[0.0], true]), np.concatenate([[0.0], false])
    with np.errstate(invalid="ignore"):
        sensitivity, called = true / true[-1], false / false[-1]
    if rule.kind == "sensitivity":
        return float(steps[int(np.argmax(sensitivity >= rule.values[0]))])
    if rule.kind == "specificity":
        return float(steps[np.flatnonzero(1 - called >= rule.values[0])[-1]])
    gain = {
        "max-f1": 2 * true / (true + false + true[-1]),
        "youden": sensitivity - called,
    }
    if rule.kind == "cost":
        missed, alarm = rule.values
        return float(steps[int(np.argmin(missed * (true[-1] - true) + alarm * false))])
    return float(steps[int(np.argmax(gain[rule.kind]))])


def _rates(
    scores: Floats, positive: NDArray[np.bool_], value: float
) -> tuple[float | None, float | None]:
    _, sensitivity, specificity, _ = at_threshold(scores, positive, value)
    return (sensitivity if positive.any() else None, None if positive.all() else specificity)


def parse_rules(texts: Sequence[str]) -> tuple[Rule, ...]:
    """The rules of these texts; `InputError` for one that is given twice."""
    twice = sorted({text for text in texts if list(texts).count(text) > 1})
    if twice:
        raise InputError(f"Threshold rules given twice: {', '.join(twice)}.")
    return tuple(parse_rule(text) for text in texts)


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


def measure_operating(
    probabilities: Floats,
    targets: NDArray[np.float32],
    mask: NDArray[np.bool_],
    thresholds: Floats,
    ranked: Sequence[Ranking],
    level: float = LEVEL,
) -> Operating:
    """Measures of (N, K) arrays at thresholds (K,).

    A score at or above its class's threshold is a finding; a target of at least 0.5 is positive.
    `ranked` is what `metrics.rank_classes` made of the same arrays.
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


def max_f1_threshold(scores: Floats, positive: NDArray[np.bool_]) -> float:
    """The score at or above which F1 is highest; NaN without positives."""
    return _choose(Rule("max-f1", "max-f1"), scores, positive) if positive.any() else float("nan")
