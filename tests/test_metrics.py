"""Metrics: scikit-learn is the oracle; the values of known complaints; intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from lingula import metrics
from lingula.intervals import bootstrap, interval


def ap(y: list[int], s: list[float], w: list[float] | None = None) -> float:
    weights = None if w is None else np.array(w, float)
    return metrics.average_precision(np.array(s, float), np.array(y, bool), weights)


@pytest.mark.parametrize(
    ("y", "s", "right"),
    [
        ([1, 0, 0, 0], [0.5] * 4, 0.25),
        ([0, 0, 0, 1], [0.5] * 4, 0.25),
        ([1, 0, 1, 0], [0.9, 0.5, 0.5, 0.1], 0.8333333),
        ([0, 1, 0, 0, 0], [0.7, 0.8, 0.5, 0.9, 0.1], 0.5),
        ([1, 0, 0, 1, 0], [0.9, 0.8, 0.3, 0.6, 0.1], 0.8333333),
        ([1], [0.0], 1.0),
    ],
)
def test_known_average_precisions(y: list[int], s: list[float], right: float) -> None:
    assert ap(y, s) == pytest.approx(right)


def test_zero_weights() -> None:
    y, s, w = [0, 0, 0, 1, 1, 1], [0.1, 0.4, 0.85, 0.35, 0.8, 0.9], [1, 1, 0, 1, 1, 0]
    assert ap(y, s, w) == pytest.approx(0.8333333)


def test_saturated_logits() -> None:
    s = [98.0950, 98.4612, 98.1145, 98.1506, 97.6037, 98.9425, 99.2644, 99.5014, 99.7280, 99.6595]
    s += [99.6931, 99.4667, 99.9623, 99.8949, 99.8768]
    y = [0] + [1] * 14
    assert metrics.auroc(np.array(s), np.array(y, bool)) == pytest.approx(0.9285714)


def test_undefined_classes_are_left_out() -> None:
    y = np.array([[1, 0], [0, 0], [1, 0]], np.float32)
    s = np.array([[0.9, 0.2], [0.1, 0.3], [0.8, 0.4]])
    found = metrics.classwise(s, y)
    assert found.ap[0] == 1 and math.isnan(found.ap[1]) and found.mAP == 1
    assert math.isnan(found.auroc[1]) and found.macro_auroc == 1
    assert math.isnan(metrics.classwise(s[:, 1:], y[:, 1:]).mAP)


labels_and_scores = st.lists(
    st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.5, 0.5000001, 0.9, 1.0]) | st.floats(0, 1)),
    min_size=2,
    max_size=60,
)


@given(labels_and_scores, st.randoms())
@settings(deadline=None)
def test_equal_to_scikit_learn_in_any_order(rows: list[tuple[bool, float]], random: object) -> None:
    y, s = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    order = np.random.default_rng(len(rows)).permutation(len(rows))
    if y.any():
        assert metrics.average_precision(s, y) == pytest.approx(
            average_precision_score(y, s), abs=1e-12
        )
        assert metrics.average_precision(s[order], y[order]) == metrics.average_precision(s, y)
    if y.any() and not y.all():
        assert metrics.auroc(s, y) == pytest.approx(roc_auc_score(y, s), abs=1e-12)


def test_a_mask_is_a_subset() -> None:
    random = np.random.default_rng(0)
    s, y = random.random((200, 4)), (random.random((200, 4)) < 0.3).astype(np.float32)
    mask = random.random((200, 4)) < 0.7
    found = metrics.classwise(s, y, mask)
    for k in range(4):
        kept = mask[:, k]
        alone = metrics.average_precision(s[kept, k], y[kept, k] > 0)
        assert found.ap[k] == alone


def test_nan_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        metrics.classwise(np.array([[np.nan]]), np.array([[1.0]]))


def test_bootstrap_of_every_draw_equals_the_metric_of_repeated_rows() -> None:
    random = np.random.default_rng(1)
    s = random.integers(0, 20, (60, 2)) / 20
    y = (random.random((60, 2)) < 0.3).astype(np.float32)
    mask = random.random((60, 2)) < 0.9
    patients = tuple(f"p{i // 3}" for i in range(60))
    found = bootstrap(s, y, mask, patients, draws=5, seed=3)
    units = np.unique(patients, return_inverse=True)[1]
    again = np.random.default_rng(3).multinomial(20, np.full(20, 1 / 20), size=5)
    for draw in range(5):
        rows = np.repeat(np.arange(60), again[draw][units])
        direct = metrics.classwise(s[rows], y[rows], mask[rows])
        np.testing.assert_allclose(found.ap[draw], direct.ap)
        np.testing.assert_allclose(found.auroc[draw], direct.auroc)
    low, high = interval(found.ap[:, 0]) or (1, 0)
    assert 0 <= low <= high <= 1


def test_max_f1_threshold() -> None:
    s, y = np.array([0.1, 0.4, 0.6, 0.9]), np.array([False, False, True, True])
    assert metrics.max_f1_threshold(s, y) == 0.6
    assert math.isnan(metrics.max_f1_threshold(s, np.zeros(4, bool)))
