"""The expected failures: wrong input (exit status 2), an unreadable image, stopped work (1)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class InputError(Exception):
    """What the user gave is wrong. The message says what, where, and how to fix it.

    The command line prints the message alone, without a traceback, and exits with status 2.
    """


class ImageError(InputError):
    """One image can't be used. `kind` is a short fixed name; the message names the file.

    Kinds: `missing`, `empty`, `not an image`, `truncated`, `damaged`, `too large`, `outside the
    data root`, `unreadable`, `declared bits`, `unsupported`.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class StoppedError(RuntimeError):
    """Work that can't go on although the input is right: a full disk, a loss that is NaN.

    The message says what happened, what is kept, and what to do. The command line prints it alone,
    without a traceback, and exits with status 1.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the closest of `known`, or an empty string if none is close."""
    by_fold = {candidate.casefold(): candidate for candidate in known}
    found = difflib.get_close_matches(name.casefold(), list(by_fold), n=1, cutoff=0.6)
    return f" Did you mean '{by_fold[found[0]]}'?" if found else ""


def examples(items: Iterable[object], limit: int = 5) -> str:
    """The first `limit` items, comma separated, with `... (n in all)` when there are more."""
    every = [str(item) for item in items]
    shown = ", ".join(every[:limit])
    return shown if len(every) <= limit else f"{shown}, ... ({len(every)} in all)"


def changes(
    before: Mapping[str, Any], now: Mapping[str, Any], skip: Iterable[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """The settings that differ: `{key: (value of the output that is there, value now)}`."""
    keys = [key for key in dict.fromkeys([*now, *before]) if key not in set(skip)]
    return {k: (before.get(k), now.get(k)) for k in keys if before.get(k) != now.get(k)}


def differences(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """Lines that name each changed setting with its value there and now."""
    return "\n".join(f"  {key}: {old!r} there, {new!r} now" for key, (old, new) in changed.items())
