"""`lingula review`: where labels and model disagree; `data correct`: the decisions on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lingula.reporting.review import (
    Corrected,
    Disagreement,
    apply_corrections,
    disagreements,
    render_review,
    write_corrections,
)
from lingula.scores.predictions import read_scores
from lingula.system import files
from lingula.system.claims import claim
from lingula.tables.reading import read_table, write_table
from lingula.training.run_labels import warn_of_other_labels


@dataclass(frozen=True)
class Review:
    """The page and the sheet that were written, and what is in them."""

    page: Path
    corrections: Path
    found: tuple[Disagreement, ...]


def review(
    scores: str | Path,
    *,
    labels: str | Path,
    out: str | Path,
    split: str | None = None,
    top: int = 20,
    ignore_columns: Sequence[str] = (),
    overwrite: bool = False,
) -> Review:
    """Write `review.html` and `corrections.csv` into a folder.

    A folder with a sheet in it is left alone, so that no decision is lost: with `overwrite` it is
    set aside as `NAME.old-1` first.

    Args:
        scores: a scores file.
        labels: a table; images that can't be read are named in the page and not shown.
        out: the folder.
        split: only the table's rows of this split.
        top: disagreements per class.
        ignore_columns: columns of the table that are neither ids nor classes.
        overwrite: set an old review aside.
    """
    folder = Path(out)
    predictions = read_scores(scores)
    table = read_table(labels, ignore_columns=ignore_columns, named=predictions.classes)
    warn_of_other_labels([(Path(scores), Path(labels), table.sha256)])
    found = disagreements(predictions, table, split=split, top=top)
    claim(folder, "and may contain decisions.", overwrite=overwrite).make_room()
    names = {"scores": Path(scores).name, "labels": Path(labels).name}
    text = render_review(found, table.root, **names)
    page, sheet = folder / "review.html", folder / "corrections.csv"
    files.write_text(page, text)
    write_corrections(found, sheet)
    return Review(page, sheet, found)


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
