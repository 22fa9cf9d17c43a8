"""How many processes work together, which of them this one is, and waiting for the first one.

`read_ranks` alone decides it, without torch. torchrun and srun start processes that work together.
Nothing else does: what other launchers, notebooks and batch scripts leave in the environment makes
no group, and a process that it names works alone, or is refused where it would be one of several.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

from lingula.system.errors import InputError, StoppedError

log = logging.getLogger("lingula")

LOOK, TELL, PATIENCE = 1.0, 60.0, 600.0  # seconds


@dataclass(frozen=True)
class Ranks:
    """The processes of one job, and this one among them.

    Attributes:
        count: processes that work together.
        rank: this one's number among them.
        local: processes on this node, the same on every node.
        local_rank: this one's number among those.
        node: this node's number.
        launcher: who started them.
        variable: the one that says how many there are, for messages: `WORLD_SIZE=8`.
    """

    count: int = 1
    rank: int = 0
    local: int = 1
    local_rank: int = 0
    node: int = 0
    launcher: Literal["torchrun", "srun", "none"] = "none"
    variable: str = ""


def read_ranks() -> Ranks:
    """The processes that torchrun or srun started; one alone where neither did.

    Raises `InputError` for a process that another launcher names as one of several but not the
    first: alone, it would do the first one's work a second time.
    """
    found = _torchrun() or _srun()
    if found is not None:
        return found
    for launcher, size, number, _ in _OTHERS:
        count, rank = _number(size), _number(number)
        if count is not None and rank is not None and count > 1 and rank > 0:
            raise InputError(
                f"This is process {rank} of {count} by {number}={rank} and {size}={count} in the "
                f"environment{launcher}, but neither torchrun nor srun started it. Several "
                "processes are started by one of these two; one alone: "
                f"`unset {number} {size}` first."
            )
    return Ranks()


def is_first() -> bool:
    """Whether this is the first, or the only, process."""
    return read_ranks().rank == 0


def warn_if_alone() -> None:
    """One warning where this process works alone although the environment speaks of several."""
    if read_ranks().launcher != "none":
        return
    for _, size, _, advice in _OTHERS:
        count = _number(size)
        if count is not None and count > 1:
            words = advice.format(count=count)
            log.warning("%s=%d is in the environment, but %s", size, count, words)
            return


_ALONE = "this process works alone. For {count} processes: "
_TORCHRUN = (
    "torchrun did not start this process: "
    + _ALONE
    + "`torchrun --nproc-per-node={count} -m lingula ...`."
)
# Launchers under which several processes do not find each other here, the variables by which they
# say how many there are and which one this is, and how to have as many.
_OTHERS = (
    (
        " (Slurm)",
        "SLURM_NTASKS",
        "SLURM_PROCID",
        "srun did not start this process: " + _ALONE + "`srun lingula ...`.",
    ),
    ("", "WORLD_SIZE", "RANK", _TORCHRUN),
    (" (Open MPI)", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", _TORCHRUN),
    (" (MPI)", "PMI_SIZE", "PMI_RANK", _TORCHRUN),
    (" (MVAPICH)", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK", _TORCHRUN),
    (" (LSF)", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_RANK", _TORCHRUN),
)


def _torchrun() -> Ranks | None:
    """What torchrun says; None unless all of its variables are there."""
    names = ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "GROUP_RANK")
    numbers = [_number(name) for name in names]
    if "TORCHELASTIC_RUN_ID" not in os.environ or None in numbers:
        return None
    count, rank, local, local_rank, node = (number or 0 for number in numbers)
    if local < 1 or count % local:
        raise InputError(
            f"torchrun started {count} processes, but not as many on each node ({local} on this "
            "one). Give every node the same --nproc-per-node."
        )
    return Ranks(count, rank, local, local_rank, node, "torchrun", f"WORLD_SIZE={count}")


# Slurm's own steps have numbers from here on: that of the batch script, of an interactive shell.
_OWN_STEPS = 0xFFFFFFF0


def _srun() -> Ranks | None:
    """What srun says to the tasks of a step; None in a batch script, a shell or a notebook."""
    step = _number("SLURM_STEP_ID")
    step = _number("SLURM_STEPID") if step is None else step
    size = "SLURM_STEP_NUM_TASKS" if _number("SLURM_STEP_NUM_TASKS") else "SLURM_NTASKS"
    count, rank = _number(size), _number("SLURM_PROCID")
    is_shell = "SLURM_PTY_PORT" in os.environ  # `srun --pty bash`
    if step is None or step >= _OWN_STEPS or is_shell or count is None or rank is None:
        return None
    if rank >= count or count < 1:
        return None
    local = _tasks_per_node(count)
    local_rank, node = _number("SLURM_LOCALID"), _number("SLURM_NODEID")
    local_rank = rank % local if local_rank is None else local_rank
    node = rank // local if node is None else node
    return Ranks(count, rank, local, local_rank, node, "srun", f"{size}={count}")


def _tasks_per_node(count: int) -> int:
    """The tasks on each node, from `2(x3)`; `InputError` where the nodes have different numbers."""
    listed = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    each: list[int] = []
    for many, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", listed):
        each += [int(many)] * int(times or 1)
    if sum(each) == count:
        if len(set(each)) > 1:
            raise InputError(
                f"Slurm gives this step {count} tasks, and not as many on each node ({listed}). "
                "Say `srun --ntasks-per-node=N`."
            )
        return each[0]
    nodes = _number("SLURM_STEP_NUM_NODES") or _number("SLURM_NNODES")
    local = count // nodes if nodes else _number("SLURM_NTASKS_PER_NODE")
    return local if local and count % local == 0 else count


def _number(name: str) -> int | None:
    """The whole number in a variable; None where it is not set or is not a number."""
    text = os.environ.get(name, "").strip()
    return int(text) if text.isdecimal() else None


def wait_for_first(look: Callable[[], Path | None], what: str, folder: Path) -> Path:
    """Wait until the first process has made something; return what `look` finds then.

    What is waited for is logged every minute. Any signal that stops a process stops it.

    Args:
        look: gives None as long as it is not there.
        what: what is waited for.
        folder: where the first process writes it, file by file.

    Raises:
        StoppedError: nothing has been written there for ten minutes.
    """
    changed, before = time.monotonic(), 0
    said: float | None = None
    while (found := look()) is None:
        now, sign = time.monotonic(), _sign(folder)
        if sign != before:
            before, changed = sign, now
        if now - changed > PATIENCE:
            raise StoppedError(
                f"The first process has written nothing to {folder} for {PATIENCE / 60:.0f} "
                f"minutes; it may have ended before {what}. The same line again continues."
            )
        if said is None or now - said >= TELL:
            log.info("Waiting for the first process: %s.", what)
            said = now
        time.sleep(LOOK)
    return found


def _sign(folder: Path) -> int:
    """A number that changes when a file appears in the folder; 0 while there is no folder."""
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0


@contextlib.contextmanager
def let_others_wait() -> Iterator[bool]:
    """Yield whether this process is to do the block's work; the others wait until it is done.

    They wait where the processes are connected, that is after a training, however long it takes.
    Processes that have had nothing to do together are not, and need not wait.
    """
    distributed = sys.modules.get("torch.distributed")
    group = None
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        # A group of its own: the usual one gives up after minutes.
        group = distributed.new_group(backend="gloo", timeout=timedelta(days=7))
    yield is_first()
    if group is not None and distributed is not None:
        try:
            distributed.barrier(group=group)
        except RuntimeError as error:
            raise StoppedError("The first process ended before its work was done.") from error
