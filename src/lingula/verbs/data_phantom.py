"""`lingula data phantom`: write the synthetic data set."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from lingula.phantom import find_phantom, write_phantom
from lingula.system.errors import InputError
from lingula.system.processes import is_first, wait_for_first
from lingula.system.progress import count_only, progress


def data_phantom(
    out: str | Path,
    *,
    n: int = 2000,
    size: int = 128,
    seed: int = 0,
    imbalance: float | None = None,
    style: str = "cxr-lt",
    shares: tuple[float, float] = (0.15, 0.25),
    overwrite: bool = False,
) -> Path:
    """Write `n` synthetic radiographs with labels and boxes into the folder `out`.

    Of several processes the first draws, and the others wait for it.

    Args:
        out: the folder; one that was interrupted is continued.
        n: images, 30 or more.
        size: pixels per side, 32 to 2048.
        seed: everything follows from it.
        imbalance: ratio of the commonest to the rarest class, 1 or more; None for the style's.
        style: the data set that it imitates, with its labels and look: `cxr-lt` (all 26
            findings), `nih` or `chexpert` (14 each).
        shares: of the images in dev and test; the rest is train.
        overwrite: rename what is in the way instead of refusing.

    Returns:
        The path of `labels.csv`.
    """
    if n < 30:
        raise InputError(f"n is {n}; a phantom needs 30 images or more.")
    if not 32 <= size <= 2048:
        raise InputError(f"size is {size}; it must be from 32 to 2048 pixels.")
    if seed < 0:
        raise InputError(f"seed is {seed}; it must be 0 or more.")
    if min(shares) < 0 or sum(shares) >= 1:
        raise InputError(f"The shares of dev and test, {shares}, must leave some for train.")
    if imbalance is not None and not (math.isfinite(imbalance) and imbalance >= 1):
        raise InputError(f"imbalance is {imbalance}; it must be 1 or more.")
    place = Path(out)
    asked: dict[str, Any] = {
        "n": n,
        "size": size,
        "seed": seed,
        "imbalance": imbalance,
        "style": style,
        "shares": shares,
    }
    if not is_first():
        what = f"{place} is being drawn"
        return wait_for_first(lambda: find_phantom(place, **asked), what, place / "images")
    with progress(f"drawing {place.name}") as tick:
        return write_phantom(place, **asked, overwrite=overwrite, progress=count_only(tick))
