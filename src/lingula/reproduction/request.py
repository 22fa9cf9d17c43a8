"""The request of `lingula reproduce`: which table, on which data, at which scale, and where."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lingula.settings.config import Config, override_settings, vary
from lingula.settings.recipes import TABLE_1, TABLE_2
from lingula.settings.weight_sources import TEXT_SOURCES
from lingula.system.errors import InputError, nearest

TEXTS = ("med-kebert", "clinical-t5")  # the paper's two, by the names that its recipes use


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


def scale_config(config: Config, scale: Scale) -> Config:
    """A row's config at a scale. Random weights are of no tag."""
    config = vary(config, **scale.changes) if scale.changes else config
    if config.model.weights != "none":
        return config
    return vary(config, model__encoder=config.model.encoder.partition(".")[0])


@dataclass(frozen=True)
class Request:
    """A table of the paper to reproduce: on which data, how large, with what, and where.

    Attributes:
        table: `table1` or `table2`.
        folder: the folder of everything that is written; absolute, as are all paths here.
        data: the table to train and measure on; None is the phantom.
        outside: tables of outside data; the phantom has its own.
        scale: `tiny`, `small` or `paper`.
        seeds: trainings per row.
        epochs: of every training, instead of the scale's.
        texts: folders of the real text encoders, by name.
        stand_ins: folders of other text encoders to use instead, by the name of the real one.
        rows: only these rows and what they are compared with; none: all.
        cache: folders that `lingula data cache` wrote.
        settings: `key=value` for every training.
    """

    table: str
    folder: Path
    data: Path | None = None
    outside: tuple[Path, ...] = ()
    scale: str = "small"
    seeds: int = 1
    epochs: int | None = None
    texts: Mapping[str, Path] = field(default_factory=dict)
    stand_ins: Mapping[str, Path] = field(default_factory=dict)
    rows: tuple[int, ...] = ()
    cache: tuple[Path, ...] = ()
    settings: tuple[str, ...] = ()

    @property
    def size(self) -> Scale:
        """The scale, with this request's epochs if it has any."""
        size = SCALES[self.scale]
        if self.epochs is None:
            return size
        return replace(size, changes={**size.changes, "optim__epochs": self.epochs})

    @property
    def main_table(self) -> Path:
        """The table to train and measure on."""
        return self.data or self.folder / "phantom" / "labels.csv"

    @property
    def outside_tables(self) -> tuple[Path, ...]:
        """The tables of outside data."""
        if self.data is not None:
            return self.outside
        return tuple(self.folder / f"phantom-{s}" / "labels.csv" for s in ("nih", "chexpert"))

    @property
    def start_table(self) -> Path:
        """The phantom on which encoders are trained beforehand, where the scale asks for it."""
        return self.folder / "phantom-start" / "labels.csv"

    def start(self, encoder: str) -> Path:
        """The run that trains an encoder beforehand."""
        return self.folder / "starts" / encoder

    def run(self, job: str, seed: int) -> Path:
        """The run folder of a training."""
        return self.folder / "trainings" / f"{job}-s{seed}"

    def scores(self, job: str, seed: int, split: str) -> Path:
        """The scores of a row that shares another row's training."""
        return self.folder / "scores" / f"{job}-s{seed}" / f"{split}.csv"

    def heading(self, rest: str) -> str:
        """`Table 1 of the paper at the scale tiny, ...`."""
        return f"Table {self.table[-1]} of the paper at the scale {self.scale}, {rest}"


def count(number: int, noun: str) -> str:
    """`1 seed`, `2 seeds`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def check_request(request: Request) -> Request:
    """Return the request; raise `InputError` for the first option that means nothing.

    Whether the files and folders that it names exist is checked by `check_readiness`.
    """
    table, scale = request.table, request.scale
    if table not in ("table1", "table2"):
        raise InputError(f"The paper has table1 and table2, not '{table}'.")
    if scale not in SCALES:
        raise InputError(
            f"There is no scale '{scale}'.{nearest(scale, SCALES)} There are {', '.join(SCALES)}."
        )
    if request.seeds < 1:
        raise InputError(f"seeds is the number of trainings per row, at least 1: {request.seeds}.")
    if request.epochs is not None and request.epochs < 1:
        raise InputError(f"epochs is at least 1, not {request.epochs}.")
    if request.data is None and request.outside:
        raise InputError("On the phantom the outside data are phantoms too; leave --outside out.")
    known = {row.number for row in (TABLE_1 if table == "table1" else TABLE_2)}
    for number in request.rows:
        if number not in known:
            raise InputError(f"Table {table[-1]} has the rows 1 to {len(known)}, not {number}.")
    for name in (*request.texts, *request.stand_ins):
        if name not in TEXTS:
            raise InputError(
                f"No text encoder of the paper is called '{name}'."
                f"{nearest(name, TEXT_SOURCES)} There are {' and '.join(TEXTS)}."
            )
        if name in request.texts and name in request.stand_ins:
            raise InputError(
                f"{name} is given by --text and by --stand-in. Give the real text encoder, or "
                "another one to use instead."
            )
    _check_settings(request.settings)
    return request


# Settings that `reproduce` decides itself, and the option that sets them.
_OPTIONS = {
    "data.table": "--data",
    "data.outside": "--outside",
    "data.cache": "--cache",
    "optim.epochs": "--epochs",
    "seed": "--seeds",
    "model.text": "--text or --stand-in",
}


def _check_settings(settings: Sequence[str]) -> None:
    """Refuse settings that no training would accept, or that would change what the rows compare."""
    override_settings(Config(), settings)
    rows = {key.replace("__", ".") for row in TABLE_1 for key in row.changes} | {"data.unmentioned"}
    for assignment in settings:
        key = assignment.partition("=")[0]
        if key in _OPTIONS:
            raise InputError(f"--set {key}: use {_OPTIONS[key]} instead.")
        if key in rows or key.startswith(("loss.class_weights", "loss.worst")):
            raise InputError(
                f"--set {key}: the rows of the paper's tables differ in it, so it can't be the "
                "same for all of them. Train that row alone: lingula train paper/..."
            )


def command_line(request: Request, *, join: bool = True) -> str:
    """The command with the same request; with `join` it only joins what the jobs have written."""
    words = ["lingula", "reproduce", request.table]
    words += ["--data", "phantom" if request.data is None else str(request.data)]
    words += ["--scale", request.scale, "--seeds", str(request.seeds)]
    words += ["--out", str(request.folder)]
    words += ["--epochs", str(request.epochs)] if request.epochs else []
    for option, values in (
        ("--outside", request.outside),
        ("--text", [f"{name}={place}" for name, place in request.texts.items()]),
        ("--stand-in", [f"{name}={place}" for name, place in request.stand_ins.items()]),
        ("--rows", request.rows),
        ("--cache", request.cache),
        ("--set", request.settings),
    ):
        words += [word for value in values for word in (option, str(value))]
    return shlex.join([*words, *(["--join"] if join else [])])
