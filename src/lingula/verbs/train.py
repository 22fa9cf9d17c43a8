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
    override_settings,
    with_absolute_paths,
)
from lingula.settings.label_space import SPACES
from lingula.settings.recipes import find_config
from lingula.system import claims, files, processes
from lingula.system.errors import InputError
from lingula.training import run_folder

if TYPE_CHECKING:
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
        overwrite: set an existing folder aside (`NAME.old-1`) and start again.

    Returns:
        The run folder.
    """
    config, run = _settings(name, overrides, out, resume)
    if config.loss.worst.run is not None:
        from lingula.training.run_labels import weigh_worst_classes

        config = weigh_worst_classes(config)
    if dry_run:
        _rehearse(config, run, resuming=resume is not None, overwrite=overwrite)
        return run
    first = processes.is_first()
    if overwrite and run.exists() and first:
        with run_folder.lock_run(run):
            log.info("Moved the old %s to %s.", run, files.set_aside(run))
    with run_folder.lock_run(run) if first else contextlib.nullcontext():
        plan = _plan(_with_phantom(config, run), run)
        from lingula.training.fitting import fit_and_score  # imports torch

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
        return run_folder.settings_to_resume(Path(resume), overrides), Path(resume)
    if name is None or out is None:
        raise InputError("Say what to train and where: lingula train RECIPE|config.yaml --out RUN.")
    return with_absolute_paths(override_settings(find_config(name), overrides)), Path(out)


def _plan(config: Config, run: Path) -> Plan:
    from lingula.tables.configured import prepared_outside, prepared_table

    table, split_made = prepared_table(config)
    return run_folder.Plan(config, table, run, split_made, prepared_outside(config, table))


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
            "images as data.outside=[nih.csv,chexpert.csv]."
        )


def _rehearse(config: Config, run: Path, *, resuming: bool, overwrite: bool) -> None:
    """Check everything that training would; what needs torch comes last."""
    log.info("Would train %s into %s.", config.model.encoder, run)
    _check_phantoms(config)
    if run.exists() and overwrite:
        log.info("The old %s would be set aside.", run)
    if config.data.table == "phantom":
        plan = _plan_phantom(config, run)
    else:
        plan = _plan(config, run)
        log.info("%s", run_folder.describe_plan(plan))
    from lingula.training.fitting import rehearse  # imports torch

    with claims.lock_folder(run, "training in") if run.is_dir() else contextlib.nullcontext():
        rehearse(plan, resuming=resuming, overwrite=overwrite)


def _plan_phantom(config: Config, run: Path) -> Plan:
    """The plan with a phantom that is not drawn yet: its classes, and no rows."""
    import numpy as np

    from lingula.tables.configured import configured_outside
    from lingula.tables.table import Table

    for place in config.data.outside:
        if place not in OUTSIDE_PHANTOMS:
            configured_outside(config.data, Path(place))
    log.info("The phantom would be drawn into %s.", run / "phantom")
    space = SPACES["cxr-lt-2023"]
    for name in config.loss.class_weights:
        space.index(name)
    table = Table((), run, space, np.zeros((0, len(space)), dtype=np.float32))
    return run_folder.Plan(config, table, run)
