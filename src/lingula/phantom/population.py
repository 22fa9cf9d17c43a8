"""Who has what: patients, studies, splits, and labels with the frequencies of CXR-LT 2023."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lingula.phantom.style import CXR_LT, Style
from lingula.settings.label_space import CXR_LT_2023

IMAGES = 264_849
# Positive images in the training set of CXR-LT 2023.
COUNTS = {
    "Support Devices": 89_140,
    "Lung Opacity": 79_931,
    "Cardiomegaly": 76_900,
    "Pleural Effusion": 69_240,
    "Atelectasis": 67_597,
    "Pneumonia": 48_093,
    "No Finding": 41_869,
    "Edema": 38_574,
    "Enlarged Cardiomediastinum": 30_119,
    "Consolidation": 16_038,
    "Pneumothorax": 14_983,
    "Fracture": 11_883,
    "Infiltration": 10_218,
    "Nodule": 7_663,
    "Mass": 5_529,
    "Calcification of the Aorta": 4_361,
    "Emphysema": 4_255,
    "Hernia": 4_049,
    "Tortuous Aorta": 3_499,
    "Pleural Thickening": 3_369,
    "Lung Lesion": 2_533,
    "Subcutaneous Emphysema": 2_453,
    "Fibrosis": 1_158,
    "Pneumomediastinum": 788,
    "Pleural Other": 675,
    "Pneumoperitoneum": 543,
}
FLOOR = {"train": 2, "dev": 10, "test": 10}
SHARE = {"dev": 0.15, "test": 0.25}
HEALTHY, DEVICES = "No Finding", "Support Devices"

# What occurs together: findings with weights on the same line share a cause.
_CAUSES: tuple[dict[str, float], ...] = (
    {"Cardiomegaly": 0.6, "Edema": 0.75, "Pleural Effusion": 0.5, "Lung Opacity": 0.2},
    {"Cardiomegaly": 0.5, "Enlarged Cardiomediastinum": 0.75, "Tortuous Aorta": 0.2},
    {"Pleural Effusion": 0.55, "Atelectasis": 0.7, "Lung Opacity": 0.25, "Support Devices": 0.2},
    {"Pneumonia": 0.65, "Consolidation": 0.65, "Infiltration": 0.5, "Lung Opacity": 0.5},
    {"Pneumothorax": 0.65, "Subcutaneous Emphysema": 0.75, "Pneumomediastinum": 0.6}
    | {"Support Devices": 0.45, "Fracture": 0.25, "Pneumoperitoneum": 0.25},
    {"Calcification of the Aorta": 0.55, "Tortuous Aorta": 0.6, "Hernia": 0.35}
    | {"Emphysema": 0.3, "Fracture": 0.2},
    {"Pleural Thickening": 0.6, "Pleural Other": 0.6, "Fibrosis": 0.5, "Emphysema": 0.2},
    {"Nodule": 0.55, "Mass": 0.5, "Lung Lesion": 0.55, "Lung Opacity": 0.1},
)
# How much each child makes its parent `Lung Opacity` likelier.
_CHILDREN = {
    "Consolidation": 2.0,
    "Pneumonia": 1.6,
    "Infiltration": 1.4,
    "Edema": 0.9,
    "Atelectasis": 0.7,
    "Lung Lesion": 1.0,
    "Mass": 0.8,
    "Nodule": 0.6,
}


@dataclass
class Study:
    """One visit: its patient, its images' views, its split and its findings."""

    patient: int
    number: int
    views: list[str]
    age: int
    female: bool
    split: str = "train"
    findings: set[str] = field(default_factory=set)


def prevalences(imbalance: float | None = None, style: Style = CXR_LT) -> dict[str, float]:
    """Share of images with each class, in `CXR_LT_2023` order.

    `imbalance` sets the ratio of the commonest to the rarest class; the mean number of labels
    per image stays as it is.
    """
    natural = {name: style.share.get(name, COUNTS[name] / IMAGES) for name in CXR_LT_2023}
    if imbalance is None:
        return natural
    head, tail, labels = max(natural.values()), min(natural.values()), sum(natural.values())
    power = math.log(imbalance) / math.log(head / tail)
    tempered = {name: share**power for name, share in natural.items()}
    scale = labels / sum(tempered.values())
    scale = min(scale, 0.6 / max(tempered.values()))
    return {name: share * scale for name, share in tempered.items()}


def _visits(n: int, seed: int | tuple[int, ...], bedside: float) -> list[Study]:
    studies: list[Study] = []
    images = patient = 0
    while images < n:
        seeds = Seeds(np.random.SeedSequence(seed, spawn_key=(patient,)))
        who, rng = draw_person(seeds), seeds.patient(3)
        for number in range(1 + min(3, int(rng.geometric(0.6)) - 1)):
            count = min(1 + int(rng.random() < 0.4), n - images)
            if count < 1:
                break
            view = "AP" if rng.random() < bedside else "PA"
            studies.append(Study(patient, number, [view] * count, who.age, who.female))
            images += count
        patient += 1
    return studies


def _divide(
    studies: list[Study], n: int, rng: np.random.Generator, shares: Mapping[str, float]
) -> None:
    """Give whole patients to dev and test until they have their share; the rest is train."""
    by_patient: dict[int, list[Study]] = {}
    for study in studies:
        by_patient.setdefault(study.patient, []).append(study)
    order = rng.permutation(len(by_patient)).tolist()
    for split, share in shares.items():
        had = 0
        while had < round(share * n) and len(order) > 1:
            for study in by_patient[order.pop()]:
                study.split = split
                had += len(study.views)


def _scores(studies: list[Study], seed: int | tuple[int, ...]) -> NDArray[np.float64]:
    """(studies, classes) how inclined each study is to each class; the patient sways it."""
    weights = np.array([[cause.get(name, 0.0) for name in CXR_LT_2023] for cause in _CAUSES])
    rest = np.sqrt(np.maximum(1.0 - (weights**2).sum(axis=0), 0.1))
    rows = []
    for study in studies:
        key = (study.patient, study.number)
        seeds = Seeds(np.random.SeedSequence(seed, spawn_key=key))
        own, shared = seeds.labels(), seeds.patient(4)
        cause = 0.6 * shared.standard_normal(len(_CAUSES)) + 0.8 * own.standard_normal(len(_CAUSES))
        noise = 0.5 * shared.standard_normal(len(rest)) + 0.866 * own.standard_normal(len(rest))
        rows.append(cause @ weights + rest * noise)
    return np.array(rows)


def _take(studies: list[Study], order: list[int], name: str, quota: int) -> None:
    """Give `name` to studies in `order` until `quota` images have it."""
    for i in order:
        if quota <= 0:
            return
        studies[i].findings.add(name)
        quota -= len(studies[i].views)


def _fill(studies: list[Study]) -> None:
    """Move a label from a study with many to each study without one, so that each has one."""
    names = [name for name in CXR_LT_2023 if name not in (HEALTHY, DEVICES)]
    held = [[name for name in names if name in study.findings] for study in studies]
    for i, study in enumerate(studies):
        if held[i] or HEALTHY in study.findings:
            continue
        same = [j for j, own in enumerate(held) if len(own) > 1]
        like = [j for j in same if len(studies[j].views) == len(study.views)]
        donors = like or same
        if not donors:
            study.findings.add("Lung Opacity")
            held[i] = ["Lung Opacity"]
            continue
        donor = max(donors, key=lambda j: len(held[j]))
        # The commonest label moves: rare ones keep their company.
        name = max(held[donor], key=lambda label: COUNTS[label])
        held[donor].remove(name)
        studies[donor].findings.discard(name)
        study.findings.add(name)
        held[i] = [name]


def _label(
    studies: list[Study], split: str, score: NDArray[np.float64], share: dict[str, float]
) -> None:
    images = sum(len(study.views) for study in studies)
    # A small split can't have the floor for 26 classes beside what is common.
    floor = min(FLOOR[split], max(1, images // 8)) if images > 1 else 0
    quota = {name: max(round(share[name] * images), floor) for name in CXR_LT_2023}
    column = {name: i for i, name in enumerate(CXR_LT_2023)}
    everyone = range(len(studies))

    def ranked(name: str, among: list[int]) -> list[int]:
        return sorted(among, key=lambda i: (-float(score[i, column[name]]), i))

    well = ranked(HEALTHY, list(everyone))
    _take(studies, well[: max(0, len(well) - 1)], HEALTHY, min(quota[HEALTHY], int(0.7 * images)))
    ill = [i for i in everyone if HEALTHY not in studies[i].findings]
    for name in CXR_LT_2023:
        if name not in (HEALTHY, DEVICES, "Lung Opacity"):
            _take(studies, ranked(name, ill), name, quota[name])
    for i in everyone:
        score[i, column["Lung Opacity"]] += sum(
            _CHILDREN[name] for name in CXR_LT_2023 if name in studies[i].findings & set(_CHILDREN)
        )
        # A healthy chest has a line or a pacemaker less often, a patient filmed in bed more often.
        score[i, column[DEVICES]] -= 0.7 * (HEALTHY in studies[i].findings)
        score[i, column[DEVICES]] += 0.5 * (studies[i].views[0] == "AP")
    _take(studies, ranked("Lung Opacity", ill), "Lung Opacity", quota["Lung Opacity"])
    _take(studies, ranked(DEVICES, list(everyone)), DEVICES, quota[DEVICES])
    _fill(studies)


def plan_studies(
    n: int,
    seed: int,
    imbalance: float | None = None,
    style: Style = CXR_LT,
    shares: Mapping[str, float] = SHARE,
) -> list[Study]:
    """All studies of a data set of `n` images, with splits and findings.

    Within a split the classes get their expected number of images, to within one study; who has
    them follows latent causes that findings, and the studies of a patient, have in common.
    """
    entropy = style.seed(seed)
    studies = _visits(n, entropy, style.bedside)
    mixed = [*(entropy if isinstance(entropy, tuple) else (entropy,)), n]
    rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence(mixed)))
    _divide(studies, n, rng, shares)
    share = prevalences(imbalance, style)
    score = _scores(studies, entropy)
    for split in FLOOR:
        rows = [i for i, study in enumerate(studies) if study.split == split]
        if rows:
            _label([studies[i] for i in rows], split, score[rows], share)
    return studies


_PATIENT, _STUDY, _IMAGE, _LABELS = range(4)


@dataclass(frozen=True)
class Person:
    """What the table says of a patient. `age` in years at the first study."""

    age: int
    female: bool


@dataclass(frozen=True)
class Seeds:
    """Three levels of chance: an image shares its signs with its study, its body with its patient.

    They are read off the spawn key (patient, study, image) of one `SeedSequence`; a shorter key
    serves for the levels that it lacks. So an image depends on nothing but the seed and its key.
    """

    sequence: np.random.SeedSequence

    def _generator(self, depth: int, *tag: int) -> np.random.Generator:
        key = (*self.sequence.spawn_key[:depth], 7919, *tag)
        return np.random.Generator(
            np.random.SFC64(np.random.SeedSequence(self.sequence.entropy, spawn_key=key))
        )

    def patient(self, *tag: int) -> np.random.Generator:
        """Chance that is the same for all images of a patient."""
        return self._generator(1, _PATIENT, *tag)

    def study(self, *tag: int) -> np.random.Generator:
        """Chance that is the same for the images of one study."""
        return self._generator(2, _STUDY, *tag)

    def image(self, *tag: int) -> np.random.Generator:
        """Chance of one image alone."""
        return self._generator(3, _IMAGE, *tag)

    def labels(self, *tag: int) -> np.random.Generator:
        """Chance that decides labels; apart from drawing, so that either can change alone."""
        return self._generator(2, _LABELS, *tag)


def draw_person(seeds: Seeds) -> Person:
    """Draw the patient's age and sex."""
    rng = seeds.patient(0)
    age = int(np.clip(rng.normal(61, 17), 18, 91))
    return Person(age, bool(rng.random() < 0.47))
