"""What benches of models time: the paper-sized model, a training step, the machine's peak."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn import functional as F

from lingula.bench.rounds import now, time_rounds
from lingula.loading.batches import Loaded
from lingula.model.devices import layout_of
from lingula.model.network import Architecture, Network
from lingula.model.text import orthogonal
from lingula.settings.config import Config, vary
from lingula.settings.label_space import CXR_LT_2023
from lingula.training.optim import adamw, parameter_groups
from lingula.training.steps import LOSSES, backward, make_batch


def paper_sized(
    encoder: str, image_size: int, batch_size: int, layers: int, width: int, device: str
) -> Config:
    """A config with the paper's settings except for these."""
    return vary(
        Config(),
        model__encoder=encoder,
        model__image_size=image_size,
        model__decoder__layers=layers,
        model__decoder__width=width,
        optim__batch_size=batch_size,
        device=device,
    )


def random_network(config: Config) -> Network:
    """The network of a config with random weights and orthogonal class embeddings."""
    m = config.model
    torch.manual_seed(0)
    architecture = Architecture(
        encoder=m.encoder,
        image_size=m.image_size,
        classifier=m.classifier,
        stage=m.stage,
        **m.decoder.model_dump(),
    )
    return Network(architecture, orthogonal(CXR_LT_2023, m.decoder.width))


def random_images(count: int, size: int) -> Tensor:
    """Decoded images of noise, (count, 1, size, size) uint8."""
    shape = (count, 1, size, size)
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, np.uint8))


PARTS = ("data", "forward", "backward", "adamw")


def training_step(
    config: Config,
    network: Network,
    fabric: Fabric,
    images: Tensor,
    parts: dict[str, list[float]] | None = None,
) -> Callable[[], None]:
    """A step as `lingula train` makes it, on one batch that is in memory.

    Args:
        config: the settings, with device and number format decided.
        network: what is trained.
        fabric: of the same device and number format.
        images: (B, 1, S, S) uint8, decoded; for a frozen encoder its features.
        parts: a list of seconds for each of `PARTS`, to which each step adds; None: not measured.
    """
    o = config.optim
    rates = {"lr": o.lr, "head_lr": o.head_lr, "weight_decay": o.weight_decay}
    network.to(memory_format=layout_of(config)).train()
    model, optimizer = fabric.setup(network, adamw(parameter_groups(network, **rates)))
    loaded = Loaded(np.arange(len(images)), images)
    shape = (len(images), len(network.embeddings))
    targets = (torch.rand(shape) < 0.1).float().to(fabric.device)
    known = torch.ones(shape, dtype=torch.bool, device=fabric.device)
    marks: list[float] = []
    taken = itertools.count()

    def mark(*_: object) -> None:
        if parts is not None:
            marks.append(now(config.device))

    if parts is not None:
        network.register_forward_pre_hook(mark)
        network.register_forward_hook(mark)

    def step() -> None:
        number = next(taken)
        marks.clear()
        mark()
        batch = make_batch(loaded, targets, known, network, config, fabric, number, number)
        optimizer.zero_grad(set_to_none=True)
        backward(model, batch, LOSSES[config.loss.name], None, config, fabric)
        mark()
        optimizer.step()
        mark()
        if parts is not None:
            forward = sum(marks[2:-2:2]) - sum(marks[1:-2:2])
            rest = marks[-2] - marks[1] - forward
            seconds = (marks[1] - marks[0], forward, rest, marks[-1] - marks[-2])
            for name, spent in zip(PARTS, seconds, strict=True):
                parts[name].append(spent)

    return step


def operations(call: Callable[[], object]) -> float:
    """The arithmetic operations of a call's matrix products and convolutions."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


@torch.no_grad()
def peak_of(config: Config, rounds: int) -> float:
    """Operations per second of the faster of a large matrix product and a large convolution."""
    kind = torch.bfloat16 if config.precision == "bf16" else torch.float32
    n = 8192 if config.device == "cuda" else 1536
    a, b = (torch.randn(n, n, dtype=kind, device=config.device) for _ in range(2))
    images = torch.randn(16, 256, 28, 28, dtype=kind, device=config.device)
    images = images.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(256, 256, 3, 3, dtype=kind, device=config.device)
    weight = weight.contiguous(memory_format=torch.channels_last)
    calls = {"product": lambda: a @ b, "convolution": lambda: F.conv2d(images, weight, padding=1)}
    times = time_rounds(calls, 2 * rounds, config.device)
    product, convolution = 2.0 * n**3, 2.0 * 16 * 256 * 256 * 9 * 28 * 28
    return max(product / min(times["product"].wall), convolution / min(times["convolution"].wall))


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    return {"device": device, "threads": torch.get_num_threads()}
