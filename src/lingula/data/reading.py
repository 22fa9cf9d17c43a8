"""Reading and writing table files (.csv, .parquet) and the JSON description beside them.

Every cell is read as text, so that ids stay as they are; columns are sorted into ids and classes by
name; and whatever is neither is an error that names it.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lingula import files
from lingula.data.table import BLANK, SPLITS, UNCERTAIN, UNMENTIONED, Table
from lingula.errors import InputError, examples, nearest
from lingula.labels import LabelSpace, canonical, fold, is_known, suggestion

log = logging.getLogger("lingula")

# Column names, folded, to fields of `Table`.
COLUMNS = {
    "image": "images",
    "path": "images",
    "fpath": "images",
    "id": "ids",
    "dicom id": "ids",
    "patient": "patients",
    "subject id": "patients",
    "study": "studies",
    "study id": "studies",
    "view": "views",
    "viewposition": "views",
    "split": "splits",
    "age": "ages",
    "sex": "sexes",
    "source": "sources",
}
_NAMES = {
    "images": "image",
    "ids": "id",
    "patients": "patient",
    "studies": "study",
    "views": "view",
    "splits": "split",
    "ages": "age",
    "sexes": "sex",
    "sources": "source",
}
_SPLIT_NAMES = {name: name for name in SPLITS} | {
    "val": "dev",
    "valid": "dev",
    "validate": "dev",
    "validation": "dev",
    "": "",
}
_BLANKS = ("", "na", "nan", "n/a", "null", "none")
CELLS = {"1": 1.0, "1.0": 1.0, "true": 1.0, "0": 0.0, "0.0": 0.0, "false": 0.0}
CELLS |= {"-1": UNCERTAIN, "-1.0": UNCERTAIN} | dict.fromkeys(_BLANKS, BLANK)


def read_frame(path: str | Path) -> pl.DataFrame:
    """All cells of a .csv or .parquet file as text; headers stripped. Blank cells are ''.

    Raises `InputError` for a missing, empty or `;`-separated file and for repeated columns.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"There is no table {file}.")
    try:
        if file.suffix == ".parquet":
            frame = pl.read_parquet(file)
            frame = frame.select(_as_text(column) for column in frame.columns)
        else:
            frame = _read_csv(file)
    except pl.exceptions.NoDataError:
        raise InputError(f"{file} has no rows.") from None
    except (pl.exceptions.PolarsError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{file} can't be read as a table: {error}") from None
    frame.columns = [name.replace("\ufeff", "").strip() for name in frame.columns]
    return frame.fill_null("")


def _as_text(column: str) -> pl.Expr:
    # A whole number that was stored as a float (an id beside blanks) loses its ".0".
    return pl.col(column).cast(pl.String).str.replace(r"^(-?\d+)\.0$", "$1").alias(column)


def _read_csv(file: Path) -> pl.DataFrame:
    with file.open("rb") as stream:
        head = stream.readline().decode("utf-8-sig").rstrip("\r\n")
    if not head.strip():
        raise InputError(f"{file} is empty.")
    if ";" in head and "," not in head:
        raise InputError(
            f"{file} looks like ; separated. Save it with commas (and decimal points)."
        )
    names = [name.strip() for name in next(csv.reader([head]))]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"{file} has columns that stand twice: {examples(repeated)}.")
    return pl.read_csv(
        file,
        has_header=False,
        skip_rows=1,
        new_columns=names,
        infer_schema_length=0,
        encoding="utf8",
    )


def read_table(
    path: str | Path,
    *,
    classes: LabelSpace | None = None,
    root: Path | None = None,
    ignore_columns: Sequence[str] = (),
    soft: bool = False,
) -> Table:
    """Read a table with its labels.

    Args:
        path: .csv or .parquet; the JSON of the same name beside it is read if it is there.
        classes: the label space; None takes the JSON's, or every column of labels.
        root: folder of the images; None takes the JSON's, or the table's own folder.
        ignore_columns: columns that are neither ids nor classes.
        soft: cells may be probabilities.

    Raises:
        InputError: names the file, the column and the row of what is wrong.
    """
    file = Path(path)
    frame = read_frame(file)
    described = read_description(file)
    if not frame.height:
        raise InputError(f"{file} has no rows.")
    texts, rest = _text_columns(frame, file, ignore_columns)
    if "images" not in texts:
        raise InputError(
            f"{file} has no `image` column (paths relative to the table). It has: "
            f"{examples(frame.columns, 12)}."
        )
    if classes is None and described.get("classes"):
        classes = LabelSpace(tuple(described["classes"]))
    columns = _class_columns(frame, rest, classes, file)
    space = classes or LabelSpace(tuple(canonical(name) for name in columns))
    labels = np.full((frame.height, len(space)), UNMENTIONED, dtype=np.float32)
    for name, column in columns.items():
        labels[:, space.index(name)] = _cells(frame[column], column, file, soft)
    _unmentioned(labels, space, texts.get("sources"), described)
    _no_repeats(texts["images"], file)
    sha256 = files.sha256(file)
    if described.get("sha256") not in (None, sha256):
        log.warning("%s has changed since its description beside it was written.", file)
    where = root or (file.parent / described.get("root", "."))
    return Table(
        root=where,
        space=space,
        labels=labels,
        blank=described.get("blank", "ignore"),
        phantom=bool(described.get("phantom", False)),
        path=file,
        sha256=sha256,
        **texts,
    )


def read_description(table: Path) -> dict[str, Any]:
    """The JSON beside a table, or an empty dict."""
    path = table.with_suffix(".json")
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged: {error}") from None
    return found if isinstance(found, dict) and found.get("format") == 1 else {}


def _text_columns(
    frame: pl.DataFrame, file: Path, ignored: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """The id columns by field, and the names of all other columns."""
    texts: dict[str, Any] = {}
    rest = []
    for name in frame.columns:
        target = COLUMNS.get(fold(name))
        if target is None:
            if name not in ignored:
                rest.append(name)
        elif target not in texts:
            texts[target] = tuple(frame[name].str.strip_chars().to_list())
        else:
            raise InputError(
                f"{file} has two columns for `{_NAMES[target]}`: '{name}' and another."
            )
    absent = [name for name in ignored if name not in frame.columns]
    if absent:
        raise InputError(
            f"{file} has no column '{absent[0]}' to ignore.{nearest(absent[0], frame.columns)}"
        )
    if "splits" in texts:
        texts["splits"] = _splits(texts["splits"], file)
    return texts, rest


def _splits(cells: tuple[str, ...], file: Path) -> tuple[str, ...]:
    wrong = sorted({cell for cell in cells if cell.casefold() not in _SPLIT_NAMES})
    if wrong:
        raise InputError(f"{file}: split must be train, dev or test, not {examples(wrong)}.")
    return tuple(_SPLIT_NAMES[cell.casefold()] for cell in cells)


def _class_columns(
    frame: pl.DataFrame, rest: list[str], classes: LabelSpace | None, file: Path
) -> dict[str, str]:
    """Class name to column, for every column that is a class; an error for all others."""
    found: dict[str, str] = {}
    for column in rest:
        name = canonical(column)
        if classes is not None and column not in classes:
            if is_known(column):
                continue  # a finding of another label space, which was not asked for
            if _looks_like_labels(frame[column]):
                raise InputError(
                    f"{file}: column '{column}' looks like a class, but is none of the "
                    f"{len(classes)} classes.{suggestion(column, classes.classes)} If it is not, "
                    f"ignore it: data.ignore_columns=[{column}]."
                )
        elif classes is None and not is_known(column) and not _looks_like_labels(frame[column]):
            raise InputError(
                f"{file}: column '{column}' is neither an id nor a class: it holds "
                f"{frame[column][0]!r}.{suggestion(column)} Ignore it with "
                f"data.ignore_columns=[{column}], or mend its cells (1, 0, -1 or blank)."
            )
        else:
            if name in found:
                raise InputError(f"{file}: '{found[name]}' and '{column}' are the same class.")
            found[name] = column
            continue
        if classes is not None and not _looks_like_labels(frame[column]):
            raise InputError(
                f"{file}: column '{column}' is neither an id nor one of the {len(classes)} "
                f"classes.{nearest(column, classes.classes)} Ignore it with "
                f"data.ignore_columns=[{column}]."
            )
    if not found:
        raise InputError(f"{file} has no class columns.")
    absent = [name for name in classes.classes if name not in found] if classes else []
    if absent:
        log.warning("%s knows nothing of: %s.", file, examples(absent, 26))
    return found


def _looks_like_labels(column: pl.Series) -> bool:
    distinct = column.str.strip_chars().str.to_lowercase().unique()
    return bool(distinct.is_in(list(CELLS)).all()) and not bool(distinct.is_in(_BLANKS).all())


def _cells(column: pl.Series, name: str, file: Path, soft: bool) -> NDArray[np.float32]:
    text = column.str.strip_chars().str.to_lowercase()
    values = text.replace_strict(CELLS, default=None, return_dtype=pl.Float32)
    if values.null_count() and soft:
        number = text.cast(pl.Float32, strict=False)
        inside = number.is_between(0.0, 1.0)
        values = values.fill_null(pl.select(pl.when(inside).then(number)).to_series())
    if values.null_count():
        row = int(values.is_null().arg_max() or 0)
        hint = " Probabilities need data.soft=true." if not soft else ""
        raise InputError(
            f"{file}, row {row + 2}, column '{name}': {column[row]!r} is no label "
            f"({values.null_count()} such cells). Labels are 1, 0, -1 (uncertain) or blank.{hint}"
        )
    return values.to_numpy()


def _unmentioned(
    labels: NDArray[np.float32],
    space: LabelSpace,
    sources: tuple[str, ...] | None,
    described: Mapping[str, Any],
) -> None:
    """Blank cells of classes that a row's source does not know become UNMENTIONED, in place."""
    if sources is None:
        return
    for source, facts in described.get("sources", {}).items():
        known = {fold(canonical(name)) for name in facts.get("knows", space.classes)}
        unknown = np.array([fold(name) not in known for name in space.classes])
        rows = np.array([cell == source for cell in sources])
        here = (labels == BLANK) & rows[:, None] & unknown[None]
        labels[here] = UNMENTIONED


def _no_repeats(images: tuple[str, ...], file: Path) -> None:
    if len(set(images)) < len(images):
        seen: set[str] = set()
        twice = sorted({name for name in images if name in seen or seen.add(name)})  # type: ignore[func-returns-value]
        raise InputError(
            f"{file}: images that stand in more than one row: {examples(twice)}. Keep one row an "
            "image."
        )


def write_table(table: Table, path: str | Path) -> None:
    """Write a table (.csv or .parquet) and the JSON beside it, each whole or not at all."""
    file = Path(path)
    columns: dict[str, Any] = {
        name: getattr(table, field) for field, name in _NAMES.items() if getattr(table, field)
    }
    for k, name in enumerate(table.space.classes):
        columns[name] = [_cell(float(value)) for value in table.labels[:, k]]
    frame = pl.DataFrame(columns)
    with files.whole(file) as temporary:
        if file.suffix == ".parquet":
            frame.write_parquet(temporary)
        else:
            frame.write_csv(temporary)
    files.write_json(
        file.with_suffix(".json"),
        {
            "format": 1,
            "root": str(table.root.resolve()),
            "classes": list(table.space.classes),
            "label_space": table.space.name,
            "blank": table.blank,
            "phantom": table.phantom,
            "sha256": files.sha256(file),
        },
    )


def _cell(value: float) -> str:
    if value in (BLANK, UNMENTIONED):
        return ""
    return str(int(value)) if value == int(value) else repr(value)
