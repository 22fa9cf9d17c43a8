"""`lingula submit`: scores as a challenge's submission, checked against its template."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lingula.reporting.submission import (
    Rehearsal,
    Submission,
    fill_template,
    read_template,
    rehearse,
    write_submission,
)
from lingula.scores.predictions import read_scores
from lingula.system import files
from lingula.system.claims import check_not_an_input, read_settings_beside
from lingula.system.errors import InputError
from lingula.tables.reading import read_table, read_unlabelled
from lingula.training.run_labels import warn_of_other_labels

log = logging.getLogger("lingula")


@dataclass(frozen=True)
class Submitted:
    """The file written (None: only rehearsed), its content, and its rehearsed score."""

    path: Path | None
    made: Submission
    rehearsal: Rehearsal | None = None


def submit(
    scores: str | Path,
    *,
    template: str | Path,
    out: str | Path | None = None,
    code: str | Path | None = None,
    fill: float | None = None,
    allow_extra: bool = False,
    labels: str | Path | None = None,
    ignore_columns: Sequence[str] = (),
    key: str | None = None,
) -> Submitted:
    """Write a submission in the template's columns, order and ids; refuse scores that do not fit.

    Args:
        scores: a scores file.
        template: the organisers' sample submission (.csv).
        out: the .zip to write (or a .csv); None only with `labels`: nothing is written.
        code: a folder that goes into the zip as `code/`.
        fill: the score of images that failed.
        allow_extra: leave out rows of scores that the template does not contain.
        labels: a table by which to score the submission as the server would.
        ignore_columns: columns of `labels` that are neither ids nor classes.
        key: the template's column of ids; None: the one with the names of the scores' images.
    """
    if out is None and labels is None:
        raise InputError("Give --out, the submission to write, or --labels to rehearse one.")
    predictions = read_scores(scores)
    wanted = read_template(template, key=key, predictions=predictions)
    made = fill_template(
        predictions, wanted, fill=fill, allow_extra=allow_extra, splits=_splits(Path(scores))
    )
    if made.left_over:
        log.info("%d scores that %s does not contain are left out.", made.left_over, template)
    rehearsal = None
    if labels is not None:
        table = read_table(labels, ignore_columns=ignore_columns, named=wanted.classes)
        warn_of_other_labels([(Path(scores), Path(labels), table.sha256)])
        rehearsal = rehearse(made, table)
    if out is not None:
        check_not_an_input(out, [path for path in (scores, template, labels) if path is not None])
        write_submission(made, out, code)
    return Submitted(None if out is None else Path(out), made, rehearsal)


def _splits(scores: Path) -> dict[str, str]:
    """The split of each image, where the scores are those of a whole table; else nothing."""
    made = read_settings_beside(scores) or {}
    table = Path(str(made.get("data", "")))
    if made.get("split") is not None or not table.is_file():
        return {}
    if files.sha256(table) != made.get("data_sha256"):
        return {}  # it has changed since, or is an image that was scored alone
    read = read_unlabelled(table)
    return dict(zip(read.images, read.splits or [""] * len(read), strict=True))
