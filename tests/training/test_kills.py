"""The commands killed and started again: two kills each here, many by `python tests/kills.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

import kills


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "predict", "cache", "reproduce"])
def test_nothing_is_lost(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert kills.main([name, "--kills", "2", "--work", str(tmp_path)]) == 0
    assert f"{name}: 0 losses in 2 kills" in capsys.readouterr().out
