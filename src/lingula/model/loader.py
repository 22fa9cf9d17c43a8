"""Weights from other people's files: read safely, matched by name, with a full report."""

from __future__ import annotations

import logging
import pickle
import re
import sys
import zipfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lingula.model.encoders import Normalisation, pretrained_settings
from lingula.settings.weight_sources import fetched_image
from lingula.system import files
from lingula.system.errors import InputError, examples

log = logging.getLogger("lingula")

_WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "encoder",
    "backbone",
    "teacher",  # of self-distillation: the one to use
    "student",
    "weights",
    "params",
)
_MOST_LACKING = 10  # of the encoder's tensors a file may lack one in so many


@dataclass(frozen=True)
class Report:
    """What became of a state dict: names matched, missing in the file, unexpected in it."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        """One line with the three counts and the names of what did not match."""
        parts = [f"{len(self.matched)} matched"]
        for word, names in (("missing", self.missing), ("unexpected", self.unexpected)):
            parts.append(f"{len(names)} {word}" + (f" ({examples(names)})" if names else ""))
        return ", ".join(parts)


def read_state_dict(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, and the file's metadata, from safetensors or a torch file.

    Torch files are read with `weights_only=True`, to the CPU; anything that would run code is
    refused. `InputError` for missing, damaged and unsafe files.
    """
    if not path.is_file():
        raise InputError(f"There is no weights file {path} (model.weights).")
    _check_kind(path)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as stream:
                return _tensors(stream), stream.metadata() or {}
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{path} contains Python objects, not only tensors, and is not opened: such a file can "
            "run anything. Save its state dict alone, best as .safetensors."
        ) from None
    except (SafetensorError, RuntimeError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} can't be read as weights; it may be damaged: {error}") from None
    return _unwrap(loaded, path), {}


def _check_kind(path: Path) -> None:
    """Refuse a file that neither torch nor safetensors wrote."""
    with path.open("rb") as stream:
        head = stream.read(64)
    if path.suffix == ".safetensors" or not head or head.startswith((b"PK", b"\x80")):
        return
    what = "neither a torch nor a .safetensors file"
    if head.startswith(b"\x89HDF"):
        what = "an HDF5 file, as Keras writes them: convert it to .safetensors"
    elif head.startswith(b"version https://git-lfs"):
        what = "a pointer of Git LFS and not the file itself: `git lfs pull` brings that"
    raise InputError(f"{path} (model.weights) is {what}.")


def _tensors(stream: Any) -> dict[str, Tensor]:
    names = list(stream.keys())
    return {name: stream.get_tensor(name) for name in names}


def _unwrap(loaded: Any, path: Path) -> dict[str, Tensor]:
    """The tensors by name, out of the dictionaries that training codes wrap them in."""
    for key in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            return _unwrap(loaded[key], path)
    if isinstance(loaded, dict):
        tensors = {str(k): v for k, v in loaded.items() if isinstance(v, Tensor)}
        if tensors:
            return tensors
    raise InputError(
        f"{path} contains no tensors by name"
        + (f", but {examples(map(repr, loaded))}." if isinstance(loaded, dict) and loaded else ".")
    )


# torchvision's published DenseNets spell `norm1` as `norm.1`, as torch did before 0.4.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.)(norm|relu|conv)\.([12])\.")


def under_known_names(state: dict[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    """The tensors with what wraps their names taken off, so that the most names are wanted.

    A wrapper is what all names begin with (`module.`, `model.encoder.`, `densenet121.`), or what
    the wanted names begin with and these don't (`features.`).
    """
    state = {_OLD_DENSENET.sub(r"\1\2\3.", name): tensor for name, tensor in state.items()}
    firsts = {"", *(f"{name.partition('.')[0]}." for name in wanted if "." in name)}
    found = Counter[tuple[str, str]]({("", ""): 0})
    for name in state:
        parts = name.split(".")
        for depth in range(len(parts)):
            inner = ".".join(parts[depth:])
            outer = name.removesuffix(inner)
            found.update((outer, first) for first in firsts if first + inner in wanted)
    # Of equals the shortest, so that names which fit already stay as they are.
    outer, first = min(found, key=lambda pair: (-found[pair], *map(len, pair)))
    return {
        first + name.removeprefix(outer) if name.startswith(outer) else name: tensor
        for name, tensor in state.items()
    }


def load_encoder(encoder: nn.Module, path: Path) -> tuple[Report, Normalisation | None]:
    """Fill an image encoder from a file.

    Raises `InputError` if a shape differs, or if more than a tenth of the encoder's tensors are not
    in the file: with a random start here and there, what was learnt before is mostly lost.
    Position embeddings of another image size are resampled, as timm does it for the family.

    Returns the report, and the normalisation if the file's metadata names one (`mean`, `std`:
    three comma-separated numbers), or if it is the weights of a model folder, whose `model.json`
    does.
    """
    state, metadata = read_state_dict(path)
    model, prefix = _timm_model(encoder)
    tensors = encoder.state_dict()
    spellings = {name: _spellings(name.removeprefix(prefix)) for name in tensors}
    state = under_known_names(state, {plain for every in spellings.values() for plain in every})
    names = {
        next((plain for plain in every if plain in state), every[0]): name
        for name, every in spellings.items()
    }
    own = {plain: tensors[name] for plain, name in names.items()}
    if own.keys() & state.keys():
        state = _resized(own, state, model)
        _check_shapes(own, state, path)
    report = Report(
        matched=tuple(name for name in own if name in state),
        missing=tuple(name for name in own if name not in state),
        unexpected=tuple(name for name in state if name not in own),
    )
    if not report.matched:
        raise InputError(
            f"Nothing in {path} fits the encoder: it has {examples(state, 3)}; the encoder wants "
            f"{examples(own, 3)}. Is it another architecture, or are its keys named otherwise?"
        )
    lacking = [name for name in report.missing if not name.endswith("num_batches_tracked")]
    whole = sum(not name.endswith("num_batches_tracked") for name in own)
    if len(lacking) * _MOST_LACKING > whole:
        raise InputError(
            f"{path} has only {whole - len(lacking)} of the encoder's {whole} tensors; it lacks "
            f"{examples(lacking, 3)}; what it has beside them: {examples(report.unexpected, 3)}. "
            "Is it of another architecture (model.encoder), or are its keys named otherwise?"
        )
    encoder.load_state_dict({names[k]: v for k, v in state.items() if k in own}, strict=False)
    log.info("Weights %s: %s.", path.name, report)
    if lacking:
        log.warning("%d encoder tensors keep their random start: %s.", len(lacking), lacking[0])
    return report, _metadata_normalisation(metadata) or _described_normalisation(path)


def _timm_model(encoder: nn.Module) -> tuple[nn.Module, str]:
    """The timm model that holds an encoder's tensors, and the prefix of their names.

    An encoder that gives the last of several maps (ViT, Swin, a finer stage) wraps that model.
    """
    body = getattr(encoder, "body", None)
    inner = getattr(body, "model", None)
    if isinstance(inner, nn.Module):
        return inner, "body.model."
    return (body, "body.") if isinstance(body, nn.Module) else (encoder, "")


def _spellings(name: str) -> list[str]:
    """How a file may spell a name: timm's lists of stages write `layers.0` as `layers_0`."""
    head, dot, rest = name.partition(".")
    places = [place for place, letter in enumerate(head) if letter == "_"]
    return [name, *(f"{head[:place]}.{head[place + 1 :]}{dot}{rest}" for place in places)]


def _resized(
    own: dict[str, Tensor], state: dict[str, Tensor], model: nn.Module
) -> dict[str, Tensor]:
    """The tensors with position embeddings resampled to the model's image size, if its family can.

    timm keeps how that is done beside each family's class.
    """
    both = own.keys() & state.keys()
    other = [name for name in both if "pos_embed" in name and own[name].shape != state[name].shape]
    resize = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if not other or resize is None:
        return state
    resized = {name: tensor for name, tensor in resize(state, model).items() if name in other}
    for name in other:
        shapes = tuple(state[name].shape), tuple(resized.get(name, state[name]).shape)
        log.info("%s: resampled from %s to %s, another image size.", name, *shapes)
    return {**state, **resized}


def _check_shapes(own: dict[str, Tensor], state: dict[str, Tensor], path: Path) -> None:
    for name in (name for name in own if name in state):
        if own[name].shape != state[name].shape:
            raise InputError(
                f"{path}: '{name}' has shape {tuple(state[name].shape)}, the encoder's has "
                f"{tuple(own[name].shape)}. The file is for another size or architecture."
            )


def _metadata_normalisation(metadata: dict[str, str]) -> Normalisation | None:
    if "mean" not in metadata or "std" not in metadata:
        return None
    mean, std = ([float(part) for part in metadata[key].split(",")] for key in ("mean", "std"))
    return Normalisation((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))


def _described_normalisation(path: Path) -> Normalisation | None:
    """The normalisation in the `model.json` beside a trained model's weights; None without one."""
    try:
        facts = files.read_object(path.with_name("model.json"))
        described = facts["weights_sha256"]
        normalisation = Normalisation.read(facts["normalisation"])
    except (OSError, InputError, ValueError, KeyError, TypeError):
        return None  # no model of ours: the file is somebody's weights
    return normalisation if files.sha256(path) == described else None


@dataclass(frozen=True)
class Pretrained:
    """ImageNet weights that timm publishes: full name, place on the hub, and licence.

    The name has its tag (`resnet50.tv_in1k`), for an architecture has several of different licences
    and different quality.
    """

    name: str
    hub: str
    license: str


def pretrained(name: str) -> Pretrained | None:
    """The published weights of an encoder; None if timm names no place for them on the hub.

    A name without a tag means the weights that this version of timm takes by default. Raises
    `InputError` for a tag that timm doesn't know.
    """
    settings: Any = pretrained_settings(name)
    repository: str | None = getattr(settings, "hf_hub_id", None)
    if not repository:
        return None
    full = f"{settings.architecture}.{settings.tag}" if settings.tag else name
    hub = f"{repository}{full}" if repository.endswith("/") else repository
    return Pretrained(full, hub, settings.license or "not stated")


def imagenet_file(name: str) -> Path | None:
    """timm's ImageNet weights of an encoder, fetched or in the hub's cache; None if neither."""
    known = pretrained(name)
    if known is None:
        return None
    fetched = fetched_image(known.name)
    if fetched is not None:
        return fetched
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(known.hub, "model.safetensors")
    return Path(found) if isinstance(found, str) else None


def load_imagenet(encoder: nn.Module, name: str) -> tuple[Report, dict[str, str]]:
    """Fill an encoder with timm's ImageNet weights; never downloads.

    Returns the report, and what is known of the weights: the fields of `Pretrained` and `sha256`.
    """
    known, found = pretrained(name), imagenet_file(name)
    if known is None or found is None:
        where = f"timm/{name}" if known is None else known.hub
        raise InputError(
            f"The ImageNet weights of '{name}' are not on this machine. Where there is internet: "
            f"`lingula fetch RECIPE`, or `hf download {where} model.safetensors`; or give a file, "
            "model.weights=FILE; or start at random on purpose, model.weights=none."
        )
    report = load_encoder(encoder, found)[0]
    return report, {**asdict(known), "sha256": files.sha256(found)}
