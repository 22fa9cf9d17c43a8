"""The figures of a reproduction: each row measured, and compared with its parent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

import lingula
from lingula import ensembles
from lingula.data.table import Table, class_counts, rows_of
from lingula.ensembles import model_wise, same_rows
from lingula.evaluation import evaluate_predictions
from lingula.labels import groups
from lingula.paper import TABLE_1, TABLE_2, Row, Scale
from lingula.predictions import Predictions, class_columns, read_scores
from lingula.reporting.ladder import Line
from lingula.verbs.ensemble import ensemble
from lingula.verbs.jobs import Job

DRAWS = 1000


def averaged(paths: Sequence[Path]) -> Predictions:
    """The mean of several seeds' scores."""
    members = same_rows({f"{path.parent}": read_scores(path) for path in paths})
    return ensembles.apply(model_wise(members), members)


def _only(predictions: Predictions, classes: Sequence[str]) -> Predictions:
    columns = class_columns(predictions, classes)
    return replace(
        predictions, classes=tuple(classes), probabilities=predictions.probabilities[:, columns]
    )


def tail_classes(table: Table, limit: float) -> tuple[str, ...]:
    """Classes with a training prevalence below `limit`."""
    rows = rows_of(table, "train")
    return groups(class_counts(table, rows), len(rows), max(limit, 0.1), limit)["tail"]


def measured_line(
    line: Line,
    scores: Sequence[Mapping[str, Path]],
    parent: Sequence[Mapping[str, Path]],
    first: Sequence[Mapping[str, Path]],
    table: Table,
    tail: Sequence[str],
) -> Line:
    """The line with our figures: means over seeds, and differences on scores averaged over them."""
    single = {split: _each(scores, split, table) for split in ("dev", "test")}
    ours = averaged([seed["test"] for seed in scores])
    line = replace(
        line,
        dev=float(np.mean(single["dev"])),
        test=float(np.mean(single["test"])),
        spread=float(np.std(single["test"], ddof=1)) if len(scores) > 1 else None,
    )
    if parent:
        if len(scores) > 1:
            alone = np.subtract(single["test"], _each(parent, "test", table))
            line = replace(line, alone=(float(alone.mean()), float(alone.std(ddof=1))))
        theirs = averaged([seed["test"] for seed in parent])
        found = evaluate_predictions(ours, table, split="test", ci=DRAWS, against=theirs).against
        assert found is not None
        line = replace(line, gain=found.difference, gain_ci=found.ci)
    if tail:
        part = _only(ours, tail)
        line = replace(line, tail=evaluate_predictions(part, table, split="test").found.mAP)
        if first and first is not scores:
            theirs = _only(averaged([seed["test"] for seed in first]), tail)
            found = evaluate_predictions(
                part, table, split="test", ci=DRAWS, against=theirs
            ).against
            assert found is not None
            line = replace(line, tail_gain=found.difference, tail_ci=found.ci)
    return line


def _each(seeds: Sequence[Mapping[str, Path]], split: str, table: Table) -> list[float]:
    """The mAP of each seed's training."""
    found = (evaluate_predictions(read_scores(s[split]), table, split=split) for s in seeds)
    return [each.found.mAP for each in found]


def _design(row: Row) -> tuple[str, ...]:
    factor = "" if row.factor is None else f"x {row.factor}"
    marks = ["x" if on else "" for on in (row.separate, row.mixup, row.tta)]
    return (row.encoder, row.text, marks[0], factor, marks[1], marks[2])


def lines_of_table_1(
    jobs: Mapping[str, Job],
    made: Mapping[str, list[dict[str, Path]]],
    folder: Path,
    seeds: int,
    table: Table,
    size: Scale,
    rows: Sequence[int],
) -> list[Line]:
    """The rows of Table 1, in the paper's order; a row that was not run says why."""
    by_number, tail = {row.number: row for row in TABLE_1}, tail_classes(table, size.tail)
    lines = []
    for row in TABLE_1:
        short = f"t1r{row.number}"
        above = None if row.parent is None else by_number[row.parent]
        line = Line(row.name, _design(row), f"t1r{row.parent}" if above else "", row.mAP)
        if above is not None:
            line = replace(line, paper_gain=row.mAP - above.mAP)
        if short not in jobs:
            line = replace(line, note=f"not run: rows {', '.join(map(str, rows))} were asked for")
        elif not made[short]:
            line = replace(line, note=jobs[short].missing)
        else:
            line = replace(
                line, note=jobs[short].note, seconds=_seconds(jobs[short], folder, seeds)
            )
            parent = made.get(f"t1r{row.parent}", [])
            line = measured_line(line, made[short], parent, made["t1r1"], table, tail)
        lines.append(line)
    return lines


def _seconds(job: Job, folder: Path, seeds: int) -> float:
    if job.same_as is not None:
        return 0.0
    runs = [folder / "trainings" / f"{job.name}-s{seed}" for seed in range(seeds)]
    facts = [json.loads((run / "finished.json").read_text(encoding="utf-8")) for run in runs]
    return float(sum(fact["seconds"] for fact in facts))


def lines_of_table_2(
    made: Mapping[str, list[dict[str, Path]]],
    notes: Mapping[str, str],
    folder: Path,
    seeds: int,
    table: Table,
    size: Scale,
    rows: Sequence[int],
) -> list[Line]:
    """The rows of Table 2: ensembles of the trainings that were run."""
    tail = tail_classes(table, size.tail)
    joined: dict[int, list[dict[str, Path]]] = {}
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
        if rows and row.number not in rows:
            line = replace(line, note=f"not run: rows {', '.join(map(str, rows))} were asked for")
        elif len(there) < 2 or (row.number == 3 and "exo-both" in absent):
            line = replace(line, note=f"not run: needs {', '.join(absent)}")
        else:
            joined[row.number] = _ensembles(row.number, row.rule, there, made, folder, seeds, table)
            said = [f"without {', '.join(absent)} (not run)"] if absent else []
            said += sorted({notes[short] for short in there if notes[short]})
            line = replace(line, note="; ".join(said))
            above_scores = joined.get(row.parent or 0, [])
            first = joined.get(1, [])
            line = measured_line(line, joined[row.number], above_scores, first, table, tail)
        lines.append(line)
    return lines


def _ensembles(
    number: int,
    rule: str,
    members: Sequence[str],
    made: Mapping[str, list[dict[str, Path]]],
    folder: Path,
    seeds: int,
    table: Table,
) -> list[dict[str, Path]]:
    """One ensemble a seed, of that seed's trainings; its scores files by split."""
    found = []
    for seed in range(seeds):
        place = ensemble(
            rule,
            members=[(m, made[m][seed]["dev"], made[m][seed]["test"]) for m in members],
            labels=table.path,
            out=folder / "ensembles" / f"t2r{number}-s{seed}",
        )
        found.append({split: place / "scores" / f"{split}.csv" for split in ("dev", "test")})
    return found


def facts_of(table: Table, scale: str, size: Scale, seeds: int) -> tuple[str, ...]:
    """What must be known to read the table."""
    counts = {split: len(rows_of(table, split)) for split in ("train", "dev", "test")}
    tail = tail_classes(table, size.tail)
    what = "the phantom (synthetic)" if table.phantom else str(table.path)
    return (
        f"Data: {what}; {counts['train']} train, {counts['dev']} dev and {counts['test']} test "
        "images.",
        f"Scale {scale}; {seeds} seed{'s' if seeds > 1 else ''} a row. mAPs are means over "
        "seeds. The gain of a training is the difference of test mAP to the parent of the same "
        "seed. The gain of averaged seeds is that of the mean of all seeds' scores, an ensemble, "
        f"with a 95 % interval from {DRAWS} paired bootstrap draws of patients, which does not "
        "contain the noise of the seed. The tail is measured on averaged seeds.",
        f"Tail: {', '.join(tail) or 'none'} (below {100 * size.tail:g} % of the training images).",
        "Image encoders start from ImageNet at the scale `paper` (our assumption), at random at "
        "the others, where the rates are raised (the decoder's less), the warm-up is 5 % of the "
        "steps, the decoder is smaller, and the map before the encoder's last one is used.",
        f"lingula {lingula.__version__}. {lingula.NOTICE}",
    )
