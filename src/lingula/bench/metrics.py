"""`lingula bench metrics`: AP, AUROC and their intervals, timed against scikit-learn's."""

from __future__ import annotations

import os
import statistics
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lingula.bench.rounds import time_rounds
from lingula.phantom.population import COUNTS, IMAGES
from lingula.scores import metrics
from lingula.scores.intervals import bootstrap
from lingula.system.errors import InputError

_IMAGES_PER_PATIENT = 3
_MEASURED = 10  # draws of the scikit-learn loop; the rest is proportional


def bench_metrics(
    *, images: int = 77_000, classes: int = 26, draws: int = 1000, seed: int = 0, repeats: int = 3
) -> dict[str, Any]:
    """Time AP and AUROC of random scores, and bootstrap draws of patients, on one thread.

    The baseline of the draws is a loop that repeats rows and calls scikit-learn for each class,
    measured on ten draws. Seconds are of processor time, which other programs don't lengthen.

    Args:
        images: rows, three per patient.
        classes: columns, with the prevalences of CXR-LT 2023, in turn.
        draws: bootstrap draws.
        seed: of the random scores.
        repeats: how often AP and AUROC are timed; the best is given.

    Returns:
        `seconds`, `baseline` and `ratio` of AP and AUROC, `bootstrap` with the same of the draws,
        the largest difference between the two ways, and the process's memory at its peak.

    Raises:
        InputError: without scikit-learn, or with numbers below 1.
    """
    if min(images, classes, draws, repeats) < 1:
        raise InputError("--images, --classes, --draws and --repeats must be at least 1.")
    _import_sklearn()
    random = np.random.default_rng(seed)
    shares = np.resize(np.array(list(COUNTS.values())) / IMAGES, classes)
    targets = (random.random((images, classes)) < shares).astype(np.float32)
    targets[0], targets[-1] = 1, 0  # every class has both kinds, however few the images
    scores = 1 / (1 + np.exp(3 - random.normal(1.5 * targets)))
    mask = np.ones(targets.shape, dtype=bool)
    patients = [f"p{row // _IMAGES_PER_PATIENT}" for row in range(images)]
    every, count = np.arange(images), -(-images // _IMAGES_PER_PATIENT)

    def their_draw() -> None:
        drawn = np.bincount(random.integers(0, count, count), minlength=count)
        rows = np.repeat(every, drawn[every // _IMAGES_PER_PATIENT])
        _measure_with_sklearn(targets[rows], scores[rows])

    calls = {
        "ours": lambda: metrics.measure_classes(scores, targets, mask),
        "theirs": lambda: _measure_with_sklearn(targets, scores),
    }
    once = time_rounds(calls, repeats, warm_up=False)
    drawing = {"ours": lambda: bootstrap(scores, targets, mask, patients, draws=draws, seed=seed)}
    ours = time_rounds(drawing, 1, warm_up=False)["ours"].processor[0]
    peak = _peak_mb()
    loop = time_rounds({"theirs": their_draw}, _MEASURED, warm_up=False)["theirs"].processor
    found, right = once["ours"].result, np.array(once["theirs"].result).T
    return {
        **_compare(min(once["ours"].processor), min(once["theirs"].processor)),
        "bootstrap": {"draws": draws, **_compare(ours, draws * statistics.mean(loop))},
        "images": images,
        "classes": classes,
        "largest_difference": float(np.abs(np.stack([found.ap, found.auroc]) - right).max()),
        "peak_memory_mb": peak,
    }


def _measure_with_sklearn(
    targets: NDArray[np.float32], scores: NDArray[np.float64]
) -> list[list[float]]:
    """AP and AUROC of each class by scikit-learn; none of a class that lacks one kind of row."""
    average_precision_score, roc_auc_score = _import_sklearn()
    found = []
    columns = (np.ascontiguousarray(values.T) for values in (targets, scores))
    for y, s in zip(*columns, strict=True):
        both = 0 < y.sum() < len(y)
        found.append([average_precision_score(y, s), roc_auc_score(y, s)] if both else [])
    return found


def _compare(seconds: float, baseline: float) -> dict[str, float]:
    return {"seconds": seconds, "baseline": baseline, "ratio": baseline / seconds}


def _import_sklearn() -> tuple[Any, Any]:
    try:
        from sklearn.metrics import average_precision_score, roc_auc_score
    except ImportError:
        raise InputError(
            "lingula bench metrics compares with scikit-learn, which is not installed: "
            "pip install scikit-learn"
        ) from None
    return average_precision_score, roc_auc_score


def _peak_mb() -> float:
    """The process's largest memory so far, in MB; 0 where the system doesn't say."""
    if os.name != "posix":
        return 0.0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)  # bytes there, KiB elsewhere


def to_text(result: dict[str, Any]) -> str:
    """Three lines for a terminal."""
    draws = result["bootstrap"]
    return "\n".join(
        [
            f"AP and AUROC of {result['images']} x {result['classes']}: {result['seconds']:.3f} s; "
            f"scikit-learn {result['baseline']:.3f} s; ratio {result['ratio']:.1f}",
            f"{draws['draws']} draws of patients: {draws['seconds']:.1f} s; a loop of "
            f"scikit-learn {draws['baseline']:.0f} s; ratio {draws['ratio']:.0f}",
            f"largest difference {result['largest_difference']:.1e}; "
            f"memory at its peak {result['peak_memory_mb']:.0f} MB",
        ]
    )
