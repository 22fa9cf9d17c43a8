"""`lingula reproduce`: the paper's tables on one's own data, ours beside theirs.

Everything lies in one folder, and every part of it is made by the verb that makes it elsewhere, so
what is there is used again and what was interrupted is continued:

phantom/ phantom-nih/ ...  stand-ins/  trainings/t1r1-s0/  scores/t1r3-s0/  ensembles/t2r1-s0/
table1.md  table1.csv  table1.html
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import lingula
from lingula import files
from lingula.config import vary
from lingula.data.configured import configured_table
from lingula.data.table import Table, rows_of
from lingula.errors import InputError, nearest
from lingula.paper import SCALES, Scale
from lingula.recipe import recipe
from lingula.reporting.ladder import Ladder, to_csv, to_html, to_markdown
from lingula.verbs.data_phantom import data_phantom
from lingula.verbs.jobs import Job, commands_of, jobs_of, texts_of
from lingula.verbs.lines import facts_of, lines_of_table_1, lines_of_table_2
from lingula.verbs.predict import predict
from lingula.verbs.train import train

log = logging.getLogger("lingula")

COLUMNS = ("image encoder", "text encoder", "separate", "re-weighting", "MixUp", "TTA")


def reproduce(
    table: str,
    *,
    out: str | Path,
    data: str | Path = "phantom",
    outside: Sequence[str | Path] = (),
    scale: str = "small",
    seeds: int = 1,
    epochs: int | None = None,
    stand_ins: Mapping[str, str | Path] | None = None,
    rows: Sequence[int] = (),
    print_jobs: bool = False,
) -> Path | list[str]:
    """Train, score, join and measure what a table of the paper needs; write it as a table.

    Args:
        table: `table1` or `table2`.
        out: folder of everything; the same call continues what was interrupted.
        data: a table, or `phantom`.
        outside: tables of outside data for table 2; on the phantom its own stand-ins.
        scale: `tiny`, `small` or `paper`: image size, decoder, epochs and rates.
        seeds: trainings a row, with the seeds 0, 1, ...
        epochs: of every training, instead of the scale's.
        stand_ins: folders of text encoders to use for those named `med-kebert` or `clinical-t5`;
            the table says so.
        rows: only these rows of the table and what they are compared with; none: all.
        print_jobs: return the commands instead: one a training, then this one to join them.

    Returns:
        The path of the table as markdown (.csv and .html lie beside it), or the commands.
    """
    _check(table, scale, seeds)
    folder, size = Path(out), _sized(scale, epochs)
    own, others = _data(folder, data, outside, size, scale, table, dry=print_jobs)
    texts = texts_of(folder, stand_ins or {}, scale)
    jobs = jobs_of(table, rows, own, others, texts, size)
    if print_jobs:
        return commands_of(
            jobs, seeds, folder, table, data, outside, scale, stand_ins or {}, rows, epochs
        )
    measured = configured_table(recipe("paper/t1r1").data.model_copy(update={"table": str(own)}))
    for seed in range(seeds):
        for job in jobs.values():
            if not job.missing:
                _run(job, seed, folder, measured)
    made = {name: _scores(job, jobs, folder, seeds) for name, job in jobs.items()}
    notes = {name: job.note for name, job in jobs.items()}
    if table == "table1":
        lines = lines_of_table_1(jobs, made, folder, seeds, measured, size, rows)
    else:
        lines = lines_of_table_2(made, notes, folder, seeds, measured, size, rows)
    said = f"`{scale}`" + (f", {epochs} epochs" if epochs else "")
    facts = facts_of(measured, said, size, seeds)
    ladder = Ladder(
        f"Table {table[-1]} of the paper, at the scale {said}",
        COLUMNS if table == "table1" else ("rule", "members"),
        tuple(lines),
        comparable=not measured.phantom and scale == "paper",
        facts=facts,
    )
    files.write_text(folder / f"{table}.csv", to_csv(ladder))
    files.write_text(folder / f"{table}.html", to_html(ladder, lingula.NOTICE))
    files.write_text(folder / f"{table}.md", to_markdown(ladder))
    return folder / f"{table}.md"


def _check(table: str, scale: str, seeds: int) -> None:
    if table not in ("table1", "table2"):
        raise InputError(f"The paper has table1 and table2, not '{table}'.")
    if scale not in SCALES:
        raise InputError(
            f"There is no scale '{scale}'.{nearest(scale, SCALES)} There are {', '.join(SCALES)}."
        )
    if seeds < 1:
        raise InputError(f"seeds is a number of trainings a row, at least 1, not {seeds}.")


def _sized(scale: str, epochs: int | None) -> Scale:
    """The scale, with epochs of one's own if given."""
    size = SCALES[scale]
    if epochs is None:
        return size
    if epochs < 1:
        raise InputError(f"epochs is at least 1, not {epochs}.")
    return replace(size, changes={**size.changes, "optim__epochs": epochs})


def _data(
    folder: Path,
    data: str | Path,
    outside: Sequence[str | Path],
    size: Scale,
    scale: str,
    table: str,
    *,
    dry: bool,
) -> tuple[Path, tuple[Path, ...]]:
    """The tables to work on; phantoms are drawn unless `dry`."""
    if str(data) != "phantom":
        path = Path(data)
        if not path.is_file():
            raise InputError(f"There is no table {path}.")
        return path.resolve(), tuple(Path(other).resolve() for other in outside)
    if outside:
        raise InputError("On the phantom the outside data are phantoms too; leave --outside out.")
    own, others = folder / "phantom", [folder / "phantom-nih", folder / "phantom-chexpert"]
    if not dry:
        data_phantom(
            own, n=size.images, size=size.size, imbalance=size.imbalance, shares=size.shares
        )
        for other in others if table == "table2" else ():
            style = other.name.removeprefix("phantom-")
            data_phantom(other, n=size.outside, size=size.size, style=style, shares=(0.0, 0.0))
    return (own / "labels.csv").resolve(), tuple((o / "labels.csv").resolve() for o in others)


def _run(job: Job, seed: int, folder: Path, table: Table) -> None:
    """Train, or, where another row shares the training, only score its model with other views."""
    config = vary(job.config, seed=seed)
    if job.same_as is None:
        train(config, out=folder / "trainings" / f"{job.name}-s{seed}")
        return
    for split in ("dev", "test"):
        if len(rows_of(table, split)):
            predict(
                folder / "trainings" / f"{job.same_as}-s{seed}",
                data=str(table.path),
                split=split,
                tta=config.evaluation.tta,
                out=folder / "scores" / f"{job.name}-s{seed}" / f"{split}.csv",
            )


def _scores(job: Job, jobs: Mapping[str, Job], folder: Path, seeds: int) -> list[dict[str, Path]]:
    """For each seed the scores files by split; empty where the job was not run."""
    if job.missing or (job.same_as is not None and jobs[job.same_as].missing):
        return []
    place = folder / ("scores" if job.same_as else "trainings")
    inner = "" if job.same_as else "scores"
    return [
        {split: place / f"{job.name}-s{seed}" / inner / f"{split}.csv" for split in ("dev", "test")}
        for seed in range(seeds)
    ]
