"""The command line: each command parses its arguments and calls the verb of the same name.

Only the verb that runs is imported, so `--help` and wrong arguments answer at once.
"""

from __future__ import annotations

import enum
import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

import lingula
from lingula.errors import InputError

app = typer.Typer(
    name="lingula",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Classify chest radiographs: train, predict, ensemble, evaluate, explain. "
    + lingula.NOTICE,
)
data_app = typer.Typer(no_args_is_help=True, help="Make and check tables of images and labels.")
ensemble_app = typer.Typer(no_args_is_help=True, help="Combine the scores of several models.")
app.add_typer(data_app, name="data")
app.add_typer(ensemble_app, name="ensemble")


class Tta(enum.StrEnum):
    """Test-time views."""

    none = "none"
    flip = "flip"
    paper = "paper"


class By(enum.StrEnum):
    """What a row counts as."""

    image = "image"
    study = "study"


class Device(enum.StrEnum):
    """Where to run."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


OutFolder = Annotated[Path, typer.Option("--out", help="Folder to write.")]
OutFile = Annotated[Path, typer.Option("--out", help="Scores file: .csv or .parquet.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Set an old output aside as NAME.old-1 first.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Labels = Annotated[Path, typer.Option("--labels", help="Table with the labels.")]
Split = Annotated[str | None, typer.Option("--split", help="Only rows of this split.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lingula {lingula.__version__}. {lingula.NOTICE}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it and exit.")
    ] = False,
) -> None:
    """Shared options."""


@app.command()
def demo(
    out: OutFolder = Path("runs/demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Smaller and faster.")] = False,
) -> None:
    """Phantom data, two models, an ensemble and a report, in minutes."""
    typer.echo(lingula.demo(out, quick=quick))


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this one as YAML.")] = None,
) -> None:
    """List the recipes, or print one as YAML."""
    typer.echo(lingula.recipes(name).rstrip("\n"))


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
        bool, typer.Option("--dry-run", help="Check settings and table, train nothing.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a model; the same line again continues it."""
    words = what or []
    names = [word for word in words if "=" not in word]
    if len(names) > 1:
        raise InputError(f"Give one recipe or one YAML file, not {', '.join(names)}.")
    run = lingula.train(
        names[0] if names else None,
        [word for word in words if "=" in word],
        out=out,
        resume=resume,
        dry_run=dry_run,
        overwrite=overwrite,
    )
    typer.echo(run)


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
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 32,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Decoding processes.")] = 0,
    device: Annotated[Device, typer.Option("--device")] = Device.auto,
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
        batch_size=batch_size,
        workers=workers,
        device=device.value,
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
    as_json: Json = False,
) -> None:
    """Measure scores against labels."""
    from lingula.evaluation import to_json, to_text

    result = lingula.evaluate(
        scores, labels=labels, split=split, by=by.value, ci=ci, against=against, seed=seed
    )
    typer.echo(_dumped(to_json(result)) if as_json else to_text(result))


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


@ensemble_app.command("model-wise")
def _model_wise(
    out: OutFolder,
    runs: Runs = None,
    member: MemberPairs = None,
    labels: LabelsMaybe = None,
    split: Annotated[str, typer.Option("--split")] = "dev",
    overwrite: Overwrite = False,
) -> None:
    """The plain mean of all members (paper table 2)."""
    folder = lingula.ensemble(
        "model-wise",
        runs or (),
        members=[(name, dev, test) for name, dev, test in _unfolded(member)],
        labels=labels,
        split=split,
        out=out,
        overwrite=overwrite,
    )
    typer.echo(folder)


@ensemble_app.command("class-wise")
def _class_wise(
    out: OutFolder,
    runs: Runs = None,
    member: MemberPairs = None,
    labels: LabelsMaybe = None,
    split: Annotated[str, typer.Option("--split", help="Where members are chosen.")] = "dev",
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Members a class.")] = 3,
    overwrite: Overwrite = False,
) -> None:
    """For each class the mean of its best members on dev (paper section 2.2)."""
    folder = lingula.ensemble(
        "class-wise",
        runs or (),
        members=[(name, dev, test) for name, dev, test in _unfolded(member)],
        labels=labels,
        split=split,
        out=out,
        top_k=top_k,
        overwrite=overwrite,
    )
    typer.echo(folder)


@ensemble_app.command("apply")
def _apply(
    ensemble: Annotated[Path, typer.Argument(help="DIR/ensemble.json")],
    out: OutFile,
    member: MemberScores = None,
    overwrite: Overwrite = False,
) -> None:
    """Apply an ensemble made before to new scores of its members."""
    members = [(name, scores) for name, scores in _unfolded(member)]
    typer.echo(lingula.ensemble_apply(ensemble, members, out=out, overwrite=overwrite))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN [RUN ...]")],
    out: Annotated[Path, typer.Option("--out", help="HTML file.")],
) -> None:
    """One page, readable offline: what was trained on what, and how well it does."""
    typer.echo(lingula.report(runs, out=out))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine has, and what is wrong with it."""
    from lingula.verbs.doctor import to_text

    facts = lingula.doctor()
    typer.echo(_dumped(facts) if as_json else to_text(facts))


@data_app.command("phantom")
def _data_phantom(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    n: Annotated[int, typer.Option("--n", help="Images.")] = 2000,
    size: Annotated[int, typer.Option("--size", help="Pixels, square.")] = 128,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    imbalance: Annotated[
        float | None, typer.Option("--imbalance", help="Head : tail ratio; default: CXR-LT's 164.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw synthetic radiographs with all 26 findings of CXR-LT 2023."""
    typer.echo(
        lingula.data_phantom(
            out, n=n, size=size, seed=seed, imbalance=imbalance, overwrite=overwrite
        )
    )


@data_app.command("check")
def _data_check(
    table: Annotated[Path, typer.Argument(help="Table: .csv or .parquet.")],
    images: Annotated[bool, typer.Option(help="Read every image too.")] = True,
    as_json: Json = False,
) -> None:
    """Look for the faults that spoil a training; exit status 2 if there are any."""
    from lingula.data.checking import to_json, to_text

    found = lingula.data_check(table, images=images)
    typer.echo(_dumped(to_json(found)) if as_json else to_text(found))
    if not found.fit:
        raise typer.Exit(2)


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


def _dumped(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)


def _log_to_terminal() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("lingula")
    log.addHandler(handler)
    log.setLevel(logging.INFO)


def main() -> NoReturn:
    """Run the command line and exit with its status (0 done, 2 wrong input, 3 partly)."""
    _log_to_terminal()
    try:
        app(folded(sys.argv[1:]))
    except InputError as error:
        sys.stderr.write(f"lingula: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("lingula: interrupted; the same line again continues.\n")
        sys.exit(130)
    sys.exit(0)
