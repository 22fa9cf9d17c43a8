"""`lingula bench data`: images per second of one core, from films and from caches, to batches.

Figures are per second of processor time, on which other programs have little effect; those of the
wall clock are given beside them. All are medians of rounds in which the parts take turns.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from lingula.bench.rounds import Times, time_rounds
from lingula.images.cache import CacheSettings, locate, open_cache
from lingula.images.cache_writing import claim_cache, fill_cache
from lingula.images.reading import read_image
from lingula.loading.batches import Radiographs, consecutive_batches, load
from lingula.loading.warp import Warp, draw_warps, warp_levels
from lingula.phantom import write_phantom
from lingula.settings.config import Augment
from lingula.system.errors import InputError
from lingula.system.progress import progress

FILMS = 6
CACHED = 96
BATCH = 16  # at 512 px, warped batches of 32 MiB and more cost a quarter: fresh memory each time
WIDTH, HEIGHT = 2500, 3000
NOISE = 4.0  # grey levels; gives files of about 1.6 MB, as those of MIMIC-CXR-JPG
QUALITY = 90


@dataclass(frozen=True)
class _Part:
    """What is timed, how many images it handles, and the part that it is compared with."""

    name: str
    run: Callable[[], object]
    images: int
    against: str = ""


def bench_data(*, size: int = 512, rounds: int = 5) -> dict[str, Any]:
    """Time reading, caches and augmentation on films drawn for it, on one core.

    Returns:
        `images_per_s` (a raw cache to augmented batches), its `baseline` (Pillow on JPEGs of the
        same size, then torchvision's chain of transforms) and their `ratio`; `parts` with the same
        three and `wall_images_per_s` for each of: `films` (JPEGs of 2500 x 3000 read to `size`),
        `raw`, `jpeg` (caches to augmented batches), `raw_load`, `jpeg_load` (without the warp) and
        `warp` (alone).
    """
    if not 32 <= size <= 1024:
        raise InputError(f"size is {size}; it must be from 32 to 1024 pixels.")
    if rounds < 1:
        raise InputError(f"rounds is {rounds}; it must be 1 or more.")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="lingula-bench-") as folder:
            with progress("drawing films") as tick:
                parts = _prepare_parts(Path(folder), size, lambda n: tick(n, FILMS + CACHED, ""))
            with progress("timing") as tick:
                calls = {part.name: part.run for part in parts}
                times = time_rounds(calls, rounds, tick=lambda n: tick(n, rounds, ""))
    finally:
        torch.set_num_threads(threads)
    shown = {part.name: _measure(part, times) for part in parts if part.against}
    headline = {key: shown["raw"][key] for key in ("images_per_s", "baseline", "ratio")}
    return {**headline, "size": size, "threads": 1, "rounds": rounds, "parts": shown}


def to_text(result: dict[str, Any]) -> str:
    """The figures as lines for a terminal."""
    lines = [f"images per second of one core, {result['size']} px, median of {result['rounds']}:"]
    for name, part in result["parts"].items():
        lines.append(
            f"  {name:<10} {part['images_per_s']:>8.0f}   baseline {part['baseline']:>7.0f}"
            f"   x {part['ratio']:.1f}   {_ABOUT[name]}"
        )
    return "\n".join(lines)


_ABOUT = {
    "films": f"JPEG of {WIDTH} x {HEIGHT}, read and resized; Pillow, then resized",
    "raw": "raw cache to augmented batch; Pillow from small JPEGs, torchvision's chain",
    "jpeg": "jpeg cache to augmented batch; the same",
    "raw_load": "raw cache to uint8 batch, as for a GPU; Pillow alone",
    "jpeg_load": "jpeg cache to uint8 batch; Pillow alone",
    "warp": "one warp of a uint8 batch; torchvision's chain",
}


def _prepare_parts(folder: Path, size: int, tick: Callable[[int], None]) -> list[_Part]:
    """Films, two caches and small JPEGs in the folder, and what is to be timed on them."""
    films = _draw_films(folder / "films", tick)
    small = [read_image(path, size) for path in films]
    # Many more images than films, so that they do not fit into the processor's cache.
    many = [np.roll(small[i % FILMS], 31 * i, axis=(0, 1)) for i in range(CACHED)]
    for kind in ("png", "jpg"):
        (folder / kind).mkdir()
    for i, levels in enumerate(many):
        Image.fromarray(levels).save(folder / "png" / f"{i:03}.png", compress_level=1)
        Image.fromarray(levels).save(folder / "jpg" / f"{i:03}.jpg", quality=QUALITY)
        tick(FILMS + i + 1)
    files = sorted((folder / "jpg").iterdir())
    raw = _fill_cache(folder, CacheSettings(size))
    jpeg = _fill_cache(folder, CacheSettings(size, "jpeg", QUALITY))
    chain = _make_chain(size)
    batch = torch.from_numpy(np.stack(many)).unsqueeze(1)
    return [
        _Part("films", lambda: [read_image(path, size) for path in films], FILMS, "pillow films"),
        _Part("pillow films", lambda: [_decode(path, size) for path in films], FILMS),
        _Part("raw", lambda: _read_batches(raw), CACHED, "pillow chain"),
        _Part("jpeg", lambda: _read_batches(jpeg), CACHED, "pillow chain"),
        _Part("raw_load", lambda: list(_load(raw)), CACHED, "pillow"),
        _Part("jpeg_load", lambda: list(_load(jpeg)), CACHED, "pillow"),
        _Part("warp", lambda: _warp(batch[:BATCH], np.arange(BATCH)), BATCH, "chain"),
        _Part("pillow chain", lambda: _augment([_decode(p) for p in files], chain), CACHED),
        _Part("pillow", lambda: np.stack([_decode(path) for path in files]), CACHED),
        _Part("chain", lambda: _augment(many[:BATCH], chain), BATCH),
    ]


def _draw_films(folder: Path, tick: Callable[[int], None]) -> list[Path]:
    """Phantoms at a film's size with a detector's noise, as JPEG."""
    write_phantom(folder / "phantom", n=30, size=256, seed=0)
    drawn = sorted((folder / "phantom").rglob("*.png"))[:FILMS]
    noise = np.random.default_rng(0)
    paths = []
    for i, path in enumerate(drawn):
        with Image.open(path) as phantom:
            large = phantom.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        levels = np.asarray(large) + noise.normal(0, NOISE, (HEIGHT, WIDTH)).astype(np.float32)
        film = np.clip(levels, 0, 255).astype(np.uint8)
        paths.append(folder / f"{i}.jpg")
        paths[-1].write_bytes(
            simplejpeg.encode_jpeg(
                film[..., None], QUALITY, colorspace="GRAY", colorsubsampling="GRAY"
            )
        )
        tick(i + 1)
    return paths


def _fill_cache(folder: Path, settings: CacheSettings) -> Radiographs:
    place = folder / f"cache-{settings.codec}"
    claim_cache(place, settings)
    paths = sorted((folder / "png").iterdir())
    names = [path.name for path in paths]
    fill_cache(place, settings, folder / "png", names, workers=1)
    cached = locate(open_cache(place), folder / "png", names, paths)
    return Radiographs(paths, settings.size, None, cached)


def _load(dataset: Radiographs) -> Any:
    return load(dataset, consecutive_batches(len(dataset), BATCH))


def _warp(images: Tensor, indices: NDArray[np.intp]) -> Tensor:
    a = Augment()
    matrices = draw_warps(Warp(a.scale, a.flip, a.rotation), indices, seed=0, epoch=0)
    return warp_levels(images, torch.from_numpy(matrices))


def _read_batches(dataset: Radiographs) -> None:
    for loaded in _load(dataset):
        _warp(loaded.images, loaded.indices)


def _decode(path: Path, size: int | None = None) -> NDArray[np.uint8]:
    """The baseline's reading: decoded whole, then resized."""
    with Image.open(path) as picture:
        grey = picture.convert("L")
    if size is not None:
        grey = grey.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(grey)


def _make_chain(size: int) -> v2.Compose:
    """The baseline's augmentation, with the ranges that ours has; grey levels in and out."""
    a = Augment()
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=a.scale, ratio=(1.0, 1.0), antialias=True),
            v2.RandomHorizontalFlip(a.flip),
            v2.RandomRotation(a.rotation, interpolation=v2.InterpolationMode.BILINEAR),
        ]
    )


def _augment(images: Sequence[NDArray[np.uint8]], chain: v2.Compose) -> Tensor:
    """The baseline's batches: each image through the chain, then stacked."""
    return torch.stack([chain(torch.from_numpy(np.array(levels))[None]) for levels in images])


def _measure(part: _Part, times: Mapping[str, Times]) -> dict[str, float]:
    own, other = times[part.name], times[part.against]
    images = part.images  # of both
    seconds, baseline = statistics.median(own.processor), statistics.median(other.processor)
    return {
        "images_per_s": round(images / seconds, 1),
        "baseline": round(images / baseline, 1),
        "ratio": round(baseline / seconds, 2),
        "wall_images_per_s": round(images / own.median, 1),
        "wall_baseline": round(images / other.median, 1),
    }
