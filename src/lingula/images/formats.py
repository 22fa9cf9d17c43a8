"""What an image file says of itself before it is decoded: its kind, its size, its segments."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from lingula.system.errors import ImageError

MAX_PIXELS = 200_000_000
"""Larger images are refused from their header, before any memory is taken for their pixels."""

HEAD = 132
"""So many bytes are enough to tell a kind."""


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


_SHORT_VRS = (
    b"AE",
    b"AS",
    b"CS",
    b"DA",
    b"DS",
    b"DT",
    b"IS",
    b"LO",
    b"LT",
    b"PN",
    b"SH",
    b"ST",
    b"TM",
    b"UI",
    b"UL",
    b"US",
)


def check_size(width: int, height: int, file: Path) -> None:
    """Refuse what a header says before memory is taken for it: too many pixels, or none."""
    if width * height > MAX_PIXELS:
        raise ImageError(
            "too large",
            f"{file} is {width} x {height} pixels; the limit is {MAX_PIXELS // 10**6} million.",
        )
    if width < 1 or height < 1:
        raise ImageError("damaged", f"{file} says that it is {width} x {height} pixels.")


def segments(data: bytes, *, strays: bool = True) -> Iterator[tuple[int, bytes]]:
    """Markers and contents of a JPEG, up to its first scan; without `strays`, to stray bytes."""
    last = 2
    for marker, begin, end in placed_segments(data, 2):
        if marker == 0xDA or not (strays or data[last:begin].strip(b"\xff") == b""):
            return
        yield marker, data[begin + 4 : end]
        last = end


def placed_segments(data: bytes, at: int) -> Iterator[tuple[int, int, int]]:
    """Marker, begin and end of a JPEG's segments from a place on, a scan's header being the last.

    Stray and fill bytes between them are skipped. An end may lie behind that of the data.
    """
    at = data.find(b"\xff", at)
    while 0 <= at <= len(data) - 4:
        marker = data[at + 1]
        if marker in (0x00, 0xFF):
            at = data.find(b"\xff", at + 1)
            continue
        end = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
        yield marker, at, end
        if marker == 0xDA:
            return
        at = data.find(b"\xff", end)
