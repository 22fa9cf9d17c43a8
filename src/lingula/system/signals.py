"""Requests to stop: Ctrl-C, or SIGTERM, which batch systems send before they kill a process."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)

Asked = Callable[[], int | None]


class Interrupted(BaseException):
    """The process was asked to stop; `number` is the signal. What is done so far is kept.

    No `Exception`, so that what handles failures doesn't handle this.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def status(self) -> int:
        """The exit status that shells and batch systems know: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.number


def stop_at_once() -> None:
    """From now on the signals raise `Interrupted`, so that what is half-written is cleaned up."""
    for number in _heard():
        signal.signal(number, _stop)


def _heard() -> list[signal.Signals]:
    """The signals that whoever started the process did not shield it from.

    A shell starts background jobs with SIGINT ignored, so that Ctrl-C is for the one in front.
    """
    return [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


def _stop(number: int, frame: FrameType | None) -> None:
    _answer()
    raise Interrupted(number)


_answered = 0.0  # when a handler last ran


def _answer() -> None:
    global _answered
    _answered = time.monotonic()


def end_if_deaf(grace: float = 20.0) -> None:
    """From now on a signal ends the process even while it waits inside a library.

    Python's handlers run between its own instructions: in a process that waits for another in C++
    never. One that did not run within `grace` seconds is done without. Only where signals raise
    `Interrupted` (`stop_at_once`); others keep what their owner chose.
    """
    if signal.getsignal(signal.SIGTERM) is not _stop or not hasattr(signal, "set_wakeup_fd"):
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def watch() -> None:
        while number := os.read(read, 1):
            came = time.monotonic()
            if number[0] in SIGNALS:
                time.sleep(grace)
                if _answered < came - grace:  # a handler may have run before this thread did
                    name = signal.Signals(number[0]).name
                    sys.stderr.write(f"lingula: stopped by {name}, while it waited for others.\n")
                    os._exit(128 + number[0])

    threading.Thread(target=watch, daemon=True).start()


def never() -> None:
    """Return None: nobody asks to stop."""


@contextlib.contextmanager
def note_signals() -> Iterator[Asked]:
    """Only note signals within the block; yield a function that returns the first one's number.

    The work asks where it can stop without loss. A second Ctrl-C stops it at once; a second SIGTERM
    changes nothing, since batch systems send several. At the end of the block `Interrupted` is
    raised if there was a signal. Off the main thread Python can't be asked, and nothing is noted.
    """
    if threading.current_thread() is not threading.main_thread():
        yield never
        return
    got: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        _answer()
        if got and number == signal.SIGINT:
            raise Interrupted(number)
        got.append(number)

    before = {number: signal.signal(number, note) for number in _heard()}
    try:
        yield lambda: got[0] if got else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
    if got:
        raise Interrupted(got[0])
