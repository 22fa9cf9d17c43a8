"""Twenty faults put into a copy of real films and their table: one check names them all."""

from __future__ import annotations

import csv
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

import lingula


def _bomb(path: Path) -> None:
    """A PNG whose header states 60,000 x 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    png = (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    )
    path.write_bytes(png + struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND")))


def test_all_are_named(real_data: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(real_data / "nih-64", root)
    with (root / "labels.csv").open(newline="") as stream:
        head, *rows = list(csv.reader(stream))
    at = {name: k for k, name in enumerate(head)}
    images = [root / row[at["image"]] for row in rows]
    original = images[20].read_bytes()

    # Films (cases A and B).
    images[0].write_bytes(b"")
    images[1].write_bytes(images[1].read_bytes()[:200])
    images[2].write_text("<html>404</html>")
    images[3].unlink()
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(images[4])
    _bomb(images[5])
    levels = np.random.default_rng(0).integers(0, 4096, (64, 64)).astype(np.uint16)
    Image.fromarray(levels).save(images[6])
    faint = np.random.default_rng(0).integers(100, 103, (64, 64)).astype(np.uint8)
    Image.fromarray(faint).save(images[7])
    Image.fromarray(np.arange(64 * 300, dtype=np.uint16).astype(np.uint8).reshape(64, 300)).save(
        images[8]
    )
    images[9].write_bytes(b"\0" * 128 + b"DICM" + b"\x02\0\0\0UL\x04\0")
    test = next(i for i, row in enumerate(rows) if row[at["split"]] == "test" and i > 20)
    train = next(i for i, row in enumerate(rows) if row[at["split"]] == "train" and i > 20)
    images[test].write_bytes(original)
    images[train].write_bytes(original)
    rows[10][at["image"]] = "../../elsewhere.png"

    # Ids, splits and labels (cases C).
    other = next(i for i in range(30, len(rows)) if rows[i][at["split"]] == "dev")
    rows[other][at["patient"]] = rows[train][at["patient"]]
    rows[11][at["split"]] = "holdout"
    rows.append(list(rows[12]))
    rows[13][at["Edema"]] = "yes"
    rows[14][at["Mass"]] = "2"
    rows[15][at["patient"]] = "1.2E+10"
    rows[16][at["No_Finding"]] = rows[16][at["Mass"]] = "1"
    rows[17][at["patient"]] = ""
    for row in rows:
        row += ["0", row[at["Effusion"]]]
    table = root / "labels.csv"
    with table.open("w", newline="") as stream:
        csv.writer(stream).writerows([[*head, "Cardiomegally", "Pleural Effusion"], *rows])

    report = lingula.data_check(table)
    assert not report.fit
    named = {fault.what for fault in (*report.problems, *report.warnings)}
    wanted = {
        "images: empty",
        "images: truncated",
        "images: not an image",
        "images: missing",
        "images: blank",
        "images: too large",
        "images: mis-scaled",
        "images: almost without contrast",
        "images: of an odd shape",
        "images with the same pixels",
        "images with the same pixels in two splits",
        "images: outside the data root",
        "patients in more than one split",
        "unknown names of splits",
        "images in more than one row",
        "cells of 'Edema' that are not labels",
        "cells of 'Mass' that are not labels",
        "ids that were rounded",
        "images with No Finding and a finding",
        "images without a patient",
        "columns of the same class",
        "classes without a positive in test",
    }
    assert wanted <= named, sorted(wanted - named)
    # The misspelt class and the cut DICOM are named too, in whichever words.
    everything = " ".join(fault.message for fault in (*report.problems, *report.warnings))
    assert "Cardiomegally" in everything and images[9].name in everything
