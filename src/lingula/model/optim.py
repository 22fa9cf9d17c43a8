"""AdamW with weight-decay groups, and the learning rate as a function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn


def parameter_groups(
    network: nn.Module, *, lr: float, head_lr: float, weight_decay: float
) -> list[dict[str, object]]:
    """Four groups: encoder or head, decayed or not (biases, norms, other 1-D parameters).

    `initial_lr` is each group's peak; `head_lr` is a factor on `lr` for all but the encoder.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            key = (name.startswith("encoder."), parameter.ndim > 1)
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": lr * (1.0 if encoder else head_lr),
            "initial_lr": lr * (1.0 if encoder else head_lr),
            "weight_decay": weight_decay if decayed else 0.0,
        }
        for (encoder, decayed), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def adamw(groups: list[dict[str, object]]) -> torch.optim.AdamW:
    """AdamW in its fused form, which is the faster one on CPU and CUDA alike."""
    return torch.optim.AdamW(groups, fused=True)


def learning_rate(
    step: int, *, peak: float, steps: int, warmup: int, warmup_lr: float, min_lr: float
) -> float:
    """Linear warm-up from `warmup_lr` to `peak`, then a cosine to `min_lr` at the last step.

    A function of the step alone, so that a resumed run has the uninterrupted run's rates.
    """
    if step < warmup:
        return warmup_lr + (peak - warmup_lr) * step / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return min_lr + (peak - min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def warmup_steps(epochs: float | None, steps_per_epoch: int, steps: int) -> int:
    """Warm-up length in steps: given in epochs, or 5 % of all steps."""
    if epochs is None:
        return math.ceil(0.05 * steps) if steps > 1 else 0
    return round(epochs * steps_per_epoch)
