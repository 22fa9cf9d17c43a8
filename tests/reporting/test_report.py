"""The page of an ensemble of runs, its sentences, its attention and its calibration."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import lingula
from builders import CLASSES, write_tiny
from lingula.reporting.summary import summarise
from lingula.scoring.attention import known_rates, measure_attention, measured_splits
from lingula.tables.reading import read_table
from lingula.training.run_labels import labels_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder and a linear head of other sizes, their mean, and boxes of the first finding."""
    place = tmp_path_factory.mktemp("page")
    table = write_tiny(place / "data")
    boxes = [f"images/{i:03}.png,{CLASSES[0]},0,20,40,20" for i in range(0, 40, 2)]
    header = "image,finding,x,y,w,h"
    (place / "data" / "labels.boxes.csv").write_text("\n".join([header, *boxes]) + "\n")
    common = [f"data.table={table}", "optim.epochs=1", "precision=fp32", "optim.batch_size=8"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lingula.verbs.report.report", lambda *_, **__: None)
        lingula.train("smoke", common, out=place / "a")
        linear = ["model.classifier=linear", "model.image_size=48"]
        lingula.train("smoke", [*common, *linear], out=place / "head")
    lingula.ensemble("class-wise", [place / "a", place / "head"], out=place / "both", top_k=2)
    return place


def test_a_page_of_an_ensemble_alone_shows_what_a_page_of_a_run_shows(
    made: Path, tmp_path: Path
) -> None:
    page = lingula.report([made / "both"], out=tmp_path / "r.html").read_text(encoding="utf-8")
    for words in (
        "How good?",
        "The 2 models were trained on 20 images of 20 patients each",
        "attention for Cardiomegaly",
        "Does the attention point at the finding?",
        "head: test_resnet.r160_in1k, 48 px, no decoder (linear on pooled features); weight 0.50",
        "lingula predict",
    ):
        assert words in page, words
    assert "since both has scores" not in page


def test_attention_of_an_ensemble_is_measured_and_kept(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "both", tmp_path / "both")
    place = tmp_path / "both"
    (place / "attention.json").unlink(missing_ok=True)
    found = measure_attention(place, read_table(made / "data" / "labels.csv"))
    assert list(found) == [CLASSES[0]] and found == known_rates(place)
    # The linear head has no maps, so those of the ensemble are the decoder's.
    alone = measure_attention(made / "a", read_table(made / "data" / "labels.csv"))
    assert found == alone


def test_images_that_members_learned_from_say_nothing_of_attention(
    made: Path, tmp_path: Path
) -> None:
    shutil.copytree(made / "both", tmp_path / "both")
    path, table = tmp_path / "both" / "ensemble.json", read_table(made / "data" / "labels.csv")
    both = measure_attention(tmp_path / "both", table)
    assert measured_splits(tmp_path / "both") == ["dev", "test"]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dev_scores": "out-of-fold"}))
    test = measure_attention(tmp_path / "both", table)
    assert measured_splits(tmp_path / "both") == ["test"]
    assert test[CLASSES[0]].n < both[CLASSES[0]].n


def test_a_linear_head_attends_nowhere(made: Path) -> None:
    assert measure_attention(made / "head", read_table(made / "data" / "labels.csv")) == {}
    assert not (made / "head" / "attention.json").exists()


def test_the_linear_head_is_the_model_to_compare_with(made: Path) -> None:
    labels = labels_of(made / "both")
    said = summarise(made / "both", labels, [made / "a", made / "head"])
    assert len(said) == 5 and 'of the linear head "head"' in said[0]
    assert 'the model "a"' in summarise(made / "head", labels_of(made / "head"), [made / "a"])[0]


def test_dev_scores_and_scores_out_of_fold_are_called_so(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "both", tmp_path / "both")
    place = tmp_path / "both"
    (place / "scores" / "test.csv").unlink()
    labels = labels_of(place)
    assert "the epoch and the weights of the members were chosen" in summarise(place, labels)[1]
    value = json.loads((place / "ensemble.json").read_text())
    (place / "ensemble.json").write_text(json.dumps(value | {"dev_scores": "out-of-fold"}))
    said = summarise(place, labels)[1]
    assert "each scored by models that never saw its patient" in said
    assert "the epoch" not in said and "the weights of the members were chosen" in said


def test_models_that_are_gone_leave_a_page_of_scores(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "both", tmp_path / "both")
    value = json.loads((tmp_path / "both" / "ensemble.json").read_text())
    del value["runs"]
    (tmp_path / "both" / "ensemble.json").write_text(json.dumps(value))
    page = lingula.report([made / "a", tmp_path / "both"], out=tmp_path / "r.html")
    text = page.read_text(encoding="utf-8")
    assert "The models are not at hand" in text and "since both has scores and no models" in text


def test_the_page_says_what_the_calibration_does(made: Path, tmp_path: Path) -> None:
    place = tmp_path / "both"
    shutil.copytree(made / "both", place)
    lingula.calibrate(place)
    page = lingula.report([place], out=tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Calibration and thresholds" in page and "max-f1" in page
    assert "out-of-fold" not in page and "fitted on these same images" not in page
    value = json.loads((place / "calibration.json").read_text())
    (place / "calibration.json").write_text(json.dumps(value | {"of": "members"}))
    page = lingula.report([place], out=tmp_path / "r.html").read_text(encoding="utf-8")
    assert "fitted on out-of-fold scores" in page
    value["made_from"]["model_sha256"] = "0" * 64
    (place / "calibration.json").write_text(json.dumps(value))
    page = lingula.report([place], out=tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Calibration and thresholds" not in page
