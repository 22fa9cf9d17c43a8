"""Random numbers that follow from their use, and from them the rows that each step takes.

No generator is carried along: a run can be resumed at any step, and every process of a distributed
run works out its own share. A stream is named by the run's seed, an index (an epoch or a step), a
purpose and an item (an image). Philox is a function of a key of two words and a counter of four,
whose first word counts the numbers drawn. The item and the purpose have a word each: however many
numbers one image draws, they are never those of another image or purpose.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lingula.system.errors import InputError

Purpose = Literal["order", "warp", "mixup", "mirror"]
_PURPOSES: dict[Purpose, int] = {"order": 0, "warp": 1, "mixup": 2, "mirror": 3}


def draws(seed: int, index: int, purpose: Purpose) -> np.random.Generator:
    """The numbers of a whole epoch or step (`index`) for one purpose."""
    counter = [0, 0, 0, _PURPOSES[purpose]]
    return np.random.Generator(np.random.Philox(key=[seed, index], counter=counter))


def draws_per_item(
    seed: int, index: int, purpose: Purpose, items: Sequence[int]
) -> Iterator[np.random.Generator]:
    """For each item its own numbers; each generator must be used before the next is taken."""
    # One generator, set to each item's own counter: making a new one takes ten times as long.
    source = np.random.Philox(key=[seed, index], counter=[0, 0, 0, _PURPOSES[purpose]])
    generator, start = np.random.Generator(source), source.state
    for item in items:
        start["state"]["counter"][1] = item
        source.state = start
        yield generator


@dataclass(frozen=True)
class Rows:
    """What an epoch is made of: `all` rows, the last `outside` of them from other tables.

    Without a `ratio` an epoch has every row once. With one, it has `ratio` times as many rows from
    outside as of the table itself, drawn anew for each epoch, each once before any twice.
    """

    all: int
    outside: int = 0
    ratio: float | None = None


def epoch_order(rows: Rows, *, seed: int, epoch: int) -> NDArray[np.intp]:
    """The rows of an epoch, in order; a function of seed and epoch alone."""
    draw = draws(seed, epoch, "order")
    if rows.ratio is None or not rows.outside:
        return draw.permutation(rows.all)
    own = rows.all - rows.outside
    wanted = round(rows.ratio * own)
    rounds = [own + draw.permutation(rows.outside) for _ in range(-(-wanted // rows.outside))]
    drawn = np.concatenate([np.arange(own), *rounds])[: own + wanted]
    return draw.permutation(drawn)


def epoch_batches(
    rows: Rows, batch_size: int, *, seed: int, epoch: int, world: int = 1
) -> list[NDArray[np.intp]]:
    """The global batches of an epoch, in the order of `epoch_order`.

    A last batch with fewer than two rows per process is joined to the one before it: batch norm has
    no statistics of a single row, and no process may be left without work. Raises `InputError` if
    the batches are too small for that, or the rows too few.
    """
    order = epoch_order(rows, seed=seed, epoch=epoch)
    least, each = 2 * world, "" if world == 1 else f" for each of the {world} processes"
    if batch_size < least:
        raise InputError(
            f"optim.batch_size={batch_size}, but a step needs two images{each}: "
            f"optim.batch_size={least} or more."
        )
    if len(order) < least:
        raise InputError(f"There are {len(order)} images to train on, but a step needs two{each}.")
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    if len(batches) > 1 and len(batches[-1]) < 2 * world:
        tail = batches.pop()
        batches[-1] = np.concatenate([batches[-1], tail])
    return batches


def training_batches(
    rows: Rows,
    batch_size: int,
    *,
    seed: int,
    epochs: int,
    start: int,
    rank: int = 0,
    world: int = 1,
) -> Iterator[NDArray[np.intp]]:
    """This process's share of every batch from step `start` to the end of the last epoch."""
    step = 0
    for epoch in range(epochs):
        for batch in epoch_batches(rows, batch_size, seed=seed, epoch=epoch, world=world):
            if step >= start:
                yield batch[rank::world]
            step += 1
