"""What several tests build: tiny tables of real files, source trees, weights, processes."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from lingula.cli import main
from lingula.model.encoders import build_encoder
from lingula.model.network import Architecture, Network
from lingula.model.text import orthogonal
from lingula.scores.members import Sample, join_members
from lingula.scores.predictions import Predictions
from lingula.settings.config import Data
from lingula.settings.label_space import CHEXPERT, CXR_LT_2023, LabelSpace, label_space
from lingula.tables.table import BLANK, Table

TINY = Architecture(
    encoder="test_resnet",
    image_size=64,
    classifier="separate",
    width=32,
    layers=2,
    heads=4,
    feedforward=32,
    dropout=0.1,
    positions="none",
    start="normal",
    pooled_path=False,
)


TINY_CLASSES = ("Edema", "Mass", "Hernia", "Pleural Thickening", "No Finding")


def tiny_network(**changes: object) -> Network:
    """A network of `TINY`, or of what is changed in it, with the same weights each time."""
    torch.manual_seed(0)
    return Network(replace(TINY, **changes), orthogonal(TINY_CLASSES, 32))  # type: ignore[arg-type]


def tiny_images(n: int = 3) -> torch.Tensor:
    """Random grey levels (n, 1, 64, 64), the same each time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 1, 64, 64), generator=generator, dtype=torch.uint8)


CLASSES = ("Cardiomegaly", "Edema", "Fracture", "No Finding")


def write_tiny(folder: Path, n: int = 40, size: int = 40) -> Path:
    """n patients with one image each; the first class is visible as a bright half."""
    random = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    lines = ["image,patient,study,split," + ",".join(CLASSES)]
    for i in range(n):
        labels = [int(i % 2 == 0), int(i % 3 == 0), int(i % 5 == 0), 0]
        labels[3] = int(not any(labels))
        pixels = random.integers(0, 120, (size, size), dtype=np.uint8)
        if labels[0]:
            pixels[size // 2 :] += 120
        Image.fromarray(pixels).save(folder / "images" / f"{i:03}.png")
        split = ("train", "train", "dev", "test")[(i // 2) % 4]
        lines.append(f"images/{i:03}.png,p{i},s{i},{split}," + ",".join(map(str, labels)))
    table = folder / "labels.csv"
    table.write_text("\n".join(lines) + "\n")
    return table


def imagenet_of(name: str, folder: Path) -> None:
    """What `fetch` would have brought, with random numbers."""
    from safetensors.torch import save_file

    encoder, _, _ = build_encoder(name, 32)
    save_file(encoder.state_dict(), folder / f"{name}.safetensors")


def typed(*words: object) -> int:
    """What the command line exits with; its signal handlers and its log are taken back."""
    log = logging.getLogger("lingula")
    before = sys.argv, log.handlers[:], log.level, [signal.getsignal(n) for n in (2, 15)]
    sys.argv = ["lingula", *map(str, words)]
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        sys.argv, log.handlers[:] = before[0], before[1]
        log.setLevel(before[2])
        for number, handler in zip((2, 15), before[3], strict=True):
            signal.signal(number, handler)


def torchrun(count: int, *words: str) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*start, f"--nproc-per-node={count}", "-m", "lingula", *words],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


DICOM = "aaaaaaaa-bbbbbbbb-cccccccc-dddddddd-{:08x}"


def film(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "JPEG" if path.suffix == ".jpg" else "PNG")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def csv(path: Path, *lines: str, end: str = "\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(end.join(lines) + end, encoding="utf-8", newline="")
    return path


def cxr_lt_rows(
    first: int, count: int, classes: tuple[str, ...], prefix: str = "", patient: int = 10000000
) -> list[str]:
    """Rows of patients of their own; row i has class i (mod K)."""
    rows = []
    for i in range(first, first + count):
        who, study, name = patient + i, 50000000 + i, DICOM.format(i)
        path = f"files/p{str(who)[:2]}/p{who}/s{study}/{name}.jpg"
        ones = ",".join(str(int(k == i % len(classes))) for k in range(len(classes)))
        rows.append(f"{name},{who},{prefix}{study},PA,postero-anterior,{path},{ones}")
    return rows


HEAD = "dicom_id,subject_id,study_id,ViewPosition,ViewCodeSequence_CodeMeaning,{},{}"


def cxr_lt_2023(folder: Path) -> Path:
    head = HEAD.format("path", ",".join(CXR_LT_2023))
    csv(folder / "train.csv", head, *cxr_lt_rows(0, 26, CXR_LT_2023))
    csv(folder / "development.csv", head, *cxr_lt_rows(26, 3, CXR_LT_2023))
    csv(folder / "test.csv", head, *cxr_lt_rows(29, 4, CXR_LT_2023))
    return folder


def mimic_images(root: Path, numbers: range, below: str = "files/") -> Path:
    for i in numbers:
        who = str(10000000 + i)
        film(root / f"{below}p{who[:2]}/p{who}/s{50000000 + i}/{DICOM.format(i)}.jpg", i)
    return root


NIH_HEAD = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"


def nih_row(number: int, findings: str, age: str = "58", sex: str = "M", end: str = "") -> str:
    return f"{number:08}_000.png,{findings},0,{number},{age},{sex},PA,2682,2749,0.143,0.143{end}"


def nih_tree(folder: Path, rows: list[str], images: bool = True, end: str = "") -> Path:
    csv(folder / "Data_Entry_2017.csv", NIH_HEAD + end, *rows, end="\r\n")
    for i in range(1, len(rows) + 1):
        if images:
            film(folder / f"images_{i:03}" / "images" / f"{i:08}_000.png", i)
    return folder


CHEXPERT_HEAD = "Path,Sex,Age,Frontal/Lateral,AP/PA," + ",".join(CHEXPERT)


def with_labels(
    members: Mapping[str, Predictions],
    targets: object,
    mask: NDArray[np.bool_] | None = None,
    patients: tuple[str, ...] | None = None,
) -> Sample:
    """Members with labels for the first one's rows and classes; cells outside `mask` are blank."""
    first = next(iter(members.values()))
    cells = np.array(targets, dtype=np.float32)
    cells = cells if mask is None else np.where(mask, cells, np.float32(BLANK))
    space = label_space(first.classes)
    return join_members(
        members, Table(first.images, Path(), space, cells, patients=patients), Data()
    )


def table(labels: Any, classes: str = "Edema,Mass", **columns: Any) -> Table:
    """The table of label cells (N, K), of images 0.png, 1.png, ... unless others are given."""
    cells = np.array(labels, dtype=np.float32)
    images = columns.pop("images", tuple(f"{i}.png" for i in range(len(cells))))
    return Table(images, Path(), LabelSpace(tuple(classes.split(","))), cells, **columns)


def scores(rows: Any, classes: str = "Edema,Mass", **columns: Any) -> Predictions:
    """The scores of rows (N, K), of images 0.png, 1.png, ... unless others are given."""
    values = np.array(rows, dtype=float)
    images = columns.pop("images", tuple(f"{i}.png" for i in range(len(values))))
    return Predictions(tuple(classes.split(",")), images, values, **columns)
