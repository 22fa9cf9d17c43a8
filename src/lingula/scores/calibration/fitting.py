"""Calibration of scores a class, fitted on dev and kept by class name; without torch.

Every map is monotone, so ranking metrics stay (isotonic maps may tie scores). A class with few
positives leans on a map of all classes together; one without any is left as it is, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lingula.scores.curves import (
    FITS,
    Bools,
    Curve,
    calibrated,
    log_loss,
    logistic,
    logit,
    smoothed,
)
from lingula.scores.joining import Joined
from lingula.scores.metrics import Floats
from lingula.scores.predictions import Predictions, class_columns
from lingula.scores.thresholds import Rule, Threshold, threshold
from lingula.system.errors import InputError, examples, nearest

METHODS = ("platt", "isotonic", "temperature", "auto")
FEW = 20  # positives (or negatives) below which a class's own map is held to that of all classes
HARDLY = 5  # below which it is that of all classes
FOLDS = 5


@dataclass(frozen=True)
class ClassCalibration:
    """A class's map and thresholds, and what dev had for them.

    `log_loss` holds the mean log loss on dev: `raw`, and `calibrated` on patients that the map was
    not fitted on; None where that can't be told.
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


def fit_curve(
    method: str,
    scores: Floats,
    positive: Bools,
    pooled: tuple[float, float],
    groups: NDArray[Any],
    *,
    where: str = "on dev",
) -> Curve:
    """A class's map from its known dev rows.

    Args:
        method: one of `METHODS`.
        scores: (n,) raw probabilities.
        positive: (n,).
        pooled: slope and shift of all classes (`fit_pooled`).
        groups: (n,) whole numbers; rows of one patient have the same. Used by `auto` alone.
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
    slope, shift = pooled
    if least < HARDLY:
        note = f"{least} {kind} {where}: the map of all classes together"
        return Curve("logistic", "pooled", slope, shift, note=note)
    if least < FEW:
        note = f"{least} {kind} {where}: held to the map of all classes together"
        shifted = method != "temperature"
        found = logistic(logit(scores), smoothed(positive), pooled, shifted=shifted)
        name = "platt" if shifted else method
        return Curve("logistic", f"{name} with prior", *found, note=note)
    if method == "auto":
        method = _least_loss(scores, positive, pooled, groups)
    return FITS[method](scores, positive, pooled)


def crossfitted_loss(
    method: str,
    scores: Floats,
    positive: Bools,
    pooled: tuple[float, float],
    groups: NDArray[Any],
) -> float | None:
    """Log loss of maps that are fitted on other groups; None if a fold can't be fitted."""
    names, place = np.unique(groups, return_inverse=True)
    parts = min(FOLDS, len(names))
    if parts < 2:
        return None
    fold = (np.random.default_rng(0).permutation(len(names)) % parts)[place]
    found = np.empty(len(scores))
    for number in range(parts):
        here = fold == number
        curve = fit_curve(method, scores[~here], positive[~here], pooled, groups[~here])
        found[here] = calibrated(curve, scores[here])
    return log_loss(found, positive)


def _least_loss(
    scores: Floats, positive: Bools, pooled: tuple[float, float], groups: NDArray[Any]
) -> str:
    """The method with the least cross-fitted log loss; the plainer one where they are equal."""
    losses = {
        name: crossfitted_loss(name, scores, positive, pooled, groups)
        for name in ("platt", "temperature", "isotonic")
    }
    return min(losses, key=lambda name: _or_worst(losses[name]))


def _or_worst(loss: float | None) -> float:
    return float("inf") if loss is None else loss


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
    found = logistic(logit(scores[cells]), smoothed(positive[cells]), None, shifted=shifted)
    return found if found[0] > 0 else (1.0, 0.0)


def fit_calibration(
    joined: Joined,
    groups: NDArray[Any],
    method: str,
    rules: Sequence[Rule],
    *,
    where: str = "on dev",
) -> Calibration:
    """Maps and thresholds of all classes, from dev rows with their labels.

    `groups` (N,): rows of one patient have the same number. `method` is one of `METHODS`. `where`
    the rows are is said in the notes.
    """
    labels = joined.targets >= 0.5
    pooled = fit_pooled(joined.probabilities, labels, joined.mask, shifted=method != "temperature")
    found: dict[str, ClassCalibration] = {}
    for k, name in enumerate(joined.classes):
        rows = np.flatnonzero(joined.mask[:, k])
        scores, positive, group = joined.probabilities[rows, k], labels[rows, k], groups[rows]
        curve = fit_curve(method, scores, positive, pooled, group, where=where)
        mapped = calibrated(curve, scores)
        many = int(positive.sum())
        losses: dict[str, float | None] = {"raw": None, "calibrated": None}
        if curve.kind != "identity":
            losses["raw"] = log_loss(scores, positive)
            losses["calibrated"] = crossfitted_loss(method, scores, positive, pooled, group)
        chosen = {
            rule.name: threshold(rule, scores, mapped, positive, where=where) for rule in rules
        }
        found[name] = ClassCalibration(curve, many, len(rows) - many, chosen, losses)
    return Calibration(method, found, pooled)


def group_numbers(patients: Sequence[str] | None, rows: int) -> NDArray[np.intp]:
    """(N,) a number a patient; rows without one stand for themselves."""
    names = patients or ("",) * rows
    keys = [name or f"\0{row}" for row, name in enumerate(names)]
    return np.asarray(np.unique(keys, return_inverse=True)[1], dtype=np.intp)


def apply_curves(calibration: Calibration, predictions: Predictions) -> Predictions:
    """Calibrated scores: rows and classes as in the raw ones; failed images stay failed.

    Raises `InputError` naming classes that the calibration has not.
    """
    known = {name: item.curve for name, item in calibration.classes.items()}
    absent = [name for name in predictions.classes if name not in known]
    if absent:
        raise InputError(
            f"The calibration knows nothing of {examples(absent)}, which {predictions.origin} "
            f"scores.{nearest(absent[0], known)} Fit it on scores of the same classes."
        )
    columns = [
        calibrated(known[name], predictions.probabilities[:, k])
        for k, name in enumerate(predictions.classes)
    ]
    return replace(predictions, probabilities=np.stack(columns, axis=1))


def flagged(
    calibration: Calibration, predictions: Predictions, rule: str, *, scale: str = "score"
) -> Bools:
    """(N, K) whether scores reach the class's threshold, of the calibration's K classes in order.

    `scale` is `score` for raw predictions and `calibrated` for calibrated ones. Failed images are
    never flagged; tell them apart by `predictions.failed`.
    """
    columns = class_columns(predictions, tuple(calibration.classes))
    limits = []
    for name, item in calibration.classes.items():
        if rule not in item.thresholds:
            raise InputError(
                f"'{name}' has no threshold '{rule}'. There are {', '.join(item.thresholds)}."
            )
        limits.append(getattr(item.thresholds[rule], scale))
    with np.errstate(invalid="ignore"):
        return np.asarray(predictions.probabilities[:, columns] >= np.array(limits), dtype=bool)


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
                "curve": _curve_json(item.curve),
                "thresholds": {rule: asdict(found) for rule, found in item.thresholds.items()},
                "log_loss": dict(item.log_loss),
            }
            for name, item in calibration.classes.items()
        },
    }


def _curve_json(curve: Curve) -> dict[str, Any]:
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
        classes = {str(name): _class_from(item) for name, item in value["classes"].items()}
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


def _class_from(item: Any) -> ClassCalibration:
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
