"""Several processes, as torchrun starts them, on the CPU with gloo."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import lingula
from builders import torchrun
from lingula.model.checkpoint import load_model, newest_checkpoint
from lingula.scores.predictions import read_scores
from lingula.settings.config import Config, vary, write_config
from lingula.training.run_folder import read_rows

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tiny_config: Config, tmp_path: Path) -> Path:
    return lingula.train(vary(tiny_config, optim__epochs=1), out=tmp_path / "run")


@pytest.mark.parametrize("count", [2, 3])
def test_scores_do_not_depend_on_the_number_of_processes(
    run: Path, tiny_table: Path, tmp_path: Path, count: int
) -> None:
    (tiny_table.parent / "images" / "007.png").write_bytes(b"")
    alone = lingula.predict(run, data=tiny_table, out=tmp_path / "a.csv", batch_size=7, tta="paper")
    words = ["predict", str(run), "--data", str(tiny_table), "--out", str(tmp_path / "b.csv")]
    done = torchrun(count, *words, "--batch-size", "7", "--tta", "paper")
    assert (tmp_path / "b.csv").is_file(), done.stderr
    a, b = read_scores(alone.path), read_scores(tmp_path / "b.csv")
    assert a.images == b.images and len(set(b.images)) == 40
    np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-5)
    assert "007.png" in (tmp_path / "b.failed.csv").read_text()


def test_one_image_on_two_processes(run: Path, tiny_table: Path, tmp_path: Path) -> None:
    """The second has nothing to score, and waits; the score is that of one process."""
    film = tiny_table.parent / "images" / "004.png"
    alone = lingula.predict(run, data=film, out=tmp_path / "a.csv", tta="paper")
    words = ["predict", str(run), "--data", str(film), "--out", str(tmp_path / "b.csv")]
    done = torchrun(2, *words, "--tta", "paper")
    assert done.returncode == 0, done.stderr
    a, b = read_scores(alone.path), read_scores(tmp_path / "b.csv")
    assert a.images == b.images == ("004.png",)
    np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-6)
    assert not list(tmp_path.glob(".b.csv.parts")) and not list(tmp_path.glob("b.failed.csv"))


@pytest.mark.parametrize("count", [2, 3])
def test_training_on_several_processes(tiny_config: Config, tmp_path: Path, count: int) -> None:
    """20 images in batches of 8: uneven shards, and a last batch that is joined to another."""
    write_config(vary(tiny_config, optim__epochs=2), tmp_path / "c.yaml")
    out = tmp_path / "run"
    done = torchrun(count, "train", str(tmp_path / "c.yaml"), "--out", str(out))
    assert done.returncode == 0, done.stderr
    rows = (out / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 2 and (out / "finished.json").is_file()
    assert len(read_scores(out / "scores" / "test.csv")) == 10
    before = (out / "finished.json").stat().st_mtime_ns
    again = torchrun(count, "train", str(tmp_path / "c.yaml"), "--out", str(out))
    assert again.returncode == 0 and (out / "finished.json").stat().st_mtime_ns == before
    other = torchrun(count, "train", str(tmp_path / "c.yaml"), "seed=7", "--out", str(out))
    assert other.returncode != 0 and "seed: 0 there, 7 now" in other.stderr


@pytest.mark.parametrize("count", [2, 3])
def test_the_number_of_processes_changes_no_loss_and_no_mixture(
    tiny_config: Config, tmp_path: Path, count: int
) -> None:
    """Layer norm has no statistics per process, so only rounding may differ; 10 and 10 images.

    MixUp's partners are those of one process, and the loss logged is that of all processes.
    """
    config = vary(
        tiny_config,
        model__encoder="test_vit",
        model__decoder__dropout=0.0,
        augment__mixup=4.0,
        optim__batch_size=10,
        optim__epochs=2,
        optim__lr=1e-4,
    )
    alone = lingula.train(config, out=tmp_path / "alone")
    write_config(config, tmp_path / "c.yaml")
    out = tmp_path / "run"
    done = torchrun(count, "train", str(tmp_path / "c.yaml"), "--out", str(out))
    assert done.returncode == 0, done.stderr
    pairs = zip(*(read_rows(run / "metrics.jsonl") for run in (alone, out)), strict=True)
    assert all(one["loss"] == pytest.approx(many["loss"], abs=1e-5) for one, many in pairs)
    one, many = (load_model(run).network.state_dict() for run in (alone, out))
    for name in one:
        torch.testing.assert_close(one[name], many[name], atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("ema", [None, 0.9])
def test_several_processes_score_the_network_that_is_saved(
    tiny_config: Config, tmp_path: Path, ema: float | None
) -> None:
    """Batch norm's statistics differ between processes until they are averaged."""
    changes = {"optim__epochs": 3, "optim__lr": 1e-2, "optim__ema": ema}
    config = vary(tiny_config, model__encoder="resnet18", **changes)
    write_config(config, tmp_path / "c.yaml")
    out = tmp_path / "run"
    done = torchrun(2, "train", str(tmp_path / "c.yaml"), "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "Batch norm sees only 4 images at a time" in done.stderr
    best = max(row["dev_mAP"] for row in read_rows(out / "metrics.jsonl"))
    lingula.predict(out, data=config.data.table, split="dev", out=tmp_path / "dev.csv")
    found = lingula.evaluate(tmp_path / "dev.csv", labels=config.data.table, split="dev")
    assert found.metrics.mAP == pytest.approx(best, abs=1e-9)
    saved = newest_checkpoint(out / "checkpoints")
    assert saved is not None
    kept = load_model(out).network.state_dict()
    if read_rows(out / "metrics.jsonl")[-1]["best_epoch"] == 3:
        expected = saved["network"] | saved["average"]
        assert all(torch.equal(kept[name], expected[name]) for name in kept)


def test_batches_too_small_for_the_processes_are_refused(
    tiny_config: Config, tmp_path: Path
) -> None:
    """Case 81: also where the number of pieces leaves too little; the name stays free."""
    write_config(vary(tiny_config, optim__epochs=1), tmp_path / "c.yaml")
    out = tmp_path / "run"
    for settings in (("optim.batch_size=2",), ("optim.batch_size=8", "optim.accumulate=4")):
        done = torchrun(2, "train", str(tmp_path / "c.yaml"), *settings, "--out", str(out))
        assert done.returncode != 0 and not out.exists()
        assert "among 2 processes" in done.stderr and "IndexError" not in done.stderr


def test_a_killed_process_ends_the_job_and_the_line_again_continues(
    tiny_config: Config, tmp_path: Path
) -> None:
    """Within a minute, saying which process it was; what was trained before is not lost."""
    write_config(vary(tiny_config, optim__epochs=24), tmp_path / "c.yaml")
    out = tmp_path / "run"
    words = ["train", str(tmp_path / "c.yaml"), "--out", str(out)]
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    with subprocess.Popen(
        [*start, "-m", "lingula", *words],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as job:
        until = time.monotonic() + 120
        while not read_rows(out / "metrics.jsonl"):
            assert time.monotonic() < until and job.poll() is None
            time.sleep(0.05)
        children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        told = job.communicate(timeout=60)[1]
    assert job.returncode != 0 and "SIGKILL" in told
    done = len(read_rows(out / "metrics.jsonl"))
    assert 0 < done < 24
    again = torchrun(2, *words)
    assert again.returncode == 0 and "Continuing at step" in again.stderr, again.stderr
    assert [row["epoch"] for row in read_rows(out / "metrics.jsonl")] == list(range(1, 25))


def srun(count: int, *words: str, job: int) -> list[subprocess.CompletedProcess[str]]:
    """Processes with the variables that srun gives the tasks of a step on one node."""
    step = {
        "SLURM_JOB_ID": job,
        "SLURM_STEP_ID": 0,
        "SLURM_STEP_NUM_TASKS": count,
        "SLURM_STEP_TASKS_PER_NODE": count,
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NODEID": 0,
        "SLURM_JOB_NAME": "interactive",  # of an salloc, which says nothing of the step
        "SLURM_NTASKS_PER_NODE": 7,  # of the batch script, not of the step
        "OMP_NUM_THREADS": 1,
    }
    tasks = [
        subprocess.Popen(
            [sys.executable, "-m", "lingula", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ
            | {k: str(v) for k, v in step.items()}
            | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
        )
        for rank in range(count)
    ]
    return [
        subprocess.CompletedProcess(task.args, code, out, err)
        for task in tasks
        for out, err in [task.communicate(timeout=300)]
        for code in [task.returncode]
    ]


def test_tasks_of_srun_work_together(tiny_config: Config, tmp_path: Path) -> None:
    write_config(vary(tiny_config, optim__epochs=1), tmp_path / "c.yaml")
    words = ["train", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "run")]
    for task in srun(2, *words, job=os.getpid()):
        assert task.returncode == 0, task.stderr
    assert (tmp_path / "run" / "finished.json").is_file()
    both = srun(2, *words, "seed=7", job=os.getpid())
    assert "seed: 0 there, 7 now" in both[0].stderr and both[0].returncode == 2
    assert both[1].returncode == 1 and "another process of this job" in both[1].stderr
    assert "Traceback" not in both[0].stderr + both[1].stderr


API = """
import lingula
from pathlib import Path
run = lingula.train({config!r}, out={out!r})
print("finished:", (run / "finished.json").is_file())
"""


def test_the_python_functions_end_all_processes_together(
    tiny_config: Config, tmp_path: Path
) -> None:
    """The second has nothing to do while the first writes the report: were it to end, its launcher
    could take the first one along."""
    write_config(vary(tiny_config, optim__epochs=1), tmp_path / "c.yaml")
    out = tmp_path / "run"
    (tmp_path / "study.py").write_text(API.format(config=str(tmp_path / "c.yaml"), out=str(out)))
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*start, str(tmp_path / "study.py")],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0 and done.stdout.count("finished: True") == 2, done.stderr
