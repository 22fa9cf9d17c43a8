"""Bootstrap intervals: draws of patients, exact, repeatable, paired."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lingula import intervals, metrics
from lingula.intervals import bootstrap, interval, mean_by_draw


def example(rows: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = (random.random((rows, classes)) < 0.2).astype(np.float32)
    scores = np.clip(random.normal(0.4 + 0.15 * labels, 0.15), 0, 1)
    return scores, labels, np.ones((rows, classes), dtype=bool)


@given(st.integers(0, 1000), st.integers(1, 8))
@settings(max_examples=30, deadline=None)
def test_weights_of_one_give_the_metric(seed: int, levels: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.integers(0, levels, 40) / levels
    positive = random.random(40) < 0.3
    if not positive.any():
        return
    steps = intervals._steps(metrics.rank(scores, positive), np.arange(40))
    packed = intervals._packed(np.ones((3, 40), dtype=np.int64), 7)
    ap, auroc = intervals._weighted(steps, packed, 7, 3)
    assert ap == pytest.approx([metrics.average_precision(scores, positive)] * 3, abs=1e-12)
    assert auroc == pytest.approx([metrics.auroc(scores, positive)] * 3, abs=1e-12)


def test_draws_repeat_with_their_seed_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, labels, mask = example(80, 3)
    patients = [f"p{i // 2}" for i in range(80)]
    first = bootstrap(scores, labels, mask, patients, draws=40, seed=7)
    monkeypatch.setattr(intervals, "CHUNK", 7)
    again = bootstrap(scores, labels, mask, patients, draws=40, seed=7)
    np.testing.assert_array_equal(first.ap, again.ap)
    np.testing.assert_array_equal(first.auroc, again.auroc)
    assert first.units == 40
    other = bootstrap(scores, labels, mask, patients, draws=40, seed=8)
    assert not np.array_equal(first.ap, other.ap)


def test_rows_of_one_patient_are_drawn_together() -> None:
    scores, labels, mask = example(60, 2)
    doubled = [np.concatenate([part, part]) for part in (scores, labels, mask)]
    names = [f"p{i}" for i in range(60)]
    once = bootstrap(scores, labels, mask, names, draws=50)
    twice = bootstrap(doubled[0], doubled[1], doubled[2], names + names, draws=50)
    np.testing.assert_allclose(once.ap, twice.ap)
    # Copies of a patient add no certainty; taken as patients of their own they would.
    alone = bootstrap(doubled[0], doubled[1], doubled[2], None, draws=50)
    assert alone.units == 120 and alone.ap.std(axis=0).sum() < once.ap.std(axis=0).sum()


def test_rows_without_a_patient_stand_for_themselves() -> None:
    scores, labels, mask = example(30, 1)
    assert bootstrap(scores, labels, mask, [""] * 30, draws=2).units == 30
    assert bootstrap(scores, labels, mask, [""] * 28 + ["p", "p"], draws=2).units == 29


def test_a_class_that_loses_its_positives_leaves_that_draw() -> None:
    scores, labels, mask = example(30, 2)
    labels[:, 0] = np.arange(30) % 2
    labels[:, 1] = 0
    labels[3, 1] = 1
    found = bootstrap(scores, labels, mask, None, draws=200)
    lost = np.isnan(found.ap[:, 1])
    assert 0.25 < lost.mean() < 0.5  # (1 - 1/30)^30 = 0.36
    means = mean_by_draw(found.ap, np.array([True, True]))
    np.testing.assert_array_equal(means[lost], found.ap[lost, 0])
    assert not np.isnan(means).any()


def test_classes_never_defined_have_no_interval() -> None:
    scores, labels, mask = example(20, 3)
    labels[:, 0] = 0
    labels[:, 1] = 1
    mask[:, 2] = False
    found = bootstrap(scores, labels, mask, None, draws=10)
    assert np.isnan(found.ap[:, 0]).all() and (found.ap[:, 1] == 1).all()
    assert np.isnan(found.auroc[:, 1]).all() and np.isnan(found.ap[:, 2]).all()
    assert interval(found.ap[:, 0]) is None
    assert np.isnan(mean_by_draw(found.ap, np.array([True, False, True]))).all()


def test_intervals_cover_as_they_say() -> None:
    """Of 95 % intervals of an AUROC whose truth is known, about 95 % hold it."""
    truth = 0.5 * (1 + math.erf(0.5))  # two normals one standard deviation apart
    random = np.random.default_rng(0)
    inside = 0
    for _ in range(100):
        labels = (np.arange(120) < 40).astype(np.float32)[:, None]
        scores = random.normal(labels)
        found = bootstrap(scores, labels, np.ones_like(labels, bool), None, draws=200)
        low, high = interval(found.auroc[:, 0]) or (1.0, 0.0)
        inside += low <= truth <= high
    assert 88 <= inside <= 99


def test_a_thousand_draws_of_a_real_size_take_seconds() -> None:
    scores, labels, mask = example(18379, 14)
    began = time.perf_counter()
    bootstrap(scores, labels, mask, None, draws=100)
    assert time.perf_counter() - began < 3  # 0.2 s on one idle core
