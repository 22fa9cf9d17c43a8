"""The codestream of the first frame, out of the fragments of compressed DICOM pixel data."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from lingula.system.errors import ImageError


def first_frame(data: bytes, encapsulated: bool, frames: int, file: Path) -> bytes:
    """The codestream of the first frame: its fragments, without the offset table, joined.

    Args:
        data: the value of the pixel data element.
        encapsulated: whether it is a sequence of fragments.
        frames: how many the file says it has.
        file: for messages.

    Raises:
        ImageError: fragments are cut or missing, or the first frame's can't be told from the rest.
    """
    parts, at, places = [], 0, []
    while at + 8 <= len(data):
        group, element, length = struct.unpack_from("<HHI", data, at)
        if (group, element) == (0xFFFE, 0xE0DD):
            break
        if (group, element) != (0xFFFE, 0xE000) or not encapsulated:
            raise ImageError("damaged", f"{file} is damaged: its pixels are not in fragments.")
        if at + 8 + length > len(data):
            raise ImageError("truncated", f"{file} is truncated: it ends inside its pixels.")
        parts.append(data[at + 8 : at + 8 + length])
        places.append(at)
        at += 8 + length
    if len(parts) - 1 < frames:
        raise ImageError("truncated", f"{file} is truncated: it ends before its pixels.")
    if frames == len(parts) - 1:
        first = parts[1:2]
    elif frames == 1:
        first = parts[1:]
    else:
        first = _of_first_frame(parts, places, frames, file)
    frame = b"".join(first)
    if not frame:
        raise ImageError("truncated", f"{file} is truncated: it ends before its pixels.")
    return frame


def _of_first_frame(parts: list[bytes], places: list[int], frames: int, file: Path) -> list[bytes]:
    """The first frame's fragments, where frames have several: those before the second's offset."""
    offsets = np.frombuffer(parts[0][: len(parts[0]) // 4 * 4], "<u4")
    second = places[1] + int(offsets[1]) if len(offsets) == frames else -1
    if second not in places[2:]:
        raise ImageError(
            "unsupported",
            f"{file} has {frames} frames that can't be told apart: save the right one by itself.",
        )
    return parts[1 : places.index(second)]
