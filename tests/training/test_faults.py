"""When things go wrong: what is said, what is kept, and that the same line again goes on from it."""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray

import lingula
from builders import typed, write_tiny
from lingula.images.cache import open_cache
from lingula.images.cache_writing import find_damaged
from lingula.loading import batches
from lingula.loading.batches import Radiographs
from lingula.model.checkpoint import load_model, newest_checkpoint, save_checkpoint, save_model
from lingula.model.devices import make_fabric
from lingula.model.encoders import build_encoder
from lingula.model.facts import read_facts
from lingula.model.loader import load_encoder
from lingula.model.network import Architecture
from lingula.scores.predictions import read_scores
from lingula.settings.config import Config, vary, write_config
from lingula.settings.recipes import recipe
from lingula.system import files, signals
from lingula.system.errors import InputError, StoppedError
from lingula.training import examples, fitting, loop, run_folder
from lingula.training.optim import Schedule, learning_rate
from lingula.training.run_folder import read_rows

resource = pytest.importorskip("resource")

WEIGHTS = Path("best") / "model.safetensors"
KEPT = (WEIGHTS, Path("scores") / "dev.csv", Path("scores") / "test.csv")
EPOCHS, STEPS = 3, 3  # 20 images in batches of 8


def settings(table: Path) -> Config:
    return vary(
        recipe("smoke"),
        data__table=str(table),
        optim__batch_size=8,
        optim__epochs=EPOCHS,
        augment__mixup=4.0,
        optim__ema=0.9,
        precision="fp32",
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing went wrong with."""
    folder = tmp_path_factory.mktemp("whole")
    return lingula.train(settings(write_tiny(folder / "data")), out=folder / "run")


pytestmark = pytest.mark.usefixtures("no_page")


@pytest.fixture
def config(whole: Path, tmp_path: Path) -> Config:
    """The settings of that run, on a copy of its data that may be spoilt."""
    shutil.copytree(whole.parent / "data", tmp_path / "data")
    return settings(tmp_path / "data" / "labels.csv")


def same(run: Path, whole: Path) -> None:
    for name in KEPT:
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    losses = [[row["loss"] for row in read_rows(r / "metrics.jsonl")] for r in (run, whole)]
    assert losses[0] == losses[1]
    assert not [path for path in run.rglob(".*") if path.is_file()]  # no temporary file, no lock


def steps_of(run: Path) -> list[int]:
    return sorted(int(path.stem[5:]) for path in (run / "checkpoints").iterdir())


def at_steps(monkeypatch: pytest.MonkeyPatch, then: Callable[[int], None]) -> None:
    """Do something at the beginning of every step."""
    usual = loop.set_learning_rates

    def first(optimizer: torch.optim.Optimizer, schedule: Schedule, step: int) -> None:
        then(step)
        usual(optimizer, schedule, step)

    monkeypatch.setattr(loop, "set_learning_rates", first)


@contextlib.contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file may grow beyond `room` bytes: writes fail in the kernel, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# A full disk, and a place that can't be written.


@pytest.mark.parametrize(
    ("module", "name", "nth", "room"),
    [
        (loop, "save_checkpoint", 2, 100_000),
        (loop, "save_model", 1, 100_000),
        (fitting, "write_scores", 2, 500),
        (loop, "append_row", 2, 100),
    ],
)
def test_a_full_disk_while_training(
    config: Config,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: object,
    name: str,
    nth: int,
    room: int,
) -> None:
    usual, calls = getattr(module, name), []

    def cramped(*arguments: object, **named: object) -> object:
        calls.append(1)
        with full_disk(room) if len(calls) == nth else contextlib.nullcontext():
            return usual(*arguments, **named)

    monkeypatch.setattr(module, name, cramped)
    with pytest.raises(StoppedError, match=r"can't be written: File too large.*same line again"):
        lingula.train(config, out=tmp_path / "run")
    monkeypatch.undo()
    for left in (tmp_path / "run").rglob("*"):
        assert not left.name.startswith("."), f"{left} was left behind"
    if name == "save_checkpoint":
        assert steps_of(tmp_path / "run") == [STEPS]
    same(lingula.train(config, out=tmp_path / "run"), whole)


def test_a_full_disk_as_typed(
    config: Config, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(config, tmp_path / "c.yaml")
    table = config.data.table
    lines = [
        (["train", tmp_path / "c.yaml", "--out", tmp_path / "run"], 100_000),
        (["predict", whole, "--data", table, "--out", tmp_path / "s.csv"], 500),
        (["predict", whole, "--data", table, "--out", tmp_path / "s.parquet"], 500),
        (["data", "cache", table, "--size", "32", "--out", tmp_path / "cache"], 20_000),
    ]
    for words, room in lines:
        with full_disk(room):
            status = typed(*words)
        said = capsys.readouterr().err
        assert status == 1 and "can't be written: File too large" in said, said
        assert "Traceback" not in said and "same line again" in said
        assert not Path(words[-1]).is_file()
    for words, _ in lines:
        assert typed(*words) == 0, capsys.readouterr().err
    same(tmp_path / "run", whole)
    assert read_scores(tmp_path / "s.csv").images == read_scores(tmp_path / "s.parquet").images
    assert not find_damaged(open_cache(tmp_path / "cache"))


def test_a_model_that_was_there_outlives_a_full_disk(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "best", tmp_path / "best")
    before = {p.name: p.read_bytes() for p in (tmp_path / "best").iterdir()}
    trained = load_model(tmp_path / "best")
    architecture = Architecture(**trained.facts["architecture"])
    with torch.no_grad():
        trained.network.bias.add_(1.0)
    facts = {"long": "x" * 3_000_000}  # the description does not fit, the weights do
    for room in (2_500_000, 100_000):
        with full_disk(room), pytest.raises(StoppedError, match="can't be written"):
            save_model(tmp_path / "best", trained.network, architecture, trained.classes, facts)
        assert {p.name: p.read_bytes() for p in (tmp_path / "best").iterdir()} == before


def test_a_place_that_cannot_be_written(
    config: Config, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Below a file, where nobody can write, root included."""
    (tmp_path / "file").write_text("mine")
    write_config(config, tmp_path / "c.yaml")
    table, below = config.data.table, tmp_path / "file" / "deep"
    for words in (
        ["train", tmp_path / "c.yaml", "--out", below],
        ["predict", whole, "--data", table, "--out", below / "s.csv"],
        ["data", "cache", table, "--size", "32", "--out", below],
    ):
        assert typed(*words) == 2
        said = capsys.readouterr().err
        assert "can't be written: Not a directory. Choose another place" in said, said
        assert "Traceback" not in said
    assert typed("--debug", *words) == 2 and "Traceback" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_without_permission(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write anywhere, so the kernel's answer is given by hand."""
    (tmp_path / "run").mkdir()
    usual = os.open

    def closed(path: object, flags: int, *rest: object, **named: object) -> int:
        if flags & os.O_CREAT:
            raise PermissionError(13, "Permission denied", path)
        return usual(path, flags, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", closed)
    with pytest.raises(InputError, match=r"can't be written: Permission denied"):
        lingula.train(config, out=tmp_path / "run")


def test_a_log_that_cannot_be_written_does_not_end_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with run_folder.log_to(tmp_path / "train.log"), full_disk(100):
        for _ in range(5):
            logging.getLogger("lingula").info("x" * 50)
    said = capsys.readouterr().err
    assert "a line of the log is lost" in said and "Traceback" not in said


# Images that vanish.


def test_an_image_that_vanishes_while_training(
    config: Config, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "data" / "images" / "001.png"
    monkeypatch.setattr(examples, "fits_in_memory", lambda dataset: False)
    at_steps(monkeypatch, lambda step: image.unlink(missing_ok=True))
    with pytest.raises(InputError, match=r"stopped at images that can't be read: .*001\.png"):
        lingula.train(config, out=tmp_path / "run")
    monkeypatch.undo()
    assert steps_of(tmp_path / "run")[-1] >= STEPS
    with pytest.raises(InputError, match=r"1 of 20 train images are missing.*001\.png"):
        lingula.train(config, out=tmp_path / "run")
    shutil.copy(whole.parent / "data" / "images" / "001.png", image)
    same(lingula.train(config, out=tmp_path / "run"), whole)


def test_an_image_that_vanishes_while_predicting(
    config: Config, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, usual = tmp_path / "data" / "images" / "030.png", Radiographs.read_into

    def vanishing(dataset: Radiographs, index: int, into: NDArray[np.uint8]) -> None:
        image.unlink(missing_ok=True)
        usual(dataset, index, into)

    monkeypatch.setattr(Radiographs, "read_into", vanishing)
    done = lingula.predict(whole, data=config.data.table, out=tmp_path / "s.csv")
    assert set(done.failures) == {"images/030.png"}
    assert "images/030.png" in (tmp_path / "s.failed.csv").read_text()
    assert np.isnan(read_scores(tmp_path / "s.csv").probabilities).all(1).sum() == 1


# Damaged checkpoints (cases 107, 108).


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, flip, empty])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    assert newest_checkpoint(tmp_path) is None
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, {"step": step, "weights": torch.full((9999,), step)}, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000002.pt", "step-000000003.pt"]
    damage(tmp_path / "step-000000003.pt")
    found = newest_checkpoint(tmp_path)
    assert found is not None and found["step"] == 2
    assert "step-000000003.pt" in caplog.text and "damaged; using the one before" in caplog.text
    damage(tmp_path / "step-000000002.pt")
    with pytest.raises(InputError, match=r"all are damaged: .*-000000003\.pt.*-000000002\.pt"):
        newest_checkpoint(tmp_path)


def test_a_run_never_begins_anew_without_a_word(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_steps(monkeypatch, lambda step: signal.raise_signal(signal.SIGTERM) if step == 7 else None)
    with pytest.raises(signals.Interrupted):
        lingula.train(config, out=tmp_path / "run")
    monkeypatch.undo()
    before = {p: p.read_bytes() for p in (tmp_path / "run" / "best").iterdir()}
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        flip(path)
    with pytest.raises(InputError, match=r"all are damaged.*--overwrite"):
        lingula.train(None, resume=tmp_path / "run")
    assert {p: p.read_bytes() for p in before} == before


def test_checkpoints_hold_plain_values_only(whole: Path) -> None:
    """Case 107: a NumPy scalar alone would keep them from being read without pickle."""
    found = newest_checkpoint(whole / "checkpoints")
    assert found is not None and found["state"]["best_score"] > 0
    assert {type(value) for value in found["state"].values()} <= {int, float, type(None)}


def test_tensors_of_another_device_come_to_the_cpu(tmp_path: Path) -> None:
    """Case 115: the tag that says `cuda:1` is written by hand."""
    save_checkpoint(tmp_path / "here", {"weights": torch.arange(8.0)}, 1)
    made = tmp_path / "here" / "step-000000001.pt"
    for folder in ("checkpoints", "weights"):
        (tmp_path / folder).mkdir()
        with (
            zipfile.ZipFile(made) as old,
            zipfile.ZipFile(tmp_path / folder / made.name, "w") as new,
        ):
            for name in old.namelist():
                data = old.read(name)
                if name.endswith("data.pkl"):
                    assert b"X\x03\0\0\0cpu" in data
                    data = data.replace(b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:1")
                new.writestr(name, data)
    found = newest_checkpoint(tmp_path / "checkpoints")
    assert found is not None and torch.equal(found["weights"], torch.arange(8.0))
    from lingula.model.loader import read_state_dict

    loaded, _ = read_state_dict(tmp_path / "weights" / made.name)
    assert loaded["weights"].device.type == "cpu"


# A loss that is not finite.


def test_a_loss_that_is_not_finite_as_typed(
    config: Config,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usual = loop.backward
    calls: list[int] = []

    def spoilt(*arguments: object) -> torch.Tensor:
        calls.append(1)
        loss = usual(*arguments)  # type: ignore[arg-type]
        return loss * float("nan") if len(calls) > 4 else loss

    monkeypatch.setattr(loop, "backward", spoilt)
    write_config(config, tmp_path / "c.yaml")
    assert typed("train", tmp_path / "c.yaml", "--out", tmp_path / "run") == 1
    said = capsys.readouterr().err
    assert "not finite at step 6" in said and "lower optim.lr" in said and "Traceback" not in said
    assert steps_of(tmp_path / "run") == [STEPS]
    found = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert found is not None and all(v.isfinite().all() for v in found["network"].values())
    assert load_model(tmp_path / "run").facts["epoch"] == 1


# Asked to stop (SIGTERM as SLURM sends it, Ctrl-C), cases 111 and 113.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_saves_at_the_next_step_and_goes_on_the_same(
    config: Config,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    rates: list[int] = []

    def ask(step: int) -> None:
        rates.append(step)
        if step == 4:
            signal.raise_signal(number)

    at_steps(monkeypatch, ask)
    with pytest.raises(signals.Interrupted) as stopped:
        lingula.train(config, out=tmp_path / "run")
    assert stopped.value.status == 128 + number and steps_of(tmp_path / "run") == [3, 5]
    assert rates == [0, 1, 2, 3, 4]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    monkeypatch.undo()
    at_steps(monkeypatch, rates.append)
    same(lingula.train(config, out=tmp_path / "run"), whole)
    assert rates == list(range(EPOCHS * STEPS))  # no step was done twice, and none left out


def test_asked_to_stop_while_dev_is_scored(
    config: Config, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, steps = loop.score, []

    def asked(*arguments: object, **named: object) -> object:
        signal.raise_signal(signal.SIGTERM)
        return usual(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "score", asked)
    for epoch in range(1, EPOCHS + 1):  # it is stopped at the end of every epoch
        with pytest.raises(signals.Interrupted):
            lingula.train(config, out=tmp_path / "run")
        assert steps_of(tmp_path / "run")[-1] == STEPS
        assert len(read_rows(tmp_path / "run" / "metrics.jsonl")) == 0, epoch
    monkeypatch.undo()
    at_steps(monkeypatch, steps.append)
    same(lingula.train(config, out=tmp_path / "run"), whole)
    assert steps == list(range(STEPS, EPOCHS * STEPS))


def test_signals_are_noted_once() -> None:
    with pytest.raises(signals.Interrupted) as stopped, signals.note_signals() as asked:
        assert asked() is None
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # batch systems send several
        assert asked() == signal.SIGTERM
    assert stopped.value.status == 143
    reached = False
    with pytest.raises(signals.Interrupted), signals.note_signals():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # the person at the keyboard means it
        reached = True
    assert not reached
    seen: list[object] = []

    def elsewhere() -> None:
        with signals.note_signals() as asked:
            seen.append(asked())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [None]


def test_a_background_job_does_not_hear_ctrl_c() -> None:
    """`lingula train ... &` in a script: the shell has told it to ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals.note_signals() as asked:
            signal.raise_signal(signal.SIGINT)
            assert asked() is None
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_stopped_as_typed(
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    at_steps(monkeypatch, lambda step: signal.raise_signal(signal.SIGTERM) if step == 1 else None)
    write_config(config, tmp_path / "c.yaml")
    assert typed("train", tmp_path / "c.yaml", "--out", tmp_path / "run") == 143
    assert "stopped by SIGTERM; the same line again continues" in capsys.readouterr().err
    # Outside the steps it ends at once.
    monkeypatch.setattr(fitting, "build", lambda *_: signal.raise_signal(signal.SIGTERM))
    assert typed("train", tmp_path / "c.yaml", "--out", tmp_path / "run") == 143
    assert not (tmp_path / "run" / ".lock").exists()


def started(*words: object) -> subprocess.Popen[str]:
    """A process with a group of its own, as batch systems start them."""
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_a_checkpoint(process: subprocess.Popen[str], run: Path) -> None:
    """Until there is one that was not there before."""
    before = set(run.glob("checkpoints/step-*.pt"))
    deadline = time.monotonic() + 120
    while set(run.glob("checkpoints/step-*.pt")) <= before:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)


def group_is_gone(number: int) -> bool:
    """Whether no process of a group is left, within some seconds."""
    deadline = time.monotonic() + 15
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(number, 0)
            time.sleep(0.1)
        return False
    return True


@pytest.mark.slow
def test_a_job_that_is_preempted(config: Config, tmp_path: Path) -> None:
    """SIGTERM to every process of the job, its decoding processes too."""
    write_config(vary(config, data__workers=2, optim__epochs=400), tmp_path / "c.yaml")
    run = tmp_path / "run"
    words = ["-m", "lingula", "train", tmp_path / "c.yaml", "--out", run]
    for _ in range(2):
        process = started(*words)
        wait_for_a_checkpoint(process, run)
        began = time.monotonic()
        os.killpg(process.pid, signal.SIGTERM)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 143, said
        assert time.monotonic() - began < 25  # of the 30 seconds that SLURM gives
        assert "the same line again continues" in said and "Traceback" not in said, said
        found = newest_checkpoint(run / "checkpoints")
        assert found is not None
        assert f"step {found['state']['step']} is saved" in said
        assert group_is_gone(process.pid)


@pytest.mark.slow
def test_decoding_processes_end_with_the_main_one(config: Config, tmp_path: Path) -> None:
    write_config(vary(config, data__workers=2, optim__epochs=400), tmp_path / "c.yaml")
    process = started("-m", "lingula", "train", tmp_path / "c.yaml", "--out", tmp_path / "run")
    wait_for_a_checkpoint(process, tmp_path / "run")
    process.kill()
    process.communicate(timeout=30)
    assert group_is_gone(process.pid)


@pytest.mark.slow
def test_two_processes_of_torchrun_stop_together(config: Config, tmp_path: Path) -> None:
    write_config(vary(config, optim__epochs=60), tmp_path / "c.yaml")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "lingula"]
    out = {name: tmp_path / name for name in ("whole", "cut")}
    line = {n: [*launch, "train", tmp_path / "c.yaml", "--out", o] for n, o in out.items()}
    process = started(*line["cut"])
    wait_for_a_checkpoint(process, out["cut"])
    process.terminate()  # torchrun passes it on
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0 and "is saved" in said, said
    found = newest_checkpoint(out["cut"] / "checkpoints")
    assert found is not None and 0 < found["state"]["step"] < 60 * STEPS
    for name in out:
        process = started(*line[name])
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    same = (out["cut"] / WEIGHTS).read_bytes() == (out["whole"] / WEIGHTS).read_bytes()
    assert same  # not compared here: pytest would print megabytes


def test_learning_rates_of_case_111() -> None:
    schedule = Schedule(1, 50, 20, 1e-6, 0.0, "constant")
    rates = [learning_rate(schedule, step, 5e-5) for step in range(50)]
    assert rates[:20] == [1e-6] * 20 and rates[20] == 5e-5
    assert rates[25] == pytest.approx(4.66506e-5, rel=1e-5)
    assert rates[35] == pytest.approx(2.5e-5)
    assert rates[49] == pytest.approx(1.3695e-7, rel=1e-4)


# Decoding processes (cases 98, 102, 103).


def test_a_decoding_process_that_is_killed(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel does when memory is short."""

    def kill(step: int) -> None:
        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, signal.SIGKILL)

    at_steps(monkeypatch, kill)
    began = time.monotonic()
    with pytest.raises(
        StoppedError, match=r"decoding process died.*data\.workers=0.*shared memory"
    ):
        lingula.train(vary(config, data__workers=1, optim__epochs=9), out=tmp_path / "run")
    assert time.monotonic() - began < 60


def test_the_number_of_decoding_processes_may_change(
    config: Config, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that its workers ended could not go on otherwise."""
    at_steps(monkeypatch, lambda step: signal.raise_signal(signal.SIGTERM) if step == 1 else None)
    with pytest.raises(signals.Interrupted):
        lingula.train(vary(config, data__workers=1), out=tmp_path / "run")
    monkeypatch.undo()
    with pytest.raises(InputError, match="seed: 0 there, 1 now"):
        lingula.train(None, ["data.workers=0", "seed=1"], resume=tmp_path / "run")
    same(lingula.train(None, ["data.workers=0"], resume=tmp_path / "run"), whole)
    assert lingula.train(config, out=tmp_path / "run") == tmp_path / "run"


def test_what_workers_get_can_be_sent_to_spawned_ones(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 103: nothing local, no lambda."""
    sent: list[bytes] = []

    def loader(dataset: object, **options: object) -> list[object]:
        functions = (options["collate_fn"], options["worker_init_fn"])
        sent.append(pickle.dumps((dataset, *functions)))
        return []

    monkeypatch.setattr(batches, "DataLoader", loader)
    dataset = Radiographs([Path(config.data.table)], 32)
    assert not list(batches.load(dataset, [np.arange(1)], workers=1))
    again, *functions = pickle.loads(sent[0])
    assert again.dataset.paths.tolist() == dataset.paths.tolist() and all(map(callable, functions))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["spawn", "forkserver"])
def test_workers_however_started_give_the_same_run(
    config: Config, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(batches, "START", way)
    run = lingula.train(vary(config, data__workers=2), out=tmp_path / "run")
    same(run, whole)


@pytest.mark.slow
def test_a_small_shared_memory(config: Config, tmp_path: Path) -> None:
    """Case 102, for real: /dev/shm with room for less than one batch."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("no right to mount a small /dev/shm")
    write_config(vary(config, data__workers=1, model__image_size=256), tmp_path / "c.yaml")
    line = f"{sys.executable} -m lingula train {tmp_path}/c.yaml --out {tmp_path}/run"
    began = time.monotonic()
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f"mount -t tmpfs -o size=128k none /dev/shm && exec {line}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and time.monotonic() - began < 90
    assert "data.workers=0" in done.stderr and "--shm-size" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr, done.stderr


# Damaged facts.


def test_damaged_facts_of_a_run_are_named(whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    for name, read in (("environment.json", run_folder.read_environment), ("metrics.jsonl", None)):
        (run / name).write_text('{"epoch": 1}\n{"ep')
        with pytest.raises(InputError, match=rf"{name}(, line 2,)? is damaged"):
            read(run) if read else read_rows(run / name)


# Two processes in one folder.


def test_only_one_process_trains_in_a_folder(config: Config, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    with run_folder.lock_run(tmp_path / "run"):
        for named in ({}, {"overwrite": True}):
            with pytest.raises(InputError, match="Another process is training in"):
                lingula.train(
                    settings(whole.parent / "data" / "labels.csv"), out=tmp_path / "run", **named
                )
        assert (tmp_path / "run" / ".lock").read_bytes() == b""
        lingula.predict(tmp_path / "run", data=config.data.table, out=tmp_path / "s.csv")
        lingula.evaluate(tmp_path / "s.csv", labels=config.data.table)
    assert not (tmp_path / "run" / ".lock").exists()
    assert not (tmp_path / "run.old-1").exists()
    moved = tmp_path / "run"
    with run_folder.lock_run(moved):
        files.set_aside(moved)
    assert not (tmp_path / "run.old-1" / ".lock").exists()


def test_what_killed_processes_left_is_swept(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill while a file is written leaves a temporary one, from the first file on."""

    def killed(path: Path, target: Path) -> Path:
        raise SystemExit(f"{target} is not reached")

    run = tmp_path / "run"
    mine = run / ".gitignore"
    run.mkdir()
    mine.write_text("*")
    unlink, rename = Path.unlink, Path.replace
    for name in ("config.yaml", "environment.json", "model.json", "metrics.jsonl", "dev.csv"):
        with monkeypatch.context() as patched:
            patched.setattr(
                Path,
                "replace",
                lambda path, to, n=name: killed(path, to) if to.name == n else rename(path, to),
            )
            patched.setattr(
                Path,
                "unlink",
                lambda path, missing_ok=False: (
                    unlink(path, missing_ok) if path.name == ".lock" else None
                ),
            )
            with pytest.raises(SystemExit, match="is not reached"):
                lingula.train(vary(config, optim__epochs=1), out=run)
        left = [p.name for p in run.rglob(".*") if p.is_file() and p != mine]
        assert any(part.startswith(f".{name.split('.')[0]}") for part in left), left
    lingula.train(vary(config, optim__epochs=1), out=run)
    assert [p for p in run.rglob(".*") if p.is_file()] == [mine]


def test_the_lock_of_a_killed_process_is_gone(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom lingula.training import run_folder\n"
        "with run_folder.lock_run(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with (
        pytest.raises(InputError, match=r"Another process is training.*fuser"),
        run_folder.lock_run(tmp_path / "run"),
    ):
        pass
    process.kill()
    process.wait()
    process.stdout.close()
    assert (tmp_path / "run" / ".lock").is_file()  # its file stays, and means nothing
    with run_folder.lock_run(tmp_path / "run"):
        pass
    assert not any((tmp_path / "run").iterdir())


def test_a_run_that_was_refused_leaves_no_folder(config: Config, tmp_path: Path) -> None:
    table = Path(config.data.table)
    table.write_text(table.read_text().replace(",p1,", ",p4,"))
    with pytest.raises(InputError, match="more than one split"):
        lingula.train(config, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_at_the_same_moment(config: Config, whole: Path, tmp_path: Path) -> None:
    write_config(config, tmp_path / "c.yaml")
    words = ["train", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "run")]
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "lingula", *words], stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    said = [process.communicate()[1] for process in both]
    # The second is refused; or, if it came late, found the run finished.
    assert sorted(process.returncode for process in both) in ([0, 2], [0, 0]), said
    assert any("Another process is training" in text or "is finished" in text for text in said)
    same(tmp_path / "run", whole)


# The same run whatever else goes on (case 99), and memory (case 101).


def test_what_validation_draws_changes_nothing(
    config: Config, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = loop.score

    def drawing(*arguments: object, **named: object) -> object:
        torch.rand(7)
        np.random.default_rng().random()
        return usual(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "score", drawing)
    same(lingula.train(config, out=tmp_path / "run"), whole)


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="reads Linux's /proc")
def test_scoring_keeps_no_images(config: Config, whole: Path) -> None:
    images = sorted((Path(config.data.table).parent / "images").iterdir())
    dataset = Radiographs(images * 60, 64)  # 300 batches of 8
    resident: list[int] = []

    def tick(done: int, total: int) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident.append(pages * os.sysconf("SC_PAGE_SIZE"))

    loop.score(
        load_model(whole).network,
        dataset,
        fabric=make_fabric("cpu", "fp32"),
        batch_size=8,
        tick=tick,
    )
    assert len(resident) == 300
    assert resident[299] - resident[49] < 8 * 2**20


# Position embeddings of another image size (case 114).


def test_positions_of_another_size_are_resampled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lingula")
    source = timm.create_model("test_vit", pretrained=False)  # 160 pixels, 10 x 10 patches
    with torch.no_grad():
        source.pos_embed.copy_(torch.linspace(0, 1, 101)[None, :, None].expand_as(source.pos_embed))
    torch.save(source.state_dict(), tmp_path / "vit.pt")
    same_size, _, _ = build_encoder("test_vit", 160)
    report, _ = load_encoder(same_size, tmp_path / "vit.pt")
    assert not report.missing
    assert torch.equal(same_size.state_dict()["body.model.pos_embed"], source.pos_embed)
    smaller, _, _ = build_encoder("test_vit", 64)
    report, _ = load_encoder(smaller, tmp_path / "vit.pt")
    assert not report.missing
    found = smaller.state_dict()["body.model.pos_embed"]
    assert found.shape == (1, 17, 64)
    assert "(1, 101, 64) to (1, 17, 64)" in caplog.text
    grid = found[0, 1:, 0]  # positions rise along the rows, as they did
    assert (grid.diff() > 0).all() and 0 < float(grid[0]) < float(grid[-1]) < 1


def test_positions_that_cannot_be_resampled_are_refused_with_both_sizes(tmp_path: Path) -> None:
    name = "swin_tiny_patch4_window7_224"
    source = timm.create_model(name, pretrained=False, img_size=224)
    torch.save(source.state_dict(), tmp_path / "swin.pt")
    right, _, _ = build_encoder(name, 224)
    report, _ = load_encoder(right, tmp_path / "swin.pt")
    assert not report.missing and len(report.unexpected) == 4
    encoder, _, _ = build_encoder(name, 64)
    with pytest.raises(InputError, match=r"shape \(169, \d+\), the encoder's has \(49, \d+\)"):
        load_encoder(encoder, tmp_path / "swin.pt")


@pytest.mark.parametrize("name", ["test_resnet", "densenet121", "convnext_atto"])
def test_weights_fit_finer_stages(tmp_path: Path, name: str) -> None:
    torch.save(timm.create_model(name, pretrained=False).state_dict(), tmp_path / "w.pt")
    report, _ = load_encoder(build_encoder(name, 64, stage=1)[0], tmp_path / "w.pt")
    assert not report.missing and report.matched


def test_what_is_written_at_the_start_is_written_again(
    config: Config, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run killed right after it was claimed has its settings and nothing else."""
    table = Path(config.data.table)
    lines = [line.split(",") for line in table.read_text().splitlines()]
    table.write_text("\n".join(",".join(c[:3] + c[4:]) for c in lines))  # no split: one is made
    monkeypatch.setattr(fitting.files, "write_json", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        lingula.train(config, out=tmp_path / "run")
    monkeypatch.undo()
    for name in ("table.csv", "table.json"):
        (tmp_path / "run" / name).unlink(missing_ok=True)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["config.yaml"]
    run = lingula.train(config, out=tmp_path / "run")
    assert (run / "table.csv").is_file() and json.loads((run / "environment.json").read_text())
    assert read_facts(run)["epoch"] >= 1
    assert lingula.evaluate(run / "scores" / "dev.csv", labels=run / "table.csv").metrics.mAP > 0
