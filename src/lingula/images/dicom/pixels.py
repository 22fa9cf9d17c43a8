"""Stored samples of a DICOM image, by transfer syntax: bytes to grey or colour codes.

Every codestream's own header is compared with the file's before it is decoded, and its length is
checked by us: decoders fill in what is missing, or take the memory that a damaged header claims.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lingula.images.dicom.header import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    Layout,
    extract_first_frame,
    syntax_name,
)
from lingula.images.jpeg import decode_jpeg, locate_segments, read_segments, strip_jpeg
from lingula.system.errors import ImageError

Codes = NDArray[Any]
"""Unsigned codes: uint8 of up to 8 bits, uint16 of up to 16."""

MAX_THIN, THINNEST = 4_000_000, 300
"""Images of more pixels with more pixels per byte are refused: blank or cut, and slow to decode."""

_START_OF_FRAME = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), 0xF7)


def read_samples(
    data: bytes, encapsulated: bool, vr: str, layout: Layout, file: Path
) -> tuple[Codes, Layout]:
    """Read samples as unsigned codes of the bits in use: (H, W), or (H, W, 3) for colour.

    Args:
        data: the value of the pixel data element.
        encapsulated: whether it is a sequence of fragments.
        vr: its value representation, which tells the byte order of big-endian bytes.
        layout: what the file's header says.
        file: for messages.

    Returns:
        The codes, and the layout as the codestream has it: its precision, and one sample where the
        luma of colours came alone.

    Raises:
        ImageError: the syntax can't be read, or the data are truncated, damaged or contradictory.
    """
    if layout.syntax in _NATIVE:
        if encapsulated:
            raise ImageError("damaged", f"{file} is damaged: its pixels are not stored as it says.")
        codes, layout = _native(data, vr, layout, file)
        return _mask_bits(codes, layout), layout
    reader, module = _ENCAPSULATED.get(layout.syntax, (None, ""))
    if reader is None:
        raise ImageError(
            "unsupported",
            f"{file} is stored as {syntax_name(layout.syntax)}, which lingula does not read: "
            "store it in another way (e.g. as JPEG 2000) and try again.",
        )
    _require(module, file, f"stored as {syntax_name(layout.syntax)}")
    frame = extract_first_frame(data, encapsulated, layout.frames, file)
    pixels = layout.rows * layout.columns
    if pixels > MAX_THIN and len(frame) * THINNEST < pixels:
        raise ImageError(
            "damaged", f"{file} has {len(frame)} bytes for {pixels} pixels: it is blank or damaged."
        )
    try:
        codes, layout = reader(frame, layout, file)
    except (ImageError, MemoryError):
        raise
    except Exception:  # decoders raise nearly anything, and their words may quote the file
        raise _damaged(file, layout) from None
    return _mask_bits(codes, layout), layout


def readable_syntaxes() -> dict[str, bool]:
    """Names of all transfer syntaxes that can be read, and whether their package is installed.

    Empty without pydicom.
    """
    if importlib.util.find_spec("pydicom") is None:
        return {}
    names = {syntax_name(syntax): True for syntax in _NATIVE}
    for syntax, (_, package) in _ENCAPSULATED.items():
        names[syntax_name(syntax)] = importlib.util.find_spec(package) is not None
    return names


def _require(module: str, file: Path, what: str) -> None:
    """Raise `ImageError` if a module is not installed that a file, which is `what`, needs."""
    if importlib.util.find_spec(module) is None:
        raise ImageError(
            "unsupported",
            f"{file} is {what}, which needs the package {_PACKAGES.get(module, module)}: "
            "pip install 'lingula[dicom]'.",
        )


# Whose name differs from that of its module.
_PACKAGES = {"gdcm": "python-gdcm", "jpeg_ls": "pyjpegls", "openjpeg": "pylibjpeg-openjpeg"}


def _damaged(file: Path, layout: Layout) -> ImageError:
    name = syntax_name(layout.syntax)
    return ImageError("damaged", f"{file} is damaged: its pixels can't be decoded as {name}.")


def _cut(file: Path, what: str) -> ImageError:
    return ImageError("truncated", f"{file} is truncated: {what}.")


def _mask_bits(codes: Codes, layout: Layout) -> Codes:
    """Only the bits in use: some files keep overlays in those above."""
    shift = layout.high + 1 - layout.stored
    if shift:
        codes = codes >> shift
    if layout.stored < codes.dtype.itemsize * 8:
        codes = codes & (2**layout.stored - 1)
    narrow = np.uint8 if layout.stored <= 8 else np.uint16
    return codes.astype(narrow, copy=False)


def _native(data: bytes, vr: str, layout: Layout, file: Path) -> tuple[Codes, Layout]:
    shared = layout.photometric in ("YBR_FULL_422", "YBR_PARTIAL_422")
    # In these colours, two pixels share their two colour samples.
    count = layout.rows * layout.columns * (2 if shared else layout.samples)
    size = layout.allocated // 8
    needed = count * size * layout.frames
    if len(data) < needed:
        raise _cut(file, f"it has {len(data)} of the {needed} bytes of its pixels")
    order = ">" if layout.syntax == BIG_ENDIAN else "<"
    if size == 1 and order == ">" and vr == "OW":
        even = len(data) // 2 * 2
        swapped = np.frombuffer(data[:even], ">u2").astype("<u2").tobytes()
        samples = np.frombuffer(swapped + data[even:], np.uint8, count)
    else:
        samples = np.frombuffer(data, f"{order}u{size}", count)
    if size == 4:  # at most 16 of the 32 bits are in use
        codes: Codes = (samples >> (layout.high + 1 - layout.stored) & 0xFFFF).astype(np.uint16)
        layout = dataclasses.replace(layout, high=layout.stored - 1)
    else:
        codes = samples.astype(np.uint8 if size == 1 else np.uint16)
    if not shared:
        return _shape(codes, layout), layout
    if layout.columns % 2:
        raise ImageError("damaged", f"{file} is damaged: pairs of pixels, but an odd width.")
    luma = codes.reshape(-1, 4)[:, :2].reshape(layout.rows, layout.columns)
    return luma, dataclasses.replace(layout, samples=1)


def _shape(codes: Codes, layout: Layout) -> Codes:
    if layout.samples == 1:
        return codes.reshape(layout.rows, layout.columns)
    if layout.planar:
        planes = codes.reshape(layout.samples, layout.rows, layout.columns)
        return np.moveaxis(planes, 0, -1)
    return codes.reshape(layout.rows, layout.columns, layout.samples)


def _compare_header(
    layout: Layout, columns: int, rows: int, samples: int, precision: int, file: Path
) -> Layout:
    """The layout with the codestream's precision; an error where it contradicts the file."""
    if (rows, columns, samples) != (layout.rows, layout.columns, layout.samples):
        raise ImageError(
            "damaged",
            f"{file} is damaged: it says {layout.columns} x {layout.rows} x {layout.samples}, its "
            f"codestream {columns} x {rows} x {samples}.",
        )
    if not 1 <= precision <= 16:
        raise ImageError("unsupported", f"{file} has {precision}-bit levels; at most 16 are read.")
    return dataclasses.replace(layout, stored=precision, high=precision - 1)


def _levels(data: Any, precision: int, layout: Layout, file: Path) -> Codes:
    """Decoded bytes as samples; decoders use as many bytes as the precision needs."""
    dtype = np.dtype(np.uint8 if precision <= 8 else "<u2")
    count = layout.rows * layout.columns * layout.samples
    if len(data) != count * dtype.itemsize:
        raise _damaged(file, layout)
    return _shape(np.frombuffer(data, dtype), layout)


def _start_of_frame(frame: bytes, layout: Layout, file: Path, *, strays: bool = False) -> Layout:
    """The layout by the header of a JPEG or JPEG-LS codestream, which may contain `strays`."""
    if frame[:2] != b"\xff\xd8":
        raise _damaged(file, layout)
    for marker, content in read_segments(frame, strays=strays):
        if marker in _START_OF_FRAME and len(content) >= 6:
            precision, rows, columns, samples = struct.unpack_from(">BHHB", content)
            return _compare_header(layout, columns, rows, samples, precision, file)
    raise _cut(file, "its JPEG ends before its size")


def _jpeg(frame: bytes, layout: Layout, file: Path) -> tuple[Codes, Layout]:
    found = _start_of_frame(frame, layout, file, strays=True)
    # The data of more bits are coded as those of 8 are: under that name they are checked alike.
    eight = frame if found.stored == 8 else _as_eight_bits(frame, file)
    grey = decode_jpeg(eight, "GRAY", file)
    if found.stored != 8:
        # It aborts on strays among the header's segments, and on what it does not know there.
        data, found = _by_gdcm(strip_jpeg(frame), dataclasses.replace(found, syntax=_EXTENDED))
        return _levels(data, found.stored, found, file), found
    # Grey is all that is wanted of colours, and libjpeg makes it itself.
    return grey[..., 0], dataclasses.replace(found, samples=1)


def _as_eight_bits(frame: bytes, file: Path) -> bytes:
    """A JPEG whose header says 8 bits; `ImageError` unless it is a grey one of 12, for gdcm."""
    for marker, begin, _ in locate_segments(frame, 2):
        if marker in (0xC1, 0xC2) and (frame[begin + 4], frame[begin + 9]) == (12, 1):
            _require("gdcm", file, "a 12-bit lossy JPEG")
            return frame[: begin + 4] + b"\x08" + frame[begin + 5 :]
    raise ImageError(
        "unsupported",
        f"{file} is a lossy JPEG of neither 8 bits nor 12 grey ones. Store it in another way (e.g. "
        "as JPEG 2000, by `gdcmconv --j2k IN OUT`) and try again.",
    )


def _jpeg_ls(frame: bytes, layout: Layout, file: Path) -> tuple[Codes, Layout]:
    import jpeg_ls

    found = _start_of_frame(frame, layout, file)
    data, facts = jpeg_ls.decode_pixel_data(frame)
    found = dataclasses.replace(found, planar=facts["interleave_mode"] == 0)
    return _levels(data, found.stored, found, file), found


def _jpeg_lossless(frame: bytes, layout: Layout, file: Path) -> tuple[Codes, Layout]:
    found = _start_of_frame(frame, layout, file)
    if not frame.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise _cut(file, "its JPEG ends too soon")
    data, found = _by_gdcm(frame, found)
    return _levels(data, found.stored, found, file), found


def _by_gdcm(frame: bytes, found: Layout) -> tuple[bytes, Layout]:
    """The samples of a JPEG codestream as bytes; gdcm aborts on some damaged ones."""
    import gdcm

    gdcm.Trace.WarningOff()
    gdcm.Trace.ErrorOff()
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(frame)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((found.columns, found.rows, 1))
    image.SetDataElement(element)
    colours = "MONOCHROME2" if found.samples == 1 else "RGB"
    kind = gdcm.PhotometricInterpretation.GetPIType(colours)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    if found.samples == 3:
        image.SetPlanarConfiguration(0)
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(found.syntax)))
    # Where 16 bits are said to be allocated, it tries a decoder of 16 first, and says so.
    bits = 12 if found.syntax == _EXTENDED else 8 if found.stored <= 8 else 16
    image.SetPixelFormat(
        gdcm.PixelFormat(found.samples, bits, found.stored, found.stored - 1, int(found.signed))
    )
    # gdcm gives bytes as text.
    data: bytes = image.GetBuffer().encode("utf-8", "surrogateescape")
    return data, dataclasses.replace(found, planar=False)


def _jpeg_2000(frame: bytes, layout: Layout, file: Path) -> tuple[Codes, Layout]:
    from openjpeg.utils import decode_pixel_data

    start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)  # some files wrap the codestream in boxes
    if start < 0 or len(frame) < start + 45:
        raise _damaged(file, layout)
    frame = frame[start:]
    x1, y1, x0, y0, width, height, left, top, samples = struct.unpack_from(">8IH", frame, 8)
    precision = (frame[42] & 0x7F) + 1
    found = _compare_header(layout, x1 - x0, y1 - y0, samples, precision, file)
    if width < 1 or height < 1 or left >= x1 or top >= y1:
        raise _damaged(file, layout)
    tiles = -(-(x1 - left) // width) * -(-(y1 - top) // height)
    _check_tiles(frame, tiles, layout, file)
    found = dataclasses.replace(found, planar=False)
    if layout.photometric in ("YBR_RCT", "YBR_ICT"):  # the decoder undoes these
        found = dataclasses.replace(found, photometric="RGB")
    return _levels(decode_pixel_data(frame, version=2), precision, found, file), found


def _check_tiles(frame: bytes, tiles: int, layout: Layout, file: Path) -> None:
    """Every tile is there, whole: the decoder leaves missing ones black, silently."""
    at, seen = 2, set[int]()
    while True:
        if at + 12 > len(frame):
            raise _cut(file, "its JPEG 2000 codestream ends before its tiles")
        marker, length = struct.unpack_from(">HH", frame, at)
        if marker == 0xFF90:
            break
        if marker < 0xFF30 or length < 2:
            raise _damaged(file, layout)
        at += 2 + length
    while at + 12 <= len(frame) and frame[at : at + 2] == b"\xff\x90":
        number, length = struct.unpack_from(">HI", frame, at + 4)
        seen.add(number)
        if length == 0:  # up to the end of the codestream
            if not frame.rstrip(b"\0").endswith(b"\xff\xd9"):
                raise _cut(file, "its JPEG 2000 codestream ends too soon")
            break
        at += max(length, 12)
        if at > len(frame):
            raise _cut(file, "its JPEG 2000 codestream ends too soon")
    if len(seen) != tiles:
        raise _cut(file, f"its JPEG 2000 codestream has {len(seen)} of {tiles} tiles")


def _run_lengths(frame: bytes, layout: Layout, file: Path) -> tuple[Codes, Layout]:
    size, pixels = layout.allocated // 8, layout.rows * layout.columns
    parts, *starts = struct.unpack_from("<16I", frame.ljust(64, b"\0"))
    starts = [*starts[: min(parts, 15)], len(frame)]
    if parts != layout.samples * size or size > 2 or starts[0] != 64 or starts != sorted(starts):
        raise _damaged(file, layout)
    planes = []
    for start, end in itertools.pairwise(starts):
        # A run of two bytes unpacks to 128 at most.
        if (end - start) * 64 < pixels:
            raise _cut(file, f"{end - start} bytes can't hold {pixels} pixels")
        # Pillow's decoder of the same runs: the one made for DICOM panics on damaged ones.
        unpacked = Image.frombytes("L", (pixels, 1), frame[start:end], "packbits", "L")
        planes.append(np.asarray(unpacked).reshape(layout.rows, layout.columns))
    if size == 2:  # high bytes come first, in a part of their own
        pairs = zip(planes[::2], planes[1::2], strict=True)
        planes = [high.astype(np.uint16) << 8 | low for high, low in pairs]
    return planes[0] if layout.samples == 1 else np.stack(planes, axis=-1), layout


def _deflated_frame(frame: bytes, layout: Layout, file: Path) -> tuple[Codes, Layout]:
    need = layout.rows * layout.columns * layout.samples * layout.allocated // 8
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    plain = inflate.decompress(frame, need)
    if len(plain) < need:
        raise _cut(file, f"it has {len(plain)} of the {need} bytes of its pixels")
    return _native(plain, "OB", dataclasses.replace(layout, syntax=EXPLICIT), file)


def _plain_frame(frame: bytes, layout: Layout, file: Path) -> tuple[Codes, Layout]:
    return _native(frame, "OB", dataclasses.replace(layout, syntax=EXPLICIT), file)


_NATIVE = (IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN)
_EXTENDED = "1.2.840.10008.1.2.4.51"


Reader = Callable[[bytes, Layout, Path], tuple[Codes, Layout]]

# Reader and the module it needs, by the UID of the transfer syntax.
_ENCAPSULATED: dict[str, tuple[Reader, str]] = {
    "1.2.840.10008.1.2.1.98": (_plain_frame, "zlib"),
    "1.2.840.10008.1.2.8.1": (_deflated_frame, "zlib"),
    "1.2.840.10008.1.2.5": (_run_lengths, "PIL"),
    "1.2.840.10008.1.2.4.50": (_jpeg, "simplejpeg"),
    _EXTENDED: (_jpeg, "simplejpeg"),
    "1.2.840.10008.1.2.4.53": (_jpeg, "simplejpeg"),
    "1.2.840.10008.1.2.4.55": (_jpeg, "simplejpeg"),
    "1.2.840.10008.1.2.4.57": (_jpeg_lossless, "gdcm"),
    "1.2.840.10008.1.2.4.70": (_jpeg_lossless, "gdcm"),
    "1.2.840.10008.1.2.4.80": (_jpeg_ls, "jpeg_ls"),
    "1.2.840.10008.1.2.4.81": (_jpeg_ls, "jpeg_ls"),
    "1.2.840.10008.1.2.4.90": (_jpeg_2000, "openjpeg"),
    "1.2.840.10008.1.2.4.91": (_jpeg_2000, "openjpeg"),
    "1.2.840.10008.1.2.4.201": (_jpeg_2000, "openjpeg"),
    "1.2.840.10008.1.2.4.202": (_jpeg_2000, "openjpeg"),
    "1.2.840.10008.1.2.4.203": (_jpeg_2000, "openjpeg"),
}
