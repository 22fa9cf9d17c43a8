"""What a model of `lingula start` is worth, by its out-of-fold scores and by its test split.

    python examples/start_study.py DIR --out study.json [--more RUNS]

DIR is a finished `lingula start`. Its out-of-fold scores are compared, by patients in pairs, with
those of one linear head per fold, which DIR has trained, and with an ensemble of linear heads: RUNS
is a folder of more linear heads on the same folds, `linear-1`, `linear-2`, ... with other seeds:

    lingula train DIR/plan.yaml model.classifier=linear data.table=DIR/folds/fold-1.csv \\
        seed=1 --out RUNS/linear-1

Without some of these, all comparisons are on the folds that have one.

The calibration error is that of maps fitted on other patients. On the test split the same
differences are only reported: nothing was chosen by them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from lingula.planning.choosing import compare_scores, pool_folds
from lingula.planning.plan import read_plan
from lingula.planning.training_jobs import jobs_of
from lingula.scores.calibration import apply_curve, fit_curve, fit_pooled
from lingula.scores.intervals import fold_numbers
from lingula.scores.members import Sample, join_members
from lingula.scores.metrics import Floats, measure_classes
from lingula.scores.predictions import Predictions, align_rows, read_scores, select_rows
from lingula.scores.reliability import calibration_error
from lingula.system import files
from lingula.tables.reading import read_table
from lingula.tables.table import Table, rows_of, subset

DRAWS = 2000
FOLDS = 5


def pool_runs(runs: list[Path], table: Table) -> Predictions:
    """Out-of-fold scores of one run per fold."""
    return pool_folds([[read_scores(run / "scores" / "dev.csv")] for run in runs], table)


def select(scores: Predictions, table: Table) -> Predictions:
    """The scores of the table's images, in its order."""
    return select_rows(scores, align_rows(scores, table.images))


def measure(scores: Floats, sample: Sample) -> dict[str, float]:
    """mAP and macro AUROC on the sample."""
    found = measure_classes(scores, sample.positive, sample.mask)
    return {"mAP": found.mAP, "AUROC": found.macro_auroc}


def subtract(ours: Floats, theirs: Floats, sample: Sample) -> dict[str, Any]:
    """Ours minus theirs, with intervals."""
    found = compare_scores(ours, theirs, sample, draws=DRAWS)
    return {
        "mAP": [found.mAP, *(found.mAP_ci or ())],
        "AUROC": [found.AUROC, *(found.AUROC_ci or ())],
    }


def calibration_errors(scores: Floats, sample: Sample) -> dict[str, float]:
    """Mean over classes of the expected calibration error, raw and by maps of other patients."""
    fold_of_row = fold_numbers(sample.units, FOLDS, 0)
    units = np.unique(sample.units, return_inverse=True)[1]
    mapped = np.empty_like(scores)
    for fold in range(FOLDS):
        here = fold_of_row == fold
        pooled = fit_pooled(scores[~here], sample.positive[~here], sample.mask[~here])
        for k in range(len(sample.classes)):
            rows = ~here & sample.mask[:, k]
            labels = sample.positive[rows, k]
            curve = fit_curve("platt", scores[rows, k], labels, pooled, units[rows])
            mapped[here, k] = apply_curve(curve, scores[here, k])
    found = {}
    for name, values in (("raw", scores), ("calibrated", mapped)):
        each = [
            calibration_error(values[known, k], sample.positive[known, k])
            for k, known in enumerate(sample.mask.T)
        ]
        found[name] = float(np.mean(each))
    return found


def study(folder: Path, more: Path | None) -> dict[str, Any]:
    """All comparisons of one finished start."""
    plan, table = read_plan(folder / "plan.yaml"), read_table(folder / "table.csv")
    part = subset(table, rows_of(table, "dev"))
    members = {
        "start": read_scores(folder / "scores" / "dev.csv"),
        "linear": read_scores(folder / "linear" / "scores" / "dev.csv"),
    }
    jobs = jobs_of(plan, folder)
    for design in plan.designs:
        first = [job.run for job in jobs if job.design == design and job.seed == 0]
        members[f"one {design}"] = pool_runs(first, part)
    if more is not None:
        runs = {fold: more / f"linear-{fold + 1}" for fold in range(plan.folds)}
        there = [run for run in runs.values() if (run / "finished.json").is_file()]
        named = {image for run in there for image in read_scores(run / "scores" / "dev.csv").images}
        part = subset(part, np.flatnonzero([image in named for image in part.images]))
        members = {name: select(one, part) for name, one in members.items()}
        members["more linear"] = pool_runs(there, part)
    sample = join_members(members, part, plan.config.data)
    scores = dict(zip(sample.members, sample.scores, strict=True))
    scores["together"] = np.mean([scores[f"one {design}"] for design in plan.designs], axis=0)
    if more is not None:
        scores["linear ensemble"] = (scores["linear"] + scores["more linear"]) / 2
    result: dict[str, Any] = {
        "images": len(sample.units),
        "patients": len(set(sample.units)),
        "out of fold": {name: measure(one, sample) for name, one in scores.items()},
        **{
            f"{ours} minus": {
                name: subtract(scores[ours], one, sample)
                for name, one in scores.items()
                if name != ours
            }
            for ours in ("start", "together")
        },
        "calibration error": calibration_errors(scores["start"], sample),
    }
    if (folder / "scores" / "test.csv").is_file():
        result["test"] = study_test(folder, table)
    return result


def study_test(folder: Path, table: Table) -> dict[str, Any]:
    """The test split: the model, the linear head's ensemble, and their difference."""
    plan, part = read_plan(folder / "plan.yaml"), subset(table, rows_of(table, "test"))
    members = {"start": read_scores(folder / "scores" / "test.csv")}
    if (folder / "linear" / "scores" / "test.csv").is_file():
        members["linear"] = read_scores(folder / "linear" / "scores" / "test.csv")
    sample = join_members(members, part, plan.config.data)
    scores = dict(zip(sample.members, sample.scores, strict=True))
    found: dict[str, Any] = {name: measure(one, sample) for name, one in scores.items()}
    if "linear" in scores:
        found["start minus linear"] = subtract(scores["start"], scores["linear"], sample)
    return found


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    words.add_argument("folder", type=Path)
    words.add_argument("--more", type=Path, help="folder of more linear heads, linear-1, ...")
    words.add_argument("--out", type=Path, required=True)
    given = words.parse_args()
    found = study(given.folder, given.more)
    files.write_json(given.out, found)
    print(json.dumps(found, indent=2))
