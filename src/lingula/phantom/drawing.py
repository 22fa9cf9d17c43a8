"""One radiograph: a thorax with the signs of its findings, their boxes, and what a detector adds.

From densities to grey levels: distractors, scatter, blur, exposure, noise, collimation and marker.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lingula.phantom.anatomy import Thorax, shape_of, thorax
from lingula.phantom.canvas import Image, Region, bezier, blob, mottle, ribbon, veil
from lingula.phantom.population import Seeds, draw_person
from lingula.phantom.signs import LUNG_SIGNS
from lingula.phantom.signs_chest import CHEST_SIGNS, RESHAPE
from lingula.phantom.style import CXR_LT, Style
from lingula.settings.label_space import CXR_LT_2023

SIGNS = LUNG_SIGNS | CHEST_SIGNS
# Findings that are opacities: `Lung Opacity` beside them has their boxes and no sign of its own.
OPACITIES = (
    "Atelectasis",
    "Consolidation",
    "Edema",
    "Infiltration",
    "Lung Lesion",
    "Mass",
    "Nodule",
    "Pneumonia",
)

# How hard the phantom is. Raise `EASE` and every sign becomes plainer; raise `NOISE` and every
# image becomes grainier. A single finding is tuned by its line in `VISIBILITY`.
EASE = 1.9
NOISE = 0.75
# (least, most) severity of each finding, before `EASE`. 1 is what a textbook would print. The low
# ends are what a reader may miss: a finding in a report is often mild, and the label says 1 still.
VISIBILITY: dict[str, tuple[float, float]] = {
    "Atelectasis": (0.50, 1.3),
    "Calcification of the Aorta": (0.60, 1.5),
    "Cardiomegaly": (0.45, 1.3),
    "Consolidation": (0.25, 0.9),
    "Edema": (0.25, 1.0),
    "Emphysema": (0.30, 1.0),
    "Enlarged Cardiomediastinum": (0.50, 1.4),
    "Fibrosis": (0.50, 1.4),
    "Fracture": (1.00, 2.4),
    "Hernia": (0.60, 1.5),
    "Infiltration": (0.25, 1.0),
    "Lung Lesion": (0.55, 1.4),
    "Lung Opacity": (0.60, 1.4),
    "Mass": (0.40, 1.2),
    "Nodule": (0.50, 1.4),
    "Pleural Effusion": (0.25, 1.1),
    "Pleural Other": (0.70, 1.8),
    "Pleural Thickening": (0.70, 1.8),
    "Pneumomediastinum": (0.70, 1.7),
    "Pneumonia": (0.30, 1.1),
    "Pneumoperitoneum": (0.70, 1.7),
    "Pneumothorax": (0.80, 1.8),
    "Subcutaneous Emphysema": (0.45, 1.3),
    "Support Devices": (1.00, 2.0),
    "Tortuous Aorta": (0.35, 1.1),
}


@dataclass(frozen=True)
class Box:
    """Where a finding's sign lies: left, top, width and height in pixels, inside the image."""

    finding: str
    x: int
    y: int
    w: int
    h: int


def _box(finding: str, region: Region, size: int) -> Box | None:
    x0, y0 = (min(max(math.floor(c), 0), size) for c in region[:2])
    x1, y1 = (min(max(math.ceil(c), 0), size) for c in region[2:])
    return Box(finding, x0, y0, x1 - x0, y1 - y0) if x1 > x0 and y1 > y0 else None


def draw_severity(finding: str, rng: np.random.Generator) -> float:
    """Draw the severity of one finding in one study, spread over the whole range."""
    least, most = VISIBILITY[finding]
    return EASE * (least + (most - least) * float(rng.beta(1.8, 1.6)))


def draw(
    findings: Iterable[str], seeds: Seeds, size: int, view: str, style: Style = CXR_LT
) -> tuple[NDArray[np.uint8], list[Box]]:
    """Draw one image. Signs follow the study's chance, body and pose the patient's and image's.

    Args:
        findings: names of CXR-LT 2023; `No Finding` draws nothing.
        seeds: what decides patient, pose, severity, exposure and noise.
        size: pixels per side.
        view: `PA` or `AP`.
        style: the data set whose images it looks like.

    Returns:
        The image as (size, size) uint8, and a box for each sign.
    """
    wanted = set(findings)
    present = [name for name in CXR_LT_2023 if name in wanted and name in SIGNS]
    chance = {name: seeds.study(CXR_LT_2023.index(name)) for name in present}
    strength = {name: draw_severity(name, chance[name]) for name in present}
    patient = draw_person(seeds)
    shape = shape_of(patient, seeds.patient(1), seeds.image(1), view)
    for name in present:
        if name in RESHAPE:
            RESHAPE[name](shape, chance[name], strength[name])
    body = thorax(patient, shape, seeds.patient(2), size)
    boxes: list[Box] = []
    for name in present:
        if name == "Lung Opacity" and wanted.intersection(OPACITIES):
            continue
        regions = SIGNS[name](body, chance[name], strength[name])
        boxes += [box for region in regions if (box := _box(name, region, size))]
    if "Lung Opacity" in wanted:
        kin = [box for box in boxes if box.finding in OPACITIES]
        boxes += [Box("Lung Opacity", b.x, b.y, b.w, b.h) for b in kin]
    own = seeds.image(2)
    add_distractors(body, own)
    return develop(body, own, view, style), boxes


def add_distractors(body: Thorax, rng: np.random.Generator) -> None:
    """Add what is seen in healthy people and taken for disease: it belongs to no label."""
    view = body.frame
    left = bool(rng.random() < 0.5)
    chance = rng.random(8)
    if chance[0] < 0.14:  # nipple shadows
        for sign in (-1.0, 1.0):
            spot = (sign * float(rng.uniform(0.19, 0.24)), float(rng.uniform(0.6, 0.66)))
            body.density += 0.06 * blob(view, spot, (0.011, 0.011), 0.0, 0.6)
    if chance[1] < 0.12:  # a skin fold: an edge with markings on both sides
        sign = 1.0 if left else -1.0
        u0 = sign * float(rng.uniform(0.22, 0.3))
        fold = bezier([(u0, 0.2), (u0 + sign * 0.04, 0.4), (u0 + sign * 0.02, 0.75)])
        body.density += 0.035 * ribbon(view, fold, 0.03) * body.lung
    if chance[2] < 0.10:  # a button or a snap
        spot = (float(rng.uniform(-0.3, 0.3)), float(rng.uniform(0.2, 0.8)))
        ring = blob(view, spot, (0.011, 0.011), 0.0, 0.3) - 0.6 * blob(
            view, spot, (0.005, 0.005), 0.0, 0.4
        )
        body.density += 0.2 * ring
    if chance[3] < 0.25:  # companion shadow along the apex
        spot = body.place(left, 0.5, 0.03)
        body.density += 0.05 * blob(view, spot, (0.12, 0.018), 0.0, 0.8) * body.lung
    if chance[4] < 0.15:  # a calcified granuloma or a vessel seen end-on
        spot = body.place(left, float(rng.uniform(0.1, 0.5)), float(rng.uniform(0.3, 0.7)))
        body.density += 0.07 * blob(view, spot, (0.007, 0.007), 0.0, 0.7)
    if chance[5] < 0.2:  # bowel gas under either dome
        for _ in range(3):
            spot = (float(rng.uniform(-0.3, 0.3)), float(rng.uniform(0.84, 0.96)))
            radii = (float(rng.uniform(0.02, 0.05)), float(rng.uniform(0.012, 0.03)))
            body.density -= 0.09 * blob(view, spot, radii, 0.0, 0.6) * (body.above < -0.05)
    # Soft tissue of uneven thickness, in everyone.
    lumps = mottle(rng, view.size, 7)
    fine = mottle(rng, view.size, 34)
    body.density += body.body * (0.022 * lumps + 0.008 * fine)
    grain = mottle(rng, view.size, 70)
    body.density += 0.012 * grain * body.lung


def _mark(grey: Image, rng: np.random.Generator, letter: str) -> None:
    """The side marker: a lead L beside the patient's left shoulder, or an R beside the right."""
    size = len(grey)
    tall, thick = round(0.045 * size), max(1, round(0.011 * size))
    wide = max(thick + 1, round(0.028 * size))
    x, y = round(size * rng.uniform(0.86, 0.94)), round(size * rng.uniform(0.03, 0.16))
    if letter == "R":
        x = size - x - wide
    tone = float(rng.uniform(0.75, 0.97))
    grey[y : y + tall, x : x + thick] = tone
    if letter == "L":
        grey[y + tall - thick : y + tall, x : x + wide] = tone
        return
    middle = y + tall // 2
    grey[y : y + thick, x : x + wide] = tone
    grey[y:middle, x + wide - thick : x + wide] = tone
    grey[middle : middle + thick, x : x + wide] = tone
    for row in range(middle, y + tall):
        leg = x + thick + (wide - 2 * thick) * (row - middle) // max(1, y + tall - middle)
        grey[row, leg : leg + thick] = tone


def _collimate(grey: Image, rng: np.random.Generator) -> None:
    size = len(grey)
    tone = float(rng.choice([0.0, 0.02, 0.95], p=[0.6, 0.25, 0.15]))
    for side in range(4):
        if rng.random() < 0.5:
            cut = round(size * rng.uniform(0.004, 0.028))
            rows = [slice(0, cut), slice(size - cut, size)][side % 2]
            if side < 2:
                grey[rows] = tone
            else:
                grey[:, rows] = tone


def _blur(image: Image, sigma: float) -> Image:
    """Spread by `sigma` pixels: as many [a, 1 - 2a, a] passes as it needs."""
    passes = max(1, math.ceil(sigma * sigma / 0.5))
    a = np.float32(sigma * sigma / (2 * passes))
    for _ in range(passes):
        image = image.copy()
        image[1:-1] += a * (image[:-2] - 2 * image[1:-1] + image[2:])
        image[:, 1:-1] += a * (image[:, :-2] - 2 * image[:, 1:-1] + image[:, 2:])
    return image


def develop(
    body: Thorax, rng: np.random.Generator, view: str, style: Style = CXR_LT
) -> NDArray[np.uint8]:
    """Turn a finished thorax into (size, size) grey levels, as the images of a data set look."""
    size = body.frame.size
    lying = view == "AP"
    total: Image = body.density + body.vessels
    scatter = float(rng.uniform(0.05, 0.2)) + (0.1 if lying else 0.0)
    total = total + np.float32(scatter) * (veil(total) - total)
    total = _blur(total, style.blur * float(rng.uniform(0.0012, 0.0028)) * size)
    # Exposure and the reader's window: which density is black, which is white, and the curve.
    black = float(rng.normal(0.02, 0.02))
    white = float(rng.normal(0.93, 0.04)) + (0.03 if lying else 0.0)
    gamma = style.gamma * float(np.exp(rng.normal(0.0 if not lying else -0.1, 0.16)))
    dose = float(np.exp(rng.normal(0.0, 0.35))) * (1.25 if lying else 1.0)
    # Quantum noise: fewer photons behind denser parts, and fewer for each smaller pixel.
    sigma = np.float32(0.0085 * NOISE * style.grain * dose * math.sqrt(size / 128))
    noise = rng.standard_normal((size, size), dtype=np.float32)
    total = total + sigma * (0.45 + np.clip(total, 0.0, 1.0)) * noise
    grey = np.clip((total - black) / (white - black), 0.002, None)
    # A shoulder instead of a hard clip, as film has.
    grey = np.where(grey > 0.8, 0.8 + 0.2 * np.tanh((grey - 0.8) / 0.25), grey)
    grey = np.power(grey, np.float32(gamma), dtype=np.float32)
    if rng.random() < 0.75:
        _mark(grey, rng, style.marker)
    if rng.random() < 0.35:
        _collimate(grey, rng)
    levels: NDArray[np.uint8] = np.clip(grey * 255.0 + 0.5, 0, 255).astype(np.uint8)
    return levels
