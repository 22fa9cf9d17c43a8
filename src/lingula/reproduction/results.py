"""The results of a reproduction: each row measured, compared with its parent, and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from lingula import about
from lingula.reporting.ladder import Ladder, Line, to_csv, to_html, to_markdown
from lingula.reproduction.jobs import Job, can_be_joined, ensembles_of, score_files
from lingula.reproduction.request import Request, count
from lingula.scores.ensembles import apply, model_wise
from lingula.scores.evaluation import evaluate_predictions
from lingula.scores.members import same_rows
from lingula.scores.predictions import Predictions, class_columns, read_scores
from lingula.scores.results import Evaluation
from lingula.settings.config import Data
from lingula.settings.label_space import group_by_prevalence
from lingula.settings.recipes import TABLE_1, TABLE_2, EnsembleRow, Row
from lingula.system import files
from lingula.tables.table import Table, class_counts, rows_of

DRAWS = 1000
COLUMNS = ("image encoder", "text encoder", "separate", "re-weighting", "MixUp", "TTA")

# For each seed the scores files by split.
Scores = Sequence[Mapping[str, Path]]
# Makes the ensembles of a row of Table 2 from the scores of its members, by name.
Join = Callable[[EnsembleRow, Mapping[str, Scores]], Scores]


@dataclass(frozen=True)
class Measure:
    """The table that every row is measured on, what its unknown cells mean, and its tail.

    `limit` is the training prevalence below which a class is in the tail.
    """

    table: Table
    data: Data
    limit: float

    @cached_property
    def tail(self) -> tuple[str, ...]:
        """The tail classes."""
        rows, limit = rows_of(self.table, "train"), self.limit
        counts = class_counts(self.table, rows)
        return group_by_prevalence(counts, len(rows), max(limit, 0.1), limit)["tail"]

    def __call__(
        self, scores: Predictions, split: str, against: Predictions | None = None
    ) -> Evaluation:
        """The evaluation of scores on a split, with an interval if they are compared."""
        return evaluate_predictions(
            scores,
            self.table,
            split=split,
            ci=0 if against is None else DRAWS,
            against=against,
            uncertain=self.data.uncertain,
            blank=self.data.blank,
        )

    def each_seed(self, scores: Scores, split: str) -> list[float]:
        """The mAP of each seed's training."""
        return [self(read_scores(paths[split]), split).metrics.mAP for paths in scores]

    def gain(
        self, scores: Predictions, parent: Predictions
    ) -> tuple[float, tuple[float, float] | None]:
        """The difference of test mAP to a parent's, and its interval."""
        found = self(scores, "test", parent).against
        assert found is not None
        return found.difference, found.ci


def average_seeds(paths: Sequence[Path]) -> Predictions:
    """The mean of several seeds' scores."""
    members = same_rows({f"{path.parent}": read_scores(path) for path in paths})
    return apply(model_wise(members), members)


def write_results(request: Request, jobs: Mapping[str, Job], table: Table, join: Join) -> None:
    """Measure all rows, and write the table as CSV, HTML and markdown."""
    measure = Measure(table, next(iter(jobs.values())).config.data, request.size.tail)
    scores = {name: score_files(request, job) for name, job in jobs.items()}
    if request.table == "table1":
        lines = _measure_table_1(request, jobs, scores, measure)
    else:
        lines = _measure_table_2(request, jobs, scores, measure, join)
    scale = f"`{request.scale}`" + (f", {request.epochs} epochs" if request.epochs else "")
    ladder = Ladder(
        f"Table {request.table[-1]} of the paper, at the scale {scale}",
        COLUMNS if request.table == "table1" else ("rule", "members"),
        tuple(lines),
        comparable=not table.phantom and request.scale == "paper",
        facts=_list_facts(request, jobs, measure, scale),
    )
    files.write_text(request.folder / f"{request.table}.csv", to_csv(ladder))
    files.write_text(request.folder / f"{request.table}.html", to_html(ladder))
    files.write_text(request.folder / f"{request.table}.md", to_markdown(ladder))


def _measure_table_1(
    request: Request, jobs: Mapping[str, Job], scores: Mapping[str, Scores], measure: Measure
) -> list[Line]:
    """The rows of Table 1, in the paper's order; a row that was not run says why."""
    lines = []
    for row in TABLE_1:
        line = _paper_line(row, TABLE_1, _describe_design(row))
        job = jobs.get(_short_name(row.name))
        if job is None:
            line = replace(line, note=_list_not_requested(request))
        elif job.missing:
            line = replace(line, note=job.missing)
        else:
            line = replace(line, note=job.note, seconds=_sum_seconds(request, job))
            parent = scores.get(line.parent, [])
            line = _measure(line, scores[job.name], parent, scores["t1r1"], measure)
        lines.append(line)
    return lines


def _measure_table_2(
    request: Request,
    jobs: Mapping[str, Job],
    scores: Mapping[str, Scores],
    measure: Measure,
    join: Join,
) -> list[Line]:
    """The rows of Table 2: ensembles of the trainings that were run."""
    joined: dict[str, Scores] = {}
    requested = ensembles_of(request.rows)
    lines = []
    for row in TABLE_2:
        members = {short: scores.get(short, []) for short in map(_short_name, row.members)}
        run = {short: found for short, found in members.items() if found}
        absent = ", ".join(short for short in members if short not in run)
        line = _paper_line(row, TABLE_2, (row.rule, ", ".join(run)))
        if row not in requested:
            line = replace(line, note=_list_not_requested(request))
        elif not can_be_joined(row, {f"paper/{short}" for short in run}):
            line = replace(line, note=f"not run: needs {absent}")
        else:
            joined[_short_name(row.name)] = ours = join(row, run)
            notes = [f"without {absent} (not run)"] if absent else []
            notes += sorted({jobs[short].note for short in run if jobs[short].note})
            line = replace(line, note="; ".join(notes))
            parent, first = joined.get(line.parent, []), joined.get("t2r1", [])
            line = _measure(line, ours, parent, first, measure)
        lines.append(line)
    return lines


def _short_name(name: str) -> str:
    return name.removeprefix("paper/")


def _paper_line(
    row: Row | EnsembleRow, table: Sequence[Row | EnsembleRow], design: tuple[str, ...]
) -> Line:
    """A line with the paper's figures."""
    parent = next((other for other in table if other.number == row.parent), None)
    if parent is None:
        return Line(row.name, design, "", row.mAP)
    return Line(row.name, design, _short_name(parent.name), row.mAP, row.mAP - parent.mAP)


def _measure(line: Line, scores: Scores, parent: Scores, first: Scores, measure: Measure) -> Line:
    """The line with our figures: means over seeds, and differences on scores averaged over them."""
    test = measure.each_seed(scores, "test")
    ours = average_seeds([seed["test"] for seed in scores])
    line = replace(
        line,
        dev=float(np.mean(measure.each_seed(scores, "dev"))),
        test=float(np.mean(test)),
        spread=float(np.std(test, ddof=1)) if len(scores) > 1 else None,
    )
    if parent:
        if len(scores) > 1:
            alone = np.subtract(test, measure.each_seed(parent, "test"))
            line = replace(line, alone=(float(alone.mean()), float(alone.std(ddof=1))))
        gain, ci = measure.gain(ours, average_seeds([seed["test"] for seed in parent]))
        line = replace(line, gain=gain, gain_ci=ci)
    if measure.tail:
        tail = _select(ours, measure.tail)
        line = replace(line, tail=measure(tail, "test").metrics.mAP)
        if first and first is not scores:
            theirs = average_seeds([seed["test"] for seed in first])
            gain, ci = measure.gain(tail, _select(theirs, measure.tail))
            line = replace(line, tail_gain=gain, tail_ci=ci)
    return line


def _select(predictions: Predictions, classes: Sequence[str]) -> Predictions:
    values = predictions.probabilities[:, class_columns(predictions, classes)]
    return replace(predictions, classes=tuple(classes), probabilities=values)


def _describe_design(row: Row) -> tuple[str, ...]:
    factor = "" if row.factor is None else f"x {row.factor}"
    marks = ["x" if on else "" for on in (row.separate, row.mixup, row.tta)]
    return (row.encoder, row.text, marks[0], factor, marks[1], marks[2])


def _list_not_requested(request: Request) -> str:
    return f"not run: not requested (--rows {', '.join(map(str, request.rows))})"


def _sum_seconds(request: Request, job: Job) -> float:
    if job.same_as is not None:
        return 0.0
    runs = [request.run(job.name, seed) for seed in range(request.seeds)]
    facts = [files.read_object(run / "finished.json", "seconds") for run in runs]
    return float(sum(fact["seconds"] for fact in facts))


def _list_facts(
    request: Request, jobs: Mapping[str, Job], measure: Measure, scale: str
) -> tuple[str, ...]:
    """What a reader of the table must know."""
    table = measure.table
    counts = {split: len(rows_of(table, split)) for split in ("train", "dev", "test")}
    data = "the phantom (synthetic)" if table.phantom else str(table.path)
    settings = f"Settings given by --set, for every training: {' '.join(request.settings)}."
    texts = sorted({job.config.model.text for job in jobs.values() if not job.missing})
    return (
        f"Data: {data}; {counts['train']} train, {counts['dev']} dev and {counts['test']} test "
        "images.",
        f"Scale {scale}; {count(request.seeds, 'seed')} per row. mAPs are means over seeds. "
        "The gain of a training is the difference in test mAP from the parent of the same seed. "
        "The gain of averaged seeds is computed on the mean of all seeds' scores, which is an "
        f"ensemble. Its 95 % interval comes from {DRAWS} paired bootstrap draws of patients and "
        "does not include the noise of the seed. The tail is measured on averaged seeds.",
        *([settings] if request.settings else []),
        f"Tail: {', '.join(measure.tail) or 'none'} (below {100 * measure.limit:g} % of the "
        "training images).",
        "Image encoders start from torchvision's ImageNet weights at the scale `paper` (our "
        "assumption); at `small` from encoders trained on another phantom (on a table of your own: "
        "from ImageNet); at `tiny` from random weights. At `small` and `tiny` learning rates are "
        "higher, the warm-up is 5 % of the steps, the decoder is smaller, and it reads the feature "
        "map before the encoder's last one.",
        f"Text encoders: {'; '.join(texts) or 'none'}.",
        "All scores are computed in fp32, whatever the precision of the trainings.",
        f"lingula {about.__version__}. {about.NOTICE}",
    )
