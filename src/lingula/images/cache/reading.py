"""Images read from a cache: finding them, making sure that they are not stale, and their pixels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from lingula.images.cache.files import CacheIndex, CacheSettings, Entry, key, source_of
from lingula.system import files
from lingula.system.errors import ImageError, InputError, examples


@dataclass(frozen=True)
class CachedImages:
    """Where each of N images lies. NumPy arrays and plain values only, so workers share them.

    Attributes:
        settings: what the pixels were made with.
        files: the F files, as text.
        stamps: (F,) their times in ns: a file that was replaced is opened anew.
        file: (N,) which file an image is in; -1 for those that could not be read.
        start: (N,) first byte; of those that could not be read, which row of `failures`.
        length: (N,) bytes.
        failures: (M, 2) kind and reason.
        phantom: (N,) whether the source was drawn by the phantom.
    """

    settings: CacheSettings
    files: NDArray[np.str_]
    stamps: NDArray[np.int64]
    file: NDArray[np.int64]
    start: NDArray[np.int64]
    length: NDArray[np.int64]
    failures: NDArray[np.str_]
    phantom: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.file)


def placed(folder: Path, settings: CacheSettings, entries: Sequence[Entry]) -> CachedImages:
    """Entries as arrays, in their order."""
    names = sorted({entry.file for entry in entries if entry.file})
    number = {name: i for i, name in enumerate(names)}
    failed = [entry for entry in entries if not entry.file]
    reasons: dict[tuple[str, str], int] = {}
    for entry in failed:
        reasons.setdefault((entry.kind, entry.reason), len(reasons))
    return CachedImages(
        settings,
        files=np.array([str(folder / name) for name in names], dtype=np.str_),
        stamps=np.array([source_of(folder / name).mtime_ns for name in names], dtype=np.int64),
        file=np.array([number.get(e.file, -1) for e in entries], dtype=np.int64),
        start=np.array(
            [e.start if e.file else reasons[e.kind, e.reason] for e in entries], dtype=np.int64
        ),
        length=np.array([e.length for e in entries], dtype=np.int64),
        failures=np.array(list(reasons), dtype=np.str_).reshape(-1, 2),
        phantom=np.array([e.phantom for e in entries], dtype=np.bool_),
    )


def joined(parts: Sequence[CachedImages]) -> CachedImages:
    """The images of several tables in the same caches, one after the other."""
    first = parts[0]
    before_files = np.cumsum([0, *(len(part.files) for part in parts)])
    before_failures = np.cumsum([0, *(len(part.failures) for part in parts)])
    file, start = [], []
    for part, f, r in zip(parts, before_files, before_failures, strict=False):
        here = part.file >= 0
        file.append(np.where(here, part.file + f, -1))
        start.append(np.where(here, part.start, part.start + r))
    return CachedImages(
        first.settings,
        files=np.concatenate([part.files for part in parts]),
        stamps=np.concatenate([part.stamps for part in parts]),
        file=np.concatenate(file),
        start=np.concatenate(start),
        length=np.concatenate([part.length for part in parts]),
        failures=np.concatenate([part.failures for part in parts]),
        phantom=np.concatenate([part.phantom for part in parts]),
    )


# Descriptors of this process, by file and time; they stay open until it ends. Reading by `pread`
# rather than through a memory map: a disk error is then an error and not the process's death.
_OPEN: dict[tuple[str, int], int] = {}


def _descriptor(path: str, stamp: int) -> int:
    found = _OPEN.get((path, stamp))
    if found is None:
        found = os.open(path, os.O_RDONLY)
        # Two threads may have opened it: the first one's is used by both.
        kept = _OPEN.setdefault((path, stamp), found)
        if kept != found:
            os.close(found)
        found = kept
    return found


def read_cached(cached: CachedImages, index: int) -> NDArray[np.uint8]:
    """One image, (size, size) uint8; see `read_cached_into`."""
    image = np.empty((cached.settings.size, cached.settings.size), dtype=np.uint8)
    read_cached_into(cached, index, image)
    return image


def read_cached_into(cached: CachedImages, index: int, place: NDArray[np.uint8]) -> None:
    """One image into its place, (size, size) uint8 without gaps.

    Raises:
        ImageError: it could not be read when the cache was made (for the reason that it had then),
            or the cache's own file can't be read now.
    """
    which, start = int(cached.file[index]), int(cached.start[index])
    if which < 0:
        kind, reason = cached.failures[start]
        raise ImageError(str(kind), str(reason))
    path, length = str(cached.files[which]), int(cached.length[index])
    raw = cached.settings.codec == "raw"
    if raw and length != place.size:
        raise ImageError("damaged", f"{path}: the image at byte {start} has {length} bytes.")
    data = place if raw else np.empty(length, dtype=np.uint8)
    try:
        got = os.preadv(_descriptor(path, int(cached.stamps[which])), [data.data], start)
    except OSError as error:
        raise ImageError("unreadable", f"{path} can't be read: {error.strerror}.") from None
    if got != length:
        raise ImageError("truncated", f"{path} ends within the image at byte {start}.")
    if not raw:
        _decode(data, place, path, start)


def _decode(data: NDArray[np.uint8], place: NDArray[np.uint8], path: str, start: int) -> None:
    shape: tuple[int, ...] = ()
    try:
        shape = simplejpeg.decode_jpeg(data, "GRAY", strict=True, buffer=place).shape[:2]
    except ValueError as error:
        reason = str(error)
    else:
        reason = f"it is {shape}"
    if shape != place.shape:
        raise ImageError(
            "damaged",
            f"{path}: the image at byte {start} is damaged: {reason.rstrip('.')}. "
            "`lingula data cache --verify DIR` names all such.",
        )


def locate(
    index: CacheIndex,
    root: Path,
    names: Sequence[str],
    paths: Sequence[Path],
    table: str = "TABLE",
) -> CachedImages:
    """Where these images lie, once it is sure that none has changed since it was cached.

    A source that is there must have the bytes and time that it had, or the same content. One that
    is not there can't have changed: a cache may travel without its sources.

    Args:
        index: an opened cache, or several opened together.
        root: the folder that `names` are relative to.
        names: the image cells.
        paths: their files.
        table: what to call their table in the command that adds them.

    Raises:
        InputError: images that are not in the cache or have changed, with the way to add them.
    """
    entries: list[Entry] = []
    missing: list[str] = []
    stale: list[str] = []
    for name, entry in zip(names, currents(index, names, paths), strict=True):
        if entry is not None:
            entries.append(entry)
        else:
            (stale if key(name) in index.entries else missing).append(name)
    changed = "have changed since they went into (or only have the names of images in)"
    for what, lost in (("are not in", missing), (changed, stale)):
        if lost:
            raise InputError(
                f"{len(lost)} of {len(names)} images {what} the cache {index.folder}: "
                f"{examples(lost, 3)} (root {root}). To put them there: {remake(index, table)}"
            )
    return placed(index.folder, index.settings, entries)


def currents(index: CacheIndex, names: Sequence[str], paths: Sequence[Path]) -> list[Entry | None]:
    """`current` of each image, in threads: a network disk takes its time for each file's facts."""
    found = [index.entries.get(key(name), ()) for name in names]

    def some(begin: int) -> list[Entry | None]:
        here = slice(begin, begin + _AT_ONCE)
        return [current(f, path) for f, path in zip(found[here], paths[here], strict=True)]

    with ThreadPoolExecutor(_THREADS) as pool:
        parts = list(pool.map(some, range(0, len(names), _AT_ONCE)))
    return [entry for part in parts for entry in part]


_THREADS, _AT_ONCE = 16, 256


def current(found: Sequence[Entry], path: Path) -> Entry | None:
    """The entry of an image that is of the file as it is now; None if none is."""
    if not found:
        return None
    now = source_of(path)
    if now.size < 0:
        contents = {entry.source.sha256 for entry in found if entry.file}
        # Two tables may have images of one name; without the source, which is meant is not known.
        readable = [entry for entry in found if entry.file] or list(found)
        return readable[-1] if len(contents) <= 1 else None
    alike = [entry for entry in found if entry.source.size == now.size]
    same = [entry for entry in alike if entry.source.mtime_ns == now.mtime_ns]
    # Archives may give all files one time: where two contents have one size, the time won't do.
    if not alike or (same and len({entry.source.sha256 for entry in alike}) == 1):
        return same[-1] if same else None
    try:
        content = files.sha256(path)
    except OSError:
        return None
    return next((e for e in reversed(alike) if e.source.sha256 == content), None)


def remake(index: CacheIndex, table: str = "TABLE") -> str:
    """The command line that adds a table's images to a cache, with its settings."""
    s = index.settings
    words = f"lingula data cache {table} --size {s.size} --out {index.folder}"
    if s.codec == "jpeg":
        words += f" --codec jpeg --quality {s.quality}"
    return words + (f" --bits {s.bits}" if s.bits else "")


def check_cached(cached: CachedImages, images: int, size: int, bits: int | None) -> None:
    """Raise `InputError` unless a cache's images are as many, of this size and of these bits."""
    s = cached.settings
    if len(cached) != images:
        raise InputError(f"There are {len(cached)} cached images for {images} files.")
    if s.size != size:
        raise InputError(
            f"The cache holds images of {s.size} pixels, but the model takes {size} "
            "(model.image_size). Make another cache with --size, or say data.cache=null."
        )
    if s.bits != bits:
        raise InputError(
            f"The cache was made with bits={s.bits}, but data.bits={bits} is asked for. Make "
            "another cache with --bits, or say data.cache=null."
        )
