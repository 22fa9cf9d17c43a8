"""Scores against labels: what is joined, masked, grouped, drawn, compared and said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders import scores, table
from lingula.cli import app
from lingula.scores.evaluation import Setting, compare_predictions, evaluate_predictions
from lingula.scores.intervals import interval
from lingula.scores.joining import join_labels
from lingula.scores.predictions import Predictions
from lingula.scores.results import to_json, to_text
from lingula.system.errors import InputError
from lingula.tables.configured import Meaning
from lingula.tables.table import BLANK, UNCERTAIN, UNMENTIONED, Table
from lingula.verbs.evaluate import evaluate


def random_pair(rows: int = 120, seed: int = 0, **columns: Any) -> tuple[Predictions, Table]:
    random = np.random.default_rng(seed)
    labels = (random.random((rows, 2)) < 0.3).astype(np.float32)
    values = np.clip(random.normal(0.4 + 0.2 * labels, 0.15), 0, 1)
    return scores(values), table(labels, **columns)


def test_the_shape_that_was_promised() -> None:
    made, labels = random_pair(patients=tuple(f"p{i // 2}" for i in range(120)))
    plain = to_json(evaluate_predictions(made, labels))
    assert {"mAP", "AUROC", "n", "n_classes", "undefined", "groups", "classes"} <= set(plain)
    assert set(plain["groups"]) == {"head", "medium", "tail"}
    assert {"AP", "AUROC", "positives", "prevalence"} <= set(plain["classes"]["Edema"])
    assert "mAP_ci" not in plain and "against" not in plain
    value = to_json(evaluate_predictions(made, labels, ci=200, against=made, seed=3))
    for low, high, middle in (
        (*value["mAP_ci"], value["mAP"]),
        (*value["AUROC_ci"], value["AUROC"]),
        (*value["classes"]["Mass"]["AP_ci"], value["classes"]["Mass"]["AP"]),
        (*value["groups"]["head"]["mAP_ci"], value["groups"]["head"]["mAP"]),
    ):
        assert low < middle < high
    assert value["against"]["mAP_difference"] == 0 and value["against"]["ci"] == [0, 0]
    assert value["against"]["p"] == 1
    assert value["drawn"] == {"what": "patients", "n": 60}
    assert json.loads(json.dumps(value, allow_nan=False)) == value


def test_rows_and_columns_in_any_order_give_the_same() -> None:
    made, labels = random_pair()
    rows = np.random.default_rng(1).permutation(120)
    turned = scores(
        made.probabilities[rows][:, ::-1],
        "mass,edema",
        images=tuple(made.images[i] for i in rows),
    )
    assert to_json(evaluate_predictions(made, labels, ci=20)) == to_json(
        evaluate_predictions(turned, labels, ci=20)
    )


def test_masked_cells_are_as_if_they_were_not_there() -> None:
    made, labels = random_pair()
    cells = labels.labels.copy()
    random = np.random.default_rng(2)
    hidden = random.random(cells.shape) < 0.3
    cells[hidden] = random.choice([UNCERTAIN, BLANK, UNMENTIONED], int(hidden.sum()))
    result = evaluate_predictions(made, table(cells))
    for k, name in enumerate(("Edema", "Mass")):
        kept = np.flatnonzero(~hidden[:, k])
        alone = evaluate_predictions(
            scores(made.probabilities[kept][:, [k]], name), table(labels.labels[kept][:, [k]], name)
        )
        assert alone.metrics.ap[0] == result.metrics.ap[k]
        assert alone.metrics.auroc[0] == result.metrics.auroc[k]
        assert result.metrics.known[k] == len(kept)
    counted = {
        name: int((cells == code).sum())
        for name, code in (("uncertain", UNCERTAIN), ("blank", BLANK), ("unmentioned", UNMENTIONED))
    }
    assert to_json(result)["masked_cells"] == counted
    told = evaluate_predictions(
        made, table(cells), uncertain="one", blank="zero", unmentioned="zero"
    )
    assert set(told.masked.values()) == {0} and told.metrics.known.tolist() == [120, 120]
    assert evaluate_predictions(made, table(cells, blank="zero")).masked["blank"] == 0


def test_soft_labels_are_positive_from_one_half() -> None:
    result = evaluate_predictions(
        scores([[0.9], [0.8], [0.1]], "Edema"), table([[0.5], [0.49], [0]], "Edema")
    )
    assert result.metrics.positives[0] == 1 and result.metrics.ap[0] == 1


def test_undefined_and_scarce_classes_are_named() -> None:
    result = evaluate_predictions(
        scores([[0.9, 0.2, 0.3], [0.1, 0.3, 0.2], [0.8, 0.4, 0.1]], "Edema,Mass,Hernia"),
        table([[1, 0, 1], [0, 0, 1], [1, 0, 1]], "Edema,Mass,Hernia"),
        ci=20,
    )
    value = to_json(result)
    assert value["undefined"] == ["Mass"] and value["n_classes"] == 2 and value["mAP"] == 1
    assert value["classes"]["Mass"]["AP_ci"] is None
    hernia = value["classes"]["Hernia"]
    assert {key: hernia[key] for key in list(hernia)[:8]} | {"AP_ci": 0} == {
        "AP": 1.0,
        "AUROC": None,
        "AUROC_ci": None,
        "AP_ci": 0,
        "positives": 3,
        "prevalence": 1.0,
        "n": 3,
        "undefined_draws": 0,
    }
    assert value["AUROC"] == 1.0 and value["few"] == ["Edema", "Hernia"]
    assert value["classes"]["Edema"]["prevalence"] == pytest.approx(2 / 3)
    json.dumps(value, allow_nan=False)
    assert "undefined (no positives): Mass" in to_text(result)
    one = evaluate_predictions(scores([[0.0]], "Edema"), table([[1]], "Edema"))
    assert one.few == ("Edema",) and to_json(one)["mAP"] == 1  # too small to mean anything


def test_classes_in_one_file_only_are_left_out_and_named() -> None:
    made = scores([[0.9, 0.2], [0.1, 0.3]], "Effusion,Own")
    result = evaluate_predictions(made, table([[1, 0], [0, 1]], "Pleural Effusion,Mass"))
    assert result.classes == ("Pleural Effusion",)
    assert to_json(result)["left_out"] == {"only_in_scores": ["Own"], "only_in_labels": ["Mass"]}
    assert "only in the labels, left out: Mass" in to_text(result)
    with pytest.raises(InputError, match="no class in common"):
        evaluate_predictions(made, table([[1], [0]], "Mass"))


def test_splits() -> None:
    cells = [[1, 0], [0, 1], [1, 1], [0, 0], [0, 1]]
    labels = table(cells, splits=("train", "train", "test", "test", "dev"))
    every = scores(np.linspace(0, 1, 10).reshape(5, 2))
    result = evaluate_predictions(every, labels, split="test")
    assert (result.n, result.ignored_rows, result.splits) == (2, 3, ("test",))
    assert result.groups_from == "the table's train split"
    only = scores([[0.9, 0.8], [0.1, 0.2]], images=("2.png", "3.png"))
    alone = evaluate_predictions(only, labels)  # the split that the scores are of
    assert (alone.n, alone.splits, alone.metrics.mAP) == (2, ("test",), 1.0)
    assert evaluate_predictions(every, labels).splits == ()
    with pytest.raises(InputError, match=r"no scores for 3\.png"):
        evaluate_predictions(scores([[0.9, 0.8]], images=("2.png",)), labels)
    with pytest.raises(InputError, match="no rows with split 'dev'"):
        evaluate_predictions(every, table(cells), split="dev")
    with pytest.raises(InputError, match="no split 'tset'"):
        evaluate_predictions(every, labels, split="tset")


def test_head_and_tail_come_from_training_where_it_is_known() -> None:
    cells = np.zeros((300, 3))
    cells[:100, 0], cells[:10, 1], cells[0, 2] = 1, 1, 1
    cells[200:] = 1  # in test everything is common
    labels = table(cells, "Edema,Mass,Hernia", splits=("train",) * 200 + ("test",) * 100)
    made = scores(np.full((300, 3), 0.5), "Edema,Mass,Hernia")
    result = evaluate_predictions(made, labels, split="test")
    assert result.groups == {"head": ("Edema",), "medium": ("Mass",), "tail": ("Hernia",)}
    moved = evaluate_predictions(made, labels, split="test", limits=(0.04, 0.03))
    assert moved.groups["head"] == ("Edema", "Mass")


def test_failed_images_are_left_out_and_named() -> None:
    made = scores([[0.9, 0.1], [np.nan, np.nan], [0.2, 0.8]])
    result = evaluate_predictions(made, table([[1, 0], [1, 1], [0, 1]]))
    assert result.failed == ("1.png",) and result.n == 2
    assert "without scores, left out: 1.png" in to_text(result)
    with pytest.raises(InputError, match="no scores for any"):
        evaluate_predictions(scores([[np.nan]], "Edema"), table([[1]], "Edema"))


def test_studies_are_told_apart_by_patient_and_labels_merged() -> None:
    labels = table(
        [[1, UNCERTAIN], [0, 1], [0, 0], [0, BLANK]],
        patients=("p", "p", "q", "q"),
        studies=("1", "1", "1", ""),
    )
    made = scores([[0.9, 0.2], [0.5, 0.4], [0.3, 0.6], [0.1, 0.7]])
    result = evaluate_predictions(made, labels, by="study", ci=5)
    value = to_json(result)
    assert (result.n, result.differing, value["drawn"]["n"]) == (3, 1, 2)
    assert value["classes"]["Edema"]["positives"] == 1 and value["classes"]["Edema"]["n"] == 3
    assert value["classes"]["Mass"]["positives"] == 1 and value["classes"]["Mass"]["n"] == 2
    assert value["masked_cells"] == {"uncertain": 1, "blank": 1, "unmentioned": 0}
    assert value["classes"]["Mass"]["AP"] == 0.5  # 0.3 for the positive study, 0.6 for the other
    with pytest.raises(InputError, match="study column"):
        evaluate_predictions(made, table(np.zeros((4, 2))), by="study")


def test_rows_join_by_id_and_patients_may_come_from_the_scores() -> None:
    labels = table(
        [[1], [0], [1]], "Edema", images=("x/a.jpg", "x/b.jpg", "x/c.jpg"), ids=("a", "b", "c")
    )
    made = scores([[0.1], [0.9], [0.8]], "Edema", images=("b", "a", "c"), patients=("1", "2", "2"))
    result = evaluate_predictions(made, labels, ci=10)
    assert result.metrics.ap[0] == 1
    assert result.drawn == "patients" and result.draws is not None and result.draws.units == 2


def test_without_patients_images_are_drawn_and_that_is_said() -> None:
    made, labels = random_pair()
    result = evaluate_predictions(made, labels, ci=10)
    assert to_json(result)["drawn"] == {"what": "images", "n": 120}
    assert "10 draws of 120 images" in to_text(result)


def test_a_comparison_is_paired_by_image() -> None:
    labels = table([[1], [0], [1]], "Edema")
    right = scores([[0.9], [0.1], [0.8]], "Edema")
    wrong = scores([[0.8], [0.85], [0.9]], "Edema", images=("2.png", "1.png", "0.png"))
    value = to_json(evaluate_predictions(right, labels, against=wrong, ci=100))
    assert value["against"]["mAP_difference"] == pytest.approx(1 - (1 + 2 / 3) / 2)


def test_a_comparison_is_over_what_both_have() -> None:
    made, labels = random_pair(rows=60)
    worse = np.random.default_rng(5).random((60, 2))
    worse[3] = np.nan
    other = scores(worse)
    result = evaluate_predictions(made, labels, against=other, ci=100)
    assert result.against is not None and result.n == 60 and result.against.n == 59
    kept = np.delete(np.arange(60), 3)
    part = table(labels.labels[kept], images=tuple(labels.images[i] for i in kept))
    parts = [evaluate_predictions(one, part, ci=100) for one in (made, other)]
    assert result.against.difference == parts[0].metrics.mAP - parts[1].metrics.mAP
    gaps = [p.draws.ap.mean(axis=1) for p in parts if p.draws is not None]
    assert result.against.ci == interval(gaps[0] - gaps[1])
    alone = compare_predictions(made, other, labels, draws=100)
    assert (alone.difference, alone.ci) == (result.against.difference, result.against.ci)
    turned = evaluate_predictions(other, labels, against=made, ci=100)
    assert turned.against is not None
    assert turned.against.difference == pytest.approx(-result.against.difference)
    fewer = evaluate_predictions(made, labels, against=scores(worse[:, :1], "Edema"))
    assert to_json(fewer)["against"]["classes"] == ["Edema"]
    with pytest.raises(InputError, match="no class in common: one has Edema"):
        evaluate_predictions(
            scores(made.probabilities[:, :1], "Edema"), labels, against=scores(worse[:, 1:], "Mass")
        )


def test_the_text_is_a_table() -> None:
    made, labels = random_pair(patients=tuple(str(i) for i in range(120)))
    lines = to_text(evaluate_predictions(made, labels, ci=50, against=made)).splitlines()
    head = lines[0].split()
    assert head == "class positives prevalence AP 95 % lift AUROC 95 % F1".split()
    assert len({len(line) for line in lines[1:3]}) == 1
    assert any(line.startswith("all:") and "over 2 classes" in line for line in lines)
    assert any(line.startswith("mAP difference +0.0000 (0.0000 to 0.0000)") for line in lines)
    plain = to_text(evaluate_predictions(made, labels))
    assert "95 %" not in plain and "draws" not in plain


def test_a_wrong_request_is_refused() -> None:
    made, labels = random_pair(rows=4)
    with pytest.raises(InputError, match="by is image or study"):
        evaluate_predictions(made, labels, by="patient")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="number of draws"):
        evaluate_predictions(made, labels, ci=-1)


def test_the_verb_reads_soft_tables_and_ignores_columns(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,Edema,note\na,0.7,x\nb,0.2,y\n")
    (tmp_path / "s.csv").write_text("image,Edema\nb,.1\na,.9\n")
    result = evaluate(
        tmp_path / "s.csv", labels=tmp_path / "t.csv", ignore_columns=["note"], soft=True
    )
    assert result.metrics.ap[0] == 1 and result.metrics.positives[0] == 1


def test_no_torch_is_needed() -> None:
    code = (
        "import sys, lingula.scores.evaluation, lingula.scores.ensembles, lingula.verbs.evaluate, "
        "lingula.verbs.ensemble; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_real_scores(real_data: Path) -> None:
    folder = real_data / "nih-scores"
    result = evaluate(
        folder / "resnet50_seed0.parquet",
        labels=folder / "labels.parquet",
        split="test",
        against=folder / "vit_small_seed0.parquet",
        ci=50,
    )
    value = to_json(result)
    assert value["drawn"]["what"] == "patients" and value["n_classes"] == 14
    low, high = value["mAP_ci"]
    assert low < value["mAP"] < high < low + 0.1
    assert (
        value["classes"]["Pleural Effusion"]["AP"]
        > value["classes"]["Pleural Effusion"]["prevalence"]
    )


def test_measures_at_thresholds_are_in_the_json_and_bound_by_name() -> None:
    made, labels = random_pair()
    plain = to_json(evaluate_predictions(made, labels))
    row = plain["classes"]["Edema"]
    assert {"F1", "precision", "recall", "specificity", "Brier", "ECE", "lift"} <= set(row)
    assert {"sensitivity_at_0.9", "specificity_at_0.9", "threshold"} <= set(row)
    assert row["lift"] == row["AP"] / row["prevalence"] and row["threshold"] == 0.5
    assert plain["mF1"] == np.mean([value["F1"] for value in plain["classes"].values()])
    assert plain["mECE"] == np.mean([value["ECE"] for value in plain["classes"].values()])
    told = evaluate_predictions(made, labels, setting=Setting(thresholds={"edema": 0.45}))
    value = to_json(told)["classes"]
    assert (value["Edema"]["threshold"], value["Mass"]["threshold"]) == (0.45, 0.5)
    hits = (made.probabilities[:, 0] >= 0.45) & (labels.labels[:, 0] == 1)
    assert value["Edema"]["recall"] == hits.sum() / (labels.labels[:, 0] == 1).sum()
    with pytest.raises(InputError, match=r"threshold of 'Mass' must be in \[0, 1\], not 3"):
        evaluate_predictions(made, labels, setting=Setting(thresholds={"Mass": 3}))


def test_a_class_without_positives_has_no_f1_but_a_calibration() -> None:
    value = to_json(evaluate_predictions(scores([[0.9, 0.2], [0.1, 0.3]]), table([[1, 0], [0, 0]])))
    mass = value["classes"]["Mass"]
    assert mass["F1"] is None and mass["lift"] is None and mass["recall"] is None
    assert mass["specificity"] == 1 and mass["ECE"] == pytest.approx(0.25)
    assert value["mF1"] == 1


@pytest.mark.parametrize(
    ("fuse", "right"),
    [
        ("mean", [0.5, 0.7]),
        ("max", [0.8, 0.7]),
        ("views", [(7 * 0.8 + 3 * 0.3 + 5 * 0.4) / 15, 0.7]),
        ("frontal=1,lateral=0,other=0", [0.8, 0.7]),
    ],
)
def test_studies_fuse_by_view(fuse: str, right: list[float]) -> None:
    labels = table(
        [[1], [1], [1], [0]],
        "Edema",
        studies=("a", "a", "a", "b"),
        views=("PA", "LATERAL", "", "AP AXIAL"),
    )
    made = scores([[0.8], [0.3], [0.4], [0.7]], "Edema")
    joined, _ = join_labels(made, labels, "study", Meaning(), fuse=fuse)
    assert joined.probabilities[:, 0] == pytest.approx(right)
    assert joined.images == ("0.png", "3.png")
    result = evaluate_predictions(made, labels, by="study", setting=Setting(fuse=fuse))
    assert to_json(result)["fuse"] == fuse


def test_fusions_that_are_none_are_refused() -> None:
    labels = table([[1], [0]], "Edema", studies=("a", "b"), views=("PA", "LATERAL"))
    made = scores([[0.8], [0.3]], "Edema")
    for fuse, message in (
        ("median", "--fuse is mean, max, views"),
        ("frontal=1", "--fuse is mean, max, views"),
        ("frontal=1,lateral=-1,other=0", "--fuse is mean, max, views"),
        ("frontal=1,lateral=nan,other=0", "--fuse is mean, max, views"),
        ("frontal=1,lateral=0,other=0", "all have weight 0"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate_predictions(made, labels, by="study", setting=Setting(fuse=fuse))
    bare = table([[1], [0]], "Edema", studies=("a", "b"))
    with pytest.raises(InputError, match="no view column"):
        evaluate_predictions(made, bare, by="study", setting=Setting(fuse="views"))


def test_a_comparison_is_by_class_with_adjusted_p() -> None:
    """Edema is spoilt in the other file, Mass is not: only Edema differs."""
    made, labels = random_pair(rows=300)
    other = made.probabilities.copy()
    other[:, 0] = np.random.default_rng(5).random(300)
    result = evaluate_predictions(made, labels, against=scores(other))
    value = to_json(result)["against"]
    edema, mass = value["by_class"]["Edema"], value["by_class"]["Mass"]
    alone = evaluate_predictions(scores(other), labels)
    assert edema["AP_difference"] == result.metrics.ap[0] - alone.metrics.ap[0]
    assert edema["p"] == pytest.approx(2 / 2001) and edema["p_holm"] == pytest.approx(4 / 2001)
    assert edema["ci"][0] > 0 and edema["p"] <= edema["p_bh"] <= edema["p_holm"]
    assert mass == {"AP_difference": 0, "ci": [0, 0], "p": 1, "p_holm": 1, "p_bh": 1}
    assert value["draws"] == 2000 and value["p"] == pytest.approx(2 / 2001)
    text = to_text(result)
    assert "difference in AP" in text and "2000 paired draws" in text and "too few" not in text
    few = to_text(evaluate_predictions(made, labels, against=scores(other), ci=50))
    assert "too few draws for 2 classes" in few and "--ci 80 or more" in few


def test_classes_that_lose_their_positives_in_draws_are_said() -> None:
    cells = np.zeros((60, 2))
    cells[::2, 0], cells[3, 1] = 1, 1
    made = scores(np.random.default_rng(0).random((60, 2)))
    result = evaluate_predictions(made, table(cells), ci=300)
    value = to_json(result)["classes"]["Mass"]
    assert 0.25 < value["undefined_draws"] / 300 < 0.5  # (1 - 1/60)^60 = 0.36
    share = f"{100 * value['undefined_draws'] / 300:.1f} %"
    assert f"left out of the class's interval and of those draws' means: Mass {share}" in to_text(
        result
    )


def test_the_verb_takes_thresholds_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,Edema\na,1\nb,0\n")
    (tmp_path / "s.csv").write_text("image,Edema\nb,.1\na,.3\n")
    paths = {"scores": tmp_path / "s.csv", "labels": tmp_path / "t.csv"}
    assert to_json(evaluate(**paths))["classes"]["Edema"]["F1"] == 0
    file = tmp_path / "thresholds.json"
    for text in ('{"edema": 0.2}', '{"thresholds": {"Edema": 0.2}, "made": "dev"}'):
        file.write_text(text)
        assert to_json(evaluate(**paths, threshold=file))["classes"]["Edema"]["F1"] == 1
    assert to_json(evaluate(**paths, threshold="0.25"))["mF1"] == 1
    for text, message in (
        ("{", "no JSON"),
        ("[1]", "one threshold per class"),
        ("{}", "per class"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            evaluate(**paths, threshold=file)
    with pytest.raises(InputError, match="no file half"):
        evaluate(**paths, threshold="half")


def test_the_options_as_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    rows = [
        f"{i}.png,p{i // 2},s{i // 2},{'PA' if i % 2 else 'LATERAL'},{20 + i % 60},{i % 4 // 2}"
        for i in range(200)
    ]
    (tmp_path / "t.csv").write_text("image,patient,study,view,age,Edema\n" + "\n".join(rows))
    for name in "ab":
        cells = [f"{i}.png,{random.random()}" for i in range(200)]
        (tmp_path / f"{name}.csv").write_text("image,Edema\n" + "\n".join(cells))
    paths = [str(tmp_path / "a.csv"), "--labels", str(tmp_path / "t.csv")]
    app(
        [
            "evaluate",
            *paths,
            "--json",
            "--ci",
            "50",
            "--against",
            str(tmp_path / "b.csv"),
            "--subgroups",
            "view,age,Edema",
            "--age-edges",
            "40,60",
            "--threshold",
            "0.3",
        ],
        standalone_mode=False,
    )
    value = json.loads(capsys.readouterr().out)
    assert list(value["subgroups"]["age"]["groups"]) == ["0-39", "40-59", "60+"]
    assert value["classes"]["Edema"]["threshold"] == 0.3
    assert set(value["against"]["by_class"]) == {"Edema"}
    app(["evaluate", *paths, "--by", "study", "--fuse", "views"], standalone_mode=False)
    assert "100 studies" in capsys.readouterr().out
    app(
        ["bench", "metrics", "--json", "--images", "300", "--classes", "2", "--draws", "5"],
        standalone_mode=False,
    )
    assert {"seconds", "baseline", "ratio"} <= set(json.loads(capsys.readouterr().out))
    with pytest.raises(InputError, match="--age-edges takes whole numbers"):
        app(["evaluate", *paths, "--age-edges", "old"], standalone_mode=False)


def test_a_wrong_name_among_thresholds_is_an_error_and_a_lacking_one_is_said() -> None:
    made, labels = random_pair()
    for thresholds, message in (
        ({"Edemaa": 0.3, "Mass": 0.4}, "'Edemaa', which neither .* Did you mean 'Edema'"),
        ({"edema": 0.3, "Edema": 0.4}, "two thresholds for 'Edema'"),
        ({"Edema": float("nan")}, r"threshold of 'Edema' must be in \[0, 1\]"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate_predictions(made, labels, setting=Setting(thresholds=thresholds))
    one = evaluate_predictions(made, labels, setting=Setting(thresholds={"Edema": 0.3}))
    assert to_json(one)["threshold_by_default"] == ["Mass"]
    assert "without a threshold of their own, 0.5 by default: Mass" in to_text(one)
    both = evaluate_predictions(
        made, labels, setting=Setting(thresholds={"Edema": 0.3, "mass": np.nextafter(1, 2)})
    )
    assert both.by_default == () and "by default" not in to_text(both)
    assert to_json(both)["classes"]["Mass"]["recall"] == 0  # just above 1 calls nothing
    for number in (0.5, 0.3):  # one for all is everyone's own
        every = evaluate_predictions(made, labels, setting=Setting(thresholds=number))
        assert every.by_default == ()
    # A class of the scores that the table lacks is no mistake.
    more = scores(np.full((120, 3), 0.2), "Edema,Mass,Hernia")
    found = evaluate_predictions(more, labels, setting=Setting(thresholds={"Hernia": 0.1}))
    assert found.by_default == ("Edema", "Mass")


def test_each_mean_says_over_how_many_classes_it_is() -> None:
    """Without positives a class has a calibration and no AP; without negatives, no AUROC."""
    names = "Edema,Mass,Hernia"
    made = scores([[0.9, 0.2, 0.3], [0.1, 0.3, 0.2]], names)
    result = evaluate_predictions(made, table([[1, 0, 1], [0, 0, 1]], names))
    value = to_json(result)
    assert value["defined"] == {"mAP": 2, "AUROC": 1, "mF1": 2, "mECE": 3, "Brier": 3}
    assert value["n_classes"] == 2 and value["groups"]["head"]["defined"]["mECE"] == 2
    (line,) = [line for line in to_text(result).splitlines() if line.startswith("all:")]
    f1, ece = value["mF1"], value["mECE"]
    assert line == (
        f"all:    mAP 1.000, mF1 {f1:.3f} over 2 classes, AUROC 1.000 over 1 class, "
        f"mECE {ece:.3f} over 3 classes"
    )


def test_one_positive_has_no_interval_without_width() -> None:
    """One image, or one positive that ranks first among many: every draw is alike."""
    one = scores([[0.9]], "Edema"), table([[1]], "Edema")
    many = scores(np.linspace(1, 0, 50)[:, None], "Edema"), table(np.eye(50)[:, :1], "Edema")
    for made, labels in (one, many):
        result = evaluate_predictions(made, labels, ci=100)
        value = to_json(result)
        assert value["mAP"] == 1 and value["mAP_ci"] is None
        assert value["classes"]["Edema"]["AP_ci"] is None
        text = to_text(result)
        assert "to 1.000" not in text
        assert "no interval, since the AP is the same in all draws: Edema" in text
    second = table(np.eye(50)[:, 1:2], "Edema")  # not first: its place differs from draw to draw
    low, high = to_json(evaluate_predictions(many[0], second, ci=100))["classes"]["Edema"]["AP_ci"]
    assert low < 0.5 < high


def test_the_old_name_of_the_metrics_still_serves(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,patient,Edema\na,1,1\nb,2,0\n")
    (tmp_path / "s.csv").write_text("image,Edema\na,.9\nb,.1\n")
    result = evaluate(tmp_path / "s.csv", labels=tmp_path / "t.csv")
    with pytest.warns(DeprecationWarning, match="result.metrics"):
        assert result.found is result.metrics
