"""Calibration, thresholds and reliability: against scikit-learn, and what few positives do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.calibration import calibration_curve
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

import lingula
from lingula.scores import calibration, metrics
from lingula.scores.calibration import apply_curve, expit, fit_curve, logit
from lingula.scores.joining import Joined
from lingula.scores.predictions import Predictions, align_rows, failed, read_scores, write_scores
from lingula.scores.reliability import reliability_curves
from lingula.scores.results import to_json
from lingula.scores.thresholds import Rule, choose_threshold, parse_rule, parse_rules
from lingula.settings.config import Config, vary, write_config
from lingula.settings.recipes import recipe
from lingula.system.errors import InputError
from lingula.tables.reading import read_table
from lingula.tables.table import rows_of, subset, targets

POOLED = (0.8, -0.3)


def drawn(n: int = 600, seed: int = 0, share: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """Scores (n,) that rise with the labels (n,), and are too sure of themselves."""
    random = np.random.default_rng(seed)
    truth = random.normal(np.log(share / (1 - share)), 1.0, n)
    return expit(2 * truth + 1), random.random(n) < expit(truth)


def few(positives: int, n: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    positive = np.arange(n) < positives
    return expit(random.normal(positive * 1.5 - 3, 1.0)), positive, np.arange(n)


@given(st.integers(0, 10_000), st.integers(30, 120), st.sampled_from([1, 2, 9]))
@settings(max_examples=30, deadline=None)
def test_isotonic_is_that_of_scikit_learn(seed: int, n: int, digits: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.random(n).round(digits)
    positive = random.random(n) < scores
    positive[:3], positive[3:6] = True, False
    curve = calibration.fit_isotonic(scores, positive)
    theirs = IsotonicRegression(out_of_bounds="clip").fit(scores, positive)
    asked = np.concatenate([random.random(50), scores, [0.0, 1.0]])
    np.testing.assert_allclose(apply_curve(curve, asked), theirs.predict(asked), atol=1e-9)


def test_platt_and_temperature_are_logistic_regressions_on_the_logit() -> None:
    scores, positive = drawn()
    curve = fit_curve("platt", scores, positive, POOLED, np.arange(600))
    logits = np.tile(logit(scores), 2)[:, None]
    soft = np.where(positive, (positive.sum() + 1) / (positive.sum() + 2), 0.0)
    soft = np.where(positive, soft, 1 / ((~positive).sum() + 2))
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
    model.fit(logits, np.repeat([1, 0], 600), sample_weight=np.concatenate([soft, 1 - soft]))
    assert curve.slope == pytest.approx(model.coef_[0, 0], rel=1e-4)
    assert curve.shift == pytest.approx(model.intercept_[0], rel=1e-4)
    warm = fit_curve("temperature", scores, positive, POOLED, np.arange(600))
    model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10)
    model.fit(logit(scores)[:, None], positive)
    assert warm.slope == pytest.approx(model.coef_[0, 0], rel=1e-4) and warm.shift == 0


def test_platt_finds_the_distortion_and_lessens_the_error() -> None:
    scores, positive = drawn(40_000)
    curve = fit_curve("platt", scores, positive, POOLED, np.arange(40_000))
    assert curve.slope == pytest.approx(0.5, abs=0.03)  # scores are expit(2 z + 1)
    assert curve.shift == pytest.approx(-0.5, abs=0.05)
    fresh, labels = drawn(20_000, seed=1)
    before, after = (
        reliability_curves(s[:, None], labels[:, None], draws=0)[0]
        for s in (fresh, apply_curve(curve, fresh))
    )
    assert after.error < 0.02 < 0.05 < before.error
    assert after.brier < before.brier


@pytest.mark.parametrize("method", calibration.METHODS)
def test_the_prior_is_the_most_probable_map(method: str) -> None:
    scores, positive, groups = few(12)
    curve = fit_curve(method, scores, positive, POOLED, groups)
    assert "with prior" in curve.method and "12 positives" in curve.note
    soft = calibration.smooth_targets(positive)
    shifted = method != "temperature"

    def cost(at: np.ndarray) -> float:
        z = np.exp(at[0]) * logit(scores) + (at[1] if shifted else 0)
        far = ((at[0] - np.log(0.8)) / 0.5) ** 2 + (((at[1] + 0.3) / 0.5) ** 2 if shifted else 0)
        return float((np.logaddexp(0, z) - soft * z).sum() + far / 2)

    best = minimize(cost, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
    assert curve.slope == pytest.approx(np.exp(best.x[0]), rel=1e-5)
    assert curve.shift == pytest.approx(best.x[1] if shifted else 0, abs=1e-5)


def test_fewer_positives_lean_more_on_all_classes() -> None:
    kinds = {
        n: fit_curve("platt", *few(n)[:2], POOLED, few(n)[2])
        for n in (0, 1, 4, 5, 19, 20, 196, 200)
    }
    assert [kinds[n].method for n in kinds] == [
        "identity",
        "pooled",
        "pooled",
        "platt with prior",
        "platt with prior",
        "platt",
        "pooled",  # four negatives
        "identity",
    ]
    assert kinds[0].note == "no positives on dev: scores are left as they are"
    assert kinds[200].note.startswith("no negatives") and kinds[196].note.startswith("4 negatives")
    assert (kinds[4].slope, kinds[4].shift) == POOLED
    scores = few(0)[0]
    np.testing.assert_array_equal(apply_curve(kinds[0], scores), scores)


@given(st.integers(0, 10_000), st.sampled_from(calibration.METHODS), st.integers(0, 60))
@settings(max_examples=40, deadline=None)
def test_no_map_falls_and_only_isotonic_ties(seed: int, method: str, positives: int) -> None:
    random = np.random.default_rng(seed)
    scores, positive, groups = few(positives, 90, seed)
    if seed % 3 == 0:
        positive = ~positive  # scores that point the wrong way
    curve = fit_curve(method, scores, positive, POOLED, groups)
    line = np.sort(np.concatenate([random.random(300), scores]))
    found = apply_curve(curve, line)
    assert ((found >= 0) & (found <= 1)).all() and (np.diff(found) >= 0).all()
    if curve.kind == "steps":
        return
    assert (np.diff(found) > 0).all()
    labels = random.random(len(line)) < 0.3
    labels[0] = True
    for measure in (metrics.average_precision, metrics.auroc):
        assert measure(found, labels) == measure(line, labels)


def test_isotonic_changes_the_ranking_by_ties_alone() -> None:
    scores, positive = drawn()
    curve = fit_curve("isotonic", scores, positive, POOLED, np.arange(600))
    assert curve.method == "isotonic"
    found = apply_curve(curve, scores)
    order = np.argsort(scores)
    assert (np.diff(found[order]) >= 0).all() and len(np.unique(found)) < len(np.unique(scores))
    # Where it ties nothing, it changes nothing: keep one row of each value.
    kept = np.unique(found, return_index=True)[1]
    for measure in (metrics.average_precision, metrics.auroc):
        assert measure(found[kept], positive[kept]) == measure(scores[kept], positive[kept])


def test_zero_one_and_blank_scores_stay_in_place() -> None:
    curve = fit_curve("platt", *drawn(), POOLED, np.arange(600))
    found = apply_curve(curve, np.array([0.0, 1e-300, 0.5, 1.0, np.nan]))
    assert 0 <= found[0] < found[1] < found[2] < found[3] <= 1 and np.isnan(found[4])
    # Perfectly parted labels do not make an infinitely steep map.
    parted = np.concatenate([np.full(50, 0.1), np.full(50, 0.9)])
    steep = fit_curve("platt", parted, parted > 0.5, POOLED, np.arange(100))
    assert np.isfinite((steep.slope, steep.shift)).all()
    assert apply_curve(steep, np.array([0.9]))[0] == pytest.approx(51 / 52, abs=1e-6)


def test_auto_takes_the_method_with_the_least_loss_on_other_patients() -> None:
    random = np.random.default_rng(0)
    scores = random.random(6000)
    stairs = random.random(6000) < np.where(scores < 0.5, 0.05, 0.6)  # no logistic fits a step
    assert fit_curve("auto", scores, stairs, POOLED, np.arange(6000)).method == "isotonic"
    scores, positive = drawn(6000)
    assert fit_curve("auto", scores, positive, POOLED, np.arange(6000)).method == "platt"


def test_pooled_is_fitted_on_known_cells_of_classes_with_both_labels() -> None:
    scores, positive = drawn(4000)
    both = np.stack([scores, np.full(4000, 0.99)], axis=1)
    labels = np.stack([positive, np.zeros(4000, bool)], axis=1)
    mask = np.ones((4000, 2), bool)
    found = calibration.fit_pooled(both, labels, mask)
    alone = calibration.fit_pooled(both[:, :1], labels[:, :1], mask[:, :1])
    assert found == alone and found[0] == pytest.approx(0.5, abs=0.1)
    mask[:, 0] = False
    assert calibration.fit_pooled(both, labels, mask) == (1.0, 0.0)


def brute(rule: Rule, scores: np.ndarray, positive: np.ndarray) -> float:
    """The best threshold by trying all, the highest of equals (specificity: the lowest)."""
    steps = [np.nextafter(scores.max(), 2), *sorted(set(scores), reverse=True)]

    def facts(at: float) -> tuple[float, float, float]:
        called = scores >= at
        f1 = 2 * (called & positive).sum() / (called.sum() + positive.sum())
        return f1, called[positive].mean(), (~called[~positive]).mean()

    if rule.kind == "max-f1":
        return max(steps, key=lambda at: facts(at)[0])
    if rule.kind == "youden":
        return max(steps, key=lambda at: round(facts(at)[1] + facts(at)[2], 12))
    if rule.kind == "sensitivity":
        return next(at for at in steps if facts(at)[1] >= rule.values[0])
    if rule.kind == "specificity":
        return [at for at in steps if facts(at)[2] >= rule.values[0]][-1]
    missed, alarm = rule.values
    return min(
        steps,
        key=lambda at: (
            missed * (positive & (scores < at)).sum() + alarm * (~positive & (scores >= at)).sum()
        ),
    )


@pytest.mark.parametrize(
    "text", ["max-f1", "youden", "sensitivity=0.9", "sensitivity=1", "specificity=.8", "cost=10:1"]
)
def test_thresholds_are_the_best_of_all(text: str) -> None:
    rule = parse_rule(text)
    for seed in range(8):
        scores, positive = drawn(80, seed)
        scores = scores.round(2)  # ties
        found = choose_threshold(rule, scores, 1 - (1 - scores) ** 2, positive)
        assert found.score == brute(rule, scores, positive), (text, seed)
        called = scores >= found.score
        assert found.sensitivity == called[positive].mean()
        assert found.specificity == (~called[~positive]).mean()
        # The same images are called on the other scale.
        np.testing.assert_array_equal(1 - (1 - scores) ** 2 >= found.calibrated, called)


def test_thresholds_of_classes_without_positives_are_stated() -> None:
    scores, none = np.array([0.1, 0.7]), np.zeros(2, bool)
    for text, value in (("max-f1", 0.5), ("sensitivity=0.9", 0.5), ("cost=9:1", 0.1)):
        found = choose_threshold(parse_rule(text), scores, scores, none)
        assert (found.score, found.calibrated) == (value, value)
        assert "no positives on dev" in found.note and found.sensitivity is None
    low = choose_threshold(parse_rule("specificity=0.5"), scores, scores, none)
    assert low.score == 0.7 and low.specificity == 0.5 and not low.note  # needs negatives alone


@pytest.mark.parametrize(
    "text",
    [
        "max-f2",
        "sensitivity",
        "sensitivity=1.5",
        "cost=3",
        "cost=0:1",
        "youden=1",
        "sensitivity=0",
        "cost=inf:1",
    ],
)
def test_other_rules_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=f"no threshold rule '{text}'"):
        parse_rule(text)
    with pytest.raises(InputError, match="given twice: youden"):
        parse_rules(["youden", "youden"])


def test_reliability_judges_the_probability_of_the_positive_label() -> None:
    found = reliability_curves(np.array([[0.01], [0.001], [0.005]]), np.ones((3, 1), np.float32))
    assert found[0].error == pytest.approx(0.9946667, abs=1e-6)
    assert np.isnan(reliability_curves(np.zeros((0, 1)), np.zeros((0, 1), bool))[0].error)
    with pytest.raises(ValueError, match="NaN"):
        reliability_curves(np.array([[np.nan]]), np.ones((1, 1), bool))


def test_reliability_is_that_of_scikit_learn_and_masks_rows() -> None:
    scores, positive = drawn(1000)
    known = np.arange(1000) % 4 > 0
    found = reliability_curves(
        scores[:, None], positive[:, None], known[:, None], bins=10, draws=0
    )[0]
    share, mean = calibration_curve(positive[known], scores[known], n_bins=10, strategy="quantile")
    np.testing.assert_allclose([one.share for one in found.bins], share)
    np.testing.assert_allclose([one.score for one in found.bins], mean)
    assert sum(one.n for one in found.bins) == 750
    assert found.brier == pytest.approx(((scores - positive)[known] ** 2).mean())
    tied = reliability_curves(np.full((50, 1), 0.2), positive[:50, None], draws=20)[0]
    assert len(tied.bins) == 1 and tied.bins[0].n == 50


def test_reliability_intervals_draw_patients() -> None:
    scores, positive = drawn(300)
    names = [f"p{row}" for row in range(300)]
    once = reliability_curves(scores[:, None], positive[:, None], bins=3, patients=names)[0]
    four = np.repeat(np.arange(300), 4)
    same = [np.repeat(names, 4).tolist(), None]
    by_patient, by_row = (
        reliability_curves(scores[four, None], positive[four, None], bins=3, patients=who)[0]
        for who in same
    )

    def width(curve: object, at: int) -> float:
        low, high = curve.bins[at].ci  # type: ignore[attr-defined]
        assert low <= curve.bins[at].share <= high  # type: ignore[attr-defined]
        return float(high - low)

    for at in range(3):
        assert width(by_patient, at) == pytest.approx(width(once, at), rel=0.15)
        assert width(by_row, at) < 0.7 * width(once, at)


def two_classes(n: int = 400) -> Joined:
    scores = np.stack([drawn(n)[0], drawn(n, seed=1)[0]], axis=1)
    labels = np.stack([drawn(n)[1], drawn(n, seed=1)[1]], axis=1).astype(np.float32)
    mask = np.ones((n, 2), dtype=bool)
    return Joined(scores, labels, mask, ("Edema", "Mass"), None, {})


def test_files_give_the_same_maps_and_damaged_ones_are_refused() -> None:
    for method in calibration.METHODS:
        made = calibration.fit_calibration(
            two_classes(), method, parse_rules(["max-f1", "cost=2:1"])
        )
        value = json.loads(json.dumps(calibration.to_json(made), allow_nan=False))
        assert calibration.from_json(value, "x") == made
    for change, message in (
        ({"format": 2}, "format 2"),
        ({"kind": "ensemble"}, "no calibration"),
        ({"classes": {"Edema": {}}}, "no calibration"),
        ({"pooled": None}, "no calibration"),
    ):
        with pytest.raises(InputError, match=message):
            calibration.from_json({**value, **change}, "x")
    with pytest.raises(InputError, match="no calibration"):
        calibration.from_json([], "x")
    item = value["classes"]["Edema"]
    for curve in (
        {"kind": "logistic", "method": "platt", "slope": -1.0, "shift": 0.0, "note": ""},
        {"kind": "steps", "method": "isotonic", "x": [0.2, 0.1], "y": [0, 1], "note": ""},
        {"kind": "steps", "method": "isotonic", "x": [0.1, 0.2], "y": [1, 0], "note": ""},
        {"kind": "steps", "method": "isotonic", "x": [0.1], "y": [0, 1], "note": ""},
        {"kind": "other", "method": "isotonic", "note": ""},
    ):
        bad = {**value, "classes": {"Edema": {**item, "curve": curve}}}
        with pytest.raises(InputError, match=r"damaged: the map of 'Edema'"):
            calibration.from_json(bad, "x")


def test_maps_bind_by_name_and_both_thresholds_call_the_same_images() -> None:
    made = calibration.fit_calibration(two_classes(), "platt", parse_rules(["youden"]))
    values = np.random.default_rng(0).random((5, 2))
    values[4] = np.nan
    raw = Predictions(("Edema", "Mass"), tuple("abcde"), values)
    turned = Predictions(("Mass", "Edema"), tuple("abcde"), values[:, ::-1])
    found = calibration.apply_curves(made, raw).probabilities
    again = calibration.apply_curves(made, turned).probabilities
    np.testing.assert_array_equal(found, again[:, ::-1])
    assert not np.array_equal(found[:4, 0], apply_curve(made.classes["Mass"].curve, values[:4, 0]))
    for k, item in enumerate(made.classes.values()):
        limit = item.thresholds["youden"]
        np.testing.assert_array_equal(
            values[:4, k] >= limit.score, found[:4, k] >= limit.calibrated
        )
    with pytest.raises(InputError, match="knows nothing of Hernia"):
        calibration.apply_curves(made, replace(raw, classes=("Edema", "Hernia")))


def write_scores_and_labels(folder: Path, n: int = 240) -> tuple[Path, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    joined = two_classes(n)
    images = tuple(f"{row:03}.png" for row in range(n))
    hernia = np.full((n, 1), 0.25)
    scores = Predictions(
        ("Edema", "Mass", "Hernia"), images, np.concatenate([joined.probabilities, hernia], axis=1)
    )
    write_scores(scores, folder / "s.csv")
    lines = ["image,patient,split,Mass,Edema,Hernia"]
    for row, (edema, mass) in enumerate(joined.targets.astype(int)):
        split = "dev" if row < n // 2 else "test"
        lines.append(f"{images[row]},p{row // 2},{split},{mass},{edema},0")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder / "s.csv", folder / "labels.csv"


def test_the_verb_fits_on_dev_alone_and_changes_no_scores(tmp_path: Path) -> None:
    scores, labels = write_scores_and_labels(tmp_path)
    before = scores.read_bytes()
    made = lingula.calibrate(scores, labels=labels, thresholds=("max-f1", "sensitivity=0.9"))
    assert made == tmp_path / "s.calibration.json" and scores.read_bytes() == before
    value = json.loads(made.read_text())
    assert value["made_from"]["split"] == "dev" and value["method"] == "platt"
    assert value["classes"]["Hernia"]["curve"]["kind"] == "identity"
    assert "no positives on dev" in value["classes"]["Hernia"]["thresholds"]["max-f1"]["note"]
    dev = two_classes(240)
    edema = value["classes"]["Edema"]
    assert edema["positives"] == int(dev.targets[:120, 0].sum())
    assert edema["positives"] + edema["negatives"] == 120
    assert edema["thresholds"]["sensitivity=0.9"]["sensitivity"] >= 0.9
    assert edema["log_loss"]["calibrated"] < edema["log_loss"]["raw"]
    # Labels of test may be turned round: the maps stay.
    turned = tmp_path / "turned.csv"
    lines = labels.read_text().splitlines()
    turned.write_text(
        "\n".join(
            line.replace(",test,0,", ",test,x,").replace(",test,1,", ",test,0,").replace("x", "1")
            for line in lines
        )
        + "\n"
    )
    other = lingula.calibrate(
        scores, labels=turned, thresholds=("max-f1", "sensitivity=0.9"), out=tmp_path / "t.json"
    )
    assert json.loads(other.read_text())["classes"] == value["classes"]


def test_calibrated_scores_are_a_new_file_and_only_once(tmp_path: Path) -> None:
    scores, labels = write_scores_and_labels(tmp_path)
    raw = read_scores(scores)
    values = raw.probabilities.copy()
    made = lingula.calibrate(scores, labels=labels)
    values[3] = np.nan
    write_scores(replace(raw, probabilities=values), tmp_path / "holes.csv")
    out = lingula.apply_calibration(made, tmp_path / "holes.csv", out=tmp_path / "new.csv")
    found = read_scores(out)
    assert np.flatnonzero(failed(found)).tolist() == [3]
    assert (tmp_path / "new.failed.csv").read_text() == (
        "image,reason\n003.png,no scores in holes.csv\n"
    )
    known = calibration.from_json(json.loads(made.read_text()), "x")
    for name in raw.classes:
        k = raw.classes.index(name)
        wanted = apply_curve(known.classes[name].curve, values[:, k])
        np.testing.assert_array_equal(found.probabilities[:, k], wanted)
    stamp = out.stat().st_mtime_ns
    assert lingula.apply_calibration(made, tmp_path / "holes.csv", out=out) == out
    assert out.stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match="something else"):
        lingula.apply_calibration(made, scores, out=out)
    lingula.apply_calibration(made, scores, out=out, overwrite=True)
    assert (tmp_path / "new.csv.old-1").is_file()
    with pytest.raises(InputError, match="calibrated already"):
        lingula.apply_calibration(made, out, out=tmp_path / "twice.csv")
    with pytest.raises(InputError, match="is an input of this command"):
        lingula.apply_calibration(made, scores, out=scores, overwrite=True)
    with pytest.raises(InputError, match="There is no calibration"):
        lingula.apply_calibration(tmp_path / "no.json", scores, out=tmp_path / "x.csv")
    (tmp_path / "bad.json").write_text("[")
    with pytest.raises(InputError, match="is damaged"):
        lingula.apply_calibration(tmp_path / "bad.json", scores, out=tmp_path / "x.csv")


def test_again_is_done_and_wrong_input_is_named(tmp_path: Path) -> None:
    scores, labels = write_scores_and_labels(tmp_path)
    made = lingula.calibrate(scores, labels=labels)
    stamp = made.stat().st_mtime_ns
    assert lingula.calibrate(scores, labels=labels) == made
    assert made.stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match="method: 'platt' there, 'auto' now"):
        lingula.calibrate(scores, labels=labels, method="auto")
    lingula.calibrate(scores, labels=labels, method="auto", overwrite=True)
    assert (tmp_path / "s.calibration.json.old-1").is_file()
    for wrong, message in (
        ({"method": "plat"}, "Did you mean 'platt'"),
        ({"labels": None}, "give --labels TABLE"),
        ({"labels": tmp_path / "no.csv"}, "There is no table"),
        ({"split": "train"}, "no rows with split 'train'"),
        ({"thresholds": ("best",)}, "no threshold rule 'best'"),
    ):
        with pytest.raises(InputError, match=message):
            lingula.calibrate(scores, **({"labels": labels, "out": tmp_path / "x.json"} | wrong))
    with pytest.raises(InputError, match="There is no scores file"):
        lingula.calibrate(tmp_path / "no.csv", labels=labels)
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(InputError, match="no calibration made by"):
        lingula.calibrate(scores, labels=labels, out=tmp_path / "mine.json")
    assert (tmp_path / "mine.json").read_text() == "{}" and not (tmp_path / "x.json").exists()


def test_a_run_is_calibrated_on_its_own_dev_labels(tmp_path: Path) -> None:
    scores, labels = write_scores_and_labels(tmp_path / "data")
    run = tmp_path / "run"
    (run / "scores").mkdir(parents=True)
    (run / "scores" / "dev.csv").write_bytes(scores.read_bytes())
    write_config(vary(recipe("smoke"), data__table=str(labels)), run / "config.yaml")
    made = lingula.calibrate(run)
    assert made == run / "calibration.json"
    beside = lingula.calibrate(scores, labels=labels)
    classes = [json.loads(path.read_text())["classes"] for path in (made, beside)]
    assert classes[0] == classes[1]


def test_predict_calibrated_needs_the_calibration_of_its_weights(
    tiny_config: Config, tmp_path: Path
) -> None:
    run = lingula.train(tiny_config, out=tmp_path / "run")
    table = tiny_config.data.table
    raw = lingula.predict(run, data=table, out=tmp_path / "raw.csv").path
    with pytest.raises(InputError, match=r"has no calibration\.json\. Make one: `lingula calib"):
        lingula.predict(run, data=table, out=tmp_path / "s.csv", calibrated=True)
    made = lingula.calibrate(run)
    found = lingula.predict(run, data=table, out=tmp_path / "s.csv", calibrated=True).path
    wanted = read_scores(lingula.apply_calibration(made, raw, out=tmp_path / "same.csv"))
    np.testing.assert_allclose(read_scores(found).probabilities, wanted.probabilities, rtol=1e-9)
    assert not np.allclose(wanted.probabilities, read_scores(raw).probabilities)
    with pytest.raises(InputError, match="calibration: None there"):
        lingula.predict(run, data=table, out=tmp_path / "raw.csv", calibrated=True)
    with pytest.raises(InputError, match="calibrated already"):
        lingula.apply_calibration(made, found, out=tmp_path / "twice.csv")
    best = lingula.predict(run / "best", data=table, out=tmp_path / "b.csv", calibrated=True).path
    assert best.read_bytes() == found.read_bytes()
    value = json.loads(made.read_text())
    value["made_from"]["model_sha256"] = "0" * 64
    made.write_text(json.dumps(value))
    with pytest.raises(InputError, match="made for other weights"):
        lingula.predict(run, data=table, out=tmp_path / "x.csv", calibrated=True)


AS_TYPED = """
import sys
from lingula.cli import main
try:
    main()
finally:
    assert not {'torch', 'timm'} & sys.modules.keys(), 'Traceback: imported torch'
"""


def typed(*words: object) -> tuple[int, str]:
    """Exit status and all that was printed by a command that must not import torch."""
    done = subprocess.run(
        [sys.executable, "-c", AS_TYPED, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(Path(lingula.__file__).parents[1])},
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


def test_the_command_as_typed_without_torch(tmp_path: Path) -> None:
    scores, labels = write_scores_and_labels(tmp_path)
    lines = scores.read_text().splitlines()
    lines[-1] = lines[-1].split(",")[0] + ",,,"
    scores.write_text("\n".join(lines) + "\n")
    status, said = typed(
        "calibrate", scores, "--labels", labels, "--method", "auto", "--threshold", "cost=5:1"
    )
    made = tmp_path / "s.calibration.json"
    assert status == 0 and str(made) in said
    assert "Hernia: no positives on dev: scores are left as they are" in said
    assert "mean log loss on dev over 2 classes" in said
    status, said = typed("calibrate", scores, "--apply", made, "--out", tmp_path / "c.parquet")
    assert status == 3 and "c.failed.csv" in said  # one image has no scores
    assert read_scores(tmp_path / "c.parquet").classes == read_scores(scores).classes
    status, said = typed("calibrate", scores, "--apply", made)
    assert status == 2 and "--apply takes SCORES and --out" in said


def test_what_was_fitted_on_another_split_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Five positives on test are not five on dev, nor is a whole table without splits."""
    scores, labels = write_scores_and_labels(tmp_path)
    lines = labels.read_text().splitlines()
    for row in range(121, 126):
        lines[row] = lines[row][:-1] + "1"
    labels.write_text("\n".join(lines) + "\n")
    bare = tmp_path / "bare.csv"
    text = labels.read_text().replace(",dev,", ",").replace(",test,", ",")
    bare.write_text(text.replace("split,", ""))
    for told, where in (
        ({"labels": labels, "split": "test"}, "on test"),
        ({"labels": bare}, "in all rows"),
    ):
        caplog.clear()
        with caplog.at_level("INFO", "lingula"):
            made = lingula.calibrate(scores, out=tmp_path / f"{where}.json", **told)
        hernia = json.loads(made.read_text())["classes"]["Hernia"]
        assert hernia["curve"]["note"].startswith(f"5 positives {where}: pulled to the map")
        said = [r.getMessage() for r in caplog.records if r.levelname == "INFO"]
        assert any(f"mean log loss {where} over 3 classes" in line for line in said)
        assert not any("on dev" in line for line in said)


def test_evaluation_takes_the_thresholds_that_were_saved(tmp_path: Path) -> None:
    """Those of raw scores for raw ones, of calibrated ones for calibrated ones: the same calls."""
    scores, labels = write_scores_and_labels(tmp_path)
    rules = ("max-f1", "specificity=1")
    made = lingula.calibrate(scores, labels=labels, thresholds=rules)
    after = lingula.apply_calibration(made, scores, out=tmp_path / "c.csv")
    saved = json.loads(made.read_text())["classes"]
    for rule in rules:
        rows = {}
        for path, scale in ((scores, "score"), (after, "calibrated")):
            found = lingula.evaluate(path, labels=labels, split="test", threshold=f"{made}#{rule}")
            rows[scale] = to_json(found)["classes"]
            for name, item in saved.items():
                assert rows[scale][name]["threshold"] == item["thresholds"][rule][scale]
            assert found.by_default == ()
        for name in saved:
            assert rows["score"][name]["F1"] == rows["calibrated"][name]["F1"]
    for text, message in (
        (str(made), "thresholds by several rules: max-f1, specificity=1. Say which"),
        (f"{made}#max-f2", "no thresholds 'max-f2'.* Did you mean 'max-f1'"),
    ):
        with pytest.raises(InputError, match=message):
            lingula.evaluate(scores, labels=labels, threshold=text)
    alone = lingula.calibrate(scores, labels=labels, out=tmp_path / "one.json")
    value = to_json(lingula.evaluate(scores, labels=labels, threshold=alone))["classes"]
    assert value["Edema"]["threshold"] == saved["Edema"]["thresholds"]["max-f1"]["score"]
    with pytest.raises(InputError, match="calibrated by another file"):
        lingula.evaluate(after, labels=labels, threshold=alone)


def test_real_scores_are_better_calibrated_on_patients_not_fitted_on(
    real_data: Path, tmp_path: Path
) -> None:
    folder = real_data / "nih-scores"
    raw, labels = folder / "resnet18_seed0.parquet", folder / "labels.parquet"
    made = lingula.calibrate(raw, labels=labels, out=tmp_path / "c.json")
    after = lingula.apply_calibration(made, raw, out=tmp_path / "s.parquet")
    found = {
        name: lingula.evaluate(path, labels=labels, split="test")
        for name, path in (("raw", raw), ("after", after))
    }
    # Platt maps do not touch the ranking.
    np.testing.assert_array_equal(found["raw"].metrics.ap, found["after"].metrics.ap)
    np.testing.assert_array_equal(found["raw"].metrics.auroc, found["after"].metrics.auroc)
    table = read_table(labels)
    part = subset(table, rows_of(table, "test"))
    errors = []
    for path in (raw, after):
        scores = read_scores(path)
        values = scores.probabilities[align_rows(scores, part.images)]
        columns = [part.space.index(name) for name in scores.classes]
        curves = reliability_curves(values, targets(part)[0][:, columns], draws=0)
        errors.append(np.mean([curve.error for curve in curves]))
    assert errors[1] < 0.6 * errors[0]
