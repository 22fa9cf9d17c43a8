"""Writing a phantom data set: images, labels, boxes and `labels.json`; resuming; the marker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lingula.images.files import PHANTOM_KEY, PHANTOM_VALUE, find_absent
from lingula.phantom.drawing import draw
from lingula.phantom.population import SHARE, Seeds, Study, plan_studies
from lingula.phantom.style import CXR_LT, Style, style_of
from lingula.system import files
from lingula.system.claims import claim, other_settings
from lingula.system.csv_cells import format_csv
from lingula.system.errors import InputError

VERSION = 2
_SETTINGS = ".phantom.json"


@dataclass(frozen=True)
class _Image:
    name: str
    study: Study
    number: int


def _images(studies: list[Study], letter: str) -> Iterator[_Image]:
    for study in studies:
        for number in range(len(study.views)):
            name = f"{letter}{study.patient:05d}_s{study.number + 1}_{number + 1}"
            yield _Image(name, study, number)


def _table(images: list[_Image], style: Style) -> str:
    header = ["image", "id", "patient", "study", "view", "split", "age", "sex", "source"]
    rows: list[list[Any]] = []
    for image in images:
        study = image.study
        patient = f"{style.letter}{study.patient:05d}"
        about = [f"images/{image.name}.png", image.name, patient, f"{patient}_s{study.number + 1}"]
        about += [study.views[image.number], study.split, str(study.age)]
        about += ["F" if study.female else "M", style.source]
        rows.append([*about, *(int(name in study.findings) for name in style.classes)])
    return format_csv([*header, *style.classes], rows)


def _save(pixels: NDArray[np.uint8], path: Path) -> None:
    marker = PngInfo()
    marker.add_text(PHANTOM_KEY, PHANTOM_VALUE)
    # A rename makes the file whole; a flush to disk for each of thousands would take minutes.
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("wb") as stream:
        Image.fromarray(pixels).save(stream, format="PNG", pnginfo=marker, compress_level=1)
    temporary.replace(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        return files.read_object(path)
    except (OSError, InputError):
        return {}


def _settings_of(out: Path) -> dict[str, Any] | None:
    """The settings of the phantom in a folder, finished or begun; None without one."""
    found = _read(out / "labels.json")
    if found.get("phantom") is True and isinstance(found.get("made_by"), dict):
        return dict(found["made_by"])
    return _read(out / _SETTINGS) or None


def _conflict(out: Path, settings: dict[str, Any]) -> str | None:
    """How what is in a folder differs from a phantom with these settings, for `claim`."""
    other = "with something else than a phantom."
    return other_settings(_settings_of(out), settings, not_ours=other)


def _is_finished(out: Path, images: list[_Image]) -> bool:
    table = out / "labels.csv"
    known = _read(out / "labels.json").get("sha256")
    if not table.is_file() or not (out / "boxes.csv").is_file() or files.sha256(table) != known:
        return False
    return not find_absent([out / "images" / f"{image.name}.png" for image in images])


def _description(sha: str, settings: dict[str, Any], style: Style) -> dict[str, Any]:
    return {
        "format": 1,
        "root": ".",
        "classes": list(style.classes),
        "label_space": "cxr-lt-2023" if style is CXR_LT else "own",
        "sources": {style.source: {"knows": list(style.classes)}},
        "blank": "ignore",
        "phantom": True,
        "sha256": sha,
        "made_by": settings,
    }


@dataclass(frozen=True)
class _Contents:
    """What a phantom is to consist of, and the settings that say so."""

    settings: dict[str, Any]
    images: list[_Image]
    style: Style


def _settle(
    n: int,
    size: int,
    seed: int,
    imbalance: float | None,
    style: str,
    shares: tuple[float, float],
) -> _Contents:
    settings: dict[str, Any] = {"n": n, "size": size, "seed": seed}
    settings |= {"imbalance": None if imbalance is None else float(imbalance), "version": VERSION}
    kind = style_of(style)
    if kind is not CXR_LT:
        settings["style"] = style
    parts = {"dev": shares[0], "test": shares[1]}
    if parts != SHARE:
        settings["shares"] = list(shares)
    studies = plan_studies(n, seed, imbalance, kind, parts)
    return _Contents(settings, list(_images(studies, kind.letter)), kind)


def find_phantom(out: Path, **settings: Any) -> Path | None:
    """Find the table of a phantom that `write_phantom` drew; None where it is not finished.

    `settings` are all of those of `write_phantom`, from `n` to `shares`. Raises `InputError` if it
    is a phantom with other settings.
    """
    contents = _settle(**settings)
    if _settings_of(out) is None:
        return None  # whoever draws it has not begun
    conflict = _conflict(out, contents.settings)
    if conflict is not None:
        claim(out, conflict)  # which refuses it
    return out / "labels.csv" if _is_finished(out, contents.images) else None


def write_phantom(
    out: Path,
    *,
    n: int = 2000,
    size: int = 128,
    seed: int = 0,
    imbalance: float | None = None,
    style: str = "cxr-lt",
    shares: tuple[float, float] = (SHARE["dev"], SHARE["test"]),
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a phantom data set into the folder `out`; continue one that was interrupted.

    Args:
        out: the folder; it may be new, empty, or have a phantom in it with the same settings.
        n: images.
        size: pixels per side.
        seed: everything follows from it.
        imbalance: ratio of the commonest to the rarest class; None for the data set's own.
        style: the data set that it represents: `cxr-lt`, `nih` or `chexpert`.
        shares: of the images in dev and test.
        overwrite: rename what is in the way to `NAME.old-1` instead of refusing or continuing.
        progress: called with (done, all) after each image.

    Returns:
        The path of `labels.csv`.

    Raises:
        InputError: `out` contains something else, or a phantom with other settings.
    """
    contents = _settle(n, size, seed, imbalance, style, shares)
    settings, images, kind = contents.settings, contents.images, contents.style
    conflict = _conflict(out, settings)
    if overwrite or conflict is not None:
        claim(out, conflict, overwrite=overwrite).make_room()
    if _is_finished(out, images):
        return out / "labels.csv"
    (out / "images").mkdir(parents=True, exist_ok=True)
    files.write_json(out / _SETTINGS, settings)
    boxes: list[list[Any]] = []
    for done, image in enumerate(images, start=1):
        study = image.study
        key = (study.patient, study.number, image.number)
        seeds = Seeds(np.random.SeedSequence(kind.seed(seed), spawn_key=key))
        pixels, found = draw(study.findings, seeds, size, study.views[image.number], kind)
        path = out / "images" / f"{image.name}.png"
        if not path.is_file():
            _save(pixels, path)
        name = f"images/{image.name}.png"
        known = [box for box in found if box.finding in kind.classes]
        boxes += [[name, b.finding, b.x, b.y, b.w, b.h, study.split] for b in known]
        if progress is not None:
            progress(done, len(images))
    header = ["image", "finding", "x", "y", "w", "h", "split"]
    files.write_text(out / "boxes.csv", format_csv(header, boxes))
    files.write_text(out / "labels.csv", _table(images, kind))
    sha = files.sha256(out / "labels.csv")
    files.write_json(out / "labels.json", _description(sha, settings, kind))
    return out / "labels.csv"
