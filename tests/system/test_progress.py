"""Progress lines: the time left is that of what is left, at the speed of this process."""

from __future__ import annotations

import re
import time

import pytest

from lingula.system.progress import progress


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock.monotonic)
    return clock


@pytest.mark.parametrize("before", [0, 214])
def test_the_time_left_after_a_resume(
    clock: Clock, capsys: pytest.CaptureFixture[str], before: int
) -> None:
    """Of 384 steps at one a second, 214 were done before this process: 51 s were told, not 121."""
    with progress("training") as tick:
        clock.now += 20  # loading, before the first step
        for step in range(before + 1, 385):
            clock.now += 1
            tick(step, 384, "epoch")
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(rf"training: {before + 1}/384, epoch", lines[0])  # no speed yet
    assert len(lines) > 8
    for line in lines[1:]:
        found = re.fullmatch(r"training: (\d+)/384, epoch, (\d+) s left", line)
        assert found and abs((384 - int(found[1])) - int(found[2])) <= 1, line


def test_work_in_batches_and_a_second_round(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("scoring") as tick:
        for total in (640, 320):
            for done in range(32, total + 1, 32):
                clock.now += 16
                tick(done, total)
    lines = capsys.readouterr().err.splitlines()
    assert "scoring: 64/640, 288 s left" in lines and "scoring: 64/320, 128 s left" in lines
