"""PadChest: lists of findings written as text, 16-bit PNG files, birth years instead of ages."""

from __future__ import annotations

import ast
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from lingula.settings.label_space import LabelSpace, canonical
from lingula.sources.places import check_inside, find_by_name, find_labels, folder_of, warn
from lingula.sources.released import (
    Released,
    clean_columns,
    mark_findings,
    read_ages,
    read_released,
    to_table,
)
from lingula.system.errors import InputError
from lingula.tables.mapping import LabelMap
from lingula.tables.table import BLANK, Table

log = logging.getLogger("lingula")

SOURCE = "padchest"

_NAMES = {
    "image": ("ImageID",),
    "patient": ("PatientID",),
    "study": ("StudyID",),
    "taken": ("StudyDate_DICOM",),
    "born": ("PatientBirth",),
    "sex": ("PatientSex_DICOM",),
    "view": ("Projection",),
    "folder": ("ImageDir",),
    "findings": ("Labels",),
}
# Entries of the lists that are not findings.
_NO_FINDINGS = ("exclude", "suboptimal study", "unchanged")

# Terms whose union is what the challenge's class means: PadChest names every finding it knows.
# Left out, since none of its terms says the same: Enlarged Cardiomediastinum, Lung Lesion, Lung
# Opacity, Pleural Other. `pulmonary mass` is a mass, `pseudonodule` is no nodule.
MAP = LabelMap(
    "padchest",
    same={
        "Atelectasis": (
            "atelectasis",
            "laminar atelectasis",
            "lobar atelectasis",
            "segmental atelectasis",
            "total atelectasis",
            "round atelectasis",
            "atelectasis basal",
        ),
        "Calcification of the Aorta": ("aortic atheromatosis",),
        "Edema": ("pulmonary edema",),
        "Fibrosis": ("pulmonary fibrosis",),
        "Fracture": (
            "fracture",
            "rib fracture",
            "callus rib fracture",
            "clavicle fracture",
            "humeral fracture",
            "vertebral fracture",
        ),
        "Hernia": ("hiatal hernia",),
        "Infiltration": ("infiltrates",),
        "Mass": ("mass", "pulmonary mass"),
        "Nodule": ("nodule", "multiple nodules"),
        "Pleural Effusion": (
            "pleural effusion",
            "loculated pleural effusion",
            "loculated fissural effusion",
            "hydropneumothorax",
        ),
        "Pleural Thickening": (
            "pleural thickening",
            "apical pleural thickening",
            "calcified pleural thickening",
        ),
        "Pneumonia": ("pneumonia", "atypical pneumonia"),
        "Pneumothorax": ("pneumothorax", "hydropneumothorax"),
        "Support Devices": (
            "NSG tube",
            "artificial aortic heart valve",
            "artificial heart valve",
            "artificial mitral heart valve",
            "catheter",
            "central venous catheter",
            "central venous catheter via jugular vein",
            "central venous catheter via subclavian vein",
            "central venous catheter via umbilical vein",
            "chest drain tube",
            "dual chamber device",
            "electrical device",
            "endotracheal tube",
            "gastrostomy tube",
            "pacemaker",
            "reservoir central venous catheter",
            "single chamber device",
            "tracheostomy tube",
            "ventriculoperitoneal drain tube",
        ),
        "Tortuous Aorta": (
            "aortic elongation",
            "ascendent aortic elongation",
            "descendent aortic elongation",
            "supra aortic elongation",
        ),
    },
)


def padchest(root: str | Path, labels: Sequence[str | Path] = ()) -> Table:
    """The table of PadChest, a class for every term of its lists.

    Args:
        root: a folder with the PNG files anywhere below it (`0/...`, `1/...`, or all in one).
        labels: `PADCHEST_chest_x_ray_images_labels_160K_*.csv[.gz]` or its folder; none: `root`.

    Images without a list, or with nothing but `exclude`, `suboptimal study` or `unchanged`, have
    blank cells: nothing is known of them.

    Raises:
        InputError: a cell of Labels that is not a list of names, rounded patient ids, no such file.
    """
    place = folder_of(root)
    found = find_labels(place, labels, ("PADCHEST_*.csv", "PADCHEST_*.csv.gz"))
    if len(found) != 1:
        raise InputError(f"PadChest's labels are one file, not {len(found)}: name one.")
    file = read_released(found[0], _NAMES, ("image", "patient", "findings"))
    lists, stated = _read_lists(file)
    names = sorted(
        {name for row in lists for name in row}, key=lambda name: (name.casefold(), name)
    )
    if not names:
        raise InputError(f"{file.path}: no row of column 'Labels' has a finding.")
    space = LabelSpace(tuple(dict.fromkeys(map(canonical, names))), "own")
    cells = mark_findings(lists, space)
    cells[~stated] = BLANK
    unknown = file.frame["image"].filter(pl.Series(~stated)).to_list()
    warn("images of which nothing is stated: they are blank, not negative", unknown)
    return to_table(_clean(file, place), cells, space, root=place, source=SOURCE, made_from=[file])


def _read_lists(file: Released) -> tuple[list[list[str]], np.ndarray]:
    """The findings of each row, and whether it states any (with `normal`, which is one)."""
    texts = file.frame["findings"]
    parsed: dict[str, list[str]] = {}
    for text in texts.unique().to_list():
        names = _parse_list(text)
        if names is None:
            row = int(texts.eq(text).arg_true()[0])
            shown = text if len(text) <= 60 else text[:57] + "..."
            raise InputError(
                f"{file.path}, row {row + 2}, column 'Labels': {shown!r} is not a list of names "
                "such as ['cardiomegaly', 'pleural effusion']."
            )
        parsed[text] = [name for name in names if name not in _NO_FINDINGS]
    lists = [parsed[text] for text in texts.to_list()]
    return lists, np.array([bool(names) for names in lists])


def _parse_list(text: str) -> list[str] | None:
    """The names of a list written as Python writes it; None if it is something else."""
    if text.casefold() in ("", "nan"):
        return []
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        return None
    # Stray blanks, and entries that are only blanks, do occur.
    return [" ".join(name.split()) for name in found if name.strip()]


def _clean(file: Released, root: Path) -> pl.DataFrame:
    frame = clean_columns(file, {"patient": "", "study": ""})
    images = frame["image"].to_list()
    check_inside(root, images, file.path)
    frame = frame.with_columns(
        pl.Series("image", find_by_name(root, images), dtype=pl.String),
        frame["image"].str.replace(r"\.[^.]+$", "").alias("id"),
    )
    if "view" in frame.columns:
        frame = frame.with_columns(frame["view"].replace({"L": "LATERAL"}))
    if "born" in frame.columns and "taken" in frame.columns:
        year = frame["taken"].str.extract(r"^(\d{4})").cast(pl.Int64, strict=False)
        born = frame["born"].str.extract(r"^(\d{4})").cast(pl.Int64, strict=False)
        # Born in the year of the image: less than a year old, and a bare 0 would be no known age.
        age = (year - born).cast(pl.String).fill_null("").replace("0", "0.5")
        frame = frame.with_columns(read_ages(age).alias("age"))
    return frame
