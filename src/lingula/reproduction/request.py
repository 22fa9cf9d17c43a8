"""The request of `lingula reproduce`: which table, on which data, how large, and where."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lingula.settings.config import Config, overridden
from lingula.settings.paper import SCALES, TABLE_1, TABLE_2, Scale
from lingula.settings.weight_sources import TEXT_SOURCES
from lingula.system.errors import InputError, nearest

TEXTS = ("med-kebert", "clinical-t5")  # the paper's two, by the names that its recipes use


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
    overridden(Config(), settings)
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
