"""The rounds in which every bench times its calls; without torch until a GPU is timed."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Times:
    """Seconds of a call in each round, of the wall clock and of the processor; its last result.

    Processor time counts what this process used, whatever else the machine does.
    """

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    result: Any = None

    @property
    def median(self) -> float:
        """The median of the wall clock's seconds."""
        return statistics.median(self.wall)


def time_rounds(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    device: str = "cpu",
    *,
    steps: int = 1,
    seconds: float = math.inf,
    warm_up: bool = True,
    tick: Callable[[int], None] | None = None,
) -> dict[str, Times]:
    """Time calls in turn, round after round, so that a slow minute affects all of them alike.

    Args:
        calls: what to time, by name.
        rounds: how often each is timed.
        device: `cuda` waits for the device before and after.
        steps: calls per round; the seconds are those of one.
        seconds: start no new round after so many seconds.
        warm_up: first call each once untimed, which allocates memory.
        tick: called with the number of each round, the untimed one too.
    """
    times = {name: Times() for name in calls}
    began = math.inf
    for turn in range(0 if warm_up else 1, rounds + 1):
        if turn == 1:
            began = now(device)
        elif turn > 1 and now(device) - began >= seconds:
            break
        for name, call in calls.items():
            wall, processor = now(device), time.process_time()
            for _ in range(steps):
                times[name].result = call()
            if turn:
                times[name].wall.append((now(device) - wall) / steps)
                times[name].processor.append((time.process_time() - processor) / steps)
        if tick is not None:
            tick(turn)
    return times


def now(device: str) -> float:
    """The wall clock's seconds, once the device has done all that it was given."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()
