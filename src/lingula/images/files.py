"""Image files before they are decoded: where a cell points, which are there, of what kind they are.

Also what reading passes over in them without refusing them: remarks, logged once or collected.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import logging
import os
import posixpath
import re
import struct
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO
from urllib.parse import unquote

from lingula.system.errors import ImageError

log = logging.getLogger("lingula")

# A network disk takes its time for each question, so many are asked at once.
_THREADS = 32
_AT_ONCE = 1024  # files a thread looks for before it takes others
_LISTED = 8  # wanted files of a folder from which on one listing is less work than asking for each


def find_absent(paths: Sequence[str | Path]) -> list[int]:
    """Find the places in `paths` at which there is no file; links to files are files.

    A path that no file can have, and one in a folder that may not be entered, is absent.
    """
    folders: dict[str, list[tuple[int, str]]] = {}
    for place, path in enumerate(paths):
        folder, name = os.path.split(path)
        folders.setdefault(folder, []).append((place, name))
    work: list[list[str]] = [[]]
    waiting = 0
    for folder, wanted in folders.items():
        if waiting >= _AT_ONCE:
            work.append([])
            waiting = 0
        work[-1].append(folder)
        waiting += len(wanted)

    def look(some: list[str]) -> list[int]:
        return [place for folder in some for place in _absent_in(folder, folders[folder])]

    with ThreadPoolExecutor(_THREADS) as pool:
        return sorted(chain.from_iterable(pool.map(look, work)))


def _absent_in(folder: str, wanted: Sequence[tuple[int, str]]) -> list[int]:
    listed: set[str] = set()
    if len(wanted) >= _LISTED:
        try:
            with os.scandir(folder) as entries:
                listed = {entry.name for entry in entries if entry.is_file()}
        except (OSError, ValueError):
            pass  # a folder may be entered but not listed: then each is asked for
    # What the listing spells otherwise (some systems fold case or accents) is asked for too.
    return [
        place
        for place, name in wanted
        if name not in listed and not os.path.isfile(os.path.join(folder, name))  # noqa: PTH113, PTH118
    ]


def estimate_bytes(paths: Sequence[str | Path], sample: int = 256) -> int:
    """Estimate the bytes of many files together from evenly spaced ones; 0 if there are none.

    Args:
        paths: the files.
        sample: how many of them are asked for their size.
    """
    asked = [paths[i * len(paths) // sample] for i in range(sample)] if paths else []

    def size(path: str | Path) -> int | None:
        try:
            return Path(path).stat().st_size
        except (OSError, ValueError):
            return None

    with ThreadPoolExecutor(_THREADS) as pool:
        known = [found for found in pool.map(size, asked) if found is not None]
    return round(sum(known) / len(known) * len(paths)) if known else 0


def relative_cell(root: Path, cell: str) -> str:
    """An image cell as a path below `root`, with `/` and without detours; any other as it is."""
    plain: str | None = _as_posix(cell)
    if str(plain).startswith("/"):
        plain = _below(root, str(plain))
    return posixpath.normpath(plain or cell)


def image_path(root: Path, cell: str) -> Path:
    """Where an image cell points: a path below `root`, whatever links there are on the way.

    An absolute path (also as `file:///...`) may be given if it lies there. Where there is no file
    of the name as it is written, `\\` is taken for `/`.

    Raises:
        ImageError: the cell is blank, contains a NUL, a drive or a URL, or leads out of the root.
    """
    if cell and cell[0] not in "./\\" and _MAY_LEAD_OUT.search(cell) is None:
        return root / cell  # as nearly all are, of hundreds of thousands
    plain = _as_posix(cell)
    inside: str | None = posixpath.normpath(plain) if ".." in plain else plain
    if not cell or "\0" in plain or _ELSEWHERE.match(plain) or plain.startswith("//"):
        inside = None
    elif plain.startswith("/"):
        inside = _below(root, plain)
    elif inside in (".", "..") or str(inside).startswith("../") or posixpath.normpath(plain) == ".":
        inside = None
    if inside is None:
        raise ImageError(
            "outside the data root",
            f"Image {cell!r} is not a path inside the data root {root}. "
            + _how_to_fix(root, cell, plain),
        )
    # Inner `..` are resolved by name, so that no link can turn them into a way out.
    if "\\" in cell and ".." not in cell and not plain.startswith("/") and _is_there(root / cell):
        return root / cell
    return root / inside


def _is_there(path: Path) -> bool:
    """Whether there is such a file; a name that no file can have is of none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _as_posix(cell: str) -> str:
    """A cell with `/` between its parts; of a `file:` URL without a host, its path."""
    if cell.startswith("file:///"):
        return unquote(cell.removeprefix("file://"))
    return cell.replace("\\", "/")


def _below(root: Path, absolute: str) -> str | None:
    """An absolute path relative to the root, by any of the root's names; None if it is outside."""
    wanted = posixpath.normpath(absolute)
    for name in _names_of(root.absolute()):
        if wanted.startswith(f"{name}/"):
            return wanted[len(name) + 1 :]
    for parent in Path(wanted).parents:  # a link may lead to the root from elsewhere
        try:
            if parent.samefile(root):
                return Path(wanted).relative_to(parent).as_posix()
        except (OSError, ValueError):
            continue
    return None


@functools.lru_cache(maxsize=64)
def _names_of(root: Path) -> tuple[str, ...]:
    """A folder's own absolute name, and that without links."""
    names = (posixpath.normpath(root.as_posix()), root.resolve().as_posix())
    return tuple(dict.fromkeys(name.rstrip("/") for name in names))


def _how_to_fix(root: Path, cell: str, plain: str) -> str:
    """How to fix a cell that leads elsewhere: what to strip, if the rest is below the root."""
    parts = plain.split("/")
    for begin in range(1, len(parts)):
        rest = "/".join(parts[begin:])
        if rest and ".." not in parts and _is_there(root / rest):
            return (
                f"Absolute paths elsewhere are not taken: strip {cell[: len(cell) - len(rest)]!r} "
                f"from the cells ({rest} is there)."
            )
    return "Give paths relative to it, and the root as data.root=FOLDER."


_MAY_LEAD_OUT = re.compile(r"[\0:\\]|\.\.")
_ELSEWHERE = re.compile(r"[A-Za-z]:|[A-Za-z][A-Za-z0-9+.-]*://|file:")


MAX_PIXELS = 200_000_000


HEAD = 132


def sniff(data: bytes) -> str:
    """`jpeg`, `png`, `tiff`, `bmp`, `gif`, `dicom` or `unknown`, by the first 132 bytes."""
    if data[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:4] in (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"):
        return "tiff"
    if data[:2] == b"BM" and data[6:10] == b"\0\0\0\0":
        return "bmp"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if data[128:132] == b"DICM" or _no_preamble(data[:HEAD]):
        return "dicom"
    return "unknown"


@contextlib.contextmanager
def open_image(file: Path) -> Iterator[tuple[BinaryIO, str]]:
    """Open an image file: its stream, at the first byte, and its kind, as `sniff` names it.

    Raises:
        ImageError: the file is missing, a folder or device, empty, or can't be read.
    """
    try:
        if not S_ISREG(file.stat().st_mode):
            raise ImageError("not an image", f"{file} is a folder or device, not an image file.")
        with file.open("rb") as stream:
            head = stream.read(HEAD)
            if not head:
                raise ImageError("empty", f"{file} is empty (0 bytes).")
            stream.seek(0)
            yield stream, sniff(head)
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError("missing", f"There is no file {file}.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError("unreadable", f"{file} can't be opened: {reason}.") from None


def _no_preamble(head: bytes) -> bool:
    """Whether bytes begin a DICOM data set that lacks the preamble, by its first two elements."""
    at, last = 0, (0, 0)
    for _ in range(2):
        if at + 8 > len(head):
            break
        tag = struct.unpack_from("<HH", head, at)
        if tag[0] not in (0x0002, 0x0008) or tag[1] > 0x1200 or tag <= last:
            return False
        if head[at + 4 : at + 6] in _SHORT_VRS:
            (length,) = struct.unpack_from("<H", head, at + 6)
        elif head[at + 4 : at + 6] in (b"OB", b"SQ", b"UN", b"UT"):
            return head[at + 6 : at + 8] == b"\0\0"
        else:
            (length,) = struct.unpack_from("<I", head, at + 4)
        if length > 1024 or length % 2:
            return False
        at, last = at + 8 + length, tag
    return last != (0, 0)


_SHORT_VRS = frozenset(b"AE AS CS DA DS DT IS LO LT PN SH ST TM UI UL US".split())


def check_size(width: int, height: int, file: Path) -> None:
    """Refuse what a header says before memory is taken for it: too many pixels, or none."""
    if width * height > MAX_PIXELS:
        raise ImageError(
            "too large",
            f"{file} is {width} x {height} pixels; the limit is {MAX_PIXELS // 10**6} million.",
        )
    if width < 1 or height < 1:
        raise ImageError("damaged", f"{file} says that it is {width} x {height} pixels.")


def describe_damage(file: Path, kind: str, reason: str) -> ImageError:
    """The error for a file that can't be decoded: truncated or damaged, by the reason's words."""
    words = ("truncated", "premature", "end of file", "incomplete")
    name = "truncated" if any(word in reason.lower() for word in words) else "damaged"
    return ImageError(name, f"{file} is a {name} {kind.upper()}: {reason.rstrip('.')}.")


class Remark(enum.StrEnum):
    """What was passed over in an image file that was read all the same."""

    BURNED_IN = "text is burned into its pixels, it says"
    FRAMES = "it has several frames"
    LOST_WINDOW = "the window leaves nothing of the grey levels"
    BAD_WINDOW = "the window can't be used"
    LOST_TABLE = "the table of grey levels leaves nothing of them"
    BAD_TABLE = "the table of grey levels can't be used"
    BAD_MODALITY = "the table of modality values can't be used"
    BAD_RESCALE = "the rescale slope or intercept can't be used"
    STRAY_BYTES = "there are stray bytes before a marker of the JPEG"


REMARKS = {
    Remark.BURNED_IN: "it may name the patient.",
    Remark.FRAMES: "the first is read, the others are not.",
    Remark.LOST_WINDOW: "it was meant for another scale; they are stretched instead.",
    Remark.BAD_WINDOW: "the grey levels are stretched instead.",
    Remark.LOST_TABLE: "the window is taken, or they are stretched.",
    Remark.BAD_TABLE: "the window is taken, or the grey levels are stretched.",
    Remark.BAD_MODALITY: "the rescale slope and intercept are taken.",
    Remark.BAD_RESCALE: "the stored values are taken.",
    Remark.STRAY_BYTES: "every pixel is there; the bytes are passed over.",
}
"""What is done about each remark, or what to do."""

warned: set[Remark] = set()
_collecting = threading.local()


def remark(file: Path, what: Remark) -> None:
    """Collect what was passed over in a file, or log it, once per process.

    A data set may have it in every image, and every epoch.
    """
    collected: list[Remark] | None = getattr(_collecting, "remarks", None)
    if collected is not None:
        collected.append(what)
    elif what not in warned:
        warned.add(what)
        text = "%s: %s: %s (Further files of which this is true are not named.)"
        log.warning(text, file, what, REMARKS[what])


@contextlib.contextmanager
def collect_remarks() -> Iterator[list[Remark]]:
    """Collect this thread's remarks in a list instead of logging them."""
    before = getattr(_collecting, "remarks", None)
    _collecting.remarks = collected = list[Remark]()
    try:
        yield collected
    finally:
        _collecting.remarks = before


PHANTOM_KEY, PHANTOM_VALUE = "lingula", "phantom"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def is_phantom(path: Path) -> bool:
    """Whether a file is a PNG image made by lingula's phantom. Reads only its header chunks."""
    try:
        with Path(path).open("rb") as stream:
            if stream.read(8) != _SIGNATURE:
                return False
            while len(head := stream.read(8)) == 8:
                length, kind = struct.unpack(">I4s", head)
                if kind in (b"IDAT", b"IEND"):
                    return False
                wanted = kind == b"tEXt" and length == len(PHANTOM_KEY) + len(PHANTOM_VALUE) + 1
                if wanted and stream.read(length) == f"{PHANTOM_KEY}\0{PHANTOM_VALUE}".encode():
                    return True
                stream.seek(4 if wanted else length + 4, 1)
    except OSError:
        return False
    return False
