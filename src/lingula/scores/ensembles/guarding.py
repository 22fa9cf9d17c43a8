"""Members joined with a table's labels, and the guarded rule's choice and report on them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lingula.scores.ensembles import guarded, weighting
from lingula.scores.ensembles.guarded import Guard, Sample
from lingula.scores.ensembles.weighting import Ensemble
from lingula.scores.predictions import Predictions, aligned, class_columns, picked
from lingula.settings.config import Data
from lingula.system.errors import InputError, examples
from lingula.tables.configured import configured_targets
from lingula.tables.table import Table, rows_of, subset

log = logging.getLogger("lingula")

Labelled = tuple[dict[str, Predictions], NDArray[np.float32], NDArray[np.bool_]]


def labelled(members: Mapping[str, Predictions], part: Table, data: Data) -> Labelled:
    """The members on the table's rows, with targets and mask of the classes that they score.

    Raises `InputError` naming classes without labels and images without scores.
    """
    alike = weighting.same_rows(members)
    first = next(iter(alike.values()))
    unknown = [name for name in first.classes if name not in part.space]
    if unknown:
        raise InputError(
            f"{part.path} has no labels of {examples(unknown)}, which {first.origin} scores: "
            "members can't be chosen for them."
        )
    places = aligned(first, part.images, part.ids)
    values, mask = configured_targets(data, part)
    columns = [part.space.index(name) for name in first.classes]
    chosen = {name: picked(member, places) for name, member in alike.items()}
    return chosen, values[:, columns], mask[:, columns]


def _sample(members: Mapping[str, Predictions], part: Table, data: Data) -> Sample:
    chosen, values, mask = labelled(members, part, data)
    known = next((m.patients for m in chosen.values() if m.patients is not None), None)
    return guarded.sample_of(chosen, values, mask, part.patients or known)


def guarded_on(
    dev: Mapping[str, Predictions],
    test: Mapping[str, Predictions],
    table: Table,
    data: Data,
    *,
    split: str,
    draws: int,
    seed: int,
) -> tuple[Ensemble, dict[str, Any]]:
    """The guarded choice on a split of the table, and what it is worth, for `ensemble.json`.

    The report's `test` part compares it with the best plain rule on the table's test rows, if it
    has any that the test scores cover; it is measured after the choice and changes nothing.
    """
    part = subset(table, rows_of(table, split))
    sample = _sample(dev, part, data)
    made = guarded.guarded(dev, sample)
    # The sizes of the two sets are compared in patients: that is what a draw draws.
    names, patients = _test_rows(test, table, split)
    units = len(set(patients)) if patients is not None else None
    if units is None:
        units = round(len(names) * len(set(sample.units)) / len(sample.units))
    found = guarded.guard(sample, test_units=max(units, 1), draws=draws, seed=seed)
    report = _report(found, seed)
    there = None if split == "test" else _test_sample(made, test, table, data)
    if there is not None:
        pair = made, guarded.plain(found.baseline, dev, sample)
        ours, theirs, gain_ci = guarded.compared(pair, there, draws=draws, seed=seed)
        report["test"] = _pair(ours, theirs, gain_ci) | {
            "n": len(there.units),
            "as_expected": found.expected is not None
            and found.expected[0] <= ours <= found.expected[1],
        }
    for line in _lines(report):
        log.info(line)
    return made, report


def _test_rows(
    test: Mapping[str, Predictions], table: Table, split: str
) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """Images of the test scores, and their patients where the scores or the table know them."""
    first = next(iter(test.values()))
    if first.patients is not None and all(first.patients):
        return first.images, first.patients
    rows = {name: row for row, name in enumerate(table.images)}
    if table.patients is None or any(image not in rows for image in first.images):
        return first.images, None
    found = tuple(table.patients[rows[image]] for image in first.images)
    return first.images, found if all(found) else None


def _test_sample(
    made: Ensemble, test: Mapping[str, Predictions], table: Table, data: Data
) -> Sample | None:
    """The table's test rows with members and classes in the ensemble's order, if labels tell."""
    rows = rows_of(table, "test")
    if not len(rows):
        return None
    ordered = {}
    for name in made.members:
        columns = class_columns(test[name], tuple(made.weights))
        ordered[name] = replace(
            test[name],
            classes=tuple(made.weights),
            probabilities=test[name].probabilities[:, columns],
        )
    try:
        there = _sample(ordered, subset(table, rows), data)
    except InputError as error:
        log.info("No test gain is reported: %s", error)
        return None
    return there if (there.positive & there.mask).any() else None


def _pair(ours: float, theirs: float, ci: tuple[float, float] | None) -> dict[str, Any]:
    values = {"guarded": ours, "baseline": theirs, "gain": ours - theirs}
    plain = {name: None if np.isnan(value) else value for name, value in values.items()}
    return {**plain, "gain_ci": None if ci is None else list(ci)}


def _report(found: Guard, seed: int) -> dict[str, Any]:
    gain = _pair(*found.crossfitted, found.gain_ci)
    return {
        "baseline": found.baseline,
        "dev": {k: v for k, v in _pair(*found.dev, None).items() if k != "gain_ci"},
        "crossfitted": gain | {"folds": guarded.FOLDS, "patients": found.units},
        "expected_test_mAP": {
            "mAP": gain["guarded"],
            "interval": None if found.expected is None else list(found.expected),
            "patients": found.test_units,
        },
        "rules_crossfitted": {
            name: None if np.isnan(value) else value for name, value in found.rules.items()
        },
        "constants": {"steps": guarded.STEPS, "shrink": guarded.SHRINK},
        "draws": found.draws,
        "seed": seed,
    }


def _lines(report: Mapping[str, Any]) -> list[str]:
    """What the log says of the choice."""
    cross, expected = report["crossfitted"], report["expected_test_mAP"]
    lines = [
        f"best plain rule by dev alone: {report['baseline']}",
        f"dev mAP {_four(report['dev'])}, on the rows chosen on: too good to be true",
        f"dev mAP {_four(cross)}, on patients not chosen on {_range(cross['gain_ci'])}",
        f"expected test mAP {_number(expected['mAP'])} {_range(expected['interval'], False)}, "
        f"for {expected['patients']} patients like dev's",
    ]
    if "test" in report:
        test = report["test"]
        lines.append(f"test mAP {_four(test)} {_range(test['gain_ci'])}; it chose nothing")
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _four(row: Mapping[str, Any]) -> str:
    gain = row["gain"]
    shown = "" if gain is None else f" ({gain:+.4f})"
    return f"{_number(row['guarded'])} against {_number(row['baseline'])}{shown}"


def _range(pair: list[float] | None, signed: bool = True) -> str:
    sign = "+" if signed else ""
    return (
        "(no interval)" if pair is None else f"(95 %: {pair[0]:{sign}.4f} to {pair[1]:{sign}.4f})"
    )
