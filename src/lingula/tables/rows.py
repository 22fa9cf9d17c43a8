"""A table file with some of its rows left out, every other cell as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl

from lingula.system import files
from lingula.system.claims import OTHER_CONTENT, claim
from lingula.system.csv_cells import plain_cell
from lingula.system.errors import InputError
from lingula.tables.cells import read_frame
from lingula.tables.columns import known_columns


def keep_rows(table: Path, out: Path, wanted: Callable[[str], bool]) -> int:
    """Write the rows whose image is wanted to a new table, with the JSON beside it; how many.

    The old table stays. A .parquet table stays one, any other becomes .csv. Raises `InputError` if
    `out` is the table itself, is there already with something else in it, or has another suffix.
    """
    suffix = table.suffix if table.suffix in (".csv", ".parquet") else ".csv"
    if out.suffix != suffix:
        raise InputError(f"{out}: the new table's name ends in {suffix}.")
    if out.resolve() == table.resolve():
        raise InputError(f"{out} is the table itself, which is never changed; name another file.")
    frame = read_frame(table)
    column = next(name for name, field in known_columns(frame.columns).items() if field == "images")
    kept = frame.filter(pl.Series([wanted(image.strip()) for image in frame[column].to_list()]))
    if not kept.height:
        raise InputError(f"No row of {table} is left.")
    if not out.exists() or not read_frame(out).equals(kept):
        claim(out, OTHER_CONTENT, overwrite=None)
    with files.whole(out) as temporary:
        if out.suffix == ".parquet":
            kept.write_parquet(temporary)
        else:
            kept.rename(plain_cell).write_csv(temporary)
    described = table.with_suffix(".json")
    about = files.read_object(described, absent_ok=True) or {"format": 1}
    root = (table.parent / str(about.get("root", "."))).resolve()
    files.write_json(
        out.with_suffix(".json"), about | {"root": str(root), "sha256": files.sha256(out)}
    )
    return kept.height
