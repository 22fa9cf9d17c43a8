"""One phantom radiograph from its findings and its seed, with a box around every sign."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lingula.data.phantom import devices, findings_chest, findings_lung, severity
from lingula.data.phantom.anatomy import Thorax, shape_of, thorax
from lingula.data.phantom.canvas import Region
from lingula.data.phantom.film import develop, distract
from lingula.data.phantom.person import Seeds, person
from lingula.errors import InputError, nearest
from lingula.labels import SPACES, canonical

Sign = Callable[[Thorax, np.random.Generator, float], list[Region]]

# The order is the order of drawing: shadows of the lung first, what lies before them last.
SIGNS: Mapping[str, Sign] = {
    "Emphysema": findings_lung.emphysema,
    "Lung Opacity": findings_lung.lung_opacity,
    "Edema": findings_lung.edema,
    "Infiltration": findings_lung.infiltration,
    "Pneumonia": findings_lung.pneumonia,
    "Consolidation": findings_lung.consolidation,
    "Atelectasis": findings_lung.atelectasis,
    "Fibrosis": findings_lung.fibrosis,
    "Mass": findings_lung.mass,
    "Lung Lesion": findings_lung.lung_lesion,
    "Nodule": findings_lung.nodule,
    "Pneumothorax": findings_chest.pneumothorax,
    "Pleural Thickening": findings_chest.pleural_thickening,
    "Pleural Effusion": findings_chest.pleural_effusion,
    "Pleural Other": findings_chest.pleural_other,
    "Cardiomegaly": findings_chest.cardiomegaly,
    "Enlarged Cardiomediastinum": findings_chest.enlarged_cardiomediastinum,
    "Tortuous Aorta": findings_chest.tortuous_aorta,
    "Calcification of the Aorta": findings_chest.calcification_of_the_aorta,
    "Hernia": findings_chest.hernia,
    "Pneumomediastinum": findings_chest.pneumomediastinum,
    "Pneumoperitoneum": findings_chest.pneumoperitoneum,
    "Fracture": findings_chest.fracture,
    "Subcutaneous Emphysema": findings_chest.subcutaneous_emphysema,
    "Support Devices": devices.support_devices,
}
VIEWS = ("PA", "AP")
_CLASSES = SPACES["cxr-lt-2023"].classes


@dataclass(frozen=True)
class Box:
    """Where a sign was drawn: pixels of the image, (x, y) its upper left corner."""

    finding: str
    x: int
    y: int
    w: int
    h: int


def _checked(findings: Collection[str]) -> frozenset[str]:
    names = frozenset(canonical(name) for name in findings)
    for name in sorted(names):
        if name not in _CLASSES:
            raise InputError(f"The phantom draws no '{name}'.{nearest(name, _CLASSES)}")
    if "No Finding" in names and not names <= {"No Finding", "Support Devices"}:
        others = ", ".join(sorted(names - {"No Finding", "Support Devices"}))
        raise InputError(f"'No Finding' excludes every finding but Support Devices, got {others}.")
    return names - {"No Finding"}


def _box(finding: str, region: Region, size: int) -> Box:
    """A region as whole pixels inside the image, at least two by two."""
    x0 = min(max(math.floor(region[0]), 0), size - 2)
    y0 = min(max(math.floor(region[1]), 0), size - 2)
    x1 = min(max(math.ceil(region[2]), x0 + 2), size)
    y1 = min(max(math.ceil(region[3]), y0 + 2), size)
    return Box(finding, x0, y0, x1 - x0, y1 - y0)


def render(
    findings: Collection[str],
    *,
    seed: int | np.random.SeedSequence,
    size: int = 128,
    view: str = "PA",
) -> tuple[NDArray[np.uint8], list[Box]]:
    """Draw one radiograph.

    The same seed without the findings is the same patient, healthy: same body, pose and noise.

    Args:
        findings: names of the CXR-LT 2023 classes that the image shows.
        seed: a number, or a `SeedSequence` whose spawn key is (patient, study, image): images with
            the same patient share a body, images of the same study share their signs too.
        size: pixels a side.
        view: `PA` (standing) or `AP` (lying: larger heart, scapulae over the lungs).

    Returns:
        (size, size) grey levels, and the boxes of all signs, in the order of the classes.

    Raises:
        InputError: a finding or view is unknown, or No Finding stands beside another finding.
    """
    names = _checked(findings)
    if view not in VIEWS:
        raise InputError(f"A phantom's view is one of {', '.join(VIEWS)}, not '{view}'.")
    seeds = Seeds(np.random.SeedSequence(seed) if isinstance(seed, int) else seed)
    who = person(seeds)
    shape = shape_of(who, seeds.patient(1), seeds.image(1), view)
    plan: list[tuple[str, np.random.Generator, float]] = []
    for name in SIGNS:
        if name in names:
            rng = seeds.study(_CLASSES.index(name))
            plan.append((name, rng, severity.draw(name, rng)))
    for name, rng, degree in plan:
        if name in findings_chest.RESHAPE:
            findings_chest.RESHAPE[name](shape, rng, degree)
    body = thorax(who, shape, seeds.patient(2), size)
    boxes = [
        _box(name, region, size)
        for name, rng, degree in plan
        for region in SIGNS[name](body, rng, degree)
    ]
    distract(body, seeds.image(2))
    boxes.sort(key=lambda box: _CLASSES.index(box.finding))
    return develop(body, seeds.image(3), view), boxes
