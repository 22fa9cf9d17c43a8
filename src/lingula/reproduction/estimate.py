"""`lingula reproduce --estimate`: hours, memory and disk, from some measured steps per training."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from lingula.bench.speed import SECONDS, STEPS, Speed, measure_speed
from lingula.loading.batches import MEMORY_LIMIT, consecutive_batches, load
from lingula.reproduction.jobs import Job, is_exogenous, list_predictions, list_trainings
from lingula.reproduction.readiness import Images, raise_faults, read_images
from lingula.reproduction.request import Request
from lingula.scoring.views import VIEWS
from lingula.settings.config import Config
from lingula.system import files
from lingula.tables.table import Table, rows_of, subset
from lingula.training.examples import all_features, check_images_exist, dataset_of

log = logging.getLogger("lingula")

READ = 640  # images that are read to measure how fast that is


@dataclass(frozen=True)
class Cost:
    """The cost of one training: images per epoch, steps and hours in all, bytes of features."""

    name: str
    images: int
    steps: int
    hours: float
    features: int
    speed: Speed


def estimate_cost(request: Request, jobs: Mapping[str, Job], faults: list[str]) -> list[str]:
    """What the rest of a reproduction costs on this machine: hours, memory and disk, as lines.

    Steps are measured on random images with random weights, so only the table has to exist; some of
    its images are read to measure how fast that is. Trainings that differ only in their texts,
    class weights or seeds take the same time, and are measured once.
    """
    # A row that lacks something to be run still has a cost.
    every = {
        name: replace(job, missing="")
        for name, job in jobs.items()
        if request.outside_tables or not is_exogenous(job.recipe)
    }
    images = read_images(request, every, faults)
    raise_faults(faults)
    rest = list_trainings(request, every)
    if not rest:
        return [f"All trainings of {request.table} in {request.folder} are finished."]
    read = _reading_seconds(rest[0][0].config, images)
    speeds: dict[str, Speed] = {}
    for job, _ in rest:
        key = _speed_key(job.config)
        if key not in speeds:
            log.info("Measuring %s: some steps, on random images.", job.recipe)
            speeds[key] = measure_speed(job.config)
    costs = [
        _cost_of(job, seed, images, speeds[_speed_key(job.config)], read) for job, seed in rest
    ]
    lines = [*_head(request, images, costs), *_table(costs), ""]
    lines += _sums(request, every, images, costs)
    lines += [_reading_line(read, costs)] if read else []
    left_out = [name for name in jobs if name not in every]
    if left_out:
        lines.append(f"Without {', '.join(left_out)}, which need tables of outside data.")
    return lines


def _speed_key(config: Config) -> str:
    """The settings that decide the time and memory of a step."""
    plain = config.model_dump(mode="json")
    plain["model"] |= {"text": None, "weights": None}
    mixup = config.augment.mixup is not None
    computed = [plain[key] for key in ("device", "precision", "channels_last", "compile")]
    o = config.optim
    return repr([plain["model"], mixup, o.batch_size, o.accumulate, config.loss.name, computed])


def _reading_seconds(config: Config, images: Images) -> float:
    """Seconds to read an image in each epoch; 0 if all stay in memory or are yet to be drawn."""
    count = images.train + images.outside
    kept = config.data.workers == 0 and count * config.model.image_size**2 <= MEMORY_LIMIT
    if images.table is None or kept:
        return 0.0
    return _time_reading(config, images.table, rows_of(images.table, "train"))


def _time_reading(config: Config, table: Table, rows: NDArray[np.intp]) -> float:
    """Seconds to read an image from its file or the cache, measured on some of these rows."""
    chosen = np.unique(np.linspace(0, len(rows) - 1, READ).astype(np.intp))
    dataset = dataset_of(subset(table, rows[chosen]), config)
    check_images_exist(dataset, "measured")
    done, began = 0, time.perf_counter()
    loading = load(dataset, consecutive_batches(len(dataset), 32))
    for loaded in loading:
        done += len(loaded.indices) + len(loaded.failures)
        if time.perf_counter() - began > SECONDS:
            break
    loading.close()
    return (time.perf_counter() - began) / done


def _cost_of(job: Job, seed: int, images: Images, speed: Speed, read: float) -> Cost:
    """A training's hours: its steps, dev after each epoch, and its scores in the end."""
    config, o, rows = job.config, job.config.optim, images.rows(job.config)
    own = rows.all - rows.outside
    count = rows.all if rows.ratio is None else own + round(rows.ratio * own)
    per_epoch = -(-count // o.batch_size)
    views = len(VIEWS[config.evaluation.tta])
    frozen = config.model.frozen
    each_epoch = _add_reading(per_epoch * speed.step, count, speed, 0.0 if frozen else read)
    each_epoch += _add_reading(images.dev * speed.dev, images.dev, speed, 0.0 if frozen else read)
    scored = images.dev + images.test
    once = _add_reading(scored * views * speed.exact, scored, speed, read)
    if frozen:
        seen = (2 if config.augment.flip > 0 else 1) * rows.all + images.dev
        once += _add_reading(seen * speed.encode, rows.all + images.dev, speed, read)
    hours = (o.epochs * each_epoch + once) / 3600
    features = all_features(speed.sizes, config, rows, images.dev)
    return Cost(f"{job.name}-s{seed}", count, per_epoch * o.epochs, hours, features, speed)


def _add_reading(seconds: float, images: int, speed: Speed, read: float) -> float:
    """Seconds of computing with those of reading, which run at the same time only on a GPU."""
    reading = images * read
    return max(seconds, reading) if speed.config.device == "cuda" else seconds + reading


def _head(request: Request, images: Images, costs: Sequence[Cost]) -> list[str]:
    config = costs[0].speed.config
    fewest = min(cost.speed.steps for cost in costs)
    steps = f"{STEPS} steps" if fewest >= STEPS else f"{fewest} to {STEPS} steps"
    slow = "" if fewest >= STEPS else " (fewer where they are slow)"
    outside = f", {images.outside:,} from outside" if images.outside else ""
    epochs = f"epochs: {config.optim.epochs}; {images.train:,} train, {images.dev:,} dev and "
    machine = (
        torch.cuda.get_device_name()
        if config.device == "cuda"
        else f"{torch.get_num_threads()} threads of {platform.processor() or platform.machine()}"
    )
    return [
        f"{request.heading(epochs)}{images.test:,} test images{outside}.",
        f"Measured on {machine}, {config.precision}: {steps} per training{slow}, on random images.",
        "",
    ]


def _table(costs: Sequence[Cost]) -> list[str]:
    head = ("training", "images per epoch", "steps", "s per step", "memory", "hours")
    cells = [head]
    for cost in costs:
        memory, step = cost.speed.memory, cost.speed.step
        shown = "not known" if memory is None else files.format_bytes(memory)
        row = (cost.name, f"{cost.images:,}", f"{cost.steps:,}", f"{step:.3g}", shown)
        cells.append((*row, f"{cost.hours:.3g}"))
    width = [max(len(row[k]) for row in cells) for k in range(len(head))]
    return [
        "  ".join(t.ljust(w) for t, w in zip(row, width, strict=True)).rstrip() for row in cells
    ]


def _sums(
    request: Request, jobs: Mapping[str, Job], images: Images, costs: Sequence[Cost]
) -> list[str]:
    """Hours, GPU-hours and disk of all that is left."""
    speed = costs[0].speed
    predictions = list_predictions(request, jobs)
    total = sum(cost.hours for cost in costs)
    for wanted in predictions:
        count = images.dev if wanted["split"] == "dev" else images.test
        if not wanted["out"].is_file():
            # Rows that share a training have the first row's network.
            total += count * len(VIEWS[wanted["tta"]]) * speed.exact / 3600
    unit = "GPU-hours" if speed.config.device == "cuda" else "hours of this machine"
    longest = max(costs, key=lambda cost: cost.hours)
    kept = sum(cost.speed.sizes.run for cost in costs)
    features = max(cost.features for cost in costs)
    disk = f"Disk: {files.format_bytes(kept)} for checkpoints and models"
    if features:
        disk += f", and {files.format_bytes(features)} for the features of one training at a time"
    disk += f"; {files.format_bytes(files.free_bytes(request.folder))} free in {request.folder}."
    return [
        f"All: {len(costs)} trainings and {len(predictions)} predictions, {total:.3g} "
        f"{unit}; one after the other {total:.3g} hours, all at once {longest.hours:.3g} hours "
        f"({longest.name}).",
        disk,
    ]


def _reading_line(read: float, costs: Sequence[Cost]) -> str:
    speed = costs[0].speed
    ours = speed.config.optim.batch_size / speed.step
    limits = "limits the trainings" if 1 / read < ours else "keeps up with the trainings"
    source = "the cache" if speed.config.data.cache else "files"
    return f"Reading from {source}: {1 / read:.0f} images/s, which {limits} ({ours:.0f} images/s)."
