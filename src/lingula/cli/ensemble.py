"""`lingula ensemble`: the rules, and applying one that was made before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import lingula
from lingula.cli.options import IgnoreColumns, OutFile, OutFolder, Overwrite, partly
from lingula.system.errors import InputError

app = typer.Typer(no_args_is_help=True, help="Combine the scores of several models.")

Runs = Annotated[list[Path] | None, typer.Argument(metavar="[RUN ...]", help="Run folders.")]
MemberPairs = Annotated[
    list[str] | None,
    typer.Option("--member", metavar="NAME DEV TEST", help="A name and two scores files."),
]
MemberScores = Annotated[
    list[str] | None,
    typer.Option("--member", metavar="NAME SCORES", help="A name and a scores file."),
]
LabelsMaybe = Annotated[
    Path | None, typer.Option("--labels", help="Table; default: the first run's.")
]
Missing = Annotated[
    str,
    typer.Option(
        "--missing", help="Images that some members lack: error, intersect (left out) or average."
    ),
]


@app.command("model-wise")
def _model_wise(
    out: OutFolder,
    runs: Runs = None,
    member: MemberPairs = None,
    labels: LabelsMaybe = None,
    ignore_columns: IgnoreColumns = None,
    split: Annotated[str, typer.Option("--split")] = "dev",
    missing: Missing = "error",
    overwrite: Overwrite = False,
) -> None:
    """The plain mean of all members (paper table 2)."""
    folder = lingula.ensemble(
        "model-wise",
        runs or (),
        members=[(name, dev, test) for name, dev, test in _unfolded(member)],
        labels=labels,
        ignore_columns=ignore_columns or (),
        split=split,
        out=out,
        missing=missing,
        overwrite=overwrite,
    )
    typer.echo(folder)
    partly([folder / "scores" / "dev.csv", folder / "scores" / "test.csv"])


@app.command("class-wise")
def _class_wise(
    out: OutFolder,
    runs: Runs = None,
    member: MemberPairs = None,
    labels: LabelsMaybe = None,
    ignore_columns: IgnoreColumns = None,
    split: Annotated[str, typer.Option("--split", help="Where members are chosen.")] = "dev",
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Members a class.")] = 3,
    missing: Missing = "error",
    overwrite: Overwrite = False,
) -> None:
    """For each class the mean of its best members on dev (paper section 2.2)."""
    folder = lingula.ensemble(
        "class-wise",
        runs or (),
        members=[(name, dev, test) for name, dev, test in _unfolded(member)],
        labels=labels,
        ignore_columns=ignore_columns or (),
        split=split,
        out=out,
        top_k=top_k,
        missing=missing,
        overwrite=overwrite,
    )
    typer.echo(folder)
    partly([folder / "scores" / "dev.csv", folder / "scores" / "test.csv"])


@app.command("guarded")
def _guarded(
    out: OutFolder,
    runs: Runs = None,
    member: MemberPairs = None,
    labels: LabelsMaybe = None,
    ignore_columns: IgnoreColumns = None,
    split: Annotated[str, typer.Option("--split", help="Where members are chosen.")] = "dev",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of folds and draws.")] = 0,
    draws: Annotated[int, typer.Option("--ci", min=1, help="Draws of the intervals.")] = 1000,
    missing: Missing = "error",
    overwrite: Overwrite = False,
) -> None:
    """Weights a class, held to a common choice where positives are few; says what it is worth."""
    folder = lingula.ensemble(
        "guarded",
        runs or (),
        members=[(name, dev, test) for name, dev, test in _unfolded(member)],
        labels=labels,
        ignore_columns=ignore_columns or (),
        split=split,
        out=out,
        seed=seed,
        draws=draws,
        missing=missing,
        overwrite=overwrite,
    )
    typer.echo(folder)
    partly([folder / "scores" / "dev.csv", folder / "scores" / "test.csv"])


@app.command("apply")
def _apply(
    ensemble: Annotated[Path, typer.Argument(help="DIR/ensemble.json")],
    out: OutFile,
    member: MemberScores = None,
    missing: Missing = "error",
    overwrite: Overwrite = False,
) -> None:
    """Apply an ensemble made before to new scores of its members."""
    members = [(name, scores) for name, scores in _unfolded(member)]
    scores = lingula.ensemble_apply(
        ensemble, members, out=out, missing=missing, overwrite=overwrite
    )
    typer.echo(scores)
    partly([scores])


def folded(words: list[str]) -> list[str]:
    """The words of the command line with each `--member`'s values as one word.

    The parser knows options that repeat and options with several values, but not both in one.
    """
    if words[:1] != ["ensemble"]:
        return words
    each = 2 if "apply" in words[1:2] else 3
    result: list[str] = []
    at = 0
    while at < len(words):
        if words[at] == "--member":
            values = words[at + 1 : at + 1 + each]
            if len(values) < each or any(value.startswith("--") for value in values):
                names = "NAME SCORES" if each == 2 else "NAME DEV TEST"
                raise InputError(f"--member needs {each} values: {names}.")
            result += ["--member", _SEPARATOR.join(values)]
            at += 1 + each
        else:
            result.append(words[at])
            at += 1
    return result


_SEPARATOR = "\x1f"


def _unfolded(words: list[str] | None) -> list[tuple[str, ...]]:
    return [tuple(word.split(_SEPARATOR)) for word in words or []]
