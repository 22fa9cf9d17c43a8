"""`lingula bench train`: images per second of training, beside a plain training step."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lingula.bench import models
from lingula.bench.rounds import time_rounds
from lingula.model.devices import make_fabric, resolve_device
from lingula.settings.config import Config
from lingula.settings.label_space import CXR_LT_2023
from lingula.system.errors import InputError

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
    """Time training steps of lingula and of a plain baseline, in turns, on the same images.

    Ours is what `lingula train` does with decoded images. The baseline is the same network in
    default eager fp32 with images as (B, 3, H, W), a torchvision chain per image, the class names
    through a BERT of the usual size at every step, and AdamW with its defaults.

    Args:
        encoder: any timm name.
        image_size: pixels, square.
        batch_size: images per step.
        layers: decoder layers.
        width: of the decoder.
        rounds: how often both are timed, in turns; medians are given.
        steps: steps per round.
        device: `auto`, `cpu` or `cuda`.

    Returns:
        Images per second of ours and of the baseline, their ratio, the time of each part of a step
        of ours, and the share of the machine's peak (measured in the same run by matrix products
        and convolutions of the same number format).
    """
    if rounds < 1 or steps < 1:
        raise InputError(f"rounds and steps are at least 1, not {rounds} and {steps}.")
    paper = models.paper_sized(encoder, image_size, batch_size, layers, width, device)
    config = resolve_device(paper)
    fabric = make_fabric(config.device, config.precision)
    images = models.random_images(batch_size, image_size)
    parts: dict[str, list[float]] = {name: [] for name in models.PARTS}
    network = models.random_network(config)
    ours = models.training_step(config, network, fabric, images, parts)
    flops = models.operations(ours)
    calls = {"ours": ours, "plain": _plain_step(config, images)}
    times = time_rounds(calls, rounds, config.device, steps=steps)
    seconds = {name: one.median for name, one in times.items()}
    peak = models.peak_of(config, rounds)
    return {
        "images_per_s": batch_size / seconds["ours"],
        "baseline": batch_size / seconds["plain"],
        "ratio": seconds["plain"] / seconds["ours"],
        "share_of_peak": flops / seconds["ours"] / peak,
        "peak_GFLOPS": peak / 1e9,
        "GFLOP_per_image": flops / batch_size / 1e9,
        "parts_ms": {
            name: 1000 * statistics.median(s[-rounds * steps :]) for name, s in parts.items()
        },
        "precision": config.precision,
        "channels_last": config.channels_last,
        **models.machine(config.device),
    }


def _plain_step(config: Config, images: Tensor) -> Callable[[], None]:
    """A training step as it is usually written; never slowed on purpose."""
    from torchvision.transforms import v2

    augment = config.augment
    chain = v2.Compose(
        [
            v2.RandomResizedCrop(config.model.image_size, scale=augment.scale, antialias=True),
            v2.RandomHorizontalFlip(augment.flip),
            v2.RandomRotation(augment.rotation),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    network = models.random_network(config).to(config.device)
    network.train()
    text = _random_bert(config.device)
    tokens = torch.randint(0, 30_000, (len(CXR_LT_2023), TEXT_TOKENS), device=config.device)
    targets = (torch.rand(len(images), len(CXR_LT_2023)) < 0.1).float().to(config.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.02)

    def step() -> None:
        batch = torch.stack([chain(image.expand(3, -1, -1)) for image in images]).to(config.device)
        with torch.no_grad():
            embedded = text(tokens)
        # The names' embeddings of this step; they have the decoder's width only by default.
        if embedded.shape[1] == network.embeddings.shape[1]:
            network.embeddings.copy_(embedded)
        loss = F.binary_cross_entropy_with_logits(network(batch), targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _random_bert(device: str) -> Callable[[Tensor], Tensor]:
    """A text encoder of BERT's usual size: 12 layers of 768, as PubMedBERT has."""
    layer = nn.TransformerEncoderLayer(768, 12, 3072, activation="gelu", batch_first=True)
    encoder = nn.TransformerEncoder(layer, 12, enable_nested_tensor=False).to(device).eval()
    words = nn.Embedding(30_522, 768).to(device)

    def encode(tokens: Tensor) -> Tensor:
        states: Tensor = encoder(words(tokens))
        return states[:, 0]

    return encode


def to_text(result: dict[str, Any]) -> str:
    """The result as lines for a terminal."""
    parts = ", ".join(f"{name} {ms:.0f} ms" for name, ms in result["parts_ms"].items())
    return "\n".join(
        [
            f"ours      {result['images_per_s']:8.1f} images/s ({result['precision']}; {parts})",
            f"baseline  {result['baseline']:8.1f} images/s (eager fp32, torchvision chain, text "
            "every step)",
            f"ratio     {result['ratio']:8.2f}",
            f"share of the measured peak ({result['peak_GFLOPS']:.0f} GFLOPS): "
            f"{100 * result['share_of_peak']:.0f} %; {result['GFLOP_per_image']:.1f} GFLOP per "
            "image",
        ]
    )
