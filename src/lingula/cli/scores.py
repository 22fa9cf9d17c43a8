"""Commands that work on scores files, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import lingula
from lingula.cli.options import (
    Blank,
    By,
    IgnoreColumns,
    Json,
    Labels,
    Overwrite,
    Split,
    Uncertain,
    dumped,
    partly,
)
from lingula.errors import InputError

app = typer.Typer()


@app.command()
def evaluate(
    scores: Annotated[Path, typer.Argument(help="Scores file.")],
    labels: Labels,
    split: Split = None,
    by: Annotated[By, typer.Option("--by", help="Rows are images or studies.")] = By.image,
    ci: Annotated[int, typer.Option("--ci", min=0, help="Bootstrap draws; 0: no intervals.")] = 0,
    against: Annotated[
        Path | None, typer.Option("--against", help="Scores file to compare with, in pairs.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the bootstrap.")] = 0,
    uncertain: Annotated[
        Uncertain, typer.Option("--uncertain", help="What cells of -1 count as.")
    ] = Uncertain.ignore,
    blank: Annotated[
        Blank | None,
        typer.Option("--blank", help="What blank cells count as; default: as the table says."),
    ] = None,
    unmentioned: Annotated[
        Blank, typer.Option("--unmentioned", help="What classes unknown to a source count as.")
    ] = Blank.ignore,
    soft: Annotated[
        bool, typer.Option("--soft", help="Cells may be probabilities; 0.5 is positive.")
    ] = False,
    ignore_columns: IgnoreColumns = None,
    as_json: Json = False,
) -> None:
    """Measure scores against labels."""
    from lingula.evaluation import to_json, to_text

    result = lingula.evaluate(
        scores,
        labels=labels,
        split=split,
        by=by.value,
        ci=ci,
        against=against,
        seed=seed,
        ignore_columns=ignore_columns or (),
        uncertain=uncertain.value,
        blank=None if blank is None else blank.value,
        unmentioned=unmentioned.value,
        soft=soft,
    )
    typer.echo(dumped(to_json(result)) if as_json else to_text(result))


@app.command()
def calibrate(
    source: Annotated[
        Path, typer.Argument(metavar="RUN|SCORES", help="Run folder or scores file.")
    ],
    labels: Annotated[
        Path | None, typer.Option("--labels", help="Table with the labels; default: the run's.")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="The rows to fit on.")] = "dev",
    method: Annotated[
        str, typer.Option("--method", help="platt, isotonic, temperature or auto.")
    ] = "platt",
    threshold: Annotated[
        list[str] | None,
        typer.Option(
            "--threshold",
            metavar="RULE",
            help="max-f1, youden, sensitivity=X, specificity=X or cost=FN:FP; repeatable.",
        ),
    ] = None,
    apply: Annotated[
        Path | None,
        typer.Option("--apply", metavar="CALIBRATION", help="Apply this file to SCORES instead."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The calibration; with --apply the new scores.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Fit probabilities and thresholds a class on dev, or apply them (--apply)."""
    if apply is None:
        made = lingula.calibrate(
            source,
            labels=labels,
            split=split,
            method=method,
            thresholds=threshold or ("max-f1",),
            out=out,
            overwrite=overwrite,
        )
        typer.echo(made)
        return
    if out is None or labels is not None or threshold is not None:
        raise InputError("--apply takes SCORES and --out; nothing is fitted, so no --labels.")
    typer.echo(lingula.apply_calibration(apply, source, out=out, overwrite=overwrite))
    partly([out])
