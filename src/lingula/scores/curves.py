"""Monotone maps of one class's probabilities: logistic (Platt), temperature, isotonic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lingula.scores.metrics import Floats

PRIOR = 0.5  # standard deviation of the slope's logarithm and of the shift about those of all

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Curve:
    """One class's map of probabilities.

    `kind` is `identity`; `logistic`: the logit times `slope` plus `shift`; or `steps`: straight
    lines through the points (`x`, `y`), flat beyond them. `method` says what was fitted, and
    `note` why, where that is not what was asked for.
    """

    kind: str
    method: str
    slope: float = 1.0
    shift: float = 0.0
    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()
    note: str = ""


def logit(probabilities: Floats) -> Floats:
    """The logit; 0 and 1 count as the nearest numbers inside."""
    inside = np.clip(probabilities, np.nextafter(0, 1), np.nextafter(1, 0))
    return np.asarray(np.log(inside) - np.log1p(-inside), dtype=np.float64)


def expit(values: Floats) -> Floats:
    """The probability of a logit, without overflow."""
    small = np.exp(-np.abs(values))
    return np.where(values >= 0, 1 / (1 + small), small / (1 + small))


def calibrated(curve: Curve, probabilities: Floats) -> Floats:
    """A class's probabilities under its map; NaN stays NaN."""
    if curve.kind == "identity":
        return np.asarray(probabilities, dtype=np.float64)
    if curve.kind == "logistic":
        return expit(curve.slope * logit(probabilities) + curve.shift)
    found = np.interp(probabilities, curve.x, curve.y)
    return np.where(np.isnan(probabilities), np.nan, found)


def _platt(scores: Floats, positive: Bools, pooled: tuple[float, float]) -> Curve:
    found = logistic(logit(scores), smoothed(positive), None)
    if found[0] > 0:
        return Curve("logistic", "platt", *found)
    return _not_falling("platt", logit(scores), smoothed(positive), pooled)


def _temperature(scores: Floats, positive: Bools, pooled: tuple[float, float]) -> Curve:
    found = logistic(logit(scores), positive.astype(float), None, shifted=False)
    if found[0] > 0:
        return Curve("logistic", "temperature", *found)
    return _not_falling("temperature", logit(scores), positive.astype(float), pooled, shifted=False)


def _not_falling(
    method: str, logits: Floats, targets: Floats, pooled: tuple[float, float], shifted: bool = True
) -> Curve:
    """A falling map would turn the ranking round; such a class is held to that of all classes."""
    found = logistic(logits, targets, pooled, shifted=shifted)
    note = "scores fall where labels rise: held to the map of all classes"
    return Curve("logistic", f"{method} with prior", *found, note=note)


def _isotonic(scores: Floats, positive: Bools, pooled: tuple[float, float]) -> Curve:
    """Pool adjacent violators: the rising steps with the least squared error."""
    values, place, size = np.unique(scores, return_inverse=True, return_counts=True)
    share = np.bincount(place, weights=positive.astype(float)) / size
    means: list[float] = []
    weights: list[float] = []
    lengths: list[int] = []
    for mean, weight in zip(share.tolist(), size.tolist(), strict=True):
        length = 1
        while means and means[-1] >= mean:
            total = weights[-1] + weight
            mean = (means.pop() * weights[-1] + mean * weight) / total
            weight, length = total, length + lengths.pop()
            weights.pop()
        means.append(mean)
        weights.append(weight)
        lengths.append(length)
    ends = np.cumsum(lengths) - 1
    starts = ends - np.array(lengths) + 1
    kept = np.unique(np.concatenate([starts, ends]))
    heights = np.repeat(means, lengths)[kept]
    return Curve(
        "steps", "isotonic", x=tuple(values[kept].tolist()), y=tuple(np.clip(heights, 0, 1))
    )


def smoothed(positive: Bools) -> Floats:
    """Platt's targets: one more row of each kind is imagined, so that no map is a step."""
    many = int(positive.sum())
    return np.where(positive, (many + 1) / (many + 2), 1 / (len(positive) - many + 2))


def logistic(
    logits: Floats,
    targets: Floats,
    prior: tuple[float, float] | None,
    *,
    shifted: bool = True,
) -> tuple[float, float]:
    """Slope and shift with the least log loss.

    With a `prior`, log slope and shift have a normal one about it, so the slope is above zero.
    Logits are kept within +-30: what lies beyond them is no evidence.
    """
    inside = np.clip(logits, -30, 30)
    columns = np.stack([inside, np.ones(len(inside))] if shifted else [inside], axis=1)
    size = columns.shape[1]
    if prior is None:
        found = _newton(columns, targets, np.array([1.0, 0.0])[:size], None)
    else:
        centre = np.array([np.log(prior[0]), prior[1]])[:size]
        found = _newton(columns, targets, centre, centre)
        found[0] = np.exp(found[0])
    return float(found[0]), float(found[1]) if shifted else 0.0


def _newton(columns: Floats, targets: Floats, start: Floats, centre: Floats | None) -> Floats:
    """The least log loss by Newton's method with step halving.

    With a `centre`, the first number is the slope's logarithm and all are drawn to the centre.
    """
    found = start.copy()
    held = 0.0 if centre is None else 1 / PRIOR**2
    middle = np.zeros(len(start)) if centre is None else centre

    def factors(at: Floats) -> Floats:
        return at if centre is None else np.concatenate([[np.exp(at[0])], at[1:]])

    def cost(at: Floats) -> float:
        return _loss(columns @ factors(at), targets) + held * float(((at - middle) ** 2).sum()) / 2

    loss = cost(found)
    for _ in range(100):
        # How a logit moves with each number: by the column, for a logarithm times the slope.
        moves = columns.copy()
        if centre is not None:
            moves[:, 0] *= np.exp(found[0])
        probability = expit(columns @ factors(found))
        slope = moves.T @ (probability - targets) + held * (found - middle)
        bend = (moves * (probability * (1 - probability))[:, None]).T @ moves
        step = np.linalg.solve(bend + (held + 1e-10) * np.eye(len(bend)), slope)
        size = 1.0
        while size > 1e-9 and cost(found - size * step) > loss:
            size /= 2
        before, found = loss, found - size * step
        loss = cost(found)
        if before - loss <= 1e-13 * max(loss, 1.0):
            break
    return found


def _loss(logits: Floats, targets: Floats) -> float:
    return float((np.logaddexp(0, logits) - targets * logits).sum())


def log_loss(probabilities: Floats, positive: Bools) -> float:
    """Mean log loss; a score counts as at least 1 / (2 n) away from 0 and 1."""
    edge = 0.5 / max(len(positive), 1)
    inside = np.clip(probabilities, edge, 1 - edge)
    return float(-np.where(positive, np.log(inside), np.log1p(-inside)).mean())


FITS = {"platt": _platt, "isotonic": _isotonic, "temperature": _temperature}
