"""Labels that changed between a training and what is measured with it: said once, never silent."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import lingula
from builders import write_tiny
from lingula.settings.config import vary
from lingula.settings.recipes import recipe
from lingula.system.errors import InputError


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs on one table, scores of that table by `predict`, and an ensemble chosen on it."""
    place = tmp_path_factory.mktemp("labels")
    table = write_tiny(place / "data")
    config = vary(recipe("smoke"), data__table=str(table), optim__epochs=1, precision="fp32")
    run = lingula.train(vary(config, optim__batch_size=8), out=place / "run")
    shutil.copytree(run, place / "run2")
    lingula.predict(run, data=table, out=place / "s.csv")
    lingula.ensemble("class-wise", [run, place / "run2"], out=place / "ens")
    return place


@pytest.fixture
def flipped(place: Path) -> Iterator[Path]:
    """The table, in which one cell of dev has just been changed; put back afterwards."""
    table = place / "data" / "labels.csv"
    before = table.read_text()
    assert "images/004.png,p4,s4,dev,1," in before
    table.write_text(before.replace("images/004.png,p4,s4,dev,1,", "images/004.png,p4,s4,dev,0,"))
    yield table
    table.write_text(before)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [r.getMessage() for r in caplog.records if "labels differ" in r.getMessage()]
    caplog.clear()
    return found


def test_unchanged_labels_are_not_warned_of(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table, run = place / "data" / "labels.csv", place / "run"
    for scores in ("run/scores/dev.csv", "s.csv", "ens/scores/test.csv"):
        lingula.evaluate(place / scores, labels=table)
    lingula.report([run, place / "ens"], out=tmp_path / "r.html")
    lingula.calibrate(run, out=tmp_path / "c.json")
    assert not warnings(caplog)


def test_a_changed_cell_is_said_by_whatever_measures_against_it(
    place: Path, flipped: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning a command, with both files and hashes; every command does its work."""
    run, run2 = place / "run", place / "run2"
    for scores, said in (
        ("run/scores/dev.csv", f"{run} was trained on {flipped}"),
        ("run2/scores/test.csv", f"{run2} was trained on {flipped}"),
        ("s.csv", f"{place / 's.csv'} was made for {flipped}"),
        ("ens/scores/dev.csv", f"{place / 'ens'} was chosen on {flipped}"),
    ):
        lingula.evaluate(place / scores, labels=flipped)
        (told,) = warnings(caplog)
        assert said in told and f"{flipped} (sha256 " in told and told.count("sha256") == 2
    lingula.evaluate(
        run / "scores" / "dev.csv", labels=flipped, against=run2 / "scores" / "dev.csv", ci=5
    )
    (told,) = warnings(caplog)
    assert f"{run} was" in told and f"{run2} was" in told
    lingula.report([run, run2, place / "ens"], out=tmp_path / "r.html")
    (told,) = warnings(caplog)
    assert f"{run} was" in told and f"{run2} was" in told and "ens was chosen" in told
    lingula.calibrate(run, out=tmp_path / "c.json")
    assert len(warnings(caplog)) == 1
    lingula.ensemble("class-wise", [run, run2], out=tmp_path / "e")
    (told,) = warnings(caplog)
    assert f"{run} was" in told and f"{run2} was" in told
    lingula.ensemble("model-wise", [run, run2], out=tmp_path / "m")  # looks at no labels
    assert not warnings(caplog)
    lingula.review(run / "scores" / "dev.csv", labels=flipped, out=tmp_path / "review")
    assert len(warnings(caplog)) == 1
    template = tmp_path / "template.csv"
    template.write_text("image,Edema\nimages/004.png,0\n")
    lingula.submit(run / "scores" / "dev.csv", template=template, labels=flipped, allow_extra=True)
    assert len(warnings(caplog)) == 1
    films = flipped.parent / "images" / "000.png"
    lingula.explain(run, data=films, out=tmp_path / "x")
    assert len(warnings(caplog)) == 1


def test_another_table_is_said_of_a_run_but_not_of_a_prediction(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A prediction may be made of one table and measured against another."""
    other = tmp_path / "corrected.csv"
    other.write_text((place / "data" / "labels.csv").read_text().replace("dev,1,", "dev,0,"))
    lingula.evaluate(place / "run" / "scores" / "dev.csv", labels=other)
    (told,) = warnings(caplog)
    assert str(other) in told and f"trained on {place / 'data' / 'labels.csv'}" in told
    lingula.evaluate(place / "s.csv", labels=other)
    assert not warnings(caplog)


def test_a_runs_own_copy_of_its_table_is_its_table(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that made the splits measures against its copy, whatever becomes of the original."""
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    shutil.copy(place / "data" / "labels.csv", run / "table.csv")
    with (run / "table.csv").open("a") as stream:
        stream.write("images/040.png,p40,s40,train,0,0,0,1\n")
    scores = run / "scores" / "dev.csv"
    lingula.evaluate(scores, labels=run / "table.csv")
    lingula.calibrate(run)
    lingula.ensemble("class-wise", [run, place / "run2"], out=tmp_path / "e")
    lingula.evaluate(tmp_path / "e" / "scores" / "dev.csv", labels=run / "table.csv")
    assert not warnings(caplog)


def test_damaged_facts_are_named(place: Path, tmp_path: Path) -> None:
    shutil.copy(place / "s.csv", tmp_path / "s.csv")
    (tmp_path / "s.made.json").write_text("{")
    with pytest.raises(InputError, match=r"s\.made\.json is damaged"):
        lingula.evaluate(tmp_path / "s.csv", labels=place / "data" / "labels.csv")
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    (run / "best" / "model.json").write_text('{"trained_on": [1]}')
    with pytest.raises(InputError, match=r"model\.json is damaged: its trained_on"):
        lingula.evaluate(run / "scores" / "dev.csv", labels=place / "data" / "labels.csv")
