"""Scores that can't be right: of an untrained model, or with a sigmoid too many."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import lingula
from builders import write_tiny
from lingula.scores.calibration import expit
from lingula.scores.predictions import find_doubt
from lingula.settings.config import vary
from lingula.settings.recipes import recipe

TWICE = "All scores lie between 0.5 and 0.732: a sigmoid may have been applied twice"
UNTRAINED = "All scores lie between 0.45 and 0.55: the model may not have been trained"


def written(folder: Path, values: object, name: str = "s.csv") -> tuple[Path, Path]:
    """Scores of one class, and dev labels for them, every third present."""
    numbers = np.asarray(values, dtype=float).ravel()
    rows = [f"{i}.png,{value!r}" for i, value in enumerate(numbers.tolist())]
    (folder / name).write_text("image,Edema\n" + "\n".join(rows) + "\n")
    lines = [f"{i}.png,p{i},dev,{int(i % 3 == 0)}" for i in range(len(numbers))]
    (folder / "t.csv").write_text("image,patient,split,Edema\n" + "\n".join(lines) + "\n")
    return folder / name, folder / "t.csv"


def doubts(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [r.getMessage() for r in caplog.records if "All scores lie" in r.getMessage()]
    caplog.clear()
    return found


@pytest.mark.parametrize("count", [300, 20])
def test_logits_of_eight_squashed_once_twice_and_not_trained(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, count: int
) -> None:
    """Squashed once they are 0.9997 and 0.0003; twice, 0.731 and 0.5001."""
    logits = np.where(np.arange(count) % 2, 8.0, -8.0)
    once = expit(logits)
    assert once[1] == pytest.approx(0.9997, abs=5e-5) and once[0] == pytest.approx(0.0003, abs=5e-5)
    middle = np.random.default_rng(0).uniform(0.46, 0.54, count)
    for values, right in (
        (once, []),
        (expit(once), [TWICE]),
        (middle, [UNTRAINED]),
        (np.linspace(0.44, 0.54, count), []),
        (np.linspace(0.5, 0.74, count), []),
    ):
        scores, labels = written(tmp_path, values)
        lingula.evaluate(scores, labels=labels)
        lingula.calibrate(scores, labels=labels, overwrite=True)
        told = doubts(caplog)
        assert len(told) == 2 * len(right)
        assert all(line.startswith(f"{scores}: {right[0]}") for line in told)


def test_both_files_of_a_comparison_and_all_members_are_looked_at(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sound, labels = written(tmp_path, np.linspace(0, 1, 60))
    twice, _ = written(tmp_path, expit(np.linspace(0, 1, 60)), "twice.csv")
    lingula.evaluate(sound, labels=labels, against=twice, ci=5)
    assert [line.startswith(str(twice)) for line in doubts(caplog)] == [True]
    members = [("a", sound, sound), ("b", sound, twice)]
    lingula.ensemble("model-wise", members=members, out=tmp_path / "e")
    assert [line.startswith(str(twice)) for line in doubts(caplog)] == [True]


def test_of_few_scores_nothing_is_said_and_both_causes_are_where_both_fit() -> None:
    assert find_doubt(0.5, 0.52, 19) is None
    both = find_doubt(0.5, 0.52, 20)
    assert both is not None and "not have been trained, or a sigmoid" in both
    assert find_doubt(0.5, 0.7310585786300049, 10**7) is not None


def test_predict_warns_of_a_model_that_is_not_trained(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits near zero; the same network with logits of 8 on both sides is not warned of."""
    from lingula.model.network import Network

    table = write_tiny(tmp_path / "data")
    config = vary(recipe("smoke"), data__table=str(table), optim__epochs=1, precision="fp32")
    run = lingula.train(vary(config, optim__batch_size=8), out=tmp_path / "run")
    real = Network.forward
    for low, high, right in ((-0.1, 0.1, 1), (-8.0, 8.0, 0)):

        def forward(
            self: Network, images: torch.Tensor, low: float = low, high: float = high
        ) -> torch.Tensor:
            logits: torch.Tensor = real(self, images)
            return torch.linspace(low, high, logits.numel()).view_as(logits)

        monkeypatch.setattr(Network, "forward", forward)
        caplog.clear()
        lingula.predict(run, data=table, out=tmp_path / f"{high}.csv", tta="none", device="cpu")
        told = doubts(caplog)
        assert len(told) == right and all(f"{high}.csv: {UNTRAINED}" in line for line in told)
