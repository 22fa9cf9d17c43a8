"""Test-time views of an image, and how their probabilities are merged (paper section 2.2)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lingula.loading.warp import warp_images
from lingula.model.devices import send

FLOOR = 1e-7  # a probability below this counts as this in the geometric mean


@dataclass(frozen=True)
class View:
    """A way to look at an image: part of its side shown (above 1: zoomed out), flipped or not.

    With a `crop` number, size (from `side` to 1) and place of the part are drawn for each image
    from that number and the image's key, so that an image has the same crops whenever it is scored.
    """

    name: str
    side: float = 1.0
    flip: bool = False
    crop: int | None = None

    def __call__(self, images: Tensor, keys: Sequence[int]) -> Tensor:
        """Grey (B, 1, H, W) and B keys to the view of it; the identity returns its input as is."""
        seen = images.flip(-1) if self.flip else images
        if self.crop is not None:
            drawn = np.stack([self._part(key) for key in keys])
            return warp_images(seen, send(drawn, images.device))
        if self.side == 1.0:
            return seen
        matrix = torch.tensor([[self.side, 0, 0], [0, self.side, 0]], device=images.device)
        return warp_images(seen, matrix.float().expand(len(images), -1, -1))

    def _part(self, key: int) -> NDArray[np.float32]:
        draw = np.random.Generator(np.random.Philox(key=[key, self.crop or 0]))
        size, x, y = draw.random(3)
        side = self.side + (1.0 - self.side) * size
        shift_x, shift_y = (1 - side) * (2 * x - 1), (1 - side) * (2 * y - 1)
        return np.array([[side, 0, shift_x], [0, side, shift_y]], dtype=np.float32)


def key_of(path: str) -> int:
    """The number that an image's random crops follow from: a hash of its file name's stem.

    In the public data sets that is the image's id, so a film has the same crops whether it is named
    by a table, found in a folder or given alone.
    """
    return int.from_bytes(hashlib.sha256(PurePath(path).stem.encode()).digest()[:8], "big")


VIEWS: dict[str, tuple[View, ...]] = {
    "none": (View("identity"),),
    "flip": (View("identity"), View("flip", flip=True)),
    "paper": (
        View("identity"),
        View("flip", flip=True),
        View("random crop", side=0.8, crop=1),
        View("random crop, flip", side=0.8, crop=2, flip=True),
        View("scale 1.1", side=1.1),
        View("scale 1.1, flip", side=1.1, flip=True),
    ),
}


def geometric(logits: Tensor) -> Tensor:
    """(V, B, K) logits of V views to the geometric mean (B, K) of their probabilities, float64.

    Done on logarithms, so that many small factors do not underflow; the floor is `FLOOR`.
    """
    return F.logsigmoid(logits.double()).clamp(min=float(np.log(FLOOR))).mean(0).exp()


def arithmetic(logits: Tensor) -> Tensor:
    """(V, B, K) logits of V views to the mean (B, K) of their probabilities, float64."""
    return logits.double().sigmoid().mean(0)


MERGES: dict[str, Callable[[Tensor], Tensor]] = {
    "geometric": geometric,
    "arithmetic": arithmetic,
}


def merge_views(logits: Tensor, merge: str) -> Tensor:
    """Merge (V, B, K) to (B, K); a single view is its plain sigmoid, with no floor."""
    return logits[0].double().sigmoid() if len(logits) == 1 else MERGES[merge](logits)
