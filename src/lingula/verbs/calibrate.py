"""`lingula calibrate`: a map and thresholds per class, fitted on dev; and applying them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lingula.scores import calibration
from lingula.scores.calibration import METHODS, Calibration, apply_curves, fit_calibration
from lingula.scores.joining import Joined, join_labels, rows_to_measure
from lingula.scores.predictions import (
    Predictions,
    failed,
    failures_beside,
    read_scores,
    warn_of_doubt,
    write_failures,
    write_scores,
)
from lingula.scores.thresholds import parse_rules
from lingula.scoring.models import ENSEMBLE, read_scoring_model
from lingula.settings.config import Data
from lingula.system import files
from lingula.system.claims import (
    OTHER_CONTENT,
    check_not_an_input,
    claim,
    other_settings,
    read_settings_beside,
    settings_beside,
)
from lingula.system.errors import InputError, examples, nearest
from lingula.training.run_labels import find_labels, read_labels, warn_of_other_labels

log = logging.getLogger("lingula")

NAME = "calibration.json"


def calibrate(
    source: str | Path,
    *,
    labels: str | Path | None = None,
    split: str = "dev",
    method: str = "platt",
    thresholds: Sequence[str] = ("max-f1",),
    ignore_columns: Sequence[str] = (),
    out: str | Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Fit a map of probabilities and thresholds for each class on dev; writes `calibration.json`.

    Args:
        source: a run or ensemble folder, whose `scores/SPLIT.csv` is used, or a scores file.
        labels: table with the labels; None: the run's or the ensemble's own.
        split: the table's rows to fit on; a table without splits is used whole.
        method: `platt`, `isotonic`, `temperature`, or `auto`: for each class the one with the least
            cross-fitted log loss.
        thresholds: rules such as `max-f1`, `youden`, `sensitivity=0.9`, `cost=10:1`.
        ignore_columns: columns of `labels` that are neither ids nor classes.
        out: the file; None: `RUN/calibration.json`, or `SCORES.calibration.json` beside the scores.
        overwrite: set an old file made with other settings aside first.

    The scores are not changed. A class with few positives is drawn towards the map of all classes
    together, and one without positives is not changed; the log and the file say which.
    """
    if method not in METHODS:
        raise InputError(
            f"There is no method '{method}'.{nearest(method, METHODS)} There are "
            f"{', '.join(METHODS)}."
        )
    rules = parse_rules(thresholds)
    scores, table_path, data, target = _places(Path(source), labels, ignore_columns, split, out)
    settings: dict[str, Any] = {
        "scores_sha256": files.sha256(scores),
        "labels_sha256": files.sha256(table_path),
        "model_sha256": _model_of(Path(source)),
        "split": split,
        "method": method,
        "thresholds": list(thresholds),
    }
    there = _settings_there(target) if target.is_file() and not overwrite else None
    conflict = other_settings(there, settings, skip=("scores", "labels"))
    claimed = claim(target, conflict, overwrite=overwrite)
    if claimed.is_done:
        return target
    warn_of_other_labels([(scores, table_path, settings["labels_sha256"])])
    joined, rows = _joined(scores, table_path, data, split)
    made = fit_calibration(joined, method, rules, where=rows)
    _log_result(made, rows)
    claimed.make_room()
    where = {"scores": str(scores.resolve()), "labels": str(table_path.resolve())}
    value = calibration.to_json(made) | {"made_from": settings | where}
    files.write_json(target, value | ({"of": "members"} if _is_out_of_fold(Path(source)) else {}))
    return target


def apply_calibration(
    calibration_file: str | Path,
    scores: str | Path,
    *,
    out: str | Path,
    overwrite: bool = False,
) -> Path:
    """Write calibrated scores to a new file; the raw scores are not changed.

    Args:
        calibration_file: what `calibrate` wrote.
        scores: raw scores, of classes that the calibration knows.
        out: the new scores file, `.csv` or `.parquet`; `OUT.made.json` beside it says from
            what it was made.
        overwrite: set an old file with other scores aside first.

    Images that failed stay blank and are named in `OUT.failed.csv`. Raises `InputError` for scores
    that were calibrated before.
    """
    path, raw, target = Path(calibration_file), Path(scores), Path(out)
    found = read_calibration(path)
    predictions = read_scores(raw)
    check_not_an_input(target, [raw])
    if calibrated_with(raw):
        raise InputError(
            f"{raw} is calibrated already ({settings_beside(raw)}). Give the raw scores."
        )
    result = apply_curves(found, predictions)
    made = {"calibration": files.sha256(path), "scores_sha256": files.sha256(raw)}
    conflict = None if read_settings_beside(target) == made else OTHER_CONTENT
    beside = [settings_beside(target), failures_beside(target)]
    claimed = claim(target, conflict, overwrite=overwrite, beside=beside)
    if claimed.is_done:
        return target
    claimed.make_room()
    write_scores(result, target)
    lost = [result.images[row] for row in np.flatnonzero(failed(result))]
    if lost:
        log.warning("%s: %d images have no scores: %s.", target, len(lost), examples(lost))
        write_failures(target, {image: f"no scores in {raw.name}" for image in lost})
    files.write_json(settings_beside(target), made)
    return target


def read_calibration(path: str | Path) -> Calibration:
    """The calibration in a file; `InputError` if it is absent or damaged."""
    if not Path(path).is_file():
        hint = f" Its own is {Path(path) / NAME}." if (Path(path) / NAME).is_file() else ""
        raise files.not_a_file(Path(path), "calibration", hint)
    return calibration.from_json(files.read_object(Path(path)), str(path))


def calibrated_with(scores: Path) -> str | None:
    """The hash of the calibration that scores were mapped with; None for raw ones."""
    found = (read_settings_beside(scores) or {}).get("calibration")
    return None if found is None else str(found)


def calibration_of_run(run: str | Path, weights_sha256: str) -> tuple[Calibration, str]:
    """A run's or model folder's calibration and its hash; `InputError` if it fits other weights.

    A model folder inside a run (`RUN/best`) has the run's.
    """
    folder = Path(run)
    path = folder / NAME
    if not path.is_file() and not (folder / "best" / "model.json").is_file():
        path = folder.parent / NAME
    if not path.is_file():
        raise InputError(
            f"{folder} has no {NAME}. Make one: `lingula calibrate {folder}` (it needs the run's "
            "dev scores and labels)."
        )
    made_for = files.read_object(path).get("made_from", {}).get("model_sha256")
    if made_for is not None and made_for != weights_sha256:
        raise InputError(
            f"{path} was made for other weights than {folder} has now. Make it again: `lingula "
            f"calibrate {folder} --overwrite`."
        )
    return read_calibration(path), files.sha256(path)


def _is_out_of_fold(source: Path) -> bool:
    """Whether each dev image was scored by members that did not see its patient, not by all."""
    made = files.read_object(source / ENSEMBLE, absent_ok=True) if source.is_dir() else {}
    return made.get("dev_scores") == "out-of-fold"


def _model_of(source: Path) -> str | None:
    """The hash of a run's or an ensemble's weights; None for scores without a model."""
    if files.read_object(source / ENSEMBLE, absent_ok=True).get("runs"):
        return read_scoring_model(source).sha256
    facts = files.read_object(source / "best" / "model.json", absent_ok=True)
    return facts.get("weights_sha256")


def _places(
    source: Path,
    labels: str | Path | None,
    ignore_columns: Sequence[str],
    split: str,
    out: str | Path | None,
) -> tuple[Path, Path, Data, Path]:
    """Scores, table, how the table is read, and the file to write."""
    scores, target = source, source.with_suffix(".calibration.json")
    if source.is_dir():
        scores, target = source / "scores" / f"{split}.csv", source / NAME
    if not scores.is_file():
        if source.is_dir():
            raise InputError(f"Calibration needs scores: {source} has no scores/{split}.csv.")
        raise files.not_a_file(scores, "scores file")
    table, data = find_labels(source, labels, ignore_columns)
    if table is None:
        raise InputError("Calibration is fitted on dev labels: give --labels TABLE.")
    if not table.is_file():
        raise InputError(f"{files.not_a_file(table, 'table')} Give --labels TABLE.")
    target = target if out is None else Path(out)
    files.check_suffix(target, (".json",), "a calibration")
    return scores, table, data, target


def _joined(scores: Path, table_path: Path, data: Data, split: str) -> tuple[Joined, str]:
    """Scores with labels, and which rows these are, in words, such as `on dev`.

    Classes that only the scores have count as without labels.
    """
    if split == "train":
        log.warning("Scores of the training split are too good: a calibration on them misleads.")
    predictions = read_scores(scores)
    warn_of_doubt(predictions)
    table = read_labels(table_path, data, predictions.classes)
    if table.splits is None:
        log.warning("%s has no split column: all its rows are used.", table_path)
    part = rows_to_measure(predictions, table, None if table.splits is None else split)
    joined, lost = join_labels(predictions, part, "image", data)
    if lost:
        log.warning("%d images have no scores and are left out: %s.", len(lost), examples(lost))
    where = "in all rows" if table.splits is None else f"on {split}"
    return _with_unlabelled(joined, predictions), where


def _with_unlabelled(joined: Joined, predictions: Predictions) -> Joined:
    """The same rows with the classes that only the scores have, all of whose labels are unknown."""
    known = set(joined.classes)
    extra = tuple(name for name in predictions.classes if name not in known)
    wider = ((0, 0), (0, len(extra)))
    return replace(
        joined,
        probabilities=np.pad(joined.probabilities, wider),
        targets=np.pad(joined.targets, wider),
        mask=np.pad(joined.mask, wider),
        classes=joined.classes + extra,
    )


def _settings_there(target: Path) -> dict[str, Any]:
    """What a calibration was made from; `InputError` for any other file."""
    value = files.read_object(target)
    calibration.from_json(value, str(target))
    return dict(value.get("made_from", {}))


def _log_result(made: Calibration, where: str) -> None:
    notes: dict[str, list[tuple[str, str]]] = {}
    for name, item in made.classes.items():
        for note in (item.curve.note, *(found.note for found in item.thresholds.values())):
            if note:
                reason, _, what = note.rpartition(": ")
                notes.setdefault(what, []).append((name, reason))
    for what, named in notes.items():
        if len(named) == 1:
            log.info("%s: %s", named[0][0], ": ".join(filter(None, (named[0][1], what))))
        else:
            told = (f"{name} ({reason})" if reason else name for name, reason in named)
            log.info("%s: %s", what, "; ".join(told))
    pairs = [(item.log_loss["raw"], item.log_loss["calibrated"]) for item in made.classes.values()]
    known = np.array([pair for pair in pairs if None not in pair], dtype=float)
    if len(known):
        log.info(
            "mean log loss %s over %d classes: %.4f raw, %.4f calibrated (on patients that the map "
            "was not fitted on)",
            *(where, len(known), *known.mean(axis=0)),
        )
