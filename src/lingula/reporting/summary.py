"""What a page says of a folder in words: five sentences, facts of its models, its calibration."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lingula.model.facts import read_facts
from lingula.reporting.sentences import About, Measured, Rival, five_sentences
from lingula.scores.calibration import apply_curves
from lingula.scores.calibration import from_json as from_json_calibration
from lingula.scores.ensembles import from_json
from lingula.scores.evaluation import compare_predictions
from lingula.scores.predictions import Predictions, failed, read_scores
from lingula.scores.results import to_json
from lingula.scores.thresholds import Threshold
from lingula.scoring.models import (
    ENSEMBLE,
    ScoringModel,
    has_out_of_fold_scores,
    read_scoring_model,
)
from lingula.system import files
from lingula.system.errors import InputError
from lingula.tables.table import Table
from lingula.training.run_labels import RunLabels, evaluate_run, number_format, scored_rows

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
    folds = has_out_of_fold_scores(folder)
    out_of_fold = folds and split == "dev"
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
        trained_on=("train", "dev") if folds else ("train",),
        chosen=tuple(chosen),
    )


def readable(folder: Path) -> ScoringModel | None:
    """The model of a run or an ensemble; None where there are only scores, or members are gone."""
    try:
        return read_scoring_model(folder)
    except InputError as error:
        log.debug("Nothing is known of the models of %s: %s", folder, error)
        return None


def members_of(folder: Path) -> list[dict[str, Any]]:
    """What each member's `model.json` says, a run's own alone; empty where there are no models."""
    model = readable(folder)
    return [] if model is None else [member.facts for member in model.members]


def list_facts(folder: Path, table: Table) -> list[tuple[str, str]]:
    """What a page says of a run's model, or of an ensemble and its members, as (name, value)."""
    value = files.read_object(folder / ENSEMBLE, absent_ok=True)
    model = readable(folder)
    uncertain = int((table.labels == -1).sum())
    last = [("Uncertain cells", str(uncertain))] if uncertain else []
    if not value:
        return [*_run_facts(folder, read_facts(folder)), *last]
    made = from_json(value, str(folder / ENSEMBLE))
    if model is None:
        return [("Rule", made.rule), ("Members", ", ".join(made.members)), *last]
    alike: dict[str, list[str]] = {}
    for member, own in zip(model.members, made.matrix(model.classes), strict=True):
        share = f"weight {own.mean():.2f}"
        if own.min() < own.max():
            share += f" ({own.min():.2f} to {own.max():.2f} by finding)"
        what = f"{_encoder(member.facts)}, {_decoder(member.facts)}; {share}"
        alike.setdefault(what, []).append(member.name)
    facts = [("Rule", made.rule)]
    for what, names in alike.items():
        several = "Members" if len(names) > 1 else "Member"
        facts.append((several, f"{', '.join(names)}: {what}{' each' * (len(names) > 1)}"))
    every = [member.facts for member in model.members]
    on = [one["trained_on"] for one in every]
    never = set.intersection(*(set(one["never_positive"]) for one in on))
    return [
        *facts,
        ("Starting weights", _distinct(one["weights"] for one in every)),
        ("Test-time views", _distinct(one["evaluation"]["tta"] for one in every)),
        ("Training images", _distinct(_training_images(one) for one in on)),
        ("Table", _distinct(_table(one) for one in on)),
        ("Sources", _distinct(", ".join(one["sources"]) or "not stated" for one in on)),
        ("Never positive in training", ", ".join(sorted(never)) or "none"),
        *last,
    ]


def _run_facts(run: Path, facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    on = facts["trained_on"]
    return [
        ("Image encoder", _encoder(facts)),
        ("Decoder", _decoder(facts)),
        ("Class queries", facts["text"]),
        ("Starting weights", facts["weights"]),
        ("Test-time views", facts["evaluation"]["tta"]),
        ("Scores computed in", number_format(run / "scores" / "dev.csv") or "not known"),
        ("Training images", _training_images(on)),
        ("Table", _table(on)),
        ("Sources", ", ".join(on["sources"]) or "not stated"),
        ("Epoch kept", _kept(facts)),
        ("Never positive in training", ", ".join(on["never_positive"]) or "none"),
    ]


def _encoder(facts: Mapping[str, Any]) -> str:
    return f"{facts['architecture']['encoder']}, {facts['architecture']['image_size']} px"


def _decoder(facts: Mapping[str, Any]) -> str:
    a = facts["architecture"]
    if a["classifier"] == "linear":
        return "no decoder (linear on pooled features)"
    return f"{a['layers']} x {a['width']}, {a['classifier']} classifier"


def _training_images(on: Mapping[str, Any]) -> str:
    return f"{on['images']} of {on['patients'] or 'unknown'} patients"


def _table(on: Mapping[str, Any]) -> str:
    return f"{on['table']}, sha256 {on['sha256'][:12]}"


def _kept(facts: Mapping[str, Any]) -> str:
    """Which epoch's model it is, and why that one."""
    if facts["config"]["optim"].get("keep", "best") == "last":
        return f"{facts['epoch']}, the last"
    return f"{facts['epoch']} by dev mAP {facts['dev_mAP'] or float('nan'):.4f}"


def _distinct(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(texts))


@dataclass(frozen=True)
class Calibrated:
    """What a page says of `calibration.json`, for the images measured.

    Attributes:
        raw: the mean over findings of the calibration error of the scores as they are.
        mapped: the same of the calibrated scores.
        fitted_here: the images measured are those that it was fitted on.
        of_members: it was fitted on out-of-fold scores of single members, not on their mean.
        thresholds: finding, rule, and the threshold.
    """

    raw: float | None
    mapped: float | None
    fitted_here: bool
    of_members: bool
    thresholds: Sequence[tuple[str, str, Threshold]]


def describe_calibration(
    folder: Path, predictions: Predictions, labels: RunLabels, split: str
) -> Calibrated | None:
    """What a folder's calibration does to its scores of a split; None without a fitting one."""
    path, model = folder / "calibration.json", readable(folder)
    value = files.read_object(path, absent_ok=True)
    if not value:
        return None
    made = value.get("made_from", {})
    if made.get("model_sha256") and model is not None and made["model_sha256"] != model.sha256:
        log.warning("%s was made for other weights and is not shown.", path)
        return None
    found = from_json_calibration(value, str(path))
    try:
        mapped = apply_curves(found, predictions)
    except InputError as error:
        log.warning("%s is not shown: %s", path, error)
        return None
    raw, after = (to_json(evaluate_run(p, labels, split))["mECE"] for p in (predictions, mapped))
    return Calibrated(
        raw=raw,
        mapped=after,
        fitted_here=made.get("split") == split,
        of_members=value.get("of") == "members"
        or (made.get("split") == "dev" and has_out_of_fold_scores(folder)),
        thresholds=[
            (name, rule, threshold)
            for name, item in found.classes.items()
            for rule, threshold in item.thresholds.items()
        ],
    )


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
            theirs = read_scores(scores)
            mAP = evaluate_run(theirs, labels, split).metrics.mAP
        except InputError as error:
            log.debug("%s is not compared with %s: %s", folder, other, error)
            continue
        if not np.isnan(mAP) and set(theirs.classes) & set(ours.classes):
            found.append((mAP, is_linear(members_of(other)), other))
    found = [one for one in found if one[1]] or found
    if not found:
        return None
    _, linear, best = max(found, key=lambda one: one[0])
    pair = compare_predictions(
        ours,
        read_scores(best / "scores" / f"{split}.csv"),
        labels.table,
        split=split,
        meaning=labels.data,
        draws=DRAWS,
    )
    if np.isnan(pair.difference):
        return None
    return Rival(best.name, linear, pair.difference, pair.ci, len(found))
