"""Several processes, one of which makes a thing: the others wait for it here."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from lingula.errors import StoppedError

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
