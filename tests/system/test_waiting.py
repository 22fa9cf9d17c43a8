"""Several processes, one of which makes a thing that the others wait for."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lingula
from lingula.settings.config import Config, vary, write_config
from lingula.system import waiting
from lingula.system.errors import InputError, StoppedError
from lingula.system.signals import Interrupted

LAUNCHED = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "TORCHELASTIC_RUN_ID"),
    *("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_ID"),
)


def second(monkeypatch: pytest.MonkeyPatch, launcher: str) -> None:
    """This process as the second of two that a launcher started."""
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    for name in LAUNCHED:
        if name.startswith("SLURM") == (launcher == "srun"):
            one = name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "SLURM_LOCALID")
            two = name.endswith(("WORLD_SIZE", "TASKS", "PER_NODE"))
            monkeypatch.setenv(name, "1" if one else "2" if two else "0")


@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_the_second_process_waits_for_the_phantom_that_the_first_draws(
    launcher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "phantom"
    second(monkeypatch, launcher)
    monkeypatch.setattr(waiting, "LOOK", 0.01)
    environment = {k: v for k, v in os.environ.items() if k not in LAUNCHED}
    code = f"import lingula; lingula.data_phantom({str(out)!r}, n=60, size=32)"
    with caplog.at_level("INFO", "lingula"):
        first = subprocess.Popen([sys.executable, "-c", code], env=environment)
        table = lingula.data_phantom(out, n=60, size=32)
    assert first.wait() == 0 and table == out / "labels.csv"
    assert len(table.read_text().splitlines()) == 61
    assert "Waiting for the first process" in caplog.text
    with pytest.raises(InputError, match="n: 60 there, 61 now"):
        lingula.data_phantom(out, n=61, size=32)


def test_waiting_ends_by_a_signal_and_where_nothing_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "LOOK", 0.01)
    monkeypatch.setattr(waiting, "PATIENCE", 0.2)
    began = time.monotonic()
    with pytest.raises(StoppedError, match="may have ended before"):
        waiting.waited(lambda: None, "a thing is made", tmp_path)
    assert time.monotonic() - began < 5

    def stop() -> None:
        raise Interrupted(15)

    with pytest.raises(Interrupted):
        waiting.waited(stop, "a thing is made", tmp_path)  # type: ignore[arg-type]

    files = iter(range(1000))

    def look() -> Path | None:
        time.sleep(0.05)  # a file every now and then is a sign of life
        (tmp_path / str(next(files))).touch()
        return tmp_path if time.monotonic() - began > 1.5 else None

    assert waiting.waited(look, "a thing is made", tmp_path) == tmp_path


@pytest.mark.slow
def test_a_run_on_two_processes_draws_its_phantom_once(tiny_config: Config, tmp_path: Path) -> None:
    config = vary(tiny_config, data__table="phantom", optim__epochs=1)
    write_config(config, tmp_path / "c.yaml")
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words += ["-m", "lingula", "train", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "run")]
    done = subprocess.run(
        words, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "finished.json").is_file()
    assert done.stderr.count("Waiting for the first process") == 1
