"""The place of an output: whether a command may write there, and a lock while it does.

A place is free, has the output already, is renamed, or is refused. The lock of a folder ends with
the process that has it, however that ends.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lingula.system import files
from lingula.system.errors import InputError, changes, differences

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("lingula")

LOCK = ".lock"

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


@contextlib.contextmanager
def lock_folder(folder: Path, doing: str) -> Iterator[bool]:
    """Keep other processes from `doing` their work in `folder`, which is made if it is not there.

    The lock is `flock` on an empty file. Where the system or the file system has no such locks,
    False is yielded. Reading a folder needs no lock. Raises `InputError` if another process has
    the lock, or if the folder can't be made.
    """
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.unwritable(folder, error) from error
    try:
        with contextlib.ExitStack() as stack:
            yield fcntl is not None and _lock(folder, doing, stack)
    finally:
        if is_new and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _lock(folder: Path, doing: str, stack: contextlib.ExitStack) -> bool:
    """Take the lock of a folder until `stack` ends; False where it has none."""
    handle = os.open(folder, os.O_RDONLY)
    stack.callback(os.close, handle)
    while True:
        try:
            lock = os.open(LOCK, os.O_RDWR | os.O_CREAT, 0o666, dir_fd=handle)
        except FileNotFoundError:
            raise InputError(
                f"Another process has just finished with {folder}; give this line again."
            ) from None
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EROFS):
                return False  # nothing can be written here, so there is nothing to keep apart
            raise files.unwritable(folder / LOCK, error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise InputError(
                f"Another process is {doing} {folder}. Wait for its end, or stop it (`fuser "
                f"{folder / LOCK}` names it); or choose another --out."
            ) from None
        except OSError as error:
            os.close(lock)
            log.warning("%s can't be locked (%s): start only one process.", folder, error.strerror)
            return False
        if _is_there(lock, handle):
            break
        os.close(lock)  # its last holder removed it between the two lines above
    stack.callback(os.close, lock)
    # By the folder's handle, for it may have been renamed; before the lock is given back.
    stack.callback(_remove, handle)
    return True


def _is_there(lock: int, folder: int) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), os.stat(LOCK, dir_fd=folder))
    except FileNotFoundError:
        return False


def _remove(folder: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(LOCK, dir_fd=folder)


def check_not_an_input(out: str | Path, inputs: Sequence[str | Path]) -> None:
    """Raise `InputError` if the output is one of the inputs."""
    if Path(out).resolve() in {Path(path).resolve() for path in inputs}:
        raise InputError(f"{out} is an input of this command. Name another file to write.")
