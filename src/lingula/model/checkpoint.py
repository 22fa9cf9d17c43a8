"""Files of weights: the model folder that others use, and the checkpoints that a run resumes from.

A model folder is `model.safetensors` + `model.json`; no pickle is needed to use it. A checkpoint
contains only tensors and plain values and is read with `weights_only=True`.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lingula.model.encoders import Normalisation
from lingula.model.facts import MODEL_FORMAT, read_facts
from lingula.model.loader import Report
from lingula.model.network import Architecture, Network
from lingula.system import files
from lingula.system.errors import InputError, differences, examples

log = logging.getLogger("lingula")


@dataclass(frozen=True)
class Trained:
    """A model ready for use, with its classes and everything that `model.json` says of it."""

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
    with (
        files.write_atomically(folder / "model.json") as described,
        files.write_atomically(path) as weights,
    ):
        save_file(state, weights, metadata={"format": "pt"})
        description = {
            "format": MODEL_FORMAT,
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
            "differs). Copy the whole model folder again; a run that was stopped while it wrote "
            "them writes them again when it is continued."
        )
    state = load_file(weights)
    network = Network(architecture, state["embeddings"])
    network.set_normalisation(Normalisation.read(facts["normalisation"]))
    network.load_state_dict(state)
    return Trained(network.eval(), tuple(facts["classes"]), facts)


def start_from_run(
    network: Network,
    architecture: Architecture,
    classes: tuple[str, ...],
    folder: Path,
    text: str,
) -> str:
    """Copy a trained model's tensors into `network`, classes by name; returns a one-line report.

    Everything without a class axis must have the same name and shape in both. Rows of the
    classifier are copied for classes that both know; the others keep their start and are named.

    Args:
        network: what is filled; its class embeddings stay.
        architecture: what it was built by.
        classes: its classes.
        folder: a model folder or a run folder.
        text: where its class embeddings come from. If those of the trained model differ, the
            report and the log say so.

    Raises:
        InputError: the two models are built differently.
    """
    trained = load_model(folder)
    own, theirs = network.state_dict(), trained.network.state_dict()
    by_class = _POOLED if architecture.classifier == "shared" else (*_POOLED, *_CLASSIFIER)
    _check_built_alike(Architecture(**trained.facts["architecture"]), architecture, folder)
    _check_same_tensors(own, theirs, by_class, folder)
    network.set_normalisation(trained.network.normalisation)
    both = [name for name in classes if name in trained.classes]
    here = [classes.index(name) for name in both]
    there = [trained.classes.index(name) for name in both]
    copied = [name for name in own if name != "embeddings"]
    for name in copied:
        if name in by_class:
            own[name][here] = theirs[name][there]
        else:
            own[name].copy_(theirs[name])
    told = f"{Report(tuple(copied), (), ())}; {len(both)} of {len(classes)} classes"
    new = [name for name in classes if name not in both]
    told += f" known to it; new classes: {examples(new)}" if new else " known to it"
    log.info("Started from %s: %s.", folder, told)
    if architecture.classifier == "linear":
        return told
    before = trained.facts.get("text")
    # Values are compared last: an orthogonal basis depends on the other classes of its set.
    if before != text and not torch.allclose(
        own["embeddings"][here], theirs["embeddings"][there], rtol=1e-4, atol=1e-6
    ):
        told += f"; trained with other class embeddings ({before})"
        log.warning(
            "%s was trained with other class embeddings (model.text): there %s, here %s. Its "
            "decoder has to learn again which class is which.",
            folder,
            before,
            text,
        )
    return told


_POOLED = ("pooled.weight", "pooled.bias")
_CLASSIFIER = ("classifier.weight", "classifier.bias")
# What makes another model of otherwise equal settings, and the settings' keys.
_BUILT = {
    "classifier": "model.classifier",
    "stage": "model.stage",
    "layers": "model.decoder.layers",
    "width": "model.decoder.width",
    "heads": "model.decoder.heads",
    "feedforward": "model.decoder.feedforward",
    "positions": "model.decoder.positions",
    "pooled_path": "model.decoder.pooled_path",
}


def _check_built_alike(there: Architecture, here: Architecture, folder: Path) -> None:
    """Refuse a model that is built by other settings, even if all its tensors would fit."""
    linear = "linear" in (there.classifier, here.classifier)
    keys = ("classifier", "stage") if linear else tuple(_BUILT)
    pairs = {key: (getattr(there, key), getattr(here, key)) for key in keys}
    changed = {_BUILT[key]: (old, new) for key, (old, new) in pairs.items() if old != new}
    if changed:
        raise InputError(
            f"The model in {folder} (model.weights) is built differently:\n"
            f"{differences(changed)}\n{_how_to_fix(folder)}"
        )


def _check_same_tensors(
    own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], by_class: Sequence[str], folder: Path
) -> None:
    """Refuse a model whose tensors, except class embeddings, differ in names or shapes."""
    missing = [name for name in own if name not in theirs]
    unexpected = [name for name in theirs if name not in own]
    if missing or unexpected:
        report = Report(tuple(own.keys() & theirs.keys()), tuple(missing), tuple(unexpected))
        raise InputError(
            f"The model in {folder} (model.weights) is built differently; of its tensors: "
            f"{report}. {_how_to_fix(folder)}"
        )
    for name in own:
        rows = int(name in by_class)
        shapes = [tuple(side[name].shape[rows:]) for side in (theirs, own)]
        if name != "embeddings" and shapes[0] != shapes[1]:
            raise InputError(
                f"The model in {folder} (model.weights) is built differently: '{name}' has "
                f"shape {shapes[0]} there, {shapes[1]} here. {_how_to_fix(folder)}"
            )


def _how_to_fix(folder: Path) -> str:
    weights = next(iter(folder.glob("best/model.safetensors")), folder / "model.safetensors")
    return (
        "Give the settings the values that they have there; or start from its image encoder "
        f"alone: model.weights={weights}."
    )


def save_checkpoint(folder: Path, state: Mapping[str, Any], step: int, keep: int = 2) -> Path:
    """Write `step-<step>.pt` atomically, then remove all but the newest `keep`."""
    path = folder / f"step-{step:09d}.pt"
    with files.write_atomically(path) as temporary:
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
    """The newest checkpoint that can be read; None if there is none.

    A damaged one is named in the log and the one before it is used. Raises `InputError` if all are
    damaged, so that what was trained is never thrown away silently.
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
            "back; or start again on purpose: --overwrite sets the run aside; its best model, "
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
