"""`lingula reproduce --estimate`: the whole bill, from some measured steps of each training."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from lingula.loading.batches import MEMORY_LIMIT
from lingula.reproduction.jobs import Job, is_exogenous, scorings, unfinished
from lingula.reproduction.measuring import STEPS, Measured, measure, reading_seconds
from lingula.reproduction.readiness import Films, films_of, refuse
from lingula.reproduction.reproduction import Reproduction
from lingula.scoring.scoring import VIEWS
from lingula.settings.config import Config
from lingula.system import files
from lingula.tables.table import rows_of
from lingula.training.space import all_features

log = logging.getLogger("lingula")


@dataclass(frozen=True)
class Cost:
    """What one training takes: images of an epoch, steps and hours in all, bytes of features."""

    name: str
    images: int
    steps: int
    hours: float
    features: int
    measured: Measured


def bill(asked: Reproduction, jobs: Mapping[str, Job], faults: list[str]) -> list[str]:
    """What is left of a reproduction costs on this machine: hours, memory and disk, as lines.

    Steps are measured on random images with random weights, so that nothing needs to be there but
    the table, some of whose images are read to see how fast that is. Trainings that differ in their
    texts, weights of classes or seeds alone take the same, and are measured once.
    """
    # What a row lacks to be run says nothing of what it will take.
    every = {
        name: replace(job, missing="")
        for name, job in jobs.items()
        if asked.others or not is_exogenous(job.recipe)
    }
    films = films_of(asked, every, faults)
    refuse(faults)
    rest = unfinished(asked, every)
    if not rest:
        return [f"All trainings of {asked.table} in {asked.folder} are finished."]
    read = _read_seconds(rest[0][0].config, films)
    found: dict[str, Measured] = {}
    for job, _ in rest:
        if _key(job.config) not in found:
            log.info("Measuring %s: some steps, on random images.", job.recipe)
            found[_key(job.config)] = measure(job.config)
    costs = [_cost(job, seed, films, found[_key(job.config)], read) for job, seed in rest]
    lines = [*_head(asked, films, costs), *_table(costs), "", *_sums(asked, every, films, costs)]
    lines += [_read_line(read, costs)] if read else []
    left_out = [name for name in jobs if name not in every]
    if left_out:
        lines.append(f"Without {', '.join(left_out)}, which need tables of outside data.")
    return lines


def _key(config: Config) -> str:
    """What the time and memory of a step follow from."""
    plain = config.model_dump(mode="json")
    plain["model"] |= {"text": None, "weights": None}
    mixup = config.augment.mixup is not None
    computed = [plain[key] for key in ("device", "precision", "channels_last", "compile")]
    o = config.optim
    return repr([plain["model"], mixup, o.batch_size, o.accumulate, config.loss.name, computed])


def _read_seconds(config: Config, films: Films) -> float:
    """Seconds to read an image in each epoch; 0 where all stay in memory or are yet to be drawn."""
    images = films.train + films.outside
    kept = config.data.workers == 0 and images * config.model.image_size**2 <= MEMORY_LIMIT
    if films.table is None or kept:
        return 0.0
    return reading_seconds(config, films.table, rows_of(films.table, "train"))


def _cost(job: Job, seed: int, films: Films, found: Measured, read: float) -> Cost:
    """A training's hours: its steps, dev after each epoch, and its scores in the end."""
    config, o, rows = job.config, job.config.optim, films.rows(job.config)
    own = rows.all - rows.outside
    images = rows.all if rows.ratio is None else own + round(rows.ratio * own)
    per_epoch = -(-images // o.batch_size)
    views = len(VIEWS[config.evaluation.tta])
    frozen = config.model.frozen
    each_epoch = _with_reading(per_epoch * found.step, images, found, 0.0 if frozen else read)
    each_epoch += _with_reading(films.dev * found.dev, films.dev, found, 0.0 if frozen else read)
    scored = films.dev + films.test
    once = _with_reading(scored * views * found.exact, scored, found, read)
    if frozen:
        seen = (2 if config.augment.flip > 0 else 1) * rows.all + films.dev
        once += _with_reading(seen * found.encode, rows.all + films.dev, found, read)
    hours = (o.epochs * each_epoch + once) / 3600
    features = all_features(found.sizes, config, rows, films.dev)
    return Cost(f"{job.name}-s{seed}", images, per_epoch * o.epochs, hours, features, found)


def _with_reading(seconds: float, images: int, found: Measured, read: float) -> float:
    """Seconds of computing with those of reading, which goes on beside it on a GPU alone."""
    reading = images * read
    return max(seconds, reading) if found.config.device == "cuda" else seconds + reading


def _head(asked: Reproduction, films: Films, costs: Sequence[Cost]) -> list[str]:
    config = costs[0].measured.config
    fewest = min(cost.measured.steps for cost in costs)
    said = f"{STEPS} steps" if fewest >= STEPS else f"{fewest} to {STEPS} steps, as they are slow,"
    outside = f", {films.outside:,} from outside" if films.outside else ""
    return [
        f"Table {asked.table[-1]} of the paper at the scale {asked.scale}, epochs: "
        f"{config.optim.epochs}; {films.train:,} train, {films.dev:,} dev and {films.test:,} test "
        f"images{outside}.",
        f"Measured on {_machine(config)}, {config.precision}: {said} of each, on random images.",
        "",
    ]


def _machine(config: Config) -> str:
    if config.device == "cuda":
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} threads of {platform.processor() or platform.machine()}"


def _table(costs: Sequence[Cost]) -> list[str]:
    head = ("training", "images an epoch", "steps", "s a step", "memory", "hours")
    cells = [head]
    for cost in costs:
        memory, step = cost.measured.memory, cost.measured.step
        told = "not known" if memory is None else files.byte_count(memory)
        row = (cost.name, f"{cost.images:,}", f"{cost.steps:,}", f"{step:.3g}", told)
        cells.append((*row, f"{cost.hours:.3g}"))
    width = [max(len(row[k]) for row in cells) for k in range(len(head))]
    return [
        "  ".join(t.ljust(w) for t, w in zip(row, width, strict=True)).rstrip() for row in cells
    ]


def _sums(
    asked: Reproduction, jobs: Mapping[str, Job], films: Films, costs: Sequence[Cost]
) -> list[str]:
    """Hours, GPU-hours and disk of all that is left."""
    config = costs[0].measured.config
    trained = sum(cost.hours for cost in costs)
    exact = costs[0].measured.exact  # rows that share a training have the first one's network
    extra = 0.0
    for wanted in scorings(asked, jobs):
        images = films.dev if wanted["split"] == "dev" else films.test
        if not wanted["out"].is_file():
            extra += images * len(VIEWS[wanted["tta"]]) * exact / 3600
    total = trained + extra
    unit = "GPU-hours" if config.device == "cuda" else "hours of this machine"
    longest = max(costs, key=lambda cost: cost.hours)
    kept = sum(cost.measured.sizes.run for cost in costs)
    features = max(cost.features for cost in costs)
    disk = f"Disk: {files.byte_count(kept)} for checkpoints and models"
    if features:
        disk += f", and {files.byte_count(features)} for the features of one training at a time"
    disk += f"; {files.byte_count(files.free_bytes(asked.folder))} free in {asked.folder}."
    return [
        f"All: {len(costs)} trainings and {len(scorings(asked, jobs))} predictions, {total:.3g} "
        f"{unit}; one after the other {total:.3g} hours, all at once {longest.hours:.3g} hours "
        f"({longest.name}).",
        disk,
    ]


def _read_line(read: float, costs: Sequence[Cost]) -> str:
    found = costs[0].measured
    ours = found.config.optim.batch_size / found.step
    limits = "limits the trainings" if 1 / read < ours else "keeps up with the trainings"
    how = "the cache" if found.config.data.cache else "files"
    return f"Reading from {how}: {1 / read:.0f} images/s, which {limits} ({ours:.0f} images/s)."
