"""The training loop, on the page (paper section 3.2), and what it saves."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from lingula.loading.batches import Loaded, Memory, Radiographs, from_features, load
from lingula.loading.order import Rows, training_batches
from lingula.model.checkpoint import newest_checkpoint, save_checkpoint, save_model
from lingula.model.devices import layout_of
from lingula.model.network import Architecture, Network
from lingula.scores import metrics
from lingula.scoring.scoring import score, score_features
from lingula.settings.config import Config
from lingula.settings.label_space import LabelSpace
from lingula.system.errors import StoppedError, examples
from lingula.system.signals import Asked, Interrupted, never
from lingula.training.augment import Batch
from lingula.training.losses import LOSSES
from lingula.training.optim import Schedule, adamw, parameter_groups
from lingula.training.run_folder import append_row
from lingula.training.steps import (
    backward,
    make_batch,
    plan,
    seed_of,
    set_learning_rates,
    weights_of,
)

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
    asked: Asked = never,
) -> RunState:
    """Train to the end, resuming from the newest checkpoint in `run/checkpoints` if there is one.

    Every epoch is scored on dev; the best by dev mAP goes to `run/best`. Once `asked` to stop, it
    saves a checkpoint at the next step and raises `Interrupted`. Raises `StoppedError`, naming the
    step, if the loss is not finite; the last good checkpoint stays.
    """
    world, seed, o = fabric.world_size, config.seed, config.optim
    rows = Rows(len(train.dataset), train.outside, config.data.outside_ratio)
    schedule = plan(config, rows, world)
    network.to(memory_format=layout_of(config)).train()
    rates = {"lr": o.lr, "head_lr": o.head_lr, "weight_decay": o.weight_decay}
    model, optimizer = fabric.setup(network, adamw(parameter_groups(network, **rates)))
    state = resume(run, network, optimizer)
    class_weights = weights_of(config.loss.class_weights, classes, fabric.device)
    targets, mask = (torch.from_numpy(a).to(fabric.device) for a in (train.targets, train.mask))
    batches = training_batches(
        rows,
        o.batch_size,
        seed=seed,
        epochs=o.epochs,
        start=state.step,
        rank=fabric.global_rank,
        world=world,
    )
    writer = SummaryWriter(run / "tensorboard", purge_step=state.step) if _first(fabric) else None
    end = partial(
        finish_epoch,
        network,
        architecture,
        classes,
        config,
        dev,
        run=run,
        fabric=fabric,
        facts=facts,
        writer=writer,
        asked=asked,
    )
    if state.loss_steps and state.step % schedule.steps_per_epoch == 0:
        state = end(state, state.step // schedule.steps_per_epoch)  # stopped while scoring dev
    losses = torch.tensor(state.loss_sum, device=fabric.device)
    resumed_at, began, saved = state, time.monotonic(), time.monotonic()
    loading = _loaded(train, batches, config, state.step, schedule)
    for loaded in _until(asked, loading):
        # Dropout is the one draw from torch's global generator; seeding it by the step makes a
        # resumed run draw what the uninterrupted one drew.
        torch.manual_seed(seed_of(seed, state.step, fabric.global_rank))
        set_learning_rates(optimizer, schedule, state.step)
        batch = make_batch(
            loaded,
            targets,
            mask,
            config,
            state.step,
            schedule.steps_per_epoch,
            fabric.global_rank,
            world,
        )
        batch = batch if train.features is not None else _prepared(batch, network, config)
        optimizer.zero_grad(set_to_none=True)
        losses = losses + backward(
            model, batch, LOSSES[config.loss.name], class_weights, config, fabric
        )
        optimizer.step()

        now = time.monotonic()
        state = replace(
            state,
            step=state.step + 1,
            loss_steps=state.loss_steps + 1,
            seconds=resumed_at.seconds + now - began,
        )
        tick(state.step, schedule.steps, _speed(state, resumed_at, schedule, config))
        epoch_done = state.step % schedule.steps_per_epoch == 0
        due = now - saved > CHECKPOINT_SECONDS
        look = epoch_done or state.step % CHECK_EVERY == 0
        stop = _agreed(asked, look, fabric)
        if look or due or stop:
            state = replace(state, loss_sum=_finite(losses, state.step))
        if epoch_done:
            average_statistics(network, fabric)  # before a checkpoint, which keeps one process's
            if not stop:
                state, stop = _ended(end, state, schedule, asked)
                losses = torch.zeros_like(losses)
        if epoch_done or due or stop:
            saved = time.monotonic()
            _keep(run, state, network, optimizer, fabric)
        if stop:
            _leave(stop, state, fabric, loading)
    if state.step < schedule.steps:
        here = replace(state, loss_sum=_finite(losses, state.step))
        _keep(run, here, network, optimizer, fabric)
        _leave(asked() or 0, here, fabric, loading)
    if writer is not None:
        writer.close()
    return state


def _prepared(batch: Batch, network: Network, config: Config) -> Batch:
    return replace(batch, images=network.prepare(batch.images, layout_of(config)))


def _until(asked: Asked, loading: Iterator[Loaded]) -> Iterator[Loaded]:
    """The batches, up to where decoding processes died of the signal that asks to stop."""
    try:
        yield from loading
    except StoppedError:
        if not asked():
            raise


def _loaded(
    train: Examples,
    batches: Iterator[NDArray[np.intp]],
    config: Config,
    start: int,
    schedule: Schedule,
) -> Generator[Loaded, None, None]:
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


def _ended(
    end: Callable[[RunState, int], RunState], state: RunState, schedule: Schedule, asked: Asked
) -> tuple[RunState, int]:
    """The state after the end of its epoch and 0; or as it was, and the signal that came."""
    try:
        return end(state, state.step // schedule.steps_per_epoch), 0
    except (Interrupted, StoppedError):
        number = asked()
        if not number:
            raise
        return state, number


def _leave(
    stop: int, state: RunState, fabric: Fabric, loading: Generator[Loaded, None, None]
) -> NoReturn:
    """Stop where a checkpoint was saved, all processes together."""
    loading.close()
    fabric.barrier()  # the launcher ends the others once one is gone
    log.info("Asked to stop; step %d is saved.", state.step)
    raise Interrupted(stop)


def _agreed(asked: Asked, look: bool, fabric: Fabric) -> int:
    """The signal to stop for, or 0; several processes agree on it, where all of them look."""
    number = asked() or 0
    if fabric.world_size == 1 or not look:
        return number if fabric.world_size == 1 else 0
    everyone = fabric.all_reduce(torch.tensor(number, device=fabric.device), reduce_op="max")
    return int(torch.as_tensor(everyone))


def _finite(losses: Tensor, step: int) -> float:
    total = float(losses)
    if not math.isfinite(total):
        raise StoppedError(
            f"The loss is not finite at step {step} (or up to {CHECK_EVERY} steps before). The "
            "last checkpoint and the best model are from before that. The same settings will end "
            "here again: lower optim.lr, or use precision=fp32, with another --out "
            "(model.weights=RUN starts from the best model)."
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
    asked: Asked = never,
) -> RunState:
    """Score dev, keep the model if it is the best so far, and append a row to metrics.jsonl.

    Where the dev mAP is undefined in every epoch (no class has positives there), the last epoch's
    model is kept. Several processes give it the same network (`average_statistics`).
    Raises `Interrupted` if asked to stop while dev is scored (by a single process).
    """

    def heed(done: int, total: int) -> None:
        number = asked() if fabric.world_size == 1 else None
        if number:
            raise Interrupted(number)

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
            layout=layout_of(config),
            tick=heed,
        )
    readable = np.isfinite(found.probabilities).all(1)
    if found.failures and dev.memory is None:  # those in memory were named when they were read
        told = examples(found.failures.values(), 3)
        log.warning("%d dev images can't be read and are left out: %s", len(found.failures), told)
    by_class = metrics.classwise(
        found.probabilities[readable], dev.targets[readable], dev.mask[readable]
    )
    mean_ap, auroc = by_class.mAP, by_class.macro_auroc
    defined = math.isfinite(mean_ap)
    if state.best_score is None or (defined and mean_ap > state.best_score):
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
        append_row(run / "metrics.jsonl", row)
        for key in ("loss", "dev_mAP", "dev_AUROC"):
            if row[key] is not None:
                writer.add_scalar(key, row[key], state.step)
        writer.flush()
    shown = f"{mean_ap:.4f}" if defined else "undefined (the last epoch is kept)"
    log.info("Epoch %d: loss %.4f, dev mAP %s, AUROC %.4f.", epoch, row["loss"], shown, auroc)
    return replace(state, loss_sum=0.0, loss_steps=0)


def average_statistics(network: nn.Module, fabric: Fabric) -> None:
    """Give all processes the mean of their batch norms' running statistics.

    Each has normalised other images since the last step. After this they score one network, and it
    is the one that the first process saves.
    """
    if fabric.world_size == 1:
        return
    for module in network.modules():
        if module.training:  # what is frozen is the same everywhere, and stays as it is
            for name, values in module.named_buffers(recurse=False):
                if name in ("running_mean", "running_var"):
                    values.copy_(torch.as_tensor(fabric.all_reduce(values, reduce_op="mean")))


def _keep(
    run: Path,
    state: RunState,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    fabric: Fabric,
) -> None:
    """The first process saves what a run is resumed from."""
    saved = {
        "format": 1,
        "state": asdict(state),
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    if _first(fabric):
        save_checkpoint(run / "checkpoints", saved, state.step)


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


def _speed(state: RunState, since: RunState, schedule: Schedule, config: Config) -> str:
    epoch = (state.step - 1) // schedule.steps_per_epoch + 1
    images = (state.step - since.step) * config.optim.batch_size
    seconds = max(state.seconds - since.seconds, 1e-9)
    return f"epoch {epoch}/{config.optim.epochs}, {images / seconds:.0f} images/s"
