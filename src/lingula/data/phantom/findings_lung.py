"""Findings of the lung itself, each as the sign by which a radiologist names it.

A sign takes the thorax, the study's generator for this finding and a severity near [0.2, 1.2]; it
changes the thorax and returns the pixel regions where it stands.
"""

from __future__ import annotations

import numpy as np

from lingula.data.phantom.anatomy import Thorax
from lingula.data.phantom.canvas import Image, Region, bezier, blob, bounds, mottle, ribbon, soft


def _either(rng: np.random.Generator) -> bool:
    return bool(rng.random() < 0.5)


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return float(rng.uniform(low, high))


def _haze(body: Thorax, mask: Image, amount: float, hides: float = 0.5) -> list[Region]:
    """Whiten the lung under `mask`, drown its vessels there, and say where it shows."""
    shown = mask * body.lung
    body.density += np.float32(amount) * shown
    body.vessels *= 1.0 - np.float32(min(hides, 0.95)) * np.clip(shown, 0, 1)
    return bounds(shown)


def atelectasis(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """Plate-like bands above a raised diaphragm, or a wedge of collapsed lower lobe."""
    left = _either(rng)
    sign = 1.0 if left else -1.0
    view = body.frame
    if rng.random() < 0.6:
        mask = np.zeros_like(body.lung)
        for _ in range(int(rng.integers(1, 4))):
            u, v = body.place(left, _between(rng, 0.25, 0.6), _between(rng, 0.72, 0.92))
            half = _between(rng, 0.06, 0.11)
            rise = _between(rng, -0.025, 0.025)
            ends = [(u - sign * half, v - rise), (u, v - 0.012), (u + sign * half, v + rise)]
            mask = np.maximum(mask, ribbon(view, bezier(ends), _between(rng, 0.007, 0.014)))
        return _haze(body, mask, 0.06 + 0.13 * s, 0.6)
    wedge = soft((0.16 - body.above) / 0.10) * soft((0.2 - body.medial) / 0.12)
    mask = wedge * body.side(left)
    return _haze(body, mask, 0.05 + 0.22 * s, 0.8)


def consolidation(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """A dense patch that ends at a fissure, with dark air bronchograms in it."""
    left = _either(rng)
    sign = 1.0 if left else -1.0
    view = body.frame
    spot = body.place(left, _between(rng, 0.35, 0.65), _between(rng, 0.2, 0.85))
    radii = (_between(rng, 0.07, 0.11), _between(rng, 0.06, 0.1))
    mask = blob(view, spot, radii, _between(rng, -0.5, 0.5), 0.35)
    edge = spot[1] + _between(rng, -0.02, 0.06)
    slope = _between(rng, -0.2, 0.3) * sign
    fissure = soft((edge + slope * (view.u - spot[0]) - view.v) / 0.015 + 0.5)
    mask = mask * (fissure if rng.random() < 0.5 else 1.0)
    air = np.zeros_like(mask)
    for angle in rng.uniform(-0.8, 0.8, 3).tolist():
        tip = (spot[0] + sign * 0.06 * np.cos(angle), spot[1] + 0.07 * np.sin(angle))
        root = (spot[0] - sign * 0.05, spot[1] - 0.02)
        air = np.maximum(air, ribbon(view, bezier([root, spot, tip]), 0.006))
    found = _haze(body, mask, 0.05 + 0.24 * s, 0.95)
    body.density -= np.float32(0.10 * min(s, 1.0)) * air * mask * body.lung
    return found


def edema(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """Haze about both hila like a bat's wings, and short Kerley lines at the bases' edges."""
    view = body.frame
    regions: list[Region] = []
    down = _between(rng, 0.44, 0.52)
    lumps = 1.0 + 0.35 * mottle(rng, view.size, 22)
    lean = 1.0 + 0.25 * float(rng.normal())
    for left, weight in ((False, lean), (True, 2.0 - lean)):
        sign = 1.0 if left else -1.0
        spot = (sign * 0.14, down)
        wing = blob(view, spot, (0.15, 0.19), sign * 0.2, 1.3)
        amount = (0.03 + 0.17 * s) * min(max(weight, 0.5), 1.5)
        regions += _haze(body, wing * lumps * body.side(left), amount, 0.35)
        lines = np.zeros_like(body.lung)
        for _ in range(4):
            u, v = body.place(left, 0.97, _between(rng, 0.72, 0.95))
            inward = u - sign * _between(rng, 0.025, 0.045)
            path = np.array([[u, v], [inward, v + 0.004]], dtype=np.float32)
            lines = np.maximum(lines, ribbon(view, path, 0.004))
        body.density += np.float32(0.12 * s) * lines * body.lung
    return regions


def emphysema(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """Dark, empty lungs (their size and the flat diaphragm are in the shape), and a bulla."""
    left = _either(rng)
    spot = body.place(left, _between(rng, 0.4, 0.75), _between(rng, 0.08, 0.3))
    mask = blob(body.frame, spot, (0.09, 0.075), 0.0, 0.4) * body.lung
    body.vessels *= 1.0 - np.float32(min(0.35 * s, 0.7)) - np.float32(min(0.3 * s, 0.3)) * mask
    body.density -= np.float32(0.045 * s) * body.lung + np.float32(0.03 * s) * mask
    sides = [body.lung * body.side(which) for which in (False, True)]
    return [region for lung in sides for region in bounds(lung)]


def fibrosis(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """A net of fine lines at the bases or the apices."""
    view = body.frame
    basal = rng.random() < 0.65
    zone = soft((0.2 - body.above) / 0.14) if basal else soft((0.36 - view.v) / 0.12)
    zone = zone * soft((0.22 - body.wall) / 0.2 + (0.0 if basal else 0.5))
    net = np.abs(mottle(rng, view.size, 58)) + 0.7 * np.abs(mottle(rng, view.size, 40))
    lines = soft((0.62 - net) / 0.5)
    regions: list[Region] = []
    for left in (False, True):
        mask = zone * body.side(left) * body.lung
        body.density += np.float32(s) * mask * (0.17 * lines - 0.02)
        regions += bounds(mask)
    return regions


def infiltration(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """Ill-defined mottled and streaky haze without a border."""
    view = body.frame
    left = _either(rng)
    sign = 1.0 if left else -1.0
    spot = body.place(left, _between(rng, 0.3, 0.55), _between(rng, 0.5, 0.85))
    zone = blob(view, spot, (0.11, 0.13), sign * 0.4, 1.2)
    streaks = np.zeros_like(zone)
    for _ in range(7):
        u, v = spot[0] + 0.05 * float(rng.normal()), spot[1] + 0.05 * float(rng.normal())
        tip = (u + sign * _between(rng, 0.03, 0.08), v + _between(rng, 0.0, 0.07))
        streaks += ribbon(view, np.array([(u, v), tip], dtype=np.float32), 0.006)
    lumps = soft(0.45 + 0.55 * mottle(rng, view.size, 26))
    shown = zone * body.lung
    body.density += np.float32(s) * shown * (0.13 * lumps + 0.10 * np.minimum(streaks, 1.0))
    return bounds(shown)


def lung_lesion(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """An irregular spot, often a cavity with a thick wall."""
    view = body.frame
    spot = body.place(_either(rng), _between(rng, 0.3, 0.8), _between(rng, 0.12, 0.75))
    radius = _between(rng, 0.028, 0.045)
    rough = np.float32(0.35) * mottle(rng, view.size, 45)
    du, dv = (view.u - spot[0]) / radius, (view.v - spot[1]) / (radius * _between(rng, 0.8, 1.25))
    away = np.sqrt(du * du + dv * dv) + rough
    mask = soft((1.15 - away) / 0.4)
    hole = soft((0.6 - away) / 0.3) if rng.random() < 0.6 else np.zeros_like(mask)
    shown = (mask - 0.75 * hole) * body.lung
    body.density += np.float32(0.05 + 0.17 * s) * shown
    return bounds(mask * body.lung)


def lung_opacity(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """Haze of no particular kind: what the parent label means when its children do not explain it."""
    view = body.frame
    left = _either(rng)
    spot = body.place(left, _between(rng, 0.25, 0.75), _between(rng, 0.3, 0.9))
    radii = (_between(rng, 0.07, 0.14), _between(rng, 0.07, 0.14))
    mask = blob(view, spot, radii, _between(rng, -0.6, 0.6), _between(rng, 0.8, 1.3))
    return _haze(body, mask, 0.035 + 0.17 * s, 0.4)


def mass(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """A round, well-defined shadow of more than 3 cm (0.09 of a 35 cm film)."""
    spot = body.place(_either(rng), _between(rng, 0.15, 0.8), _between(rng, 0.15, 0.8))
    radius = _between(rng, 0.047, 0.075)
    ratio = _between(rng, 0.85, 1.2)
    mask = blob(body.frame, spot, (radius, radius * ratio), 0.0, _between(rng, 0.25, 0.5))
    return _haze(body, mask, 0.05 + 0.20 * s, 0.6)


def nodule(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """One to three small round shadows of less than 3 cm."""
    regions: list[Region] = []
    for _ in range(int(rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15]))):
        spot = body.place(_either(rng), _between(rng, 0.2, 0.85), _between(rng, 0.12, 0.85))
        radius = _between(rng, 0.014, 0.028)
        mask = blob(body.frame, spot, (radius, radius), 0.0, 0.5)
        regions += _haze(body, mask, 0.05 + 0.15 * s, 0.2)
    return regions


def pneumonia(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """A patchy, soft-edged focal opacity, most often in a lower lobe."""
    view = body.frame
    left = _either(rng)
    spot = body.place(left, _between(rng, 0.3, 0.7), float(0.2 + 0.7 * rng.beta(2.2, 1.3)))
    lumps = soft(0.6 + 0.5 * mottle(rng, view.size, 18))
    radii = (_between(rng, 0.07, 0.11), _between(rng, 0.07, 0.12))
    mask = blob(view, spot, radii, _between(rng, -0.6, 0.6), 0.9) * lumps
    return _haze(body, mask, 0.05 + 0.22 * s, 0.6)
