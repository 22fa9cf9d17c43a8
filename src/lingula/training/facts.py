"""What is said of a training: in `model.json` what it was trained on, in the end how it went."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import lingula
from lingula.scores.evaluation import in_words
from lingula.scores.evaluation import to_json as evaluation_to_json
from lingula.scores.predictions import failures_beside, read_scores, write_failures
from lingula.settings.config import Config
from lingula.system.errors import examples
from lingula.tables.configured import configured_targets
from lingula.tables.joins import Outside
from lingula.tables.table import Table, rows_of, subset
from lingula.training.run_labels import RunLabels, measured

log = logging.getLogger("lingula")


def facts_of(config: Config, table: Table, others: Sequence[Outside] = ()) -> dict[str, Any]:
    """What `model.json` says besides the network: data, reading, evaluation, settings."""
    rows = rows_of(table, "train")
    parts = [subset(table, rows), *(other.table for other in others)]
    read = [configured_targets(config.data, part) for part in parts]
    positives = np.sum([((values >= 0.5) & mask).sum(0) for values, mask in read], axis=0)
    counts = {name: int(n) for name, n in zip(table.space.classes, positives, strict=True)}
    return {
        "lingula": lingula.__version__,
        "notice": lingula.NOTICE,
        "reading": {"image_size": config.model.image_size, "bits": config.data.bits},
        "evaluation": config.evaluation.model_dump(mode="json"),
        "trained_on": {
            "table": table.path.name if table.path else "",
            "sha256": table.sha256,
            "images": len(rows),
            "patients": len({table.patients[i] for i in rows}) if table.patients else None,
            "sources": sorted(set(table.sources)) if table.sources else [],
            "phantom": table.phantom,
            "outside": [
                {
                    "table": other.table.path.name if other.table.path else "",
                    "sha256": other.table.sha256,
                    "images": len(other.table),
                    "unmentioned": list(other.lacks),
                }
                for other in others
            ],
            "positives": counts,
            "never_positive": [name for name, n in counts.items() if n == 0],
        },
        "config": config.model_dump(mode="json"),
    }


def summary_of(
    path: Path, part: Table, config: Config, failures: Mapping[int, str]
) -> dict[str, Any]:
    """The means of a split's scores, and how many images have none, which are named beside them."""
    write_failures(path, {part.images[row]: why for row, why in failures.items()})
    told: dict[str, Any] = {"mAP": None, "AUROC": None, "n": 0}
    if len(failures) < len(part):
        found = evaluation_to_json(measured(read_scores(path), RunLabels(part, config.data), None))
        told = {key: found[key] for key in told}
        log.info("On the %d images of %s: %s.", found["n"], path.stem, in_words(found))
    if failures:
        told["failed"] = len(failures)
        log.warning(
            "%d of %d %s images can't be read and have no scores: %s (%s names them all)",
            len(failures),
            len(part),
            path.stem,
            examples(failures.values(), 3),
            failures_beside(path),
        )
    return told
