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

from lingula.bench.train import paper_sized
from lingula.model.devices import make_fabric, resolve_device
from lingula.model.encoders import build_encoder
from lingula.model.network import Network
from lingula.phantom import write_phantom
from lingula.settings.config import Config, vary
from lingula.system.errors import InputError
from lingula.tables.configured import configured_table
from lingula.tables.table import Table, rows_of, subset
from lingula.training.augment import Batch, Labels
from lingula.training.examples import Examples, examples_of, with_features
from lingula.training.fitting import build
from lingula.training.loop import Training, fit
from lingula.training.losses import bce
from lingula.training.optim import adamw, parameter_groups
from lingula.training.steps import backward

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
    The last stands beside the decoder alone: the same step on one batch that lies in memory.

    Args:
        data: a table with a train split, or `phantom`.
        encoder: any timm name; with random weights, since they do not change the speed.
        image_size: pixels, square.
        batch_size: images a step.
        layers: decoder layers.
        width: of the decoder.
        images: so many of the train images are used, at least three batches.
        rounds: every training is timed so often, in turns; medians are given.
        device: `auto`, `cpu` or `cuda`.

    Returns:
        Images a second of each, how many times faster than the full training the linear head is,
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
                paper_sized(encoder, image_size, layers, width, device),
                data__table=str(_table(data, folder, image_size, images)),
                model__weights=str(_start(encoder, image_size, folder)),
                model__text="orthogonal",
                optim__batch_size=batch_size,
                optim__epochs=1,
                optim__warmup_epochs=None,
            )
        )
        return _measured(config, images, rounds, folder)


def _table(data: str | Path, folder: Path, size: int, images: int) -> Path:
    if str(data) != "phantom":
        return Path(data)
    write_phantom(folder / "phantom", n=max(30, images * 2), size=size)
    return folder / "phantom" / "labels.csv"


def _start(encoder: str, image_size: int, folder: Path) -> Path:
    """Random weights in a file: a frozen encoder must start from something."""
    state = build_encoder(encoder, image_size)[0].state_dict()
    path = folder / "start.safetensors"
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return path


def _measured(config: Config, images: int, rounds: int, folder: Path) -> dict[str, Any]:
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
    steps: dict[str, list[float]] = {name: [] for name in (*KINDS, "decoder alone")}
    for number in range(rounds):
        for kind in KINDS:
            examples = read if kind == "full" else kept
            run = folder / f"{kind}-{number}"
            steps[kind] += _fitted(configs[kind], few, examples, dev, run, fabric)
        steps["decoder alone"] += _alone(configs["decoder"], network, kept, fabric)
    rate = {k: config.optim.batch_size / statistics.median(every) for k, every in steps.items()}
    return {
        "images_per_s": rate,
        "linear_ratio": rate["linear"] / rate["full"],
        "decoder_ratio": rate["decoder"] / rate["full"],
        "decoder_share": rate["decoder"] / rate["decoder alone"],
        "encoding_s": encoding,
        "images": images,
        "precision": config.precision,
        "device": config.device,
        "threads": torch.get_num_threads(),
    }


def _fitted(
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


def _alone(config: Config, network: Network, kept: Examples, fabric: Fabric) -> list[float]:
    """Seconds of steps of what comes after the encoder, on one batch that lies in memory."""
    groups = parameter_groups(network, lr=1e-4, head_lr=1.0, weight_decay=0.02)
    model, optimizer = fabric.setup(network, adamw(groups))
    network.train()
    size = config.optim.batch_size
    assert kept.features is not None
    features, targets, mask = (
        torch.from_numpy(part[:size].copy()).to(fabric.device)
        for part in (kept.features[0], kept.targets, kept.mask)
    )
    batch = Batch(features, (Labels(targets, mask),))

    seconds = []
    for _ in range(1 + len(kept.dataset) // size):
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss = backward(model, batch, bce, None, config, fabric)
        optimizer.step()
        float(loss)  # waits for the device
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def to_text(found: dict[str, Any]) -> str:
    """The result as lines for a terminal."""
    rate = found["images_per_s"]
    return "\n".join(
        [
            f"whole network trained   {rate['full']:8.1f} images/s ({found['precision']})",
            f"linear head on features {rate['linear']:8.1f} images/s, "
            f"{found['linear_ratio']:.0f} times",
            f"decoder on features     {rate['decoder']:8.1f} images/s, "
            f"{found['decoder_ratio']:.1f} times; {100 * found['decoder_share']:.0f} % of the "
            f"decoder alone ({rate['decoder alone']:.1f})",
            f"features of {found['images']} images and their mirror images: "
            f"{found['encoding_s']:.1f} s, once",
        ]
    )
