"""Scoring that can be interrupted: each batch's scores are one file, written whole or not at all.

The files are in a folder beside the output, until that is there. Whoever continues scores what no
file has, in any number of processes. Rows are numbers of images in the order they are scored.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from lingula.images.cache import CachedImages
from lingula.scoring.models import ScoringModel
from lingula.settings.config import Config
from lingula.system import claims, files
from lingula.system.errors import InputError
from lingula.system.progress import count_only, progress

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from lingula.loading.batches import Radiographs
    from lingula.scoring.scoring import Scorer

log = logging.getLogger("lingula")

_NAMES = "[0-9]*.npz"  # not the hidden temporary files of a killed process


@dataclass(frozen=True)
class Job:
    """What to score, and how.

    Attributes:
        model: one model or an ensemble.
        configs: of each member, with the device and number format that are settled.
        views: of each member, its test-time views and how they are merged.
        paths: the image files, those alone whose paths are sound.
        cached: the same images in a cache.
        batch_size: images at once; `auto` follows from the models and the machine's memory.
        workers: decoding processes; 0 decodes in threads.
    """

    model: ScoringModel
    configs: tuple[Config, ...]
    views: tuple[tuple[str, str], ...]
    paths: list[Path]
    cached: CachedImages | None
    batch_size: int | Literal["auto"]
    workers: int


@dataclass(frozen=True)
class Scores:
    """Scores (N, K), NaN for rows that failed or are not `done` (N,), and why rows failed."""

    scores: NDArray[np.float64]
    done: NDArray[np.bool_]
    failures: dict[int, str]


def blocks_folder(target: Path) -> Path:
    """`.NAME.parts` beside the output `NAME`."""
    return target.with_name(f".{target.name}.parts")


def read_settings(folder: Path) -> dict[str, Any] | None:
    """What the blocks in a folder were scored with; None where there are none.

    A folder without readable settings was left before its first block, and counts as none.
    """
    try:
        return files.read_object(folder / "settings.json")
    except (FileNotFoundError, NotADirectoryError, InputError):
        return None


@contextlib.contextmanager
def lock_blocks(folder: Path, settings: Mapping[str, Any]) -> Iterator[None]:
    """Make the folder of blocks, or continue the one that is there; no one else may meanwhile.

    Raises:
        InputError: another prediction writes there now, or has just finished.
    """
    with claims.lock_folder(folder, "predicting by way of"):
        if read_settings(folder) is None:
            # Blocks without settings are left over from a folder that was being removed.
            for left_over in folder.glob(_NAMES):
                left_over.unlink()
            files.write_json(folder / "settings.json", settings)
        yield


def write_block(
    folder: Path,
    rows: NDArray[np.intp],
    scores: NDArray[np.float64],
    failures: Mapping[int, str],
) -> None:
    """Write the scores (B, K) of consecutive rows (B,) as one file, and why rows of it failed."""
    start, stop = int(rows[0]), int(rows[-1]) + 1
    failed, reasons = list(failures), list(failures.values())
    with files.write_atomically(folder / f"{start:09}-{stop:09}.npz") as temporary:
        np.savez(
            temporary,
            start=start,
            scores=scores,
            failed=np.array(failed, dtype=np.int64),
            reasons=np.array(reasons, dtype=str),
        )


def read_blocks(folder: Path, rows: int, classes: int) -> Scores:
    """What has been scored of `rows` images; a block that the disk damaged does not count."""
    found = Scores(np.full((rows, classes), np.nan), np.zeros(rows, dtype=bool), {})
    for path in sorted(folder.glob(_NAMES)):
        try:
            with zipfile.ZipFile(path) as checked:
                sound = checked.testzip() is None
            with np.load(path) as block:
                start, scores = int(block["start"]), block["scores"]
                failures = dict(
                    zip(block["failed"].tolist(), block["reasons"].tolist(), strict=True)
                )
        except Exception:  # zip and NumPy raise errors of many kinds for damaged files
            continue
        here = slice(start, start + len(scores))
        if not sound or scores.shape[1:] != (classes,) or here.stop > rows:
            continue
        found.scores[here], found.done[here] = scores, True
        for row in range(here.start, here.stop):
            found.failures.pop(row, None)
        found.failures.update(failures)
    return found


def remove_blocks(folder: Path) -> None:
    """Remove the blocks of an output that is complete. They are this program's own."""
    shutil.rmtree(folder)


@contextlib.contextmanager
def score_all(job: Job, folder: Path, settings: dict[str, Any]) -> Iterator[Scores]:
    """Score what the folder of blocks lacks; yield all rows, while no one else may write there.

    Every process that torchrun started scores the batches whose number is its own modulo their
    number, and has all rows in the end; they may be more or fewer than when the blocks were begun.

    Raises:
        InputError: another prediction writes there, or the disk did not keep what was written.
    """
    from lingula.model.devices import make_fabric  # imports torch

    fabric = make_fabric(job.configs[0].device, job.configs[0].precision)
    shape = len(job.paths), len(job.model.classes)
    with lock_blocks(folder, settings) if fabric.global_rank == 0 else contextlib.nullcontext():
        fabric.barrier()
        done = read_blocks(folder, *shape).done
        if not done.all():
            _score_rest(job, folder, fabric, done)
        fabric.barrier()
        found = read_blocks(folder, *shape)
        lost = int((~found.done).sum())
        if lost:
            raise InputError(
                f"{lost} of {len(found.done)} scores written to {folder} can't be read back: the "
                "disk may be full or damaged. The same line again scores them anew."
            )
        fabric.barrier()
        yield found
        fabric.barrier()  # one that ended before the file is there would take the others along


def _score_rest(job: Job, folder: Path, fabric: Fabric, before: NDArray[np.bool_]) -> None:
    from lingula.loading.batches import consecutive_batches
    from lingula.scoring.scoring import fitting_batch, score_batches

    groups = _group_members(job, fabric)
    size = job.batch_size
    if size == "auto":
        fitting = [
            fitting_batch(scorer.network, dataset.size, fabric, scorer.tta)
            for dataset, scorers in groups.values()
            for scorer in scorers
        ]
        # The first process decides for all: machines of several sizes must share one grid.
        size = int(fabric.broadcast(min(fitting)))
        log.info("Batches of %d images.", size)
    # Whole batches of one grid, whoever scores them: the last digits of a score may depend on how
    # many images go through the network at once, and a continued prediction must not show.
    grid = consecutive_batches(len(job.paths), size, fabric.global_rank, fabric.world_size)
    rest = [batch for batch in grid if not before[batch].all()]
    done = sum(len(batch) for batch in grid) - sum(len(batch) for batch in rest)
    if before.any():
        log.info("%d of %d images have been scored before.", int(before.sum()), len(before))
    total = done + sum(len(batch) for batch in rest)
    order = np.argsort([place for places in groups for place in places])
    scoring = [
        score_batches(scorers, dataset, rest, fabric=fabric, workers=job.workers)
        for dataset, scorers in groups.values()
    ]
    with progress("scoring") as tick:
        count = count_only(tick)
        for parts in zip(*scoring, strict=True):
            scores = np.concatenate([part.probabilities for part in parts])[order]
            write_block(folder, parts[0].rows, job.model.combine(scores), parts[0].failures)
            done += len(parts[0].rows)
            count(done, total)


def _group_members(
    job: Job, fabric: Fabric
) -> dict[tuple[int, ...], tuple[Radiographs, list[Scorer]]]:
    """The models and their images, by the numbers of the members that read images alike.

    Those share what is decoded.
    """
    from lingula.loading.batches import Radiographs
    from lingula.model.checkpoint import load_model
    from lingula.model.devices import layout_of
    from lingula.scoring.scoring import Scorer

    alike: dict[tuple[int, int | None], list[int]] = {}
    scorers = []
    for place, member in enumerate(job.model.members):
        reading = member.facts["reading"]
        alike.setdefault((reading["image_size"], reading["bits"]), []).append(place)
        network = load_model(member.folder).network.to(fabric.device)
        scorers.append(Scorer(network, *job.views[place], layout_of(job.configs[place])))
    return {
        tuple(places): (
            Radiographs(job.paths, *reading, job.cached),
            [scorers[place] for place in places],
        )
        for reading, places in alike.items()
    }
