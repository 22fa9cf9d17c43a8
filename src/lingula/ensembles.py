"""Ensembles on scores files (paper section 2.2): the model-wise mean and the class-wise choice.

Members are joined by image and class name, never by position. What was chosen on dev is kept by
name and only applied elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lingula import metrics
from lingula.errors import InputError, examples, nearest
from lingula.predictions import Predictions, aligned, class_columns, picked

Weights = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Ensemble:
    """A rule's outcome: for each class the weight of each member, which sum to one.

    `dev_ap` is {class: {member: AP on dev, or None}}; empty for a rule that looks at no labels.
    """

    rule: str
    members: tuple[str, ...]
    weights: Weights
    dev_ap: Mapping[str, Mapping[str, float | None]]


def model_wise(members: Mapping[str, Predictions]) -> Ensemble:
    """Every member with the same weight for every class."""
    first = _first(members)
    share = {name: 1 / len(members) for name in members}
    return Ensemble("model-wise", tuple(members), dict.fromkeys(first.classes, share), {})


def class_wise(
    members: Mapping[str, Predictions],
    targets: NDArray[np.float32],
    mask: NDArray[np.bool_],
    top_k: int = 3,
) -> Ensemble:
    """For each class the plain mean of the `top_k` members with the best AP on dev.

    Args:
        members: dev scores by name, all with the rows and classes of the targets, in that order.
        targets: (N, K) dev labels.
        mask: (N, K) known cells.
        top_k: members a class; all of them if there are fewer.

    Equal APs are settled by the order of the members. A class without positives on dev falls back
    to the plain mean of all members.
    """
    first = _first(members)
    found = np.array(
        [metrics.classwise(p.probabilities, targets, mask).ap for p in members.values()]
    )
    names = tuple(members)
    weights: dict[str, Mapping[str, float]] = {}
    dev_ap: dict[str, Mapping[str, float | None]] = {}
    for k, class_name in enumerate(first.classes):
        column = found[:, k]
        known = not np.isnan(column).any()
        best = np.argsort(-column, kind="stable")[:top_k] if known else np.arange(len(names))
        weights[class_name] = {names[i]: 1 / len(best) for i in sorted(best)}
        dev_ap[class_name] = {
            name: float(ap) if known else None for name, ap in zip(names, column, strict=True)
        }
    return Ensemble("class-wise", names, weights, dev_ap)


def same_rows(members: Mapping[str, Predictions]) -> dict[str, Predictions]:
    """The members with the first one's rows and classes, in its order.

    Raises `InputError` naming the file for missing or extra images and classes.
    """
    first = _first(members)
    result = {}
    for name, member in members.items():
        rows = aligned(member, first.images, first.ids)
        extra = set(range(len(member))) - set(rows.tolist())
        if extra:
            left = [member.images[i] for i in sorted(extra)]
            raise InputError(
                f"{member.origin} has images that {first.origin} lacks: {examples(left)}."
            )
        columns = class_columns(member, first.classes)
        if len(member.classes) > len(columns):
            left = [c for k, c in enumerate(member.classes) if k not in set(columns.tolist())]
            raise InputError(
                f"{member.origin} has classes that {first.origin} lacks: {examples(left)}."
            )
        part = picked(member, rows)
        result[name] = Predictions(
            first.classes,
            first.images,
            part.probabilities[:, columns],
            first.ids,
            first.studies,
            first.patients,
            member.origin,
        )
    return result


def apply(ensemble: Ensemble, members: Mapping[str, Predictions]) -> Predictions:
    """The ensemble's scores of its members' images, in the first member's order.

    An image that failed in any member fails in the result.
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
    first = _first(alike)
    class_columns(first, tuple(ensemble.weights))
    mixed = np.zeros_like(first.probabilities)
    for k, class_name in enumerate(first.classes):
        if class_name not in ensemble.weights:
            raise InputError(f"The ensemble knows nothing of '{class_name}' ({first.origin}).")
        for name, weight in ensemble.weights[class_name].items():
            mixed[:, k] += weight * alike[name].probabilities[:, k]
    lost = np.any([np.isnan(p.probabilities).any(1) for p in alike.values()], axis=0)
    mixed[lost] = np.nan
    # A mean of numbers in [0, 1] may leave it by a rounding.
    return Predictions(
        first.classes,
        first.images,
        mixed.clip(0, 1),
        first.ids,
        first.studies,
        first.patients,
        "the ensemble",
    )


def _first(members: Mapping[str, Predictions]) -> Predictions:
    if not members:
        raise InputError("An ensemble needs at least one member.")
    return next(iter(members.values()))


def to_json(ensemble: Ensemble) -> dict[str, Any]:
    """The ensemble as plain values, for `ensemble.json`."""
    return {
        "format": 1,
        "rule": ensemble.rule,
        "members": list(ensemble.members),
        "weights": {name: dict(weights) for name, weights in ensemble.weights.items()},
        "dev_ap": {name: dict(found) for name, found in ensemble.dev_ap.items()},
    }


def from_json(value: Mapping[str, Any], where: str) -> Ensemble:
    """The ensemble that `to_json` wrote; `InputError` naming `where` for anything else."""
    try:
        if value["format"] != 1:
            raise InputError(f"{where} has format {value['format']}; this version reads 1.")
        return Ensemble(
            value["rule"], tuple(value["members"]), value["weights"], value.get("dev_ap", {})
        )
    except (KeyError, TypeError):
        raise InputError(f"{where} is no ensemble made by `lingula ensemble`.") from None
