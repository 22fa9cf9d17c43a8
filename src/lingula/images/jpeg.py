"""JPEG codestreams to levels: strictly, but for stray bytes before a marker, which harm nothing.

Scanners leave such bytes at the end of the data or of a restart interval. The decoder tells of its
first complaint only, so where it complains of them, everything behind is looked at apart: what is
missing would be filled with grey, silently. Many bytes, unless they are all alike, are no strays:
data that a wrong bit shifted end too early as well.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from lingula.images.files import Remark, describe_damage, remark

FEW = 64
"""So many bytes before a marker may be strays; any number of one and the same may."""

_STRAY = re.compile(r"(\d+) extraneous bytes before marker")
_SEQUENTIAL = (0xC0, 0xC1)
FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
_LARGEST = 65500  # pixels per side
_MOST_SCANS, _MOST_INTERVALS = 100, 20_000  # that are looked at one by one
_END = b"\xff\xd9"
# What ends entropy-coded data: a marker, but no stuffed zero and no restart.
_MARKER = re.compile(rb"\xff+[\x01-\xcf\xd8-\xfe]")
_RESTART = re.compile(rb"\xff+([\xd0-\xd7])")


def decode_jpeg(data: bytes, form: str, file: Path, **limits: int) -> NDArray[np.uint8]:
    """Decode a JPEG of 8 bits to levels (H, W, 1) or (H, W, 4), passing over stray bytes.

    Args:
        data: the JPEG.
        form: `GRAY` or `CMYK`.
        file: for messages and remarks.
        limits: `min_width`, `min_height` of what is decoded.

    Raises:
        ImageError: it is damaged or truncated.
    """
    levels: NDArray[np.uint8]
    try:
        levels = simplejpeg.decode_jpeg(data, form, strict=True, **limits)
    except ValueError as complaint:
        try:
            data = _pass_over_strays(data, form, str(complaint))
            levels = simplejpeg.decode_jpeg(data, form, strict=False, **limits)
        except ValueError as error:
            raise describe_damage(file, "jpeg", str(error)) from None
        remark(file, Remark.STRAY_BYTES)
    return levels


def _pass_over_strays(data: bytes, form: str, complaint: str) -> bytes:
    """Make a JPEG fit for lenient decoding; `ValueError` if more than strays is wrong."""
    if not _STRAY.search(complaint):
        raise ValueError(complaint)
    head, scans = _parts(data)
    if head is None or not _is_whole(head, scans, form):
        raise ValueError(f"{complaint}, and that is not all")
    # Among the header's segments strays are refused, strict or not; behind them they are skipped.
    return head.data + data[head.end :]


def strip_jpeg(data: bytes) -> bytes:
    """Strip a JPEG of strays, comments and applications' segments before its first scan."""
    head, _ = _parts(data)
    if head is None:
        return data
    kept = [
        head.data[begin:end]
        for marker, begin, end in locate_segments(head.data, 2)
        if marker in (*FRAMES, 0xC4, 0xDB, 0xDD)  # besides the frame: tables and intervals
    ]
    return b"\xff\xd8" + b"".join(kept) + data[head.end :]


def _complaint(data: bytes, form: str) -> str:
    """The decoder's first complaint of a JPEG, or nothing."""
    try:
        simplejpeg.decode_jpeg(data, form, strict=True)
    except ValueError as error:
        return str(error)
    return ""


def _is_whole(head: _Head, scans: Sequence[_Scan], form: str) -> bool:
    """Whether nothing but stray bytes is wrong with a JPEG that has them."""
    if not scans or not scans[-1].ended or len(scans) > _MOST_SCANS:
        return False
    if head.interval and len(scans) == 1:
        return _all_intervals(head, scans[0], form)
    clean = head.data
    for scan in scans if head.interval else scans[:-1]:
        kept = _without_strays(clean + scan.head, scan.content, form)
        if kept is None:
            return False
        clean += scan.head + kept
    if head.interval:
        return True
    # Behind the last scan nothing is left that a complaint of strays could hide.
    return _only_strays(clean + scans[-1].head, scans[-1].content, form)


def _only_strays(before: bytes, content: bytes, form: str) -> bool:
    """Whether data, the last ones of an image, are whole but for strays at their end."""
    told = _complaint(before + content + _END, form)
    strays = _STRAY.search(told)
    return not told or (strays is not None and _may_be_strays(content[-int(strays[1]) :]))


def _may_be_strays(found: bytes) -> bool:
    # Of equal ones the decoder may have taken the first few for data, and tell of fewer.
    return len(found) <= FEW or found.strip(found[-1:]) == b""


@dataclass(frozen=True)
class _Head:
    """What comes before the first scan, without strays, and what it says.

    `end` is where the first scan begins in the file, `frame` the place of the frame's header in
    `data`, `interval` the MCUs of a restart interval (0: none), `unit` an MCU's width and height,
    `units` how many there are across and down.
    """

    data: bytes
    end: int
    frame: int
    sequential: bool
    interval: int
    unit: tuple[int, int]
    units: tuple[int, int]


@dataclass(frozen=True)
class _Scan:
    """A scan: segments up to its header; its data with what is stray at their end; and whether the
    image's end marker comes next."""

    head: bytes
    content: bytes
    ended: bool


def _parts(data: bytes) -> tuple[_Head | None, list[_Scan]]:
    """The head, None if it says no size, and the scans."""
    first, place, scans, at = b"", 0, list[_Scan](), 2
    while True:
        head = b""
        for marker, begin, end in locate_segments(data, at):
            if marker == 0xDA and end <= len(data):
                break
            head += data[begin:end]
        else:
            break
        if not scans:
            first, place = b"\xff\xd8" + head, begin
        stop = _MARKER.search(data, end)
        at = stop.start() if stop else len(data)
        before = (head if scans else b"") + data[begin:end]
        scans.append(_Scan(before, data[end:at], bool(stop and stop[0][-1] == 0xD9)))
    return _read_head(first, place), scans


def _read_head(data: bytes, place: int) -> _Head | None:
    frame, interval = None, 0
    for marker, begin, end in locate_segments(data, 2):
        if marker in FRAMES and end - begin >= 13:
            frame = (begin, data[begin:end])
        elif marker == 0xDD and end - begin >= 6:
            (interval,) = struct.unpack_from(">H", data, begin + 4)
    if frame is None:
        return None
    at, segment = frame
    height, width, components = struct.unpack_from(">HHB", segment, 5)
    # An MCU is a block of the only component, else one of the largest of each.
    sizes = segment[11 : 10 + 3 * components : 3] if components > 1 else b"\x11"
    across, down = 8 * max(size >> 4 for size in sizes), 8 * max(size & 15 for size in sizes)
    if not (across and down and height and width):
        return None
    units = (-(-width // across), -(-height // down))
    return _Head(data, place, at, segment[1] in _SEQUENTIAL, interval, (across, down), units)


def _all_intervals(head: _Head, scan: _Scan, form: str) -> bool:
    """Whether every restart interval of the only scan is there, whole and in its order."""
    if not head.sequential:
        return False
    total, each = head.units[0] * head.units[1], head.interval
    marks = list(_RESTART.finditer(scan.content))
    if len(marks) != -(-total // each) - 1 or len(marks) > _MOST_INTERVALS:
        return False
    if any(mark[1][0] != 0xD0 + i % 8 for i, mark in enumerate(marks)):
        return False
    begins = [0, *(mark.end() for mark in marks)]
    ends = [*(mark.start() for mark in marks), len(scan.content)]
    for number, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        units = min(each, total - number * each)
        small = _resize_head(head, units)
        if small is None:
            return False
        if not _only_strays(small + scan.head, scan.content[begin:end], form):
            return False
    return True


def _resize_head(head: _Head, units: int) -> bytes | None:
    """The head of an image of so many MCUs, in rows of the image's own or in one; None if neither
    can be."""
    across, rows = (units, 1) if units % head.units[0] else (head.units[0], units // head.units[0])
    width, height = across * head.unit[0], rows * head.unit[1]
    if max(width, height) > _LARGEST:
        return None
    at = head.frame + 5
    return head.data[:at] + struct.pack(">HH", height, width) + head.data[at + 4 :]


def _without_strays(before: bytes, content: bytes, form: str) -> bytes | None:
    """A scan's data without the strays at their end; None if that is not all that is wrong."""

    def told(strays: int) -> str:
        return _complaint(before + content[: len(content) - strays] + _END, form)

    few, many = 0, 0  # to take away: strays are left; what belongs to the image is gone
    while _STRAY.search(complaint := told(many)):
        if many == len(content):
            return None
        few, many = many, min(max(1, 2 * many), len(content))
    while complaint and many - few > 1:
        middle = (few + many) // 2
        complaint = told(middle)
        if _STRAY.search(complaint):
            few = middle
        else:
            many = middle
    kept = len(content) - many
    return None if complaint or not _may_be_strays(content[kept:]) else content[:kept]


def read_segments(data: bytes, *, strays: bool = True) -> Iterator[tuple[int, bytes]]:
    """Read a JPEG's markers and contents up to its first scan; without `strays`, to stray bytes."""
    last = 2
    for marker, begin, end in locate_segments(data, 2):
        if marker == 0xDA or not (strays or data[last:begin].strip(b"\xff") == b""):
            return
        yield marker, data[begin + 4 : end]
        last = end


def locate_segments(data: bytes, at: int) -> Iterator[tuple[int, int, int]]:
    """Marker, begin and end of a JPEG's segments from a place on; a scan's header is the last.

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
