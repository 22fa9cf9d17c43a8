"""A training that is ready to start, handed from the checks to the half that needs torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lingula.settings.config import Config
from lingula.tables.joins import Outside
from lingula.tables.table import Table


@dataclass(frozen=True)
class Plan:
    """A training that is ready to start: settings, table, and where it goes.

    `split_made`: the table had no split; the one made here is to be kept in the run folder.
    """

    config: Config
    table: Table
    run: Path
    split_made: bool = False
    outside: tuple[Outside, ...] = ()


def data_sha256(table: Table, others: Sequence[Outside] = ()) -> str:
    """Hash of the table; with outside tables, of all their hashes."""
    every = [table.sha256, *(other.table.sha256 for other in others)]
    if len(every) == 1:
        return every[0]
    return hashlib.sha256("\n".join(every).encode()).hexdigest()
