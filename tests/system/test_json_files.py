"""A damaged JSON file that lingula wrote is named in one message, whichever command reads it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import lingula
from lingula.system.errors import InputError
from lingula.system.files import read_object

RUN = Path(__file__).parents[1] / "stored" / "run"
DAMAGE = {"cut": b'{"format": 1,', "empty": b"", "a list": b"[1]", "bytes": b"\xff\xfe{"}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, its scores, an ensemble, a calibration, a cache and a joined table."""
    place = tmp_path_factory.mktemp("outputs")
    shutil.copytree(RUN, place / "run")
    lingula.data_phantom(place / "films", n=40, size=48)
    table = place / "films" / "labels.csv"
    lingula.predict(place / "run", data=table, split="test", out=place / "s.csv")
    lingula.ensemble("model-wise", [place / "run"], out=place / "e")
    lingula.calibrate(place / "run", labels=table)
    lingula.apply_calibration(
        place / "run" / "calibration.json", place / "s.csv", out=place / "c.csv"
    )
    lingula.data_cache(table, out=place / "cache", size=32)
    (place / "own.csv").write_text("image,Edema\nimages/p00000_s1_1.png,1\n")
    own = {"labels": place / "own.csv", "out": place / "t.csv"}
    lingula.data_folder(place / "films", **own)
    return place


def _predict(p: Path, data: str = "films/labels.csv") -> object:
    return lingula.predict(p / "run", data=p / data, split="test", out=p / "s.csv")


def _report(p: Path) -> object:
    return lingula.report([p / "run"], labels=p / "films/labels.csv", out=p / "r.html")


def _folder(p: Path) -> object:
    return lingula.data_folder(p / "films", labels=p / "own.csv", out=p / "t.csv")


def _apply(p: Path) -> object:
    return lingula.apply_calibration(p / "run/calibration.json", p / "s.csv", out=p / "d.csv")


CASES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a model": ("run/best/model.json", _predict),
    "an environment": ("run/environment.json", _report),
    "attention": ("run/attention.json", _report),
    "epochs": ("run/metrics.jsonl", _report),
    "settings of scores": ("s.made.json", _predict),
    "settings of a table": ("t.made.json", _folder),
    "a description": (
        "films/labels.json",
        lambda p: lingula.data_split(p / "films/labels.csv", out=p / "n.csv"),
    ),
    "a calibration": ("run/calibration.json", _apply),
    "settings of calibrated scores": (
        "c.made.json",
        lambda p: lingula.evaluate(p / "c.csv", labels=p / "films/labels.csv"),
    ),
    "an ensemble": (
        "e/ensemble.json",
        lambda p: lingula.ensemble("model-wise", [p / "run"], out=p / "e"),
    ),
    "an ensemble to apply": (
        "e/ensemble.json",
        lambda p: lingula.ensemble_apply(
            p / "e/ensemble.json", [("run", p / "s.csv")], out=p / "m.csv"
        ),
    ),
    "a cache": ("cache/cache.json", lambda p: lingula.data_cache_verify(p / "cache")),
}


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_file_is_named(case: str, outputs: Path, tmp_path: Path) -> None:
    name, act = CASES[case]
    here = tmp_path / "here"
    for kind, content in DAMAGE.items():
        shutil.copytree(outputs, here, dirs_exist_ok=True)
        (here / name).write_bytes(content)
        if name == "films/labels.json" and kind == "a list":
            continue  # somebody's own file, which is not ours to read
        if name == "run/metrics.jsonl" and kind == "empty":
            continue  # no epoch yet
        with pytest.raises(InputError) as caught:
            act(here)
        assert Path(name).name in str(caught.value), kind


def test_an_object_without_a_key_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "finished.json"
    path.write_text('{"steps": 3}')
    assert read_object(path, "steps") == {"steps": 3}
    with pytest.raises(InputError, match=r"finished\.json is damaged: it has no 'seconds'"):
        read_object(path, "seconds")
    assert read_object(tmp_path / "none.json", absent_ok=True) == {}


# Files of others, or parts of a file, each of which refuses what it can't read by itself.
READ_THEMSELVES = {
    "tables/reading.py",
    "sources/chexpert.py",
    "verbs/evaluate.py",
    "settings/values.py",
    "images/cache.py",
    "scoring/parts.py",
    "system/files.py",
}


def test_one_function_reads_our_json_files() -> None:
    root = Path(lingula.__file__).parent
    found = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if "json.load" in path.read_text()
    }
    assert found <= READ_THEMSELVES
