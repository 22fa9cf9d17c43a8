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

from lingula.scores import metrics
from lingula.scores.predictions import Predictions, aligned, class_columns, failed, picked
from lingula.system.errors import InputError, examples, nearest

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
        members: dev scores by name, all with the rows and classes of the targets, in that order
            (`same_rows`). Images that failed in any member count for none of them.
        targets: (N, K) dev labels; at least 0.5 is positive.
        mask: (N, K) known cells.
        top_k: members a class; all of them if there are fewer.

    Equal APs are settled by the order of the members. A class without positives on dev falls back
    to the plain mean of all members. Raises `InputError` for `top_k` below 1 and for members that
    differ in rows or classes.
    """
    first = _first(members)
    if top_k < 1:
        raise InputError(f"top_k is the number of members a class: at least 1, not {top_k}.")
    for name, member in members.items():
        if (member.images, member.classes) != (first.images, first.classes):
            raise InputError(
                f"Member '{name}' ({member.origin}) has not the rows and classes of "
                f"{first.origin}, in that order."
            )
    whole = ~_lost(members)
    found = np.array(
        [
            metrics.classwise(member.probabilities[whole], targets[whole], mask[whole]).ap
            for member in members.values()
        ]
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
    result: dict[str, Predictions] = {}
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
    first = _first(alike)
    classes = tuple(ensemble.weights)
    columns = class_columns(first, classes)
    unknown = [name for k, name in enumerate(first.classes) if k not in set(columns.tolist())]
    if unknown:
        raise InputError(
            f"{first.origin} has classes that the ensemble was not made for: {examples(unknown)}."
        )
    mixed = np.zeros_like(first.probabilities)
    for k, (class_name, column) in enumerate(zip(classes, columns, strict=True)):
        shares = ensemble.weights[class_name]
        for name in ensemble.members:
            if name in shares:
                mixed[:, k] += shares[name] * alike[name].probabilities[:, column]
    mixed[_lost(alike)] = np.nan
    return Predictions(
        classes,
        first.images,
        mixed.clip(0, 1),  # a mean of numbers in [0, 1] may leave it by a rounding
        first.ids,
        first.studies,
        first.patients,
        "the ensemble",
    )


def failures(members: Mapping[str, Predictions]) -> dict[str, tuple[str, ...]]:
    """The images without scores and the members that lack them, in the first member's order."""
    found: dict[str, tuple[str, ...]] = {}
    lacking = {
        name: {member.images[row] for row in np.flatnonzero(failed(member))}
        for name, member in same_rows(members).items()
    }
    for image in _first(members).images:
        names = tuple(name for name, images in lacking.items() if image in images)
        if names:
            found[image] = names
    return found


def _lost(members: Mapping[str, Predictions]) -> NDArray[np.bool_]:
    """(N,) True for the images that failed in any of the members, which have the same rows."""
    return np.asarray(np.any([failed(member) for member in members.values()], axis=0))


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
        raise InputError(f"{where} is no ensemble made by `lingula ensemble`.") from None
    for name, shares in weights.items():
        odd = [member for member in shares if member not in made.members]
        if odd or not np.isclose(sum(shares.values()), 1) or min(shares.values()) < 0:
            raise InputError(
                f"{where} is damaged: the weights of '{name}' must belong to its members, be at "
                "least 0 and sum to 1."
            )
    return made
