"""The paper's two tables as data: every row a change of its parent, with its source and number.

*Bag of Tricks for Long-Tailed Multi-Label Classification on Chest X-Rays* (CXR-LT 2023). What the
paper leaves open is named in `ASSUMED`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lingula.settings.config import Augment, Config, Data, Decoder, Evaluation, Model, Optim, vary

# Section 3.2: the nine classes whose loss is up-weighted.
NINE = (
    "Calcification of the Aorta",
    "Fibrosis",
    "Infiltration",
    "Lung Lesion",
    "Pleural Other",
    "Pleural Thickening",
    "Pneumomediastinum",
    "Pneumoperitoneum",
    "Tortuous Aorta",
)
# Every choice that the paper leaves open; docs/reproducing.md repeats the list, and a test holds
# the two together.
ASSUMED = (
    "image encoders start from torchvision's ImageNet weights (resnet50.tv_in1k, "
    "densenet121.tv_in1k)",
    "images are squeezed to a square, whatever their shape",
    "DenseNet's map is the one after its last norm and ReLU",
    "PubMedBERT tuned on UMLS is Med-KEBERT, and its pooler's output is taken; Clinical-T5 is any "
    "of its variants, by the mean over its tokens",
    "class names, lower case, are what the text encoder reads",
    "no further MLP on the class embeddings: a linear projection only where they are not 768 wide",
    "decoder layers norm before they attend; 4 heads, feed-forward 1024, dropout 0.1, no positions "
    "on image tokens, and one norm shared by image tokens, queries and output",
    'the "MLP layer" after the decoder is one linear map',
    "crops of 60 to 100 % of the area, rotations of up to 15 degrees",
    "the warm-up climbs linearly over its 20 epochs; the cosine ends at 1e-6",
    "weight decay 0.02, not on biases and norms",
    "the weight of a class multiplies its whole loss, and the mean is not renormalised",
    "one MixUp share a batch, in every batch",
    "the batch of 32 is that of all devices together",
    "training in bfloat16 where the device has it; all scores in fp32",
    "the best epoch is the one with the highest dev mAP, without test-time views",
    "test-time views: the film, its mirror image, a random crop of each, both zoomed out to 1.1",
    "outside data: CheXpert's uncertain labels (-1) are masked, and NIH's No Finding is used",
    "an ensemble's members: all trainings of table 1 that are scored with test-time augmentation",
    "the class-wise ensemble averages the best 3 members of each class",
)
# Torchvision's weights, which the code nearest to the paper's starts from. timm's own default of
# the same architecture is another training (`a1_in1k`, `ra_in1k`).
RESNET, DENSENET = "resnet50.tv_in1k", "densenet121.tv_in1k"


@dataclass(frozen=True)
class Row:
    """A row of Table 1: its number, its parent, what it changes there, and the paper's dev mAP."""

    number: int
    parent: int | None
    changes: dict[str, Any]
    mAP: float
    encoder: str = "ResNet-50"
    text: str = "PubMedBERT"
    separate: bool = True
    factor: int | None = None
    mixup: bool = False
    tta: bool = True

    @property
    def name(self) -> str:
        """The recipe's name."""
        return f"paper/t1r{self.number}"


def _weighted(factor: float) -> dict[str, Any]:
    return {"loss__class_weights": dict.fromkeys(NINE, factor)}


# The columns repeat what the changes add up to; a test holds them against each other.
TABLE_1: tuple[Row, ...] = (
    Row(1, None, {}, 0.3187, separate=False, tta=False),
    Row(2, 1, {"model__classifier": "separate"}, 0.3193, tta=False),
    Row(3, 2, {"evaluation__tta": "paper"}, 0.3220),
    Row(4, 3, _weighted(2.0), 0.3273, factor=2),
    Row(5, 4, {"model__encoder": DENSENET}, 0.3236, encoder="DenseNet-121", factor=2),
    Row(6, 8, _weighted(3.0), 0.3273, text="Clinical-T5", factor=3, mixup=True),
    Row(7, 9, _weighted(3.0), 0.3247, factor=3, mixup=True),
    Row(8, 9, {"model__text": "clinical-t5"}, 0.3244, text="Clinical-T5", factor=2, mixup=True),
    Row(9, 4, {"augment__mixup": 4.0}, 0.3280, factor=2, mixup=True),
)
_BY_NUMBER = {row.number: row for row in TABLE_1}


def base() -> Config:
    """Row 1 of Table 1 (sections 2.1 and 3.2)."""
    return Config(
        data=Data(classes="cxr-lt-2023"),
        model=Model(
            encoder=RESNET,
            weights="imagenet",
            image_size=512,
            text="med-kebert",
            classifier="shared",
            decoder=Decoder(layers=4, width=768),
        ),
        augment=Augment(scale=(0.6, 1.0), flip=0.5, rotation=15.0),
        optim=Optim(
            epochs=50,
            batch_size=32,
            lr=5e-5,
            weight_decay=0.02,
            warmup_epochs=20,
            warmup_lr=1e-6,
            min_lr=1e-6,
        ),
        evaluation=Evaluation(tta="none", merge="geometric"),
    )


def row_config(number: int) -> Config:
    """The training and evaluation of a row of Table 1: its parent's with the row's changes."""
    row = _BY_NUMBER[number]
    return base() if row.parent is None else vary(row_config(row.parent), **row.changes)


def row_of(number: int) -> Row:
    """A row of Table 1."""
    return _BY_NUMBER[number]


@dataclass(frozen=True)
class Exogenous:
    """A training with outside data (section 2.2, Exogenous Data Replenishment)."""

    name: str
    outside: tuple[str, ...]
    unmentioned: str
    purpose: str


# The embedded stand-ins; on real data: data.outside=[nih.csv,chexpert.csv].
_NIH, _CHEXPERT = "phantom:nih", "phantom:chexpert"
EXOGENOUS: tuple[Exogenous, ...] = (
    Exogenous("paper/exo-nih", (_NIH,), "zero", "row 9 with ChestXray14 beside it"),
    Exogenous("paper/exo-chexpert", (_CHEXPERT,), "zero", "row 9 with CheXpert beside it"),
    Exogenous("paper/exo-both", (_NIH, _CHEXPERT), "zero", "row 9 with both beside it, as there"),
    Exogenous(
        "paper/exo-both-masked",
        (_NIH, _CHEXPERT),
        "ignore",
        "row 9 with both beside it, unmentioned labels masked instead of zero",
    ),
)


# Training images of CXR-LT 2023, and of the official training lists of the outside data.
IMAGES = 264_849
OUTSIDE_IMAGES = {_NIH: 86_524, _CHEXPERT: 223_414}


def images_of(training: Exogenous | None = None) -> int:
    """Images of an epoch of a training of the paper; without outside data, of any row."""
    return IMAGES + sum(OUTSIDE_IMAGES[name] for name in (training.outside if training else ()))


def exogenous_config(training: Exogenous) -> Config:
    """Row 9 with tables from outside."""
    return vary(
        row_config(9),
        data__outside=list(training.outside),
        data__unmentioned=training.unmentioned,
    )


@dataclass(frozen=True)
class EnsembleRow:
    """A row of Table 2: an ensemble of trainings, and the paper's test mAP."""

    number: int
    rule: str
    members: tuple[str, ...]
    mAP: float
    parent: int | None

    @property
    def name(self) -> str:
        """The ensemble's name; it is made by `lingula reproduce table2`, not trained."""
        return f"paper/t2r{self.number}"


_MEMBERS = tuple(row.name for row in TABLE_1 if row.tta)
TABLE_2: tuple[EnsembleRow, ...] = (
    EnsembleRow(1, "model-wise", _MEMBERS, 0.347, None),
    EnsembleRow(2, "class-wise", _MEMBERS, 0.348, 1),
    EnsembleRow(3, "class-wise", (*_MEMBERS, "paper/exo-both"), 0.349, 2),
)
