"""Which of many files are there: right, and without a question after the other."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from lingula.images import files
from lingula.images.files import estimate_bytes, find_absent, image_path
from lingula.system.errors import ImageError


def test_what_is_absent(tmp_path: Path) -> None:
    """Files in few and in many folders, links, folders, names that no file can have."""
    paths: list[str] = []
    for i in range(40):
        folder = tmp_path / ("flat" if i % 2 else f"s{i}")
        folder.mkdir(exist_ok=True)
        (folder / f"{i}.png").touch()
        paths.append(str(folder / f"{i}.png"))
    assert find_absent(paths) == []
    (tmp_path / "flat" / "link.png").symlink_to(tmp_path / "flat" / "1.png")
    (tmp_path / "flat" / "lost.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "flat" / "folder.png").mkdir()
    (tmp_path / "flat" / "3.png").unlink()
    odd = [f"{tmp_path}/flat/{name}" for name in ("link.png", "lost.png", "folder.png", "a\0b", "")]
    odd += [str(tmp_path / "s0" / ("n" * 300)), str(tmp_path / "no" / "such.png"), "relative.png"]
    assert find_absent([*paths, *odd]) == [3, *range(41, 48)]
    assert find_absent([]) == []


def test_a_folder_that_may_be_entered_but_not_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(20)]
    for path in paths[:-1]:
        path.touch()

    def closed(folder: str) -> None:
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr(os, "scandir", closed)
    assert find_absent(paths) == [19]


def test_a_slow_disk_is_asked_many_questions_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network disk takes its time for each: of one folder the list, of many in threads."""
    flat = [tmp_path / "flat" / f"{i}.png" for i in range(500)]
    apart = [tmp_path / f"s{i}" / "a.png" for i in range(500)]
    for path in (*flat, *apart):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    asked = []
    isfile = os.path.isfile

    def slow(path: str) -> bool:
        asked.append(path)
        time.sleep(0.02)
        return isfile(path)

    monkeypatch.setattr(os.path, "isfile", slow)
    monkeypatch.setattr(files, "_AT_ONCE", 20)
    assert find_absent(flat) == [] and not asked
    began = time.monotonic()
    assert find_absent(apart) == [] and len(asked) == 500
    assert time.monotonic() - began < 5  # 10 seconds, one after the other


def test_sizes_are_known_from_a_sample(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(600)]
    for i, path in enumerate(paths):
        path.write_bytes(b"x" * (100 + i % 2))
    assert estimate_bytes(paths, sample=600) == 60300
    assert abs(estimate_bytes(paths) - 60300) < 301
    assert estimate_bytes(paths[:1]) == 100 and estimate_bytes([]) == 0
    assert estimate_bytes([paths[0], tmp_path / "lost"], sample=2) == 200
    assert estimate_bytes([tmp_path / "lost"]) == 0


@pytest.mark.parametrize(
    "cell", ["", "/a.png", "../a.png", "a/../../b", "C:/a", "http://x/a", "a\0b", ".", "..", "\\a"]
)
def test_cells_that_lead_out_are_refused(cell: str) -> None:
    with pytest.raises(ImageError):
        image_path(Path("root"), cell)


@pytest.mark.parametrize(
    ("cell", "where"),
    [("a.png", "a.png"), ("./a.png", "a.png"), ("f/a..png", "f/a..png"), ("f/../a.png", "a.png")],
)
def test_cells_that_stay_inside(cell: str, where: str) -> None:
    assert image_path(Path("root"), cell) == Path("root") / where
