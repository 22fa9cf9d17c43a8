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
    OutFolder,
    Overwrite,
    Split,
    Uncertain,
    dumped,
    partly,
)
from lingula.system.errors import InputError

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
    threshold: Annotated[
        str,
        typer.Option("--threshold", help="A class is found from this score; or a file."),
    ] = "0.5",
    fuse: Annotated[
        str,
        typer.Option("--fuse", help="With --by study: mean, max, views or frontal=7,lateral=3,..."),
    ] = "mean",
    subgroups: Annotated[
        list[str] | None,
        typer.Option(
            "--subgroups", help="view, sex, age, source or classes, by commas; repeatable."
        ),
    ] = None,
    age_edges: Annotated[
        str, typer.Option("--age-edges", help="First years of age bands, such as 18,40,65.")
    ] = "",
    ignore_columns: IgnoreColumns = None,
    as_json: Json = False,
) -> None:
    """Measure scores against labels."""
    from lingula.scores.evaluation import to_json, to_text

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
        threshold=threshold,
        fuse=fuse,
        subgroups=subgroups or (),
        age_edges=_years(age_edges),
    )
    typer.echo(dumped(to_json(result)) if as_json else to_text(result))


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _years(text: str) -> list[int]:
    try:
        return [int(word) for word in _words(text)] or list(range(10, 100, 10))
    except ValueError:
        raise InputError(f"--age-edges takes whole years such as 18,40,65, not {text}.") from None


@app.command()
def submit(
    scores: Annotated[Path, typer.Argument(help="Scores file.")],
    template: Annotated[Path, typer.Option("--template", help="The organisers' sample (.csv).")],
    out: Annotated[Path | None, typer.Option("--out", help="submission.zip to write.")] = None,
    code: Annotated[
        Path | None, typer.Option("--code", help="Folder of code that goes into the zip.")
    ] = None,
    fill: Annotated[
        float | None, typer.Option("--fill", help="Score of the images that failed.")
    ] = None,
    allow_extra: Annotated[
        bool, typer.Option("--allow-extra", help="Leave out rows that the template lacks.")
    ] = False,
    labels: Annotated[
        Path | None, typer.Option("--labels", help="Table: score it as the server would.")
    ] = None,
    ignore_columns: IgnoreColumns = None,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="COLUMN", help="The sample's column of ids, if not found."),
    ] = None,
) -> None:
    """Write scores as a challenge wants them, or say what does not fit."""
    done = lingula.submit(
        scores,
        template=template,
        out=out,
        code=code,
        fill=fill,
        allow_extra=allow_extra,
        labels=labels,
        ignore_columns=ignore_columns or (),
        key=key,
    )
    if done.made.filled:
        many = len(done.made.filled)
        typer.echo(f"{many} images failed; submitted with {fill}.", err=True)
    if done.rehearsal is not None:
        found = done.rehearsal
        defined = len(found.ap) - len(found.undefined)
        value = "undefined" if not defined else repr(found.mAP)
        typer.echo(f"mAP {value} over {defined} of {len(found.ap)} classes, {found.n} images")
    if done.path is not None:
        typer.echo(done.path)


@app.command()
def review(
    scores: Annotated[Path, typer.Argument(help="Scores file.")],
    labels: Labels,
    out: OutFolder,
    split: Split = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Disagreements a class.")] = 20,
    ignore_columns: IgnoreColumns = None,
    overwrite: Overwrite = False,
) -> None:
    """Where labels and model disagree most: a page of films, and corrections.csv to fill in."""
    done = lingula.review(
        scores,
        labels=labels,
        out=out,
        split=split,
        top=top,
        ignore_columns=ignore_columns or (),
        overwrite=overwrite,
    )
    typer.echo(done.page)
    typer.echo(done.corrections)


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
    ignore_columns: IgnoreColumns = None,
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
            ignore_columns=ignore_columns or (),
            out=out,
            overwrite=overwrite,
        )
        typer.echo(made)
        return
    if out is None or labels is not None or threshold is not None:
        raise InputError("--apply takes SCORES and --out; nothing is fitted, so no --labels.")
    typer.echo(lingula.apply_calibration(apply, source, out=out, overwrite=overwrite))
    partly([out])
