"""`lingula train --dry-run`: what training does before its first step, but for what it writes."""

from __future__ import annotations

import logging

from lingula.loading.order import Rows
from lingula.model.encoders import recompute_activations
from lingula.system import files, processes
from lingula.tables.table import rows_of, subset
from lingula.training import run_folder, steps
from lingula.training.examples import check_there, dataset_of, tell_of_test
from lingula.training.fitting import build, check_steps, resolved, same_data
from lingula.training.moved import check_moved, kept_start
from lingula.training.plan import Plan, data_sha256

log = logging.getLogger("lingula")

_DRAWN = 1400  # training images of a phantom that is not drawn yet


def rehearse(plan: Plan, *, resuming: bool, overwrite: bool) -> None:
    """Raise `InputError` for what training would refuse before its first step.

    Args:
        plan: what would be trained; a table without rows stands for a phantom to be drawn.
        resuming: the settings are those of a run, with its device.
        overwrite: what is in the run's place would be set aside.
    """
    run, table = plan.run, plan.table
    config = plan.config if resuming else resolved(plan.config)
    alone = processes.notice()
    if alone is not None:
        log.warning("%s", alone)
    if (not overwrite or run.is_file()) and run_folder.standing_of(run, config) != "new":
        if len(table):
            same_data(run, {"data_sha256": data_sha256(plan.table, plan.outside)})
        check_moved(plan, config)
        if run_folder.is_finished(run):
            log.info("%s is finished; there is nothing to do.", run)
            return
    files.check_place(run)
    if len(table):
        check_steps(config, plan, processes.here().count)
        for split in ("train", "dev"):
            check_there(dataset_of(subset(table, rows_of(table, split)), config), split)
        for other in plan.outside:
            check_there(dataset_of(other.table, config), "outside")
        tell_of_test(config, table)
    else:
        steps.plan(config, Rows(_DRAWN), processes.here().count)
    network, _, _ = build(config, table, {}, kept_start(run, config))
    if config.model.checkpointing:
        recompute_activations(network.encoder)
