"""HTML pages that need nothing from outside them, rendered from the package's templates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jinja2

import lingula


def render_page(template: str, **values: object) -> str:
    """Render a template; texts are escaped, and a value that it lacks is an error.

    Every template also gets the package's `notice` and `version`.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lingula.reporting", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": format_number,
        "percent": format_percent,
        "interval": format_interval,
    }
    page = environment.get_template(template)
    return page.render(notice=lingula.NOTICE, version=lingula.__version__, **values)


def format_number(value: float | None, digits: int = 3) -> str:
    """A number with fixed digits, or a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def format_percent(value: float | None) -> str:
    """A share as per cent, with two decimals below 1 %; or a dash."""
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" if value >= 0.01 else f"{100 * value:.2f} %"


def format_interval(interval: Sequence[float | None] | None) -> str:
    """An interval as `0.61 to 0.74`, or nothing."""
    if not interval or interval[0] is None or interval[1] is None:
        return ""
    return f"{interval[0]:.2f} to {interval[1]:.2f}"


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
