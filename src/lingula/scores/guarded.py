"""What the guarded ensemble is worth: by patients of dev that its choice did not see, and on test.

The choice itself is `ensembles.guarded`. The report goes to `ensemble.json` and to the log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lingula.scores import ensembles, metrics
from lingula.scores.ensembles import Ensemble, guarded_weights, plain_rules, weighted_mean
from lingula.scores.intervals import Interval, bootstrap, fold_numbers, interval, mean_by_draw
from lingula.scores.members import Sample, first_of, join_members
from lingula.scores.metrics import Floats
from lingula.scores.predictions import Predictions, class_columns
from lingula.settings.config import Data
from lingula.system.errors import InputError
from lingula.tables.table import Table, rows_of, subset

log = logging.getLogger("lingula")

FOLDS = 5


@dataclass(frozen=True)
class Guard:
    """What the guarded choice is worth, by dev alone.

    Attributes:
        baseline: the plain rule with the best cross-fitted mAP: the one that dev would have picked.
        dev: mAP on the rows that the choice was made on, guarded and baseline: too high.
        crossfitted: mAP on patients that the choice did not see, guarded and baseline.
        gain_ci: of the cross-fitted gain, by patients in pairs.
        expected: prediction interval of the mAP on a test set of `test_units` patients like dev's.
        rules: cross-fitted mAP of every rule.
    """

    baseline: str
    dev: tuple[float, float]
    crossfitted: tuple[float, float]
    gain_ci: Interval
    expected: Interval
    test_units: int
    units: int
    draws: int
    rules: Mapping[str, float]


def choose_guarded(
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
    sample = join_patients(dev, part, data)
    chosen = ensembles.guarded(sample)
    # The sizes of the two sets are compared in patients: those are what is drawn.
    images, patients = _match_test_patients(test, table)
    share = len(set(sample.units)) / len(sample.units)
    units = round(len(images) * share) if patients is None else len(patients)
    found = measure_guard(sample, test_units=max(units, 1), draws=draws, seed=seed)
    report = _report_to_json(found, seed)
    there = None if split == "test" else _join_test_sample(chosen, test, table, data)
    if there is not None:
        baseline = ensembles.name_weights(
            found.baseline, plain_rules(sample)[found.baseline], sample
        )
        ours, theirs, gain_ci = compare((chosen, baseline), there, draws=draws, seed=seed)
        expected = found.expected
        report["test"] = _pair_to_json(ours, theirs, gain_ci) | {
            "n": len(there.units),
            "as_expected": expected is not None and expected[0] <= ours <= expected[1],
        }
    for line in _report_to_text(report):
        log.info(line)
    return chosen, report


def join_patients(members: Mapping[str, Predictions], part: Table, data: Data) -> Sample:
    """The members with the table's labels (`members.join_members`), of at least two patients.

    Raises `InputError` for fewer.
    """
    sample = join_members(members, part, data)
    many = len(set(sample.units))
    if many < 2:
        raise InputError(
            "guarded checks its choice on patients that it did not see: it needs at least two "
            f"patients with scores of all members on dev, and {first_of(members).origin} has "
            f"{many}."
        )
    return sample


def mean_ap(scores: Floats, sample: Sample) -> float:
    """mAP of scores (N, K) on the sample's rows."""
    return metrics.measure_classes(scores, sample.positive, sample.mask).mAP


def cross_fit(
    sample: Sample,
    rules: Callable[[Sample], Mapping[str, Floats]],
    *,
    folds: int = FOLDS,
    seed: int = 0,
) -> dict[str, Floats]:
    """Scores (N, K) by each rule, each row's by weights chosen on the patients of other folds."""
    fold_of_row = fold_numbers(sample.units, folds, (seed, 1))
    found: dict[str, Floats] = {}
    for fold in range(int(fold_of_row.max()) + 1):
        here = fold_of_row == fold
        for name, weights in rules(sample.select(~here)).items():
            scores = found.setdefault(name, np.full(sample.positive.shape, np.nan))
            scores[here] = weighted_mean(weights, sample.scores[:, here])
    # A rule that some fold could not make (no positives at all there) is no candidate.
    return {name: scores for name, scores in found.items() if not np.isnan(scores).any()}


def measure_guard(
    sample: Sample, *, test_units: int | None = None, draws: int = 1000, seed: int = 0
) -> Guard:
    """Measure the guarded rule against the best plain one, within dev.

    Args:
        sample: dev.
        test_units: patients of the test set that the expectation is for; None: as many as here.
        draws: of the bootstrap over patients.
        seed: of the folds and the draws.

    The best plain rule is picked by the same cross-fitted scores that it is then measured on, so
    the comparison leans towards it. A fold chooses on fewer rows than the final choice has, so the
    expectation leans low.
    """

    def every_rule(part: Sample) -> dict[str, Floats]:
        return {"guarded": guarded_weights(part), **plain_rules(part)}

    found = cross_fit(sample, every_rule, seed=seed)
    value = {name: mean_ap(scores, sample) for name, scores in found.items()}
    others = {name: ap for name, ap in value.items() if name != "guarded"}
    best = max(others, key=lambda name: -np.inf if np.isnan(others[name]) else others[name])
    chosen = every_rule(sample)
    on_dev = [mean_ap(weighted_mean(chosen[n], sample.scores), sample) for n in ("guarded", best)]
    ours, theirs = (_draw_map(found[n], sample, draws, (seed, 2)) for n in ("guarded", best))
    other = _draw_map(found["guarded"], sample, draws, (seed, 3), test_units)
    # The dev estimate errs by as much as dev's patients are a draw, and test by as much as its are.
    noise = interval(other - ours)
    level = value["guarded"]
    units = len(set(sample.units))
    return Guard(
        baseline=best,
        dev=(on_dev[0], on_dev[1]),
        crossfitted=(level, value[best]),
        gain_ci=interval(ours - theirs),
        expected=noise and (max(level + noise[0], 0.0), min(level + noise[1], 1.0)),
        test_units=test_units or units,
        units=units,
        draws=draws,
        rules=value,
    )


def compare(
    pair: tuple[Ensemble, Ensemble], sample: Sample, *, draws: int, seed: int
) -> tuple[float, float, Interval]:
    """mAP of two ensembles of the sample's members; the interval of the first minus the second."""
    found = [weighted_mean(one.matrix(sample.classes), sample.scores) for one in pair]
    ours, theirs = (_draw_map(scores, sample, draws, (seed, 4)) for scores in found)
    return mean_ap(found[0], sample), mean_ap(found[1], sample), interval(ours - theirs)


def _draw_map(
    scores: Floats, sample: Sample, draws: int, seed: tuple[int, int], size: int | None = None
) -> Floats:
    """mAP of each resample of the patients (draws,); `size` patients per draw."""
    found = bootstrap(
        *(scores, sample.positive, sample.mask, sample.units), draws=draws, seed=seed, size=size
    )
    return mean_by_draw(found.ap, np.ones(scores.shape[1], dtype=bool))


def _match_test_patients(
    test: Mapping[str, Predictions], table: Table
) -> tuple[tuple[str, ...], set[str] | None]:
    """Images of the test scores, and their patients where the scores or the table know them."""
    first = first_of(test)
    if first.patients is not None and all(first.patients):
        return first.images, set(first.patients)
    if table.patients is None:
        return first.images, None
    patients = dict(zip(table.images, table.patients, strict=True))
    found = {patients.get(image, "") for image in first.images}
    return first.images, None if "" in found else found


def _join_test_sample(
    chosen: Ensemble, test: Mapping[str, Predictions], table: Table, data: Data
) -> Sample | None:
    """The table's test rows with members and classes in the ensemble's order, if labels tell."""
    rows = rows_of(table, "test")
    if not len(rows):
        return None
    ordered, classes = {}, tuple(chosen.weights)
    for name in chosen.members:
        values = test[name].probabilities[:, class_columns(test[name], classes)]
        ordered[name] = replace(test[name], classes=classes, probabilities=values)
    try:
        there = join_patients(ordered, subset(table, rows), data)
    except InputError as error:
        log.info("No test gain is reported: %s", error)
        return None
    return there if (there.positive & there.mask).any() else None


def _pair_to_json(ours: float, theirs: float, ci: Interval) -> dict[str, Any]:
    values = {"guarded": ours, "baseline": theirs, "gain": ours - theirs}
    plain = {name: None if np.isnan(value) else value for name, value in values.items()}
    return {**plain, "gain_ci": None if ci is None else list(ci)}


def _report_to_json(found: Guard, seed: int) -> dict[str, Any]:
    gain = _pair_to_json(*found.crossfitted, found.gain_ci)
    return {
        "baseline": found.baseline,
        "dev": {k: v for k, v in _pair_to_json(*found.dev, None).items() if k != "gain_ci"},
        "crossfitted": gain | {"folds": FOLDS, "patients": found.units},
        "expected_test_mAP": {
            "mAP": gain["guarded"],
            "interval": None if found.expected is None else list(found.expected),
            "patients": found.test_units,
        },
        "rules_crossfitted": {
            name: None if np.isnan(value) else value for name, value in found.rules.items()
        },
        "constants": {"steps": ensembles.STEPS, "shrink": ensembles.SHRINK},
        "draws": found.draws,
        "seed": seed,
    }


def _report_to_text(report: Mapping[str, Any]) -> list[str]:
    """What the log says of the choice."""
    cross, expected = report["crossfitted"], report["expected_test_mAP"]
    lines = [
        f"best plain rule by dev alone: {report['baseline']}",
        f"dev mAP {_gain(report['dev'])}, on the rows chosen on: too good to be true",
        f"dev mAP {_gain(cross)}, on patients not chosen on {_range(cross['gain_ci'])}",
        f"expected test mAP {_number(expected['mAP'])} {_range(expected['interval'], False)}, "
        f"for {expected['patients']} patients like dev's",
    ]
    if "test" in report:
        test = report["test"]
        lines.append(f"test mAP {_gain(test)} {_range(test['gain_ci'])}; it chose nothing")
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _gain(row: Mapping[str, Any]) -> str:
    gain = row["gain"]
    shown = "" if gain is None else f" ({gain:+.4f})"
    return f"{_number(row['guarded'])} against {_number(row['baseline'])}{shown}"


def _range(pair: list[float] | None, signed: bool = True) -> str:
    sign = "+" if signed else ""
    return (
        "(no interval)" if pair is None else f"(95 %: {pair[0]:{sign}.4f} to {pair[1]:{sign}.4f})"
    )
