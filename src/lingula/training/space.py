"""What runs need on disk, and whether it is there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from lingula.loading.order import Rows
from lingula.model.network import Network
from lingula.settings.config import Config
from lingula.system import files
from lingula.system.errors import InputError

# Two checkpoints and one that is being written, each of weights and AdamW's two moments; the best
# model and the one that takes its place.
_COPIES = 3 * 3 + 2


def run_bytes(network: Network) -> int:
    """What a training keeps of its network on disk, at most."""
    tensors = network.state_dict().values()
    return _COPIES * sum(int(t.numel()) * int(t.element_size()) for t in tensors)


@dataclass(frozen=True)
class Sizes:
    """Bytes that a training keeps of its network at most, and those of one image's features."""

    run: int
    features: int


def sizes_of(network: Network, config: Config) -> Sizes:
    """What a training takes on disk; it keeps features only of an encoder that stays frozen."""
    size = config.model.image_size
    one = features_bytes(network, size, 1, 1) if config.model.frozen else 0
    return Sizes(run_bytes(network), one)


def all_features(sizes: Sizes, config: Config, rows: Rows, dev: int) -> int:
    """Bytes of the features of a training with so many images, which it keeps until it ends."""
    views = 2 if config.augment.flip > 0 else 1
    return sizes.features * (views * rows.all + dev)


@torch.no_grad()
def features_bytes(network: Network, image_size: int, images: int, views: int) -> int:
    """What the features of a frozen encoder take, as they are kept while its run trains."""
    device = network.mean.device
    blank = torch.zeros((1, 1, image_size, image_size), dtype=torch.uint8, device=device)
    was_training = network.training
    features = network.eval().encoder(network.prepare(blank))
    network.train(was_training)
    return 4 * images * views * int(features.numel())


def check_room(folder: Path, needed: int, what: str) -> None:
    """Refuse work that will not fit on the disk; `InputError` says how much it needs."""
    free = files.free_bytes(folder)
    if free < needed:
        raise InputError(
            f"{folder} has {files.byte_count(free)} free, and {what} need up to "
            f"{files.byte_count(needed)}. Choose another --out, or make room."
        )
