"""`lingula data check`: the faults of a table and its images, before they cost a training."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from lingula.settings.config import Data
from lingula.system import files
from lingula.system.errors import InputError
from lingula.system.progress import count_only, progress
from lingula.tables.cells import FOLDER_TO_TABLE
from lingula.tables.checking import CheckReport, check
from lingula.tables.configured import checked_table
from lingula.tables.making import keep_rows


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
        page: write the report as an HTML page, with images, to this file.
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
        found = check(path, images=images, data=data, progress=count_only(tick))
    if page is not None:
        from lingula.reporting.pages import render_check  # takes longer than a check

        # None where the table can't be read: the report says why.
        readable = None
        if images:
            with contextlib.suppress(InputError):
                readable = checked_table(path, data)[0]
        files.write_text(page, render_check(found, readable))
    if drop_bad is not None:
        bad = set(found.bad)
        keep_rows(path, Path(drop_bad), lambda image: image not in bad)
    return found
