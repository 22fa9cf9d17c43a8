"""The command line: what a person types, what it exits with, and what it does not import."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

import lingula as package
from lingula.cli import app
from lingula.cli.signatures import PYTHON_ONLY, read_verb
from lingula.settings import config as config_module
from lingula.settings.config import KEYS, Config, diff, override_settings, parse_config, to_yaml
from lingula.settings.recipes import RECIPES, recipe
from lingula.system.errors import InputError

# Children that touch the network die of it: see its sitecustomize. They run the package that these
# tests import, wherever another may be installed.
OFFLINE = Path(__file__).parent / "offline"
PACKAGE = Path(config_module.__file__).parents[2]
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


# Several commands in turn in one process, which loads what they need once; each is typed anew.
IN_TURN = """
import contextlib, io, json, sys
from lingula.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv = ['lingula', *words]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as ended:
            status = ended.code
    loaded = sorted(name for name in sys.modules if '.' not in name)
    print(json.dumps([status, out.getvalue(), err.getvalue(), loaded]), file=sys.__stdout__)
"""
TORCH = {"torch", "timm", "transformers", "lightning_fabric"}


@dataclass(frozen=True)
class Answer:
    """What a command ended with and said, and the packages that were loaded by then."""

    status: int
    out: str
    err: str
    loaded: set[str]


def in_turn(commands: list[list[str]], folder: Path) -> list[Answer]:
    """The answers of commands in one process in a folder; one that connects ends it with 97.

    GNU's OpenMP, where torch loads it, says how it lets threads wait.
    """
    env = {k: v for k, v in CHILD.items() if k != "OMP_WAIT_POLICY"} | {"OMP_DISPLAY_ENV": "true"}
    done = subprocess.run(
        [sys.executable, "-c", IN_TURN, json.dumps(commands)],
        capture_output=True,
        text=True,
        timeout=300,
        env=env,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    if "OPENMP DISPLAY ENVIRONMENT" in done.stderr:
        assert "OMP_WAIT_POLICY = 'PASSIVE'" in done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(commands)
    return [Answer(status, out, err, set(loaded)) for status, out, err, loaded in found]


@pytest.mark.slow
def test_the_demo_as_typed_without_a_network(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    done = lingula("demo", "--quick", "--out", str(out), torch=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == str(out / "report.html")
    said = done.stderr
    assert re.search(r"1\. draw 400 images of 96 pixels: about \d+ \w+\n", said), said
    assert re.search(
        r"\n  class-wise: mAP 0\.\d{3} \(0\.\d{3} to 0\.\d{3}\), AUROC 0\.\d{3} ", said
    ), said
    assert not re.search(r"[{}]|\d\.\d{5}", said), said
    assert said.index("In all about") < said.index("Epoch 1") < said.index("Result on")
    assert (out / "report.html").resolve().as_uri() in said
    page = (out / "report.html").read_text()
    loaded = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(\w+:)""", page)
    assert set(loaded) == {"data:"}
    again = lingula("demo", "--quick", "--out", str(out), torch=True)
    assert again.returncode == 0 and "nothing to do" in again.stderr
    assert "2. train" in again.stderr and "done already" in again.stderr
    assert "Timing" not in again.stderr and "Result on" in again.stderr


# Commands, each with its exit status and what it says; those of LIGHT load no tables either.
LIGHT: list[tuple[list[str], int, str]] = [
    ([], 0, "First steps:"),
    (["--help"], 0, "Classify chest radiographs"),
    (["--version"], 0, "not a medical device"),
    (["nonsense"], 2, "nonsense"),
    (["train", "smoke", "--outt", "x"], 2, "--out"),
    (["train", "smoke", "model.layerz=6", "--out", "x"], 2, "model.decoder.layers"),
    (["train", "smok", "--out", "x"], 2, "Did you mean 'smoke'"),
    (["train", "smoke"], 2, "--out RUN"),
    (["train", "nowhere.yaml", "--out", "x"], 2, "no configuration file"),
    (["train", "--resume", "nowhere"], 2, "no run folder"),
    (["train", "lr=0.1/c.yaml", "--out", "x"], 2, "no configuration file lr=0.1/c.yaml"),
    (["train", "smoke", "lr=0.1", "--out", "x"], 2, "Did you mean 'optim.lr'"),
    (["fetch", "smok"], 2, "Did you mean 'smoke'"),
]
QUICK: list[tuple[list[str], int, str]] = [
    (["recipes"], 0, "smoke"),
    (["recipes", "paper/t1r9"], 0, "encoder"),
    (["train", "smoke", "data.table=nowhere.csv", "--out", "x"], 2, "no table"),
    (["train", "smoke", "optim.warmup_epochs=20", "--out", "x"], 2, "as long as the run"),
    (["train", "smoke", "data.table=no #1/t.csv", "--out", "x"], 2, "no #1/t.csv"),
    (["train", "smoke", "data.table=no.csv", "--out", "x", "--dry-run"], 2, "no table"),
    (["predict", "nowhere", "--data", "x", "--out", "s.csv"], 2, "no run or model folder"),
    (["explain", "nowhere", "--data", "x", "--out", "x"], 2, "no run or model folder"),
    (["report", "nowhere", "--out", "r.html"], 2, "nowhere"),
    (["calibrate", "nowhere"], 2, "nowhere"),
    (["reproduce", "table3", "--out", "x"], 2, "table1 and table2"),
    (["evaluate", "nowhere.csv", "--labels", "t.csv"], 2, "no scores file"),
    (["review", "nowhere.csv", "--labels", "t.csv", "--out", "x"], 2, "no scores file"),
    (["data", "check", "nowhere.csv"], 2, "no table"),
    (["data", "phantom", "x", "--n", "3"], 2, "30"),
    (["data", "cache", "--verify", "nowhere"], 2, "nowhere"),
    (["data", "cache", "--join", "nowhere"], 2, "nowhere"),
    (["data", "cache", "t.csv"], 2, "lingula data cache TABLE --out DIR"),
    (["data", "cache", "t.csv", "--verify", "x"], 2, "stand alone"),
    (["calibrate", "s.csv", "--apply", "c.json"], 2, "--apply takes SCORES and --out"),
    (["train", "smoke", "demo", "--out", "x"], 2, "not smoke, demo"),
    (["ensemble", "class-wise", "--member", "a", "b", "--out", "x"], 2, "NAME DEV TEST"),
]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    """The answer of each command, quickest first."""
    lines = [words for words, _, _ in (*LIGHT, *QUICK)]
    found = in_turn(lines, tmp_path_factory.mktemp("empty"))
    return {" ".join(words): answer for words, answer in zip(lines, found, strict=True)}


@pytest.mark.parametrize(("words", "status", "mend"), [*LIGHT, *QUICK])
def test_quick_answers(
    words: list[str], status: int, mend: str, answers: dict[str, Answer]
) -> None:
    answer = answers[" ".join(words)]
    assert answer.status == status and mend in answer.out + answer.err, answer.err
    assert "Traceback" not in answer.err
    assert not TORCH & answer.loaded
    if words in [light for light, _, _ in LIGHT]:
        # Each of these takes longer to load than the answer to find.
        slow = {"numpy", "polars", "omegaconf", "rich", "PIL", "matplotlib"}
        assert not slow & answer.loaded


@pytest.mark.parametrize(
    ("words", "most"), [(["--help"], 0.5), (["train", "smoke", "optim.epoch=3", "--out", "x"], 0.6)]
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
    member = ["--member", "m", "s.csv", "s.csv"]
    evaluated, made, again = in_turn(
        [
            ["evaluate", "s.csv", "--labels", "t.csv", "--json", "--ci", "20"],
            ["ensemble", "class-wise", *member, "--labels", "t.csv", "--out", "e"],
            ["ensemble", "apply", "e/ensemble.json", *member[:3], "--out", "n.csv"],
        ],
        tmp_path,
    )
    assert json.loads(evaluated.out)["mAP"] == 1.0, evaluated.err
    assert made.status == 0, made.err
    assert again.status == 0 and not TORCH & again.loaded, again.err


@pytest.mark.parametrize("name", package.MODULES)
def test_every_option_is_explained(name: str) -> None:
    verb = read_verb(name)
    assert len(verb.text.partition("\n")[0]) <= 100
    for parameter in verb.parameters:
        if (name, parameter.name) not in PYTHON_ONLY:
            assert parameter.help and parameter.types, parameter


def commands(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name)


@pytest.mark.parametrize("words", list(commands(app)), ids=" ".join)
def test_options_of_the_command_line(words: tuple[str, ...]) -> None:
    """`options.json` has the options and arguments of every command; scripts of users have them."""
    known = json.loads((Path(__file__).parent / "options.json").read_text())
    command: click.Command | None = app
    for word in words:
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), word)
    assert command is not None
    named = sorted(o for p in command.params for o in (*p.opts, *p.secondary_opts))
    assert set(known[" ".join(words)]) <= set(named)


def test_train_predict_evaluate_as_typed(tiny_table: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(tiny_table.parent, tmp_path / "broken") / tiny_table.name
    (broken.parent / "images" / "000.png").write_bytes(b"")
    film = str(tiny_table.parent / "images" / "001.png")
    settings = ["smoke", f"data.table={tiny_table}", "optim.epochs=1"]
    doctor, train, predict, explain, report = in_turn(
        [
            ["doctor", "--json"],
            ["train", *settings, "--out", "run"],
            ["predict", "run", "--data", str(broken), "--out", "s.csv"],
            ["explain", "run", "--data", film, "--out", "x"],
            ["report", "run", "--out", "r.html"],
        ],
        tmp_path,
    )
    assert json.loads(doctor.out)["packages"]["torch"], doctor.err
    assert train.status == 0 and train.out.strip() == "run", train.err
    assert re.search(r"On the 10 images of test: mAP 0\.\d{3}, AUROC 0\.\d{3} over", train.err)
    assert "Next: lingula predict run --data IMAGES --out scores.csv" in train.err
    assert not re.search(r"[{}]|\d\.\d{5}", train.err), train.err
    assert predict.status == 3 and "1 of 40 images" in predict.err
    assert explain.status == 0 and explain.out.strip() == "x/index.html", explain.err
    assert report.status == 0 and report.out.strip() == "r.html", report.err
    # What can do without torch.
    threshold = ["--threshold", "run/calibration.json"]
    scored, calibrated, called = in_turn(
        [
            ["evaluate", "s.csv", "--labels", str(tiny_table), "--json"],
            ["calibrate", "run"],
            ["evaluate", "s.csv", "--labels", str(tiny_table), *threshold],
        ],
        tmp_path,
    )
    value = json.loads(scored.out)
    assert value["failed"] == ["images/000.png"] and value["n"] == 39
    assert calibrated.status == 0 and calibrated.out.strip() == "run/calibration.json"
    assert called.status == 0 and "mAP" in called.out, called.err
    assert not TORCH & called.loaded


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_come_back_from_their_yaml(name: str, tmp_path: Path) -> None:
    from lingula.settings.config import read_config

    (tmp_path / "r.yaml").write_text(to_yaml(recipe(name)))
    assert read_config(tmp_path / "r.yaml") == recipe(name)


def test_overrides_change_what_they_name() -> None:
    config = override_settings(
        Config(), ["optim.lr=1e-3", "loss.class_weights.Pleural Other=2", "augment.scale=[0.5,1]"]
    )
    assert diff(Config(), config) == {
        "optim.lr": (5e-5, 1e-3),
        "loss.class_weights": ({}, {"Pleural Other": 2.0}),
        "augment.scale": ([0.6, 1.0], [0.5, 1.0]),
    }


def test_wrong_settings_are_named(tmp_path: Path) -> None:
    from lingula.settings.config import read_config

    with pytest.raises(InputError, match=r"unknown key 'model.decoder.layer'.*layers"):
        parse_config({"model": {"decoder": {"layer": 2}}})
    with pytest.raises(InputError, match=r"optim.lr"):
        override_settings(Config(), ["optim.lr=fast"])
    (tmp_path / "evil.yaml").write_text('!!python/object/apply:os.system ["touch pwned"]')
    with pytest.raises(InputError):
        read_config(tmp_path / "evil.yaml")
    assert len(KEYS) <= 66
