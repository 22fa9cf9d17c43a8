"""HTML pages that need nothing from outside them, rendered from the package's templates."""

from __future__ import annotations

from collections.abc import Sequence

import jinja2
import numpy as np
from markupsafe import Markup, escape
from PIL import Image

from lingula import about
from lingula.images.files import image_path
from lingula.images.reading import read_image
from lingula.reporting.figures import png_uri
from lingula.system.errors import ImageError
from lingula.tables.checking import CheckReport, to_json
from lingula.tables.table import Table


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
        "code": mark_commands,
    }
    page = environment.get_template(template)
    return page.render(notice=about.NOTICE, version=about.__version__, **values)


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


def mark_commands(text: str) -> Markup:
    """A text whose parts between backticks are set as commands; no line ends before a `%`."""
    parts = [
        Markup("<code>{}</code>").format(p) if i % 2 else escape(p)
        for i, p in enumerate(text.replace(" %", "\xa0%").split("`"))
    ]
    return Markup("").join(parts)


def render_check(report: CheckReport, table: Table | None) -> str:
    """The page of `lingula data check`, with images where there is a table to read them from."""
    pictures: dict[str, list[tuple[str, str]]] = {}
    if table is not None:
        for fault, names in report.odd.items():
            pictures[fault] = _thumbnails(table, names[:12])
        bad = set(report.bad)
        good = [name for name in dict.fromkeys(table.images) if name not in bad]
        order = np.random.default_rng(0).permutation(len(good))[:SHEET]
        pictures[""] = _thumbnails(table, [good[i] for i in order])
    return render_page("check.html", check=to_json(report), pictures=pictures)


SHEET, SIDE = 24, 128


def _thumbnails(table: Table, names: Sequence[str]) -> list[tuple[str, str]]:
    """Each image that can be read, as a URI, with the findings that its row has."""
    rows = {name: row for row, name in enumerate(table.images)}
    shown = []
    for name in names:
        try:
            pixels = read_image(image_path(table.root, name), SIDE)
        except ImageError:
            continue  # it is among the problems
        cells = table.labels[rows[name]]
        present = [c for c, cell in zip(table.space.classes, cells, strict=True) if cell >= 0.5]
        caption = f"{name}: {', '.join(present) or 'nothing'}"
        shown.append((png_uri(Image.fromarray(pixels)), caption))
    return shown
