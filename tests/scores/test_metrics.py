"""Metrics: scikit-learn is the oracle; the values of known complaints; intervals."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
    roc_curve,
)

from lingula.bench.metrics import bench_metrics
from lingula.scores import metrics, reliability, thresholds
from lingula.scores.evaluation import evaluate_predictions
from lingula.scores.intervals import bootstrap, interval
from lingula.scores.predictions import align_rows, class_columns, read_scores
from lingula.system.errors import InputError
from lingula.tables.reading import read_table
from lingula.tables.table import rows_of, subset


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
    found = metrics.measure_classes(s, y)
    assert found.ap[0] == 1 and math.isnan(found.ap[1]) and found.mAP == 1
    assert math.isnan(found.auroc[1]) and found.macro_auroc == 1
    assert math.isnan(metrics.measure_classes(s[:, 1:], y[:, 1:]).mAP)


labels_and_scores = st.lists(
    st.tuples(
        st.booleans(), st.sampled_from([0.0, 0.1, 0.5, 0.5000001, 0.9, 1.0]) | st.floats(0, 1)
    ),
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
    found = metrics.measure_classes(s, y, mask)
    for k in range(4):
        kept = mask[:, k]
        alone = metrics.average_precision(s[kept, k], y[kept, k] > 0)
        assert found.ap[k] == alone


def test_nan_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        metrics.measure_classes(np.array([[np.nan]]), np.array([[1.0]]))


def test_bootstrap_of_every_draw_equals_the_metric_of_repeated_rows() -> None:
    random = np.random.default_rng(1)
    s = random.integers(0, 20, (60, 2)) / 20
    y = (random.random((60, 2)) < 0.3).astype(np.float32)
    mask = random.random((60, 2)) < 0.9
    patients = tuple(f"p{i // 3}" for i in range(60))
    found = bootstrap(s, y, mask, patients, draws=5, seed=3)
    units = np.unique(patients, return_inverse=True)[1]
    random = np.random.default_rng(3)
    again = [np.bincount(random.integers(0, 20, 20), minlength=20) for _ in range(5)]
    for draw in range(5):
        rows = np.repeat(np.arange(60), again[draw][units])
        direct = metrics.measure_classes(s[rows], y[rows], mask[rows])
        np.testing.assert_allclose(found.ap[draw], direct.ap)
        np.testing.assert_allclose(found.auroc[draw], direct.auroc)
    low, high = interval(found.ap[:, 0]) or (1, 0)
    assert 0 <= low <= high <= 1


def test_max_f1_threshold() -> None:
    s, y = np.array([0.1, 0.4, 0.6, 0.9]), np.array([False, False, True, True])
    assert thresholds.max_f1_threshold(s, y) == 0.6
    assert math.isnan(thresholds.max_f1_threshold(s, np.zeros(4, bool)))


@given(st.integers(0, 500))
@settings(max_examples=40, deadline=None)
def test_weights_equal_scikit_learn_with_ties(seed: int) -> None:
    random = np.random.default_rng(seed)
    s, y = random.integers(0, 6, 30) / 5, random.random(30) < 0.4
    w = random.choice([0.0, 0.5, 1.0, 3.0], 30)
    if (w * y).sum() > 0 and (w * ~y).sum() > 0:
        expected = average_precision_score(y, s, sample_weight=w)
        assert metrics.average_precision(s, y, w) == pytest.approx(expected, abs=1e-12)
        expected = roc_auc_score(y, s, sample_weight=w)
        assert metrics.auroc(s, y, w) == pytest.approx(expected, abs=1e-12)
    mask = w > 0
    assert metrics.average_precision(s, y, mask=mask) == pytest.approx(
        metrics.average_precision(s[mask], y[mask]), nan_ok=True
    )


def test_soft_targets_are_positive_from_one_half() -> None:
    s, y = np.array([0.9, 0.8, 0.1]), np.array([0.5, 0.49, 0.2])
    assert metrics.average_precision(s, y) == 1 and metrics.auroc(s, y) == 1
    assert metrics.measure_classes(s[:, None], y[:, None].astype(np.float32)).positives[0] == 1


def test_scores_batch_by_batch_are_ranked_together() -> None:
    s, y = np.array([-1.0, 0.0, 1.0]), np.array([1, 0, 1])
    assert metrics.auroc(s, y) == 0.5


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="same rows and classes"):
        metrics.measure_classes(np.zeros((2, 1)), np.zeros((1, 1), np.float32))


def trapezoid(y: np.ndarray, x: np.ndarray) -> float:
    return float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum())


def test_curves_end_where_they_should_and_thin_evenly() -> None:
    random = np.random.default_rng(0)
    y = random.random(3000) < 0.05
    s = random.normal(y)
    x, height = metrics.roc_curve(s, y)
    assert (x[0], height[0], x[-1], height[-1]) == (0, 0, 1, 1)
    assert trapezoid(height, x) == pytest.approx(metrics.auroc(s, y))
    recall, precision = metrics.precision_recall_curve(s, y)
    area = (np.diff(recall, prepend=0) * precision).sum()
    assert area == pytest.approx(metrics.average_precision(s, y))
    thin, low = metrics.roc_curve(s, y, points=200)
    assert len(thin) <= 200 and (thin[0], thin[-1], low[-1]) == (0, 1, 1)
    assert trapezoid(low, thin) == pytest.approx(metrics.auroc(s, y), abs=0.01)
    empty = metrics.roc_curve(np.array([0.1, 0.2]), np.zeros(2, bool))
    assert np.isnan(empty[1][1:]).all()
    assert len(metrics.precision_recall_curve(np.zeros(0), np.zeros(0, bool))[0]) == 0


@given(labels_and_scores, st.floats(0, 1) | st.sampled_from([0.0, 0.1, 0.5, 1.0]))
@settings(deadline=None)
def test_measures_at_a_threshold_equal_scikit_learn(
    rows: list[tuple[bool, float]], threshold: float
) -> None:
    y, s = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    precision, recall, specificity, f1 = thresholds.at_threshold(s, y, threshold)
    found = s >= threshold
    for ours, theirs in (
        (precision, precision_score(y, found, zero_division=np.nan)),
        (recall, recall_score(y, found, zero_division=np.nan)),
        (specificity, recall_score(~y, ~found, zero_division=np.nan)),
        (f1, f1_score(y, found, zero_division=np.nan) if y.any() else np.nan),
        (reliability.brier(s, y), np.mean((s - y) ** 2)),
    ):
        assert ours == pytest.approx(theirs, abs=1e-12, nan_ok=True)
    if 0 < y.sum() < len(y):
        assert reliability.brier(s, y) == pytest.approx(brier_score_loss(y, s), abs=1e-12)


@given(labels_and_scores, st.sampled_from([0.0, 0.5, 0.8, 0.9, 1.0]))
@settings(deadline=None)
def test_sensitivity_at_a_specificity_and_back(
    rows: list[tuple[bool, float]], level: float
) -> None:
    """The best of all thresholds, one above every score among them: by trying each."""
    y, s = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    true, false = metrics.counts(metrics.rank(s, y))
    sensitivity = thresholds.sensitivity_at(true, false, level)
    specificity = thresholds.specificity_at(true, false, level)
    if not 0 < y.sum() < len(y):
        assert math.isnan(sensitivity) and math.isnan(specificity)
        return
    tried = [((s[y] >= t).mean(), (s[~y] < t).mean()) for t in [*s, 2.0]]
    assert sensitivity == max(sens for sens, spec in tried if spec >= level)
    assert specificity == max(spec for sens, spec in tried if sens >= level)
    fpr, tpr, _ = roc_curve(y, s, drop_intermediate=False)
    assert sensitivity == pytest.approx(tpr[1 - fpr >= level].max(), abs=1e-12)


def test_case_83_calibration_is_of_the_positive_label() -> None:
    s, y = np.array([0.01, 0.001, 0.005]), np.ones(3, bool)
    assert reliability.calibration_error(s, y) == pytest.approx(0.9947, abs=1e-4)
    assert reliability.calibration_error(s, ~y) == pytest.approx(0.0053, abs=1e-4)


def test_calibration_error_by_hand() -> None:
    """Bins of 15: [0, 1/15) ...; an edge belongs to the bin above it, 1 to the last."""
    s = np.array([0.0, 0.05, 1 / 15, 0.5, 0.95, 1.0])
    y = np.array([0, 1, 0, 1, 1, 1], bool)
    bins = [abs(0.05 - 1), abs(1 / 15 - 0), abs(0.5 - 1), abs(1.95 - 2)]
    assert reliability.calibration_error(s, y) == pytest.approx(sum(bins) / 6)
    assert math.isnan(reliability.calibration_error(np.zeros(0), np.zeros(0, bool)))
    assert math.isnan(reliability.brier(np.zeros(0), np.zeros(0, bool)))


def test_calibrated_scores_have_a_small_error_and_shifted_ones_their_shift() -> None:
    random = np.random.default_rng(0)
    s = random.random(200_000) * 0.8
    y = random.random(200_000) < s
    assert reliability.calibration_error(s, y) < 0.01
    assert reliability.calibration_error(s + 0.2, y) == pytest.approx(0.2, abs=0.005)


def test_operating_measures_are_masked_and_bound_to_their_class() -> None:
    random = np.random.default_rng(0)
    s, y = random.random((200, 3)), (random.random((200, 3)) < 0.3).astype(np.float32)
    y[:, 2] = 0
    mask = random.random((200, 3)) < 0.7
    limits = np.array([0.3, 0.6, 0.5])
    found = thresholds.measure_operating(s, y, mask, limits, metrics.rank_classes(s, y, mask))
    for k in range(3):
        kept = mask[:, k]
        alone = thresholds.at_threshold(s[kept, k], y[kept, k] > 0, limits[k])
        np.testing.assert_array_equal(
            alone, [found.precision[k], found.recall[k], found.specificity[k], found.f1[k]]
        )
        assert found.ece[k] == reliability.calibration_error(s[kept, k], y[kept, k] > 0)
    assert math.isnan(found.f1[2]) and math.isnan(found.recall[2])
    assert found.mF1 == found.f1[:2].mean() and found.mECE == found.ece.mean()


def test_weighted_scores_of_real_and_adverse_kinds_equal_scikit_learn() -> None:
    """Saturated, constant, tiny, one-class and huge inputs, with and without weights."""
    random = np.random.default_rng(0)
    y = random.random(500) < 0.1
    weights = random.choice([0.0, 0.3, 1.0, 7.0], 500)
    for s in (
        random.random(500),
        np.full(500, 0.5),
        np.round(random.random(500), 1),
        random.random(500).astype(np.float32).astype(float),
        random.random(500) * 1e-300,
        1 - random.random(500) * 1e-15,
        np.where(random.random(500) < 0.5, 0.0, 1.0),
    ):
        for w in (None, weights):
            assert metrics.average_precision(s, y, w) == pytest.approx(
                average_precision_score(y, s, sample_weight=w), abs=1e-12
            )
            assert metrics.auroc(s, y, w) == pytest.approx(
                roc_auc_score(y, s, sample_weight=w), abs=1e-12
            )


def test_real_scores_equal_scikit_learn(real_data: Path) -> None:
    """All 16 files of real scores, every class, AP and AUROC to 1e-12."""
    folder = real_data / "nih-scores"
    labels = read_table(folder / "labels.parquet")
    paths = sorted(set(folder.glob("*.parquet")) - {folder / "labels.parquet"})
    assert len(paths) == 16
    for path in paths:
        made = read_scores(path)
        result = evaluate_predictions(made, labels, split="test")
        part = subset(labels, rows_of(labels, "test"))
        values = made.probabilities[align_rows(made, part.images)][
            :, class_columns(made, part.space.classes)
        ]
        for k in range(len(part.space)):
            y = part.labels[:, k] == 1
            assert result.metrics.ap[k] == pytest.approx(
                average_precision_score(y, values[:, k]), abs=1e-12
            )
            assert result.metrics.auroc[k] == pytest.approx(
                roc_auc_score(y, values[:, k]), abs=1e-12
            )


def test_the_bench_agrees_with_its_baseline() -> None:
    value = bench_metrics(images=3000, classes=5, draws=20, repeats=1)
    assert {"seconds", "baseline", "ratio", "bootstrap"} <= set(value)
    assert value["largest_difference"] < 1e-12
    assert value["ratio"] == value["baseline"] / value["seconds"]
    assert value["bootstrap"]["ratio"] > 5  # above 100 at its own size
    with pytest.raises(InputError, match="at least 1"):
        bench_metrics(draws=0)


def test_the_bench_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(InputError, match="pip install scikit-learn"):
        bench_metrics(images=10, draws=1)
