"""Augmentation on the batch and on the device: one affine warp, and MixUp.

Every draw is keyed by (seed, epoch, image), never by a generator that is carried along: an image's
augmentation depends neither on its batch mates nor on workers, and a resumed run draws the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lingula.model.transfer import send


@dataclass(frozen=True)
class Batch:
    """Grey images (B, 1, H, W), targets (B, K) in [0, 1], and the mask of known cells (B, K)."""

    images: Tensor
    targets: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Warp:
    """Ranges of the random warp: area of the crop, chance of a flip, degrees of rotation."""

    scale: tuple[float, float]
    flip: float
    rotation: float


def draw_warps(
    warp: Warp, images: NDArray[np.intp], *, seed: int, epoch: int
) -> NDArray[np.float32]:
    """Affine matrices (B, 2, 3), output to input in [-1, 1] coordinates, one an image index."""
    # One generator, set to each image's own counter: making one anew takes ten times as long.
    source = np.random.Philox(key=[seed, epoch])
    generator, start = np.random.Generator(source), source.state
    drawn = []
    for image in images.tolist():
        start["state"]["counter"][0] = image
        source.state = start
        drawn.append(_matrix(warp, *generator.random(5).tolist()))
    return np.array(drawn, dtype=np.float32).reshape(-1, 2, 3)


def _matrix(
    warp: Warp, area: float, x: float, y: float, turn: float, coin: float
) -> list[list[float]]:
    """The matrix that five numbers from 0 to 1 stand for."""
    side = math.sqrt(warp.scale[0] + (warp.scale[1] - warp.scale[0]) * area)
    angle = math.radians(warp.rotation) * (2 * turn - 1)
    mirror = -1.0 if coin < warp.flip else 1.0
    shift_x, shift_y = (1 - side) * (2 * x - 1), (1 - side) * (2 * y - 1)
    cosine, sine = side * math.cos(angle), side * math.sin(angle)
    return [[mirror * cosine, -sine, shift_x], [mirror * sine, cosine, shift_y]]


def warp_images(images: Tensor, matrices: Tensor) -> Tensor:
    """Warp (B, 1, H, W) by (B, 2, 3), bilinear, black outside; float32 in the input's range."""
    if images.device.type == "cpu":
        return _by_opencv(images.float(), matrices)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, mode="bilinear", align_corners=False)


def warp_levels(images: Tensor, matrices: Tensor) -> Tensor:
    """As `warp_images`, uint8 to uint8: rounded to grey levels, which halves a CPU's time."""
    if images.device.type == "cpu":
        return _by_opencv(images, matrices)
    return warp_images(images, matrices).round_().to(torch.uint8)


def _by_opencv(images: Tensor, matrices: Tensor) -> Tensor:
    """The result depends neither on the other images nor on the number of threads."""
    height, width = images.shape[-2:]
    # From pixels of the output to [-1, 1], by the matrix, and from [-1, 1] to pixels of the input.
    inward = np.array([[2 / width, 0, 1 / width - 1], [0, 2 / height, 1 / height - 1], [0, 0, 1]])
    placed = np.concatenate(
        [matrices.double().numpy(), np.broadcast_to([[[0.0, 0.0, 1.0]]], (len(images), 1, 3))], 1
    )
    pixels = (np.linalg.inv(inward) @ placed @ inward)[:, :2]
    cv2.setNumThreads(torch.get_num_threads())
    out = torch.empty_like(images, memory_format=torch.contiguous_format)
    levels, into = images.contiguous().numpy()[:, 0], out.numpy()[:, 0]
    for source, target, matrix in zip(levels, into, pixels, strict=True):
        cv2.warpAffine(
            source,
            matrix,
            (width, height),
            dst=target,
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=0,
        )
    return out


def mixup(batch: Batch, alpha: float, *, seed: int, step: int) -> Batch:
    """Mix each image and its targets with another of the batch (paper section 2.2).

    One lambda a batch, drawn from Beta(alpha, alpha). Works for any batch size; a batch of one is
    mixed with itself. A mixed cell is known only if both of its cells are.
    """
    draw = np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, 1, 0, 0]))
    share = float(draw.beta(alpha, alpha))
    partner = send(draw.permutation(len(batch.images)), batch.images.device)
    return mix(batch, partner, share)


def mix(batch: Batch, partner: Tensor, share: float) -> Batch:
    """`share` of each image and target, the rest of its partner's (indices (B,))."""
    images = batch.images.float()
    return replace(
        batch,
        images=share * images + (1 - share) * images[partner],
        targets=share * batch.targets + (1 - share) * batch.targets[partner],
        mask=batch.mask & batch.mask[partner],
    )
