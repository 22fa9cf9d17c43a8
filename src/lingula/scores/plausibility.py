"""Whether scores look like probabilities at all: of an untrained model, or squashed twice."""

from __future__ import annotations

import logging

import numpy as np

from lingula.scores.predictions import Predictions

log = logging.getLogger("lingula")

# Fewer scores may all lie anywhere by chance.
ENOUGH = 20
# A sigmoid of probabilities lies between those of 0 and of 1, 0.7311 and some rounding.
_TWICE = (0.5, 0.732)
_UNTRAINED = (0.45, 0.55)


def doubt(low: float, high: float, cells: int) -> str | None:
    """What scores that all lie from `low` to `high` may suffer from; None if nothing is odd.

    `cells` is how many scores there are; of fewer than `ENOUGH` nothing is said.
    """
    if cells < ENOUGH:
        return None
    untrained = _UNTRAINED[0] <= low and high <= _UNTRAINED[1]
    twice = _TWICE[0] <= low and high <= _TWICE[1]
    causes = ["the model may not have been trained"] * untrained
    causes += ["a sigmoid may have been applied twice, to probabilities"] * twice
    if not causes:
        return None
    begin, end = _UNTRAINED if untrained else _TWICE
    return f"All scores lie between {begin:g} and {end:g}: {', or '.join(causes)}."


def warn_of_doubt(predictions: Predictions) -> None:
    """A warning that names the scores, where all of them together look like no probabilities."""
    known = predictions.probabilities[np.isfinite(predictions.probabilities)]
    if not len(known):
        return
    found = doubt(float(known.min()), float(known.max()), len(known))
    if found is not None:
        log.warning("%s: %s", predictions.origin, found)
