"""A reproduction as commands: a line each, an array script for SLURM, or a job on each GPU."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lingula.reproduction.jobs import Job, config_of, phantoms_of, scorings, setting, starts_of
from lingula.reproduction.reproduction import Reproduction, closing_line
from lingula.settings.config import diff
from lingula.settings.recipe import recipe
from lingula.system import files
from lingula.system.errors import InputError


@dataclass(frozen=True)
class Stage:
    """Commands that may run at the same time, once those of the stages before are done.

    `commands` are named, for their logs. `alone`: one process does them, however many a job has.
    """

    name: str
    commands: dict[str, str]
    alone: bool = False


def stages_of(asked: Reproduction, jobs: Mapping[str, Job]) -> list[Stage]:
    """What a reproduction does, in order: draw, start, train, score with other views, join."""
    train: dict[str, str] = {}
    for job in jobs.values():
        for seed in range(asked.seeds if job.same_as is None and not job.missing else 0):
            train[f"{job.name}-s{seed}"] = _training(asked, job, seed)
    score = {
        f"{wanted['out'].parent.name}-{wanted['split']}": _scoring(wanted)
        for wanted in scorings(asked, jobs)
    }
    stages = [
        Stage("draw", _phantoms(asked, jobs), alone=True),
        Stage("start", _starts(asked, jobs)),
        Stage("train", train),
        Stage("score", score),
        Stage("join", {"join": closing_line(asked)}, alone=True),
    ]
    return [stage for stage in stages if stage.commands]


def _training(asked: Reproduction, job: Job, seed: int) -> str:
    changed = diff(recipe(job.recipe), config_of(job, seed))
    settings = [setting(key, new) for key, (_, new) in changed.items() if key != "seed"]
    out = str(asked.run(job.name, seed))
    return shlex.join(["lingula", "train", job.recipe, *settings, f"seed={seed}", "--out", out])


def _scoring(wanted: Mapping[str, Any]) -> str:
    words = ["lingula", "predict"]
    for name, value in wanted.items():
        for each in value if isinstance(value, list) else [value]:
            words += [str(each)] if name == "run" else [f"--{name}", str(each)]
    return shlex.join(words)


def _phantoms(asked: Reproduction, jobs: Mapping[str, Job]) -> dict[str, str]:
    """The commands that draw the phantoms; none on one's own table."""
    found = {}
    for place, wanted in phantoms_of(asked, jobs).items():
        dev, test = wanted["shares"]
        words = ["lingula", "data", "phantom", str(place), "--n", str(wanted["n"])]
        words += ["--size", str(wanted["size"]), "--dev", f"{dev:g}", "--test", f"{test:g}"]
        if wanted.get("imbalance") is not None:
            words += ["--imbalance", f"{wanted['imbalance']:g}"]
        words += ["--style", wanted["style"]] if "style" in wanted else []
        words += ["--seed", str(wanted["seed"])] if "seed" in wanted else []
        found[place.name] = shlex.join(words)
    return found


def _starts(asked: Reproduction, jobs: Mapping[str, Job]) -> dict[str, str]:
    """The commands that train the encoders' starts."""
    found = {}
    for run, config in starts_of(asked, jobs).items():
        changed = diff(recipe("paper/t1r1"), config)
        settings = [setting(key, new) for key, (_, new) in changed.items()]
        words = ["lingula", "train", "paper/t1r1", *settings, "--out", str(run)]
        found[f"start-{run.name}"] = shlex.join(words)
    return found


def commands_of(stages: Sequence[Stage], jobs: Mapping[str, Job]) -> list[str]:
    """A line for each command, and a comment where one has to wait for all before it."""
    lines: list[str] = []
    for stage in stages:
        lines += ["# after all of the above:"] if lines else []
        lines += list(stage.commands.values())
        lines += _not_run(jobs) if stage.name == "train" else []
    return lines


def _not_run(jobs: Mapping[str, Job]) -> list[str]:
    return [f"# {job.recipe}: {job.missing}" for job in jobs.values() if job.missing]


def gpu_script(
    asked: Reproduction, stages: Sequence[Stage], jobs: Mapping[str, Job], gpus: int
) -> list[str]:
    """A bash script for one machine that keeps a job on each of its GPUs 0, 1, ..."""
    logs = shlex.quote(str(asked.folder / "logs"))
    threads = f"${{OMP_NUM_THREADS:-$(( ($(nproc) + {gpus - 1}) / {gpus} ))}}"
    lines = [
        "#!/bin/bash",
        *_about(asked, jobs),
        f"# Run it: bash FILE. Each of {gpus} GPUs has one job at a time; as one ends, the next",
        "# begins. Ctrl-C stops all of them, and the same script again goes on. Logs:",
        f"# {logs}",
        f"mkdir -p {logs}",
        *_weights(),
        f"export OMP_NUM_THREADS={threads}",
        "one_on_each_gpu() {",
        f"  xargs --delimiter='\\n' --max-procs={gpus} \\",
        "    --process-slot-var=CUDA_VISIBLE_DEVICES --replace={} bash -c {}",
        "}",
    ]
    for stage in stages:
        lines += ["", f"# {stage.name}"]
        if stage.alone:
            lines += [f"{command} || exit" for command in stage.commands.values()]
            continue
        lines.append("one_on_each_gpu <<'END' || exit")
        for name, command in stage.commands.items():
            log = shlex.quote(str(asked.folder / "logs" / f"{name}.log"))
            told = shlex.quote(f"{name} failed: see its log")
            lines.append(f"{command} >> {log} 2>&1 || {{ echo {told} >&2; exit 1; }}")
        lines.append("END")
    return lines


def slurm_script(
    asked: Reproduction,
    stages: Sequence[Stage],
    jobs: Mapping[str, Job],
    file: Path,
    template: Path | None,
) -> Path:
    """Write a script that submits itself to SLURM as one array a stage; its path."""
    header, setup = (_DEFAULT, []) if template is None else _site(template)
    text = [
        "#!/bin/bash",
        "#SBATCH --job-name=lingula",
        # A job that is preempted is queued again; before its time is over it is told to save.
        "#SBATCH --requeue",
        "#SBATCH --signal=TERM@120",
        "#SBATCH --open-mode=append",
        *header,
        "#",
        *_about(asked, jobs),
        f"# Submit it on a login node: bash {shlex.quote(str(file.resolve()))}",
        "# It submits itself as one job array a stage, each after the one before. A job that is",
        "# preempted, or stopped by its time limit, is queued again and goes on where it was.",
        "# After a failure the same command does what is left.",
        "",
        f"logs={shlex.quote(str(asked.folder / 'logs'))}",
        "stage=${1:-submit}",
        *_submission(stages),
        "",
        *setup,
        *_weights(),
        # srun does not take this over from sbatch by itself.
        'if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then',
        '  export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"',
        "fi",
        "run() {",
        '  srun "$@"',
        "  status=$?",
        "  # 143: it was told to stop, and saved. The same command goes on from there.",
        '  if [ "$status" -eq 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
        '  exit "$status"',
        "}",
        "",
        'case "$stage ${SLURM_ARRAY_TASK_ID:-0}" in',
        *_cases(stages),
        "*)",
        '  echo "There is no job $stage ${SLURM_ARRAY_TASK_ID:-0}." >&2',
        "  exit 2",
        "  ;;",
        "esac",
    ]
    _write(file, "\n".join(text) + "\n")
    return file


_MARK = "# Made by: lingula reproduce"
_DEFAULT = [
    "#SBATCH --gres=gpu:1",
    "#SBATCH --cpus-per-task=8",
    "#SBATCH --mem=48G",
    "# Partition, account and time are your site's: make this again with --template FILE, a script",
    "# of such lines and of what a job sets up (modules, environment).",
]


def _about(asked: Reproduction, jobs: Mapping[str, Job]) -> list[str]:
    line = closing_line(asked, join=False)
    return [
        f"# Table {asked.table[-1]} of the paper at the scale {asked.scale}, {asked.seeds} "
        f"seed{'s' if asked.seeds > 1 else ''} a row.",
        f"{_MARK}{line.removeprefix('lingula reproduce')}",
        *_not_run(jobs),
    ]


def _weights() -> list[str]:
    """Where the weights lie, as it is known to this process."""
    told = os.environ.get("LINGULA_WEIGHTS")
    if not told:
        return []
    return [f"export LINGULA_WEIGHTS={shlex.quote(str(Path(told).expanduser().resolve()))}"]


def _submission(stages: Sequence[Stage]) -> list[str]:
    lines = [
        'if [ "$stage" = submit ]; then',
        "  set -o pipefail",
        '  mkdir -p "$logs"',
        '  script=$(realpath "$0")',
        "  submit() {  # a stage, its last index, and the job that it waits for",
        '    sbatch --parsable --array="0-$2" --output="$logs/$1-%a.log" \\',
        '      ${3:+--dependency="afterok:$3" --kill-on-invalid-dep=yes} "$script" "$1" \\',
        "      | cut -d ';' -f 1",
        "  }",
    ]
    before = ""
    for stage in stages:
        after = f' "${before}"' if before else ""
        count = len(stage.commands)
        lines.append(f"  {stage.name}=$(submit {stage.name} {count - 1}{after}) || exit")
        lines.append(f'  echo "{stage.name}: {count} to do, job array ${stage.name}"')
        before = stage.name
    return [*lines, '  echo "logs: $logs"', "  exit", "fi"]


def _cases(stages: Sequence[Stage]) -> list[str]:
    lines: list[str] = []
    for stage in stages:
        alone = "--ntasks=1 --nodes=1 " if stage.alone else ""
        for index, (name, command) in enumerate(stage.commands.items()):
            lines += [f'"{stage.name} {index}")  # {name}', f"  run {alone}{command}", "  ;;"]
    return lines


# Words that start work: a template that has them would do it in every job.
_WORK = ("srun", "mpirun", "mpiexec", "torchrun", "sbatch", "python", "python3", "lingula", "exit")


def _site(template: Path) -> tuple[list[str], list[str]]:
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
    setup = [line for line in lines if not line.startswith(("#!", "#SBATCH"))]
    for number, line in enumerate(lines, start=1):
        if line.split()[:1] and line.split()[0] in _WORK:
            raise InputError(
                f"--template {template}, line {number}, starts work itself: {line.strip()}. Leave "
                "such lines out: each job runs its own command after the set-up."
            )
    while setup and not setup[0].strip():
        setup.pop(0)
    return header, setup


def _write(file: Path, text: str) -> None:
    """Write a script; an older one of ours is set aside, and anything else is refused."""
    if file.exists():
        if not file.is_file():
            raise InputError(f"{file} is a folder. Name a file to write the script to.")
        before = file.read_text(encoding="utf-8", errors="replace")
        if before == text:
            return
        if _MARK not in before:
            raise InputError(f"{file} is there already and is no script of this command.")
        files.set_aside(file)
    files.write_text(file, text)
