"""One process at a time in a folder, by a lock that ends with the process however it ends."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from lingula.system import files
from lingula.system.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("lingula")

NAME = ".lock"


@contextlib.contextmanager
def held(folder: Path, doing: str) -> Iterator[bool]:
    """Keep other processes from `doing` their work in `folder`, which is made if it is not there.

    The lock is `flock` on an empty file. Where the system or the file system has no such locks,
    nothing is held, and False is yielded. Reading a folder needs no lock. Raises `InputError` if
    another process holds it, or if the folder can't be made.
    """
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.unwritable(folder, error) from error
    try:
        with contextlib.ExitStack() as stack:
            yield fcntl is not None and _hold(folder, doing, stack)
    finally:
        if is_new and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _hold(folder: Path, doing: str, stack: contextlib.ExitStack) -> bool:
    """Take the lock of a folder until `stack` ends; False where it has none."""
    handle = os.open(folder, os.O_RDONLY)
    stack.callback(os.close, handle)
    while True:
        try:
            lock = os.open(NAME, os.O_RDWR | os.O_CREAT, 0o666, dir_fd=handle)
        except FileNotFoundError:
            raise InputError(
                f"Another process has just finished with {folder}; give this line again."
            ) from None
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EROFS):
                return False  # nothing can be written here, so there is nothing to keep apart
            raise files.unwritable(folder / NAME, error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise InputError(
                f"Another process is {doing} {folder}. Wait for its end, or stop it (`fuser "
                f"{folder / NAME}` names it); or choose another --out."
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
        return os.path.samestat(os.fstat(lock), os.stat(NAME, dir_fd=folder))
    except FileNotFoundError:
        return False


def _remove(folder: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(NAME, dir_fd=folder)
