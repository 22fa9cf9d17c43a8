"""Finished batches of a prediction, kept beside its output until that is whole.

Each process appends to a file of its own, a checksummed record a batch, so that a prediction that
was killed goes on after its last whole record. Rows are numbers of images in the order scored.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lingula.system import files, locks
from lingula.system.errors import InputError

# A record: this head, B x K float64, the failures as JSON. All numbers are little-endian, and the
# checksum is of all that follows it.
_HEAD = struct.Struct("<8s32sQQQQ")  # mark, SHA-256, first row, rows B, classes K, bytes of JSON
_MARK = b"lingula1"


@dataclass(frozen=True)
class Block:
    """Consecutive rows from `start`: scores (B, K), NaN where an image failed, and why it did."""

    start: int
    scores: NDArray[np.float64]
    failures: Mapping[int, str]


@dataclass(frozen=True)
class Parts:
    """Where each of N rows lies: its file (-1: not scored yet) and byte there; the failures."""

    files: tuple[Path, ...]
    file: NDArray[np.int32]
    offset: NDArray[np.int64]
    classes: int
    failures: dict[int, str]

    @property
    def done(self) -> NDArray[np.bool_]:
        """(N,) whether a row has been scored, or has failed."""
        return np.asarray(self.file >= 0)


def parts_folder(target: Path) -> Path:
    """`.NAME.parts` beside the output `NAME`."""
    return target.with_name(f".{target.name}.parts")


def settings_of(folder: Path) -> dict[str, Any] | None:
    """What the parts in a folder were made with; None where there are none.

    A folder without readable settings was left before its first batch, and counts as none.
    """
    try:
        return files.read_object(folder / "settings.json")
    except (FileNotFoundError, NotADirectoryError, InputError):
        return None


@contextlib.contextmanager
def held(folder: Path, settings: Mapping[str, Any]) -> Iterator[None]:
    """Make the folder of parts, or take up the one that is there; no one else may meanwhile.

    Raises:
        InputError: another prediction writes there now, or has just finished.
    """
    with locks.held(folder, "predicting by way of"):
        if settings_of(folder) is None:
            # Rows without settings are left over from a folder that was being removed.
            for left_over in folder.glob("*.rows"):
                left_over.unlink()
            files.write_json(folder / "settings.json", settings)
        yield


@contextlib.contextmanager
def appending(folder: Path) -> Iterator[Callable[[Block], None]]:
    """Yield what appends a block to a new file in the folder; a block written is not lost.

    Nothing is ever appended to a file of another process: its end may be half a record.
    """
    with _new_file(folder) as stream:

        def append(block: Block) -> None:
            # Flushed at once: what the system has, a killed process cannot lose.
            stream.write(_packed(block))
            stream.flush()

        yield append


def _new_file(folder: Path) -> BinaryIO:
    """A file that no other process has; several may look for one at the same time."""
    number = len(list(folder.glob("*.rows")))
    while True:
        try:
            return (folder / f"{number:06}.rows").open("xb")
        except FileExistsError:
            number += 1


def _packed(block: Block) -> bytes:
    reasons = json.dumps({str(row): reason for row, reason in block.failures.items()}).encode()
    reasons += b" " * (-len(reasons) % 8)
    count, classes = block.scores.shape
    body = np.ascontiguousarray(block.scores, dtype="<f8").tobytes() + reasons
    shape = struct.pack("<QQQQ", block.start, count, classes, len(reasons))
    return _MARK + hashlib.sha256(shape + body).digest() + shape + body


def scan(folder: Path, rows: int, classes: int) -> Parts:
    """What has been scored of `rows` images; a damaged record and what follows it do not count.

    Records are read one at a time, so that memory does not grow with their number (but by 12 bytes
    a row, and the failures' reasons).
    """
    found = tuple(sorted(folder.glob("*.rows")))
    file = np.full(rows, -1, dtype=np.int32)
    offset = np.zeros(rows, dtype=np.int64)
    failures: dict[int, str] = {}
    for number, path in enumerate(found):
        with path.open("rb") as stream:
            for at, block in _records(stream, rows, classes):
                here = slice(block.start, block.start + len(block.scores))
                file[here] = number
                offset[here] = at + np.arange(len(block.scores)) * classes * 8
                for row in range(here.start, here.stop):
                    failures.pop(row, None)
                failures.update(block.failures)
    return Parts(found, file, offset, classes, failures)


def _records(stream: BinaryIO, rows: int, classes: int) -> Iterator[tuple[int, Block]]:
    """The whole records of a file, each with the byte at which its scores begin."""
    left = os.fstat(stream.fileno()).st_size
    while len(head := stream.read(_HEAD.size)) == _HEAD.size:
        mark, digest, start, count, width, length = _HEAD.unpack(head)
        size = count * width * 8 + length
        left -= _HEAD.size + size
        # Sizes are looked at before they are believed: damage must not ask for terabytes.
        if mark != _MARK or width != classes or start + count > rows or left < 0:
            return
        at = stream.tell()
        body = stream.read(size)
        if len(body) < size or hashlib.sha256(head[40:] + body).digest() != digest:
            return
        scores = np.frombuffer(body, "<f8", count * width).reshape(count, width)
        reasons = json.loads(body[count * width * 8 :])
        yield at, Block(start, scores, {int(row): reason for row, reason in reasons.items()})


def rows_between(parts: Parts, begin: int, end: int) -> NDArray[np.float64]:
    """The scores (end - begin, K) of rows that are done, NaN where an image failed."""
    out = np.empty((end - begin, parts.classes), dtype="<f8")
    file, offset = parts.file[begin:end], parts.offset[begin:end]
    step = (np.diff(offset) != parts.classes * 8) | (np.diff(file) != 0)
    edges = [0, *(np.flatnonzero(step) + 1).tolist(), end - begin]
    for first, last in itertools.pairwise(edges):
        if first == last:
            continue
        path = parts.files[file[first]]
        with path.open("rb") as stream:
            stream.seek(int(offset[first]))
            data = stream.read((last - first) * parts.classes * 8)
        out[first:last] = np.frombuffer(data, "<f8").reshape(last - first, parts.classes)
    return out.astype(np.float64, copy=False)


def remove_parts(folder: Path) -> None:
    """Remove the parts of an output that is whole. They are this program's own."""
    shutil.rmtree(folder)
