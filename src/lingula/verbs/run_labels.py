"""What a run is measured against: its table as its settings read it, and thresholds from dev."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lingula import metrics
from lingula.config import Data, read_config
from lingula.data.configured import configured_table, configured_targets
from lingula.data.reading import read_table
from lingula.data.table import Table, rows_of, subset
from lingula.errors import InputError
from lingula.evaluated import Evaluation
from lingula.evaluation import Setting, evaluate_predictions
from lingula.predictions import Predictions, aligned, failed, read_scores


@dataclass(frozen=True)
class RunLabels:
    """A table, and the settings that say what its unknown cells mean."""

    table: Table
    data: Data

    def part(self, split: str) -> Table:
        """The rows of a split."""
        return subset(self.table, rows_of(self.table, split))


def labels_of(folder: Path, trained: Sequence[Path] = ()) -> RunLabels:
    """A run's own labels; an ensemble's are those of the first run named, or the ones it kept."""
    for run in (folder, *trained):
        if (run / "config.yaml").is_file():
            data, kept = read_config(run / "config.yaml").data, run / "table.csv"
            return RunLabels(configured_table(data, kept if kept.is_file() else None), data)
    path = folder / "ensemble.json"
    made = (
        json.loads(path.read_text(encoding="utf-8")).get("made_from", {}) if path.is_file() else {}
    )
    if not made.get("labels"):
        raise InputError(f"{folder} does not say which labels it belongs to; name its runs too.")
    return RunLabels(read_table(made["labels"]), Data())


def measured(
    predictions: Predictions,
    labels: RunLabels,
    split: str | None,
    *,
    ci: int = 0,
    setting: Setting | None = None,
) -> Evaluation:
    """Scores against the labels, unknown cells meaning what the run's settings say."""
    return evaluate_predictions(
        predictions,
        labels.table,
        split=split,
        ci=ci,
        uncertain=labels.data.uncertain,
        blank=labels.data.blank,
        unmentioned=labels.data.unmentioned,
        setting=setting or Setting(),
    )


def scored(
    predictions: Predictions, labels: RunLabels, split: str
) -> tuple[Table, NDArray[np.float64]]:
    """The rows of a split that have scores, and those scores in the same order."""
    part = labels.part(split)
    rows = aligned(predictions, part.images, part.ids)
    good = ~failed(predictions)[rows]
    return subset(part, np.flatnonzero(good)), predictions.probabilities[rows[good]]


def dev_thresholds(run: Path, labels: RunLabels) -> dict[str, float]:
    """Max-F1 thresholds on dev, by class; a class without positives there has none."""
    predictions = read_scores(run / "scores" / "dev.csv")
    part, probabilities = scored(predictions, labels, "dev")
    values, mask = configured_targets(labels.data, part)
    found = {}
    for column, name in enumerate(predictions.classes):
        k = part.space.index(name)
        known = mask[:, k]
        limit = metrics.max_f1_threshold(probabilities[known, column], values[known, k] >= 0.5)
        if not np.isnan(limit):
            found[name] = limit
    return found
