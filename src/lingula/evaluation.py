"""Scores against labels: joined by image and class name, masked, measured, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lingula import metrics
from lingula.data.table import (
    BLANK,
    UNCERTAIN,
    UNMENTIONED,
    Table,
    rows_of,
    subset,
    targets,
)
from lingula.errors import InputError, examples
from lingula.intervals import Draws, bootstrap, interval, mean_by_draw
from lingula.labels import groups
from lingula.predictions import Predictions, aligned, class_columns, failed

Interval = tuple[float, float] | None


@dataclass(frozen=True)
class Joined:
    """Scores, targets and mask (N, K) of the same rows and classes, and the rows' patients."""

    probabilities: NDArray[np.float64]
    targets: NDArray[np.float32]
    mask: NDArray[np.bool_]
    classes: tuple[str, ...]
    patients: tuple[str, ...] | None


@dataclass(frozen=True)
class Evaluation:
    """What was measured on which rows; `to_json` and `to_text` show it."""

    classes: tuple[str, ...]
    found: metrics.Classwise
    n: int
    by: str
    groups: Mapping[str, tuple[str, ...]]
    groups_from: str
    failed: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    ignored_rows: int = 0
    masked: Mapping[str, int] = field(default_factory=dict)
    draws: Draws | None = None
    difference: float | None = None
    difference_ci: Interval = None


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
) -> Evaluation:
    """Measure predictions against a table.

    Args:
        predictions: scores; rows beyond the chosen ones are ignored and counted.
        table: labels.
        split: only the table's rows of this split.
        by: `study` averages the scores of a study's images.
        ci: bootstrap draws by patient; 0 for no intervals.
        seed: of the bootstrap.
        against: other scores of the same images; the difference of the mAPs, in pairs.
        uncertain: what uncertain cells count as.
        blank: what blank cells count as; None is what the table says.

    Raises:
        InputError: images of the table without a row of scores, or no class in common.
    """
    full = table
    if split is not None:
        rows = rows_of(table, split)
        if not len(rows):
            raise InputError(f"{table.path} has no rows with split '{split}'.")
        table = subset(table, rows)
    elif len(predictions) < len(table) and table.splits is not None:
        table = _covered(predictions, table)
    joined, lost = _join(predictions, table, by, uncertain, blank)
    found = metrics.classwise(joined.probabilities, joined.targets, joined.mask)
    draws = _draws(joined, ci, seed) if ci else None
    difference, difference_ci = None, None
    if against is not None:
        other, _ = _join(against, table, by, uncertain, blank, joined.classes, lost)
        theirs = metrics.classwise(other.probabilities, other.targets, other.mask)
        difference = found.mAP - theirs.mAP
        pairs = ci or 1000
        mine = draws or _draws(joined, pairs, seed)
        every = np.ones(len(joined.classes), dtype=bool)
        gaps = mean_by_draw(mine.ap, every) - mean_by_draw(_draws(other, pairs, seed).ap, every)
        difference_ci = interval(gaps)
    tiers, tiers_from = _groups(full, joined, found)
    return Evaluation(
        classes=joined.classes,
        found=found,
        n=len(joined.probabilities),
        by=by,
        groups=tiers,
        groups_from=tiers_from,
        failed=lost,
        left_out=tuple(sorted(set(predictions.classes).symmetric_difference(table.space.classes))),
        ignored_rows=len(predictions) - len(table),
        masked=_masked(table),
        draws=draws,
        difference=difference,
        difference_ci=difference_ci,
    )


def _covered(predictions: Predictions, table: Table) -> Table:
    """Scores of one split against a whole table: the split whose images they are."""
    names = set(predictions.images) | set(predictions.ids or ())
    keys = [
        name in names or (table.ids is not None and table.ids[i] in names)
        for i, name in enumerate(table.images)
    ]
    assert table.splits is not None
    splits = {table.splits[i] for i in np.flatnonzero(keys)}
    rows = np.array([i for i, s in enumerate(table.splits) if s in splits], dtype=np.intp)
    return subset(table, rows) if len(rows) else table


def _join(
    predictions: Predictions,
    table: Table,
    by: str,
    uncertain: Literal["ignore", "zero", "one"],
    blank: Literal["ignore", "zero"] | None,
    classes: tuple[str, ...] | None = None,
    lost: tuple[str, ...] = (),
) -> tuple[Joined, tuple[str, ...]]:
    wanted = classes or tuple(n for n in table.space.classes if n in predictions.classes)
    if not wanted:
        raise InputError(
            f"{predictions.origin} and {table.path} have no class in common: "
            f"{examples(predictions.classes)} there, {examples(table.space.classes)} here."
        )
    rows = aligned(predictions, table.images, table.ids)
    bad = failed(predictions)[rows]
    names = {table.images[i] for i in np.flatnonzero(bad)} | set(lost)
    keep = np.array([i for i, name in enumerate(table.images) if name not in names], dtype=np.intp)
    if not len(keep):
        raise InputError(f"{predictions.origin} has no scores for any of the images asked for.")
    part = subset(table, keep)
    probabilities = predictions.probabilities[rows[keep]][:, class_columns(predictions, wanted)]
    values, mask = targets(part, uncertain=uncertain, blank=blank)
    columns = [table.space.index(name) for name in wanted]
    joined = Joined(probabilities, values[:, columns], mask[:, columns], wanted, part.patients)
    if by == "study":
        joined = _by_study(joined, part.studies)
    return joined, tuple(sorted(names))


def _by_study(joined: Joined, studies: tuple[str, ...] | None) -> Joined:
    """One row a study: the mean of its images' scores, the highest of their known labels."""
    if studies is None:
        raise InputError("--by study needs a table with a study column.")
    # Images without a study stand for themselves.
    names = [name or f"image {i}" for i, name in enumerate(studies)]
    _, first, unit = np.unique(names, return_index=True, return_inverse=True)
    size = np.bincount(unit)[:, None]
    shape = (len(first), len(joined.classes))
    scores, values, mask = np.zeros(shape), np.zeros(shape, np.float32), np.zeros(shape, bool)
    np.add.at(scores, unit, joined.probabilities)
    np.maximum.at(values, unit, np.where(joined.mask, joined.targets, 0))
    np.logical_or.at(mask, unit, joined.mask)
    patients = None if joined.patients is None else tuple(joined.patients[i] for i in first)
    return Joined(scores / size, values, mask, joined.classes, patients)


def _draws(joined: Joined, draws: int, seed: int) -> Draws:
    return bootstrap(
        joined.probabilities, joined.targets, joined.mask, joined.patients, draws=draws, seed=seed
    )


def _groups(
    table: Table, joined: Joined, found: metrics.Classwise
) -> tuple[Mapping[str, tuple[str, ...]], str]:
    """Head, medium, tail from the table's train split if it has one, else from these labels."""
    rows = rows_of(table, "train")
    if len(rows):
        values, mask = targets(subset(table, rows))
        columns = [table.space.index(name) for name in joined.classes]
        positives = ((values >= 0.5) & mask).sum(0)[columns]
        total, where = len(rows), "the table's train split"
    else:
        positives, total, where = found.positives, len(joined.probabilities), "these labels"
    by_name = {name: int(n) for name, n in zip(joined.classes, positives, strict=True)}
    return groups(by_name, total), where


def _masked(table: Table) -> dict[str, int]:
    codes = {"uncertain": UNCERTAIN, "blank": BLANK, "unmentioned": UNMENTIONED}
    return {name: int((table.labels == code).sum()) for name, code in codes.items()}


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _pair(values: Interval) -> list[float] | None:
    return None if values is None else [values[0], values[1]]


def to_json(result: Evaluation) -> dict[str, Any]:
    """The evaluation as plain values; what is undefined is null.

    `n_classes` is the number of classes that the mAP is over.
    """
    found, draws = result.found, result.draws
    every = np.ones(len(result.classes), dtype=bool)
    value: dict[str, Any] = {
        "mAP": _plain(found.mAP),
        "AUROC": _plain(found.macro_auroc),
        "n": result.n,
        "n_classes": int((~np.isnan(found.ap)).sum()),
        "undefined": [n for n, ap in zip(result.classes, found.ap, strict=True) if np.isnan(ap)],
    }
    if draws is not None:
        value["mAP_ci"] = _pair(interval(mean_by_draw(draws.ap, every)))
        value["AUROC_ci"] = _pair(interval(mean_by_draw(draws.auroc, every)))
        value["draws"] = len(draws.ap)
    if result.difference is not None:
        value["against"] = {
            "mAP_difference": _plain(result.difference),
            "ci": _pair(result.difference_ci),
        }
    value["groups"] = {name: _group(result, members) for name, members in result.groups.items()}
    value["classes"] = {name: _class(result, k) for k, name in enumerate(result.classes)}
    value["by"] = result.by
    value["groups_from"] = result.groups_from
    value["masked_cells"] = dict(result.masked)
    value["failed"] = list(result.failed)
    value["left_out_classes"] = list(result.left_out)
    value["ignored_rows"] = result.ignored_rows
    return value


def _group(result: Evaluation, members: tuple[str, ...]) -> dict[str, Any]:
    chosen = np.isin(result.classes, members)
    ap, auroc = result.found.ap[chosen], result.found.auroc[chosen]
    value: dict[str, Any] = {
        "mAP": _plain(metrics.mean_defined(ap)),
        "AUROC": _plain(metrics.mean_defined(auroc)),
        "n_classes": int((~np.isnan(ap)).sum()),
        "classes": list(members),
    }
    if result.draws is not None:
        value["mAP_ci"] = _pair(interval(mean_by_draw(result.draws.ap, chosen)))
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
    """The evaluation as a table for a terminal."""
    value = to_json(result)
    width = max(len(name) for name in [*result.classes, "class"])
    lines = [f"{'class':<{width}}  positives  prevalence     AP  (95 %)         AUROC  (95 %)"]
    for name, row in value["classes"].items():
        lines.append(
            f"{name:<{width}}  {row['positives']:>9}  {_share(row['prevalence']):>10}  "
            f"{_three(row['AP'])}  {_range(row.get('AP_ci'))}  "
            f"{_three(row['AUROC'])}  {_range(row.get('AUROC_ci'))}".rstrip()
        )
    lines.append("")
    for name, row in value["groups"].items():
        lines.append(f"{name}: mAP {_three(row['mAP'])} over {row['n_classes']} classes")
    lines.append(
        f"mAP {_three(value['mAP'])} {_range(value.get('mAP_ci'))} over {value['n_classes']} "
        f"classes, AUROC {_three(value['AUROC'])} {_range(value.get('AUROC_ci'))}, "
        f"{value['n']} {'studies' if result.by == 'study' else 'images'}"
    )
    if value["undefined"]:
        lines.append(f"undefined (no positives): {', '.join(value['undefined'])}")
    if result.left_out:
        lines.append(f"not in both files, left out: {', '.join(result.left_out)}")
    if result.failed:
        lines.append(f"without scores, left out: {examples(result.failed)}")
    if result.difference is not None:
        lines.append(
            f"mAP difference {result.difference:+.4f} {_range(_pair(result.difference_ci), 4)}"
        )
    return "\n".join(lines)


def _three(value: float | None) -> str:
    return "    -" if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _range(pair: list[float] | None, digits: int = 3) -> str:
    return "" if pair is None else f"({pair[0]:.{digits}f}-{pair[1]:.{digits}f})"
