"""What fits into a given time: image size, epochs and folds, by how long measured steps take."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from lingula.bench.speed import Speed
from lingula.scoring.views import VIEWS
from lingula.settings.config import Config
from lingula.system.errors import InputError
from lingula.system.progress import format_seconds

JOB_SECONDS = 15.0  # a training's own start, its checkpoints, its report
END_SECONDS = 45.0  # choosing, calibration, the last report
MARGIN = 0.95  # of the time that the plan fills: a machine is never quite idle
FEWEST_FOLDS = 2  # so that every image is scored by a model that did not see its patient


@dataclass(frozen=True)
class Level:
    """What more time buys: the image size in pixels, epochs, and trainings per design and fold."""

    image_size: int
    epochs: int
    seeds: int = 1


# Each costs a fifth to a half more than the one before it. From 160 px on more members come before
# larger images: what they are worth is in docs/experiments.md, 2026-11-28.
LEVELS = (
    Level(64, 4),
    Level(64, 8),
    Level(96, 6),
    Level(96, 8),
    Level(96, 12),
    Level(128, 8),
    Level(128, 10),
    Level(128, 12),
    Level(144, 12),
    Level(160, 12),
    Level(128, 12, seeds=2),
    Level(160, 12, seeds=2),
    Level(192, 12, seeds=2),
    Level(224, 12, seeds=2),
    Level(224, 16, seeds=2),
    Level(256, 16, seeds=2),
    Level(320, 16, seeds=2),
    Level(384, 16, seeds=2),
    Level(448, 16, seeds=2),
    Level(512, 16, seeds=2),
    Level(512, 24, seeds=2),
    Level(512, 24, seeds=3),
)
SMALLEST_GOOD = Level(96, 8)  # the number of folds falls before the size falls below this


@dataclass(frozen=True)
class Images:
    """How many images there are in the pool of the folds and in the test split."""

    pool: int
    test: int


@dataclass(frozen=True)
class Machine:
    """How trainings share the machine.

    Attributes:
        device: `cpu`, `cuda` or `mps`.
        parallel: trainings at once; on CUDA one per device.
        threads: of each training.
        reading: seconds that one training takes to read an image.
    """

    device: str
    parallel: int
    threads: int
    reading: float


def parse_time(text: str) -> float:
    """Seconds in `90s`, `15m`, `1h`, `2h30m` or `1d`. Raises `InputError` for anything else."""
    found = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text.strip().lower())
    if found is None or not any(found.groups()):
        raise InputError(f"--time {text} is no time: say 15m, 1h, 2h30m or 1d.")
    parts = (int(part or 0) for part in found.groups())
    return float(sum(n * unit for n, unit in zip(parts, (86400, 3600, 60, 1), strict=True)))


def training_seconds(
    speed: Speed, config: Config, machine: Machine, pool: int, folds: int
) -> float:
    """How long one training takes: its steps, scoring its fold, and what surrounds them.

    The time of a step is taken to grow with the number of pixels.
    """
    held_out = pool / folds
    steps = math.ceil((pool - held_out) / config.optim.batch_size) * config.optim.epochs
    larger = (config.model.image_size / speed.config.model.image_size) ** 2
    views = len(VIEWS[config.evaluation.tta])
    scoring = held_out * (config.optim.epochs * speed.dev + views * speed.exact)
    return JOB_SECONDS + pool * machine.reading + larger * (steps * speed.step + scoring)


def total_seconds(
    trainings: Sequence[tuple[Speed, Config]],
    machine: Machine,
    images: Images,
    folds: int,
    seeds: int,
) -> dict[str, float]:
    """Seconds of each part, for designs that are trained on every fold with every seed."""
    each = [training_seconds(*one, machine, images.pool, folds) for one in trainings]
    jobs = folds * seeds
    work = jobs * sum(each)
    # The last training may run alone, on one share of the machine.
    parts = {"training": max(work / machine.parallel, *each)}
    if len(each) * jobs % machine.parallel:
        parts["training"] += max(each) / 2
    scored = sum(
        images.test
        * jobs
        * len(VIEWS[config.evaluation.tta])
        * speed.exact
        * (config.model.image_size / speed.config.model.image_size) ** 2
        for speed, config in trainings
    )
    parts["test, calibration, report"] = END_SECONDS + scored / machine.parallel
    return parts


def refuse(seconds: float, least: float, images: Images) -> InputError:
    """What to tell whose time is too short for the smallest plan."""
    return InputError(
        f"--time {format_seconds(seconds)} is too short for {images.pool} images on this machine: "
        f"the smallest plan takes about {format_seconds(least)}. Give more time, --time "
        f"{math.ceil(1.1 * least / 60)}m; or a faster encoder (model.encoder=NAME), or a table "
        "with fewer images."
    )
