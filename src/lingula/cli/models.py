"""Commands that make, use and describe models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

import lingula
from lingula.cli.options import (
    By,
    Device,
    Json,
    OutFile,
    OutFolder,
    Overwrite,
    Precision,
    Split,
    TableNow,
    Tta,
    dumped,
    partly,
)
from lingula.system.errors import InputError

app = typer.Typer()


@app.command()
def demo(
    out: OutFolder = Path("runs/demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Smaller and faster.")] = False,
) -> None:
    """Phantom data, two models, an ensemble and a report, in minutes."""
    typer.echo(lingula.demo(out, quick=quick))


@app.command()
def train(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE|config.yaml] [key=value ...]",
            help="What to train, and settings on top of it, e.g. data.table=labels.csv.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder to write.")] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Continue this run with its own settings.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all that can be checked; train nothing.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a model; the same line again continues it."""
    words = what or []
    names = [word for word in words if not _is_setting(word)]
    if len(names) > 1:
        raise InputError(f"Give one recipe or one YAML file, not {', '.join(names)}.")
    run = lingula.train(
        names[0] if names else None,
        [word for word in words if _is_setting(word)],
        out=out,
        resume=resume,
        dry_run=dry_run,
        overwrite=overwrite,
    )
    typer.echo(run)
    if not dry_run:
        partly([run / "scores" / "dev.csv", run / "scores" / "test.csv"])


def _is_setting(word: str) -> bool:
    """Whether a word is `key=value`, and not a YAML file in a folder such as `lr=0.1`."""
    from lingula.settings.config import is_key

    key, equals, _ = word.partition("=")
    return bool(equals) and (is_key(key) or not word.lower().endswith((".yaml", ".yml")))


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="Run folder or model folder.")],
    data: Annotated[Path, typer.Option("--data", help="A table, a folder or one image.")],
    out: OutFile,
    split: Split = None,
    tta: Annotated[
        Tta | None, typer.Option("--tta", help="Test-time views; default: the model's own.")
    ] = None,
    by: Annotated[
        By, typer.Option("--by", help="study: the mean over a study's images.")
    ] = By.image,
    calibrated: Annotated[
        bool, typer.Option("--calibrated", help="Map scores with the run's calibration.json.")
    ] = False,
    batch_size: Annotated[
        str, typer.Option("--batch-size", help="Images at once; auto: sized to the memory.")
    ] = "32",
    workers: Annotated[int, typer.Option("--workers", min=0, help="Decoding processes.")] = 0,
    device: Annotated[Device, typer.Option("--device")] = Device.auto,
    precision: Annotated[
        Precision,
        typer.Option(
            "--precision", help="fp32 and auto are exact; bf16: doctor says if it is faster."
        ),
    ] = Precision.fp32,
    cache: Annotated[
        list[Path] | None,
        typer.Option("--cache", help="Read images from this `data cache` folder; repeatable."),
    ] = None,
    allow_phantom_model: Annotated[
        bool, typer.Option("--allow-phantom-model", help="Score films with a phantom's model.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Score images with a trained model."""
    done = lingula.predict(
        run,
        data=data,
        out=out,
        split=split,
        tta=None if tta is None else tta.value,
        by=by.value,
        calibrated=calibrated,
        batch_size=_batch_size(batch_size),
        workers=workers,
        device=device.value,
        precision=precision.value,
        cache=cache,
        allow_phantom_model=allow_phantom_model,
        overwrite=overwrite,
    )
    typer.echo(done.path)
    if done.failures:
        failed = done.path.with_suffix(".failed.csv")
        typer.echo(
            f"{len(done.failures)} of {done.images} images could not be scored; they are named in "
            f"{failed}.",
            err=True,
        )
        raise typer.Exit(3)


def _batch_size(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is neither auto nor a number of at least 1.")
    return int(text)


@app.command()
def explain(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    data: Annotated[Path, typer.Option("--data", help="A table, a folder or one image.")],
    out: OutFolder,
    split: Split = None,
    classes: Annotated[
        list[str] | None, typer.Option("--classes", help="Only this finding; repeatable.")
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Findings a film.")] = 3,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Films.")] = 200,
    labels: TableNow = None,
    allow_phantom_model: Annotated[
        bool, typer.Option("--allow-phantom-model", help="Look at films with a phantom's model.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Where the decoder attended, over the films, for the findings above their threshold."""
    typer.echo(
        lingula.explain(
            run,
            data=data,
            out=out,
            split=split,
            classes=classes or (),
            top=top,
            limit=limit,
            labels=labels,
            allow_phantom_model=allow_phantom_model,
            overwrite=overwrite,
        )
    )


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN [RUN ...]")],
    out: Annotated[Path, typer.Option("--out", help="HTML file.")],
    labels: TableNow = None,
) -> None:
    """One page, readable offline: what was trained on what, and how well it does."""
    typer.echo(lingula.report(runs, out=out, labels=labels))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine has, and what is wrong with it."""
    from lingula.verbs.doctor import to_text

    facts = lingula.doctor()
    typer.echo(dumped(facts) if as_json else to_text(facts))
