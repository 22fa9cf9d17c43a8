"""Scores files, evaluation and ensembles: bound by name and id, never by position."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from builders import with_labels
from lingula.scores import ensembles
from lingula.scores.members import same_rows
from lingula.scores.predictions import Predictions, failed, read_scores, write_scores
from lingula.scores.results import to_json, to_text
from lingula.system.errors import InputError
from lingula.verbs.ensemble import ensemble, ensemble_apply
from lingula.verbs.evaluate import evaluate


def scores(images: str, classes: str, rows: list[list[float]]) -> Predictions:
    return Predictions(tuple(classes.split(",")), tuple(images), np.array(rows, float))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_files_keep_every_digit(tmp_path: Path) -> None:
    rows = [[0.12345612], [0.12345638], [0.5000001], [0.5000004], [1e-7], [np.nan]]
    first = scores("abcdef", "Edema", rows)
    for name in ("s.csv", "s.parquet"):
        write_scores(first, tmp_path / name)
        again = read_scores(tmp_path / name)
        assert (again.probabilities[:5] == first.probabilities[:5]).all()
        assert failed(again).tolist() == [False] * 5 + [True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,Edema\na,1.5\n", "image 'a', class 'Edema'"),
        ("image,Edema\na,x\n", "image 'a', class 'Edema'"),
        ("image,Edema,Mass\na,0.5,\n", "all its scores or"),
        ("image,Edema\na,0.5\na,0.6\n", "more than once: a"),
        ("name,Edema\na,0.5\n", "needs an `image`"),
        ("image,Effusion,Pleural Effusion\na,0.5,0.5\n", "one class"),
        ("image;Edema\na;1,5\n", "image 'a', class 'Edema' has 1.5"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_scores(write(tmp_path / "s.csv", text))


LABELS = "image,patient,split,Edema,Mass\na,1,test,1,0\nb,2,test,0,0\nc,3,test,1,0\n"


def test_undefined_classes_are_null(tmp_path: Path) -> None:
    s = write(tmp_path / "s.csv", "image,Mass,Edema\nc,.4,.8\na,.2,.9\nb,.3,.1\n")
    result = evaluate(s, labels=write(tmp_path / "t.csv", LABELS), split="test", ci=50)
    value = to_json(result)
    assert value["mAP"] == 1 and value["undefined"] == ["Mass"] and value["n_classes"] == 1
    assert value["classes"]["Mass"]["AP"] is None and value["classes"]["Mass"]["AP_ci"] is None
    assert value["classes"]["Edema"]["prevalence"] == pytest.approx(2 / 3)
    json.dumps(value, allow_nan=False)
    assert "undefined (no positives): Mass" in to_text(result)


def test_missing_rows_are_an_error_and_failed_ones_are_left_out(tmp_path: Path) -> None:
    labels = write(tmp_path / "t.csv", LABELS)
    with pytest.raises(InputError, match="no scores for c"):
        evaluate(
            write(tmp_path / "s.csv", "image,Edema\na,.9\nb,.1\n"), labels=labels, split="test"
        )
    blank = write(tmp_path / "s.csv", "image,Edema\na,.9\nb,.1\nc,\n")
    result = evaluate(blank, labels=labels)
    assert result.failed == ("c",) and result.n == 2


def test_comparison_is_paired(tmp_path: Path) -> None:
    labels = write(tmp_path / "t.csv", LABELS)
    a = write(tmp_path / "a.csv", "image,Edema\na,.9\nb,.1\nc,.8\n")
    b = write(tmp_path / "b.csv", "image,Edema\nc,.8\nb,.85\na,.9\n")
    value = to_json(evaluate(a, labels=labels, against=b, ci=100))
    assert value["against"]["mAP_difference"] == pytest.approx(1 - (1 + 2 / 3) / 2)
    same = to_json(evaluate(a, labels=labels, against=a, ci=100))
    assert same["against"]["mAP_difference"] == 0 and same["against"]["ci"] == [0, 0]


def test_by_study_averages_scores(tmp_path: Path) -> None:
    labels = "image,study,Edema\na,s,1\nb,s,1\nc,t,0\n"
    s = write(tmp_path / "s.csv", "image,Edema\na,.9\nb,.1\nc,.4\n")
    result = evaluate(s, labels=write(tmp_path / "t.csv", labels), by="study")
    assert result.n == 2 and result.metrics.ap[0] == 1


def test_members_join_by_image_and_class() -> None:
    a = scores("ab", "Edema,Pleural Thickening", [[0.9, 0.1], [0.1, 0.2]])
    b = scores("ba", "Pleural Thickening,Edema", [[0.4, 0.2], [0.3, 0.8]])
    made = ensembles.model_wise({"A": a, "B": b})
    mixed = ensembles.apply(made, {"B": b, "A": a})
    np.testing.assert_allclose(mixed.probabilities, [[0.85, 0.2], [0.15, 0.3]])
    assert mixed.images == ("a", "b") and mixed.classes == a.classes


def test_missing_and_extra_rows_and_members_are_errors() -> None:
    a, b = scores("ab", "Edema", [[0.9], [0.1]]), scores("ac", "Edema", [[0.8], [0.2]])
    made = ensembles.model_wise({"A": a})
    with pytest.raises(InputError, match="no scores for b"):
        same_rows({"A": a, "B": b})
    with pytest.raises(InputError, match="lacks: c"):
        same_rows({"A": scores("a", "Edema", [[0.9]]), "B": b})
    with pytest.raises(InputError, match="unknown: B"):
        ensembles.apply(made, {"A": a, "B": b})


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


def test_one_member_is_itself_and_failures_spread() -> None:
    a = scores("ab", "Edema", [[0.9], [np.nan]])
    mixed = ensembles.apply(ensembles.model_wise({"A": a}), {"A": a})
    np.testing.assert_array_equal(mixed.probabilities, a.probabilities)


def test_the_verb_keeps_its_choice_and_says_what_differs(tmp_path: Path) -> None:
    labels = write(
        tmp_path / "t.csv",
        "image,patient,split,Edema\na,1,dev,1\nb,2,dev,0\nc,3,test,1\nd,4,test,0\n",
    )
    dev = write(tmp_path / "d.csv", "image,Edema\na,.9\nb,.1\n")
    test = write(tmp_path / "e.csv", "image,Edema\nd,.3\nc,.2\n")
    made = ensemble("class-wise", members=[("m", dev, test)], labels=labels, out=tmp_path / "o")
    assert read_scores(made / "scores" / "test.csv").probabilities.tolist() == [[0.3], [0.2]]
    same = ensemble("class-wise", members=[("m", dev, test)], labels=labels, out=tmp_path / "o")
    assert same == made
    with pytest.raises(InputError, match="rule: 'class-wise' there, 'model-wise' now"):
        ensemble("model-wise", members=[("m", dev, test)], labels=labels, out=tmp_path / "o")
    out = ensemble_apply(made / "ensemble.json", [("m", test)], out=tmp_path / "n.csv")
    assert read_scores(out).probabilities.tolist() == [[0.3], [0.2]]
    with pytest.raises(InputError, match="Did you mean 'class-wise'"):
        ensemble("classwise", members=[("m", dev, test)], out=tmp_path / "x")


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
