"""Commands for the recipes, and for the tables of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

import lingula
from lingula.cli.options import OutFolder
from lingula.system.errors import InputError

app = typer.Typer()


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this one as YAML.")] = None,
) -> None:
    """List the recipes, or print one as YAML."""
    typer.echo(lingula.recipes(name).rstrip("\n"))


@app.command()
def fetch(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE|config.yaml|table1|table2")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder; default: where training looks.")
    ] = None,
) -> None:
    """Download the weights that a recipe or a table of the paper needs, where there is internet."""
    typer.echo(lingula.fetch(recipe, out=out))


@app.command()
def reproduce(
    table: Annotated[str, typer.Argument(metavar="table1|table2")],
    out: OutFolder,
    data: Annotated[str, typer.Option("--data", help="A table, or phantom.")] = "phantom",
    outside: Annotated[
        list[Path] | None,
        typer.Option("--outside", help="A table of outside data, for table 2; repeatable."),
    ] = None,
    scale: Annotated[str, typer.Option("--scale", help="tiny, small or paper.")] = "small",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Trainings a row.")] = 1,
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, help="Instead of the scale's.")
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", metavar="NAME=FOLDER", help="Where the text encoder NAME lies."),
    ] = None,
    stand_in: Annotated[
        list[str] | None,
        typer.Option("--stand-in", metavar="NAME=FOLDER", help="Use another one in NAME's place."),
    ] = None,
    rows: Annotated[
        list[int] | None, typer.Option("--rows", help="Only this row; repeatable.")
    ] = None,
    cache: Annotated[
        list[Path] | None,
        typer.Option("--cache", help="Read images from this `data cache` folder; repeatable."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="For every training; repeatable."),
    ] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Measure some steps; print hours, memory and disk.")
    ] = False,
    print_jobs: Annotated[
        bool, typer.Option("--print-jobs", help="Print a command a training; run nothing.")
    ] = False,
    gpus: Annotated[
        int | None, typer.Option("--gpus", min=1, help="Print a script: a job on each GPU.")
    ] = None,
    slurm: Annotated[
        Path | None, typer.Option("--slurm", help="Write a script of SLURM job arrays.")
    ] = None,
    template: Annotated[
        Path | None, typer.Option("--template", help="Your site's #SBATCH lines and set-up.")
    ] = None,
    join: Annotated[
        bool, typer.Option("--join", help="Only join what the jobs made; train nothing.")
    ] = False,
) -> None:
    """The paper's tables on your data, ours beside theirs; the same line again continues."""
    made = lingula.reproduce(
        table,
        out=out,
        data=data,
        outside=outside or (),
        scale=scale,
        seeds=seeds,
        epochs=epochs,
        texts=_folders("--text", text or ()),
        stand_ins=_folders("--stand-in", stand_in or ()),
        rows=rows or (),
        cache=cache or (),
        settings=settings or (),
        estimate=estimate,
        print_jobs=print_jobs,
        gpus=gpus,
        slurm=slurm,
        template=template,
        join=join,
    )
    typer.echo("\n".join(made) if isinstance(made, list) else made)


def _folders(option: str, words: Sequence[str]) -> dict[str, str]:
    """`NAME=FOLDER` words as a mapping."""
    pairs = [word.partition("=") for word in words]
    names = [name for name, _, _ in pairs]
    if any(not folder for _, _, folder in pairs):
        raise InputError(f"{option} takes NAME=FOLDER, such as clinical-t5=my/t5.")
    if len(set(names)) < len(names):
        raise InputError(f"{option} is given twice for one name: {', '.join(names)}.")
    return {name: folder for name, _, folder in pairs}
