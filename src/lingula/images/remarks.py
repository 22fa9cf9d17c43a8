"""What was passed over in image files that were read all the same: said once, or collected."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger("lingula")

BURNED_IN = "text is burned into its pixels, it says"
FRAMES = "it has several frames"
LOST_WINDOW = "the window leaves nothing of the grey levels"
BAD_WINDOW = "the window can't be used"
LOST_TABLE = "the table of grey levels leaves nothing of them"
BAD_TABLE = "the table of grey levels can't be used"
BAD_MODALITY = "the table of modality values can't be used"
BAD_RESCALE = "the rescale slope or intercept can't be used"
STRAY_BYTES = "stray bytes stand before a marker of the JPEG"

ADVICE = {
    BURNED_IN: "it may name the patient.",
    FRAMES: "the first is read, the others are not.",
    LOST_WINDOW: "it was meant for another scale; they are stretched instead.",
    BAD_WINDOW: "the grey levels are stretched instead.",
    LOST_TABLE: "the window is taken, or they are stretched.",
    BAD_TABLE: "the window is taken, or the grey levels are stretched.",
    BAD_MODALITY: "the rescale slope and intercept are taken.",
    BAD_RESCALE: "the stored values are taken.",
    STRAY_BYTES: "every pixel is there; the bytes are passed over.",
}
"""What is done about each, or what to do."""

warned: set[str] = set()
_thread = threading.local()


def remark(file: Path, what: str) -> None:
    """Say a thing of `ADVICE` of a file: to the collector, else in the log, once a process.

    A data set may have it in every film, and every epoch.
    """
    found: list[str] | None = getattr(_thread, "found", None)
    if found is not None:
        found.append(what)
    elif what not in warned:
        warned.add(what)
        text = "%s: %s: %s (Further files of which this is true are not named.)"
        log.warning(text, file, what, ADVICE[what])


@contextlib.contextmanager
def collected() -> Iterator[list[str]]:
    """What is remarked in this thread, in a list instead of the log."""
    before = getattr(_thread, "found", None)
    _thread.found = found = list[str]()
    try:
        yield found
    finally:
        _thread.found = before
