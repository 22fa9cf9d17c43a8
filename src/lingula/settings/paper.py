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


@dataclass(frozen=True)
class Start:
    """What image encoders start from in place of ImageNet: a linear model of another phantom.

    Attributes:
        images: of that phantom, a tenth of them dev.
        style: its habits and its findings.
        seed: what it is drawn by; no patient of it is one of the scale's.
        imbalance: its head : tail ratio.
        changes: settings on top of row 1's, as `vary` takes them.
    """

    images: int
    style: str
    seed: int
    imbalance: float
    changes: dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """How large a reproduction is: the changes to every recipe, and the phantom's size.

    Attributes:
        changes: settings on top of each row's, as `vary` takes them.
        images: phantoms of the main table; `outside`: of each stand-in of the outside data.
        size: their side in pixels.
        shares: dev and test shares of the main table.
        imbalance: the phantom's head : tail ratio, None for the natural one.
        tail: prevalence below which a class is in the tail; higher where the ratio is tempered.
        start: what encoders start from on the phantom; None: as `changes` or the recipe say.
    """

    changes: dict[str, Any]
    images: int
    outside: int
    size: int
    shares: tuple[float, float]
    imbalance: float | None
    tail: float
    start: Start | None = None


def _from_scratch(size: int, epochs: int, layers: int, width: int) -> dict[str, Any]:
    """Settings for a start at random: at the paper's rates it would stay near chance."""
    return {
        "model__weights": "none",
        "model__image_size": size,
        # At 64 pixels the last map has four cells; KAD too takes the map before it for small films.
        "model__stage": 1,
        "model__bias": "prior",
        "model__decoder__layers": layers,
        "model__decoder__width": width,
        "model__decoder__feedforward": 2 * width,
        "augment__scale": (0.8, 1.0),
        "augment__rotation": 7.0,
        "optim__epochs": epochs,
        "optim__lr": 1e-3,
        # At the encoder's rate the decoder keeps the network near chance for many epochs.
        "optim__head_lr": 0.3,
        "optim__weight_decay": 0.05,
        "optim__min_lr": 1e-5,
        "optim__warmup_epochs": None,
    }


_SMALL = _from_scratch(64, 8, 2, 256)
# From a trained encoder one rate does for all, as in the paper. How long row 1's dev mAP goes on
# rising chose the epochs, once and for all rows (docs/experiments.md).
_STARTED = {"model__weights": "imagenet", "optim__lr": 3e-4, "optim__head_lr": 1.0}
_START = Start(
    images=6000,
    style="nih",
    seed=1001,
    imbalance=30.0,
    changes={
        **_SMALL,
        "data__classes": None,
        "model__classifier": "linear",
        "model__text": "orthogonal",
        "optim__epochs": 12,
        "optim__head_lr": 1.0,
    },
)
SCALES: dict[str, Scale] = {
    "tiny": Scale(_from_scratch(64, 1, 1, 32), 240, 120, 64, (0.15, 0.25), 20.0, 0.03),
    "small": Scale({**_SMALL, **_STARTED}, 4800, 1500, 64, (0.125, 0.5), 30.0, 0.03, start=_START),
    "paper": Scale({}, 20_000, 10_000, 512, (0.15, 0.25), None, 0.01),
}


def scaled(config: Config, scale: Scale) -> Config:
    """A row's config at a scale. Random weights are of no tag."""
    config = vary(config, **scale.changes) if scale.changes else config
    if config.model.weights != "none":
        return config
    return vary(config, model__encoder=config.model.encoder.partition(".")[0])
