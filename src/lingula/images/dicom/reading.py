"""DICOM images to grey levels: what a file stores is one thing, what it shows another.

Stored samples become grey by a table over all codes, in the standard's order: sign, modality
(rescale or table), window (or table, or robust percentiles), inversion of MONOCHROME1, padding.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lingula.images.dicom.header import (
    BIG_ENDIAN,
    PIXEL_TAGS,
    Layout,
    items,
    layout_of,
    numbers,
    parse,
    quiet,
    raw_bytes,
    sop_class,
    text,
    whole_number,
)
from lingula.images.dicom.pixels import Codes, read_samples
from lingula.images.files import Remark, remark
from lingula.system.errors import ImageError

if TYPE_CHECKING:
    from pydicom import Dataset

TAIL = 0.005
"""Without a window, this share of the pixels may be darker than black, and as many than white."""

CONTRAST, GREY, FLAT = 0.1, 0.05, 0.03
"""A window leaves nothing if it gives less of the range from black to white, or if a smaller share
of the pixels is neither; not asked of images whose own levels are a smaller part of their range."""

_SAMPLE = 250_000  # pixels by which a window is judged

Table = NDArray[np.float64]


def read_dicom(data: bytes, file: Path, *, window: int | None = None) -> Codes:
    """Read the grey levels of a DICOM file: (H, W), 0 black; uint8 of 8 bits, else uint16.

    Args:
        data: the file's bytes.
        file: its name, for messages.
        window: which of several windows, from 0; otherwise the first that can be used.

    Raises:
        ImageError: as `lingula.images.reading.read_image`.
    """
    with quiet():
        dataset, codes, layout = read_stored(data, file)
        if text(dataset, "BurnedInAnnotation").upper() == "YES":
            remark(file, Remark.BURNED_IN)
        if layout.frames > 1:
            remark(file, Remark.FRAMES)
        top = 255 if layout.stored <= 8 else 65535
        if codes.ndim == 3 and layout.photometric == "RGB":
            return _luma(codes, top / (2**layout.stored - 1))
        if codes.ndim == 3:  # the others keep luma and colour apart
            codes = codes[..., 0]
        if layout.photometric in ("MONOCHROME1", "MONOCHROME2"):
            table = _shades(dataset, layout, codes, file, window)
        elif layout.photometric == "PALETTE COLOR":
            table = _palette(dataset, layout, file)
        else:
            table = _levels(layout)
        return np.rint(table * top).astype(codes.dtype)[codes]


def read_stored(data: bytes, file: Path) -> tuple[Dataset, Codes, Layout]:
    """The header's elements, the stored samples as codes, and how they lie; raises `ImageError`."""
    dataset, syntax = parse(io.BytesIO(data), file, PIXEL_TAGS, pixels=True)
    layout = layout_of(dataset, syntax, file)
    pixels = raw_bytes(dataset, "PixelData")
    if pixels is None:
        if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
            raise ImageError("unsupported", f"{file} has decimal levels, whose range is not known.")
        if b"\xe0\x7f\x10\x00" in data or b"\x7f\xe0\x00\x10" in data:
            raise ImageError("truncated", f"{file} is truncated: it ends inside its pixels.")
        raise ImageError("damaged", f"{file} is DICOM without pixel data.")
    element = dataset["PixelData"]
    codes, layout = read_samples(pixels, element.is_undefined_length, str(element.VR), layout, file)
    return dataset, codes, layout


def non_image_kind(path: Path) -> str:
    """The kind of a DICOM object without an image, by its header; empty if it may have one."""
    try:
        with quiet(), path.open("rb") as stream:
            kind = sop_class(parse(stream, path, ("SOPClassUID",), pixels=False)[0])
    except (ImageError, OSError):
        return ""  # reading it will fail by name
    return "" if "Image Storage" in kind else kind


def _luma(codes: Codes, scale: float) -> Codes:
    """Luma of red, green and blue, (H, W, 3) to (H, W), times `scale`."""
    luma = np.zeros(codes.shape[:2], np.float32)
    for plane, share in enumerate(_SHARES):
        luma += codes[..., plane] * np.float32(share * scale)
    return np.rint(luma).astype(codes.dtype)


_SHARES = (0.299, 0.587, 0.114)


def _levels(layout: Layout) -> Table:
    """The shade of every code of luma; one of the colour kinds uses 16 to 235 of 255 only."""
    level = np.linspace(0, 1, 2**layout.stored)
    if layout.photometric == "YBR_PARTIAL_422":
        return np.clip((level * 255 - 16) / 219, 0, 1)
    return level


def _palette(dataset: Dataset, layout: Layout, file: Path) -> Table:
    """Luma from 0 to 1 for every code, by the file's three tables of colours."""
    luma, largest, bits = np.zeros(2**layout.stored), 0.0, 0
    codes = _code_values(layout)
    for colour, share in zip(("Red", "Green", "Blue"), _SHARES, strict=True):
        name = f"{colour}PaletteColorLookupTable"
        table = _read_lookup(dataset, f"{name}Descriptor", f"{name}Data", layout, codes)
        if table is None:
            raise ImageError("damaged", f"{file} is damaged: it has no palette for {colour}.")
        entries, first, stated = table
        luma += share * _look_up(entries, first, codes)
        largest, bits = max(largest, entries.max()), max(bits, stated)
    # Some state 16 bits for entries of 8.
    return np.clip(luma / (2.0 ** (8 if largest < 256 else bits) - 1), 0, 1)


def _code_values(layout: Layout) -> NDArray[np.float64]:
    """The value of every code."""
    values = np.arange(2**layout.stored, dtype=np.float64)
    if layout.signed:
        values[2 ** (layout.stored - 1) :] -= 2**layout.stored
    return values


def modality_values(dataset: Dataset, layout: Layout, file: Path) -> Table:
    """The modality value of every code: by the file's table, or slope and intercept."""
    values = _code_values(layout)
    for item in items(dataset, "ModalityLUTSequence")[:1]:
        table = _read_lookup(item, "LUTDescriptor", "LUTData", layout, values)
        if table is not None:
            return _look_up(table[0], table[1], values)
        remark(file, Remark.BAD_MODALITY)
    slope = (numbers(dataset, "RescaleSlope") or (1.0,))[0]
    intercept = (numbers(dataset, "RescaleIntercept") or (0.0,))[0]
    if slope == 0 or max(abs(slope), abs(intercept)) > 1e12:
        remark(file, Remark.BAD_RESCALE)
        slope, intercept = 1.0, 0.0
    return values * slope + intercept


def _read_lookup(
    dataset: Dataset, descriptor: str, data: str, layout: Layout, inputs: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float, int] | None:
    """A lookup table: entries, the input of the first, the bits stated; None if it is unusable."""
    facts = numbers(dataset, descriptor)
    if len(facts) != 3:
        return None
    count, first, bits = int(facts[0]) % 65536 or 65536, facts[1], int(facts[2])
    if first > max(32767, inputs.max()):  # two's complement, read as unsigned
        first -= 65536
    elif first + count <= min(0, inputs.min()):  # or the reverse
        first += 65536
    stored = raw_bytes(dataset, data)
    order = ">u2" if layout.syntax == BIG_ENDIAN else "<u2"
    if stored is None:
        entries = np.array(numbers(dataset, data)[:count])
    elif len(stored) in (count, count + 1) and count > 1:
        entries = np.frombuffer(stored, np.uint8, count).astype(np.float64)
    else:
        entries = np.frombuffer(stored[: len(stored) // 2 * 2], order)[:count].astype(np.float64)
    if len(entries) < count or not 1 <= bits <= 16:
        return None
    return entries, first, bits


def _look_up(
    entries: NDArray[np.float64], first: float, inputs: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Entries for inputs; those before the first have the first, those behind the last the last."""
    return entries[np.clip(np.rint(inputs - first), 0, len(entries) - 1).astype(np.intp)]


def _shades(
    dataset: Dataset, layout: Layout, codes: Codes, file: Path, window: int | None
) -> Table:
    """The shade of every code, from 0 black to 1 white."""
    values = modality_values(dataset, layout, file)
    padding = _padding(dataset, layout)
    step = max(1, int(np.sqrt(codes.size / _SAMPLE)))
    sample = _counts(codes[::step, ::step], len(values))
    sample[padding] = 0
    shades = _find_shades(dataset, layout, values, sample, file, window)
    if shades is None and layout.stored <= 8:
        # 8-bit images were made for showing: their range is the declared one.
        shades = (values - values.min()) / (values.max() - values.min() or 1)
    if shades is None:
        counts = _counts(codes, len(values))
        counts[padding] = 0
        shades = _stretch(values, counts)
    if layout.photometric == "MONOCHROME1":
        shades = 1 - shades
    shades[padding] = 0
    return shades


def _counts(codes: Codes, n: int) -> NDArray[np.intp]:
    """How many pixels have each code; by rows, since bincount takes 8 bytes per pixel."""
    counts = np.zeros(n, np.intp)
    step = max(1, 4_000_000 // codes.shape[1])
    for row in range(0, len(codes), step):
        counts += np.bincount(codes[row : row + step].ravel(), minlength=n)
    return counts


def _padding(dataset: Dataset, layout: Layout) -> NDArray[np.bool_]:
    """Which codes mean nothing: pixels outside the exposed field."""
    values = _code_values(layout)
    found = [whole_number(dataset, f"PixelPadding{end}") for end in ("Value", "RangeLimit")]
    # As stored, these may be two's complement read as unsigned.
    ends = [e - 65536 if layout.signed and e > 32767 else e for e in found if e is not None]
    if found[0] is None:
        return np.zeros(len(values), bool)
    padding: NDArray[np.bool_] = (values >= min(ends)) & (values <= max(ends))
    return padding


def _find_shades(
    dataset: Dataset,
    layout: Layout,
    values: NDArray[np.float64],
    counts: NDArray[np.intp],
    file: Path,
    window: int | None,
) -> Table | None:
    """Shades by the file's table or window; None if it has none that can be used.

    One that leaves nothing of the image, whose pixels have each code as often as `counts` says, is
    passed over, but not the `window` that was asked for.
    """
    for item in items(dataset, "VOILUTSequence") if window is None else ():
        table = _read_lookup(item, "LUTDescriptor", "LUTData", layout, values)
        if table is None:
            remark(file, Remark.BAD_TABLE)
            continue
        # By the bits that the entries need: many tables state 16 for entries of 12 or 8.
        top = 2.0 ** max(1, int(table[0].max()).bit_length()) - 1
        shades = np.clip(_look_up(table[0], table[1], values) / top, 0, 1)
        if _leaves_enough(shades, values, counts):
            return shades
        remark(file, Remark.LOST_TABLE)
    stated = text(dataset, "WindowCenter") + text(dataset, "WindowWidth")
    pairs = list(
        zip(numbers(dataset, "WindowCenter"), numbers(dataset, "WindowWidth"), strict=False)
    )
    if window is not None:
        if not 0 <= window < len(pairs):
            raise ImageError(
                "unsupported", f"{file} has {len(pairs)} windows; number {window} was asked for."
            )
        pairs = pairs[window : window + 1]
    # No overflow, whatever the function.
    sound = [pair for pair in pairs if 1e-6 <= pair[1] <= 1e12 and abs(pair[0]) <= 1e12]
    for centre, width in sound:
        shades = _window(values, centre, width, text(dataset, "VOILUTFunction").upper())
        if window is not None or _leaves_enough(shades, values, counts, step=width <= 1):
            return shades
    if sound or stated:
        remark(file, Remark.LOST_WINDOW if sound else Remark.BAD_WINDOW)
    return None


def _leaves_enough(
    shades: Table, values: Table, counts: NDArray[np.intp], *, step: bool = False
) -> bool:
    """Whether shades tell an image's grey levels apart; true of images that hardly have any.

    They do not if they differ by less than `CONTRAST` from one robust end of the image to the
    other; or if hardly a pixel is neither black nor white, unless the window is a `step` by itself.
    """
    low, high = _ends(values, counts)
    if high - low <= FLAT * (values.max() - values.min()):
        return True
    between = shades[(values >= low) & (values <= high)]
    if between.max() - between.min() < CONTRAST:
        return False
    grey = counts[(shades > 0.01) & (shades < 0.99)].sum()
    return step or bool(grey >= GREY * counts.sum())


def _window(values: NDArray[np.float64], centre: float, width: float, function: str) -> Table:
    """Shades by one window, as the standard defines its three functions (PS3.3 C.11.2.1)."""
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    if function == "LINEAR_EXACT" or width < 1:  # LINEAR is not defined below a width of 1
        return np.clip((values - centre) / width + 0.5, 0, 1)
    if width == 1:
        return (values > centre - 0.5).astype(np.float64)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def _stretch(values: NDArray[np.float64], counts: NDArray[np.intp]) -> Table:
    """Shades from one robust end of the values that occur to the other."""
    low, high = _ends(values, counts)
    shades: Table = np.clip((values - low) / ((high - low) or 1), 0, 1)
    return shades if counts.any() else np.zeros_like(values)


def _ends(values: NDArray[np.float64], counts: NDArray[np.intp]) -> tuple[float, float]:
    """The robust ends of the values that occur: `TAIL` of the pixels lie below and above."""
    order = np.argsort(values, kind="stable")
    order = order[counts[order] > 0]
    if not len(order):  # nothing but padding
        return 0.0, 0.0
    share = np.cumsum(counts[order]) / counts.sum()
    low = values[order[np.searchsorted(share, TAIL, side="right")]]
    high = values[order[np.searchsorted(share, 1 - TAIL)]]
    if low == high:  # nearly all pixels are the same
        low, high = values[order[0]], values[order[-1]]
    return float(low), float(high)
