"""`lingula reproduce`: the paper's tables on one's own data, ours beside theirs.

Everything is in one folder, and each part of it is made by the verb that makes it elsewhere, so
finished parts are used again and interrupted ones are continued:

phantom/ phantom-nih/ ...  stand-ins/  phantom-start/  starts/resnet50.tv_in1k/
trainings/t1r1-s0/  scores/t1r3-s0/  ensembles/t2r1-s0/  table1.md  table1.csv  table1.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from lingula.reproduction.jobs import (
    find_texts,
    list_phantoms,
    list_predictions,
    list_starts,
    list_trainings,
    plan_jobs,
)
from lingula.reproduction.request import Request, check_request
from lingula.settings.recipes import EnsembleRow
from lingula.system import files
from lingula.system.errors import InputError
from lingula.system.processes import let_others_wait
from lingula.verbs.data_phantom import data_phantom
from lingula.verbs.ensemble import ensemble
from lingula.verbs.predict import predict
from lingula.verbs.train import train


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
    """Train, score, ensemble and measure all rows of a table of the paper; write the table.

    Everything that is missing or wrong is listed before the first step of any training.

    Args:
        table: `table1` or `table2`.
        out: the folder of everything; the same call continues what was interrupted.
        data: a table, or `phantom`.
        outside: tables of outside data for table 2; the phantom has its own.
        scale: `tiny`, `small` or `paper`: image size, decoder, epochs and rates.
        seeds: trainings per row, with the seeds 0, 1, ...
        epochs: of every training, instead of the scale's.
        texts: folders of the real text encoders `med-kebert` and `clinical-t5`.
        stand_ins: folders of text encoders to use instead of these; the table says so.
        rows: only these rows of the table and what they are compared with; none: all.
        cache: folders that `lingula data cache` wrote, for every training and prediction.
        settings: `key=value` for every training.
        estimate: only return the cost, from some steps of each training on this machine.
        print_jobs: only return the commands: one per training and prediction, then the one that
            joins them.
        gpus: only return a bash script that runs one job on each of so many GPUs.
        slurm: only write a script to this file that submits itself to SLURM as job arrays.
        template: a site's script, whose `#SBATCH` lines and set-up are used in that script.
        join: train and score nothing; only join what is finished, and name what is not.

    Returns:
        The path of the table as markdown (with .csv and .html beside it); or the commands, the
        lines of the cost, or the script's path.
    """
    request = Request(
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
    _check_modes(join, estimate, as_jobs, template is not None and slurm is None, gpus)
    check_request(request)
    if as_jobs:
        return _write_jobs(request, gpus, slurm, template)
    if estimate:
        from lingula.reproduction.estimate import estimate_cost  # imports torch

        faults: list[str] = []
        return estimate_cost(request, plan_jobs(request, find_texts(request, faults)), faults)
    return _run(request, join)


def _check_modes(
    join: bool, estimate: bool, as_jobs: bool, unused_template: bool, gpus: int | None
) -> None:
    if join + estimate + as_jobs > 1:
        raise InputError(
            "Give only one of --estimate, --join, and --print-jobs (or --gpus, or --slurm): each "
            "does something else instead of the trainings."
        )
    if unused_template:
        raise InputError("--template is for the script that --slurm FILE writes.")
    if gpus is not None and gpus < 1:
        raise InputError(f"gpus is a number of GPUs, at least 1, not {gpus}.")


def _absolute(place: str | Path) -> Path:
    return Path(place).expanduser().resolve()


def _absolute_setting(assignment: str) -> str:
    """The setting with a path made absolute, so that it means the same in any working folder."""
    key, _, value = assignment.partition("=")
    path = key == "data.root" or (key == "model.weights" and Path(value).expanduser().exists())
    return f"{key}={_absolute(value)}" if path else assignment


def _write_jobs(
    request: Request, gpus: int | None, slurm: str | Path | None, template: str | Path | None
) -> Path | list[str]:
    """The commands, or a script that runs them, instead of running them here."""
    from lingula.reproduction.readiness import check_readiness  # imports torch
    from lingula.reproduction.scripts import (
        gpu_script,
        list_commands,
        list_stages,
        write_slurm_script,
    )

    faults: list[str] = []
    jobs = plan_jobs(request, find_texts(request, faults))
    check_readiness(request, jobs, faults, join=False, here=False)
    stages = list_stages(request, jobs)
    if slurm is not None:
        site = None if template is None else Path(template)
        return write_slurm_script(request, stages, jobs, Path(slurm), site)
    return list_commands(stages, jobs) if gpus is None else gpu_script(request, stages, jobs, gpus)


def _run(request: Request, join: bool) -> Path:
    """Do all that is not done yet, unless only to `join` it, and write the table."""
    from lingula.reproduction.readiness import (  # imports torch
        check_readiness,
        raise_faults,
        read_images,
    )
    from lingula.reproduction.results import write_results

    faults: list[str] = []
    # To join what is finished no text encoder has to be there.
    jobs = plan_jobs(request, find_texts(request, [] if join else faults))
    images = check_readiness(request, jobs, faults, join=join, here=True)
    if not join:
        for folder, arguments in list_phantoms(request, jobs).items():
            data_phantom(folder, **arguments)
        images = images if images.table is not None else read_images(request, jobs, faults)
        raise_faults(faults)
        for run, config in list_starts(request, jobs).items():
            train(config, out=run)
        for job, seed in list_trainings(request, jobs):
            train(job.seeded(seed), out=request.run(job.name, seed))
        for arguments in list_predictions(request, jobs):
            # Scores that are there are only looked at, also on a node without the device.
            there = {"device": "auto"} if arguments["out"].is_file() else {}
            predict(**arguments | there)
    assert images.table is not None
    with let_others_wait() as first:
        if first:
            write_results(request, jobs, images.table, partial(_join, request))
    return request.folder / f"{request.table}.md"


def _join(
    request: Request, row: EnsembleRow, scores: Mapping[str, Sequence[Mapping[str, Path]]]
) -> list[dict[str, Path]]:
    """One ensemble per seed, of that seed's trainings; its scores files by split."""
    found = []
    for seed in range(request.seeds):
        members = [(name, each[seed]["dev"], each[seed]["test"]) for name, each in scores.items()]
        out = request.folder / "ensembles" / f"t2r{row.number}-s{seed}"
        other = _has_other_members(out, members)
        place = ensemble(
            row.rule, members=members, labels=request.main_table, out=out, overwrite=other
        )
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
