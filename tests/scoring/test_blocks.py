"""Prediction that can be interrupted: blocks beside the output, continuing, the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import lingula
from builders import torchrun, write_tiny
from lingula.loading import batches
from lingula.loading.batches import Radiographs, consecutive_batches
from lingula.scores.predictions import read_scores
from lingula.scoring import blocks
from lingula.scoring.blocks import blocks_folder, lock_blocks, read_blocks, write_block
from lingula.scoring.scoring import ScoredBatch, fitting_batch, score_batch
from lingula.scoring.views import VIEWS, View, merge_views
from lingula.settings.config import vary
from lingula.settings.recipes import recipe
from lingula.system.errors import InputError
from lingula.verbs import predict as predicting

BLOCKS = [
    ScoredBatch(
        np.arange(3),
        np.array([[0.1, np.nextafter(0.3, 1)], [np.nan, np.nan], [5e-324, 1.0]]),
        {1: "bad ü \udcff"},
    ),
    ScoredBatch(np.arange(3, 5), np.array([[1 / 3, 0.0], [0.25, 0.5]]), {}),
    ScoredBatch(np.arange(5, 6), np.array([[0.125, 2 / 3]]), {}),
]
LOST = {"images/007.png", "images/021.png"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A trained model, and a table of 40 images of which one is empty and one vanished."""
    place = tmp_path_factory.mktemp("stream")
    table = write_tiny(place / "data")
    config = vary(recipe("smoke"), data__table=str(table), optim__epochs=1, precision="fp32")
    run = lingula.train(vary(config, optim__batch_size=8), out=place / "run")
    (table.parent / "images" / "007.png").write_bytes(b"")
    (table.parent / "images" / "021.png").unlink()
    # Studies of two images, and one image of no study.
    lines = table.read_text().splitlines()
    cells = [line.split(",") for line in lines]
    for i, row in enumerate(cells[1:]):
        row[1:3] = [f"p{i % 20}", f"s{i % 20}" if i != 5 else ""]
    table.write_text("\n".join(",".join(row) for row in cells) + "\n")
    return run, table


def write(folder: Path, blocks: list[ScoredBatch]) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for block in blocks:
        write_block(folder, block.rows, block.probabilities, block.failures)
    return sorted(folder.glob("*.npz"))


def test_blocks_come_back_bit_for_bit(tmp_path: Path) -> None:
    write(tmp_path / "p", [BLOCKS[1], BLOCKS[2], BLOCKS[0]])
    found = read_blocks(tmp_path / "p", 7, 2)
    assert found.done.tolist() == [True] * 6 + [False] and found.failures == BLOCKS[0].failures
    every = np.concatenate([block.probabilities for block in BLOCKS])
    assert found.scores[:6].tobytes() == every.tobytes() and np.isnan(found.scores[6]).all()


def test_a_torn_or_damaged_block_does_not_count(tmp_path: Path) -> None:
    """Whatever the byte at which the file ends, or that the disk changed."""
    path = write(tmp_path / "p", BLOCKS)[0]
    right, data = read_blocks(tmp_path / "p", 6, 2), path.read_bytes()
    for length in range(0, len(data), 3):
        path.write_bytes(data[:length])
        found = read_blocks(tmp_path / "p", 6, 2)
        assert found.done.tolist() == [False] * 3 + [True] * 3 and not found.failures
    lost = 0
    for at in range(0, len(data), 5):
        path.write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
        found = read_blocks(tmp_path / "p", 6, 2)
        assert found.done[3:].all()
        if found.done[0]:  # what changed says nothing, such as the file's date
            assert found.scores.tobytes() == right.scores.tobytes()
            assert found.failures == right.failures
        lost += not found.done[0]
    assert lost > len(data) / 5 / 2
    path.write_bytes(data)
    assert not read_blocks(tmp_path / "p", 6, 3).done.any()  # another number of classes
    assert read_blocks(tmp_path / "p", 5, 2).done.tolist() == [True] * 5  # more rows than there are


def test_what_was_scored_again_replaces_what_was_there(tmp_path: Path) -> None:
    again = ScoredBatch(BLOCKS[0].rows, np.full((3, 2), 0.5), {})
    write(tmp_path / "p", [BLOCKS[0], again])
    found = read_blocks(tmp_path / "p", 3, 2)
    assert (found.scores == 0.5).all() and not found.failures


def test_one_prediction_at_a_time_and_no_blocks_without_settings(tmp_path: Path) -> None:
    folder = tmp_path / ".s.csv.parts"
    with lock_blocks(folder, {"a": 1}):
        write(folder, BLOCKS)
        with (
            pytest.raises(InputError, match="Another process is predicting"),
            lock_blocks(folder, {"a": 1}),
        ):
            pass
    with lock_blocks(folder, {"a": 1}):
        assert read_blocks(folder, 6, 2).done.all()
    # A folder that was being removed when its process was killed has blocks of who knows what.
    (folder / "settings.json").unlink()
    with lock_blocks(folder, {"a": 2}):
        assert not read_blocks(folder, 6, 2).done.any()


def interrupted(monkeypatch: pytest.MonkeyPatch, after: int, run: Path, **given: Any) -> None:
    """The prediction, ended by an interrupt after some batches."""
    real = blocks.write_block
    count = iter(range(after))

    def write_some(*block: Any) -> None:
        if next(count, None) is None:
            raise KeyboardInterrupt
        real(*block)

    with monkeypatch.context() as patch:
        patch.setattr(blocks, "write_block", write_some)
        with pytest.raises(KeyboardInterrupt):
            lingula.predict(run, **given)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the images that are read."""
    seen: list[int] = []
    real = Radiographs.__getitem__

    def get(self: Radiographs, index: int) -> Any:
        seen.append(index)
        return real(self, index)

    monkeypatch.setattr(Radiographs, "__getitem__", get)
    return seen


@pytest.mark.parametrize(
    ("suffix", "extra"),
    [
        (".csv", {"tta": "paper"}),
        (".parquet", {"by": "study"}),
        (".csv", {"by": "study", "split": "train"}),
    ],
)
def test_a_continued_prediction_is_byte_for_byte_an_undisturbed_one(
    tiny: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    read: list[int],
    suffix: str,
    extra: dict[str, Any],
) -> None:
    run, table = tiny
    given: dict[str, Any] = {"data": table, "batch_size": 4, "device": "cpu", **extra}
    right = lingula.predict(run, out=tmp_path / f"right{suffix}", **given)
    out = tmp_path / f"out{suffix}"
    interrupted(monkeypatch, 2, run, out=out, **given)
    assert not out.exists() and not out.with_suffix(".failed.csv").exists()
    interrupted(monkeypatch, 1, run, out=out, **given)
    # A process killed while it writes leaves half a block, under a name of its own.
    block = min(blocks_folder(out).glob("*.npz"))
    block.with_name(".000000012-000000016.a1b2c3d4.npz").write_bytes(block.read_bytes()[:70])
    read.clear()
    done = lingula.predict(run, out=out, **given)
    assert set(read) == set(range(12, right.images))
    assert set(done.failures) == (set() if "split" in extra else LOST)
    assert done.failures == right.failures
    # The scores, their settings and the failures, and nothing else.
    made = {p.name.replace("right", "out"): p.read_bytes() for p in tmp_path.glob("right*")}
    assert made == {p.name: p.read_bytes() for p in tmp_path.iterdir() if "out" in p.name}
    assert len(made) == 2 + bool(done.failures)


def test_a_vanished_image_is_a_blank_row_and_nothing_else(
    tiny: tuple[Path, Path], tmp_path: Path
) -> None:
    run, table = tiny
    done = lingula.predict(run, data=table, out=tmp_path / "s.csv", batch_size=8)
    assert set(done.failures) == LOST
    scores = read_scores(done.path)
    blank = np.isnan(scores.probabilities).all(1)
    assert [scores.images[i] for i in np.flatnonzero(blank)] == sorted(done.failures)
    assert np.isfinite(scores.probabilities[~blank]).all() and len(scores) == 40


def test_scores_do_not_depend_on_the_batch_also_of_who_continues(
    tiny: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, table = tiny
    given: dict[str, Any] = {"data": table, "device": "cpu", "tta": "flip"}
    sizes: list[Any] = [1, 7, 32, "auto"]
    found = [
        read_scores(
            lingula.predict(run, out=tmp_path / f"{n}.csv", batch_size=n, **given).path
        ).probabilities
        for n in sizes
    ]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-6, rtol=0)
    interrupted(monkeypatch, 3, run, out=tmp_path / "mixed.csv", batch_size=3, **given)
    mixed = lingula.predict(run, out=tmp_path / "mixed.csv", batch_size=7, **given)
    np.testing.assert_allclose(read_scores(mixed.path).probabilities, found[0], atol=1e-6, rtol=0)


def test_blocks_of_other_settings_are_never_mixed_in(
    tiny: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[int]
) -> None:
    run, table = tiny
    given: dict[str, Any] = {"data": table, "device": "cpu", "batch_size": 4}
    out = tmp_path / "s.csv"
    interrupted(monkeypatch, 3, run, out=out, tta="none", **given)
    for other, what in (
        ({"tta": "flip"}, "tta: 'none' there, 'flip' now"),
        ({"split": "train"}, "split: None there, 'train' now"),
        ({"by": "study"}, "by: 'image' there"),
        ({"precision": "bf16"}, "precision: None there, 'bf16' now"),
    ):
        with pytest.raises(InputError, match=what):
            lingula.predict(run, out=out, **({"tta": "none"} | given | other))
    changed = table.parent / "again.csv"
    changed.write_bytes(table.read_bytes())
    with pytest.raises(InputError, match="data: "):
        lingula.predict(run, out=out, **({"tta": "none"} | given | {"data": changed}))
    read.clear()
    lingula.predict(run, out=out, tta="flip", overwrite=True, **given)
    assert set(read) == set(range(40))
    assert (tmp_path / ".s.csv.parts.old-1" / "000000000-000000004.npz").is_file()
    # The same line with --overwrite goes on where it was interrupted.
    interrupted(monkeypatch, 9, run, out=out, tta="none", overwrite=True, **given)
    assert (tmp_path / "s.csv.old-1").is_file() and not out.exists()
    read.clear()
    lingula.predict(run, out=out, tta="none", overwrite=True, **given)
    assert set(read) == set(range(36, 40))


def test_auto_precision_is_exact_and_bf16_is_another_setting(
    tiny: tuple[Path, Path], tmp_path: Path
) -> None:
    """No AP may move by more than 0.001, and bf16 was seen to move one by more."""
    run, table = tiny
    given: dict[str, Any] = {"data": table, "device": "cpu"}
    done = lingula.predict(run, out=tmp_path / "s.csv", precision="fp32", **given)
    assert lingula.predict(run, out=tmp_path / "s.csv", precision="auto", **given) == done
    with pytest.raises(InputError, match="precision: None there, 'bf16' now"):
        lingula.predict(run, out=tmp_path / "s.csv", precision="bf16", **given)


def test_images_of_a_folder_are_known_by_name_not_by_number(
    tiny: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, table = tiny
    folder = tmp_path / "films"
    folder.mkdir()
    for i in range(6):
        (folder / f"{i}.png").write_bytes((table.parent / "images" / f"00{i}.png").read_bytes())
    given: dict[str, Any] = {"data": folder, "batch_size": 1, "device": "cpu"}
    interrupted(monkeypatch, 3, run, out=tmp_path / "s.csv", **given)
    (folder / "0.png").rename(folder / "9.png")
    with pytest.raises(InputError, match="images_sha256"):
        lingula.predict(run, out=tmp_path / "s.csv", **given)


def folder_of_films(table: Path, folder: Path, count: int = 3) -> Path:
    folder.mkdir()
    for i in range(count):
        film = table.parent / "images" / f"00{i}.png"
        (folder / film.name).write_bytes(film.read_bytes())
    return folder


def test_a_folder_of_other_images_is_never_answered_with_old_scores(
    tiny: tuple[Path, Path], tmp_path: Path
) -> None:
    """As many images as before, one of another name; or another film under an old name."""
    run, table = tiny
    folder = folder_of_films(table, tmp_path / "films")
    given: dict[str, Any] = {"data": folder, "out": tmp_path / "s.csv", "device": "cpu"}
    done = lingula.predict(run, **given)
    before = done.path.read_bytes()
    assert lingula.predict(run, **given) == done
    (folder / "000.png").rename(folder / "010.png")
    with pytest.raises(InputError, match=r"(?s)images_sha256: '.*The images are others than then"):
        lingula.predict(run, **given)
    (folder / "010.png").rename(folder / "000.png")
    assert lingula.predict(run, **given) == done  # a renamed file keeps its time
    (folder / "000.png").write_bytes((table.parent / "images" / "003.png").read_bytes())
    with pytest.raises(InputError, match=r"(?s)files_sha256: '.*Image files have changed since"):
        lingula.predict(run, **given)
    assert done.path.read_bytes() == before
    again = lingula.predict(run, overwrite=True, **given)
    assert again.path.read_bytes() != before
    assert (tmp_path / "s.csv.old-1").read_bytes() == before


def test_a_table_whose_films_changed_is_neither_done_nor_continued(
    tiny: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A film of the same size at another time, and one that was not there before."""
    run, table = tiny
    films = folder_of_films(table, tmp_path / "films", 6)
    labels = tmp_path / "t.csv"
    labels.write_text("image\n" + "\n".join(f"films/00{i}.png" for i in range(7)) + "\n")
    given: dict[str, Any] = {"data": labels, "batch_size": 2, "device": "cpu"}
    done = lingula.predict(run, out=tmp_path / "whole.csv", **given)
    assert set(done.failures) == {"films/006.png"}
    interrupted(monkeypatch, 2, run, out=tmp_path / "begun.csv", **given)
    os.utime(films / "000.png", ns=(0, 1))
    for name, what in (("whole", "there already, made"), ("begun", "an interrupted prediction")):
        with pytest.raises(InputError, match=rf"(?s){what}.* with other settings:.*files_sha256"):
            lingula.predict(run, out=tmp_path / f"{name}.csv", **given)
    os.utime(films / "000.png", ns=(0, 2))
    lingula.predict(run, out=tmp_path / "whole.csv", overwrite=True, **given)
    (films / "006.png").write_bytes((films / "000.png").read_bytes())
    with pytest.raises(InputError, match="files_sha256"):
        lingula.predict(run, out=tmp_path / "whole.csv", **given)


def test_classes_that_training_never_saw_are_named_and_noted(
    tiny: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once a command; with one in the table, and with none."""
    run, labels = tiny[0], write_tiny(tmp_path / "data")
    head, *rows = [line.split(",") for line in labels.read_text().splitlines()]
    for row in rows:  # no fracture in train
        row[6] = "0" if row[3] == "train" else row[6]
    labels.write_text("\n".join(",".join(row) for row in [head, *rows]) + "\n")
    assert head[6] == "Fracture"
    config = vary(recipe("smoke"), data__table=str(labels), optim__epochs=1, precision="fp32")
    never = lingula.train(vary(config, optim__batch_size=8), out=tmp_path / "never")
    film = labels.parent / "images" / "000.png"
    for trained, named in ((run, []), (never, ["Fracture"])):
        out = tmp_path / f"{trained.name}.csv"
        for _ in range(2):  # scored, and there already
            caplog.clear()
            lingula.predict(trained, data=film, out=out)
            told = [r.getMessage() for r in caplog.records if "Never positive" in r.getMessage()]
            assert len(told) == len(named) and all("Fracture." in line for line in told)
        assert json.loads(out.with_suffix(".made.json").read_text())["never_positive"] == named


def test_the_facts_of_many_files_are_cheap(tmp_path: Path) -> None:
    """377,110 films must not wait long for this, nor be held in memory: 10,000 take a moment."""
    (tmp_path / "a.png").write_bytes(b"1")
    paths = [tmp_path / "a.png"] * 10_000
    began = time.process_time()
    found = predicting.hash_file_facts(paths)
    assert time.process_time() - began < 2
    assert found == predicting.hash_file_facts(list(paths))
    for other in (paths[:-1], [*paths[:-1], tmp_path / "no.png"]):
        assert predicting.hash_file_facts(other) != found


def test_what_is_left_of_the_blocks_of_a_finished_file_is_cleared(
    tiny: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process killed between the file's rename and the removal of its blocks."""
    run, table = tiny
    out = tmp_path / "s.csv"
    with monkeypatch.context() as patch:
        patch.setattr("lingula.verbs.predict.remove_blocks", lambda folder: None)
        done = lingula.predict(run, data=table, out=out)
    before = out.read_bytes()
    assert blocks_folder(out).is_dir()
    assert lingula.predict(run, data=table, out=out) == done
    assert out.read_bytes() == before and not blocks_folder(out).exists()


def test_study_means_leave_out_failed_images(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    run, table = tiny
    given: dict[str, Any] = {"data": table, "device": "cpu"}
    image, study = (
        read_scores(lingula.predict(run, out=tmp_path / f"{by}.csv", by=by, **given).path)
        for by in ("image", "study")
    )
    assert image.ids is None
    raw = image.probabilities
    right = raw.copy()
    for i in range(20):
        pair = [row for row in (i, i + 20) if np.isfinite(raw[row]).all()]
        if i != 5:  # row 5 is of no study, so row 25 is alone in its own
            right[pair] = raw[pair].mean(0)
    np.testing.assert_array_equal(study.probabilities, right)


def test_views_are_made_once_and_score_as_one_by_one(tiny: tuple[Path, Path]) -> None:
    from lingula.model.checkpoint import load_model

    network = load_model(tiny[0]).network.eval()
    drawn = np.random.default_rng(0).integers(0, 256, (5, 1, 32, 32), np.uint8)
    films, keys = torch.from_numpy(drawn), list(range(5))
    inputs: list[torch.Tensor] = []

    def forward(images: torch.Tensor) -> torch.Tensor:
        inputs.append(images)
        logits: torch.Tensor = network(images)
        return logits

    for name, views in VIEWS.items():
        with torch.no_grad():
            alone = [network.prepare(view(films, keys)) for view in views]
            right = merge_views(torch.stack([network(x) for x in alone]), "geometric")
        for layout in (torch.contiguous_format, torch.channels_last):
            inputs.clear()
            found = score_batch(network, films, views, "geometric", forward, keys, layout)
            torch.testing.assert_close(found, right, atol=1e-6, rtol=0)
            # What the network gets is what it got one view at a time, bit for bit.
            assert torch.equal(torch.cat(inputs), torch.cat(alone))
            assert all(x.is_contiguous(memory_format=layout) for x in inputs)
        if name == "flip":
            assert len(inputs) == 1  # both views at once


def test_a_mirrored_warp_is_not_the_warp_of_the_mirror_image() -> None:
    """Else one of the two would not have to be made: this fails should that ever become so."""
    drawn = np.random.default_rng(0).integers(0, 256, (2, 1, 64, 64), np.uint8)
    films = torch.from_numpy(drawn)
    mirrored = View("", side=1.1)(films, [0, 1]).flip(-1)
    warped = View("", side=1.1, flip=True)(films, [0, 1])
    assert not torch.equal(mirrored, warped)
    torch.testing.assert_close(mirrored, warped, atol=0.01, rtol=0)


def test_decoding_goes_on_while_the_network_computes(
    tiny: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a batch is in use the next one is decoded, however slow the machine is."""
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    real, decoded = Radiographs.__getitem__, []

    def noted(self: Radiographs, index: int) -> Any:
        decoded.append(index)
        return real(self, index)

    monkeypatch.setattr(Radiographs, "__getitem__", noted)
    images = sorted((tiny[1].parent / "images").glob("*.png"))[:20]
    loading = batches.load(Radiographs(images, 32), consecutive_batches(20, 4))
    for number, _ in enumerate(loading, start=1):
        deadline = time.monotonic() + 60
        while len(decoded) < min(4 * (number + 1), 20):  # the network's turn
            assert time.monotonic() < deadline, f"{len(decoded)} decoded at batch {number}"
            time.sleep(0.001)


def test_auto_is_a_power_of_two_that_follows_from_the_sizes(tiny: tuple[Path, Path]) -> None:
    from lingula.model.checkpoint import load_model
    from lingula.model.devices import make_fabric

    network = load_model(tiny[0]).network
    fabric = make_fabric("cpu", "fp32")
    found = [fitting_batch(network, size, fabric) for size in (32, 64, 1024)]
    assert found[0] == found[1] == 32 and found[2] <= 32
    assert all(n & (n - 1) == 0 for n in found)
    network.train()
    fitting_batch(network, 32, fabric)
    assert network.training


KILLED = """
import sys, lingula
lingula.predict(sys.argv[1], data=sys.argv[2], out=sys.argv[3], batch_size=2, device="cpu")
"""


def under_many_names(table: Path, many: int) -> list[str]:
    """The table's 40 images, the vanished one too, as `many` by hard links; their names."""
    place = table.parent / f"many-{many}"
    place.mkdir()
    for i in range(many):
        image = table.parent / "images" / f"{i % 40:03}.png"
        if image.exists():
            os.link(image, place / f"{i:06}.png")
    return [f"{place.name}/{i:06}.png" for i in range(many)]


@pytest.mark.slow
def test_killed_and_typed_again(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    run, table = tiny
    big = table.parent / "big.csv"
    big.write_text("image\n" + "\n".join(under_many_names(table, 4000)) + "\n")
    out = tmp_path / "s.csv"
    line = [sys.executable, "-c", KILLED, str(run), str(big)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*line, str(tmp_path / "right.csv")], check=True, env=env, timeout=300)
    sizes = []
    for _ in range(3):
        running = subprocess.Popen([*line, str(out)], env=env)
        while running.poll() is None:
            held_now = sum(p.stat().st_size for p in blocks_folder(out).glob("[0-9]*.npz"))
            if held_now > (sizes[-1] if sizes else 0) + 20_000:
                running.send_signal(signal.SIGKILL)
                break
            time.sleep(0.01)
        assert running.wait() == -signal.SIGKILL and not out.exists()
        sizes.append(sum(p.stat().st_size for p in blocks_folder(out).glob("[0-9]*.npz")))
    subprocess.run([*line, str(out)], check=True, env=env, timeout=300)
    assert out.read_bytes() == (tmp_path / "right.csv").read_bytes()
    assert not blocks_folder(out).exists()


MEASURED = """
import resource, sys, lingula
from lingula.scoring import blocks
rss = []
real = blocks.count_only
def count_only(tick):
    inner = real(tick)
    def count(done, total):
        inner(done, total)
        if done % 3200 == 0:
            pages = int(open("/proc/self/statm").read().split()[1])
            rss.append(pages * resource.getpagesize() / 2**20)
    return count
blocks.count_only = count_only
lingula.predict(sys.argv[1], data=sys.argv[2], out=sys.argv[3], device="cpu", by="study")
print(*rss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_flat_over_a_large_table(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    run, table = tiny
    big = table.parent / "large.csv"
    names = under_many_names(table, 32_000)
    rows = [f"{name},p{i // 6},s{i // 2}" for i, name in enumerate(names)]
    big.write_text("image,patient,study\n" + "\n".join(rows) + "\n")
    line = [sys.executable, "-c", MEASURED, str(run), str(big), str(tmp_path / "s.parquet")]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 0, done.stderr
    *during, peak = map(float, done.stdout.split()[-11:])
    assert len(during) == 10 and peak < 2000
    assert during[-1] - during[1] < 30, during
    assert pl.read_parquet(tmp_path / "s.parquet").height == 32_000


@pytest.mark.slow
def test_another_number_of_processes_continues(
    tiny: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun by one process, continued by two that each score their own batches of one grid."""
    run, table = tiny
    given: dict[str, Any] = {"data": table, "batch_size": 4, "device": "cpu", "tta": "flip"}
    right = lingula.predict(run, out=tmp_path / "right.csv", **given)
    out = tmp_path / "s.csv"
    interrupted(monkeypatch, 3, run, out=out, **given)
    words = ["predict", str(run), "--data", str(table), "--out", str(out), "--device", "cpu"]
    done = torchrun(2, *words, "--batch-size", "4", "--tta", "flip")
    assert out.is_file(), done.stderr
    assert out.read_bytes() == right.path.read_bytes()
    assert "12 of 40 images have been scored before" in done.stderr
    assert not blocks_folder(out).exists()
