"""Training as a user does it: the same twice, resumed as if never stopped, refused when changed."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import lingula
from builders import TINY
from lingula.loading.order import Rows, epoch_order
from lingula.model.checkpoint import load_model, newest_checkpoint
from lingula.model.devices import make_fabric
from lingula.model.network import Network
from lingula.scores.metrics import Classwise
from lingula.scores.predictions import read_scores
from lingula.settings.config import Config, to_yaml, vary
from lingula.system.errors import InputError
from lingula.training import loop
from lingula.training.origins import share_statistics
from lingula.training.run_folder import read_rows
from lingula.training.run_labels import number_format
from lingula.training.steps import seed_of

WEIGHTS = Path("best") / "model.safetensors"


def test_a_run_is_whole_and_found_finished(tiny_config: Config, tmp_path: Path) -> None:
    run = lingula.train(tiny_config, out=tmp_path / "run")
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "train.log", "report.html"):
        assert (run / name).is_file(), name
    assert [row["epoch"] for row in read_rows(run / "metrics.jsonl")] == [1, 2]
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}
    assert lingula.train(tiny_config, out=run) == run
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()} == before
    with pytest.raises(InputError, match=r"optim.lr: 0.001 there, 0.5 now"):
        lingula.train(tiny_config, ["optim.lr=0.5"], out=run)
    with pytest.raises(InputError, match=r"seed: 0 there, 3 now"):
        lingula.train(None, ["seed=3"], resume=run)
    text = (run / "report.html").read_text()
    assert "Research use only" in text and 'src="http' not in text and "Cardiomegaly" in text
    lingula.train(tiny_config, ["seed=4"], out=run, overwrite=True)
    assert (tmp_path / "run.old-1" / "finished.json").is_file()
    assert (run / WEIGHTS).read_bytes() != (tmp_path / "run.old-1" / WEIGHTS).read_bytes()


@pytest.mark.usefixtures("no_page")
def test_same_seed_same_weights_and_resumed_equals_uninterrupted(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = vary(tiny_config, optim__epochs=3, augment__mixup=4.0, optim__ema=0.9)
    one = lingula.train(config, out=tmp_path / "one")
    two = lingula.train(config, out=tmp_path / "two")
    assert (one / WEIGHTS).read_bytes() == (two / WEIGHTS).read_bytes()

    from lingula.training import fitting

    def stop(done: int, total: int, text: str = "") -> None:
        if done == total - 2:
            raise KeyboardInterrupt

    class Stopping:
        def __init__(self, *_: object, **__: object) -> None: ...
        def __enter__(self) -> object:
            return stop

        def __exit__(self, *_: object) -> None: ...

    quiet = fitting.progress
    monkeypatch.setattr(
        fitting, "progress", lambda title, **k: Stopping() if title == "training" else quiet(title)
    )
    with pytest.raises(KeyboardInterrupt):
        lingula.train(config, out=tmp_path / "cut")
    monkeypatch.undo()
    damaged = sorted((tmp_path / "cut" / "checkpoints").glob("*.pt"))[-1]
    damaged.write_bytes(damaged.read_bytes()[:-200])  # the one before it is used
    cut = lingula.train(None, resume=tmp_path / "cut")
    assert (one / WEIGHTS).read_bytes() == (cut / WEIGHTS).read_bytes()
    for split in ("dev", "test"):
        name = Path("scores") / f"{split}.csv"
        assert (one / name).read_text() == (cut / name).read_text()
    rows = [read_rows(run / "metrics.jsonl") for run in (one, cut)]
    assert [r["loss"] for r in rows[0]] == [r["loss"] for r in rows[1]]
    state = newest_checkpoint(cut / "checkpoints")
    assert state is not None and state["state"]["step"] == rows[0][-1]["step"]


@pytest.mark.usefixtures("no_page")
def test_scores_do_not_depend_on_the_batch_size(tiny_config: Config, tmp_path: Path) -> None:
    table = tiny_config.data.table
    run = lingula.train(tiny_config, out=tmp_path / "run")
    found = [
        read_scores(
            lingula.predict(
                run, data=table, out=tmp_path / f"{n}.csv", batch_size=n, tta="paper"
            ).path
        )
        for n in (1, 7, 40)
    ]
    for other in found[1:]:
        assert other.images == found[0].images
        np.testing.assert_allclose(other.probabilities, found[0].probabilities, atol=1e-5)


@pytest.mark.usefixtures("no_page")
def test_prediction_goes_on_past_bad_images(tiny_config: Config, tmp_path: Path) -> None:
    run = lingula.train(tiny_config, out=tmp_path / "run")
    images = Path(tiny_config.data.table).parent / "images"
    (images / "001.png").write_bytes(b"")
    (images / "002.png").unlink()
    done = lingula.predict(run, data=tiny_config.data.table, out=tmp_path / "s.csv")
    assert set(done.failures) == {"images/001.png", "images/002.png"}
    scores = read_scores(tmp_path / "s.csv")
    assert len(scores) == 40 and np.isnan(scores.probabilities).any(1).sum() == 2
    assert "images/001.png" in (tmp_path / "s.failed.csv").read_text()
    assert lingula.predict(run, data=tiny_config.data.table, out=tmp_path / "s.csv") == done
    with pytest.raises(InputError, match="tta: 'none' there, 'flip' now"):
        lingula.predict(run, data=tiny_config.data.table, out=tmp_path / "s.csv", tta="flip")
    one = lingula.predict(run, data=images / "003.png", out=tmp_path / "one.parquet")
    folder = lingula.predict(run, data=images, out=tmp_path / "folder.csv")
    assert one.images == 1 and folder.images == 39 and set(folder.failures) == {"001.png"}


def test_a_phantom_model_refuses_films(tiny_table: Path, tmp_path: Path) -> None:
    run = lingula.train(
        "smoke",
        [
            "optim.epochs=1",
            "data.table=" + str(lingula.data_phantom(tmp_path / "phantom", n=60, size=32)),
        ],
        out=tmp_path / "run",
    )
    with pytest.raises(InputError, match="--allow-phantom-model"):
        lingula.predict(run, data=tiny_table, out=tmp_path / "s.csv")
    done = lingula.predict(run, data=tiny_table, out=tmp_path / "s.csv", allow_phantom_model=True)
    assert not done.failures
    lingula.predict(run, data=tmp_path / "phantom" / "labels.csv", out=tmp_path / "p.csv")


@pytest.mark.usefixtures("no_page")
def test_starting_from_a_run_binds_classes_by_name(tiny_config: Config, tmp_path: Path) -> None:
    first = lingula.train(tiny_config, out=tmp_path / "a")
    classes = ["Fracture", "Mass", "Cardiomegaly"]
    table = Path(tiny_config.data.table)
    table.write_text(table.read_text().replace("Edema", "Mass", 1))
    config = vary(
        tiny_config,
        data__classes=classes,
        data__ignore_columns=[],
        model__weights=str(first),
        optim__epochs=1,
        optim__lr=1e-12,
        optim__warmup_lr=0.0,
        optim__min_lr=0.0,
    )
    second = lingula.train(config, out=tmp_path / "b")
    old, new = load_model(first), load_model(second)
    a = old.network.state_dict()["classifier.weight"][old.classes.index("Cardiomegaly")]
    b = new.network.state_dict()["classifier.weight"][2]
    torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
    assert "Mass" in new.facts["weights"]


def test_a_run_in_bf16_has_the_scores_of_predict(tiny_config: Config, tmp_path: Path) -> None:
    """A run's own scores are in fp32 whatever it was trained in, so that rows can be compared."""
    config = vary(tiny_config, precision="bf16", model__classifier="shared")
    run = lingula.train(config, out=tmp_path / "run")
    assert "precision: bf16" in (run / "config.yaml").read_text()
    for split in ("dev", "test"):
        again = lingula.predict(
            run, data=config.data.table, split=split, out=tmp_path / f"{split}.csv", batch_size=3
        )
        own, theirs = read_scores(run / "scores" / f"{split}.csv"), read_scores(again.path)
        assert own.images == theirs.images
        np.testing.assert_allclose(own.probabilities, theirs.probabilities, rtol=1e-5)
    fast = lingula.predict(run, data=config.data.table, precision="bf16", out=tmp_path / "f.csv")
    assert number_format(run / "scores" / "dev.csv") == "fp32"
    assert number_format(fast.path) == "bf16"


def test_scores_of_different_formats_are_not_compared_in_silence(
    tiny_config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = tiny_config.data.table
    run = lingula.train(vary(tiny_config, optim__epochs=1), out=tmp_path / "run")
    exact = lingula.predict(run, data=table, out=tmp_path / "a.csv").path
    fast = lingula.predict(run, data=table, out=tmp_path / "b.csv", precision="bf16").path
    lingula.evaluate(exact, labels=table, against=exact)
    assert "number formats" not in caplog.text
    lingula.evaluate(exact, labels=table, against=fast)
    assert "Scores of different number formats" in caplog.text and "b.csv: bf16" in caplog.text
    # An older version's run was scored in the format that it was trained in.
    environment = json.loads((run / "environment.json").read_text())
    del environment["scored_in"]
    (run / "environment.json").write_text(json.dumps(environment | {"precision": "bf16"}))
    assert number_format(run / "scores" / "test.csv") == "bf16"


def test_without_dev_labels_the_last_epoch_is_kept(
    tiny_config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = Path(tiny_config.data.table)
    lines = [line.split(",") for line in table.read_text().splitlines()]
    lines = [[*c[:4], *("0" * len(c[4:]))] if c[3] == "dev" else c for c in lines]
    table.write_text("\n".join(",".join(cells) for cells in lines))
    with caplog.at_level(logging.INFO, "lingula"):
        run = lingula.train(vary(tiny_config, optim__epochs=3), out=tmp_path / "run")
    assert json.loads((run / "finished.json").read_text())["best_epoch"] == 3
    assert "dev mAP undefined (the last epoch is kept)" in caplog.text
    saved = newest_checkpoint(run / "checkpoints")
    assert saved is not None
    kept = load_model(run).network.state_dict()
    assert all(torch.equal(kept[name], saved["network"][name]) for name in kept)


@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.usefixtures("no_page")
def test_the_best_epoch_is_kept_or_the_last(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: str
) -> None:
    falling = iter((0.5, 0.4, 0.3))
    score_dev = loop.score_dev

    def falls(training: loop.Training) -> Classwise:
        return replace(score_dev(training), ap=np.full(len(training.space), next(falling)))

    monkeypatch.setattr(loop, "score_dev", falls)
    config = vary(tiny_config, optim__epochs=3, optim__keep=keep)
    run = lingula.train(config, out=tmp_path / "run")
    epoch, dev = (1, 0.5) if keep == "best" else (3, 0.3)
    assert json.loads((run / "finished.json").read_text())["best_epoch"] == epoch
    assert [row["best_epoch"] for row in read_rows(run / "metrics.jsonl")] == (
        [1, 1, 1] if keep == "best" else [1, 2, 3]
    )
    kept, saved = load_model(run), newest_checkpoint(run / "checkpoints")
    assert saved is not None
    assert (kept.facts["epoch"], kept.facts["dev_mAP"]) == (epoch, pytest.approx(dev))
    same = [
        torch.equal(value, saved["network"][name])
        for name, value in kept.network.state_dict().items()
    ]
    assert all(same) == (keep == "last")


def test_a_run_begun_by_an_older_version_is_not_continued(
    tiny_config: Config, tmp_path: Path
) -> None:
    """It draws other numbers. Finished ones predict as before, and their settings are read."""
    run = lingula.train(tiny_config, out=tmp_path / "run")
    environment = json.loads((run / "environment.json").read_text())
    del environment["training"]
    old = environment | {"lingula": "0.1.0"}
    (run / "environment.json").write_text(json.dumps(old))
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("  sync_batch_norm: false\n", ""))
    lingula.train(tiny_config, out=run)  # finished: left alone
    assert lingula.predict(run, data=tiny_config.data.table, out=tmp_path / "s.csv").images == 40
    (run / "finished.json").unlink()
    for again in ({"name": tiny_config, "out": run}, {"resume": run}):
        with pytest.raises(InputError, match=r"begun by lingula 0\.1\.0.*lingula==0\.1\.0"):
            lingula.train(**again)  # type: ignore[arg-type]
    assert json.loads((run / "environment.json").read_text()) == old
    lingula.train(tiny_config, out=run, overwrite=True)


def test_batch_norm_over_all_devices_is_the_same_network(tiny_config: Config) -> None:
    """It needs CUDA to train; the state and the scores are those of ordinary batch norm."""
    config = vary(tiny_config, model__sync_batch_norm=True)
    fabric = make_fabric("cpu", "fp32")
    plain, shared = (Network(TINY, torch.eye(4, 32)).eval() for _ in range(2))
    with pytest.raises(InputError, match="needs CUDA"):
        share_statistics(shared, vary(config, device="cpu"), fabric)
    share_statistics(shared, vary(config, device="cuda"), fabric)
    assert any(isinstance(part, torch.nn.SyncBatchNorm) for part in shared.modules())
    shared.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(shared(images), plain(images))


def test_a_loss_that_is_not_finite_stops_with_its_step(tiny_config: Config, tmp_path: Path) -> None:
    config = vary(tiny_config, optim__lr=1e30, optim__warmup_lr=1e30)
    with pytest.raises(RuntimeError, match="not finite at step"):
        lingula.train(config, out=tmp_path / "run")


def test_wrong_tables_are_refused_before_training(tiny_config: Config, tmp_path: Path) -> None:
    table = Path(tiny_config.data.table)
    text = table.read_text()
    table.write_text(text.replace("p1,", "p4,"))
    with pytest.raises(InputError, match=r"more than one split: p4"):
        lingula.train(tiny_config, out=tmp_path / "run")
    table.write_text(text)
    (table.parent / "images" / "000.png").unlink()
    with pytest.raises(InputError, match="1 of 20 train images are missing"):
        lingula.train(tiny_config, out=tmp_path / "run")
    with pytest.raises(InputError, match="hf download timm/test_resnet"):
        lingula.train(tiny_config, ["model.weights=imagenet"], out=tmp_path / "other")


def test_a_missing_split_is_made_and_saved(tiny_config: Config, tmp_path: Path) -> None:
    table = Path(tiny_config.data.table)
    lines = [line.split(",") for line in table.read_text().splitlines()]
    table.write_text("\n".join(",".join(c[:3] + c[4:]) for c in lines))
    run = lingula.train(tiny_config, out=tmp_path / "run")
    assert "split" in (run / "table.csv").read_text().splitlines()[0]


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_is_the_same(tiny_config: Config, tmp_path: Path) -> None:
    config = vary(tiny_config, optim__epochs=30)
    (tmp_path / "c.yaml").write_text(to_yaml(config))
    whole = lingula.train(config, out=tmp_path / "whole")
    command = [
        sys.executable,
        "-m",
        "lingula",
        "train",
        str(tmp_path / "c.yaml"),
        "--out",
        str(tmp_path / "killed"),
    ]
    random = np.random.default_rng(0)
    kills = 0
    for _ in range(4):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        checkpoints = tmp_path / "killed" / "checkpoints"
        before = set(checkpoints.glob("*.pt"))
        deadline = time.monotonic() + 60
        while set(checkpoints.glob("*.pt")) <= before and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(float(random.random()) * 0.3)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    subprocess.run(command, check=True, capture_output=True)
    assert kills >= 1
    assert (whole / WEIGHTS).read_bytes() == (tmp_path / "killed" / WEIGHTS).read_bytes()


@pytest.mark.slow
def test_the_quick_demo(tmp_path: Path) -> None:
    page = lingula.demo(tmp_path / "demo", quick=True)
    assert page.is_file() and lingula.demo(tmp_path / "demo", quick=True) == page


def test_rows_from_outside_keep_to_their_ratio() -> None:
    rows = Rows(110, outside=10, ratio=0.25)  # 100 of one's own and 25 drawn from 10
    order = epoch_order(rows, seed=1, epoch=0)
    own, others = order[order < 100], order[order >= 100]
    assert sorted(own) == list(range(100)) and len(others) == 25
    times = np.bincount(others - 100, minlength=10)
    assert times.min() >= 2 and times.max() <= 3
    few = [epoch_order(Rows(110, 10, 0.05), seed=1, epoch=e) for e in (0, 1)]
    assert all(len(order) == 105 for order in few)
    assert set(few[0][few[0] >= 100]) != set(few[1][few[1] >= 100])
    assert sorted(epoch_order(Rows(110, 10), seed=1, epoch=0)) == list(range(110))


@pytest.mark.usefixtures("no_page")
def test_a_frozen_encoder_trains_on_features_computed_once(
    tiny_config: Config, tmp_path: Path
) -> None:
    start = lingula.train(vary(tiny_config, optim__epochs=1), out=tmp_path / "start")
    frozen = vary(
        tiny_config, model__weights=str(start), model__frozen=True, optim__epochs=3, optim__lr=1e-3
    )
    run = lingula.train(frozen, out=tmp_path / "a")
    before, after = (load_model(folder).network.state_dict() for folder in (start, run))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and not any(name.startswith("encoder.") for name in moved)
    assert not (run / "features").exists()  # they are of use only while it trains
    again = load_model(lingula.train(frozen, out=tmp_path / "b")).network.state_dict()
    assert all(torch.equal(after[name], again[name]) for name in after)
    # Scores come from the images as anywhere else, and the features said the same of dev.
    best = max(
        json.loads(line)["dev_mAP"] for line in (run / "metrics.jsonl").read_text().splitlines()
    )
    summary = json.loads((run / "finished.json").read_text())
    assert summary["dev"]["mAP"] == pytest.approx(best, abs=1e-6)
    with pytest.raises(InputError, match="random features"):
        vary(tiny_config, model__frozen=True)


@pytest.mark.usefixtures("no_page")
def test_pieces_of_a_batch_give_the_same_gradients(tiny_config: Config, tmp_path: Path) -> None:
    """Layer norm has no batch statistics, so only rounding may differ."""
    plain = vary(
        tiny_config,
        model__encoder="test_vit",
        model__decoder__dropout=0.0,
        optim__epochs=1,
        optim__lr=1e-4,
    )
    runs = [
        lingula.train(vary(plain, optim__accumulate=pieces), out=tmp_path / str(pieces))
        for pieces in (1, 3)
    ]
    one, three = (load_model(run).network.state_dict() for run in runs)
    for name in one:
        torch.testing.assert_close(one[name], three[name], atol=2e-5, rtol=1e-3)
    finished = [json.loads((run / "finished.json").read_text())["steps"] for run in runs]
    assert finished[0] == finished[1]


@pytest.mark.usefixtures("no_page")
def test_recomputed_activations_change_nothing(tiny_config: Config, tmp_path: Path) -> None:
    plain = vary(tiny_config, model__encoder="resnet18", optim__epochs=1)
    runs = [
        lingula.train(vary(plain, model__checkpointing=on), out=tmp_path / str(on))
        for on in (False, True)
    ]
    one, two = (load_model(run).network.state_dict() for run in runs)
    for name in one:  # batch norm's statistics too, although it sees each batch twice
        torch.testing.assert_close(one[name], two[name], atol=1e-6, rtol=1e-5)


def test_dropout_differs_by_seed_step_and_process() -> None:
    """torch's CPU generator takes the low 32 bits of a seed: the run's seed must be among them."""
    draws = {}
    for place in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]:
        torch.manual_seed(seed_of(*place))
        draws[place] = tuple(torch.rand(4).tolist())
    assert len(set(draws.values())) == len(draws)
    assert all(0 <= seed_of(0, step, 0) < 2**32 for step in range(100))
