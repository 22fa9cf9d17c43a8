"""What the demo says before it starts; the demo itself is run by `test_cli.py`."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest

from lingula.settings.recipes import recipe
from lingula.system.progress import format_seconds
from lingula.verbs import demo
from lingula.verbs.demo import FULL, Rates, announce, estimate_seconds

RATES = Rates(drawn=50.0, trained=40.0, scored=150.0)


def test_the_estimate_follows_from_the_rates_measured() -> None:
    once = estimate_seconds(RATES, FULL)
    assert once[0] == pytest.approx(FULL.images / 50)
    twice = estimate_seconds(Rates(100.0, 80.0, 300.0), FULL)
    assert twice == pytest.approx([seconds / 2 for seconds in once])
    longer = estimate_seconds(RATES, replace(FULL, epochs=FULL.epochs + 1))
    epoch = FULL.images * (0.6 / 40 + 0.15 / 150)
    assert longer[1] - once[1] == pytest.approx(epoch) and longer[2:] == once[2:]


def test_the_rates_are_those_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "TIMED", (30, 0.05))
    small = replace(demo.QUICK, encoder="test_resnet.r160_in1k", side=32, pixels=32)
    found = demo.measure_rates(recipe("smoke"), small)
    assert found.drawn > 0 and found.scored > found.trained > 0


def test_what_will_be_done_is_said_part_by_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(demo, "measure_rates", lambda config, size: RATES)
    with caplog.at_level(logging.INFO, "lingula"):
        announce(tmp_path, recipe("demo"), FULL)
    parts = re.findall(r"^  (\d)\. .*: about (.*)$", "\n".join(caplog.messages), re.MULTILINE)
    seconds = estimate_seconds(RATES, FULL)
    assert parts == [(str(i), format_seconds(took)) for i, took in enumerate(seconds, start=1)]
    assert f"about {format_seconds(sum(seconds))} on this machine" in caplog.text

    caplog.clear()
    for name in ("first", "mixup"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "finished.json").write_text("{}")
    (tmp_path / "phantom").mkdir()
    (tmp_path / "phantom" / "labels.csv").write_text("")
    monkeypatch.delattr(demo, "measure_rates")  # nothing is timed where all is there
    with caplog.at_level(logging.INFO, "lingula"):
        announce(tmp_path, recipe("demo"), FULL)
    assert caplog.text.count("done already") == 3 and "about" not in caplog.text


def test_times_are_said_as_one_says_them() -> None:
    assert [format_seconds(s) for s in (4.4, 89, 90, 300, 5399, 7200)] == [
        "4 seconds",
        "89 seconds",
        "2 minutes",
        "5 minutes",
        "90 minutes",
        "2 hours",
    ]
