"""Does the attention lie where the sign is? Pointing game and energy in the box, against chance.

The pointing game (Zhang et al. 2016) asks whether the strongest place of a map hits a box of the
finding. A map of few cells can't point more finely than a cell, so a cell that a box reaches into
is a hit, and chance is the share of such cells: a small sign is neither out of reach nor a gift.
Energy in the box (Wang et al. 2020) is the share of the map that lies in the boxes; a map that is
the same everywhere would have the share of the film that they cover.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = 2  # of `attention.json`; in 1 the middle of a cell had to lie in a box
DRAWS = 1000
LEAST = 10  # patients; a single hit would have an interval without width
FINE = 256  # shares of maps and boxes are taken on a grid of so many cells a side
_EDGE = 1e-9  # of the film; what a box's edges are off by after a sum of floats


@dataclass(frozen=True)
class Look:
    """One map of one finding that is there: whether it points at it, and by how much."""

    finding: str
    patient: str
    hit: bool
    chance: float
    energy: float
    covered: float


@dataclass(frozen=True)
class Rate:
    """Over the `n` films with boxes of a finding.

    Attributes:
        n: films.
        patients: whose they are; of fewer than `LEAST` nothing is claimed.
        hit: share of the films whose map points into a box, and its 95 % interval.
        chance: mean share of the cells that are hits.
        gain_ci: 95 % interval of hit minus chance, by patient; above zero: better than chance.
        energy: mean share of the map within the boxes.
        covered: mean share of the film within the boxes, which is the energy of chance.
    """

    n: int
    patients: int
    hit: float
    hit_ci: tuple[float, float]
    chance: float
    gain_ci: tuple[float, float]
    energy: float
    covered: float

    @property
    def validated(self) -> bool:
        """Whether the maps point better than chance, beyond the noise."""
        return self.gain_ci[0] > 0 and not self.too_few

    @property
    def too_few(self) -> bool:
        """Whether these are too few patients to claim anything."""
        return self.patients < LEAST


def look(
    attention: NDArray[np.float32],
    boxes: Sequence[tuple[float, float, float, float]],
    finding: str,
    patient: str,
) -> Look:
    """One map (h, w), and the boxes as x, y, w, h in parts of the film.

    Of cells that are as strong the first counts, from the top left.
    """
    height, width = attention.shape
    cells = _reached(boxes, height, width)
    covered = _covered(boxes)
    rows = (np.arange(FINE) * height) // FINE
    columns = (np.arange(FINE) * width) // FINE
    spread = attention[np.ix_(rows, columns)].astype(np.float64)
    total = float(spread.sum())
    energy = float(spread[covered].sum()) / total if total > 0 else 0.0
    hit = bool(cells.flat[int(np.argmax(attention))])
    return Look(finding, patient, hit, float(cells.mean()), energy, float(covered.mean()))


def _reached(
    boxes: Sequence[tuple[float, float, float, float]], height: int, width: int
) -> NDArray[np.bool_]:
    """(height, width) True for the cells that a box reaches into by more than its edge."""
    top, left = np.arange(height) / height, np.arange(width) / width
    cells = np.zeros((height, width), dtype=bool)
    for x, y, w, h in boxes:
        down = (top < y + h - _EDGE) & (top + 1 / height > y + _EDGE)
        across = (left < x + w - _EDGE) & (left + 1 / width > x + _EDGE)
        cells |= down[:, None] & across[None, :]
    return cells


def _covered(boxes: Sequence[tuple[float, float, float, float]]) -> NDArray[np.bool_]:
    """(FINE, FINE) True where a box covers the middle of a cell."""
    middle = (np.arange(FINE) + 0.5) / FINE
    covered = np.zeros((FINE, FINE), dtype=bool)
    for x, y, w, h in boxes:
        inside_y = (middle >= y) & (middle < y + h)
        inside_x = (middle >= x) & (middle < x + w)
        covered |= inside_y[:, None] & inside_x[None, :]
    return covered


def rates(looks: Sequence[Look], *, seed: int = 0) -> dict[str, Rate]:
    """The rate of each finding, in the order of its first look; intervals by patient."""
    by_finding: dict[str, list[Look]] = {}
    for one in looks:
        by_finding.setdefault(one.finding, []).append(one)
    return {finding: _rate(every, seed) for finding, every in by_finding.items()}


def _rate(looks: Sequence[Look], seed: int) -> Rate:
    hit = np.array([one.hit for one in looks], dtype=np.float64)
    chance = np.array([one.chance for one in looks])
    # A film without a patient is a patient of its own.
    keys = [one.patient or f"\0{i}" for i, one in enumerate(looks)]
    _, unit = np.unique(keys, return_inverse=True)
    units = int(unit.max()) + 1
    draw = np.random.default_rng(seed)
    weights = draw.multinomial(units, np.full(units, 1 / units), size=DRAWS)[:, unit]
    share = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1)
    low, high = np.quantile(share @ hit, [0.025, 0.975]).tolist()
    gain_low, gain_high = np.quantile(share @ (hit - chance), [0.025, 0.975]).tolist()
    return Rate(
        n=len(looks),
        patients=units,
        hit=float(hit.mean()),
        hit_ci=(low, high),
        chance=float(chance.mean()),
        gain_ci=(gain_low, gain_high),
        energy=float(np.mean([one.energy for one in looks])),
        covered=float(np.mean([one.covered for one in looks])),
    )


def to_json(found: Mapping[str, Rate], **about: Any) -> dict[str, Any]:
    """The rates as plain values, for `attention.json`."""
    return {
        "format": FORMAT,
        **about,
        "classes": {name: asdict(rate) for name, rate in found.items()},
    }


def from_json(value: Mapping[str, Any]) -> dict[str, Rate]:
    """The rates that `to_json` wrote."""
    return {
        name: Rate(
            n=int(rate["n"]),
            patients=int(rate["patients"]),
            hit=float(rate["hit"]),
            hit_ci=(float(rate["hit_ci"][0]), float(rate["hit_ci"][1])),
            chance=float(rate["chance"]),
            gain_ci=(float(rate["gain_ci"][0]), float(rate["gain_ci"][1])),
            energy=float(rate["energy"]),
            covered=float(rate["covered"]),
        )
        for name, rate in value["classes"].items()
    }


def described(rate: Rate | None) -> str:
    """What stands under a map: how often maps of this finding point at it, or `not validated`."""
    if rate is None:
        return "not validated"
    worse = "" if rate.validated else ", not better than chance"
    if rate.too_few:
        worse = ", too few to say"
    return f"points at it in {rate.hit:.0%} of {rate.n} films (chance {rate.chance:.0%}{worse})"
