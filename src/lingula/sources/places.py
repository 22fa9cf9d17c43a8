"""Where a source's files lie: its label files by name, its images by path or by file name."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from lingula.images.files import image_path
from lingula.system import files
from lingula.system.errors import ImageError, InputError, examples

log = logging.getLogger("lingula")

SUFFIXES = (".png", ".jpg", ".jpeg", ".dicom", ".dcm", ".tif", ".tiff")
_TRIED = 200


def folder_of(root: str | Path) -> Path:
    """`root` as a path; `InputError` if there is no such folder."""
    place = Path(root)
    if not place.is_dir():
        raise files.not_a_folder(place, " Name the folder with the images.")
    return place


def find_labels(
    root: Path, given: Sequence[str | Path], patterns: Sequence[str], needed: bool = True
) -> list[Path]:
    """The files that were given, and in given folders (else in `root`) those of the patterns.

    Raises `InputError` for what is not there, and if `needed` and nothing is found.
    """
    found: list[Path] = []
    places = [Path(place) for place in given] or [root]
    for place in places:
        if place.is_dir():
            found += [path for pattern in patterns for path in sorted(place.glob(pattern))]
        elif place.is_file():
            found.append(place)
        else:
            raise InputError(f"There is no label file or folder {place}.")
    found = list(dict.fromkeys(found))
    if not found and needed:
        raise InputError(
            f"There is no {' or '.join(patterns)} in {examples(places)}. "
            "Say where the labels are: --labels FILE or FOLDER"
        )
    return found


def read_lines(path: Path) -> list[str]:
    """The lines of a text file; `InputError` if it can't be read as UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read as text: {error}.") from None


def _is_file(path: Path) -> bool:
    """Whether there is a file; names that no file can have, and closed folders, are none."""
    try:
        return path.is_file()
    except OSError:
        return False


def check_inside(root: Path, images: Sequence[str], file: Path) -> None:
    """Refuse image cells of `file` that lead out of `root`; `InputError` names the first."""
    for number, cell in enumerate(images):
        # Anything with one of these might; the function that reads images decides.
        if not cell or ".." in cell or cell[0] in "/\\" or ":" in cell or "\0" in cell:
            try:
                image_path(root, cell)
            except ImageError as error:
                raise InputError(f"{file}, row {number + 2}: {error}") from None


def paths_in_layout(
    root: Path, images: Sequence[str], layouts: Sequence[Callable[[str], str]]
) -> list[str]:
    """The images' paths in the layout in which most of a sample are found; else in the first."""
    step = max(1, len(images) // _TRIED)
    sample = images[::step]
    counts = [sum(_is_file(root / layout(name)) for name in sample) for layout in layouts]
    best = layouts[counts.index(max(counts))]
    return [best(name) for name in images]


def find_by_name(root: Path, names: Sequence[str], *, stems: bool = False) -> list[str]:
    """Paths of image files wherever they lie below `root`; one not found keeps its bare name.

    Args:
        root: the folder; links to folders are followed, each folder once.
        names: file names; without their suffix if `stems`.
        stems: whether they are.

    Raises:
        InputError: a wanted name is in two places.
    """
    wanted = set(names)
    found: dict[str, str] = {}
    for path in _image_files(root):
        name = path.rpartition("/")[2]
        key = name.rpartition(".")[0] if stems else name
        if key not in wanted:
            continue
        if key in found:
            raise InputError(
                f"Image '{key}' is in two places below {root}: {found[key]} and {path}. Name the "
                "folder with one copy of the images."
            )
        found[key] = path
    return [found.get(name, name) for name in names]


def _image_files(root: Path) -> list[str]:
    paths: list[str] = []
    seen: set[tuple[int, int]] = set()
    for here, folders, names in os.walk(root, followlinks=True):
        place = Path(here)
        state = place.stat()
        if (state.st_dev, state.st_ino) in seen:
            folders.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        below = "" if place == root else place.relative_to(root).as_posix() + "/"
        paths += [
            below + name
            for name in names
            if not name.startswith(".") and name.lower().endswith(SUFFIXES)
        ]
    return paths


def warn(what: str, found: Collection[object]) -> None:
    """Log how many of something there are, and the first of them; nothing if there are none."""
    if found:
        log.warning("%d %s: %s.", len(found), what, examples(found))
