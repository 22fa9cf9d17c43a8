"""`train --dry-run` refuses what training refuses at once, with the same words, and writes nothing."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch

import lingula
from builders import write_tiny
from lingula.settings.config import Config, vary
from lingula.system import claims
from lingula.system.errors import InputError
from lingula.training import run_folder


@pytest.fixture
def once(tiny_config: Config, tmp_path: Path) -> Config:
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "other.pth")
    (tmp_path / "empty").mkdir()
    return vary(tiny_config, optim__epochs=1)


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lingula.verbs.report.report", lambda *_, **__: None)


def everything(folder: Path) -> dict[str, float]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


SETTINGS = (
    "model.encoder=resnet-18",
    "model.weights=nosuch.pth",
    "model.weights={tmp}/other.pth",
    "model.weights={tmp}/empty",
    "model.weights=imagenet",
    "model.text=./nosuch",
    "model.text={tmp}/empty",
    "model.text=nobody/nosuch-encoder",
    "model.text={tmp}/nosuch.safetensors",
    "model.checkpointing=true model.encoder=dla34 model.stage=0",
    "device=mps",
    "data.cache={tmp}/nosuch",
    "data.cache={tmp}/cache",
    "data.root={tmp}/empty",
    "data.outside={tmp}/nosuch.csv",
    "loss.class_weights.Nosuch=2",
    "loss.worst.run={tmp}/empty",
    "data.table={tmp}/nosuch.csv",
)


@pytest.mark.parametrize("given", SETTINGS)
def test_a_setting_that_training_refuses(once: Config, tmp_path: Path, given: str) -> None:
    words = given.format(tmp=tmp_path).split()
    if "/cache" in given:  # of another size
        lingula.data_cache(once.data.table, out=tmp_path / "cache", size=64)
    before = everything(tmp_path)
    told = []
    for dry in (True, False):
        with pytest.raises(InputError) as refused:
            lingula.train(once, words, out=tmp_path / "run", dry_run=dry)
        told.append(str(refused.value))
    assert told[0] == told[1]
    assert everything(tmp_path) == before


def test_cuda_and_processes_that_are_not_there(
    once: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no CUDA device"):
            lingula.train(once, ["device=cuda"], out=tmp_path / "run", dry_run=True)
    step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "0"}
    for name, value in step.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="among 8 processes"):
        lingula.train(once, out=tmp_path / "run", dry_run=True)


@pytest.mark.parametrize("split", ["train", "dev", "outside"])
def test_images_that_are_missing(once: Config, tmp_path: Path, split: str) -> None:
    other = write_tiny(tmp_path / "nih")
    other.write_text(other.read_text().replace(",p", ",q").replace(",qatient", ",patient"))
    other.write_text(other.read_text().replace("images/", "images/n"))
    for path in (other.parent / "images").iterdir():
        path.rename(path.with_name(f"n{path.name}"))
    config = vary(once, data__outside=[str(other)])
    lingula.train(config, out=tmp_path / "run", dry_run=True)
    number = {"train": "000", "dev": "004", "outside": "n000"}[split]
    folder = other.parent if split == "outside" else Path(once.data.table).parent
    (folder / "images" / f"{number}.png").unlink()
    with pytest.raises(InputError, match=f"1 of .* {split} images are missing, first: .*{number}"):
        lingula.train(config, out=tmp_path / "run", dry_run=True)


def test_test_images_that_are_missing_are_told(
    once: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (Path(once.data.table).parent / "images" / "006.png").unlink()
    lingula.train(once, out=tmp_path / "run", dry_run=True)
    assert "1 of 10 test images are missing" in caplog.text


def _other(run: Path) -> None:
    run.mkdir()
    (run / "notes.txt").write_text("mine")


PLACES: tuple[tuple[Callable[[Path], object], str], ...] = (
    (_other, "is there already, and is not a run"),
    (lambda run: run.write_text("mine"), "is there already, and is not a run"),
    (lambda run: run.parent.joinpath("file").write_text(""), "Not a directory"),
)


@pytest.mark.parametrize(("make", "words"), PLACES)
def test_a_place_that_training_refuses(
    once: Config, tmp_path: Path, make: Callable[[Path], object], words: str
) -> None:
    run = tmp_path / "run"
    make(run)
    out = tmp_path / "file" / "run" if "directory" in words else run
    for dry in (True, False):
        with pytest.raises(InputError, match=words):
            lingula.train(once, out=out, dry_run=dry)
    if run.is_dir():
        lingula.train(once, out=out, dry_run=True, overwrite=True)
        assert out.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_that_can_not_be_written(once: Config, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o555)
    with pytest.raises(InputError, match="Permission denied"):
        lingula.train(once, out=tmp_path / "closed" / "run", dry_run=True)


def test_runs_that_are_there(
    once: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lingula")
    run = lingula.train(once, out=tmp_path / "run")
    before = everything(run)
    caplog.clear()
    lingula.train(once, out=run, dry_run=True)
    lingula.train(resume=run, dry_run=True)
    assert caplog.text.count("is finished; there is nothing to do") == 2
    with pytest.raises(InputError, match=r"optim\.lr"):
        lingula.train(once, ["optim.lr=0.5"], out=run, dry_run=True)
    table = Path(once.data.table)
    table.write_text(table.read_text().replace("p0,", "p00,"))
    with pytest.raises(InputError, match="table has changed"):
        lingula.train(once, out=run, dry_run=True)
    assert everything(run) == before
    with claims.lock_folder(run, "training in"), pytest.raises(InputError, match="Another process"):
        lingula.train(once, out=run, dry_run=True)


def test_the_phantom_is_rehearsed_without_drawing_it(tmp_path: Path) -> None:
    lingula.train("smoke", out=tmp_path / "run", dry_run=True)
    lingula.train("smoke", ["data.outside=[phantom:nih]"], out=tmp_path / "run", dry_run=True)
    for wrong in ("model.encoder=resnet-18", "model.weights=nosuch.pth", "loss.class_weights.X=2"):
        with pytest.raises(InputError):
            lingula.train("smoke", [wrong], out=tmp_path / "run", dry_run=True)
    assert not (tmp_path / "run").exists()


def test_what_is_fine_is_left_alone(once: Config, tmp_path: Path) -> None:
    before = everything(tmp_path)
    lingula.train(once, out=tmp_path / "a" / "run", dry_run=True)
    assert everything(tmp_path) == before and not run_folder.is_finished(tmp_path / "a" / "run")
