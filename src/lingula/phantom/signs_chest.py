"""Signs of the heart, the vessels, the bones, air in the wrong place, and of devices.

Some change the thorax before it is drawn (`RESHAPE`); the others draw on it (`CHEST_SIGNS`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lingula.phantom.anatomy import Break, Shape, Thorax, rib_path
from lingula.phantom.canvas import Region, at, bezier, blob, bounds, ribbon, soft
from lingula.phantom.signs import Sign, between, coin


def _widen_heart(shape: Shape, rng: np.random.Generator, s: float) -> None:
    shape.heart *= 1.03 + 0.20 * s
    shape.heart_right *= 1.0 - 0.04 * s


def _widen_middle(shape: Shape, rng: np.random.Generator, s: float) -> None:
    shape.upper += 0.004 + 0.020 * s
    shape.trunk += 0.012 * s


def _inflate(shape: Shape, rng: np.random.Generator, s: float) -> None:
    shape.flat = min(1.0, shape.flat + 0.10 + 0.40 * s)
    shape.dome_right += 0.004 + 0.022 * s
    shape.dome_left += 0.004 + 0.020 * s
    shape.air *= 1.0 + 0.07 * s
    shape.markings *= 0.92 - 0.25 * s
    shape.heart *= 1.0 - 0.07 * s


def _collapse(shape: Shape, rng: np.random.Generator, s: float) -> None:
    """Atelectasis: the diaphragm of the smaller side is higher."""
    shape.collapsed = coin(rng, 0.55)
    rise = 0.004 + 0.014 * s
    shape.dome_left -= rise * shape.collapsed
    shape.dome_right -= rise * (not shape.collapsed)


def _shrink(shape: Shape, rng: np.random.Generator, s: float) -> None:
    """Fibrosis: small stiff lungs, both domes high."""
    shape.dome_left -= 0.008 + 0.012 * s
    shape.dome_right -= 0.008 + 0.012 * s


def _unfold(shape: Shape, rng: np.random.Generator, s: float) -> None:
    shape.unfold += 0.003 + 0.013 * s
    shape.knob += 0.008 * s


def _crack(shape: Shape, rng: np.random.Generator, s: float) -> None:
    left, first = coin(rng), int(rng.integers(2, 7))
    for i in range(int(rng.integers(2, 5))):
        step = (0.25 + 0.3 * s) * (1 if coin(rng) else -1)
        shape.breaks.append(Break(left, first + i, between(rng, 0.55, 0.85), step))


def heart_box(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """Cardiomegaly: the whole heart is the sign."""
    u0 = min(at(body.right_border, v) for v in (0.55, 0.6, 0.68))
    u1 = max(at(body.left_border, v) for v in (0.62, 0.68, 0.73))
    return [body.frame.region(u0, 0.43, u1, 0.77)]


def middle_box(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """Enlarged Cardiomediastinum: the upper mediastinum."""
    u0, u1 = at(body.right_border, 0.3), at(body.left_border, 0.3)
    return [body.frame.region(u0, 0.17, u1, 0.48)]


def lungs_box(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """Emphysema: both lungs, with less of their vessels towards the wall, and some bullae."""
    for _ in range(int(rng.integers(1, 4))):
        spot = body.place(coin(rng), between(rng, 0.4, 0.8), between(rng, 0.02, 0.35))
        radius = between(rng, 0.03, 0.06)
        hole = blob(body.frame, spot, (radius, radius), 0.0, 0.25) * body.lung
        body.vessels *= 1.0 - 0.8 * hole
        body.density -= (0.02 + 0.03 * s) * hole
    return [
        region
        for left in (False, True)
        for region in bounds(np.asarray(body.lung * body.side(left), dtype=np.float32))
    ]


def aorta_box(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """Tortuous Aorta: a wavy left border below the knob, a bulging ascending aorta."""
    u0, u1 = at(body.right_border, 0.38), at(body.left_border, 0.34)
    bulge = [(u1 - 0.02, 0.27), (u1 + 0.035 + 0.02 * s, 0.38), (u1 - 0.03, 0.5), (0.03, 0.66)]
    mask = ribbon(body.frame, bezier(bulge), 0.045)
    body.density += (0.03 + 0.05 * s) * mask
    return [body.frame.region(u0, 0.24, u1 + 0.025, 0.55)]


def knob(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """Calcification of the Aorta: a thin bright arc inside the knob's outline."""
    u = at(body.left_border, 0.32)
    arc = [(u - 0.045, 0.272), (u - 0.004, 0.265), (u + 0.002, 0.315), (u - 0.008, 0.375)]
    mask = ribbon(body.frame, bezier(arc), 0.010)
    if coin(rng, 0.4):
        down = [(u - 0.012, 0.4), (u - 0.012, 0.44), (u - 0.015, 0.5)]
        mask = mask + ribbon(body.frame, bezier(down), 0.005)
    body.density += (0.13 + 0.2 * s) * mask
    return bounds(mask)


def hernia(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """A round mass behind the heart with air and a fluid level in it."""
    radius = 0.05 + 0.035 * s * between(rng, 0.7, 1.1)
    spot = (between(rng, 0.01, 0.07), 0.71 - 0.7 * radius)
    mask = blob(body.frame, spot, (1.15 * radius, radius), 0.0, 0.2)
    air = blob(body.frame, spot, (0.95 * radius, 0.8 * radius), 0.0, 0.2)
    level = soft((spot[1] + 0.1 * radius - body.frame.v) / 0.008 + 0.5)
    body.density += (0.06 + 0.07 * s) * mask - (0.11 + 0.13 * s) * air * level
    return bounds(mask)


def fracture(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """The step was drawn with the ribs; callus or a gap is drawn here, with the box."""
    regions = []
    for crack in body.shape.breaks:
        path = rib_path(crack, body, 0.1)
        u, v = path[len(path) // 2].tolist()
        # Callus about an old break, a dark gap in a fresh one.
        spot = blob(body.frame, (u, v), (0.018, 0.018), 0.0, 0.8)
        body.density += (0.05 + 0.07 * s) * spot * (1.0 if coin(rng, 0.7) else -0.8)
        u0, v0 = path.min(axis=0).tolist()
        u1, v1 = path.max(axis=0).tolist()
        regions.append(body.frame.region(u0, v0 - 0.03, u1, v1 + 0.03))
    return regions


def free_air(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """Pneumoperitoneum: a dark crescent between a thin diaphragm and the liver."""
    regions = []
    thick = 0.010 + 0.016 * s
    for left in (False, True) if coin(rng, 0.35) else (False,):
        sign = 1.0 if left else -1.0
        middle, half = sign * between(rng, 0.19, 0.23), between(rng, 0.09, 0.13)
        along = np.clip(1.0 - ((body.frame.u - middle) / half) ** 2, 0.0, 1.0)
        depth = -body.above - 0.012
        mask = (
            soft(depth / 0.006 + 0.5)
            * soft((thick * along - depth) / 0.006 + 0.3)
            * soft(along / 0.15)
        )
        body.density -= (0.17 + 0.2 * s) * mask
        regions += bounds(np.asarray(mask, dtype=np.float32))
    return regions


def streaks(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """Subcutaneous Emphysema: dark streaks in the soft tissue of wall, shoulder and neck."""
    regions = []
    for left in (False, True) if coin(rng, 0.4) else (coin(rng),):
        sign = 1.0 if left else -1.0
        mask = np.zeros_like(body.density)
        for _ in range(16):
            v = between(rng, 0.2, 0.62)
            u = sign * (at(body.chest, v) + between(rng, 0.015, 0.085))
            reach = between(rng, 0.03, 0.07)
            stop = (u + sign * between(rng, -0.02, 0.02), v + reach)
            mask += ribbon(body.frame, bezier([(u, v - reach), stop]), between(rng, 0.005, 0.011))
        for _ in range(4):
            start = (sign * between(rng, 0.06, 0.12), between(rng, 0.0, 0.05))
            stop = (sign * between(rng, 0.1, 0.25), between(rng, 0.1, 0.16))
            mask += ribbon(body.frame, bezier([start, stop]), 0.008)
        mask = np.minimum(mask, np.float32(1.4)) * body.body * soft(0.3 - body.wall / 0.01)
        body.density -= (0.07 + 0.12 * s) * mask
        regions += bounds(np.asarray(mask, dtype=np.float32), 0.25)
    return regions


def mediastinal_air(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """Pneumomediastinum: dark lines along the heart and up into the neck, a lifted pleura."""
    mask, line = np.zeros_like(body.density), np.zeros_like(body.density)
    for left in (False, True) if coin(rng) else (True,):
        border = body.left_border if left else body.right_border
        sign = 1.0 if left else -1.0
        places = np.linspace(0.14, between(rng, 0.5, 0.66), 16).tolist()
        air = np.asarray([(at(border, v) - sign * 0.002, v) for v in places], dtype=np.float32)
        pleura = air + np.asarray([sign * 0.011, 0.0], dtype=np.float32)
        mask += ribbon(body.frame, air, 0.010)
        line += ribbon(body.frame, pleura, 0.005)
    for _ in range(2):
        side = 1.0 if coin(rng) else -1.0
        neck = [(side * 0.035, 0.2), (side * 0.04, 0.1), (side * between(rng, 0.05, 0.09), -0.01)]
        mask += ribbon(body.frame, bezier(neck), 0.009)
    body.density += (0.06 + 0.06 * s) * line - (0.11 + 0.13 * s) * np.minimum(mask, np.float32(1.2))
    return bounds(mask)


def _tube(
    body: Thorax, knots: list[tuple[float, float]], width: float, tone: float, wall: bool
) -> list[Region]:
    path = bezier(knots, 40)
    mask = ribbon(body.frame, path, width)
    body.density += tone * mask
    if wall:
        body.density += 0.7 * tone * ribbon(body.frame, path, 0.35 * width)
    return bounds(mask)


def _pacemaker(body: Thorax, rng: np.random.Generator, tone: float) -> list[Region]:
    u, v = between(rng, 0.25, 0.31), between(rng, 0.2, 0.26)
    can = blob(body.frame, (u, v), (0.05, 0.042), 0.3, 0.15)
    body.density += 3.2 * tone * can
    regions = bounds(can)
    tips = [(0.11, 0.7)] + ([(-0.05, 0.55)] if coin(rng) else [])
    for tip in tips:
        lead = [(u, v), (0.16, 0.1), (-0.10, 0.16), (-0.09, 0.5), (-0.06, 0.74), tip]
        regions += _tube(body, lead, 0.009, 2.0 * tone, False)
    return regions


def _wires(body: Thorax, rng: np.random.Generator, tone: float) -> list[Region]:
    """Sternal wires: a column of small loops."""
    mask = np.zeros_like(body.density)
    u = 0.7 * body.shape.turn
    for v in np.linspace(0.26, 0.62, int(rng.integers(5, 8))).tolist():
        half = between(rng, 0.012, 0.018)
        loop = [(u - half, v), (u - half, v - 0.02), (u + half, v - 0.02), (u + half, v + 0.002)]
        mask += ribbon(body.frame, bezier([*loop, (u - half, v + 0.012)]), 0.007)
    body.density += 2.2 * tone * mask
    return bounds(mask)


def _leads(body: Thorax, rng: np.random.Generator, tone: float) -> list[Region]:
    """Monitor electrodes with their wires across the chest."""
    regions = []
    for sign in (-1.0, 1.0):
        u, v = sign * between(rng, 0.2, 0.33), between(rng, 0.2, 0.5)
        dot = blob(body.frame, (u, v), (0.012, 0.012), 0.0, 0.4)
        body.density += 2.2 * tone * dot
        wire = [(u, v), (u + between(rng, -0.1, 0.1), v + 0.3), (between(rng, -0.3, 0.3), 1.02)]
        regions += bounds(dot) + _tube(body, wire, 0.007, 1.2 * tone, False)
    return regions


def devices(body: Thorax, rng: np.random.Generator, s: float) -> list[Region]:
    """Support Devices: two to four of tubes, central lines, drains, wires and pacemakers."""
    tone = 0.06 + 0.065 * s
    left = coin(rng)
    sign = 1.0 if left else -1.0
    regions: list[Region] = []
    picks = rng.permutation(7)[: 2 + int(rng.integers(0, 3))].tolist()
    turn, depth = body.shape.turn, between(rng, -0.03, 0.03)
    for pick in picks:
        if pick == 0:  # endotracheal tube
            ends = [(turn, -0.02), (turn - 0.004, 0.15), (turn - 0.006, 0.29 + depth)]
            regions += _tube(body, ends, 0.017, tone, True)
        elif pick == 1:  # central line by way of the jugular or the subclavian vein
            start = (-0.09, 0.0) if coin(rng) else (-0.3, 0.2)
            knots = [start, (-0.1, 0.12), (-0.055, 0.2), (-0.075, 0.44 + depth)]
            regions += _tube(body, knots, 0.012, 1.5 * tone, False)
        elif pick == 2:  # feeding tube
            knots = [(turn + 0.01, -0.02), (0.0, 0.4), (0.02, 0.72), (0.16, 0.74), (0.14, 0.9)]
            regions += _tube(body, knots, 0.012, 1.5 * tone, False)
        elif pick == 3:  # chest drain
            wall = at(body.chest, 0.62)
            knots = [(sign * (wall + 0.09), 0.68), (sign * wall, 0.6), (sign * 0.28, 0.35)]
            regions += _tube(body, [*knots, (sign * 0.16, 0.2 + depth)], 0.019, tone, True)
        elif pick == 4:
            regions += _pacemaker(body, rng, tone)
        elif pick == 5:
            regions += _wires(body, rng, tone)
        else:
            regions += _leads(body, rng, tone)
    return regions


RESHAPE: dict[str, Callable[[Shape, np.random.Generator, float], None]] = {
    "Atelectasis": _collapse,
    "Cardiomegaly": _widen_heart,
    "Emphysema": _inflate,
    "Enlarged Cardiomediastinum": _widen_middle,
    "Fibrosis": _shrink,
    "Fracture": _crack,
    "Tortuous Aorta": _unfold,
}
CHEST_SIGNS: dict[str, Sign] = {
    "Calcification of the Aorta": knob,
    "Cardiomegaly": heart_box,
    "Emphysema": lungs_box,
    "Enlarged Cardiomediastinum": middle_box,
    "Fracture": fracture,
    "Hernia": hernia,
    "Pneumomediastinum": mediastinal_air,
    "Pneumoperitoneum": free_air,
    "Subcutaneous Emphysema": streaks,
    "Support Devices": devices,
    "Tortuous Aorta": aorta_box,
}
