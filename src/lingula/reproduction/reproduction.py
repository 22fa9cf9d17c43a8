"""What is asked of `lingula reproduce`, as one value that its parts pass on."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lingula.settings.config import Config, overridden
from lingula.settings.paper import SCALES, TABLE_1, TABLE_2, Scale
from lingula.settings.weight_sources import TEXT_SOURCES
from lingula.system.errors import InputError, nearest

TEXTS = ("med-kebert", "clinical-t5")  # the paper's two, by the names that its recipes use


@dataclass(frozen=True)
class Reproduction:
    """A table of the paper to reproduce: on which data, how large, with what, and where.

    Attributes:
        table: `table1` or `table2`.
        folder: of everything that is made; absolute, as are all paths here.
        data: the table to train and measure on; None is the phantom.
        outside: tables of outside data; of the phantom, its own.
        scale: `tiny`, `small` or `paper`.
        seeds: trainings a row.
        epochs: of every training, instead of the scale's.
        texts: folders of the real text encoders, by name.
        stand_ins: folders of others in their place, by the name of what they stand in for.
        rows: only these rows and what they are compared with; none: all.
        cache: folders that `lingula data cache` made.
        settings: `key=value` for every training.
    """

    table: str
    folder: Path
    data: Path | None = None
    outside: tuple[Path, ...] = ()
    scale: str = "small"
    seeds: int = 1
    epochs: int | None = None
    texts: Mapping[str, Path] | None = None
    stand_ins: Mapping[str, Path] | None = None
    rows: tuple[int, ...] = ()
    cache: tuple[Path, ...] = ()
    settings: tuple[str, ...] = ()

    @property
    def size(self) -> Scale:
        """The scale, with epochs of one's own if given."""
        size = SCALES[self.scale]
        if self.epochs is None:
            return size
        return replace(size, changes={**size.changes, "optim__epochs": self.epochs})

    @property
    def own(self) -> Path:
        """The table to train and measure on."""
        return self.data or self.folder / "phantom" / "labels.csv"

    @property
    def others(self) -> tuple[Path, ...]:
        """The tables of outside data."""
        if self.data is not None:
            return self.outside
        return tuple(self.folder / f"phantom-{s}" / "labels.csv" for s in ("nih", "chexpert"))

    @property
    def start_table(self) -> Path:
        """The table of the phantom that encoders are trained on before, where the scale says so."""
        return self.folder / "phantom-start" / "labels.csv"

    def start(self, encoder: str) -> Path:
        """The run that trains an encoder's start."""
        return self.folder / "starts" / encoder

    def run(self, job: str, seed: int) -> Path:
        """The run folder of a training."""
        return self.folder / "trainings" / f"{job}-s{seed}"

    def scores(self, job: str, seed: int, split: str) -> Path:
        """The scores of a row that shares another one's training."""
        return self.folder / "scores" / f"{job}-s{seed}" / f"{split}.csv"


def checked(asked: Reproduction) -> Reproduction:
    """The same, once its words are known to mean something; `InputError` for the first wrong one.

    Whether what they name is there is not looked at.
    """
    table, scale = asked.table, asked.scale
    if table not in ("table1", "table2"):
        raise InputError(f"The paper has table1 and table2, not '{table}'.")
    if scale not in SCALES:
        raise InputError(
            f"There is no scale '{scale}'.{nearest(scale, SCALES)} There are {', '.join(SCALES)}."
        )
    if asked.seeds < 1:
        raise InputError(f"seeds is a number of trainings a row, at least 1, not {asked.seeds}.")
    if asked.epochs is not None and asked.epochs < 1:
        raise InputError(f"epochs is at least 1, not {asked.epochs}.")
    if asked.data is None and asked.outside:
        raise InputError("On the phantom the outside data are phantoms too; leave --outside out.")
    known = {row.number for row in (TABLE_1 if table == "table1" else TABLE_2)}
    for number in asked.rows:
        if number not in known:
            raise InputError(f"Table {table[-1]} has the rows 1 to {len(known)}, not {number}.")
    _check_texts(asked.texts or {}, asked.stand_ins or {})
    _check_settings(asked.settings)
    return asked


def _check_texts(texts: Mapping[str, Path], stand_ins: Mapping[str, Path]) -> None:
    for name in (*texts, *stand_ins):
        if name not in TEXTS:
            raise InputError(
                f"No text encoder of the paper is called '{name}'."
                f"{nearest(name, TEXT_SOURCES)} There are {' and '.join(TEXTS)}."
            )
    both = [name for name in texts if name in stand_ins]
    if both:
        raise InputError(
            f"{both[0]} is given by --text and by --stand-in: the real one, or another in its "
            "place?"
        )


# Settings that `reproduce` makes itself, and the option that does it.
_OPTIONS = {
    "data.table": "--data",
    "data.outside": "--outside",
    "data.cache": "--cache",
    "optim.epochs": "--epochs",
    "seed": "--seeds",
    "model.text": "--text or --stand-in",
}


def _check_settings(settings: Sequence[str]) -> None:
    """Refuse settings that no training would take, or that would make another table."""
    overridden(Config(), settings)
    rows = {key.replace("__", ".") for row in TABLE_1 for key in row.changes} | {"data.unmentioned"}
    for assignment in settings:
        key = assignment.partition("=")[0]
        if key in _OPTIONS:
            raise InputError(f"--set {key}: that is what {_OPTIONS[key]} is for.")
        if key in rows or key.startswith(("loss.class_weights", "loss.worst")):
            raise InputError(
                f"--set {key}: the rows of the paper's tables differ in it, so that it can't be "
                "the same for all. Train that row alone: lingula train paper/..."
            )


def closing_line(asked: Reproduction, *, join: bool = True) -> str:
    """The command that asks for the same; with `join` it only joins what the jobs have made."""
    words = ["lingula", "reproduce", asked.table]
    words += ["--data", "phantom" if asked.data is None else str(asked.data)]
    words += ["--scale", asked.scale, "--seeds", str(asked.seeds), "--out", str(asked.folder)]
    words += ["--epochs", str(asked.epochs)] if asked.epochs else []
    for option, values in (
        ("--outside", asked.outside),
        ("--text", [f"{name}={place}" for name, place in (asked.texts or {}).items()]),
        ("--stand-in", [f"{name}={place}" for name, place in (asked.stand_ins or {}).items()]),
        ("--rows", asked.rows),
        ("--cache", asked.cache),
        ("--set", asked.settings),
    ):
        words += [word for value in values for word in (option, str(value))]
    return shlex.join([*words, *(["--join"] if join else [])])
