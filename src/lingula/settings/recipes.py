"""Recipes: named settings, each a function that returns a `Config`, with what it is for.

The rows of the paper are data: *Bag of Tricks for Long-Tailed Multi-Label Classification on Chest
X-Rays* (CXR-LT 2023). A row is its parent with a few settings changed (`vary`), so that
`diff(parent, child)` says exactly what it adds. What the paper leaves open is named in `ASSUMED`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lingula.settings.config import (
    Augment,
    Config,
    Data,
    Decoder,
    Evaluation,
    Model,
    Optim,
    read_config,
    vary,
)
from lingula.system.errors import InputError, nearest

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
# Every choice that the paper leaves open; docs/reproducing.md repeats the list, and a test
# compares the two.
ASSUMED = (
    "image encoders start from torchvision's ImageNet weights (resnet50.tv_in1k, "
    "densenet121.tv_in1k)",
    "images are squeezed to a square, whatever their shape",
    "DenseNet's map is the one after its last norm and ReLU",
    "PubMedBERT tuned on UMLS is Med-KEBERT, and its pooler's output is taken; Clinical-T5 is any "
    "of its variants, by the mean over its tokens",
    "lower-case class names are the input of the text encoder",
    "no further MLP on the class embeddings: a linear projection only where they are not 768 wide",
    "decoder layers are pre-norm; 4 heads, feed-forward 1024, dropout 0.1, no positions "
    "on image tokens, and one norm shared by image tokens, queries and output",
    'the "MLP layer" after the decoder is one linear map',
    "crops of 60 to 100 % of the area, rotations of up to 15 degrees",
    "the warm-up climbs linearly over its 20 epochs; the cosine ends at 1e-6",
    "weight decay 0.02, not on biases and norms",
    "the class weight multiplies the complete loss of the class, and the mean is not renormalised",
    "one MixUp share per batch, in every batch",
    "the batch size of 32 is the total over all devices",
    "training in bfloat16 where the device has it; all scores in fp32",
    "the best epoch is the one with the highest dev mAP, without test-time views",
    "test-time views: the image, its mirror image, a random crop of each, both zoomed out to 1.1",
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


# The columns repeat what the changes add up to; a test compares them.
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
class Recipe:
    """A named configuration: one sentence of purpose, and how long it takes where."""

    make: Callable[[], Config]
    purpose: str
    cost: str


def demo() -> Config:
    """The first of the two models of `lingula demo`: a RegNet of 200 MFLOP, a small decoder."""
    return Config(
        data=Data(table="phantom"),
        model=Model(
            encoder="regnetx_002",
            image_size=96,
            stage=1,
            classifier="separate",
            bias="prior",
            decoder=Decoder(layers=1, width=256, feedforward=512, pooled_path=True),
        ),
        augment=Augment(scale=(0.8, 1.0), rotation=7.0),
        # From scratch the decoder wants a third of the encoder's rate (docs/experiments.md).
        optim=Optim(epochs=16, lr=1e-3, head_lr=0.3, batch_size=32, weight_decay=0.05, min_lr=1e-5),
        evaluation=Evaluation(tta="flip"),
    )


def small() -> Config:
    """Fine-tuning on about a thousand images of one's own, on a laptop.

    Needs `model.weights`. How its settings were chosen: docs/experiments.md.
    """
    return Config(
        model=Model(
            encoder="efficientnet_lite0",
            weights="imagenet",
            image_size=128,
            classifier="separate",
            decoder=Decoder(
                layers=1, width=512, feedforward=1024, start="average", pooled_path=True
            ),
        ),
        augment=Augment(scale=(0.7, 1.0), rotation=10.0),
        optim=Optim(epochs=12, lr=3e-4, batch_size=32, ema=0.998),
        # Training sees warped images only, which are a little blurred; warped views are therefore
        # scored better than the image itself (docs/experiments.md, 2026-11-28).
        evaluation=Evaluation(tta="paper"),
    )


def smoke() -> Config:
    """Seconds, for tests: a tiny encoder, two epochs on the phantom."""
    return vary(
        demo(),
        model__encoder="test_resnet.r160_in1k",
        model__image_size=32,
        model__decoder__layers=1,
        model__decoder__width=32,
        model__decoder__feedforward=32,
        optim__epochs=2,
        evaluation__tta="none",
    )


def paper_cost(training: Exogenous | None = None) -> str:
    """What a training of the paper consists of; how long that takes is measured on the machine."""
    config = row_config(1)
    outside = () if training is None else training.outside
    images, o = IMAGES + sum(OUTSIDE_IMAGES[name] for name in outside), config.optim
    steps = o.epochs * -(-images // o.batch_size)
    more = f", {images / IMAGES:.1f} times a row's" if outside else ""
    return (
        f"{o.epochs} epochs of {images:,} images{more}, at {config.model.image_size} px: {steps:,} "
        f"steps of {o.batch_size}"
    )


RECIPES = {
    "demo": Recipe(demo, "the embedded phantom, from scratch", "about 2 minutes on 2 cores"),
    "small": Recipe(
        small,
        "fine-tuning on about a thousand images of one's own; needs data.table and model.weights",
        "about 4 minutes on 2 cores for 1,000 images",
    ),
    "smoke": Recipe(smoke, "a check that everything runs; the phantom", "seconds"),
    **{
        row.name: Recipe(
            partial(row_config, row.number),
            f"row {row.number} of the paper's Table 1, dev mAP {row.mAP:.4f} there",
            paper_cost(),
        )
        for row in TABLE_1
    },
    **{
        other.name: Recipe(partial(exogenous_config, other), other.purpose, paper_cost(other))
        for other in EXOGENOUS
    },
}
ENSEMBLES = {row.name: row for row in TABLE_2}


def recipe(name: str) -> Config:
    """The config of a recipe; `InputError` with the nearest name if there is none."""
    if name in ENSEMBLES:
        raise InputError(
            f"{name} is an ensemble of {len(ENSEMBLES[name].members)} trainings, not a training: "
            "`lingula reproduce table2 --out DIR` makes its members and joins them."
        )
    if name not in RECIPES:
        raise InputError(
            f"There is no recipe '{name}'.{nearest(name, [*RECIPES, *ENSEMBLES])} "
            f"There are {', '.join(RECIPES)}; or give the path of a .yaml file."
        )
    return RECIPES[name].make()


def find_config(name: str | Path | Config) -> Config:
    """The config behind a recipe's name or a YAML file; a config is returned as it is."""
    if isinstance(name, Config):
        return name
    if str(name).lower().endswith((".yaml", ".yml")):
        return read_config(name)
    if str(name) not in RECIPES and Path(name).is_dir():
        raise InputError(
            f"{name} is a folder, no recipe and no YAML file; a run's settings are in its "
            f"{Path(name) / 'config.yaml'}."
        )
    return recipe(str(name))
