"""`lingula evaluate`: scores against labels, without torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lingula.scores.evaluation import Setting, evaluate_predictions
from lingula.scores.predictions import read_scores, warn_of_doubt
from lingula.scores.results import Evaluation
from lingula.scores.subgroups import DECADES, split_names
from lingula.system import files
from lingula.system.errors import InputError, nearest
from lingula.tables.reading import read_table
from lingula.training.run_labels import warn_of_other_formats, warn_of_other_labels
from lingula.verbs.calibrate import calibrated_with, read_calibration


def evaluate(  # noqa: PLR0913 (an argument an option)
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
    threshold: float | str | Path = 0.5,
    fuse: str = "mean",
    subgroups: Sequence[str] = (),
    age_edges: Sequence[int] = DECADES,
) -> Evaluation:
    """AP, AUROC and more per class, their means, head / medium / tail; with `ci` intervals.

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
        threshold: the score from which a class is found; or a JSON file with one per class: such as
            `{"Edema": 0.3}`, the same under the key `thresholds`, or `RUN/calibration.json` (with
            `#RULE` after it where that has several, such as `#youden`). Classes that it does not
            name have 0.5, and are named in the result.
        fuse: a study's images as one, with `by="study"`: `mean`, `max`, `views` or weights.
        subgroups: `view`, `sex`, `age`, `source` or classes, to measure apart as well; several in
            one text by commas.
        age_edges: first years of the age bands but the first.

    A warning tells where `labels` has another hash than the table that the scores' run was trained
    on, or than it had when the scores were made; another, where the scores compared were computed
    in different number formats.
    """
    predictions = read_scores(scores)
    other = None if against is None else read_scores(against)
    for given in (predictions, other):
        if given is not None:
            warn_of_doubt(given)
    table = read_table(labels, ignore_columns=ignore_columns, soft=soft, named=predictions.classes)
    files_given = [Path(file) for file in (scores, against) if file is not None]
    warn_of_other_formats(files_given)
    warn_of_other_labels((file, Path(labels), table.sha256) for file in files_given)
    return evaluate_predictions(
        predictions,
        table,
        split=split,
        by=by,
        ci=ci,
        seed=seed,
        against=other,
        uncertain=uncertain,
        blank=blank,
        unmentioned=unmentioned,
        setting=Setting(
            _thresholds(threshold, Path(scores)), fuse, split_names(subgroups, table), age_edges
        ),
    )


def _thresholds(given: float | str | Path, scores: Path) -> float | dict[str, float]:
    """A number, or the numbers by class of a JSON file; `InputError` for anything else."""
    try:
        return float(given)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        file, rule = Path(str(given)), ""
    if not file.is_file() and "#" in str(given):
        name, _, rule = str(given).rpartition("#")
        file = Path(name)
    if not file.is_file():
        told = files.not_a_file(file, "file")
        raise InputError(f"--threshold is a number or a JSON file. {told}")
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise InputError(f"{file} is no JSON: {error}.") from None
    if isinstance(found, dict) and found.get("kind") == "calibration":
        return _calibrated_thresholds(file, rule, scores)
    found = found.get("thresholds", found) if isinstance(found, dict) else found
    numbers = isinstance(found, dict) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in found.values()
    )
    if not numbers or not found or rule:
        raise InputError(f'{file} must contain one threshold per class, such as {{"Edema": 0.3}}.')
    return {name: float(value) for name, value in found.items()}


def _calibrated_thresholds(file: Path, rule: str, scores: Path) -> dict[str, float]:
    """The thresholds that `lingula calibrate` saved, on the scale of these scores.

    Raises `InputError` where it is not told which of several rules, or where the scores were
    calibrated by another file.
    """
    classes = read_calibration(file).classes
    rules = list(dict.fromkeys(name for item in classes.values() for name in item.thresholds))
    if rule not in rules and (rule or len(rules) != 1):
        what = f"has no thresholds '{rule}'" if rule else "has thresholds by several rules"
        raise InputError(
            f"{file} {what}: {', '.join(rules)}.{nearest(rule, rules)} Say which: --threshold "
            f"'{file}#{rules[0] if rules else 'max-f1'}'."
        )
    by = calibrated_with(scores)
    if by is not None and by != files.sha256(file):
        raise InputError(
            f"{scores} was calibrated by another file than {file}, whose thresholds are of its own "
            "scale. Give the calibration that it was made with, or the raw scores."
        )
    found = {name: item.thresholds[rule or rules[0]] for name, item in classes.items()}
    return {name: one.score if by is None else one.calibrated for name, one in found.items()}
