"""`lingula evaluate`: scores against labels, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lingula.data.reading import read_table
from lingula.evaluation import Evaluation, evaluate_predictions
from lingula.predictions import read_scores


def evaluate(
    scores: str | Path,
    *,
    labels: str | Path,
    split: str | None = None,
    by: Literal["image", "study"] = "image",
    ci: int = 0,
    against: str | Path | None = None,
    seed: int = 0,
    ignore_columns: Sequence[str] = (),
    uncertain: Literal["ignore", "zero", "one"] = "ignore",
    blank: Literal["ignore", "zero"] | None = None,
    unmentioned: Literal["ignore", "zero"] = "ignore",
    soft: bool = False,
) -> Evaluation:
    """AP and AUROC a class, their means, head / medium / tail; with `ci` bootstrap intervals.

    Args:
        scores: a scores file; the rows of `labels` must all be in it.
        labels: a table.
        split: only the table's rows of this split; None: every row (of the splits that the scores
            cover, if they cover fewer than the table has).
        by: rows are images or studies.
        ci: bootstrap draws by patient; 0: none.
        against: another scores file of the same images, compared in pairs.
        seed: of the bootstrap.
        ignore_columns: columns of the table that are neither ids nor classes.
        uncertain: what uncertain cells count as.
        blank: what blank cells count as; None: as the table says.
        unmentioned: what cells of classes that their source does not know count as.
        soft: the table's cells may be probabilities; at least 0.5 is positive.
    """
    return evaluate_predictions(
        read_scores(scores),
        read_table(
            labels,
            ignore_columns=ignore_columns,
            soft=soft,
        ),
        split=split,
        by=by,
        ci=ci,
        seed=seed,
        against=None if against is None else read_scores(against),
        uncertain=uncertain,
        blank=blank,
        unmentioned=unmentioned,
    )
