"""Writing a phantom data set: images, labels, boxes and `labels.json`; resuming; the marker."""

from __future__ import annotations

import csv
import io
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lingula.images.files import absent
from lingula.phantom.drawing import draw
from lingula.phantom.frequency import SHARE, Study, plan
from lingula.phantom.person import Seeds
from lingula.phantom.style import CXR_LT, Style, style_of
from lingula.system import files
from lingula.system.errors import InputError, changes, differences

VERSION = 2
KEYWORD, VALUE = "lingula", "phantom"
_SETTINGS = ".phantom.json"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class _Film:
    name: str
    study: Study
    number: int


def _films(studies: list[Study], letter: str) -> Iterator[_Film]:
    for study in studies:
        for number in range(len(study.views)):
            name = f"{letter}{study.patient:05d}_s{study.number + 1}_{number + 1}"
            yield _Film(name, study, number)


def _csv(header: list[str], rows: list[list[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _table(films: list[_Film], style: Style) -> str:
    header = ["image", "id", "patient", "study", "view", "split", "age", "sex", "source"]
    rows: list[list[Any]] = []
    for film in films:
        study = film.study
        patient = f"{style.letter}{study.patient:05d}"
        about = [f"images/{film.name}.png", film.name, patient, f"{patient}_s{study.number + 1}"]
        about += [study.views[film.number], study.split, str(study.age)]
        about += ["F" if study.female else "M", style.source]
        rows.append([*about, *(int(name in study.findings) for name in style.classes)])
    return _csv([*header, *style.classes], rows)


def _save(pixels: NDArray[np.uint8], path: Path) -> None:
    marker = PngInfo()
    marker.add_text(KEYWORD, VALUE)
    # A rename makes the file whole; a flush to disk for each of thousands would take minutes.
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("wb") as stream:
        Image.fromarray(pixels).save(stream, format="PNG", pnginfo=marker, compress_level=1)
    temporary.replace(path)


def is_phantom(path: Path) -> bool:
    """Whether a file is a PNG image made by lingula's phantom. Reads only its header chunks."""
    try:
        with Path(path).open("rb") as stream:
            if stream.read(8) != _SIGNATURE:
                return False
            while len(head := stream.read(8)) == 8:
                length, kind = struct.unpack(">I4s", head)
                if kind in (b"IDAT", b"IEND"):
                    return False
                wanted = kind == b"tEXt" and length == len(KEYWORD) + len(VALUE) + 1
                if wanted and stream.read(length) == f"{KEYWORD}\0{VALUE}".encode():
                    return True
                stream.seek(4 if wanted else length + 4, 1)
    except OSError:
        return False
    return False


def _read(path: Path) -> dict[str, Any]:
    try:
        return files.read_object(path)
    except (OSError, InputError):
        return {}


def _made_by(out: Path) -> dict[str, Any] | None:
    """The settings of the phantom in a folder, whether finished or begun; None if there is none."""
    found = _read(out / "labels.json")
    if found.get("phantom") is True and isinstance(found.get("made_by"), dict):
        return dict(found["made_by"])
    return _read(out / _SETTINGS) or None


def _check(out: Path, settings: dict[str, Any]) -> None:
    """Refuse a folder of something else, or of a phantom with other settings."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; name a folder to write to.")
    if not out.is_dir() or not any(out.iterdir()):
        return
    made = _made_by(out)
    if made is None:
        raise InputError(
            f"{out} holds something else than a phantom; name another folder, or set "
            "overwrite to have it renamed first."
        )
    changed = changes(made, settings)
    if changed:
        raise InputError(
            f"{out} holds a phantom with other settings:\n{differences(changed)}\n"
            "Name another folder, or set overwrite to have the old one renamed."
        )


def _finished(out: Path, films: list[_Film]) -> bool:
    table = out / "labels.csv"
    known = _read(out / "labels.json").get("sha256")
    if not table.is_file() or not (out / "boxes.csv").is_file() or files.sha256(table) != known:
        return False
    return not absent([out / "images" / f"{film.name}.png" for film in films])


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
class _Asked:
    """What a phantom is to consist of, and the settings that say so."""

    settings: dict[str, Any]
    films: list[_Film]
    style: Style


def _asked(
    n: int,
    size: int,
    seed: int,
    imbalance: float | None,
    style: str,
    shares: tuple[float, float],
) -> _Asked:
    settings: dict[str, Any] = {"n": n, "size": size, "seed": seed}
    settings |= {"imbalance": None if imbalance is None else float(imbalance), "version": VERSION}
    kind = style_of(style)
    if kind is not CXR_LT:
        settings["style"] = style
    parts = {"dev": shares[0], "test": shares[1]}
    if parts != SHARE:
        settings["shares"] = list(shares)
    return _Asked(settings, list(_films(plan(n, seed, imbalance, kind, parts), kind.letter)), kind)


def phantom_in(
    out: Path,
    *,
    n: int = 2000,
    size: int = 128,
    seed: int = 0,
    imbalance: float | None = None,
    style: str = "cxr-lt",
    shares: tuple[float, float] = (SHARE["dev"], SHARE["test"]),
) -> Path | None:
    """The table of a phantom in a folder, drawn by `write_phantom`; None where it is not whole.

    Raises `InputError` if it is a phantom with other settings.
    """
    asked = _asked(n, size, seed, imbalance, style, shares)
    if _made_by(Path(out)) is None:
        return None  # whoever draws it has not begun
    _check(Path(out), asked.settings)
    return Path(out) / "labels.csv" if _finished(Path(out), asked.films) else None


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
        out: the folder; it may be new, empty, or hold a phantom with the same settings.
        n: images.
        size: pixels a side.
        seed: everything follows from it.
        imbalance: ratio of the commonest to the rarest class; None for the data set's own.
        style: the data set that it stands for: `cxr-lt`, `nih` or `chexpert`.
        shares: of the images in dev and test.
        overwrite: rename what is in the way to `NAME.old-1` instead of refusing or continuing.
        progress: called with (done, all) after each image.

    Returns:
        The path of `labels.csv`.

    Raises:
        InputError: `out` holds something else, or a phantom with other settings.
    """
    out = Path(out)
    asked = _asked(n, size, seed, imbalance, style, shares)
    settings, films, kind = asked.settings, asked.films, asked.style
    if overwrite and (out.is_file() or (out.is_dir() and any(out.iterdir()))):
        files.set_aside(out)
    _check(out, settings)
    if _finished(out, films):
        return out / "labels.csv"
    (out / "images").mkdir(parents=True, exist_ok=True)
    files.write_json(out / _SETTINGS, settings)
    boxes: list[list[Any]] = []
    for done, film in enumerate(films, start=1):
        study = film.study
        key = (study.patient, study.number, film.number)
        seeds = Seeds(np.random.SeedSequence(kind.seed(seed), spawn_key=key))
        pixels, found = draw(study.findings, seeds, size, study.views[film.number], kind)
        path = out / "images" / f"{film.name}.png"
        if not path.is_file():
            _save(pixels, path)
        name = f"images/{film.name}.png"
        known = [box for box in found if box.finding in kind.classes]
        boxes += [[name, b.finding, b.x, b.y, b.w, b.h, study.split] for b in known]
        if progress is not None:
            progress(done, len(films))
    header = ["image", "finding", "x", "y", "w", "h", "split"]
    files.write_text(out / "boxes.csv", _csv(header, boxes))
    files.write_text(out / "labels.csv", _table(films, kind))
    sha = files.sha256(out / "labels.csv")
    files.write_json(out / "labels.json", _description(sha, settings, kind))
    return out / "labels.csv"
