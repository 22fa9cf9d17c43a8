"""`lingula data cxr-lt`, `mimic`, `nih`, ...: a table of a public data set as it lies on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypedDict, Unpack

from lingula.settings.label_space import label_space
from lingula.sources import chexpert, cxr_lt, medmnist, mimic, nih, padchest, vindr
from lingula.system import files
from lingula.system.claims import OTHER_CONTENT, claim
from lingula.system.csv_cells import plain_csv
from lingula.system.errors import InputError
from lingula.system.progress import counting, progress
from lingula.tables.making import Made, made
from lingula.tables.mapping import LabelMap, mapped, read_map
from lingula.tables.reading import boxes_path
from lingula.tables.table import Table


class Written(TypedDict, total=False):
    """What all these verbs take beside the folder and the labels.

    Attributes:
        classes: a label space by name, or class names: the table has these, by name and by the
            source's stated map. Default: the source's own.
        mapping: a .yaml map in place of the source's own; needs `classes`.
        images: look whether every image is there.
        drop_missing: leave out the rows of those that are not.
        overwrite: rename a table that is in the way.
    """

    classes: str | Sequence[str] | None
    mapping: str | Path | None
    images: bool
    drop_missing: bool
    overwrite: bool


def data_cxr_lt(
    root: str | Path,
    *,
    out: str | Path,
    labels: str | Path | Sequence[str | Path] = (),
    ignore_columns: Sequence[str] = (),
    **written: Unpack[Written],
) -> Made:
    """Write the table of CXR-LT 2023 or 2024 over the images of MIMIC-CXR-JPG in `root`."""
    return _write(cxr_lt.cxr_lt(root, _listed(labels), ignore_columns), out, None, written)


def data_mimic(
    root: str | Path,
    *,
    out: str | Path,
    labels: str | Path | Sequence[str | Path] = (),
    ignore_columns: Sequence[str] = (),
    labeler: Literal["chexpert", "negbio"] | None = None,
    **written: Unpack[Written],
) -> Made:
    """Write the table of MIMIC-CXR-JPG with the labels of CheXpert's or NegBio's labeller."""
    return _write(mimic.mimic(root, _listed(labels), ignore_columns, labeler), out, None, written)


def data_nih(
    root: str | Path,
    *,
    out: str | Path,
    labels: str | Path | Sequence[str | Path] = (),
    ignore_columns: Sequence[str] = (),
    **written: Unpack[Written],
) -> Made:
    """Write the table of NIH ChestX-ray14, with NIH-CXR-LT's labels where they are given."""
    return _write(nih.nih(root, _listed(labels), ignore_columns), out, None, written)


def data_chexpert(
    root: str | Path,
    *,
    out: str | Path,
    labels: str | Path | Sequence[str | Path] = (),
    ignore_columns: Sequence[str] = (),
    **written: Unpack[Written],
) -> Made:
    """Write the table of CheXpert or CheXpert Plus."""
    return _write(chexpert.chexpert(root, _listed(labels), ignore_columns), out, None, written)


def data_padchest(
    root: str | Path,
    *,
    out: str | Path,
    labels: str | Path | Sequence[str | Path] = (),
    **written: Unpack[Written],
) -> Made:
    """Write the table of PadChest."""
    return _write(padchest.padchest(root, _listed(labels)), out, padchest.MAP, written)


def data_vindr(
    root: str | Path,
    *,
    out: str | Path,
    labels: str | Path | Sequence[str | Path] = (),
    readers: Literal["any", "majority", "all"] | None = None,
    **written: Unpack[Written],
) -> Made:
    """Write the table of VinDr-CXR, and `TABLE.boxes.csv` where the labels have boxes."""
    given_labels = _listed(labels)
    table = vindr.vindr(root, given_labels, readers)
    boxes = vindr.vindr_boxes(table, root, given_labels)
    beside = boxes_path(Path(out))
    if not Path(out).exists():
        claim(beside, OTHER_CONTENT, overwrite=written.get("overwrite"))
    found = _write(table, out, vindr.MAP, written)
    boxes = boxes.filter(boxes["image"].is_in(list(found.table.images)))
    boxes = vindr.boxes_in_classes(boxes, found.table.space, _rules(vindr.MAP, written))
    text = plain_csv(boxes.columns, boxes.iter_rows())
    is_same = beside.exists() and beside.read_text(encoding="utf-8") == text
    if boxes.height and not is_same:
        claim(beside, OTHER_CONTENT, overwrite=True).make_room()
        files.write_text(beside, text)
    return found


def data_medmnist(root: str | Path, *, out: str | Path, **written: Unpack[Written]) -> Made:
    """Write the images of ChestMNIST as PNG files beside the table `out`, and the table."""
    beside = Path(out).parent / f"{Path(out).stem}-images"
    with progress("images") as tick:
        table = medmnist.medmnist(root, beside, counting(tick))
    return _write(table, out, None, written)


def _listed(labels: str | Path | Sequence[str | Path]) -> Sequence[str | Path]:
    """One file or folder of labels is a list of one."""
    return [labels] if isinstance(labels, str | Path) else labels


def _write(table: Table, out: str | Path, shipped: LabelMap | None, written: Written) -> Made:
    """The table in the classes asked for, written."""
    asked, given = written.get("classes"), written.get("mapping")
    if given is not None and asked is None:
        raise InputError("A map needs the classes that it maps to: --classes cxr-lt-2023")
    if asked is not None:
        rules = _rules(shipped, written)
        table = mapped(table, label_space(asked), rules, strict=given is not None)
    return made(
        table,
        out,
        images=written.get("images", True),
        drop_missing=written.get("drop_missing", False),
        overwrite=written.get("overwrite", False),
    )


def _rules(shipped: LabelMap | None, written: Written) -> LabelMap | None:
    """The map that the user names, else the one that lingula ships for the source."""
    given = written.get("mapping")
    return shipped if given is None else read_map(given)
