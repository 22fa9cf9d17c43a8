"""The average of the weights: its closed form, what it covers, and what a run keeps of it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import lingula
from lingula.model.checkpoint import load_model, newest_checkpoint
from lingula.settings.config import Config, vary
from lingula.training.averaging import WeightAverage, decay_at


def steps_of(network: nn.Sequential, number: int) -> list[dict[str, torch.Tensor]]:
    """The network's states while it is trained on noise, the one before the first step too."""
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    states = [copy.deepcopy(network.state_dict())]
    for _ in range(number):
        optimizer.zero_grad()
        network(torch.randn(6, 3)).square().sum().backward()
        optimizer.step()
        states.append(copy.deepcopy(network.state_dict()))
    return states


@pytest.mark.parametrize("decay", [0.2, 0.9])
def test_the_average_is_a_weighted_sum_of_all_steps(decay: float) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    average, still = WeightAverage(network, decay), copy.deepcopy(network)
    states = steps_of(network, 5)
    for step, state in enumerate(states[1:]):
        network.load_state_dict(state)
        average.update(step)
    decays = [min(decay, (1 + step) / (10 + step)) for step in range(5)]
    assert decays == [decay_at(decay, step) for step in range(5)] and decays[0] == 0.1
    shares = [1.0] + [1 - d for d in decays]
    for step, d in enumerate(decays):
        shares[: step + 1] = [share * d for share in shares[: step + 1]]
    assert sum(shares) == pytest.approx(1)
    own = copy.deepcopy(network.state_dict())
    with average.applied():
        held = copy.deepcopy(network.state_dict())
    for name, value in held.items():
        if name == "1.num_batches_tracked":
            continue
        expected = sum(share * state[name] for share, state in zip(shares, states, strict=True))
        torch.testing.assert_close(value, expected)
        assert not torch.equal(value, still.state_dict()[name])
        assert torch.equal(network.state_dict()[name], own[name])


def test_what_is_frozen_is_not_averaged_and_an_error_gives_the_weights_back() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    for parameter in network[:2].parameters():
        parameter.requires_grad_(False)
    network[1].eval()
    average = WeightAverage(network, 0.5)
    assert sorted(average.values) == ["2.bias", "2.weight"] and not average.statistics
    (state,) = steps_of(network, 1)[1:]
    average.update(0)
    with pytest.raises(KeyboardInterrupt), average.applied():
        assert not torch.equal(network[2].weight, state["2.weight"])
        raise KeyboardInterrupt
    assert torch.equal(network[2].weight, state["2.weight"])


def test_without_a_decay_there_is_no_average() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    average = WeightAverage(network, None)
    state = steps_of(network, 1)[1]
    average.update(0)
    with average.applied():
        assert all(torch.equal(state[n], v) for n, v in network.state_dict().items())
    assert not average.values and sorted(average.statistics) == ["1.running_mean", "1.running_var"]


@pytest.mark.usefixtures("no_page")
def test_a_run_keeps_the_averaged_weights(tiny_config: Config, tmp_path: Path) -> None:
    """Training itself is not changed by the average; the kept model is the average."""
    plain = vary(tiny_config, optim__keep="last")
    kept, trained, averages = [], [], []
    for name, config in (("plain", plain), ("ema", vary(plain, optim__ema=0.99))):
        run = lingula.train(config, out=tmp_path / name)
        saved = newest_checkpoint(run / "checkpoints")
        assert saved is not None
        kept.append(load_model(run).network.state_dict())
        trained.append(saved["network"])
        averages.append(saved["average"])
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])
    assert all(torch.equal(kept[0][name], trained[0][name]) for name in kept[0])
    assert not averages[0] and "encoder.body.conv1.0.weight" in averages[1]
    for name, value in averages[1].items():
        assert value.dtype == torch.float32
        assert torch.equal(kept[1][name], value) and not torch.equal(kept[0][name], value)
