"""A training that is ready to start, handed from the checks to the half that needs torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lingula.config import Config
from lingula.data.outside import Outside
from lingula.data.table import Table


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
