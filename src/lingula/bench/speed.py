"""The time, memory and disk of a training, from some steps on random images."""

from __future__ import annotations

import contextlib
import json
import logging
import statistics
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from lingula.bench.models import random_images, random_network, training_step
from lingula.bench.rounds import time_rounds
from lingula.model.devices import layout_of, make_fabric, resolve_device
from lingula.model.encoders import recompute_activations
from lingula.model.network import Network
from lingula.settings.config import Config, parse_config, read_config
from lingula.training.examples import Sizes, sizes_of

STEPS, SECONDS = 20, 40.0  # timed steps; fewer if they take longer than so many seconds
SCORED, SCORING = 5, 10.0  # the same for scoring, which is a small part of the whole


@dataclass(frozen=True)
class Speed:
    """The speed and size of a training, measured on random images with random weights.

    Attributes:
        config: with the device and the number format settled.
        steps: how many steps were timed.
        step: seconds per step.
        dev: seconds per image that is scored during training.
        exact: seconds per image and view that is scored afterwards, in fp32.
        encode: seconds per image and view whose features a frozen encoder computes once; else 0.
        memory: bytes at the peak, of the device or the process; None if the system does not say.
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


def measure_speed(config: Config) -> Speed:
    """Time steps of a training as `lingula train` makes them, and its scoring."""
    config = resolve_device(config)
    fabric, layout = make_fabric(config.device, config.precision), layout_of(config)
    network = random_network(config)
    if config.model.checkpointing:
        recompute_activations(network.encoder)
    if config.model.frozen:
        network.freeze_encoder()
    network.to(memory_format=layout).to(fabric.device)
    sizes = sizes_of(network, config)
    images, encode = random_images(config.optim.batch_size, config.model.image_size), 0.0
    if config.model.frozen:
        images, encode = _time_features(network, images, fabric, config.device)
    if config.compile:
        network.compile()
    _reset_peak(config.device)
    step = training_step(config, network, fabric, images)
    steps = time_rounds({"": step}, STEPS, config.device, seconds=SECONDS)[""].wall
    memory = _peak(config.device)
    network.eval()
    batch, encoded = images.to(fabric.device), config.model.frozen

    def forward() -> None:
        network(batch if encoded else network.prepare(batch, layout), encoded)

    def seconds_per_image() -> float:
        times = time_rounds({"": forward}, SCORED, config.device, seconds=SCORING)
        return statistics.mean(times[""].wall) / len(batch)

    with torch.no_grad():
        exact = seconds_per_image() + encode
        with fabric.autocast():
            dev = seconds_per_image()
    return Speed(config, len(steps), statistics.mean(steps), dev, exact, encode, memory, sizes)


def _time_features(
    network: Network, images: Tensor, fabric: Fabric, device: str
) -> tuple[Tensor, float]:
    """The images' features, and the seconds that those of one take."""

    @torch.no_grad()
    def encode() -> Tensor:
        with fabric.autocast():
            features: Tensor = network.encoder(network.prepare(images.to(fabric.device)))
        return features

    times = time_rounds({"": encode}, SCORED, device, seconds=SCORING)[""]
    return times.result.float().cpu(), statistics.mean(times.wall) / len(images)


def _reset_peak(device: str) -> None:
    """Start to measure the most memory in use: of the device, or of the process on Linux."""
    if device == "cuda":
        torch.cuda.empty_cache()  # left by earlier measurements
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak(device: str) -> int | None:
    """The most bytes in use since then; None if the system does not say."""
    if device == "cuda":
        return torch.cuda.max_memory_reserved()
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = next((line for line in lines if line.startswith("VmHWM:")), None)
    return None if found is None else 1024 * int(found.split()[1])


def speed_to_json(speed: Speed) -> dict[str, Any]:
    """The speed as plain values."""
    plain = {name: getattr(speed, name) for name in ("steps", "step", "dev", "exact", "encode")}
    config = speed.config.model_dump(mode="json")
    return {**plain, "memory": speed.memory, "sizes": asdict(speed.sizes), "config": config}


def speed_from_json(value: Mapping[str, Any]) -> Speed:
    """What `speed_to_json` made of it."""
    made = {"config": parse_config(value["config"]), "sizes": Sizes(**value["sizes"])}
    return Speed(**{**value, **made})


if __name__ == "__main__":  # in a process of its own, with threads and a device of its own
    logging.basicConfig(level=logging.WARNING)
    sys.stdout.write(json.dumps(speed_to_json(measure_speed(read_config(sys.argv[1])))))
