"""Which rows each step of a run takes: a pure function of (seed, epoch).

So a run can be taken up at any step, and every process of a distributed run works out its share.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lingula.loading.draws import draws
from lingula.system.errors import InputError


@dataclass(frozen=True)
class Rows:
    """What an epoch is made of: `all` rows, the last `outside` of them from other tables.

    Without a `ratio` every row stands once in an epoch. With one, each epoch has as many rows from
    outside as `ratio` times the table's own, drawn anew, each once before any twice.
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

    A last batch with fewer than two rows a process is joined to the one before it: batch norm has
    no statistics of a single row, and no process may be left without work. Raises `InputError`
    where that can't be had, because the batches or all the rows are too few.
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
