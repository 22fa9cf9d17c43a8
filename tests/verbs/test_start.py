"""`lingula start`: one line from a table to a model, continued by the same line."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lingula
from builders import typed, write_tiny
from lingula.bench.speed import Speed
from lingula.planning.budget import Level
from lingula.scores.predictions import read_scores
from lingula.settings.config import Config
from lingula.system.errors import InputError
from lingula.training.examples import Sizes

SETTINGS = (
    "model.encoder=test_resnet.r160_in1k",
    "model.image_size=32",
    "model.decoder.width=32",
    "model.decoder.feedforward=32",
    "model.stage=0",
    "optim.epochs=2",
    "optim.batch_size=8",
    "precision=fp32",
)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Steps are not timed, and trainings run in this process; the list of those that did."""
    ran: list[str] = []

    def measure(configs: Sequence[Config], _: object) -> list[Speed]:
        return [Speed(c, 20, 0.1, 0.01, 0.01, 0.0, None, Sizes(10**6, 0)) for c in configs]

    def run(jobs: Sequence[Any], *_: object) -> None:
        for job in jobs:
            if not (job.run / "finished.json").is_file():
                ran.append(job.run.name)
                lingula.train(job.words[1], job.words[2:-2], out=job.words[-1])

    monkeypatch.setattr("lingula.planning.making.measure", measure)
    monkeypatch.setattr("lingula.planning.making.LEVELS", (Level(32, 2),))
    monkeypatch.setattr("lingula.planning.training_jobs.run_jobs", run)
    return ran


def start(folder: Path, table: Path, **more: Any) -> Any:
    return lingula.start(table, SETTINGS, out=folder, folds=2, **more)


@pytest.mark.usefixtures("no_page")
def test_a_table_becomes_a_model(tmp_path: Path, here: list[str]) -> None:
    table = write_tiny(tmp_path / "data", 60)
    before = {path: path.read_bytes() for path in table.parent.rglob("*") if path.is_file()}
    made = start(tmp_path / "m", table)
    folder = made.folder
    assert here == ["linear-1", "decoder-1", "linear-2", "decoder-2"]
    assert made.summary
    assert made.next[0].startswith(f"lingula predict {folder}")
    # The same line finds it finished, and nothing of the table was touched.
    again = start(tmp_path / "m", table)
    assert (again.summary, len(here)) == (made.summary, 4)
    assert all(path.read_bytes() == content for path, content in before.items())
    # It is a model, whose scores are the weighted mean of its members' scores.
    lingula.predict(folder, data=folder / "table.csv", split="test", out=tmp_path / "t.csv")
    total = read_scores(tmp_path / "t.csv")
    assert np.array_equal(
        total.probabilities, read_scores(folder / "scores" / "test.csv").probabilities
    )
    ensemble = json.loads((folder / "ensemble.json").read_text())
    members = []
    for name in ensemble["members"]:
        out = tmp_path / f"{name}.csv"
        run = folder / "runs" / name
        lingula.predict(run, data=folder / "table.csv", split="test", out=out)
        members.append((name, out))
    applied = lingula.ensemble_apply(folder / "ensemble.json", members, out=tmp_path / "a.csv")
    assert np.allclose(read_scores(applied).probabilities, total.probabilities, atol=1e-7, rtol=0)
    # Every image of the folds has a score by a model that did not see its patient.
    pooled = read_scores(folder / "scores" / "dev.csv")
    assert set(pooled.images).isdisjoint(total.images)
    assert len(pooled.images) + len(total.images) == 60
    calibration = json.loads((folder / "calibration.json").read_text())
    assert calibration["of"] == "members"
    lingula.predict(
        folder, data=folder / "table.csv", split="test", out=tmp_path / "c.csv", calibrated=True
    )
    # It may be moved as a whole.
    moved = folder.rename(tmp_path / "elsewhere")
    again = lingula.calibrate(moved, out=tmp_path / "calibration.json")
    assert json.loads(again.read_text())["classes"] == calibration["classes"]
    lingula.predict(moved, data=moved / "table.csv", split="test", out=tmp_path / "moved.csv")
    assert (tmp_path / "moved.csv").read_bytes() == (tmp_path / "t.csv").read_bytes()


@pytest.mark.usefixtures("no_page")
def test_a_plan_is_followed_again(tmp_path: Path, here: list[str]) -> None:
    table = write_tiny(tmp_path / "data", 60)
    dry = start(tmp_path / "m", table, dry_run=True)
    assert not here
    assert "in all" in dry.plan[-1]
    assert {path.name for path in dry.folder.iterdir()} == {"plan.yaml"}
    first = start(tmp_path / "m", table)
    second = lingula.start(first.folder / "plan.yaml", out=tmp_path / "n")
    for name in ("dev", "test"):
        a, b = (one.folder / "scores" / f"{name}.csv" for one in (first, second))
        assert a.read_bytes() == b.read_bytes()
    with pytest.raises(InputError, match="no key=value"):
        lingula.start(first.folder / "plan.yaml", ["seed=1"], out=tmp_path / "o")


@pytest.mark.usefixtures("no_page")
def test_other_wishes_need_another_folder(tmp_path: Path, here: list[str]) -> None:
    table = write_tiny(tmp_path / "data", 60)
    start(tmp_path / "m", table, dry_run=True)
    with pytest.raises(InputError, match=r"time: 1h -> 2h|other settings"):
        start(tmp_path / "m", table, time="2h", dry_run=True)
    start(tmp_path / "m", table, time="2h", dry_run=True, overwrite=True)
    assert (tmp_path / "m.old-1" / "plan.yaml").is_file()
    table.write_text(table.read_text().replace("p1,", "p01,", 1))
    with pytest.raises(InputError, match="table_sha256"):
        start(tmp_path / "m", table, time="2h", dry_run=True)
    assert not here


@pytest.mark.usefixtures("no_page")
def test_trainings_never_see_the_test_images(tmp_path: Path, here: list[str]) -> None:
    """Without their files everything works up to the scoring of the test split."""
    table = write_tiny(tmp_path / "data", 60)
    rows = [line.split(",") for line in table.read_text().splitlines()[1:]]
    test = [tmp_path / "data" / row[0] for row in rows if row[3] == "test"]
    for path in test:
        path.rename(path.with_suffix(".away"))
    jobs = start(tmp_path / "m", table, print_jobs=True).jobs
    assert len(jobs) == 4
    for line in jobs:
        assert typed(*line.split()[2:]) == 0
    for path in test:
        path.with_suffix(".away").rename(path)
    done = start(tmp_path / "m", table)
    assert not here  # all had been trained by the lines
    assert len(read_scores(done.folder / "scores" / "test.csv").images) == len(test)


def test_faults_of_the_table_stop_it(tmp_path: Path, here: list[str]) -> None:
    table = write_tiny(tmp_path / "data", 60)
    next(iter((tmp_path / "data" / "images").iterdir())).write_bytes(b"no image")
    with pytest.raises(InputError, match="data check"):
        start(tmp_path / "m", table)
    assert not (tmp_path / "m").exists()
    assert typed("start", tmp_path / "none.csv", "--out", tmp_path / "m") == 2
    assert typed("start", table, "--out", tmp_path / "m", "--time", "soon") == 2
    assert not here


@pytest.mark.slow
def test_a_stopped_start_goes_on_to_the_same_scores(tmp_path: Path) -> None:
    """By real processes: timed, stopped in the middle, continued; and the plan once more."""
    table = write_tiny(tmp_path / "data", 60)
    words = [str(table), *SETTINGS, "--folds", "2", "--time", "20m", "--out", str(tmp_path / "m")]
    command = [sys.executable, "-m", "lingula", "start", *words, "optim.epochs=4"]
    subprocess.run([*command, "--dry-run"], check=True, capture_output=True)
    plan = (tmp_path / "m" / "plan.yaml").read_text()
    (tmp_path / "m" / "plan.yaml").write_text(plan.replace("\n  seeds: 3", "\n  seeds: 1"))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    limit = time.monotonic() + 120
    while not list((tmp_path / "m" / "runs").glob("*/metrics.jsonl")):
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < limit
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert "the same line again continues" in said
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Next:" in done.stdout
    shutil.copy(tmp_path / "m" / "plan.yaml", tmp_path / "plan.yaml")
    again = [*command[:4], str(tmp_path / "plan.yaml"), "--out", str(tmp_path / "n")]
    subprocess.run(again, check=True, capture_output=True, timeout=300)
    for name in ("dev", "test"):
        a, b = (tmp_path / one / "scores" / f"{name}.csv" for one in "mn")
        assert a.read_bytes() == b.read_bytes()
