"""What `--data` may be: a table, a folder that is scanned by content, or one image."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from lingula.data.images import sniff
from lingula.data.reading import COLUMNS, read_description, read_frame
from lingula.data.table import Table
from lingula.errors import InputError
from lingula.labels import LabelSpace, fold

log = logging.getLogger("lingula")


def images_in(data: str | Path) -> tuple[Path, tuple[str, ...], Table | None]:
    """The root, the image names relative to it, and the table if `data` is one.

    A table needs no classes here, only an image column.
    """
    place = Path(data)
    if place.is_dir():
        names, skipped = scan(place)
        if skipped:
            counted = ", ".join(f"{n} {reason}" for reason, n in sorted(skipped.items()))
            log.info("Skipped in %s: %s.", place, counted)
        return place, names, None
    if not place.is_file():
        raise InputError(f"There is no table, folder or image {place}.")
    if place.suffix in (".csv", ".parquet"):
        table = unlabelled(place)
        return table.root, table.images, table
    return place.parent, (place.name,), None


def scan(folder: Path) -> tuple[tuple[str, ...], dict[str, int]]:
    """Images under a folder (relative, sorted), by content; and what was skipped, counted.

    Files that look like images by name but are none are kept: they fail by name later.
    """
    images, skipped = [], Counter[str]()
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        name = path.relative_to(folder).as_posix()
        if path.name.startswith(".") or path.name == "Thumbs.db":
            skipped["hidden or system files"] += 1
            continue
        with path.open("rb") as stream:
            kind = sniff(stream.read(132))
        if kind != "unknown" or path.suffix.casefold() in _IMAGE_NAMES:
            images.append(name)
        else:
            skipped["files that are no images"] += 1
    if not images:
        raise InputError(f"There are no images in {folder}.")
    return tuple(images), dict(skipped)


_IMAGE_NAMES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".dcm")


def unlabelled(path: Path) -> Table:
    """A table read for its images and ids alone; its other columns are not looked at."""
    frame = read_frame(path)
    described = read_description(path)
    texts: dict[str, Any] = {}
    for name in frame.columns:
        field = COLUMNS.get(fold(name))
        if field is not None and field not in texts:
            texts[field] = tuple(frame[name].str.strip_chars().to_list())
    if "images" not in texts:
        raise InputError(f"{path} has no `image` column.")
    from lingula import files

    return Table(
        root=path.parent / described.get("root", "."),
        space=LabelSpace(("none",)),
        labels=np.full((frame.height, 1), -3.0, dtype=np.float32),
        phantom=bool(described.get("phantom", False)),
        path=path,
        sha256=files.sha256(path),
        **texts,
    )
