"""The trainings of a plan: as lines for a shell or a cluster, and run here, several at once."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lingula.planning.budget import Machine
from lingula.planning.plan import PLAN, StartPlan
from lingula.system import signals
from lingula.system.errors import StoppedError
from lingula.training.run_folder import is_finished, read_rows

log = logging.getLogger("lingula")

WAIT = 0.5  # seconds between looks at the trainings
PATIENCE = 120.0  # seconds that an interrupted training has to save its checkpoint
INTERRUPTED = (130, 143, -signal.SIGINT, -signal.SIGTERM)


@dataclass(frozen=True)
class Job:
    """One training: its run folder, its fold and seed, and the arguments of `lingula`."""

    run: Path
    design: str
    fold: int
    seed: int
    words: tuple[str, ...]


def fold_table(folder: Path, fold: int) -> Path:
    """The table of a fold: its own images are `dev`, those of all other folds are `train`."""
    return folder / "folds" / f"fold-{fold + 1}.csv"


def jobs_of(plan: StartPlan, folder: Path) -> list[Job]:
    """The trainings of a plan, those that end first first."""
    found = []
    # The plan's own tables do not have the columns that the user's table is read without.
    of_table = {"data.ignore_columns": "[]"} if plan.config.data.ignore_columns else {}
    for seed in range(plan.seeds):
        for fold in range(plan.folds):
            for design, changes in plan.designs.items():
                name = f"{design}-{fold + 1}" + (f"-seed{seed}" if plan.seeds > 1 else "")
                run = folder / "runs" / name
                settings = {**of_table, "data.table": fold_table(folder, fold), **changes}
                settings["seed"] = plan.config.seed + seed
                words = ("train", str(folder / PLAN), *(f"{k}={v}" for k, v in settings.items()))
                found.append(Job(run, design, fold, seed, (*words, "--out", str(run))))
    return found


def job_lines(jobs: Sequence[Job], threads: int) -> list[str]:
    """The jobs that are not finished as lines for a shell."""
    start = f"OMP_NUM_THREADS={threads} lingula "
    return [start + shlex.join(job.words) for job in jobs if not is_finished(job.run)]


def environment(machine: Machine, place: int) -> dict[str, str]:
    """The environment of a process that has one share of the machine, the one of number `place`."""
    own = {**os.environ, "OMP_NUM_THREADS": str(machine.threads)}
    if machine.device == "cuda" and machine.parallel > 1:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        own["CUDA_VISIBLE_DEVICES"] = seen[place] if len(seen) > place and seen[0] else str(place)
    return own


def run_jobs(
    jobs: Sequence[Job],
    machine: Machine,
    logs: Path,
    tick: Callable[[int, int, str], None],
    epochs: int,
) -> None:
    """Run what is not finished, `machine.parallel` at once; `tick` gets epochs done, of how many.

    A signal goes on to the trainings, which save a checkpoint, and ends the call.

    Raises:
        StoppedError: a training failed; the message has the last lines of its log.
        Interrupted: asked to stop.
    """
    waiting = [job for job in jobs if not is_finished(job.run)]
    places = list(range(machine.parallel))
    running: dict[subprocess.Popen[bytes], tuple[Job, int]] = {}
    logs.mkdir(parents=True, exist_ok=True)
    try:
        while waiting or running:
            while waiting and places:
                job, place = waiting.pop(0), places.pop(0)
                running[_begin(job, environment(machine, place), logs)] = (job, place)
            time.sleep(WAIT)
            for process in [one for one in running if one.poll() is not None]:
                job, place = running.pop(process)
                places.append(place)
                _check_ended(process.returncode, job, logs)
            done = sum(
                epochs if is_finished(job.run) else len(read_rows(job.run / "metrics.jsonl"))
                for job in jobs
            )
            finished = sum(is_finished(job.run) for job in jobs)
            tick(done, epochs * len(jobs), f"{finished} of {len(jobs)} models")
    finally:
        _end(list(running))


def _begin(job: Job, environment: dict[str, str], logs: Path) -> subprocess.Popen[bytes]:
    with (logs / f"{job.run.name}.log").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "lingula", *job.words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
        )


def _check_ended(status: int, job: Job, logs: Path) -> None:
    """Pass on how a training ended; 3 means that images could not be scored, which it logged."""
    path = logs / f"{job.run.name}.log"
    if status in INTERRUPTED:
        raise signals.Interrupted(status - 128 if status > 0 else -status)
    if status == 3:
        log.warning("%s: some images can't be read (%s).", job.run.name, path)
    elif status != 0:
        last = path.read_text(encoding="utf-8", errors="replace").splitlines()[-4:]
        raise StoppedError(
            f"The training {job.run.name} failed with status {status}:\n  "
            + "\n  ".join(last)
            + f"\nIts log is {path}. The same line again continues."
        )


def _end(running: Sequence[subprocess.Popen[bytes]]) -> None:
    """Let the trainings save their checkpoints and end; those that don't are killed."""
    for process in running:
        process.send_signal(signal.SIGTERM)
    limit = time.monotonic() + PATIENCE
    for process in running:
        try:
            process.wait(max(0.0, limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
