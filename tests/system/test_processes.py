"""Which processes work together, those that torchrun or srun started, and waiting for the first."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import lingula
from lingula.settings.config import Config, vary, write_config
from lingula.system import processes
from lingula.system.errors import InputError, StoppedError
from lingula.system.processes import Ranks
from lingula.system.signals import Interrupted

LAUNCHERS = re.compile(
    r"(WORLD_SIZE|RANK|LOCAL_|GROUP_RANK|MASTER_|SLURM_|TORCHELASTIC_|OMPI_|PMI|MV2_|JSM_|LSB_)"
)


def clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not LAUNCHERS.match(name)}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    for name in list(os.environ):
        if LAUNCHERS.match(name):
            monkeypatch.delenv(name)
    yield monkeypatch


def given(environment: pytest.MonkeyPatch, told: Mapping[str, object]) -> Ranks:
    for name, value in told.items():
        environment.setenv(name, str(value))
    return processes.read_ranks()


TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "WORLD_SIZE": 8,
    "RANK": 6,
    "LOCAL_WORLD_SIZE": 4,
    "LOCAL_RANK": 2,
    "GROUP_RANK": 1,
}
STEP = {
    "SLURM_JOB_ID": 77,
    "SLURM_STEP_ID": 3,
    "SLURM_STEP_NUM_TASKS": 6,
    "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
    "SLURM_NTASKS": 6,
    "SLURM_PROCID": 5,
    "SLURM_LOCALID": 1,
    "SLURM_NODEID": 2,
}
BATCH = {
    "SLURM_JOB_ID": 77,
    "SLURM_NTASKS": 2,
    "SLURM_NTASKS_PER_NODE": 2,
    "SLURM_PROCID": 0,
    "SLURM_LOCALID": 0,
    "SLURM_NODEID": 0,
    "SLURM_JOB_NODELIST": "localhost",
}


def test_torchrun_and_srun_start_processes_that_work_together(
    environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert processes.read_ranks() == Ranks() and processes.is_first()
    found = given(environment, STEP)
    assert (
        found == Ranks(6, 5, 2, 1, 2, "srun", "SLURM_STEP_NUM_TASKS=6")
        and found.count // found.local == 3
    )
    # torchrun in a step of Slurm: torchrun's processes, not Slurm's tasks.
    found = given(environment, TORCHRUN)
    assert (
        found == Ranks(8, 6, 4, 2, 1, "torchrun", "WORLD_SIZE=8")
        and found.count // found.local == 2
    )
    assert not processes.is_first()
    processes.warn_if_alone()
    assert not caplog.text


@pytest.mark.parametrize(
    ("told", "local"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "3,3"}, 3),
        ({"SLURM_STEP_TASKS_PER_NODE": "6"}, 6),
        ({"SLURM_STEP_TASKS_PER_NODE": "", "SLURM_NTASKS_PER_NODE": 2}, 2),
        ({"SLURM_STEP_TASKS_PER_NODE": "", "SLURM_NNODES": 2}, 3),
        ({"SLURM_STEP_TASKS_PER_NODE": ""}, 6),
        # The batch script asked for 4 a node, this step for 1.
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x6)", "SLURM_NTASKS_PER_NODE": 4}, 1),
    ],
)
def test_tasks_on_a_node_are_those_of_the_step(
    environment: pytest.MonkeyPatch, told: dict[str, object], local: int
) -> None:
    assert given(environment, STEP | told).local == local


def test_nodes_with_different_numbers_are_refused(environment: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="ntasks-per-node"):
        given(environment, STEP | {"SLURM_STEP_TASKS_PER_NODE": "4,2"})
    with pytest.raises(InputError, match="nproc-per-node"):
        given(environment, TORCHRUN | {"WORLD_SIZE": 6})


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (BATCH, "SLURM_NTASKS=2.*srun did not start.*srun lingula"),
        (BATCH | {"SLURM_JOB_NAME": "bash"}, "SLURM_NTASKS=2"),
        ({"SLURM_NTASKS": 2}, "SLURM_NTASKS=2"),
        # A shell within an allocation: a step of Slurm's own, or one with a terminal.
        (BATCH | {"SLURM_STEP_ID": 4294967290, "SLURM_STEP_NUM_TASKS": 1}, "SLURM_NTASKS=2"),
        (BATCH | {"SLURM_STEP_ID": 0, "SLURM_PTY_PORT": 4711}, "SLURM_NTASKS=2"),
        # A step of a single task in an allocation for more.
        (BATCH | {"SLURM_STEP_ID": 0, "SLURM_STEP_NUM_TASKS": 1}, None),
        ({"WORLD_SIZE": 2, "RANK": 0, "LOCAL_RANK": 0, "MASTER_ADDR": "10.255.255.1"}, "torchrun"),
        ({"WORLD_SIZE": 2}, "WORLD_SIZE=2"),
        # What is left of torchrun when a part of it was unset.
        ({"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": 2, "RANK": 0}, "WORLD_SIZE=2"),
        ({"OMPI_COMM_WORLD_SIZE": 4, "OMPI_COMM_WORLD_RANK": 0}, "OMPI_COMM_WORLD_SIZE=4"),
        ({"PMI_SIZE": 4, "PMI_RANK": 0}, "PMI_SIZE=4"),
        ({"LSB_JOBID": 1, "JSM_NAMESPACE_RANK": 0, "JSM_NAMESPACE_SIZE": 1}, None),
        ({"RANK": 0, "LOCAL_RANK": 0}, None),
        ({"RANK": 1}, None),
        ({"WORLD_SIZE": "", "RANK": "x", "SLURM_NTASKS": "two"}, None),
        ({"WORLD_SIZE": 1, "RANK": 0}, None),
    ],
)
def test_what_others_leave_behind_makes_no_group(
    environment: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    told: dict[str, object],
    words: str | None,
) -> None:
    found = given(environment, told)
    assert (found.count, found.rank) == (1, 0) and processes.is_first()
    processes.warn_if_alone()
    assert (not caplog.text) if words is None else re.search(words, caplog.text)


@pytest.mark.parametrize(
    "told",
    [
        {"WORLD_SIZE": 2, "RANK": 1},
        {"OMPI_COMM_WORLD_SIZE": 2, "OMPI_COMM_WORLD_RANK": 1},
        {"PMI_SIZE": 2, "PMI_RANK": 1},
    ],
)
def test_one_of_several_that_nobody_joined_does_not_do_the_first_ones_work(
    environment: pytest.MonkeyPatch, told: dict[str, object]
) -> None:
    with pytest.raises(InputError, match=r"process 1 of 2 .*unset"):
        given(environment, told)


MEET = """
import sys
from lingula.system import meeting, processes, signals
from lingula.system.errors import InputError, StoppedError
import logging
logging.basicConfig(format="%(message)s", level=logging.INFO)
signals.stop_at_once()
meeting.FIRST_WORD, meeting.AGENT_PATIENCE = 0.3, 1.0
try:
    place = meeting.meet(processes.read_ranks())
    print("met")
except signals.Interrupted as asked:
    sys.exit(asked.status)
except (InputError, StoppedError) as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def meet(
    rank: int, told: Mapping[str, object] | None = None, step: int = 0
) -> subprocess.Popen[str]:
    srun = BATCH | {
        "SLURM_STEP_ID": step,
        "SLURM_STEP_NUM_TASKS": 2,
        "SLURM_JOB_ID": os.getpid(),
        "SLURM_PROCID": rank,
        "SLURM_LOCALID": rank,
        "SLURM_STEP_NODELIST": "localhost",
    }
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(MEET)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean() | {k: str(v) for k, v in (srun if told is None else told).items()},
    )


def test_the_wait_for_others_says_for_whom_and_ends_with_them() -> None:
    second = meet(1)
    assert second.stderr is not None
    said = second.stderr.readline()
    assert re.match("Waiting for the first of 2 processes.*refused", said), said
    first = meet(0)
    for process in (first, second):
        out, wrong = process.communicate(timeout=60)
        assert process.returncode == 0 and out == "met\n", wrong


def test_the_first_signal_ends_the_wait() -> None:
    """Of the first process, which waits to be found, and of another one, which looks for it."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    words = ("Waiting for 1 of 2 processes", "Waiting for the first of 2 processes")
    # Two steps of one job, that do not find each other.
    waiting = [meet(rank, step=rank) for rank in (0, 1)]
    for process, number, word in zip(waiting, numbers, words, strict=True):
        assert process.stderr is not None
        said = process.stderr.readline()
        assert said.startswith(word) and "SLURM_STEP_NUM_TASKS=2 in the environment" in said, said
        began = time.monotonic()
        process.send_signal(number)
        process.communicate(timeout=30)
        assert process.returncode == 128 + number and time.monotonic() - began < 5


def test_a_shell_left_from_torchrun_is_told_so() -> None:
    told = TORCHRUN | {"TORCHELASTIC_USE_AGENT_STORE": True, "MASTER_ADDR": "127.0.0.1"}
    left = meet(0, told | {"MASTER_PORT": 1})
    _, wrong = left.communicate(timeout=60)
    assert left.returncode == 1 and re.search("InputError.*torchrun.*unset TORCHELASTIC", wrong)


def test_a_process_that_waits_in_a_library_ends_too() -> None:
    """Python's handlers never run while C waits; batch systems would have to kill."""
    deaf = """
        import ctypes
        from lingula.system import signals
        signals.stop_at_once()
        signals.end_if_deaf(0.5)
        libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
        libc.pthread_mutex_lock(mutex)
        print("ready", flush=True)
        libc.pthread_mutex_lock(mutex)  # for ever
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(deaf)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(1)  # until it waits in C
        process.send_signal(signal.SIGTERM)
        wrong = process.communicate(timeout=20)[1]
    assert process.returncode == 143 and "SIGTERM" in wrong


SECOND = {
    "torchrun": TORCHRUN | {"WORLD_SIZE": 2, "RANK": 1, "LOCAL_WORLD_SIZE": 2, "LOCAL_RANK": 1},
    "srun": STEP
    | {"SLURM_STEP_NUM_TASKS": 2, "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_PROCID": 1}
    | {"SLURM_NODEID": 0},
}


@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_the_second_process_waits_for_the_phantom_that_the_first_draws(
    launcher: str, tmp_path: Path, environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "phantom"
    assert given(environment, SECOND[launcher]).rank == 1
    environment.setattr(processes, "LOOK", 0.01)
    code = f"import lingula; lingula.data_phantom({str(out)!r}, n=60, size=32)"
    with caplog.at_level("INFO", "lingula"):
        first = subprocess.Popen([sys.executable, "-c", code], env=clean())
        table = lingula.data_phantom(out, n=60, size=32)
    assert first.wait() == 0 and table == out / "labels.csv"
    assert len(table.read_text().splitlines()) == 61
    assert "Waiting for the first process" in caplog.text
    with pytest.raises(InputError, match="n: 60 there, 61 now"):
        lingula.data_phantom(out, n=61, size=32)


def test_waiting_ends_by_a_signal_and_where_nothing_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "LOOK", 0.01)
    monkeypatch.setattr(processes, "PATIENCE", 0.2)
    began = time.monotonic()
    with pytest.raises(StoppedError, match="may have ended before"):
        processes.wait_for_first(lambda: None, "a thing is made", tmp_path)
    assert time.monotonic() - began < 5

    def stop() -> None:
        raise Interrupted(15)

    with pytest.raises(Interrupted):
        processes.wait_for_first(stop, "a thing is made", tmp_path)  # type: ignore[arg-type]

    files = iter(range(1000))

    def look() -> Path | None:
        time.sleep(0.05)  # a file every now and then is a sign of life
        (tmp_path / str(next(files))).touch()
        return tmp_path if time.monotonic() - began > 1.5 else None

    assert processes.wait_for_first(look, "a thing is made", tmp_path) == tmp_path


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
