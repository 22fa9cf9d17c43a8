"""What a training needs of disks is told before it begins."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import lingula
from builders import imagenet_of
from lingula.bench.models import random_network
from lingula.loading import batches, order
from lingula.settings.config import Config, vary
from lingula.system import files
from lingula.system.errors import InputError
from lingula.training.examples import Sizes, all_features, features_bytes, run_bytes, sizes_of


def test_features_that_will_not_fit_are_not_begun(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mapped file that outgrows its disk would end the process without a word."""
    imagenet_of("test_resnet.r160_in1k", tmp_path)
    weights = str(tmp_path / "test_resnet.r160_in1k.safetensors")
    config = vary(tiny_config, model__frozen=True, model__weights=weights)
    monkeypatch.setattr(files, "free_bytes", lambda folder: 1000)
    with pytest.raises(InputError, match=r"1 kB free, and the features of train need up to"):
        lingula.train(config, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_a_frozen_vit_keeps_of_cxr_lt() -> None:
    """2.2 TB: 768 maps of 36 x 36 (patches of 14 at 512 px), two views of train, one of dev."""
    config = vary(Config(), model__encoder="test_vit", model__image_size=160)
    network = random_network(config)
    one = features_bytes(network, 160, 1, 1)
    blank = torch.zeros((1, 3, 160, 160))
    assert one == 4 * network.encoder(blank).numel()
    assert features_bytes(network, 160, 7, 2) == 14 * one
    frozen = vary(config, model__frozen=True, model__weights="x")
    assert sizes_of(network, frozen) == Sizes(run_bytes(network, frozen), one)
    assert sizes_of(network, config).features == 0
    rows = order.Rows(264_849)
    needed = all_features(Sizes(0, 4 * 768 * 36 * 36), frozen, rows, 36_769)
    assert needed == pytest.approx(2.2e12, rel=0.03)
    assert files.format_bytes(2.2e12) == "2.2 TB" and files.format_bytes(4e11) == "0.4 TB"
    assert files.format_bytes(5e10) == "50.0 GB" and files.format_bytes(999) == "1 kB"


def test_a_checkpoint_is_as_large_as_was_said(tiny_config: Config, tmp_path: Path) -> None:
    run = lingula.train(vary(tiny_config, optim__epochs=3), out=tmp_path / "run")
    kept = sum(path.stat().st_size for path in run.glob("checkpoints/*"))
    best = (run / "best" / "model.safetensors").stat().st_size
    assert 0.5 < (kept / 2 * 3 + 2 * best) / (11 * best) < 1.3  # of 2 checkpoints, 3 at the worst


def test_what_an_epoch_reads_is_said_before_the_first_step(
    tiny_config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(batches, "MEMORY_LIMIT", 0)
    with caplog.at_level("INFO", "lingula"):
        lingula.train(vary(tiny_config, optim__epochs=1), out=tmp_path / "run")
    told = caplog.text
    assert "of image files (20)" in told and told.index("every epoch reads") < told.index("Epoch 1")
