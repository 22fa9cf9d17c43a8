"""Making a plan: settings from what is there, then the image size, epochs and folds that fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lingula.bench.speed import Speed
from lingula.model.devices import resolve_device
from lingula.planning.budget import (
    FEWEST_FOLDS,
    LEVELS,
    MARGIN,
    SMALLEST_GOOD,
    Images,
    Level,
    Machine,
    refuse,
    total_seconds,
)
from lingula.planning.plan import Choice, StartPlan, with_changes
from lingula.planning.survey import describe_machine, measure
from lingula.settings.config import Config, override_settings, vary
from lingula.settings.recipes import recipe

LINEAR, DECODER = "linear", "decoder"
LINEAR_LR = (
    6e-4  # not the decoder's: members that differ gain more (docs/experiments.md, 2026-11-28)
)


@dataclass(frozen=True)
class Wish:
    """What the user asked for, as far as it shapes the plan.

    `settings` are `key=value`; `seconds` is the time from the beginning to the report.
    """

    seconds: float
    folds: int
    settings: tuple[str, ...]

    def fixes(self, key: str) -> bool:
        """Whether a setting was given."""
        return any(word.partition("=")[0] == key for word in self.settings)

    def value(self, key: str) -> str | None:
        """The text of a setting that was given."""
        found = (word.partition("=")[2] for word in self.settings if word.startswith(f"{key}="))
        return next(found, None)


def base_config(encoder: str, weights: str, settings: Sequence[str]) -> Config:
    """The settings of the main design before its size and epochs are chosen.

    The recipe `small`, or without weights to start from the recipe `demo`, which learns from
    nothing. The last epoch is kept: an epoch chosen on a fold would flatter its scores.
    """
    config = vary(
        recipe("small" if weights != "none" else "demo"),
        model__encoder=encoder,
        model__weights=weights,
        optim__keep="last",
    )
    return override_settings(config, settings)


def designs_of(config: Config, wish: Wish) -> dict[str, dict[str, Any]]:
    """The designs, the simplest first, by what they change: a linear head, and the decoder."""
    linear: dict[str, Any] = {"model.classifier": "linear"}
    if config.model.weights != "none" and not wish.fixes("optim.lr"):
        linear["optim.lr"] = LINEAR_LR
    if config.model.classifier == "linear":
        return {LINEAR: linear}
    return {LINEAR: linear, DECODER: {}}


def levels_of(config: Config, wish: Wish) -> list[Level]:
    """The levels, from the cheapest on, with what the user fixed."""
    size = config.model.image_size if wish.fixes("model.image_size") else None
    epochs = config.optim.epochs if wish.fixes("optim.epochs") else None
    fixed = (
        replace(level, image_size=size or level.image_size, epochs=epochs or level.epochs)
        for level in LEVELS
    )
    return list(dict.fromkeys(fixed))


def at_level(config: Config, level: Level) -> Config:
    """The settings with a level's image size and epochs."""
    return vary(config, model__image_size=level.image_size, optim__epochs=level.epochs)


def fit_budget(
    trainings: Sequence[tuple[Speed, Config]],
    levels: Sequence[Level],
    machine: Machine,
    images: Images,
    wish: Wish,
    spent: float,
) -> tuple[Level, int, dict[str, float]]:
    """The level and the folds that fill the time, and the seconds of each part.

    The number of folds falls before the images get very small, and no further than need be. Raises
    `InputError` if the time is too short for the smallest plan.
    """
    left = MARGIN * wish.seconds - spent
    good = [level for level in levels if cost(level) >= cost(SMALLEST_GOOD)]
    fewer = [(k, levels) for k in (3, FEWEST_FOLDS) if k < wish.folds]
    least = math.inf
    for folds, allowed in ((wish.folds, good), *fewer, (wish.folds, levels)):
        for level in reversed(allowed):
            made = [(speed, at_level(config, level)) for speed, config in trainings]
            parts = total_seconds(made, machine, images, folds, level.seeds)
            least = min(least, spent + sum(parts.values()))
            if sum(parts.values()) <= left:
                return level, folds, parts
    raise refuse(wish.seconds, least, images)


def cost(level: Level) -> int:
    """What a level costs, in pixels that a training sees of each image."""
    return level.image_size**2 * level.epochs * level.seeds


def make_plan(
    config: Config,
    images: Images,
    wish: Wish,
    *,
    asked: Mapping[str, Any],
    reading: float,
    spent: Callable[[], float],
    notes: Sequence[Choice],
) -> StartPlan:
    """Time some steps of each design, and choose what fits into the time.

    Args:
        config: of the main design.
        images: how many there are.
        wish: what the user asked for.
        asked: the same, as the plan keeps it.
        reading: seconds that all cores took to read an image.
        spent: a function that tells the seconds since the beginning.
        notes: choices that were made before.

    Raises:
        InputError: the time is too short.
    """
    designs = designs_of(config, wish)
    machine = describe_machine(resolve_device(config))
    machine = replace(machine, reading=machine.parallel * reading)
    configs = [with_changes(config, changes) for changes in designs.values()]
    speeds = measure(configs, machine)
    levels = levels_of(config, wish)
    used = spent()
    trainings = list(zip(speeds, configs, strict=True))
    level, folds, parts = fit_budget(trainings, levels, machine, images, wish, used)
    config = at_level(config, level)
    memory = [speed.memory for speed in speeds if speed.memory is not None]
    return StartPlan(
        config,
        designs,
        folds,
        level.seeds,
        machine,
        images,
        {"checking and timing": used, **parts},
        max(memory) if memory else None,
        (*notes, *_explain(config, designs, folds, level, machine, wish)),
        asked,
    )


def _explain(
    config: Config,
    designs: Mapping[str, Any],
    folds: int,
    level: Level,
    machine: Machine,
    wish: Wish,
) -> list[Choice]:
    """The choices that follow from the time, and the settings worth knowing."""
    o, augment, m = config.optim, config.augment, config.model

    def why(key: str, otherwise: str) -> str:
        return "as asked" if wish.fixes(key) else otherwise

    fewer = "" if folds == wish.folds else f", not {wish.folds}: the time is too short for more"
    mixup = "" if augment.mixup is None else f", MixUp {augment.mixup:g}"
    seeds = f", {level.seeds} seeds each" if level.seeds > 1 else ""
    return [
        Choice("folds", f"{folds}{seeds}", f"each image is scored by models without it{fewer}"),
        Choice("designs", ", ".join(designs), "the simplest within noise of the best is used"),
        Choice("image size", f"{m.image_size} px", why("model.image_size", "fits into the time")),
        Choice("epochs", str(o.epochs), why("optim.epochs", "fits into the time")),
        Choice("batch size", str(o.batch_size), why("optim.batch_size", "of the recipe")),
        Choice("learning rate", _rates(config, designs), why("optim.lr", "of the recipe")),
        Choice("loss", config.loss.name, why("loss.name", "of the recipe")),
        Choice(
            "augmentation",
            f"crops of {augment.scale[0]:g} to {augment.scale[1]:g}, flips, "
            f"{augment.rotation:g} degrees{mixup}",
            "of the recipe",
        ),
        Choice("test-time views", config.evaluation.tta, why("evaluation.tta", "of the recipe")),
        Choice(
            "machine",
            f"{machine.device}, {resolve_device(config).precision}",
            f"trainings at once: {machine.parallel}; threads of each: {machine.threads}",
        ),
    ]


def _rates(config: Config, designs: Mapping[str, Mapping[str, Any]]) -> str:
    """The learning rate, or that of each design where they differ."""
    rates = {name: with_changes(config, changes).optim.lr for name, changes in designs.items()}
    if len(set(rates.values())) == 1:
        return f"{config.optim.lr:g}"
    return ", ".join(f"{rate:g} ({name})" for name, rate in rates.items())
