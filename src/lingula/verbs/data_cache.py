"""`lingula data cache`: images that are decoded once, in a few large files."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from lingula.images.cache import CacheSettings, open_cache
from lingula.images.cache_writing import (
    Cached,
    Estimate,
    Part,
    claim_cache,
    fill_cache,
    find_damaged,
    missing_parts,
)
from lingula.system import files
from lingula.system.errors import InputError, examples
from lingula.system.progress import count_only, format_seconds, progress
from lingula.tables.folder import images_in

log = logging.getLogger("lingula")


def data_cache(
    table: str | Path,
    *,
    out: str | Path,
    root: str | Path | None = None,
    size: int = 512,
    codec: Literal["raw", "jpeg"] = "raw",
    quality: int = 90,
    bits: int | None = None,
    shard: str | None = None,
    workers: int = 0,
    overwrite: bool = False,
) -> Cached:
    """Read every image of a table or folder once, as training does, and keep the pixels.

    Args:
        table: a table, a folder (scanned by content) or one image.
        out: the cache's folder; what is in it already is kept, so that the command can continue.
        root: folder of a table's images, if not the table's own: the training's `data.root`.
        size: pixels per side, the model's `model.image_size`.
        codec: `raw` keeps the pixels exactly as training reads them; `jpeg` is smaller and lossy.
        quality: of the JPEG.
        bits: bits in use in 16-bit files, the training's `data.bits`.
        shard: `3/16` makes only the third of sixteen parts, in files of its own.
        workers: decoding threads; 0 is one per core.
        overwrite: set a cache of other settings aside instead of refusing.
    """
    if not 32 <= size <= 4096:
        raise InputError(f"size is {size}; it must be from 32 to 4096 pixels.")
    if not 1 <= quality <= 100:
        raise InputError(f"quality is {quality}; it must be from 1 to 100.")
    if codec not in ("raw", "jpeg"):
        raise InputError(f"codec is {codec!r}; it must be raw or jpeg.")
    if bits is not None and not 9 <= bits <= 16:
        raise InputError(f"bits is {bits}; it must be from 9 to 16.")
    if workers < 0:
        raise InputError(f"workers is {workers}; it must be 0 (one per core) or more.")
    if overwrite and shard is not None:
        raise InputError("--overwrite with --shard would set aside what the other parts wrote.")
    folder, part = Path(out), _part(shard)
    own_root, names, found = images_in(table)
    if root is not None and found is None:
        raise InputError(f"--root is for tables; {table} is not one.")
    settings = CacheSettings(size, codec, quality if codec == "jpeg" else None, bits)
    claim_cache(folder, settings, overwrite=overwrite)
    if codec == "jpeg":
        log.info("jpeg is lossy: models see slightly other pixels than from the files; raw is not.")
    with progress("caching") as tick:
        return fill_cache(
            folder,
            settings,
            own_root if root is None else Path(root),
            names,
            part=part,
            workers=workers,
            announce=_announcing(folder, settings),
            progress=count_only(tick),
        )


def _part(shard: str | None) -> Part:
    if shard is None:
        return Part()
    found = re.fullmatch(r"(\d{1,3})/(\d{1,3})", shard)
    number, of = (int(text) for text in found.groups()) if found else (0, 0)
    if not 1 <= number <= of:
        raise InputError(f"--shard {shard}: say which part of how many, such as 3/16.")
    return Part(number, of)


def _announcing(folder: Path, settings: CacheSettings) -> Callable[[Estimate], None]:
    def announce(expected: Estimate) -> None:
        log.info(
            "%d images to %d px %s: about %s and %s on %d threads.",
            expected.images,
            settings.size,
            settings.codec,
            files.format_bytes(expected.bytes),
            format_seconds(expected.seconds),
            expected.workers,
        )
        advice = "Choose another --out, a smaller --size or --codec jpeg."
        files.check_room(folder, expected.bytes, "the pixels", advice)

    return announce


def data_cache_verify(folder: str | Path) -> dict[str, Any]:
    """Check every checksum of a cache: `images`, `failed`, and `damaged`, reason by image."""
    index = open_cache(folder)
    with progress("verifying") as tick:
        damaged = find_damaged(index, count_only(tick))
    newest = [found[-1] for found in index.entries.values()]
    return {
        "images": sum(bool(entry.file) for entry in newest),
        "failed": {entry.image: entry.reason for entry in newest if not entry.file},
        "damaged": damaged,
    }


def data_cache_join(folder: str | Path) -> Cached:
    """Check that a cache made in parts has all of them; `InputError` names missing parts."""
    place = Path(folder)
    index = open_cache(place)
    lacking = missing_parts(place)
    if lacking or not index.entries:
        raise InputError(
            f"{place} is incomplete: parts {examples(lacking)} are not finished."
            if lacking
            else f"{place} has no images yet."
        )
    newest = [found[-1] for found in index.entries.values()]
    failures = {entry.image: entry.reason for entry in newest if not entry.file}
    return Cached(place, 0, len(newest) - len(failures), failures)
