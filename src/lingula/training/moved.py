"""A run on hold whose inputs were moved: what they hold is compared, not where they lie.

What a run began with is kept in its `environment.json` under `start`. Once it has a checkpoint it
needs neither the weights nor the text encoder that it started from.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lingula.images.cache import source_of
from lingula.images.files import image_path
from lingula.model import facts
from lingula.model.checkpoint import newest_checkpoint
from lingula.model.encoders import Normalisation
from lingula.model.loader import imagenet_file
from lingula.model.network import Network
from lingula.model.text import files_hash
from lingula.settings.config import Config, diff, read_config, write_config
from lingula.settings.weight_sources import find_text
from lingula.system import files
from lingula.system.errors import ImageError, InputError, differences, examples
from lingula.training import run_folder
from lingula.training.plan import Plan

log = logging.getLogger("lingula")


@dataclass(frozen=True)
class Start:
    """What a network started from, as `model.json` says it, and its tensors by now, by name."""

    facts: Mapping[str, Any]
    state: Mapping[str, Tensor]
    normalisation: Normalisation


_ORIGINS = ("text", "weights", "pretrained")


def note_start(plan: Plan, config: Config, network: Network, facts: Mapping[str, Any]) -> None:
    """Add to `environment.json` what the run started from, if it is not there yet."""
    run = plan.run
    environment = run_folder.read_environment(run)
    if "start" in environment:
        return
    normalisation = network.normalisation
    start = {key: facts[key] for key in _ORIGINS if key in facts} | {
        "weights_sha256": _weights_hash(config.model.weights),
        "normalisation": {"mean": list(normalisation.mean), "std": list(normalisation.std)},
        "classes": list(plan.table.space.classes),
        "cache": _pixels(config),
        "film_bytes": _film_bytes(plan),
    }
    files.write_json(run / "environment.json", environment | {"start": start})


def settle(plan: Plan, now: Config) -> None:
    """Let a run go on with inputs at other places, which are then written to its `config.yaml`.

    Raises `InputError` as `check_moved` does.
    """
    moved = check_moved(plan, now)
    if moved:
        told = differences(moved)
        log.info("%s goes on with the same inputs at other places:\n%s", plan.run, told)
        path = plan.run / "config.yaml"
        write_config(_with(read_config(path), {k: pair[1] for k, pair in moved.items()}), path)


def check_moved(plan: Plan, now: Config) -> dict[str, tuple[Any, Any]]:
    """The inputs of a begun run that are at other places now, each with its places then and now.

    Tables are compared before, by their hash. Raises `InputError`, and shows the difference, where
    other inputs hold something else than those that the run began with.
    """
    run, classes = plan.run, plan.table.space.classes
    there, known = read_config(run / "config.yaml"), _known(run)
    before = known.get("classes", classes)
    if list(before) != list(classes):
        raise InputError(
            f"{run} was begun with the classes {examples(before, 26)}; now they are "
            f"{examples(classes, 26)}. Is the table's description, the .json beside it, there?"
        )
    moved = {key: pair for key, pair in diff(there, now).items() if key in run_folder.PLACES}
    other = {key: pair for key, pair in moved.items() if not _same(key, there, now, known)}
    if other:
        raise InputError(
            f"{run} is a run with other settings, or they can't be told to hold the same:\n"
            f"{differences(other)}\nChoose another --out, or --overwrite to set the old one aside."
        )
    if _FILMS.intersection(moved) and _other_films(known.get("film_bytes", ()), plan):
        raise InputError(
            f"The films are others than those that {run} was begun with (their files have other "
            f"sizes):\n{differences({k: v for k, v in moved.items() if k in _FILMS})}\nSay where "
            "the same ones lie, or choose another --out."
        )
    return moved


_FILMS = {"data.table", "data.root", "data.outside"}
_SAMPLE = 64


def _film_bytes(plan: Plan) -> list[int]:
    """The sizes in bytes of some of the films, -1 where a file is not there."""
    tables = [plan.table, *(other.table for other in plan.outside)]
    every = [(table.root, image) for table in tables for image in table.images]
    step = max(1, len(every) // _SAMPLE)
    sizes = []
    for root, image in every[::step]:
        try:
            sizes.append(source_of(image_path(root, image)).size)
        except ImageError:
            sizes.append(-1)
    return sizes


def _other_films(before: Sequence[int], plan: Plan) -> bool:
    """Whether more than a tenth of the films that are there have other sizes; some are mended."""
    pairs = zip(before, _film_bytes(plan), strict=False)
    differ = [old != new for old, new in pairs if min(old, new) >= 0]
    return 10 * sum(differ) > len(differ)


def _with(config: Config, places: Mapping[str, Any]) -> Config:
    """The config with other values of settings in `data` and `model`."""
    for section in ("data", "model"):
        changed = {k.removeprefix(f"{section}."): v for k, v in places.items() if section in k}
        part = getattr(config, section)
        changed = {k: tuple(v) if isinstance(v, list) else v for k, v in changed.items()}
        config = config.model_copy(update={section: part.model_copy(update=changed)})
    return config


def _known(run: Path) -> dict[str, Any]:
    """What is kept of a run's start; of an older version's run, what its best model says."""
    start = run_folder.read_environment(run).get("start")
    best = run / "best" / "model.json"
    if start is not None or not best.is_file():
        return dict(start or {})
    facts = files.read_object(best)
    known = (*_ORIGINS, "normalisation", "classes")
    return {key: facts[key] for key in known if key in facts}


def _same(key: str, there: Config, now: Config, known: Mapping[str, Any]) -> bool:
    """Whether a setting that names another place names the same content."""
    if key in ("data.table", "data.root", "data.outside"):
        return True  # of tables the hash was compared, and films are
    if key == "data.cache":
        return bool(_pixels(now) == (known["cache"] if "cache" in known else _pixels(there)))
    if key == "model.weights":
        before, found = known.get("weights", ""), _weights_hash(now.model.weights)
        return found is not None and (
            known.get("weights_sha256") == found or found[:16] in before.partition("(")[0]
        )
    before, found = known.get("text", ""), _text_hash(now.model.text)
    return found is not None and found[:16] in before


def _pixels(config: Config) -> str | None:
    """What a cache makes of the pixels: nothing if there is none, or a raw one."""
    caches = config.data.cache
    if caches is None:
        return None
    place = Path(caches if isinstance(caches, str) else caches[0])
    path = place / "cache.json"
    made = files.read_object(path) if path.is_file() else {"codec": f"that of {place}"}
    return None if made["codec"] == "raw" else f"{made['codec']} {made.get('quality')}"


def _weights_hash(weights: str) -> str | None:
    """The hash of a weights file, or of a run's weights; None for what is neither."""
    place = files.expanded(weights)
    if place.is_dir():
        return str(facts.read_facts(place)["weights_sha256"])
    return files.sha256(place) if place.is_file() else None


def _text_hash(text: str) -> str | None:
    place = files.expanded(text)
    if place.is_dir():
        return files_hash(place)
    return files.sha256(place) if place.is_file() else None


def kept_start(run: Path, config: Config) -> Start | None:
    """What a begun run started from, where the weights or the text encoder are gone by now.

    None if they are there, or if the run has no checkpoint to go on from.
    """
    known, m = _known(run), config.model
    if "text" not in known or "weights" not in known:
        return None
    gone = []
    if m.weights != "none":
        found = imagenet_file(m.encoder) if m.weights == "imagenet" else files.expanded(m.weights)
        gone += [] if found is not None and found.exists() else [m.weights]
    if m.text != "orthogonal" and m.classifier != "linear":
        is_there = files.expanded(m.text).exists() or find_text(m.text) is not None
        gone += [] if is_there else [m.text]
    saved = newest_checkpoint(run / "checkpoints") if gone else None
    if saved is None:
        return None
    log.info("Not there any more, and not needed, for there is a checkpoint: %s.", examples(gone))
    n = known["normalisation"]
    normalisation = Normalisation(tuple(n["mean"]), tuple(n["std"]))
    facts = {key: known[key] for key in _ORIGINS if key in known}
    return Start(facts, saved["network"], normalisation)
