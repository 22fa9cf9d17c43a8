"""Settings: only finite numbers, nothing resolved, nothing run, batches that can be trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from lingula.settings.config import KEYS, Config, override_settings, read_config, to_yaml, vary
from lingula.system.errors import InputError


@pytest.mark.parametrize("value", ["inf", ".inf", "-.inf", "nan", ".nan"])
def test_no_number_is_infinite_or_none(value: str, tmp_path: Path) -> None:
    """Whatever the setting: it would end hours later as a loss that is not finite.

    A text may be `inf`, and so may the texts of a list.
    """
    words = {key for key in KEYS if isinstance(_of(Config(), key), str | None)}
    words |= {"data.outside", "data.ignore_columns"}
    for key in [*(key for key in KEYS if key not in words), "loss.class_weights.Edema"]:
        with pytest.raises(InputError, match=key.removeprefix("loss.class_weights.")):
            override_settings(Config(), [f"{key}={value}"])
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
        override_settings(Config(), [f"loss.class_weights.Edema={weight}"])


def test_a_piece_has_two_images(tmp_path: Path) -> None:
    """Cases 90 and 100: batch norm has no statistics of one."""
    for size, pieces in ((8, 8), (7, 4), (2, 2)):
        with pytest.raises(InputError, match=f"optim.batch_size={2 * pieces} or more"):
            override_settings(Config(), [f"optim.batch_size={size}", f"optim.accumulate={pieces}"])
    with pytest.raises(InputError, match=r"optim\.batch_size=1: .*greater than or equal to 2"):
        vary(Config(), optim__batch_size=1)
    for size, pieces in ((8, 4), (9, 4), (2, 1)):
        vary(Config(), optim__batch_size=size, optim__accumulate=pieces)


def test_a_setting_is_taken_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 143: the environment and other keys are not looked up, and no tag is obeyed."""
    monkeypatch.setenv("SECRET", "hunter2")
    monkeypatch.chdir(tmp_path)
    for text in ("${oc.env:SECRET}", "${optim.lr}", "${oc.decode:'1'}"):
        config = override_settings(Config(), [f"data.root={text}"])
        assert config.data.root == text
        place = tmp_path / "c.yaml"
        place.write_text(to_yaml(config))
        assert read_config(place) == config and "hunter2" not in place.read_text()
    with pytest.raises(InputError, match=r"optim\.lr="):
        override_settings(Config(), ["optim.lr=${optim.min_lr}"])
    place.write_text('data:\n  root: !!python/object/apply:os.system ["touch pwned"]\n')
    with pytest.raises(InputError, match="is not a YAML configuration"):
        read_config(place)
    for text in ('!!python/object/apply:os.system ["touch pwned"]', "[", "{a"):
        with pytest.raises(InputError, match="These settings can't be read"):
            override_settings(Config(), [f"optim.lr={text}"])
    assert not (tmp_path / "pwned").exists()


# What YAML would take for a number, a mapping, a comment, a list, nothing, a truth or an error.
NAMES = (
    "films #2",
    "#1",
    "2024",
    "007",
    "1e-3",
    "a: b",
    "[a]",
    "{a: b}",
    "[",
    "{a",
    "on",
    "no",
    "true",
    "~",
    "~films",
    " leading",
    "trailing ",
    "'quoted'",
    '"quoted"',
    "*a",
    "&a",
    "!x",
    "%x",
    "@x",
    "- x",
    "? x",
    "a=b",
    "lr=0.1/x",
    "a, b",
    ".inf",
    "${x}",
    "Öffentlich 測試",
    "2024-01-01",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_text_is_what_stands_behind_the_sign(name: str, tmp_path: Path) -> None:
    for key in ("data.table", "data.root", "model.weights", "model.text", "loss.worst.run"):
        assert _of(override_settings(Config(), [f"{key}={name}"]), key) == name
    found = override_settings(Config(), [f"data.outside={name}"]).data.outside
    assert found == ((name,) if name != "[a]" else ("a",))
    listed = override_settings(
        Config(),
        [f'data.outside=["{name}", b]' if '"' not in name else f"data.outside=['{name}', b]"],
    )
    assert listed.data.outside == (name, "b")
    place = tmp_path / "c.yaml"
    place.write_text(to_yaml(listed))
    assert read_config(place) == listed


def test_lists_of_texts() -> None:
    """Bare, in either quotes, as JSON; what is in quotes may hold commas and brackets."""
    for text, wanted in (
        ("[nih.csv,chexpert.csv]", ("nih.csv", "chexpert.csv")),
        ("[ a b , films #2/t.csv, 2024, on ]", ("a b", "films #2/t.csv", "2024", "on")),
        ("""["a, b", 'c]', d[1].csv]""", ("a, b", "c]", "d[1].csv")),
        ("""["it's", "\\u00d6"]""", ("it's", "Ö")),
        ("[it's]", ("it's",)),
        ("[]", ()),
        ("a, b", ("a, b",)),
    ):
        assert override_settings(Config(), [f"data.outside={text}"]).data.outside == wanted
    assert override_settings(Config(), ["data.classes=[Edema, Mass]"]).data.classes == (
        "Edema",
        "Mass",
    )
    assert override_settings(Config(), ["data.classes=cxr-lt-2023"]).data.classes == "cxr-lt-2023"
    assert override_settings(Config(), ["data.cache=/c, d"]).data.cache == "/c, d"


def test_none_is_said_where_there_may_be_none() -> None:
    config = vary(Config(), data__root="x", data__blank="zero", augment__mixup=0.2)
    for text in ("null", ""):
        given = [f"data.root={text}", f"data.blank={text}", f"augment.mixup={text}"]
        found = override_settings(config, given)
        assert (found.data.root, found.data.blank, found.augment.mixup) == (None, None, None)
    assert override_settings(config, ["data.table=null"]).data.table == "null"
    with pytest.raises(InputError, match=r"data\.table= is empty"):
        override_settings(config, ["data.table="])


def test_words_and_numbers_are_read_as_what_the_setting_is() -> None:
    given = ["channels_last=no", "data.soft=yes", "optim.lr=1e-3", "optim.epochs=1e2"]
    found = override_settings(
        Config(), [*given, "augment.scale=[0.5, 1]", "loss.class_weights={Mass: 2}"]
    )
    assert (found.channels_last, found.data.soft, found.optim.lr) == ("no", True, 1e-3)
    assert (found.optim.epochs, found.augment.scale) == (100, (0.5, 1.0))
    found = override_settings(found, ["loss.class_weights.Edema, acute v1.2=3"])
    assert found.loss.class_weights == {"Mass": 2.0, "Edema, acute v1.2": 3.0}
    with pytest.raises(InputError, match="device="):
        override_settings(Config(), ["device=gpu"])


def test_a_yaml_file_says_to_quote_a_number_that_is_a_name(tmp_path: Path) -> None:
    place = tmp_path / "c.yaml"
    place.write_text("data:\n  root: 2024\n")
    with pytest.raises(InputError, match=r"data\.root=2024.*quote it: '2024'"):
        read_config(place)
