"""`lingula bench`: how fast this machine is at each part of the work."""

from __future__ import annotations

from typing import Annotated

import typer

import lingula
from lingula.cli.options import Device, Json, Tta, dumped

Encoder = Annotated[str, typer.Option("--encoder", help="Any timm name.")]
Size = Annotated[int, typer.Option("--size", help="Pixels, square.")]
Layers = Annotated[int, typer.Option("--layers", min=1, help="Of the decoder.")]
Width = Annotated[int, typer.Option("--width", min=8, help="Of the decoder.")]
Rounds = Annotated[int, typer.Option("--rounds", min=1, help="Timed so often.")]
OnDevice = Annotated[Device, typer.Option("--device")]

app = typer.Typer(no_args_is_help=True, help="Measure how fast this machine is.")


@app.callback()
def _bench() -> None:
    """Keeps the command a group, also while it has one member."""


@app.command("data")
def _bench_data(
    size: Size = 512,
    rounds: Annotated[int, typer.Option("--rounds", help="Each part is timed so often.")] = 5,
    as_json: Json = False,
) -> None:
    """Images a second of one core: from films, and from caches to augmented batches."""
    from lingula.bench.data import to_text

    found = lingula.bench_data(size=size, rounds=rounds)
    typer.echo(dumped(found) if as_json else to_text(found))


@app.command("frozen")
def _bench_frozen(
    data: Annotated[str, typer.Option("--data", help="A table, or phantom.")] = "phantom",
    encoder: Encoder = "resnet50",
    size: Size = 224,
    batch_size: Annotated[int, typer.Option("--batch-size", min=2)] = 32,
    layers: Layers = 4,
    width: Width = 768,
    images: Annotated[int, typer.Option("--images", min=1, help="Of the train split.")] = 256,
    rounds: Rounds = 3,
    device: OnDevice = Device.auto,
    as_json: Json = False,
) -> None:
    """Images a second of training on a frozen encoder's features, beside all of it trained."""
    from lingula.bench.frozen import to_text

    found = lingula.bench_frozen(
        data,
        encoder=encoder,
        image_size=size,
        batch_size=batch_size,
        layers=layers,
        width=width,
        images=images,
        rounds=rounds,
        device=device.value,
    )
    typer.echo(dumped(found) if as_json else to_text(found))


@app.command("metrics")
def _bench_metrics(
    images: Annotated[int, typer.Option("--images", min=1)] = 77_000,
    classes: Annotated[int, typer.Option("--classes", min=1)] = 26,
    draws: Annotated[int, typer.Option("--draws", min=1)] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """AP, AUROC and their intervals, beside scikit-learn's."""
    from lingula.bench.metrics import to_json, to_text

    times = lingula.bench_metrics(images=images, classes=classes, draws=draws, seed=seed)
    typer.echo(dumped(to_json(times)) if as_json else to_text(times))


@app.command("train")
def _bench_train(
    encoder: Encoder = "resnet50",
    size: Size = 224,
    batch_size: Annotated[int, typer.Option("--batch-size", min=2)] = 16,
    layers: Layers = 4,
    width: Width = 768,
    rounds: Rounds = 5,
    device: OnDevice = Device.auto,
    as_json: Json = False,
) -> None:
    """Images a second of training, beside the same network as it is usually trained."""
    from lingula.bench.train import to_text

    found = lingula.bench_train(
        encoder=encoder,
        image_size=size,
        batch_size=batch_size,
        layers=layers,
        width=width,
        rounds=rounds,
        device=device.value,
    )
    typer.echo(dumped(found) if as_json else to_text(found))


@app.command("predict")
def _bench_predict(
    encoder: Encoder = "resnet50",
    size: Size = 224,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 16,
    tta: Annotated[Tta, typer.Option("--tta", help="Test-time views.")] = Tta.none,
    rounds: Rounds = 5,
    device: OnDevice = Device.auto,
    as_json: Json = False,
) -> None:
    """Images a second of scoring, exact and in bf16, beside a plain model."""
    from lingula.bench.predict import to_text

    found = lingula.bench_predict(
        encoder=encoder,
        image_size=size,
        batch_size=batch_size,
        tta=tta.value,
        rounds=rounds,
        device=device.value,
    )
    typer.echo(dumped(found) if as_json else to_text(found))
