"""Users without a home, and homes that can't be used: containers of unknown users."""

from __future__ import annotations

import pwd
from pathlib import Path

import pytest
import torch

import lingula
from lingula.model.loader import load_imagenet
from lingula.model.text import embed
from lingula.model.text_encoder import save_tiny
from lingula.settings.config import Config, vary
from lingula.settings.weight_sources import cache_folder, find_text, weights_folder
from lingula.system import files
from lingula.system.errors import InputError

NAMES = ("Edema", "Mass")


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes and OpenShift start containers as a user that nobody has heard of."""

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("HOME", "XDG_CACHE_HOME", "LINGULA_WEIGHTS", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(RuntimeError, match="home"):
        Path("~").expanduser()


@pytest.mark.usefixtures("homeless")
def test_no_home_is_needed(tiny_config: Config, tmp_path: Path) -> None:
    assert cache_folder() is None and weights_folder() is None and find_text("sapbert") is None
    save_tiny(tmp_path / "bert", "bert", NAMES)
    config = vary(tiny_config, optim__epochs=1, model__text=str(tmp_path / "bert"))
    with pytest.raises(InputError, match="no word of"):  # the tiny encoder knows two findings only
        lingula.train(config, out=tmp_path / "run")
    run = lingula.train(vary(config, model__text="orthogonal"), out=tmp_path / "run")
    assert (run / "finished.json").is_file()
    with pytest.raises(InputError, match="--out FOLDER"):
        lingula.fetch("paper/t1r1")
    with pytest.raises(InputError, match="are not on this machine"):
        load_imagenet(torch.nn.Identity(), "resnet50")
    assert find_text("sapbert") is None


@pytest.mark.usefixtures("homeless")
@pytest.mark.parametrize("place", ["~/labels.csv", "~films/labels.csv"])
def test_a_tilde_that_stands_for_nothing_is_a_name(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert files.expand_home(place) == Path(place)
    with pytest.raises(InputError, match=f"There is no table .*{place}"):
        lingula.train(vary(tiny_config, data__table=place), out=tmp_path / "run")
    folder = Path(place).parent
    folder.mkdir()
    (folder / "labels.csv").write_bytes(Path(tiny_config.data.table).read_bytes())
    config = vary(
        tiny_config, data__table=place, data__root=str(Path(tiny_config.data.table).parent)
    )
    lingula.train(config, out=tmp_path / "run", dry_run=True)


def test_a_cache_folder_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for told, wanted in (
        ("/c", Path("/c/lingula")),
        ("~/c", tmp_path / "c" / "lingula"),
        ("c", tmp_path / ".cache" / "lingula"),
        ("", tmp_path / ".cache" / "lingula"),
    ):
        monkeypatch.setenv("XDG_CACHE_HOME", told)
        assert cache_folder() == wanted


def test_a_cache_that_can_not_be_written_is_done_without(tmp_path: Path) -> None:
    save_tiny(tmp_path / "bert", "bert", NAMES)
    (tmp_path / "file").write_text("")
    found = embed(NAMES, str(tmp_path / "bert"), cache=tmp_path / "file" / "text")
    assert found.values.shape[0] == 2
