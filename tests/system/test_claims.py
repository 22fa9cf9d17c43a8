"""What a command does with the place of its output: go on, skip, rename, or refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from lingula.system.claims import OTHER_CONTENT, claim, other_settings
from lingula.system.errors import InputError


def test_a_free_place_is_claimed_whatever_the_conflict(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / ".lock").touch()
    (tmp_path / "folder" / "phantom").mkdir()
    for place, leftovers in ((tmp_path / "none", ()), (tmp_path / "folder", ("phantom",))):
        claimed = claim(place, OTHER_CONTENT, leftovers=leftovers)
        assert not claimed.is_done and not claimed.old
    with pytest.raises(InputError, match=r"folder is there already, with something else in it\."):
        claim(tmp_path / "folder", OTHER_CONTENT)


def test_an_output_of_the_same_settings_is_done(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    conflict = other_settings({"seed": 1, "labels": "a"}, {"seed": 1, "labels": "b"}, ["labels"])
    assert conflict is None
    assert claim(tmp_path / "out", conflict).is_done
    assert not claim(tmp_path / "out", conflict, overwrite=True).is_done


def test_other_settings_are_refused_and_shown(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    conflict = other_settings({"seed": 1}, {"seed": 2, "size": 3})
    with pytest.raises(InputError) as caught:
        claim(tmp_path / "out", conflict)
    assert str(caught.value) == (
        f"{tmp_path / 'out'} is there already, made with other settings:\n"
        "  seed: 1 there, 2 now\n  size: None there, 3 now\n"
        "Choose another --out, or --overwrite to set the old one aside."
    )
    with pytest.raises(
        InputError, match=r"was not made by this command\.\nChoose another --out\.$"
    ):
        claim(tmp_path / "out", other_settings(None, {"seed": 2}), overwrite=None)


def test_overwrite_renames_what_belongs_together_and_only_when_told(tmp_path: Path) -> None:
    out, beside = tmp_path / "out.csv", tmp_path / "out.json"
    out.write_text("old")
    beside.write_text("old too")
    claimed = claim(out, OTHER_CONTENT, overwrite=True, beside=[beside, tmp_path / "absent"])
    assert out.read_text() == "old"
    claimed.make_room()
    assert not out.exists() and not beside.exists()
    assert (tmp_path / "out.csv.old-1").read_text() == "old"
    assert (tmp_path / "out.json.old-1").read_text() == "old too"
