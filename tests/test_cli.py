"""The command line: what a person types, what it exits with, and what it does not import."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lingula import config as config_module
from lingula.cli.ensemble import folded
from lingula.config import KEYS, Config, diff, from_plain, overridden, to_yaml
from lingula.errors import InputError
from lingula.recipe import RECIPES, recipe

# Children that touch the network die of it: see its sitecustomize. They run the package that these
# tests import, wherever another may be installed.
OFFLINE = Path(__file__).parent / "offline"
PACKAGE = Path(config_module.__file__).parents[1]
CHILD = os.environ | {"PYTHONPATH": f"{OFFLINE}{os.pathsep}{PACKAGE}"}
NO_TORCH = """
import sys
from lingula.cli import main
sys.argv = ['lingula', *sys.argv[1:]]
try:
    main()
finally:
    heavy = {'torch', 'timm', 'transformers', 'lightning_fabric'} & sys.modules.keys()
    assert not heavy, f'Traceback: imported {heavy}'
"""


def lingula(*words: str, torch: bool = False) -> subprocess.CompletedProcess[str]:
    start = ["-m", "lingula"] if torch else ["-c", NO_TORCH]
    return subprocess.run(
        [sys.executable, *start, *words],
        capture_output=True,
        text=True,
        timeout=300,
        env=CHILD,
    )


def test_the_network_guard_of_these_tests_works() -> None:
    reach = "import socket; socket.create_connection(('127.0.0.1', 9), timeout=1)"
    done = subprocess.run(
        [sys.executable, "-c", reach],
        capture_output=True,
        text=True,
        env=CHILD,
    )
    assert done.returncode == 97 and "reached for the network" in done.stderr


@pytest.mark.slow
def test_the_demo_as_typed_without_a_network(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    done = lingula("demo", "--quick", "--out", str(out), torch=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == str(out / "report.html")
    page = (out / "report.html").read_text()
    loaded = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(\w+:)""", page)
    assert set(loaded) == {"data:"}
    again = lingula("demo", "--quick", "--out", str(out), torch=True)
    assert again.returncode == 0 and "nothing to do" in again.stderr


@pytest.mark.parametrize(
    ("words", "status", "mend"),
    [
        (["--help"], 0, "Classify chest radiographs"),
        (["--version"], 0, "not a medical device"),
        (["recipes"], 0, "smoke"),
        (["recipes", "paper/t1r9"], 0, "encoder"),
        (["train", "smoke", "model.layerz=6", "--out", "x"], 2, "model.decoder.layers"),
        (["train", "smok", "--out", "x"], 2, "Did you mean 'smoke'"),
        (["train", "smoke", "data.table=nowhere.csv", "--out", "x"], 2, "no table"),
        (["train", "smoke"], 2, "--out RUN"),
        (["train", "smoke", "optim.warmup_epochs=20", "--out", "x"], 2, "as long as the run"),
        (["train", "nowhere.yaml", "--out", "x"], 2, "no configuration file"),
        (["train", "lr=0.1/c.yaml", "--out", "x"], 2, "no configuration file lr=0.1/c.yaml"),
        (["train", "smoke", "lr=0.1", "--out", "x"], 2, "Did you mean 'optim.lr'"),
        (["train", "smoke", "data.table=no #1/t.csv", "--out", "x"], 2, "no #1/t.csv"),
        (["train", "smoke", "data.table=no.csv", "--out", "x", "--dry-run"], 2, "no table"),
        (["train", "--resume", "nowhere"], 2, "no run folder"),
        (["evaluate", "nowhere.csv", "--labels", "t.csv"], 2, "no scores file"),
        (["data", "check", "nowhere.csv"], 2, "no table"),
        (["data", "phantom", "x", "--n", "3"], 2, "30"),
        (["ensemble", "class-wise", "--member", "a", "b", "--out", "x"], 2, "NAME DEV TEST"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_quick_answers_without_torch(
    words: list[str], status: int, mend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = lingula(*words)
    assert done.returncode == status, done.stderr
    assert mend in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_help_is_instant() -> None:
    began = time.monotonic()
    lingula("--help")
    assert time.monotonic() - began < 2  # a fifth of a second on an idle machine


def test_evaluation_and_ensembles_need_no_torch(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,patient,split,Edema\na,1,dev,1\nb,2,dev,0\n")
    (tmp_path / "s.csv").write_text("image,Edema\na,.9\nb,.1\n")
    files = [str(tmp_path / "s.csv")] * 2
    done = lingula(
        "evaluate", files[0], "--labels", str(tmp_path / "t.csv"), "--json", "--ci", "20"
    )
    assert json.loads(done.stdout)["mAP"] == 1.0, done.stderr
    made = lingula(
        "ensemble",
        "class-wise",
        "--member",
        "m",
        *files,
        "--labels",
        str(tmp_path / "t.csv"),
        "--out",
        str(tmp_path / "e"),
    )
    assert made.returncode == 0, made.stderr
    again = lingula(
        "ensemble",
        "apply",
        str(tmp_path / "e" / "ensemble.json"),
        "--member",
        "m",
        files[0],
        "--out",
        str(tmp_path / "n.csv"),
    )
    assert again.returncode == 0, again.stderr


def test_member_values_are_joined() -> None:
    words = ["ensemble", "class-wise", "--member", "a", "d", "t", "--out", "x"]
    assert folded(words) == ["ensemble", "class-wise", "--member", "a\x1fd\x1ft", "--out", "x"]
    with pytest.raises(InputError):
        folded(["ensemble", "apply", "--member", "a", "--out"])


def test_train_predict_evaluate_as_typed(tiny_table: Path, tmp_path: Path) -> None:
    run, scores = str(tmp_path / "run"), str(tmp_path / "s.csv")
    words = ["train", "smoke", f"data.table={tiny_table}", "optim.epochs=1", "--out", run]
    done = lingula(*words, torch=True)
    assert done.returncode == 0 and done.stdout.strip() == run, done.stderr
    (tiny_table.parent / "images" / "000.png").write_bytes(b"")
    done = lingula("predict", run, "--data", str(tiny_table), "--out", scores, torch=True)
    assert done.returncode == 3 and "1 of 40 images" in done.stderr
    done = lingula("evaluate", scores, "--labels", str(tiny_table), "--json")
    value = json.loads(done.stdout)
    assert value["failed"] == ["images/000.png"] and value["n"] == 39
    # What comes after training, each a process that a connection would end with status 97.
    done = lingula("calibrate", run)
    assert done.returncode == 0 and done.stdout.strip().endswith("calibration.json"), done.stderr
    done = lingula(
        "evaluate",
        scores,
        "--labels",
        str(tiny_table),
        "--threshold",
        str(tmp_path / "run" / "calibration.json"),
    )
    assert done.returncode == 0 and "mAP" in done.stdout, done.stderr
    film, page = str(tiny_table.parent / "images" / "001.png"), str(tmp_path / "r.html")
    done = lingula("explain", run, "--data", film, "--out", str(tmp_path / "x"), torch=True)
    assert done.returncode == 0 and done.stdout.strip().endswith("index.html"), done.stderr
    done = lingula("report", run, "--out", page, torch=True)
    assert done.returncode == 0 and done.stdout.strip() == page, done.stderr
    words = ["train", "smoke", f"data.table={tiny_table}", "--out", "x", "--dry-run"]
    dry = lingula(*words, torch=True)  # it builds the network, once the table is in order
    assert dry.returncode == 0 and "20 train" in dry.stderr


def test_doctor() -> None:
    done = lingula("doctor", "--json", torch=True)
    assert json.loads(done.stdout)["packages"]["torch"]


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_come_back_from_their_yaml(name: str, tmp_path: Path) -> None:
    from lingula.config import read_config

    (tmp_path / "r.yaml").write_text(to_yaml(recipe(name)))
    assert read_config(tmp_path / "r.yaml") == recipe(name)


def test_overrides_change_what_they_name() -> None:
    config = overridden(
        Config(), ["optim.lr=1e-3", "loss.class_weights.Pleural Other=2", "augment.scale=[0.5,1]"]
    )
    assert diff(Config(), config) == {
        "optim.lr": (5e-5, 1e-3),
        "loss.class_weights": ({}, {"Pleural Other": 2.0}),
        "augment.scale": ([0.6, 1.0], [0.5, 1.0]),
    }


def test_wrong_settings_are_named(tmp_path: Path) -> None:
    from lingula.config import read_config

    with pytest.raises(InputError, match=r"unknown key 'model.decoder.layer'.*layers"):
        from_plain({"model": {"decoder": {"layer": 2}}})
    with pytest.raises(InputError, match=r"optim.lr"):
        overridden(Config(), ["optim.lr=fast"])
    (tmp_path / "evil.yaml").write_text('!!python/object/apply:os.system ["touch pwned"]')
    with pytest.raises(InputError):
        read_config(tmp_path / "evil.yaml")
    assert len(KEYS) <= 60
