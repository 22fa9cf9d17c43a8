"""The figures of a reproduction: each row measured, and compared with its parent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

import lingula
from lingula.reporting.ladder import Line
from lingula.reproduction.jobs import Job, can_be_joined, ensembles_of
from lingula.reproduction.reproduction import Reproduction
from lingula.scores.ensembles import apply, model_wise
from lingula.scores.evaluated import Evaluation
from lingula.scores.evaluation import evaluate_predictions
from lingula.scores.members import same_rows
from lingula.scores.predictions import Predictions, class_columns, read_scores
from lingula.settings.config import Data
from lingula.settings.label_space import groups
from lingula.settings.paper import TABLE_1, TABLE_2, EnsembleRow, Row
from lingula.system import files
from lingula.tables.table import Table, class_counts, rows_of

DRAWS = 1000


def averaged(paths: Sequence[Path]) -> Predictions:
    """The mean of several seeds' scores."""
    members = same_rows({f"{path.parent}": read_scores(path) for path in paths})
    return apply(model_wise(members), members)


def _only(predictions: Predictions, classes: Sequence[str]) -> Predictions:
    columns = class_columns(predictions, classes)
    return replace(
        predictions, classes=tuple(classes), probabilities=predictions.probabilities[:, columns]
    )


def tail_classes(table: Table, limit: float) -> tuple[str, ...]:
    """Classes with a training prevalence below `limit`."""
    rows = rows_of(table, "train")
    return groups(class_counts(table, rows), len(rows), max(limit, 0.1), limit)["tail"]


@dataclass(frozen=True)
class Measure:
    """What every row is measured on, and how: a table, what its unknown cells mean, its tail.

    `limit` is the training prevalence below which a class is in the tail.
    """

    table: Table
    data: Data
    limit: float

    @cached_property
    def tail(self) -> tuple[str, ...]:
        """The tail classes."""
        return tail_classes(self.table, self.limit)

    def __call__(
        self, scores: Predictions, split: str, against: Predictions | None = None
    ) -> Evaluation:
        """The evaluation of scores on a split, with an interval where they are compared."""
        return evaluate_predictions(
            scores,
            self.table,
            split=split,
            ci=0 if against is None else DRAWS,
            against=against,
            uncertain=self.data.uncertain,
            blank=self.data.blank,
        )


def measured_line(
    line: Line,
    scores: Sequence[Mapping[str, Path]],
    parent: Sequence[Mapping[str, Path]],
    first: Sequence[Mapping[str, Path]],
    measure: Measure,
) -> Line:
    """The line with our figures: means over seeds, and differences on scores averaged over them."""
    single = {split: _each(scores, split, measure) for split in ("dev", "test")}
    ours = averaged([seed["test"] for seed in scores])
    line = replace(
        line,
        dev=float(np.mean(single["dev"])),
        test=float(np.mean(single["test"])),
        spread=float(np.std(single["test"], ddof=1)) if len(scores) > 1 else None,
    )
    if parent:
        if len(scores) > 1:
            alone = np.subtract(single["test"], _each(parent, "test", measure))
            line = replace(line, alone=(float(alone.mean()), float(alone.std(ddof=1))))
        theirs = averaged([seed["test"] for seed in parent])
        found = measure(ours, "test", theirs).against
        assert found is not None
        line = replace(line, gain=found.difference, gain_ci=found.ci)
    if measure.tail:
        part = _only(ours, measure.tail)
        line = replace(line, tail=measure(part, "test").found.mAP)
        if first and first is not scores:
            theirs = _only(averaged([seed["test"] for seed in first]), measure.tail)
            found = measure(part, "test", theirs).against
            assert found is not None
            line = replace(line, tail_gain=found.difference, tail_ci=found.ci)
    return line


def _each(seeds: Sequence[Mapping[str, Path]], split: str, measure: Measure) -> list[float]:
    """The mAP of each seed's training."""
    return [measure(read_scores(paths[split]), split).found.mAP for paths in seeds]


def _design(row: Row) -> tuple[str, ...]:
    factor = "" if row.factor is None else f"x {row.factor}"
    marks = ["x" if on else "" for on in (row.separate, row.mixup, row.tta)]
    return (row.encoder, row.text, marks[0], factor, marks[1], marks[2])


Made = Mapping[str, list[dict[str, Path]]]
Join = Callable[[EnsembleRow, Sequence[str]], list[dict[str, Path]]]


def lines_of_table_1(
    asked: Reproduction, jobs: Mapping[str, Job], made: Made, measure: Measure
) -> list[Line]:
    """The rows of Table 1, in the paper's order; a row that was not run says why.

    `made` has for each training and seed the scores files by split.
    """
    by_number = {row.number: row for row in TABLE_1}
    lines = []
    for row in TABLE_1:
        short = f"t1r{row.number}"
        above = None if row.parent is None else by_number[row.parent]
        line = Line(row.name, _design(row), f"t1r{row.parent}" if above else "", row.mAP)
        if above is not None:
            line = replace(line, paper_gain=row.mAP - above.mAP)
        if short not in jobs:
            line = replace(line, note=_not_asked(asked))
        elif not made[short]:
            line = replace(line, note=jobs[short].missing)
        else:
            line = replace(line, note=jobs[short].note, seconds=_seconds(asked, jobs[short]))
            parent = made.get(f"t1r{row.parent}", [])
            line = measured_line(line, made[short], parent, made["t1r1"], measure)
        lines.append(line)
    return lines


def _not_asked(asked: Reproduction) -> str:
    return f"not run: rows {', '.join(map(str, asked.rows))} were asked for"


def _seconds(asked: Reproduction, job: Job) -> float:
    if job.same_as is not None:
        return 0.0
    runs = [asked.run(job.name, seed) for seed in range(asked.seeds)]
    facts = [files.read_object(run / "finished.json", "seconds") for run in runs]
    return float(sum(fact["seconds"] for fact in facts))


def lines_of_table_2(
    asked: Reproduction, jobs: Mapping[str, Job], made: Made, measure: Measure, join: Join
) -> list[Line]:
    """The rows of Table 2: ensembles of the trainings that were run, which `join` makes."""
    joined: dict[int, list[dict[str, Path]]] = {}
    wanted = ensembles_of(asked.rows)
    lines = []
    for row in TABLE_2:
        shorts = [name.removeprefix("paper/") for name in row.members]
        there = [short for short in shorts if made.get(short)]
        absent = [short for short in shorts if short not in there]
        above = next((other for other in TABLE_2 if other.number == row.parent), None)
        line = Line(
            row.name, (row.rule, ", ".join(there)), f"t2r{row.parent}" if above else "", row.mAP
        )
        if above is not None:
            line = replace(line, paper_gain=row.mAP - above.mAP)
        if row not in wanted:
            line = replace(line, note=_not_asked(asked))
        elif not can_be_joined(row, {f"paper/{short}" for short in there}):
            line = replace(line, note=f"not run: needs {', '.join(absent)}")
        else:
            joined[row.number] = join(row, there)
            said = [f"without {', '.join(absent)} (not run)"] if absent else []
            said += sorted({jobs[short].note for short in there if jobs[short].note})
            line = replace(line, note="; ".join(said))
            above_scores = joined.get(row.parent or 0, [])
            first = joined.get(1, [])
            line = measured_line(line, joined[row.number], above_scores, first, measure)
        lines.append(line)
    return lines


def facts_of(
    asked: Reproduction, jobs: Mapping[str, Job], measure: Measure, said: str
) -> tuple[str, ...]:
    """What must be known to read the table."""
    table, seeds = measure.table, asked.seeds
    counts = {split: len(rows_of(table, split)) for split in ("train", "dev", "test")}
    what = "the phantom (synthetic)" if table.phantom else str(table.path)
    own = [f"Settings of one's own, for every training: {' '.join(asked.settings)}."]
    return (
        f"Data: {what}; {counts['train']} train, {counts['dev']} dev and {counts['test']} test "
        "images.",
        f"Scale {said}; {seeds} seed{'s' if seeds > 1 else ''} a row. mAPs are means over "
        "seeds. The gain of a training is the difference of test mAP to the parent of the same "
        "seed. The gain of averaged seeds is that of the mean of all seeds' scores, an ensemble, "
        f"with a 95 % interval from {DRAWS} paired bootstrap draws of patients, which does not "
        "contain the noise of the seed. The tail is measured on averaged seeds.",
        *(own if asked.settings else []),
        f"Tail: {', '.join(measure.tail) or 'none'} (below {100 * measure.limit:g} % of the "
        "training images).",
        "Image encoders start from torchvision's ImageNet weights at the scale `paper` (our "
        "assumption), at `small` from encoders trained on another phantom (on one's own table: "
        "from ImageNet), at `tiny` at random. Away from `paper` the rates are raised, the warm-up "
        "is 5 % of the steps, the decoder is smaller, and the map before the encoder's last one is "
        "used.",
        f"Text encoders: {'; '.join(_texts(jobs)) or 'none'}.",
        "All scores are computed in fp32, whatever the trainings ran in.",
        f"lingula {lingula.__version__}. {lingula.NOTICE}",
    )


def _texts(jobs: Mapping[str, Job]) -> list[str]:
    """The text encoders that the trainings used."""
    return sorted({job.config.model.text for job in jobs.values() if not job.missing})
