"""`lingula reproduce`: the paper's tables on one's own data, ours beside theirs.

Everything lies in one folder, and every part of it is made by the verb that makes it elsewhere, so
what is there is used again and what was interrupted is continued:

phantom/ phantom-nih/ ...  stand-ins/  phantom-start/  starts/resnet50.tv_in1k/
trainings/t1r1-s0/  scores/t1r3-s0/  ensembles/t2r1-s0/  table1.md  table1.csv  table1.html
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import lingula
from lingula.reporting.ladder import Ladder, to_csv, to_html, to_markdown
from lingula.reproduction.job_scripts import commands_of, gpu_script, slurm_script, stages_of
from lingula.reproduction.jobs import (
    Job,
    config_of,
    jobs_of,
    phantoms_of,
    scorings,
    starts_of,
    texts_of,
    unfinished,
)
from lingula.reproduction.lines import Made, Measure, facts_of, lines_of_table_1, lines_of_table_2
from lingula.reproduction.readiness import Films, films_of, make_ready, refuse
from lingula.reproduction.reproduction import Reproduction, checked
from lingula.settings.paper import EnsembleRow
from lingula.system import files
from lingula.system.errors import InputError
from lingula.system.waiting import by_the_first
from lingula.tables.table import Table
from lingula.verbs.data_phantom import data_phantom
from lingula.verbs.ensemble import ensemble
from lingula.verbs.predict import predict
from lingula.verbs.train import train

log = logging.getLogger("lingula")

COLUMNS = ("image encoder", "text encoder", "separate", "re-weighting", "MixUp", "TTA")


def reproduce(  # noqa: PLR0913 (an argument an option)
    table: str,
    *,
    out: str | Path,
    data: str | Path = "phantom",
    outside: Sequence[str | Path] = (),
    scale: str = "small",
    seeds: int = 1,
    epochs: int | None = None,
    texts: Mapping[str, str | Path] | None = None,
    stand_ins: Mapping[str, str | Path] | None = None,
    rows: Sequence[int] = (),
    cache: Sequence[str | Path] = (),
    settings: Sequence[str] = (),
    estimate: bool = False,
    print_jobs: bool = False,
    gpus: int | None = None,
    slurm: str | Path | None = None,
    template: str | Path | None = None,
    join: bool = False,
) -> Path | list[str]:
    """Train, score, join and measure what a table of the paper needs; write it as a table.

    Whatever is missing or wrong is told in one list before the first step of any training.

    Args:
        table: `table1` or `table2`.
        out: folder of everything; the same call continues what was interrupted.
        data: a table, or `phantom`.
        outside: tables of outside data for table 2; on the phantom its own stand-ins.
        scale: `tiny`, `small` or `paper`: image size, decoder, epochs and rates.
        seeds: trainings a row, with the seeds 0, 1, ...
        epochs: of every training, instead of the scale's.
        texts: folders of the real text encoders `med-kebert` and `clinical-t5`.
        stand_ins: folders of text encoders to use in their place; the table says so.
        rows: only these rows of the table and what they are compared with; none: all.
        cache: folders that `lingula data cache` made, for every training and prediction.
        settings: `key=value` for every training.
        estimate: return what it would cost instead, by some steps of each training on this machine.
        print_jobs: return the commands instead: one a training and prediction, then the one that
            joins them.
        gpus: return a bash script instead that keeps a job on each of so many GPUs.
        slurm: write a script to this file instead that submits itself to SLURM as job arrays.
        template: a site's script, whose `#SBATCH` lines and set-up that script takes over.
        join: train and score nothing; only join what is finished. What is not is named.

    Returns:
        The path of the table as markdown (.csv and .html lie beside it); or the commands, the bill
        or the script's path.
    """
    asked = Reproduction(
        table,
        Path(out).resolve(),
        None if str(data) == "phantom" else _absolute(data),
        tuple(map(_absolute, outside)),
        scale,
        seeds,
        epochs,
        {name: _absolute(place) for name, place in (texts or {}).items()},
        {name: _absolute(place) for name, place in (stand_ins or {}).items()},
        tuple(rows),
        tuple(map(_absolute, cache)),
        tuple(map(_absolute_setting, settings)),
    )
    as_jobs = print_jobs or gpus is not None or slurm is not None
    _check_ways(join, estimate, as_jobs, template is not None and slurm is None, gpus)
    if as_jobs or estimate:
        return _written(checked(asked), estimate, gpus, slurm, template)
    return _made(checked(asked), join)


def _written(
    asked: Reproduction,
    estimate: bool,
    gpus: int | None,
    slurm: str | Path | None,
    template: str | Path | None,
) -> Path | list[str]:
    """The bill, or the trainings as commands or scripts, in place of the trainings."""
    faults: list[str] = []
    jobs = jobs_of(asked, texts_of(asked, faults))
    if estimate:
        from lingula.reproduction.estimate import bill  # imports torch

        return bill(asked, jobs, faults)
    make_ready(asked, jobs, faults, join=False, here=False)
    stages = stages_of(asked, jobs)
    if slurm is not None:
        site = None if template is None else Path(template)
        return slurm_script(asked, stages, jobs, Path(slurm), site)
    return commands_of(stages, jobs) if gpus is None else gpu_script(asked, stages, jobs, gpus)


def _made(asked: Reproduction, join: bool) -> Path:
    """The table, after all trainings that are still to be done, unless only to `join` them."""
    faults: list[str] = []
    # To join what is finished needs no text encoder to be there.
    jobs = jobs_of(asked, texts_of(asked, [] if join else faults))
    films = make_ready(asked, jobs, faults, join=join, here=True)
    if not join:
        films = _train(asked, jobs, films, faults)
    assert films.table is not None
    if not join:
        _score(asked, jobs)
    with by_the_first() as first:
        if first:
            _write(asked, jobs, films.table)
    return asked.folder / f"{asked.table}.md"


def _absolute(place: str | Path) -> Path:
    return Path(place).expanduser().resolve()


def _absolute_setting(assignment: str) -> str:
    """The setting with a path made absolute, so that it means the same in any working folder."""
    key, _, value = assignment.partition("=")
    path = key == "data.root" or (key == "model.weights" and Path(value).expanduser().exists())
    return f"{key}={_absolute(value)}" if path else assignment


def _check_ways(
    join: bool, estimate: bool, as_jobs: bool, template_alone: bool, gpus: int | None
) -> None:
    if join + estimate + as_jobs > 1:
        raise InputError(
            "Give one of --estimate, --join, and --print-jobs (or --gpus, or --slurm): each does "
            "something else instead of the trainings."
        )
    if template_alone:
        raise InputError("--template is for the script that --slurm FILE writes.")
    if gpus is not None and gpus < 1:
        raise InputError(f"gpus is a number of GPUs, at least 1, not {gpus}.")


def _train(asked: Reproduction, jobs: Mapping[str, Job], films: Films, faults: list[str]) -> Films:
    """Draw the phantoms, train the encoders' starts, then the rows, all rows of a seed in turn.

    What is there is left as it is. Returns what is trained on, the phantom too.
    """
    for folder, wanted in phantoms_of(asked, jobs).items():
        data_phantom(folder, **wanted)
    if films.table is None:
        films = films_of(asked, jobs, faults)
        refuse(faults)
    for run, config in starts_of(asked, jobs).items():
        train(config, out=run)
    for job, seed in unfinished(asked, jobs):
        train(config_of(job, seed), out=asked.run(job.name, seed))
    return films


def _score(asked: Reproduction, jobs: Mapping[str, Job]) -> None:
    """Score the rows that share another one's training with their own views."""
    for wanted in scorings(asked, jobs):
        # What is there is only looked at, on a node without the device too.
        predict(**wanted | ({"device": "auto"} if wanted["out"].is_file() else {}))


def _scores(asked: Reproduction, job: Job) -> list[dict[str, Path]]:
    """For each seed the scores files by split; empty where the job was not run."""
    if job.missing:
        return []
    return [
        {
            split: asked.run(job.name, seed) / "scores" / f"{split}.csv"
            if job.same_as is None
            else asked.scores(job.name, seed, split)
            for split in ("dev", "test")
        }
        for seed in range(asked.seeds)
    ]


def _write(asked: Reproduction, jobs: Mapping[str, Job], table: Table) -> None:
    """Join the trainings to the table's lines, and write it in three formats."""
    made = {name: _scores(asked, job) for name, job in jobs.items()}
    measure = Measure(table, next(iter(jobs.values())).config.data, asked.size.tail)
    if asked.table == "table1":
        lines = lines_of_table_1(asked, jobs, made, measure)
    else:
        join = partial(_ensembles, asked, made)
        lines = lines_of_table_2(asked, jobs, made, measure, join)
    said = f"`{asked.scale}`" + (f", {asked.epochs} epochs" if asked.epochs else "")
    ladder = Ladder(
        f"Table {asked.table[-1]} of the paper, at the scale {said}",
        COLUMNS if asked.table == "table1" else ("rule", "members"),
        tuple(lines),
        comparable=not table.phantom and asked.scale == "paper",
        facts=facts_of(asked, jobs, measure, said),
    )
    folder = asked.folder
    files.write_text(folder / f"{asked.table}.csv", to_csv(ladder))
    files.write_text(folder / f"{asked.table}.html", to_html(ladder, lingula.NOTICE))
    files.write_text(folder / f"{asked.table}.md", to_markdown(ladder))


def _ensembles(
    asked: Reproduction, made: Made, row: EnsembleRow, names: Sequence[str]
) -> list[dict[str, Path]]:
    """One ensemble a seed, of that seed's trainings; its scores files by split."""
    found = []
    for seed in range(asked.seeds):
        members = [(name, made[name][seed]["dev"], made[name][seed]["test"]) for name in names]
        out = asked.folder / "ensembles" / f"t2r{row.number}-s{seed}"
        other = _has_other_members(out, members)
        place = ensemble(row.rule, members=members, labels=asked.own, out=out, overwrite=other)
        found.append({split: place / "scores" / f"{split}.csv" for split in ("dev", "test")})
    return found


def _has_other_members(out: Path, members: Sequence[tuple[str, Path, Path]]) -> bool:
    """Whether an ensemble was made of other trainings: more of them may have been run since."""
    made = out / "ensemble.json"
    if not made.is_file():
        return False
    before = files.read_object(made).get("made_from", {}).get("members")
    now = {name: [files.sha256(dev), files.sha256(test)] for name, dev, test in members}
    return bool(before != now)
