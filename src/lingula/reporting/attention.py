"""Pictures of where the decoder attended: each finding that the model calls, over its image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lingula.images.files import image_path
from lingula.images.reading import read_image
from lingula.reporting import figures
from lingula.scoring.attention import (
    Rate,
    attend_members,
    described,
    in_parts,
    read_for_members,
)
from lingula.scoring.models import ScoringModel
from lingula.system import files
from lingula.system.csv_cells import format_csv
from lingula.system.errors import ImageError
from lingula.tables.reading import Box

if TYPE_CHECKING:
    from lingula.model.network import Network

SIDE = 512


@dataclass(frozen=True)
class Overlay:
    """One finding of one image: its score, how well its maps point, and the picture's path."""

    finding: str
    score: float
    validity: str
    picture: str


@dataclass(frozen=True)
class Sheet:
    """One image on the page of `lingula explain`: its picture and overlays, or why it failed."""

    image: str
    failure: str
    picture: str | None
    overlays: tuple[Overlay, ...]


@dataclass(frozen=True)
class Choice:
    """Which findings are drawn, and what is known of them.

    Attributes:
        thresholds: the least score of a finding that is drawn, by class.
        classes: only these; none: any but No Finding.
        top: the most findings of one image.
        rates: how well the maps of each class point.
        boxes: the true places, by image and finding.
    """

    thresholds: Mapping[str, float]
    classes: Sequence[str]
    top: int
    rates: Mapping[str, Rate]
    boxes: Mapping[tuple[str, str], Sequence[Box]]

    def findings(self, names: Sequence[str], scores: NDArray[np.float64]) -> list[int]:
        """The positions of the findings to draw, those with the highest scores first."""
        wanted = set(self.classes or names) - {"No Finding"}
        order = [k for k in np.argsort(-scores, kind="stable").tolist() if names[k] in wanted]
        called = [k for k in order if scores[k] >= self.thresholds.get(names[k], np.inf)]
        return called[: self.top]


def draw_sheet(
    model: ScoringModel,
    networks: Sequence[Network],
    root: Path,
    name: str,
    folder: Path,
    choice: Choice,
) -> Sheet:
    """Read an image, let the model look at it, and draw its findings into `folder`."""
    try:
        path = image_path(root, name)
        image = read_image(path, bits=model.members[0].facts["reading"]["bits"])
        read = read_for_members(model, path)
    except ImageError as error:
        return Sheet(name, str(error), None, ())
    every_score, every_map = attend_members(model, networks, [read])
    assert every_map is not None  # `explain` refuses models without a decoder
    scores, maps = every_score[0], every_map[0]
    overlays = []
    for k in choice.findings(model.classes, scores):
        finding = model.classes[k]
        boxes = in_parts(choice.boxes.get((name, finding), []), *image.shape)
        picture = figures.draw_overlay(image, maps[k], boxes, SIDE)
        validity = described(choice.rates.get(finding))
        place = save_picture(picture, folder, name, finding)
        overlays.append(Overlay(finding, float(scores[k]), validity, place))
    plain = save_picture(figures.grey_picture(image, SIDE), folder, name, "film")
    return Sheet(name, "", plain, tuple(overlays))


def save_picture(picture: Image.Image, folder: Path, name: str, what: str) -> str:
    """Write a PNG; its path relative to the folder."""
    plain = "".join(c if c.isalnum() or c in "-_." else "_" for c in f"{name}--{what}")
    # Images named a/b.png and a_b.png must not share a picture.
    mark = "" if plain == f"{name}--{what}" else "-" + sha256(name.encode()).hexdigest()[:8]
    place = f"overlays/{plain}{mark}.png"
    with files.write_atomically(folder / place) as temporary:
        picture.save(temporary, format="PNG")
    return place


def sheets_as_csv(sheets: Sequence[Sheet]) -> str:
    """One line per finding that was drawn; one for an image without any, with the failure."""
    rows: list[tuple[object, ...]] = []
    for sheet in sheets:
        if sheet.failure or not sheet.overlays:
            rows.append((sheet.image, "", "", "", "", sheet.failure))
        for one in sheet.overlays:
            rows.append((sheet.image, one.finding, one.score, one.validity, one.picture, ""))
    header = ["image", "finding", "score", "attention", "overlay", "failure"]
    return format_csv(header, rows)
