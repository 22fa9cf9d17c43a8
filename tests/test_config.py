"""Settings: only finite numbers, nothing resolved, nothing run, batches that can be trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from lingula.config import KEYS, Config, overridden, read_config, to_yaml, vary
from lingula.errors import InputError


@pytest.mark.parametrize("value", ["inf", ".inf", "-.inf", "nan", ".nan"])
def test_no_number_is_infinite_or_none(value: str, tmp_path: Path) -> None:
    """Whatever the setting: it would end hours later as a loss that is not finite."""
    words = {key for key in KEYS if isinstance(_of(Config(), key), str | None)}
    keys = [key for key in KEYS if key not in words or "." in value]
    for key in [*keys, "loss.class_weights.Edema"]:
        with pytest.raises(InputError, match=key.removeprefix("loss.class_weights.")):
            overridden(Config(), [f"{key}={value}"])
    place = tmp_path / "c.yaml"
    place.write_text(f"optim:\n  lr: {value}\n")
    with pytest.raises(InputError, match=r"c\.yaml: optim\.lr="):
        read_config(place)


def _of(config: Config, key: str) -> object:
    found: object = config
    for part in key.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("weight", ["-1", "-0.5", "0"])
def test_class_weights_are_positive(weight: str) -> None:
    with pytest.raises(InputError, match=r"loss\.class_weights\.Edema=.*greater than 0"):
        overridden(Config(), [f"loss.class_weights.Edema={weight}"])


def test_a_piece_has_two_images(tmp_path: Path) -> None:
    """Cases 90 and 100: batch norm has no statistics of one."""
    for size, pieces in ((8, 8), (7, 4), (2, 2)):
        with pytest.raises(InputError, match=f"optim.batch_size={2 * pieces} or more"):
            overridden(Config(), [f"optim.batch_size={size}", f"optim.accumulate={pieces}"])
    with pytest.raises(InputError, match=r"optim\.batch_size=1: .*greater than or equal to 2"):
        vary(Config(), optim__batch_size=1)
    for size, pieces in ((8, 4), (9, 4), (2, 1)):
        vary(Config(), optim__batch_size=size, optim__accumulate=pieces)


def test_a_setting_is_taken_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 143: the environment and other keys are not looked up, and no tag is obeyed."""
    monkeypatch.setenv("SECRET", "hunter2")
    monkeypatch.chdir(tmp_path)
    for text in ("${oc.env:SECRET}", "${optim.lr}", "${oc.decode:'1'}"):
        config = overridden(Config(), [f"data.root={text}"])
        assert config.data.root == text
        place = tmp_path / "c.yaml"
        place.write_text(to_yaml(config))
        assert read_config(place) == config and "hunter2" not in place.read_text()
    with pytest.raises(InputError, match=r"optim\.lr="):
        overridden(Config(), ["optim.lr=${optim.min_lr}"])
    place.write_text('data:\n  root: !!python/object/apply:os.system ["touch pwned"]\n')
    with pytest.raises(InputError, match="is not a YAML configuration"):
        read_config(place)
    for text in ('!!python/object/apply:os.system ["touch pwned"]', "[", "{a"):
        with pytest.raises(InputError, match="These settings can't be read"):
            overridden(Config(), [f"data.root={text}"])
    assert not (tmp_path / "pwned").exists()
