"""NIH ChestX-ray14: the table of findings, the official lists, and NIH-CXR-LT's further labels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lingula.settings.label_space import NIH, NIH_CXR_LT, LabelSpace, canonical
from lingula.sources.places import (
    check_inside,
    find_by_name,
    find_labels,
    folder_of,
    read_lines,
    warn,
)
from lingula.sources.released import (
    Released,
    clean_columns,
    find_columns,
    first_rows,
    mark_findings,
    match_rows,
    read_findings,
    read_released,
    to_table,
    unmatched,
)
from lingula.system import files
from lingula.system.errors import InputError, examples, nearest
from lingula.tables.table import BLANK, Table

log = logging.getLogger("lingula")

SOURCE = "chestxray14"

_NAMES = {
    "image": ("Image Index",),
    "findings": ("Finding Labels",),
    "followup": ("Follow-up #",),
    "patient": ("Patient ID",),
    "age": ("Patient Age",),
    "sex": ("Patient Gender", "Patient Sex"),
    "view": ("View Position",),
}
_LISTS = {"train_val_list.txt": "train", "test_list.txt": "test"}
_ADDED = tuple(name for name in NIH_CXR_LT if name not in NIH)


def nih(
    root: str | Path, labels: Sequence[str | Path] = (), ignore_columns: Sequence[str] = ()
) -> Table:
    """The table of ChestX-ray14.

    Args:
        root: a folder with the PNG files anywhere below it (`images_001/images/...`).
        labels: `Data_Entry_2017*.csv`, `train_val_list.txt`, `test_list.txt` and, if wanted,
            `nih-cxr-lt_*.csv`, or folders of them; none: they lie in `root`.
        ignore_columns: columns of the NIH-CXR-LT files that are left out.

    The official lists give the splits train and test; there is no dev. The five findings that
    NIH-CXR-LT adds are blank for images that it does not name.

    Raises:
        InputError: an unknown finding, an image that is listed twice or in both lists, no table.
    """
    place = folder_of(root)
    patterns = ("Data_Entry_2017*.csv", *_LISTS, "nih-cxr-lt_*.csv")
    found = find_labels(place, labels, patterns)
    lists = [path for path in found if path.suffix.lower() == ".txt"]
    added = [path for path in found if path.name.lower().startswith("nih-cxr-lt")]
    entries = [path for path in found if path not in lists and path not in added]
    if len(entries) != 1:
        raise InputError(
            f"NIH's labels are one Data_Entry_2017*.csv; found: {examples(entries) or 'none'}. "
            "Name one with --labels."
        )
    entry = read_released(entries[0], _NAMES, ("image", "findings", "patient"))
    space, cells = _split_entry(entry)
    made_from = [entry]
    if added:
        space, cells = _add_findings(entry, space, cells, added, ignore_columns, made_from)
    frame = _clean(entry)
    check_inside(place, frame["image"].to_list(), entry.path)
    if lists:
        splits, listed = _read_lists(frame["image"], lists)
        frame = frame.with_columns(splits)
        made_from += listed
    paths = pl.Series("image", find_by_name(place, frame["image"].to_list()), dtype=pl.String)
    frame = frame.with_columns(frame["image"].str.replace(r"\.[^.]+$", "").alias("id"), paths)
    return to_table(frame, cells, space, root=place, source=SOURCE, made_from=made_from)


def _split_entry(entry: Released) -> tuple[LabelSpace, NDArray[np.float32]]:
    """Whole names between the bars: `Subcutaneous Emphysema` is no `Emphysema`.

    A cell without a name, bars or not, says nothing: its classes are blank.
    """
    split = entry.frame["findings"].str.split("|").list.eval(pl.element().str.strip_chars())
    lists: list[list[str]] = split.to_list()
    names = {name for row in lists for name in row if name}
    wrong = sorted(name for name in names if canonical(name) not in NIH_CXR_LT)
    if wrong:
        row = next(row for row, own in enumerate(lists) if wrong[0] in own)
        raise InputError(
            f"{entry.path}, row {row + 2}, column 'Finding Labels': {wrong[0]!r} is not a finding "
            f"of NIH.{nearest(wrong[0], NIH_CXR_LT)}"
        )
    further = set(map(canonical, names)) - set(NIH)
    classes = (*NIH, *(name for name in _ADDED if name in further))
    space = LabelSpace(classes, "own" if further else "nih")
    cells = mark_findings(lists, space)
    silent = np.array([not any(own) for own in lists], dtype=bool)
    cells[silent] = BLANK
    what = "images without any entry of findings: they are blank, not negative"
    warn(what, entry.frame["image"].filter(pl.Series(silent)).to_list())
    return space, cells


def _add_findings(
    entry: Released,
    space: LabelSpace,
    cells: NDArray[np.float32],
    paths: Sequence[Path],
    ignored: Sequence[str],
    made_from: list[Released],
) -> tuple[LabelSpace, NDArray[np.float32]]:
    """The findings that NIH does not have, from NIH-CXR-LT's files."""
    released = [read_released(path, {"id": ("id",)}, ("id",)) for path in paths]
    beside = ("subject_id", "path", "Patient ID")
    columns = [find_columns(file, NIH_CXR_LT, ignored, beside) for file in released]
    wider = LabelSpace(NIH_CXR_LT, "nih-cxr-lt")
    stated = np.concatenate(
        [read_findings(file, c, wider) for file, c in zip(released, columns, strict=True)]
    )
    keys = pl.concat([file.frame.select("id") for file in released])
    where = examples(path.name for path in paths)
    first = first_rows(keys, stated, f"{where}: images", "Name files that agree.")
    keys, stated = keys[first.tolist()], stated[first]
    row = match_rows(entry.frame.select(pl.col("image").alias("id")), keys)
    if not (row >= 0).any():
        raise InputError(f"{where} names none of the images of {entry.path}: {keys['id'][0]!r}.")
    warn(f"images of {where} are not in {entry.path.name}", unmatched(keys["id"].to_list(), row))
    joined = np.full((len(cells), len(wider)), BLANK, dtype=np.float32)
    for name in space.classes:
        joined[:, wider.index(name)] = cells[:, space.index(name)]
    for name in _ADDED:
        column = wider.index(name)
        joined[row >= 0, column] = stated[row[row >= 0], column]
    # NIH's "No Finding" only says that none of its own 14 is there.
    normal = wider.index("No Finding")
    more = (joined[:, [wider.index(name) for name in _ADDED]] == 1).any(1)
    more &= joined[:, normal] == 1
    joined[more, normal] = 0
    what = "images with No Finding in NIH and a finding in NIH-CXR-LT: No Finding is 0"
    warn(what, entry.frame["image"].filter(pl.Series(more)).to_list())
    made_from += released
    return wider, joined


def _clean(entry: Released) -> pl.DataFrame:
    """The known columns, cleaned; a study is a patient and a follow-up."""
    frame = clean_columns(entry, {"patient": "", "followup": ""})
    if "followup" in frame.columns:
        frame = frame.with_columns((frame["patient"] + "_" + frame["followup"]).alias("study"))
    return frame


def _read_lists(images: pl.Series, paths: Sequence[Path]) -> tuple[pl.Series, list[Released]]:
    """The split of each image by the official lists, '' for those in none."""
    split_of: dict[str, str] = {}
    made_from = []
    for path in paths:
        split = _LISTS.get(path.name.lower())
        if split is None:
            raise InputError(f"{path} is not a known list: {' or '.join(_LISTS)}.")
        names = [line.strip() for line in read_lines(path)]
        twice = [name for name in names if split_of.get(name, split) != split]
        if twice:
            raise InputError(f"{path}: images that are in both lists: {examples(twice)}.")
        split_of.update(dict.fromkeys(filter(None, names), split))
        made_from.append(Released(path, pl.DataFrame(), (), files.sha256(path)))
    warn("listed images are not in the table", sorted(set(split_of) - set(images)))
    splits = images.replace_strict(split_of, default="", return_dtype=pl.String).alias("split")
    warn("images are in no official list", images.filter(splits == "").to_list())
    return splits, made_from
