"""The layers of the package and its budgets."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import lingula

ROOT = Path(lingula.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# From the bottom up; a room imports only from its own floor or a lower one.
FLOORS = [
    ("system", "about", "lingula"),
    ("settings",),
    ("images",),
    ("tables", "phantom", "model"),
    ("sources", "scores", "loading", "scoring"),
    ("training",),
    ("reporting", "bench", "reproduction", "planning"),
    ("verbs", "cli", "__main__"),
]
HEAVY = {"torch", "timm", "torchvision", "transformers", "lightning_fabric"}
# Functions of up to 75 lines, as verbs may be: most of them is signature and docstring.
LONG = ("fit", "evaluate_predictions")
# Rooms without torch, so that what needs no model answers at once; and what in them may have it.
LIGHT = ("system", "settings", "images", "tables", "phantom", "sources", "scores")
WITH_TORCH = ("system/meeting.py",)


def floor_of(module: str) -> int:
    room = module.removeprefix("lingula.").split(".")[0]
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "lingula":
                found += [
                    f"lingula.{a.name}"
                    if (ROOT / f"{a.name}.py").exists() or (ROOT / a.name).is_dir()
                    else "lingula"
                    for a in node.names
                ]
            else:
                found.append(node.module)
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down_and_files_are_short(path: Path) -> None:
    name = path.relative_to(ROOT).with_suffix("").as_posix()
    if name != "__init__":
        for module in imports(path):
            if module.split(".")[0] == "lingula":
                assert floor_of(module) <= floor_of(name.split("/")[0]), f"{name} imports {module}"
    lines = path.read_text().splitlines()
    assert len(lines) <= 400
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            longest = 75 if name.startswith("verbs/") or node.name in LONG else 60
            assert length <= longest, f"{node.name}: {length} lines"
        if isinstance(node, ast.ClassDef):
            assert not any(
                isinstance(base, ast.Name) and base.id in CLASSES for base in node.bases
            ), f"{node.name} inherits from a class of ours"


CLASSES = {
    node.name
    for path in FILES
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.ClassDef) and not node.name.endswith("Error")
}


@pytest.mark.parametrize("room", LIGHT)
def test_the_lower_floors_know_no_torch(room: str) -> None:
    for path in sorted((ROOT / room).rglob("*.py")):
        if path.relative_to(ROOT).as_posix() not in WITH_TORCH:
            assert not HEAVY & {module.split(".")[0] for module in imports(path)}, path


def test_every_verb_is_a_function_of_the_package() -> None:
    for name in lingula.__all__:
        assert getattr(lingula, name) is not None
    assert not [p.name for p in FILES if p.stem in ("utils", "helpers", "base", "manager")]


def room_of(name: str) -> str:
    return name.removeprefix("lingula.").split(".")[0].split("/")[0]


def test_no_two_rooms_import_each_other() -> None:
    arrows = {
        (room_of(path.relative_to(ROOT).as_posix()), room_of(module))
        for path in FILES
        if path.parent != ROOT
        for module in imports(path)
        if module.startswith("lingula.")
    }
    assert not {(a, b) for a, b in arrows if a != b and (b, a) in arrows}


def test_the_house_grows_only_on_purpose() -> None:
    """Rooms at the top, files and lines: raise a number here with the reason in the commit."""
    top = {path.stem for path in ROOT.glob("*.py")} | {p.parent.name for p in ROOT.glob("*/*.py")}
    assert top == {"__init__", "__main__", "about"} | {
        room for floor in FLOORS for room in floor
    } - {"lingula"}
    assert len(FILES) <= 166
    assert sum(len(path.read_text().splitlines()) for path in FILES) <= 33_400


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_file_says_what_it_is_for(path: Path) -> None:
    first = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
    assert len(first.split()) >= 3 and "TODO" not in first
