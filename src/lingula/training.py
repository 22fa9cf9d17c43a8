"""The training loop, on the page (paper section 3.2), and what it saves."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from lingula import files, metrics
from lingula.config import Config
from lingula.data.batches import (
    Loaded,
    Memory,
    Radiographs,
    Rows,
    epoch_batches,
    from_features,
    load,
    training_batches,
)
from lingula.errors import InputError, examples
from lingula.labels import LabelSpace
from lingula.model.augment import Batch, Warp, draw_warps, mixup, warp_images
from lingula.model.checkpoint import newest_checkpoint, save_checkpoint, save_model
from lingula.model.losses import LOSSES, reduce_loss
from lingula.model.network import Architecture, Network
from lingula.model.optim import Schedule, adamw, learning_rate, parameter_groups, warmup_steps
from lingula.model.transfer import send
from lingula.prediction import score, score_features

log = logging.getLogger("lingula")

CHECKPOINT_SECONDS = 600.0  # also in the middle of an epoch, so that little work is ever lost
CHECK_EVERY = 20  # steps between looks at the loss; on a GPU each look waits for the device


@dataclass(frozen=True)
class Examples:
    """Images with targets (N, K) float32 in [0, 1] and the mask (N, K) of known cells.

    The last `outside` of them are from other tables. `features` (V, N, C, h, w) are those of a
    frozen encoder: of the images and, where V is 2, of their mirror images.
    """

    dataset: Radiographs
    targets: NDArray[np.float32]
    mask: NDArray[np.bool_]
    memory: Memory | None = None
    outside: int = 0
    features: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class RunState:
    """Where a run stands: the next step, the best epoch so far, this epoch's losses so far."""

    step: int = 0
    best_epoch: int | None = None
    best_score: float | None = None
    loss_sum: float = 0.0
    loss_steps: int = 0
    seconds: float = 0.0


def fit(
    network: Network,
    architecture: Architecture,
    classes: LabelSpace,
    config: Config,
    train: Examples,
    dev: Examples,
    *,
    run: Path,
    fabric: Fabric,
    facts: Mapping[str, Any],
    tick: Callable[[int, int, str], None],
) -> RunState:
    """Train to the end, resuming from the newest checkpoint in `run/checkpoints` if there is one.

    Every epoch is scored on dev; the best by dev mAP goes to `run/best`. Raises `RuntimeError`,
    naming the step, if the loss is not finite; the last good checkpoint stays.
    """
    world, seed = fabric.world_size, config.seed
    rows = Rows(len(train.dataset), train.outside, config.data.outside_ratio)
    schedule = plan(config, rows, world)
    layout = torch.channels_last if config.channels_last == "yes" else torch.contiguous_format
    network.to(memory_format=layout)
    groups = parameter_groups(
        network,
        lr=config.optim.lr,
        head_lr=config.optim.head_lr,
        weight_decay=config.optim.weight_decay,
    )
    model, optimizer = fabric.setup(network, adamw(groups))
    state = resume(run, network, optimizer)
    loss_of = LOSSES[config.loss.name]
    class_weights = weights_of(config.loss.class_weights, classes, fabric.device)
    targets = torch.from_numpy(train.targets).to(fabric.device)
    mask = torch.from_numpy(train.mask).to(fabric.device)
    batches = training_batches(
        rows,
        config.optim.batch_size,
        seed=seed,
        epochs=config.optim.epochs,
        start=state.step,
        rank=fabric.global_rank,
        world=world,
    )
    writer = SummaryWriter(run / "tensorboard", purge_step=state.step) if _first(fabric) else None
    losses = torch.tensor(state.loss_sum, device=fabric.device)
    resumed_at, began = state, time.monotonic()
    saved = began
    network.train()
    for loaded in _loaded(train, batches, config, state.step, schedule):
        # Dropout is the one draw from torch's global generator; seeding it by the step makes a
        # resumed run draw what the uninterrupted one drew.
        torch.manual_seed((seed << 32) + state.step * 1024 + fabric.global_rank)
        set_learning_rates(optimizer, schedule, state.step)
        batch = make_batch(loaded, targets, mask, config, state.step, schedule.steps_per_epoch)
        if train.features is None:
            prepared = network.prepare(batch.images).contiguous(memory_format=layout)
            batch = replace(batch, images=prepared)
        optimizer.zero_grad(set_to_none=True)
        loss = backward(model, batch, loss_of, class_weights, config, fabric)
        optimizer.step()

        losses = losses + loss.detach()
        now = time.monotonic()
        state = replace(
            state,
            step=state.step + 1,
            loss_steps=state.loss_steps + 1,
            seconds=resumed_at.seconds + now - began,
        )
        done = (state.step - resumed_at.step) * config.optim.batch_size
        epoch = (state.step - 1) // schedule.steps_per_epoch + 1
        tick(state.step, schedule.steps, _speed(epoch, config.optim.epochs, done, now - began))
        epoch_done = state.step % schedule.steps_per_epoch == 0
        due = now - saved > CHECKPOINT_SECONDS
        if epoch_done or due or state.step % CHECK_EVERY == 0:
            state = replace(state, loss_sum=_finite(losses, state.step))
        if epoch_done:
            state = finish_epoch(
                network,
                architecture,
                classes,
                config,
                dev,
                state,
                epoch,
                run=run,
                fabric=fabric,
                facts=facts,
                writer=writer,
            )
            losses = torch.zeros_like(losses)
        if (epoch_done or due) and _first(fabric):
            saved = time.monotonic()
            save_checkpoint(run / "checkpoints", _saved(state, network, optimizer), state.step)
    if writer is not None:
        writer.close()
    return state


def _loaded(
    train: Examples,
    batches: Iterator[NDArray[np.intp]],
    config: Config,
    start: int,
    schedule: Schedule,
) -> Iterator[Loaded]:
    """The batches' images, or the features of a frozen encoder in their place."""
    if train.features is None:
        return load(train.dataset, batches, memory=train.memory, workers=config.data.workers)
    return from_features(
        train.features,
        batches,
        config.augment.flip,
        seed=config.seed,
        start=start,
        steps_per_epoch=schedule.steps_per_epoch,
    )


def backward(
    model: Callable[..., Tensor],
    batch: Batch,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    class_weights: Tensor | None,
    config: Config,
    fabric: Fabric,
) -> Tensor:
    """Add the gradients of the batch's mean loss, piece by piece; the loss, detached.

    Every piece is divided by the whole batch's known cells, so pieces change the result only by
    the statistics of batch norm.
    """
    cells = batch.mask.sum().float()
    if fabric.world_size > 1:
        # Gradients are averaged over processes; dividing by the mean of their known cells makes
        # that the mean over all known cells, whatever each process got.
        cells = torch.as_tensor(fabric.all_reduce(cells, reduce_op="mean"))
    total = torch.zeros((), device=batch.mask.device)
    pieces = torch.arange(len(batch.images)).chunk(config.optim.accumulate)
    for number, rows in enumerate(pieces, start=1):
        waits = number < len(pieces)
        with fabric.no_backward_sync(model, enabled=waits):  # type: ignore[arg-type]
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            logits = model(batch.images[part], encoded=config.model.frozen)
            losses = loss_of(logits, batch.targets[part])
            loss = reduce_loss(losses, batch.mask[part], class_weights, cells)
            fabric.backward(loss)
        total = total + loss.detach()
    return total


def plan(config: Config, rows: Rows, world: int = 1) -> Schedule:
    """The run's steps and rates. A run too short for its warm-up was refused by `Config`."""
    o = config.optim
    per_epoch = len(epoch_batches(rows, o.batch_size, seed=config.seed, epoch=0, world=world))
    steps = per_epoch * o.epochs
    warmup = warmup_steps(o.warmup, o.warmup_epochs, per_epoch, steps)
    return Schedule(per_epoch, steps, warmup, o.warmup_lr, o.min_lr, o.warmup)


def set_learning_rates(optimizer: torch.optim.Optimizer, schedule: Schedule, step: int) -> None:
    """Give each parameter group its rate at `step`; the floors never exceed a group's peak."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(schedule, step, group["initial_lr"])


def make_batch(
    loaded: Loaded, targets: Tensor, mask: Tensor, config: Config, step: int, per_epoch: int
) -> Batch:
    """Warp and mix the images just loaded, on the device, and put their targets beside them."""
    if loaded.failures:
        reasons = examples((reason for _, reason in loaded.failures), 3)
        raise InputError(
            f"Training stopped at images that can't be read: {reasons}. `lingula data check TABLE` "
            "finds them all; the run continues from its last checkpoint once they are mended."
        )
    a = config.augment
    if config.model.frozen:
        index = send(loaded.indices, targets.device)
        batch = Batch(send(loaded.images, targets.device), targets[index], mask[index])
        return batch if a.mixup is None else mixup(batch, a.mixup, seed=config.seed, step=step)
    warp = Warp(a.scale, a.flip, a.rotation)
    matrices = draw_warps(warp, loaded.indices, seed=config.seed, epoch=step // per_epoch)
    device = targets.device
    index = send(loaded.indices, device)
    warped = warp_images(send(loaded.images, device), send(matrices, device))
    batch = Batch(warped, targets[index], mask[index])
    return batch if a.mixup is None else mixup(batch, a.mixup, seed=config.seed, step=step)


def weights_of(
    weights: Mapping[str, float], classes: LabelSpace, device: torch.device
) -> Tensor | None:
    """Class weights (K,) from names, or None where all are one; an unknown name is an error."""
    if not weights:
        return None
    values = torch.ones(len(classes), device=device)
    for name, weight in weights.items():
        values[classes.index(name)] = weight
    return values


def _finite(losses: Tensor, step: int) -> float:
    total = float(losses)
    if not math.isfinite(total):
        raise RuntimeError(
            f"The loss is not finite at step {step} (or up to {CHECK_EVERY} steps before). Lower "
            "optim.lr, or use precision=fp32. The last checkpoint is from before that."
        )
    return total


def finish_epoch(
    network: Network,
    architecture: Architecture,
    classes: LabelSpace,
    config: Config,
    dev: Examples,
    state: RunState,
    epoch: int,
    *,
    run: Path,
    fabric: Fabric,
    facts: Mapping[str, Any],
    writer: SummaryWriter | None,
) -> RunState:
    """Score dev, keep the model if it is the best so far, and append a row to metrics.jsonl.

    An epoch whose dev mAP is undefined (no class with positives) counts as worse than any other.
    """
    if dev.features is not None:
        found = score_features(network, dev.features[0], fabric, config.optim.batch_size)
    else:
        found = score(
            network,
            dev.dataset,
            fabric=fabric,
            batch_size=config.optim.batch_size,
            memory=dev.memory,
            workers=config.data.workers,
            channels_last=config.channels_last == "yes",
        )
    readable = np.isfinite(found.probabilities).all(1)
    by_class = metrics.classwise(
        found.probabilities[readable], dev.targets[readable], dev.mask[readable]
    )
    mean_ap, auroc = by_class.mAP, by_class.macro_auroc
    defined = math.isfinite(mean_ap)
    if state.best_epoch is None or (
        defined and (state.best_score is None or mean_ap > state.best_score)
    ):
        state = replace(state, best_epoch=epoch, best_score=mean_ap if defined else None)
        if _first(fabric):
            best = {"epoch": epoch, "dev_mAP": state.best_score}
            save_model(run / "best", network, architecture, classes.classes, {**facts, **best})
    row = {
        "epoch": epoch,
        "step": state.step,
        "loss": state.loss_sum / max(1, state.loss_steps),
        "dev_mAP": mean_ap if defined else None,
        "dev_AUROC": auroc if math.isfinite(auroc) else None,
        "best_epoch": state.best_epoch,
        "seconds": round(state.seconds, 1),
    }
    if writer is not None:
        _append_row(run / "metrics.jsonl", row)
        for key in ("loss", "dev_mAP", "dev_AUROC"):
            if row[key] is not None:
                writer.add_scalar(key, row[key], state.step)
        writer.flush()
    shown = "undefined" if not defined else f"{mean_ap:.4f}"
    log.info("Epoch %d: loss %.4f, dev mAP %s, AUROC %.4f.", epoch, row["loss"], shown, auroc)
    return replace(state, loss_sum=0.0, loss_steps=0)


def _append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add an epoch's row; rows of this epoch or later, left by a killed run, go first."""
    kept = [old for old in read_rows(path) if old["epoch"] < row["epoch"]]
    files.write_text(path, "".join(json.dumps(r) + "\n" for r in [*kept, dict(row)]))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, or none if there is no such file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _saved(state: RunState, network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {
        "format": 1,
        "state": asdict(state),
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
    }


def resume(run: Path, network: nn.Module, optimizer: torch.optim.Optimizer) -> RunState:
    """Load the newest readable checkpoint into network and optimizer; a new state if none."""
    saved = newest_checkpoint(run / "checkpoints")
    if saved is None:
        return RunState()
    network.load_state_dict(saved["network"])
    optimizer.load_state_dict(saved["optimizer"])
    state = RunState(**saved["state"])
    log.info("Continuing at step %d.", state.step)
    return state


def _first(fabric: Fabric) -> bool:
    return bool(fabric.global_rank == 0)


def _speed(epoch: int, epochs: int, images: int, seconds: float) -> str:
    return f"epoch {epoch}/{epochs}, {images / max(seconds, 1e-9):.0f} images/s"
