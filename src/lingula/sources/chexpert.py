"""CheXpert (small and full) and CheXpert Plus; -1 stays uncertain, blank cells mean absent."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lingula.settings.label_space import CHEXPERT, LabelSpace, canonical
from lingula.settings.vocabulary import parse_split
from lingula.sources.places import (
    check_inside,
    find_labels,
    folder_of,
    paths_in_layout,
    read_lines,
    warn,
)
from lingula.sources.released import (
    Released,
    find_columns,
    join_findings,
    match_rows,
    read_ages,
    read_released,
    read_sexes,
    to_table,
    unmatched,
)
from lingula.system import files
from lingula.system.errors import InputError, examples, nearest
from lingula.tables.table import BLANK, UNCERTAIN, Table

SOURCE = "chexpert"
log = logging.getLogger("lingula")

_NAMES = {
    "image": ("Path", "path_to_image"),
    "side": ("Frontal/Lateral", "frontal_lateral"),
    "view": ("AP/PA", "ap_pa"),
    "age": ("Age",),
    "sex": ("Sex",),
}
_PATTERNS = (
    "train.csv",
    "valid.csv",
    "CheXpert-v1.0*/train.csv",
    "CheXpert-v1.0*/valid.csv",
    "df_chexpert_plus_*.csv",
)
_PREFIX = re.compile(r"^/?(?:CheXpert-v1\.0[^/]*/)?(?:PNG/)?")
_PLACE = re.compile(r"(?:^|/)(train|valid|val|test)/(patient[^/]+)/([^/]+)/[^/]+$")


def chexpert(
    root: str | Path, labels: Sequence[str | Path] = (), ignore_columns: Sequence[str] = ()
) -> Table:
    """The table of CheXpert or CheXpert Plus.

    Args:
        root: the folder with `train` and `valid`, the one above it, or the one that has the
            release's batches (`CheXpert-v1.0 batch 2 (train 1)`, ...).
        labels: CSVs such as train.csv, valid.csv, train_cheXbert.csv; for CheXpert Plus
            `df_chexpert_plus_*.csv` and one of its .json files of labels. None: those of `root`.
        ignore_columns: columns of the CSVs that are left out.

    Patient, study and split are read from the images' paths, never from the name of a CSV.

    Raises:
        InputError: an unknown column or label, a path that is not CheXpert's, an image in two
            rows.
    """
    place = folder_of(root)
    found = find_labels(place, labels, _PATTERNS)
    stated = [path for path in found if path.suffix.lower() in (".json", ".jsonl")]
    tables = [read_released(path, _NAMES, ("image",)) for path in found if path not in stated]
    if not tables:
        raise InputError(f"{examples(stated)}: a CSV that lists the images is needed beside it.")
    if stated:
        return _read_plus(place, tables, stated)
    if any("section_findings" in file.rest or "report" in file.rest for file in tables):
        raise InputError(
            f"{examples(f.path for f in tables)}: CheXpert Plus has its labels in .json files: "
            "name one with --labels too."
        )
    columns = [find_columns(file, CHEXPERT, ignore_columns) for file in tables]
    space, cells = join_findings(tables, columns, CHEXPERT, {CHEXPERT: "chexpert"})
    frame = pl.concat([_clean(file, place) for file in tables], how="diagonal").fill_null("")
    return to_table(frame, cells, space, root=place, source=SOURCE, blank="zero", made_from=tables)


def _clean(file: Released, root: Path) -> pl.DataFrame:
    """Image, patient, study, split, view, age and sex of each row."""
    plain = [_PREFIX.sub("", path) for path in file.frame["image"].to_list()]
    parts = [_PLACE.search(path) for path in plain]
    wrong = [i for i, part in enumerate(parts) if part is None]
    if wrong:
        raise InputError(
            f"{file.path}, row {wrong[0] + 2}: {plain[wrong[0]]!r} is not a path of CheXpert's "
            "(train/patient00001/study1/view1_frontal.jpg)."
        )
    check_inside(root, plain, file.path)
    known = [part for part in parts if part is not None]
    raw = file.frame["image"].to_list()
    heads = dict.fromkeys(m[0].lstrip("/") for m in map(_PREFIX.match, raw[:1000]) if m)
    above = ("", *filter(None, heads), "CheXpert-v1.0-small/", "CheXpert-v1.0/", "PNG/")
    layouts = [partial(_path_at, head, suffix) for suffix in ("", ".png") for head in above]
    columns = {
        "image": _find_in_batches(root, paths_in_layout(root, plain, layouts), known),
        "patient": [part[2] for part in known],
        "study": [f"{part[2]}/{part[3]}" for part in known],
        "split": [parse_split(part[1]) or "" for part in known],
    }
    frame = pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String))
    given = file.frame
    if "view" in given.columns:
        view = given["view"]
        if "side" in given.columns:
            lateral = given["side"].str.to_lowercase() == "lateral"
            view = view.set(lateral & (view == ""), "LATERAL")
        frame = frame.with_columns(view.alias("view"))
    if "age" in given.columns:  # three rows say 0; CheXpert has no newborns
        frame = frame.with_columns(read_ages(given["age"], zero_is_unknown=True).alias("age"))
    if "sex" in given.columns:
        frame = frame.with_columns(read_sexes(given["sex"]).alias("sex"))
    return frame


def _find_in_batches(root: Path, images: list[str], parts: Sequence[re.Match[str]]) -> list[str]:
    """The images' paths; those of a split that has none are looked for in its patients' folders.

    The full release unpacks into `CheXpert-v1.0 batch 2 (train 1)/patient00001` and the like.
    """
    splits = [parse_split(part[1]) or "" for part in parts]
    lost = {split for split in set(splits) if not _is_any_there(root, images, splits, split)}
    if not lost:
        return images
    folders = _find_patient_folders(root)
    used: dict[str, None] = {}
    moved = list(images)
    for i, (split, part) in enumerate(zip(splits, parts, strict=True)):
        places = folders.get((split, part[2])) or folders.get(("", part[2])) or []
        if split not in lost or not places:
            continue
        if len(places) > 1:
            raise InputError(
                f"{part[2]} lies in {root / places[0]} and in {root / places[1]}. Name the folder "
                "of one copy of the images."
            )
        used[places[0]] = None
        moved[i] = f"{places[0]}/{images[i][images[i].index(part[2]) :]}"
    beside = [place.name for place in root.resolve().parent.glob("*batch*") if place.is_dir()]
    if used:
        log.info("The images lie in batches, as the release unpacks: %s.", examples(used))
    elif "batch" in root.resolve().name and len(beside) > 1:
        raise InputError(
            f"{root} is one batch of the release; others lie beside it ({examples(beside)}). Name "
            f"the folder that has them all: {root.resolve().parent}"
        )
    return moved


def _is_any_there(root: Path, images: Sequence[str], splits: Sequence[str], split: str) -> bool:
    here = [image for image, of in zip(images, splits, strict=True) if of == split]
    return any((root / image).is_file() for image in here[:: max(1, len(here) // _TRIED)])


_TRIED, _DEEPEST = 200, 3
_PATIENT = re.compile(r"patient\d+")


def _find_patient_folders(root: Path) -> dict[tuple[str, str], list[str]]:
    """Where the folders of patients lie, by split (of the folder above them) and patient."""
    found: dict[tuple[str, str], list[str]] = {}
    places = [root]
    for _ in range(_DEEPEST):
        below: list[Path] = []
        for place in places:
            inside = sorted(p for p in place.iterdir() if p.is_dir() and p.name[0] != ".")
            patients = [p.name for p in inside if _PATIENT.fullmatch(p.name)]
            below += [] if patients else inside
            split = parse_split(place.name) or ""
            here = place.relative_to(root).as_posix()
            for patient in patients:
                found.setdefault((split, patient), []).append(here)
        places = below
    return found


def _path_at(head: str, suffix: str, path: str) -> str:
    """A path below `head`, with another suffix if one is given (Plus has its films as .png too)."""
    return head + (path.rpartition(".")[0] + suffix if suffix else path)


def _read_plus(root: Path, tables: Sequence[Released], stated: Sequence[Path]) -> Table:
    """CheXpert Plus: images in a CSV, labels in a file of JSON lines that name the image."""
    if len(stated) > 1:
        raise InputError(f"Name one file of labels, not {examples(stated)}: they differ.")
    keys, cells, space = _read_json_labels(stated[0])
    frame = pl.concat([_clean(file, root) for file in tables], how="diagonal").fill_null("")
    plain = [_PREFIX.sub("", path) for file in tables for path in file.frame["image"].to_list()]
    row = match_rows(pl.DataFrame({"image": plain}), pl.DataFrame({"image": keys}))
    if not (row >= 0).any():
        raise InputError(f"{stated[0]} names none of the images of {tables[0].path}: {keys[0]!r}.")
    warn("images left out: they have no labels", [plain[i] for i in np.flatnonzero(row < 0)])
    warn(f"images of {stated[0].name} are in no row", unmatched(keys, row))
    labelled = row >= 0
    made = Released(stated[0], pl.DataFrame(), (), files.sha256(stated[0]))
    return to_table(
        frame.filter(pl.Series(labelled)),
        cells[row[labelled]],
        space,
        root=root,
        source=SOURCE,
        blank="zero",
        made_from=[*tables, made],
    )


def _read_json_labels(path: Path) -> tuple[list[str], NDArray[np.float32], LabelSpace]:
    """Image paths, cells and classes of a file with one JSON object a line."""
    keys: dict[str, int] = {}
    rows: list[list[float]] = []
    space = LabelSpace(CHEXPERT, "chexpert")
    meaning = {None: BLANK, 1: 1.0, 0: 0.0, -1: UNCERTAIN}
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: no JSON: {error}.") from None
        image = found.pop("path_to_image", None) if isinstance(found, dict) else None
        if not isinstance(image, str):
            raise InputError(f"{path}, line {number}: no `path_to_image`. Is it Plus's labels?")
        cells = [BLANK] * len(space)
        for name, value in found.items():
            if canonical(name) not in CHEXPERT:
                raise InputError(
                    f"{path}, line {number}: '{name}' is not one of CheXpert's findings."
                    f"{nearest(name, CHEXPERT)}"
                )
            if isinstance(value, (list, dict, str)) or value not in meaning:
                raise InputError(f"{path}, line {number}, '{name}': {value!r} is not a label.")
            cells[space.index(name)] = meaning[value]
        image = _PREFIX.sub("", image)
        if image in keys and rows[keys[image]] != cells:
            raise InputError(
                f"{path}, line {number}: '{image}' is listed twice, with other labels."
            )
        if image not in keys:
            keys[image] = len(rows)
            rows.append(cells)
    if not rows:
        raise InputError(f"{path} is empty.")
    return list(keys), np.array(rows, dtype=np.float32), space
