"""The jobs of a reproduction: phantoms, trainings and predictions, and why some can't be run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lingula.reproduction.request import TEXTS, Request
from lingula.reproduction.request import scale_config as scaled
from lingula.settings.config import Config, diff, override_settings, vary, with_absolute_paths
from lingula.settings.label_space import SPACES
from lingula.settings.recipes import EXOGENOUS, TABLE_1, TABLE_2, EnsembleRow, Row, recipe
from lingula.settings.weight_sources import TEXT_SOURCES, find_text
from lingula.system.processes import is_first, wait_for_first
from lingula.training import run_folder

SPLITS_SCORED = ("dev", "test")
AnyRow = TypeVar("AnyRow", Row, EnsembleRow)


@dataclass(frozen=True)
class Job:
    """A row's training: its config at the scale, or why it can't be run.

    Attributes:
        name: `t1r3`, as its folders are called.
        recipe: `paper/t1r3`.
        config: its settings, without the seed.
        missing: what it lacks; empty where it can be run.
        note: which text encoder it uses instead of the paper's, for the table.
        same_as: the job whose training it shares, where they differ in evaluation alone.
    """

    name: str
    recipe: str
    config: Config
    missing: str = ""
    note: str = ""
    same_as: str | None = None

    @property
    def trains(self) -> bool:
        """Whether it is a training of its own that can be run."""
        return not self.missing and self.same_as is None

    def seeded(self, seed: int) -> Config:
        """The config of a seed's training."""
        return vary(self.config, seed=seed)


def find_texts(request: Request, faults: list[str]) -> dict[str, tuple[str | None, str]]:
    """For each text encoder of the paper what `model.text` is to be (None: nothing) and a note.

    Folders that contain no text encoder are added to `faults`.
    """
    found: dict[str, tuple[str | None, str]] = {}
    given = {**request.texts, **request.stand_ins}
    for name in TEXTS:
        if name in given:
            place = given[name]
            if not (place / "config.json").is_file():
                faults.append(f"{place} contains no text encoder: it has no config.json.")
            stands_in = name in request.stand_ins
            note = f"{place.parent.name}/{place.name} instead of {name}" if stands_in else ""
            found[name] = (str(place), note)
        elif find_text(name) is not None:
            found[name] = (name, "")
        elif request.scale == "tiny":
            place = _save_tiny_text(request.folder / "stand-ins" / name)
            found[name] = (str(place), f"a tiny random encoder instead of {name}")
        else:
            found[name] = (None, f"not run: needs {name}. {TEXT_SOURCES[name].obtain}")
    return found


def _save_tiny_text(place: Path) -> Path:
    if is_first():
        from lingula.model.text_encoder import save_tiny

        words = [finding for space in SPACES.values() for finding in space.classes]
        return save_tiny(place, "t5" if place.name == "clinical-t5" else "bert", words)
    config = place / "config.json"
    wait_for_first(
        lambda: config if config.is_file() else None, f"{place} is being made", place.parent
    )
    return place


def plan_jobs(request: Request, texts: Mapping[str, tuple[str | None, str]]) -> dict[str, Job]:
    """The trainings that a table needs, by name, each after those that it is compared with."""
    if request.table == "table2":
        rows = [name for row in ensembles_of(request.rows) for name in row.members]
    else:
        rows = [row.name for row in _add_parents(request.rows, TABLE_1)]
    # A row that differs from an earlier one in evaluation alone needs that one's training.
    names = dict.fromkeys(name for row in rows for name in (_training_name(row), row))
    jobs: dict[str, Job] = {}
    for name in names:
        config, missing = _config_of(request, name), ""
        if is_exogenous(name):
            config = vary(config, data__outside=[str(path) for path in request.outside_tables])
            if not request.outside_tables:
                missing = "not run: needs tables of outside data (--outside)"
        text, note = texts[config.model.text]
        if text is not None:
            config = vary(config, model__text=text)
        else:
            missing, note = missing or note, ""
        short = name.removeprefix("paper/")
        # A finished training needs no weights any more: any node may join it.
        if all(run_folder.is_finished(request.run(short, seed)) for seed in range(request.seeds)):
            missing = ""
        else:
            missing = missing or _missing_weights(config)
        twin = next((job for job in jobs.values() if _same_training(job.config, config)), None)
        if twin is not None:
            missing = twin.missing
        jobs[short] = Job(short, name, config, missing, note, twin.name if twin else None)
    return jobs


def _config_of(request: Request, name: str) -> Config:
    """A recipe's config at the scale, on the request's table and with its settings."""
    config = vary(scaled(recipe(name), request.size), data__table=str(request.main_table))
    if request.data is None and request.size.start is not None:
        config = vary(config, model__weights=str(start_weights(request, config.model.encoder)))
    if request.cache:
        places = [str(place) for place in request.cache]
        config = vary(config, data__cache=places[0] if len(places) == 1 else places)
    return with_absolute_paths(override_settings(config, request.settings))


def start_weights(request: Request, encoder: str) -> Path:
    """The file that trainings start an encoder from, where the scale trains it beforehand."""
    return request.start(encoder) / "best" / "model.safetensors"


def _training_name(name: str) -> str:
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


def is_exogenous(name: str) -> bool:
    """Whether a recipe trains on outside data."""
    return name in {training.name for training in EXOGENOUS}


def ensembles_of(rows: Sequence[int]) -> list[EnsembleRow]:
    """These rows of Table 2 and what they are compared with; without numbers all rows."""
    return _add_parents(rows, TABLE_2)


def _add_parents(numbers: Sequence[int], table: Sequence[AnyRow]) -> list[AnyRow]:
    """The rows of these numbers, their parents and the first row; without numbers all rows."""
    kept = {row.number for row in table if not numbers} | {1, *numbers}
    kept |= {row.parent or 1 for row in table if row.number in kept}
    return [row for row in table if row.number in kept]


def runnable_rows(request: Request, jobs: Mapping[str, Job]) -> list[int]:
    """The numbers of the requested rows that lack nothing."""
    if request.table == "table1":
        rows = [row.number for row in TABLE_1 if row.number in (request.rows or {row.number})]
        return [number for number in rows if not jobs[f"t1r{number}"].missing]
    ready = {job.recipe for job in jobs.values() if not job.missing}
    ensembles = [row for row in TABLE_2 if row.number in (request.rows or {row.number})]
    return [row.number for row in ensembles if can_be_joined(row, ready)]


def can_be_joined(row: EnsembleRow, trained: set[str]) -> bool:
    """Whether two members are trained, and those with outside data, which the row is about."""
    members = [name for name in row.members if name in trained]
    outside = {name for name in row.members if is_exogenous(name)}
    return len(members) >= 2 and outside <= trained


def list_starts(request: Request, jobs: Mapping[str, Job]) -> dict[Path, Config]:
    """The encoders that are still to be trained beforehand: configs by run folder."""
    start = request.size.start
    if start is None or request.data is not None:
        return {}
    config = vary(recipe("paper/t1r1"), **start.changes, data__table=str(request.start_table))
    encoders = dict.fromkeys(job.config.model.encoder for job, _ in list_trainings(request, jobs))
    return {
        request.start(encoder): vary(config, model__encoder=encoder)
        for encoder in encoders
        if not run_folder.is_finished(request.start(encoder))
    }


def list_phantoms(request: Request, jobs: Mapping[str, Job]) -> dict[Path, dict[str, Any]]:
    """The phantoms to train on, by folder: the arguments of `data_phantom`."""
    size = request.size
    if request.data is not None:
        return {}
    found: dict[Path, dict[str, Any]] = {
        request.main_table.parent: {
            "n": size.images,
            "size": size.size,
            "shares": size.shares,
            "imbalance": size.imbalance,
        }
    }
    for other in request.outside_tables if request.table == "table2" else ():
        found[other.parent] = {
            "n": size.outside,
            "size": size.size,
            "shares": (0.0, 0.0),
            "style": other.parent.name.removeprefix("phantom-"),
        }
    if size.start is not None and list_starts(request, jobs):
        found[request.start_table.parent] = {
            "n": size.start.images,
            "size": size.size,
            "seed": size.start.seed,
            "shares": (0.1, 0.0),
            "imbalance": size.start.imbalance,
            "style": size.start.style,
        }
    return found


def list_trainings(request: Request, jobs: Mapping[str, Job]) -> list[tuple[Job, int]]:
    """The trainings that are not finished, with their seeds."""
    return [
        (job, seed)
        for seed in range(request.seeds)
        for job in jobs.values()
        if job.trains and not run_folder.is_finished(request.run(job.name, seed))
    ]


def list_predictions(request: Request, jobs: Mapping[str, Job]) -> list[dict[str, Any]]:
    """The arguments of `predict` for each row, seed and split that shares another's training."""
    found: list[dict[str, Any]] = []
    for job in jobs.values():
        config = job.config
        options: dict[str, Any] = {"tta": config.evaluation.tta}
        options |= {"workers": config.data.workers} if config.data.workers else {}
        options |= {"device": config.device} if config.device != "auto" else {}
        options |= {"cache": [str(place) for place in request.cache]} if request.cache else {}
        for seed in range(0 if job.missing or job.same_as is None else request.seeds):
            run = request.run(str(job.same_as), seed)
            found += [
                {"run": run, "data": request.main_table, "split": split, **options}
                | {"out": request.scores(job.name, seed, split)}
                for split in SPLITS_SCORED
            ]
    return found


def score_files(request: Request, job: Job) -> list[dict[str, Path]]:
    """For each seed the scores files by split; empty if the job can't be run."""
    if job.missing:
        return []
    return [
        {
            split: request.run(job.name, seed) / "scores" / f"{split}.csv"
            if job.same_as is None
            else request.scores(job.name, seed, split)
            for split in SPLITS_SCORED
        }
        for seed in range(request.seeds)
    ]
