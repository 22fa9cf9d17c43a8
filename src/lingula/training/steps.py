"""One step of training: its batch warped, mixed and normalised, and the gradients of its loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.distributed
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lingula.loading.batches import Loaded
from lingula.loading.order import draws
from lingula.loading.warp import Warp, draw_warps, warp_levels
from lingula.model.devices import layout_of, send
from lingula.model.network import Network
from lingula.settings.config import Config
from lingula.settings.label_space import LabelSpace
from lingula.system.errors import InputError, examples


def seed_of(seed: int, step: int, rank: int) -> int:
    """The seed of a step's dropout: mixed, since torch's CPU generator takes 32 bits of it."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])


def make_batch(
    loaded: Loaded,
    targets: Tensor,
    mask: Tensor,
    network: Network,
    config: Config,
    fabric: Fabric,
    step: int,
    epoch: int,
) -> Batch:
    """Warp, mix and normalise the images just loaded, on the device, with their labels.

    `targets` and `mask` (N, K) are those of all images that are trained on. The features of a
    frozen encoder are only mixed.
    """
    if loaded.failures:
        reasons = examples((reason for _, reason in loaded.failures), 3)
        raise InputError(
            f"Training stopped at images that can't be read: {reasons}. `lingula data check TABLE` "
            "finds them all; the run continues from its last checkpoint once they are fixed."
        )
    a, device = config.augment, targets.device
    images, index = send(loaded.images, device), send(loaded.indices, device)
    if not config.model.frozen:
        warp = Warp(a.scale, a.flip, a.rotation)
        matrices = draw_warps(warp, loaded.indices, seed=config.seed, epoch=epoch)
        images = warp_levels(images, send(matrices, device))
    batch = Batch(images, (Labels(targets[index], mask[index]),))
    if a.mixup is not None:
        rank, world = fabric.global_rank, fabric.world_size
        batch = mixup(batch, a.mixup, seed=config.seed, step=step, rank=rank, world=world)
    if config.model.frozen:
        return batch
    return replace(batch, images=network.prepare(batch.images, layout_of(config)))


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


def backward(
    model: Callable[..., Tensor],
    batch: Batch,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    class_weights: Tensor | None,
    config: Config,
    fabric: Fabric,
) -> Tensor:
    """Add the gradients of the batch's mean loss, piece by piece; the loss, detached.

    A mixture's loss is the sum of its labels' losses, each over the cells that it knows and times
    its share. It is divided by the known cells of the whole batch, counted by the same shares, so
    pieces change the result only by the statistics of batch norm. What a masked cell's target
    contains, NaN too, changes nothing. With several processes the loss returned is that of all.
    """
    parts = batch.labels
    cells = torch.stack([labels.share * labels.mask.sum() for labels in parts]).sum()
    if fabric.world_size > 1:
        # Gradients are averaged over processes; dividing by the mean of their known cells makes
        # that the mean over all known cells, whatever each process got.
        cells = torch.as_tensor(fabric.all_reduce(cells, reduce_op="mean"))
    total = torch.zeros((), device=batch.images.device)
    o = config.optim
    # A loss that multiplies would make a gradient of NaN times a mask of 0.
    targets = [torch.where(labels.mask, labels.targets, 0.0) for labels in parts]
    pieces = cut(len(batch.images), -(-o.batch_size // (o.accumulate * fabric.world_size)))
    for number, rows in enumerate(pieces, start=1):
        waits = number < len(pieces)
        with fabric.no_backward_sync(model, enabled=waits):  # type: ignore[arg-type]
            logits = model(batch.images[rows], encoded=config.model.frozen)
            loss = torch.zeros((), device=total.device)
            for labels, known in zip(parts, targets, strict=True):
                losses = loss_of(logits, known[rows])
                sum_of_part = reduce_loss(losses, labels.mask[rows], class_weights, cells)
                loss = loss + labels.share * sum_of_part
            fabric.backward(loss)
        total = total + loss.detach()
    if fabric.world_size > 1:
        total = torch.as_tensor(fabric.all_reduce(total, reduce_op="mean"))
    return total


def cut(rows: int, size: int) -> list[slice]:
    """Rows in pieces of `size`; a single row left over goes with the piece before it.

    The size is the same in every batch, short ones too, for batch norm has no statistics of a
    single row.
    """
    starts = list(range(0, rows, size))
    if len(starts) > 1 and rows - starts[-1] < 2:
        starts.pop()
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], rows], strict=True)]


@dataclass(frozen=True)
class Labels:
    """Targets (B, K) in [0, 1], the mask of known cells (B, K), and their share of the loss."""

    targets: Tensor
    mask: Tensor
    share: float = 1.0


@dataclass(frozen=True)
class Batch:
    """Images (B, C, H, W) and what they are labelled with.

    `labels` has one member; two, whose shares add up to 1, where each image is a mixture of two.
    """

    images: Tensor
    labels: tuple[Labels, ...]


def mixup(
    batch: Batch, alpha: float, *, seed: int, step: int, rank: int = 0, world: int = 1
) -> Batch:
    """Mix each image with another one of the whole batch (paper section 2.2, MixUp).

    The share is drawn once per batch from Beta(alpha, alpha). Partners follow from seed and step
    alone, however the batch is shared out: process `rank` of `world` has every `world`-th image,
    and the images of the other processes are fetched. No image is mixed with itself, unless it is
    the only one.
    """
    draw = draws(seed, step, "mixup")
    share = float(draw.beta(alpha, alpha))
    (own,) = batch.labels
    pool = [_of_all_processes(part, world) for part in (batch.images, own.targets, own.mask)]
    partners = derangement(len(pool[0]), draw)[rank::world]
    index = send(partners, batch.images.device)
    images, targets, mask = (part[index] for part in pool)
    return mix(batch, Batch(images, (Labels(targets, mask),)), share)


def derangement(n: int, draw: np.random.Generator) -> NDArray[np.intp]:
    """A partner for each of `n` items, each item once, none its own (from `n` = 2 on)."""
    circle = draw.permutation(n)
    partner = np.empty(n, dtype=np.intp)
    partner[circle] = np.roll(circle, 1)
    return partner


def mix(batch: Batch, other: Batch, share: float) -> Batch:
    """`share` of each image and the rest of its partner in `other`, with the labels of both.

    Each partner's labels keep their own known cells, so that what one partner does not know is
    still learnt from the other.
    """
    (own,), (theirs,) = batch.labels, other.labels
    images = share * batch.images.float() + (1 - share) * other.images.float()
    return Batch(images, (replace(own, share=share), replace(theirs, share=1 - share)))


def _of_all_processes(own: Tensor, world: int) -> Tensor:
    """The rows of all processes in the batch's order; each has every `world`-th of them."""
    if world == 1:
        return own
    rows = torch.tensor(len(own), device=own.device)
    torch.distributed.all_reduce(rows)
    longest = -(-int(rows) // world)
    sent = own.new_zeros((longest, *own.shape[1:]))
    sent[: len(own)] = own
    parts = [torch.empty_like(sent) for _ in range(world)]
    torch.distributed.all_gather(parts, sent)
    return torch.stack(parts, 1).flatten(0, 1)[: int(rows)]


def bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of each cell, from logits, in fp32.

    The same as a two-way cross-entropy whose logit difference is the logit given. Where a target is
    not finite its loss is not either, and has no gradient: masked, it is as if it were not there.
    """
    x, y = logits.float(), _finite(targets)
    losses = F.binary_cross_entropy_with_logits(x, y, reduction="none")
    return _where_known(targets, losses)


def asymmetric(
    logits: Tensor,
    targets: Tensor,
    gamma_negative: float = 4.0,
    gamma_positive: float = 1.0,
    clip: float = 0.05,
) -> Tensor:
    """Asymmetric loss (Ridnik et al. 2021, equations 4 to 6), in fp32, finite for any logit.

    Negatives are shifted by `clip`; both terms are focused by their own exponent. With all three at
    zero it is `bce`, and a target that is not finite is treated as there.
    """
    x, y = logits.float(), _finite(targets)
    p = torch.sigmoid(x)
    shifted = (p - clip).clamp(min=0)
    # log(1 - shifted) from the logit where nothing was shifted, so that p = 1 stays finite.
    log_not = torch.log1p(-shifted.clamp(max=1 - 1e-7)) if clip > 0 else F.logsigmoid(-x)
    positive = y * F.logsigmoid(x) * (1 - p).pow(gamma_positive)
    negative = (1 - y) * log_not * shifted.pow(gamma_negative)
    return _where_known(targets, -(positive + negative))


def _finite(targets: Tensor) -> Tensor:
    return torch.nan_to_num(targets.float(), nan=0.0, posinf=0.0, neginf=0.0)


def _where_known(targets: Tensor, losses: Tensor) -> Tensor:
    """The losses, and NaN where the target was not finite, by a way that has no gradient."""
    return torch.where(targets.isfinite(), losses, torch.full_like(losses, torch.nan))


def reduce_loss(
    losses: Tensor, mask: Tensor, class_weights: Tensor | None = None, cells: Tensor | None = None
) -> Tensor:
    """The mean over known cells, each class's loss times its weight first (paper section 2.2).

    Args:
        losses: (B, K), from a loss above.
        mask: (B, K), True where the target is known.
        class_weights: (K,) factors on both terms of a class's loss, or None. The mean is not
            divided by them.
        cells: what to divide by instead of this batch's known cells (several devices, mixtures),
            which need not be whole, or None.
    """
    kept = torch.where(mask, losses, torch.zeros_like(losses))
    if class_weights is not None:
        kept = kept * class_weights
    total = mask.sum() if cells is None else cells
    return kept.sum() / total.clamp(min=1e-6)  # where nothing is known the sum is zero


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"bce": bce, "asymmetric": asymmetric}
