"""What a run starts from: its model, where weights and text came from, and whether they moved.

A run's `environment.json` keeps under `start` what it began with. A run that goes on with inputs at
other places is compared by what they contain. Once it has a checkpoint it needs neither the weights
nor the text encoder that it started from.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn

from lingula.images.cache import source_of
from lingula.images.files import image_path
from lingula.model.checkpoint import newest_checkpoint, start_from_run
from lingula.model.devices import resolve_device
from lingula.model.encoders import Normalisation
from lingula.model.facts import read_facts
from lingula.model.loader import imagenet_file, load_encoder, load_imagenet, pretrained
from lingula.model.network import Architecture, Network
from lingula.model.text import embed, files_hash
from lingula.settings.config import Config, diff, read_config, write_config
from lingula.settings.weight_sources import cache_folder, find_text
from lingula.system import files
from lingula.system.errors import ImageError, InputError, differences, examples
from lingula.tables.table import Table
from lingula.training import run_folder
from lingula.training.run_folder import Plan

log = logging.getLogger("lingula")


def resolve(config: Config) -> Config:
    """The config with the device, the number format and the published weights decided.

    `imagenet` for an encoder without a tag is what this version of timm takes for it; the tag is
    written into the config, so that the run says which weights these were.
    """
    config = resolve_device(config)
    known = pretrained(config.model.encoder) if config.model.weights == "imagenet" else None
    if known is None:
        return config
    return config.model_copy(
        update={"model": config.model.model_copy(update={"encoder": known.name})}
    )


def build(
    config: Config, table: Table, facts: Mapping[str, Any], kept: Start | None = None
) -> tuple[Network, Architecture, dict[str, Any]]:
    """The model at its start, and the facts with the origins of its text and weights added.

    Args:
        config: the settings.
        table: names the classes.
        facts: what else is known of the model.
        kept: what a begun run started from, if the files that it came from need not be read.
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
            **_load_weights(network, architecture, config, classes, text.origin),
        },
    )


def _load_weights(
    network: Network,
    architecture: Architecture,
    config: Config,
    classes: tuple[str, ...],
    text: str,
) -> dict[str, Any]:
    """Fill the model as `model.weights` says; returns where its weights came from.

    `pretrained` are the published weights that they go back to, through other runs too.
    """
    weights = config.model.weights
    if weights == "none":
        return {"weights": "none (random)"}
    if weights == "imagenet":
        report, known = load_imagenet(network.encoder, config.model.encoder)
        told = f"ImageNet, {known['name']}, licence {known['license']} ({report})"
        return {"weights": told, "pretrained": known}
    place = files.expand_home(weights)
    if place.is_dir():
        told = start_from_run(network, architecture, classes, place, text)
        before = read_facts(place).get("pretrained")
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

    Half a positive and half a negative are added to keep them finite: a class without positives
    starts low, and a class without any known cell starts at zero.
    """
    positives = np.where(mask, values, 0).sum(0) + 0.5
    share = positives / (mask.sum(0) + 1.0)
    odds = torch.from_numpy(np.log(share / (1 - share))).float()
    with torch.no_grad():
        network.bias.copy_(odds if len(network.bias) == len(odds) else odds.mean().view(1))


LEAST_PER_DEVICE = 8  # images; of fewer, batch norm's means and variances are mostly noise


def share_statistics(network: Network, config: Config, fabric: Fabric) -> None:
    """Let batch norm see the images of all devices, if `model.sync_batch_norm` is set.

    Otherwise it warns if a device gets few images at once. Raises `InputError` for devices other
    than CUDA's, for which torch has no such batch norm.
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


@dataclass(frozen=True)
class Start:
    """What a model started from, as `model.json` says it, and its tensors by now, by name."""

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
    start = {key: facts[key] for key in _ORIGINS if key in facts} | {
        "weights_sha256": _hash(config.model.weights, _weights_of_run),
        "normalisation": asdict(network.normalisation),
        "classes": list(plan.table.space.classes),
        "cache": _pixels(config),
        "film_bytes": _image_bytes(plan),
    }
    files.write_json(run / "environment.json", environment | {"start": start})


def accept_moved(plan: Plan, now: Config) -> None:
    """Let a run go on with inputs at other places, which are then written to its `config.yaml`.

    Raises `InputError` as `find_moved` does.
    """
    moved = find_moved(plan, now)
    if moved:
        told = differences(moved)
        log.info("%s goes on with the same inputs at other places:\n%s", plan.run, told)
        path = plan.run / "config.yaml"
        write_config(_with(read_config(path), {k: pair[1] for k, pair in moved.items()}), path)


def find_moved(plan: Plan, now: Config) -> dict[str, tuple[Any, Any]]:
    """The inputs of a begun run that are at other places now, each with its places then and now.

    Tables are compared before, by their hash. Raises `InputError`, and shows the difference, if
    other inputs have another content than those that the run began with.
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
            f"{run} is a run with other settings, or with inputs whose content can't be compared:\n"
            f"{differences(other)}\nChoose another --out, or --overwrite to set the old one aside."
        )
    if _IMAGES.intersection(moved) and _other_images(known.get("film_bytes", ()), plan):
        raise InputError(
            f"These are not the images that {run} was begun with (their files have other sizes):\n"
            f"{differences({k: v for k, v in moved.items() if k in _IMAGES})}\nSay where the same "
            "images are, or choose another --out."
        )
    return moved


_IMAGES = {"data.table", "data.root", "data.outside"}
_SAMPLE = 64


def _image_bytes(plan: Plan) -> list[int]:
    """The sizes in bytes of some of the image files, -1 for a file that is not there."""
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


def _other_images(before: Sequence[int], plan: Plan) -> bool:
    """Whether more than a tenth of the files that are there have other sizes; some get fixed."""
    pairs = zip(before, _image_bytes(plan), strict=False)
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
    """What a run keeps of its start; for a run of an older version, what its best model says."""
    start = run_folder.read_environment(run).get("start")
    best = run / "best" / "model.json"
    if start is not None or not best.is_file():
        return dict(start or {})
    facts = files.read_object(best)
    known = (*_ORIGINS, "normalisation", "classes")
    return {key: facts[key] for key in known if key in facts}


def _same(key: str, there: Config, now: Config, known: Mapping[str, Any]) -> bool:
    """Whether a setting that names another place names the same content."""
    if key in _IMAGES:
        return True  # tables were compared by their hash; images are compared afterwards
    if key == "data.cache":
        return bool(_pixels(now) == (known["cache"] if "cache" in known else _pixels(there)))
    if key == "model.weights":
        before, found = known.get("weights", ""), _hash(now.model.weights, _weights_of_run)
        return found is not None and (
            known.get("weights_sha256") == found or found[:16] in before.partition("(")[0]
        )
    before, found = known.get("text", ""), _hash(now.model.text, files_hash)
    return found is not None and found[:16] in before


def _pixels(config: Config) -> str | None:
    """What a cache changes in the pixels, codec and quality; None if it is raw or not there."""
    caches = config.data.cache
    if caches is None:
        return None
    place = Path(caches if isinstance(caches, str) else caches[0])
    path = place / "cache.json"
    made = files.read_object(path) if path.is_file() else {"codec": f"that of {place}"}
    return None if made["codec"] == "raw" else f"{made['codec']} {made.get('quality')}"


def _hash(place: str, of_folder: Callable[[Path], str]) -> str | None:
    """The hash of a file, or of a folder by `of_folder`; None if it is neither."""
    path = files.expand_home(place)
    if path.is_dir():
        return of_folder(path)
    return files.sha256(path) if path.is_file() else None


def _weights_of_run(folder: Path) -> str:
    return str(read_facts(folder)["weights_sha256"])


def kept_start(run: Path, config: Config) -> Start | None:
    """What a begun run started from, if its weights or its text encoder are gone by now.

    None if they are there, or if the run has no checkpoint to go on from.
    """
    known, m = _known(run), config.model
    if "text" not in known or "weights" not in known:
        return None
    gone = []
    if m.weights != "none":
        is_name = m.weights == "imagenet"
        found = imagenet_file(m.encoder) if is_name else files.expand_home(m.weights)
        gone += [] if found is not None and found.exists() else [m.weights]
    if m.text != "orthogonal" and m.classifier != "linear":
        is_there = files.expand_home(m.text).exists() or find_text(m.text) is not None
        gone += [] if is_there else [m.text]
    saved = newest_checkpoint(run / "checkpoints") if gone else None
    if saved is None:
        return None
    log.info("Gone, but not needed, since there is a checkpoint: %s.", examples(gone))
    facts = {key: known[key] for key in _ORIGINS if key in known}
    return Start(facts, saved["network"], Normalisation.read(known["normalisation"]))
