"""The training loop, on the page (paper section 3.2): steps, the end of an epoch, checkpoints."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from lingula.loading.batches import Loaded
from lingula.model.checkpoint import newest_checkpoint, save_checkpoint, save_model
from lingula.model.devices import layout_of
from lingula.model.network import Architecture, Network
from lingula.scores import metrics
from lingula.scoring.scoring import score, score_features
from lingula.settings.config import Config
from lingula.settings.label_space import LabelSpace
from lingula.system.errors import StoppedError, examples
from lingula.system.signals import Asked, Interrupted, never
from lingula.training.averaging import WeightAverage
from lingula.training.examples import Examples, load_batches, rows_of_epoch
from lingula.training.optim import adamw, parameter_groups, plan, set_learning_rates
from lingula.training.run_folder import append_row
from lingula.training.steps import LOSSES, backward, make_batch, seed_of, weights_of

log = logging.getLogger("lingula")

CHECKPOINT_SECONDS = 600.0  # also in the middle of an epoch, so that little work is ever lost
CHECK_EVERY = 20  # steps between looks at the loss; on a GPU each look waits for the device


@dataclass(frozen=True)
class Training:
    """A training that is ready for its first step.

    Attributes:
        config: the settings, with device and number format resolved.
        space: the classes, in the order of the targets.
        network: the model at its start, on its device.
        architecture: what it was built from.
        facts: what `model.json` says besides.
        train: the images to train on.
        dev: the images that each epoch is scored on.
        run: the run folder.
        fabric: the device, and the processes that train together.
        tick: told of every step: how many are done, of how many, and a note.
        asked: tells the signal by which the process was asked to stop, or None.
    """

    config: Config
    space: LabelSpace
    network: Network
    architecture: Architecture
    facts: Mapping[str, Any]
    train: Examples
    dev: Examples
    run: Path
    fabric: Fabric
    tick: Callable[[int, int, str], None] = lambda done, total, note: None
    asked: Asked = never


@dataclass(frozen=True)
class RunState:
    """How far a run is: the next step, the epoch kept so far, this epoch's losses so far."""

    step: int = 0
    best_epoch: int | None = None
    best_score: float | None = None
    loss_sum: float = 0.0
    loss_steps: int = 0
    seconds: float = 0.0

    def after_step(self, seconds: float) -> RunState:
        """The state one step later; the sum of the losses is left to who looks at it."""
        return replace(self, step=self.step + 1, loss_steps=self.loss_steps + 1, seconds=seconds)


def fit(training: Training) -> RunState:
    """Train to the end, resuming from the newest checkpoint in `run/checkpoints` if there is one.

    Every epoch is scored on dev; the best by dev mAP goes to `run/best`, or the newest, as
    `optim.keep` says. Once asked to stop, it saves a checkpoint at the next step and raises
    `Interrupted`. Raises `StoppedError`, naming the step, if the loss is not finite; the last good
    checkpoint stays.
    """
    config, train, network = training.config, training.train, training.network
    fabric, rank, run = training.fabric, training.fabric.global_rank, training.run
    schedule = plan(config, rows_of_epoch(train, config), fabric.world_size)
    model, optimizer, average = set_up(training)
    targets, mask = (torch.from_numpy(a).to(fabric.device) for a in (train.targets, train.mask))
    class_weights = weights_of(config.loss.class_weights, training.space, fabric.device)

    state = begin = resume(run, network, optimizer, average)
    stopping = Stopping(training.asked, fabric)
    writer = SummaryWriter(run / "tensorboard", purge_step=state.step) if rank == 0 else None
    if state.loss_steps and state.step % schedule.steps_per_epoch == 0:  # stopped while scoring dev
        epoch = state.step // schedule.steps_per_epoch
        state = finish_epoch(training, state, epoch, average, writer)
    losses = torch.tensor(state.loss_sum, device=fabric.device)
    began = saved = time.monotonic()
    loading = load_batches(train, config, fabric, schedule, start=state.step)
    for loaded in stopping.until_stopped(loading):
        # Dropout is the one draw from torch's global generator; seeding it by the step makes a
        # resumed run draw what the uninterrupted one drew.
        torch.manual_seed(seed_of(config.seed, state.step, rank))
        set_learning_rates(optimizer, schedule, state.step)
        epoch = state.step // schedule.steps_per_epoch
        batch = make_batch(loaded, targets, mask, network, config, fabric, state.step, epoch)
        optimizer.zero_grad(set_to_none=True)
        losses = losses + backward(
            model, batch, LOSSES[config.loss.name], class_weights, config, fabric
        )
        optimizer.step()
        average.update(state.step)

        now = time.monotonic()
        state = state.after_step(begin.seconds + now - began)
        training.tick(state.step, schedule.steps, speed(state, begin, epoch + 1, config))
        epoch_ends = state.step % schedule.steps_per_epoch == 0
        look = epoch_ends or state.step % CHECK_EVERY == 0
        due = now - saved > CHECKPOINT_SECONDS
        stopping.agree(look)
        if look or due or stopping.number:
            state = replace(state, loss_sum=check_finite(losses, state.step))
        if epoch_ends:
            average.average_over_processes(fabric)  # a checkpoint keeps one process's
        if epoch_ends and not stopping.number:
            with stopping.cut_short():
                state = finish_epoch(training, state, epoch + 1, average, writer)
            losses = torch.full_like(losses, state.loss_sum)  # 0 unless it was cut short
        if stopping.number:
            break
        if epoch_ends or due:
            saved = time.monotonic()
            save_state(training, state, optimizer, average)
    if stopping.number:
        state = replace(state, loss_sum=check_finite(losses, state.step))
        save_state(training, state, optimizer, average)
        stopping.leave(state.step, loading)
    if writer is not None:
        writer.close()
    return state


def set_up(
    training: Training,
) -> tuple[Callable[..., Tensor], torch.optim.Optimizer, WeightAverage]:
    """The network on its device, in training mode; its optimiser; the average of its weights."""
    config, network = training.config, training.network
    network.to(memory_format=layout_of(config)).train()
    rates = config.optim.model_dump(include={"lr", "head_lr", "weight_decay"})
    groups = parameter_groups(network, **rates)
    model, optimizer = training.fabric.setup(network, adamw(groups))
    return model, optimizer, WeightAverage(network, config.optim.ema)


def speed(state: RunState, begin: RunState, epoch: int, config: Config) -> str:
    """The epoch, and the images per second since the run was begun or resumed, for the bar."""
    images = (state.step - begin.step) * config.optim.batch_size
    seconds = max(state.seconds - begin.seconds, 1e-9)
    return f"epoch {epoch}/{config.optim.epochs}, {images / seconds:.0f} images/s"


def check_finite(losses: Tensor, step: int) -> float:
    """The sum of the losses so far; `StoppedError` if it is not finite."""
    total = float(losses)
    if not math.isfinite(total):
        raise StoppedError(
            f"The loss is not finite at step {step} (or up to {CHECK_EVERY} steps before). The "
            "last checkpoint and the best model are from before that. The same settings will end "
            "here again: lower optim.lr, or use precision=fp32, with another --out "
            "(model.weights=RUN starts from the best model)."
        )
    return total


class Stopping:
    """Stopping before the end, when a signal asks for it: all processes at the same step."""

    def __init__(self, asked: Asked, fabric: Fabric) -> None:
        self.asked, self.fabric = asked, fabric
        self.number = 0  # of the signal, once it is agreed to stop

    def agree(self, look: bool) -> None:
        """Note whether to stop now; several processes agree on it, at the steps where they look."""
        if self.fabric.world_size == 1:
            self._note()
        elif look:
            own = torch.tensor(self.asked() or 0, device=self.fabric.device)
            self.number = int(torch.as_tensor(self.fabric.all_reduce(own, reduce_op="max")))

    def until_stopped(self, loading: Iterator[Loaded]) -> Iterator[Loaded]:
        """The batches, up to where decoding processes died of the signal that asks to stop."""
        try:
            yield from loading
        except StoppedError:
            if not self._note():
                raise

    @contextlib.contextmanager
    def cut_short(self) -> Iterator[None]:
        """Leave the block where the signal interrupts it; what is in it is done again later."""
        try:
            yield
        except (Interrupted, StoppedError):
            if not self._note():
                raise

    def _note(self) -> bool:
        self.number = self.asked() or 0
        return self.number > 0

    def leave(self, step: int, loading: Generator[Loaded, None, None]) -> NoReturn:
        """End the training where its checkpoint was saved, all processes together."""
        loading.close()
        self.fabric.barrier()  # the launcher ends the others once one is gone
        log.info("Asked to stop; step %d is saved.", step)
        raise Interrupted(self.number)


def finish_epoch(
    training: Training,
    state: RunState,
    epoch: int,
    average: WeightAverage,
    writer: SummaryWriter | None,
) -> RunState:
    """Score dev, keep the model if it is the best so far, and append a row to metrics.jsonl.

    With `optim.keep=last` each epoch's model takes the place of the one before, whatever its score.
    If the dev mAP is undefined in every epoch (no class has positives there), that happens too.
    With `optim.ema` the model is the one with the averaged weights. All processes score the same.
    Raises `Interrupted` if asked to stop while dev is scored (by a single process).
    """
    with average.applied():
        by_class = score_dev(training)
        mean_ap, auroc = by_class.mAP, by_class.macro_auroc
        defined = math.isfinite(mean_ap)
        keep_last = training.config.optim.keep == "last"
        if keep_last or state.best_score is None or (defined and mean_ap > state.best_score):
            state = replace(state, best_epoch=epoch, best_score=mean_ap if defined else None)
            if training.fabric.global_rank == 0:
                save_model(
                    training.run / "best",
                    training.network,
                    training.architecture,
                    training.space.classes,
                    {**training.facts, "epoch": epoch, "dev_mAP": state.best_score},
                )
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
        append_row(training.run / "metrics.jsonl", row)
        for key in ("loss", "dev_mAP", "dev_AUROC"):
            if row[key] is not None:
                writer.add_scalar(key, row[key], state.step)
        writer.flush()
    shown = f"{mean_ap:.4f}" if defined else "undefined (the last epoch is kept)"
    log.info("Epoch %d: loss %.4f, dev mAP %s, AUROC %.4f.", epoch, row["loss"], shown, auroc)
    return replace(state, loss_sum=0.0, loss_steps=0)


def score_dev(training: Training) -> metrics.Classwise:
    """The figures of the model as it is now on the dev images that can be read."""
    config, dev, fabric = training.config, training.dev, training.fabric

    def heed(done: int, total: int) -> None:
        number = training.asked() if fabric.world_size == 1 else None
        if number:
            raise Interrupted(number)

    if dev.features is not None:
        found = score_features(training.network, dev.features[0], fabric, config.optim.batch_size)
    else:
        found = score(
            training.network,
            dev.dataset,
            fabric=fabric,
            batch_size=config.optim.batch_size,
            memory=dev.memory,
            workers=config.data.workers,
            layout=layout_of(config),
            tick=heed,
        )
    if found.failures and dev.memory is None:  # those in memory were named when they were read
        told = examples(found.failures.values(), 3)
        log.warning("%d dev images can't be read and are left out: %s", len(found.failures), told)
    readable = np.isfinite(found.probabilities).all(1)
    return metrics.measure_classes(
        found.probabilities[readable], dev.targets[readable], dev.mask[readable]
    )


def save_state(
    training: Training, state: RunState, optimizer: torch.optim.Optimizer, average: WeightAverage
) -> None:
    """Write a checkpoint, from which `resume` goes on; the first process does it."""
    saved = {
        "format": 1,
        "state": asdict(state),
        "network": training.network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average.values,
    }
    if training.fabric.global_rank == 0:
        save_checkpoint(training.run / "checkpoints", saved, state.step)


def resume(
    run: Path, network: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage
) -> RunState:
    """Load the newest readable checkpoint into the three; a new state if there is none."""
    saved = newest_checkpoint(run / "checkpoints")
    if saved is None:
        return RunState()
    network.load_state_dict(saved["network"])
    optimizer.load_state_dict(saved["optimizer"])
    average.load(saved.get("average", {}))  # older checkpoints have none
    state = RunState(**saved["state"])
    log.info("Continuing at step %d.", state.step)
    return state
