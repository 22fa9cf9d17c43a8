"""Runs whose data, weights or folders lie elsewhere now: what they hold counts, not where."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import lingula
from builders import CLASSES, write_tiny
from lingula.model.text_encoder import save_tiny
from lingula.settings.config import Config, read_config, vary
from lingula.settings.recipes import recipe
from lingula.system import signals
from lingula.system.errors import InputError
from lingula.training import loop
from lingula.verbs.report import report as page

BEST = Path("best") / "model.safetensors"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table and films, weights, and a text encoder."""
    folder = tmp_path_factory.mktemp("place") / "first"
    write_tiny(folder / "data")
    torch.manual_seed(3)
    torch.save(timm.create_model("test_resnet").state_dict(), folder / "w.pth")
    save_tiny(folder / "bert", "bert", CLASSES)
    return folder


def settings(place: Path) -> Config:
    return vary(
        recipe("smoke"),
        data__table=str(place / "data" / "labels.csv"),
        model__encoder="test_resnet",
        model__weights=str(place / "w.pth"),
        model__text=str(place / "bert"),
        optim__batch_size=8,
        optim__epochs=2,
        precision="fp32",
    )


@pytest.fixture(scope="module")
def whole(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    return lingula.train(settings(place), out=tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page of a run takes longer than these trainings; the real one is `page`."""
    monkeypatch.setattr("lingula.verbs.report.report", lambda *_, **__: None)
    monkeypatch.setattr("lingula.reporting.report.DRAWS", 20)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No output of the text encoder from another test, nor one left for it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def first(place: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(place, tmp_path / "first"))


def moved(first: Path) -> Path:
    """The same files elsewhere, and nothing where they were."""
    second = first.with_name("second, 2024 #1")
    first.rename(second)
    return second


def begun(config: Config, out: Path, monkeypatch: pytest.MonkeyPatch, at: int = 4) -> Path:
    """A run that was stopped in its second epoch."""
    usual: Callable[..., None] = loop.set_learning_rates

    def stop(optimizer: object, schedule: object, step: int) -> None:
        if step == at:
            signal.raise_signal(signal.SIGTERM)
        usual(optimizer, schedule, step)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "set_learning_rates", stop)
        with pytest.raises(signals.Interrupted):
            lingula.train(config, out=out)
    return out


def same(run: Path, whole: Path) -> None:
    for name in (BEST, Path("scores") / "test.csv"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name


def test_the_same_line_with_other_places_goes_on(
    first: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(settings(first), tmp_path / "run", monkeypatch)
    second = moved(first)
    lingula.train(settings(second), out=run)
    same(run, whole)
    # From here on the run knows where they are, finished or not.
    assert read_config(run / "config.yaml").data.table == str(second / "data" / "labels.csv")
    third = second.rename(tmp_path / "third")
    before = (run / "finished.json").stat().st_mtime_ns
    lingula.train(settings(third), out=run)
    assert (run / "finished.json").stat().st_mtime_ns == before
    assert read_config(run / "config.yaml").model.weights == str(third / "w.pth")
    page([run], out=tmp_path / "r.html")


def test_resume_with_new_places_goes_on(
    first: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(settings(first), tmp_path / "run", monkeypatch)
    second = moved(first)
    with pytest.raises(InputError, match=r"--resume .*run data\.table=TABLE"):
        lingula.train(resume=run)
    given = [f"data.table={second / 'data' / 'labels.csv'}", f"model.weights={second / 'w.pth'}"]
    lingula.train(overrides=[*given, f"model.text={second / 'bert'}"], resume=run)
    same(run, whole)


def test_images_alone_may_be_moved(
    first: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(settings(first), tmp_path / "run", monkeypatch)
    (first / "data" / "images").rename(tmp_path / "images")
    with pytest.raises(InputError, match=r"images are missing.*data\.root=FOLDER"):
        lingula.train(resume=run)
    lingula.train(overrides=[f"data.root={tmp_path}"], resume=run)
    same(run, whole)


def test_a_run_with_a_checkpoint_needs_what_it_started_from_no_more(
    first: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(settings(first), tmp_path / "run", monkeypatch)
    (first / "w.pth").unlink()
    shutil.rmtree(first / "bert")
    lingula.train(resume=run)
    same(run, whole)
    kept, other = (json.loads((r / "best" / "model.json").read_text()) for r in (run, whole))
    for key in ("weights", "normalisation", "classes"):
        assert kept[key] == other[key]


def test_a_frozen_encoder_is_taken_from_the_checkpoint(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its features are made with it, before the checkpoint is read."""
    frozen = vary(settings(first), model__frozen=True)
    undisturbed = lingula.train(frozen, out=tmp_path / "whole")
    run = begun(frozen, tmp_path / "run", monkeypatch)
    shutil.rmtree(run / "features")
    (first / "w.pth").unlink()
    lingula.train(resume=run)
    same(run, undisturbed)


def test_other_contents_are_refused_wherever_they_lie(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(settings(first), tmp_path / "run", monkeypatch)
    before = (run / "config.yaml").read_bytes()
    second = Path(shutil.copytree(first, tmp_path / "second"))
    table = second / "data" / "labels.csv"
    table.write_text(table.read_text().replace("p0,", "p00,"))
    with pytest.raises(InputError, match="table has changed"):
        lingula.train(overrides=[f"data.table={table}"], resume=run)
    torch.save(timm.create_model("test_resnet").state_dict(), second / "w.pth")
    save_file({name: torch.randn(8) for name in CLASSES}, second / "text.safetensors")
    for wrong in (
        f"model.weights={second / 'w.pth'}",
        "model.weights=none",
        f"model.text={second / 'text.safetensors'}",
        "model.text=orthogonal",
    ):
        with pytest.raises(InputError, match=rf"{wrong.partition('=')[0]}: .*first"):
            lingula.train(overrides=[wrong], resume=run)
    assert (run / "config.yaml").read_bytes() == before
    with pytest.raises(InputError, match=r"optim\.lr"):
        lingula.train(overrides=["optim.lr=0.5"], resume=run)


def test_other_films_under_the_same_names_are_refused(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A root with the films at another contrast, say: the table can't tell. One may be mended."""
    run = begun(settings(first), tmp_path / "run", monkeypatch)
    second = Path(shutil.copytree(first, tmp_path / "second"))
    films = sorted((second / "data" / "images").iterdir())
    films[0].write_bytes(films[0].read_bytes() + b"\0")
    root = f"data.root={second / 'data'}"
    lingula.train(overrides=[root], resume=run, dry_run=True)
    for film in films:
        film.write_bytes(film.read_bytes() + b"\0")
    for dry in (True, False):
        with pytest.raises(InputError, match=r"not the images.*sizes(.|\n)*data\.root"):
            lingula.train(overrides=[root], resume=run, dry_run=dry)
    assert read_config(run / "config.yaml").data.root is None


def test_classes_in_another_order_are_refused(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes with another description: positions would mean other classes."""
    run = begun(settings(first), tmp_path / "run", monkeypatch)
    second = moved(first)
    described = {"format": 1, "classes": list(CLASSES[::-1])}
    (second / "data" / "labels.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match=r"begun with the classes Cardiomegaly, .*now they are No"):
        lingula.train(settings(second), out=run)


def test_a_cache_may_be_moved_but_not_changed(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, size = first / "data" / "labels.csv", recipe("smoke").model.image_size
    for codec in ("raw", "jpeg"):
        lingula.data_cache(table, out=tmp_path / codec, size=size, codec=codec)  # type: ignore[arg-type]
    lossy = vary(settings(first), data__cache=str(tmp_path / "jpeg"))
    run = begun(lossy, tmp_path / "run", monkeypatch)
    for other in ("null", str(tmp_path / "raw")):
        with pytest.raises(InputError, match=r"data\.cache"):
            lingula.train(overrides=[f"data.cache={other}"], resume=run)
    (tmp_path / "jpeg").rename(tmp_path / "elsewhere")
    lingula.train(overrides=[f"data.cache={tmp_path / 'elsewhere'}"], resume=run)
    assert read_config(run / "config.yaml").data.cache == str(tmp_path / "elsewhere")


def test_outside_tables_may_be_moved(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_tiny(tmp_path / "nih")
    lines = [line.replace(",p", ",q", 1) for line in other.read_text().splitlines()]
    other.write_text("\n".join(lines).replace("qatient", "patient"))
    for path in (other.parent / "images").iterdir():
        path.rename(path.with_name(f"n{path.name}"))
    other.write_text(other.read_text().replace("images/", "images/n"))
    run = begun(vary(settings(first), data__outside=[str(other)]), tmp_path / "run", monkeypatch)
    other.parent.rename(tmp_path / "nih2")
    place = tmp_path / "nih2" / "labels.csv"
    lingula.train(overrides=[f"data.outside=[{place}]"], resume=run)
    assert read_config(run / "config.yaml").data.outside == (str(place),)


def test_report_and_explain_take_the_table_where_it_lies_now(first: Path, tmp_path: Path) -> None:
    run = lingula.train(vary(settings(first), optim__epochs=1), out=tmp_path / "run")
    second = moved(first)
    table, films = second / "data" / "labels.csv", second / "data" / "images"
    for ask in (
        lambda **at: page([run], out=tmp_path / "r.html", **at),
        lambda **at: lingula.explain(run, data=films, out=tmp_path / "e", limit=2, **at),
    ):
        with pytest.raises(InputError, match=r"There is no table .*--labels TABLE"):
            ask()
        with pytest.raises(InputError, match=r"There is no table .*nosuch"):
            ask(labels=tmp_path / "nosuch.csv")
        assert ask(labels=table).is_file()


def test_splits_that_the_run_made_go_with_the_table(first: Path, tmp_path: Path) -> None:
    table = first / "data" / "labels.csv"
    cells = [line.split(",") for line in table.read_text().splitlines()]
    table.write_text("\n".join(",".join(row[:3] + row[4:]) for row in cells))
    run = lingula.train(vary(settings(first), optim__epochs=1), out=tmp_path / "run")
    second = moved(first)
    page([run], out=tmp_path / "own.html")  # the run kept a copy of the labels
    page([run], out=tmp_path / "r.html", labels=second / "data" / "labels.csv")


def test_a_run_folder_takes_its_phantom_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lingula.verbs.data_phantom.write_phantom", _few)
    once = vary(recipe("smoke"), optim__epochs=2, precision="fp32")
    run = begun(once, tmp_path / "a" / "run", monkeypatch, at=3)
    run.parent.rename(tmp_path / "b")
    run = tmp_path / "b" / "run"
    lingula.train(resume=run)
    (tmp_path / "b").rename(tmp_path / "c")
    page([tmp_path / "c" / "run"], out=tmp_path / "r.html")


def _few(out: Path, **given: object) -> Path:
    from lingula.phantom import write_phantom

    return write_phantom(out, **(given | {"n": 130, "size": 64}))  # type: ignore[arg-type]


def test_the_worst_classes_of_a_run_whose_table_was_moved(first: Path, tmp_path: Path) -> None:
    """Both were trained on the one table, and this training's settings say where it is now."""
    once = vary(settings(first), optim__epochs=1)
    earlier = lingula.train(once, out=tmp_path / "earlier")
    second = moved(first)
    run = lingula.train(
        settings(second),
        ["optim.epochs=1", f"loss.worst.run={earlier}", "loss.worst.k=1"],
        out=tmp_path / "run",
    )
    assert len(read_config(run / "config.yaml").loss.class_weights) == 1
