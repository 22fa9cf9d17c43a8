"""How `lingula predict` scores a table of any length: batch by batch into parts, then as pieces."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lingula.images.cache import CachedImages
from lingula.scores.calibration.fitting import Calibration, apply_curves
from lingula.scores.plausibility import doubt
from lingula.scores.predictions import Predictions
from lingula.scoring.parts import Block, Parts, appending, held, rows_between, scan
from lingula.settings.config import Config
from lingula.system.errors import InputError
from lingula.system.progress import counting, progress
from lingula.tables.table import Table

log = logging.getLogger("lingula")

PIECE = 2**13  # rows of the scores file that are held at once


@dataclass(frozen=True)
class Job:
    """What to score, and how.

    Attributes:
        run: the model's folder, and `facts` what its description says.
        wanted: the model's config with the device and number format that are settled.
        paths: the image files, those alone whose paths are sound.
        cached: the same images in a cache.
        tta: test-time views, merged by `merge`.
        batch_size: images at once; `auto` follows from the network and the machine's memory.
        workers: decoding processes; 0 decodes in threads.
    """

    run: Path
    facts: dict[str, Any]
    wanted: Config
    paths: list[Path]
    cached: CachedImages | None
    tta: str
    merge: str
    batch_size: int | Literal["auto"]
    workers: int


@contextlib.contextmanager
def scored(job: Job, folder: Path, settings: dict[str, Any]) -> Iterator[Parts]:
    """Score what the folder of parts lacks; all its rows, while no one else may write there.

    Every process that torchrun started scores the batches whose number is its own modulo their
    number, and has all rows in the end; they may be more or fewer than when the parts were begun.

    Raises:
        InputError: another prediction writes there, or the disk did not keep what was written.
    """
    from lingula.model.devices import make_fabric  # imports torch

    fabric = make_fabric(job.wanted.device, job.wanted.precision)
    first = fabric.global_rank == 0
    with held(folder, settings) if first else contextlib.nullcontext():
        fabric.barrier()
        _score_rest(job, folder, fabric)
        fabric.barrier()
        parts = scan(folder, len(job.paths), len(job.facts["classes"]))
        lost = int((~parts.done).sum())
        if lost:
            raise InputError(
                f"{lost} of {len(parts.done)} scores written to {folder} can't be read back: the "
                "disk may be full or damaged. The same line again scores them anew."
            )
        fabric.barrier()
        yield parts
        fabric.barrier()  # one that ended before the file is there would take the others along


def _score_rest(job: Job, folder: Path, fabric: Any) -> None:
    from lingula.loading.batches import Radiographs, consecutive_batches
    from lingula.model.checkpoint import load_model
    from lingula.model.devices import layout_of
    from lingula.scoring.scoring import fitting_batch, score_batches

    before = scan(folder, len(job.paths), len(job.facts["classes"])).done
    if before.all():
        return
    network = load_model(job.run).network.to(fabric.device)
    reading = job.facts["reading"]
    dataset = Radiographs(job.paths, reading["image_size"], reading["bits"], job.cached)
    size = job.batch_size
    if size == "auto":
        # The first process decides for all: machines of several sizes must share one grid.
        size = int(fabric.broadcast(fitting_batch(network, dataset.size, fabric, job.tta)))
        log.info("Batches of %d images.", size)
    # Whole batches of one grid, whoever scores them: the last digits of a score may depend on how
    # many images go through the network at once, and a continued prediction must not show.
    grid = consecutive_batches(len(dataset), size, fabric.global_rank, fabric.world_size)
    rest = [batch for batch in grid if not before[batch].all()]
    done = sum(len(batch) for batch in grid) - sum(len(batch) for batch in rest)
    if before.any():
        log.info("%d of %d images have been scored before.", int(before.sum()), len(before))
    every = done + sum(len(batch) for batch in rest)
    with appending(folder) as append, progress("scoring") as tick:
        count = counting(tick)
        for found in score_batches(
            network,
            dataset,
            rest,
            fabric=fabric,
            tta=job.tta,
            merge=job.merge,
            workers=job.workers,
            layout=layout_of(job.wanted),
        ):
            append(Block(int(found.rows[0]), found.probabilities, found.failures))
            done += len(found.rows)
            count(done, every)


def pieces(
    parts: Parts,
    rows: NDArray[np.intp],
    images: tuple[str, ...],
    table: Table | None,
    classes: list[str],
    *,
    by: str = "image",
    calibration: Calibration | None = None,
) -> Iterator[Predictions]:
    """The scores of all images in order, a piece of the file at a time.

    Args:
        parts: scores of the images whose `rows` these are; the other images have none.
        rows: ascending.
        images: names, in the order of the file.
        table: what is known of them, if they come from a table.
        classes: the columns' names.
        by: `study` gives each image the mean of its study's scores.
        calibration: maps the scores, after the mean.
    """
    means = _study_means(parts, rows, table) if by == "study" and table is not None else None
    known, low, high = 0, 1.0, 0.0
    for begin in range(0, len(images), PIECE):
        here = slice(begin, min(begin + PIECE, len(images)))
        scores = _raw(parts, rows, here)
        good = np.isfinite(scores).all(1)
        if means is not None:
            mean = good & (means.study[here] >= 0)
            scores[mean] = means.scores[means.study[here][mean]]
        if good.any():
            known += int(good.sum()) * len(classes)
            low, high = min(low, float(scores[good].min())), max(high, float(scores[good].max()))
        piece = _named(classes, images, scores, table, here)
        yield piece if calibration is None else apply_curves(calibration, piece)
    odd = doubt(low, high, known)
    if odd is not None:
        log.warning("%s", odd)


def _raw(parts: Parts, rows: NDArray[np.intp], here: slice) -> NDArray[np.float64]:
    """Scores of these rows of the file, NaN for those that failed or were never tried."""
    first, last = np.searchsorted(rows, [here.start, here.stop])
    scores = np.full((here.stop - here.start, parts.classes), np.nan)
    scores[rows[first:last] - here.start] = rows_between(parts, int(first), int(last))
    return scores


def _named(
    classes: list[str],
    images: tuple[str, ...],
    scores: NDArray[np.float64],
    table: Table | None,
    here: slice,
) -> Predictions:
    """Scores with the names of their classes, images, and what the table knows of these."""
    texts: dict[str, Any] = {}
    for field in ("ids", "studies", "patients"):
        column = getattr(table, field) if table is not None else None
        texts[field] = None if column is None else column[here]
    return Predictions(tuple(classes), images[here], scores, **texts)


@dataclass(frozen=True)
class _Means:
    """Which study (N,) an image is of, -1 if of none, and the studies' mean scores (S, K)."""

    study: NDArray[np.intp]
    scores: NDArray[np.float64]


def _study_means(parts: Parts, rows: NDArray[np.intp], table: Table) -> _Means:
    """The means over each study's images that have scores. Studies, not images, are held."""
    studies = table.studies or ()
    # Some data sets count studies from 1 for each patient, so the patient is part of the key.
    patients = table.patients or ("",) * len(studies)
    numbers: dict[tuple[str, str], int] = {}
    keys = zip(patients, studies, strict=True)
    study = np.array(
        [numbers.setdefault(key, len(numbers)) if key[1] else -1 for key in keys], dtype=np.intp
    )
    sums, counts = np.zeros((len(numbers), parts.classes)), np.zeros(len(numbers))
    for begin in range(0, len(study), PIECE):
        here = slice(begin, min(begin + PIECE, len(study)))
        scores = _raw(parts, rows, here)
        good = np.isfinite(scores).all(1) & (study[here] >= 0)
        np.add.at(sums, study[here][good], scores[good])
        np.add.at(counts, study[here][good], 1)
    return _Means(study, sums / np.maximum(counts, 1)[:, None])
