"""Reading images: the cases that have hurt people, each with its right value."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lingula.data.folder import scan
from lingula.data.images import is_blank, read_image, read_pixels, resize
from lingula.errors import ImageError, InputError

RAMP = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)


def failure(path: Path) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(path, 32)
    assert path.name in str(caught.value)
    return caught.value.kind


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bit_keeps_its_levels(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(RAMP).save(tmp_path / f"a.{suffix}")
    found = read_image(tmp_path / f"a.{suffix}")
    assert len(np.unique(found)) >= 250
    assert np.abs(found.astype(float) / 255 - RAMP / 65535).max() <= 1 / 255


def test_eight_and_sixteen_bits_of_the_same_film_agree(tmp_path: Path) -> None:
    film = np.random.default_rng(0).integers(0, 256, (64, 48), dtype=np.uint8)
    Image.fromarray(film).save(tmp_path / "8.png")
    Image.fromarray(film.astype(np.uint16) * 257).save(tmp_path / "16.png")
    eight, sixteen = (read_image(tmp_path / f"{b}.png", 32).astype(int) for b in (8, 16))
    assert np.abs(eight - sixteen).max() <= 1


def test_declared_bits(tmp_path: Path) -> None:
    path = tmp_path / "12.png"
    Image.fromarray((np.arange(256) * 16).reshape(16, 16).astype(np.uint16)).save(path)
    assert read_image(path).max() == 16  # one rule for all images: never their own maximum
    assert read_image(path, bits=12).max() == 254
    with pytest.raises(ImageError, match="declared 11 bits"):
        read_image(path, bits=11)


def test_truncated_jpegs_are_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "JPEG")
    whole = stream.getvalue()
    for length in (len(whole) // 2, len(whole) - 2, 100):
        (tmp_path / "cut.jpg").write_bytes(whole[:length])
        assert failure(tmp_path / "cut.jpg") in ("truncated", "damaged")
    # Cut inside, with the end marker put back: the decoder itself must notice.
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2] + b"\xff\xd9")
    assert failure(tmp_path / "cut.jpg") in ("truncated", "damaged")


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "page.png").write_bytes(b"<html>403</html>")
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)).save(
        stream, "PNG"
    )
    png = stream.getvalue()
    at = png.index(b"IDAT")
    (tmp_path / "zeroed.png").write_bytes(png[:at] + b"\0\0\0\0" + png[at + 4 :])
    (tmp_path / "half.png").write_bytes(png[: len(png) // 2])
    (tmp_path / "film.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 50)
    assert failure(tmp_path / "empty.png") == "empty"
    assert failure(tmp_path / "page.png") == "not an image"
    assert failure(tmp_path / "zeroed.png") == "damaged"
    assert failure(tmp_path / "half.png") in ("truncated", "damaged")
    assert failure(tmp_path / "absent.png") == "missing"
    assert failure(tmp_path / "film.dcm") == "unsupported"
    (tmp_path / "folder.png").mkdir()
    assert failure(tmp_path / "folder.png") == "missing"


def bomb(path: Path, side: int) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    squeeze = zlib.compressobj(9)
    body = b"".join(squeeze.compress(b"\0" * (side + 1)) for _ in range(side)) + squeeze.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def test_bombs_are_refused_from_the_header(tmp_path: Path) -> None:
    bomb(tmp_path / "bomb.png", 20000)
    tracemalloc.start()
    assert failure(tmp_path / "bomb.png") == "too large"
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_big_honest_films_are_read(tmp_path: Path) -> None:
    rows = np.linspace(0, 65535, 3520)[None] * np.linspace(0, 1, 4280)[:, None]
    Image.fromarray(rows.astype(np.uint16)).save(tmp_path / "big.png", compress_level=1)
    assert read_image(tmp_path / "big.png", 256).shape == (256, 256)


def test_exif_orientation_is_applied_once(tmp_path: Path) -> None:
    picture = np.zeros((8, 16), np.uint8)
    picture[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(picture).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    found = read_image(tmp_path / "turned.jpg")
    assert found[:, :7].max() < 30 and found[:, 9:].min() > 220


def test_modes(tmp_path: Path) -> None:
    cmyk = np.array([[[0, 0, 0, 0], [0, 0, 0, 255]]], np.uint8).repeat(8, 0).repeat(8, 1)
    Image.frombytes("CMYK", (16, 8), cmyk.tobytes()).save(tmp_path / "c.jpg", quality=100)
    found = read_image(tmp_path / "c.jpg")
    assert found[:, :7].min() > 250 and found[:, 9:].max() < 5
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "1.png")
    assert read_image(tmp_path / "1.png").tolist() == [[0, 255]]
    grey = Image.new("LA", (4, 4), (200, 0))
    grey.save(tmp_path / "la.png")
    assert (read_image(tmp_path / "la.png") == 200).all()  # alpha is ignored
    film = np.random.default_rng(0).integers(0, 256, (20, 20), np.uint8)
    Image.fromarray(film).save(tmp_path / "l.png")
    for mode in ("RGB", "RGBA", "P"):
        Image.fromarray(film).convert(mode).save(tmp_path / f"{mode}.png")
        assert (read_image(tmp_path / f"{mode}.png", 16) == read_image(tmp_path / "l.png", 16)).all()


def test_constant_images_are_blank_and_fine(tmp_path: Path) -> None:
    for value, dtype in ((0, np.uint8), (255, np.uint8), (1234, np.uint16)):
        Image.fromarray(np.full((64, 64), value, dtype)).save(tmp_path / "flat.png")
        assert is_blank(read_image(tmp_path / "flat.png", 32))


def test_resizing_is_antialiased() -> None:
    stripes = np.where(np.isin(np.arange(16) % 4, (1, 2)), 255, 0).astype(np.uint8)
    small = resize(np.tile(stripes, (16, 1)), 4)
    assert np.abs(small.astype(int) - 127).max() <= 12


def test_names_do_not_matter(tmp_path: Path) -> None:
    folder = tmp_path / "Öffentlich 測試 #1"
    folder.mkdir()
    film = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    film.save(folder / "röntgen é.png")
    film.save(tmp_path / "b.PNG", "PNG")
    film.save(tmp_path / "png.jpg", "PNG")
    film.save(tmp_path / "noextension", "PNG")
    (tmp_path / "._b.png").write_bytes(b"junk")
    (tmp_path / "Thumbs.db").write_bytes(b"junk")
    (tmp_path / "notes.txt").write_text("text")
    images, skipped = scan(tmp_path)
    assert images == ("b.PNG", "noextension", "png.jpg", "Öffentlich 測試 #1/röntgen é.png")
    assert sum(skipped.values()) == 3
    for name in images:
        assert (read_image(tmp_path / name) == np.asarray(film)).all()
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="no images"):
        scan(tmp_path / "none")


def test_a_scaled_jpeg_is_close_to_the_full_one(real_data: Path) -> None:
    path = next((real_data / "nih-mini" / "images").iterdir())
    full = resize(read_pixels(path), 128)
    assert np.abs(full.astype(float) - read_image(path, 128)).mean() < 2
