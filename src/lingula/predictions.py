"""Scores files: one row an image, one probability column a class, bound by name and id.

Everything after `predict` works on these, without torch, also when they are someone else's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lingula import files
from lingula.data.reading import COLUMNS, read_frame
from lingula.errors import InputError, examples
from lingula.labels import canonical, fold


@dataclass(frozen=True)
class Predictions:
    """Probabilities (N, K) float64 in [0, 1] of N images; a row of NaN is an image that failed.

    `origin` is the file's name, for messages.
    """

    classes: tuple[str, ...]
    images: tuple[str, ...]
    probabilities: NDArray[np.float64]
    ids: tuple[str, ...] | None = None
    studies: tuple[str, ...] | None = None
    patients: tuple[str, ...] | None = None
    origin: str = "the scores"

    def __len__(self) -> int:
        return len(self.images)


_ID_FIELDS = {"images": "image", "ids": "id", "studies": "study", "patients": "patient"}


def failed(predictions: Predictions) -> NDArray[np.bool_]:
    """(N,) True for the images without scores."""
    return np.asarray(np.isnan(predictions.probabilities).all(axis=1))


def read_scores(path: str | Path) -> Predictions:
    """Read a scores file (.csv or .parquet).

    The key is the `image` column, or `id` (`dicom_id`) where there is none. Raises `InputError`
    naming file, image and class for a value that is no probability, and for repeated images.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"There is no scores file {file}.")
    frame = read_frame(file)
    texts: dict[str, tuple[str, ...]] = {}
    columns: dict[str, str] = {}
    for name in frame.columns:
        field = COLUMNS.get(fold(name))
        if field is not None:
            texts.setdefault(field, tuple(frame[name].str.strip_chars().to_list()))
            continue
        if canonical(name) in columns:
            raise InputError(f"{file}: '{columns[canonical(name)]}' and '{name}' are one class.")
        columns[canonical(name)] = name
    keys = texts.get("images") or texts.get("ids")
    if keys is None or not columns:
        raise InputError(f"{file} needs an `image` (or `id`) column and a column a class.")
    repeated = _repeated(keys)
    if repeated:
        raise InputError(f"{file}: images that stand more than once: {examples(repeated)}.")
    probabilities = _probabilities(frame, list(columns.values()), keys, file)
    kept = {name: texts.get(name) for name in ("ids", "studies", "patients")}
    return Predictions(tuple(columns), keys, probabilities, **kept, origin=str(file))


def _repeated(keys: Sequence[str]) -> list[str]:
    names, count = np.unique(np.array(keys, dtype=object).astype(str), return_counts=True)
    return [str(name) for name in names[count > 1]]


def _probabilities(
    frame: pl.DataFrame, columns: list[str], keys: tuple[str, ...], file: Path
) -> NDArray[np.float64]:
    text = frame.select(pl.col(name).str.strip_chars() for name in columns)
    blank = text.select(pl.all().is_in(["", "nan", "NaN"])).to_numpy()
    values = np.column_stack(
        [text[name].cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy() for name in columns]
    )
    empty = np.asarray(blank.all(axis=1))
    partly = np.asarray(blank.any(axis=1)) & ~empty
    with np.errstate(invalid="ignore"):
        wrong = ~((values >= 0) & (values <= 1)) & ~empty[:, None]
    if wrong.any():
        row, k = (int(i[0]) for i in np.nonzero(wrong))
        why = "a row must have all its scores or none" if partly[row] else "scores are in [0, 1]"
        raise InputError(
            f"{file}: image '{keys[row]}', class '{columns[k]}' has {text[columns[k]][row]!r}; "
            f"{why} ({int(wrong.sum())} such cells)."
        )
    return values


def write_scores(predictions: Predictions, path: str | Path) -> None:
    """Write .csv or .parquet, whole or not at all, with every digit: reading gives equal values."""
    file = Path(path)
    columns: dict[str, Sequence[str] | NDArray[np.float64] | pl.Series] = {}
    for field, name in _ID_FIELDS.items():
        values = getattr(predictions, field)
        if values is not None:
            columns[name] = values
    for k, name in enumerate(predictions.classes):
        column = pl.Series(name, predictions.probabilities[:, k], dtype=pl.Float64)
        columns[name] = column.fill_nan(None)
    frame = pl.DataFrame(columns)
    with files.whole(file) as temporary:
        if file.suffix == ".parquet":
            frame.write_parquet(temporary)
        elif file.suffix == ".csv":
            frame.write_csv(temporary)
        else:
            raise InputError(f"{file}: scores are written as .csv or .parquet.")


def aligned(
    predictions: Predictions, images: Sequence[str], ids: Sequence[str] | None = None
) -> NDArray[np.intp]:
    """Row of `predictions` for each wanted image, joined by name, or by id where names differ.

    Raises `InputError` listing the images that have no scores. Rows never join by position.
    """
    rows = {name: row for row, name in enumerate(predictions.images)}
    missing = [name for name in images if name not in rows]
    if missing and ids is not None:
        by_id = {name: row for row, name in enumerate(predictions.ids or predictions.images)}
        if all(name in by_id for name in ids):
            return np.array([by_id[name] for name in ids], dtype=np.intp)
    if missing:
        raise InputError(f"{predictions.origin} has no scores for {examples(missing)}.")
    return np.array([rows[name] for name in images], dtype=np.intp)


def picked(predictions: Predictions, rows: NDArray[np.intp]) -> Predictions:
    """The predictions of these rows, in this order."""
    texts: dict[str, Any] = {
        field: None if column is None else tuple(column[i] for i in rows)
        for field in _ID_FIELDS
        for column in (getattr(predictions, field),)
    }
    return replace(predictions, probabilities=predictions.probabilities[rows], **texts)


def class_columns(predictions: Predictions, classes: Sequence[str]) -> NDArray[np.intp]:
    """Column of each class, by name; `InputError` naming the absent ones."""
    places = {fold(name): k for k, name in enumerate(predictions.classes)}
    absent = [name for name in classes if fold(name) not in places]
    if absent:
        raise InputError(f"{predictions.origin} has no scores of {examples(absent)}.")
    return np.array([places[fold(name)] for name in classes], dtype=np.intp)
