"""The review as one HTML page: films in the page itself, nothing from outside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

import lingula
from lingula.images.files import image_path
from lingula.images.reading import read_image
from lingula.reporting.document import templates
from lingula.reporting.reviewing import Disagreement
from lingula.system.errors import ImageError

SIDE = 224  # pixels of a thumbnail


@dataclass(frozen=True)
class Film:
    """One disagreement as the page shows it; without a picture, `reason` says why."""

    image: str
    label: int
    score: str
    rank: str
    picture: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Section:
    """One class and its films."""

    name: str
    films: tuple[Film, ...]


def thumbnails(images: Sequence[str], root: Path) -> dict[str, tuple[str, str]]:
    """Each distinct image as (data URI, "") or ("", why it can't be shown)."""
    shown = {}
    for image in dict.fromkeys(images):
        try:
            pixels = read_image(image_path(root, image), SIDE)
            shown[image] = (_data_uri(Image.fromarray(pixels)), "")
        except ImageError as error:
            shown[image] = ("", f"not shown: {error.kind}")
    return shown


def _data_uri(picture: Image.Image) -> str:
    stream = io.BytesIO()
    picture.save(stream, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def render_review(
    found: Sequence[Disagreement],
    shown: Mapping[str, tuple[str, str]],
    *,
    scores: str,
    labels: str,
) -> str:
    """The page, a section a class in the order of `found`; `shown` is made by `thumbnails`."""
    sections: dict[str, list[Film]] = {}
    for one in found:
        picture, reason = shown[one.image]
        sections.setdefault(one.name, []).append(
            Film(
                one.image,
                one.label,
                f"{one.score:.3g}",
                f"{100 * one.rank:.0f} %",
                picture,
                reason,
            )
        )
    return (
        templates()
        .get_template("review.html")
        .render(
            sections=[Section(name, tuple(films)) for name, films in sections.items()],
            count=len(found),
            scores=scores,
            labels=labels,
            notice=lingula.NOTICE,
            version=lingula.__version__,
        )
    )
