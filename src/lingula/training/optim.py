"""AdamW with weight-decay groups, and the steps of a run with their learning rates."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor, nn

from lingula.loading.order import Rows, epoch_batches
from lingula.model.network import Classifier
from lingula.settings.config import Config
from lingula.system.errors import InputError


def parameter_groups(
    network: nn.Module, *, lr: float, head_lr: float, weight_decay: float
) -> list[dict[str, object]]:
    """Four groups: encoder or head, decayed or not (`is_decayed`).

    `initial_lr` is each group's peak; `head_lr` is a factor on `lr` for all but the encoder.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            place, _, last = name.rpartition(".")
            decayed = is_decayed(network.get_submodule(place), last, parameter)
            groups.setdefault((name.startswith("encoder."), decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": lr * (1.0 if encoder else head_lr),
            "initial_lr": lr * (1.0 if encoder else head_lr),
            "weight_decay": weight_decay if decayed else 0.0,
        }
        for (encoder, decayed), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def is_decayed(module: nn.Module, name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: by what a parameter of `module` is, not by its shape.

    It applies to the weights of convolutions, linear maps and classifiers. It does not apply
    to biases, norms, position embeddings, tokens, layer scales and tables of relative positions.
    """
    if isinstance(module, Classifier):
        return name == "weight"
    if isinstance(module, nn.Embedding) or "norm" in type(module).__name__.lower():
        return False
    return parameter.ndim > 1 and (name == "weight" or name.endswith("_weight"))


def adamw(groups: list[dict[str, object]]) -> torch.optim.AdamW:
    """AdamW in its fused form, which is the faster one on CPU and CUDA alike."""
    return torch.optim.AdamW(groups, fused=True)


@dataclass(frozen=True)
class Schedule:
    """Steps of a run and the shape of its learning rate.

    Attributes:
        steps_per_epoch: optimiser steps per epoch.
        steps: of the whole run.
        warmup: steps of the warm-up, for `albef` a number of its ticks.
        warmup_lr: the rate that the warm-up starts from, or stays at.
        min_lr: the rate that the cosine ends at.
        kind: `linear`, `constant` or `albef`.
    """

    steps_per_epoch: int
    steps: int
    warmup: int
    warmup_lr: float
    min_lr: float
    kind: str = "linear"


# ALBEF's loop, from which the paper's laboratory took its own, moves the rate once in so many steps
# of the first epoch, and once per epoch after that.
ALBEF_TICK = 100


def learning_rate(schedule: Schedule, step: int, peak: float) -> float:
    """The rate at a step, a function of the step alone, so that a resumed run has the same rates.

    `linear` climbs from `warmup_lr` to `peak`; `constant` stays at `warmup_lr` for the warm-up.
    Then both follow a cosine to `min_lr` at the last step. `albef` climbs in ticks of 100 steps
    within the first epoch and takes the cosine over all epochs, one value per epoch.
    """
    low, floor = min(schedule.warmup_lr, peak), min(schedule.min_lr, peak)
    if schedule.kind == "albef":
        epoch = step // schedule.steps_per_epoch
        if epoch == 0:
            tick = min(step // ALBEF_TICK, schedule.warmup)
            return low + (peak - low) * (tick / schedule.warmup if schedule.warmup else 1.0)
        return _cosine(peak, floor, epoch / (schedule.steps / schedule.steps_per_epoch))
    if step < schedule.warmup:
        climbed = 0.0 if schedule.kind == "constant" else step / schedule.warmup
        return low + (peak - low) * climbed
    return _cosine(peak, floor, (step - schedule.warmup) / max(1, schedule.steps - schedule.warmup))


def _cosine(peak: float, floor: float, done: float) -> float:
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def warmup_steps(kind: str, epochs: float | None, steps_per_epoch: int, steps: int) -> int:
    """Length of the warm-up in steps: given in epochs, or 5 % of all steps.

    For `albef`, whose "epochs" of warm-up are ticks, the number of ticks.
    """
    if kind == "albef":
        return round(epochs) if epochs is not None else 20
    if epochs is None:
        return math.ceil(0.05 * steps) if steps > 1 else 0
    return round(epochs * steps_per_epoch)


def plan(config: Config, rows: Rows, world: int = 1) -> Schedule:
    """The run's steps and rates; `Config` refuses a run that is too short for its warm-up.

    Raises `InputError` if a process would get fewer than two rows per step or per piece.
    """
    o = config.optim
    if o.batch_size < 2 * world * o.accumulate:
        raise InputError(
            f"optim.batch_size={o.batch_size} can't be divided among {world} processes in "
            f"optim.accumulate={o.accumulate} pieces of two or more images: optim.batch_size="
            f"{2 * world * o.accumulate} or more, or fewer pieces or processes."
        )
    per_epoch = len(epoch_batches(rows, o.batch_size, seed=config.seed, epoch=0, world=world))
    steps = per_epoch * o.epochs
    warmup = warmup_steps(o.warmup, o.warmup_epochs, per_epoch, steps)
    return Schedule(per_epoch, steps, warmup, o.warmup_lr, o.min_lr, o.warmup)


def set_learning_rates(optimizer: torch.optim.Optimizer, schedule: Schedule, step: int) -> None:
    """Give each parameter group its rate at `step`; the floors never exceed a group's peak."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(schedule, step, group["initial_lr"])
