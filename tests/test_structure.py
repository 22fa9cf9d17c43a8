"""The layers of the package and its budgets."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import lingula

ROOT = Path(lingula.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# From the bottom up; a module imports only from its own layer or a lower one.
LAYERS = [
    ("lingula", "errors", "files", "csv_cells", "interruption", "locks", "ranks", "values"),
    ("labels", "config", "progress", "weights"),
    ("paper",),
    ("recipe", "runs"),
    ("data",),
    (
        "metrics",
        "intervals",
        "predictions",
        "parts",
        "joining",
        "localisation",
        "thresholds",
        "curves",
        "reliability",
        "operating",
        "plausibility",
    ),
    (
        "evaluation",
        "evaluated",
        "ensembles",
        "incomplete",
        "guarded",
        "calibration",
        "subgroups",
        "submission",
        "reviewing",
    ),
    ("model",),
    ("meeting",),
    ("devices",),
    ("prediction",),
    ("steps",),
    ("training",),
    ("reporting",),
    ("verbs",),
    ("cli", "__main__"),
]
NO_TORCH = (
    "labels config paper recipe metrics intervals predictions parts joining localisation evaluation evaluated operating "
    "subgroups submission reviewing ensembles files errors runs csv_cells interruption locks ranks values "
    "data/table data/reading data/splits data/images data/folder data/checking "
    "data/cells data/separators data/workbook data/names data/columns data/jpeg data/remarks data/boxes "
    "data/formats data/dicom data/dicom_header data/dicom_pixels data/dicom_frames data/dicom_facts data/films "
    "data/cache data/cache_files data/cached data/configured reporting/page reporting/figures reporting/review "
    "plausibility incomplete guarded calibration curves thresholds reliability "
    "data/mapping data/overlap data/union data/where data/sources/places "
    "data/sources/released data/sources/tokens data/sources/cxr_lt data/sources/mimic data/sources/nih "
    "data/sources/chexpert data/sources/padchest data/sources/vindr data/sources/medmnist"
).split()


def layer_of(module: str) -> int:
    part = module.removeprefix("lingula.").split(".")[0]
    return next(i for i, names in enumerate(LAYERS) if part in names)


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
    here = "lingula" if name == "__init__" else name.split("/")[0]
    if here != "lingula":
        for module in imports(path):
            if module.split(".")[0] == "lingula":
                assert layer_of(module) <= layer_of(here), f"{name} imports {module}"
    lines = path.read_text().splitlines()
    assert len(lines) <= 400
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= (120 if node.name == "fit" else 75), f"{node.name}: {length} lines"
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


@pytest.mark.parametrize("name", NO_TORCH)
def test_the_lower_layers_know_no_torch(name: str) -> None:
    heavy = {"torch", "timm", "torchvision", "transformers", "lightning_fabric"}
    assert not heavy & {module.split(".")[0] for module in imports(ROOT / f"{name}.py")}


def test_every_verb_is_a_function_of_the_package() -> None:
    for name in lingula.__all__:
        assert getattr(lingula, name) is not None
    assert not [p.name for p in FILES if p.stem in ("utils", "helpers", "base", "manager")]
