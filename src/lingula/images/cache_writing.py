"""Filling an image cache: each image read once, into few large files, in threads and in parts."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from lingula.images.cache import (
    CacheIndex,
    CacheSettings,
    Entry,
    cache_key,
    find_current,
    index_files,
    open_cache,
    read_settings,
    source_of,
)
from lingula.images.files import image_path, is_phantom
from lingula.images.reading import read_image
from lingula.system import files
from lingula.system.claims import OTHER_CONTENT, claim, other_settings
from lingula.system.csv_cells import format_csv
from lingula.system.errors import ImageError

IMAGES_PER_FILE = 4096  # 1 GiB of raw images at 512 pixels; what a kill costs at most
_BYTES_PER_FILE = 2**30
_PROBES = 16


@dataclass(frozen=True)
class Part:
    """Part `number` (from 1) of `of`: every `of`-th image, in files of its own."""

    number: int = 1
    of: int = 1

    @property
    def name(self) -> str:
        """`003-of-016`, which its files' names begin with."""
        return f"{self.number:03}-of-{self.of:03}"


@dataclass(frozen=True)
class Estimate:
    """What is to be done: images to read, bytes in the cache, and seconds on `workers` threads."""

    images: int
    bytes: int
    seconds: float
    workers: int


@dataclass(frozen=True)
class Cached:
    """A cache: its folder, images made now, kept from before, and those that could not be read.

    Attributes:
        folder: the cache.
        made: images that this run put in.
        kept: images of those asked for that were there already.
        failures: reason by image.
        failed: the file that names the failures, if there are any.
    """

    folder: Path
    made: int
    kept: int
    failures: dict[str, str]
    failed: Path | None = None


def claim_cache(folder: Path, settings: CacheSettings, *, overwrite: bool = False) -> None:
    """Make the folder a cache with these settings, or check that it is one.

    Raises:
        InputError: it is a cache with other settings, or contains something else, and `overwrite`
            is not set.
    """
    path = folder / "cache.json"
    before = asdict(read_settings(folder)) if path.is_file() and not overwrite else None
    conflict = other_settings(before, asdict(settings), not_ours=OTHER_CONTENT)
    if conflict is not None:
        claim(folder, conflict, overwrite=overwrite).make_room()
        files.write_json(path, asdict(settings))


def write_index(path: Path, entries: Sequence[Entry]) -> None:
    """Write the index of one file: a line with the checksum of the rest, then a line per entry."""
    lines = ""
    for entry in entries:
        plain = {**vars(entry), "source": [*vars(entry.source).values()]}
        stated = {name: value for name, value in plain.items() if value or name == "image"}
        lines += json.dumps(stated, ensure_ascii=False) + "\n"
    head = json.dumps({"entries": len(entries), "crc32": zlib.crc32(lines.encode())})
    files.write_text(path, f"{head}\n{lines}")


def fill_cache(
    folder: Path,
    settings: CacheSettings,
    root: Path,
    names: Sequence[str],
    *,
    part: Part = Part(),
    workers: int = 0,
    images_per_file: int = IMAGES_PER_FILE,
    announce: Callable[[Estimate], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Cached:
    """Put a part of these images into a cache (already claimed); what is there is kept.

    Images that can't be read are recorded with their reason, and tried again by the next run.

    Args:
        folder: the cache.
        settings: its settings.
        root: the folder that `names` are relative to.
        names: image cells of a table.
        part: which of them.
        workers: decoding threads; 0 is one per core.
        images_per_file: finished files survive a kill, so this is what it costs at most.
        announce: called with what is to be done before it is begun.
        progress: called with images done and in all.
    """
    workers = workers or os.cpu_count() or 1
    mine = sorted({cache_key(name) for name in names})[part.number - 1 :: part.of]
    paths = [_path(root, name) for name in mine]
    current = dict(zip(mine, find_current(open_cache(folder), mine, paths), strict=True))
    before = {name: entry for name, entry in current.items() if entry is not None}
    todo = [name for name in mine if name not in before or not before[name].file]
    if announce is not None and todo:
        announce(_estimate(root, todo, settings, workers))
    files.remove_temporary_files(folder, rf"{part.name}-\d+")
    retimed = list(_retimed(before, zip(mine, paths, strict=True)))
    if retimed:
        write_index(folder / f"{_next_name(folder, part)}.jsonl", retimed)
    per_file = max(1, min(images_per_file, _BYTES_PER_FILE // settings.size**2))
    done: list[Entry] = []

    def tick(entry: Entry) -> None:
        done.append(entry)
        if progress is not None:
            progress(len(done), len(todo))

    with contextlib.closing(_read_all(root, todo, settings, workers)) as images:
        for begin in range(0, len(todo), per_file):
            some = itertools.islice(images, min(per_file, len(todo) - begin))
            _write_file(folder / _next_name(folder, part), some, before, tick)
    failures = {entry.image: entry.reason for entry in done if not entry.file}
    failed = _write_failures(folder / f"{part.name}.failed.csv", failures)
    facts = {"images": len(mine), "failed": len(failures)}
    files.write_json(folder / f"{part.name}.finished.json", facts)
    return Cached(folder, len(done) - len(failures), len(mine) - len(todo), failures, failed)


def _retimed(
    before: Mapping[str, Entry], sources: Iterable[tuple[str, Path]]
) -> Generator[Entry, None, None]:
    """New entries for sources that got another time, but not another content."""
    for name, path in sources:
        entry = before.get(name)
        if entry is not None and entry.file:
            now = replace(source_of(path), sha256=entry.source.sha256)
            if now.size >= 0 and now != entry.source:
                yield replace(entry, source=now)


def _path(root: Path, name: str) -> Path:
    """Where a name points; where no file can be if it leads out of the root."""
    try:
        return image_path(root, name)
    except ImageError:
        return root / "\0"


def _make(root: Path, name: str, settings: CacheSettings) -> tuple[Entry, bytes]:
    """One image's entry, not yet placed, and its bytes; for one that can't be read, no bytes."""
    path = _path(root, name)
    # The facts before the content: a file that changes in between is then stale.
    source = replace(source_of(path), sha256=_sha256(path))
    try:
        image = read_image(image_path(root, name), settings.size, bits=settings.bits)
        data = _encode(image, settings)
    except ImageError as error:
        return Entry(name, source, kind=error.kind, reason=str(error)), b""
    entry = Entry(
        name,
        source,
        length=len(data),
        crc32=zlib.crc32(data),
        phantom=is_phantom(path),
    )
    return entry, data


def _sha256(path: Path) -> str:
    """Hash of a file; empty for one that can't be read, for which `read_image` says why."""
    try:
        return files.sha256(path)
    except (OSError, ValueError):
        return ""


def _encode(image: NDArray[np.uint8], settings: CacheSettings) -> bytes:
    """The bytes of one image (size, size) in the cache."""
    if settings.codec == "raw":
        return image.tobytes()
    data: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(image)[..., None],
        quality=settings.quality,
        colorspace="GRAY",
        colorsubsampling="GRAY",
        fastdct=False,
    )
    return data


def _read_all(
    root: Path, names: Sequence[str], settings: CacheSettings, workers: int
) -> Generator[tuple[Entry, bytes], None, None]:
    """Every image in order, read a little ahead in threads (the decoders release Python's lock)."""
    ahead: deque[Future[tuple[Entry, bytes]]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for name in names:
            ahead.append(pool.submit(_make, root, name, settings))
            if len(ahead) > 4 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _estimate(root: Path, names: Sequence[str], settings: CacheSettings, workers: int) -> Estimate:
    """Bytes and seconds, by making a few of the images and throwing them away."""
    probes = names[:: max(1, len(names) // _PROBES)][:_PROBES]
    began = time.perf_counter()
    sizes = [len(data) for _, data in _read_all(root, probes, settings, workers)]
    seconds = time.perf_counter() - began
    good = [size for size in sizes if size]
    each = settings.size**2 if settings.codec == "raw" else int(np.mean(good)) if good else 0
    return Estimate(
        len(names), len(names) * each, seconds / len(probes) * len(names), min(workers, len(names))
    )


def _write_file(
    stem: Path,
    images: Iterable[tuple[Entry, bytes]],
    before: Mapping[str, Entry],
    tick: Callable[[Entry], None],
) -> None:
    """Write one file of pixels and its index, each whole or not at all; tick for each entry."""
    entries: list[Entry] = []
    pixels = stem.with_suffix(".pixels")
    with files.write_atomically(pixels) as temporary, temporary.open("wb") as stream:
        for entry, data in images:
            if data:
                entry = replace(entry, file=pixels.name, start=stream.tell())
                stream.write(data)
            entries.append(entry)
            tick(entry)
    if not any(entry.file for entry in entries):
        pixels.unlink()
    new = [entry for entry in entries if entry.file or entry != before.get(entry.image)]
    if new:
        write_index(stem.with_suffix(".jsonl"), new)


def _next_name(folder: Path, part: Part) -> str:
    taken = [int(p.stem.rpartition("-")[2]) for p in index_files(folder) if part.name in p.name]
    return f"{part.name}-{max(taken, default=-1) + 1:05}"


def _write_failures(path: Path, failures: Mapping[str, str]) -> Path | None:
    """Write the images that could not be read; where there are none, there is no file."""
    if not failures:
        path.unlink(missing_ok=True)
        return None
    files.write_text(path, format_csv(["image", "reason"], failures.items()))
    return path


def missing_parts(folder: Path) -> list[str]:
    """The parts that are not finished, as `3/16`; none if there is a number of which all are."""
    done = [path.name.split(".")[0] for path in folder.glob("*-of-*.finished.json")]
    begun = {path.name[:10] for path in index_files(folder)} | set(done)
    lacking = [
        [f"{n}/{of}" for n in range(1, of + 1) if Part(n, of).name not in done]
        for of in {int(name[-3:]) for name in begun}
    ]
    return min(lacking, key=len, default=[])


def find_damaged(
    index: CacheIndex, progress: Callable[[int, int], None] | None = None
) -> dict[str, str]:
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
