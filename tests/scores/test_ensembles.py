"""Ensembles: what is chosen on dev, what is applied, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import with_labels, write
from lingula.scores import ensembles, metrics
from lingula.scores.members import failures, same_rows
from lingula.scores.predictions import Predictions, failed, read_scores, write_scores
from lingula.settings.config import vary, write_config
from lingula.settings.recipes import recipe
from lingula.system.errors import InputError
from lingula.verbs.ensemble import ensemble, ensemble_apply
from lingula.verbs.evaluate import evaluate


def scores(images: str, classes: str, rows: object, origin: str = "scores") -> Predictions:
    return Predictions(
        tuple(classes.split(",")), tuple(images), np.array(rows, float), None, None, None, origin
    )


def three(seed: int) -> dict[str, Predictions]:
    random = np.random.default_rng(seed)
    return {name: scores("abcdefgh", "Edema,Mass", random.random((8, 2)), name) for name in "ABC"}


@given(st.integers(0, 200))
@settings(max_examples=20, deadline=None)
def test_the_order_of_rows_columns_and_members_changes_nothing(seed: int) -> None:
    members = three(seed)
    random = np.random.default_rng(seed)
    shuffled = {}
    for name in random.permutation(list(members)):
        rows, columns = random.permutation(8), random.permutation(2)
        member = members[str(name)]
        shuffled[str(name)] = Predictions(
            tuple(member.classes[k] for k in columns),
            tuple(member.images[i] for i in rows),
            member.probabilities[rows][:, columns],
        )
    made = ensembles.model_wise(members)
    plain = ensembles.apply(made, members)
    again = ensembles.apply(made, shuffled)
    assert again.classes == plain.classes
    place = [again.images.index(name) for name in plain.images]
    np.testing.assert_array_equal(again.probabilities[place], plain.probabilities)
    mean = np.mean([member.probabilities for member in members.values()], axis=0)
    np.testing.assert_allclose(plain.probabilities, mean, rtol=1e-12)


@given(st.integers(0, 200))
@settings(max_examples=20, deadline=None)
def test_one_of_each_class_is_at_least_as_good_on_dev_as_any_member(seed: int) -> None:
    members = three(seed)
    targets = (np.random.default_rng(seed).random((8, 2)) < 0.5).astype(np.float32)
    targets[0] = 1
    made = ensembles.class_wise(with_labels(members, targets), top_k=1)
    found = metrics.measure_classes(ensembles.apply(made, members).probabilities, targets).ap
    best = np.max(
        [metrics.measure_classes(m.probabilities, targets).ap for m in members.values()], 0
    )
    np.testing.assert_allclose(found, best)


def test_more_members_asked_for_than_there_are_is_the_plain_mean() -> None:
    members = three(0)
    sample = with_labels(members, np.eye(8, 2))
    made = ensembles.class_wise(sample, top_k=9)
    np.testing.assert_array_equal(
        ensembles.apply(made, members).probabilities,
        ensembles.apply(ensembles.model_wise(members), members).probabilities,
    )
    with pytest.raises(InputError, match="at least 1, not 0"):
        ensembles.class_wise(sample, top_k=0)


def test_images_that_failed_in_one_member_choose_for_none() -> None:
    a = scores("wxyz", "Edema", [[0.9], [0.2], [0.3], [np.nan]], "A")
    b = scores("wxyz", "Edema", [[0.1], [0.2], [0.3], [0.9]], "B")
    made = ensembles.class_wise(with_labels({"A": a, "B": b}, [[1], [0], [0], [1]]), top_k=1)
    assert made.weights["Edema"] == {"A": 1.0}
    assert made.dev_ap["Edema"] == {"A": 1.0, "B": pytest.approx(1 / 3)}
    both = ensembles.model_wise({"A": a, "B": b})
    assert failed(ensembles.apply(both, {"A": a, "B": b})).tolist() == [False] * 3 + [True]
    assert failures({"A": a, "B": b}) == {"z": ("A",)}
    alone = ensembles.apply(ensembles.model_wise({"A": a}), {"A": a})
    np.testing.assert_array_equal(alone.probabilities, a.probabilities)


def test_class_wise_choice_ties_and_classes_without_positives() -> None:
    a = scores(
        "wxyz", "C,D,E", [[0.1, 0.9, 0.9], [0.2, 0.1, 0.8], [0.3, 0.2, 0.1], [0.4, 0.3, 0.2]]
    )
    b = scores(
        "wxyz", "C,D,E", [[0.4, 0.8, 0.1], [0.3, 0.2, 0.2], [0.2, 0.1, 0.9], [0.1, 0.0, 0.8]]
    )
    targets = [[0, 1, 1], [0, 0, 1], [0, 0, 0], [0, 0, 0]]
    made = ensembles.class_wise(with_labels({"A": a, "B": b}, targets), top_k=1)
    assert made.weights["C"] == {"A": 0.5, "B": 0.5}  # no positives: the plain mean
    assert made.weights["D"] == {"A": 1.0}  # a tie: the first named
    assert made.weights["E"] == {"A": 1.0}
    again = ensembles.from_json(json.loads(json.dumps(ensembles.to_json(made))), "x")
    assert again == made


def test_wrong_classes_rows_and_files_are_named() -> None:
    a = scores("ab", "Edema,Mass", [[0.1, 0.2], [0.3, 0.4]], "a.csv")
    fewer = scores("ab", "Edema", [[0.1], [0.3]], "few.csv")
    made = ensembles.model_wise({"A": a})
    with pytest.raises(InputError, match=r"few\.csv has no scores of Mass"):
        ensembles.apply(made, {"A": fewer})
    with pytest.raises(InputError, match=r"a\.csv has classes that the ensemble was not made for"):
        ensembles.apply(ensembles.model_wise({"A": fewer}), {"A": a})
    with pytest.raises(InputError, match=r"a\.csv has classes that few\.csv lacks: Mass"):
        same_rows({"A": fewer, "B": a})
    with pytest.raises(InputError, match="missing: A"):
        ensembles.apply(made, {})
    with pytest.raises(InputError, match="unknown: B"):
        ensembles.apply(made, {"A": a, "B": a})
    with pytest.raises(InputError, match="at least one member"):
        ensembles.model_wise({})
    turned = scores("ba", "Mass,Edema", [[0.4, 0.3], [0.2, 0.1]], "b.csv")
    sample = with_labels({"A": a, "B": turned}, np.eye(2))
    np.testing.assert_array_equal(sample.scores[0], sample.scores[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2"),
        ({"weights": {"Edema": {"B": 1.0}}}, "damaged"),
        ({"weights": {"Edema": {"A": 0.4}}}, "damaged"),
        ({"weights": [1]}, "not an ensemble"),
        ({"members": None}, "not an ensemble"),
    ],
)
def test_damaged_ensembles_are_refused(change: dict[str, object], message: str) -> None:
    value = ensembles.to_json(ensembles.model_wise({"A": scores("a", "Edema", [[0.1]])}))
    assert ensembles.from_json(value, "x").members == ("A",)
    with pytest.raises(InputError, match=message):
        ensembles.from_json({**value, **change}, "x")


LABELS = "image,patient,split,Edema,Mass\na,1,dev,1,0\nb,2,dev,0,1\nc,3,test,1,0\nd,4,test,0,1\n"


def make_run(folder: Path, dev: str, test: str, table: Path) -> Path:
    write(folder / "scores" / "dev.csv", f"image,Edema,Mass\n{dev}\n")
    write(folder / "scores" / "test.csv", f"image,Mass,Edema\n{test}\n")
    write_config(vary(recipe("smoke"), data__table=str(table)), folder / "config.yaml")
    return folder


@pytest.fixture
def two_runs(tmp_path: Path) -> list[Path]:
    table = write(tmp_path / "labels.csv", LABELS)
    return [
        make_run(tmp_path / "one", "a,.9,.4\nb,.1,.3", "d,.1,.2\nc,.3,.4", table),
        make_run(tmp_path / "two", "b,.9,.4\na,.1,.3", "c,.5,.6\nd,.7,.8", table),
    ]


def test_runs_choose_on_their_own_table(two_runs: list[Path], tmp_path: Path) -> None:
    out = ensemble("class-wise", two_runs, out=tmp_path / "out", top_k=1)
    found = read_scores(out / "scores" / "test.csv")
    assert found.images == ("d", "c") and found.classes == ("Edema", "Mass")
    assert found.probabilities.tolist() == [[0.2, 0.7], [0.4, 0.5]]  # Edema: one, Mass: two
    assert read_scores(out / "scores" / "dev.csv").images == ("a", "b")
    with (out / "choices.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(r["class"], r["member"], r["dev_AP"], r["weight"]) for r in rows][:2] == [
        ("Edema", "one", "1.0", "1.0"),
        ("Edema", "two", "0.5", "0"),
    ]
    made = json.loads((out / "ensemble.json").read_text())
    assert made["format"] == 1 and made["weights"]["Mass"] == {"two": 1.0}


def test_test_labels_choose_nothing(two_runs: list[Path], tmp_path: Path) -> None:
    first = ensemble("class-wise", two_runs, out=tmp_path / "first", top_k=1)
    turned = LABELS.replace("test,1,0", "test,x,x").replace("test,0,1", "test,1,0")
    turned = write(tmp_path / "turned.csv", turned.replace("x", "0"))
    second = ensemble("class-wise", two_runs, labels=turned, out=tmp_path / "second", top_k=1)
    for name in ("choices.csv", "scores/test.csv"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_again_is_done_and_other_settings_are_shown(two_runs: list[Path], tmp_path: Path) -> None:
    out = ensemble("class-wise", two_runs, out=tmp_path / "out", top_k=1)
    stamp = (out / "scores" / "test.csv").stat().st_mtime_ns
    assert ensemble("class-wise", two_runs, out=out, top_k=1) == out
    assert (out / "scores" / "test.csv").stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match="rule: 'class-wise' there, 'model-wise' now"):
        ensemble("model-wise", two_runs, out=out)
    with pytest.raises(InputError, match="top_k: 1 there, 2 now"):
        ensemble("class-wise", two_runs, out=out, top_k=2)
    ensemble("class-wise", two_runs, out=out, top_k=2, overwrite=True)
    assert (tmp_path / "out.old-1" / "ensemble.json").is_file()
    (out / "ensemble.json").unlink()  # as if it had been interrupted
    ensemble("class-wise", two_runs, out=out, top_k=1)
    assert json.loads((out / "ensemble.json").read_text())["weights"]["Mass"] == {"two": 1.0}


def test_nothing_is_set_aside_for_wrong_input(two_runs: list[Path], tmp_path: Path) -> None:
    out = ensemble("model-wise", two_runs, out=tmp_path / "out")
    write(two_runs[1] / "scores" / "dev.csv", "image,Edema,Mass\na,.9,.4\n")
    with pytest.raises(InputError, match="no scores for b"):
        ensemble("model-wise", two_runs, out=out, overwrite=True)
    assert (out / "ensemble.json").is_file() and not (tmp_path / "out.old-1").exists()


def test_wrong_members_and_labels(two_runs: list[Path], tmp_path: Path) -> None:
    dev, test = (two_runs[0] / "scores" / f"{name}.csv" for name in ("dev", "test"))
    out = tmp_path / "out"
    with pytest.raises(InputError, match="Did you mean 'class-wise'"):
        ensemble("classwise", two_runs, out=out)
    with pytest.raises(InputError, match="same name: one"):
        ensemble("model-wise", two_runs, members=[("one", dev, test)], out=out)
    with pytest.raises(InputError, match=r"There is no folder .*three"):
        ensemble("model-wise", [tmp_path / "three"], out=out)
    with pytest.raises(InputError, match="give --labels TABLE"):
        ensemble("class-wise", members=[("m", dev, test)], out=out)
    with pytest.raises(InputError, match="no table"):
        ensemble("class-wise", two_runs, labels=tmp_path / "no.csv", out=out)
    with pytest.raises(InputError, match="no rows with split 'train'"):
        ensemble("class-wise", two_runs, split="train", out=out)
    fewer = write(tmp_path / "fewer.csv", "image,split,Edema\na,dev,1\nb,dev,0\n")
    with pytest.raises(InputError, match=r"fewer\.csv has no labels of Mass"):
        ensemble("class-wise", two_runs, labels=fewer, out=out)
    assert not out.exists()
    (tmp_path / "labels.csv").unlink()
    with pytest.raises(InputError, match=r"labels\.csv, is not there"):
        ensemble("class-wise", two_runs, out=out)
    assert ensemble("model-wise", two_runs, out=out) == out  # needs no labels
    write(tmp_path / "mine" / "notes.txt", "mine")
    with pytest.raises(InputError, match="was not made by this command"):
        ensemble("model-wise", two_runs, out=tmp_path / "mine")


def test_apply_writes_one_file_and_changes_no_other(two_runs: list[Path], tmp_path: Path) -> None:
    out = ensemble("class-wise", two_runs, out=tmp_path / "out", top_k=1)
    members = [(run.name, run / "scores" / "test.csv") for run in reversed(two_runs)]
    target = ensemble_apply(out / "ensemble.json", members, out=tmp_path / "new.csv")
    assert target.read_bytes() == (out / "scores" / "test.csv").read_bytes()
    assert ensemble_apply(out / "ensemble.json", members, out=target) == target
    write(target, "mine")
    with pytest.raises(InputError, match="there already"):
        ensemble_apply(out / "ensemble.json", members, out=target)
    ensemble_apply(out / "ensemble.json", members, out=target, overwrite=True)
    assert (tmp_path / "new.csv.old-1").read_text() == "mine"
    with pytest.raises(InputError, match="same name"):
        ensemble_apply(out / "ensemble.json", [members[0]] * 2, out=tmp_path / "x.csv")
    with pytest.raises(InputError, match="is damaged"):
        ensemble_apply(write(tmp_path / "e.json", "{"), members, out=tmp_path / "x.csv")


def test_failed_images_are_named_beside_the_scores(two_runs: list[Path], tmp_path: Path) -> None:
    write(two_runs[1] / "scores" / "test.csv", "image,Edema,Mass\nc,,\nd,.5,.5\n")
    out = ensemble("model-wise", two_runs, out=tmp_path / "out")
    found = read_scores(out / "scores" / "test.csv")
    assert failed(found).tolist() == [False, True]
    named = (out / "scores" / "test.failed.csv").read_text()
    assert named == "image,reason\nc,no scores of two\n"
    assert not (out / "scores" / "dev.failed.csv").exists()


def test_parquet_members_and_result(two_runs: list[Path], tmp_path: Path) -> None:
    out = ensemble("model-wise", two_runs, out=tmp_path / "out")
    members = []
    for run in two_runs:
        path = tmp_path / f"{run.name}.parquet"
        write_scores(read_scores(run / "scores" / "test.csv"), path)
        members.append((run.name, path))
    target = ensemble_apply(out / "ensemble.json", members, out=tmp_path / "new.parquet")
    expected = read_scores(out / "scores" / "test.csv")
    np.testing.assert_array_equal(read_scores(target).probabilities, expected.probabilities)


def test_real_scores_give_the_known_values(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "nih-scores"
    split = pl.read_parquet(folder / "labels.parquet").select("image", "split")
    members = []
    for path in sorted(folder.glob("*_seed?.parquet")):
        frame = pl.read_parquet(path).join(split, on="image")
        parts = [tmp_path / f"{path.stem}_{s}.parquet" for s in ("dev", "test")]
        for part, name in zip(parts, ("dev", "test"), strict=True):
            frame.filter(pl.col("split") == name).drop("split").write_parquet(part)
        members.append((path.stem, *parts))
    labels = folder / "labels.parquet"
    for rule, right in (("model-wise", 0.1762), ("class-wise", 0.1808)):
        out = ensemble(rule, members=members, labels=labels, out=tmp_path / rule)
        found = evaluate(out / "scores" / "test.csv", labels=labels, split="test")
        assert found.metrics.mAP == pytest.approx(right, abs=5e-5)
