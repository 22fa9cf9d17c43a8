"""`lingula data`: making and checking tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import lingula
from lingula.cli.options import IgnoreColumns, Json, Overwrite, dumped

app = typer.Typer(no_args_is_help=True, help="Make and check tables of images and labels.")


@app.command("phantom")
def _data_phantom(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    n: Annotated[int, typer.Option("--n", help="Images.")] = 2000,
    size: Annotated[int, typer.Option("--size", help="Pixels, square.")] = 128,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    imbalance: Annotated[
        float | None, typer.Option("--imbalance", help="Head : tail ratio; default: CXR-LT's 164.")
    ] = None,
    style: Annotated[
        str, typer.Option("--style", help="cxr-lt, or nih or chexpert: 14 labels, another look.")
    ] = "cxr-lt",
    dev: Annotated[float, typer.Option("--dev", help="Share of the images.")] = 0.15,
    test: Annotated[float, typer.Option("--test", help="Share of the images.")] = 0.25,
    overwrite: Overwrite = False,
) -> None:
    """Draw synthetic radiographs with all 26 findings of CXR-LT 2023."""
    typer.echo(
        lingula.data_phantom(
            out,
            n=n,
            size=size,
            seed=seed,
            imbalance=imbalance,
            style=style,
            shares=(dev, test),
            overwrite=overwrite,
        )
    )


@app.command("check")
def _data_check(
    table: Annotated[Path, typer.Argument(help="Table: .csv or .parquet.")],
    images: Annotated[bool, typer.Option(help="Read every image too.")] = True,
    as_json: Json = False,
) -> None:
    """Look for the faults that spoil a training; exit status 2 if there are any."""
    from lingula.data.checking import to_json, to_text

    found = lingula.data_check(table, images=images)
    typer.echo(dumped(to_json(found)) if as_json else to_text(found))
    if not found.fit:
        raise typer.Exit(2)


@app.command("correct")
def _data_correct(
    table: Annotated[Path, typer.Argument(help="The table that was reviewed.")],
    corrections: Annotated[Path, typer.Argument(help="corrections.csv, filled in.")],
    out: Annotated[Path, typer.Option("--out", help="New table: .csv or .parquet.")],
    ignore_columns: IgnoreColumns = None,
    soft: Annotated[bool, typer.Option("--soft", help="Cells may be probabilities.")] = False,
) -> None:
    """Apply the decisions of a review to a table, as a new table."""
    done = lingula.data_correct(
        table, corrections, out=out, ignore_columns=ignore_columns or (), soft=soft
    )
    typer.echo(
        f"{done.changed} labels changed, {done.confirmed} confirmed, {done.undecided} undecided",
        err=True,
    )
    typer.echo(out)
