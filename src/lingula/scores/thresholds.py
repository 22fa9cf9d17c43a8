"""Thresholds of one class, chosen on dev: the highest F1, a wanted sensitivity, a cost, ..."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lingula.scores.metrics import Floats, counts, rank
from lingula.system.errors import InputError, nearest

RULES = ("max-f1", "youden", "sensitivity=X", "specificity=X", "cost=FN:FP")
FALLBACK = 0.5


@dataclass(frozen=True)
class Threshold:
    """A finding is called where the raw score is at least `score`, the calibrated `calibrated`.

    Each is chosen on its own scale; they call the same images unless the map ties scores.
    `sensitivity` and `specificity` are those of `score` on dev, None where nothing is a share of;
    `note` says so where the rule could not be followed.
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


def parsed(text: str) -> Rule:
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


def threshold(
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
        return Threshold(value, value, *_shares(scores, positive, value), note)
    raw = _best(rule, scores, positive)
    return Threshold(raw, _best(rule, calibrated, positive), *_shares(scores, positive, raw))


def _best(rule: Rule, scores: Floats, positive: NDArray[np.bool_]) -> float:
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


def _shares(
    scores: Floats, positive: NDArray[np.bool_], value: float
) -> tuple[float | None, float | None]:
    called = scores >= value
    sensitivity = float(called[positive].mean()) if positive.any() else None
    return sensitivity, float((~called[~positive]).mean()) if (~positive).any() else None


def distinct(texts: Sequence[str]) -> tuple[Rule, ...]:
    """The rules of these texts; `InputError` for one that stands twice."""
    twice = sorted({text for text in texts if list(texts).count(text) > 1})
    if twice:
        raise InputError(f"Threshold rules that stand twice: {', '.join(twice)}.")
    return tuple(parsed(text) for text in texts)
