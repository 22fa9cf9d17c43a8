"""The network and its encoders: properties, not numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from builders import TINY, TINY_CLASSES, tiny_images, tiny_network
from lingula.model.encoders import build_encoder
from lingula.model.network import Attention, Network
from lingula.model.text import orthogonal
from lingula.scoring.folding import for_scoring
from lingula.scoring.scoring import attend
from lingula.system.errors import InputError
from lingula.training.steps import bce

KINDS = [
    {},
    {"classifier": "shared"},
    {"classifier": "linear"},
    {"start": "average", "pooled_path": True},
    {"positions": "sine2d"},
]


@pytest.mark.parametrize("changes", KINDS)
def test_everything_but_the_text_gets_a_gradient(changes: dict[str, object]) -> None:
    net = tiny_network(**changes).train()
    before = net.embeddings.clone()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):  # branches that start at zero get theirs once the ends have moved
        optimizer.zero_grad()
        bce(net(net.prepare(tiny_images())), torch.rand(3, 5)).mean().backward()
        optimizer.step()
    still = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # A key's bias moves all scores of a query alike, so softmax gives it no gradient.
    assert [n for n in still if not n.endswith("key.bias")] == []
    assert torch.equal(net.embeddings, before)
    assert "embeddings" not in dict(net.named_parameters())


@pytest.mark.parametrize("changes", KINDS)
def test_scores_do_not_depend_on_batch_mates(changes: dict[str, object]) -> None:
    net = tiny_network(**changes).eval()
    together = net(net.prepare(tiny_images(5)))
    alone = torch.cat([net(net.prepare(tiny_images(5)[i : i + 1])) for i in range(5)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("changes", KINDS)
def test_permuting_the_classes_permutes_the_scores(changes: dict[str, object]) -> None:
    net = tiny_network(**changes).eval()
    logits = net(net.prepare(tiny_images()))
    order = torch.tensor([4, 2, 0, 1, 3])
    other = Network(
        replace(TINY, **changes), orthogonal([TINY_CLASSES[i] for i in order], 32)
    ).eval()  # type: ignore[arg-type]
    state = net.state_dict()
    for name in ("classifier.weight", "classifier.bias", "pooled.weight", "pooled.bias"):
        if name in state and len(state[name]) == 5:
            state[name] = state[name][order]
    state["embeddings"] = other.embeddings
    other.load_state_dict(state)
    torch.testing.assert_close(
        other(other.prepare(tiny_images())), logits[:, order], atol=1e-5, rtol=0
    )


def test_attention_with_and_without_weights_agrees_and_sums_to_one() -> None:
    torch.manual_seed(0)
    attention = Attention(32, 4, 0.1).eval()
    query, source = torch.randn(2, 5, 32), torch.randn(2, 9, 32)
    fast, none = attention(query, source)
    slow, weights = attention(query, source, need_weights=True)
    assert none is None
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5))
    _, maps = attend(tiny_network(), tiny_images())
    assert maps is not None and maps.shape[:2] == (3, 5)
    np.testing.assert_allclose(maps.sum((2, 3)), 1, rtol=1e-5)
    assert attend(tiny_network(classifier="linear"), tiny_images())[1] is None


def test_average_start_begins_as_average_pooling() -> None:
    net = tiny_network(start="average")
    tokens = torch.randn(2, 6, 32)
    _, weights = net.decoder(net.embeddings, tokens, True)
    torch.testing.assert_close(weights, torch.full((2, 5, 6), 1 / 6))


@pytest.mark.parametrize(
    "name",
    ["resnet18", "densenet121", "efficientnet_lite0", "vit_tiny_patch16_224", "test_convnext"],
)
def test_encoders_give_a_map(name: str) -> None:
    encoder, channels, _ = build_encoder(name, 64)
    found = encoder(torch.zeros(1, 3, 64, 64))
    assert found.ndim == 4 and found.shape[1] == channels


def test_unknown_encoders_are_named() -> None:
    with pytest.raises(InputError, match="Did you mean 'resnet50'"):
        build_encoder("resnet5O", 64)


@pytest.mark.parametrize("changes", [*KINDS, {"classifier": "shared", "pooled_path": True}])
def test_heads_compute_in_fp32_where_the_rest_runs_in_bf16(changes: dict[str, object]) -> None:
    """Rounded logits tie scores: 0.0004 of AP, most of what separate classifiers gain."""
    net = tiny_network(**changes).eval()
    images = net.prepare(tiny_images())
    ready = for_scoring(net, 64, cast=torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = [net(images), net.look(images)[0], net.train()(images), ready(images)]
    for logits in found:
        assert logits.dtype == torch.float32
        assert not torch.equal(logits, logits.bfloat16().float())


def test_finer_maps() -> None:
    last, finer = (build_encoder("resnet18", 64, stage)[0].eval() for stage in (0, 1))
    images = torch.zeros(1, 3, 64, 64)
    assert last(images).shape == (1, 512, 2, 2) and finer(images).shape == (1, 256, 4, 4)
    # What comes after the map is not built.
    assert not any("layer4" in name for name, _ in finer.named_parameters())
    with pytest.raises(InputError, match="no feature map of stage 7"):
        build_encoder("resnet18", 64, 7)
