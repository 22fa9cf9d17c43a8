"""Random numbers that follow from what they are for, so that nothing has to be carried along.

A stream is named by the run's seed, an index (an epoch or a step), a purpose and an item (an
image). Philox is a function of a key of two words and a counter of four, whose first word counts
the numbers drawn. The item and the purpose have a word each: however many numbers one image draws,
they are never those of another image or purpose.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

Purpose = Literal["order", "warp", "mixup", "mirror"]
_PURPOSES: dict[Purpose, int] = {"order": 0, "warp": 1, "mixup": 2, "mirror": 3}


def draws(seed: int, index: int, purpose: Purpose) -> np.random.Generator:
    """The numbers of a whole epoch or step (`index`) for one purpose."""
    counter = [0, 0, 0, _PURPOSES[purpose]]
    return np.random.Generator(np.random.Philox(key=[seed, index], counter=counter))


def draws_per_item(
    seed: int, index: int, purpose: Purpose, items: Sequence[int]
) -> Iterator[np.random.Generator]:
    """For each item the numbers of its own; each generator is used before the next is taken."""
    # One generator, set to each item's own counter: making one anew takes ten times as long.
    source = np.random.Philox(key=[seed, index], counter=[0, 0, 0, _PURPOSES[purpose]])
    generator, start = np.random.Generator(source), source.state
    for item in items:
        start["state"]["counter"][1] = item
        source.state = start
        yield generator
