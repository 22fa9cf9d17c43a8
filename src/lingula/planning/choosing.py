"""Which design to use, by out-of-fold scores: every image is scored by models that did not see its
patient.

The candidates are each design alone, the plain mean of all, and all under guarded weights. The
simplest one within one standard error of the best is taken (the 1-SE rule of Breiman et al.,
Classification and Regression Trees, 1984, section 3.4.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lingula.scores.ensembles import guarded_weights, weighted_mean
from lingula.scores.guarded import cross_fit
from lingula.scores.intervals import Interval, bootstrap, interval, mean_by_draw
from lingula.scores.members import Sample
from lingula.scores.metrics import Floats, measure_classes
from lingula.scores.predictions import Predictions, align_rows
from lingula.tables.table import Table

TOGETHER, GUARDED = "together", "guarded"
DRAWS = 1000


@dataclass(frozen=True)
class Candidate:
    """A way to score images with the designs.

    Attributes:
        name: of the design, `TOGETHER` for their plain mean, or `GUARDED`.
        weights: (D, K) of the designs, which sum to one per class.
        scores: (N, K), out of fold; weights that were chosen are those of other patients.
    """

    name: str
    weights: Floats
    scores: Floats


@dataclass(frozen=True)
class Comparison:
    """A candidate's out-of-fold figures, and the best one's mAP minus its own.

    `error` is the standard error of the difference, by draws of patients in pairs.
    """

    name: str
    mAP: float
    AUROC: float
    behind: float
    error: float
    chosen: bool


@dataclass(frozen=True)
class Difference:
    """mAP and AUROC of one scoring minus another's, with 95 % intervals by patient in pairs."""

    mAP: float
    mAP_ci: Interval
    AUROC: float
    AUROC_ci: Interval


def pool_folds(folds: Sequence[Sequence[Predictions]], table: Table) -> Predictions:
    """Out-of-fold scores of all images of the folds, in the table's order.

    Args:
        folds: for each fold the scores of its images, by one or more trainings on the others.
        table: the images of all folds.
    """
    means = []
    for trainings in folds:
        first = trainings[0]
        rows = [align_rows(one, first.images, first.ids) for one in trainings]
        each = [one.probabilities[here] for one, here in zip(trainings, rows, strict=True)]
        means.append(replace(first, probabilities=np.mean(each, axis=0)))
    place = {image: row for row, image in enumerate(i for one in means for i in one.images)}
    order = np.array([place[image] for image in table.images], dtype=np.intp)
    values = np.concatenate([one.probabilities for one in means])[order]
    texts = (table.ids, table.studies, table.patients)
    return Predictions(means[0].classes, table.images, values, *texts, "out-of-fold scores")


def candidates_of(sample: Sample, seed: int = 0) -> list[Candidate]:
    """The candidates, the simplest first: each design in the sample's order, the mean, guarded."""
    designs, classes = len(sample.members), len(sample.classes)
    found = []
    for number, name in enumerate(sample.members):
        weights = np.zeros((designs, classes))
        weights[number] = 1.0
        found.append(Candidate(name, weights, sample.scores[number]))
    if designs == 1:
        return found
    equal = np.full((designs, classes), 1 / designs)
    found.append(Candidate(TOGETHER, equal, weighted_mean(equal, sample.scores)))
    fitted = cross_fit(sample, lambda part: {GUARDED: guarded_weights(part)}, seed=seed)
    if GUARDED in fitted:
        found.append(Candidate(GUARDED, guarded_weights(sample), fitted[GUARDED]))
    return found


def choose(
    candidates: Sequence[Candidate], sample: Sample, *, draws: int = DRAWS, seed: int = 0
) -> list[Comparison]:
    """Compare the candidates by mAP; the first within one standard error of the best is chosen."""
    figures = [measure_classes(one.scores, sample.positive, sample.mask) for one in candidates]
    drawn = {one.name: _draws(one.scores, sample, draws, seed)[0] for one in candidates}
    best = max(range(len(candidates)), key=lambda place: figures[place].mAP)
    compared: list[Comparison] = []
    for one, figure in zip(candidates, figures, strict=True):
        behind = figures[best].mAP - figure.mAP
        error = float(np.nanstd(drawn[candidates[best].name] - drawn[one.name]))
        is_first = not any(before.chosen for before in compared)
        chosen = is_first and behind <= error
        compared.append(Comparison(one.name, figure.mAP, figure.macro_auroc, behind, error, chosen))
    return compared


def compare_scores(
    ours: Floats, theirs: Floats, sample: Sample, *, draws: int = DRAWS, seed: int = 0
) -> Difference:
    """Our scores minus theirs on the sample's rows (N, K)."""
    a, b = (measure_classes(one, sample.positive, sample.mask) for one in (ours, theirs))
    drawn_a, drawn_b = (_draws(one, sample, draws, seed) for one in (ours, theirs))
    return Difference(
        a.mAP - b.mAP,
        interval(drawn_a[0] - drawn_b[0]),
        a.macro_auroc - b.macro_auroc,
        interval(drawn_a[1] - drawn_b[1]),
    )


def _draws(scores: Floats, sample: Sample, draws: int, seed: int) -> tuple[Floats, Floats]:
    """mAP and macro AUROC of each resample of the patients, over the classes that have one."""
    found = bootstrap(
        scores, sample.positive, sample.mask, sample.units, draws=draws, seed=(seed, 5)
    )
    defined = np.asarray((sample.positive & sample.mask).any(axis=0))
    return mean_by_draw(found.ap, defined), mean_by_draw(found.auroc, defined)


def name_shares(
    candidate: Candidate,
    designs: Sequence[str],
    runs: Mapping[str, Sequence[str]],
    classes: Sequence[str],
) -> dict[str, dict[str, float]]:
    """For each class the weight of each run: its design's, shared out equally."""
    return {
        name: {
            run: float(candidate.weights[number, k]) / len(runs[design])
            for number, design in enumerate(designs)
            if candidate.weights[number, k] > 0
            for run in runs[design]
        }
        for k, name in enumerate(classes)
    }
