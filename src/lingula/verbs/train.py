"""`lingula train`: settle settings and table (without torch), then fit, score and report."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lingula.settings.config import (
    OUTSIDE_PHANTOMS,
    Config,
    Worst,
    override_settings,
    read_config,
    with_absolute_paths,
)
from lingula.settings.label_space import SPACES
from lingula.settings.recipes import RECIPES, recipe
from lingula.system import claims, files, processes
from lingula.system.errors import InputError, differences, examples
from lingula.training import run_folder

if TYPE_CHECKING:
    from lingula.tables.joins import Outside
    from lingula.tables.table import Table
    from lingula.training.run_folder import Plan

# What reads tables is imported where it is used: it takes longer than the answer to wrong settings.

log = logging.getLogger("lingula")


def train(
    name: str | Path | Config | None = None,
    overrides: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
) -> Path:
    """Train a model and write its run folder; the same call again continues or finds it finished.

    Args:
        name: a recipe's name, a YAML file, or a `Config`.
        overrides: `key=value` settings on top of it.
        out: the run folder.
        resume: a run folder to continue with its own settings, instead of `name` and `out`.
        dry_run: only check all that can be checked before the first step, and log what would be
            done.
        overwrite: set an existing folder aside (`NAME.old-1`) and start anew.

    Returns:
        The run folder.
    """
    config, run = _settings(name, overrides, out, resume)
    if config.loss.worst.run is not None:
        config = with_worst(config)
    if dry_run:
        _rehearse(config, run, resuming=resume is not None, overwrite=overwrite)
        return run
    first = processes.is_first()
    if overwrite and run.exists() and first:
        with run_folder.lock_run(run):
            log.info("Moved the old %s to %s.", run, files.set_aside(run))
    with run_folder.lock_run(run) if first else contextlib.nullcontext():
        config = _with_phantom(config, run)
        from lingula.tables.configured import prepared_table

        table, split_made = prepared_table(config)
        others = outside_tables(config, table)
        from lingula.training.fitting import fit_and_score  # imports torch
        from lingula.training.run_folder import Plan

        plan = Plan(config, table, run, split_made, others)
        fit_and_score(plan, resuming=resume is not None, report=_write_page)
    return run


def _write_page(run: Path) -> None:
    from lingula.verbs.report import report

    report([run], out=run / "report.html")


def _settings(
    name: str | Path | Config | None,
    overrides: Sequence[str],
    out: str | Path | None,
    resume: str | Path | None,
) -> tuple[Config, Path]:
    if resume is not None:
        if name is not None or out is not None:
            raise InputError("--resume RUN takes the run's own settings: give no recipe, no --out.")
        run = Path(resume)
        if not (run / "config.yaml").is_file():
            inside = (run.parent / "config.yaml").is_file() and run.is_file()
            hint = f" Did you mean {run.parent}?" if inside else ""
            raise InputError(f"{run} is no run folder: it has no config.yaml.{hint}")
        stored = read_config(run / "config.yaml")
        found = stored.data.model_copy(
            update={"table": str(run_folder.find_table(run, stored.data.table))}
        )
        config = override_settings(stored.model_copy(update={"data": found}), overrides)
        changed = run_folder.changed_settings(stored, config)
        if changed:
            raise InputError(
                f"A resumed run keeps its settings; these differ:\n{differences(changed)}"
            )
        config = with_absolute_paths(config)
        _check_table_there(config, run)
        return config, run
    if name is None or out is None:
        raise InputError("Say what to train and where: lingula train RECIPE|config.yaml --out RUN.")
    config = override_settings(settings_of(name), overrides)
    return with_absolute_paths(config), Path(out)


def _check_table_there(config: Config, run: Path) -> None:
    table = config.data.table
    if table != "phantom" and not Path(table).is_file():
        raise InputError(
            f"There is no table {table}, on which {run} was begun. If it lies elsewhere now: "
            f"lingula train --resume {run} data.table=TABLE."
        )


def settings_of(name: str | Path | Config) -> Config:
    """The config behind a recipe's name or a YAML file; a config is returned as it is."""
    if isinstance(name, Config):
        return name
    if str(name).lower().endswith((".yaml", ".yml")):
        return read_config(name)
    if str(name) not in RECIPES and Path(name).is_dir():
        raise InputError(
            f"{name} is a folder, no recipe and no YAML file; a run's settings are in its "
            f"{Path(name) / 'config.yaml'}."
        )
    return recipe(str(name))


def _with_phantom(config: Config, run: Path) -> Config:
    """The embedded data sets, drawn into the run's folder at their first use."""
    data, size = config.data, max(128, config.model.image_size)
    _check_phantoms(config)
    if data.table != "phantom":
        return config
    from lingula.verbs.data_phantom import data_phantom

    def draw(folder: str, style: str) -> str:
        return str(data_phantom(run / folder, size=size, style=style).resolve())

    outside = tuple(
        draw(place.replace(":", "-"), OUTSIDE_PHANTOMS[place])
        if place in OUTSIDE_PHANTOMS
        else place
        for place in data.outside
    )
    data = data.model_copy(update={"table": draw("phantom", "cxr-lt"), "outside": outside})
    return config.model_copy(update={"data": data})


def _check_phantoms(config: Config) -> None:
    drawn = [place for place in config.data.outside if place in OUTSIDE_PHANTOMS]
    if drawn and config.data.table != "phantom":
        raise InputError(
            f"data.outside={drawn[0]} is a phantom and data.table is not: give tables of real "
            "films as data.outside=[nih.csv,chexpert.csv]."
        )


def outside_tables(config: Config, own: Table) -> tuple[Outside, ...]:
    """The tables of `data.outside`, joined to the classes by name; what they lack is logged."""
    from lingula.tables.configured import configured_outside
    from lingula.tables.joins import check_apart, outside

    found = []
    for place in config.data.outside:
        joined = outside(configured_outside(config.data, Path(place)), own.space)
        check_apart(own, joined.table)
        log.info(
            "%s: %d images to train on; it does not know %s%s.",
            place,
            len(joined.table),
            examples(joined.lacks, 26) or "nothing (it has every class)",
            f"; left out: {examples(joined.dropped)}" if joined.dropped else "",
        )
        found.append(joined)
    return tuple(found)


def with_worst(config: Config) -> Config:
    """The config with the weights of the classes that `loss.worst.run` did worst on, on dev."""
    worst = config.loss.worst
    run = Path(str(worst.run))
    if not (run / "scores" / "dev.csv").is_file() or not (run / "config.yaml").is_file():
        raise InputError(f"{run} (loss.worst.run) is no finished run: it has no scores/dev.csv.")
    from lingula.scores.evaluation import worst_classes
    from lingula.scores.predictions import read_scores
    from lingula.training.run_labels import labels_of, measured, warn_of_changed_runs

    own = run_folder.find_table(run, read_config(run / "config.yaml").data.table)
    # Where both were trained on one table that was moved, this training's own says where it is.
    is_there = own.is_file() or (run / "table.csv").is_file()
    labels = labels_of(run, table=None if is_there else config.data.table)
    warn_of_changed_runs([(run, labels)])
    found = measured(read_scores(run / "scores" / "dev.csv"), labels, "dev")
    chosen = worst_classes(found, worst.k)
    log.info(
        "Worst on the dev split of %s, weighted by %g: %s.", run, worst.factor, examples(chosen, 26)
    )
    weights = {name: worst.factor for name in chosen} | config.loss.class_weights
    loss = config.loss.model_copy(update={"class_weights": weights, "worst": Worst()})
    return config.model_copy(update={"loss": loss})


def _rehearse(config: Config, run: Path, *, resuming: bool, overwrite: bool) -> None:
    """Look at everything that training would; what needs torch comes last."""
    log.info("Would train %s into %s.", config.model.encoder, run)
    _check_phantoms(config)
    if run.exists() and overwrite:
        log.info("The old %s would be set aside.", run)
    from lingula.tables.configured import prepared_table
    from lingula.training.run_folder import Plan

    if config.data.table == "phantom":
        plan = _drawn(config, run)
    else:
        table, split_made = prepared_table(config)
        plan = Plan(config, table, run, split_made, outside_tables(config, table))
        _describe(plan)
    from lingula.training.fitting import rehearse

    with claims.lock_folder(run, "training in") if run.is_dir() else contextlib.nullcontext():
        rehearse(plan, resuming=resuming, overwrite=overwrite)


def _drawn(config: Config, run: Path) -> Plan:
    """A stand-in for the plan with a phantom that is not drawn yet: its classes, and no rows."""
    import numpy as np

    from lingula.tables.configured import configured_outside
    from lingula.tables.table import Table
    from lingula.training.run_folder import Plan

    for place in config.data.outside:
        if place not in OUTSIDE_PHANTOMS:
            configured_outside(config.data, Path(place))
    log.info("The phantom would be drawn into %s.", run / "phantom")
    space = SPACES["cxr-lt-2023"]
    for name in config.loss.class_weights:
        space.index(name)
    return Plan(config, Table((), run, space, np.zeros((0, len(space)), dtype=np.float32)), run)


def _describe(plan: Plan) -> None:
    from lingula.tables.table import rows_of

    config, table = plan.config, plan.table
    counts = {split: len(rows_of(table, split)) for split in ("train", "dev", "test")}
    added, ratio = sum(len(other.table) for other in plan.outside), config.data.outside_ratio
    if added and ratio is not None:
        added = round(ratio * counts["train"])
    steps = -(-(counts["train"] + added) // config.optim.batch_size) * config.optim.epochs
    log.info(
        "%d classes; %d train, %d dev, %d test images%s; %d steps of %d.",
        len(table.space),
        counts["train"],
        counts["dev"],
        counts["test"],
        f", {added} an epoch from outside" if added else "",
        steps,
        config.optim.batch_size,
    )
