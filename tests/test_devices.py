"""Devices and number formats: what `auto` becomes, and on what."""

from __future__ import annotations

import logging

import pytest
import torch

from lingula.config import Config, vary
from lingula.devices import resolve_device


@pytest.fixture
def older_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA device of before Ampere: torch emulates bfloat16 on it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation
    )


@pytest.mark.usefixtures("older_card")
def test_a_card_that_emulates_bfloat16_trains_in_fp32(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lingula")
    found = resolve_device(Config())
    assert (found.device, found.precision) == ("cuda", "fp32")
    assert "Tesla T4 has no bfloat16" in caplog.text and "precision=fp32" in caplog.text
    caplog.clear()
    assert resolve_device(vary(Config(), precision="fp32")).precision == "fp32"
    assert not caplog.records
    # Asked for by name, it is done, and said.
    assert resolve_device(vary(Config(), precision="bf16")).precision == "bf16"
    assert "emulated, and slow" in caplog.text


@pytest.mark.usefixtures("older_card")
def test_a_newer_card_trains_in_bfloat16(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert resolve_device(Config()).precision == "bf16" and not caplog.records
