"""Damaged files of every kind: an `ImageError` or a grey image, within 10 s and 512 MiB each."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dicom_files import BASELINE, ENCODED, LOSSLESS_JPEG, PLAIN, TWELVE, dcm, encoded, restored

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")


def film(size: int) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    waves = np.sin(rows / 9.0) + np.cos(columns / 7.0) + 2
    noise = np.random.default_rng(0).normal(0, 0.05, (size, size))
    return np.clip((waves + noise) / 4, 0, 1)


def sound_files(folder: Path) -> None:
    """One file of every kind and syntax, in `folder`/sound."""
    sound = folder / "sound"
    sound.mkdir()
    twelve = (film(96) * 4095).astype(np.uint16)
    eight = (film(96) * 255).astype(np.uint8)
    window = {"WindowCenter": 2048, "WindowWidth": 4096, "PixelPaddingValue": 0}
    for i, syntax in enumerate((*PLAIN, *ENCODED, *LOSSLESS_JPEG)):
        restored(dcm(twelve, 12, "MONOCHROME1", **window), syntax, sound / f"{i:02}.dcm")
        restored(dcm(eight, 8), syntax, sound / f"{i:02}-8.dcm")
    restored(dcm(eight, 8), BASELINE, sound / "jpeg.dcm")
    encoded(dcm(twelve[:24, :24], 12), "1.2.840.10008.1.2.4.51", TWELVE, sound / "12.dcm")
    red = np.stack([eight, eight // 2, eight], axis=-1)
    colour = dcm(red, 8, "RGB", SamplesPerPixel=3, PlanarConfiguration=0)
    for i, syntax in enumerate((PLAIN[1], *ENCODED, LOSSLESS_JPEG[1])):
        restored(colour, syntax, sound / f"c{i}.dcm")
    for name, image, options in (
        ("8.png", eight, {}),
        ("16.png", twelve * 16, {}),
        ("rgb.png", red, {}),
        ("grey.jpg", eight, {"quality": 90}),
        ("rgb.jpg", red, {}),
        ("progressive.jpg", eight, {"progressive": True}),
    ):
        stream = io.BytesIO()
        kind = "JPEG" if name.endswith("jpg") else "PNG"
        Image.fromarray(image).save(stream, kind, **options)
        (sound / name).write_bytes(stream.getvalue())


def fuzz(folder: Path, first: int, count: int) -> dict[str, object]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            Path(__file__).parents[1] / "fuzz_images.py",
            folder,
            str(first),
            str(count),
        ],
        capture_output=True,
        text=True,
        env=env,
    )
    number = folder / "number"
    at = number.read_text() if number.exists() else "the sound files"
    assert done.returncode == 0, f"ended by {done.returncode} at {at}: {done.stderr[-2000:]}"
    assert "panicked" not in done.stderr, done.stderr[:2000]
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_200_damaged_files(tmp_path: Path) -> None:
    sound_files(tmp_path)
    found = fuzz(tmp_path, 0, 200)
    assert found["wrong"] == []
    assert len(found["outcomes"]) >= 4  # type: ignore[arg-type]


@pytest.mark.slow
def test_5000_damaged_files(tmp_path: Path) -> None:
    sound_files(tmp_path)
    found = fuzz(tmp_path, 1000, 5000)
    assert found["wrong"] == []


def test_the_limits_bite(tmp_path: Path) -> None:
    """A reader that takes 600 MiB is noticed: otherwise the tests above could not fail."""
    sound_files(tmp_path)
    for path in (tmp_path / "sound").iterdir():
        if path.name != "8.png":
            path.unlink()
    code = (
        "import sys, pathlib, numpy, fuzz_images\n"
        "old = fuzz_images.look\n"
        "calls = []\n"
        "def look(path):\n"
        "    calls.append(1)\n"
        "    return str(numpy.ones(600 << 20, 'u1').size) if len(calls) > 1 else old(path)\n"
        "fuzz_images.look = look\n"
        "fuzz_images.main(pathlib.Path(sys.argv[1]), 0, 1)\n"
    )
    env = {
        **os.environ,
        "PYTHONPATH": f"{Path(__file__).parents[1]}:{os.environ.get('PYTHONPATH', '')}",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, env=env
    )
    assert "MemoryError" in done.stdout
