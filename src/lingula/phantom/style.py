"""Which public data set a phantom represents: its labels, their shares, and how its images look.

A style draws all 26 findings; its table mentions only those that the data set's labellers knew, so
that training on several sources meets the real trouble: what is not mentioned need not be absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lingula.settings.label_space import CHEXPERT, CXR_LT_2023, NIH
from lingula.system.errors import InputError, nearest


@dataclass(frozen=True)
class Style:
    """A data set's habits.

    Attributes:
        source: the table's `source` column.
        letter: what patients' names begin with.
        classes: the label columns of its table.
        share: share of the images with a class, where it differs from CXR-LT 2023's.
        bedside: share of AP images.
        gamma: exponent on the grey levels, 1 for none: above 1 is darker.
        grain: factor on the noise.
        blur: factor on the blur.
        marker: the side marker's letter.
    """

    source: str
    letter: str
    classes: tuple[str, ...]
    share: Mapping[str, float] = field(default_factory=dict)
    bedside: float = 0.55
    gamma: float = 1.0
    grain: float = 1.0
    blur: float = 1.0
    marker: str = "L"

    def seed(self, seed: int) -> int | tuple[int, ...]:
        """Entropy of everything that is drawn: two styles of one seed have nothing in common."""
        return seed if self.letter == "p" else (seed, ord(self.letter))


# Shares of the positives among 112,120 images of ChestX-ray14 and 223,414 of CheXpert's train set.
_NIH_SHARE = {
    "Infiltration": 0.1774,
    "Pleural Effusion": 0.1188,
    "Atelectasis": 0.1031,
    "Nodule": 0.0565,
    "Mass": 0.0516,
    "Pneumothorax": 0.0473,
    "Consolidation": 0.0416,
    "Pleural Thickening": 0.0302,
    "Cardiomegaly": 0.0248,
    "Emphysema": 0.0224,
    "Edema": 0.0205,
    "Fibrosis": 0.0150,
    "Pneumonia": 0.0128,
    "Hernia": 0.0020,
    "No Finding": 0.4500,
    "Lung Opacity": 0.1500,
    "Support Devices": 0.2000,
}
_CHEXPERT_SHARE = {
    "No Finding": 0.1002,
    "Enlarged Cardiomediastinum": 0.0483,
    "Cardiomegaly": 0.1209,
    "Lung Opacity": 0.4726,
    "Lung Lesion": 0.0411,
    "Edema": 0.2339,
    "Consolidation": 0.0662,
    "Pneumonia": 0.0270,
    "Atelectasis": 0.1494,
    "Pneumothorax": 0.0870,
    "Pleural Effusion": 0.3858,
    "Pleural Other": 0.0158,
    "Fracture": 0.0405,
    "Support Devices": 0.5192,
}

CXR_LT = Style("phantom", "p", CXR_LT_2023)
STYLES: dict[str, Style] = {
    "cxr-lt": CXR_LT,
    "nih": Style(
        "phantom-nih",
        "n",
        tuple(name for name in NIH if name != "No Finding"),
        _NIH_SHARE,
        bedside=0.4,
        gamma=1.15,
        grain=1.2,
        blur=1.35,
        marker="R",
    ),
    "chexpert": Style(
        "phantom-chexpert",
        "c",
        CHEXPERT,
        _CHEXPERT_SHARE,
        bedside=0.8,
        gamma=0.88,
        grain=0.8,
        blur=1.15,
    ),
}


def style_of(name: str) -> Style:
    """Find a style by its name; `InputError` with the nearest one for another name."""
    if name not in STYLES:
        raise InputError(
            f"The phantom has no style '{name}'.{nearest(name, STYLES)} "
            f"There are {', '.join(STYLES)}."
        )
    return STYLES[name]
