"""Which of many image files are there, in seconds for hundreds of thousands; how large they are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

# A network disk takes its time for each question, so that many are asked at once.
_THREADS = 32
_AT_ONCE = 1024  # files a thread looks for before it takes others
_LISTED = 8  # wanted files of a folder from which on one listing is less work than asking for each


def absent(paths: Sequence[str | Path]) -> list[int]:
    """The places in `paths` at which there is no file; links to files are files.

    A path that no file can have, and one in a folder that may not be entered, is absent.
    """
    folders: dict[str, list[tuple[int, str]]] = {}
    for place, path in enumerate(paths):
        folder, name = os.path.split(path)
        folders.setdefault(folder, []).append((place, name))
    work: list[list[str]] = [[]]
    waiting = 0
    for folder, wanted in folders.items():
        if waiting >= _AT_ONCE:
            work.append([])
            waiting = 0
        work[-1].append(folder)
        waiting += len(wanted)

    def look(some: list[str]) -> list[int]:
        return [place for folder in some for place in _absent_in(folder, folders[folder])]

    with ThreadPoolExecutor(_THREADS) as pool:
        return sorted(chain.from_iterable(pool.map(look, work)))


def _absent_in(folder: str, wanted: Sequence[tuple[int, str]]) -> list[int]:
    listed: set[str] = set()
    if len(wanted) >= _LISTED:
        try:
            with os.scandir(folder) as entries:
                listed = {entry.name for entry in entries if entry.is_file()}
        except (OSError, ValueError):
            pass  # a folder may be entered but not listed: then each is asked for
    # What the listing spells otherwise (some systems fold case or accents) is asked for too.
    return [
        place
        for place, name in wanted
        if name not in listed and not os.path.isfile(os.path.join(folder, name))  # noqa: PTH113, PTH118
    ]


def size_of(paths: Sequence[str | Path], sample: int = 256) -> int:
    """About how many bytes files have together, by evenly spaced ones of them; 0 if none is there.

    Args:
        paths: the files.
        sample: how many of them are asked for their size.
    """
    asked = [paths[i * len(paths) // sample] for i in range(sample)] if paths else []

    def size(path: str | Path) -> int | None:
        try:
            return Path(path).stat().st_size
        except (OSError, ValueError):
            return None

    with ThreadPoolExecutor(_THREADS) as pool:
        known = [found for found in pool.map(size, asked) if found is not None]
    return round(sum(known) / len(known) * len(paths)) if known else 0
