"""Drawing in body coordinates: smooth curves, soft edges, ribbons, noise fields and boxes.

Body coordinates are (u, v): u from the midline, positive towards the patient's left (the right of
the image), v downwards from the top of the image. Both are about one at the size of the image, so
geometry is the same at every image size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.floating[Any]]  # single precision, but for a few short tables
Region = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels

# Curves are tables over [FIRST, LAST]: one look-up a pixel costs a tenth of an interpolation.
FIRST, LAST, ENTRIES = -0.75, 1.25, 8192
_PIVOT = 0.45


@lru_cache(maxsize=32)
def _basis(knots: tuple[float, ...]) -> Image:
    """(ENTRIES, knots) smoothed hat functions: a curve is this times the values at its knots."""
    places = np.linspace(FIRST, LAST, ENTRIES)
    hats = np.stack(
        [np.interp(places, knots, np.eye(len(knots))[i]) for i in range(len(knots))], axis=1
    )
    sigma = 0.016 / (LAST - FIRST) * ENTRIES
    reach = np.arange(-int(3 * sigma), int(3 * sigma) + 1)
    kernel = np.exp(-0.5 * (reach / sigma) ** 2)
    kernel /= kernel.sum()
    padded = np.pad(hats, ((len(reach) // 2, len(reach) // 2), (0, 0)), mode="edge")
    smooth = [np.convolve(padded[:, i], kernel, mode="valid") for i in range(len(knots))]
    return np.stack(smooth, axis=1).astype(np.float32)


def curve(knots: tuple[float, ...], values: Sequence[float]) -> Image:
    """A smooth function of u or v as a table of ENTRIES values."""
    table: Image = _basis(knots) @ np.asarray(values, dtype=np.float32)
    return table


def at(table: Image, place: float) -> float:
    """The value of a curve at one place."""
    index = round((place - FIRST) / (LAST - FIRST) * (ENTRIES - 1))
    return float(table[min(max(index, 0), ENTRIES - 1)])


def soft(x: Image) -> Image:
    """Smoothstep: 0 below 0, 1 above 1, without a kink."""
    clipped = np.maximum(x, np.float32(0.0))
    np.minimum(clipped, np.float32(1.0), out=clipped)
    result: Image = clipped * np.float32(-2.0)
    result += np.float32(3.0)
    result *= clipped
    result *= clipped
    return result


@lru_cache(maxsize=64)
def _weights(size: int, cells: int) -> Image:
    """(size, cells) linear interpolation from `cells` samples over the image to `size` pixels."""
    places = (np.arange(size) + 0.5) / size * (cells - 1)
    low = np.minimum(places.astype(int), cells - 2)
    matrix = np.zeros((size, cells), dtype=np.float32)
    # A smoothed weight hides the grid of the coarse field.
    part = places - low
    part = part * part * (3 - 2 * part)
    matrix[np.arange(size), low] = 1 - part
    matrix[np.arange(size), low + 1] = part
    return matrix


def mottle(rng: np.random.Generator, size: int, cells: int) -> Image:
    """(size, size) smooth noise of unit variance or less, `cells` lumps across the image."""
    coarse = rng.standard_normal((cells, cells), dtype=np.float32)
    weights = _weights(size, cells)
    field: Image = weights @ coarse @ weights.T
    return field


def veil(image: Image, cells: int = 12) -> Image:
    """The image seen through a very wide blur: its scatter."""
    size = len(image)
    weights = _weights(size, cells)
    coarse = weights.T @ image @ weights
    norm = weights.sum(axis=0)
    field: Image = weights @ (coarse / np.outer(norm, norm)) @ weights.T
    return field


@dataclass(frozen=True)
class Frame:
    """Where the body lies in one image.

    Attributes:
        size: pixels per side.
        u: (size, size) body coordinate across.
        v: (size, size) body coordinate down.
        iu: (size, size) index of u in a curve's table.
        iv: (size, size) index of v in a curve's table.
        zoom: image lengths per unit of u and of v.
        tilt: rotation in the plane of the image, radians.
        shift: displacement in the image, in image lengths.
    """

    size: int
    u: Image
    v: Image
    iu: NDArray[np.int32]
    iv: NDArray[np.int32]
    zoom: tuple[float, float]
    tilt: float
    shift: tuple[float, float]

    def points(self, path: Image) -> Image:
        """(N, 2) body coordinates to (N, 2) pixels (x, y)."""
        cos, sin = math.cos(self.tilt), math.sin(self.tilt)
        across = path[:, 0] * self.zoom[0]
        down = (path[:, 1] - _PIVOT) * self.zoom[1]
        x = 0.5 + self.shift[0] + cos * across - sin * down
        y = _PIVOT + self.shift[1] + sin * across + cos * down
        return (np.stack([x, y], axis=1) * self.size).astype(np.float32)

    def on_u(self, table: Image) -> Image:
        """A curve of u at every pixel."""
        result: Image = table.take(self.iu)
        return result

    def on_v(self, table: Image) -> Image:
        """A curve of v at every pixel."""
        result: Image = table.take(self.iv)
        return result

    def region(self, u0: float, v0: float, u1: float, v1: float) -> Region:
        """The upright pixel region around a rectangle of the body."""
        corners = np.array([[u0, v0], [u0, v1], [u1, v0], [u1, v1]], dtype=np.float32)
        spots = self.points(corners)
        x0, y0 = spots.min(axis=0).tolist()
        x1, y1 = spots.max(axis=0).tolist()
        return x0, y0, x1, y1


def frame(size: int, zoom: tuple[float, float], tilt: float, shift: tuple[float, float]) -> Frame:
    """Place the body in an image of `size` pixels per side."""
    centres = (np.arange(size, dtype=np.float32) + 0.5) / size
    x = (centres - 0.5 - shift[0])[None, :]
    y = (centres - _PIVOT - shift[1])[:, None]
    cos, sin = math.cos(tilt), math.sin(tilt)
    u = (cos * x + sin * y) / zoom[0]
    v = (cos * y - sin * x) / zoom[1] + _PIVOT
    scale = (ENTRIES - 1) / (LAST - FIRST)
    iu = np.clip((u - FIRST) * scale, 0, ENTRIES - 1).astype(np.int32)
    iv = np.clip((v - FIRST) * scale, 0, ENTRIES - 1).astype(np.int32)
    return Frame(size, u.astype(np.float32), v.astype(np.float32), iu, iv, zoom, tilt, shift)


def bezier(knots: Sequence[tuple[float, float]], samples: int = 24) -> Image:
    """(samples, 2) a smooth path whose control points are `knots`."""
    t = np.linspace(0, 1, samples)[:, None]
    order = len(knots) - 1
    path = np.zeros((samples, 2))
    for i, knot in enumerate(knots):
        path += math.comb(order, i) * t**i * (1 - t) ** (order - i) * np.asarray(knot)
    return path.astype(np.float32)


def _densify(path: Image, step: float) -> tuple[Image, Image]:
    """Points every `step` pixels along a path of pixels, and the unit normals there."""
    leg = np.diff(path, axis=0)
    length = np.hypot(leg[:, 0], leg[:, 1])
    along = np.concatenate([[0.0], np.cumsum(length)])
    count = max(2, math.ceil(along[-1] / step))
    places = (np.arange(count) + 0.5) / count * along[-1]
    x = np.interp(places, along, path[:, 0])
    y = np.interp(places, along, path[:, 1])
    which = np.clip(np.searchsorted(along, places) - 1, 0, len(leg) - 1)
    unit = leg[which] / np.maximum(length[which], 1e-6)[:, None]
    normal = np.stack([-unit[:, 1], unit[:, 0]], axis=1)
    return np.stack([x, y], axis=1).astype(np.float32), normal.astype(np.float32)


def splat(size: int, spots: Image, weight: Image | float) -> Image:
    """(size, size) sum of points at (N, 2) pixels, each shared among its four neighbours."""
    x, y = spots[:, 0] - 0.5, spots[:, 1] - 0.5
    inside = (x > 0) & (y > 0) & (x < size - 1) & (y < size - 1)
    x, y = x[inside], y[inside]
    mass = np.broadcast_to(np.asarray(weight, dtype=np.float32), inside.shape)[inside]
    col, row = x.astype(np.int32), y.astype(np.int32)
    fx, fy = x - col, y - row
    corner = row * size + col
    index = np.concatenate([corner, corner + 1, corner + size, corner + size + 1])
    share = np.concatenate(
        [mass * (1 - fx) * (1 - fy), mass * fx * (1 - fy), mass * (1 - fx) * fy, mass * fx * fy]
    )
    total = np.bincount(index, weights=share, minlength=size * size)
    return total.reshape(size, size).astype(np.float32)


def ribbon(view: Frame, path: Image, width: float) -> Image:
    """(size, size) coverage in [0, 1] of a band of `width` body units along an (N, 2) path.

    A band narrower than a pixel covers its pixels in part, as on a real detector.
    """
    thick = width * view.zoom[0] * view.size
    lanes = max(1, math.ceil(thick / 0.6))
    step = 0.6
    spots, normal = _densify(view.points(path), step)
    across = (np.arange(lanes, dtype=np.float32) + 0.5) / lanes * thick - thick / 2
    every = (spots[None] + across[:, None, None] * normal[None]).reshape(-1, 2)
    return np.minimum(splat(view.size, every, step * thick / lanes), np.float32(1.0))


def blob(
    view: Frame, centre: tuple[float, float], radii: tuple[float, float], angle: float, edge: float
) -> Image:
    """(size, size) an ellipse in [0, 1]; `edge` is the width of its soft rim over its radius."""
    du, dv = view.u - centre[0], view.v - centre[1]
    cos, sin = math.cos(angle), math.sin(angle)
    a = (cos / radii[0]) * du + (sin / radii[0]) * dv
    b = (cos / radii[1]) * dv - (sin / radii[1]) * du
    return soft((1.0 + 0.5 * edge - np.sqrt(a * a + b * b)) / edge)


def bounds(mask: Image, level: float = 0.3) -> list[Region]:
    """The region where `mask` is above `level` of its greatest value; none if it is empty."""
    peak = float(mask.max())
    if peak <= 1e-4:
        return []
    above = mask > level * peak
    rows, cols = np.flatnonzero(above.any(axis=1)), np.flatnonzero(above.any(axis=0))
    return [(float(cols[0]), float(rows[0]), float(cols[-1] + 1), float(rows[-1] + 1))]
