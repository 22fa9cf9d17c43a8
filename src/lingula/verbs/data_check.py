"""`lingula data check`: the faults of a table and its images, before they cost a training."""

from __future__ import annotations

from pathlib import Path

from lingula.data.checking import CheckReport, check
from lingula.errors import InputError
from lingula.progress import counting, progress


def data_check(table: str | Path, *, images: bool = True) -> CheckReport:
    """Check a table and, with `images`, read every image that it names.

    All faults are found in one run. `InputError` only if there is no such file.
    """
    path = Path(table)
    if not path.is_file():
        raise InputError(f"There is no table {path}.")
    with progress("reading images") as tick:
        return check(path, images=images, progress=counting(tick))
