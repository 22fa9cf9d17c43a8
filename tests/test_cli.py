"""The command line: what a person types, what it exits with, and what it does not import."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

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


def lingula(
    *words: str, torch: bool = False, env: dict[str, str] = CHILD
) -> subprocess.CompletedProcess[str]:
    start = ["-m", "lingula"] if torch else ["-c", NO_TORCH]
    return subprocess.run(
        [sys.executable, *start, *words],
        capture_output=True,
        text=True,
        timeout=300,
        env=env,
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
    said = done.stderr
    assert re.search(r"1\. draw 400 films of 96 pixels: about \d+ \w+\n", said), said
    assert re.search(
        r"\n  class-wise: mAP 0\.\d{3} \(0\.\d{3} to 0\.\d{3}\), AUROC 0\.\d{3} ", said
    ), said
    assert not re.search(r"[{}]|\d\.\d{5}", said), said
    assert said.index("All of it") < said.index("Epoch 1") < said.index("Result on")
    assert (out / "report.html").resolve().as_uri() in said
    page = (out / "report.html").read_text()
    loaded = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(\w+:)""", page)
    assert set(loaded) == {"data:"}
    again = lingula("demo", "--quick", "--out", str(out), torch=True)
    assert again.returncode == 0 and "nothing to do" in again.stderr
    assert "2. train" in again.stderr and "done before" in again.stderr
    assert "Timing" not in again.stderr and "Result on" in again.stderr


# Commands, each with its exit status and what it says; those of LIGHT load no tables either.
LIGHT: list[tuple[list[str], int, str]] = [
    (["--help"], 0, "Classify chest radiographs"),
    (["--version"], 0, "not a medical device"),
    (["nonsense"], 2, "nonsense"),
    (["train", "smoke", "--outt", "x"], 2, "--out"),
    (["train", "smoke", "model.layerz=6", "--out", "x"], 2, "model.decoder.layers"),
    (["train", "smok", "--out", "x"], 2, "Did you mean 'smoke'"),
    (["train", "smoke"], 2, "--out RUN"),
    (["train", "nowhere.yaml", "--out", "x"], 2, "no configuration file"),
    (["train", "--resume", "nowhere"], 2, "no run folder"),
    (["fetch", "smok"], 2, "Did you mean 'smoke'"),
]
QUICK: list[tuple[list[str], int, str]] = [
    (["recipes"], 0, "smoke"),
    (["recipes", "paper/t1r9"], 0, "encoder"),
    (["train", "smoke", "data.table=nowhere.csv", "--out", "x"], 2, "no table"),
    (["train", "smoke", "optim.warmup_epochs=20", "--out", "x"], 2, "as long as the run"),
    (["predict", "nowhere", "--data", "x", "--out", "s.csv"], 2, "no trained model"),
    (["explain", "nowhere", "--data", "x", "--out", "x"], 2, "no trained model"),
    (["report", "nowhere", "--out", "r.html"], 2, "nowhere"),
    (["calibrate", "nowhere"], 2, "nowhere"),
    (["reproduce", "table3", "--out", "x"], 2, "table1 and table2"),
    (["evaluate", "nowhere.csv", "--labels", "t.csv"], 2, "no scores file"),
    (["review", "nowhere.csv", "--labels", "t.csv", "--out", "x"], 2, "no table"),
    (["data", "check", "nowhere.csv"], 2, "no table"),
    (["data", "phantom", "x", "--n", "3"], 2, "30"),
    (["ensemble", "class-wise", "--member", "a", "b", "--out", "x"], 2, "NAME DEV TEST"),
]
ANSWERS = """
import contextlib, io, json, sys
from lingula.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv = ['lingula', *words]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main()
        except SystemExit as ended:
            status = ended.code
    print(json.dumps([status, said.getvalue(), sorted(m for m in sys.modules if '.' not in m)]))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Status, words and loaded packages of each command in turn, in one process: quickest first."""
    lines = [words for words, _, _ in (*LIGHT, *QUICK)]
    done = subprocess.run(
        [sys.executable, "-c", ANSWERS, json.dumps(lines)],
        capture_output=True,
        text=True,
        timeout=300,
        env=CHILD,
        cwd=tmp_path_factory.mktemp("empty"),
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {" ".join(words): answer for words, answer in zip(lines, found, strict=True)}


@pytest.mark.parametrize(("words", "status", "mend"), [*LIGHT, *QUICK])
def test_quick_answers(
    words: list[str], status: int, mend: str, answers: dict[str, list[Any]]
) -> None:
    ended, said, loaded = answers[" ".join(words)]
    assert ended == status and mend in said, said
    assert "Traceback" not in said
    assert not {"torch", "timm", "transformers", "lightning_fabric"} & set(loaded)
    if words in [light for light, _, _ in LIGHT]:
        # Each of these takes longer to load than the answer to find.
        assert not {"numpy", "polars", "omegaconf", "rich", "PIL", "matplotlib"} & set(loaded)


@pytest.mark.parametrize(
    ("words", "most"), [(["--help"], 0.5), (["train", "smoke", "optim.epoch=3", "--out", "x"], 0.8)]
)
def test_quick_answers_take_little_time(words: list[str], most: float) -> None:
    """In seconds of a core, which other processes leave alone: 0.13 and 0.26 when written."""
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    lingula(*words)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent < most


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
    dry = lingula("train", "smoke", f"data.table={tiny_table}", "--out", "x", "--dry-run")
    assert dry.returncode == 0 and "20 train" in dry.stderr


def test_doctor() -> None:
    env = {k: v for k, v in CHILD.items() if k != "OMP_WAIT_POLICY"} | {"OMP_DISPLAY_ENV": "true"}
    done = lingula("doctor", "--json", torch=True, env=env)
    assert json.loads(done.stdout)["packages"]["torch"]
    if "OPENMP DISPLAY ENVIRONMENT" in done.stderr:  # of GNU's OpenMP, as torch has loaded it
        assert "OMP_WAIT_POLICY = 'PASSIVE'" in done.stderr


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
