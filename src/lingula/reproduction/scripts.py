"""A reproduction as commands: one line each, a script of SLURM job arrays, or a job per GPU."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path
from typing import Any

import jinja2

from lingula.reproduction.jobs import Job, list_phantoms, list_predictions, list_starts
from lingula.reproduction.request import Request, command_line, count
from lingula.settings.config import Config, diff
from lingula.settings.recipes import recipe
from lingula.system import files
from lingula.system.claims import claim
from lingula.system.errors import InputError


@dataclass(frozen=True)
class Stage:
    """Commands that may run at the same time, after those of the stages before.

    `commands` are named, for their logs. `alone`: one process runs them, however many a job has.
    """

    name: str
    commands: dict[str, str]
    alone: bool = False


def list_stages(request: Request, jobs: Mapping[str, Job]) -> list[Stage]:
    """The commands of a reproduction: draw, start, train, score with other views, join."""
    draw = {place.name: _draw(place, a) for place, a in list_phantoms(request, jobs).items()}
    start = {
        f"start-{run.name}": _train("paper/t1r1", config, run)
        for run, config in list_starts(request, jobs).items()
    }
    train = {
        f"{job.name}-s{seed}": _train(job.recipe, job.seeded(seed), request.run(job.name, seed))
        for job in jobs.values()
        for seed in range(request.seeds if job.trains else 0)
    }
    score = {
        f"{arguments['out'].parent.name}-{arguments['split']}": _predict(arguments)
        for arguments in list_predictions(request, jobs)
    }
    stages = [
        Stage("draw", draw, alone=True),
        Stage("start", start),
        Stage("train", train),
        Stage("score", score),
        Stage("join", {"join": command_line(request)}, alone=True),
    ]
    return [stage for stage in stages if stage.commands]


def _train(name: str, config: Config, run: Path) -> str:
    changed = diff(recipe(name), config)
    settings = [_format_setting(key, new) for key, (_, new) in changed.items() if key != "seed"]
    settings.append(f"seed={config.seed}")
    return shlex.join(["lingula", "train", name, *settings, "--out", str(run)])


def _format_setting(key: str, value: object) -> str:
    """A setting as `key=value` is read."""
    plain = "null" if value is None else value
    return f"{key}={json.dumps(plain) if isinstance(plain, list) else plain}"


def _predict(arguments: Mapping[str, Any]) -> str:
    words = ["lingula", "predict"]
    for name, value in arguments.items():
        for each in value if isinstance(value, list) else [value]:
            words += [str(each)] if name == "run" else [f"--{name}", str(each)]
    return shlex.join(words)


def _draw(place: Path, arguments: Mapping[str, Any]) -> str:
    dev, test = arguments["shares"]
    words = ["lingula", "data", "phantom", str(place), "--n", str(arguments["n"])]
    words += ["--size", str(arguments["size"]), "--dev", f"{dev:g}", "--test", f"{test:g}"]
    if arguments.get("imbalance") is not None:
        words += ["--imbalance", f"{arguments['imbalance']:g}"]
    words += ["--style", arguments["style"]] if "style" in arguments else []
    words += ["--seed", str(arguments["seed"])] if "seed" in arguments else []
    return shlex.join(words)


def list_commands(stages: Sequence[Stage], jobs: Mapping[str, Job]) -> list[str]:
    """One line per command, and a comment where one has to wait for all before it."""
    lines: list[str] = []
    for stage in stages:
        lines += ["# after all of the above:"] if lines else []
        lines += list(stage.commands.values())
        lines += _list_not_run(jobs) if stage.name == "train" else []
    return lines


def _list_not_run(jobs: Mapping[str, Job]) -> list[str]:
    return [f"# {job.recipe}: {job.missing}" for job in jobs.values() if job.missing]


def gpu_script(
    request: Request, stages: Sequence[Stage], jobs: Mapping[str, Job], gpus: int
) -> list[str]:
    """The lines of a bash script for one machine that runs one job on each of its GPUs."""
    return _render("gpus.sh", request, stages, jobs, gpus=gpus).splitlines()


def write_slurm_script(
    request: Request,
    stages: Sequence[Stage],
    jobs: Mapping[str, Job],
    file: Path,
    template: Path | None,
) -> Path:
    """Write a script that submits itself to SLURM as one job array per stage; return its path.

    An older script of this kind is set aside; any other file is refused with `InputError`.
    """
    header, setup = (_DEFAULT_HEADER, []) if template is None else _read_site(template)
    text = _render(
        "slurm.sh", request, stages, jobs, header=header, setup=setup, file=str(file.resolve())
    )
    if file.is_dir():
        raise InputError(f"{file} is a folder. Name a file to write the script to.")
    before = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    if before != text:
        is_ours = _MARK in before or None
        claim(file, "and is not a script of this command.", overwrite=is_ours).make_room()
        files.write_text(file, text)
    return file


_MARK = "# Made by: lingula reproduce"
_DEFAULT_HEADER = [
    "#SBATCH --gres=gpu:1",
    "#SBATCH --cpus-per-task=8",
    "#SBATCH --mem=48G",
    "# Partition, account and time depend on your site: write this script again with --template",
    "# FILE, a script of such lines and of what a job sets up (modules, environment).",
]


def _render(
    name: str, request: Request, stages: Sequence[Stage], jobs: Mapping[str, Job], **values: object
) -> str:
    """A script from `templates/`: the stages, what the script is for, and where the weights are."""
    shell = jinja2.Environment(
        loader=jinja2.PackageLoader("lingula.reproduction", "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    shell.filters["quote"] = shlex.quote
    line = command_line(request, join=False).removeprefix("lingula reproduce")
    about = [f"# {request.heading(count(request.seeds, 'seed'))} per row.", f"{_MARK}{line}"]
    weights = os.environ.get("LINGULA_WEIGHTS")
    return shell.get_template(name).render(
        about=[*about, *_list_not_run(jobs)],
        stages=stages,
        logs=str(request.folder / "logs"),
        weights=str(Path(weights).expanduser().resolve()) if weights else "",
        **values,
    )


# Words that start work: a template that has them would do it in every job.
_WORK = ("srun", "mpirun", "mpiexec", "torchrun", "sbatch", "python", "python3", "lingula", "exit")


def _read_site(template: Path) -> tuple[list[str], list[str]]:
    """The `#SBATCH` lines of a site's script, and the lines that set up what a job needs."""
    try:
        lines = template.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--template {template} can't be read: {error}.") from None
    header = [line for line in lines if line.startswith("#SBATCH")]
    if not header:
        raise InputError(
            f"--template {template} has no line that starts with #SBATCH, such as "
            "`#SBATCH --partition=gpu`."
        )
    for number, line in enumerate(lines, start=1):
        if line.split()[:1] and line.split()[0] in _WORK:
            raise InputError(
                f"--template {template}, line {number}, starts work itself: {line.strip()}. Leave "
                "such lines out: each job runs its own command after the set-up."
            )
    setup = [line for line in lines if not line.startswith(("#!", "#SBATCH"))]
    return header, list(dropwhile(lambda line: not line.strip(), setup))
