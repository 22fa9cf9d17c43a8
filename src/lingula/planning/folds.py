"""The tables of a plan's folds, and the model that its trainings become."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lingula.planning.choosing import (
    Candidate,
    Comparison,
    candidates_of,
    choose,
    name_shares,
    pool_folds,
)
from lingula.planning.plan import StartPlan
from lingula.planning.training_jobs import Job, fold_table
from lingula.scores.ensembles import Ensemble, to_json
from lingula.scores.members import Sample, failed_in_any, join_members
from lingula.scores.predictions import Predictions, read_scores, select_rows, write_scores
from lingula.scoring.models import ENSEMBLE, note_members
from lingula.settings.config import Data
from lingula.system import files
from lingula.tables.reading import boxes_path, find_boxes, read_table, write_table
from lingula.tables.splits import folds_by_patient
from lingula.tables.table import Table, rows_of, subset, with_splits

RULE = "cross-validated"


def write_tables(plan: StartPlan, folder: Path, whole: Table) -> None:
    """Write `table.csv`, with the images of the folds as `dev`, and a table for each fold.

    The tables of the folds do not have the test split, so that no training can read it.
    """
    if fold_table(folder, plan.folds - 1).is_file():
        return
    write_table(whole, folder / "table.csv")
    boxes = find_boxes(whole)
    if boxes is not None:
        with files.write_atomically(boxes_path(folder / "table.csv")) as temporary:
            shutil.copyfile(boxes, temporary)
    pool = subset(whole, rows_of(whole, "dev"))
    fold_of = folds_by_patient(
        pool,
        plan.folds,
        seed=plan.config.seed,
        images_are_patients=plan.config.data.images_are_patients,
    )
    for fold in range(plan.folds):
        splits = tuple("dev" if here == fold else "train" for here in fold_of)
        write_table(with_splits(pool, splits), fold_table(folder, fold))


@dataclass(frozen=True)
class OutOfFold:
    """Out-of-fold scores of each design on the same images, and the same joined with labels."""

    pooled: Mapping[str, Predictions]
    sample: Sample


def read_out_of_fold(plan: StartPlan, folder: Path, jobs: Sequence[Job]) -> OutOfFold:
    """The scores of all images of the folds, each by the trainings that did not have it."""
    table = read_table(folder / "table.csv", soft=plan.config.data.soft)
    part = subset(table, rows_of(table, "dev"))
    pooled = {}
    for design in plan.designs:
        mine = [job for job in jobs if job.design == design]
        read = [
            [read_scores(job.run / "scores" / "dev.csv") for job in mine if job.fold == fold]
            for fold in range(plan.folds)
        ]
        pooled[design] = pool_folds(read, part)
    return OutOfFold(pooled, join_members(pooled, part, plan.config.data))


def write_models(
    plan: StartPlan, folder: Path, jobs: Sequence[Job], baseline: str
) -> list[Comparison]:
    """Choose by out-of-fold scores; make a model of the folder, and one of the baseline in it.

    Returns the comparison of the candidates.
    """
    found, seed = read_out_of_fold(plan, folder, jobs), plan.config.seed
    candidates = candidates_of(found.sample, seed=seed)
    compared = choose(candidates, found.sample, seed=seed)
    chosen = next(one.name for one in compared if one.chosen)
    for candidate in candidates:
        if candidate.name == baseline:
            _write_model(folder / baseline, candidate, found, jobs, folder / "table.csv", plan)
        if candidate.name == chosen:
            _write_model(folder, candidate, found, jobs, folder / "table.csv", plan)
    return compared


def _write_model(
    place: Path,
    candidate: Candidate,
    found: OutOfFold,
    jobs: Sequence[Job],
    table: Path,
    plan: StartPlan,
) -> None:
    """Write out-of-fold scores and then `ensemble.json`, by which a folder is a model."""
    runs = {name: [job.run for job in jobs if job.design == name] for name in plan.designs}
    names = {name: [run.name for run in here] for name, here in runs.items()}
    sample = found.sample
    shares = name_shares(candidate, sample.members, names, sample.classes)
    used = {run for share in shares.values() for run in share}
    members = {run.name: run for here in runs.values() for run in here if run.name in used}
    good = np.flatnonzero(~failed_in_any(found.pooled))
    rows = select_rows(next(iter(found.pooled.values())), good)
    scores = replace(rows, classes=sample.classes, probabilities=candidate.scores)
    write_scores(scores, place / "scores" / "dev.csv")
    made = Ensemble(RULE, tuple(members), shares, {})
    files.write_json(
        place / ENSEMBLE,
        {
            **to_json(made),
            "runs": note_members(place, members),
            "dev_scores": "out-of-fold",
            "made_from": {
                "labels": str(table),
                "labels_sha256": files.sha256(table),
                "data": meaning_of(plan.config.data),
            },
        },
    )


def meaning_of(data: Data) -> dict[str, Any]:
    """What the cells of the plan's own tables mean, as settings of `data`."""
    return data.model_dump(include={"uncertain", "blank", "unmentioned", "soft"})


def comparison_to_json(compared: Sequence[Comparison]) -> list[dict[str, Any]]:
    """The comparison as plain values."""
    return [asdict(one) for one in compared]
