"""Bootstrap intervals: draws of patients, exact, repeatable, paired."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lingula.scores import intervals, metrics
from lingula.scores.intervals import (
    benjamini_hochberg,
    bootstrap,
    holm,
    interval,
    logit_interval,
    mean_by_draw,
    p_value,
)


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
    mask = np.ones((40, 1), dtype=bool)
    drawn = bootstrap(scores[:, None], positive[:, None], mask, ["one"] * 40, draws=3)
    ap, auroc = drawn.ap[:, 0], drawn.auroc[:, 0]
    assert ap == pytest.approx([metrics.average_precision(scores, positive)] * 3, abs=1e-12)
    assert auroc == pytest.approx([metrics.auroc(scores, positive)] * 3, abs=1e-12)


def test_draws_repeat_with_their_seed_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, labels, mask = example(80, 3)
    patients = [f"p{i // 2}" for i in range(80)]
    first = bootstrap(scores, labels, mask, patients, draws=40, seed=7)
    monkeypatch.setattr(intervals, "CHUNK", 7)
    monkeypatch.setattr(intervals, "CELLS", 0)
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
    inside = {"percentile": 0, "logit": 0}
    for _ in range(100):
        labels = (np.arange(120) < 40).astype(np.float32)[:, None]
        scores = random.normal(labels)
        found = bootstrap(scores, labels, np.ones_like(labels, bool), None, draws=200)
        value = metrics.measure_classes(scores, labels).auroc[0]
        for name, ends in (
            ("percentile", interval(found.auroc[:, 0])),
            ("logit", logit_interval(value, found.auroc[:, 0])),
        ):
            assert ends is not None and ends[0] < value < ends[1]
            inside[name] += ends[0] <= truth <= ends[1]
    assert all(88 <= many <= 99 for many in inside.values())


def test_logit_intervals_hold_their_value_and_stay_within_bounds() -> None:
    draws = np.array([0.2, 0.5, 0.9, np.nan])
    for value in (1e-9, 0.01, 0.5, 0.99, 1 - 1e-12):
        low, high = logit_interval(value, draws) or (1.0, 0.0)
        assert 0 <= low <= value <= high <= 1
    assert logit_interval(1.0, draws) == (pytest.approx(0.215), 1.0)
    for value in (0.0, 0.1, 0.5, 1.0):  # draws that are all alike tell no interval
        assert logit_interval(value, np.full(9, value)) is None
    assert logit_interval(1.0, np.array([1.0] * 99 + [0.5])) is None  # nor do nearly all
    assert logit_interval(float("nan"), draws) is None
    assert logit_interval(0.5, np.full(3, np.nan)) is None
    narrow, wide = (logit_interval(0.3, draws, None, level) or (0, 0) for level in (0.5, 0.95))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_few_positives_widen_an_interval_as_students_t_does() -> None:
    """Quantiles of t from tables; with many positives the normal's."""
    for freedom, quantile in ((2, 4.303), (3, 3.182), (9, 2.262), (29, 2.045), (999, 1.962)):
        m = freedom + 1
        assert intervals.reach_of(m, 0.95) == pytest.approx(
            quantile * math.sqrt(m / freedom), rel=0.01 if freedom == 2 else 0.002
        )
    assert intervals.reach_of(None, 0.95) == pytest.approx(1.959964)
    assert intervals.reach_of(1, 0.95) == intervals.reach_of(2, 0.95) > 10


def test_units_with_a_positive_are_counted_not_images() -> None:
    scores, labels, mask = example(12, 2)
    labels[:] = 0
    labels[:6, 0] = 1
    mask[:3, 0] = False
    found = bootstrap(scores, labels, mask, [f"p{i // 3}" for i in range(12)], draws=2)
    assert found.positives.tolist() == [1, 0]


def test_p_values_of_known_draws() -> None:
    """Twice the rarer side, one draw added; never 0, never above 1."""
    assert p_value(np.array([1.0] * 99)) == 2 * 1 / 100
    assert p_value(np.array([1.0] * 95 + [-1.0] * 4)) == 2 * 5 / 100
    assert p_value(np.array([-1.0] * 95 + [1.0] * 4)) == 2 * 5 / 100
    assert p_value(np.zeros(50)) == 1 and p_value(np.array([1.0, -1.0] * 9)) == 1
    assert p_value(np.array([np.nan, 1.0, 1.0, 1.0])) == 2 / 4
    assert math.isnan(p_value(np.full(5, np.nan)))


def test_p_values_are_uniform_where_nothing_differs() -> None:
    """Two equally good scores: p below 0.1 about one time in ten."""
    random = np.random.default_rng(0)
    low = 0
    for _ in range(200):
        labels = (np.arange(150) < 50).astype(np.float32)[:, None]
        mask = np.ones_like(labels, bool)
        drawn = [
            bootstrap(random.normal(labels), labels, mask, None, draws=100).auroc[:, 0]
            for _ in range(2)
        ]
        low += p_value(drawn[0] - drawn[1]) < 0.1
    assert 8 <= low <= 34  # 20 expected, standard deviation 4.2


def test_adjusted_p_values_of_a_worked_example() -> None:
    p = np.array([0.01, np.nan, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(holm(p), [0.03, np.nan, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(benjamini_hochberg(p), [0.02, np.nan, 0.04, 0.04, 0.02])
    assert np.isnan(holm(np.full(2, np.nan))).all()


@given(st.lists(st.floats(0, 1) | st.just(math.nan), max_size=30), st.randoms())
@settings(deadline=None)
def test_adjusted_p_values_are_ordered_and_no_smaller(values: list[float], random: object) -> None:
    p = np.array(values)
    order = np.random.default_rng(len(values)).permutation(len(values))
    for adjust in (holm, benjamini_hochberg):
        found = adjust(p)
        np.testing.assert_array_equal(np.isnan(found), np.isnan(p))
        np.testing.assert_array_equal(adjust(p[order]), found[order])
        known = ~np.isnan(p)
        assert (found[known] >= p[known] - 1e-15).all() and (found[known] <= 1).all()
        ranked = found[known][np.argsort(p[known], kind="stable")]
        assert (np.diff(ranked) >= -1e-15).all()
    assert (holm(p)[~np.isnan(p)] >= benjamini_hochberg(p)[~np.isnan(p)] - 1e-15).all()


@given(st.integers(0, 200))
@settings(max_examples=20, deadline=None)
def test_packed_draws_are_the_draws(seed: int) -> None:
    """Several draws in a word: the sums come apart again, whatever the number of bits."""
    random = np.random.default_rng(seed)
    draws, units = int(random.integers(1, 20)), int(random.integers(1, 30))
    counts = random.integers(0, 5, (draws, units))
    bits = int(counts.sum(axis=1).max()).bit_length() + int(random.integers(0, 40)) or 1
    packed = intervals.pack_draws(counts, bits)
    assert len(packed) == -(-draws // max(1, 63 // bits))
    sums = np.cumsum(packed, axis=1)
    apart = intervals.unpack_sums(sums, bits, draws)
    np.testing.assert_array_equal(apart, np.cumsum(counts, axis=1))


def test_draws_of_one_huge_patient_are_exact() -> None:
    """Nearly all rows are one patient's: a draw may hold far more rows than the table."""
    scores, labels, mask = example(400, 2)
    patients = ["big"] * 390 + [f"p{i}" for i in range(10)]
    found = bootstrap(scores, labels, mask, patients, draws=30, seed=5)
    units = np.unique(patients, return_inverse=True)[1]
    random = np.random.default_rng(5)
    for draw in range(30):
        counts = np.bincount(random.integers(0, 11, 11), minlength=11)
        rows = np.repeat(np.arange(400), counts[units])
        direct = metrics.measure_classes(scores[rows], labels[rows], mask[rows])
        np.testing.assert_allclose(found.ap[draw], direct.ap, atol=1e-12)
        np.testing.assert_allclose(found.auroc[draw], direct.auroc, atol=1e-12)


def test_one_sort_serves_all() -> None:
    scores, labels, mask = example(200, 3)
    mask[::7, 1] = False
    ranked = metrics.rank_classes(scores, labels, mask)
    again = metrics.measure_classes(scores, labels, mask, ranked=ranked)
    np.testing.assert_array_equal(again.ap, metrics.measure_classes(scores, labels, mask).ap)
    drawn = bootstrap(scores, labels, mask, None, draws=5, ranked=ranked)
    np.testing.assert_array_equal(drawn.ap, bootstrap(scores, labels, mask, None, draws=5).ap)


def test_a_thousand_draws_of_a_real_size_take_seconds() -> None:
    scores, labels, mask = example(18379, 14)
    began = time.process_time()
    bootstrap(scores, labels, mask, None, draws=100)
    assert time.process_time() - began < 3  # 0.2 s of a core
