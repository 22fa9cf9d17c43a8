"""What `--data` may be: a table, a folder that is scanned by content, or one image."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path

from lingula.images.dicom.reading import non_image_kind
from lingula.images.files import HEAD, sniff
from lingula.system.errors import InputError
from lingula.tables.cells import is_table
from lingula.tables.reading import read_unlabelled
from lingula.tables.table import Table

log = logging.getLogger("lingula")

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".gif", ".dcm", ".dicom")
_SYSTEM = ("thumbs.db", "desktop.ini", "__macosx", "@eadir")


def images_in(data: str | Path) -> tuple[Path, tuple[str, ...], Table | None]:
    """The root, the image names relative to it, and the table if `data` is one.

    A table needs no classes here, only an image column: its labels are not read.

    Raises:
        InputError: there is no such thing, it is a table that can't be read, or it has no images.
    """
    place = Path(data)
    if place.is_dir():
        names, skipped = scan(place)
        if skipped:
            log.info("Skipped in %s: %s.", place, format_skipped(skipped))
        return place, names, None
    if not place.exists():
        raise InputError(f"There is no table, folder or image {place}.")
    if is_table(place):
        table = read_unlabelled(place)
        return table.root, table.images, table
    if place.suffix.lower() in (".json", ".jsonl", ".html", ".doc", ".docx", ".pdf"):
        raise InputError(f"{place} is not a table that can be read: save it as .csv or .xlsx.")
    return place.parent, (place.name,), None


def scan(folder: str | Path) -> tuple[tuple[str, ...], dict[str, int]]:
    """Images below a folder, and what was skipped, counted by reason.

    Files are known by content. One with an image's suffix that is not an image is kept, so
    that reading it fails by name. Links to folders are not followed.

    Returns:
        Paths relative to the folder (with `/`, sorted), and counts by reason.

    Raises:
        InputError: there is no image in the folder.
    """
    place = Path(folder)
    images: list[str] = []
    skipped = Counter[str]()
    for here, folders, names in os.walk(place):
        folders[:] = [name for name in folders if not _is_system(name)]
        for name in names:
            path = Path(here) / name
            reason = _why_not(path)
            if reason is None:
                images.append(path.relative_to(place).as_posix())
            else:
                skipped[reason] += 1
    if not images:
        what = f" Skipped: {format_skipped(skipped)}." if skipped else ""
        raise InputError(f"There are no images in {place}.{what}")
    return tuple(sorted(images)), dict(sorted(skipped.items()))


def format_skipped(skipped: dict[str, int]) -> str:
    """`2 hidden or system files, 1 ...`."""
    return ", ".join(f"{n} {reason}" for reason, n in sorted(skipped.items()))


def _is_system(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _SYSTEM


def _why_not(path: Path) -> str | None:
    """Why a file is no image to read, or None if it is one."""
    if _is_system(path.name):
        return "hidden or system files"
    try:
        path.name.encode()
    except UnicodeEncodeError:
        return "files whose names are not UTF-8"
    named = path.suffix.casefold() in _IMAGE_SUFFIXES
    try:
        if not path.is_file():
            return "links to nothing, pipes and devices"
        with path.open("rb") as stream:
            kind = sniff(stream.read(HEAD))
    except OSError:
        return None if named else "files that can't be opened"
    if kind == "dicom":
        other = non_image_kind(path)
        return f"not an image: {other}" if other else None
    return None if named or kind != "unknown" else "files that are not images"
