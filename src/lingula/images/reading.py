"""Reading an image: the one function for training, prediction and everything after it.

A file is known by its content, never by its name. The result is grey, uint8, 0 black to 255 white.
Levels of 16-bit files are divided by the declared range (65535, or 2**bits - 1), never by the
image's own maximum; alpha is ignored; colour becomes luma; EXIF orientation is applied once; of
several pages the first is read; DICOM is shown as its header says. A file that is cut or damaged
is an `ImageError`, never a picture with grey filled in; this includes a JPEG that lacks only its
end marker. A JPEG with stray bytes before a marker, and all else in its place, is read.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
)

from lingula.images.files import HEAD, MAX_PIXELS, check_size, describe_damage, open_image
from lingula.images.jpeg import FRAMES, decode_jpeg, read_segments
from lingula.system.errors import ImageError

MAX_BYTES = 8 * MAX_PIXELS
"""Larger files are refused before they are read: no image within `MAX_PIXELS` needs them."""

Pixels = NDArray[np.uint8] | NDArray[np.uint16]

# The plugins themselves, not Image.open: its limit on size is a global setting, which warns.
FORMATS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
}
"""Formats that are read besides DICOM."""


def read_image(
    path: str | Path, size: int | None = None, *, bits: int | None = None
) -> NDArray[np.uint8]:
    """Read a file to grey uint8: (size, size), squashed and antialiased; or (H, W) without `size`.

    Args:
        path: JPEG, PNG, TIFF, BMP, GIF or DICOM, recognised by content.
        size: side of the square result in pixels.
        bits: bits in use in 16-bit files, if fewer than 16. 8-bit files and DICOM ignore it.

    Raises:
        ImageError: with its kind and the file's name. Kinds: `missing`, `unreadable`, `empty`,
            `not an image`, `truncated`, `damaged`, `too large`, `unsupported`, `declared bits`.
    """
    pixels = read_pixels(path, bits=bits, at_least=size)
    if size is None:
        return _to_uint8(pixels)
    return _to_uint8(resize(pixels, size))


def read_pixels(
    path: str | Path, *, bits: int | None = None, at_least: int | None = None
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Grey levels before the resize: (H, W), uint8, or for 16-bit files uint16 of 0 to 65535.

    With `at_least`, a JPEG comes at the smallest n/8 of its size whose sides are no shorter than
    that: it is decoded to that size, which is several times faster. Raises as `read_image` does.
    """
    file = Path(path)
    data, kind = _read_bytes(file)
    if kind == "dicom":
        from lingula.images.dicom.reading import read_dicom

        return read_dicom(data, file)
    if kind == "unknown":
        page = b"<html" in data[:HEAD].lower() or b"<!doctype" in data[:HEAD].lower()
        what = "a web page" if page else f"no {', '.join(FORMATS)} or DICOM"
        raise ImageError("not an image", f"{file} is not an image: its content is {what}.")
    if kind == "png":
        _check_png(data, file)
    pixels = _jpeg(data, file, at_least) if kind == "jpeg" else _picture(data, kind, file, bits)
    if not pixels.flags.c_contiguous:
        pixels = pixels.copy()
    return pixels


def _read_bytes(file: Path) -> tuple[bytes, str]:
    """The file's bytes, only the first ones if it is not an image; and its kind."""
    with open_image(file) as (stream, kind):
        size = os.fstat(stream.fileno()).st_size
        if size > MAX_BYTES:
            raise ImageError("too large", f"{file} has {size} bytes: too many.")
        return stream.read(HEAD if kind == "unknown" else -1), kind


def _jpeg(data: bytes, file: Path, at_least: int | None) -> Pixels:
    turned, adobe, components = 1, False, 0
    for marker, content in read_segments(data):
        if marker in FRAMES and len(content) >= 6:
            precision, height, width, components = struct.unpack_from(">BHHB", content)
            check_size(width, height, file)
            if precision != 8:
                raise ImageError(
                    "unsupported", f"{file} is a {precision}-bit JPEG; convert to 16-bit PNG."
                )
        elif marker == 0xE1 and content.startswith(b"Exif\0\0"):
            turned = _orientation(content)
        elif marker == 0xEE and content.startswith(b"Adobe"):
            adobe = True
    if not components:
        raise describe_damage(file, "jpeg", "truncated before its size")
    limits = {} if at_least is None else {"min_height": at_least, "min_width": at_least}
    levels = decode_jpeg(data, "CMYK" if components == 4 else "GRAY", file, **limits)
    if components == 4:
        # Adobe stores CMYK inverted, and says so by its marker.
        ink = Image.fromarray(levels if not adobe else 255 - levels, "CMYK")
        return _upright(np.asarray(ink.convert("RGB").convert("L")), turned)
    return _upright(levels[..., 0], turned)


def _check_png(data: bytes, file: Path) -> None:
    """Size from the header, then every chunk's name and checksum up to the end chunk."""
    if len(data) < 33:
        raise describe_damage(file, "png", "truncated before its size")
    width, height = struct.unpack_from(">II", data, 16)
    check_size(width, height, file)
    at, name = 8, b""
    view = memoryview(data)
    while name != b"IEND":
        if at + 12 > len(data):
            raise describe_damage(
                file, "png", f"truncated at byte {len(data)}, before its end chunk"
            )
        length, name = struct.unpack_from(">I4s", data, at)
        if not name.isalpha():
            raise describe_damage(file, "png", f"the chunk at byte {at} has no name")
        end = at + 12 + length
        if end > len(data):
            raise describe_damage(file, "png", f"truncated inside the chunk at byte {at}")
        (stored,) = struct.unpack_from(">I", data, end - 4)
        if name in (b"IHDR", b"PLTE", b"IDAT") and zlib.crc32(view[at + 4 : end - 4]) != stored:
            raise describe_damage(file, "png", f"wrong checksum of the chunk at byte {at}")
        at = end


def _all_rows(data: bytes) -> bool:
    """Whether a checked PNG has all its rows; Pillow leaves missing ones black, silently."""
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    if interlaced:
        return True
    samples = {2: 3, 4: 2, 6: 4}.get(colour, 1)
    missing = height * (1 + (width * depth * samples + 7) // 8)
    inflate, at = zlib.decompressobj(), 8
    while at < len(data) and missing > 0:
        length, name = struct.unpack_from(">I4s", data, at)
        part = data[at + 8 : at + 8 + length] if name == b"IDAT" else b""
        while part and missing > 0:
            missing -= len(inflate.decompress(part, 1 << 20))
            part = inflate.unconsumed_tail
        at += 12 + length
    return bool(missing <= len(inflate.flush()))


def _picture(data: bytes, kind: str, file: Path, bits: int | None) -> Pixels:
    """Decode by Pillow: all but JPEG."""
    try:
        with FORMATS[kind.upper()](io.BytesIO(data)) as picture:
            check_size(picture.width, picture.height, file)
            if kind == "png" and data[24] == 16 and data[25] != 0 and bits not in (None, 16):
                raise ImageError(
                    "unsupported",
                    f"{file} is 16-bit colour, for which bits={bits} can't be declared; convert to "
                    "16-bit grey.",
                )
            picture.load()
            # Pillow turns a TIFF itself while loading it.
            turned = 1 if kind == "tiff" else _orientation(picture.info.get("exif"))
            pixels = _grey(picture, file, bits)
            if kind == "png" and not pixels[-1].any() and not _all_rows(data):
                raise describe_damage(file, kind, "truncated: it has too few rows")
            return _upright(pixels, turned)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # Pillow's parsers raise nearly anything on wild bytes
        reason = str(error) or type(error).__name__
        raise describe_damage(file, kind, reason) from None


def _grey(picture: Image.Image, file: Path, bits: int | None) -> Pixels:
    mode = picture.mode
    if mode.startswith("I;16"):
        return _full_range(np.asarray(picture).astype(np.uint16), picture, file, bits)
    if mode in ("I", "F"):
        raise ImageError(
            "unsupported",
            f"{file} has signed, 32-bit or decimal levels, whose range is not known; convert to "
            "8- or 16-bit.",
        )
    picture.info.pop("transparency", None)
    if mode in ("P", "PA", "CMYK", "YCbCr"):
        picture = picture.convert("RGBA" if mode == "PA" else "RGB")
    if picture.mode in ("LA", "La", "RGBA", "RGBa", "RGBX"):
        bands = picture.split()[:-1]
        picture = bands[0] if len(bands) == 1 else Image.merge("RGB", bands)
    if picture.mode not in ("1", "L", "RGB"):
        raise ImageError("unsupported", f"{file} has colours of kind {mode}; convert to grey.")
    return np.asarray(picture.convert("L"))


def _full_range(
    levels: NDArray[np.uint16], picture: Image.Image, file: Path, bits: int | None
) -> NDArray[np.uint16]:
    """Levels of a 16-bit picture stretched to 0 to 65535 by the range declared for them."""
    if bits is None and isinstance(picture, TiffImagePlugin.TiffImageFile):
        bits = int(picture.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0])
    top = 2 ** (bits or 16) - 1
    if top < 65535:
        highest = int(levels.max())
        if highest > top:
            raise ImageError(
                "declared bits",
                f"{file} has level {highest}, but {bits} bits were declared, which end at {top}.",
            )
        levels = np.rint(levels * np.float32(65535 / top)).astype(np.uint16)
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        white_is_zero = picture.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
        # Pillow inverts such files of 1 and 8 bits, but not of 16.
        return 65535 - levels if white_is_zero else levels
    return levels


def _orientation(exif: object) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none, or where the EXIF is damaged."""
    if not isinstance(exif, bytes) or not exif:
        return 1
    tags = Image.Exif()
    try:
        tags.load(exif)
        found = tags.get(0x0112, 1)
    except Exception:  # damaged EXIF beside sound pixels is no reason to refuse an image
        return 1
    return found if found in range(1, 9) else 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Pixels (H, W) as they are to be seen."""
    down, right = _FLIPS[(orientation - 1) % 4]
    return (pixels.T if orientation >= 5 else pixels)[::down, ::right]


# Steps along rows and columns for the EXIF orientations 1 to 4, and 5 to 8 after the transpose.
_FLIPS = ((1, 1), (1, -1), (-1, -1), (-1, 1))


def resize(pixels: NDArray[Any], size: int) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Squash (H, W) to (size, size), bilinear with antialiasing.

    uint8 stays uint8; any other type becomes float32, unrounded, on its own scale.
    """
    levels = pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32)
    if levels.shape == (size, size):
        return levels
    picture = Image.fromarray(levels)
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))


def _to_uint8(levels: NDArray[Any]) -> NDArray[np.uint8]:
    """uint8 as it is; anything else from 0 to 65535 is divided by 257 and rounded."""
    if levels.dtype != np.uint8:
        levels = np.clip(np.rint(levels.astype(np.float32) / 257.0), 0, 255)
    return levels.astype(np.uint8, copy=False)


def is_blank(image: NDArray[Any]) -> bool:
    """Whether all grey levels are the same."""
    return bool(image.min() == image.max())
