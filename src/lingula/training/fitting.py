"""The half of `lingula train` that needs torch: build the network, fit it, score and report."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn

from lingula.loading.order import Rows
from lingula.model import facts
from lingula.model.checkpoint import load_model, start_from_run
from lingula.model.devices import layout_of, make_fabric, resolve_device
from lingula.model.encoders import recompute_activations
from lingula.model.loader import load_encoder, load_imagenet, pretrained
from lingula.model.network import Architecture, Network
from lingula.model.text import embed
from lingula.scores.predictions import Predictions, write_scores
from lingula.scoring.attention import measure_attention
from lingula.scoring.scoring import score
from lingula.settings.config import Config
from lingula.settings.weight_sources import cache_folder
from lingula.system import files, processes, signals
from lingula.system.errors import InputError
from lingula.system.progress import counting, progress, spoken
from lingula.tables.reading import write_table
from lingula.tables.table import Table, rows_of, subset
from lingula.training import run_folder, steps
from lingula.training.examples import (
    dataset_of,
    examples_of,
    tell_of_test,
    with_features,
    with_outside,
)
from lingula.training.facts import facts_of, summary_of
from lingula.training.loop import RunState, Training, fit
from lingula.training.moved import Start, kept_start, note_start, settle
from lingula.training.plan import Plan, data_sha256

log = logging.getLogger("lingula")


def fit_and_score(plan: Plan, *, resuming: bool, report: Callable[[Path], None]) -> None:
    """Do what is left to do of a run: train, score dev and test, evaluate, report."""
    run, table = plan.run, plan.table
    # On a node without its device, too.
    if processes.here().count == 1 and run_folder.is_finished(run):
        _opened(plan, plan.config)
        log.info("%s is finished; nothing to do.", run)
        return
    config = plan.config if resuming else resolved(plan.config)
    fabric = make_fabric(config.device, config.precision)
    first = fabric.global_rank == 0
    standing = fabric.broadcast(_opened(plan, config) if first else "")
    if standing == "finished":
        log.info("%s is finished; nothing to do.", run)
        return
    with (
        _taken_back(plan, first and standing == "new"),
        run_folder.logged(run / "train.log") if first else contextlib.nullcontext(),
    ):
        check_steps(config, plan, fabric.world_size)
        facts = facts_of(config, table, plan.outside)
        network, architecture, facts = build(config, table, facts, kept_start(run, config))
        if first:
            note_start(plan, config, network, facts)
        train = examples_of(config, table, "train", decode=not plan.outside)
        dev = examples_of(config, table, "dev")
        if first:
            tell_of_test(config, table)
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
        with signals.noted() as asked, progress("training", quiet=not first) as tick:
            state = fit(
                Training(
                    config=config,
                    space=table.space,
                    network=network,
                    architecture=architecture,
                    facts=facts,
                    train=train,
                    dev=dev,
                    run=run,
                    fabric=fabric,
                    tick=tick,
                    asked=asked,
                )
            )
        fabric.barrier()  # the first process may still be writing the best model
        summary = _score_splits(config, table, run, fabric)
        if first:
            measure_attention(run, table)
            report(run)
            _finish(plan, config, state, summary)
        fabric.barrier()  # one that ended before the report is there would take the others along


def _finish(plan: Plan, config: Config, state: RunState, summary: Mapping[str, Any]) -> None:
    """Mark the run as finished and say so."""
    run = plan.run
    done = {"steps": state.step, "best_epoch": state.best_epoch, **summary}
    run_folder.finish(run, {"seconds": round(state.seconds, 1), **done})
    shutil.rmtree(run / "features", ignore_errors=True)
    _say_the_end(plan, config, state)


def _say_the_end(plan: Plan, config: Config, state: RunState) -> None:
    log.info(
        "Trained in %s; of %d epochs, number %s is kept. The report is %s.",
        spoken(state.seconds),
        config.optim.epochs,
        state.best_epoch,
        plan.run / "report.html",
    )
    images = plan.table.path if plan.table.phantom else "IMAGES"  # its model is for no others
    log.info("Next: lingula predict %s --data %s --out scores.csv", plan.run, images)


def resolved(config: Config) -> Config:
    """The config with the device, the number format and the published weights decided.

    `imagenet` for an encoder without a tag is what this version of timm takes for it; the tag is
    written down, so that the run says which weights these were.
    """
    config = resolve_device(config)
    known = pretrained(config.model.encoder) if config.model.weights == "imagenet" else None
    if known is None:
        return config
    return config.model_copy(
        update={"model": config.model.model_copy(update={"encoder": known.name})}
    )


def _opened(plan: Plan, config: Config) -> str:
    """Claim the run folder and write what belongs to its start; new, unfinished or finished."""
    standing = run_folder.open_run(plan.run, config)
    if standing == "unfinished":
        run_folder.check_same_training(plan.run)
    with _taken_back(plan, standing == "new"):
        environment = run_folder.environment(
            config, data_sha256(plan.table, plan.outside), torch.get_num_threads()
        )
        same_data(plan.run, environment)
        if standing != "new":
            settle(plan, config)
        # A run that was killed right after it was claimed lacks them; the environment is written
        # last.
        if not (plan.run / "environment.json").is_file():
            if plan.split_made:
                write_table(plan.table, plan.run / "table.csv")
            files.write_json(plan.run / "environment.json", environment)
    return standing


@contextlib.contextmanager
def _taken_back(plan: Plan, new: bool) -> Iterator[None]:
    """If a run is refused before its first step, nothing of it stays that would claim its name.

    Only what this call wrote is removed, and only where nothing else is there; a drawn phantom
    stays. A run that was cut short in any other way can be continued, and stays.
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


def check_steps(config: Config, plan: Plan, world: int) -> None:
    """Refuse batches that can't be shared out before any image is read."""
    own, outside = len(rows_of(plan.table, "train")), sum(len(o.table) for o in plan.outside)
    steps.plan(config, Rows(own + outside, outside, config.data.outside_ratio), world)


def same_data(run: Path, environment: Mapping[str, Any]) -> None:
    """Refuse tables that hold something else than those that the run was begun with."""
    before = run_folder.read_environment(run).get("data_sha256")
    if before is not None and before != environment["data_sha256"]:
        raise InputError(
            f"The table has changed since {run} was begun (its hash differs). Put the old one "
            "back, or choose another --out."
        )


def build(
    config: Config, table: Table, facts: Mapping[str, Any], kept: Start | None = None
) -> tuple[Network, Architecture, dict[str, Any]]:
    """The network at its start, and the facts with the origins of its text and weights added.

    With `kept` the files that it started from are not read.
    """
    m, classes = config.model, table.space.classes
    torch.manual_seed(config.seed)
    architecture = Architecture(
        encoder=m.encoder,
        image_size=m.image_size,
        classifier=m.classifier,
        pooled_path=m.decoder.pooled_path,
        stage=m.stage,
        **m.decoder.model_dump(exclude={"pooled_path"}),
    )
    if kept is not None:
        network = Network(architecture, kept.state["embeddings"])
        network.load_state_dict(kept.state)
        network.set_normalisation(kept.normalisation)
        return network, architecture, {**facts, **kept.facts}
    cache = cache_folder()
    text = embed(
        classes,
        "orthogonal" if m.classifier == "linear" else m.text,
        pooling=m.text_pooling,
        width=m.decoder.width,
        cache=None if cache is None else cache / "text",
    )
    network = Network(architecture, text.values)
    return (
        network,
        architecture,
        {
            **facts,
            "text": "none (linear)" if m.classifier == "linear" else text.origin,
            **_start(network, architecture, config, classes, text.origin),
        },
    )


def _start(
    network: Network,
    architecture: Architecture,
    config: Config,
    classes: tuple[str, ...],
    text: str,
) -> dict[str, Any]:
    """Fill the network's start as `model.weights` says; the facts of where it came from.

    `pretrained` are the published weights that it goes back to, through other runs too.
    """
    weights = config.model.weights
    if weights == "none":
        return {"weights": "none (random)"}
    if weights == "imagenet":
        report, known = load_imagenet(network.encoder, config.model.encoder)
        told = f"ImageNet, {known['name']}, licence {known['license']} ({report})"
        return {"weights": told, "pretrained": known}
    place = files.expanded(weights)
    if place.is_dir():
        told = start_from_run(network, architecture, classes, place, text)
        before = facts.read_facts(place).get("pretrained")
        return {
            "weights": f"run {place.name} ({told})",
            **({} if before is None else {"pretrained": before}),
        }
    report, normalisation = load_encoder(network.encoder, place)
    if normalisation is not None:
        network.set_normalisation(normalisation)
    return {"weights": f"file {place.name}, sha256 {files.sha256(place)[:16]} ({report})"}


def start_at_prior(network: Network, values: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
    """Set the classifier's bias to the training log odds of each class (their mean if shared).

    Half a positive and half a negative more than there are keep them finite: a class without
    positives starts low, and one that is known of no image at zero.
    """
    positives = np.where(mask, values, 0).sum(0) + 0.5
    share = positives / (mask.sum(0) + 1.0)
    odds = torch.from_numpy(np.log(share / (1 - share))).float()
    with torch.no_grad():
        network.bias.copy_(odds if len(network.bias) == len(odds) else odds.mean().view(1))


LEAST_PER_DEVICE = 8  # images; of fewer, batch norm's means and variances are mostly noise


def share_statistics(network: Network, config: Config, fabric: Fabric) -> None:
    """Let batch norm see the images of all devices, as `model.sync_batch_norm` says.

    Without it a warning says so where a device gets few images at once. `InputError` for devices
    other than CUDA's, for which torch has no such batch norm.
    """
    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    if not norms or config.model.frozen:
        return
    if config.model.sync_batch_norm:
        if config.device != "cuda":
            raise InputError(
                f"model.sync_batch_norm needs CUDA devices, not device={config.device}: leave it "
                "out; optim.batch_size gives each process more images."
            )
        network.encoder = convert_sync_batchnorm(network.encoder)  # type: ignore[no-untyped-call]
        return
    pieces = config.optim.accumulate * fabric.world_size
    each = config.optim.batch_size // pieces
    if pieces > 1 and each < LEAST_PER_DEVICE:
        log.warning(
            "Batch norm sees only %d images at a time: optim.batch_size=%d over %d processes in "
            "optim.accumulate=%d pieces. Use fewer or larger ones%s.",
            each,
            config.optim.batch_size,
            fabric.world_size,
            config.optim.accumulate,
            ", or model.sync_batch_norm=true" if fabric.world_size > 1 else "",
        )


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
                tick=counting(tick),
            )
        predictions = predictions_of(part, found.probabilities)
        if fabric.global_rank == 0:
            path = run / "scores" / f"{split}.csv"
            write_scores(predictions, path)
            summary[split] = summary_of(path, part, config, found.failures)
    return summary


def predictions_of(table: Table, probabilities: NDArray[np.float64]) -> Predictions:
    """Scores with the table's names and ids."""
    return Predictions(
        classes=table.space.classes,
        images=table.images,
        probabilities=probabilities,
        ids=table.ids,
        studies=table.studies,
        patients=table.patients,
    )
