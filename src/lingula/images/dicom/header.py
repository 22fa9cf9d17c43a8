"""A DICOM file's elements, parsed quietly: what pydicom says of a file may hold a patient's name.

Only the elements asked for are taken from the file, so that no other value can get anywhere. An
element that can't be understood counts as absent; what must be there is checked by `layout_of`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import struct
import threading
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from lingula.images.files import check_size
from lingula.system.errors import ImageError

if TYPE_CHECKING:
    from pydicom import Dataset

MAX_INFLATED = 1 << 27
"""Deflated data sets that unpack to more bytes are refused: no image needs them."""

PIXEL_TAGS = (
    "SOPClassUID",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RescaleIntercept",
    "RescaleSlope",
    "ModalityLUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "VOILUTSequence",
    "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
    "BurnedInAnnotation",
    "FloatPixelData",
    "DoubleFloatPixelData",
    "PixelData",
)

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"

GREYS = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422", "YBR_RCT", "YBR_ICT")

_PYDICOM = r"pydicom(\.|$)"
_LOGGERS = ("pydicom", "openjpeg.decode", "openjpeg.utils", "_openjpeg", "jpeg_ls._CharLS")

_reading = threading.local()


@dataclass(frozen=True)
class Layout:
    """How a file's samples lie in its pixel data.

    Attributes:
        syntax: UID of the transfer syntax.
        rows, columns, samples: the frame's shape; samples are 1, or 3 for colour.
        allocated, stored, high: bits a sample has in the file, bits in use, the highest of these.
        signed: whether samples are two's complement.
        photometric: e.g. `MONOCHROME2`.
        planar: whether colour comes plane by plane.
        frames: how many there are; the first is read.
    """

    syntax: str
    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    high: int
    signed: bool
    photometric: str
    planar: bool
    frames: int = 1


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what the DICOM packages say while this thread reads out of logs and warnings."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_from_elsewhere)  # once: a filter is not added twice
    # Not catch_warnings: it swaps the process's list of filters, which other threads use as well.
    if not any(getattr(entry[3], "pattern", "") == _PYDICOM for entry in warnings.filters):
        warnings.filterwarnings("ignore", module=_PYDICOM)
    before = getattr(_reading, "on", False)
    _reading.on = True
    try:
        yield
    finally:
        _reading.on = before


def _from_elsewhere(record: logging.LogRecord) -> bool:
    return not getattr(_reading, "on", False)


def parse(
    stream: BinaryIO, file: Path, keywords: Sequence[str], *, pixels: bool
) -> tuple[Dataset, str]:
    """Parse the named elements of a DICOM file; and the UID of its transfer syntax.

    Args:
        stream: at the file's first byte.
        file: for messages.
        keywords: of the elements to take.
        pixels: whether to read on to the pixel data.

    Raises:
        ImageError: pydicom is not installed, or the file is no DICOM, truncated or damaged.
    """
    try:
        import pydicom
    except ImportError:
        raise ImageError(
            "unsupported",
            f"{file} is DICOM, which needs pydicom: pip install 'lingula[dicom]'.",
        ) from None
    try:
        syntax = _syntax(stream, file)
        if syntax == DEFLATED:
            stream = _inflate(stream, file)
        return pydicom.filereader.read_dataset(
            stream,
            is_implicit_VR=syntax == IMPLICIT,
            is_little_endian=syntax != BIG_ENDIAN,
            stop_when=None if pixels else _at_pixels,
            specific_tags=[pydicom.tag.Tag(keyword) for keyword in keywords],
        ), syntax
    except (ImageError, MemoryError):
        raise
    except Exception:  # the parser raises nearly anything on wild bytes
        raise ImageError(
            "damaged", f"{file} is a damaged DICOM file: its header can't be read."
        ) from None


def _syntax(stream: BinaryIO, file: Path) -> str:
    """The transfer syntax's UID; leaves the stream at the first element behind the meta header."""
    from pydicom.filereader import read_dataset

    head = stream.read(132)
    at = 132 if head[128:] == b"DICM" else 0
    stream.seek(at)
    if at == 0 and head[:2] != b"\x02\x00":
        # Without a meta header the standard's default applies, but some such files are explicit.
        return EXPLICIT if head[4:6].isalpha() and head[4:6].isupper() else IMPLICIT
    meta = read_dataset(
        stream,
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, vr, length: tag >> 16 != 2,
    )
    syntax = text(meta, "TransferSyntaxUID")
    if not syntax:
        raise ImageError(
            "damaged",
            f"{file} does not say how it is stored: it has no Transfer Syntax UID, (0002,0010).",
        )
    return syntax


def _at_pixels(tag: int, vr: str | None, length: int) -> bool:
    return tag in (0x7FE00008, 0x7FE00009, 0x7FE00010)


def _inflate(stream: BinaryIO, file: Path) -> BinaryIO:
    """The rest of a stream, unpacked up to a limit: pydicom would unpack a bomb whole."""
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plain = inflate.decompress(stream.read(), MAX_INFLATED)
    except zlib.error:
        raise ImageError("damaged", f"{file} is damaged: it can't be inflated.") from None
    if inflate.unconsumed_tail:
        raise ImageError(
            "too large", f"{file} unpacks to more than {MAX_INFLATED >> 20} MiB: too much."
        )
    if not inflate.eof:
        raise ImageError("truncated", f"{file} is truncated: its deflated data end too soon.")
    return io.BytesIO(plain)


def text(dataset: Dataset, keyword: str) -> str:
    """An element as stripped text; the first of several values; empty if absent or unreadable."""
    values = _values(dataset, keyword)
    return str(values[0]).strip(" \0\t\r\n") if values else ""


def numbers(dataset: Dataset, keyword: str) -> tuple[float, ...]:
    """An element's numbers, all finite; none if it is absent or one of them is no number."""
    try:
        found = tuple(float(value) for value in _values(dataset, keyword))
    except (TypeError, ValueError):
        return ()
    return found if all(math.isfinite(value) for value in found) else ()


def whole_number(dataset: Dataset, keyword: str) -> int | None:
    """An element's first value if it is a whole number, else None."""
    found = numbers(dataset, keyword)
    return int(found[0]) if found and found[0] == int(found[0]) else None


def raw_bytes(dataset: Dataset, keyword: str) -> bytes | None:
    """An element's value if it is bytes, else None."""
    try:
        value = dataset.get(keyword)
    except Exception:  # as in _values
        return None
    return bytes(value) if isinstance(value, (bytes, bytearray)) else None


def items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence; none if it is absent or unreadable."""
    from pydicom import Dataset

    return [item for item in _values(dataset, keyword) if isinstance(item, Dataset)]


def _values(dataset: Dataset, keyword: str) -> list[Any]:
    """An element's values as a list; empty if it is absent, empty or can't be converted."""
    try:
        value = dataset.get(keyword)
        if value is None or value == "":
            return []
        several = isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping))
        return list(value) if several else [value]
    except Exception:  # converting the value of a damaged element raises nearly anything
        return []


def sop_class(dataset: Dataset) -> str:
    """The name of the kind of object, e.g. `CT Image Storage`; empty if it is not a known one."""
    from pydicom.uid import UID

    uid = UID(text(dataset, "SOPClassUID"))
    return uid.name if uid.type == "SOP Class" else ""


def layout_of(dataset: Dataset, syntax: str, file: Path) -> Layout:
    """How the samples lie, checked before any memory is taken for them.

    Raises:
        ImageError: the object is not an image, or lacks or contradicts a size.
    """
    kind = sop_class(dataset)
    if kind and "Image Storage" not in kind:
        raise ImageError("not an image", f"{file} is not an image: it is DICOM's '{kind}'.")
    rows = _require_number(dataset, "Rows", file)
    columns = _require_number(dataset, "Columns", file)
    samples = whole_number(dataset, "SamplesPerPixel") or 1
    frames = whole_number(dataset, "NumberOfFrames") or 1
    allocated = _require_number(dataset, "BitsAllocated", file)
    stored = whole_number(dataset, "BitsStored") or allocated
    high = whole_number(dataset, "HighBit")
    high = stored - 1 if high is None else high
    photometric = text(dataset, "PhotometricInterpretation").upper()
    check_size(columns, rows, file)
    if frames < 1:
        raise ImageError("damaged", f"{file} is damaged DICOM: it says it has {frames} frames.")
    if photometric not in GREYS + COLOURS:
        raise ImageError(
            "unsupported",
            f"{file} does not say in a known way whether its lowest level is black or white "
            "(Photometric Interpretation, (0028,0004)).",
        )
    if samples not in (1, 3) or (samples == 3) != (photometric in COLOURS):
        raise ImageError(
            "damaged", f"{file} has {samples} samples per pixel and contradictory colours."
        )
    if allocated not in (8, 16, 32) or not stored - 1 <= high < allocated or not 0 < stored <= 16:
        raise ImageError(
            "unsupported",
            f"{file} has {stored} bits up to bit {high} of {allocated}: at most 16 of 8, 16 or 32 "
            "can be read.",
        )
    return Layout(
        syntax=syntax,
        rows=rows,
        columns=columns,
        samples=samples,
        allocated=allocated,
        stored=stored,
        high=high,
        signed=whole_number(dataset, "PixelRepresentation") == 1,
        photometric=photometric,
        planar=whole_number(dataset, "PlanarConfiguration") == 1,
        frames=frames,
    )


def _require_number(dataset: Dataset, keyword: str, file: Path) -> int:
    found = whole_number(dataset, keyword)
    if found is None:
        raise ImageError(
            "damaged", f"{file} is damaged DICOM: its {keyword} is missing or no number."
        )
    return found


def extract_first_frame(data: bytes, encapsulated: bool, frames: int, file: Path) -> bytes:
    """Extract the codestream of the first frame: its fragments, without the offset table, joined.

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


def syntax_name(syntax: str) -> str:
    """A transfer syntax's name, e.g. `JPEG Baseline (Process 1)`; never text from a file."""
    from pydicom.uid import UID

    uid = UID(syntax)
    if uid.type == "Transfer Syntax":
        return uid.name
    return _NEWER.get(syntax, "an unknown transfer syntax")


# Not in pydicom's list yet.
_NEWER = {"1.2.840.10008.1.2.8.1": "Deflated Image Frame Compression"}
