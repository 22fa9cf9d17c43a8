"""Do the 95 % intervals hold the truth 95 times in 100? Simulated scores whose truth is known.

A class's scores are normal, with the positives `separation` standard deviations above the
negatives, so that the population's AP and AUROC follow from a formula. Each simulation draws a test
set, makes the intervals that `lingula evaluate --ci` prints, and asks whether they hold the truth.
In the clustered population a patient has three images, which share their label and half of their
score's variance.

    python examples/coverage_study.py --simulations 600 --draws 500

prints the tables of docs/metrics.md (minutes on one core).
"""

from __future__ import annotations

import argparse
import math

import numpy as np
from numpy.typing import NDArray

from lingula.scores import metrics
from lingula.scores.intervals import bootstrap, interval, logit_interval

POSITIVES = (5, 10, 20, 50, 100, 200, 500)  # expected number in a test set
IMAGES = 4000
PER_PATIENT = 3
Floats = NDArray[np.float64]


def population(separation: float, prevalence: float) -> tuple[float, float]:
    """AP and AUROC of the population: precision integrated over recall, and Phi(d / sqrt 2)."""
    limits = np.linspace(-9.0, 9.0 + separation, 40001)
    above = np.array([math.erfc(limit / math.sqrt(2)) / 2 for limit in limits])
    recall = np.array([math.erfc((limit - separation) / math.sqrt(2)) / 2 for limit in limits])
    found = prevalence * recall
    precision = found / np.maximum(found + (1 - prevalence) * above, 1e-300)
    ap = float(-(np.diff(recall) * (precision[1:] + precision[:-1]) / 2).sum())
    return ap, (1 + math.erf(separation / 2)) / 2


def sample(
    random: np.random.Generator, separation: float, clustered: bool
) -> tuple[Floats, NDArray[np.bool_], list[str] | None]:
    """A test set: scores and labels (IMAGES, classes), and patients where they have several."""
    prevalence = np.array(POSITIVES) / IMAGES
    shape = (IMAGES, len(POSITIVES))
    if not clustered:
        labels = random.random(shape) < prevalence
        return random.normal(separation * labels), labels, None
    patient = np.arange(IMAGES) // PER_PATIENT
    many = int(patient[-1]) + 1
    labels = (random.random((many, len(POSITIVES))) < prevalence)[patient]
    shared = random.normal(size=(many, len(POSITIVES)))[patient]
    noise = math.sqrt(0.5) * (shared + random.normal(size=shape))
    return separation * labels + noise, labels, [f"p{one}" for one in patient]


def study(
    separation: float, *, clustered: bool, simulations: int, draws: int, seed: int
) -> list[str]:
    """Rows of a table: for each number of positives, how often each interval holds the truth."""
    random = np.random.default_rng(seed)
    truth = np.array([population(separation, many / IMAGES) for many in POSITIVES])
    kinds = ("AP", "AP, percentiles", "AUROC", "AP, images drawn")
    held = {kind: np.zeros(len(POSITIVES)) for kind in kinds}
    known, width = np.zeros(len(POSITIVES)), np.zeros(len(POSITIVES))
    for number in range(simulations):
        scores, labels, patients = sample(random, separation, clustered)
        mask = np.ones(labels.shape, dtype=bool)
        found = metrics.measure_classes(scores, labels, mask)
        targets = labels.astype(np.float32)
        drawn = bootstrap(scores, targets, mask, patients, draws=draws, seed=number)
        apart = (
            bootstrap(scores, targets, mask, None, draws=draws, seed=number) if clustered else drawn
        )
        for k in range(len(POSITIVES)):
            made = {
                "AP": logit_interval(found.ap[k], drawn.ap[:, k], drawn.positives[k]),
                "AP, percentiles": interval(drawn.ap[:, k]),
                "AUROC": logit_interval(found.auroc[k], drawn.auroc[:, k], drawn.positives[k]),
                "AP, images drawn": logit_interval(found.ap[k], apart.ap[:, k], apart.positives[k]),
            }
            if made["AP"] is None:  # no positives in this test set: no AP, and no interval
                continue
            known[k] += 1
            width[k] += made["AP"][1] - made["AP"][0]
            for kind, ends in made.items():
                right = truth[k, int(kind == "AUROC")]
                held[kind][k] += ends is not None and ends[0] <= right <= ends[1]
    rows = []
    for k, many in enumerate(POSITIVES):
        shares = [f"{100 * held[kind][k] / known[k]:.1f}" for kind in kinds[: 3 + clustered]]
        rows.append(
            f"| {many} | {truth[k, 0]:.3f} | {width[k] / known[k]:.3f} | {' | '.join(shares)} | "
            f"{simulations - int(known[k])} |"
        )
    return rows


def main() -> None:
    """Print a table a population."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=600)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    for separation, clustered in ((0.7, False), (1.2, False), (2.0, False), (1.2, True)):
        print(f"\nseparation {separation}, {'three images a patient' if clustered else 'one'}\n")
        more = " AP, images drawn |" if clustered else ""
        print(f"| positives | AP | mean width | AP | AP, percentiles | AUROC |{more} undefined |")
        print("|--:" * (7 + clustered) + "|")
        rows = study(
            separation,
            clustered=clustered,
            simulations=asked.simulations,
            draws=asked.draws,
            seed=asked.seed,
        )
        print("\n".join(rows), flush=True)


if __name__ == "__main__":
    main()
