"""One radiograph: a thorax with the signs of its findings, and their boxes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lingula.phantom import severity
from lingula.phantom.anatomy import shape_of, thorax
from lingula.phantom.canvas import Region
from lingula.phantom.film import develop, distract
from lingula.phantom.person import Seeds, person
from lingula.phantom.signs import LUNG_SIGNS
from lingula.phantom.signs_chest import CHEST_SIGNS, RESHAPE
from lingula.phantom.style import CXR_LT, Style
from lingula.settings.label_space import CXR_LT_2023, suggestion
from lingula.system.errors import InputError

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


def draw(
    findings: Iterable[str], seeds: Seeds, size: int, view: str, style: Style = CXR_LT
) -> tuple[NDArray[np.uint8], list[Box]]:
    """Draw one image. Signs follow the study's chance, body and pose the patient's and image's."""
    wanted = set(findings)
    present = [name for name in CXR_LT_2023 if name in wanted and name in SIGNS]
    chance = {name: seeds.study(CXR_LT_2023.index(name)) for name in present}
    strength = {name: severity.draw(name, chance[name]) for name in present}
    patient = person(seeds)
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
    film = seeds.image(2)
    distract(body, film)
    return develop(body, film, view, style), boxes


def render(
    findings: Iterable[str], *, seed: int, size: int = 128, view: str = "PA"
) -> tuple[NDArray[np.uint8], list[Box]]:
    """Draw a synthetic radiograph.

    Args:
        findings: names of CXR-LT 2023; `No Finding` draws nothing.
        seed: decides patient, pose, severity, exposure and noise.
        size: pixels a side.
        view: `PA` or `AP`.

    Returns:
        The image as (size, size) uint8, and a box for each sign.

    Raises:
        InputError: a finding or view that is not known.
    """
    names = [findings] if isinstance(findings, str) else list(findings)
    for name in names:
        if name not in CXR_LT_2023:
            raise InputError(f"'{name}' is no finding of CXR-LT 2023.{suggestion(name)}")
    if view not in ("PA", "AP"):
        raise InputError(f"The phantom has the views PA and AP, not '{view}'.")
    return draw(names, Seeds(np.random.SeedSequence(seed, spawn_key=(0, 0, 0))), size, view)
