"""Augmentation on the batch and on the device: one affine warp, and MixUp.

Every draw is keyed by (seed, epoch, image), never by a generator that is carried along: an image's
augmentation depends neither on its batch mates nor on workers, and a resumed run draws the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from torch import Tensor

from lingula.loading.draws import draws
from lingula.model.transfer import send


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
