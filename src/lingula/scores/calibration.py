"""Calibration: a map of probabilities and thresholds for each class, fitted on dev; without torch.

Every map is monotone, so ranking metrics stay (isotonic maps may tie scores). A class with few
positives leans on a map of all classes together; one without any is left as it is, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lingula.scores.intervals import fold_numbers, unit_names
from lingula.scores.joining import Joined
from lingula.scores.metrics import Floats
from lingula.scores.predictions import Predictions
from lingula.scores.thresholds import Rule, Threshold, choose_threshold
from lingula.system.errors import InputError, examples, nearest

METHODS = ("platt", "isotonic", "temperature", "auto")
FEW = 20  # positives (or negatives) below which a class's own map is pulled to that of all classes
HARDLY = 5  # below which it is that of all classes
FOLDS = 5
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


@dataclass(frozen=True)
class ClassCalibration:
    """One class's map and thresholds, and what dev had for them.

    `log_loss` has the mean log loss on dev: `raw`, and `calibrated` on patients that the map was
    not fitted on; None where that is not known.
    """

    curve: Curve
    positives: int
    negatives: int
    thresholds: Mapping[str, Threshold]
    log_loss: Mapping[str, float | None]


@dataclass(frozen=True)
class Calibration:
    """Maps and thresholds by class name; `pooled` is (slope, shift) of all classes together."""

    method: str
    classes: Mapping[str, ClassCalibration]
    pooled: tuple[float, float]


def logit(probabilities: Floats) -> Floats:
    """The logit; 0 and 1 count as the nearest numbers inside."""
    inside = np.clip(probabilities, np.nextafter(0, 1), np.nextafter(1, 0))
    return np.asarray(np.log(inside) - np.log1p(-inside), dtype=np.float64)


def expit(values: Floats) -> Floats:
    """The probability of a logit, without overflow."""
    small = np.exp(-np.abs(values))
    return np.where(values >= 0, 1 / (1 + small), small / (1 + small))


def apply_curve(curve: Curve, probabilities: Floats) -> Floats:
    """A class's probabilities under its map; NaN stays NaN."""
    if curve.kind == "identity":
        return np.asarray(probabilities, dtype=np.float64)
    if curve.kind == "logistic":
        return expit(curve.slope * logit(probabilities) + curve.shift)
    found = np.interp(probabilities, curve.x, curve.y)
    return np.where(np.isnan(probabilities), np.nan, found)


def apply_curves(calibration: Calibration, predictions: Predictions) -> Predictions:
    """Calibrated scores: rows and classes as in the raw ones; failed images stay failed.

    Raises `InputError` naming classes that the calibration does not have.
    """
    known = {name: item.curve for name, item in calibration.classes.items()}
    absent = [name for name in predictions.classes if name not in known]
    if absent:
        raise InputError(
            f"The calibration knows nothing of {examples(absent)}, which {predictions.origin} "
            f"scores.{nearest(absent[0], known)} Fit it on scores of the same classes."
        )
    columns = [
        apply_curve(known[name], predictions.probabilities[:, k])
        for k, name in enumerate(predictions.classes)
    ]
    return replace(predictions, probabilities=np.stack(columns, axis=1))


def fit_calibration(
    joined: Joined, method: str, rules: Sequence[Rule], *, where: str = "on dev"
) -> Calibration:
    """Maps (`METHODS`) and thresholds of all classes, from dev rows with their labels.

    `where` the rows are is said in the notes.
    """
    labels = joined.targets >= 0.5
    units = np.unique(unit_names(joined.patients, range(len(labels))), return_inverse=True)[1]
    pooled = fit_pooled(joined.probabilities, labels, joined.mask, shifted=method != "temperature")
    found: dict[str, ClassCalibration] = {}
    for k, name in enumerate(joined.classes):
        rows = np.flatnonzero(joined.mask[:, k])
        scores, positive, unit = joined.probabilities[rows, k], labels[rows, k], units[rows]
        curve = fit_curve(method, scores, positive, pooled, unit, where=where)
        mapped = apply_curve(curve, scores)
        many = int(positive.sum())
        losses: dict[str, float | None] = {"raw": None, "calibrated": None}
        if curve.kind != "identity":
            losses["raw"] = log_loss(scores, positive)
            losses["calibrated"] = cross_fit_loss(method, scores, positive, pooled, unit)
        chosen = {
            rule.name: choose_threshold(rule, scores, mapped, positive, where=where)
            for rule in rules
        }
        found[name] = ClassCalibration(curve, many, len(rows) - many, chosen, losses)
    return Calibration(method, found, pooled)


def fit_pooled(
    scores: Floats, positive: Bools, mask: Bools, *, shifted: bool = True
) -> tuple[float, float]:
    """Slope and shift of all known cells (N, K) of classes that have both labels.

    (1, 0) without any such class, and where scores fall as labels rise. Not `shifted`: the slope
    alone, the inverse of one temperature.
    """
    having = np.asarray((positive & mask).any(axis=0) & (~positive & mask).any(axis=0))
    cells = mask & having[None, :]
    if not cells.any():
        return 1.0, 0.0
    found = fit_logistic(logit(scores[cells]), smooth_targets(positive[cells]), shifted=shifted)
    return found if found[0] > 0 else (1.0, 0.0)


def fit_curve(
    method: str,
    scores: Floats,
    positive: Bools,
    pooled: tuple[float, float],
    units: NDArray[Any],
    *,
    where: str = "on dev",
) -> Curve:
    """A class's map from its known dev rows.

    Args:
        method: one of `METHODS`.
        scores: (n,) raw probabilities.
        positive: (n,).
        pooled: slope and shift of all classes (`fit_pooled`).
        units: (n,) rows of one patient have the same. Used by `auto` alone.
        where: what rows these are, for the note.

    With fewer than `FEW` positives or negatives, slope and shift (`temperature`: the slope) have a
    normal prior about those of all classes; with fewer than `HARDLY` they are those; with none the
    scores stay as they are.
    """
    positives = int(positive.sum())
    least = min(positives, len(positive) - positives)
    kind = "positives" if positives == least else "negatives"
    if least == 0:
        return Curve("identity", "identity", note=f"no {kind} {where}: scores are left as they are")
    if least < HARDLY:
        note = f"{least} {kind} {where}: the map of all classes together"
        return Curve("logistic", "pooled", *pooled, note=note)
    if least < FEW:
        shifted = method != "temperature"
        found = fit_logistic(logit(scores), smooth_targets(positive), pooled, shifted=shifted)
        note = f"{least} {kind} {where}: pulled to the map of all classes together"
        name = "platt" if shifted else method
        return Curve("logistic", f"{name} with prior", *found, note=note)
    if method == "auto":
        method = _choose_method(scores, positive, pooled, units)
    if method == "isotonic":
        return fit_isotonic(scores, positive)
    shifted = method == "platt"
    targets = smooth_targets(positive) if shifted else positive.astype(float)
    found = fit_logistic(logit(scores), targets, shifted=shifted)
    if found[0] > 0:
        return Curve("logistic", method, *found)
    # A falling map would turn the ranking round.
    found = fit_logistic(logit(scores), targets, pooled, shifted=shifted)
    note = "scores fall where labels rise: pulled to the map of all classes"
    return Curve("logistic", f"{method} with prior", *found, note=note)


def fit_isotonic(scores: Floats, positive: Bools) -> Curve:
    """The rising steps with the least squared error."""
    from scipy.optimize import isotonic_regression  # takes a while to import

    values, place, size = np.unique(scores, return_inverse=True, return_counts=True)
    share = np.bincount(place, weights=positive.astype(float)) / size
    found = isotonic_regression(share, weights=size)
    starts, ends = found.blocks[:-1], found.blocks[1:] - 1
    kept = np.unique(np.concatenate([starts, ends]))
    heights = np.clip(found.x[kept], 0, 1)
    return Curve("steps", "isotonic", x=tuple(values[kept].tolist()), y=tuple(heights.tolist()))


def smooth_targets(positive: Bools) -> Floats:
    """Platt's targets: one more row of each kind is imagined, so that no map is a step."""
    many = int(positive.sum())
    return np.where(positive, (many + 1) / (many + 2), 1 / (len(positive) - many + 2))


def fit_logistic(
    logits: Floats,
    targets: Floats,
    prior: tuple[float, float] | None = None,
    *,
    shifted: bool = True,
) -> tuple[float, float]:
    """Slope and shift with the least log loss; not `shifted`: the slope alone.

    With a `prior`, log slope and shift have a normal one about it, so the slope is above zero.
    Logits are kept within +-30: what lies beyond them is no evidence.
    """
    from scipy.optimize import minimize  # takes a while to import

    inside = np.clip(logits, -30, 30)
    columns = np.stack([inside, np.ones(len(inside))] if shifted else [inside], axis=1)
    size = columns.shape[1]
    centre = None if prior is None else np.array([np.log(prior[0]), prior[1]])[:size]

    def loss(at: Floats) -> tuple[float, Floats]:
        """The log loss, with that of the prior, and its gradient."""
        factors = at.copy()
        if centre is not None:
            factors[0] = np.exp(at[0])
        moved = columns @ factors
        value = float((np.logaddexp(0, moved) - targets * moved).sum())
        gradient = columns.T @ (expit(moved) - targets)
        if centre is not None:
            gradient[0] *= factors[0]
            value += float(((at - centre) ** 2).sum()) / PRIOR**2 / 2
            gradient = gradient + (at - centre) / PRIOR**2
        return value, gradient

    start = np.array([1.0, 0.0])[:size] if centre is None else centre
    found = minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-8}).x
    slope = float(found[0]) if centre is None else float(np.exp(found[0]))
    return slope, float(found[1]) if shifted else 0.0


def log_loss(probabilities: Floats, positive: Bools) -> float:
    """Mean log loss; a score counts as at least 1 / (2 n) away from 0 and 1."""
    edge = 0.5 / max(len(positive), 1)
    inside = np.clip(probabilities, edge, 1 - edge)
    return float(-np.where(positive, np.log(inside), np.log1p(-inside)).mean())


def cross_fit_loss(
    method: str, scores: Floats, positive: Bools, pooled: tuple[float, float], units: NDArray[Any]
) -> float | None:
    """Log loss of maps that are fitted on other units; None if there are no two of them."""
    fold_of_row = fold_numbers(units, FOLDS, 0)
    if not fold_of_row.any():
        return None
    found = np.empty(len(scores))
    for fold in range(int(fold_of_row.max()) + 1):
        here = fold_of_row == fold
        curve = fit_curve(method, scores[~here], positive[~here], pooled, units[~here])
        found[here] = apply_curve(curve, scores[here])
    return log_loss(found, positive)


def _choose_method(
    scores: Floats, positive: Bools, pooled: tuple[float, float], units: NDArray[Any]
) -> str:
    """The method with the least cross-fitted log loss; the plainer one where they are equal."""

    def loss(name: str) -> float:
        found = cross_fit_loss(name, scores, positive, pooled, units)
        return float("inf") if found is None else found

    return min(("platt", "temperature", "isotonic"), key=loss)


def to_json(calibration: Calibration) -> dict[str, Any]:
    """The calibration as plain values, for `calibration.json`."""
    return {
        "format": 1,
        "kind": "calibration",
        "method": calibration.method,
        "pooled": {"slope": calibration.pooled[0], "shift": calibration.pooled[1]},
        "classes": {
            name: {
                "positives": item.positives,
                "negatives": item.negatives,
                "curve": _curve_to_json(item.curve),
                "thresholds": {rule: asdict(found) for rule, found in item.thresholds.items()},
                "log_loss": dict(item.log_loss),
            }
            for name, item in calibration.classes.items()
        },
    }


def _curve_to_json(curve: Curve) -> dict[str, Any]:
    numbers: dict[str, Any] = {"slope": curve.slope, "shift": curve.shift}
    if curve.kind == "steps":
        numbers = {"x": list(curve.x), "y": list(curve.y)}
    start = {"kind": curve.kind, "method": curve.method}
    return start | ({} if curve.kind == "identity" else numbers) | {"note": curve.note}


def from_json(value: Any, where: str) -> Calibration:
    """The calibration that `to_json` wrote; `InputError` naming `where` for anything else."""
    try:
        if value["kind"] != "calibration":
            raise KeyError("kind")
        if value["format"] != 1:
            raise InputError(f"{where} has format {value['format']}; this version reads 1.")
        classes = {str(name): _class_from_json(item) for name, item in value["classes"].items()}
        pooled = float(value["pooled"]["slope"]), float(value["pooled"]["shift"])
        made = Calibration(str(value["method"]), classes, pooled)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(
            f"{where} is no calibration made by `lingula calibrate`, or it is damaged."
        ) from None
    for name, item in made.classes.items():
        curve = item.curve
        rising = np.all(np.diff(curve.x) > 0) and np.all(np.diff(curve.y) >= 0)
        whole = curve.kind == "identity" or (curve.kind == "logistic" and curve.slope > 0)
        if curve.kind == "steps":
            inside = [0 <= number <= 1 for number in (*curve.x, *curve.y)]
            whole = len(curve.x) == len(curve.y) > 0 and bool(rising) and all(inside)
        if not whole or not np.isfinite((curve.slope, curve.shift)).all():
            raise InputError(f"{where} is damaged: the map of '{name}' does not rise from 0 to 1.")
    return made


def _class_from_json(item: Any) -> ClassCalibration:
    curve = item["curve"]
    return ClassCalibration(
        Curve(
            str(curve["kind"]),
            str(curve["method"]),
            float(curve.get("slope", 1.0)),
            float(curve.get("shift", 0.0)),
            tuple(float(number) for number in curve.get("x", ())),
            tuple(float(number) for number in curve.get("y", ())),
            str(curve["note"]),
        ),
        int(item["positives"]),
        int(item["negatives"]),
        {str(rule): Threshold(**found) for rule, found in item["thresholds"].items()},
        dict(item["log_loss"]),
    )
