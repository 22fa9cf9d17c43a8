"""`lingula bench frozen`: what a frozen encoder saves once its features are kept."""

from __future__ import annotations

import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from safetensors.torch import save_file

from lingula.bench.models import machine, paper_sized, training_step
from lingula.bench.rounds import time_rounds
from lingula.model.devices import make_fabric, resolve_device
from lingula.model.encoders import build_encoder
from lingula.phantom import write_phantom
from lingula.settings.config import Config, vary
from lingula.system.errors import InputError
from lingula.tables.configured import configured_table
from lingula.tables.table import Table, rows_of, subset
from lingula.training.examples import Examples, examples_of, with_features
from lingula.training.loop import Training, fit
from lingula.training.origins import build

KINDS = ("full", "linear", "decoder")


def bench_frozen(
    data: str | Path = "phantom",
    *,
    encoder: str = "resnet50",
    image_size: int = 224,
    batch_size: int = 32,
    layers: int = 4,
    width: int = 768,
    images: int = 256,
    rounds: int = 3,
    device: str = "auto",
) -> dict[str, Any]:
    """Time the training loop with the encoder trained, and with its features computed once.

    Three trainings, in turns, each the loop of `lingula train` from reading a batch to AdamW: the
    whole network; a linear layer on the frozen encoder; the paper's decoder on the frozen encoder.
    The last is compared with the decoder alone: the same step on one batch that is in memory.

    Args:
        data: a table with a train split, or `phantom`.
        encoder: any timm name; with random weights, since they do not change the speed.
        image_size: pixels, square.
        batch_size: images per step.
        layers: decoder layers.
        width: of the decoder.
        images: the number of train images that are used, at least three batches.
        rounds: how often every training is timed, in turns; medians are given.
        device: `auto`, `cpu` or `cuda`.

    Returns:
        Images per second of each, how many times faster than the full training the linear head is,
        the decoder's share of the speed of the decoder alone, and the seconds the features took.
    """
    if rounds < 1 or images < 3 * batch_size:
        raise InputError(
            f"rounds is at least 1 and images at least three batches, not {rounds} and {images} "
            f"(batches of {batch_size})."
        )
    with tempfile.TemporaryDirectory(prefix="lingula-bench-") as name:
        folder = Path(name)
        config = resolve_device(
            vary(
                paper_sized(encoder, image_size, batch_size, layers, width, device),
                data__table=str(_table_or_phantom(data, folder, image_size, images)),
                model__weights=str(_random_weights(encoder, image_size, folder)),
                model__text="orthogonal",
                optim__epochs=1,
                optim__warmup_epochs=None,
            )
        )
        return _measure(config, images, rounds, folder)


def _table_or_phantom(data: str | Path, folder: Path, size: int, images: int) -> Path:
    if str(data) != "phantom":
        return Path(data)
    write_phantom(folder / "phantom", n=max(30, images * 2), size=size)
    return folder / "phantom" / "labels.csv"


def _random_weights(encoder: str, image_size: int, folder: Path) -> Path:
    """Random weights in a file: a frozen encoder must start from something."""
    state = build_encoder(encoder, image_size)[0].state_dict()
    path = folder / "start.safetensors"
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return path


def _measure(config: Config, images: int, rounds: int, folder: Path) -> dict[str, Any]:
    table = configured_table(config.data)
    rows = rows_of(table, "train")[:images]
    if len(rows) < images:
        raise InputError(f"{table.path} has {len(rows)} train images, not {images}: --images.")
    few = subset(table, rows)
    fabric = make_fabric(config.device, config.precision)
    configs = {
        "full": config,
        "linear": vary(config, model__classifier="linear", model__frozen=True),
        "decoder": vary(config, model__frozen=True),
    }
    read = examples_of(config, few, "train")
    dev = examples_of(config, subset(few, np.arange(config.optim.batch_size)), "train")
    network, _, _ = build(configs["decoder"], few, {})
    network.freeze_encoder()
    network.to(fabric.device)
    began = time.perf_counter()
    kept = with_features(
        configs["decoder"], network, read, folder / "features" / "train.npy", fabric
    )
    encoding = time.perf_counter() - began
    size = config.optim.batch_size
    assert kept.features is not None
    features = torch.from_numpy(kept.features[0][:size].copy())
    alone = training_step(configs["decoder"], network, fabric, features)
    steps: dict[str, list[float]] = {name: [] for name in (*KINDS, "decoder alone")}
    for number in range(rounds):
        for kind in KINDS:
            examples = read if kind == "full" else kept
            run = folder / f"{kind}-{number}"
            steps[kind] += _time_epoch(configs[kind], few, examples, dev, run, fabric)
        times = time_rounds({"alone": alone}, images // size, config.device)
        steps["decoder alone"] += times["alone"].wall
    rate = {kind: size / statistics.median(seconds) for kind, seconds in steps.items()}
    return {
        "images_per_s": rate,
        "linear_ratio": rate["linear"] / rate["full"],
        "decoder_ratio": rate["decoder"] / rate["full"],
        "decoder_share": rate["decoder"] / rate["decoder alone"],
        "encoding_s": encoding,
        "images": images,
        "precision": config.precision,
        **machine(config.device),
    }


def _time_epoch(
    config: Config, table: Table, examples: Examples, dev: Examples, run: Path, fabric: Fabric
) -> list[float]:
    """Seconds of each step of an epoch but the first, which allocates and starts the reading.

    The scoring of `dev` that ends the epoch is not timed.
    """
    network, architecture, facts = build(config, table, {})
    if config.model.frozen:
        network.freeze_encoder()
    marks: list[float] = []
    fit(
        Training(
            config=config,
            space=table.space,
            network=network,
            architecture=architecture,
            facts=facts,
            train=examples,
            dev=dev,
            run=run,
            fabric=fabric,
            tick=lambda done, total, note: marks.append(time.perf_counter()),
        )
    )
    return [later - earlier for earlier, later in pairwise(marks)]


def to_text(result: dict[str, Any]) -> str:
    """The result as lines for a terminal."""
    rate = result["images_per_s"]
    return "\n".join(
        [
            f"whole network trained   {rate['full']:8.1f} images/s ({result['precision']})",
            f"linear head on features {rate['linear']:8.1f} images/s, "
            f"{result['linear_ratio']:.0f} times",
            f"decoder on features     {rate['decoder']:8.1f} images/s, "
            f"{result['decoder_ratio']:.1f} times; {100 * result['decoder_share']:.0f} % of the "
            f"decoder alone ({rate['decoder alone']:.1f})",
            f"features of {result['images']} images and their mirror images: "
            f"{result['encoding_s']:.1f} s, once",
        ]
    )
