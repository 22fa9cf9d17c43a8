"""Which processes work together: only those that torchrun or srun started."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping

import pytest

from lingula.system import processes
from lingula.system.errors import InputError
from lingula.system.processes import Ranks

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
    return processes.here()


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
    environment: pytest.MonkeyPatch,
) -> None:
    assert processes.here() == Ranks() and processes.is_first() and processes.notice() is None
    found = given(environment, STEP)
    assert found == Ranks(6, 5, 2, 1, 2, "srun", "SLURM_STEP_NUM_TASKS=6") and found.nodes == 3
    # torchrun in a step of Slurm: torchrun's processes, not Slurm's tasks.
    found = given(environment, TORCHRUN)
    assert found == Ranks(8, 6, 4, 2, 1, "torchrun", "WORLD_SIZE=8") and found.nodes == 2
    assert not processes.is_first() and processes.notice() is None


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
    environment: pytest.MonkeyPatch, told: dict[str, object], words: str | None
) -> None:
    found = given(environment, told)
    assert (found.count, found.rank) == (1, 0) and processes.is_first()
    said = processes.notice()
    assert (said is None) if words is None else re.search(words, said or "")


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
meeting._FIRST_WORD, meeting.AGENT_PATIENCE = 0.3, 1.0
try:
    place = meeting.meet(processes.here())
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
