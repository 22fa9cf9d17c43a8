"""The guarded ensemble: what pulls its weights, what it may see, and what it says of itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from builders import with_labels
from lingula.cli import app
from lingula.scores import ensembles, guarded, metrics
from lingula.scores.members import Sample, join_members
from lingula.scores.predictions import Predictions, align_rows, read_scores, write_scores
from lingula.settings.config import Data
from lingula.settings.label_space import label_space
from lingula.system.errors import InputError
from lingula.tables.reading import read_table
from lingula.tables.table import Table, rows_of, subset, targets
from lingula.verbs.ensemble import ensemble, ensemble_apply


def drawn(
    rows: int = 240,
    positives: tuple[int, ...] = (60, 30, 8),
    skills: tuple[tuple[float, ...], ...] = ((1.5, 1.0, 0.5), (1.0, 1.5, 0.5), (0.2, 0.2, 0.2)),
    seed: int = 0,
    images_a_patient: int = 2,
) -> Sample:
    """A sample whose members (M) tell the classes (K) apart by `skills` standard deviations."""
    random = np.random.default_rng(seed)
    positive = np.zeros((rows, len(positives)), dtype=bool)
    for k, many in enumerate(positives):
        positive[random.permutation(rows)[:many], k] = True
    noise = random.normal(size=(len(skills), rows, len(positives)))
    logits = noise + np.array(skills)[:, None, :] * positive[None]
    units = tuple(f"p{row // images_a_patient}" for row in range(rows))
    names = (tuple("ABCDEFGH"[: len(skills)]), ("Edema", "Mass", "Hernia")[: len(positives)])
    return Sample(*names, 1 / (1 + np.exp(-logits)), positive, np.ones_like(positive), units)


@given(st.integers(0, 10_000), st.integers(1, 30), st.sampled_from([1, 3]))
@settings(max_examples=40, deadline=None)
def test_many_precisions_at_once_are_each_the_exact_one(seed: int, n: int, digits: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.random((4, n)).round(digits)  # one digit: many ties
    positive = random.random(n) < 0.4
    positive[random.integers(n)] = True
    found = ensembles.step_precisions(scores, positive)
    for row, ap in zip(scores, found, strict=True):
        assert ap == pytest.approx(average_precision_score(positive, row), abs=1e-12)
        assert ap == pytest.approx(metrics.average_precision(row, positive), abs=1e-12)


def test_weights_are_shares_and_rows_and_members_have_no_order() -> None:
    sample = drawn()
    weights = ensembles.guarded_weights(sample)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(axis=0), 1)
    order = np.random.default_rng(1).permutation(len(sample.units))
    np.testing.assert_array_equal(ensembles.guarded_weights(sample.select(order)), weights)
    turned = replace(sample, scores=sample.scores[[2, 0, 1]])
    np.testing.assert_allclose(ensembles.guarded_weights(turned), weights[[2, 0, 1]])


def test_few_positives_pull_to_the_common_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = drawn()
    held = ensembles.guarded_weights(sample)
    monkeypatch.setattr(ensembles, "SHRINK", 1e-9)
    own = ensembles.guarded_weights(sample)
    monkeypatch.setattr(ensembles, "SHRINK", 1e12)
    common = ensembles.guarded_weights(sample)
    np.testing.assert_allclose(common, common[:, :1].repeat(3, axis=1), atol=1e-9)
    assert np.abs(own - common).max() > 0.1
    for k, n in enumerate((60, 30, 8)):
        trust = n / (n + 300)
        np.testing.assert_allclose(
            held[:, k], trust * own[:, k] + (1 - trust) * common[:, k], atol=1e-8
        )


def test_a_class_without_positives_has_the_common_choice_and_none_at_all_the_mean(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sample = drawn(positives=(60, 30, 0))
    weights = ensembles.guarded_weights(sample)
    without = replace(
        sample,
        classes=sample.classes[:2],
        scores=sample.scores[:, :, :2],
        positive=sample.positive[:, :2],
        mask=sample.mask[:, :2],
    )
    alone = ensembles.guarded_weights(without)
    np.testing.assert_array_equal(weights[:, :2], alone)
    nothing = replace(sample, positive=np.zeros_like(sample.positive))
    np.testing.assert_allclose(ensembles.guarded_weights(nothing), 1 / 3)
    monkeypatch.setattr(ensembles, "SHRINK", 1e15)
    np.testing.assert_allclose(weights[:, 2], ensembles.guarded_weights(without)[:, 0], atol=1e-9)


def test_masked_cells_are_as_if_their_rows_were_not_there() -> None:
    sample = drawn(positives=(60,), skills=((1.5,), (1.0,), (0.2,)))
    known = np.random.default_rng(3).random(len(sample.units)) < 0.6
    masked = replace(sample, mask=known[:, None], scores=np.where(known[:, None], sample.scores, 1))
    fewer = sample.select(known)
    np.testing.assert_array_equal(
        ensembles.guarded_weights(masked), ensembles.guarded_weights(fewer)
    )


def test_plain_rules_are_those_of_the_ensembles_module() -> None:
    sample = drawn()
    images = tuple(map(str, range(len(sample.units))))
    members = {
        name: Predictions(("Edema", "Mass", "Hernia"), images, scores)
        for name, scores in zip("ABC", sample.scores, strict=True)
    }
    rules = ensembles.plain_rules(sample)
    labels = sample.positive.astype(np.float32)
    for top in (1, 2):
        made = ensembles.class_wise(sample, top)
        np.testing.assert_allclose(
            ensembles.weighted_mean(rules[f"class-wise top-{top}"], sample.scores),
            ensembles.apply(made, members).probabilities,
        )
    best = max("ABC", key=lambda n: metrics.measure_classes(members[n].probabilities, labels).mAP)
    np.testing.assert_array_equal(rules["global top-1"][:, 0], [n == best for n in "ABC"])
    np.testing.assert_allclose(rules["model-wise"], 1 / 3)
    assert "global top-3" not in rules  # of three members that is the plain mean


def test_no_row_is_scored_by_a_choice_that_saw_its_patient() -> None:
    sample = drawn(rows=60, positives=(20, 10, 5))
    seen: list[set[str]] = []

    def spy(part: Sample) -> dict[str, np.ndarray]:
        seen.append(set(part.units))
        # A weight that tells which fold it was made in.
        return {"spy": np.full((3, 3), float(len(seen)))}

    plain = replace(sample, scores=np.full_like(sample.scores, 1 / 30))
    fold = (10 * guarded.cross_fit(plain, spy)["spy"]).round().astype(int)
    assert len(seen) == 5 and set(fold.ravel()) == {1, 2, 3, 4, 5}
    for unit, number in zip(sample.units, fold[:, 0], strict=True):
        assert unit not in seen[number - 1]


def test_noise_gains_on_dev_and_nothing_on_patients_not_seen() -> None:
    none = tuple((0.0,) * 3 for _ in range(8))
    gains = []
    for seed in range(6):
        found = guarded.measure_guard(drawn(skills=none, seed=seed), draws=100)
        assert found.dev[0] > found.crossfitted[0] + 0.01  # luck, and it is told from worth
        gains.append(found.crossfitted[0] - found.crossfitted[1])
    assert np.mean(gains) < 0.01


def test_members_that_are_good_at_a_class_are_found() -> None:
    skills = ((2.0, 0.3, 1.0), (0.3, 2.0, 1.0), (0.0, 0.0, 0.0))
    sample = drawn(rows=2000, positives=(600, 600, 20), skills=skills)
    weights = ensembles.guarded_weights(sample)
    assert weights[0, 0] > 0.6 and weights[1, 1] > 0.6
    assert (weights[2] < 0.1).all()
    found = guarded.measure_guard(sample, draws=200)
    assert found.baseline == "class-wise top-1"
    assert found.crossfitted[0] > found.rules["model-wise"] + 0.05


def test_the_expectation_covers_new_patients_and_widens_for_fewer_of_them() -> None:
    inside, reps = 0, 25
    widths = []
    for seed in range(reps):
        every = drawn(rows=480, positives=(120, 60, 24), seed=seed)
        dev, test = (every.select(np.arange(240) + start) for start in (0, 240))
        found = guarded.measure_guard(dev, test_units=120, draws=150, seed=seed)
        assert found.expected is not None
        low, high = found.expected
        weights = ensembles.guarded_weights(dev)
        inside += (
            low <= guarded.mean_ap(ensembles.weighted_mean(weights, test.scores), test) <= high
        )
        if seed < 3:
            small = guarded.measure_guard(dev, test_units=30, draws=150, seed=seed).expected
            assert small is not None
            widths.append((small[1] - small[0]) / (high - low))
    assert inside >= 21  # of 25 at 95 %, fewer have a chance of 1 in 100
    assert min(widths) > 1.2


def test_the_same_seed_says_the_same_and_patients_are_needed() -> None:
    sample = drawn(rows=100)
    assert guarded.measure_guard(sample, draws=50) == guarded.measure_guard(sample, draws=50)
    one = Predictions(("Edema",), ("a", "b"), np.array([[0.1], [0.2]]))
    assert len(set(with_labels({"A": one}, [[1], [1]]).units)) == 2
    table = Table(("a", "b"), Path(), label_space(("Edema",)), np.ones((2, 1), np.float32))
    assert len(set(guarded.join_patients({"A": one}, table, Data()).units)) == 2
    with pytest.raises(InputError, match="at least two patients"):
        guarded.join_patients({"A": one}, replace(table, patients=("p", "p")), Data())


def write_members(folder: Path, *, rows: int = 160) -> tuple[list[tuple[str, Path, Path]], Path]:
    """Three members' dev and test files, class columns in another order in each, and a table."""
    sample = drawn(rows=rows, positives=(50, 25, 0))
    classes = ("Edema", "Mass", "Hernia")
    images = tuple(f"{row:03}.png" for row in range(rows))
    members = []
    for number, (name, scores) in enumerate(zip("ABC", sample.scores, strict=True)):
        paths = []
        for split, part in (("dev", slice(0, rows // 2)), ("test", slice(rows // 2, rows))):
            order = np.random.default_rng((number, split == "dev")).permutation(3)
            found = Predictions(
                tuple(classes[k] for k in order), images[part], scores[part][:, order]
            )
            paths.append(folder / f"{name}-{split}.csv")
            write_scores(found, paths[-1])
        members.append((name, paths[0], paths[1]))
    lines = ["image,patient,split," + ",".join(classes)]
    for row, image in enumerate(images):
        split = "dev" if row < rows // 2 else "test"
        cells = ",".join(str(int(cell)) for cell in sample.positive[row])
        lines.append(f"{image},{sample.units[row]},{split},{cells}")
    table = folder / "labels.csv"
    table.write_text("\n".join(lines) + "\n")
    return members, table


def test_the_verb_writes_weights_scores_and_what_they_are_worth(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members, table = write_members(tmp_path)
    with caplog.at_level("INFO", logger="lingula"):
        out = ensemble("guarded", members=members, labels=table, out=tmp_path / "out", draws=100)
    value = json.loads((out / "ensemble.json").read_text())
    guard = value["guard"]
    # What is measured here with other functions is what the file says.
    labels = read_table(table)
    for split, where in (("dev", guard["dev"]), ("test", guard["test"])):
        part = subset(labels, rows_of(labels, split))
        mixed = read_scores(out / "scores" / f"{split}.csv")
        columns = [part.space.index(name) for name in mixed.classes]
        at = align_rows(mixed, part.images)
        found = metrics.measure_classes(mixed.probabilities[at], targets(part)[0][:, columns]).mAP
        assert where["guarded"] == pytest.approx(found, abs=1e-9)
        assert where["gain"] == pytest.approx(where["guarded"] - where["baseline"])
    low, high = guard["test"]["gain_ci"]
    assert low <= guard["test"]["gain"] <= high
    low, high = guard["expected_test_mAP"]["interval"]
    assert 0 <= low < guard["crossfitted"]["guarded"] < high <= 1
    assert guard["crossfitted"]["patients"] == 40 and guard["expected_test_mAP"]["patients"] == 40
    assert f"best plain rule by dev alone: {guard['baseline']}" in caplog.text
    assert "expected test mAP" in caplog.text
    assert value["weights"]["Hernia"].keys() >= {"A"} and value["dev_ap"]["Hernia"]["A"] is None
    target = ensemble_apply(
        out / "ensemble.json", [(n, t) for n, _, t in reversed(members)], out=tmp_path / "new.csv"
    )
    again = read_scores(target)
    first = read_scores(out / "scores" / "test.csv")
    np.testing.assert_allclose(
        again.probabilities[align_rows(again, first.images)], first.probabilities, rtol=1e-12
    )


def test_labels_of_test_change_nothing_but_the_report(tmp_path: Path) -> None:
    members, table = write_members(tmp_path)
    turned = tmp_path / "turned.csv"
    lines = table.read_text().splitlines()
    flip = str.maketrans("01", "10")
    kept = [
        line
        if ",test," not in line
        else line[: line.index(",test,")] + ",test," + line.split(",test,")[1].translate(flip)
        for line in lines
    ]
    turned.write_text("\n".join(kept) + "\n")
    without = tmp_path / "without.csv"
    without.write_text("\n".join(line for line in lines if ",test," not in line) + "\n")
    made = {
        name: ensemble("guarded", members=members, labels=path, out=tmp_path / name, draws=60)
        for name, path in (("first", table), ("second", turned), ("third", without))
    }
    guards = {}
    for name, folder in made.items():
        guards[name] = json.loads((folder / "ensemble.json").read_text())["guard"]
        for file in ("choices.csv", "scores/dev.csv", "scores/test.csv"):
            assert (folder / file).read_bytes() == (made["first"] / file).read_bytes()
    assert guards["first"].pop("test") != guards["second"].pop("test")
    assert guards["first"] == guards["second"] and "test" not in guards["third"]
    assert guards["third"]["crossfitted"] == guards["first"]["crossfitted"]


def test_again_is_done_and_wrong_input_is_named(tmp_path: Path) -> None:
    members, table = write_members(tmp_path)
    out = ensemble("guarded", members=members, labels=table, out=tmp_path / "out", draws=20)
    stamp = (out / "ensemble.json").stat().st_mtime_ns
    ensemble("guarded", members=members, labels=table, out=out, draws=20)
    assert (out / "ensemble.json").stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match="seed: 0 there, 1 now"):
        ensemble("guarded", members=members, labels=table, out=out, draws=20, seed=1)
    with pytest.raises(InputError, match="guarded chooses members on dev labels: give --labels"):
        ensemble("guarded", members=members, out=tmp_path / "x")
    with pytest.raises(InputError, match="no rows with split 'train'"):
        ensemble("guarded", members=members, labels=table, split="train", out=tmp_path / "x")
    with pytest.raises(InputError, match=r"There is no rule 'garded'\. Did you mean 'guarded'"):
        ensemble("garded", members=members, labels=table, out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_an_image_that_failed_in_a_member_counts_for_none(tmp_path: Path) -> None:
    members, table = write_members(tmp_path)
    whole = ensemble("guarded", members=members, labels=table, out=tmp_path / "whole", draws=20)
    scores = read_scores(members[1][1])
    values = scores.probabilities.copy()
    values[:30] = np.nan
    write_scores(replace(scores, probabilities=values), members[1][1])
    out = ensemble("guarded", members=members, labels=table, out=tmp_path / "out", draws=20)
    guards = [json.loads((f / "ensemble.json").read_text())["guard"] for f in (whole, out)]
    assert [guard["crossfitted"]["patients"] for guard in guards] == [40, 25]
    assert (out / "scores" / "dev.failed.csv").read_text().count("no scores of B") == 30


def test_dev_without_any_positive_is_the_plain_mean_and_says_nothing(tmp_path: Path) -> None:
    members, table = write_members(tmp_path)
    lines = [
        line if ",dev," not in line else line[: line.index(",dev,")] + ",dev,0,0,0"
        for line in table.read_text().splitlines()
    ]
    table.write_text("\n".join(lines) + "\n")
    out = ensemble("guarded", members=members, labels=table, out=tmp_path / "out", draws=20)
    value = json.loads((out / "ensemble.json").read_text())
    for shares in value["weights"].values():
        assert shares == pytest.approx(dict.fromkeys("ABC", 1 / 3))
    assert value["guard"]["crossfitted"]["guarded"] is None
    assert value["guard"]["expected_test_mAP"]["interval"] is None


def test_one_member_is_itself(tmp_path: Path) -> None:
    members, table = write_members(tmp_path)
    out = ensemble("guarded", members=members[:1], labels=table, out=tmp_path / "out", draws=20)
    value = json.loads((out / "ensemble.json").read_text())
    assert set(map(str, value["weights"].values())) == {"{'A': 1.0}"}
    assert value["guard"]["baseline"] == "model-wise" and value["guard"]["dev"]["gain"] == 0


def test_the_command_as_typed(tmp_path: Path) -> None:
    members, table = write_members(tmp_path)
    words = ["ensemble", "guarded", "--labels", str(table), "--out", str(tmp_path / "out")]
    for name, dev, test in members:
        words += ["--member", name, str(dev), str(test)]
    done = CliRunner().invoke(app, [*words, "--ci", "30", "--seed", "2"])
    assert done.exit_code == 0, done.output
    guard = json.loads((tmp_path / "out" / "ensemble.json").read_text())["guard"]
    assert (guard["draws"], guard["seed"]) == (30, 2)


def real_samples(folder: Path) -> tuple[Sample, Sample]:
    """Dev and test of 16 real models on 14 findings."""
    table = read_table(folder / "labels.parquet")
    members = {path.stem: read_scores(path) for path in sorted(folder.glob("*_seed?.parquet"))}
    dev, test = (subset(table, rows_of(table, split)) for split in ("dev", "test"))
    return join_members(members, dev, Data()), join_members(members, test, Data())


def test_real_scores_give_the_known_values(real_data: Path) -> None:
    dev, test = real_samples(real_data / "nih-scores")
    rules = ensembles.plain_rules(dev)

    def on_test(weights: np.ndarray) -> float:
        return guarded.mean_ap(ensembles.weighted_mean(weights, test.scores), test)

    known = {
        "model-wise": 0.1762,
        "global top-3": 0.1826,
        "global top-4": 0.1838,
        "class-wise top-3": 0.1808,
    }
    assert {name: round(on_test(rules[name]), 4) for name in known} == known
    assert on_test(ensembles.guarded_weights(dev)) >= 0.188
