"""What `sentences` says of a folder: its evaluation, its models, and the best model beside it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lingula.reporting.sentences import About, Measured, Rival, five_sentences
from lingula.scores.evaluation import compare_predictions
from lingula.scores.predictions import failed, read_scores
from lingula.scores.results import to_json
from lingula.scoring.models import ENSEMBLE, read_scoring_model
from lingula.system import files
from lingula.system.errors import InputError
from lingula.tables.table import Table
from lingula.training.run_labels import RunLabels, evaluate_run, scored_rows

log = logging.getLogger("lingula")

DRAWS = 1000


def summarise(
    folder: Path,
    labels: RunLabels,
    others: Sequence[Path] = (),
    *,
    result: Mapping[str, Any] | None = None,
) -> tuple[str, ...]:
    """The five sentences about a run or an ensemble, on test or, without test scores, on dev.

    Args:
        folder: the run or ensemble folder, with scores.
        labels: its table, from `labels_of`.
        others: folders of models to compare it with: the best linear head among them, or the best
            of all where none is one.
        result: its evaluation as JSON with intervals, where it is there already.
    """
    split = scored_split(folder)
    predictions = read_scores(folder / "scores" / f"{split}.csv")
    if result is None:
        result = to_json(evaluate_run(predictions, labels, split, ci=DRAWS))
    part, _ = scored_rows(predictions, labels, split)
    rival = find_rival(folder, labels, others, split)
    measured = Measured(result, split, part, labels.table, rival)
    return five_sentences(measured, describe_model(folder, labels.table, split))


def scored_split(folder: Path) -> str:
    """`test`, or `dev` where no test image has scores."""
    for split in ("test", "dev"):
        scores = folder / "scores" / f"{split}.csv"
        if scores.is_file() and not failed(read_scores(scores)).all():
            return split
    raise InputError(f"{folder} has no scores yet; finish it first.")


def describe_model(folder: Path, table: Table, split: str) -> About:
    """What a folder says of its model, or of its members."""
    value = files.read_object(folder / ENSEMBLE, absent_ok=True)
    members = members_of(folder)
    on = [facts["trained_on"] for facts in members]
    chosen = []
    out_of_fold = split in value.get("out_of_fold", ())
    kept = {facts["config"]["optim"].get("keep", "best") for facts in members}
    if split == "dev" and not out_of_fold and kept != {"last"}:
        chosen.append("the epoch")
    if value.get("made_from", {}).get("split") == split:  # an equal mean has none
        chosen.append("the weights of the members")
    return About(
        place=str(folder),
        images=tuple(int(one["images"]) for one in on),
        patients=tuple(int(one["patients"] or 0) for one in on),
        sources=tuple(dict.fromkeys(source for one in on for source in one["sources"])),
        phantom=table.phantom or any(one["phantom"] for one in on),
        has_models=bool(on),
        calibrated=(folder / "calibration.json").is_file(),
        out_of_fold=out_of_fold,
        chosen=tuple(chosen),
    )


def members_of(folder: Path) -> list[dict[str, Any]]:
    """What each member's `model.json` says, a run's own alone; empty where there are no models."""
    try:
        return [member.facts for member in read_scoring_model(folder).members]
    except InputError as error:
        log.info("Nothing is known of the models of %s: %s", folder, error)
        return []


def is_linear(members: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all members are linear heads."""
    kinds = {facts["architecture"]["classifier"] for facts in members}
    return kinds == {"linear"}


def find_rival(folder: Path, labels: RunLabels, others: Sequence[Path], split: str) -> Rival | None:
    """The best linear head among the others, or the best of all; None without comparable ones."""
    ours = read_scores(folder / "scores" / f"{split}.csv")
    found = []
    for other in others:
        scores = other / "scores" / f"{split}.csv"
        if other == folder or not scores.is_file():
            continue
        try:
            pair = compare_predictions(
                ours, read_scores(scores), labels.table, split=split, meaning=labels.data
            )
        except InputError as error:
            log.info("%s is not compared with %s: %s", folder, other, error)
            continue
        if not np.isnan(pair.difference):
            linear = is_linear(members_of(other))
            found.append(Rival(other.name, linear, pair.difference, pair.ci))
    found = [one for one in found if one.linear] or found
    if not found:
        return None
    # The one with the highest mAP is the one that we are the least above.
    best = min(found, key=lambda one: one.difference)
    return Rival(best.name, best.linear, best.difference, best.ci, len(found))
