"""`lingula data check`: the faults of a table and its images, before they cost a training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lingula.images.files import image_path
from lingula.images.reading import read_image
from lingula.settings.config import Data
from lingula.system import files
from lingula.system.errors import ImageError, InputError
from lingula.system.progress import counting, progress
from lingula.tables.cells import FOLDER_TO_TABLE
from lingula.tables.checking import CheckReport, check, to_json
from lingula.tables.configured import checked_table
from lingula.tables.making import keep_rows
from lingula.tables.table import Table

SHEET = 24
SIDE = 128


def data_check(
    table: str | Path,
    *,
    images: bool = True,
    page: str | Path | None = None,
    drop_bad: str | Path | None = None,
    root: str | Path | None = None,
    classes: str | Sequence[str] | None = None,
    ignore_columns: Sequence[str] = (),
    soft: bool = False,
    images_are_patients: bool = False,
) -> CheckReport:
    """Check a table and, with `images`, read every image that it names.

    The table is read as training reads it, by the settings of `data` of the same names.

    All faults are found in one run. `InputError` only if there is no such file.

    Args:
        table: a table file.
        images: read the images too.
        page: write the report as an HTML page, with films, to this file.
        drop_bad: write the table without the rows whose images can't be read to this file.
        root: folder of the images, if not the table's own.
        classes: a label space by name, or class names; None: the table's class columns.
        ignore_columns: columns that are no classes.
        soft: cells may be probabilities.
        images_are_patients: rows without a patient are each one.
    """
    path = Path(table)
    if not path.is_file():
        raise files.not_a_file(path, "table", " " + FOLDER_TO_TABLE)
    if page is not None:
        files.check_suffix(Path(page), (".html", ".htm"), "the page")
    data = Data(
        root=None if root is None else str(root),
        classes=classes if classes is None or isinstance(classes, str) else tuple(classes),
        ignore_columns=tuple(ignore_columns),
        soft=soft,
        images_are_patients=images_are_patients,
    )
    with progress("reading images") as tick:
        found = check(path, images=images, data=data, progress=counting(tick))
    if page is not None:
        _write_page(found, path, data, Path(page), images)
    if drop_bad is not None:
        bad = set(found.bad)
        keep_rows(path, Path(drop_bad), lambda image: image not in bad)
    return found


def _write_page(found: CheckReport, path: Path, data: Data, page: Path, images: bool) -> None:
    from lingula.reporting.pages import render_page

    pictures: dict[str, list[tuple[str, str]]] = {}
    try:
        table = checked_table(path, data)[0] if images else None
    except InputError:
        table = None  # the report says why
    if table is not None:
        for what, names in found.odd.items():
            pictures[what] = _pictures(table, names[:12])
        bad = set(found.bad)
        good = [name for name in dict.fromkeys(table.images) if name not in bad]
        order = np.random.default_rng(0).permutation(len(good))[:SHEET]
        pictures[""] = _pictures(table, [good[i] for i in order])
    files.write_text(page, render_page("check.html", check=to_json(found), pictures=pictures))


def _pictures(table: Table, names: list[str] | tuple[str, ...]) -> list[tuple[str, str]]:
    from lingula.reporting.figures import png_uri

    rows = {name: row for row, name in enumerate(table.images)}
    shown = []
    for name in names:
        try:
            pixels: NDArray[np.uint8] = read_image(image_path(table.root, name), SIDE)
        except ImageError:
            continue  # it is among the problems
        labels = table.labels[rows[name]]
        present = [c for c, cell in zip(table.space.classes, labels, strict=True) if cell >= 0.5]
        shown.append(
            (png_uri(Image.fromarray(pixels)), f"{name}: {', '.join(present) or 'nothing'}")
        )
    return shown
