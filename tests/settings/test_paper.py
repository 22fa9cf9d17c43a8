"""The paper's tables as recipes, and their reproduction."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from inspect import signature
from pathlib import Path

import numpy as np
import pytest

import lingula
from builders import imagenet_of
from lingula.reporting.ladder import Ladder, Line, to_csv, to_html, to_markdown
from lingula.reproduction.request import SCALES
from lingula.reproduction.request import scale_config as scaled
from lingula.reproduction.results import average_seeds
from lingula.settings.config import Config, diff, read_config, vary
from lingula.settings.recipes import ASSUMED, NINE, RECIPES, TABLE_1, TABLE_2, recipe, row_config
from lingula.system.errors import InputError

# Tables 1 and 2 of the paper, typed off it: encoder, text, separate, factor, MixUp, TTA, mAP.
PAPER = """
ResNet-50    PubMedBERT  - - - - 0.3187
ResNet-50    PubMedBERT  x - - - 0.3193
ResNet-50    PubMedBERT  x - - x 0.3220
ResNet-50    PubMedBERT  x 2 - x 0.3273
DenseNet-121 PubMedBERT  x 2 - x 0.3236
ResNet-50    Clinical-T5 x 3 x x 0.3273
ResNet-50    PubMedBERT  x 3 x x 0.3247
ResNet-50    Clinical-T5 x 2 x x 0.3244
ResNet-50    PubMedBERT  x 2 x x 0.3280
"""
PARENTS = {2: 1, 3: 2, 4: 3, 5: 4, 9: 4, 7: 9, 8: 9, 6: 8}


def test_every_row_is_the_papers() -> None:
    encoders = {"ResNet-50": "resnet50.tv_in1k", "DenseNet-121": "densenet121.tv_in1k"}
    texts = {"PubMedBERT": "med-kebert", "Clinical-T5": "clinical-t5"}
    lines = PAPER.split("\n")[1:-1]
    assert len(lines) == len(TABLE_1) == 9
    for row, line in zip(TABLE_1, lines, strict=True):
        encoder, text, separate, factor, mixup, tta, score = line.split()
        config = recipe(row.name)
        assert row.mAP == float(score) and row.parent == PARENTS.get(row.number)
        assert (row.encoder, row.text) == (encoder, text)
        assert config.model.encoder == encoders[encoder] and config.model.text == texts[text]
        assert config.model.classifier == ("separate" if separate == "x" else "shared")
        assert (config.model.classifier == "separate") == row.separate
        weights = {} if factor == "-" else dict.fromkeys(NINE, float(factor))
        assert config.loss.class_weights == weights and row.factor == (
            None if factor == "-" else int(factor)
        )
        assert config.augment.mixup == (4.0 if mixup == "x" else None)
        assert row.mixup == (mixup == "x") and row.tta == (tta == "x")
        assert config.evaluation.tta == ("paper" if tta == "x" else "none")
    assert [row.mAP for row in TABLE_2] == [0.347, 0.348, 0.349]
    assert [row.rule for row in TABLE_2] == ["model-wise", "class-wise", "class-wise"]


def test_each_row_changes_one_thing_of_its_parent() -> None:
    for row in TABLE_1:
        if row.parent is not None:
            changed = diff(row_config(row.parent), row_config(row.number))
            assert list(changed) == [key.replace("__", ".") for key in row.changes]
            assert len(changed) == 1
    shared = diff(recipe("paper/t1r2"), recipe("paper/t1r3"))
    assert list(shared) == ["evaluation.tta"]  # so the two share one training


def test_a_start_at_random_names_no_weights() -> None:
    for scale, encoder in (("paper", "resnet50.tv_in1k"), ("tiny", "resnet50")):
        assert scaled(recipe("paper/t1r1"), SCALES[scale]).model.encoder == encoder


def test_the_settings_of_section_3_2() -> None:
    config = recipe("paper/t1r1")
    assert config.model.image_size == 512 and config.model.decoder.width == 768
    assert config.model.decoder.layers == 4 and config.evaluation.merge == "geometric"
    o = config.optim
    assert (o.lr, o.warmup_lr, o.batch_size, o.epochs, o.warmup_epochs) == (5e-5, 1e-6, 32, 50, 20)
    assert set(NINE) <= set(recipe("paper/t1r9").loss.class_weights)


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("paper/")])
def test_rows_come_back_from_their_yaml(name: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(lingula.recipes(name))
    assert read_config(tmp_path / "r.yaml") == recipe(name)


def test_ensembles_are_listed_but_not_trained(tmp_path: Path) -> None:
    listed = lingula.recipes()
    for row in (*TABLE_1, *TABLE_2):
        assert row.name in listed
    assert "rule: class-wise" in lingula.recipes("paper/t2r3")
    assert "- paper/exo-both" in lingula.recipes("paper/t2r3")
    with pytest.raises(InputError, match="lingula reproduce table2"):
        lingula.train("paper/t2r1", out=tmp_path / "run")
    with pytest.raises(InputError, match="Did you mean 'paper/t1r9'"):
        recipe("paper/t1r99")


def test_text_encoders_that_are_not_here_say_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lingula.model.text import embed

    monkeypatch.setenv("LINGULA_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="lingula fetch"):
        embed(("Mass",), "med-kebert")
    with pytest.raises(InputError, match="PhysioNet"):
        embed(("Mass",), "clinical-t5")
    from lingula.model.text_encoder import save_tiny

    save_tiny(tmp_path / "clinical-t5", "t5", ("Mass",))
    assert embed(("Mass",), "clinical-t5").origin.startswith("clinical-t5, mean")


def test_what_the_paper_leaves_open_is_listed_everywhere() -> None:
    """`lingula recipes` and docs/reproducing.md give the same list, and the recipes do as it says."""
    listed = lingula.recipes()
    page = " ".join((Path(__file__).parents[2] / "docs" / "reproducing.md").read_text().split())
    for line in ASSUMED:
        assert f"- {line}" in listed and f"- {line}." in page, line
    every = "\n".join(ASSUMED)
    config = recipe("paper/exo-both")
    decoder = config.model.decoder
    assert f"{decoder.heads} heads, feed-forward {decoder.feedforward}" in every
    assert (config.data.uncertain, decoder.positions) == ("ignore", "none")
    assert f"best {signature(lingula.ensemble).parameters['top_k'].default} members" in every
    for named in ("ReLU", "No Finding", "square", "fp32", "best epoch", "one linear map"):
        assert named in every, named
    ensembles = (Path(__file__).parents[2] / "docs" / "ensembles.md").read_text()
    assert "top-3 (the paper" not in ensembles and "best three on dev (paper" not in ensembles


class Hub:
    """Stands in for the hub: notes what is asked for, and writes it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import huggingface_hub

        self.asked: list[str] = []
        self.closed: tuple[str, ...] = ()
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.file)

    def snapshot(self, hub: str, local_dir: Path | None = None, **_: object) -> None:
        from lingula.model.text_encoder import save_tiny

        self.reach(hub)
        assert local_dir is not None
        save_tiny(Path(local_dir), "bert", ("Mass",))

    def file(self, hub: str, name: str, local_dir: Path) -> None:
        self.reach(hub)
        Path(local_dir).mkdir()
        (Path(local_dir) / name).write_bytes(b"weights")

    def reach(self, hub: str) -> None:
        self.asked.append(hub)
        if hub in self.closed:
            raise OSError("no route to the hub")


TEXT, RESNET, DENSENET = (
    "xmcmic/Med-KEBERT",
    "timm/resnet50.tv_in1k",
    "timm/densenet121.tv_in1k",
)


def test_fetching_puts_files_where_training_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub(monkeypatch)
    monkeypatch.setenv("LINGULA_WEIGHTS", str(tmp_path / "w"))
    with caplog.at_level("INFO", "lingula"):
        folder = lingula.fetch("paper/t1r5")
    assert hub.asked == [TEXT, DENSENET] and "licence apache-2.0" in caplog.text
    weights = {"med-kebert", "densenet121.tv_in1k.safetensors"}
    assert {path.name for path in folder.iterdir()} == weights
    lingula.fetch("paper/t1r5")
    assert len(hub.asked) == 2  # what is there is not fetched again
    with pytest.raises(InputError, match="PhysioNet"):
        lingula.fetch("paper/t1r8")
    assert hub.asked[2:] == [RESNET]  # all that can be brought was, before it was said
    hub.closed = (TEXT,)
    with pytest.raises(InputError, match="no route to the hub"):
        lingula.fetch("paper/t1r1", out=tmp_path / "other")
    assert not (tmp_path / "other" / "med-kebert").exists()
    assert (tmp_path / "other" / "resnet50.tv_in1k.safetensors").is_file()


@pytest.mark.parametrize("table", ["table1", "table2"])
def test_fetching_for_a_table_brings_all_there_is_and_names_the_rest(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub(monkeypatch)
    monkeypatch.setenv("LINGULA_WEIGHTS", str(tmp_path))
    lingula.fetch(table)
    assert sorted(hub.asked) == sorted([TEXT, RESNET, DENSENET])
    assert "Clinical-T5-Base" in caplog.text and "768 wide" in caplog.text
    assert "-Large is 1024 wide" in caplog.text
    hub.asked.clear()
    hub.closed = (TEXT, RESNET)
    with pytest.raises(InputError) as told:
        lingula.fetch(table, out=tmp_path / "other")
    assert "Med-KEBERT" in str(told.value) and "resnet50.tv_in1k" in str(told.value)
    assert (tmp_path / "other" / "densenet121.tv_in1k.safetensors").is_file()


def test_a_run_records_which_imagenet_weights_it_started_from(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LINGULA_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    imagenet_of("test_resnet.r160_in1k", tmp_path)
    config = vary(
        tiny_config, model__encoder="test_resnet", model__weights="imagenet", optim__epochs=1
    )
    run = lingula.train(config, out=tmp_path / "run")
    assert read_config(run / "config.yaml").model.encoder == "test_resnet.r160_in1k"
    facts = json.loads((run / "best" / "model.json").read_text())
    assert facts["pretrained"]["name"] == "test_resnet.r160_in1k"
    assert facts["pretrained"]["license"] == "apache-2.0"
    assert "test_resnet.r160_in1k, licence apache-2.0" in (run / "report.html").read_text()
    assert lingula.train(config, out=run) == run  # the same line again finds it finished
    after = vary(tiny_config, model__weights=str(run), optim__epochs=1)
    second = lingula.train(after, out=tmp_path / "second")
    kept = json.loads((second / "best" / "model.json").read_text())
    assert kept["pretrained"] == facts["pretrained"]
    with pytest.raises(InputError, match=r"no weights 'resnet50.tv_in2k'.*resnet50.tv_in1k"):
        lingula.train(vary(config, model__encoder="resnet50.tv_in2k"), out=tmp_path / "third")


def test_the_table_in_three_formats() -> None:
    run = Line("a", ("R", "x"), "", 0.3, dev=0.2, test=0.21, spread=0.01, tail=0.1, seconds=5.0)
    child = Line("c", ("R", ""), "a", 0.3, alone=(0.02, 0.004), gain=-0.01, gain_ci=(-0.02, 0.01))
    bare = Line("b", ("<i>", ""), "a", 0.31, 0.01, note="not run: needs <weights>")
    ladder = Ladder("T", ("encoder", "separate"), (run, bare), comparable=False, facts=("one",))
    text = to_markdown(ladder)
    assert text.count("\n| a |") == 2 and "can't be compared" in text and "| +0.0100 |" in text
    own = to_markdown(Ladder("T", ("encoder", "separate"), (run, bare), True, ()))
    assert "| 0.3000 | 0.2000 | 0.2100 |" in own and "can't be compared" not in own
    both = to_markdown(Ladder("T", ("encoder", "separate"), (child,), True, ()))
    assert "| +0.0200 (0.0040) | -0.0100 (-0.0200 to +0.0100) |" in both
    page = to_html(ladder)
    assert "&lt;weights&gt;" in page and "<weights>" not in page and "http" not in page
    written = to_csv(Ladder("T", ladder.columns, (run, bare, child), False, ()))
    rows = list(csv.DictReader(written.splitlines()))
    assert (rows[2]["gain_alone"], rows[2]["gain"], rows[2]["gain_high"]) == (
        "0.02",
        "-0.01",
        "0.01",
    )
    assert rows[0]["test_mAP"] == "0.21" and rows[1]["test_mAP"] == ""
    assert rows[1]["note"] == "not run: needs <weights>"


def test_seeds_are_averaged_by_image(tmp_path: Path) -> None:
    for seed, rows in enumerate(("x,0.2\ny,0.4\n", "y,0.8\nx,0.4\n")):
        (tmp_path / f"s{seed}").mkdir()
        (tmp_path / f"s{seed}" / "test.csv").write_text("image,Edema\n" + rows)
    found = average_seeds([tmp_path / f"s{seed}" / "test.csv" for seed in (0, 1)])
    assert found.images == ("x", "y")
    np.testing.assert_allclose(found.probabilities[:, 0], [0.3, 0.6])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_table_2_continues_after_a_kill_without_training_twice(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [sys.executable, "-m", "lingula", "reproduce", "table2", "--scale", "tiny"]
    words += ["--out", str(out)]
    offline = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "offline")}
    with subprocess.Popen(words, env=offline, stderr=subprocess.DEVNULL) as child:
        deadline = time.monotonic() + 900
        while not len(list(out.glob("trainings/*/finished.json"))) >= 2:
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        child.send_signal(signal.SIGKILL)
    before = {p: p.stat().st_mtime_ns for p in out.glob("trainings/*/finished.json")}
    subprocess.run(words, env=offline, check=True, timeout=2400, stderr=subprocess.DEVNULL)
    assert len(before) >= 2 and all(p.stat().st_mtime_ns == then for p, then in before.items())
    rows = list(csv.DictReader((out / "table2.csv").read_text().splitlines()))
    assert [row["row"] for row in rows] == ["paper/t2r1", "paper/t2r2", "paper/t2r3"]
    assert all(re.fullmatch(r"0\.\d+", row["test_mAP"]) for row in rows)
    assert "exo-both" in rows[2]["members"] and "instead of" in rows[0]["note"]
