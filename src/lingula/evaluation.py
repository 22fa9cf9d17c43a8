"""Scores against labels: joined by image and class name, masked, measured, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lingula import metrics
from lingula.data.table import Table, rows_of, subset
from lingula.errors import InputError, examples
from lingula.intervals import Draws, bootstrap, interval, mean_by_draw
from lingula.joining import Joined, Meaning, asked, joined_with, meant, with_classes
from lingula.labels import fold, groups
from lingula.predictions import Predictions

Interval = tuple[float, float] | None
FEW = 20  # a class with fewer positives or negatives is marked: its numbers mean little
PAIRS = 1000  # draws of a comparison for which no number was asked


@dataclass(frozen=True)
class Comparison:
    """mAP of the scores minus mAP of the others, over the rows and classes that both have."""

    difference: float
    ci: Interval
    n: int
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Evaluation:
    """What was measured on which rows; `to_json` and `to_text` show it.

    Attributes:
        classes: the classes that both the scores and the table have, in the table's order.
        found: AP, AUROC, positives and known cells of each of them.
        n: rows measured: images, or studies.
        by: `image` or `study`.
        groups: head, medium and tail classes, and `groups_from`: whose prevalences those are.
        failed: images without scores; they are left out.
        unlabelled: classes that only the scores have, and `unscored`: that only the table has.
        ignored_rows: rows of scores that no row of the table was joined to.
        masked: cells that do not count, by their kind.
        splits: the splits measured, if not the whole table.
        differing: cells whose images of one study had different labels.
        draws: the bootstrap, and `drawn`: what was drawn, `patients` or the rows themselves.
        against: the comparison with other scores.
    """

    classes: tuple[str, ...]
    found: metrics.Classwise
    n: int
    by: str
    groups: Mapping[str, tuple[str, ...]]
    groups_from: str
    failed: tuple[str, ...] = ()
    unlabelled: tuple[str, ...] = ()
    unscored: tuple[str, ...] = ()
    ignored_rows: int = 0
    masked: Mapping[str, int] = field(default_factory=dict)
    splits: tuple[str, ...] = ()
    differing: int = 0
    draws: Draws | None = None
    drawn: str = "patients"
    against: Comparison | None = None

    @property
    def few(self) -> tuple[str, ...]:
        """Classes that have an AP, but fewer than `FEW` positives or negatives."""
        positives, known = self.found.positives, self.found.known
        small = (positives > 0) & (np.minimum(positives, known - positives) < FEW)
        return tuple(self.classes[k] for k in np.flatnonzero(small))


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
) -> Evaluation:
    """Measure predictions against a table, on the classes that both have.

    Args:
        predictions: scores; rows beyond the chosen ones are ignored and counted.
        table: labels.
        split: only the table's rows of this split; None: all (of the splits that the scores
            cover, where they don't cover the whole table).
        by: `study` averages the scores of a study's images; a class is present if any says so.
        ci: bootstrap draws by patient; 0 for no intervals.
        seed: of the bootstrap.
        against: other scores of the same images; the difference of the mAPs, in pairs.
        uncertain: what uncertain cells count as.
        blank: what blank cells count as; None is what the table says.
        unmentioned: what cells of classes that their source does not know count as.
        limits: prevalences above which a class is head and below which it is tail.

    Raises:
        InputError: images of the table without a row of scores, or no class in common.
    """
    if by not in ("image", "study") or ci < 0:
        raise InputError(f"by is image or study and ci a number of draws, not {by!r} and {ci}.")
    meaning = Meaning(uncertain, blank, unmentioned)
    part = asked(predictions, table, split)
    joined, lost = joined_with(predictions, part, by, meaning)
    found = metrics.classwise(joined.probabilities, joined.targets, joined.mask)
    tiers, tiers_from = _groups(table, joined, found, meaning, limits)
    ours = {fold(name) for name in joined.classes}
    return Evaluation(
        classes=joined.classes,
        found=found,
        n=len(joined.probabilities),
        by=by,
        groups=tiers,
        groups_from=tiers_from,
        failed=lost,
        unlabelled=tuple(name for name in predictions.classes if fold(name) not in ours),
        unscored=tuple(name for name in part.space.classes if fold(name) not in ours),
        ignored_rows=len(predictions) - len(part),
        masked=joined.masked,
        splits=() if len(part) == len(table) else tuple(sorted(set(part.splits or ()))),
        differing=joined.differing,
        draws=_draws(joined, ci, seed) if ci else None,
        drawn="patients" if joined.patients is not None else "images" if by == "image" else by,
        against=None
        if against is None
        else _compared((predictions, against), part, by, meaning, (ci or PAIRS, seed)),
    )


def worst_classes(result: Evaluation, k: int) -> tuple[str, ...]:
    """The `k` classes with the lowest AP, lowest first; ties in the order of the classes.

    Classes without positives have no AP and are not chosen.
    """
    ranked = np.argsort(result.found.ap, kind="stable")  # NaN goes last
    return tuple(result.classes[i] for i in ranked[:k] if not np.isnan(result.found.ap[i]))


def _draws(joined: Joined, draws: int, seed: int) -> Draws:
    return bootstrap(
        joined.probabilities, joined.targets, joined.mask, joined.patients, draws=draws, seed=seed
    )


def _compared(
    pair: tuple[Predictions, Predictions],
    table: Table,
    by: str,
    meaning: Meaning,
    draws_and_seed: tuple[int, int],
) -> Comparison:
    """Both on the images that neither failed on and the classes that both have; same draws."""
    lost: tuple[str, ...] = ()
    for predictions in (*pair, *pair):  # the second round knows what either lost
        lost = tuple({*lost, *joined_with(predictions, table, "image", meaning, lost)[1]})
    ours, theirs = (joined_with(predictions, table, by, meaning, lost)[0] for predictions in pair)
    common = tuple(name for name in ours.classes if name in theirs.classes)
    if not common:
        raise InputError(f"{pair[1].origin} has none of the classes of {pair[0].origin}.")
    ours, theirs = with_classes(ours, common), with_classes(theirs, common)
    # Rows are the same, so patients are too, even where only one file knows them.
    patients = ours.patients or theirs.patients
    sides = [replace(side, patients=patients) for side in (ours, theirs)]
    point = [metrics.classwise(j.probabilities, j.targets, j.mask).mAP for j in sides]
    every = np.ones(len(common), dtype=bool)
    means = [mean_by_draw(_draws(side, *draws_and_seed).ap, every) for side in sides]
    return Comparison(point[0] - point[1], interval(means[0] - means[1]), len(ours.targets), common)


def _groups(
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
        values, mask = meant(subset(table, rows), meaning)
        columns = [table.space.index(name) for name in joined.classes]
        positives = ((values >= 0.5) & mask).sum(axis=0)[columns]
        total, where = len(rows), "the table's train split"
    by_name = {name: int(n) for name, n in zip(joined.classes, positives, strict=True)}
    return groups(by_name, total, *limits), where


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _pair(values: Interval) -> list[float] | None:
    return None if values is None else [values[0], values[1]]


def to_json(result: Evaluation) -> dict[str, Any]:
    """The evaluation as plain values; what is undefined is null.

    `n_classes` is the number of classes that the mAP is over: those that have an AP. Those that
    have none are in `undefined`. A class without negatives has an AP (1) and no AUROC.
    """
    found, draws = result.found, result.draws
    value: dict[str, Any] = _means(result, np.ones(len(result.classes), dtype=bool))
    value["n"] = result.n
    value["undefined"] = [
        name for name, ap in zip(result.classes, found.ap, strict=True) if np.isnan(ap)
    ]
    if draws is not None:
        value["draws"] = len(draws.ap)
        value["drawn"] = {"what": result.drawn, "n": draws.units}
    if result.against is not None:
        value["against"] = {
            "mAP_difference": _plain(result.against.difference),
            "ci": _pair(result.against.ci),
        }
        if result.against.n != result.n or len(result.against.classes) != len(result.classes):
            value["against"] |= {
                "n": result.against.n,
                "classes": list(result.against.classes),
            }
    value["groups"] = {
        name: {**_means(result, np.isin(result.classes, members)), "classes": list(members)}
        for name, members in result.groups.items()
    }
    value["classes"] = {name: _class(result, k) for k, name in enumerate(result.classes)}
    value["few"] = list(result.few)
    value["by"] = result.by
    value["splits"] = list(result.splits)
    value["groups_from"] = result.groups_from
    value["masked_cells"] = dict(result.masked)
    value["differing_cells"] = result.differing
    value["failed"] = list(result.failed)
    value["left_out"] = {
        "only_in_scores": list(result.unlabelled),
        "only_in_labels": list(result.unscored),
    }
    value["ignored_rows"] = result.ignored_rows
    return value


def _means(result: Evaluation, chosen: NDArray[np.bool_]) -> dict[str, Any]:
    ap, auroc = result.found.ap[chosen], result.found.auroc[chosen]
    value: dict[str, Any] = {
        "mAP": _plain(metrics.mean_defined(ap)),
        "AUROC": _plain(metrics.mean_defined(auroc)),
        "n_classes": int((~np.isnan(ap)).sum()),
    }
    if result.draws is not None:
        value["mAP_ci"] = _pair(interval(mean_by_draw(result.draws.ap, chosen)))
        value["AUROC_ci"] = _pair(interval(mean_by_draw(result.draws.auroc, chosen)))
    return value


def _class(result: Evaluation, k: int) -> dict[str, Any]:
    found = result.found
    value: dict[str, Any] = {
        "AP": _plain(found.ap[k]),
        "AUROC": _plain(found.auroc[k]),
        "positives": int(found.positives[k]),
        "prevalence": _plain(found.prevalence[k]),
        "n": int(found.known[k]),
    }
    if result.draws is not None:
        value["AP_ci"] = _pair(interval(result.draws.ap[:, k]))
        value["AUROC_ci"] = _pair(interval(result.draws.auroc[:, k]))
        value["undefined_draws"] = int(np.isnan(result.draws.ap[:, k]).sum())
    return value


def to_text(result: Evaluation) -> str:
    """The evaluation as a table for a terminal; lift is AP over prevalence."""
    value = to_json(result)
    rows = [("class", "positives", "prevalence", "AP", "95 %", "lift", "AUROC", "95 %")]
    for name, row in value["classes"].items():
        mark = "*" if name in value["few"] else ""
        lift = row["AP"] / row["prevalence"] if row["AP"] is not None else None
        rows.append(
            (
                name,
                f"{row['positives']}{mark or ' '}",
                "-" if row["prevalence"] is None else f"{100 * row['prevalence']:.2f} %",
                _three(row["AP"]),
                _range(row.get("AP_ci")),
                "-" if lift is None else f"{lift:.1f}",
                _three(row["AUROC"]),
                _range(row.get("AUROC_ci")),
            )
        )
    kept = [k for k in range(8) if result.draws is not None or k not in (4, 7)]
    width = [max(len(row[k]) for row in rows) for k in range(8)]
    lines = [
        "  ".join([row[0].ljust(width[0]), *(row[k].rjust(width[k]) for k in kept[1:])]).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, "", *_summary(result, value)])


def _summary(result: Evaluation, value: Mapping[str, Any]) -> list[str]:
    """The lines below the table: means, groups, and all that was left out."""
    unit = "studies" if result.by == "study" else "images"
    of = f" of {', '.join(result.splits)}" if result.splits else ""
    lines = [_line("all", value)]
    lines += [_line(name, row) for name, row in value["groups"].items() if row["classes"]]
    lines.append(f"{result.n} {unit}{of}; head, medium and tail by {result.groups_from}")
    if result.draws is not None:
        lines.append(
            f"intervals: {len(result.draws.ap)} draws of {result.draws.units} "
            f"{'studies' if result.drawn == 'study' else result.drawn}"
        )
    if result.against is not None:
        lines.append(
            f"mAP difference {result.against.difference:+.4f} "
            f"{_range(_pair(result.against.ci), 4)} on {result.against.n} {unit} and "
            f"{len(result.against.classes)} classes"
        )
    masked = {name: n for name, n in result.masked.items() if n}
    notes = {
        "undefined (no positives)": ", ".join(value["undefined"]),
        f"* fewer than {FEW} positives or negatives": "the value means little" * bool(result.few),
        "cells left out": ", ".join(f"{n} {name}" for name, n in masked.items()),
        "only in the scores, left out": ", ".join(result.unlabelled),
        "only in the labels, left out": ", ".join(result.unscored),
        "without scores, left out": examples(result.failed),
        "rows of scores beyond those measured, ignored": str(result.ignored_rows or ""),
        "labels that differ within a study (present was taken)": str(result.differing or ""),
    }
    return lines + [f"{name}: {text}" for name, text in notes.items() if text]


def _line(name: str, row: Mapping[str, Any]) -> str:
    ap, auroc = _range(row.get("mAP_ci")), _range(row.get("AUROC_ci"))
    many = "class" if row["n_classes"] == 1 else "classes"
    return (
        f"{name + ':':<8}mAP {_three(row['mAP'])} {ap + ' ' * bool(ap)}"
        f"AUROC {_three(row['AUROC'])} {auroc + ' ' * bool(auroc)}over {row['n_classes']} {many}"
    )


def _three(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _range(pair: list[float] | None, digits: int = 3) -> str:
    return "" if pair is None else f"({pair[0]:.{digits}f} to {pair[1]:.{digits}f})"
