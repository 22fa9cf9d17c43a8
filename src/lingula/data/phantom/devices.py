"""Support devices: tubes, lines, pacemakers, sternal wires and leads, and where they lie."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lingula.data.phantom.anatomy import Thorax
from lingula.data.phantom.canvas import Image, Region, bezier, blob, bounds, ribbon

Knots = list[tuple[float, float]]


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return float(rng.uniform(low, high))


def _line(body: Thorax, knots: Knots, width: float, amount: float) -> list[Region]:
    mask = ribbon(body.frame, bezier(knots, 32), width)
    body.density += np.float32(amount) * mask
    return bounds(mask)


def _endotracheal(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    tip = _between(rng, 0.26, 0.34)
    knots = [(0.01, -0.05), (-0.008, 0.12), (-0.006 + _between(rng, -0.006, 0.006), tip)]
    view = body.frame
    path = bezier(knots, 24)
    mask = ribbon(view, path, 0.019) - 0.7 * ribbon(view, path, 0.010)
    body.density += np.float32(0.05 + 0.10 * s) * mask
    return bounds(mask)


def _nasogastric(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    knots = [(0.01, -0.05), (0.0, 0.2), (0.015, 0.6), (0.02, 0.8), (_between(rng, 0.1, 0.22), 0.86)]
    return _line(body, knots, 0.008, 0.06 + 0.12 * s)


def _central(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    tip = (-_between(rng, 0.035, 0.055), _between(rng, 0.34, 0.5))
    kind = rng.integers(3)
    if kind == 0:  # jugular
        knots = [(-0.09, -0.03), (-0.085, 0.12), (-0.04, 0.2), tip]
    elif kind == 1:  # subclavian
        knots = [(-0.36, 0.24), (-0.22, 0.13), (-0.03, 0.14), tip]
    else:  # from the left arm
        knots = [(0.47, 0.42), (0.4, 0.08), (0.05, 0.17), (-0.07, 0.2), tip]
    return _line(body, knots, _between(rng, 0.006, 0.009), 0.07 + 0.13 * s)


def _pacemaker(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    sign = 1.0 if rng.random() < 0.8 else -1.0
    spot = (sign * _between(rng, 0.27, 0.34), _between(rng, 0.22, 0.3))
    can = blob(body.frame, spot, (0.048, 0.042), _between(rng, -0.5, 0.5), 0.12)
    body.density += np.float32(0.3 + 0.1 * s) * can
    regions = bounds(can)
    lead = [spot, (sign * 0.2, 0.1), (-0.06, 0.16), (-0.09, 0.6), (0.1, _between(rng, 0.66, 0.72))]
    regions += _line(body, lead, 0.007, 0.12 + 0.12 * s)
    if rng.random() < 0.6:
        lead = [spot, (sign * 0.18, 0.12), (-0.07, 0.2), (-0.08, 0.7), (-0.06, 0.52)]
        regions += _line(body, lead, 0.007, 0.12 + 0.12 * s)
    return regions


def _sternal_wires(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    mask: Image = np.zeros_like(body.density)
    centre = _between(rng, -0.012, 0.012)
    for v in np.linspace(0.26, 0.62, 6).tolist():
        tilt = _between(rng, -0.008, 0.008)
        loop = bezier(
            [(centre - 0.022, v - tilt), (centre, v - 0.012), (centre + 0.022, v + tilt)], 8
        )
        mask = np.maximum(mask, ribbon(body.frame, loop, 0.006))
    body.density += np.float32(0.08 + 0.16 * s) * mask
    return bounds(mask)


def _leads(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    regions: list[Region] = []
    for sign in (-1.0, 1.0):
        spot = (sign * _between(rng, 0.18, 0.33), _between(rng, 0.2, 0.62))
        pad = blob(body.frame, spot, (0.016, 0.016), 0.0, 0.3)
        body.density += np.float32(0.10 + 0.12 * s) * pad
        away = (sign * _between(rng, -0.1, 0.45), 1.02)
        middle = (spot[0] + sign * _between(rng, -0.15, 0.12), _between(rng, 0.6, 0.85))
        regions += bounds(pad)
        regions += _line(body, [spot, middle, away], 0.006, 0.05 + 0.12 * s)
    return regions


def _chest_tube(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    sign = 1.0 if rng.random() < 0.5 else -1.0
    top = _between(rng, 0.2, 0.45)
    knots = [(sign * 0.5, 0.72), (sign * 0.33, 0.62), (sign * 0.28, 0.4), (sign * 0.2, top)]
    return _line(body, knots, 0.014, 0.06 + 0.11 * s)


_KINDS: dict[str, Callable[[Thorax, np.random.Generator, float], list[Region]]] = {
    "endotracheal": _endotracheal,
    "nasogastric": _nasogastric,
    "central": _central,
    "pacemaker": _pacemaker,
    "wires": _sternal_wires,
    "leads": _leads,
    "chest tube": _chest_tube,
}
# How often a film that has devices shows each kind, standing (PA) and lying (AP).
_STANDING = (0.02, 0.04, 0.40, 0.26, 0.32, 0.10, 0.06)
_LYING = (0.32, 0.34, 0.50, 0.12, 0.22, 0.50, 0.10)


def support_devices(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """One or more devices; more of them on a film taken in bed."""
    odds = _STANDING if body.shape.upright else _LYING
    dice = rng.random(len(_KINDS))
    chosen = [kind for kind, chance, die in zip(_KINDS, odds, dice, strict=True) if die < chance]
    if not chosen:
        chosen = ["central" if rng.random() < 0.6 else "leads"]
    # Each kind has its own chance, so that the two films of a study agree on what they share.
    regions: list[Region] = []
    for kind, child in zip(_KINDS, rng.spawn(len(_KINDS)), strict=True):
        if kind in chosen:
            regions += _KINDS[kind](body, child, s)
    return regions
