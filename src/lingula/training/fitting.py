"""A run from its plan to its report: build the model, fit it, score it; or only rehearse that."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from lingula import about
from lingula.loading.order import Rows
from lingula.model.checkpoint import load_model
from lingula.model.devices import layout_of, make_fabric
from lingula.model.encoders import recompute_activations
from lingula.scores.predictions import (
    Predictions,
    failures_beside,
    read_scores,
    write_failures,
    write_scores,
)
from lingula.scores.results import means_to_text
from lingula.scores.results import to_json as evaluation_to_json
from lingula.scoring.attention import measure_attention
from lingula.scoring.scoring import score
from lingula.settings.config import Config
from lingula.system import files, processes, signals
from lingula.system.errors import InputError, examples
from lingula.system.progress import count_only, format_seconds, progress
from lingula.tables.configured import configured_targets
from lingula.tables.joins import Outside
from lingula.tables.reading import write_table
from lingula.tables.table import Table, rows_of, subset
from lingula.training import optim, run_folder
from lingula.training.examples import (
    check_images_exist,
    dataset_of,
    examples_of,
    warn_of_missing_test,
    with_features,
    with_outside,
)
from lingula.training.loop import RunState, Training, fit
from lingula.training.origins import (
    accept_moved,
    build,
    find_moved,
    kept_start,
    note_start,
    resolve,
    share_statistics,
    start_at_prior,
)
from lingula.training.run_folder import Plan, check_same_data, data_sha256
from lingula.training.run_labels import RunLabels, evaluate_run

log = logging.getLogger("lingula")


def fit_and_score(plan: Plan, *, resuming: bool, report: Callable[[Path], None]) -> None:
    """Do what is left to do of a run: train, score dev and test, evaluate, report."""
    run, table = plan.run, plan.table
    # On a node without its device, too.
    if processes.read_ranks().count == 1 and run_folder.is_finished(run):
        _open(plan, plan.config)
        log.info("%s is finished; nothing to do.", run)
        return
    config = plan.config if resuming else resolve(plan.config)
    fabric = make_fabric(config.device, config.precision)
    first = fabric.global_rank == 0
    standing = fabric.broadcast(_open(plan, config) if first else "")
    if standing == "finished":
        log.info("%s is finished; nothing to do.", run)
        return
    with (
        _undo_if_refused(plan, first and standing == "new"),
        run_folder.log_to(run / "train.log") if first else contextlib.nullcontext(),
    ):
        training = _prepare(plan, config, fabric)
        with signals.note_signals() as asked, progress("training", quiet=not first) as tick:
            state = fit(replace(training, tick=tick, asked=asked))
        fabric.barrier()  # the first process may still be writing the best model
        summary = _score_splits(config, table, run, fabric)
        if first:
            measure_attention(run, table)
            report(run)
            _finish(plan, config, state, summary)
        fabric.barrier()  # one that ended before the report is there would take the others along


def _prepare(plan: Plan, config: Config, fabric: Fabric) -> Training:
    """Everything that comes before the first step, in an order that refuses the cheapest first."""
    run, table, first = plan.run, plan.table, fabric.global_rank == 0
    _check_steps(config, plan, fabric.world_size)
    facts = _describe(config, table, plan.outside)
    network, architecture, facts = build(config, table, facts, kept_start(run, config))
    if first:
        note_start(plan, config, network, facts)
    train = examples_of(config, table, "train", decode=not plan.outside)
    dev = examples_of(config, table, "dev")
    if first:
        warn_of_missing_test(config, table)
    if plan.outside:
        train = with_outside(config, train, plan.outside)
    if config.model.checkpointing:
        recompute_activations(network.encoder)
    if config.model.frozen:
        network.freeze_encoder()
        network.to(fabric.device)
        train, dev = (
            with_features(config, network, part, run / "features" / f"{name}.npy", fabric)
            for name, part in (("train", train), ("dev", dev))
        )
    share_statistics(network, config, fabric)
    if config.compile:
        network.compile()
    if config.model.bias == "prior":
        start_at_prior(network, train.targets, train.mask)
    return Training(config, table.space, network, architecture, facts, train, dev, run, fabric)


def _describe(config: Config, table: Table, others: Sequence[Outside]) -> dict[str, Any]:
    """What `model.json` says besides the architecture: data, reading, evaluation, settings."""
    rows = rows_of(table, "train")
    parts = [subset(table, rows), *(other.table for other in others)]
    read = [configured_targets(config.data, part) for part in parts]
    positives = np.sum([((values >= 0.5) & mask).sum(0) for values, mask in read], axis=0)
    counts = {name: int(n) for name, n in zip(table.space.classes, positives, strict=True)}
    return {
        "lingula": about.__version__,
        "notice": about.NOTICE,
        "reading": {"image_size": config.model.image_size, "bits": config.data.bits},
        "evaluation": config.evaluation.model_dump(mode="json"),
        "trained_on": {
            "table": table.path.name if table.path else "",
            "sha256": table.sha256,
            "images": len(rows),
            "patients": len({table.patients[i] for i in rows}) if table.patients else None,
            "sources": sorted(set(table.sources)) if table.sources else [],
            "phantom": table.phantom,
            "outside": [
                {
                    "table": other.table.path.name if other.table.path else "",
                    "sha256": other.table.sha256,
                    "images": len(other.table),
                    "unmentioned": list(other.lacks),
                }
                for other in others
            ],
            "positives": counts,
            "never_positive": [name for name, n in counts.items() if n == 0],
        },
        "config": config.model_dump(mode="json"),
    }


def _finish(plan: Plan, config: Config, state: RunState, summary: Mapping[str, Any]) -> None:
    """Mark the run as finished and say so."""
    run = plan.run
    done = {"steps": state.step, "best_epoch": state.best_epoch, **summary}
    files.write_json(run / "finished.json", {"seconds": round(state.seconds, 1), **done})
    shutil.rmtree(run / "features", ignore_errors=True)
    log.info(
        "Trained in %s; of %d epochs, number %s is kept. The report is %s.",
        format_seconds(state.seconds),
        config.optim.epochs,
        state.best_epoch,
        run / "report.html",
    )
    images = plan.table.path if plan.table.phantom else "IMAGES"  # its model is for no others
    log.info("Next: lingula predict %s --data %s --out scores.csv", run, images)


def _open(plan: Plan, config: Config) -> str:
    """Claim the run folder and write what belongs to its start; new, unfinished or finished."""
    standing = run_folder.claim_run(plan.run, config)
    if standing == "unfinished":
        run_folder.check_same_training(plan.run)
    with _undo_if_refused(plan, standing == "new"):
        sha256 = data_sha256(plan.table, plan.outside)
        check_same_data(plan.run, sha256)
        if standing != "new":
            accept_moved(plan, config)
        # A run that was killed right after it was claimed lacks them; the environment is written
        # last.
        if not (plan.run / "environment.json").is_file():
            if plan.split_made:
                write_table(plan.table, plan.run / "table.csv")
            environment = run_folder.describe_environment(config, sha256, torch.get_num_threads())
            files.write_json(plan.run / "environment.json", environment)
    return standing


@contextlib.contextmanager
def _undo_if_refused(plan: Plan, new: bool) -> Iterator[None]:
    """If a new run is refused before its first step, free its place: remove what was written.

    Only what this call wrote is removed, and only if nothing else is there; a drawn phantom stays.
    A run that was cut short in any other way can be continued, and stays.
    """
    try:
        yield
    except InputError:
        written = {"config.yaml", "environment.json", "train.log", "features"}
        written |= {"table.csv", "table.json"} if plan.split_made else set()
        left = {path.name for path in plan.run.iterdir() if path.name[0] != "."}
        if new and all(name in written or name.startswith("phantom") for name in left):
            for name in sorted(left & written - {"features"}):
                (plan.run / name).unlink()
            shutil.rmtree(plan.run / "features", ignore_errors=True)
        raise


def _check_steps(config: Config, plan: Plan, world: int) -> None:
    """Refuse batches that can't be shared out before any image is read."""
    own, outside = len(rows_of(plan.table, "train")), sum(len(o.table) for o in plan.outside)
    optim.plan(config, Rows(own + outside, outside, config.data.outside_ratio), world)


def _score_splits(config: Config, table: Table, run: Path, fabric: Fabric) -> dict[str, Any]:
    """Write `scores/{dev,test}.csv` of the best epoch; their mAP and AUROC.

    They are computed in fp32, as `predict` does, so that runs of any format can be compared.
    """
    trained = load_model(run)
    network = trained.network.to(fabric.device)
    summary: dict[str, Any] = {}
    for split in ("dev", "test"):
        rows = rows_of(table, split)
        if not len(rows):
            continue
        part = subset(table, rows)
        with progress(f"scoring {split}", quiet=fabric.global_rank != 0) as tick:
            found = score(
                network,
                dataset_of(part, config),
                fabric=fabric,
                tta=config.evaluation.tta,
                merge=config.evaluation.merge,
                batch_size=config.optim.batch_size,
                workers=config.data.workers,
                layout=layout_of(config),
                exact=True,
                tick=count_only(tick),
            )
        if fabric.global_rank == 0:
            path = run / "scores" / f"{split}.csv"
            ids, studies, patients = part.ids, part.studies, part.patients
            named = (table.space.classes, part.images, found.probabilities, ids, studies, patients)
            write_scores(Predictions(*named), path)
            summary[split] = _summarise(path, part, config, found.failures)
    return summary


def _summarise(
    path: Path, part: Table, config: Config, failures: Mapping[int, str]
) -> dict[str, Any]:
    """The means of a split's scores, and how many images have none; a file beside names those."""
    write_failures(path, {part.images[row]: why for row, why in failures.items()})
    told: dict[str, Any] = {"mAP": None, "AUROC": None, "n": 0}
    if len(failures) < len(part):
        found = evaluation_to_json(
            evaluate_run(read_scores(path), RunLabels(part, config.data), None)
        )
        told = {key: found[key] for key in told}
        log.info("On the %d images of %s: %s.", found["n"], path.stem, means_to_text(found))
    if failures:
        told["failed"] = len(failures)
        log.warning(
            "%d of %d %s images can't be read and have no scores: %s (%s names them all)",
            len(failures),
            len(part),
            path.stem,
            examples(failures.values(), 3),
            failures_beside(path),
        )
    return told


_DRAWN = 1400  # training images of a phantom that is not drawn yet


def rehearse(plan: Plan, *, resuming: bool, overwrite: bool) -> None:
    """Raise `InputError` for what training would refuse before its first step.

    Args:
        plan: what would be trained; a table without rows means a phantom that is not drawn yet.
        resuming: the settings are those of a run, with its device.
        overwrite: what is in the run's place would be set aside.
    """
    run, table = plan.run, plan.table
    config = plan.config if resuming else resolve(plan.config)
    processes.warn_if_alone()
    if (not overwrite or run.is_file()) and run_folder.find_standing(run, config) != "new":
        if len(table):
            check_same_data(run, data_sha256(plan.table, plan.outside))
        find_moved(plan, config)
        if run_folder.is_finished(run):
            log.info("%s is finished; there is nothing to do.", run)
            return
    files.check_place(run)
    if len(table):
        _check_steps(config, plan, processes.read_ranks().count)
        for split in ("train", "dev"):
            check_images_exist(dataset_of(subset(table, rows_of(table, split)), config), split)
        for other in plan.outside:
            check_images_exist(dataset_of(other.table, config), "outside")
        warn_of_missing_test(config, table)
    else:
        optim.plan(config, Rows(_DRAWN), processes.read_ranks().count)
    network, _, _ = build(config, table, {}, kept_start(run, config))
    if config.model.checkpointing:
        recompute_activations(network.encoder)
