"""The one random affine warp of augmentation, drawn per image, applied to a batch on its device."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lingula.loading.order import draws_per_item


@dataclass(frozen=True)
class Warp:
    """Ranges of the random warp: area of the crop, chance of a flip, degrees of rotation."""

    scale: tuple[float, float]
    flip: float
    rotation: float


def draw_warps(
    warp: Warp, images: NDArray[np.intp], *, seed: int, epoch: int
) -> NDArray[np.float32]:
    """Affine matrices (B, 2, 3), output to input in [-1, 1] coordinates, one per image."""
    own = draws_per_item(seed, epoch, "warp", images.tolist())
    drawn = [_matrix(warp, *generator.random(5).tolist()) for generator in own]
    return np.array(drawn, dtype=np.float32).reshape(-1, 2, 3)


def _matrix(
    warp: Warp, area: float, x: float, y: float, turn: float, coin: float
) -> list[list[float]]:
    """The matrix that follows from five numbers between 0 and 1."""
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
