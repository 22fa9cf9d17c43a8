"""Files of weights: the model folder that others use, and the checkpoints that a run resumes from.

A model folder is `model.safetensors` + `model.json`; no pickle is needed to use it. A checkpoint
holds tensors and plain values only and is read with `weights_only=True`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lingula import files
from lingula.errors import InputError
from lingula.model.encoders import Normalisation
from lingula.model.network import Architecture, Network

log = logging.getLogger("lingula")

FORMAT = 1


@dataclass(frozen=True)
class Trained:
    """A network ready for use, with its classes and everything `model.json` says of it."""

    network: Network
    classes: tuple[str, ...]
    facts: dict[str, Any]


def save_model(
    folder: Path,
    network: Network,
    architecture: Architecture,
    classes: tuple[str, ...],
    facts: Mapping[str, Any],
) -> None:
    """Write a model folder: weights first, then the description that names their hash."""
    weights = folder / "model.safetensors"
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in _plain(network).items()}
    with files.whole(weights) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
    description = {
        "format": FORMAT,
        "architecture": asdict(architecture),
        "normalisation": asdict(network.normalisation),
        "classes": list(classes),
        "weights_sha256": files.sha256(weights),
        **facts,
    }
    files.write_json(folder / "model.json", description)


def _plain(network: nn.Module) -> dict[str, Tensor]:
    return {name.removeprefix("_orig_mod."): value for name, value in network.state_dict().items()}


def load_model(folder: Path) -> Trained:
    """Read a model folder, or a run folder that has one in `best/`; eval mode, on the CPU."""
    place = folder / "best" if (folder / "best" / "model.json").is_file() else folder
    facts = read_facts(place)
    architecture = Architecture(**facts["architecture"])
    weights = place / "model.safetensors"
    if not weights.is_file() or files.sha256(weights) != facts["weights_sha256"]:
        raise InputError(
            f"{weights} is missing or is not the file that model.json describes (its hash "
            "differs). Copy the model folder again, whole."
        )
    state = load_file(weights)
    network = Network(architecture, state["embeddings"])
    normalisation = facts["normalisation"]
    network.set_normalisation(
        Normalisation(tuple(normalisation["mean"]), tuple(normalisation["std"]))
    )
    network.load_state_dict(state)
    return Trained(network.eval(), tuple(facts["classes"]), facts)


def read_facts(folder: Path) -> dict[str, Any]:
    """What `model.json` in a model folder or a run folder says. No torch is needed for it."""
    place = folder / "best" if (folder / "best" / "model.json").is_file() else folder
    description = place / "model.json"
    if not description.is_file():
        raise InputError(
            f"{folder} has no trained model (no best/model.json). Train one: "
            f"`lingula train RECIPE --out {folder}`."
        )
    try:
        facts: dict[str, Any] = json.loads(description.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{description} is damaged: {error}") from None
    if facts.get("format") != FORMAT:
        raise InputError(
            f"{description} has format {facts.get('format')}; this version reads {FORMAT}."
        )
    return facts


def start_from_run(network: Network, classes: tuple[str, ...], folder: Path) -> list[str]:
    """Copy a trained model's tensors into `network`, binding classes by name.

    Everything without a class axis must have the same shape. Rows of the classifier are copied for
    classes that both know; the names of classes that start anew are returned.
    """
    trained = load_model(folder)
    own, theirs = network.state_dict(), trained.network.state_dict()
    network.set_normalisation(trained.network.normalisation)
    both = [name for name in classes if name in trained.classes]
    shared = trained.facts["architecture"]["classifier"] == "shared"
    by_class = _POOLED if shared else (*_POOLED, "classifier.weight", "classifier.bias")
    here = [classes.index(name) for name in both]
    there = [trained.classes.index(name) for name in both]
    for name, tensor in own.items():
        if name == "embeddings":
            continue
        if name not in theirs:
            raise InputError(f"{folder} has no '{name}': its network is built differently.")
        if name in by_class:
            tensor[here] = theirs[name][there]
        elif tensor.shape == theirs[name].shape:
            tensor.copy_(theirs[name])
        else:
            raise InputError(
                f"{folder}: '{name}' has shape {tuple(theirs[name].shape)}, here it is "
                f"{tuple(tensor.shape)}: its network is built differently."
            )
    log.info("Started from %s: %d of %d classes known to it.", folder, len(both), len(classes))
    return [name for name in classes if name not in both]


_POOLED = ("pooled.weight", "pooled.bias")


def save_checkpoint(folder: Path, state: Mapping[str, Any], step: int, keep: int = 2) -> Path:
    """Write `step-<step>.pt` whole, then remove all but the newest `keep`."""
    path = folder / f"step-{step:09d}.pt"
    with files.whole(path) as temporary:
        torch.save(dict(state), temporary)
    for old in sorted(folder.glob("step-*.pt"))[:-keep]:
        old.unlink()
    return path


def newest_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that can be read; a damaged one is named and the previous one used."""
    for path in sorted(folder.glob("step-*.pt"), reverse=True):
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            return state
        except Exception as error:
            log.warning("%s is damaged (%s); using the one before it.", path, type(error).__name__)
    return None
