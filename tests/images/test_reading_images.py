"""Reading images: every format to the same grey levels, and every broken file by name."""

from __future__ import annotations

import io
import os
import re
import struct
import subprocess
import sys
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import lingula
from lingula.images import files as image_files
from lingula.images.files import MAX_PIXELS, sniff
from lingula.images.reading import is_blank, read_image, read_pixels, resize
from lingula.system.errors import ImageError

R16 = np.linspace(0, 65535, 256).round().reshape(16, 16).astype(np.uint16)


@pytest.fixture(autouse=True)
def every_remark() -> None:
    image_files.warned.clear()


def smooth(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    waves = np.sin(rows / 9.0) + np.cos(columns / 7.0) + np.sin((rows + 2 * columns) / 23.0)
    return ((waves + 3) / 6 * 255).astype(np.uint8)


def encoded(picture: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    shown = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    shown.save(stream, kind, **options)
    return stream.getvalue()


def stored(folder: Path, data: bytes, name: str = "x.png") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def saved(folder: Path, picture: Image.Image | np.ndarray, name: str, **options: object) -> Path:
    kind = {"jpg": "JPEG", "tif": "TIFF"}.get(name.rsplit(".", 1)[1], name.rsplit(".", 1)[1])
    return stored(folder, encoded(picture, kind, **options), name)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def zeros_png(width: int, height: int, rows: int | None = None) -> bytes:
    packer = zlib.compressobj(9)
    line = bytes(width + 1)
    body = b"".join(packer.compress(line) for _ in range(rows or height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def failure(path: Path, **options: int) -> ImageError:
    with pytest.raises(ImageError) as caught:
        read_image(path, 32, **options)
    assert path.name in str(caught.value)
    return caught.value


# Case 1


@pytest.mark.parametrize("name", ["r.png", "r.tif"])
def test_16_bit_ramp_keeps_its_levels(tmp_path: Path, name: str) -> None:
    image = read_image(saved(tmp_path, R16, name))
    assert len(np.unique(image)) >= 250
    assert (image == 255).mean() < 0.01
    assert np.abs(image / 255 - R16 / 65535).max() <= 1 / 255


# Case 3


@given(st.integers(0, 2**32 - 1), st.integers(3, 90), st.integers(3, 90), st.integers(2, 70))
@settings(max_examples=40, deadline=None)
def test_8_bit_and_16_bit_of_the_same_picture_agree(
    tmp_path_factory: pytest.TempPathFactory, seed: int, height: int, width: int, size: int
) -> None:
    folder = tmp_path_factory.mktemp("bits")
    image = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    a = read_image(saved(folder, image, "a.png"), size)
    b = read_image(saved(folder, image.astype(np.uint16) * 257, "b.png"), size)
    assert np.abs(a.astype(int) - b).max() <= 1
    assert np.array_equal(read_image(folder / "a.png"), read_image(folder / "b.png"))


# Case 4


def test_12_bits_in_16_are_dark_unless_declared(tmp_path: Path) -> None:
    levels = (np.arange(256) * 16).reshape(16, 16).astype(np.uint16)
    path = saved(tmp_path, levels, "x.png")
    assert read_image(path).max() == 16  # 4080 of 65535, never stretched by the image's own maximum
    assert np.abs(read_image(path, bits=12) - levels / 4095 * 255).max() <= 0.51
    assert failure(path, bits=11).kind == "declared bits"
    eight = saved(tmp_path, smooth(16, 16), "eight.png")
    assert np.array_equal(read_image(eight, bits=12), read_image(eight))


# Cases 5 and 6


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("colour", [False, True])
def test_a_cut_jpeg_is_truncated(tmp_path: Path, progressive: bool, colour: bool) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128), dtype=np.uint8)
    picture = np.dstack([noise] * 3) if colour else noise
    data = encoded(picture, "JPEG", progressive=progressive)
    for cut in (len(data) // 2, len(data) * 9 // 10, len(data) - 2, len(data) - 1):
        for tail in (b"", b"\xff\xd9") if cut < len(data) - 2 else (b"",):
            for size in (None, 16):
                path = stored(tmp_path, data[:cut] + tail, "half.jpg")
                with pytest.raises(ImageError) as caught:
                    read_image(path, size)
                assert caught.value.kind in ("truncated", "damaged")
    assert failure(stored(tmp_path, data[: len(data) // 2], "half.jpg")).kind == "truncated"
    assert failure(stored(tmp_path, data[:-2], "no_end.jpg")).kind == "truncated"
    padded = stored(tmp_path, data + bytes(5000), "padded.jpg")
    assert np.array_equal(read_image(padded), read_image(stored(tmp_path, data, "whole.jpg")))


KINDS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restarts by rows": {"restart_marker_rows": 1},
    "restarts by two rows": {"restart_marker_rows": 2},
    "restarts by blocks": {"restart_marker_blocks": 5},
}


def places(data: bytes) -> list[int]:
    """Where a marker stands behind the first scan's header: restarts, further scans, the end."""
    begin = data.index(b"\xff\xda") + 2
    return [m.start() for m in re.finditer(rb"\xff[\xc4\xda\xd0-\xd9]", data) if m.start() > begin]


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_stray_bytes_before_a_marker_are_passed_over(
    tmp_path: Path, kind: str, colour: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A scanner's habit: all pixels are there. Anywhere, in any number, and nothing else wrong."""
    picture = np.dstack([smooth(200, 150)] * 3) if colour else smooth(200, 150)
    data = encoded(picture, "JPEG", quality=90, **KINDS[kind])
    right = read_image(stored(tmp_path, data, "whole.jpg"))
    small = read_image(tmp_path / "whole.jpg", 60)
    header = [data.index(mark) for mark in (b"\xff\xdb", b"\xff\xc4", b"\xff\xda")]
    behind = places(data)
    for chosen in ([behind[-1]], [behind[0]], behind, header[:1], header, [*header, *behind]):
        for strays in (b"\x11", b"\x11\x22" * 8, b"\0" * 700, b"\xff\0\x22" * 9):
            odd = data
            for place in reversed(chosen):
                odd = odd[:place] + strays + odd[place:]
            path = stored(tmp_path, odd, "odd.jpg")
            assert np.array_equal(read_image(path), right)
            assert np.array_equal(read_image(path, 60), small)
    assert "odd.jpg: there are stray bytes before a marker of the JPEG" in caplog.text
    assert len(caplog.records) == 1  # once, not in every epoch


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_missing_behind_stray_bytes_is_still_missed(tmp_path: Path, kind: str) -> None:
    """The decoder tells of the strays only; the rest it would fill with grey."""
    data = encoded(smooth(200, 150), "JPEG", quality=90, **KINDS[kind])
    behind, strays = places(data), b"\0" * 9
    end = behind[-1]
    header = data.index(b"\xff\xda")
    cut = [
        data[:header] + strays + data[header : end - 200] + data[end:],
        data[: end - 200] + strays + data[end:],
        data[:end] + strays,
        data[:header] + strays + data[header:end],
    ]
    if len(behind) > 2:
        first, second = behind[0], behind[1]
        cut += [
            data[:first] + strays + data[first : end - 200] + data[end:],
            data[:first] + strays + data[first:end],
        ]
    noise = np.random.default_rng(0).integers(0, 255, 300, dtype=np.uint8).tobytes()
    cut.append(data[:end] + noise + data[end:])  # so many may be data that a wrong bit shifted
    if kind.startswith("restarts"):
        cut += [
            data[:first] + strays + data[second:],  # an interval is gone
            data[:first] + strays + data[end:],  # so are all others
            data[:first] + strays + data[first : second - 9] + data[second:],  # or part of it
        ]
    for part in cut:
        error = failure(stored(tmp_path, part, "cut.jpg"))
        assert error.kind in ("truncated", "damaged")


@given(st.sampled_from([k for k in KINDS if k != "progressive"]), st.integers(9, 1 << 12))
@settings(max_examples=60, deadline=None)
def test_stray_bytes_never_hide_a_cut(
    tmp_path_factory: pytest.TempPathFactory, kind: str, cut: int
) -> None:
    whole = encoded(smooth(64, 48), "JPEG", quality=90, **KINDS[kind])
    begin = whole.index(b"\xff\xda") + 10
    cut = 9 + cut % (len(whole) - begin - 11)
    part = whole[: len(whole) - 2 - cut] + bytes(8) + b"\xff\xd9"
    error = failure(stored(tmp_path_factory.mktemp("s"), part, "odd.jpg"))
    assert error.kind in ("truncated", "damaged")


@given(st.integers(1, 1 << 16))
@settings(max_examples=60, deadline=None)
def test_a_file_cut_anywhere_is_never_a_picture(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    for kind in ("JPEG", "PNG"):
        data = encoded(smooth(64, 48), kind)
        path = stored(folder, data[: cut % len(data)], "cut.img")
        with pytest.raises(ImageError):
            read_image(path, 32)


def test_cut_png_and_tiff(tmp_path: Path) -> None:
    data = encoded(smooth(64, 64), "PNG")
    assert failure(stored(tmp_path, data[: len(data) // 2])).kind == "truncated"
    assert failure(stored(tmp_path, data[:-12])).kind == "truncated"
    assert failure(stored(tmp_path, zeros_png(64, 64, rows=20))).kind == "truncated"
    for compression in (None, "tiff_deflate", "tiff_lzw"):
        tiff = encoded(R16, "TIFF", compression=compression)
        cut = stored(tmp_path, tiff[: len(tiff) // 3], "cut.tif")
        assert failure(cut).kind in ("truncated", "damaged")


def test_empty_web_page_and_zeroed_chunk(tmp_path: Path) -> None:
    assert failure(stored(tmp_path, b"", "a.png")).kind == "empty"
    page = failure(stored(tmp_path, b"<html>403</html>", "b.png"))
    assert page.kind == "not an image" and "web page" in str(page)
    data = encoded(smooth(64, 64), "PNG")
    at = data.index(b"IDAT")
    assert failure(stored(tmp_path, data[:at] + bytes(4) + data[at + 4 :], "c.png")).kind == (
        "damaged"
    )
    inside = at + 40
    zeroed = data[:inside] + bytes(4) + data[inside + 4 :]
    assert failure(stored(tmp_path, zeroed, "d.png")).kind == "damaged"


# Case 7


def test_a_bomb_is_refused_before_its_memory_is_taken(tmp_path: Path) -> None:
    path = stored(tmp_path, zeros_png(20_000, 20_000, rows=10), "bomb.png")
    tracemalloc.start()
    error = failure(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert error.kind == "too large" and "200 million" in str(error)
    assert peak < 10_000_000
    jpeg = bytearray(encoded(smooth(16, 16), "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 60000, 60000)
    assert failure(stored(tmp_path, bytes(jpeg), "bomb.jpg")).kind == "too large"
    assert MAX_PIXELS == 200_000_000


def test_100_megapixels_are_read_without_a_warning(tmp_path: Path) -> None:
    image = read_image(stored(tmp_path, zeros_png(10_000, 10_000), "big.png"), 64)
    assert image.shape == (64, 64) and is_blank(image)


# Case 8


def test_an_honest_big_radiograph_is_read(tmp_path: Path) -> None:
    small = np.random.default_rng(0).integers(0, 65535, (44, 36)).astype(np.float32)
    big = np.asarray(Image.fromarray(small).resize((3520, 4280), Image.Resampling.BILINEAR))
    path = saved(tmp_path, big.astype(np.uint16), "big.png", compress_level=1)
    image = read_image(path, 512)
    assert image.shape == (512, 512) and image.std() > 20


# Case 9


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(tmp_path: Path, name: str, orientation: int) -> None:
    image = np.zeros((16, 32), np.uint8)
    image[:, :16], image[:8, 16:] = 255, 128
    tags = Image.Exif()
    tags[0x0112] = orientation
    plain = read_image(saved(tmp_path, image, "plain." + name[2:]))
    turned = read_image(saved(tmp_path, image, name, exif=tags))
    right = {
        1: plain,
        2: plain[:, ::-1],
        3: plain[::-1, ::-1],
        4: plain[::-1],
        5: plain.T,
        6: np.rot90(plain, -1),
        7: plain[::-1, ::-1].T,
        8: np.rot90(plain, 1),
    }[orientation]
    assert np.array_equal(turned, right)


def test_upside_down_film(tmp_path: Path) -> None:
    image = np.zeros((8, 16), np.uint8)
    image[:, :8] = 255
    tags = Image.Exif()
    tags[0x0112] = 3
    turned = read_image(saved(tmp_path, image, "x.jpg", exif=tags))
    assert turned[:, :7].max() < 40 and turned[:, 9:].min() > 215


def test_damaged_exif_does_not_refuse_a_sound_film(tmp_path: Path) -> None:
    data = encoded(smooth(16, 16), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff junk")
    assert read_image(stored(tmp_path, data)).shape == (16, 16)


# Case 11


def test_cmyk(tmp_path: Path) -> None:
    ink = np.zeros((16, 32, 4), np.uint8)
    ink[:, 16:, 3] = 255
    for name in ("x.tif", "x.jpg"):
        image = read_image(saved(tmp_path, Image.fromarray(ink, "CMYK"), name))
        assert (image[:, :16] == 255).all() and (image[:, 16:] == 0).all()
    data = encoded(Image.fromarray(ink, "CMYK"), "JPEG")
    assert b"Adobe" in data
    at = data.index(b"\xff\xee")
    (length,) = struct.unpack_from(">H", data, at + 2)
    # Without Adobe's marker, levels are ink as they stand: the same bytes are the negative.
    bare = read_image(stored(tmp_path, data[:at] + data[at + 2 + length :], "bare.jpg"))
    assert (bare[:, :16] == 0).all()


def test_one_bit_alpha_and_palette(tmp_path: Path) -> None:
    one = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    assert read_image(saved(tmp_path, one, "one.png")).tolist() == [[0, 255]]
    clear = Image.new("LA", (4, 4), (200, 0))
    assert (read_image(saved(tmp_path, clear, "la.png")) == 200).all()
    rgba = Image.new("RGBA", (4, 4), (200, 200, 200, 0))
    assert (read_image(saved(tmp_path, rgba, "rgba.png")) == 200).all()
    grey = smooth(20, 20)
    path = saved(tmp_path, Image.fromarray(grey).convert("P"), "p.png", transparency=bytes(256))
    assert np.array_equal(read_image(path), grey)
    assert np.array_equal(read_image(saved(tmp_path, grey, "g.bmp")), grey)
    assert np.array_equal(read_image(saved(tmp_path, grey, "g.gif")), grey)


def test_rgb_with_equal_channels_is_the_grey_picture(tmp_path: Path) -> None:
    grey = smooth(60, 50)
    for kind in ("png", "tif"):
        a = read_image(saved(tmp_path, grey, f"a.{kind}"), 33)
        b = read_image(saved(tmp_path, np.dstack([grey] * 3), f"b.{kind}"), 33)
        assert np.array_equal(a, b)
    a = read_image(saved(tmp_path, grey, "a.jpg"), 33)
    b = read_image(saved(tmp_path, np.dstack([grey] * 3), "b.jpg"), 33)
    assert np.abs(a.astype(int) - b).max() <= 2


def test_white_is_zero_in_16_bits(tmp_path: Path) -> None:
    plain = saved(tmp_path, R16, "a.tif")
    negative = saved(tmp_path, R16, "b.tif", tiffinfo={262: 0})
    # Pillow stores the levels as they are and only writes the tag.
    assert np.array_equal(read_pixels(negative), 65535 - read_pixels(plain))


def test_unknown_ranges_are_refused(tmp_path: Path) -> None:
    for levels in (np.ones((4, 4), np.float32), np.ones((4, 4), np.int32)):
        assert failure(saved(tmp_path, levels, "x.tif")).kind == "unsupported"


# Case 12


@pytest.mark.parametrize("level", [np.uint8(0), np.uint8(255), np.uint16(1234)])
def test_constant_images_are_read_and_flagged(tmp_path: Path, level: np.generic) -> None:
    image = read_image(saved(tmp_path, np.full((64, 64), level), "x.png"), 32)
    assert is_blank(image) and image.shape == (32, 32)
    assert not is_blank(smooth(9, 9))


# Case 14


def test_resizing_is_antialiased(tmp_path: Path) -> None:
    stripes = np.tile(np.where(np.isin(np.arange(16) % 4, (1, 2)), 255, 0), (16, 1))
    stripes = stripes.astype(np.uint8)
    right = [137, 128, 128, 137]
    assert resize(stripes, 4).tolist() == [right] * 4
    assert read_image(saved(tmp_path, stripes, "x.png"), 4).tolist() == [right] * 4
    deep = saved(tmp_path, stripes.astype(np.uint16) * 257, "y.png")
    assert np.abs(read_image(deep, 4) - np.array([right] * 4)).max() <= 1
    jpeg = read_image(saved(tmp_path, stripes, "x.jpg", quality=100), 4)
    assert np.abs(jpeg.astype(int) - 127).max() <= 12


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300))
@settings(max_examples=60, deadline=None)
def test_any_size_becomes_a_square_of_the_same_brightness(h: int, w: int, size: int) -> None:
    image = resize(np.full((h, w), 77, np.uint8), size)
    assert image.shape == (size, size) and (image == 77).all()


def test_a_jpeg_decoded_small_is_close_to_one_decoded_whole(tmp_path: Path) -> None:
    path = saved(tmp_path, smooth(500, 700), "x.jpg", quality=95)
    fast = read_image(path, 64)
    slow = resize(read_image(path), 64)
    assert np.abs(fast.astype(int) - slow).mean() < 2.0
    assert min(read_pixels(path, at_least=64).shape) >= 64


# Cases 15 and 16


def test_paths_with_any_characters(tmp_path: Path) -> None:
    folder = tmp_path / "Öffentlich 測試 #1 [x]"
    folder.mkdir()
    path = saved(folder, smooth(8, 8), "röntgen é.png")
    assert read_image(path).shape == (8, 8)
    assert failure(folder / "fehlt é.png").kind == "missing"


def test_content_counts_not_the_name(tmp_path: Path) -> None:
    image = smooth(32, 32)
    for name in ("a.jpg", "a", "A.DCM", "a.JPG"):
        assert np.array_equal(read_image(stored(tmp_path, encoded(image, "PNG"), name)), image)
    dicom = failure(stored(tmp_path, bytes(128) + b"DICM" + bytes(99), "a.png"))
    assert dicom.kind == "damaged"
    assert sniff(b"") == "unknown"


def test_every_format_that_doctor_names_is_read(tmp_path: Path) -> None:
    named = lingula.doctor()["image_formats"]
    assert set(named) == {"JPEG", "PNG", "TIFF", "BMP", "GIF"}
    levels = np.full((20, 30), 7, np.uint8)
    for name in named:
        Image.fromarray(levels).save(tmp_path / name, format=name)
        assert np.array_equal(read_image(tmp_path / name), levels)


def test_folders_and_locked_files(tmp_path: Path) -> None:
    assert failure(tmp_path).kind == "not an image"
    assert failure(tmp_path / "x.png" / "y.png").kind == "missing"
    with pytest.raises(ImageError):
        read_image("a\0b.png")
    if os.geteuid() == 0:
        pytest.skip("root may read every file")
    path = saved(tmp_path, smooth(8, 8), "locked.png")
    path.chmod(0)
    assert failure(path).kind == "unreadable"


@given(st.binary(min_size=0, max_size=300), st.sampled_from(["JPEG", "PNG", "TIFF", "BMP", "GIF"]))
@settings(max_examples=150, deadline=None)
def test_wild_bytes_raise_only_image_errors(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, kind: str
) -> None:
    whole = encoded(smooth(24, 24), kind)
    data = bytearray(whole)
    for position, value in zip(junk[::2], junk[1::2], strict=False):
        data[(position * 7) % len(data)] ^= value
    path = stored(tmp_path_factory.mktemp("wild"), bytes(data), "wild")
    try:
        image = read_image(path, 16)
    except ImageError:
        return
    assert image.shape == (16, 16) and image.dtype == np.uint8


def test_threads_read_the_same_and_global_settings_stay(tmp_path: Path) -> None:
    from PIL import ImageFile

    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    paths = [saved(tmp_path, smooth(40 + i, 50), f"{i}.{k}") for i in range(5) for k in ("png",)]
    paths += [saved(tmp_path, smooth(60, 50), "x.jpg"), saved(tmp_path, R16, "x.tif")]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda p: read_image(p, 32), paths * 5))
    for i, path in enumerate(paths * 5):
        assert np.array_equal(found[i], read_image(path, 32))
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


def test_reading_imports_no_torch() -> None:
    code = (
        "import sys, lingula.images.reading, lingula.tables.reading, lingula.tables.checking, "
        "lingula.tables.splits, lingula.tables.folder; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_real_radiographs(real_data: Path) -> None:
    for path in sorted((real_data / "nih-mini" / "images").iterdir())[:20]:
        small, whole = read_image(path, 128), read_image(path)
        assert small.shape == (128, 128) and whole.shape == (512, 512)
        assert np.abs(resize(whole, 128).astype(int) - small).mean() < 2
