"""Reading and writing table files and the JSON description beside them.

`labels.csv` is described by `labels.json`: the image root, the classes, which classes each source
knows, what a blank cell means, and a hash of the table. A table without one is read by its columns.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lingula.settings.label_space import LabelSpace, canonical, fold
from lingula.system import files
from lingula.system.csv_cells import escape_cell, unescape_cell
from lingula.system.errors import InputError, examples, nearest
from lingula.tables.cells import Fault, raise_faults, read_cells, read_frame
from lingula.tables.columns import FREE, NAMES, named_columns, read_text_cells
from lingula.tables.label_cells import class_columns, read_label_cells
from lingula.tables.table import BLANK, UNMENTIONED, Table, plain_paths

log = logging.getLogger("lingula")


def read_table(
    path: str | Path,
    *,
    classes: LabelSpace | None = None,
    root: Path | None = None,
    ignore_columns: Sequence[str] = (),
    ignore_absent: bool = False,
    soft: bool = False,
    named: Collection[str] = (),
) -> Table:
    """Read a table with its labels.

    Args:
        path: a table file (see `read_cells`); the JSON of its name beside it is read, if there.
        classes: the label space; None takes the JSON's, or every column of labels. A class without
            a column is unmentioned in every row.
        root: folder of the images; None takes the JSON's, or the table's own folder.
        ignore_columns: columns that are not read.
        ignore_absent: columns to ignore may be missing.
        soft: cells may be probabilities.
        named: classes that are named elsewhere: columns of helpers' names that are among them.

    Raises:
        InputError: names the file, the column and the row of everything that is wrong.
    """
    table, faults = read_checked(
        path,
        classes=classes,
        root=root,
        ignore_columns=ignore_columns,
        ignore_absent=ignore_absent,
        soft=soft,
        named=named,
    )
    raise_faults(faults)
    return table


def read_unlabelled(path: str | Path) -> Table:
    """A table read for its images and ids alone; its other columns are not looked at.

    It has one class, `No Finding`, unmentioned in every row. Raises `InputError` as `read_table`.
    """
    table, faults = read_checked(path, labelled=False)
    raise_faults(faults)
    return table


def read_checked(
    path: str | Path,
    *,
    classes: LabelSpace | None = None,
    root: Path | None = None,
    ignore_columns: Sequence[str] = (),
    ignore_absent: bool = False,
    soft: bool = False,
    named: Collection[str] = (),
    labelled: bool = True,
) -> tuple[Table, list[Fault]]:
    """As `read_table`, with every fault that reading can go on after in a list.

    Cells that are not labels are `BLANK` in the table. With `labelled=False` only ids are read (see
    `read_unlabelled`).

    Raises:
        InputError: the file can't be read at all, has no rows or no image column.
    """
    file = Path(path)
    frame, sha256, faults = read_cells(file)
    described = read_description(file)
    frame = _drop_columns(frame, ignore_columns, ignore_absent, file, faults)
    space = classes
    if space is None and described.get("classes") and labelled:
        name = described.get("label_space", "own")
        space = LabelSpace(tuple(described["classes"]), name if isinstance(name, str) else "own")
    texts, rest = read_text_cells(frame, file, faults, () if space is None else space)
    if "images" not in texts:
        raise InputError(
            f"{file} has no column `image` (the images' paths, relative to the table's folder or "
            f"to data.root). It has: {examples(frame.columns, 12)}."
        )
    if not frame.height:
        raise InputError(f"{file} has no rows, only column names.")
    place = Path(root) if root is not None else file.parent / described.get("root", ".")
    _find_bad_images(texts["images"], place, file, faults)
    if labelled:
        space, labels = _read_labels(frame, rest, space, file, soft, faults, named)
    else:
        space = LabelSpace(("No Finding",))
        labels = np.full((frame.height, 1), UNMENTIONED, dtype=np.float32)
    _mark_unmentioned(labels, space, texts.get("sources"), described)
    if described.get("sha256") not in (None, sha256):
        log.warning("%s has changed since its description beside it was written.", file)
    sources = described.get("sources", {})
    table = Table(
        images=texts.pop("images"),
        root=place,
        space=space,
        labels=labels,
        blank=described.get("blank", "ignore"),
        blanks={name: facts["blank"] for name, facts in sources.items() if "blank" in facts},
        made_from=described.get("made_from", {}),
        phantom=bool(described.get("phantom", False)),
        path=file,
        sha256=sha256,
        **texts,
    )
    return table, faults


def read_description(table: Path) -> dict[str, Any]:
    """The JSON beside a table; empty where there is no such file, or one that is not ours.

    Raises `InputError` for one that is damaged, newer than this version, or says impossible things.
    """
    path = table.with_suffix(".json")
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is damaged: {error}. Fix or remove it.") from None
    if not isinstance(found, dict) or "format" not in found:
        return {}
    if found["format"] != 1:
        raise InputError(f"{path} has format {found['format']!r}; this version reads format 1.")
    sources = found.get("sources", {})
    sound = {
        "root": isinstance(found.get("root", ""), str),
        "classes": _are_names(found.get("classes", [])),
        "blank": found.get("blank", "ignore") in ("ignore", "zero"),
        "sources": isinstance(sources, dict)
        and all(
            isinstance(s, dict)
            and _are_names(s.get("knows", []))
            and s.get("blank", "ignore") in ("ignore", "zero")
            for s in sources.values()
        ),
        "made_from": isinstance(found.get("made_from", {}), dict),
    }
    wrong = [key for key, well in sound.items() if not well]
    if wrong:
        raise InputError(f"{path}: {wrong[0]} can't be {found[wrong[0]]!r}.")
    return found


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _drop_columns(
    frame: pl.DataFrame,
    ignored: Sequence[str],
    ignore_absent: bool,
    file: Path,
    faults: list[Fault],
) -> pl.DataFrame:
    by_name = {fold(name): name for name in frame.columns}
    absent = tuple(name for name in ignored if fold(name) not in by_name)
    if absent and not ignore_absent:
        message = (
            f"{file} has no column '{absent[0]}' to ignore.{nearest(absent[0], frame.columns)} "
            f"It has: {examples(frame.columns, 12)}."
        )
        faults.append(Fault("columns to ignore that are not there", message, len(absent), absent))
    dropped = {by_name[fold(name)] for name in ignored if fold(name) in by_name}
    return frame.drop(dropped)


def _find_bad_images(images: tuple[str, ...], root: Path, file: Path, faults: list[Fault]) -> None:
    lines = tuple(f"row {i + 2}" for i, name in enumerate(images) if not name)
    if lines:
        message = f"{file}: rows without an image: {examples(lines)}. Fill in or remove them."
        faults.append(Fault("rows without an image", message, len(lines), lines))
    plain = plain_paths(images, root)
    if len(set(plain)) == len(plain):
        return
    cells = pl.Series(plain, dtype=pl.String)
    twice = tuple(cells.filter(cells.is_duplicated() & (cells != "")).unique().sort().to_list())
    if twice:
        message = (
            f"{file}: images that are in more than one row: {examples(twice)}. Keep one row "
            "per image."
        )
        faults.append(Fault("images in more than one row", message, len(twice), twice))


def _read_labels(
    frame: pl.DataFrame,
    rest: list[str],
    space: LabelSpace | None,
    file: Path,
    soft: bool,
    faults: list[Fault],
    named: Collection[str],
) -> tuple[LabelSpace, NDArray[np.float32]]:
    """The classes and the (N, K) cells; a class without a column is `UNMENTIONED`."""
    columns = class_columns(frame, rest, space, file, soft, faults, named)
    if not columns:
        wanted = "no class columns" if space is None else "none of the classes as a column"
        message = f"{file} has {wanted}. It has: {examples(frame.columns, 12)}."
        faults.append(Fault("no class columns", message))
    if space is None:
        space = LabelSpace(tuple(columns) or ("No Finding",))
    absent = [name for name in space.classes if name not in columns]
    if absent and columns:
        log.warning("%s knows nothing of: %s.", file, examples(absent, 26))
    return space, read_label_cells(frame, columns, space, file, faults, soft=soft)


def _mark_unmentioned(
    labels: NDArray[np.float32],
    space: LabelSpace,
    sources: tuple[str, ...] | None,
    described: Mapping[str, Any],
) -> None:
    """Blank cells of classes that a row's source does not know become UNMENTIONED, in place."""
    if sources is None:
        return
    cells = np.array(sources)
    for source, facts in described.get("sources", {}).items():
        if "knows" in facts:
            known = {fold(canonical(name)) for name in facts["knows"]}
            unknown = np.array([fold(name) not in known for name in space.classes])
            here = (labels == BLANK) & (cells == source)[:, None] & unknown[None]
            labels[here] = UNMENTIONED


def write_table(table: Table, path: str | Path) -> None:
    """Write a table (.csv or .parquet) and the JSON beside it, each whole or not at all.

    Raises `InputError` where cells that are unmentioned do not follow from the rows' sources.
    """
    file = Path(path)
    sources = _classes_by_source(table, file)
    columns = [
        pl.Series(name, getattr(table, field), dtype=pl.String).replace("", None)
        for field, name in NAMES.items()
        if getattr(table, field) is not None
    ]
    parquet = file.suffix.lower() == ".parquet"
    for k, name in enumerate(table.space.classes):
        if not len(table) or (table.labels[:, k] != UNMENTIONED).any():
            columns.append(_format_cells(table.labels[:, k], name, typed=parquet))
    frame = pl.DataFrame(columns)
    with files.write_atomically(file) as temporary:
        if parquet:
            frame.write_parquet(temporary)
        else:
            _escape_cells(frame).write_csv(temporary)
    root, here = table.root.resolve(), file.parent.resolve()
    description: dict[str, Any] = {
        "format": 1,
        "root": root.relative_to(here).as_posix() if root.is_relative_to(here) else str(root),
        "classes": list(table.space.classes),
        "label_space": table.space.name,
        "sources": sources,
        "blank": table.blank,
        "phantom": table.phantom,
        "sha256": files.sha256(file),
    }
    if table.made_from:
        description["made_from"] = dict(table.made_from)
    files.write_json(file.with_suffix(".json"), description)


def _escape_cells(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with names and texts that no spreadsheet runs; paths and ids stay exact."""
    texts = [name for name in FREE if name in frame.columns]
    plain = (pl.col(name).map_elements(escape_cell, return_dtype=pl.String) for name in texts)
    return frame.with_columns(plain).rename(escape_cell)


def _format_cells(cells: NDArray[np.float32], name: str, typed: bool) -> pl.Series:
    """A column as it is written: 1, 0, -1, blank (null), or probabilities."""
    values = pl.Series(name, cells)
    values = values.set(values <= BLANK, None)
    if bool((values == values.round()).fill_null(True).all()):
        values = values.cast(pl.Int8)
    return values if typed else values.cast(pl.String)


def _classes_by_source(table: Table, file: Path) -> dict[str, dict[str, Any]]:
    """The classes that each source knows, those that its rows do not leave unmentioned; and what
    its blank cells mean, where that is not what the table's do."""
    unknown = table.labels == UNMENTIONED
    everywhere = unknown.all(axis=0)
    if table.sources is None:
        if (unknown != everywhere).any():
            raise InputError(
                f"{file} can't be written: some rows leave classes unmentioned that others know, "
                "and there is no `source` column that says which."
            )
        return {}
    cells = np.array(table.sources)
    knows: dict[str, dict[str, Any]] = {}
    for source in sorted(set(table.sources)):
        rows = unknown[cells == source]
        if (rows != rows.all(axis=0)).any():
            raise InputError(
                f"{file} can't be written: rows of the source '{source}' differ in the classes "
                "that they leave unmentioned. Give them different sources."
            )
        names = np.array(table.space.classes, dtype=object)[~rows.all(axis=0)]
        knows[source] = {"knows": [str(name) for name in names]}
        if table.blanks.get(source, table.blank) != table.blank:
            knows[source]["blank"] = table.blanks[source]
    return knows


Box = tuple[float, float, float, float]  # left, top, width, height in pixels of the image file
_SIDES = ("x", "y", "w", "h")


def read_boxes(path: str | Path) -> dict[tuple[str, str], list[Box]]:
    """Boxes by (image, canonical class name) from a file with image, finding, x, y, w, h.

    Raises `InputError` for a missing column and for a cell that is not a number.
    """
    file = Path(path)
    frame = read_frame(file)
    names = ("image", "finding", *_SIDES)
    hint = f"Boxes need {', '.join(names)}."
    ours = named_columns(frame.columns, dict.fromkeys(names, ()), names, file, hint)
    frame = frame.select(pl.col(column).alias(name) for column, name in ours.items())
    frame = frame.with_columns(pl.col(name).cast(pl.Float64, strict=False) for name in _SIDES)
    wrong = frame.filter(pl.any_horizontal(pl.col(name).is_null() for name in _SIDES))
    if wrong.height:
        raise InputError(f"{file}: a box of {wrong['image'][0]} has a side that is not a number.")
    boxes: dict[tuple[str, str], list[Box]] = {}
    for image, finding, *sides in frame.select(names).iter_rows():
        x, y, w, h = sides
        boxes.setdefault((image, canonical(unescape_cell(finding))), []).append((x, y, w, h))
    return boxes


def boxes_path(table: Path) -> Path:
    """Where the boxes of a table are written: `TABLE.boxes.csv`."""
    return table.with_suffix(".boxes.csv")


def find_boxes(table: Table) -> Path | None:
    """`TABLE.boxes.csv` or `boxes.csv` beside a table; None without such a file."""
    if table.path is None:
        return None
    named = (boxes_path(table.path), table.path.with_name("boxes.csv"))
    return next((path for path in named if path.is_file()), None)


def boxes_beside(table: Table) -> Mapping[tuple[str, str], list[Box]]:
    """The boxes of the file that `find_boxes` finds; none without one."""
    path = find_boxes(table)
    return {} if path is None else read_boxes(path)
