"""Files: written completely or not at all, by a temporary file and a rename; and read again."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lingula.system.errors import InputError, StoppedError


def expand_home(place: str | Path) -> Path:
    """The path with the home folder in place of `~`; unchanged where there is no home.

    A process may have none: an unknown user in a container, without `HOME`.
    """
    return Path(os.path.expanduser(place))  # noqa: PTH111 (that of `Path` raises)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST),  # a file where a folder is needed, or the reverse
)


@contextlib.contextmanager
def write_atomically(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed to disk and renamed to `path`.

    If the block raises, the temporary file is removed and `path` is left as it was. The temporary
    name keeps the suffix, since some writers choose their format by it.

    Raises:
        InputError: nothing can be written at that place.
        StoppedError: the disk is full or failing.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=target.parent, prefix=f".{target.stem}.", suffix=target.suffix
        )
    except OSError as error:
        raise unwritable(target, error) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        flush(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
    except Exception as error:
        # A failed write names no file, or the one being written; other files are not our matter.
        if _number(error) is None or getattr(error, "filename", None) not in (None, name):
            raise
        raise unwritable(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _number(error: Exception) -> int | None:
    """The system's number of an error; writers in Rust (polars, safetensors) only mention it."""
    mentioned = re.search(r"\(os error (\d+)\)", str(error))
    number = error.errno if isinstance(error, OSError) else None
    return int(mentioned[1]) if number is None and mentioned else number


def flush(path: Path) -> None:
    """Wait until a file's bytes are on the disk."""
    with path.open("rb") as written:
        os.fsync(written.fileno())


def unwritable(path: Path, error: Exception) -> InputError | StoppedError:
    """What to raise where `path` can't be written: the place is wrong, or the disk is full."""
    number = _number(error)
    reason = os.strerror(number) if number else str(error).partition("\n")[0]
    if number in _CLOSED:
        return InputError(
            f"{path} can't be written: {reason}. Choose another place, or make this one writable."
        )
    return StoppedError(
        f"{path} can't be written: {reason}. What was there before is kept. Make room on that disk "
        "(or fix it) and give the same line again."
    )


def not_a_file(path: Path, what: str, hint: str = "") -> InputError:
    """The error for a missing file: a folder has that name, or nothing has."""
    if path.is_dir():
        article = "an" if what[0] in "aeiou" else "a"
        return InputError(f"{path} is a folder, not {article} {what}.{hint}")
    return InputError(f"There is no {what} {path}.")


def not_a_folder(path: Path, hint: str = "") -> InputError:
    """The error for a missing folder: a file has that name, or nothing has."""
    if path.exists():
        return InputError(f"{path} is a file, not a folder.{hint}")
    return InputError(f"There is no folder {path}.{hint}")


def check_suffix(path: Path, allowed: tuple[str, ...], what: str) -> None:
    """Raise `InputError` for a file name with another suffix than the allowed ones."""
    if path.suffix.lower() not in allowed:
        raise InputError(f"{path}: {what} is written as {' or '.join(allowed)}.")


def check_place(path: Path) -> None:
    """Raise an error for a place where nothing can be written, without writing anything."""
    place = path.absolute()
    while not os.path.lexists(place):
        place = place.parent
    number = 0 if os.access(place, os.W_OK | os.X_OK) else errno.EACCES
    if not place.is_dir():
        number = errno.ENOTDIR
    if number:
        raise unwritable(path, OSError(number, os.strerror(number)))


def is_about_the_disk(error: OSError) -> bool:
    """Whether an error says that a disk is full, failing or closed for writing."""
    return error.errno in (*_FULL, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM)


def format_bytes(number: float) -> str:
    """A number of bytes in words: `2.2 TB`."""
    for unit, size, least in (("TB", 1e12, 1e11), ("GB", 1e9, 1e9), ("MB", 1e6, 1e6)):
        if number >= least:
            return f"{number / size:.1f} {unit}"
    return f"{number / 1000:.0f} kB"


def free_bytes(folder: str | Path) -> int:
    """Bytes free on the disk of a folder, which need not be there yet."""
    here = Path(folder).absolute()
    while not here.exists():
        here = here.parent
    return shutil.disk_usage(here).free


def check_room(
    folder: Path, needed: float, what: str, advice: str = "Choose another --out, or make room."
) -> None:
    """Raise `InputError`, which says how much is needed, if it will not fit on the disk."""
    free = free_bytes(folder)
    if free < needed:
        raise InputError(
            f"{folder} has {format_bytes(free)} free, and {what} need up to "
            f"{format_bytes(needed)}. {advice}"
        )


def remove_temporary_files(folder: Path, stems: str) -> None:
    """Remove the temporary files of `write_atomically` that killed processes left in a folder.

    `stems` is a regular expression for the names, without suffix, of what was being written. One
    such write within another makes a name of twice the form.
    """
    left = re.compile(rf"\.{{1,2}}({stems})(\.[a-z0-9_]{{8}}){{1,2}}\.[a-z]+")
    for path in folder.glob(".*"):
        if left.fullmatch(path.name):
            path.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text, completely or not at all."""
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON (indented, keys in the order given, NaN refused), completely or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_object(path: Path, *keys: str, absent_ok: bool = False) -> dict[str, Any]:
    """The JSON object in a file that lingula wrote; `InputError` if it is damaged.

    It must have the `keys`. With `absent_ok` a file that is not there is an empty object.
    """
    if absent_ok and not path.is_file():
        return {}
    return parse_object(path.read_bytes(), path, *keys)


def parse_object(text: str | bytes, where: object, *keys: str) -> dict[str, Any]:
    """The JSON object in a text; `InputError` with `where` if it is damaged or lacks a key."""
    try:
        value = json.loads(text)
        fault = "it is not a JSON object" if not isinstance(value, dict) else ""
    except (ValueError, RecursionError) as error:
        fault = str(error)
    lacking = [] if fault else [key for key in keys if key not in value]
    if fault or lacking:
        fault = fault or f"it has no '{lacking[0]}'"
        raise InputError(
            f"{where} is damaged: {fault}. Restore it, or make it again by the same command."
        )
    return dict(value)


def sha256(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def set_aside(folder: str | Path) -> Path:
    """Rename `NAME` to the first free `NAME.old-1`, `NAME.old-2`, ...; nothing is deleted."""
    here = Path(folder)
    number = 1
    while (there := here.with_name(f"{here.name}.old-{number}")).exists():
        number += 1
    here.rename(there)
    return there
