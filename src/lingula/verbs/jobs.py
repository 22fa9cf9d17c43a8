"""The trainings of a reproduction: what each is, what it lacks, and its command line."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lingula import files
from lingula.config import Config, diff, vary
from lingula.errors import InputError, nearest
from lingula.labels import SPACES
from lingula.paper import EXOGENOUS, SCALES, TABLE_1, TABLE_2, Scale, scaled
from lingula.recipe import recipe
from lingula.weights import TEXT_SOURCES, find_text


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


def texts_of(
    folder: Path, stand_ins: Mapping[str, str | Path], scale: str
) -> dict[str, tuple[str | None, str]]:
    """For each named text encoder what `model.text` is to be (None: nothing) and a note."""
    unknown = [name for name in stand_ins if name not in TEXT_SOURCES]
    if unknown:
        raise InputError(
            f"No text encoder of the paper is called '{unknown[0]}'."
            f"{nearest(unknown[0], TEXT_SOURCES)} There are med-kebert and clinical-t5."
        )
    found: dict[str, tuple[str | None, str]] = {}
    for name in ("med-kebert", "clinical-t5"):
        if name in stand_ins:
            place = files.expanded(stand_ins[name]).resolve()
            if not (place / "config.json").is_file():
                raise InputError(f"{place} is no text encoder's folder: it holds no config.json.")
            found[name] = (str(place), f"{place.parent.name}/{place.name} stands in for {name}")
        elif find_text(name) is not None:
            found[name] = (name, "")
        elif scale == "tiny":
            from lingula.model.tiny_text import save_tiny

            place = folder / "stand-ins" / name
            words = [finding for space in SPACES.values() for finding in space.classes]
            save_tiny(place, "t5" if name == "clinical-t5" else "bert", words)
            found[name] = (str(place.resolve()), f"a tiny random encoder stands in for {name}")
        else:
            how = TEXT_SOURCES[name].obtain
            found[name] = (None, f"not run: needs {name}. {how}")
    return found


def jobs_of(
    table: str,
    rows: Sequence[int],
    own: Path,
    others: Sequence[Path],
    texts: Mapping[str, tuple[str | None, str]],
    size: Scale,
) -> dict[str, Job]:
    """The trainings that a table needs, each after those that it is compared with."""
    wanted = [row.name for row in TABLE_1 if not rows or row.number in _with_parents(rows)]
    if table == "table2":
        chosen = [row for row in TABLE_2 if not rows or row.number in rows]
        wanted = list(dict.fromkeys(name for row in chosen for name in row.members))
    # A row that differs from an earlier one in evaluation alone needs that one's training.
    wanted = list(dict.fromkeys(name for row in wanted for name in (_trained_as(row), row)))
    jobs: dict[str, Job] = {}
    for name in wanted:
        config = vary(scaled(recipe(name), size), data__table=str(own))
        missing = ""
        if name in {other.name for other in EXOGENOUS}:
            config = vary(config, data__outside=[str(other) for other in others])
            missing = "" if others else "not run: needs tables of outside data (--outside)"
        text, note = texts[config.model.text]
        if text is not None:
            config = vary(config, model__text=text)
        else:
            missing, note = missing or note, ""
        missing = missing or _missing_weights(config)
        short = name.removeprefix("paper/")
        twin = next((job.name for job in jobs.values() if _same_training(job.config, config)), None)
        jobs[short] = Job(short, name, config, missing, note, twin)
    return jobs


def _with_parents(rows: Sequence[int]) -> set[int]:
    by_number = {row.number: row for row in TABLE_1}
    unknown = [number for number in rows if number not in by_number]
    if unknown:
        raise InputError(f"Table 1 has the rows 1 to {len(TABLE_1)}, not {unknown[0]}.")
    return {1, *rows, *(by_number[n].parent or n for n in rows)}


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


def commands_of(
    jobs: Mapping[str, Job],
    seeds: int,
    folder: Path,
    table: str,
    data: str | Path,
    outside: Sequence[str | Path],
    scale: str,
    stand_ins: Mapping[str, str | Path],
    rows: Sequence[int],
    epochs: int | None = None,
) -> list[str]:
    """A command for each training, for a GPU each; then the one that waits for all of them."""
    size, lines = SCALES[scale], []
    if str(data) == "phantom":
        styles = ["cxr-lt"] + (["nih", "chexpert"] if table == "table2" else [])
        lines += [_phantom_command(folder, style, size) for style in styles]
    for job in jobs.values():
        if job.missing or job.same_as is not None:
            if job.missing:
                lines.append(f"# {job.recipe}: {job.missing}")
            continue
        changed = diff(recipe(job.recipe), job.config)
        settings = [f"{key}={_plain(new)}" for key, (_, new) in changed.items()]
        for seed in range(seeds):
            run = folder / "trainings" / f"{job.name}-s{seed}"
            words = ["lingula", "train", job.recipe, *settings, f"seed={seed}", "--out", str(run)]
            lines.append(shlex.join(words))
    last = ["lingula", "reproduce", table, "--data", str(data), "--scale", scale]
    last += ["--seeds", str(seeds), "--out", str(folder)]
    last += ["--epochs", str(epochs)] if epochs else []
    last += [word for place in outside for word in ("--outside", str(place))]
    last += [
        word for name, place in stand_ins.items() for word in ("--stand-in", f"{name}={place}")
    ]
    last += [word for row in rows for word in ("--rows", str(row))]
    return [*lines, "# after all of the above:", shlex.join(last)]


def _phantom_command(folder: Path, style: str, size: Scale) -> str:
    own = style == "cxr-lt"
    place = folder / ("phantom" if own else f"phantom-{style}")
    dev, test = size.shares if own else (0.0, 0.0)
    words = ["lingula", "data", "phantom", str(place), "--n"]
    words += [str(size.images if own else size.outside), "--size", str(size.size)]
    words += ["--dev", f"{dev:g}", "--test", f"{test:g}"]
    if own and size.imbalance is not None:
        words += ["--imbalance", f"{size.imbalance:g}"]
    return shlex.join([*words, *([] if own else ["--style", style])])


def _plain(value: object) -> str:
    """A setting's value as `key=value` takes it."""
    return "null" if value is None else json.dumps(value) if isinstance(value, list) else str(value)
