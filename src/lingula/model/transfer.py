"""From the host's memory to the device, without making the host wait for it."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def send(values: Tensor | NDArray[Any], device: torch.device) -> Tensor:
    """The values on `device`; to a CUDA device by way of pinned memory.

    A copy from ordinary memory waits until the device has done all that was asked of it before; one
    from pinned memory takes its place in the queue, so that the next batch is made meanwhile.
    """
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(values)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
