"""A step of training: shared out, cut into pieces, and deaf to what masked cells hold."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lingula
from lingula.loading.order import Rows, draws, epoch_batches, training_batches
from lingula.model.devices import make_fabric
from lingula.model.network import Architecture, Network
from lingula.model.text import orthogonal
from lingula.settings.config import Config, vary
from lingula.system.errors import InputError
from lingula.training.optim import plan
from lingula.training.origins import start_at_prior
from lingula.training.run_folder import read_rows
from lingula.training.steps import (
    LOSSES,
    Batch,
    Labels,
    asymmetric,
    backward,
    bce,
    cut,
    derangement,
    mix,
    mixup,
    reduce_loss,
)

BAD = (float("nan"), float("inf"), -float("inf"), 1e30)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_process_gets_two_rows_of_every_batch_or_it_is_refused(world: int) -> None:
    """Case 81: batches and tables of every size."""
    for rows in range(1, 14):
        for size in range(1, 9):
            sound = size >= 2 * world and rows >= 2 * world
            if not sound:
                with pytest.raises(InputError, match="needs two"):
                    epoch_batches(Rows(rows), size, seed=0, epoch=0, world=world)
                continue
            shares = [
                list(
                    training_batches(
                        Rows(rows), size, seed=0, epochs=1, start=0, rank=rank, world=world
                    )
                )
                for rank in range(world)
            ]
            assert len({len(share) for share in shares}) == 1
            assert min(len(batch) for share in shares for batch in share) >= 2
            assert sorted(np.concatenate([b for s in shares for b in s]).tolist()) == [*range(rows)]


def test_a_plan_that_leaves_a_process_a_single_row_is_refused() -> None:
    for size, pieces, world, least in ((2, 1, 2, 4), (8, 4, 2, 16), (3, 1, 2, 4)):
        config = vary(Config(), optim__batch_size=size, optim__accumulate=pieces)
        with pytest.raises(InputError, match=f"optim.batch_size={least} or more"):
            plan(config, Rows(20), world)
        sound = vary(config, optim__batch_size=least)
        assert plan(sound, Rows(20), world).steps_per_epoch >= 1


def test_pieces_have_two_rows_and_a_size_of_their_own() -> None:
    for rows in range(2, 40):
        for size in range(2, 12):
            lengths = [part.stop - part.start for part in cut(rows, size)]
            assert [i for part in cut(rows, size) for i in range(part.start, part.stop)] == [
                *range(rows)
            ]
            assert min(lengths) >= 2 and max(lengths) <= size + 1
            assert lengths[:-1] == [size] * (len(lengths) - 1)
    for pieces in (1, 2, 3, 4):  # a whole batch is cut as evenly as it can be
        whole = [len(part) for part in torch.arange(12).chunk(pieces)]
        assert [part.stop - part.start for part in cut(12, -(-12 // pieces))] == whole


def test_short_batches_of_small_images_train(tiny_config: Config, tmp_path: Path) -> None:
    """Cases 90 and 100: 9, 9 and 2 rows; a ResNet-18 makes a single cell of 32 pixels."""
    config = vary(
        tiny_config,
        model__encoder="resnet18",
        model__stage=0,
        optim__batch_size=9,
        optim__accumulate=4,
        optim__epochs=1,
    )
    assert np.isfinite(
        read_rows(lingula.train(config, out=tmp_path / "run") / "metrics.jsonl")[0]["loss"]
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("bad", BAD)
def test_a_masked_cell_gives_no_gradient_whatever_it_holds(name: str, bad: float) -> None:
    """Case 95."""
    mask = torch.tensor([[False, True]])
    found = []
    for held in (bad, 0.0):
        logits = torch.zeros(1, 2, requires_grad=True)
        loss = reduce_loss(LOSSES[name](logits, torch.tensor([[held, 1.0]])), mask)
        loss.backward()
        assert logits.grad is not None
        found.append((loss.item(), logits.grad.tolist()))
    assert found[0] == found[1] and found[0][1][0][0] == 0
    if name == "bce":
        assert found[0][0] == pytest.approx(0.6931, abs=1e-4) and found[0][1] == [[0.0, -0.5]]
    if not np.isfinite(bad):  # and a known cell that is not finite is never passed over
        known = torch.tensor([[True, True]])
        loss = reduce_loss(LOSSES[name](torch.zeros(1, 2), torch.tensor([[bad, 1.0]])), known)
        assert not torch.isfinite(loss)


class Weighted(nn.Module):
    """Two logits that are two weights times the image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def forward(self, images: Tensor, encoded: bool = False) -> Tensor:
        return images.flatten(1) * self.weight


@pytest.mark.parametrize("bad", BAD)
def test_a_step_is_deaf_to_masked_cells_whatever_the_loss(bad: float) -> None:
    """Also with a loss of one's own that takes no care of it."""

    def product(logits: Tensor, targets: Tensor) -> Tensor:
        return -(targets * logits.sigmoid().log() + (1 - targets) * (1 - logits.sigmoid()).log())

    def gradient(held: float, loss_of: Callable[[Tensor, Tensor], Tensor]) -> list[float]:
        model = Weighted()
        targets = torch.tensor([[held, 1.0], [1.0, 0.0], [held, 1.0], [0.0, held]])
        mask = torch.tensor([[False, True], [True, True], [False, True], [True, False]])
        batch = Batch(torch.ones(4, 1, 1, 1), (Labels(targets, mask),))
        config = vary(Config(), optim__batch_size=4, optim__accumulate=2)

        fabric = make_fabric("cpu", "fp32")
        backward(fabric.setup(model), batch, loss_of, None, config, fabric)
        assert model.weight.grad is not None
        return list(model.weight.grad.tolist())

    for loss_of in (product, bce):
        assert gradient(bad, loss_of) == gradient(0.0, loss_of)


def step_of(batch: Batch, loss_of: Callable[[Tensor, Tensor], Tensor]) -> tuple[float, Tensor]:
    """Loss and gradient of a step on a batch of four."""
    model, fabric = Weighted(), make_fabric("cpu", "fp32")
    model.weight.data = torch.tensor([0.4, -0.7])
    config = vary(Config(), optim__batch_size=4, optim__accumulate=2)
    loss = backward(fabric.setup(model), batch, loss_of, None, config, fabric)
    assert model.weight.grad is not None
    return loss.item(), model.weight.grad


@pytest.mark.parametrize("name", LOSSES)
def test_a_mixture_learns_each_partners_known_cells(name: str) -> None:
    """The loss is share x L(y1 where known) + (1 - share) x L(y2 where known)."""
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(4, 1, 1, 2, generator=draw)
    targets = (torch.rand(4, 2, generator=draw) > 0.5).float()
    loss_of = LOSSES[name]
    # Where all cells are known it is the loss of the mixed targets, as it was.
    everything = Batch(images, (Labels(targets, torch.ones(4, 2) > 0),))
    mixed = mixup(everything, 4.0, seed=0, step=0)
    first, second = mixed.labels
    soft = first.share * first.targets + second.share * second.targets
    plain = Batch(mixed.images, (Labels(soft, torch.ones(4, 2) > 0),))
    for found, right in zip(step_of(mixed, loss_of), step_of(plain, loss_of), strict=True):
        torch.testing.assert_close(found, right)
    # A cell that one partner alone knows is learnt from it, by its share.
    mask = torch.tensor([[True, False], [True, True], [False, False], [True, True]])
    mixed = mixup(Batch(images, (Labels(targets, mask),)), 4.0, seed=0, step=0)
    logits = mixed.images.flatten(1) * torch.tensor([0.4, -0.7])
    total, cells = 0.0, 0.0
    for labels in mixed.labels:
        total += labels.share * float(loss_of(logits, labels.targets)[labels.mask].sum())
        cells += labels.share * float(labels.mask.sum())
    assert step_of(mixed, loss_of)[0] == pytest.approx(total / cells, rel=1e-5)
    lonely = Batch(images, (Labels(targets, torch.zeros(4, 2) > 0),))
    assert step_of(mixup(lonely, 4.0, seed=0, step=0), loss_of)[0] == 0


@pytest.mark.parametrize("classifier", ["separate", "shared", "linear"])
def test_a_prior_is_finite(classifier: str) -> None:
    """Case 93: a class without positives, one without negatives, and one that nobody knows."""
    names = ("Edema", "Mass", "Hernia", "Nodule")
    architecture = Architecture(
        "test_resnet", 32, classifier, 32, 1, 4, 32, 0.1, "none", "normal", False
    )
    network = Network(architecture, orthogonal(names, 32))
    values = np.zeros((10, 4), dtype=np.float32)
    values[:5, 0] = values[:, 2] = 1
    values[:, 3] = np.nan
    mask = np.ones((10, 4), dtype=np.bool_)
    mask[:, 3] = False
    start_at_prior(network, values, mask)
    found = network.bias.detach()
    assert torch.isfinite(found).all()
    wanted = torch.tensor([0.0, -np.log(21), np.log(21), 0.0], dtype=torch.float32)
    wanted = wanted.mean().view(1) if classifier == "shared" else wanted
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_a_run_that_is_refused_does_not_block_its_name(tiny_config: Config, tmp_path: Path) -> None:
    """Missing weights, images that are not there, too few rows: the mended line then trains."""
    run, table = tmp_path / "run", Path(tiny_config.data.table)
    lines = [line.split(",") for line in table.read_text().splitlines()]
    table.write_text("\n".join(",".join(c[:3] + c[4:]) for c in lines))  # no split: one is made
    image = table.parent / "images" / "000.png"
    content = image.read_bytes()

    def refused(message: str, *settings: str) -> None:
        with pytest.raises(InputError, match=message):
            lingula.train(tiny_config, settings, out=run)

    refused(r"hf download timm/test_resnet", "model.weights=imagenet")
    assert not run.exists()
    run.mkdir()
    (run / ".gitignore").write_text("*")  # the user's own
    image.unlink()
    refused("images are missing")
    image.write_bytes(content)
    refused(r"There is no folder /nowhere/x", "model.text=/nowhere/x", "optim.epochs=1")
    assert [path.name for path in run.iterdir()] == [".gitignore"]
    lingula.train(tiny_config, ["optim.epochs=1"], out=run)
    assert (run / "finished.json").is_file() and (run / "table.csv").is_file()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    refused("other settings", "model.weights=imagenet")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_refused_run_with_phantoms_keeps_them_alone(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are drawn into the run's folder, the table's own and those from outside."""
    table, run = Path(tiny_config.data.table), tmp_path / "run"

    def drawn(folder: Path, **_: object) -> Path:
        if not folder.exists():
            shutil.copytree(table.parent, folder)
            if folder.name != "phantom":  # of other films
                for image in sorted(folder.glob("images/*")):
                    image.rename(image.with_name(f"x{image.name}"))
                text = (folder / "labels.csv").read_text()
                (folder / "labels.csv").write_text(text.replace("images/", "images/x"))
        return folder / "labels.csv"

    monkeypatch.setattr("lingula.verbs.data_phantom.write_phantom", drawn)
    outside = ["phantom:nih", "phantom:chexpert"]
    config = vary(tiny_config, data__table="phantom", data__outside=outside, optim__epochs=1)
    with pytest.raises(InputError, match=r"hf download"):
        lingula.train(config, ["model.weights=imagenet"], out=run)
    kept = ["phantom", "phantom-chexpert", "phantom-nih"]
    assert sorted(path.name for path in run.iterdir()) == kept
    lingula.train(config, out=run)
    assert (run / "finished.json").is_file()


def test_a_dry_run_looks_at_the_outside_tables(
    tiny_config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def dry(*settings: str) -> None:
        lingula.train(tiny_config, settings, out=tmp_path / "run", dry_run=True)

    for table in ("", "data.table=phantom"):
        with pytest.raises(InputError, match=r"nowhere\.csv"):
            dry(f"data.outside=[{tmp_path / 'nowhere.csv'}]", *filter(None, [table]))
    with pytest.raises(InputError, match=r"is a phantom and data\.table is not"):
        dry("data.outside=[phantom:nih]")
    other = tmp_path / "other.csv"
    film = Path(tiny_config.data.table).parent / "images" / "000.png"
    for i in range(12):
        shutil.copy(film, tmp_path / f"x{i}.png")
    other.write_text("image,Edema\n" + "".join(f"x{i}.png,{i % 2}\n" for i in range(12)))
    with caplog.at_level(logging.INFO, "lingula"):
        dry(f"data.outside=[{other}]")
        dry(f"data.outside=[{other}]", "data.outside_ratio=1")
    assert (
        "20 train, 10 dev, 10 test images, 12 per epoch from outside; 8 steps of 8" in caplog.text
    )
    assert "10 test images, 20 per epoch from outside; 10 steps of 8" in caplog.text
    assert not (tmp_path / "run").exists()


def test_losses_are_right_and_finite() -> None:
    x = torch.tensor([[-100.0, 100.0, 73.9, -20.7]]).repeat(2, 1)
    y = torch.stack([torch.zeros(4), torch.ones(4)])
    for loss in LOSSES.values():
        half = x.half().requires_grad_()
        value = loss(half, y).mean()
        value.backward()
        assert torch.isfinite(value) and torch.isfinite(half.grad).all()
    z, t = torch.randn(4, 3), torch.rand(4, 3)
    plain = asymmetric(z, t, gamma_negative=0, gamma_positive=0, clip=0)
    torch.testing.assert_close(plain, F.binary_cross_entropy_with_logits(z, t, reduction="none"))


def test_masks_and_class_weights() -> None:
    logits = torch.zeros(1, 2, requires_grad=True)
    losses = bce(logits, torch.tensor([[0.0, 1.0]]))
    loss = reduce_loss(losses, torch.tensor([[False, True]]))
    loss.backward()
    assert loss.item() == pytest.approx(0.6931, abs=1e-4)
    assert logits.grad.tolist() == [[0.0, -0.5]]
    for target in (0.0, 1.0):  # a weight counts for both terms
        losses = bce(torch.zeros(1, 2), torch.full((1, 2), target))
        everything = torch.ones(1, 2, dtype=torch.bool)
        plain = reduce_loss(losses, everything)
        doubled = reduce_loss(losses, everything, torch.tensor([2.0, 1.0]))
        assert doubled.item() == pytest.approx(1.5 * plain.item())
    assert reduce_loss(losses, torch.zeros(1, 2, dtype=torch.bool)).item() == 0


def test_mixup_keeps_the_labels_and_the_known_cells_of_both() -> None:
    own = Labels(
        torch.tensor([[1.0, 0, 1], [0, 0, 1]]),
        torch.tensor([[True, True, False], [True, True, True]]),
    )
    batch = Batch(torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)]), (own,))
    other = Batch(batch.images.flip(0), (Labels(own.targets.flip(0), own.mask.flip(0)),))
    mixed = mix(batch, other, 0.3)
    assert mixed.images[:, 0, 0, 0].tolist() == pytest.approx([0.7, 0.3])
    first, second = mixed.labels
    assert (first.share, second.share) == (0.3, 0.7)
    assert torch.equal(first.mask, own.mask) and torch.equal(second.mask, own.mask.flip(0))
    for rows in (1, 2, 3, 33):
        part = Batch(
            torch.zeros(rows, 1, 4, 4), (Labels(torch.ones(rows, 3), torch.ones(rows, 3) > 0),)
        )
        assert mixup(part, 4.0, seed=0, step=0).labels[1].targets.shape == (rows, 3)


def test_no_image_is_mixed_with_itself_and_each_is_a_partner_once() -> None:
    pairs = np.zeros((7, 7), int)
    for step in range(600):
        draw = draws(3, step, "mixup")
        partner = derangement(7, draw)
        assert sorted(partner) == [*range(7)] and (partner != np.arange(7)).all()
        pairs[np.arange(7), partner] += 1
    others = pairs[~np.eye(7, dtype=bool)]
    assert others.min() > 60 and others.max() < 145  # 100 each, and all partners are drawn
    assert [derangement(1, draws(0, 0, "mixup")).tolist(), *derangement(2, draw)] == [[0], 1, 0]
