"""MIMIC-CXR-JPG: metadata, labels of CheXpert's or NegBio's labeller, and the official split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from lingula.settings.label_space import CHEXPERT, LabelSpace
from lingula.sources.places import check_inside, find_labels, folder_of, paths_in_layout, warn
from lingula.sources.released import (
    Released,
    clean_columns,
    find_columns,
    first_rows,
    in_order,
    match_rows,
    read_findings,
    read_released,
    read_splits,
    to_table,
    unmatched,
)
from lingula.system.errors import InputError, examples
from lingula.tables.table import Table

SOURCE = "mimic-cxr"

_NAMES = {
    "id": ("dicom_id",),
    "patient": ("subject_id",),
    "study": ("study_id",),
    "view": ("ViewPosition",),
    "split": ("split",),
}
_LABELERS = ("chexpert", "negbio")


def mimic(
    root: str | Path,
    labels: Sequence[str | Path] = (),
    ignore_columns: Sequence[str] = (),
    labeler: Literal["chexpert", "negbio"] | None = None,
) -> Table:
    """The table of MIMIC-CXR-JPG: one row per image, its labels those of its study.

    Args:
        root: the folder with `files`, or `files` itself.
        labels: the CSVs or their folder (`mimic-cxr-2.*-metadata.csv[.gz]`, `-chexpert` or
            `-negbio`, `-split`); none: they lie in `root`.
        ignore_columns: columns of the label file that are left out.
        labeler: whose labels, where both are there; None takes CheXpert's.

    Raises:
        InputError: files or columns that are missing, labels that match no image, a study with two
            different rows of labels.
    """
    place = folder_of(root)
    metadata, stated, split = _read_files(place, labels, labeler)
    images = _clean(metadata)
    columns = find_columns(stated, CHEXPERT, ignore_columns)
    space = LabelSpace(in_order(columns, CHEXPERT), "chexpert")
    cells = read_findings(stated, columns, space)
    by_study = _clean(stated).select("patient", "study")
    first = first_rows(by_study, cells, f"{stated.path} has studies", "Keep one row per study.")
    studies = by_study[first.tolist()]
    row = match_rows(images.select("patient", "study"), studies)
    _warn_of_unmatched(images, studies, row, stated)
    if split is not None:
        images = images.with_columns(_join_split(images, split))
    # A blank cell says "absent" here, so an image whose study was never labelled can't be kept:
    # it would be taken for one without any finding.
    labelled = row >= 0
    images = images.filter(pl.Series(labelled))
    plain = [
        f"files/p{patient[:2]}/p{patient}/s{study}/{name}.jpg"
        for patient, study, name in images.select("patient", "study", "id").iter_rows()
    ]
    check_inside(place, plain, metadata.path)
    paths = paths_in_layout(place, plain, LAYOUTS)
    return to_table(
        images.with_columns(pl.Series("image", paths, dtype=pl.String)),
        cells[first][row[labelled]],
        space,
        root=place,
        source=SOURCE,
        blank="zero",
        made_from=[file for file in (metadata, stated, split) if file is not None],
    )


def _layout(suffix: str, inside: bool) -> Callable[[str], str]:
    """A path as the release has it, with another suffix, and seen from `files` itself."""

    def layout(image: str) -> str:
        found = image.removesuffix(".jpg") + suffix
        return found.removeprefix("files/") if inside else found

    return layout


# MIMIC-CXR-JPG has .jpg, MIMIC-CXR the same images as .dcm; copies at other sizes are often .png.
LAYOUTS = tuple(
    _layout(suffix, inside) for suffix in (".jpg", ".dcm", ".png") for inside in (False, True)
)


def _read_files(
    root: Path, given: Sequence[str | Path], labeler: str | None
) -> tuple[Released, Released, Released | None]:
    """The files of metadata, of labels and of the split (None without one), by their names."""
    kinds = ("metadata", "split", *_LABELERS)
    patterns = tuple(f"*mimic-cxr-*-{kind}.csv{gz}" for kind in kinds for gz in ("", ".gz"))
    found: dict[str, Path] = {}
    for path in find_labels(root, given, patterns):
        kind = next((k for k in kinds if f"-{k}." in path.name.lower()), None)
        if kind is None:
            raise InputError(
                f"{path} is not one of MIMIC-CXR-JPG's files: their names end in "
                f"{', '.join(f'-{k}.csv' for k in kinds)}, or the same with .gz."
            )
        # The same file packed and unpacked is one; two versions are not.
        if kind in found and path.name.removesuffix(".gz") != found[kind].name.removesuffix(".gz"):
            raise InputError(f"{found[kind]} and {path} are both there. Name one with --labels.")
        found.setdefault(kind, path)
    labels = labeler or next((k for k in _LABELERS if k in found), _LABELERS[0])
    for kind in ("metadata", labels):
        if kind not in found:
            raise InputError(
                f"There is no mimic-cxr-2.*-{kind}.csv(.gz) in {examples(given or [root])}. "
                "Say where it is: --labels FILE or FOLDER"
            )
    metadata = read_released(found["metadata"], _NAMES, ("id", "patient", "study"))
    stated = read_released(found[labels], _NAMES, ("patient", "study"))
    split = found.get("split")
    if split is None:
        return metadata, stated, None
    return metadata, stated, read_released(split, _NAMES, ("id", "split"))


def _clean(file: Released) -> pl.DataFrame:
    """The known columns, ids without prefixes: `p10999999`, `10999999.0` are `10999999`."""
    frame = clean_columns(file, {"patient": "p", "study": "s", "id": ""})
    blank = [
        f"{name} (row {int(frame[name].eq('').arg_true()[0]) + 2})"
        for name in ("patient", "study", "id")
        if name in frame.columns and bool((frame[name] == "").any())
    ]
    if blank:
        raise InputError(f"{file.path} has blank ids: {examples(blank)}. Fill them in.")
    return frame


def _join_split(images: pl.DataFrame, split: Released) -> pl.Series:
    official = _clean(split).select("id", "split").unique("id", keep="first", maintain_order=True)
    names = np.array([*read_splits(official["split"], split.path).to_list(), ""], dtype=object)
    row = match_rows(images.select("id"), official.select("id"))
    warn(f"images are not in {split.path.name}", images["id"].filter(pl.Series(row < 0)).to_list())
    return pl.Series("split", names[row].tolist(), dtype=pl.String)


def _warn_of_unmatched(
    images: pl.DataFrame, studies: pl.DataFrame, row: np.ndarray, stated: Released
) -> None:
    """Log studies that only one of the files has; `InputError` if they share none."""
    if not (row >= 0).any():
        raise InputError(
            f"{stated.path} labels none of the {images.height} images: e.g. study "
            f"{studies['study'][0]} there, {images['study'][0]} in the metadata."
        )
    without = images.filter(pl.Series(row < 0))["id"].to_list()
    warn("images left out: their studies have no labels", without)
    warn("labelled studies without an image", unmatched(studies["study"].to_list(), row))
