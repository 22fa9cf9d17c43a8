"""Films that can't be read where nothing is trained on them: named, counted, and no end of a run."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import timm
import torch

import lingula
from builders import typed
from lingula.scores.predictions import failed, read_failures, read_scores
from lingula.settings.config import Config, vary
from lingula.system.errors import InputError


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lingula.reporting.report.DRAWS", 20)


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page takes longer than these trainings."""
    monkeypatch.setattr("lingula.verbs.report.report", lambda *_, **__: None)


@pytest.fixture
def once(tiny_config: Config) -> Config:
    return vary(tiny_config, optim__epochs=1)


def images(config: Config, split: str) -> list[Path]:
    table = Path(config.data.table)
    rows = [line.split(",") for line in table.read_text().splitlines()[1:]]
    return [table.parent / row[0] for row in rows if row[3] == split]


@pytest.mark.parametrize("how", ["cut", "missing"])
def test_a_run_ends_without_a_test_film(
    once: Config, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lingula")
    bad = images(once, "test")[3]
    bad.write_bytes(b"") if how == "cut" else bad.unlink()
    run = lingula.train(once, out=tmp_path / "run")
    scores = read_scores(run / "scores" / "test.csv")
    assert [Path(scores.images[i]).name for i in failed(scores).nonzero()[0]] == [bad.name]
    assert [Path(name).name for name in read_failures(run / "scores" / "test.csv")] == [bad.name]
    finished = json.loads((run / "finished.json").read_text())
    assert (finished["test"]["n"], finished["test"]["failed"]) == (9, 1)
    assert "failed" not in finished["dev"]
    page = (run / "report.html").read_text()
    assert "9 images (1 more can&#39;t be read" in page or "9 images (1 more can't be read" in page
    assert (
        f"1 of 10 test images can't be read and have no scores: {'There' if how == 'missing' else bad}"
        in caplog.text
    )
    if how == "missing":  # which can be known before the first step
        told = caplog.text.index("test images are missing and will have no scores")
        assert told < caplog.text.index("Epoch 1")


def test_the_command_says_that_it_is_done_but_for_some_images(
    once: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images(once, "test")[0].write_bytes(b"<html>403</html>")
    words = ["train", "smoke", f"data.table={once.data.table}", "optim.epochs=1", "--out"]
    for _ in range(2):  # then on the finished run
        assert typed(*words, tmp_path / "run") == 3
        assert "test.failed.csv" in capsys.readouterr().err


def test_a_run_ends_without_any_test_film(once: Config, tmp_path: Path) -> None:
    for path in images(once, "test"):
        path.unlink()
    run = lingula.train(once, out=tmp_path / "run")
    finished = json.loads((run / "finished.json").read_text())
    assert finished["test"] == {"mAP": None, "AUROC": None, "n": 0, "failed": 10}
    assert "dev split" in (run / "report.html").read_text()


@pytest.mark.usefixtures("no_page")
@pytest.mark.parametrize("in_memory", [True, False])
def test_a_dev_film_that_can_not_be_read_is_left_out_aloud(
    once: Config,
    tmp_path: Path,
    in_memory: bool,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bad = images(once, "dev")[0]
    bad.write_bytes(b"")
    monkeypatch.setattr("lingula.training.examples.fits_in_memory", lambda _: in_memory)
    run = lingula.train(once, out=tmp_path / "run")
    assert "dev images can't be read" in caplog.text and bad.name in caplog.text
    finished = json.loads((run / "finished.json").read_text())
    assert finished["dev"]["failed"] == 1 and finished["dev"]["n"] == 9


@pytest.mark.usefixtures("no_page")
def test_of_a_frozen_encoder_too(once: Config, tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pth")
    given = {"model__encoder": "test_resnet", "model__weights": str(tmp_path / "w.pth")}
    frozen = vary(once, model__frozen=True, **given)
    bad = images(once, "dev")[0]
    bad.write_bytes(b"")
    run = lingula.train(frozen, out=tmp_path / "run")
    assert json.loads((run / "finished.json").read_text())["dev"]["failed"] == 1
    images(once, "train")[0].write_bytes(b"")
    with pytest.raises(InputError, match="can't be read"):
        lingula.train(frozen, out=tmp_path / "other")


def test_no_dev_film_at_all_is_refused_at_once(once: Config, tmp_path: Path) -> None:
    for path in images(once, "dev"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="10 of 10 dev images can't be read"):
        lingula.train(once, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_page")
def test_a_mended_film_has_scores_again(once: Config, tmp_path: Path) -> None:
    bad = images(once, "test")[0]
    good = bad.read_bytes()
    bad.write_bytes(b"")
    run = lingula.train(once, out=tmp_path / "run")
    bad.write_bytes(good)
    (run / "finished.json").unlink()  # as of a run that was stopped while it scored
    lingula.train(once, out=run)
    assert not failed(read_scores(run / "scores" / "test.csv")).any()
    assert not read_failures(run / "scores" / "test.csv")


def test_test_films_that_the_cache_lacks_are_told_before_the_first_step(
    once: Config, tmp_path: Path
) -> None:
    """Not after the last one, when all of them would have no scores."""
    table = Path(once.data.table)
    part = table.with_name("part.csv")
    lingula.data_filter(table, out=part, where="split != 'test'")
    lingula.data_cache(part, out=tmp_path / "cache", size=once.model.image_size)
    with pytest.raises(InputError, match="cache"):
        lingula.train(vary(once, data__cache=str(tmp_path / "cache")), out=tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_outside_table_is_named_with_ones_own(once: Config, tmp_path: Path) -> None:
    from builders import write_tiny

    other = write_tiny(tmp_path / "nih")
    text = other.read_text().replace(",p", ",q").replace(",qatient", ",patient")
    other.write_text(text.replace("images/", "images/n"))
    for path in (other.parent / "images").iterdir():
        path.rename(path.with_name(f"n{path.name}"))
    (other.parent / "images" / "n000.png").write_bytes(b"")
    with pytest.raises(InputError, match=rf"data check {once.data.table} {other}"):
        lingula.train(vary(once, data__outside=[str(other)]), out=tmp_path / "run")
