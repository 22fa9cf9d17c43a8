"""Which settings make another run of a folder, and which do not."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

import lingula
from lingula.settings.config import Config, read_config, vary, write_config
from lingula.system.errors import InputError


def test_what_changes_no_result_makes_no_other_run(tiny_config: Config, tmp_path: Path) -> None:
    """A raw cache, recomputed activations, decoding processes; a lossy cache does change it."""
    size = tiny_config.model.image_size
    for codec in ("raw", "jpeg"):
        lingula.data_cache(tiny_config.data.table, out=tmp_path / codec, size=size, codec=codec)  # type: ignore[arg-type]
    run = lingula.train(vary(tiny_config, optim__epochs=1), out=tmp_path / "run")
    before = (run / "finished.json").read_bytes()
    for same in (
        [f"data.cache={tmp_path / 'raw'}"],
        ["model.checkpointing=true", "data.workers=2"],
    ):
        lingula.train(tiny_config, ["optim.epochs=1", *same], out=run)
    assert (run / "finished.json").read_bytes() == before
    for other in (f"data.cache={tmp_path / 'jpeg'}", f"data.cache={tmp_path / 'nowhere'}"):
        with pytest.raises(InputError, match=r"other settings.*:\n  data\.cache"):
            lingula.train(tiny_config, ["optim.epochs=1", other], out=run)


def test_a_finished_run_is_finished_on_any_node(
    tiny_config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Device and format are facts about it: another node may have other ones, or none of them."""
    once = vary(tiny_config, optim__epochs=1)
    run = lingula.train(once, out=tmp_path / "run")
    there = read_config(run / "config.yaml")
    elsewhere = vary(there, device="cuda", precision="bf16", channels_last="no")
    write_config(elsewhere, run / "config.yaml")  # as if it had been trained on a GPU
    with caplog.at_level(logging.INFO, "lingula"):
        lingula.train(once, ["device=cpu"], out=run)
        lingula.train(there, ["device=cuda"], out=run)  # which this machine may not have
    assert caplog.text.count("is finished; nothing to do") == 2
    assert "device: 'cuda' there, 'cpu' now" in caplog.text
    with pytest.raises(InputError, match="seed: 0 there, 1 now"):
        lingula.train(once, ["seed=1"], out=run)
    (run / "finished.json").unlink()
    with pytest.raises(InputError, match="device: 'cuda' there, 'cpu' now"):
        lingula.train(once, ["device=cpu"], out=run)
