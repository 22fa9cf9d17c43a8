"""The same rows measured apart by view, sex, age, source or a finding, and the largest gap.

Groups are compared by AUROC, averaged over the classes that every sizeable group can measure: AP
follows prevalence, which differs from group to group for reasons that are not the model's.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lingula.scores import metrics
from lingula.scores.intervals import (
    Draws,
    Interval,
    bootstrap,
    interval,
    logit_interval,
    mean_by_draw,
)
from lingula.scores.joining import Joined
from lingula.scores.metrics import FEW, Classwise
from lingula.settings.label_space import fold
from lingula.settings.vocabulary import parse_age, parse_sex
from lingula.system.errors import InputError, examples, nearest
from lingula.tables.configured import Meaning, configured_targets
from lingula.tables.table import Table

DECADES = (10, 20, 30, 40, 50, 60, 70, 80, 90)
UNKNOWN = "unknown"
_COLUMNS = {"view": "views", "sex": "sexes", "age": "ages", "source": "sources"}


@dataclass(frozen=True)
class Group:
    """One group: K classes' AP and AUROC, and means over the classes that groups compare.

    `small` says that this group has `FEW` positives and negatives of fewer than half as many
    classes as the group that has most; it has no mean and is in no gap of means. Intervals are None
    without draws, or where there is no value.
    """

    name: str
    n: int
    metrics: Classwise
    mAP: float
    AUROC: float
    mAP_ci: Interval
    AUROC_ci: Interval
    auroc_ci: tuple[Interval, ...]
    small: bool


@dataclass(frozen=True)
class Gap:
    """The largest difference between two groups: `high` minus `low`, with its interval.

    The two were chosen because they differ most, so the interval is on the large side of fair.
    """

    high: str
    low: str
    difference: float
    ci: Interval


@dataclass(frozen=True)
class Subgroups:
    """A table's rows by one column.

    Attributes:
        column: the column, or the class.
        classes: the K classes.
        groups: in the order of their names, unknown last.
        compared: the classes that the means and `gap` are over: those with `FEW` positives and
            negatives in every group that is not small.
        gap: of the mean AUROCs; None with fewer than two sizeable groups or nothing to compare.
        gaps: of each class, among the groups with `FEW` positives and negatives of it.
    """

    column: str
    classes: tuple[str, ...]
    groups: tuple[Group, ...]
    compared: tuple[str, ...]
    gap: Gap | None
    gaps: tuple[Gap | None, ...]


def split_names(given: Sequence[str], table: Table) -> list[str]:
    """The columns and classes in texts that may name several by commas, as classes may have, too.

    What is a class as a whole is not split: `view, Edema, acute` may be two or three.
    """
    known = {fold(name) for name in (*_COLUMNS, *table.space.classes)}
    found = []
    for text in given:
        parts, first = text.split(","), 0
        while first < len(parts):
            ends = range(len(parts), first, -1)
            joined = {end: ",".join(parts[first:end]).strip() for end in ends}
            end = next((end for end in ends if fold(joined[end]) in known), first + 1)
            found += [joined[end]] if joined[end] else []
            first = end
    return found


def measure_subgroups(
    joined: Joined,
    table: Table,
    column: str,
    *,
    by: str = "image",
    draws: int = 0,
    seed: int = 0,
    age_edges: Sequence[int] = DECADES,
    meaning: Meaning | None = None,
) -> Subgroups:
    """Measure the rows apart by a column of the table, or by whether a class is present.

    Args:
        joined: the rows, made from `table`.
        table: where their `column` is looked up, by image.
        column: `view`, `sex`, `age`, `source` or a class.
        by: whether rows are images or studies; a study has its first image's cell.
        draws: patient resamples for the intervals; the same ones for all groups. 0: none.
        seed: of the resamples.
        age_edges: first years of the age bands but the first.
        meaning: what a class's unknown cells count as; None: the defaults of `Meaning`.

    Raises:
        InputError: a column that the table does not have, edges that do not rise, or views of
            rows that are studies.
    """
    cells = group_of_rows(table, column, age_edges, meaning)
    place = {name: row for row, name in enumerate(table.images)}
    names = np.array([cells[place[image]] for image in joined.images], dtype=object)
    if column.strip().casefold() == "view" and by == "study":
        raise InputError("--subgroups view: a study has images of several views; use --by image.")
    order = sorted(set(names.tolist()), key=lambda name: (name == UNKNOWN, _sort_key(name)))
    members = [names == name for name in order]
    masks = [joined.mask & member[:, None] for member in members]
    found = [metrics.measure_classes(joined.probabilities, joined.targets, mask) for mask in masks]
    enough = np.array([np.minimum(f.positives, f.known - f.positives) >= FEW for f in found])
    enough = enough.reshape(len(order), len(joined.classes))
    # A group that can measure little would leave little to compare the others by.
    measured = enough.sum(axis=1)
    sizeable: NDArray[np.bool_] = np.asarray(2 * measured >= np.maximum(1, measured.max()))
    compared: NDArray[np.bool_] = np.logical_and(enough[sizeable].all(axis=0), sizeable.any())
    drawn = [bootstrap_joined(joined, draws, seed, mask) for mask in masks]
    groups = tuple(
        _measure_group(name, int(member.sum()), values, sample, compared, small=not large)
        for name, member, values, sample, large in zip(
            order, members, found, drawn, sizeable, strict=True
        )
    )
    means = np.array([group.AUROC for group in groups])
    mean_draws = [_mean_by_draw(sample.auroc, compared) for sample in drawn]
    each = []
    for k in range(len(joined.classes)):
        values = np.where(enough[:, k], [f.auroc[k] for f in found], np.nan)
        each.append(_find_gap(order, values, [sample.auroc[:, k] for sample in drawn]))
    names_compared = tuple(n for n, yes in zip(joined.classes, compared, strict=True) if yes)
    gap = _find_gap(order, means, mean_draws)
    return Subgroups(column, joined.classes, groups, names_compared, gap, tuple(each))


def _sort_key(name: str) -> tuple[int, str]:
    """Age bands by their first year, other groups by name."""
    first = re.match(r"\d+", name)
    return (int(first.group()) if first else 0, name)


def bootstrap_joined(
    joined: Joined,
    draws: int,
    seed: int,
    mask: NDArray[np.bool_] | None = None,
    ranked: Sequence[metrics.Ranking] | None = None,
) -> Draws:
    """The bootstrap of joined rows, or of a part of their cells; a seed makes the same draws."""
    return bootstrap(
        *(joined.probabilities, joined.targets, joined.mask if mask is None else mask),
        joined.patients,
        draws=draws,
        seed=seed,
        ranked=ranked,
    )


def _mean_by_draw(values: metrics.Floats, compared: NDArray[np.bool_]) -> metrics.Floats:
    """The mean of each draw (draws,) over the compared classes; NaN if one of them is not in it."""
    means = mean_by_draw(values, compared)
    means[np.isnan(values[:, compared]).any(axis=1)] = np.nan
    return means


def _measure_group(
    name: str,
    n: int,
    found: Classwise,
    drawn: Draws,
    compared: NDArray[np.bool_],
    *,
    small: bool,
) -> Group:
    nothing = small or not compared.any()
    mAP = float("nan") if nothing else float(found.ap[compared].mean())
    AUROC = float("nan") if nothing else float(found.auroc[compared].mean())
    ap, auroc = drawn.ap, drawn.auroc
    return Group(
        name=name,
        n=n,
        metrics=found,
        mAP=mAP,
        AUROC=AUROC,
        mAP_ci=logit_interval(mAP, _mean_by_draw(ap, compared)),
        AUROC_ci=logit_interval(AUROC, _mean_by_draw(auroc, compared)),
        auroc_ci=tuple(
            logit_interval(found.auroc[k], auroc[:, k]) for k in range(len(found.auroc))
        ),
        small=small,
    )


def _find_gap(
    names: Sequence[str], values: metrics.Floats, draws: list[metrics.Floats]
) -> Gap | None:
    """The widest pair among the groups whose value is defined; ties by the groups' order."""
    known = np.flatnonzero(~np.isnan(values))
    if len(known) < 2:
        return None
    high, low = known[np.argmax(values[known])], known[np.argmin(values[known])]
    if high == low:  # all alike
        high, low = known[0], known[1]
    difference = float(values[high] - values[low])
    return Gap(names[high], names[low], difference, interval(draws[high] - draws[low]))


def group_of_rows(
    table: Table,
    column: str,
    age_edges: Sequence[int] = DECADES,
    meaning: Meaning | None = None,
) -> tuple[str, ...]:
    """The group of each row of a table, `unknown` where its cell says nothing.

    By a class, rows whose cell counts as absent in the evaluation are absent here, too: blank cells
    where blank means zero, by the table, by the row's source or as `meaning` asks.

    Raises `InputError` for a column that the table does not have, and for edges that don't rise.
    """
    name = column.strip()
    if name.casefold() in _COLUMNS:
        cells = getattr(table, _COLUMNS[name.casefold()])
        if cells is None:
            raise InputError(
                f"--subgroups {name}: {table.path or 'the table'} has no column {name}."
            )
        if name.casefold() == "age":
            return age_bands(cells, age_edges)
        if name.casefold() == "sex":
            codes = [parse_sex(cell) for cell in cells]
            return tuple(code if code in ("M", "F") else UNKNOWN for code in codes)
        return tuple(cell.strip() or UNKNOWN for cell in cells)
    if name not in table.space:
        known = [*_COLUMNS, *table.space.classes]
        raise InputError(
            f"--subgroups: '{name}' is neither a column nor a class.{nearest(name, known)} "
            f"There are {examples(known, 30)}."
        )
    k = table.space.index(name)
    values, counts = (array[:, k] for array in configured_targets(meaning or Meaning(), table))
    present, absent = (f"{table.space.classes[k]} {word}" for word in ("present", "absent"))
    found = np.where(counts, np.where(values >= 0.5, present, absent), UNKNOWN)
    return tuple(found.tolist())


def age_bands(cells: Sequence[str], edges: Sequence[int] = DECADES) -> tuple[str, ...]:
    """The age band of each cell: years as `58`, `58.0`, DICOM's `058Y`, `006M`, `010D`, `003W`.

    A bare 0 means unknown in several data sets; so do ages above 120.
    """
    if list(edges) != sorted(set(edges)) or not edges or edges[0] <= 0:
        raise InputError(f"Age edges must be positive and rise, such as 18,40,65, not {edges}.")
    bands = [f"0-{edges[0] - 1}"]
    bands += [f"{low}-{high - 1}" for low, high in itertools.pairwise(edges)]
    bands.append(f"{edges[-1]}+")
    years = [parse_age(cell) for cell in cells]
    return tuple(
        UNKNOWN if age is None else bands[int(np.searchsorted(edges, age, side="right"))]
        for age in years
    )


def number_or_none(value: float) -> float | None:
    """A number for JSON; None for NaN."""
    return None if np.isnan(value) else float(value)


def pair_or_none(values: Interval) -> list[float] | None:
    """An interval for JSON."""
    return None if values is None else [values[0], values[1]]


def _gap_to_json(gap: Gap | None) -> dict[str, Any] | None:
    if gap is None:
        return None
    return {"high": gap.high, "low": gap.low, "AUROC": gap.difference, "ci": pair_or_none(gap.ci)}


def subgroups_to_json(part: Subgroups) -> dict[str, Any]:
    """The groups as plain values; what is undefined is null."""
    groups = {}
    for group in part.groups:
        classes = {
            name: {
                "positives": int(group.metrics.positives[k]),
                "n": int(group.metrics.known[k]),
                "AP": number_or_none(group.metrics.ap[k]),
                "AUROC": number_or_none(group.metrics.auroc[k]),
                "AUROC_ci": pair_or_none(group.auroc_ci[k]),
            }
            for k, name in enumerate(part.classes)
        }
        groups[group.name] = {
            "n": group.n,
            "small": group.small,
            "mAP": number_or_none(group.mAP),
            "mAP_ci": pair_or_none(group.mAP_ci),
            "AUROC": number_or_none(group.AUROC),
            "AUROC_ci": pair_or_none(group.AUROC_ci),
            "classes": classes,
        }
    return {
        "compared": list(part.compared),
        "gap": _gap_to_json(part.gap),
        "groups": groups,
        "gap_by_class": {
            name: _gap_to_json(gap) for name, gap in zip(part.classes, part.gaps, strict=True)
        },
    }


def subgroups_to_text(part: Subgroups) -> str:
    """The groups as a table for a terminal, with the largest gaps below it."""
    rows = [(f"by {part.column}", "n", "positives", "mAP", "95 %", "AUROC", "95 %")]
    for group in part.groups:
        kept = np.isin(part.classes, part.compared)
        rows.append(
            (
                group.name + ("*" if group.small else ""),
                str(group.n),
                str(int(group.metrics.positives[kept].sum())) if part.compared else "-",
                "-" if np.isnan(group.mAP) else f"{group.mAP:.3f}",
                format_interval(group.mAP_ci),
                "-" if np.isnan(group.AUROC) else f"{group.AUROC:.3f}",
                format_interval(group.AUROC_ci),
            )
        )
    lines = [format_rows(rows)]
    lines.append(
        f"means over {len(part.compared)} of {len(part.classes)} classes: those with {FEW} "
        f"positives and negatives in every group without *"
    )
    if part.gap is not None:
        lines.append(f"largest gap: {_gap_to_text(part.gap)}")
    widest = [(gap, n) for gap, n in zip(part.gaps, part.classes, strict=True) if gap is not None]
    for gap, name in sorted(widest, key=lambda pair: -pair[0].difference)[:3]:
        lines.append(f"  {name}: {_gap_to_text(gap)}")
    return "\n".join(lines)


def _gap_to_text(gap: Gap) -> str:
    span = f" {format_interval(gap.ci)}" if gap.ci else ""
    return f"AUROC {gap.difference:.3f}{span}, {gap.high} over {gap.low}"


def format_interval(pair: Sequence[float] | None, digits: int = 3) -> str:
    """An interval in brackets; nothing for None."""
    return "" if pair is None else f"({pair[0]:.{digits}f} to {pair[1]:.{digits}f})"


def format_rows(rows: Sequence[Sequence[str]], left_out: Sequence[int] = ()) -> str:
    """Rows of cells as lines: the first column to the left, the others to the right."""
    kept = [k for k in range(len(rows[0])) if k not in left_out]
    width = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(width[0]), *(row[k].rjust(width[k]) for k in kept[1:])]).rstrip()
        for row in rows
    )
