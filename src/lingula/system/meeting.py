"""The processes of one job find each other, aloud and stoppable, and leave together.

Fabric forms their group. But torch waits for absent ones without a word, and deaf to signals; so
they meet first in the store that torch will form the group by.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import time
import zlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

from lingula.system.errors import InputError, StoppedError, examples
from lingula.system.processes import Ranks
from lingula.system.signals import end_if_deaf

log = logging.getLogger("lingula")

PATIENCE = 1800.0  # seconds; torch's own. Nodes may load torch from a slow disk
AGENT_PATIENCE = 20.0  # torchrun's store is there before its processes are
FIRST_WORD, _AGAIN, _LOOK = 5.0, 30.0, 0.2


def meet(here: Ranks) -> object:
    """Wait until all processes are there, saying for whom; signals are heeded meanwhile.

    What torch forms the group by (`MASTER_ADDR`, `RANK` and so on) is set for srun's processes.
    Returns the place of the meeting, which must stay open until the group is formed.

    Raises:
        InputError: the place to meet at can't be used, or torchrun is not running any more.
        StoppedError: somebody did not come, or the first process is gone.
    """
    if is_met():
        return None
    _name_the_place(here)
    place = os.environ["MASTER_ADDR"], _port(os.environ["MASTER_PORT"])
    is_served = here.launcher == "torchrun" and _is_true("TORCHELASTIC_USE_AGENT_STORE")
    store = _store(here, *place, serve=here.rank == 0 and not is_served, is_served=is_served)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    names = [f"lingula/{attempt}/{rank}" for rank in range(here.count)]
    try:
        store.set(names[here.rank], "here")
        awaited = set(range(here.count))

        def all_there() -> bool:
            awaited.difference_update([r for r in awaited if store.check([names[r]])])
            return not awaited

        _wait(all_there, PATIENCE, lambda: _waiting(here, awaited))
    except RuntimeError as error:
        raise StoppedError(f"The first process of this job is gone: {_first_line(error)}") from None
    end_if_deaf()  # from here on torch waits for the others
    return store


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise InputError(
            f"MASTER_PORT={text!r} is no port: `unset MASTER_PORT`, or name a free one."
        )
    return int(text)


def _is_true(name: str) -> bool:
    return os.environ.get(name) == "True"


def _waiting(here: Ranks, awaited: set[int]) -> str:
    return (
        f"waiting for {len(awaited)} of {here.count} processes ({here.variable} in the "
        f"environment): number {examples(sorted(awaited), 8)}"
    )


def _name_the_place(here: Ranks) -> None:
    """Where srun's processes meet: at the first node of the step, at a port of the step's own."""
    ranks = {"WORLD_SIZE": here.count, "RANK": here.rank, "GROUP_RANK": here.node}
    os.environ.update({name: str(number) for name, number in ranks.items()})
    nodes = next(
        (os.environ[n] for n in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST") if n in os.environ),
        "127.0.0.1",
    )
    step = f"{os.environ.get('SLURM_JOB_ID')}.{os.environ.get('SLURM_STEP_ID')}"
    os.environ.setdefault("MASTER_ADDR", SLURMEnvironment.resolve_root_node_address(nodes))
    os.environ.setdefault("MASTER_PORT", str(15000 + zlib.crc32(step.encode()) % 10000))


def _store(here: Ranks, host: str, port: int, *, serve: bool, is_served: bool) -> Any:
    """The store, served by the first process or by torchrun; patient until it is there."""
    if not serve:
        trouble: list[str] = [""]

        def answers() -> bool:
            try:
                with socket.create_connection((host, port), timeout=2):
                    return True
            except OSError as error:
                trouble[0] = error.strerror or str(error)
                return False

        who = f"the first of {here.count} processes ({here.variable} in the environment)"
        if is_served:
            who = f"torchrun ({here.variable} in the environment)"
        patience = AGENT_PATIENCE if is_served else PATIENCE
        try:
            _wait(answers, patience, lambda: f"waiting for {who} at {host}:{port}: {trouble[0]}")
        except StoppedError as error:
            if not is_served:
                raise
            raise InputError(
                f"{error} If these variables were left by an earlier job: `unset "
                "TORCHELASTIC_RUN_ID WORLD_SIZE RANK LOCAL_RANK`."
            ) from None
    try:
        return dist.TCPStore(  # type: ignore[attr-defined]
            host,
            port,
            is_master=serve,
            timeout=timedelta(seconds=60),
            wait_for_workers=False,
            multi_tenant=serve,
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"The processes of this job can't meet at {host}:{port}: {_first_line(error)} Is it "
            "the first node's address, and the port free? MASTER_ADDR and MASTER_PORT name others."
        ) from None


def _wait(done: Callable[[], bool], patience: float, words: Callable[[], str]) -> None:
    """Look until `done`; say what is waited for now and then, and give up after `patience`."""
    began = time.monotonic()
    next_word = began + FIRST_WORD
    while not done():
        now = time.monotonic()
        if now - began > patience:
            raise StoppedError(f"Gave up {words()}, after {now - began:.0f} s.")
        if now >= next_word:
            text = words()
            log.info("%s%s. Ctrl-C ends it.", text[0].upper(), text[1:])
            next_word = now + _AGAIN
        time.sleep(_LOOK)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") + "."


_GONE = re.compile(
    r"Connection closed by peer|Connection reset by peer|Broken pipe|Connection refused"
    r"|Socket closed|NCCL communicator was aborted|failed to recv|remote process exited",
    re.IGNORECASE,
)


def is_met() -> bool:
    """Whether this process is one of a group."""
    return dist.is_available() and dist.is_initialized()


def is_about_a_peer(error: Exception) -> bool:
    """Whether an error says that another process of this job went away."""
    return is_met() and bool(_GONE.search(str(error)))


def leave() -> None:
    """End this process's part of the group; one that ends without it aborts."""
    if is_met():
        with contextlib.suppress(Exception):  # the others are gone, which is what is wanted
            dist.destroy_process_group()
