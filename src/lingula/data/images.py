"""Reading an image: the one function for training, prediction and everything after it.

A file is known by its content, never by its name. The result is grey, uint8, 0 black to 255 white.
Rules: 16-bit levels are divided by the declared range (65535, or 2**bits - 1), never by the
image's own maximum; alpha is ignored; colour becomes luma; EXIF orientation is applied once; a file
that is cut, damaged or not an image is an `ImageError` with its kind, never a black picture.
"""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
)

from lingula.errors import ImageError

MAX_PIXELS = 200_000_000
"""Larger images are refused from their header, before any memory is taken for their pixels."""

_OPENERS: dict[str, type[ImageFile.ImageFile]] = {
    "jpeg": JpegImagePlugin.JpegImageFile,
    "png": PngImagePlugin.PngImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "gif": GifImagePlugin.GifImageFile,
}


def sniff(data: bytes) -> str:
    """`jpeg`, `png`, `tiff`, `bmp`, `gif`, `dicom` or `unknown`, by the first bytes."""
    if data[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:4] in (b"II*\x00", b"MM\x00*"):
        return "tiff"
    if data[:2] == b"BM":
        return "bmp"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if data[128:132] == b"DICM":
        return "dicom"
    return "unknown"


def read_image(
    path: str | Path, size: int | None = None, *, bits: int | None = None
) -> NDArray[np.uint8]:
    """Read a file to grey uint8: (size, size), squashed and antialiased; or (H, W) without `size`.

    Args:
        path: JPEG, PNG, TIFF, BMP or GIF, recognised by content.
        size: side of the square result in pixels.
        bits: bits in use in 16-bit files, if fewer than 16.

    Raises:
        ImageError: with the kind (`missing`, `empty`, `not an image`, `truncated`, `damaged`,
            `too large`, `unsupported`) and the file's name.
    """
    pixels = read_pixels(path, bits=bits, at_least=size)
    if size is not None and pixels.shape != (size, size):
        return resize(pixels, size, bits)
    return to_uint8(pixels.astype(np.float32), _top(pixels, bits))


def read_pixels(
    path: str | Path, *, bits: int | None = None, at_least: int | None = None
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Grey levels as they are stored: (H, W) uint8, or uint16 for 16-bit files.

    With `at_least`, a JPEG may come at a fraction of its size that is no smaller than that.
    """
    file = Path(path)
    data = _bytes(file)
    kind = sniff(data)
    if kind == "dicom":
        raise ImageError(
            "unsupported", f"{file} is DICOM, which this version does not read; convert it to PNG."
        )
    if kind == "unknown":
        raise ImageError("not an image", f"{file} is not an image (its content is none we know).")
    if kind == "jpeg":
        _whole_jpeg(data, file)
        fast = _fast_jpeg(data, file, at_least)
        if fast is not None:
            return fast
    pixels = _decode(data, kind, file)
    if bits is not None and pixels.dtype == np.uint16 and int(pixels.max()) >= 2**bits:
        raise ImageError(
            "unsupported",
            f"{file} has level {int(pixels.max())}, more than the declared {bits} bits hold.",
        )
    return pixels


def _bytes(file: Path) -> bytes:
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise ImageError("missing", f"There is no file {file}.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError("missing", f"{file} can't be opened: {reason}.") from None
    if not data:
        raise ImageError("empty", f"{file} is empty (0 bytes).")
    return data


def _check_size(width: int, height: int, file: Path) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(
            "too large",
            f"{file} is {width} x {height} pixels; the limit is {MAX_PIXELS // 10**6} million.",
        )
    if width < 1 or height < 1:
        raise ImageError("damaged", f"{file} says that it is {width} x {height} pixels.")


def _whole_jpeg(data: bytes, file: Path) -> None:
    """A JPEG must have its end marker; decoders fill what is missing with grey, silently."""
    if b"\xff\xd9" not in data[-4096:]:
        raise ImageError("truncated", f"{file} is cut off: this JPEG has no end.")


def _fast_jpeg(data: bytes, file: Path, at_least: int | None) -> NDArray[np.uint8] | None:
    """Grey by libjpeg-turbo, or None for what needs Pillow (CMYK, EXIF orientation)."""
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except ValueError as error:
        raise ImageError("damaged", f"{file} is a damaged JPEG: {error}.") from None
    _check_size(width, height, file)
    if space not in ("Gray", "GRAY", "YCbCr", "RGB") or b"Exif\x00\x00" in data[:65536]:
        return None
    limits = {} if at_least is None else {"min_height": at_least, "min_width": at_least}
    try:
        grey: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "GRAY", strict=True, **limits)
    except ValueError as error:
        text = str(error)
        kind = "truncated" if "premature" in text.lower() else "damaged"
        raise ImageError(kind, f"{file} is a {kind} JPEG: {text}.") from None
    return grey[..., 0]


def _decode(data: bytes, kind: str, file: Path) -> NDArray[np.uint8] | NDArray[np.uint16]:
    if kind == "png":
        width, height = struct.unpack(">II", data[16:24].ljust(8, b"\0"))
        _check_size(width, height, file)
    try:
        with warnings.catch_warnings():
            # Damaged metadata beside sound pixels is no reason to refuse a film.
            warnings.simplefilter("ignore")
            # The plugin itself, not Image.open: its own limit on size is a global setting.
            picture: Image.Image = _OPENERS[kind](io.BytesIO(data))
            _check_size(picture.width, picture.height, file)
            picture.load()
            return _grey(ImageOps.exif_transpose(picture))
    except ImageError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        text = str(error)
        cut = "truncated" in text.lower() or isinstance(error, EOFError)
        name = "truncated" if cut else "damaged"
        raise ImageError(name, f"{file} is a {name} {kind.upper()}: {text}.") from None
    except (
        KeyError,
        TypeError,
        IndexError,
        OverflowError,
        MemoryError,
        ZeroDivisionError,
    ) as error:
        # Pillow's parsers raise these on wild header values.
        raise ImageError(
            "damaged", f"{file} is a damaged {kind.upper()} ({type(error).__name__})."
        ) from None


def _grey(picture: Image.Image) -> NDArray[np.uint8] | NDArray[np.uint16]:
    mode = picture.mode
    if mode.startswith("I;16"):
        return np.asarray(picture).astype(np.uint16)
    if mode in ("I", "F"):
        levels = np.asarray(picture)
        if levels.min() < 0 or levels.max() > 65535 or not np.array_equal(levels, levels.round()):
            raise ValueError("its levels are not whole numbers from 0 to 65535")
        return levels.astype(np.uint16)
    if mode == "P":
        picture = picture.convert("RGB")
    elif mode in ("LA", "RGBA", "PA", "La", "RGBa"):
        bands = picture.convert("RGBA") if mode == "PA" else picture
        kept = bands.split()[:-1]
        picture = kept[0] if len(kept) == 1 else Image.merge("RGB", kept)
    return np.asarray(picture.convert("L"))


def _top(pixels: NDArray[np.uint8] | NDArray[np.uint16], bits: int | None) -> float:
    if pixels.dtype == np.uint8:
        return 255.0
    return float(2 ** (bits or 16) - 1)


def to_uint8(levels: NDArray[np.float32], top: float) -> NDArray[np.uint8]:
    """Levels 0 to `top` as 0 to 255, rounded."""
    scaled: NDArray[np.uint8] = np.clip(np.rint(levels * (255.0 / top)), 0, 255).astype(np.uint8)
    return scaled


def resize(
    pixels: NDArray[np.uint8] | NDArray[np.uint16], size: int, bits: int | None = None
) -> NDArray[np.uint8]:
    """Squash (H, W) to (size, size) uint8, bilinear with antialiasing; 16-bit before rounding."""
    if pixels.dtype == np.uint8:
        picture = Image.fromarray(pixels)
        gap = 3.0 if min(pixels.shape) > 2 * size else None
        small = picture.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=gap)
        return np.asarray(small)
    picture = Image.fromarray(pixels.astype(np.float32))
    small = picture.resize((size, size), Image.Resampling.BILINEAR)
    return to_uint8(np.asarray(small), _top(pixels, bits))


def is_blank(image: NDArray[np.uint8]) -> bool:
    """Whether all grey levels are the same."""
    return bool(image.min() == image.max())
