"""The copy of a network that scores: folded, cast once, and the same."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from lingula.model.network import Architecture, Network
from lingula.scoring.folding import for_scoring

SIZE = 64


def network_of(encoder: str) -> Network:
    """A small network whose batch norms have seen something, so that folding them matters."""
    torch.manual_seed(0)
    network = Network(
        Architecture(encoder, SIZE, "separate", 32, 1, 4, 64, 0.1, "none", "normal", True),
        torch.randn(5, 32),
    )
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    return network


def norms(module: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())


# ResNet and EfficientNet fold wholly, DenseNet in part, since it normalises whole blocks first.
@pytest.mark.parametrize(
    ("encoder", "left"), [("resnet18", 0), ("efficientnet_lite0", 0), ("densenet121", 62)]
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_folded_network_scores_the_same(
    encoder: str, left: int, layout: torch.memory_format
) -> None:
    network = network_of(encoder)
    before = copy.deepcopy(network.state_dict())
    ready = for_scoring(network, SIZE, layout)
    assert norms(ready) == left and network.training
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    images = torch.randn(3, 3, SIZE, SIZE)
    with torch.no_grad():
        features = network.eval().encoder(images)
        assert (ready.encoder(images) - features).abs().max() < 1e-4 * features.abs().max()
        torch.testing.assert_close(ready(images), network(images), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("encoder", ["resnet18", "convnext_atto"])
def test_weights_cast_once_are_those_that_autocast_casts(encoder: str) -> None:
    network = network_of(encoder)
    plain = for_scoring(network, SIZE)
    ready = for_scoring(network, SIZE, cast=torch.bfloat16)
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ready(images), plain(images))


class Odd(nn.Module):
    """Encoders in which a batch norm after a convolution may not be folded into it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3, track_running_stats=kind != "no statistics")
        if self.norm.running_var is not None:
            self.norm.running_var.fill_(4.0)

    def forward(self, images: Tensor) -> Tensor:
        made: Tensor = self.conv(images)
        normed: Tensor = self.norm(made)
        if self.kind == "output used twice":
            return normed + made
        if self.kind == "norm used twice":
            return self.norm(normed)
        if self.kind == "convolution used twice":
            return normed + self.norm(self.conv(images.flip(-1)))
        return normed


@pytest.mark.parametrize(
    "kind", ["output used twice", "norm used twice", "convolution used twice", "no statistics"]
)
def test_what_would_change_the_scores_is_left_alone(kind: str) -> None:
    network = network_of("resnet18")
    network.encoder = Odd(kind)
    ready = for_scoring(network, SIZE)
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        assert torch.equal(ready.encoder(images), network.eval().encoder(images))
    assert norms(ready) == 1
    folded = for_scoring(copy.deepcopy(network), SIZE)
    folded.encoder = Odd("plain")
    assert norms(for_scoring(folded, SIZE)) == 0  # the test can fail
