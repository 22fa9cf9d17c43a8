"""Signs in the lungs and the pleura: each draws on a `Thorax` and returns the regions it touched.

A sign takes the thorax, the study's own generator (so that both images of a study agree) and a
severity from `drawing.draw_severity`, where 1 is a textbook case.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from lingula.phantom.anatomy import Thorax
from lingula.phantom.canvas import Image, Region, at, bezier, blob, bounds, mottle, ribbon, soft

Sign = Callable[[Thorax, np.random.Generator, float], list[Region]]


def coin(rng: np.random.Generator, chance: float = 0.5) -> bool:
    """True with the given chance."""
    return bool(rng.random() < chance)


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """A uniform number."""
    return float(rng.uniform(low, high))


def _cloud(
    body: Thorax, rng: np.random.Generator, spot: tuple[float, float], radius: float
) -> Image:
    """A fuzzy patch of lung: an ellipse with an uneven rim and an uneven inside."""
    shape = (radius * between(rng, 0.8, 1.3), radius * between(rng, 0.7, 1.2))
    mask = blob(body.frame, spot, shape, between(rng, -0.8, 0.8), 1.1)
    uneven = np.clip(0.75 + 0.5 * mottle(rng, body.frame.size, 16), 0.1, 1.4)
    return np.asarray(mask * uneven * body.lung, dtype=np.float32)


def _spot(body: Thorax, rng: np.random.Generator, low: float = 0.15) -> tuple[float, float]:
    return body.place(coin(rng), between(rng, 0.25, 0.75), between(rng, low, 0.92))


def opacity(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """Lung Opacity: a hazy patch of no particular kind."""
    mask = _cloud(body, rng, _spot(body, rng), between(rng, 0.07, 0.13))
    body.density += (0.06 + 0.13 * s) * mask
    return bounds(mask)


def consolidation(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """A dense patch that hides the vessels, crossed by dark bronchi."""
    spot = _spot(body, rng, 0.3)
    mask = np.minimum(1.6 * _cloud(body, rng, spot, between(rng, 0.09, 0.15)), np.float32(1.0))
    air = np.zeros_like(mask)
    for _ in range(3):
        tip = (spot[0] + between(rng, -0.09, 0.09), spot[1] + between(rng, 0.0, 0.11))
        inner = (spot[0] * 0.6, spot[1] - 0.04)
        air += ribbon(body.frame, bezier([inner, spot, tip]), 0.007)
    body.vessels *= 1.0 - 0.9 * mask
    body.density += (0.11 + 0.2 * s) * mask - (0.05 + 0.05 * s) * air * mask
    return bounds(mask)


def pneumonia(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """One to three patches of uneven density in one region, mostly low."""
    left, found = coin(rng), np.zeros_like(body.density)
    out, down = between(rng, 0.3, 0.7), between(rng, 0.45, 0.9)
    for _ in range(int(rng.integers(2, 5))):
        place = (out + between(rng, -0.2, 0.2), down + between(rng, -0.13, 0.1))
        found = np.maximum(
            found, _cloud(body, rng, body.place(left, *place), between(rng, 0.04, 0.085))
        )
    lumpy = found * np.clip(0.9 + 0.5 * mottle(rng, body.frame.size, 34), 0.2, 1.8)
    body.density += (0.08 + 0.17 * s) * lumpy
    return bounds(found)


def infiltration(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """Ill-defined streaky patches along the bronchi, both sides or one."""
    sides = [True, False] if coin(rng) else [coin(rng)]
    regions = []
    for left in sides:
        mask = np.zeros_like(body.density)
        down = between(rng, 0.35, 0.8)
        for _ in range(9):
            near = body.place(left, between(rng, 0.05, 0.3), down + between(rng, -0.08, 0.08))
            far = body.place(left, between(rng, 0.5, 0.85), down + between(rng, -0.15, 0.18))
            mask += ribbon(body.frame, bezier([near, far]), between(rng, 0.008, 0.02))
        mask = np.minimum(mask, np.float32(1.5)) * body.lung
        haze = _cloud(body, rng, body.place(left, 0.4, down), 0.11)
        body.density += (0.025 + 0.05 * s) * mask + (0.02 + 0.06 * s) * haze
        regions += bounds(mask + haze)
    return regions


def edema(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """Haze about both hila, fat vessels, short septal lines at the periphery of the bases."""
    regions = []
    body.vessels *= 1.0 + 0.35 * s
    for left in (False, True):
        hilum = body.place(left, between(rng, 0.1, 0.25), between(rng, 0.42, 0.55))
        radii = (between(rng, 0.12, 0.17), between(rng, 0.17, 0.23))
        mask = blob(body.frame, hilum, radii, 0.0, 1.7) * body.lung
        mask = (
            mask
            * body.side(left)
            * np.clip(0.9 + 0.35 * mottle(rng, body.frame.size, 24), 0.2, 1.5)
        )
        body.density += (0.015 + 0.10 * s) * mask
        lines = np.zeros_like(mask)
        for down in np.linspace(0.68, 0.92, 7).tolist():
            ends = [body.place(left, 0.86, down), body.place(left, 0.99, down + 0.012)]
            lines += ribbon(body.frame, bezier(ends), 0.004)
        body.density += (0.03 + 0.05 * s) * lines * body.lung
        regions += bounds(mask, 0.2)
    return regions


def atelectasis(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """Plate-like bands at a base, or a collapsed left lower lobe behind the heart."""
    left = body.shape.collapsed
    mask = np.zeros_like(body.density)
    if left and coin(rng, 0.35):
        a, top = body.frame.u, between(rng, 0.5, 0.58)
        slope = at(body.left_border, 0.62) * (body.frame.v - top) / 0.22
        mask = soft((slope - a) / 0.012) * soft(a / 0.02) * soft((body.frame.v - top) / 0.02)
        mask = mask * soft(body.above / 0.02 + 0.8)
        body.density += (0.06 + 0.05 * s) * mask
        return bounds(mask)
    for _ in range(int(rng.integers(1, 4))):
        down, tilt = between(rng, 0.72, 0.97), between(rng, -0.09, 0.09)
        inner = between(rng, 0.05, 0.35)
        near = body.place(left, inner, down)
        far = body.place(left, inner + between(rng, 0.35, 0.6), down + tilt)
        middle = ((near[0] + far[0]) / 2, (near[1] + far[1]) / 2 - between(rng, 0.0, 0.02))
        mask += ribbon(body.frame, bezier([near, middle, far]), between(rng, 0.007, 0.016))
    mask = np.minimum(mask, np.float32(1.2)) * body.lung
    haze = blob(body.frame, body.place(left, 0.4, 0.95), (0.13, 0.06), 0.0, 1.6) * body.lung
    body.density += (0.07 + 0.10 * s) * mask + (0.04 + 0.07 * s) * haze
    return bounds(mask + 0.5 * haze)


def _round(
    body: Thorax, rng: np.random.Generator, radius: float, density: float, rim: float
) -> list[Region]:
    spot = body.place(coin(rng), between(rng, 0.25, 0.8), between(rng, 0.1, 0.9))
    shape = (radius * between(rng, 0.85, 1.15), radius * between(rng, 0.85, 1.15))
    mask = blob(body.frame, spot, shape, between(rng, -1.5, 1.5), rim)
    body.density += density * mask
    return bounds(mask)


def nodule(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """One to three small round spots."""
    regions = []
    for _ in range(1 + int(rng.random() < 0.3) + int(rng.random() < 0.15)):
        radius = between(rng, 0.013, 0.018) + 0.007 * s
        regions += _round(body, rng, radius, 0.09 + 0.13 * s, between(rng, 0.3, 0.6))
    return regions


def mass(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """A large round density of lobed outline."""
    spot = body.place(coin(rng), between(rng, 0.2, 0.75), between(rng, 0.12, 0.85))
    radius = between(rng, 0.038, 0.055) + 0.02 * s
    mask = blob(body.frame, spot, (radius, radius * between(rng, 0.8, 1.1)), 0.5, 0.3)
    for turn in rng.uniform(0, 2 * math.pi, 4).tolist():
        lobe = (spot[0] + 0.6 * radius * math.cos(turn), spot[1] + 0.6 * radius * math.sin(turn))
        mask = np.maximum(mask, blob(body.frame, lobe, (0.6 * radius, 0.6 * radius), 0.0, 0.4))
    body.density += (0.10 + 0.14 * s) * mask
    return bounds(mask)


def lesion(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """A cavity: a ring with a thick wall; or a spiculated spot."""
    spot = body.place(coin(rng), between(rng, 0.25, 0.75), between(rng, 0.1, 0.75))
    radius = between(rng, 0.03, 0.045)
    mask = blob(body.frame, spot, (radius, radius), 0.0, 0.35)
    if coin(rng, 0.6):
        inner = blob(body.frame, spot, (0.6 * radius, 0.55 * radius), 0.0, 0.4)
        body.density += (0.10 + 0.15 * s) * mask - (0.13 + 0.15 * s) * inner
        return bounds(mask)
    core = blob(body.frame, spot, (0.6 * radius, 0.6 * radius), 0.0, 0.6)
    spikes = np.zeros_like(core)
    for turn in rng.uniform(0, 2 * math.pi, 10).tolist():
        tip = (spot[0] + 1.5 * radius * math.cos(turn), spot[1] + 1.5 * radius * math.sin(turn))
        spikes += ribbon(body.frame, bezier([spot, tip]), 0.0045)
    body.density += (0.09 + 0.13 * s) * core + (0.03 + 0.06 * s) * np.minimum(
        spikes, 1.5
    ) * body.lung
    return bounds(np.maximum(core, mask))


def fibrosis(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """A net of fine lines, in the bases of both lungs or in the apices."""
    regions = []
    low = coin(rng, 0.75)
    for left in (False, True):
        band = (0.62, 1.0) if low else (0.02, 0.3)
        mask = np.zeros_like(body.density)
        for _ in range(46):
            down = between(rng, *band)
            start = body.place(left, between(rng, 0.3, 1.0), down)
            turn, reach = between(rng, 0, 2 * math.pi), between(rng, 0.015, 0.04)
            stop = (start[0] + reach * math.cos(turn), start[1] + reach * math.sin(turn))
            mask += ribbon(body.frame, bezier([start, stop]), 0.0055)
        mask = np.minimum(mask, np.float32(1.3)) * body.lung
        body.density += (0.05 + 0.10 * s) * mask
        regions += bounds(mask)
    return regions


def effusion(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """Fluid: a blunted angle with a meniscus; a veil over the base of a patient who lies."""
    chance = rng.random()
    sides = [False, True] if chance < 0.4 else [chance < 0.75]
    regions = []
    for left in sides:
        depth = between(rng, 0.005, 0.03) + 0.11 * s * between(rng, 0.5, 1.0)
        own = body.side(left)
        sink = at(body.dome, (1 if left else -1) * 0.34)
        # The surface climbs along the wall: the meniscus.
        climb = 0.075 * np.exp(-np.maximum(body.wall, 0) / 0.035)
        surface = sink - depth - climb
        edge = 0.02 if body.shape.upright else 0.11
        mask = soft((body.frame.v - surface) / edge + 0.5) * own
        mask = mask * soft(body.wall / 0.012 + 0.4) * soft(body.medial / 0.014 + 0.7)
        inside = np.maximum(
            body.lung, soft(body.above / 0.03 + 1.4) * soft(0.2 - body.above / 0.03) * 0.3
        )
        mask = np.asarray(mask * inside, dtype=np.float32)
        body.vessels *= 1.0 - 0.9 * mask
        body.density += (0.30 + 0.10 * min(s, 1.0)) * (1.0 if edge < 0.1 else 0.75) * mask
        regions += bounds(mask)
    return regions


def pneumothorax(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """A thin pleural line along the wall and over the apex, and no markings beyond it."""
    left = coin(rng)
    gap = 0.02 + 0.08 * s * between(rng, 0.6, 1.0)
    end = between(rng, 0.4, 0.7)
    cap = at(body.chest, 0.12)
    top = 0.1 + 1.1 * gap
    lower = np.clip((end - body.frame.v) / 0.25, 0.0, 1.0)
    inset = body.wall - gap * lower
    rise = body.frame.v - top - 0.25 * np.maximum(np.abs(body.frame.u) - cap, 0)
    distance = np.minimum(inset, rise)
    own = body.side(left) * body.lung
    beyond = soft(-distance / 0.008 + 0.5) * own * soft((end - body.frame.v) / 0.05)
    pixel = 1.0 / body.frame.size
    thin = max(0.006, 0.9 * pixel)
    line = soft(1.0 - np.abs(distance) / thin) * own * soft((end - body.frame.v) / 0.05)
    body.vessels *= 1.0 - np.minimum(beyond, 1.0)
    body.density += (0.06 + 0.09 * s) * line - (0.04 + 0.07 * s) * beyond
    return bounds(np.asarray(np.maximum(beyond, line), dtype=np.float32))


def thickening(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """A band along the lateral wall, or a cap over an apex."""
    left = coin(rng)
    thick = 0.014 + 0.018 * s
    uneven = 1.0 + 0.4 * mottle(rng, body.frame.size, 12)
    if coin(rng, 0.4):
        top = body.frame.v - body.place(left, 0.5, 0.0)[1]
        mask = soft((1.8 * thick * uneven - top) / 0.012) * body.lung * body.side(left)
    else:
        middle, half = between(rng, 0.4, 0.62), between(rng, 0.1, 0.18)
        along = soft((half - np.abs(body.frame.v - middle)) / 0.04)
        mask = soft((thick * uneven - body.wall) / 0.008) * along * body.side(left)
        mask = mask * soft(body.wall / 0.008 + 0.8)
    mask = np.asarray(mask * soft(body.above / 0.02 + 0.5), dtype=np.float32)
    body.density += (0.09 + 0.16 * s) * mask
    return bounds(mask)


def pleural_other(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """Calcified plaques: bright leaves on the chest wall or on a dome."""
    regions = []
    for _ in range(int(rng.integers(2, 5))):
        left = coin(rng)
        if coin(rng, 0.4):
            u = (1 if left else -1) * between(rng, 0.15, 0.27)
            path = [(u + d, at(body.dome, u + d) - 0.003) for d in (-0.045, 0.0, 0.045)]
        else:
            v = between(rng, 0.35, 0.62)
            half = between(rng, 0.025, 0.05)
            sign = 1 if left else -1
            path = [(sign * (at(body.chest, w) - 0.012), w) for w in (v - half, v, v + half)]
        mask = ribbon(body.frame, bezier(path), between(rng, 0.010, 0.016))
        body.density += (0.14 + 0.18 * s) * mask
        regions += bounds(mask)
    return regions


LUNG_SIGNS: dict[str, Sign] = {
    "Atelectasis": atelectasis,
    "Consolidation": consolidation,
    "Edema": edema,
    "Fibrosis": fibrosis,
    "Infiltration": infiltration,
    "Lung Lesion": lesion,
    "Lung Opacity": opacity,
    "Mass": mass,
    "Nodule": nodule,
    "Pleural Effusion": effusion,
    "Pleural Other": pleural_other,
    "Pleural Thickening": thickening,
    "Pneumonia": pneumonia,
    "Pneumothorax": pneumothorax,
}
