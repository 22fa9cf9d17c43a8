"""A patient's thorax: its measures (`Shape`) and its shadow in the image (`Thorax`).

Densities are in display units: 0 is air outside the body (black), 1 is the densest bone over the
abdomen (white). They add, as attenuation does; `drawing.develop` makes grey levels of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lingula.phantom.canvas import Frame, Image, at, curve, frame, soft, splat
from lingula.phantom.population import Person

_V_LEFT = (0.0, 0.1, 0.18, 0.25, 0.30, 0.345, 0.39, 0.44, 0.5, 0.56, 0.62, 0.68, 0.73, 0.78, 0.85)
_V_RIGHT = (0.0, 0.1, 0.18, 0.25, 0.33, 0.4, 0.46, 0.53, 0.6, 0.68, 0.75, 0.85)
_V_WALL = (0.06, 0.10, 0.135, 0.17, 0.22, 0.30, 0.40, 0.55, 0.70, 0.85, 1.0)
_V_BODY = (-0.05, 0.03, 0.07, 0.11, 0.16, 0.22, 0.28, 0.38, 0.46, 0.56, 0.75, 1.1)
_U_DOME = (-0.5, -0.42, -0.375, -0.34, -0.28, -0.2, -0.12, -0.06, 0.0)
_U_CLAVICLE = (0.0, 0.03, 0.1, 0.17, 0.24, 0.31, 0.38, 0.5)
RIB_TOP, RIB_STEP, RIB_BOW = 0.105, 0.066, 0.125
_RIB_CELLS = 96


@dataclass
class Break:
    """A fractured posterior rib: which one, where along it, and how far the ends are apart."""

    left: bool
    rib: int
    place: float  # along the rib: 0 at the spine, 1 at the chest wall
    step: float  # in rib spacings


@dataclass
class Shape:
    """Measures of one patient in one image, in body units or as factors about 1."""

    zoom: tuple[float, float]
    tilt: float
    shift: tuple[float, float]
    turn: float  # rotation about the long axis: the midline moves across
    bulk: float  # soft tissue at the sides
    heart: float
    heart_right: float
    upper: float  # half-width added to the upper mediastinum
    knob: float
    unfold: float  # bulge of the descending and ascending aorta
    trunk: float
    dome_right: float
    dome_left: float
    flat: float  # 0 a full dome, 1 a flat diaphragm
    hollow: float  # depth of the costophrenic angles
    air: float
    markings: float
    bones: float
    scapula: float  # where the medial border of the scapula lies
    clavicle: float
    bubble: tuple[float, float, float]  # across, width, height of the gastric bubble
    upright: bool
    breaks: list[Break] = field(default_factory=list)
    collapsed: bool = False  # the side that has lost volume, where one has: True is left


def shape_of(
    person: Person, body: np.random.Generator, pose: np.random.Generator, view: str
) -> Shape:
    """Measures from the patient's own generator and, for the pose, the image's."""
    lying = view == "AP"
    girth = float(body.normal(0, 1))
    zoom = 0.99 + 0.05 * float(body.normal()) - 0.03 * person.female
    tall = zoom * (1 + 0.03 * float(body.normal())) * (0.94 if lying else 1.0)
    age = (person.age - 55) / 20
    heart = 1.0 + 0.085 * float(body.normal()) + 0.02 * age + 0.015 * girth
    return Shape(
        zoom=(min(max(zoom, 0.88), 1.1), min(max(tall, 0.84), 1.06)),
        tilt=float(pose.normal(0, 0.018 if not lying else 0.035)),
        shift=(float(pose.normal(0, 0.014)), float(pose.normal(0.0, 0.014))),
        turn=float(pose.normal(0, 0.006 if not lying else 0.012)),
        bulk=float(np.clip(1.02 + 0.06 * girth, 0.92, 1.2)),
        heart=heart * (1.08 if lying else 1.0),
        heart_right=float(body.normal(1.0, 0.08)),
        upper=0.009 * float(body.normal()) + (0.008 if lying else 0.0),
        knob=float(np.clip(0.02 + 0.006 * body.normal() + 0.005 * age, 0.004, 0.04)),
        unfold=float(np.clip(0.004 * body.normal() + 0.005 * age, 0.0, 0.02)),
        trunk=float(np.clip(0.008 + 0.006 * body.normal(), 0.0, 0.025)),
        dome_right=float(pose.normal(0.0, 0.016)) - (0.025 if lying else 0.0),
        dome_left=float(pose.normal(0.022, 0.016)) - (0.025 if lying else 0.0),
        flat=float(np.clip(body.normal(0.05, 0.12), -0.1, 0.35)),
        hollow=float(body.normal(0.0, 0.012)),
        air=float(np.clip(body.normal(1.0, 0.07), 0.8, 1.2)) * (0.88 if lying else 1.0),
        markings=float(np.clip(body.normal(1.0, 0.18), 0.55, 1.6)),
        bones=float(np.clip(body.normal(1.0 - 0.08 * age, 0.18), 0.55, 1.5)),
        scapula=float(body.normal(0.40, 0.02)) - (0.075 if lying else 0.0),
        clavicle=float(pose.normal(0.0, 0.012)) - (0.012 if lying else 0.0),
        bubble=(
            float(pose.uniform(0.1, 0.2)),
            float(pose.uniform(0.02, 0.065)),
            float(pose.uniform(0.01, 0.035)),
        ),
        upright=not lying,
    )


@dataclass
class Thorax:
    """The shadow under construction. All images are (size, size) float32.

    Attributes:
        shape: the measures it was drawn from.
        frame: where the body lies in the image.
        density: everything but vessels, in display units.
        vessels: lung markings; signs may fade them where they hide or push away the lung.
        lung: 1 in the lung fields, 0 elsewhere, soft at the borders.
        body: 1 in the body, 0 outside.
        wall: distance inside the chest wall, across.
        medial: distance outside the mediastinum, across.
        above: distance above the diaphragm.
    """

    shape: Shape
    frame: Frame
    density: Image
    vessels: Image
    lung: Image
    body: Image
    wall: Image
    medial: Image
    above: Image
    left_border: Image
    right_border: Image
    chest: Image
    dome: Image

    def side(self, left: bool) -> Image:
        """1 on one half of the body."""
        sign = 1.0 if left else -1.0
        return soft(self.frame.u * (sign / 0.02) + 0.5)

    def place(self, left: bool, outward: float, down: float) -> tuple[float, float]:
        """A spot in a lung: `outward` 0 mediastinum, 1 wall; `down` 0 apex, 1 base."""
        sign = 1.0 if left else -1.0
        v = 0.15 + down * 0.57
        inner = at(self.left_border, v) if left else -at(self.right_border, v)
        u = inner + outward * (at(self.chest, v) - inner)
        base = at(self.dome, sign * u)
        v = 0.15 + down * (base - 0.17)
        inner = at(self.left_border, v) if left else -at(self.right_border, v)
        return sign * (inner + outward * (at(self.chest, v) - inner)), v


def _borders(shape: Shape) -> tuple[Image, Image, Image, Image]:
    h, up, fold = shape.heart, shape.upper, shape.unfold
    knob, trunk = up + shape.knob, shape.trunk
    upper = (0.06, 0.052, 0.05 + up, 0.055 + up, 0.066 + knob + fold, 0.064 + knob + 1.2 * fold)
    lower = (0.094 * h + fold, 0.13 * h, 0.168 * h, 0.2 * h, 0.205 * h, 0.19 * h, 0.15 * h)
    left = curve(_V_LEFT, (*upper, 0.058 + up + 1.4 * fold, 0.068 + trunk + 1.3 * fold, *lower))
    r = h * shape.heart_right
    vessels = (0.06, 0.05, 0.044 + up, 0.05 + up, 0.056 + up + fold, 0.06 + 1.3 * fold)
    atrium = (0.072 * r + fold, 0.092 * r, 0.102 * r, 0.098 * r, 0.085 * r, 0.07 * r)
    right = curve(_V_RIGHT, (*vessels, *atrium))
    chest = curve(
        _V_WALL, [-0.16, -0.05, 0.08, 0.165, 0.235, 0.29, 0.328, 0.362, 0.378, 0.385, 0.385]
    )
    # A flat diaphragm has lost its dome: the middle sinks to the level of the angles.
    dome = np.array([0.92, 0.88, 0.825, 0.775, 0.728, 0.702, 0.708, 0.728, 0.745])
    low = np.array([0.92, 0.88, 0.825, 0.80, 0.78, 0.765, 0.76, 0.76, 0.76])
    dome = dome + (low - dome) * shape.flat
    hollow = np.array([0, 0, 1, 0.6, 0, 0, 0, 0, 0]) * shape.hollow
    lift = np.array([0.3, 0.3, 0.3, 0.6, 1, 1, 1, 0.6, 0.5])
    right_half = dome + hollow + lift * shape.dome_right
    left_half = dome + hollow + lift * shape.dome_left
    middle = (right_half[-1:] + left_half[-1:]) / 2
    knots = (*_U_DOME, *(-k for k in _U_DOME[-2::-1]))
    values = np.concatenate([right_half[:-1], middle, left_half[-2::-1]])
    return left, -right, chest, curve(knots, values.tolist())


def _ribs(shape: Shape, view: Frame, chest: Image, wall: Image) -> Image:
    """Posterior and anterior ribs from one periodic profile each: two look-ups, not forty arcs."""
    across = np.abs(view.u) / np.maximum(chest, 0.06)
    phase = (view.v - RIB_TOP - RIB_BOW * across * across) / RIB_STEP
    for crack in shape.breaks:
        own = (view.u > 0) == crack.left
        near = np.abs(phase - crack.rib - 0.5) < 0.62
        distal = soft((across - crack.place) / 0.02) * soft((crack.place + 0.5 - across) / 0.3)
        gap = soft(1.0 - np.abs(across - crack.place) / 0.035)
        phase = phase + np.where(own & near, crack.step * distal + 0.7 * gap, 0.0)
    front = (view.v - 0.13 - 0.24 * (1.0 - np.minimum(across, 1.0))) / 0.086
    cells = np.arange(_RIB_CELLS * 12, dtype=np.float32) / _RIB_CELLS
    part = np.abs(cells - np.floor(cells) - 0.5)
    band = soft((0.25 - part) / 0.12) + 0.45 * soft(1.0 - np.abs(part - 0.17) / 0.07)
    strength = np.interp(cells, [0, 0.9, 1.2, 9.5, 10.5, 12], [0, 0, 1, 0.85, 0, 0])
    posterior = (band * strength).astype(np.float32)
    wide = soft((0.27 - part) / 0.2)
    anterior = (wide * np.interp(cells, [0, 0.5, 1, 6.5, 7.5], [0, 0, 1, 0.7, 0])).astype(
        np.float32
    )
    last = len(cells) - 1
    index = np.clip(phase * _RIB_CELLS, 0, last).astype(np.int32)
    behind = posterior.take(index) * (0.55 + 0.45 * np.minimum(across, 1.0))
    index = np.clip(front * _RIB_CELLS, 0, last).astype(np.int32)
    before = anterior.take(index) * soft((across - 0.35) / 0.4)
    inside = soft(wall / 0.012 + 1.4)
    return np.asarray(shape.bones * inside * (0.105 * behind + 0.06 * before), dtype=np.float32)


def _bones(shape: Shape, view: Frame, along: Image) -> Image:
    """Clavicles, spine, scapulae and humeral heads."""
    rise = [0.205, 0.2, 0.178, 0.158, 0.142, 0.132, 0.13, 0.14]
    knots = (*(-k for k in _U_CLAVICLE[:0:-1]), *_U_CLAVICLE)
    table = curve(
        knots, [*(r + shape.clavicle for r in rise[:0:-1]), *(r + shape.clavicle for r in rise)]
    )
    # Clavicles, scapulae and humeral heads lie in the upper part of any image.
    top = round(0.66 * view.size)
    across, v = np.abs(view.u - shape.turn), view.v[:top]
    a = across[:top]
    off = np.abs(v - table.take(view.iu[:top])) / 0.0125
    ends = soft((a - 0.022) / 0.015) * soft((0.41 - a) / 0.03)
    clavicle = ends * (
        0.10 * soft((1.15 - off) / 0.35) + 0.05 * soft(1.0 - np.abs(off - 0.8) / 0.3)
    )
    edge = a - (
        shape.scapula + 0.14 * (v - 0.3) * np.where(v > 0.3, np.float32(-0.4), np.float32(1.2))
    )
    tall = soft((v - 0.17) / 0.05) * soft((0.52 - v) / 0.08)
    blade = tall * (0.05 * soft(edge / 0.015) + 0.035 * soft(1.0 - np.abs(edge - 0.006) / 0.008))
    du, dv = a - 0.475, v - 0.185
    head = 0.13 * soft((0.05 - np.sqrt(du * du + dv * dv)) / 0.012)
    cells = np.arange(1024, dtype=np.float32) / 1024
    disc = 0.55 + 0.45 * soft((np.abs(cells - 0.5) - 0.05) / 0.12)
    plate = 0.5 * soft(1.0 - np.abs(np.abs(cells - 0.5) - 0.12) / 0.05)
    level = ((along * 17.5) % 1.0 * 1023).astype(np.int32)
    middle = soft((0.047 - np.abs(view.u - 0.5 * shape.turn)) / 0.016)
    bones = 0.055 * middle * (disc + plate).take(level)
    arm = soft((0.028 - np.abs(across - 0.49 - 0.06 * (view.v - 0.2))) / 0.01)
    bones += 0.09 * arm * soft((view.v - 0.2) / 0.03)
    bones[:top] += clavicle + blade + head
    return np.asarray(shape.bones * bones, dtype=np.float32)


def vessel_tree(rng: np.random.Generator, view: Frame) -> Image:
    """(size, size) branching lung markings: three generations out of each hilum."""
    sign = np.repeat([-1.0, 1.0], 9)
    start = np.stack([np.full(18, 0.085), np.where(sign > 0, 0.415, 0.43)], axis=1)
    start = start + rng.normal(0, 0.012, (18, 2))
    heading = np.tile(np.linspace(-1.2, 1.5, 9), 2) + rng.normal(0, 0.12, 18)
    reach = rng.uniform(0.12, 0.2, 18) + 0.1 * np.maximum(np.sin(heading), 0)
    parts: list[Image] = []
    masses: list[Image] = []
    for width, forks in ((0.0085, 3), (0.0055, 3), (0.0035, 0)):
        count = max(6, int(0.2 * view.size))
        t = ((np.arange(count) + 0.5) / count)[None, :]
        bend = rng.normal(0, 0.45, len(start))[:, None]
        turn = heading[:, None] + bend * t
        u = start[:, :1] + reach[:, None] * t * np.cos(turn)
        v = start[:, 1:] + reach[:, None] * t * np.sin(turn)
        taper = (1.15 - 0.7 * t) * np.ones_like(u)
        spots = np.stack([(sign[:, None] * u).ravel(), v.ravel()], axis=1).astype(np.float32)
        # Mass of a point: its width times its length, in pixels.
        share = (taper * (reach[:, None] * view.size / count) * width * view.size).ravel()
        blur = rng.normal(0, 0.3 * width, spots.shape).astype(np.float32)
        parts.append(view.points(spots + blur))
        masses.append(share.astype(np.float32))
        if forks:
            pick = rng.integers(count // 4, count, (len(start), forks))
            row = np.arange(len(start))[:, None]
            start = np.stack([u[row, pick].ravel(), v[row, pick].ravel()], axis=1)
            aside = np.where(rng.random(pick.shape) < 0.5, -0.55, 0.55)
            heading = (turn[row, pick] + aside).ravel()
            sign = np.repeat(sign, forks)
            heading = heading + rng.normal(0, 0.2, heading.shape)
            reach = (reach[:, None] * rng.uniform(0.35, 0.62, pick.shape)).ravel()
    return splat(view.size, np.concatenate(parts), np.concatenate(masses))


def _soft_tissue(
    shape: Shape, view: Frame, female: bool, breast: tuple[float, float]
) -> tuple[Image, Image]:
    """The body's outline and its flesh, without the lungs."""
    half = [0.1, 0.105, 0.15, 0.33, 0.47, 0.545, 0.565, 0.545, 0.5, 0.47, 0.465, 0.49]
    outline = view.on_v(curve(_V_BODY, [h * shape.bulk for h in half]))
    depth = outline - np.abs(view.u)
    body = soft(depth / 0.012)
    arm = soft((-depth - 0.035) / 0.012) * soft((view.v - 0.4) / 0.05)
    flesh = body * (0.40 + 0.27 * soft(depth / 0.16 + 0.1)) + 0.38 * arm
    if female:
        a = np.abs(view.u) - 0.2
        b = view.v - breast[1]
        inside = np.sqrt((a / 0.17) ** 2 + (b / np.where(b > 0, 0.12, 0.3)) ** 2)
        flesh = flesh + body * breast[0] * soft((1.05 - inside) / 0.25)
    return body, np.asarray(flesh, dtype=np.float32)


def thorax(person: Person, shape: Shape, body_rng: np.random.Generator, size: int) -> Thorax:
    """Draw the thorax of `shape`; `body_rng` decides the vessels and the breasts."""
    view = frame(size, shape.zoom, shape.tilt, shape.shift)
    left, right, chest, dome = _borders(shape)
    left, right = left + np.float32(shape.turn), right + np.float32(shape.turn)
    reach = view.on_v(chest)
    wall = reach - np.abs(view.u)
    inner, outer = view.u - view.on_v(left), view.on_v(right) - view.u
    medial = np.maximum(inner, outer)
    above = view.on_u(dome) - view.v
    edge = soft(wall / 0.014) * soft(medial / 0.014 + 0.5)
    lung = edge * soft(above / 0.012 + 0.5)
    # Air is deepest in the middle of a field; behind the domes some lung is left.
    room = np.maximum(wall, 0.0)
    deep = room / (room + 0.022) * (0.85 + 0.15 * soft(medial / 0.08))
    breast = (float(body_rng.uniform(0.03, 0.11)), float(body_rng.uniform(0.6, 0.72)))
    body, flesh = _soft_tissue(shape, view, person.female, breast)
    density: Image = flesh
    air = 0.50 * shape.air * deep * edge * (0.12 * soft(above / 0.06 + 1.0) + 0.88 * lung)
    density = density + body * 0.15 * soft(0.5 - above / 0.05)
    heart = soft(0.5 - medial / 0.03) * soft((view.v - 0.12) / 0.1)
    density = density + 0.09 * heart * (0.6 + 0.4 * soft(0.3 - medial / 0.1)) - air
    pipe = np.abs(view.u + 0.006 - shape.turn)
    fork = np.abs(pipe - np.maximum(0.0, 0.75 * (view.v - 0.36)))
    bronchi = soft((0.019 - fork) / 0.012) * soft((0.43 - view.v) / 0.05)
    density = density - 0.10 * bronchi * soft((view.v + 0.02) / 0.05)
    density = density + _ribs(shape, view, reach, wall) + _bones(shape, view, view.v)
    # The lateral wall seen edge-on.
    density = density + 0.05 * soft(1.0 - np.abs(wall + 0.012) / 0.014) * soft(
        (view.v - 0.14) / 0.1
    )
    across, width, height = shape.bubble
    du: Image = (view.u - across) / width
    dv: Image = (view.v - view.on_u(dome) - height - 0.012) / height
    bubble = soft((1.1 - np.sqrt(du * du + dv * dv)) / 0.35)
    density = density - 0.16 * bubble
    for sign, v0 in ((-1.0, 0.435), (1.0, 0.415)):
        down, out = (view.v - v0) / 0.06, (sign * view.u - 0.08) / 0.038
        density = density + 0.09 * soft(1.0 - np.sqrt(out * out + down * down)) * edge
    trees = vessel_tree(body_rng, view)
    fade = np.float32(0.075 * shape.markings)
    vessels = fade * np.minimum(trees, 2.6) * lung
    return Thorax(
        shape, view, density.astype(np.float32), vessels, lung, body,
        wall, medial, above, left, right, chest, dome,
    )  # fmt: skip


def rib_path(breakage: Break, body: Thorax, span: float) -> Image:
    """(N, 2) the run of a posterior rib about its fracture, `span` to either side along the rib."""
    sign = 1.0 if breakage.left else -1.0
    places = np.linspace(breakage.place - span, breakage.place + span, 9)
    path = []
    for place in places.tolist():
        v = RIB_TOP + RIB_STEP * (breakage.rib + 0.5) + RIB_BOW * place * place
        path.append((sign * place * at(body.chest, v), v))
    return np.asarray(path, dtype=np.float32)
