"""Names of findings: the label spaces of the public data sets, their aliases, head/medium/tail.

Classes are matched by name everywhere. Two spellings of one finding (`Pleural_Thickening`,
`pleural thickening `) are one class; a broad finding is never taken for a narrow one (`Lung Lesion`
is not `Nodule`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lingula.system.errors import InputError, nearest

CXR_LT_2023 = (
    "Atelectasis",
    "Calcification of the Aorta",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Enlarged Cardiomediastinum",
    "Fibrosis",
    "Fracture",
    "Hernia",
    "Infiltration",
    "Lung Lesion",
    "Lung Opacity",
    "Mass",
    "No Finding",
    "Nodule",
    "Pleural Effusion",
    "Pleural Other",
    "Pleural Thickening",
    "Pneumomediastinum",
    "Pneumonia",
    "Pneumoperitoneum",
    "Pneumothorax",
    "Subcutaneous Emphysema",
    "Support Devices",
    "Tortuous Aorta",
)
NIH = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Pleural Effusion",
    "Emphysema",
    "Fibrosis",
    "Hernia",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pleural Thickening",
    "Pneumonia",
    "Pneumothorax",
    "No Finding",
)
CHEXPERT = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)

# The 40 classes of training in 2024; the data call `No Finding` `Normal`.
CXR_LT_2024 = tuple(
    sorted(
        (
            *CXR_LT_2023,
            "Adenopathy",
            "Azygos Lobe",
            "Clavicle Fracture",
            "Fissure",
            "Granuloma",
            "Hydropneumothorax",
            "Infarction",
            "Kyphosis",
            "Lobar Atelectasis",
            "Pulmonary Embolism",
            "Pulmonary Hypertension",
            "Rib Fracture",
            "Round(ed) Atelectasis",
            "Tuberculosis",
        )
    )
)
CXR_LT_2024_UNSEEN = ("Bulla", "Cardiomyopathy", "Hilum", "Osteopenia", "Scoliosis")
NIH_CXR_LT = (
    *NIH,
    "Calcification of the Aorta",
    "Pneumomediastinum",
    "Pneumoperitoneum",
    "Subcutaneous Emphysema",
    "Tortuous Aorta",
)
VINDR = (
    "Aortic Enlargement",
    "Atelectasis",
    "Calcification",
    "Cardiomegaly",
    "Clavicle Fracture",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Enlarged PA",
    "ILD",
    "Infiltration",
    "Lung Opacity",
    "Lung Cavity",
    "Lung Cyst",
    "Mediastinal Shift",
    "Nodule/Mass",
    "Pleural Effusion",
    "Pleural Thickening",
    "Pneumothorax",
    "Pulmonary Fibrosis",
    "Rib Fracture",
    "Other Lesion",
    "COPD",
    "Lung Tumor",
    "Pneumonia",
    "Tuberculosis",
    "Other Diseases",
    "No Finding",
)

# Keys are folded spellings (see `fold`). Only synonyms: no broader or narrower finding.
_ALIASES = {
    "effusion": "Pleural Effusion",
    "infiltrate": "Infiltration",
    "airspace opacity": "Lung Opacity",
    "pleural thicken": "Pleural Thickening",
    "enlarged cardiomediastinal silhouette": "Enlarged Cardiomediastinum",
    "calcification of aorta": "Calcification of the Aorta",
    "aortic calcification": "Calcification of the Aorta",
    "pneumoperitoneo": "Pneumoperitoneum",
    "oedema": "Edema",
    "normal": "No Finding",
    "no findings": "No Finding",
    "nofinding": "No Finding",
    "support device": "Support Devices",
    "other disease": "Other Diseases",
}


def fold(name: str) -> str:
    """The form in which spellings are compared: lower case, `_` and runs of blanks as one blank."""
    return re.sub(r"[\s_]+", " ", name).strip().casefold()


_CANONICAL = {
    fold(name): name for name in (*VINDR, *CXR_LT_2024, *CXR_LT_2024_UNSEEN, *NIH, *CHEXPERT)
} | _ALIASES


def canonical(name: str) -> str:
    """The standard spelling of a known finding; any other name without the blanks around it."""
    return _CANONICAL.get(fold(name), name.strip())


def is_known(name: str) -> bool:
    """Whether `name` is a spelling or synonym of a finding of the public label spaces."""
    return fold(name) in _CANONICAL


def guess_finding(name: str) -> str | None:
    """Guess which known finding a misspelt name or a plural means; None if it is like none of them.

    Names are compared with every spelling and synonym, not only with the standard spelling.
    """
    if is_known(name):
        return None
    folded = fold(name)
    singular = re.sub(r"ie$", "y", folded.removesuffix("s"))
    if singular in _CANONICAL:
        return _CANONICAL[singular]
    close = difflib.get_close_matches(folded, list(_CANONICAL), n=1, cutoff=0.88)
    return _CANONICAL[close[0]] if close else None


def suggest(name: str, classes: Iterable[str] = ()) -> str:
    """` Did you mean 'X'?` over `classes` and all known findings, or an empty string."""
    return nearest(name, [*classes, *_CANONICAL.values()])


@dataclass(frozen=True)
class LabelSpace:
    """An ordered set of class names: distinct, and in their standard spelling.

    Raises `InputError` for an empty set, an empty name, or two spellings of one class.
    """

    classes: tuple[str, ...]
    name: str = "own"

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(canonical(name) for name in self.classes))
        if not self.classes:
            raise InputError("A label space needs at least one class.")
        seen: dict[str, str] = {}
        for name in self.classes:
            if not name:
                raise InputError("A class has an empty name.")
            if fold(name) in seen:
                raise InputError(f"Class '{name}' is in the label space twice.")
            seen[fold(name)] = name

    def __len__(self) -> int:
        return len(self.classes)

    def index(self, name: str) -> int:
        """Position of a class, in any spelling; `InputError` with the nearest name for another."""
        wanted = fold(canonical(name))
        for position, known in enumerate(self.classes):
            if fold(known) == wanted:
                return position
        raise InputError(
            f"'{name}' is not one of the {len(self)} classes.{nearest(name, self.classes)}"
        )

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and fold(canonical(name)) in {fold(c) for c in self.classes}


SPACES: Mapping[str, LabelSpace] = {
    "cxr-lt-2023": LabelSpace(CXR_LT_2023, "cxr-lt-2023"),
    "cxr-lt-2024": LabelSpace(CXR_LT_2024, "cxr-lt-2024"),
    "nih": LabelSpace(NIH, "nih"),
    "nih-cxr-lt": LabelSpace(NIH_CXR_LT, "nih-cxr-lt"),
    "chexpert": LabelSpace(CHEXPERT, "chexpert"),
    "vindr": LabelSpace(VINDR, "vindr"),
}


def label_space(classes: str | Sequence[str]) -> LabelSpace:
    """The label space of a name (a key of `SPACES`), or a new one from a list of class names."""
    if not isinstance(classes, str):
        return LabelSpace(tuple(classes))
    if classes not in SPACES:
        raise InputError(
            f"No label space is called '{classes}'.{nearest(classes, SPACES)} "
            f"There are {', '.join(SPACES)}; or list the class names."
        )
    return SPACES[classes]


def group_by_prevalence(
    positives: Mapping[str, int], total: int, head: float = 0.10, tail: float = 0.01
) -> dict[str, tuple[str, ...]]:
    """Head, medium and tail classes from training counts.

    Head: prevalence above `head` (10 %). Tail: below `tail` (1 %). Medium: the rest. These limits
    are those used on CXR-LT 2024; the 2023 organisers' are not published, so both are arguments.
    """
    if total <= 0:
        raise InputError("Head, medium and tail need the number of training images (got 0).")
    if not 0 <= tail <= head <= 1:
        raise InputError(f"Group limits must satisfy 0 <= tail <= head <= 1, not {tail}, {head}.")
    found: dict[str, list[str]] = {"head": [], "medium": [], "tail": []}
    for name, count in positives.items():
        share = count / total
        found["head" if share > head else "tail" if share < tail else "medium"].append(name)
    return {group: tuple(names) for group, names in found.items()}
