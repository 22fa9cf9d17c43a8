"""CXR-LT 2023 and 2024: the challenge's label files over the images of MIMIC-CXR-JPG."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from lingula.settings.label_space import CXR_LT_2023, CXR_LT_2024, CXR_LT_2024_UNSEEN, fold
from lingula.settings.vocabulary import parse_split
from lingula.sources.mimic import LAYOUTS
from lingula.sources.places import check_inside, find_labels, folder_of, paths_in_layout
from lingula.sources.released import (
    Released,
    clean_columns,
    find_columns,
    join_findings,
    read_released,
    read_splits,
    to_table,
)
from lingula.system.errors import InputError
from lingula.tables.table import BLANK, Table

log = logging.getLogger("lingula")

SOURCE = "mimic-cxr"

_NAMES = {
    "id": ("dicom_id",),
    "patient": ("subject_id",),
    "study": ("study_id",),
    "view": ("ViewPosition",),
    "image": ("path", "fpath"),
    "split": ("split",),
}
_BESIDE = ("ViewCodeSequence_CodeMeaning",)
_KNOWN = (*CXR_LT_2024, *CXR_LT_2024_UNSEEN)
_NEW = set(_KNOWN) - set(CXR_LT_2023)
_SPLIT = re.compile(r"^(train|development|dev|val|test)", re.IGNORECASE)


def cxr_lt(
    root: str | Path, labels: Sequence[str | Path] = (), ignore_columns: Sequence[str] = ()
) -> Table:
    """The table of one release of CXR-LT.

    Args:
        root: MIMIC-CXR-JPG's folder: the one with `files`, or `files` itself.
        labels: CSVs, or the folder of one release; none: they lie in `root`. Of the 2024 folder
            `labels.csv` is read, or else the files of training and of task 1.
        ignore_columns: columns of the CSVs that are left out.

    Raises:
        InputError: files of both releases, whose splits put the same patients on different sides;
            an unknown column, a cell that is not a label, an image that is listed twice.
    """
    place = folder_of(root)
    files = [
        read_released(path, _NAMES, ("id", "patient", "study", "image"))
        for path in _find_files(place, labels)
    ]
    columns = [find_columns(file, _KNOWN, ignore_columns, _BESIDE) for file in files]
    release = _find_release(files, [set(found) for found in columns])
    order = CXR_LT_2023 if release == 2023 else _KNOWN
    names = {CXR_LT_2023: "cxr-lt-2023", CXR_LT_2024: "cxr-lt-2024"}
    space, cells = join_findings(files, columns, order, names)
    frame = pl.concat([_clean(file, place) for file in files], how="diagonal").fill_null("")
    unstated = int((cells == BLANK).all(axis=1).sum())
    if unstated:
        log.warning("%d images of CXR-LT %d have no labels at all.", unstated, release)
    log.info("Read as the %d release of CXR-LT, %d findings.", release, len(space))
    return to_table(frame, cells, space, root=place, source=SOURCE, made_from=files)


def _find_files(root: Path, given: Sequence[str | Path]) -> list[Path]:
    """The label files; folders give those of their release."""
    found: list[Path] = []
    for start in [Path(g) for g in given] or [root]:
        releases = sorted(p for p in start.glob("cxr-lt-20[0-9][0-9]") if p.is_dir())
        if len(releases) > 1:
            raise InputError(
                f"{start} has more than one release, and their splits differ: a training image "
                f"of one is a test image of the other. Name one: --labels {releases[0]}"
            )
        here = releases[0] if releases else start
        if here.is_dir():
            patterns: tuple[str, ...] = ("train.csv", "development.csv", "test.csv")
            if (here / "labels.csv").is_file():
                patterns = ("labels.csv",)
            elif (here / "train_labeled.csv").is_file():
                patterns = ("train_labeled.csv", "*_labeled_task1.csv")
            found += find_labels(root, [here], patterns)
        else:
            found += find_labels(root, [here], ())
    return list(dict.fromkeys(found))


def _find_release(files: Sequence[Released], found: Sequence[set[str]]) -> int:
    """2023 or 2024; they differ in new classes and `Normal` for `No Finding`."""
    by_year: dict[int, Released] = {}
    for file, classes in zip(files, found, strict=True):
        spelled = {fold(column) for column in file.rest}
        if classes & _NEW or "normal" in spelled:
            by_year.setdefault(2024, file)
        elif "no finding" in spelled:
            by_year.setdefault(2023, file)
        else:
            named = re.findall(r"cxr-lt-(2023|2024)", file.path.resolve().as_posix())
            if named:
                by_year.setdefault(int(named[-1]), file)
    if len(by_year) > 1:
        raise InputError(
            f"{by_year[2023].path} is of the 2023 release and {by_year[2024].path} of 2024: their "
            "splits differ, so that a training image of one is a test image of the other. Make a "
            "table of one release."
        )
    return next(iter(by_year), 2023)


def _clean(file: Released, root: Path) -> pl.DataFrame:
    """The columns of a file that are not findings, cleaned, with place and split of the image."""
    frame = clean_columns(file, {"id": "", "patient": "p", "study": "s"})
    images = frame["image"].to_list()
    check_inside(root, images, file.path)
    named = _SPLIT.match(file.path.name)
    if "split" in frame.columns:
        split = read_splits(frame["split"], file.path)
    else:
        if named is None:
            log.warning("%s names no split: its rows are in none.", file.path)
        word = "" if named is None else parse_split(named[1])
        split = pl.repeat(word, frame.height, dtype=pl.String, eager=True)
    return frame.with_columns(
        pl.Series("image", paths_in_layout(root, images, LAYOUTS), dtype=pl.String),
        split.alias("split"),
    )
