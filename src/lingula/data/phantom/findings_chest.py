"""Findings of pleura, heart, mediastinum, chest wall and belly, each as its radiological sign.

`RESHAPE` holds the findings that change the patient's measures before the thorax is drawn; all of
them, and the others, then draw or only point at what they changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from lingula.data.phantom.anatomy import Break, Shape, Thorax, rib_path
from lingula.data.phantom.canvas import (
    Image,
    Region,
    at,
    bezier,
    blob,
    bounds,
    mottle,
    ribbon,
    soft,
)


def _either(rng: np.random.Generator) -> bool:
    return bool(rng.random() < 0.5)


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return float(rng.uniform(low, high))


def widen_heart(shape: Shape, rng: np.random.Generator, s: float) -> None:
    """Cardiomegaly: the heart is wide against the chest."""
    shape.heart *= 1.06 + 0.24 * s
    shape.heart_right *= _between(rng, 0.95, 1.1)


def widen_mediastinum(shape: Shape, rng: np.random.Generator, s: float) -> None:
    """Enlarged Cardiomediastinum: the upper mediastinum is wide."""
    shape.upper += 0.008 + 0.03 * s
    shape.heart *= 1.0 + 0.05 * s


def unfold_aorta(shape: Shape, rng: np.random.Generator, s: float) -> None:
    """Tortuous Aorta: the arch stands out and the descending aorta bows to the left."""
    shape.unfold += 0.008 + 0.026 * s
    shape.knob += 0.004 + 0.010 * s


def inflate(shape: Shape, rng: np.random.Generator, s: float) -> None:
    """Emphysema: large dark lungs, a low flat diaphragm, a narrow heart."""
    shape.flat = min(shape.flat + 0.2 + 0.55 * s, 1.0)
    shape.dome_right += 0.012 + 0.025 * s
    shape.dome_left += 0.012 + 0.025 * s
    shape.heart *= 1.0 - 0.09 * s
    shape.air *= 1.0 + 0.08 * s


def lose_volume(shape: Shape, rng: np.random.Generator, s: float) -> None:
    """Atelectasis and Fibrosis: a diaphragm pulled up."""
    if rng.random() < 0.5:
        shape.dome_right -= 0.03 * s
    else:
        shape.dome_left -= 0.03 * s


def break_ribs(shape: Shape, rng: np.random.Generator, s: float) -> None:
    """Fracture: one to three neighbouring ribs are broken."""
    left = _either(rng)
    first = int(rng.integers(2, 6))
    for rib in range(first, first + int(rng.choice([1, 2, 3], p=[0.4, 0.35, 0.25]))):
        place = _between(rng, 0.55, 0.85)
        step = (0.18 + 0.3 * s) * (1.0 if rng.random() < 0.5 else -1.0)
        shape.breaks.append(Break(left, rib, place, step))


RESHAPE: Mapping[str, Callable[[Shape, np.random.Generator, float], None]] = {
    "Atelectasis": lose_volume,
    "Cardiomegaly": widen_heart,
    "Emphysema": inflate,
    "Enlarged Cardiomediastinum": widen_mediastinum,
    "Fibrosis": lose_volume,
    "Fracture": break_ribs,
    "Tortuous Aorta": unfold_aorta,
}


def _silhouette(body: Thorax, top: float, bottom: float, margin: float) -> list[Region]:
    """The region of the mediastinal shadow between two heights."""
    places = np.linspace(top, bottom, 12).tolist()
    right = min(at(body.right_border, v) for v in places)
    left = max(at(body.left_border, v) for v in places)
    return [body.frame.region(right - margin, top, left + margin, bottom)]


def cardiomegaly(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """The heart's box; its width is in the shape."""
    return _silhouette(body, 0.46, 0.78, 0.006)


def enlarged_cardiomediastinum(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """The box of the mediastinum above the heart; its width is in the shape."""
    return _silhouette(body, 0.17, 0.45, 0.006)


def tortuous_aorta(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """The descending aorta's edge runs bowed through the heart's shadow."""
    view = body.frame
    low = [(0.07 + 0.02 * s, 0.38), (0.105 + 0.02 * s, 0.48), (0.055, 0.68)]
    body.density += np.float32(0.05 * s) * ribbon(view, bezier(low), 0.012)
    return [view.region(0.03, 0.24, at(body.left_border, 0.345) + 0.025, 0.62)]


def calcification_of_the_aorta(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """A bright arc that follows the aortic knob inside its border."""
    view = body.frame
    inset = _between(rng, 0.006, 0.012)
    first, last = sorted((_between(rng, 0.255, 0.3), _between(rng, 0.325, 0.37)))
    rows = np.linspace(first, last, 14).tolist()
    bend = [-inset - 0.02 * abs(2 * i / 13 - 0.9) ** 3 for i in range(14)]
    path = [(at(body.left_border, v) + b, v) for v, b in zip(rows, bend, strict=True)]
    arc = ribbon(view, np.asarray(path, dtype=np.float32), _between(rng, 0.006, 0.01))
    flakes = soft(0.7 + 0.5 * mottle(rng, view.size, 60))
    body.density += np.float32(0.05 + 0.16 * s) * arc * flakes
    return bounds(arc)


def hernia(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """Hiatal: a round shadow behind the heart with air above a fluid level."""
    view = body.frame
    spot = (_between(rng, -0.01, 0.06), _between(rng, 0.64, 0.69))
    radii = (0.045 + 0.035 * s, 0.04 + 0.028 * s)
    mask = blob(view, spot, radii, 0.0, 0.25)
    level = spot[1] + _between(rng, -0.01, 0.012)
    air = blob(view, spot, (0.82 * radii[0], 0.82 * radii[1]), 0.0, 0.25)
    air = air * soft((level - view.v) / 0.006 + 0.5)
    body.density += np.float32(0.03 + 0.05 * s) * mask - np.float32(0.04 + 0.12 * s) * air
    return bounds(mask)


def pleural_effusion(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """Fluid in the angle with a meniscus that climbs the wall; lying down, a veil over the lung."""
    view = body.frame
    both = rng.random() < 0.4
    first = _either(rng)
    regions: list[Region] = []
    for left in (first, not first) if both else (first,):
        amount = s * _between(rng, 0.6, 1.15)
        side = body.side(left)
        depth = 0.015 + 0.16 * amount * amount
        climb = 0.09 * np.exp(-np.maximum(body.wall, 0.0) / 0.035)
        level = 0.80 - depth - climb - view.v
        # The angle fills first: the surface lies low in the middle.
        fluid = soft(0.5 - level / 0.03) * body.lung * side
        body.density += np.float32(0.30) * fluid
        body.vessels *= 1.0 - 0.95 * fluid
        if not body.shape.upright:
            haze = soft((view.v - 0.3) / 0.5) * body.lung * side
            body.density += np.float32(0.03 + 0.09 * amount) * haze
        # On a raised diaphragm a small effusion may hide: the blunted angle is then the box.
        angle = (
            view.region(0.30, 0.74, 0.385, 0.83) if left else view.region(-0.385, 0.74, -0.30, 0.83)
        )
        found = bounds(fluid) if float(fluid.max()) > 0.3 else []
        if not found:
            corner = soft((0.06 - body.wall) / 0.05) * soft((0.08 - body.above) / 0.05)
            body.density += np.float32(0.12 + 0.15 * s) * corner * body.lung * side
            found = [angle]
        regions += found
    return regions


def pneumothorax(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """A thin white pleural line, and beyond it air without lung markings."""
    view = body.frame
    left = _either(rng)
    gap = 0.018 + 0.065 * s
    # The rim is widest at the apex, where air gathers.
    rim = gap * (0.45 + 1.3 * soft((0.5 - view.v) / 0.4))
    top = 0.035 + 0.07 * s
    inside = np.minimum(body.wall, (view.v - 0.125) * (gap / top) * 1.5)
    away = rim - inside
    fade = soft((0.78 - view.v) / 0.12)
    beyond = soft(away / 0.01 + 0.5) * body.lung * body.side(left) * fade
    line = soft(1.0 - np.abs(away) / 0.006) * body.lung * body.side(left) * fade
    body.vessels *= 1.0 - beyond
    body.density += np.float32(0.05 + 0.09 * s) * line - np.float32(0.05 + 0.03 * s) * beyond
    lung = body.side(left) * body.lung * (1.0 - beyond)
    body.density += np.float32(0.03 * s) * lung
    return bounds(np.maximum(beyond, line))


def pleural_thickening(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """A band along the lateral wall, or a cap over the apex."""
    view = body.frame
    side = body.side(_either(rng))
    thick = 0.012 + 0.02 * s
    if rng.random() < 0.55:
        top = _between(rng, 0.3, 0.5)
        span = soft((view.v - top) / 0.06) * soft((top + _between(rng, 0.2, 0.32) - view.v) / 0.06)
        mask = soft((thick - body.wall) / 0.008) * span
    else:
        ragged = 0.006 * mottle(rng, view.size, 30)
        mask = soft((thick + 0.004 - np.minimum(body.wall, view.v - 0.135) + ragged) / 0.012)
        mask = mask * soft((0.26 - view.v) / 0.05)
    shown = mask * side * body.lung
    body.density += np.float32(0.06 + 0.18 * s) * shown
    return bounds(shown)


def pleural_other(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """Calcified plaques over lung and diaphragm, or fluid in the minor fissure."""
    view = body.frame
    if rng.random() < 0.35:
        spot = body.place(False, 0.5, _between(rng, 0.5, 0.6))
        mask = blob(view, spot, (_between(rng, 0.07, 0.1), 0.012 + 0.014 * s), 0.05, 0.4)
        mask = mask * body.lung
    else:
        mask = np.zeros_like(body.lung)
        for _ in range(int(rng.integers(2, 5))):
            left = _either(rng)
            u, v = body.place(left, _between(rng, 0.5, 0.95), _between(rng, 0.45, 0.9))
            radii = (_between(rng, 0.012, 0.022), _between(rng, 0.025, 0.05))
            mask = np.maximum(mask, blob(view, (u, v), radii, _between(rng, -0.5, 0.5), 0.35))
        mask = mask * body.lung * soft(0.65 + 0.7 * mottle(rng, view.size, 50))
    body.density += np.float32(0.05 + 0.16 * s) * mask
    return bounds(mask)


def pneumomediastinum(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """Thin dark lines along the border of the mediastinum and up into the neck."""
    view = body.frame
    mask = np.zeros_like(body.lung)
    pleura = np.zeros_like(body.lung)
    for left in (False, True) if rng.random() < 0.5 else (_either(rng),):
        border = body.left_border if left else body.right_border
        sign = 1.0 if left else -1.0
        rows = np.linspace(_between(rng, 0.02, 0.12), _between(rng, 0.48, 0.64), 24).tolist()
        path = np.asarray([(at(border, v) - sign * 0.009, v) for v in rows], dtype=np.float32)
        mask = np.maximum(mask, ribbon(view, path, 0.008))
        path = path + np.asarray([sign * 0.011, 0.0], dtype=np.float32)
        pleura = np.maximum(pleura, ribbon(view, path, 0.004))
    body.density += np.float32(0.06 * s) * pleura - np.float32(0.05 + 0.13 * s) * mask
    return bounds(mask)


def pneumoperitoneum(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """A dark crescent between the dome of the diaphragm and the belly."""
    view = body.frame
    regions: list[Region] = []
    right_only = rng.random() < 0.55
    for left in (False,) if right_only else (False, True):
        u = (1.0 if left else -1.0) * _between(rng, 0.16, 0.22)
        thick = (0.010 + 0.024 * s) * np.clip(1.0 - ((view.u - u) / 0.13) ** 2, 0.0, 1.0)
        below = -body.above - 0.010
        mask = soft(below / 0.006 + 0.5) * soft((thick - below) / 0.008)
        body.density -= np.float32(0.12 + 0.16 * s) * mask * body.body
        regions += bounds(mask)
    return regions


def fracture(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """The boxes of the broken ribs, with a little callus or haematoma about them."""
    regions: list[Region] = []
    callus = rng.random() < 0.4
    for crack in body.shape.breaks:
        path = rib_path(crack, body, 0.14)
        low, high = path.min(axis=0), path.max(axis=0)
        regions.append(
            body.frame.region(
                float(low[0]), float(low[1]) - 0.025, float(high[0]), float(high[1]) + 0.025
            )
        )
        if callus:
            spot = (float(path[4, 0]), float(path[4, 1]))
            body.density += np.float32(0.07 * s) * blob(body.frame, spot, (0.022, 0.02), 0.0, 0.7)
    return regions


def subcutaneous_emphysema(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """Dark streaks between the muscle fibres of the chest wall and in the neck."""
    view = body.frame
    regions: list[Region] = []
    first = _either(rng)
    for left in (first, not first) if rng.random() < 0.4 else (first,):
        sign = 1.0 if left else -1.0
        outside = soft(-body.wall / 0.02 - 0.3) * soft((body.wall + 0.17) / 0.05)
        tall = soft((view.v - 0.04) / 0.06) * soft((0.25 + 0.4 * s - view.v) / 0.1)
        zone = outside * tall * body.body * soft((sign * view.u - 0.06) / 0.05)
        # Fibres run downwards and outwards: stretch the noise along them.
        fibre = np.zeros_like(zone)
        for _ in range(9):
            u, v = sign * _between(rng, 0.12, 0.46), _between(rng, 0.08, 0.5)
            tip = (u + sign * _between(rng, -0.02, 0.07), v + _between(rng, 0.06, 0.16))
            fibre += ribbon(
                view, np.asarray([(u, v), tip], dtype=np.float32), _between(rng, 0.006, 0.012)
            )
        bubbles = soft(0.3 + 0.6 * mottle(rng, view.size, 44))
        shown: Image = zone * (0.6 * np.minimum(fibre, 1.0) + 0.45 * bubbles)
        body.density -= np.float32(0.04 + 0.17 * s) * shown
        regions += bounds(shown)
    return regions
