"""What an evaluation found, and how it is said: as JSON and as a table for a terminal."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lingula.scores import metrics
from lingula.scores.intervals import Draws, Interval, logit_interval, mean_by_draw
from lingula.scores.metrics import FEW, Classwise
from lingula.scores.subgroups import (
    Subgroups,
    format_interval,
    format_rows,
    number_or_none,
    pair_or_none,
    subgroups_to_json,
    subgroups_to_text,
)
from lingula.scores.thresholds import FALLBACK, Operating
from lingula.system.errors import examples


@dataclass(frozen=True)
class Comparison:
    """The scores minus the others, over the rows and the K classes that both have.

    Attributes:
        difference: of the mAPs, with `ci` and the two-sided `p` of it.
        n: rows that both have scores of.
        classes: the classes that both have.
        ap: difference of each class's AP (K,), NaN where undefined; `ap_ci` its intervals.
        p_by_class: two-sided p of each of these; `holm` and `bh` are adjusted over the classes.
        draws: resamples that intervals and p come from: no p is below 2 / (draws + 1).
    """

    difference: float
    ci: Interval
    p: float
    n: int
    classes: tuple[str, ...]
    ap: metrics.Floats
    ap_ci: tuple[Interval, ...]
    p_by_class: metrics.Floats
    holm: metrics.Floats
    bh: metrics.Floats
    draws: int


@dataclass(frozen=True)
class Evaluation:
    """What was measured on which rows; `to_json` and `to_text` show it.

    Attributes:
        classes: the classes that both the scores and the table have, in the table's order.
        metrics: AP, AUROC, positives and known cells of each of them.
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
        operating: what each class is worth at its threshold, and as a probability.
        fuse: how a study's images become one row, where `by` is `study`.
        subgroups: the same rows apart by a column of the table.
        by_default: classes that have no threshold of their own, where others have.
    """

    classes: tuple[str, ...]
    metrics: Classwise
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
    operating: Operating | None = None
    fuse: str = "mean"
    subgroups: tuple[Subgroups, ...] = ()
    by_default: tuple[str, ...] = ()

    @property
    def found(self) -> Classwise:
        """The old name of `metrics`, for one release."""
        warnings.warn("use result.metrics, not result.found", DeprecationWarning, stacklevel=2)
        return self.metrics

    @property
    def few(self) -> tuple[str, ...]:
        """Classes that have an AP, but fewer than `FEW` positives or negatives."""
        positives, known = self.metrics.positives, self.metrics.known
        small = (positives > 0) & (np.minimum(positives, known - positives) < FEW)
        return tuple(self.classes[k] for k in np.flatnonzero(small))


def to_json(result: Evaluation) -> dict[str, Any]:
    """The evaluation as plain values; what is undefined is null.

    `n_classes` is the number of classes that the mAP is over: those that have an AP. Those that
    have none are in `undefined`; `defined` has the number for each mean. A class without negatives
    has an AP (1) and no AUROC.
    """
    found, draws = result.metrics, result.draws
    value: dict[str, Any] = _means_to_json(result, np.ones(len(result.classes), dtype=bool))
    value["n"] = result.n
    value["undefined"] = [
        name for name, ap in zip(result.classes, found.ap, strict=True) if np.isnan(ap)
    ]
    if draws is not None:
        value["draws"] = len(draws.ap)
        value["drawn"] = {"what": result.drawn, "n": draws.units}
    if result.against is not None:
        value["against"] = _comparison_to_json(result.against, result)
    value["groups"] = {
        name: {**_means_to_json(result, np.isin(result.classes, members)), "classes": list(members)}
        for name, members in result.groups.items()
    }
    value["classes"] = {name: _class_to_json(result, k) for k, name in enumerate(result.classes)}
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
    value["threshold_by_default"] = list(result.by_default)
    if result.by == "study":
        value["fuse"] = result.fuse
    if result.subgroups:
        value["subgroups"] = {part.column: subgroups_to_json(part) for part in result.subgroups}
    return value


def _comparison_to_json(other: Comparison, result: Evaluation) -> dict[str, Any]:
    value: dict[str, Any] = {
        "mAP_difference": number_or_none(other.difference),
        "ci": pair_or_none(other.ci),
        "p": number_or_none(other.p),
        "draws": other.draws,
        "by_class": {
            name: {
                "AP_difference": number_or_none(other.ap[k]),
                "ci": pair_or_none(other.ap_ci[k]),
                "p": number_or_none(other.p_by_class[k]),
                "p_holm": number_or_none(other.holm[k]),
                "p_bh": number_or_none(other.bh[k]),
            }
            for k, name in enumerate(other.classes)
        },
    }
    if other.n != result.n or len(other.classes) != len(result.classes):
        value |= {"n": other.n, "classes": list(other.classes)}
    return value


def _means_to_json(result: Evaluation, chosen: NDArray[np.bool_]) -> dict[str, Any]:
    ap, auroc = result.metrics.ap[chosen], result.metrics.auroc[chosen]
    value: dict[str, Any] = {
        "mAP": number_or_none(metrics.mean_defined(ap)),
        "AUROC": number_or_none(metrics.mean_defined(auroc)),
        "n_classes": int((~np.isnan(ap)).sum()),
    }
    value["defined"] = {"mAP": value["n_classes"], "AUROC": int((~np.isnan(auroc)).sum())}
    if result.draws is not None:
        mAP, AUROC = metrics.mean_defined(ap), metrics.mean_defined(auroc)
        value["mAP_ci"] = pair_or_none(logit_interval(mAP, mean_by_draw(result.draws.ap, chosen)))
        value["AUROC_ci"] = pair_or_none(
            logit_interval(AUROC, mean_by_draw(result.draws.auroc, chosen))
        )
    if result.operating is not None:
        points = result.operating
        columns = {"mF1": points.f1, "mECE": points.ece, "Brier": points.brier}
        for name, column in columns.items():
            value[name] = number_or_none(metrics.mean_defined(column[chosen]))
            value["defined"][name] = int((~np.isnan(column[chosen])).sum())
    return value


def _class_to_json(result: Evaluation, k: int) -> dict[str, Any]:
    found = result.metrics
    value: dict[str, Any] = {
        "AP": number_or_none(found.ap[k]),
        "AUROC": number_or_none(found.auroc[k]),
        "positives": int(found.positives[k]),
        "prevalence": number_or_none(found.prevalence[k]),
        "n": int(found.known[k]),
    }
    if result.draws is not None:
        draws, units = result.draws, int(result.draws.positives[k])
        value["AP_ci"] = pair_or_none(logit_interval(found.ap[k], draws.ap[:, k], units))
        value["AUROC_ci"] = pair_or_none(logit_interval(found.auroc[k], draws.auroc[:, k], units))
        value["undefined_draws"] = int(np.isnan(result.draws.ap[:, k]).sum())
    value["lift"] = (
        number_or_none(found.ap[k] / found.prevalence[k]) if found.positives[k] else None
    )
    if result.operating is not None:
        points = result.operating
        value |= {
            "threshold": float(points.threshold[k]),
            "F1": number_or_none(points.f1[k]),
            "precision": number_or_none(points.precision[k]),
            "recall": number_or_none(points.recall[k]),
            "specificity": number_or_none(points.specificity[k]),
            f"sensitivity_at_{points.level:g}": number_or_none(points.sensitivity_at[k]),
            f"specificity_at_{points.level:g}": number_or_none(points.specificity_at[k]),
            "Brier": number_or_none(points.brier[k]),
            "ECE": number_or_none(points.ece[k]),
        }
    return value


def to_text(result: Evaluation) -> str:
    """The evaluation as a table for a terminal; lift is AP over prevalence."""
    value = to_json(result)
    rows = [("class", "positives", "prevalence", "AP", "95 %", "lift", "AUROC", "95 %", "F1")]
    for name, row in value["classes"].items():
        mark = "*" if name in value["few"] else ""
        rows.append(
            (
                name,
                f"{row['positives']}{mark or ' '}",
                "-" if row["prevalence"] is None else f"{100 * row['prevalence']:.2f} %",
                _round(row["AP"]),
                format_interval(row.get("AP_ci")),
                "-" if row["lift"] is None else f"{row['lift']:.1f}",
                _round(row["AUROC"]),
                format_interval(row.get("AUROC_ci")),
                _round(row.get("F1")),
            )
        )
    left = () if result.draws is not None else (4, 7)
    parts = [format_rows(rows, left), "\n".join(_summary_to_text(result, value))]
    if result.against is not None:
        parts.append(_differences_to_text(value["against"]))
    parts += [subgroups_to_text(part) for part in result.subgroups]
    return "\n\n".join(parts)


def _differences_to_text(value: Mapping[str, Any]) -> str:
    """The table of the classes' differences, and how to read its p values."""
    rows = [("difference in AP", "", "95 %", "p", "Holm", "Benjamini-Hochberg")]
    for name, row in value["by_class"].items():
        gap = row["AP_difference"]
        rows.append(
            (
                name,
                "-" if gap is None else f"{gap:+.4f}",
                format_interval(row["ci"], 4),
                _round(row["p"]),
                _round(row["p_holm"]),
                _round(row["p_bh"]),
            )
        )
    tests = sum(row["p"] is not None for row in value["by_class"].values())
    least = 2 / (value["draws"] + 1)
    notes = [f"p from {value['draws']} paired draws (never below {least:.4f}), two-sided"]
    if tests * least > 0.05:
        notes.append(
            f"too few draws for {tests} classes: Holm's p can't fall below {tests * least:.2f}; "
            f"ask for --ci {int(np.ceil(40 * tests))} or more"
        )
    return "\n".join([format_rows(rows), *notes])


def _summary_to_text(result: Evaluation, value: Mapping[str, Any]) -> list[str]:
    """The lines below the table: means, groups, and all that was left out."""
    unit = "studies" if result.by == "study" else "images"
    of = f" of {', '.join(result.splits)}" if result.splits else ""
    lines = [_class_to_row("all", value)]
    lines += [_class_to_row(name, row) for name, row in value["groups"].items() if row["classes"]]
    lines.append(f"{result.n} {unit}{of}; head, medium and tail by {result.groups_from}")
    if result.draws is not None:
        lines.append(
            f"intervals: {len(result.draws.ap)} draws of {result.draws.units} "
            f"{'studies' if result.drawn == 'study' else result.drawn}"
        )
    if result.against is not None:
        lines.append(
            f"mAP difference {result.against.difference:+.4f} "
            f"{format_interval(result.against.ci, 4)} on {result.against.n} {unit} and "
            f"{len(result.against.classes)} classes, p {_round(result.against.p)}"
        )
    masked = {name: n for name, n in result.masked.items() if n}
    emptied = {
        name: row["undefined_draws"] / len(result.draws.ap)
        for name, row in value["classes"].items()
        if result.draws is not None and row["positives"] and row["undefined_draws"]
    }
    alike = [
        name
        for name, row in value["classes"].items()
        if result.draws is not None and row["AP"] is not None and row["AP_ci"] is None
    ]
    notes = {
        "no interval, since the AP is the same in all draws": ", ".join(alike),
        "draws without a positive, left out of the class's interval and of those draws' means": (
            ", ".join(f"{name} {100 * share:.1f} %" for name, share in emptied.items())
        ),
        "undefined (no positives)": ", ".join(value["undefined"]),
        f"* fewer than {FEW} positives or negatives": "the value means little" * bool(result.few),
        f"without a threshold of their own, {FALLBACK:g} by default": ", ".join(result.by_default),
        "cells left out": ", ".join(f"{n} {name}" for name, n in masked.items()),
        "only in the scores, left out": ", ".join(result.unlabelled),
        "only in the labels, left out": ", ".join(result.unscored),
        "without scores, left out": examples(result.failed),
        "rows of scores beyond those measured, ignored": str(result.ignored_rows or ""),
        "labels that differ within a study (present was taken)": str(result.differing or ""),
    }
    return lines + [f"{name}: {text}" for name, text in notes.items() if text]


def _class_to_row(name: str, row: Mapping[str, Any]) -> str:
    return f"{name + ':':<8}{means_to_text(row, ('mAP', 'AUROC', 'mF1', 'mECE'))}"


def means_to_text(value: Mapping[str, Any], means: Sequence[str] = ("mAP", "AUROC")) -> str:
    """The means of an evaluation's JSON in a line, to three decimals.

    Those over as many classes as the mAP come first, then the others.
    """
    defined = value["defined"]
    parts: dict[int, list[str]] = {defined["mAP"]: []}
    for mean in means:
        if mean in defined:
            ends = format_interval(value.get(f"{mean}_ci"))
            text = f"{mean} {_round(value[mean])}{' ' * bool(ends)}{ends}"
            parts.setdefault(defined[mean], []).append(text)
    words = [
        f"{', '.join(texts)} over {many} {'class' if many == 1 else 'classes'}"
        for many, texts in parts.items()
    ]
    return ", ".join(words)


def _round(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
