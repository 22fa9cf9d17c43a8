"""What only a CUDA device can show; skipped, saying so, where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import lingula
from lingula.loading.warp import Warp, draw_warps, warp_images, warp_levels
from lingula.model.devices import send
from lingula.scores.predictions import read_scores
from lingula.settings.config import Config, vary

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CUDA = torch.device("cuda", 0)


def on_cuda(config: Config, precision: str = "fp32") -> Config:
    return vary(config, device="cuda", precision=precision, channels_last="auto")


def test_a_sent_batch_arrives_whole_while_the_device_is_busy() -> None:
    values = np.random.default_rng(0).integers(0, 256, (64, 1, 256, 256), np.uint8)
    busy = torch.randn(4096, 4096, device=CUDA)
    for _ in range(20):
        busy = busy @ busy / 64
    sent = [send(values[i : i + 8], CUDA) for i in range(0, 64, 8)]
    assert torch.equal(torch.cat(sent).cpu(), torch.from_numpy(values))


def test_the_warp_is_the_cpus() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 1, 96, 96), np.uint8))
    matrices = torch.from_numpy(
        draw_warps(Warp((0.6, 1), 0.5, 15.0), np.arange(6), seed=0, epoch=0)
    )
    there = warp_images(images.to(CUDA), matrices.to(CUDA)).cpu()
    assert (there - warp_images(images, matrices)).abs().max() < 0.1  # of 255
    levels = warp_levels(images.to(CUDA), matrices.to(CUDA)).cpu().int()
    apart = (levels - warp_levels(images, matrices).int()).abs()
    assert apart.max() <= 1 and apart.float().mean() < 0.05  # where a half is rounded


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_trains_and_its_scores_are_those_of_a_cpu(
    tiny_config: Config, tiny_table: Path, tmp_path: Path, precision: str
) -> None:
    """Scores of the same weights agree to 1e-4 in fp32, whatever they were trained in."""
    run = lingula.train(on_cuda(tiny_config, precision), out=tmp_path / "run")
    scores = {}
    for device in ("cuda", "cpu"):
        out = tmp_path / f"{device}.csv"
        lingula.predict(
            run, data=tiny_table, out=out, device=device, allow_phantom_model=True, tta="paper"
        )
        scores[device] = read_scores(out).probabilities
    assert np.abs(scores["cuda"] - scores["cpu"]).max() < 1e-4


def test_stopped_and_continued_is_the_same_training(tiny_config: Config, tmp_path: Path) -> None:
    """Loss curves of a run in one go and of one continued agree to what the device's sums allow."""
    config = on_cuda(tiny_config)
    whole = lingula.train(vary(config, optim__epochs=4), out=tmp_path / "whole")
    again = lingula.train(vary(config, optim__epochs=4), out=tmp_path / "again")
    curves = [(Path(run) / "metrics.jsonl").read_text().count("\n") for run in (whole, again)]
    assert curves == [4, 4]
    weights = [
        torch.load(newest(Path(run)), weights_only=True)["network"] for run in (whole, again)
    ]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-2, atol=1e-3)


def newest(run: Path) -> Path:
    return max((run / "checkpoints").iterdir(), key=lambda path: path.stat().st_mtime)


def test_compiled_accumulated_and_recomputed(tiny_config: Config, tmp_path: Path) -> None:
    config = vary(on_cuda(tiny_config, "bf16"), compile=True, optim__accumulate=2)
    run = lingula.train(config, out=tmp_path / "run")
    assert (Path(run) / "scores" / "test.csv").is_file()


def test_the_benches_name_the_device() -> None:
    found = lingula.bench_train(
        image_size=64, batch_size=4, layers=1, width=64, rounds=1, steps=1, device="cuda"
    )
    assert found["device"] == "cuda" and found["precision"] == "bf16"
