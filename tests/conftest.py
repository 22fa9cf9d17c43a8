"""Fixtures: a tiny table of real files, a config to go with it, and where real data lie."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from builders import write_tiny
from lingula.settings.config import Config, vary
from lingula.settings.recipes import recipe


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
