"""The place of an output, before it is written: free, done already, to be renamed, or refused."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lingula.system import files
from lingula.system.errors import InputError, changes, differences

log = logging.getLogger("lingula")

# Conflicts, for `claim`.
OTHER_CONTENT = "with something else in it."
NOT_EMPTY = "and is not empty."
NOT_OURS = "and was not made by this command."


@dataclass(frozen=True)
class Claim:
    """What a command may do with the place of its output.

    Attributes:
        is_done: the output is there already, as it would be made now.
        old: files and folders to rename before the new output is written.
    """

    is_done: bool = False
    old: tuple[Path, ...] = ()

    def make_room(self) -> None:
        """Rename what is in the way to `NAME.old-1`, `NAME.old-2`, ...; nothing is deleted."""
        for path in self.old:
            log.info("Moved the old %s to %s.", path, files.set_aside(path))


def claim(
    place: Path,
    conflict: str | None,
    *,
    overwrite: bool | None = False,
    beside: Iterable[Path] = (),
    leftovers: Collection[str] = (),
) -> Claim:
    """Decide what to do with the place of an output, without changing anything there.

    Args:
        place: the file or folder to write.
        conflict: how what is there differs from the output, as the end of the sentence "PLACE is
            there already, ..."; None if it does not differ. See `other_settings`.
        overwrite: rename what is there and begin anew; None for commands that have no --overwrite.
        beside: files that belong to the output and are renamed together with it.
        leftovers: names that an interrupted run of the command leaves in its folder.

    Raises:
        InputError: something else is there, and `overwrite` is not set.
    """
    if is_free(place, leftovers):
        return Claim()
    if overwrite:
        return Claim(old=tuple(path for path in (place, *beside) if path.exists()))
    if conflict is None:
        log.info("%s is there already, made from the same inputs and settings.", place)
        return Claim(is_done=True)
    way_out = "." if overwrite is None else ", or --overwrite to set the old one aside."
    raise InputError(f"{place} is there already, {conflict}\nChoose another --out{way_out}")


def is_free(place: Path, leftovers: Collection[str] = ()) -> bool:
    """Whether nothing is there, or a folder with nothing but `leftovers` and hidden files."""
    if place.is_dir():
        return all(p.name.startswith(".") or p.name in leftovers for p in place.iterdir())
    return not place.exists()


def other_settings(
    before: Mapping[str, Any] | None,
    now: Mapping[str, Any],
    skip: Collection[str] = (),
    not_ours: str = NOT_OURS,
) -> str | None:
    """How an output made with the settings `before` differs from one made `now`, for `claim`.

    `before` is None where none are known, which `not_ours` says; `skip` names settings that may
    differ.
    """
    if before is None:
        return not_ours
    changed = changes(before, now, skip)
    return f"made with other settings:\n{differences(changed)}" if changed else None


def settings_beside(output: Path) -> Path:
    """The file that says from what an output was made: `OUT.made.json`."""
    return output.with_suffix(".made.json")


def read_settings_beside(output: Path) -> dict[str, Any] | None:
    """From what an output was made; None where no file says it."""
    path = settings_beside(output)
    return files.read_object(path) if path.is_file() else None
