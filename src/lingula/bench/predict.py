"""`lingula bench predict`: images per second of scoring in fp32 and bf16, beside a plain model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lingula.bench import models
from lingula.bench.rounds import time_rounds
from lingula.model.devices import autocast_to, layout_of, make_fabric, resolve_device
from lingula.scoring.folding import for_scoring
from lingula.scoring.scoring import score_batch
from lingula.scoring.views import VIEWS
from lingula.settings.config import Config, vary
from lingula.system.errors import InputError


def bench_predict(
    *,
    encoder: str = "resnet50",
    image_size: int = 224,
    batch_size: int = 16,
    layers: int = 4,
    width: int = 768,
    tta: str = "none",
    rounds: int = 5,
    device: str = "auto",
) -> dict[str, Any]:
    """Time scoring of decoded images: exact (fp32), in bf16, and plain, in turns.

    Plain is the same network in eager fp32 on (B, 3, H, W), with images normalised one by one.

    Args:
        encoder: any timm name.
        image_size: pixels, square.
        batch_size: images at once.
        layers: decoder layers.
        width: of the decoder.
        tta: test-time views, the same for plain.
        rounds: how often each is timed, in turns; medians are given.
        device: `auto`, `cpu` or `cuda`.

    Returns:
        Images per second of exact, bf16 and plain, the ratios to plain, the share of the machine's
        peak that exact reaches (measured in the same run by matrix products and convolutions), and
        the largest change of a logit from exact to bf16 (of a network with random weights).
    """
    if rounds < 1 or tta not in VIEWS:
        raise InputError(f"rounds is at least 1 and tta one of {', '.join(VIEWS)}.")
    paper = models.paper_sized(encoder, image_size, batch_size, layers, width, device)
    exact = resolve_device(vary(paper, precision="fp32"))
    fast = resolve_device(vary(paper, precision="bf16"))
    images = models.random_images(batch_size, image_size)
    calls = {
        "exact": _our_scoring(exact, images, tta),
        "bf16": _our_scoring(fast, images, tta),
        "plain": _plain_scoring(exact, images, tta),
    }
    flops = models.operations(calls["exact"])
    times = time_rounds(calls, rounds, exact.device)
    rate = {name: batch_size / one.median for name, one in times.items()}
    moved = torch.logit(times["bf16"].result) - torch.logit(times["exact"].result)
    peak = models.peak_of(exact, rounds)
    return {
        "images_per_s": rate["exact"],
        "bf16_images_per_s": rate["bf16"],
        "baseline": rate["plain"],
        "ratio": rate["exact"] / rate["plain"],
        "bf16_ratio": rate["bf16"] / rate["plain"],
        "share_of_peak": rate["exact"] * flops / batch_size / peak,
        "peak_GFLOPS": peak / 1e9,
        "GFLOP_per_image": flops / batch_size / 1e9,
        "largest_change_of_a_logit": float(moved.abs().max()),
        "views": len(VIEWS[tta]),
        **models.machine(exact.device),
    }


def _our_scoring(config: Config, images: Tensor, tta: str) -> Callable[[], Tensor]:
    """Scoring as `lingula predict` does it, of images that are decoded."""
    fabric = make_fabric(config.device, str(config.precision))
    layout = layout_of(config)
    built = models.random_network(config).to(fabric.device)
    network = for_scoring(built, config.model.image_size, layout, autocast_to(fabric))
    keys = list(range(len(images)))

    def forward(batch: Tensor) -> Tensor:
        with fabric.autocast():
            logits: Tensor = network(batch)
        return logits

    def score() -> Tensor:
        batch = images.to(fabric.device, non_blocking=True)
        return score_batch(network, batch, VIEWS[tta], "geometric", forward, keys, layout).cpu()

    return score


def _plain_scoring(config: Config, images: Tensor, tta: str) -> Callable[[], Tensor]:
    network = models.random_network(config).to(config.device).eval()
    mean = torch.tensor((0.485, 0.456, 0.406))[:, None, None]
    std = torch.tensor((0.229, 0.224, 0.225))[:, None, None]

    @torch.no_grad()
    def score() -> Tensor:
        total = torch.zeros(())
        for view in VIEWS[tta]:
            seen = view(images, list(range(len(images))))
            ready = [(image.expand(3, -1, -1) / 255.0 - mean) / std for image in seen]
            total = total + network(torch.stack(ready).to(config.device)).sigmoid().cpu()
        return total.double() / len(VIEWS[tta])

    return score


def to_text(result: dict[str, Any]) -> str:
    """The result as lines for a terminal."""
    slower = result["bf16_images_per_s"] < result["images_per_s"]
    return "\n".join(
        [
            f"exact (fp32)  {result['images_per_s']:8.1f} images/s, "
            f"{result['ratio']:.2f} times plain; {100 * result['share_of_peak']:.0f} % of the "
            f"measured peak ({result['peak_GFLOPS']:.0f} GFLOPS)",
            f"bf16          {result['bf16_images_per_s']:8.1f} images/s, "
            f"{result['bf16_ratio']:.2f} times plain; largest change of a logit "
            f"{result['largest_change_of_a_logit']:.3f}"
            + ("; slower than exact here: use fp32" if slower else ""),
            f"plain         {result['baseline']:8.1f} images/s (eager fp32)",
        ]
    )
