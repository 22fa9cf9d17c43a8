"""Starting from a trained model: one network to one, by name, or refused; other text is said."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import builders
from lingula.model.checkpoint import save_model, start_from_run
from lingula.model.encoders import Normalisation, build_encoder
from lingula.model.loader import load_encoder
from lingula.model.network import Network
from lingula.model.text import orthogonal
from lingula.system.errors import InputError

NAMES = ("Edema", "Mass", "Hernia", "Nodule")
ORTHOGONAL = "orthogonal (a random basis: no text)"
TINY = replace(builders.TINY, image_size=32, layers=1)


def built(classes: tuple[str, ...] = NAMES, seed: int = 0, **changes: Any) -> Network:
    torch.manual_seed(seed)
    return Network(replace(TINY, **changes), orthogonal(classes, 32))


def saved(folder: Path, text: str = ORTHOGONAL, **changes: Any) -> Network:
    network = built(seed=1, **changes)
    save_model(folder / "best", network, replace(TINY, **changes), NAMES, {"text": text})
    return network


def start(folder: Path, classes: tuple[str, ...] = NAMES, **changes: Any) -> tuple[Network, str]:
    network = built(classes, **changes)
    told = start_from_run(network, replace(TINY, **changes), classes, folder, ORTHOGONAL)
    return network, told


@pytest.mark.parametrize(
    ("there", "here", "named"),
    [
        ({"layers": 3}, {"layers": 1}, "model.decoder.layers: 3 there, 1 now"),
        ({"layers": 1}, {"layers": 3}, "model.decoder.layers: 1 there, 3 now"),
        ({}, {"classifier": "linear"}, "model.classifier: 'separate' there, 'linear' now"),
        ({"classifier": "linear"}, {}, "model.classifier: 'linear' there, 'separate' now"),
        ({}, {"classifier": "shared"}, "model.classifier: 'separate' there, 'shared' now"),
        ({"classifier": "shared"}, {}, "model.classifier: 'shared' there, 'separate' now"),
        ({"pooled_path": True}, {}, "model.decoder.pooled_path: True there, False now"),
        ({}, {"pooled_path": True}, "model.decoder.pooled_path: False there, True now"),
        ({"heads": 2}, {}, "model.decoder.heads: 2 there, 4 now"),
        ({"positions": "sine2d"}, {}, "model.decoder.positions: 'sine2d' there, 'none' now"),
        ({"stage": 1}, {}, "model.stage: 1 there, 0 now"),
        ({"encoder": "resnet18"}, {}, r"matched, \d+ missing \(.*\), \d+ unexpected \("),
        ({}, {"width": 64}, "model.decoder.width: 32 there, 64 now"),
    ],
)
def test_another_network_is_refused_and_nothing_is_copied(
    tmp_path: Path, there: dict[str, Any], here: dict[str, Any], named: str
) -> None:
    """Case 109: what has no place is as wrong as what is missing."""
    saved(tmp_path, **there)
    network = built(**here)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(InputError, match=named) as refused:
        start_from_run(network, replace(TINY, **here), NAMES, tmp_path, ORTHOGONAL)
    weights = tmp_path / "best" / "model.safetensors"
    assert f"model.weights={weights}" in str(refused.value)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize(
    "changes", [{}, {"classifier": "shared", "pooled_path": True}, {"classifier": "linear"}]
)
def test_classes_are_bound_by_name_and_all_else_is_copied(
    tmp_path: Path, changes: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    theirs = saved(tmp_path, **changes).state_dict()
    with caplog.at_level(logging.INFO, "lingula"):
        network, told = start(tmp_path, ("Nodule", "Fracture", "Edema"), **changes)
    count = len(theirs) - 1  # the class embeddings are the new network's own
    line = f"{count} matched, 0 missing, 0 unexpected; 2 of 3 classes known to it"
    assert line in caplog.text and told == f"{line}; new classes: Fracture"
    by_class = {"pooled.weight", "pooled.bias"}
    if changes.get("classifier") != "shared":
        by_class |= {"classifier.weight", "classifier.bias"}
    for name, tensor in network.state_dict().items():
        if name in by_class:
            assert torch.equal(tensor[[0, 2]], theirs[name][[3, 0]]), name
        elif name != "embeddings":
            assert torch.equal(tensor, theirs[name]), name


def test_other_class_embeddings_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of equal width nothing else would show that the decoder's queries are others now."""
    saved(tmp_path)
    network = built()
    network.embeddings.copy_(torch.randn(4, 32))
    text = "FOLDER, pooler, files sha256 0123"
    told = start_from_run(network, TINY, NAMES, tmp_path, text)
    assert "trained with other class embeddings (orthogonal" in told
    assert f"there {ORTHOGONAL}, here {text}" in caplog.text
    caplog.clear()
    # Neither a folder of another name nor other classes beside them make other embeddings.
    saved(tmp_path / "moved", text="ELSEWHERE, pooler, files sha256 0123")
    for folder, classes in ((tmp_path / "moved", NAMES), (tmp_path, (*NAMES, "Fracture"))):
        assert "other class embeddings" not in start(folder, classes)[1]
    assert "other class embeddings" not in caplog.text
    saved(tmp_path / "linear", classifier="linear", text="none (linear)")
    assert "other class" not in start(tmp_path / "linear", classifier="linear")[1]


def test_the_image_encoder_alone_can_be_taken(tmp_path: Path) -> None:
    """As the refusal says: with its normalisation, and the rest counted as unexpected."""
    network = built(layers=3)
    normalisation = Normalisation((0.1, 0.25, 1 / 3), (0.5, 0.25, 0.125))
    network.set_normalisation(normalisation)
    save_model(tmp_path, network, replace(TINY, layers=3), NAMES, {})
    encoder = build_encoder("test_resnet", 32)[0]
    report, found = load_encoder(encoder, tmp_path / "model.safetensors")
    assert not report.missing and any(name.startswith("decoder.") for name in report.unexpected)
    assert found == normalisation
    for name, tensor in network.encoder.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], tensor), name
