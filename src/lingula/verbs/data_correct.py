"""`lingula data correct`: a table with the decisions of a filled sheet of corrections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lingula.reporting.review import Corrected, apply_corrections
from lingula.system import files
from lingula.system.claims import claim
from lingula.tables.reading import read_table, write_table


def data_correct(
    table: str | Path,
    corrections: str | Path,
    *,
    out: str | Path,
    ignore_columns: Sequence[str] = (),
    soft: bool = False,
) -> Corrected:
    """Write a new table with the sheet's decisions; the old one stays as it is.

    Args:
        table: the table that was reviewed.
        corrections: the sheet that `lingula review` wrote, with its column `decision` filled in.
        out: the new table (.csv or .parquet); it must not exist.
        ignore_columns: columns of the table that are neither ids nor classes; they are not copied.
        soft: the table's cells may be probabilities.
    """
    file = Path(out)
    files.check_suffix(file, (".csv", ".parquet"), "a table")
    for path in (file, file.with_suffix(".json")):
        claim(path, "and is never overwritten.", overwrite=None)
    made = apply_corrections(
        read_table(table, ignore_columns=ignore_columns, soft=soft), corrections
    )
    write_table(made.table, file)
    return made
