"""The trainings of a reproduction: what each is, and why it can't be run where that is so."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lingula.reproduction.reproduction import TEXTS, Reproduction
from lingula.settings.config import Config, absolute, diff, overridden, vary
from lingula.settings.label_space import SPACES
from lingula.settings.paper import EXOGENOUS, TABLE_1, TABLE_2, EnsembleRow, Row, scaled
from lingula.settings.recipe import recipe
from lingula.settings.weight_sources import TEXT_SOURCES, find_text
from lingula.system.processes import is_first
from lingula.system.waiting import waited
from lingula.training import run_folder


@dataclass(frozen=True)
class Job:
    """A training of the ladder: its config at the scale, or why it can't be run.

    `same_as` names the job whose training it shares, where they differ in evaluation alone.
    """

    name: str
    recipe: str
    config: Config
    missing: str = ""
    note: str = ""
    same_as: str | None = None


def texts_of(asked: Reproduction, faults: list[str]) -> dict[str, tuple[str | None, str]]:
    """For each named text encoder what `model.text` is to be (None: nothing) and a note.

    What was named and is no text encoder's folder is added to `faults`.
    """
    found: dict[str, tuple[str | None, str]] = {}
    given = {**(asked.texts or {}), **(asked.stand_ins or {})}
    for name in TEXTS:
        if name in given:
            place = given[name]
            if not (place / "config.json").is_file():
                faults.append(f"{place} is no text encoder's folder: it holds no config.json.")
            stands_in = name in (asked.stand_ins or {})
            note = f"{place.parent.name}/{place.name} stands in for {name}" if stands_in else ""
            found[name] = (str(place), note)
        elif find_text(name) is not None:
            found[name] = (name, "")
        elif asked.scale == "tiny":
            place = _tiny(asked.folder / "stand-ins" / name)
            found[name] = (str(place), f"a tiny random encoder stands in for {name}")
        else:
            how = TEXT_SOURCES[name].obtain
            found[name] = (None, f"not run: needs {name}. {how}")
    return found


def _tiny(place: Path) -> Path:
    if is_first():
        from lingula.model.tiny_text import save_tiny

        words = [finding for space in SPACES.values() for finding in space.classes]
        return save_tiny(place, "t5" if place.name == "clinical-t5" else "bert", words)
    made = place / "config.json"
    waited(lambda: made if made.is_file() else None, f"{place} is being made", place.parent)
    return place


def jobs_of(asked: Reproduction, texts: Mapping[str, tuple[str | None, str]]) -> dict[str, Job]:
    """The trainings that a table needs, each after those that it is compared with."""
    if asked.table == "table2":
        members = [name for row in ensembles_of(asked.rows) for name in row.members]
        wanted = list(dict.fromkeys(members))
    else:
        numbers = with_parents(asked.rows, TABLE_1)
        wanted = [row.name for row in TABLE_1 if row.number in numbers]
    # A row that differs from an earlier one in evaluation alone needs that one's training.
    wanted = list(dict.fromkeys(name for row in wanted for name in (_trained_as(row), row)))
    jobs: dict[str, Job] = {}
    for name in wanted:
        config, missing = _config(asked, name), ""
        if is_exogenous(name):
            config = vary(config, data__outside=[str(other) for other in asked.others])
            missing = "" if asked.others else "not run: needs tables of outside data (--outside)"
        text, note = texts[config.model.text]
        if text is not None:
            config = vary(config, model__text=text)
        else:
            missing, note = missing or note, ""
        short = name.removeprefix("paper/")
        # What is trained needs no weights any more: the line that joins may run on any node.
        if all(run_folder.is_finished(asked.run(short, seed)) for seed in range(asked.seeds)):
            missing = ""
        else:
            missing = missing or _missing_weights(config)
        twin = next((job.name for job in jobs.values() if _same_training(job.config, config)), None)
        if twin is not None:
            missing = jobs[twin].missing
        jobs[short] = Job(short, name, config, missing, note, twin)
    return jobs


def _config(asked: Reproduction, name: str) -> Config:
    """A recipe's config at the scale, on the table, with the settings of one's own."""
    config = vary(scaled(recipe(name), asked.size), data__table=str(asked.own))
    if asked.data is None and asked.size.start is not None:
        config = vary(config, model__weights=str(start_weights(asked, config.model.encoder)))
    if asked.cache:
        places = [str(place) for place in asked.cache]
        config = vary(config, data__cache=places[0] if len(places) == 1 else places)
    return absolute(overridden(config, asked.settings))


def start_weights(asked: Reproduction, encoder: str) -> Path:
    """The file that a training starts its encoder from, where the scale has a start."""
    return asked.start(encoder) / "best" / "model.safetensors"


def starts_of(asked: Reproduction, jobs: Mapping[str, Job]) -> dict[Path, Config]:
    """The trainings of the encoders' starts that are still to be done, by their run folders."""
    start = asked.size.start
    if start is None or asked.data is not None:
        return {}
    config = vary(recipe("paper/t1r1"), **start.changes, data__table=str(asked.start_table))
    encoders = dict.fromkeys(job.config.model.encoder for job, _ in unfinished(asked, jobs))
    return {
        asked.start(encoder): vary(config, model__encoder=encoder)
        for encoder in encoders
        if not run_folder.is_finished(asked.start(encoder))
    }


def phantoms_of(asked: Reproduction, jobs: Mapping[str, Job]) -> dict[Path, dict[str, Any]]:
    """The phantoms that are trained on, by their folders: the arguments of `data_phantom`."""
    size = asked.size
    if asked.data is not None:
        return {}
    found: dict[Path, dict[str, Any]] = {
        asked.own.parent: {
            "n": size.images,
            "size": size.size,
            "shares": size.shares,
            "imbalance": size.imbalance,
        }
    }
    for other in asked.others if asked.table == "table2" else ():
        style = other.parent.name.removeprefix("phantom-")
        found[other.parent] = {
            "n": size.outside,
            "size": size.size,
            "shares": (0.0, 0.0),
            "style": style,
        }
    if size.start is not None and starts_of(asked, jobs):
        found[asked.start_table.parent] = {
            "n": size.start.images,
            "size": size.size,
            "seed": size.start.seed,
            "shares": (0.1, 0.0),
            "imbalance": size.start.imbalance,
            "style": size.start.style,
        }
    return found


def is_exogenous(name: str) -> bool:
    """Whether a recipe trains on outside data."""
    return name in {other.name for other in EXOGENOUS}


def ensembles_of(rows: Sequence[int]) -> list[EnsembleRow]:
    """These rows of Table 2 and what they are compared with; all where none is named."""
    numbers = with_parents(rows, TABLE_2)
    return [row for row in TABLE_2 if row.number in numbers]


def with_parents(rows: Sequence[int], table: Sequence[Row | EnsembleRow]) -> set[int]:
    """The rows' numbers, those of their parents, and the first; all where none is named."""
    by_number = {row.number: row for row in table}
    if not rows:
        return set(by_number)
    return {1, *rows, *(by_number[n].parent or n for n in rows)}


def runnable(asked: Reproduction, jobs: Mapping[str, Job]) -> list[int]:
    """The rows among those asked for that can be run; the others lack something."""
    if asked.table == "table1":
        rows = [row.number for row in TABLE_1 if row.number in (asked.rows or {row.number})]
        return [number for number in rows if not jobs[f"t1r{number}"].missing]
    there = {job.recipe for job in jobs.values() if not job.missing}
    wanted = [row for row in TABLE_2 if row.number in (asked.rows or {row.number})]
    return [row.number for row in wanted if can_be_joined(row, there)]


def can_be_joined(row: EnsembleRow, there: set[str]) -> bool:
    """Whether enough members are there: two, and those with outside data, which it is about."""
    members = [name for name in row.members if name in there]
    needed = {name for name in row.members if is_exogenous(name)}
    return len(members) >= 2 and needed <= there


def _trained_as(name: str) -> str:
    """The first row of Table 1 with the same training, so that both tables share it by name."""
    config = recipe(name)
    rows = (row.name for row in TABLE_1 if _same_training(recipe(row.name), config))
    return next(rows, name)


def _same_training(a: Config, b: Config) -> bool:
    return all(key.startswith("evaluation.") for key in diff(a, b))


def _missing_weights(config: Config) -> str:
    if config.model.weights != "imagenet":
        return ""
    from lingula.model.loader import imagenet_file  # imports torch

    if imagenet_file(config.model.encoder) is not None:
        return ""
    return f"not run: needs the ImageNet weights of {config.model.encoder} (`lingula fetch`)"


def outside_wanted(jobs: Mapping[str, Job]) -> int:
    """How many tables of outside data the trainings are meant to have."""
    counts = {other.name: len(other.outside) for other in EXOGENOUS}
    return max((counts.get(job.recipe, 0) for job in jobs.values()), default=0)


def unfinished(asked: Reproduction, jobs: Mapping[str, Job]) -> list[tuple[Job, int]]:
    """The trainings that are still to be done, with their seeds."""
    return [
        (job, seed)
        for seed in range(asked.seeds)
        for job in jobs.values()
        if not job.missing and job.same_as is None
        if not run_folder.is_finished(asked.run(job.name, seed))
    ]


def config_of(job: Job, seed: int) -> Config:
    """The config of a seed's training."""
    return vary(job.config, seed=seed)


def scoring_of(asked: Reproduction, job: Job, seed: int, split: str) -> dict[str, Any]:
    """The arguments of `predict` for a row that only scores another one's training anew."""
    assert job.same_as is not None
    config = job.config
    cache = [str(place) for place in asked.cache]
    return {
        "run": asked.run(job.same_as, seed),
        "data": asked.own,
        "split": split,
        "tta": config.evaluation.tta,
        **({"workers": config.data.workers} if config.data.workers else {}),
        **({"device": config.device} if config.device != "auto" else {}),
        **({"cache": cache} if cache else {}),
        "out": asked.scores(job.name, seed, split),
    }


def scorings(asked: Reproduction, jobs: Mapping[str, Job]) -> list[dict[str, Any]]:
    """All predictions that a table needs beside the trainings' own scores, by their arguments."""
    return [
        scoring_of(asked, job, seed, split)
        for job in jobs.values()
        for seed in range(0 if job.missing or job.same_as is None else asked.seeds)
        for split in ("dev", "test")
    ]


def setting(key: str, value: object) -> str:
    """A setting as `key=value` takes it."""
    plain = "null" if value is None else value
    return f"{key}={json.dumps(plain) if isinstance(plain, list) else plain}"


def missing_of(jobs: Mapping[str, Job]) -> dict[str, list[str]]:
    """Why trainings can't be run, each reason with their names."""
    reasons: dict[str, list[str]] = {}
    for job in jobs.values():
        if job.missing:
            reasons.setdefault(job.missing.removeprefix("not run: "), []).append(job.name)
    return reasons
