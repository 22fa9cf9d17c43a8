"""Scores against labels: joined by image and class name, masked, measured, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np

from lingula.scores import metrics
from lingula.scores.intervals import benjamini_hochberg, holm, interval, mean_by_draw, p_value
from lingula.scores.joining import (
    Joined,
    join_labels,
    join_several,
    rows_to_measure,
    select_classes,
)
from lingula.scores.predictions import Predictions
from lingula.scores.results import Comparison, Evaluation
from lingula.scores.subgroups import DECADES, bootstrap_joined, measure_subgroups
from lingula.scores.thresholds import FALLBACK, measure_operating
from lingula.settings.config import Data
from lingula.settings.label_space import canonical, fold, group_by_prevalence
from lingula.system.errors import InputError, examples, nearest
from lingula.tables.configured import Meaning, configured_targets
from lingula.tables.table import Table, rows_of, subset

PAIRS = 2000  # draws of a comparison where no number is given


@dataclass(frozen=True)
class Setting:
    """Options of an evaluation.

    Attributes:
        thresholds: the score from which a class is found: one for all classes, or one
            for each (0.5 for classes that have none of their own).
        fuse: how a study's images become one: see `joining.image_weights`.
        subgroups: columns of the table, or classes, by which to measure apart as well.
        age_edges: first years of the age bands but the first.
    """

    thresholds: float | Mapping[str, float] = 0.5
    fuse: str = "mean"
    subgroups: Sequence[str] = ()
    age_edges: Sequence[int] = DECADES


def evaluate_predictions(
    predictions: Predictions,
    table: Table,
    *,
    split: str | None = None,
    by: Literal["image", "study"] = "image",
    ci: int = 0,
    seed: int = 0,
    against: Predictions | None = None,
    uncertain: Literal["ignore", "zero", "one"] = "ignore",
    blank: Literal["ignore", "zero"] | None = None,
    unmentioned: Literal["ignore", "zero"] = "ignore",
    limits: tuple[float, float] = (0.10, 0.01),
    setting: Setting | None = None,
) -> Evaluation:
    """Measure predictions against a table, on the classes that both have.

    Args:
        predictions: scores; rows beyond the chosen ones are ignored and counted.
        table: labels.
        split: only the table's rows of this split; None: all (of the splits that the scores
            cover, where they don't cover the whole table).
        by: `study` makes one row of a study's images; a class is present if any says so.
        ci: bootstrap draws by patient; 0 for no intervals.
        seed: of the bootstrap.
        against: other scores of the same images; the difference of the mAPs, in pairs.
        uncertain: what uncertain cells count as.
        blank: what blank cells count as; None is what the table says.
        unmentioned: what cells of classes that their source does not know count as.
        limits: prevalences above which a class is head and below which it is tail.
        setting: thresholds, fusion of studies, subgroups; None: the defaults of `Setting`.

    Raises:
        InputError: images of the table without a row of scores, no class in common, a column
            that the table does not have.
    """
    setting, meaning = setting or Setting(), Meaning(uncertain, blank, unmentioned)
    if by not in ("image", "study") or ci < 0:
        raise InputError(f"by is image or study and ci a number of draws, not {by!r} and {ci}.")
    part = rows_to_measure(predictions, table, split)
    joined, lost = join_labels(predictions, part, by, meaning, fuse=setting.fuse)
    arrays = (joined.probabilities, joined.targets, joined.mask)
    ranked = metrics.rank_classes(*arrays)
    found = metrics.measure_classes(*arrays, ranked=ranked)
    tiers, tiers_from = _group_classes(table, joined, found, meaning, limits)
    known = (*predictions.classes, *part.space.classes)
    thresholds, by_default = _match_thresholds(joined.classes, setting.thresholds, known)
    subgroups = partial(measure_subgroups, joined, part, by=by, draws=ci, seed=seed)
    several = () if against is None else (predictions, against)
    pair = join_several(several, part, by, meaning, setting.fuse)
    return Evaluation(
        classes=joined.classes,
        metrics=found,
        n=len(joined.probabilities),
        by=by,
        groups=tiers,
        groups_from=tiers_from,
        failed=lost,
        unlabelled=_exclude(predictions.classes, joined.classes),
        unscored=_exclude(part.space.classes, joined.classes),
        ignored_rows=len(predictions) - len(part),
        masked=joined.masked,
        splits=() if len(part) == len(table) else tuple(sorted(set(part.splits or ()))),
        differing=joined.differing,
        draws=bootstrap_joined(joined, ci, seed, ranked=ranked) if ci else None,
        drawn="patients" if joined.patients is not None else "images" if by == "image" else by,
        against=_compare(pair, draws=ci or PAIRS, seed=seed) if pair else None,
        operating=measure_operating(*arrays, thresholds, ranked),
        by_default=by_default,
        fuse=setting.fuse,
        subgroups=tuple(
            subgroups(column, age_edges=setting.age_edges, meaning=meaning)
            for column in dict.fromkeys(setting.subgroups)
        ),
    )


def _exclude(classes: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    """The classes that are not among the others, in whatever spelling."""
    known = {fold(name) for name in others}
    return tuple(name for name in classes if fold(name) not in known)


def _match_thresholds(
    classes: tuple[str, ...], given: float | Mapping[str, float], known: Sequence[str]
) -> tuple[metrics.Floats, tuple[str, ...]]:
    """One threshold per class, by name, and the classes that have none of their own.

    Raises `InputError` for one outside [0, 1] (one just above 1 calls nothing), for a name that is
    none of the `known` classes', and for two thresholds of one class.
    """
    if not isinstance(given, Mapping):
        given = dict.fromkeys(classes, given)
    names = {fold(name) for name in known}
    by_name: dict[str, float] = {}
    for name, value in given.items():
        key = fold(canonical(name))
        if key not in names:
            raise InputError(
                f"There is a threshold for '{name}', which neither the scores nor the table have."
                f"{nearest(name, known)} Fix the name, or drop it."
            )
        if key in by_name:
            raise InputError(f"There are two thresholds for '{name}', in two spellings. Keep one.")
        if not 0 <= value <= np.nextafter(1, 2):
            raise InputError(f"The threshold of '{name}' must be in [0, 1], not {value}.")
        by_name[key] = value
    found = np.array([by_name.get(fold(name), FALLBACK) for name in classes])
    return found, tuple(name for name in classes if fold(name) not in by_name)


def worst_classes(result: Evaluation, k: int) -> tuple[str, ...]:
    """The `k` classes with the lowest AP, lowest first; ties in the order of the classes.

    Classes without positives have no AP and are not chosen.
    """
    ranked = np.argsort(result.metrics.ap, kind="stable")  # NaN goes last
    return tuple(result.classes[i] for i in ranked[:k] if not np.isnan(result.metrics.ap[i]))


def compare_predictions(
    first: Predictions,
    second: Predictions,
    table: Table,
    *,
    split: str | None = None,
    meaning: Data | Meaning | None = None,
    draws: int = PAIRS,
    seed: int = 0,
) -> Comparison:
    """The first scores minus the second on the table's rows, in paired draws by patient.

    Raises `InputError` where one of them has no row for an image, or no class is in both.
    """
    part = rows_to_measure(first, table, split)
    pair = join_several((first, second), part, "image", meaning or Meaning(), "mean")
    return _compare(pair, draws=draws, seed=seed)


def _compare(pair: Sequence[Joined], *, draws: int, seed: int) -> Comparison:
    """The first minus the second, on the classes that both have; both have the same draws."""
    ours, theirs = pair
    common = tuple(name for name in ours.classes if name in theirs.classes)
    if not common:
        raise InputError(
            "The scores compared have no class in common: one has "
            f"{examples(ours.classes)}, the other {examples(theirs.classes)}."
        )
    ours, theirs = select_classes(ours, common), select_classes(theirs, common)
    # Rows are the same, so patients are too, even where only one file knows them.
    patients = ours.patients or theirs.patients
    sides = [replace(side, patients=patients) for side in (ours, theirs)]
    point = [metrics.measure_classes(j.probabilities, j.targets, j.mask) for j in sides]
    every = np.ones(len(common), dtype=bool)
    drawn = [bootstrap_joined(side, draws, seed).ap for side in sides]
    means = mean_by_draw(drawn[0], every) - mean_by_draw(drawn[1], every)
    gaps = drawn[0] - drawn[1]
    p = np.array([p_value(gaps[:, k]) for k in range(len(common))])
    return Comparison(
        difference=point[0].mAP - point[1].mAP,
        ci=interval(means),
        p=p_value(means),
        n=len(ours.targets),
        classes=common,
        ap=point[0].ap - point[1].ap,
        ap_ci=tuple(interval(gaps[:, k]) for k in range(len(common))),
        p_by_class=p,
        holm=holm(p),
        bh=benjamini_hochberg(p),
        draws=draws,
    )


def _group_classes(
    table: Table,
    joined: Joined,
    found: metrics.Classwise,
    meaning: Meaning,
    limits: tuple[float, float],
) -> tuple[Mapping[str, tuple[str, ...]], str]:
    """Head, medium, tail from the table's train split if it has one, else from these labels."""
    rows = rows_of(table, "train")
    positives, total, where = found.positives, len(joined.probabilities), "these labels"
    if len(rows):
        values, mask = configured_targets(meaning, subset(table, rows))
        columns = [table.space.index(name) for name in joined.classes]
        positives = ((values >= 0.5) & mask).sum(axis=0)[columns]
        total, where = len(rows), "the table's train split"
    by_name = {name: int(n) for name, n in zip(joined.classes, positives, strict=True)}
    return group_by_prevalence(by_name, total, *limits), where
