"""DICOM films: what a header says, done in the right order, and refused by name where it can't be."""

from __future__ import annotations

import importlib.util
import io
import logging
import shutil
import sys
import threading
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from dicom_files import (
    BASELINE,
    ENCODED,
    LOSSLESS_JPEG,
    PLAIN,
    TWELVE,
    dcm,
    encoded,
    restored,
    save,
)
from lingula.images import files as image_files
from lingula.images.dicom.header import quiet, syntax_name
from lingula.images.dicom.pixels import readable_syntaxes
from lingula.images.dicom.reading import modality_values, read_dicom, read_stored
from lingula.images.files import sniff
from lingula.images.reading import read_image, read_pixels
from lingula.system.errors import ImageError
from lingula.tables.folder import scan

A12 = np.array([[0, 1024], [2048, 4095]], np.uint16)


@pytest.fixture(autouse=True)
def every_warning() -> None:
    image_files.warned.clear()


def grey(dataset: pydicom.Dataset, folder: Path) -> np.ndarray:
    return read_image(save(dataset, folder / "x.dcm"))


def shown(dataset: pydicom.Dataset, folder: Path, window: int | None = None) -> np.ndarray:
    """Grey levels on the scale of 12 bits, in which the cases state them."""
    path = save(dataset, folder / "x.dcm")
    return read_dicom(path.read_bytes(), path, window=window) / 65535 * 4095


def stored_values(path: Path) -> np.ndarray:
    """Modality values: samples after their sign and their rescale."""
    with quiet():
        dataset, codes, layout = read_stored(path.read_bytes(), path)
        return modality_values(dataset, layout, path)[codes]


def values(dataset: pydicom.Dataset, folder: Path) -> np.ndarray:
    return stored_values(save(dataset, folder / "x.dcm"))


def failure(path: Path) -> ImageError:
    with pytest.raises(ImageError) as caught:
        read_image(path, 32)
    assert path.name in str(caught.value)
    return caught.value


def refused(dataset: pydicom.Dataset, folder: Path) -> ImageError:
    return failure(save(dataset, folder / "x.dcm"))


def hide_gdcm(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "gdcm" else find(name, *a)
    )


def film(height: int = 48, width: int = 40, bits: int = 12) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    waves = np.sin(rows / 9.0) + np.cos(columns / 7.0) + 2
    return (waves / 4 * (2**bits - 1)).astype(np.uint8 if bits <= 8 else np.uint16)


# Cases 20 and 22


def test_both_kinds_of_monochrome_show_the_same(tmp_path: Path) -> None:
    x = film(bits=8)
    one = grey(dcm(255 - x, 8, "MONOCHROME1"), tmp_path)
    assert np.array_equal(one, grey(dcm(x, 8), tmp_path))
    assert np.array_equal(one, x)


def test_inversion_is_about_the_highest_level(tmp_path: Path) -> None:
    x = np.array([[0, 128, 255]], np.uint8)
    assert grey(dcm(x, 8, "MONOCHROME1"), tmp_path).tolist() == [[255, 127, 0]]


# Cases 23, 24, 26


def test_the_first_of_several_windows_unless_asked(tmp_path: Path) -> None:
    dataset = dcm(A12, 12, WindowCenter=[2048, 1000], WindowWidth=[4096, 200])
    assert np.allclose(shown(dataset, tmp_path), A12, atol=0.05)
    second = shown(dataset, tmp_path, window=1)
    assert np.allclose(second, [[0, 2551.658], [4095, 4095]], atol=0.05)
    with pytest.raises(ImageError, match="has 2 windows"):
        shown(dataset, tmp_path, window=2)


@pytest.mark.parametrize("width", ["0", "-5", "", "wide", "1e300", "1e-300", "nan"])
def test_a_useless_window_falls_back_with_a_warning(
    tmp_path: Path, width: str, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = dcm(A12, 12)
    path = save(dataset, tmp_path / "x.dcm")
    stated = b"\x28\x00\x50\x10DS\x04\x002048" + b"\x28\x00\x51\x10DS"
    padded = width.encode() + b" " * (len(width) % 2)
    stated += len(padded).to_bytes(2, "little") + padded
    data = path.read_bytes().replace(b"\xe0\x7f\x10\x00", stated + b"\xe0\x7f\x10\x00")
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        found = read_dicom(data, path) / 65535 * 4095
    assert np.allclose(found, A12, atol=0.05)
    assert "window can't be used" in caplog.text
    read_dicom(data, path)
    assert len(caplog.records) == 1  # once, not every epoch


def test_a_width_of_one_is_a_step_and_a_smaller_one_is_no_division(tmp_path: Path) -> None:
    step = shown(dcm(A12, 12, WindowCenter=2048, WindowWidth=1), tmp_path)
    assert step.round().tolist() == [[0, 0], [4095, 4095]]
    small = shown(dcm(A12, 12, WindowCenter=2048, WindowWidth="0.5"), tmp_path)
    assert small.round().tolist() == [[0, 0], [2048, 4095]]


def test_a_second_window_serves_where_the_first_is_useless(tmp_path: Path) -> None:
    dataset = dcm(A12, 12, WindowCenter=[0, 2048], WindowWidth=[0, 4096])
    assert np.allclose(shown(dataset, tmp_path), A12, atol=0.05)


def test_rescale_comes_before_the_window(tmp_path: Path) -> None:
    rescale = {"RescaleSlope": 2, "RescaleIntercept": -1024}
    dataset = dcm(A12, 12, WindowCenter=1024, WindowWidth=4096, **rescale)
    modality = np.array([[-1024, 1024], [3072, 7166]])
    assert np.array_equal(values(dataset, tmp_path), modality)
    right = np.clip((modality - 1023.5) / 4095 + 0.5, 0, 1) * 4095
    assert np.allclose(shown(dataset, tmp_path), right, atol=0.05)


def test_the_three_functions_of_a_window(tmp_path: Path) -> None:
    window = {"WindowCenter": 2048, "WindowWidth": 1000}
    x = A12.astype(float)
    right = {
        "LINEAR": np.clip((x - 2047.5) / 999 + 0.5, 0, 1),
        "LINEAR_EXACT": np.clip((x - 2048) / 1000 + 0.5, 0, 1),
        "SIGMOID": 1 / (1 + np.exp(-4 * (x - 2048) / 1000)),
    }
    for function, shades in right.items():
        dataset = dcm(A12, 12, VOILUTFunction=function, **window)
        assert np.allclose(shown(dataset, tmp_path) / 4095, shades, atol=2e-5), function


def table(entries: list[int], first: int, bits: int) -> Sequence:
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item["LUTDescriptor"].VR = "US" if first >= 0 else "SS"
    item.LUTData = np.array(entries, "<u2").tobytes()
    item["LUTData"].VR = "OW"
    return Sequence([item])


def test_tables_take_the_place_of_rescale_and_window(tmp_path: Path) -> None:
    x = np.array([[0, 1], [2, 9]], np.uint16)
    mapped = dcm(x, 12, ModalityLUTSequence=table([10, 30, 70], 0, 8))
    assert values(mapped, tmp_path).tolist() == [[10, 30], [70, 70]]
    toned = dcm(x, 12, WindowCenter=3, WindowWidth=5, VOILUTSequence=table([0, 50, 200], 1, 8))
    assert (shown(toned, tmp_path) / 4095 * 255).round().tolist() == [[0, 0], [50, 200]]
    # A window that is asked for is used in place of the table.
    assert shown(toned, tmp_path, window=0).round()[0, 1] == round(((1 - 2.5) / 4 + 0.5) * 4095)


def test_a_table_may_begin_below_zero(tmp_path: Path) -> None:
    x = np.array([[-2, -1], [0, 5]], np.int16)
    toned = dcm(x, 12, VOILUTSequence=table([0, 100, 200, 255], -2, 8))
    path = save(toned, tmp_path / "x.dcm")
    assert read_image(path).tolist() == [[0, 100], [200, 255]]


def palette(**entries: list[int]) -> Dataset:
    """An image of the codes 0 to 3, with a table of four entries of 16 bits per colour."""
    dataset = dcm(np.array([[0, 1], [2, 3]], np.uint8), 8, "PALETTE COLOR")
    for name, levels in entries.items():
        setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [4, 0, 16])
        dataset[f"{name}PaletteColorLookupTableDescriptor"].VR = "US"
        data = np.array(levels, "<u2").tobytes()
        setattr(dataset, f"{name}PaletteColorLookupTableData", data)
    return dataset


# Case 27


def test_intent_changes_nothing(tmp_path: Path) -> None:
    window = {"WindowCenter": 2048, "WindowWidth": 1000}
    for_showing = dcm(film(), 12, PresentationIntentType="FOR PRESENTATION", **window)
    for_processing = dcm(film(), 12, PresentationIntentType="FOR PROCESSING", **window)
    assert np.array_equal(grey(for_showing, tmp_path), grey(for_processing, tmp_path))


# Cases 28 and 29


def test_signed_12_bits_in_a_box_of_16(tmp_path: Path) -> None:
    x = np.array([[-1024, -1], [0, 2047]])
    dataset = dcm((x & 0x0FFF).astype(np.uint16), 12, PixelRepresentation=1)
    assert np.array_equal(values(dataset, tmp_path), x)
    levels = read_pixels(tmp_path / "x.dcm")
    assert levels[0, 0] == 0 and levels[1, 1] == 65535 and levels[0, 1] < levels[1, 0]


def test_bits_above_those_stored_do_not_count(tmp_path: Path) -> None:
    x = film()
    stray = x.copy()
    stray[0, 0] = 0x8000 | stray[0, 0]
    assert values(dcm(stray, 12), tmp_path)[0, 0] == x[0, 0]
    assert np.array_equal(grey(dcm(stray, 12), tmp_path), grey(dcm(x, 12), tmp_path))
    high = dcm((x << 4).astype(np.uint16), 12, HighBit=15)
    assert np.array_equal(values(high, tmp_path), x)
    wide = dcm(x.astype(np.uint32), 12)
    assert np.array_equal(values(wide, tmp_path), x)


def test_padding_is_black_and_has_no_part_in_the_range(tmp_path: Path) -> None:
    x = film(bits=10).astype(np.uint16) + 100
    padded = x.copy()
    padded[:10] = 4000
    for photo in ("MONOCHROME1", "MONOCHROME2"):
        whole = grey(dcm(x[10:], 12, photo), tmp_path)
        found = grey(dcm(padded, 12, photo, PixelPaddingValue=4000), tmp_path)
        assert not found[:10].any()
        assert np.array_equal(found[10:], whole)
    padded[0] = 4090
    ranged = dcm(padded, 12, PixelPaddingValue=4000, PixelPaddingRangeLimit=4095)
    assert np.array_equal(grey(ranged, tmp_path), found)
    nothing = dcm(np.full((4, 4), 7, np.uint16), 12, "MONOCHROME1", PixelPaddingValue=7)
    assert not grey(nothing, tmp_path).any()


def test_without_a_window_few_bright_pixels_do_not_darken_the_rest(tmp_path: Path) -> None:
    x = film(200, 200, 10)
    marked = x.copy()
    marked[:5, :5] = 4095  # a marker of lead: 25 of 40,000 pixels
    plain, lead = (grey(dcm(image, 12), tmp_path).astype(int) for image in (x, marked))
    assert np.abs(plain - lead)[5:, 5:].max() <= 2
    assert plain.min() == 0 and plain.max() == 255


def test_constant_films_are_finite(tmp_path: Path) -> None:
    for level in (0, 1234, 4095):
        image = grey(dcm(np.full((8, 8), level, np.uint16), 12), tmp_path)
        assert image.min() == image.max()


# Cases 30 to 35


def test_no_pixels_and_no_syntax_are_named(tmp_path: Path) -> None:
    bare = dcm(A12, 12)
    del bare.PixelData
    assert "without pixel data" in str(refused(bare, tmp_path))
    path = save(dcm(A12, 12), tmp_path / "y.dcm")
    data = path.read_bytes()
    at = data.index(b"\x02\x00\x10\x00UI")
    length = 8 + int.from_bytes(data[at + 6 : at + 8], "little")
    path.write_bytes(data[:at] + data[at + length :])
    error = failure(path)
    assert error.kind == "damaged"
    assert "Transfer Syntax UID" in str(error)


@pytest.mark.parametrize("implicit", [True, False])
def test_without_preamble_and_meta_header(tmp_path: Path, implicit: bool) -> None:
    path = tmp_path / "x"
    restored(dcm(A12, 12), PLAIN[0] if implicit else PLAIN[1], path)
    data = path.read_bytes()
    at = data.index(b"\x08\x00\x16\x00")  # the SOP class: the first element of the data set
    path.write_bytes(data[at:])
    assert sniff(path.read_bytes()[:132]) == "dicom"
    assert np.array_equal(stored_values(path), A12)
    assert scan(tmp_path)[0] == ("x",)


def test_without_preamble_but_with_a_meta_header(tmp_path: Path) -> None:
    path = restored(dcm(film(), 12), ENCODED[2], tmp_path / "x")
    path.write_bytes(path.read_bytes()[132:])
    assert np.array_equal(stored_values(path), film())
    assert read_image(path).shape == film().shape


def test_other_files_are_not_taken_for_dicom_without_preamble() -> None:
    random = np.random.default_rng(0)
    found = sum(sniff(random.bytes(132)) != "unknown" for _ in range(20_000))
    assert found == 0
    for head in (b"", b"\x08\x00", b"\x08\x00\x05\x00", b"\x02\x00" * 66, b"\x08\x00" * 66):
        assert sniff(head) == "unknown", head


def test_truncated_pixels_are_never_filled(tmp_path: Path) -> None:
    dataset = dcm(A12, 12)
    dataset.PixelData = dataset.PixelData[:6]
    error = refused(dataset, tmp_path)
    assert error.kind == "truncated"
    assert "6 of the 8 bytes" in str(error)


@pytest.mark.parametrize("syntax", [*PLAIN, *ENCODED, *LOSSLESS_JPEG, BASELINE])
@pytest.mark.parametrize("share", [0.35, 0.6, 0.95])
def test_the_first_part_of_a_file_is_never_a_picture(
    tmp_path: Path, syntax: str, share: float
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    path = restored(dcm(noise, 8), syntax, tmp_path / "x.dcm")
    data = path.read_bytes()
    start = max(data.rfind(b"\xe0\x7f\x10\x00"), data.rfind(b"\x7f\xe0\x00\x10"), 300)
    path.write_bytes(data[: start + int((len(data) - start) * share)])
    assert failure(path).kind in ("truncated", "damaged")


def test_excess_and_odd_lengths_are_read(tmp_path: Path) -> None:
    more = dcm(A12, 12)
    more.PixelData += bytes(4)
    assert np.array_equal(values(more, tmp_path), A12)
    odd = dcm(np.arange(9, dtype=np.uint8).reshape(3, 3), 8)
    path = save(odd, tmp_path / "odd.dcm")
    data = path.read_bytes()
    at = data.index(b"\xe0\x7f\x10\x00OB")
    path.write_bytes(data[: at + 8] + (9).to_bytes(4, "little") + odd.PixelData[:9])
    assert stored_values(path).ravel().tolist() == list(range(9))


def test_a_missing_decoder_is_named_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = restored(dcm(film(), 12), LOSSLESS_JPEG[1], tmp_path / "x.dcm")
    hide_gdcm(monkeypatch)
    error = failure(path)
    assert error.kind == "unsupported"
    assert "JPEG Lossless, Non-Hierarchical, First-Order Prediction" in str(error)
    assert "lingula[dicom]" in str(error)
    readable = readable_syntaxes()
    assert not readable[syntax_name(LOSSLESS_JPEG[1])]
    assert readable["JPEG Baseline (Process 1)"] and len(readable) == 20


def test_without_pydicom_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(dcm(A12, 12), tmp_path / "x.dcm")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    assert "lingula[dicom]" in str(failure(path))
    assert scan(tmp_path)[0] == ("x.dcm",)  # it stays in, to fail by name


def test_syntaxes_without_a_free_decoder_are_named(tmp_path: Path) -> None:
    mpeg = "1.2.840.10008.1.2.4.100"
    path = encoded(dcm(film(), 12), mpeg, bytes(16), tmp_path / "x.dcm")
    error = failure(path)
    assert error.kind == "unsupported"
    assert "MPEG2 Main Profile" in str(error)
    ten = bytes.fromhex("ffd8ffc1000b0a00300028010111 00ffda".replace(" ", "")) + bytes(40)
    path = encoded(dcm(film(), 12), "1.2.840.10008.1.2.4.51", ten, tmp_path / "y.dcm")
    assert "neither 8 bits nor 12" in str(failure(path)) and "gdcmconv" in str(failure(path))


def twelve_bits() -> np.ndarray:
    rows, columns = np.mgrid[:24, :24]
    return ((np.sin(rows / 5) + np.cos(columns / 4) + 2) / 4 * 4095).astype(np.uint16)


def test_lossy_jpeg_of_12_bits(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    x = twelve_bits()
    extended = "1.2.840.10008.1.2.4.51"
    path = encoded(dcm(x, 12), extended, TWELVE, tmp_path / "x.dcm")
    found = stored_values(path)
    assert np.abs(found - x).max() < 60 and np.abs(found - x).mean() < 12
    assert read_image(path).std() > 50
    assert not any(capfd.readouterr())  # the decoder talks to nobody
    parts = [TWELVE[:cut] + end for cut in (60, 180, -9) for end in (b"", b"\xff\xd9")]
    for part in (*parts, TWELVE[:-2], TWELVE[:-1]):
        path = encoded(dcm(x, 12), extended, part, tmp_path / "x.dcm")
        assert failure(path).kind in ("truncated", "damaged"), len(part)
    path = encoded(dcm(x, 12), extended, TWELVE[:-2] + bytes(9) + b"\xff\xd9", tmp_path / "x.dcm")
    assert np.array_equal(stored_values(path), found)


def test_without_gdcm_its_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encoded(dcm(twelve_bits(), 12), "1.2.840.10008.1.2.4.51", TWELVE, tmp_path / "x.dcm")
    hide_gdcm(monkeypatch)
    assert "python-gdcm" in str(failure(path)) and "lingula[dicom]" in str(failure(path))


@pytest.mark.parametrize("syntax", ["51", "53", "55"])
@pytest.mark.parametrize("strays", [0, 9])
def test_other_lossy_processes_of_8_bits(
    tmp_path: Path, syntax: str, strays: int, caplog: pytest.LogCaptureFixture
) -> None:
    x = film(bits=8)
    stream = io.BytesIO()
    Image.fromarray(x).save(stream, "JPEG", quality=95, progressive=syntax != "51")
    frame = stream.getvalue()[:-2] + bytes(strays) + b"\xff\xd9"
    path = encoded(dcm(x, 8), f"1.2.840.10008.1.2.4.{syntax}", frame, tmp_path / "x.dcm")
    assert np.abs(read_image(path).astype(int) - x).max() <= 8
    assert ("there are stray bytes before a marker" in caplog.text) == bool(strays)
    cut = frame[: -20 - strays] + b"\xff\xd9"
    encoded(dcm(x, 8), f"1.2.840.10008.1.2.4.{syntax}", cut, path)
    assert failure(path).kind in ("truncated", "damaged")


# Tables and windows that were meant for another scale


@pytest.mark.parametrize("photo", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize(
    ("end", "bits"), [(4095, 16), (255, 16), (4095, 8), (255, 8), (65535, 16), (4095, 12)]
)
def test_a_tables_scale_is_that_of_its_entries(
    tmp_path: Path, end: int, bits: int, photo: str
) -> None:
    """Agfa's say 16 bits and end at 4095 or 255; others say 8 and go on to 4095."""
    x = film()
    entries = np.rint(np.linspace(0, end, 4096)).astype(int).tolist()
    found = grey(dcm(x, 12, photo, VOILUTSequence=table(entries, 0, bits)), tmp_path)
    right = x / 4095 * 255
    assert np.abs(found - (right if photo == "MONOCHROME2" else 255 - right)).max() <= 1.5


def test_a_table_begins_where_its_films_values_are(tmp_path: Path) -> None:
    """1091 entries from 2652 on, of 16 bits and up to 4095, as in a public report."""
    x = (2652 + film() / 4095 * 1090).astype(np.uint16)
    entries = np.rint(np.linspace(0, 4095, 1091)).astype(int).tolist()
    toned = dcm(x, 12, "MONOCHROME1", VOILUTSequence=table(entries, 2652, 16))
    assert np.abs(grey(toned, tmp_path) - (255 - film() / 4095 * 255)).max() <= 1.5


@pytest.mark.parametrize("first", [-100, 65436])
@pytest.mark.parametrize("intercept", [-100, 0])
def test_the_first_value_of_a_table_may_be_written_with_or_without_a_sign(
    tmp_path: Path, first: int, intercept: int
) -> None:
    x = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    entries = np.rint(np.linspace(0, 255, 4196)).astype(int).tolist()
    tags = {"RescaleSlope": 1, "RescaleIntercept": intercept}
    toned = dcm(x, 12, VOILUTSequence=table(entries, -1 if first < 0 else 1, 8), **tags)
    toned.VOILUTSequence[0].LUTDescriptor = [len(entries), first, 8]
    right = np.array(entries)[x.astype(int) + intercept + 100]
    assert np.abs(grey(toned, tmp_path) - right).max() <= 1
    # Above the middle of 16 bits, an unsigned film's table may be written as if it had a sign.
    high = (np.arange(4096, dtype=np.uint16) + 40000).reshape(64, 64)
    toned = dcm(high, 16, VOILUTSequence=table([0] * 4096, -1, 8))
    toned.VOILUTSequence[0].LUTData = np.arange(4096).astype("<u2").tobytes()
    toned.VOILUTSequence[0].LUTDescriptor = [4096, 40000 - 65536, 12]
    assert np.abs(grey(toned, tmp_path) - np.arange(4096).reshape(64, 64) / 4095 * 255).max() <= 1


def test_entries_of_8_bits_may_be_packed(tmp_path: Path) -> None:
    x = np.arange(256, dtype=np.uint16).reshape(16, 16)
    toned = dcm(x, 8, VOILUTSequence=table([0] * 256, 0, 8))
    toned.VOILUTSequence[0].LUTData = bytes(range(255, -1, -1))
    assert np.array_equal(grey(toned, tmp_path), 255 - x)


def test_palettes_of_8_bits_may_say_16(tmp_path: Path) -> None:
    grey_entries = [0, 85, 170, 255]
    dataset = palette(Red=grey_entries, Green=grey_entries, Blue=grey_entries)
    assert grey(dataset, tmp_path).tolist() == [[0, 85], [170, 255]]


STRETCHED = "the window leaves nothing of the grey levels"


@pytest.mark.parametrize(
    ("levels", "bits", "centre", "width", "tags"),
    [
        ((1800, 3847), 12, 128, 256, {}),  # of 8 bits
        ((12000, 20000), 16, 3174, 2426, {}),  # a public report's
        ((0, 4095), 12, 32768, 65536, {}),  # of 16 bits: nearly black
        ((0, 4095), 12, 0.5, 1, {}),  # of 0 to 1
        ((12000, 20000), 16, 11080, 2160, {}),  # 2 % of the levels
        ((0, 4095), 12, -40, 400, {"RescaleIntercept": -32768, "RescaleSlope": 1}),
        ((0, 4095), 12, 2048, 4096, {"RescaleIntercept": 0, "RescaleSlope": "0.05"}),  # of stored values
        ((0, 4095), 12, 40, 80, {"RescaleIntercept": 1000, "RescaleSlope": 10}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("photo", ["MONOCHROME2", "MONOCHROME1"])
def test_a_window_of_another_scale_is_passed_over_by_name(
    tmp_path: Path,
    levels: tuple[int, int],
    bits: int,
    centre: float,
    width: float,
    tags: dict[str, Any],
    photo: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    low, high = levels
    x = (low + film() / 4095 * (high - low)).astype(np.uint16)
    plain = grey(dcm(x, bits, photo, **tags), tmp_path)
    assert not caplog.records
    windowed = dcm(x, bits, photo, WindowCenter=centre, WindowWidth=width, **tags)
    found = grey(windowed, tmp_path)
    assert np.array_equal(found, plain) and found.std() > 50
    assert f"x.dcm: {STRETCHED}" in caplog.text
    # The window that is asked for is taken all the same.
    assert read_dicom((tmp_path / "x.dcm").read_bytes(), tmp_path / "x.dcm", window=0).std() < 7000


def test_an_8_bit_film_with_a_window_of_12_bits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    x = film(bits=8)
    assert np.array_equal(grey(dcm(x, 8, WindowCenter=2048, WindowWidth=4096), tmp_path), x)
    assert STRETCHED in caplog.text


@pytest.mark.parametrize(
    ("centre", "width"),
    [(2048, 4096), (1000, 2000), (3000, 1000), (2048, 800), (2048, 20000), (2048, 1), (2048, 0.5)],
)
def test_windows_of_the_right_scale_are_kept(
    tmp_path: Path, centre: float, width: float, caplog: pytest.LogCaptureFixture
) -> None:
    found = shown(dcm(film(), 12, WindowCenter=centre, WindowWidth=width), tmp_path) / 4095
    x = film().astype(float)
    window = np.clip((x - centre) / width + 0.5, 0, 1)
    if width > 1:
        window = np.clip((x - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)
    elif width == 1:
        window = (x > centre - 0.5).astype(float)
    assert np.abs(found - window).max() < 1e-3 and not caplog.records


def test_a_film_without_contrast_is_not_the_windows_fault(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a blank film nor a faint one is stretched: that would show its noise."""
    faint = np.random.default_rng(0).integers(2000, 2020, (40, 40)).astype(np.uint16)
    for x in (faint, np.full((40, 40), 4000, np.uint16)):
        found = grey(dcm(x, 12, WindowCenter=2048, WindowWidth=4096), tmp_path)
        assert int(found.max()) - int(found.min()) <= 2
    padded = dcm(
        np.full((4, 4), 7, np.uint16), 12, WindowCenter=9, WindowWidth=3, PixelPaddingValue=7
    )
    assert not grey(padded, tmp_path).any() and not caplog.records


def test_of_table_and_windows_the_first_that_leaves_something(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    x = film()
    right = dcm(x, 12, WindowCenter=2048, WindowWidth=4096)
    wanted = grey(right, tmp_path)
    right.WindowCenter, right.WindowWidth = [128, 2048], [256, 4096]
    assert np.array_equal(grey(right, tmp_path), wanted) and not caplog.records
    # A table of another scale: every value lies behind its last entry.
    right.VOILUTSequence = table(list(range(0, 200)), 0, 8)
    right.VOILUTSequence[0].LUTDescriptor = [200, 64000, 8]
    assert np.array_equal(grey(right, tmp_path), wanted)
    assert "the table of grey levels leaves nothing of them" in caplog.text
    # With both in their place the table is taken.
    right.VOILUTSequence = table([4095 - i for i in range(4096)], 0, 12)
    assert np.abs(grey(right, tmp_path).astype(int) - (255 - wanted)).max() <= 1
    # One with too few entries is none.
    right.VOILUTSequence[0].LUTData = bytes(40)
    assert np.array_equal(grey(right, tmp_path), wanted)
    assert "the table of grey levels can't be used" in caplog.text


def test_a_modality_table_with_too_few_entries_yields_to_the_rescale(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    x = film()
    short = dcm(x, 12, ModalityLUTSequence=table(list(range(4096)), 0, 16))
    short.ModalityLUTSequence[0].LUTData = bytes(100)
    short.RescaleSlope, short.RescaleIntercept = 2, -5
    assert np.array_equal(values(short, tmp_path), x * 2.0 - 5)
    assert "the table of modality values can't be used" in caplog.text


# Cases 37, 38


@pytest.mark.parametrize("frames", [2, 3])
def test_of_several_frames_the_first_is_read_and_said_so(
    tmp_path: Path,
    frames: int,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lingula.images.files.warned", set())
    x = np.random.default_rng(0).integers(0, 256, (frames, 4, 6), np.uint8)
    with caplog.at_level("WARNING", "lingula"):
        read = grey(dcm(x, 8, NumberOfFrames=frames), tmp_path)
    assert "x.dcm: it has several frames: the first is read" in caplog.text
    # Three frames are three films, never three colours.
    assert read.shape == (4, 6) and (read == x[0]).all()
    assert (grey(dcm(x[:1], 8, NumberOfFrames=1), tmp_path) == read).all()
    whole = dcm(x, 8, NumberOfFrames=frames)
    whole.PixelData = whole.PixelData[: 4 * 6 * frames - 2]
    assert refused(whole, tmp_path).kind == "truncated"
    assert refused(dcm(x, 8, NumberOfFrames=-1), tmp_path).kind == "damaged"


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("syntax", [BASELINE, *LOSSLESS_JPEG, *ENCODED])
def test_the_first_of_several_compressed_frames(
    syntax: str, table: bool, pieces: int, tmp_path: Path
) -> None:
    films = [dcm(np.roll(film(bits=8), 7 * i, 1), 8) for i in range(3)]
    paths = [restored(one, syntax, tmp_path / f"{i}.dcm") for i, one in enumerate(films)]
    found = [pydicom.dcmread(path) for path in paths]
    streams = [pydicom.encaps.get_frame(d.PixelData, 0, number_of_frames=1) for d in found]
    both = found[0]
    both.NumberOfFrames = 3
    both.PixelData = pydicom.encaps.encapsulate(streams, fragments_per_frame=pieces, has_bot=table)
    path = save(both, tmp_path / "both.dcm")
    if pieces == 2 and not table:
        assert "can't be told apart" in str(failure(path))
        return
    assert (read_image(path) == read_image(paths[0])).all()
    assert (read_image(path) != read_image(paths[1])).any()
    both.NumberOfFrames = 7
    assert failure(save(both, path)).kind == "truncated"


def colour(photo: str, pixel: list[int], **tags: Any) -> pydicom.Dataset:
    x = np.tile(np.array(pixel, np.uint8), (4, 6, 1))
    return dcm(x, 8, photo, SamplesPerPixel=3, **({"PlanarConfiguration": 0} | tags))


def test_colours_become_luma(tmp_path: Path) -> None:
    assert (grey(colour("RGB", [100, 100, 100]), tmp_path) == 100).all()
    assert (grey(colour("RGB", [255, 0, 0]), tmp_path) == 76).all()
    assert (grey(colour("YBR_FULL", [100, 128, 128]), tmp_path) == 100).all()
    planes = colour("RGB", [0, 0, 0], PlanarConfiguration=1)
    planes.PixelData = bytes([0] * 24 + [255] * 24 + [0] * 24)
    assert (grey(planes, tmp_path) == 150).all()
    pairs = colour("YBR_FULL_422", [0, 0, 0])
    pairs.PixelData = bytes([100, 110, 128, 128] * 12)
    assert grey(pairs, tmp_path).tolist() == [[100, 110] * 3] * 4
    pairs.PhotometricInterpretation = "YBR_PARTIAL_422"
    pairs.PixelData = bytes([16, 235, 128, 128] * 12)
    assert grey(pairs, tmp_path).tolist() == [[0, 255] * 3] * 4
    wide = dcm(np.full((4, 4, 3), 65535, np.uint16), 16, "RGB", SamplesPerPixel=3)
    assert (grey(wide, tmp_path) == 255).all()


@pytest.mark.parametrize("syntax", [*ENCODED, *LOSSLESS_JPEG])
def test_colours_in_codestreams(tmp_path: Path, syntax: str) -> None:
    red = dcm(np.tile(np.array([255, 0, 0], np.uint8), (64, 64, 1)), 8, "RGB", SamplesPerPixel=3)
    red.PlanarConfiguration = 0
    path = restored(red, syntax, tmp_path / "x.dcm")
    assert (read_image(path) == 76).all()


def test_palettes_become_luma(tmp_path: Path) -> None:
    dataset = palette(Red=[0, 65535, 0, 65535], Green=[0, 0, 65535, 65535], Blue=[0, 0, 0, 65535])
    assert grey(dataset, tmp_path).tolist() == [[0, 76], [150, 255]]
    del dataset.BluePaletteColorLookupTableData
    assert "no palette for Blue" in str(refused(dataset, tmp_path))


@pytest.mark.parametrize("photo", ["", "GREYISH", "ARGB"])
def test_black_or_white_is_never_guessed(tmp_path: Path, photo: str) -> None:
    assert "black or white" in str(refused(dcm(film(), 12, photo), tmp_path))


# Cases 40 and 41


def test_a_study_folder_is_scanned_for_films(tmp_path: Path) -> None:
    save(dcm(film(), 12), tmp_path / "film")
    others = {
        "DICOMDIR.dcm": ("1.2.840.10008.1.3.10", "Media Storage Directory Storage"),
        "report": ("1.2.840.10008.5.1.4.1.1.88.11", "Basic Text SR Storage"),
        "state": (
            "1.2.840.10008.5.1.4.1.1.11.1",
            "Grayscale Softcopy Presentation State Storage",
        ),
    }
    for name, (uid, kind) in others.items():
        dataset = dcm(film(), 12, SOPClassUID=uid)
        del dataset.PixelData
        assert f"is not an image: it is DICOM's '{kind}'" in str(
            failure(save(dataset, tmp_path / name))
        )
    images, skipped = scan(tmp_path)
    assert images == ("film",)
    assert skipped == {f"not an image: {kind}": 1 for _, kind in others.values()}


def test_sizes_are_refused_from_the_header(tmp_path: Path) -> None:
    huge = dcm(A12, 16, Rows=60000, Columns=60000)
    assert refused(huge, tmp_path).kind == "too large"
    frame = pydicom.encaps.get_frame(
        pydicom.dcmread(restored(dcm(film(), 12), ENCODED[2], tmp_path / "j.dcm")).PixelData,
        0,
        number_of_frames=1,
    )
    big = dcm(film(), 12, Rows=14000, Columns=14000)
    path = encoded(big, ENCODED[2], frame, tmp_path / "y.dcm")
    error = failure(path)
    assert error.kind == "damaged" and "196000000 pixels" in str(error)
    wide = dcm(film(), 12, Columns=39)
    assert "its codestream" in str(failure(encoded(wide, ENCODED[2], frame, path)))


def test_a_film_of_the_usual_size_is_read_in_bounded_memory(tmp_path: Path) -> None:
    """Case 8, as DICOM: 15 million pixels of 16 bits, without a window."""
    path = save(dcm(np.tile(film(214, 176, 16), (20, 20)), 16), tmp_path / "x.dcm")
    tracemalloc.start()
    image = read_image(path, 224)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert image.shape == (224, 224)
    assert peak < 8 * path.stat().st_size


def test_a_deflated_bomb_is_refused(tmp_path: Path) -> None:
    dataset = dcm(A12, 12)
    dataset.PixelData = bytes(140_000_000)
    path = restored(dataset, PLAIN[2], tmp_path / "x.dcm")
    assert path.stat().st_size < 1_000_000
    assert failure(path).kind == "too large"


# Every way of storing the same film


@pytest.mark.parametrize(
    ("syntax", "bits"),
    [(BASELINE, 8)]  # all bits that this syntax holds
    + [(syntax, bits) for syntax in (*PLAIN, *ENCODED, *LOSSLESS_JPEG) for bits in (8, 12, 16)],
)
def test_every_syntax_gives_the_same_film(tmp_path: Path, syntax: str, bits: int) -> None:
    # gdcm's encoder wants an even number of bytes.
    x = film(48, 41, bits) if syntax in LOSSLESS_JPEG else film(49, 41, bits)
    path = restored(dcm(x, bits), syntax, tmp_path / "x.dcm")
    before = path.read_bytes()
    error = np.abs(stored_values(path) - x)
    assert error.max() <= (8 if syntax == BASELINE else 0)
    assert path.read_bytes() == before


@pytest.mark.parametrize("syntax", [*PLAIN, ENCODED[0], ENCODED[2], LOSSLESS_JPEG[1]])
def test_every_syntax_keeps_signs(tmp_path: Path, syntax: str) -> None:
    x = film(49, 41, 12).astype(np.int16) - 2048
    path = restored(dcm(x, 16), syntax, tmp_path / "x.dcm")
    assert np.array_equal(stored_values(path), x)


def test_tags_that_contradict_the_codestream_yield_to_it(tmp_path: Path) -> None:
    path = restored(dcm(film(bits=12), 12), ENCODED[2], tmp_path / "x.dcm")
    dataset = pydicom.dcmread(path)
    dataset.BitsStored, dataset.HighBit = 10, 9
    save(dataset, path)
    assert np.array_equal(stored_values(path), film(bits=12))


# Quietness


def test_pydicom_warns_neither_by_log_nor_by_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save(dcm(A12, 12, SOPClassUID="1.2.Smith"), tmp_path / "x.dcm")
    caplog.clear()
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        pydicom.uid.UID("1.2.Smith")  # what reading the file does as well
        assert "1.2.Smith" in caplog.text and "1.2.Smith" in str(seen[0].message)
        caplog.clear()
        seen.clear()
        read_image(path)
        assert "Smith" not in caplog.text
        assert not seen
    # Other users of pydicom keep its log.
    with caplog.at_level(logging.WARNING):
        logging.getLogger("pydicom").warning("heard")
    assert "heard" in caplog.text


def test_threads_read_alike(tmp_path: Path) -> None:
    paths = [
        restored(dcm(film(), 12), syntax, tmp_path / f"{i}.dcm")
        for i, syntax in enumerate((*PLAIN, *ENCODED, *LOSSLESS_JPEG))
    ]
    found: dict[int, Any] = {}

    def read(i: int) -> None:
        found[i] = [read_image(path, 32) for path in paths]

    threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for images in found.values():
        assert all(np.array_equal(image, found[0][0]) for image in images)
    assert len(found) == 4


def test_burned_in_text_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    grey(dcm(film(), 12, BurnedInAnnotation="YES"), tmp_path)
    assert "burned into its pixels" in caplog.text


# Properties


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(2, 16),
    signed=st.booleans(),
    slope=st.sampled_from([-2.0, 0.5, 1.0, 3.0]),
    intercept=st.integers(-5000, 5000),
    window=st.one_of(st.none(), st.tuples(st.integers(-4000, 70000), st.integers(1, 70000))),
    seed=st.integers(0, 9),
)
def test_grey_levels_rise_with_modality_values(
    tmp_path_factory: pytest.TempPathFactory,
    bits: int,
    signed: bool,
    slope: float,
    intercept: int,
    window: tuple[int, int] | None,
    seed: int,
) -> None:
    """Whatever the tags: brighter is never darker, and MONOCHROME1 is the mirror of it."""
    x = np.random.default_rng(seed).integers(0, 2**bits, (9, 8)).astype(np.uint16)
    tags: dict[str, Any] = {"RescaleSlope": slope, "RescaleIntercept": intercept}
    if window:
        tags |= {"WindowCenter": window[0], "WindowWidth": window[1]}
    folder = tmp_path_factory.mktemp("d")
    up = save(dcm(x, bits, PixelRepresentation=int(signed), **tags), folder / "2.dcm")
    down = save(dcm(x, bits, "MONOCHROME1", PixelRepresentation=int(signed), **tags), folder / "1")
    levels, mirrored = read_pixels(up), read_pixels(down)
    order = np.argsort(stored_values(up).ravel(), kind="stable")
    assert (np.diff(levels.ravel()[order].astype(int)) >= 0).all()
    top = 255 if bits <= 8 else 65535
    assert levels.max() <= top
    assert np.abs(levels.astype(int) + mirrored - top).max() <= 1


# Real films


def real(folder: Path, part: str) -> Path:
    (path,) = (folder / "dicom").glob(f"*{part}*.dcm")
    return path


def test_the_real_films(real_data: Path) -> None:
    two, one = read_image(real(real_data, "mono2")), read_image(real(real_data, "FAKE"))
    assert two.shape == (1024, 1024)
    assert np.array_equal(one, 255 - two)  # the same pixels; only the tag differs
    chest = read_image(real(real_data, "RG1"))
    assert chest.shape == (1955, 1841)
    # Dark lungs, bright mediastinum.
    lung, middle = chest[700:1000, 350:650].mean(), chest[700:1000, 850:1000].mean()
    assert lung < middle - 30
    leg = read_image(real(real_data, "RG3"))
    assert leg.shape == (1760, 1760)
    path = real(real_data, "RG1")
    raw = stored_values(path)
    assert (raw.min(), raw.max()) == (803, 26512)


@pytest.mark.parametrize("syntax", [*PLAIN, *ENCODED, *LOSSLESS_JPEG])
def test_a_real_film_in_every_syntax(real_data: Path, tmp_path: Path, syntax: str) -> None:
    path = real(real_data, "RG1")
    raw = stored_values(path).astype(np.uint16)[400:1400, 300:1300]
    window = {"WindowCenter": 15000, "WindowWidth": 30000}
    dataset = dcm(raw, 15, "MONOCHROME1", **window)
    plain = read_image(save(dataset, tmp_path / "plain.dcm"))
    found = restored(dataset, syntax, tmp_path / "x.dcm")
    assert np.array_equal(read_image(found), plain)
    assert np.array_equal(read_image(path)[400:1400, 300:1300], plain)


def test_a_check_of_a_mixed_table(tmp_path: Path) -> None:
    """Case 30: the failure is named and counted, and the others go on."""
    save(dcm(film(), 12), tmp_path / "good.dcm")
    bare = dcm(film(), 12)
    del bare.PixelData
    save(bare, tmp_path / "bare.dcm")
    shutil.copy(tmp_path / "good.dcm", tmp_path / "good.png")
    failed = []
    for name in scan(tmp_path)[0]:
        try:
            read_image(tmp_path / name, 32)
        except ImageError as error:
            failed.append((name, error.kind))
    assert failed == [("bare.dcm", "damaged")]
