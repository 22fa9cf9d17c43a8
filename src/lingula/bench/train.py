"""`lingula bench train`: images a second of a training step, beside a plain one."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lingula.loading.warp import Warp, draw_warps, warp_levels
from lingula.model.devices import layout_of, make_fabric, resolve_device
from lingula.model.network import Architecture, Network
from lingula.model.text import orthogonal
from lingula.model.transfer import send
from lingula.settings.config import Config, vary
from lingula.settings.label_space import CXR_LT_2023
from lingula.system.errors import InputError
from lingula.training.losses import bce, reduce_loss
from lingula.training.optim import adamw, parameter_groups

WARP = Warp((0.6, 1.0), 0.5, 15.0)
TEXT_TOKENS = 8  # a class name is about so many word pieces, with [CLS] and [SEP]


def bench_train(
    *,
    encoder: str = "resnet50",
    image_size: int = 224,
    batch_size: int = 16,
    layers: int = 4,
    width: int = 768,
    rounds: int = 5,
    steps: int = 2,
    device: str = "auto",
) -> dict[str, Any]:
    """Time training steps of ours and of a plain baseline, in turns, on the same images.

    Ours is what `lingula train` does with decoded images: one affine warp on the batch, bfloat16
    and channels-last where the encoder's family gains by them, the class side computed once, fused
    AdamW. The baseline is the same network in default eager fp32 with images as (B, 3, H, W), a
    torchvision chain an image, the class names through a BERT of the usual size at every step, and
    AdamW as it comes.

    Args:
        encoder: any timm name.
        image_size: pixels, square.
        batch_size: images a step.
        layers: decoder layers.
        width: of the decoder.
        rounds: both are timed so often, in turns; medians are given.
        steps: steps timed at once.
        device: `auto`, `cpu` or `cuda`.

    Returns:
        Images a second of ours and of the baseline, their ratio, the time of each part of a step of
        ours, the share of the machine's peak (measured in the same run by matrix products and
        convolutions of the same number format), and memory.
    """
    if rounds < 1 or steps < 1:
        raise InputError(f"rounds and steps are at least 1, not {rounds} and {steps}.")
    config = paper_sized(encoder, image_size, layers, width, device)
    config = resolve_device(config)
    films = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (batch_size, 1, image_size, image_size), np.uint8)
    )
    targets = (torch.rand(batch_size, len(CXR_LT_2023)) < 0.1).float()
    ours, parts = training_step(config, films, targets)
    flops = operations(ours)
    plain = _plain(config, films, targets)
    for step in (ours, plain):
        step()  # the first step allocates
    for every in parts.values():
        every.clear()
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(rounds):
        for name, step in (("ours", ours), ("plain", plain)):
            times[name].append(timed(step, steps, config.device) / steps)
    seconds = {name: statistics.median(every) for name, every in times.items()}
    peak = peak_of(config, rounds)
    rate = batch_size / seconds["ours"]
    return {
        "images_per_s": rate,
        "baseline": batch_size / seconds["plain"],
        "ratio": seconds["plain"] / seconds["ours"],
        "share_of_peak": flops / seconds["ours"] / peak,
        "peak_GFLOPS": peak / 1e9,
        "GFLOP_per_image": flops / batch_size / 1e9,
        "parts_ms": {name: 1000 * statistics.median(every) for name, every in parts.items()},
        "precision": config.precision,
        "channels_last": config.channels_last,
        "device": config.device,
        "threads": torch.get_num_threads(),
    }


def paper_sized(encoder: str, image_size: int, layers: int, width: int, device: str) -> Config:
    """A config with the paper's settings but for these."""
    return vary(
        Config(),
        model__encoder=encoder,
        model__image_size=image_size,
        model__decoder__layers=layers,
        model__decoder__width=width,
        device=device,
    )


def network_of(config: Config) -> Network:
    """The network of a config with random weights and no text."""
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


def training_step(
    config: Config, films: Tensor, targets: Tensor
) -> tuple[Callable[[], None], dict[str, list[float]]]:
    """A step as `lingula train` makes it, and the seconds of its parts, to which each step adds.

    Args:
        config: the settings, with device and number format decided.
        films: (B, 1, S, S) uint8, decoded.
        targets: (B, 26) float32, all of them known.
    """
    fabric = make_fabric(config.device, config.precision)
    layout = layout_of(config)
    network = network_of(config).to(memory_format=layout)
    groups = parameter_groups(network, lr=1e-4, head_lr=1.0, weight_decay=0.02)
    model, optimizer = fabric.setup(network, adamw(groups))
    model.train()
    wanted = targets.to(fabric.device)
    mask = torch.ones_like(wanted, dtype=torch.bool)
    rows = np.arange(len(films))
    parts: dict[str, list[float]] = {name: [] for name in ("data", "forward", "backward", "adamw")}
    count = {"step": 0}

    def step() -> None:
        marks = [_now(config.device)]
        matrices = draw_warps(WARP, rows, seed=0, epoch=count["step"])
        warped = warp_levels(send(films, fabric.device), send(matrices, fabric.device))
        inputs = network.prepare(warped, layout)
        marks.append(_now(config.device))
        loss = reduce_loss(bce(model(inputs), wanted), mask)
        marks.append(_now(config.device))
        optimizer.zero_grad(set_to_none=True)
        fabric.backward(loss)
        marks.append(_now(config.device))
        optimizer.step()
        marks.append(_now(config.device))
        for name, begin, end in zip(parts, marks, marks[1:], strict=False):
            parts[name].append(end - begin)
        count["step"] += 1

    return step, parts


def operations(step: Callable[[], object]) -> float:
    """The arithmetic operations of a step's matrix products and convolutions."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


def _plain(config: Config, films: Tensor, targets: Tensor) -> Callable[[], None]:
    """A step as it is usually written; never slowed on purpose."""
    from torchvision.transforms import v2

    size = config.model.image_size
    chain = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=WARP.scale, antialias=True),
            v2.RandomHorizontalFlip(WARP.flip),
            v2.RandomRotation(WARP.rotation),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    network = network_of(config).to(config.device)
    network.train()
    text = _bert(config.device)
    tokens = torch.randint(0, 30_000, (len(CXR_LT_2023), TEXT_TOKENS), device=config.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.02)
    wanted = targets.to(config.device)

    def step() -> None:
        images = torch.stack([chain(film.expand(3, -1, -1)) for film in films]).to(config.device)
        with torch.no_grad():
            embedded = text(tokens)
        # The names' embeddings of this step; they have the decoder's width only by default.
        if embedded.shape[1] == network.embeddings.shape[1]:
            network.embeddings.copy_(embedded)
        loss = F.binary_cross_entropy_with_logits(network(images), wanted)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _bert(device: str) -> Callable[[Tensor], Tensor]:
    """A text encoder of BERT's usual size: 12 layers of 768, as PubMedBERT has."""
    layer = nn.TransformerEncoderLayer(768, 12, 3072, activation="gelu", batch_first=True)
    encoder = nn.TransformerEncoder(layer, 12, enable_nested_tensor=False).to(device).eval()
    words = nn.Embedding(30_522, 768).to(device)

    def encode(tokens: Tensor) -> Tensor:
        states: Tensor = encoder(words(tokens))
        return states[:, 0]

    return encode


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(step: Callable[[], object], steps: int, device: str) -> float:
    """Seconds that so many steps take, waiting for the device at both ends."""
    begin = _now(device)
    for _ in range(steps):
        step()
    return _now(device) - begin


def peak_of(config: Config, rounds: int) -> float:
    """Operations a second of the faster of a large matrix product and a large convolution."""
    kind = torch.bfloat16 if config.precision == "bf16" else torch.float32
    n = 8192 if config.device == "cuda" else 1536
    a, b = (torch.randn(n, n, dtype=kind, device=config.device) for _ in range(2))
    images = torch.randn(16, 256, 28, 28, dtype=kind, device=config.device)
    images = images.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(256, 256, 3, 3, dtype=kind, device=config.device)
    weight = weight.contiguous(memory_format=torch.channels_last)
    work: list[tuple[float, Callable[[], Tensor]]] = [
        (2.0 * n**3, lambda: a @ b),
        (2.0 * 16 * 256 * 256 * 9 * 28 * 28, lambda: F.conv2d(images, weight, padding=1)),
    ]
    best = 0.0
    with torch.no_grad():
        for operations, run in work:
            run()
            seconds = math.inf
            for _ in range(2 * rounds):
                begin = _now(config.device)
                run()
                seconds = min(seconds, _now(config.device) - begin)
            best = max(best, operations / seconds)
    return best


def to_text(found: dict[str, Any]) -> str:
    """The result as lines for a terminal."""
    parts = ", ".join(f"{name} {ms:.0f} ms" for name, ms in found["parts_ms"].items())
    return "\n".join(
        [
            f"ours      {found['images_per_s']:8.1f} images/s ({found['precision']}; {parts})",
            f"baseline  {found['baseline']:8.1f} images/s (eager fp32, torchvision chain, text "
            "every step)",
            f"ratio     {found['ratio']:8.2f}",
            f"share of the measured peak ({found['peak_GFLOPS']:.0f} GFLOPS): "
            f"{100 * found['share_of_peak']:.0f} %; {found['GFLOP_per_image']:.1f} GFLOP an image",
        ]
    )
