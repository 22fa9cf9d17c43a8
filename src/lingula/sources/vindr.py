"""VinDr-CXR (PhysioNet's and Kaggle's files): several readers made one by a named rule; boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lingula.settings.label_space import VINDR, LabelSpace, canonical
from lingula.sources.places import check_inside, find_by_name, find_labels, folder_of
from lingula.sources.released import (
    Released,
    find_columns,
    first_rows,
    in_order,
    match_rows,
    read_findings,
    read_released,
    to_table,
)
from lingula.system.errors import InputError, examples, nearest
from lingula.tables.mapping import LabelMap
from lingula.tables.table import Table

SOURCE = "vindr-cxr"
Readers = Literal["any", "majority", "all"]

_NAMES = {
    "id": ("image_id",),
    "finding": ("class_name",),
    "reader": ("rad_id",),
    "left": ("x_min",),
    "top": ("y_min",),
    "right": ("x_max",),
    "bottom": ("y_max",),
}
_EDGES = ("left", "top", "right", "bottom")
# What Kaggle's readers chose from; there a finding without a row is absent.
_KAGGLE = in_order(
    {
        "Aortic Enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Consolidation",
        "ILD", "Infiltration", "Lung Opacity", "Nodule/Mass", "Other Lesion", "Pleural Effusion",
        "Pleural Thickening", "Pneumothorax", "Pulmonary Fibrosis", "No Finding",
    },
    VINDR,
)  # fmt: skip

# A rib may be whole and the clavicle too, and another bone broken: no fracture of these two is not
# "no fracture". Calcification and Aortic Enlargement are not the aorta's calcification or
# tortuosity, and Nodule/Mass is neither a nodule nor a mass for certain.
MAP = LabelMap(
    "vindr",
    same={"Fibrosis": ("Pulmonary Fibrosis",)},
    narrower={"Fracture": ("Rib Fracture", "Clavicle Fracture")},
)


@dataclass(frozen=True)
class _Votes:
    """What V pairs of image and reader said: the image of each, and cells (V, K)."""

    images: pl.Series
    cells: NDArray[np.float32]
    split: str


def vindr(
    root: str | Path, labels: Sequence[str | Path] = (), readers: Readers | None = None
) -> Table:
    """The table of VinDr-CXR, one row per image.

    Args:
        root: a folder with the images anywhere below it, named by their ids.
        labels: Kaggle's train.csv, or PhysioNet's image_labels_train.csv and image_labels_test.csv
            (or annotations_*.csv); or a folder of them. None: they lie in `root`.
        readers: `any`: a finding is present if any reader saw it, and No Finding if all said so;
            `majority`: what more than half of an image's readers said, No Finding too; `all`: what
            all of them said. None: that readers differ is an error.

    Raises:
        InputError: readers who differ without a rule, an unknown finding, no such files.
    """
    place = folder_of(root)
    files = _read_files(place, labels)
    columns = [find_columns(f, VINDR) if "finding" not in f.frame.columns else None for f in files]
    _check_alike(files, columns)
    known = set[str]()
    for file, found in zip(files, columns, strict=True):
        known |= set(_read_classes(file)) if found is None else set(found)
    space = LabelSpace(in_order(known, VINDR), "vindr" if known == set(VINDR) else "own")
    physionet = any("test" in file.path.name.lower() for file in files)
    votes = [
        _read_votes(file, found, space, physionet)
        for file, found in zip(files, columns, strict=True)
    ]
    names: list[str] = []
    cells = []
    splits: list[str] = []
    for vote, file in zip(votes, files, strict=True):
        images, agreed = _decide(vote, space, readers, file.path)
        names += images
        cells.append(agreed)
        splits += [vote.split] * len(images)
    check_inside(place, names, files[0].path)
    frame = pl.DataFrame(
        {"image": find_by_name(place, names, stems=True), "id": names, "split": splits}
    )
    return to_table(frame, np.concatenate(cells), space, root=place, source=SOURCE, made_from=files)


def vindr_boxes(table: Table, root: str | Path, labels: Sequence[str | Path] = ()) -> pl.DataFrame:
    """Every box of every reader: `image,finding,x,y,w,h,split,reader`, in pixels of the original.

    Args:
        table: as `vindr` made it; boxes of images that it does not have are left out.
        root: as for `vindr`.
        labels: as for `vindr`; PhysioNet's boxes are in annotations_*.csv.

    Raises:
        InputError: a box that is no four numbers, or has no area.
    """
    place = folder_of(root)
    patterns = ("train.csv", "annotations*.csv", "annotations/annotations*.csv")
    found = find_labels(place, labels, patterns, needed=False)
    frames = []
    for path in found:
        file = read_released(path, _NAMES, ("id",))
        if {"finding", *_EDGES} <= set(file.frame.columns):
            frames.append(_read_boxes(file))
    schema = dict.fromkeys(("image", "finding"), pl.String) | dict.fromkeys("xywh", pl.Float64)
    if not frames:
        return pl.DataFrame(schema=schema | dict.fromkeys(("split", "reader"), pl.String))
    boxes = pl.concat(frames)
    ids_ = pl.DataFrame({"id": table.ids or ()}, schema={"id": pl.String})
    row = match_rows(boxes.select("id"), ids_)
    here = boxes.filter(pl.Series(row >= 0))
    place_of = [table.images[i] for i in row[row >= 0]]
    split_of = ["" if table.splits is None else table.splits[i] for i in row[row >= 0]]
    return here.with_columns(
        pl.Series("image", place_of, dtype=pl.String), pl.Series("split", split_of, dtype=pl.String)
    ).select("image", "finding", "x", "y", "w", "h", "split", "reader")


def boxes_in_classes(
    boxes: pl.DataFrame, space: LabelSpace, rules: LabelMap | None
) -> pl.DataFrame:
    """The boxes under the classes of `space` that their findings are, or are a kind of.

    The box of a broken rib is one of a fracture. A finding that is not a class keeps its name.
    """
    names: dict[str, list[str]] = {}
    for finding in boxes["finding"].unique().to_list():
        kinds = ("same", "narrower")
        targets = () if rules is None or finding in space else rules.targets_of(finding, kinds)
        names[finding] = [name for name in targets if name in space] or [finding]
    renamed = pl.col("finding").replace_strict(names, return_dtype=pl.List(pl.String))
    return boxes.with_columns(renamed).explode("finding")


def _read_files(root: Path, given: Sequence[str | Path]) -> list[Released]:
    paths: list[Path] = []
    for start in [Path(g) for g in given] or [root]:
        here = start / "annotations" if (start / "annotations").is_dir() else start
        wide = sorted(here.glob("image_labels_*.csv"), reverse=True) if here.is_dir() else []
        paths += wide or find_labels(root, [here], ("train.csv", "annotations*.csv"))
    return [read_released(path, _NAMES, ("id",)) for path in dict.fromkeys(paths)]


def _check_alike(files: Sequence[Released], columns: Sequence[dict[str, str] | None]) -> None:
    """Refuse files that do not know the same findings: what one lacks would count as absent."""
    for file, found in zip(files, columns, strict=True):
        if (found is None) != (columns[0] is None) or set(found or ()) != set(columns[0] or ()):
            differing = set(found or ()) ^ set(columns[0] or ())
            raise InputError(
                f"{files[0].path} and {file.path} do not know the same findings: "
                f"{examples(sorted(differing))}. Make a table of each and join them."
            )


def _read_classes(file: Released) -> tuple[str, ...]:
    """The classes of a file with a finding a row."""
    tokens = file.frame["finding"].unique().to_list()
    known = {token: canonical(token) for token in tokens}
    wrong = sorted(token for token, name in known.items() if name not in VINDR)
    if wrong:
        row = int(file.frame["finding"].eq(wrong[0]).arg_true()[0])
        raise InputError(
            f"{file.path}, row {row + 2}, column 'class_name': {wrong[0]!r} is not a finding of "
            f"VinDr-CXR.{nearest(wrong[0], VINDR)}"
        )
    found = set(known.values())
    return _KAGGLE if found <= set(_KAGGLE) else in_order(found, VINDR)


def _read_votes(
    file: Released, columns: dict[str, str] | None, space: LabelSpace, physionet: bool
) -> _Votes:
    """A row for each image and reader; the boxes of one finding by one reader are one vote."""
    frame = file.frame
    reader = (
        frame["reader"] if "reader" in frame.columns else pl.repeat("", frame.height, eager=True)
    )
    pairs = pl.DataFrame({"id": frame["id"], "reader": reader})
    once = pairs.unique(keep="first", maintain_order=True)
    row = match_rows(pairs, once)
    cells = np.zeros((once.height, len(space)), dtype=np.float32)
    if columns is None:
        column = {name: space.index(name) for name in frame["finding"].unique().to_list()}
        cells[row, frame["finding"].replace_strict(column, return_dtype=pl.Int64).to_numpy()] = 1
    else:
        stated = read_findings(file, columns, space)
        if (stated < 0).any():
            at, k = np.argwhere(stated < 0)[0]
            name = columns[space.classes[k]]
            raise InputError(
                f"{file.path}, row {at + 2}, column '{name}': readers say 1 or 0, not blank or -1."
            )
        what = f"{file.path}: images (with their reader)"
        cells = stated[first_rows(pairs, stated, what, "Keep one row per reader.")]
    split = ""
    if physionet:
        split = "test" if "test" in file.path.name.lower() else "train"
    return _Votes(once["id"], cells, split)


def _decide(
    votes: _Votes, space: LabelSpace, rule: Readers | None, path: Path
) -> tuple[list[str], NDArray[np.float32]]:
    """The images in the file's order, and their cells (N, K) by the rule."""
    images = votes.images.unique(maintain_order=True)
    row = match_rows(votes.images.to_frame("id"), images.to_frame("id"))
    asked = np.bincount(row, minlength=len(images))[:, None]
    seen = np.zeros((len(images), len(space)), dtype=np.float32)
    np.add.at(seen, row, votes.cells)
    if rule is None:
        differing = np.flatnonzero(((seen > 0) & (seen < asked)).any(1))
        if len(differing):
            named = [images[int(i)] for i in differing[:5]]
            raise InputError(
                f"{path}: readers differ on {len(differing)} of {len(images)} images: "
                f"{examples(named)}. Choose a rule: --readers any, majority or all"
            )
        rule = "all"
    if rule == "majority":
        return images.to_list(), (seen * 2 > asked).astype(np.float32)
    found = seen == asked if rule == "all" else seen > 0
    if rule == "any" and "No Finding" in space:
        normal = space.index("No Finding")
        found[:, normal] = (seen == asked)[:, normal]
    return images.to_list(), found.astype(np.float32)


def _read_boxes(file: Released) -> pl.DataFrame:
    edges = file.frame.select(pl.col(_EDGES).cast(pl.Float64, strict=False))
    blank = pl.all_horizontal(pl.col(_EDGES).str.to_lowercase().is_in(["", "nan"]))
    none = file.frame.select(blank).to_series()
    area = (pl.col("right") > pl.col("left")) & (pl.col("bottom") > pl.col("top"))
    sound = edges.select(pl.all_horizontal(pl.all().is_finite()) & area).to_series()
    sound = sound.fill_null(False)
    wrong = (~none & ~sound).arg_true()
    if len(wrong):
        raise InputError(
            f"{file.path}, row {int(wrong[0]) + 2}: the box has no area or no numbers."
        )
    reader = file.frame["reader"] if "reader" in file.frame.columns else pl.lit("")
    names = {t: canonical(t) for t in file.frame["finding"].unique().to_list()}
    return (
        file.frame.select("id", pl.col("finding").replace_strict(names))
        .with_columns(
            reader.alias("reader"),
            edges["left"].alias("x"),
            edges["top"].alias("y"),
            (edges["right"] - edges["left"]).alias("w"),
            (edges["bottom"] - edges["top"]).alias("h"),
        )
        .filter(sound)
    )
