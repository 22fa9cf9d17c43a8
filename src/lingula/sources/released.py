"""Label files as they were released: columns by any of their names, labels, ages, sexes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lingula.settings.label_space import LabelSpace, canonical, fold
from lingula.settings.vocabulary import parse_age, parse_sex
from lingula.sources.places import warn
from lingula.system.errors import InputError, examples, nearest
from lingula.tables.cells import Fault, raise_faults, read_cells
from lingula.tables.columns import NAMES, clean_ids, named_columns, read_split_cells
from lingula.tables.label_cells import read_label_cells
from lingula.tables.splits import patients_in_two_splits
from lingula.tables.table import BLANK, Table


@dataclass(frozen=True)
class Released:
    """A label file: `frame` has the known columns under our names and the `rest` under theirs."""

    path: Path
    frame: pl.DataFrame
    rest: tuple[str, ...]
    sha256: str


def read_released(
    path: Path, names: Mapping[str, Collection[str]], needed: Collection[str]
) -> Released:
    """Read a label file with all cells as text.

    Args:
        path: the file.
        names: our name of a column to the spellings that releases use for it.
        needed: those of our names that must be there.

    Raises:
        InputError: a file that can't be read, or lacks a needed column; it names both.
    """
    frame, sha256, faults = read_cells(path)
    raise_faults(faults)
    ours = named_columns(frame.columns, names, needed, path, "Is it the right file?")
    if not frame.height:
        raise InputError(f"{path} has no rows, only column names.")
    rest = tuple(c for c in frame.columns if c not in ours)
    stripped = [pl.col(c).str.strip_chars().alias(name) for c, name in ours.items()]
    return Released(path, frame.select(*stripped, *rest), rest, sha256)


def clean_columns(file: Released, prefixes: Mapping[str, str]) -> pl.DataFrame:
    """The known columns of a file: ids without their prefixes, ages in years, sexes by code."""
    frame = file.frame.drop(file.rest)
    columns = [read_ids(frame[n], file.path, p) for n, p in prefixes.items() if n in frame.columns]
    cleaners = (("age", read_ages), ("sex", read_sexes))
    columns += [clean(frame[name]) for name, clean in cleaners if name in frame.columns]
    return frame.with_columns(columns)


def read_ids(cells: pl.Series, path: Path, prefix: str = "") -> pl.Series:
    """Ids as text: `59999999.0` is `59999999`; where `prefix` is `s`, `s59999999` and
    `s59999999.0` are too.

    Raises `InputError` for numbers that were rounded (`1.9E+38`): they join different patients.
    """
    faults: list[Fault] = []
    whole = clean_ids(cells, path, faults)
    raise_faults(faults)
    return whole.str.replace(rf"^{prefix}(\d+)(?:\.0)?$", "$1") if prefix else whole


def read_splits(cells: pl.Series, path: Path) -> pl.Series:
    """`train`, `dev`, `test` or '' for each cell; `InputError` for other words."""
    faults: list[Fault] = []
    words = read_split_cells(cells.to_list(), path, faults)
    raise_faults(faults)
    return pl.Series("split", words, dtype=pl.String)


def find_columns(
    released: Released,
    known: Collection[str],
    ignored: Sequence[str] = (),
    beside: Collection[str] = (),
) -> dict[str, str]:
    """Class names to the columns of `rest` that hold them.

    Args:
        released: the file.
        known: classes that the data set may have.
        ignored: columns that the user leaves out.
        beside: columns that the release is known to have and that are not classes.

    Raises:
        InputError: a column that is not one of these, or two of the same class.
    """
    classes = {fold(name): name for name in known}
    out = {fold(name) for name in (*ignored, *beside)}
    found: dict[str, str] = {}
    for column in released.rest:
        if fold(column) in out:
            continue
        name = classes.get(fold(canonical(column)))
        if name is None:
            raise InputError(
                f"{released.path}: column '{column}' is not known in this data set."
                f"{nearest(column, known)} Rename it, or leave it out: --ignore-columns '{column}'"
            )
        if name in found:
            raise InputError(
                f"{released.path}: columns '{found[name]}' and '{column}' are the same class. "
                f"Leave one out: --ignore-columns '{column}'"
            )
        found[name] = column
    return found


def read_findings(
    released: Released, columns: Mapping[str, str], space: LabelSpace
) -> NDArray[np.float32]:
    """The (N, K) cells; a class without a column is BLANK.

    Raises `InputError` for a cell that is not a label, with its row and column.
    """
    faults: list[Fault] = []
    labels = read_label_cells(released.frame, columns, space, released.path, faults, absent=BLANK)
    raise_faults(faults)
    return labels


def join_findings(
    files: Sequence[Released],
    columns: Sequence[Mapping[str, str]],
    order: Collection[str],
    names: Mapping[tuple[str, ...], str],
) -> tuple[LabelSpace, NDArray[np.float32]]:
    """The classes of `order` that files have, and the cells (N, K) of all their rows.

    `names` are those of label spaces by their classes. Raises `InputError` without any class, and
    for a cell that is not a label.
    """
    classes = in_order(set().union(*columns), order)
    if not classes:
        raise InputError(f"{examples(f.path for f in files)}: no file has a column of a finding.")
    space = LabelSpace(classes, names.get(classes, "own"))
    cells = [read_findings(file, own, space) for file, own in zip(files, columns, strict=True)]
    return space, np.concatenate(cells)


def mark_findings(lists: Sequence[Sequence[str]], space: LabelSpace) -> NDArray[np.float32]:
    """Cells (N, K): 1 where a list has a name of the class, by the whole name; else 0.

    Names that are no class of `space` are passed over.
    """
    column = {name: space.index(name) for names in lists for name in set(names) if name in space}
    cells = np.zeros((len(lists), len(space)), dtype=np.float32)
    for row, names in enumerate(lists):
        cells[row, [column[name] for name in names if name in column]] = 1.0
    return cells


def in_order(found: Collection[str], order: Collection[str]) -> tuple[str, ...]:
    """The names of `order` that were found, in its order."""
    return tuple(name for name in order if name in found)


def read_ages(cells: pl.Series, zero_is_unknown: bool = False) -> pl.Series:
    """Ages in years; '' for what can't be one (411, or 0 where that means unknown).

    `058Y` is 58 and `018M` 1: years are whole from the first birthday on. Before it they have two
    digits (`030D` is 0.08, `000D` 0.01), since a bare 0 is no known age wherever ages are read.
    """
    distinct = cells.unique().to_list()
    texts = [_parse_age(cell, zero=not zero_is_unknown) for cell in distinct]
    return cells.replace_strict(distinct, texts, return_dtype=pl.String)


def _parse_age(cell: str, zero: bool) -> str:
    years = parse_age(cell, zero=zero)
    if years is None:
        return ""
    if years >= 1 or parse_age(cell) is None:
        return str(int(years))
    return str(min(max(round(years, 2), 0.01), 0.99))


def read_sexes(cells: pl.Series) -> pl.Series:
    """`M`, `F`, `O` (other), `U` (stated as unknown) or '' (blank); other codes stay."""
    distinct = cells.unique().to_list()
    codes = [parse_sex(cell) or cell.strip() for cell in distinct]
    return cells.replace_strict(distinct, codes, return_dtype=pl.String)


def match_rows(wanted: pl.DataFrame, keys: pl.DataFrame) -> NDArray[np.intp]:
    """For each row of `wanted` the row of `keys` with the same cells, or -1.

    Both have the same columns; `keys` has no row twice.
    """
    numbered = keys.with_row_index("number")
    joined = wanted.with_row_index("place").join(numbered, on=wanted.columns, how="left")
    return joined.sort("place")["number"].cast(pl.Int64).fill_null(-1).to_numpy().astype(np.intp)


def unmatched(keys: Sequence[str], rows: NDArray[np.intp]) -> list[str]:
    """The keys whose row number is not among `rows` (see `match_rows`)."""
    used = set(rows.tolist())
    return [key for number, key in enumerate(keys) if number not in used]


def first_rows(
    keys: pl.DataFrame, labels: NDArray[np.float32], what: str, fix: str
) -> NDArray[np.intp]:
    """The first row of each key; the others must say the same.

    Raises `InputError` naming keys whose rows have different labels.
    """
    once = keys.unique(keep="first", maintain_order=True)
    number = match_rows(keys, once)
    first = np.full(once.height, len(keys), dtype=np.intp)
    np.minimum.at(first, number, np.arange(len(keys)))
    differing = np.flatnonzero((labels != labels[first[number]]).any(axis=1))
    if len(differing):
        rows = once.rows()
        named = dict.fromkeys(" ".join(map(str, rows[number[i]])) for i in differing)
        raise InputError(f"{what} with different labels: {examples(named)}. {fix}")
    return first


def _keep_one_row_each(
    frame: pl.DataFrame, labels: NDArray[np.float32], where: str
) -> tuple[pl.DataFrame, NDArray[np.float32]]:
    """One row per image: rows that say the same are one; rows that differ are an error."""
    images = frame["image"]
    if bool((images == "").any()):
        raise InputError(f"{where}: some rows have no image. Fill them in or remove them.")
    if images.n_unique() == len(images):
        return frame, labels
    fix = "Keep one row per image."
    first = first_rows(frame.select("image"), labels, f"{where}: images", fix)
    distinct = frame.unique(maintain_order=True)["image"]
    differing = distinct.filter(distinct.is_duplicated()).unique(maintain_order=True)
    if len(differing):
        raise InputError(f"{where}: images in rows that differ: {examples(differing)}. {fix}")
    repeated = images.filter(images.is_duplicated()).unique(maintain_order=True).to_list()
    warn("images stood in several rows that say the same: one of each is kept", repeated)
    return frame[first.tolist()], labels[first]


def to_table(
    frame: pl.DataFrame,
    labels: NDArray[np.float32],
    space: LabelSpace,
    *,
    root: Path,
    source: str,
    made_from: Sequence[Released],
    blank: Literal["ignore", "zero"] = "ignore",
) -> Table:
    """The table of a frame with our column names; a column without any value is left out.

    Raises:
        InputError: no rows, rows without an image, an image in two rows that differ, a patient in
            two splits.
    """
    where = examples(file.path for file in made_from)
    if not frame.height:
        raise InputError(f"{where}: no rows are left to make a table of.")
    frame = frame.select(name for name in NAMES.values() if name in frame.columns)
    frame, labels = _keep_one_row_each(frame, labels, where)
    texts: dict[str, Any] = {
        field: tuple(frame[name].to_list())
        for field, name in NAMES.items()
        if name in frame.columns and bool((frame[name] != "").any())
    }
    texts["sources"] = (source,) * frame.height
    table = Table(
        images=texts.pop("images"),
        root=root,
        space=space,
        labels=labels,
        blank=blank,
        made_from={file.path.name: file.sha256 for file in made_from},
        **texts,
    )
    shared = patients_in_two_splits(table)
    if shared:
        named = [f"{patient} ({', '.join(splits)})" for patient, splits in shared.items()]
        raise InputError(
            f"{where}: {len(shared)} patients are in two splits: {examples(named)}. "
            "A model would be measured on patients it was trained on."
        )
    return table
