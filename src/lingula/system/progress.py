"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere; on stderr."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

Tick = Callable[[int, int, str], None]

PLAIN_SECONDS = 15.0


@contextlib.contextmanager
def progress(title: str, quiet: bool = False) -> Iterator[Tick]:
    """Yield `tick(done, total, text)`. Off a terminal it prints a line at most every 15 seconds."""
    if quiet:
        yield _silent
    elif sys.stderr.isatty():
        with _bar(title) as tick:
            yield tick
    else:
        yield _plain(title)


def format_seconds(seconds: float) -> str:
    """A duration in words: `40 seconds`, `3 minutes`, `5 hours`."""
    units = ((5400.0, 3600.0, "hours"), (90.0, 60.0, "minutes"))
    for least, unit, name in units:
        if seconds >= least:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} seconds"


def count_only(tick: Tick) -> Callable[[int, int], None]:
    """A tick without a text, for work that only counts."""
    return lambda done, total: tick(done, total, "")


def _silent(done: int, total: int, text: str = "") -> None:
    """Show nothing."""


@contextlib.contextmanager
def _bar(title: str) -> Iterator[Tick]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(title, total=None, text="")

        def tick(done: int, total: int, text: str = "") -> None:
            shown.update(task, completed=done, total=total, text=text)

        yield tick


def _plain(title: str) -> Tick:
    began = last = time.monotonic()
    first, before = 0, -1

    def tick(done: int, total: int, text: str = "") -> None:
        nonlocal began, last, first, before
        now = time.monotonic()
        if before < 0 or done < before:
            # What was done before, of work that is taken up again, took none of this time.
            first, began = done, now
        before = done
        if now - last < PLAIN_SECONDS:
            return
        last = now
        parts = [f"{title}: {done}/{total}", *([text] if text else [])]
        if done > first:
            left = (now - began) / (done - first) * (total - done)
            parts.append(f"{left:.0f} s left")
        sys.stderr.write(", ".join(parts) + "\n")
        sys.stderr.flush()

    return tick
