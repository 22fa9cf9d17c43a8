"""Fixtures: a tiny table of real files, a config to go with it, and where real data lie."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lingula.model.network import Architecture
from lingula.settings.config import Config, vary
from lingula.settings.recipe import recipe

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
CLASSES = ("Cardiomegaly", "Edema", "Fracture", "No Finding")


@pytest.fixture(scope="session", autouse=True)
def signals_as_usual() -> Iterator[None]:
    """Signals do what they do in a terminal, however the tests were started.

    A shell starts a background job with SIGINT ignored, which its children inherit.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may reach the network: whatever connects, fails."""

    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            raise AssertionError(f"a connection to {address} was tried")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def no_page() -> Iterator[None]:
    """Trainings write no page: it takes longer than a tiny training, and has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:  # of its own: tests take theirs back
        patch.setattr("lingula.verbs.report.report", lambda *_, **__: None)
        patch.setattr("lingula.scoring.attention.measure_attention", lambda *_: None)
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real radiographs and scores, or a skip that says that it is absent."""
    place = Path(os.environ.get("LINGULA_TEST_DATA", "../shared/data"))
    if not place.is_dir():
        pytest.skip(f"no real data at {place} (set LINGULA_TEST_DATA)")
    return place.resolve()


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


@pytest.fixture
def tiny_table(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "data")


@pytest.fixture
def tiny_config(tiny_table: Path) -> Config:
    return vary(
        recipe("smoke"),
        data__table=str(tiny_table),
        optim__batch_size=8,
        optim__epochs=2,
        precision="fp32",
    )
