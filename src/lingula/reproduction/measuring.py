"""What steps of a training take on this machine: time, and memory where it can be had."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor

from lingula.bench.train import network_of
from lingula.loading.batches import Loaded, consecutive_batches, load
from lingula.model.devices import layout_of, make_fabric, resolve_device
from lingula.model.encoders import recompute_activations
from lingula.model.network import Network
from lingula.settings.config import Config
from lingula.tables.table import Table, subset
from lingula.training import steps
from lingula.training.examples import check_there, dataset_of
from lingula.training.losses import LOSSES
from lingula.training.optim import adamw, parameter_groups
from lingula.training.space import Sizes, sizes_of

STEPS, SECONDS = 20, 40.0  # timed steps; fewer where they take longer than so many seconds
SCORED, SCORING = 5, 10.0  # the same for scoring, which is a small part of the whole


@dataclass(frozen=True)
class Measured:
    """What a training takes, measured on random images with random weights.

    Attributes:
        config: with the device and the number format settled.
        steps: how many steps were timed.
        step: seconds a step.
        dev: seconds an image that is scored while it trains.
        exact: seconds an image and view that is scored afterwards, in fp32.
        encode: seconds an image and view whose features a frozen encoder computes once; else 0.
        memory: bytes at the peak, of the device or the process; None where it can't be had.
        sizes: what it takes on disk.
    """

    config: Config
    steps: int
    step: float
    dev: float
    exact: float
    encode: float
    memory: int | None
    sizes: Sizes


def measure(config: Config) -> Measured:
    """Time steps of a training as `lingula train` makes them, and its scoring."""
    config = resolve_device(config)
    fabric, layout = make_fabric(config.device, config.precision), layout_of(config)
    network = network_of(config)
    if config.model.checkpointing:
        recompute_activations(network.encoder)
    if config.model.frozen:
        network.freeze_encoder()
    network.to(memory_format=layout).to(fabric.device)
    sizes = sizes_of(network, config)
    loaded, encode = _batch(config, network, fabric)
    if config.compile:
        network.compile()
    _reset_peak(config.device)
    trained = _training_step(config, network, fabric, loaded)
    count, step = _timed(trained, config.device, STEPS, SECONDS)
    memory = _peak(config.device)
    network.eval()
    images = loaded.images.to(fabric.device)

    def forward() -> None:
        network(images if config.model.frozen else network.prepare(images, layout), encoded)

    encoded = config.model.frozen
    with torch.no_grad():
        exact = _timed(forward, config.device)[1] / len(images) + encode
        with fabric.autocast():
            dev = _timed(forward, config.device)[1] / len(images)
    return Measured(config, count, step, dev, exact, encode, memory, sizes)


def _batch(config: Config, network: Network, fabric: Fabric) -> tuple[Loaded, float]:
    """Random images, or for a frozen encoder their features, and the seconds that one's take."""
    rows, size = config.optim.batch_size, config.model.image_size
    drawn = np.random.default_rng(0).integers(0, 256, (rows, 1, size, size), np.uint8)
    images = torch.from_numpy(drawn)
    if not config.model.frozen:
        return Loaded(np.arange(rows), images), 0.0
    kept: list[Tensor] = []

    def encode() -> None:
        with torch.no_grad(), fabric.autocast():
            kept[:] = [network.encoder(network.prepare(images.to(fabric.device)))]

    seconds = _timed(encode, config.device)[1] / rows
    return Loaded(np.arange(rows), kept[0].float().cpu()), seconds


def _training_step(
    config: Config, network: Network, fabric: Fabric, loaded: Loaded
) -> Callable[[], None]:
    """A step as `training.fit` makes it."""
    o = config.optim
    groups = parameter_groups(network, lr=o.lr, head_lr=o.head_lr, weight_decay=o.weight_decay)
    model, optimizer = fabric.setup(network, adamw(groups))
    shape = (len(loaded.indices), len(network.embeddings))
    targets = (torch.rand(shape) < 0.1).float().to(fabric.device)
    mask = torch.ones(shape, dtype=torch.bool, device=fabric.device)
    network.train()

    def step() -> None:
        batch = steps.make_batch(loaded, targets, mask, network, config, fabric, 0, 0)
        optimizer.zero_grad(set_to_none=True)
        steps.backward(model, batch, LOSSES[config.loss.name], None, config, fabric)
        optimizer.step()

    return step


def _timed(
    step: Callable[[], None], device: str, most: int = SCORED, seconds: float = SCORING
) -> tuple[int, float]:
    """How often it was done, and the mean seconds; the first time, which allocates, apart."""
    step()
    count, began = 0, _now(device)
    while count < most and (count == 0 or _now(device) - began < seconds):
        step()
        count += 1
    return count, (_now(device) - began) / count


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _reset_peak(device: str) -> None:
    """Begin to look for the most memory taken: of the device, or of the process on Linux."""
    if device == "cuda":
        torch.cuda.empty_cache()  # what was measured before this has left there
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak(device: str) -> int | None:
    """The most bytes taken since; None where the system does not tell."""
    if device == "cuda":
        return torch.cuda.max_memory_reserved()
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = next((line for line in lines if line.startswith("VmHWM:")), None)
    return None if found is None else 1024 * int(found.split()[1])


def reading_seconds(config: Config, table: Table, rows: NDArray[np.intp]) -> float:
    """Seconds that an image takes to be read, from its file or the cache, by some of these rows."""
    chosen = np.unique(np.linspace(0, len(rows) - 1, _READ).astype(np.intp))
    dataset = dataset_of(subset(table, rows[chosen]), config)
    check_there(dataset, "measured")
    done, began = 0, time.perf_counter()
    loading = load(dataset, consecutive_batches(len(dataset), 32))
    for loaded in loading:
        done += len(loaded.indices) + len(loaded.failures)
        if time.perf_counter() - began > SECONDS:
            break
    loading.close()
    return (time.perf_counter() - began) / done


_READ = 640  # images that are read to see how fast that is
