"""Augmentation on the batch and on the device: one affine warp, and MixUp.

Every draw is keyed by (seed, epoch, image), never by a generator that is carried along: an image's
augmentation depends neither on its batch mates nor on workers, and a resumed run draws the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

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
        return _warp_on_cpu(images, matrices)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, mode="bilinear", align_corners=False)


def _warp_on_cpu(images: Tensor, matrices: Tensor) -> Tensor:
    """The result depends neither on the other images nor on the number of threads."""
    height, width = images.shape[-2:]
    rows = (torch.arange(height) * 2 + 1) / height - 1
    columns = (torch.arange(width) * 2 + 1) / width - 1
    # The grid is the sum of a row's part (B, 2, H, 1) and a column's part (B, 2, 1, W): all x, then
    # all y, which is written without steps of two and which torch reads as it lies.
    across = (matrices[:, :, 0, None] * columns)[:, :, None]
    down = (matrices[:, :, 1, None] * rows + matrices[:, :, 2:])[..., None]
    # Several threads share a whole batch: they wait for each other at every step, which costs more
    # than strips save as soon as the machine has anything else to do.
    if torch.get_num_threads() > 1:
        return _sampled(images.float(), down + across)
    return _in_strips(images, across, down)


def _sampled(levels: Tensor, points: Tensor) -> Tensor:
    """Levels (B, 1, H, W) at points (B, 2, R, W)."""
    grid = points.permute(0, 2, 3, 1)
    return F.grid_sample(levels, grid, mode="bilinear", align_corners=False)


def _in_strips(images: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """A few pixels at a time, which stay in the core's cache: 6 times faster than a whole batch."""
    height, width = images.shape[-2:]
    group, strip = max(1, _AT_ONCE // (height * width)), min(height, max(1, _AT_ONCE // width))
    points = torch.empty(2 * group * strip * width)
    levels = torch.empty(group, *images.shape[1:])
    # NumPy asks the system for large pages, which torch does not: small ones cost an eighth.
    out = torch.from_numpy(np.empty(images.shape, dtype=np.float32))
    parts = (torch.split(tensor, group) for tensor in (images, across, down, out))
    for some, x, y, into in zip(*parts, strict=True):
        n = len(some)
        levels[:n].copy_(some)
        place = into.numpy()
        for top, lines in zip(range(0, height, strip), y.split(strip, 2), strict=True):
            here = points[: 2 * n * lines.shape[2] * width].view(n, 2, -1, width)
            torch.add(lines, x, out=here)
            # NumPy's copy, since torch's reads the memory first that it writes to.
            place[:, :, top : top + strip] = _sampled(levels[:n], here).numpy()
    return out


_AT_ONCE = 2**15  # pixels: 256 KiB of points and 128 KiB of levels


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
