"""AdamW and its rates: what decays, and the rate at each step."""

from __future__ import annotations

import pytest
import torch

from builders import tiny_network
from lingula.model.encoders import build_encoder
from lingula.training.optim import (
    Schedule,
    is_decayed,
    learning_rate,
    parameter_groups,
    warmup_steps,
)


def test_learning_rates_by_step() -> None:
    rates = [learning_rate(Schedule(1, 50, 20, 1e-6, 0), s, 5e-5) for s in range(50)]
    assert rates[0] == 1e-6 and rates[20] == 5e-5
    assert rates[25] == pytest.approx(4.66506e-5, rel=1e-5)
    assert rates[35] == pytest.approx(2.5e-5) and rates[49] == pytest.approx(1.3695e-7, rel=1e-3)


def test_the_other_warm_ups() -> None:
    constant = Schedule(10, 500, 200, 1e-6, 1e-6, "constant")
    assert {learning_rate(constant, s, 5e-5) for s in range(200)} == {1e-6}
    assert learning_rate(constant, 200, 5e-5) == 5e-5
    # ALBEF: 20 ticks of 100 steps in the first epoch, then one value an epoch, e / T of the cosine.
    ticks = warmup_steps("albef", 20, 8000, 50 * 8000)
    albef = Schedule(8000, 50 * 8000, ticks, 1e-6, 1e-6, "albef")
    assert learning_rate(albef, 99, 5e-5) == 1e-6
    assert learning_rate(albef, 1000, 5e-5) == pytest.approx(1e-6 + 4.9e-5 / 2)
    assert learning_rate(albef, 2000, 5e-5) == learning_rate(albef, 7999, 5e-5) == 5e-5
    half = [learning_rate(albef, 25 * 8000 + s, 5e-5) for s in (0, 7999)]
    assert half == [pytest.approx(2.55e-5)] * 2


@pytest.mark.parametrize("encoder", ["test_resnet", "test_vit", "test_convnext", "test_nfnet"])
@pytest.mark.parametrize("classifier", ["shared", "separate", "linear"])
def test_weights_decay_and_nothing_else_does(encoder: str, classifier: str) -> None:
    """By what a parameter is: the shared classifier's weight is 1-D, a token is 3-D."""
    net = tiny_network(encoder=encoder, classifier=classifier)
    groups = parameter_groups(net, lr=1.0, head_lr=3.0, weight_decay=0.1)
    name_of = {id(p): name for name, p in net.named_parameters()}
    decayed, free = set(), set()
    for group in groups:
        names = decayed if group["weight_decay"] else free
        names |= {name_of[id(p)] for p in group["params"]}  # type: ignore[attr-defined]
    assert decayed | free == set(name_of.values()) and not decayed & free
    for name, module in net.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            assert f"{name}.weight" in decayed
        if "norm" in type(module).__name__.lower() and hasattr(module, "weight"):
            assert not {f"{name}.weight", f"{name}.bias"} & decayed
    head = "pooled.weight" if classifier == "linear" else "classifier.weight"
    assert head in decayed
    others = ("bias", "pos_embed", "cls_token", "reg_token", "gamma", "gain")
    assert not [name for name in decayed if name.endswith(others)]
    assert encoder != "test_vit" or any(name.endswith("pos_embed") for name in free)
    assert {g["lr"] for g in groups} == {1.0, 3.0}


def test_tables_of_positions_are_not_decayed() -> None:
    """Swin's relative positions, and positions that are an embedding."""
    swin = build_encoder("swin_tiny_patch4_window7_224", 64)[0]
    tables = [n for n, _ in swin.named_parameters() if "relative_position" in n]
    places = {name: swin.get_submodule(name.rpartition(".")[0]) for name in tables}
    assert tables
    for name, module in places.items():
        assert not is_decayed(module, name.rpartition(".")[2], swin.get_parameter(name))
    table = torch.nn.Embedding(4, 8)
    assert not is_decayed(table, "weight", table.weight)
    attention = torch.nn.MultiheadAttention(8, 2)
    assert is_decayed(attention, "in_proj_weight", attention.in_proj_weight)
