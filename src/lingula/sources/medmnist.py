"""ChestMNIST: the images of an .npz become PNG files, its 14 columns the findings of NIH."""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image

from lingula.settings.label_space import LabelSpace
from lingula.settings.vocabulary import parse_split
from lingula.sources.released import Released, to_table
from lingula.system import files
from lingula.system.errors import InputError, examples
from lingula.tables.table import Table

SOURCE = "chestmnist"

# The columns' order in the file; the last but one is `pleural` there.
CLASSES = (
    "Atelectasis",
    "Cardiomegaly",
    "Pleural Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural Thickening",
    "Hernia",
)
_PARTS = ("train", "val", "test")


def medmnist(
    root: str | Path, images: Path, progress: Callable[[int, int], None] | None = None
) -> Table:
    """The table of ChestMNIST; its images are written as PNG files, those already there are kept.

    Args:
        root: `chestmnist*.npz`, or a folder with one in it.
        images: folder for the PNG files; one below it is named after the .npz and its hash.
        progress: called with (done, all) now and then.

    There are no patients in the file: its own splits are the only ones that can be had.

    Raises:
        InputError: no .npz or several, one that is damaged or contains something else.
    """
    path = _find_npz(Path(root))
    sha256 = files.sha256(path)
    place = images / f"{path.stem}-{sha256[:8]}"
    names: list[str] = []
    splits: list[str] = []
    cells = []
    try:
        with zipfile.ZipFile(path) as archive:
            shapes = {part: _read_shape(archive, f"{part}_images", path) for part in _PARTS}
            total = sum(shape[0] for shape in shapes.values())
            for part in _PARTS:
                labels = _open_labels(archive, part, shapes[part][0], path)
                folder = place / part
                folder.mkdir(parents=True, exist_ok=True)
                for number, pixels in enumerate(_read_images(archive, f"{part}_images", path)):
                    names.append(f"{part}/{number:06}.png")
                    _save(pixels, place / names[-1])
                    if progress is not None and len(names) % 500 == 0:
                        progress(len(names), total)
                cells.append(labels)
                splits += [parse_split(part) or ""] * len(labels)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{path} is damaged or no .npz: {error}.") from None
    frame = pl.DataFrame({"image": names, "split": splits})
    made = Released(path, pl.DataFrame(), (), sha256)
    space = LabelSpace(CLASSES, "chestmnist")
    return to_table(
        frame, np.concatenate(cells), space, root=place, source=SOURCE, made_from=[made]
    )


def _find_npz(root: Path) -> Path:
    if root.is_file():
        return root
    found = sorted(root.glob("chestmnist*.npz")) if root.is_dir() else []
    if len(found) != 1:
        what = f"has {examples(p.name for p in found)}" if found else "has no chestmnist*.npz"
        raise InputError(f"{root} {what}. Name the .npz file.")
    return found[0]


@contextlib.contextmanager
def _open_array(
    archive: zipfile.ZipFile, name: str, path: Path
) -> Iterator[tuple[tuple[int, ...], IO[bytes]]]:
    """Shape and bytes of an array; only plain bytes in C order are read, never a pickle."""
    if f"{name}.npy" not in archive.namelist():
        known = examples(n.removesuffix(".npy") for n in archive.namelist())
        raise InputError(f"{path} has no array '{name}'. It has: {known}.")
    with archive.open(f"{name}.npy") as stream:
        try:
            version, form = np.lib.format.read_magic(stream), np.lib.format
            read = form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0
            shape, fortran, dtype = read(stream)
        except ValueError as error:
            raise InputError(f"{path}: array '{name}' can't be read: {error}.") from None
        if fortran or dtype != np.uint8:
            raise InputError(f"{path}: array '{name}' is {dtype}; ChestMNIST's are bytes (uint8).")
        yield shape, stream


def _read_shape(archive: zipfile.ZipFile, name: str, path: Path) -> tuple[int, ...]:
    with _open_array(archive, name, path) as (shape, _):
        if len(shape) != 3:
            raise InputError(f"{path}: array '{name}' is {shape}, not (images, height, width).")
        return shape


def _read_images(archive: zipfile.ZipFile, name: str, path: Path) -> Iterator[NDArray[np.uint8]]:
    """The images one after the other: the largest release does not fit into memory at once."""
    with _open_array(archive, name, path) as ((count, height, width), stream):
        for _ in range(count):
            data = stream.read(height * width)
            if len(data) != height * width:
                raise InputError(f"{path}: array '{name}' was cut off. Download it again.")
            yield np.frombuffer(data, dtype=np.uint8).reshape(height, width)


def _open_labels(
    archive: zipfile.ZipFile, part: str, count: int, path: Path
) -> NDArray[np.float32]:
    name = f"{part}_labels"
    with _open_array(archive, name, path) as (shape, stream):
        data = stream.read()
    if shape != (count, len(CLASSES)) or len(data) != count * len(CLASSES):
        raise InputError(
            f"{path}: array '{name}' is {shape}, not ({count}, {len(CLASSES)}): is it ChestMNIST?"
        )
    labels = np.frombuffer(data, dtype=np.uint8).reshape(shape)
    if labels.max(initial=0) > 1:
        raise InputError(f"{path}: array '{name}' has {labels.max()}; labels are 1 and 0.")
    return labels.astype(np.float32)


def _save(pixels: NDArray[np.uint8], path: Path) -> None:
    if path.is_file():
        return
    # A rename makes the file whole; a flush to disk for each of 112,120 would take hours.
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("wb") as stream:
        Image.fromarray(pixels).save(stream, format="PNG", compress_level=1)
    temporary.replace(path)
