"""The plan of `lingula start`: its choices with their reasons, as a value and as `plan.yaml`.

`plan.yaml` is a recipe that `train` takes, too: the settings of the main design, and under `start`
what else the plan says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lingula.planning.budget import Images, Machine
from lingula.settings.config import Config, parse_config, read_plain, to_yaml, vary
from lingula.system import files
from lingula.system.errors import InputError
from lingula.system.progress import format_seconds

PLAN = "plan.yaml"
FORMAT = 1
HEAD = """\
# The plan of `lingula start`. `lingula start plan.yaml --out DIR` follows it again without timing
# anything, and `lingula train plan.yaml` trains its main design.
"""


@dataclass(frozen=True)
class Choice:
    """One choice of the plan, and why it was made."""

    what: str
    value: str
    why: str


@dataclass(frozen=True)
class StartPlan:
    """All that `start` does follows from this.

    Attributes:
        config: the settings of the main design.
        designs: by name, from the simplest on, what each changes: `{dotted.key: value}`.
        folds: of the cross-validation.
        seeds: trainings of each design on each fold.
        machine: how trainings share the machine; the threads change the last digits of weights.
        images: in the folds, and in the test split.
        seconds: the estimate of each part.
        memory: bytes of the largest training; None if the system does not say.
        choices: what was chosen, and why.
        asked: what was asked for: the table's hash and the options.
    """

    config: Config
    designs: Mapping[str, Mapping[str, Any]]
    folds: int
    seeds: int
    machine: Machine
    images: Images
    seconds: Mapping[str, float]
    memory: int | None
    choices: Sequence[Choice]
    asked: Mapping[str, Any]

    def design(self, name: str) -> Config:
        """The settings of a design."""
        return with_changes(self.config, self.designs[name])

    @property
    def total(self) -> float:
        """The estimate in seconds."""
        return sum(self.seconds.values())


def with_changes(config: Config, changes: Mapping[str, Any]) -> Config:
    """The config with `{dotted.key: value}` changed."""
    return vary(config, **{key.replace(".", "__"): value for key, value in changes.items()})


def write_plan(plan: StartPlan, path: Path) -> None:
    """Write the plan as YAML, completely or not at all."""
    from omegaconf import OmegaConf

    start = {
        "format": FORMAT,
        "asked": dict(plan.asked),
        "folds": plan.folds,
        "seeds": plan.seeds,
        "designs": {name: dict(changes) for name, changes in plan.designs.items()},
        "machine": asdict(plan.machine),
        "images": asdict(plan.images),
        "seconds": {name: round(value, 1) for name, value in plan.seconds.items()},
        "memory": plan.memory,
        "choices": [asdict(one) for one in plan.choices],
    }
    text = HEAD + to_yaml(plan.config) + OmegaConf.to_yaml(OmegaConf.create({"start": start}))
    files.write_text(path, text)


def read_plan(path: Path) -> StartPlan:
    """The plan that `write_plan` wrote; `InputError` for anything else."""
    value = read_plain(path)
    start = value.pop("start", None)
    config = parse_config(value, str(path))
    try:
        if start["format"] != FORMAT:
            raise InputError(f"{path} has format {start['format']}; this version reads {FORMAT}.")
        return StartPlan(
            config,
            start["designs"],
            int(start["folds"]),
            int(start["seeds"]),
            Machine(**start["machine"]),
            Images(**start["images"]),
            start["seconds"],
            start["memory"],
            tuple(Choice(**one) for one in start["choices"]),
            start["asked"],
        )
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path} is not a plan of `lingula start`.") from None


def describe(plan: StartPlan) -> list[str]:
    """The plan as a table: each choice with its reason, then each part with its time."""
    rows = [(one.what, one.value, one.why) for one in plan.choices]
    widths = [max(len(row[k]) for row in rows) for k in range(2)]
    lines = ["The plan:"]
    lines += [f"  {a:{widths[0]}}  {b:{widths[1]}}  {why}".rstrip() for a, b, why in rows]
    lines.append("How long it will take if nothing else runs on this machine:")
    width = max(map(len, plan.seconds))
    memory = "" if plan.memory is None else f", {files.format_bytes(plan.memory)} of memory each"
    at_once = f"{plan.machine.parallel} at once{memory}"
    for name, seconds in plan.seconds.items():
        note = f"  {len(plan.designs) * plan.folds * plan.seeds} models, {at_once}"
        shown = format_seconds(seconds)
        lines.append(f"  {name:{width}}  {shown}{note if name == 'training' else ''}")
    lines.append(f"  {'in all':{width}}  {format_seconds(plan.total)}")
    return lines
