"""Scores files: one row per image, one probability column per class; rows join by name.

Everything after `predict` works on these, without torch, also when they are someone else's.
"""

from __future__ import annotations

import csv
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lingula.settings.label_space import canonical, fold
from lingula.system import files
from lingula.system.csv_cells import escape_cell, format_csv, unescape_cell
from lingula.system.errors import InputError, examples, nearest
from lingula.tables.cells import Fault, raise_faults, read_frame, replace_decimal_commas
from lingula.tables.columns import BESIDE_SCORES, is_fact, read_text_cells


@dataclass(frozen=True)
class Predictions:
    """Probabilities (N, K) float64 in [0, 1] of N images; a row of NaN is an image that failed.

    Class names are canonical, so that two spellings of a finding are one class. `origin` is the
    file's name, for messages. Raises `InputError` for shapes that don't fit, repeated images or
    classes, values outside [0, 1] and rows with some scores only.
    """

    classes: tuple[str, ...]
    images: tuple[str, ...]
    probabilities: NDArray[np.float64]
    ids: tuple[str, ...] | None = None
    studies: tuple[str, ...] | None = None
    patients: tuple[str, ...] | None = None
    origin: str = "the scores"

    def __post_init__(self) -> None:
        values = np.asarray(self.probabilities, dtype=np.float64)
        object.__setattr__(self, "probabilities", values)
        object.__setattr__(self, "classes", tuple(canonical(name) for name in self.classes))
        if values.shape != (len(self.images), len(self.classes)):
            raise InputError(
                f"{self.origin}: {len(self.images)} images and {len(self.classes)} classes, but "
                f"an array of shape {values.shape}."
            )
        for field in ("ids", "studies", "patients"):
            column = getattr(self, field)
            if column is not None and len(column) != len(self.images):
                raise InputError(
                    f"{self.origin}: {len(column)} {field} for {len(self.images)} images."
                )
        _check_names(self)
        _check_values(self)

    def __len__(self) -> int:
        return len(self.images)


_ID_FIELDS = {"images": "image", "ids": "id", "studies": "study", "patients": "patient"}


def _check_names(predictions: Predictions) -> None:
    where = predictions.origin
    if not all(predictions.images):
        at = predictions.images.index("")
        raise InputError(f"{where}: row {at + 1} has no image name.")
    if len(set(predictions.images)) < len(predictions.images):
        repeated = _list_twice(predictions.images)
        raise InputError(
            f"{where}: images that occur more than once: {examples(repeated)}. Keep one row per "
            "image."
        )
    folded = [fold(name) for name in predictions.classes]
    if len(set(folded)) < len(folded):
        twice = [name for name in predictions.classes if folded.count(fold(name)) > 1]
        raise InputError(f"{where}: columns of one class: {examples(twice)}.")


def _check_values(predictions: Predictions) -> None:
    values = predictions.probabilities
    absent = np.isnan(values)
    partly = absent & ~absent.all(axis=1, keepdims=True)
    outside = (values < 0) | (values > 1)
    wrong = partly | outside
    if not wrong.any():
        return
    row, k = (int(found[0]) for found in np.nonzero(wrong))
    what = "no score; a row must have all its scores or none (an image that failed)"
    if outside[row, k]:
        what = f"{values[row, k]}; scores are probabilities in [0, 1] (sigmoid of the logits)"
    raise InputError(
        f"{predictions.origin}: image '{predictions.images[row]}', class "
        f"'{predictions.classes[k]}' has {what} ({int(wrong.sum())} such cells)."
    )


def _list_twice(keys: Sequence[str]) -> list[str]:
    return [name for name, count in Counter(keys).items() if count > 1]


def failed(predictions: Predictions) -> NDArray[np.bool_]:
    """(N,) True for the images without scores."""
    return np.asarray(np.isnan(predictions.probabilities).all(axis=1))


def read_scores(path: str | Path) -> Predictions:
    """Read a scores file (any table file, see `read_cells`).

    The key is the `image` column, or `id` (`dicom_id`) without one. Ids are read as those
    of tables are: `101.0` is `101`. Columns that tables
    have (view, split, age, ...) may be beside the scores; every other one is a class. A row
    whose scores are all blank is an image that failed. Raises `InputError` naming file, image and
    class for a value that is not a probability, and for repeated images.
    """
    file = Path(path)
    if not file.is_file():
        made = sorted(file.glob("scores/*.csv")) if file.is_dir() else []
        named = [path for path in made if not path.name.endswith(".failed.csv")]
        hint = f" Its scores: {examples(named)}." if named else ""
        raise files.not_a_file(file, "scores file", hint)
    frame = read_frame(file)
    faults: list[Fault] = []
    texts, rest = read_text_cells(frame, file, faults, fields=_ID_FIELDS)
    raise_faults(faults)
    columns = [name for name in rest if not is_fact(name) and fold(name) not in BESIDE_SCORES]
    keys = texts.get("images") or texts.get("ids")
    if not frame.height:
        raise InputError(f"{file} has no rows.")
    if keys is None or not columns:
        raise InputError(f"{file} needs an `image` (or `id`) column and one column per class.")
    values = _parse_scores(frame, columns, keys, file)
    ids, studies, patients = (texts.get(name) for name in ("ids", "studies", "patients"))
    return Predictions(tuple(columns), keys, values, ids, studies, patients, str(file))


def _parse_scores(
    frame: pl.DataFrame, columns: list[str], keys: tuple[str, ...], file: Path
) -> NDArray[np.float64]:
    """The cells as numbers, NaN where blank; `InputError` for any other text, NaN among it."""
    text = frame.select(pl.col(name).str.strip_chars() for name in columns)
    values, wrong = _parse_numbers(text)
    if wrong.any():
        values, wrong = _parse_numbers(text.select(replace_decimal_commas(pl.all())))
    if wrong.any():
        row, k = (int(found[0]) for found in np.nonzero(wrong))
        wordy = [name for name, column in zip(columns, wrong.T, strict=True) if column.all()]
        fix = "Leave all scores of an image that failed blank."
        if wordy:
            fix = f"Without any number: {examples(wordy)}; drop columns that are not classes."
        raise InputError(
            f"{file}: image '{keys[row]}', class '{columns[k]}' has {text[columns[k]][row]!r}, "
            f"which is not a probability ({int(wrong.sum())} such cells). {fix}"
        )
    return _read_exact(values, columns, file)


def _parse_numbers(text: pl.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Cells as numbers (NaN where blank), and which cells have other text."""
    values = text.select(pl.all().cast(pl.Float64, strict=False)).fill_null(np.nan).to_numpy()
    return values, np.isnan(values) & (text.select(pl.all() != "").to_numpy())


def _read_exact(values: NDArray[np.float64], columns: list[str], file: Path) -> NDArray[np.float64]:
    """The numbers of a .parquet file as stored: 32-bit ones change on their way through text."""
    if file.suffix != ".parquet":
        return values
    stored = pl.read_parquet(file)
    stored = stored.filter(~pl.all_horizontal(pl.all().is_null()))
    stored.columns = [name.strip() for name in stored.columns]
    if stored.height != len(values):
        raise InputError(f"{file} has rows that contain nothing but blanks; drop them.")
    values = values.copy()
    for k, name in enumerate(columns):
        if stored[name].dtype.is_float():
            values[:, k] = stored[name].cast(pl.Float64).fill_null(np.nan).to_numpy()
    return values


def write_scores(predictions: Predictions, path: str | Path) -> None:
    """Write .csv or .parquet, whole or not at all, with every digit: reading gives equal values."""
    file = Path(path)
    if file.suffix not in (".csv", ".parquet"):
        raise InputError(f"{file}: scores are written as .csv or .parquet.")
    with files.write_atomically(file) as temporary:
        if file.suffix == ".parquet":
            _make_frame(predictions).write_parquet(temporary, row_group_size=_ROW_GROUP)
        else:
            _make_frame(predictions).rename(escape_cell).write_csv(temporary)


_ROW_GROUP = 2**16


def failures_beside(scores: Path) -> Path:
    """Where the images without scores are named: `OUT.failed.csv`."""
    return scores.with_suffix(".failed.csv")


def write_failures(scores: Path, reasons: Mapping[str, str]) -> None:
    """Name the images without scores beside them, and why; an older result's are set aside."""
    path = failures_beside(scores)
    if reasons:
        files.write_text(path, format_csv(["image", "reason"], reasons.items()))
    elif path.exists():
        files.set_aside(path)


def read_failures(scores: Path) -> dict[str, str]:
    """The images without scores, and why; none where no file names any."""
    path = failures_beside(scores)
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as stream:
        return {row["image"]: unescape_cell(row["reason"]) for row in csv.DictReader(stream)}


def _make_frame(predictions: Predictions) -> pl.DataFrame:
    columns: list[pl.Series] = []
    for field, name in _ID_FIELDS.items():
        values = getattr(predictions, field)
        if values is not None:
            columns.append(pl.Series(name, values, dtype=pl.String))
    for k, name in enumerate(predictions.classes):
        column = pl.Series(name, predictions.probabilities[:, k], dtype=pl.Float64)
        columns.append(column.fill_nan(None))
    return pl.DataFrame(columns)


def align_rows(
    predictions: Predictions, images: Sequence[str], ids: Sequence[str] | None = None
) -> NDArray[np.intp]:
    """Row of `predictions` for each wanted image, joined by name, or by id where names differ.

    Raises `InputError` listing the images that have no scores. Rows never join by position.
    """
    rows = {name: row for row, name in enumerate(predictions.images)}
    missing = [name for name in images if name not in rows]
    if missing and ids is not None:
        theirs = predictions.ids or predictions.images
        by_id = {name: row for row, name in enumerate(theirs)}
        if all(name and name in by_id for name in ids):
            twice = _list_twice(ids) or [name for name in _list_twice(theirs) if name in set(ids)]
            if twice:
                raise InputError(
                    f"{predictions.origin}: image names differ, and these ids, by which to join "
                    f"instead, belong to several images: {examples(twice)}."
                )
            return np.array([by_id[name] for name in ids], dtype=np.intp)
    if missing:
        raise InputError(
            f"{predictions.origin} has no scores for {examples(missing)} ({len(missing)} of "
            f"{len(images)} images). Its images are {examples(predictions.images, 2)}."
        )
    return np.array([rows[name] for name in images], dtype=np.intp)


def select_rows(predictions: Predictions, rows: NDArray[np.intp]) -> Predictions:
    """The predictions of these rows, in this order."""
    texts: dict[str, Any] = {
        field: None if column is None else tuple(column[i] for i in rows)
        for field in _ID_FIELDS
        for column in (getattr(predictions, field),)
    }
    return replace(predictions, probabilities=predictions.probabilities[rows], **texts)


def class_columns(predictions: Predictions, classes: Sequence[str]) -> NDArray[np.intp]:
    """Column of each class, whatever its spelling; `InputError` naming the absent ones."""
    places = {fold(name): k for k, name in enumerate(predictions.classes)}
    wanted = [fold(canonical(name)) for name in classes]
    absent = [name for name, key in zip(classes, wanted, strict=True) if key not in places]
    if absent:
        raise InputError(
            f"{predictions.origin} has no scores of {examples(absent)}."
            f"{nearest(absent[0], predictions.classes)}"
        )
    return np.array([places[key] for key in wanted], dtype=np.intp)


log = logging.getLogger("lingula")
# Fewer scores may all lie anywhere by chance.
ENOUGH = 20
# A sigmoid of probabilities lies between those of 0 and of 1, 0.7311 and some rounding.
_TWICE = (0.5, 0.732)
_UNTRAINED = (0.45, 0.55)


def find_doubt(low: float, high: float, cells: int) -> str | None:
    """What scores that all lie from `low` to `high` may suffer from; None if nothing is odd.

    `cells` is how many scores there are; of fewer than `ENOUGH` nothing is said.
    """
    if cells < ENOUGH:
        return None
    untrained = _UNTRAINED[0] <= low and high <= _UNTRAINED[1]
    twice = _TWICE[0] <= low and high <= _TWICE[1]
    causes = ["the model may not have been trained"] * untrained
    causes += ["a sigmoid may have been applied twice, to probabilities"] * twice
    if not causes:
        return None
    begin, end = _UNTRAINED if untrained else _TWICE
    return f"All scores lie between {begin:g} and {end:g}: {', or '.join(causes)}."


def warn_of_doubt(predictions: Predictions) -> None:
    """A warning that names the scores, where all of them together look like no probabilities."""
    known = predictions.probabilities[np.isfinite(predictions.probabilities)]
    if not len(known):
        return
    found = find_doubt(float(known.min()), float(known.max()), len(known))
    if found is not None:
        log.warning("%s: %s", predictions.origin, found)
