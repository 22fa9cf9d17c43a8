"""Which of the processes that torchrun or SLURM started this one is, told without torch."""

from __future__ import annotations

import os


def is_first() -> bool:
    """Whether this is the first, or the only, process."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) == 0
