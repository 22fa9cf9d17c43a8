"""`lingula bench metrics`: AP, AUROC and their intervals, timed against scikit-learn's."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lingula.scores import metrics
from lingula.scores.intervals import bootstrap
from lingula.system.errors import InputError

# Images of CXR-LT 2023's train split with each of its 26 findings, of 264,849.
_POSITIVES = (
    *(89140, 79931, 76900, 69240, 67597, 48093, 41869, 38574, 30119, 16038, 14983, 11883, 10218),
    *(7663, 5529, 4361, 4255, 4049, 3499, 3369, 2533, 2453, 1158, 788, 675, 543),
)
_TOTAL = 264849
_IMAGES_A_PATIENT = 3
_MEASURED = 10  # draws of the scikit-learn loop; the rest is proportional


@dataclass(frozen=True)
class MetricsTimes:
    """Seconds of both ways, best of a few repeats, and the process's memory at its peak.

    Seconds are of processor time, which other programs on the machine don't lengthen; nothing here
    uses more than one thread.

    `largest_difference` is between the two ways' AP and AUROC.
    """

    images: int
    classes: int
    draws: int
    seconds: float
    baseline: float
    draws_seconds: float
    draws_baseline: float
    largest_difference: float
    peak_memory_mb: float


def bench_metrics(
    *, images: int = 77_000, classes: int = 26, draws: int = 1000, seed: int = 0, repeats: int = 3
) -> MetricsTimes:
    """Time AP and AUROC of a made set, and patient-clustered draws of them, on one thread.

    The baseline of the draws is a loop that repeats rows and calls scikit-learn for each class,
    measured on ten draws.

    Args:
        images: rows; every three are a patient's.
        classes: columns, with the prevalences of CXR-LT 2023, in turn.
        draws: bootstrap draws.
        seed: of the made scores.
        repeats: the best of how many times.

    Raises:
        InputError: without scikit-learn, or with numbers below 1.
    """
    if min(images, classes, draws, repeats) < 1:
        raise InputError("--images, --classes, --draws and --repeats must be at least 1.")
    average_precision_score, roc_auc_score = _oracle()
    random = np.random.default_rng(seed)
    shares = np.resize(np.array(_POSITIVES) / _TOTAL, classes)
    targets = (random.random((images, classes)) < shares).astype(np.float32)
    targets[0], targets[-1] = 1, 0  # every class has both kinds, however few the images
    scores = 1 / (1 + np.exp(3 - random.normal(1.5 * targets)))
    mask = np.ones(targets.shape, dtype=bool)
    patients = [f"p{row // _IMAGES_A_PATIENT}" for row in range(images)]

    def theirs(rows: NDArray[np.intp]) -> list[list[float]]:
        found = []
        for k in range(classes):
            y, s = targets[rows, k], scores[rows, k]
            both = 0 < y.sum() < len(y)
            found.append([average_precision_score(y, s), roc_auc_score(y, s)] if both else [])
        return found

    every = np.arange(images)
    ours_took, found = _best(lambda: metrics.classwise(scores, targets, mask), repeats)
    theirs_took, oracle = _best(lambda: theirs(every), repeats)
    began = time.process_time()
    bootstrap(scores, targets, mask, patients, draws=draws, seed=seed)
    drawing = time.process_time() - began
    peak = _peak_mb()
    began = time.process_time()
    for _ in range(_MEASURED):
        drawn = random.integers(0, -(-images // _IMAGES_A_PATIENT), -(-images // _IMAGES_A_PATIENT))
        counts = np.bincount(drawn, minlength=-(-images // _IMAGES_A_PATIENT))
        theirs(np.repeat(every, counts[every // _IMAGES_A_PATIENT]))
    loop = (time.process_time() - began) / _MEASURED * draws
    right = np.array(oracle).T
    difference = float(np.abs(np.stack([found.ap, found.auroc]) - right).max())
    return MetricsTimes(
        images, classes, draws, ours_took, theirs_took, drawing, loop, difference, peak
    )


def _oracle() -> tuple[Any, Any]:
    try:
        from sklearn.metrics import average_precision_score, roc_auc_score
    except ImportError:
        raise InputError(
            "lingula bench metrics compares with scikit-learn, which is not installed: "
            "pip install scikit-learn"
        ) from None
    return average_precision_score, roc_auc_score


def _best(measure: Any, repeats: int) -> tuple[float, Any]:
    """The shortest of several times, in seconds of processor time, and the last result."""
    times = []
    result = None
    for _ in range(repeats):
        began = time.process_time()
        result = measure()
        times.append(time.process_time() - began)
    return min(times), result


def _peak_mb() -> float:
    """The process's largest memory so far, in MB; 0 where the system doesn't say."""
    if os.name != "posix":
        return 0.0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)  # bytes there, KiB elsewhere


def to_json(times: MetricsTimes) -> dict[str, Any]:
    """Plain values: `seconds`, `baseline` and `ratio` of AP + AUROC, and of the draws below."""
    return {
        "seconds": times.seconds,
        "baseline": times.baseline,
        "ratio": times.baseline / times.seconds,
        "bootstrap": {
            "draws": times.draws,
            "seconds": times.draws_seconds,
            "baseline": times.draws_baseline,
            "ratio": times.draws_baseline / times.draws_seconds,
        },
        "images": times.images,
        "classes": times.classes,
        "largest_difference": times.largest_difference,
        "peak_memory_mb": times.peak_memory_mb,
    }


def to_text(times: MetricsTimes) -> str:
    """Three lines for a terminal."""
    value = to_json(times)
    draws = value["bootstrap"]
    return "\n".join(
        [
            f"AP and AUROC of {times.images} x {times.classes}: {times.seconds:.3f} s; "
            f"scikit-learn {times.baseline:.3f} s; ratio {value['ratio']:.1f}",
            f"{times.draws} draws of patients: {times.draws_seconds:.1f} s; a loop of "
            f"scikit-learn {times.draws_baseline:.0f} s; ratio {draws['ratio']:.0f}",
            f"largest difference {times.largest_difference:.1e}; "
            f"memory at its peak {times.peak_memory_mb:.0f} MB",
        ]
    )
