"""An image cache on disk: its settings, and the index of its files.

    DIR/cache.json                the settings that all its pixels were made with
    DIR/003-of-016-00000.pixels   raw: uint8 (n, size, size); jpeg: n JPEG files, end to end
    DIR/003-of-016-00000.jsonl    their names, places, checksums and sources; written last

A pair of files is finished once its index is there; an index without its file is an error. The
indexes are joined when the cache is opened, so parts made on several machines only need to lie in
one folder.
"""

from __future__ import annotations

import itertools
import json
import posixpath
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lingula.system import files
from lingula.system.errors import InputError, changes, differences

READING = 1
"""Raised when `read_image` gives other pixels than before, so that older caches are refused."""

Codec = Literal["raw", "jpeg"]


@dataclass(frozen=True)
class CacheSettings:
    """What the pixels of a cache follow from, besides the source files.

    Attributes:
        size: pixels a side.
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

    Of several opened together, see `open_caches`.
    """

    folder: Path
    settings: CacheSettings
    entries: Mapping[str, Sequence[Entry]]


def key(cell: str) -> str:
    """The name that an image cell is known by: its path below the root, without detours."""
    return posixpath.normpath(cell)


def source_of(path: Path) -> Source:
    """Bytes and time of a file, without its hash."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return Source(-1, -1)
    return Source(status.st_size, status.st_mtime_ns)


def claim(folder: Path, settings: CacheSettings) -> None:
    """Make the folder a cache of these settings, or check that it is one.

    Raises:
        InputError: it is a cache of other settings, or holds something else.
    """
    path = folder / "cache.json"
    if path.is_file():
        changed = changes(asdict(read_settings(folder)), asdict(settings))
        if changed:
            raise InputError(
                f"{folder} is a cache with other settings:\n{differences(changed)}\n"
                "Choose another --out, or --overwrite to set the old one aside."
            )
        return
    if folder.is_file() or _holds_other(folder):
        raise InputError(f"{folder} is there already and is no cache; choose another --out.")
    files.write_json(path, asdict(settings))


def _holds_other(folder: Path) -> bool:
    # Hidden files may be those of another machine that begins this cache at the same moment.
    return folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())


def read_settings(folder: Path) -> CacheSettings:
    """The settings of a cache; `InputError` if the folder is none."""
    path = folder / "cache.json"
    if not path.is_file():
        raise InputError(
            f"{folder} is no image cache: it has no cache.json. "
            f"`lingula data cache TABLE --out {folder}` makes one."
        )
    try:
        return CacheSettings(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise InputError(
            f"{path} can't be read: it is damaged, or of another version. Make the cache again."
        ) from None


def write_index(path: Path, entries: Sequence[Entry]) -> None:
    """Write the index of one file: a line with the checksum of the rest, then a line an entry."""
    lines = "".join(json.dumps(_plain(entry), ensure_ascii=False) + "\n" for entry in entries)
    head = json.dumps({"entries": len(entries), "crc32": zlib.crc32(lines.encode())})
    files.write_text(path, f"{head}\n{lines}")


def _plain(entry: Entry) -> dict[str, Any]:
    plain = {**vars(entry), "source": [*vars(entry.source).values()]}
    return {name: value for name, value in plain.items() if value or name == "image"}


def read_index(path: Path) -> list[Entry]:
    """The entries of one index file, which must have the checksum that it says."""
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


def open_cache(folder: str | Path) -> CacheIndex:
    """Join the indexes of a cache. `InputError` if one is damaged or lacks its pixels."""
    place = Path(folder)
    settings = read_settings(place)
    entries: dict[str, list[Entry]] = defaultdict(list)
    ends: dict[str, int] = defaultdict(int)
    for path in index_files(place):
        for entry in read_index(path):
            entries[entry.image].append(entry)
            if entry.file:
                ends[entry.file] = max(ends[entry.file], entry.start + entry.length)
    for name, end in ends.items():
        there = source_of(place / name).size
        if there < end:
            state = "is not there" if there < 0 else f"has {there} bytes of {end}"
            raise InputError(
                f"{place / name} {state}. Copy it again, or delete its .jsonl and make its images "
                "again by the same `lingula data cache` line."
            )
    return CacheIndex(place, settings, dict(entries))


def open_caches(folders: str | Path | Sequence[str | Path]) -> CacheIndex:
    """A cache, or several of the same settings as one: an image is found in whichever holds it.

    Of several, its folder is the first one's, and its entries' files are whole paths. What one
    cache could not read is taken from another that could.

    Raises:
        InputError: a cache can't be opened, or has other settings than the first.
    """
    places = [folders] if isinstance(folders, str | Path) else folders
    caches = [open_cache(place) for place in places]
    first = caches[0]
    if len(caches) == 1:
        return first
    entries: dict[str, list[Entry]] = defaultdict(list)
    for cache in caches:
        changed = changes(asdict(first.settings), asdict(cache.settings))
        if changed:
            raise InputError(
                f"{first.folder} and {cache.folder} are caches with different settings:\n"
                f"{differences(changed)}\nMake one of them again with those of the other."
            )
        for name, found in cache.entries.items():
            entries[name] += [
                replace(e, file=str(cache.folder.absolute() / e.file)) if e.file else e
                for e in found
            ]
    ordered = {name: sorted(every, key=lambda e: e.file != "") for name, every in entries.items()}
    return CacheIndex(first.folder, first.settings, ordered)


def index_files(folder: Path) -> list[Path]:
    """The indexes of a cache's finished files, in the order of their names."""
    return sorted(folder.glob("[0-9]*-of-[0-9]*-[0-9]*.jsonl"))


def verify(index: CacheIndex, progress: Callable[[int, int], None] | None = None) -> dict[str, str]:
    """Compare every image's bytes with their checksum; the reason by name for those that differ."""
    bad: dict[str, str] = {}
    # An image whose source got another time has two entries for the same bytes.
    places = {(e.file, e.start): e for found in index.entries.values() for e in found if e.file}
    every = [places[place] for place in sorted(places)]
    done = 0
    for name, entries in itertools.groupby(every, key=lambda entry: entry.file):
        with (index.folder / name).open("rb") as stream:
            for entry in entries:
                stream.seek(entry.start)
                if zlib.crc32(stream.read(entry.length)) != entry.crc32:
                    bad[entry.image] = f"{name}: wrong checksum at byte {entry.start}"
                done += 1
                if progress is not None:
                    progress(done, len(every))
    return bad
