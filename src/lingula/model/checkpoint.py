"""Files of weights: the model folder that others use, and the checkpoints that a run resumes from.

A model folder is `model.safetensors` + `model.json`; no pickle is needed to use it. A checkpoint
holds tensors and plain values only and is read with `weights_only=True`.
"""

from __future__ import annotations

import json
import logging
import zipfile
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
    """Write a model folder: the weights, and the description that names their hash.

    Both are on the disk before either takes its place, so that a disk that gets full leaves the
    model that was there.
    """
    path = folder / "model.safetensors"
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in _plain(network).items()}
    with files.whole(folder / "model.json") as described, files.whole(path) as weights:
        save_file(state, weights, metadata={"format": "pt"})
        description = {
            "format": FORMAT,
            "architecture": asdict(architecture),
            "normalisation": asdict(network.normalisation),
            "classes": list(classes),
            "weights_sha256": files.sha256(weights),
            **facts,
        }
        files.write_json(described, description)


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
            "differs). Copy the model folder again, whole; a run that was stopped while it saved "
            "mends it when it is continued."
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
        try:
            with temporary.open("wb") as stream:
                torch.save(dict(state), stream)
        except RuntimeError as error:  # torch reports what its writer met behind another error
            cause = error.__context__
            raise files.unwritable(path, cause if isinstance(cause, OSError) else error) from error
    for old in sorted(folder.glob("step-*.pt"))[:-keep]:
        old.unlink()
    return path


def newest_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that can be read; None where there is none.

    A damaged one is named and the one before it used. Raises `InputError` where all are damaged:
    what was trained is never thrown away without a word.
    """
    damaged: list[str] = []
    for path in sorted(folder.glob("step-*.pt"), reverse=True):
        try:
            found = _checked(path)
        except PermissionError:
            raise InputError(
                f"{path} may not be read. Give it back its permissions, or train as its owner."
            ) from None
        except Exception as error:
            damaged.append(f"{path} ({type(error).__name__})")
            continue
        for name in damaged:
            log.warning("%s is damaged; using the one before it.", name)
        return found
    if damaged:
        raise InputError(
            f"No checkpoint can be read, all are damaged: {', '.join(damaged)}. Put a copy of one "
            "back; or begin anew on purpose: --overwrite sets the run aside; its best model, "
            "scores and log stay usable there."
        )
    return None


def _checked(path: Path) -> dict[str, Any]:
    """A checkpoint, on the CPU. torch reads past flipped bits, so its archive is checked first."""
    with zipfile.ZipFile(path) as archive:
        wrong = archive.testzip()
    if wrong is not None:
        raise ValueError(f"wrong checksum of {wrong}")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state
