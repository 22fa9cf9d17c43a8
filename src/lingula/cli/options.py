"""Options that several commands share, and how a command prints and ends."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import Annotated, Any

import typer


class Tta(enum.StrEnum):
    """Test-time views."""

    none = "none"
    flip = "flip"
    paper = "paper"


class By(enum.StrEnum):
    """What a row counts as."""

    image = "image"
    study = "study"


class Uncertain(enum.StrEnum):
    """What an uncertain cell counts as."""

    ignore = "ignore"
    zero = "zero"
    one = "one"


class Blank(enum.StrEnum):
    """What a cell that says nothing counts as."""

    ignore = "ignore"
    zero = "zero"


class Precision(enum.StrEnum):
    """The number format of scoring."""

    fp32 = "fp32"
    bf16 = "bf16"
    auto = "auto"


class Device(enum.StrEnum):
    """Where to run."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


TABLE = "Table: .csv, .tsv, .parquet or .xlsx."
OutFolder = Annotated[Path, typer.Option("--out", help="Folder to write.")]
OutFile = Annotated[Path, typer.Option("--out", help="Scores file: .csv or .parquet.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Set an old output aside as NAME.old-1 first.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Labels = Annotated[Path, typer.Option("--labels", help="Table with the labels.")]
TableNow = Annotated[
    Path | None,
    typer.Option("--labels", help="The run's table, if it lies elsewhere now."),
]
IgnoreColumns = Annotated[
    list[str] | None,
    typer.Option("--ignore-columns", metavar="NAME", help="A column that is no class; repeatable."),
]
Split = Annotated[str | None, typer.Option("--split", help="Only rows of this split.")]


def dumped(value: Any) -> str:
    """A value as indented JSON; NaN is refused."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)


def partly(scores: list[Path]) -> None:
    """Exit with status 3 if images have no scores in these files, which stand named beside them."""
    lost = [path for path in (p.with_suffix(".failed.csv") for p in scores) if path.is_file()]
    if lost:
        typer.echo(f"Images without scores are named in {', '.join(map(str, lost))}.", err=True)
        raise typer.Exit(3)
