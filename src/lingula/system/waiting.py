"""Several processes, one of which makes a thing: the others wait for it here."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

from lingula.system.errors import StoppedError
from lingula.system.processes import is_first

log = logging.getLogger("lingula")

LOOK, TELL, PATIENCE = 1.0, 60.0, 600.0  # seconds


def waited(look: Callable[[], Path | None], what: str, folder: Path) -> Path:
    """What `look` finds, once the first process has made it.

    It says what it waits for every minute. Any signal that stops a process stops it.

    Args:
        look: gives None as long as it is not there.
        what: what is waited for.
        folder: where the first process writes it, file by file.

    Raises:
        StoppedError: nothing has been written there for ten minutes.
    """
    changed, before = time.monotonic(), 0
    told: float | None = None
    while (found := look()) is None:
        now, sign = time.monotonic(), _sign(folder)
        if sign != before:
            before, changed = sign, now
        if now - changed > PATIENCE:
            raise StoppedError(
                f"The first process has written nothing to {folder} for {PATIENCE / 60:.0f} "
                f"minutes; it may have ended before {what}. The same line again continues."
            )
        if told is None or now - told >= TELL:
            log.info("Waiting for the first process: %s.", what)
            told = now
        time.sleep(LOOK)
    return found


def _sign(folder: Path) -> int:
    """What changes when a file appears in the folder; 0 where it is not there yet."""
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0


@contextlib.contextmanager
def by_the_first() -> Iterator[bool]:
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
