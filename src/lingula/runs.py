"""The run folder: its files, whether a command may continue it, and the facts written at its start.

config.yaml  environment.json  metrics.jsonl  train.log  tensorboard/  checkpoints/
best/  scores/{dev,test}.csv  report.html  finished.json (written last)  .lock (while it trains)
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import json
import logging
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import lingula
from lingula import files
from lingula.config import Config, diff, read_config, write_config
from lingula.errors import InputError, differences

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("lingula")

_PACKAGES = ("torch", "torchvision", "timm", "lightning-fabric", "numpy", "polars", "pillow")


def open_run(run: Path, config: Config) -> Literal["new", "unfinished", "finished"]:
    """Claim a run folder for `config`.

    A folder of the same settings is continued. `InputError` shows the difference where they differ,
    and refuses a folder that holds something else.
    """
    settings = run / "config.yaml"
    if not settings.is_file():
        left = [p.name for p in run.iterdir() if p.name[0] != "."] if run.is_dir() else []
        if run.is_file() or any(name not in _MADE_BEFORE_CONFIG for name in left):
            raise InputError(f"{run} is there already and is no run; choose another --out.")
        run.mkdir(parents=True, exist_ok=True)
        write_config(config, settings)
        return "new"
    changed = changed_settings(read_config(settings), config)
    if changed:
        raise InputError(
            f"{run} is a run with other settings:\n{differences(changed)}\n"
            "Choose another --out, or --overwrite to set the old one aside."
        )
    return "finished" if is_finished(run) else "unfinished"


def changed_settings(there: Config, now: Config) -> dict[str, tuple[Any, Any]]:
    """What differs between a run's settings and those given now, but for what changes no result.

    How many processes decode is one's own affair, and may have to change before a run can go on.
    """
    return {key: pair for key, pair in diff(there, now).items() if key != "data.workers"}


_LOCK = ".lock"
_MADE_BEFORE_CONFIG = ("phantom", "table.csv", "table.json")
# Temporary files of `files.whole` for what a training writes.
_TEMPORARY = re.compile(
    r"\.{1,2}(config|environment|table|metrics|model|step-\d+|dev|test|attention|report|finished)"
    r"(\.[a-z0-9_]{8}){1,2}\.[a-z]+"
)


@contextlib.contextmanager
def held(run: Path) -> Iterator[None]:
    """Keep other processes from training in `run`, which is made if it is not there.

    The lock is the kernel's (`flock` on an empty file), so it ends with the process, however that
    ends. Where the system or the file system has no such locks, nothing is held. Reading a run
    needs no lock. Raises `InputError` if another process holds it.
    """
    if run.is_file():
        raise InputError(f"{run} is there already and is no run; choose another --out.")
    is_new = not run.exists()
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.unwritable(run, error) from error
    try:
        with contextlib.ExitStack() as stack:
            if fcntl is not None:
                _hold(run, stack)
            yield
    finally:
        if is_new and run.is_dir() and not any(run.iterdir()):
            run.rmdir()


def _hold(run: Path, stack: contextlib.ExitStack) -> None:
    """Take the lock of a folder until `stack` ends."""
    folder = os.open(run, os.O_RDONLY)
    stack.callback(os.close, folder)
    while True:
        try:
            lock = os.open(_LOCK, os.O_RDWR | os.O_CREAT, 0o666, dir_fd=folder)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EROFS):
                return  # nothing can be written here, so there is nothing to keep apart
            raise files.unwritable(run / _LOCK, error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise InputError(
                f"Another process is training in {run}. Wait for its end, or stop it (`fuser "
                f"{run / _LOCK}` names it); or choose another --out."
            ) from None
        except OSError as error:
            os.close(lock)
            log.warning("%s can't be locked (%s): start only one process.", run, error.strerror)
            return
        if _is_there(lock, folder):
            break
        os.close(lock)  # its last holder removed it between the two lines above
    stack.callback(os.close, lock)
    # By the folder's handle, for it may have been renamed; before the lock is given back.
    stack.callback(_remove, folder)
    _sweep(run)


def _sweep(run: Path) -> None:
    """Remove what killed processes left half-written; only the lock's holder may."""
    for folder in (run, *(run / name for name in ("best", "checkpoints", "scores"))):
        for path in folder.glob(".*"):
            if _TEMPORARY.fullmatch(path.name):
                path.unlink()


def _is_there(lock: int, folder: int) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), os.stat(_LOCK, dir_fd=folder))
    except FileNotFoundError:
        return False


def _remove(folder: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_LOCK, dir_fd=folder)


def is_finished(run: Path) -> bool:
    """Whether the run's training, scores and report are all done."""
    return (run / "finished.json").is_file()


def finish(run: Path, facts: Mapping[str, Any]) -> None:
    """Mark the run as finished, with the facts that say how it went."""
    files.write_json(run / "finished.json", dict(facts))


def read_environment(run: Path) -> dict[str, Any]:
    """What `environment.json` says, or an empty dict."""
    path = run / "environment.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def environment(config: Config, data_sha256: str, threads: int) -> dict[str, Any]:
    """Versions, machine, seed and data hash: what the same weights can be expected on."""
    return {
        "lingula": lingula.__version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": threads,
        "device": config.device,
        "precision": config.precision,
        "seed": config.seed,
        "data_sha256": data_sha256,
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


class _LogFile(logging.FileHandler):
    """A log file that a full disk may cut short: the work itself says so where it matters."""

    def handleError(self, record: logging.LogRecord) -> None:
        """One line instead of a traceback for each line that can't be written."""
        sys.stderr.write(f"{self.baseFilename} can't be written; a line of the log is lost.\n")


@contextlib.contextmanager
def logged(path: Path) -> Iterator[None]:
    """Also write what `lingula` logs to `path`, appending, with times."""
    try:
        handler = _LogFile(path, encoding="utf-8")
    except OSError as error:
        raise files.unwritable(path, error) from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    level = log.level
    log.setLevel(min(level or logging.INFO, logging.INFO))
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(handler)
        handler.close()
