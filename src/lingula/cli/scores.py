"""Commands that work on scores files, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import lingula
from lingula.cli.options import Blank, By, IgnoreColumns, Json, Labels, Split, Uncertain, dumped
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
    threshold: Annotated[
        str, typer.Option("--threshold", help="A class is found from this score; or a JSON file.")
    ] = "0.5",
    fuse: Annotated[
        str,
        typer.Option("--fuse", help="With --by study: mean, max, views or frontal=7,lateral=3,..."),
    ] = "mean",
    subgroups: Annotated[
        str, typer.Option("--subgroups", help="view, sex, age, source or classes, by commas.")
    ] = "",
    age_edges: Annotated[
        str, typer.Option("--age-edges", help="First years of age bands, such as 18,40,65.")
    ] = "",
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
        threshold=threshold,
        fuse=fuse,
        subgroups=_words(subgroups),
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
