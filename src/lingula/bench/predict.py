"""`lingula bench predict`: images a second of scoring in fp32 and bf16, beside a plain model."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lingula.bench.train import network_of, operations, paper_sized, peak_of, timed
from lingula.model.devices import autocast_to, layout_of, make_fabric, resolve_device
from lingula.scoring.folding import for_scoring
from lingula.scoring.scoring import VIEWS, score_batch
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

    Plain is the same network in eager fp32 on (B, 3, H, W), normalised an image at a time.

    Args:
        encoder: any timm name.
        image_size: pixels, square.
        batch_size: images at once.
        layers: decoder layers.
        width: of the decoder.
        tta: test-time views; the plain way has the same ones.
        rounds: each is timed so often, in turns; medians are given.
        device: `auto`, `cpu` or `cuda`.

    Returns:
        Images a second of exact, bf16 and plain, the ratios to plain, the share of the machine's
        peak that exact reaches (measured in the same run by matrix products and convolutions), and
        the largest change of a logit from exact to bf16 (of a network with random weights).
    """
    if rounds < 1 or tta not in VIEWS:
        raise InputError(f"rounds is at least 1 and tta one of {', '.join(VIEWS)}.")
    wanted = paper_sized(encoder, image_size, layers, width, device)
    films = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (batch_size, 1, image_size, image_size), np.uint8)
    )
    kinds = {"exact": "fp32", "bf16": "bf16"}
    runs = {name: _ours(wanted, films, tta, kind) for name, kind in kinds.items()}
    runs["plain"] = _plain(wanted, films, tta)
    flops = operations(runs["exact"])
    found = {name: run() for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    exact = resolve_device(vary(wanted, precision="fp32"))
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(timed(run, 1, exact.device))
    rate = {name: batch_size / statistics.median(every) for name, every in times.items()}
    moved = torch.logit(found["bf16"]) - torch.logit(found["exact"])
    peak = peak_of(exact, rounds)
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
        "device": exact.device,
        "threads": torch.get_num_threads(),
    }


def _ours(config: Config, films: Tensor, tta: str, precision: str) -> Callable[[], Tensor]:
    """Scoring as `lingula predict` does it, of images that are decoded."""
    settled = resolve_device(vary(config, precision=precision))
    fabric = make_fabric(settled.device, precision)
    layout = layout_of(settled)
    built = network_of(settled).to(fabric.device)
    network = for_scoring(built, settled.model.image_size, layout, autocast_to(fabric))
    keys = list(range(len(films)))

    def forward(images: Tensor) -> Tensor:
        with fabric.autocast():
            logits: Tensor = network(images)
        return logits

    def run() -> Tensor:
        images = films.to(fabric.device, non_blocking=True)
        return score_batch(network, images, VIEWS[tta], "geometric", forward, keys, layout).cpu()

    return run


def _plain(config: Config, films: Tensor, tta: str) -> Callable[[], Tensor]:
    settled = resolve_device(vary(config, precision="fp32"))
    network = network_of(settled).to(settled.device).eval()
    mean = torch.tensor((0.485, 0.456, 0.406))[:, None, None]
    std = torch.tensor((0.229, 0.224, 0.225))[:, None, None]

    def run() -> Tensor:
        with torch.no_grad():
            total = torch.zeros(())
            for view in VIEWS[tta]:
                seen = view(films, list(range(len(films))))
                ready = [(film.expand(3, -1, -1) / 255.0 - mean) / std for film in seen]
                total = total + network(torch.stack(ready).to(settled.device)).sigmoid().cpu()
            return total.double() / len(VIEWS[tta])

    return run


def to_text(found: dict[str, Any]) -> str:
    """The result as lines for a terminal."""
    slower = found["bf16_images_per_s"] < found["images_per_s"]
    return "\n".join(
        [
            f"exact (fp32)  {found['images_per_s']:8.1f} images/s, "
            f"{found['ratio']:.2f} times plain; {100 * found['share_of_peak']:.0f} % of the "
            f"measured peak ({found['peak_GFLOPS']:.0f} GFLOPS)",
            f"bf16          {found['bf16_images_per_s']:8.1f} images/s, "
            f"{found['bf16_ratio']:.2f} times plain; largest change of a logit "
            f"{found['largest_change_of_a_logit']:.3f}"
            + ("; slower than exact here: use fp32" if slower else ""),
            f"plain         {found['baseline']:8.1f} images/s (eager fp32)",
        ]
    )
