"""Tables of public data sets (`lingula data nih`, ...), and joined, split, filtered tables."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypedDict, Unpack

import numpy as np

from lingula.settings.label_space import label_space
from lingula.sources import chexpert, cxr_lt, medmnist, mimic, nih, padchest, vindr
from lingula.system import files
from lingula.system.claims import OTHER_CONTENT, check_not_an_input, claim
from lingula.system.csv_cells import format_csv
from lingula.system.errors import InputError, examples
from lingula.system.progress import count_only, progress
from lingula.tables.joins import check_overlap, overlap, union
from lingula.tables.making import NewTable, write_new_table
from lingula.tables.mapping import LabelMap, map_classes, read_map
from lingula.tables.reading import boxes_path, read_table
from lingula.tables.splits import check_parts, patients_in_two_splits, split_by_patient
from lingula.tables.table import Table, rows_of, subset, with_splits
from lingula.tables.where import rows_where

log = logging.getLogger("lingula")


class Written(TypedDict, total=False):
    """What the verbs for public data sets take beside the folder and the labels.

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
) -> NewTable:
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
) -> NewTable:
    """Write the table of MIMIC-CXR-JPG with the labels of CheXpert's or NegBio's labeller."""
    return _write(mimic.mimic(root, _listed(labels), ignore_columns, labeler), out, None, written)


def data_nih(
    root: str | Path,
    *,
    out: str | Path,
    labels: str | Path | Sequence[str | Path] = (),
    ignore_columns: Sequence[str] = (),
    **written: Unpack[Written],
) -> NewTable:
    """Write the table of NIH ChestX-ray14, with NIH-CXR-LT's labels where they are given."""
    return _write(nih.nih(root, _listed(labels), ignore_columns), out, None, written)


def data_chexpert(
    root: str | Path,
    *,
    out: str | Path,
    labels: str | Path | Sequence[str | Path] = (),
    ignore_columns: Sequence[str] = (),
    **written: Unpack[Written],
) -> NewTable:
    """Write the table of CheXpert or CheXpert Plus."""
    return _write(chexpert.chexpert(root, _listed(labels), ignore_columns), out, None, written)


def data_padchest(
    root: str | Path,
    *,
    out: str | Path,
    labels: str | Path | Sequence[str | Path] = (),
    **written: Unpack[Written],
) -> NewTable:
    """Write the table of PadChest."""
    return _write(padchest.padchest(root, _listed(labels)), out, padchest.MAP, written)


def data_vindr(
    root: str | Path,
    *,
    out: str | Path,
    labels: str | Path | Sequence[str | Path] = (),
    readers: Literal["any", "majority", "all"] | None = None,
    **written: Unpack[Written],
) -> NewTable:
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
    text = format_csv(boxes.columns, boxes.iter_rows())
    is_same = beside.exists() and beside.read_text(encoding="utf-8") == text
    if boxes.height and not is_same:
        claim(beside, OTHER_CONTENT, overwrite=True).make_room()
        files.write_text(beside, text)
    return found


def data_medmnist(root: str | Path, *, out: str | Path, **written: Unpack[Written]) -> NewTable:
    """Write the images of ChestMNIST as PNG files beside the table `out`, and the table."""
    beside = Path(out).parent / f"{Path(out).stem}-images"
    with progress("images") as tick:
        table = medmnist.medmnist(root, beside, count_only(tick))
    return _write(table, out, None, written)


def _listed(labels: str | Path | Sequence[str | Path]) -> Sequence[str | Path]:
    """One file or folder of labels is a list of one."""
    return [labels] if isinstance(labels, str | Path) else labels


def _write(table: Table, out: str | Path, shipped: LabelMap | None, written: Written) -> NewTable:
    """The table in the classes asked for, written."""
    asked, given = written.get("classes"), written.get("mapping")
    if given is not None and asked is None:
        raise InputError("A map needs the classes that it maps to: --classes cxr-lt-2023")
    if asked is not None:
        rules = _rules(shipped, written)
        table = map_classes(table, label_space(asked), rules, strict=given is not None)
    return write_new_table(
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


def data_join(
    tables: Sequence[str | Path],
    *,
    out: str | Path,
    classes: str | Sequence[str] | None = None,
    mapping: str | Path | None = None,
    images: bool = True,
    ignore_columns: Sequence[str] = (),
    soft: bool = False,
    overwrite: bool = False,
) -> NewTable:
    """Write one table of several, their classes joined by name.

    Args:
        tables: two or more.
        out: the new table.
        classes: a label space by name, or class names; None takes every class of any table.
        mapping: a .yaml map for classes that do not go by name.
        images: compare the image files of the tables, byte by byte where it is needed.
        ignore_columns: columns that are no classes; they are not in the new table.
        soft: cells may be probabilities.
        overwrite: rename a table that is in the way.

    Raises:
        InputError: patients in two tables, images in two tables in different splits, tables of one
            source that know different classes.
    """
    if len(tables) < 2:
        raise InputError("Joining needs two tables or more.")
    check_not_an_input(out, tables)
    read = [
        read_table(path, ignore_columns=ignore_columns, ignore_absent=True, soft=soft)
        for path in tables
    ]
    shared = overlap(read, images=images)
    check_overlap(read, shared)
    if shared.images:
        shown = [f"{a} = {b}" for a, b in shared.images]
        log.warning("%d images are in two tables: %s.", len(shown), examples(shown))
    space = None if classes is None else label_space(classes)
    joined = union(read, space, None if mapping is None else read_map(mapping))
    return write_new_table(joined, out, images=False, overwrite=overwrite)


def data_split(
    table: str | Path,
    *,
    out: str | Path,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    seed: int = 0,
    within: str | None = None,
    images_are_patients: bool = False,
    ignore_columns: Sequence[str] = (),
    soft: bool = False,
    overwrite: bool = False,
) -> NewTable:
    """Write the table with a split by patient that spreads the rare classes.

    Args:
        table: the table.
        out: the new table.
        fractions: shares of the images in train, dev and test.
        seed: of the order in which patients are taken.
        within: a split: only its rows are split anew, the others stay as they are. So an official
            training set gives its dev set: `within="train", fractions=(0.9, 0.1, 0)`.
        images_are_patients: a row without a patient is a patient of its own.
        ignore_columns: columns that are no classes; they are not in the new table.
        soft: cells may be probabilities.
        overwrite: rename a table that is in the way.
    """
    check_not_an_input(out, [table])
    read = read_table(table, ignore_columns=ignore_columns, soft=soft)
    part, where, rows = read, str(table), np.arange(len(read))
    if within is not None:
        where, rows = f"{table} ({within})", rows_of(read, within)
        if not len(rows):
            raise InputError(f"{table} has no rows with split '{within}' to split.")
        part = subset(read, rows)
    elif read.splits is not None:
        log.warning("%s has a split, which is replaced. To split one part: --within", table)
    splits = split_by_patient(
        part, fractions=fractions, seed=seed, images_are_patients=images_are_patients
    )
    check_parts(splits, fractions, where)
    names = np.array(read.splits or [""] * len(read), dtype=object)
    names[rows] = splits
    result = with_splits(read, tuple(names.tolist()))
    shared = [] if within is None else patients_in_two_splits(result)
    if shared:
        raise InputError(
            f"{table}: patients are in more than one split: {examples(shared)}. Its split was "
            "not by patient; split the whole table."
        )
    return write_new_table(result, out, images=False, overwrite=overwrite)


def data_filter(
    table: str | Path,
    *,
    out: str | Path,
    where: str,
    ignore_columns: Sequence[str] = (),
    soft: bool = False,
    overwrite: bool = False,
) -> NewTable:
    """Write the rows of a table that fulfil the condition `where`.

    The condition compares columns and classes with constants: `view in ('PA', 'AP') and age >= 18`.

    Raises:
        InputError: a condition that can't be read, has an unknown column, or leaves no row.
    """
    check_not_an_input(out, [table])
    read = read_table(table, ignore_columns=ignore_columns, soft=soft)
    rows = rows_where(read, where)
    if not len(rows):
        raise InputError(f"No row of {table} fulfils {where!r}.")
    log.info("%d of %d rows fulfil the condition.", len(rows), len(read))
    return write_new_table(subset(read, rows), out, images=False, overwrite=overwrite)
