"""Recipes: named settings, each a function that returns a `Config`, with what it is for.

The rows of the paper are in `paper.py`.

A recipe that stands on another is that recipe with a few settings changed (`vary`), so that
`diff(parent, child)` says exactly what it adds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from lingula.settings.config import Augment, Config, Data, Decoder, Evaluation, Model, Optim, vary
from lingula.settings.paper import (
    EXOGENOUS,
    TABLE_1,
    TABLE_2,
    Exogenous,
    exogenous_config,
    images_of,
    row_config,
)
from lingula.system.errors import InputError, nearest


@dataclass(frozen=True)
class Recipe:
    """A named configuration: one sentence of purpose, and how long it takes where."""

    make: Callable[[], Config]
    purpose: str
    cost: str
    parent: str | None = None


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
        optim=Optim(epochs=12, lr=3e-4, batch_size=32),
        evaluation=Evaluation(tta="flip"),
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
    images, o = images_of(training), config.optim
    steps = o.epochs * -(-images // o.batch_size)
    more = "" if training is None else f", {images / images_of():.1f} times a row's"
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
            None if row.parent is None else f"paper/t1r{row.parent}",
        )
        for row in TABLE_1
    },
    **{
        other.name: Recipe(
            partial(exogenous_config, other), other.purpose, paper_cost(other), "paper/t1r9"
        )
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
