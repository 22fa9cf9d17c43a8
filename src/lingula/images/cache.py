"""Image caches: their index, the images in it that are current, and their pixels.

    DIR/cache.json                the settings that all its pixels were made with
    DIR/003-of-016-00000.pixels   raw: uint8 (n, size, size); jpeg: n JPEG files, end to end
    DIR/003-of-016-00000.jsonl    their names, places, checksums and sources; written last

A pair of files is finished once its index is there; an index without its file is an error. The
indexes are joined when the cache is opened, so parts made on several machines only need to lie in
one folder. `cache_writing` fills caches.
"""

from __future__ import annotations

import json
import os
import posixpath
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from lingula.system import files
from lingula.system.errors import ImageError, InputError, changes, differences, examples

READING = 1
"""Raised when `read_image` gives other pixels than before, so that older caches are refused."""

Codec = Literal["raw", "jpeg"]


@dataclass(frozen=True)
class CacheSettings:
    """What the pixels of a cache follow from, besides the source files.

    Attributes:
        size: pixels per side.
        codec: `raw` keeps every level; `jpeg` is lossy.
        quality: of the JPEG, 1 to 100; None for raw.
        bits: bits in use in 16-bit sources, as `read_image` takes it.
        reading: the version of `read_image`.
    """

    size: int
    codec: Codec = "raw"
    quality: int | None = None
    bits: int | None = None
    reading: int = READING


@dataclass(frozen=True)
class Source:
    """A source file when it was read: bytes and time (-1 if it was not there), SHA-256 (or '')."""

    size: int
    mtime_ns: int
    sha256: str = ""


@dataclass(frozen=True)
class Entry:
    """One image of a cache: where its bytes lie, and what it was made from.

    An image that could not be read has no bytes (`file` is '') and a `kind` and `reason`.
    """

    image: str
    source: Source
    file: str = ""
    start: int = 0
    length: int = 0
    crc32: int = 0
    phantom: bool = False
    kind: str = ""
    reason: str = ""


@dataclass(frozen=True)
class CacheIndex:
    """An opened cache: its settings, and its entries by image name, oldest first.

    Of several opened together, `folder` is the first one's, and files of the others are whole
    paths.
    """

    folder: Path
    settings: CacheSettings
    entries: Mapping[str, Sequence[Entry]]


def cache_key(cell: str) -> str:
    """The name by which a cache knows an image cell: its path below the root, without detours."""
    return posixpath.normpath(cell)


def source_of(path: Path) -> Source:
    """Bytes and time of a file, without its hash."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return Source(-1, -1)
    return Source(status.st_size, status.st_mtime_ns)


def open_cache(folders: str | Path | Sequence[str | Path]) -> CacheIndex:
    """Open a cache, or several with the same settings as one.

    An image that one of several caches could not read is taken from another that could.

    Raises:
        InputError: a cache is damaged or lacks its pixels, or has other settings than the first.
    """
    places = [Path(p) for p in ([folders] if isinstance(folders, str | Path) else folders)]
    first, settings = places[0], read_settings(places[0])
    entries: dict[str, list[Entry]] = defaultdict(list)
    for place in places:
        changed = changes(asdict(settings), asdict(read_settings(place)))
        if changed:
            raise InputError(
                f"{first} and {place} are caches with different settings:\n"
                f"{differences(changed)}\nMake one of them again with those of the other."
            )
        for entry in _read_indexes(place):
            if place is not first and entry.file:
                entry = replace(entry, file=str(place.absolute() / entry.file))
            entries[entry.image].append(entry)
    if len(places) > 1:
        for found in entries.values():
            found.sort(key=lambda entry: entry.file != "")
    return CacheIndex(first, settings, dict(entries))


def read_settings(folder: Path) -> CacheSettings:
    """Read the settings of a cache; `InputError` if the folder is not one."""
    path = folder / "cache.json"
    if not path.is_file():
        raise InputError(
            f"{folder} is not an image cache: it has no cache.json. "
            f"`lingula data cache TABLE --out {folder}` makes one."
        )
    try:
        return CacheSettings(**files.read_object(path))
    except (InputError, TypeError):
        raise InputError(
            f"{path} can't be read: it is damaged, or of another version. Make the cache again."
        ) from None


def index_files(folder: Path) -> list[Path]:
    """The indexes of a cache's finished files, in the order of their names."""
    return sorted(folder.glob("[0-9]*-of-[0-9]*-[0-9]*.jsonl"))


def _read_indexes(folder: Path) -> list[Entry]:
    """All entries of one cache; `InputError` if an index is damaged or lacks its pixels."""
    entries = [entry for path in index_files(folder) for entry in _read_index(path)]
    ends: dict[str, int] = defaultdict(int)
    for entry in entries:
        if entry.file:
            ends[entry.file] = max(ends[entry.file], entry.start + entry.length)
    for name, end in ends.items():
        there = source_of(folder / name).size
        if there < end:
            state = "is not there" if there < 0 else f"has {there} bytes of {end}"
            raise InputError(
                f"{folder / name} {state}. Copy it again, or delete its .jsonl and make its images "
                "again by the same `lingula data cache` line."
            )
    return entries


def _read_index(path: Path) -> list[Entry]:
    """The entries of one index file, which must have the checksum that it states."""
    try:
        head, _, lines = path.read_bytes().partition(b"\n")
        if zlib.crc32(lines) != json.loads(head)["crc32"]:
            raise ValueError("wrong checksum")
        rows = json.loads(b"[" + lines.rstrip().replace(b"\n", b",") + b"]")
        return [Entry(**{**row, "source": Source(*row["source"])}) for row in rows]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path} is damaged ({error}). Delete it, and make its images again by the same "
            "`lingula data cache` line."
        ) from None


def find_current(
    index: CacheIndex, names: Sequence[str], paths: Sequence[Path]
) -> list[Entry | None]:
    """Find the entry of each image that is of its file as it is now; None where there is none."""
    found = [index.entries.get(cache_key(name), ()) for name in names]
    starts = range(0, len(names), 256)

    def find(begin: int) -> list[Entry | None]:
        here = slice(begin, begin + starts.step)
        return [_current(f, path) for f, path in zip(found[here], paths[here], strict=True)]

    # A network disk takes its time for each file's facts, so many are asked for at once.
    with ThreadPoolExecutor(16) as pool:
        return [entry for part in pool.map(find, starts) for entry in part]


def _current(found: Sequence[Entry], path: Path) -> Entry | None:
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


_PLACE = np.dtype([("file", "i8"), ("start", "i8"), ("length", "i8"), ("phantom", "?")])


@dataclass(frozen=True)
class CachedImages:
    """Where each of N images lies. All that grows with N is one array, so workers share it.

    Attributes:
        settings: what the pixels were made with.
        files: paths with their times in ns: a file that was replaced is opened anew.
        failures: kinds and reasons of images that could not be read.
        places: (N,) records of `file`, `start`, `length` and `phantom`: which of `files` an image
            is in (-1 - i if it could not be read for `failures[i]`), first byte, bytes, and whether
            the source was drawn by the phantom.
    """

    settings: CacheSettings
    files: tuple[tuple[str, int], ...]
    failures: tuple[tuple[str, str], ...]
    places: NDArray[Any]

    def __len__(self) -> int:
        return len(self.places)


def locate(
    index: CacheIndex,
    root: Path,
    names: Sequence[str],
    paths: Sequence[Path],
    table: str = "TABLE",
) -> CachedImages:
    """Find images in a cache, and make sure that none has changed since it was cached.

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
    for name, entry in zip(names, find_current(index, names, paths), strict=True):
        if entry is not None:
            entries.append(entry)
        else:
            (stale if cache_key(name) in index.entries else missing).append(name)
    changed = "have changed since they went into (or only have the names of images in)"
    for what, lost in (("are not in", missing), (changed, stale)):
        if lost:
            raise InputError(
                f"{len(lost)} of {len(names)} images {what} the cache {index.folder}: "
                f"{examples(lost, 3)} (root {root}). To put them there: {_command(index, table)}"
            )
    return _places_of(index, entries)


def _command(index: CacheIndex, table: str) -> str:
    """The command line that adds a table's images to a cache, with its settings."""
    s = index.settings
    words = f"lingula data cache {table} --size {s.size} --out {index.folder}"
    if s.codec == "jpeg":
        words += f" --codec jpeg --quality {s.quality}"
    return words + (f" --bits {s.bits}" if s.bits else "")


def _places_of(index: CacheIndex, entries: Sequence[Entry]) -> CachedImages:
    """Entries of a cache as places, in their order."""
    names = sorted({entry.file for entry in entries if entry.file})
    failures = dict.fromkeys((entry.kind, entry.reason) for entry in entries if not entry.file)
    number: dict[object, int] = {name: i for i, name in enumerate(names)}
    number |= {failure: -1 - i for i, failure in enumerate(failures)}
    places = [(number[e.file or (e.kind, e.reason)], e.start, e.length, e.phantom) for e in entries]
    paths = [index.folder / name for name in names]
    files = tuple((str(path), source_of(path).mtime_ns) for path in paths)
    return CachedImages(index.settings, files, tuple(failures), np.array(places, dtype=_PLACE))


def join_cached(parts: Sequence[CachedImages]) -> CachedImages:
    """Join the images of several tables, one after the other."""
    files: tuple[tuple[str, int], ...] = ()
    failures: tuple[tuple[str, str], ...] = ()
    places = np.concatenate([part.places for part in parts])
    begin = 0
    for part in parts:
        file = places["file"][begin : begin + len(part)]
        file += np.where(file >= 0, len(files), -len(failures))
        files, failures, begin = files + part.files, failures + part.failures, begin + len(part)
    return CachedImages(parts[0].settings, files, failures, places)


def check_cached(cached: CachedImages, images: int, size: int, bits: int | None) -> None:
    """Raise `InputError` unless a cache's images have this number, size and bits."""
    if len(cached) != images:
        raise InputError(f"There are {len(cached)} cached images for {images} files.")
    made = cached.settings
    for option, there, setting, wanted in (
        ("size", made.size, "model.image_size", size),
        ("bits", made.bits, "data.bits", bits),
    ):
        if there != wanted:
            raise InputError(
                f"The cache was made with {option}={there}, but {setting} is {wanted}. Make "
                f"another cache with --{option}, or say data.cache=null."
            )


def read_cached(
    cached: CachedImages, index: int, place: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Read one image, (size, size) uint8, into its `place` (without gaps) if one is given.

    Raises:
        ImageError: it could not be read when the cache was made (for the reason that it had then),
            or the cache's own file can't be read now.
    """
    if place is None:
        place = np.empty((cached.settings.size, cached.settings.size), dtype=np.uint8)
    which, start, length, _ = cached.places[index].item()
    if which < 0:
        raise ImageError(*cached.failures[-1 - which])
    path, stamp = cached.files[which]
    raw = cached.settings.codec == "raw"
    if raw and length != place.size:
        raise ImageError("damaged", f"{path}: the image at byte {start} has {length} bytes.")
    data = place if raw else np.empty(length, dtype=np.uint8)
    try:
        got = os.preadv(_descriptor(path, stamp), [data.data], start)
    except OSError as error:
        raise ImageError("unreadable", f"{path} can't be read: {error.strerror}.") from None
    if got != length:
        raise ImageError("truncated", f"{path} ends within the image at byte {start}.")
    if not raw:
        _decode(data, place, f"{path}: the image at byte {start}")
    return place


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


def _decode(data: NDArray[np.uint8], place: NDArray[np.uint8], what: str) -> None:
    try:
        shape = simplejpeg.decode_jpeg(data, "GRAY", strict=True, buffer=place).shape[:2]
        reason = "" if shape == place.shape else f"it is {shape}"
    except ValueError as error:
        reason = str(error).rstrip(".") or "it can't be decoded"
    if reason:
        advice = "`lingula data cache --verify DIR` names all such images."
        raise ImageError("damaged", f"{what} is damaged: {reason}. {advice}")
