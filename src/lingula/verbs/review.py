"""`lingula review`: where labels and model disagree, as a page and a sheet to fill in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lingula.reporting.review import (
    Disagreement,
    disagreements,
    render_review,
    write_corrections,
)
from lingula.scores.predictions import read_scores
from lingula.system import files
from lingula.system.claims import claim
from lingula.tables.reading import read_table
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
        top: disagreements a class.
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
