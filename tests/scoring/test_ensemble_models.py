"""An ensemble of runs is a model: `predict` takes it as it takes a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lingula
from builders import write_tiny
from lingula.scores.predictions import read_scores
from lingula.scoring.models import read_scoring_model
from lingula.system.errors import InputError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trained models of different sizes and views, and their class-wise ensemble."""
    place = tmp_path_factory.mktemp("ensemble")
    table = write_tiny(place / "data")
    common = [f"data.table={table}", "optim.epochs=1", "precision=fp32", "optim.batch_size=8"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lingula.verbs.report.report", lambda *_, **__: None)
        for name, own in (
            ("a", ["seed=1"]),
            ("b", ["model.image_size=48", "evaluation.tta=flip"]),
            ("c", ["seed=2"]),
        ):
            lingula.train("smoke", [*common, *own], out=place / name)
    lingula.ensemble("class-wise", [place / n for n in "abc"], out=place / "both", top_k=2)
    return place


def scores(path: Path) -> np.ndarray[Any, Any]:
    return read_scores(path).probabilities


def test_its_scores_are_those_of_apply(made: Path, tmp_path: Path) -> None:
    table = made / "data" / "labels.csv"
    lingula.predict(made / "both", data=table, split="test", out=tmp_path / "all.csv")
    found = read_scores(tmp_path / "all.csv")
    written = read_scores(made / "both" / "scores" / "test.csv")
    assert found.images == written.images and found.classes == written.classes
    for name in "abc":
        lingula.predict(made / name, data=table, split="test", out=tmp_path / f"{name}.csv")
    members = [(name, tmp_path / f"{name}.csv") for name in "abc"]
    lingula.ensemble_apply(made / "both" / "ensemble.json", members, out=tmp_path / "applied.csv")
    assert np.abs(found.probabilities - scores(tmp_path / "applied.csv")).max() < 1e-7
    assert np.abs(found.probabilities - written.probabilities).max() < 1e-5


@pytest.mark.parametrize("batch_size", [1, 3])
def test_scores_do_not_depend_on_the_batch(made: Path, tmp_path: Path, batch_size: int) -> None:
    table = made / "data" / "labels.csv"
    for size, name in ((batch_size, "few"), (32, "many")):
        out = tmp_path / f"{name}.csv"
        lingula.predict(made / "both", data=table, out=out, batch_size=size)
    assert np.abs(scores(tmp_path / "few.csv") - scores(tmp_path / "many.csv")).max() < 1e-5


def test_other_views_are_those_of_all_members(made: Path, tmp_path: Path) -> None:
    table = made / "data" / "labels.csv"
    lingula.predict(made / "both", data=table, out=tmp_path / "o.csv", tta="none", split="dev")
    settings = json.loads((tmp_path / "o.made.json").read_text())
    assert settings["tta"] == "none"
    lingula.predict(made / "both", data=table, out=tmp_path / "own.csv", split="dev")
    assert json.loads((tmp_path / "own.made.json").read_text())["tta"] == ["none", "flip", "none"]
    with pytest.raises(InputError, match="other settings"):
        lingula.predict(made / "both", data=table, out=tmp_path / "o.csv", split="dev")


def test_an_unreadable_image_has_no_scores(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(made / "data" / "images", folder)
    (folder / "003.png").write_bytes(b"no image")
    done = lingula.predict(made / "both", data=folder, out=tmp_path / "s.csv")
    assert list(done.failures) == ["003.png"]
    rows = read_scores(tmp_path / "s.csv")
    blank = np.isnan(rows.probabilities).all(1)
    assert [rows.images[i] for i in np.flatnonzero(blank)] == ["003.png"]


def test_folders_may_move_together(made: Path, tmp_path: Path) -> None:
    there = tmp_path / "elsewhere"
    shutil.copytree(made, there)
    moved = read_scoring_model(there / "both")
    assert [member.folder.resolve().parent for member in moved.members] == [there.resolve()] * 3
    assert moved.sha256 == read_scoring_model(made / "both").sha256


def test_a_member_that_is_gone_or_another_is_named(made: Path, tmp_path: Path) -> None:
    place = tmp_path / "copy"
    shutil.copytree(made, place)
    noted = json.loads((place / "both" / "ensemble.json").read_text())
    noted["runs"]["b"]["path"] = str(place / "b")
    (place / "both" / "ensemble.json").write_text(json.dumps(noted))
    (place / "b").rename(place / "hidden")
    with pytest.raises(InputError, match=r"member 'b' is not at .*self-contained"):
        read_scoring_model(place / "both")
    shutil.copytree(place / "a", place / "b")
    with pytest.raises(InputError, match=r"member 'b' .* trained again since"):
        read_scoring_model(place / "both")


def test_a_self_contained_one_goes_alone(made: Path, tmp_path: Path) -> None:
    runs = [made / "a", made / "b"]
    out = lingula.ensemble("model-wise", runs, out=tmp_path / "e", self_contained=True)
    shutil.move(out, tmp_path / "alone")
    model = read_scoring_model(tmp_path / "alone")
    assert all((tmp_path / "alone") in member.folder.parents for member in model.members)
    image = made / "data" / "images" / "000.png"
    lingula.predict(tmp_path / "alone", data=image, out=tmp_path / "one.csv")
    assert np.isfinite(scores(tmp_path / "one.csv")).all()


def test_scores_alone_are_no_model(made: Path, tmp_path: Path) -> None:
    files = [(n, made / n / "scores" / "dev.csv", made / n / "scores" / "test.csv") for n in "ab"]
    out = lingula.ensemble("model-wise", members=files, out=tmp_path / "e")
    with pytest.raises(
        InputError, match=r"score files: it has scores and no models.*ensemble apply"
    ):
        lingula.predict(out, data=made / "data" / "labels.csv", out=tmp_path / "s.csv")


def test_its_calibration_is_its_own(made: Path, tmp_path: Path) -> None:
    place = tmp_path / "copy"
    shutil.copytree(made, place)
    table = place / "data" / "labels.csv"
    lingula.calibrate(place / "both", labels=table)
    out = tmp_path / "calibrated.csv"
    lingula.predict(place / "both", data=table, split="test", calibrated=True, out=out)
    raw = place / "both" / "scores" / "test.csv"
    by_hand = tmp_path / "by_hand.csv"
    lingula.apply_calibration(place / "both" / "calibration.json", raw, out=by_hand)
    assert np.abs(scores(out) - scores(by_hand)).max() < 1e-5
    lingula.ensemble("model-wise", [place / "a", place / "b"], out=place / "both", overwrite=True)
    shutil.copy(tmp_path / "copy" / "both.old-1" / "calibration.json", place / "both")
    with pytest.raises(InputError, match="made for other weights"):
        lingula.predict(
            place / "both", data=table, calibrated=True, out=tmp_path / "other.csv", split="test"
        )


def test_maps_of_an_ensemble_are_means_of_its_members(made: Path, tmp_path: Path) -> None:
    from lingula.scoring.attention import attend_members, load_networks, read_for_members

    image = made / "data" / "images" / "001.png"
    model = read_scoring_model(made / "both")
    images = [read_for_members(model, image)]
    found, maps = attend_members(model, load_networks(model), images)
    assert maps is not None and found.shape[0] == maps.shape[0] == 1
    assert np.allclose(maps.sum((2, 3)), 1.0, atol=0.02) and (maps >= 0).all()
    out = tmp_path / "s.csv"
    lingula.predict(made / "both", data=image, tta="none", out=out)
    assert np.abs(found[0] - scores(out)[0]).max() < 1e-5
    one = read_scoring_model(made / "a")
    own = attend_members(one, load_networks(one), [read_for_members(one, image)])[1]
    assert own is not None and np.allclose(own.sum((2, 3)), 1.0, atol=1e-5)


def test_explain_takes_an_ensemble(made: Path, tmp_path: Path) -> None:
    image = made / "data" / "images" / "001.png"
    page = lingula.explain(made / "both", data=image, out=tmp_path / "maps")
    assert page.is_file() and "001.png" in (tmp_path / "maps" / "explain.csv").read_text()
