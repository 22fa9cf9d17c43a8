"""The benches of training and scoring on something tiny: what they say, not how fast it is."""

from __future__ import annotations

from typing import Any

import pytest

import lingula
from lingula.bench.frozen import to_text as frozen_text
from lingula.bench.predict import to_text as predict_text
from lingula.bench.rounds import time_rounds
from lingula.bench.train import to_text
from lingula.system.errors import InputError

TINY: dict[str, Any] = {
    **{"encoder": "test_resnet.r160_in1k", "image_size": 32, "batch_size": 2},
    **{"layers": 1, "width": 64, "rounds": 1, "device": "cpu"},
}


def test_calls_are_timed_in_turn_after_one_that_is_not() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) or len(order) for name in "ab"}
    times = time_rounds(calls, 2, steps=2)
    assert "".join(order) == "aabb" * 3
    assert [len(times[name].wall) for name in "ab"] == [2, 2] and times["b"].result == 12
    assert times["a"].median == sum(times["a"].wall) / 2 > 0
    order.clear()
    assert len(time_rounds(calls, 9, seconds=0, warm_up=False)["a"].processor) == 1
    assert order == ["a", "b"]  # a round that was begun is finished


def test_ours_beside_the_plain_way() -> None:
    found = lingula.bench_train(
        **TINY,
        steps=1,
    )
    assert found["ratio"] == pytest.approx(found["images_per_s"] / found["baseline"])
    assert set(found["parts_ms"]) == {"data", "forward", "backward", "adamw"}
    assert 0 < found["share_of_peak"] < 1.5 and found["GFLOP_per_image"] > 0
    assert "ratio" in to_text(found)
    with pytest.raises(InputError, match="at least 1"):
        lingula.bench_train(rounds=0)


def test_scoring_exact_fast_and_plain() -> None:
    found = lingula.bench_predict(
        **TINY,
        tta="flip",
    )
    assert found["views"] == 2 and found["largest_change_of_a_logit"] < 0.5
    assert found["ratio"] == pytest.approx(found["images_per_s"] / found["baseline"])
    spent = found["images_per_s"] * found["GFLOP_per_image"] / found["peak_GFLOPS"]
    assert 0 < found["share_of_peak"] < 1.5 and found["share_of_peak"] == pytest.approx(spent)
    for rate, said in ((0.2, True), (3.0, False)):
        text = predict_text(found | {"bf16_images_per_s": rate * found["images_per_s"]})
        assert ("slower than exact" in text) is said and "fast" not in text


def test_a_frozen_encoder_beside_a_trained_one() -> None:
    found = lingula.bench_frozen(
        **TINY | {"image_size": 64, "batch_size": 4},
        images=12,
    )
    rate = found["images_per_s"]
    assert found["linear_ratio"] == pytest.approx(rate["linear"] / rate["full"])
    assert found["decoder_share"] == pytest.approx(rate["decoder"] / rate["decoder alone"])
    assert found["encoding_s"] > 0 and "once" in frozen_text(found)
    with pytest.raises(InputError, match="three batches"):
        lingula.bench_frozen(images=8, batch_size=4)
