"""A plain HTML page that needs nothing from outside it: its frame, its style and its tables."""

from __future__ import annotations

import html
from collections.abc import Sequence

import jinja2

_STYLE = """
:root { --ink: #1d2733; --soft: #5b6577; --line: #dfe4ec; --accent: #1f6f8b; --warm: #b3394a; }
body { font: 15px/1.5 system-ui, "Segoe UI", Arial, sans-serif; color: var(--ink); margin: 0; }
main { max-width: 1280px; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.6rem; margin: .2em 0 .4em; } h2 { font-size: 1.1rem; margin: 1.8em 0 .4em; }
p, li { max-width: 80ch; color: var(--soft); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th { text-align: left; border-bottom: 2px solid var(--ink); padding: .35em .8em .35em 0;
     vertical-align: bottom; font-weight: 600; }
td { border-bottom: 1px solid var(--line); padding: .32em .8em .32em 0; white-space: nowrap; }
tr:hover td { background: #f4f6f9; }
.wide { overflow-x: auto; }
.films { display: flex; flex-wrap: wrap; gap: .6rem; }
.films figure { margin: 0; width: 128px; }
.films img { width: 128px; height: 128px; object-fit: contain; background: #000; }
.films figcaption { font-size: 11px; color: var(--soft); overflow-wrap: anywhere; }
.bad { color: var(--warm); font-weight: 600; } .good { color: #2e7d5b; font-weight: 600; }
footer { border-top: 1px solid var(--line); margin-top: 2rem; color: var(--soft); font-size: 13px; }
"""


def document(title: str, body: str, notice: str, style: str = "") -> str:
    """A whole page: `body` is HTML, the rest is text; `style` is CSS on top of the common one."""
    name = html.escape(title)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}</title><style>{_STYLE}{style}</style></head><body><main><h1>{name}</h1>"
        f"{body}<footer><p>{html.escape(notice)}</p></footer></main></body></html>\n"
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table of plain texts; the first row is its head."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in rows[0])
    lines = [
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows[1:]
    ]
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{html.escape(text)}</p>"


def films(pictures: Sequence[tuple[str, str]]) -> str:
    """Small pictures in a row, each a source (data URI or path) and a caption of plain text."""
    figures = "".join(
        f'<figure><img src="{html.escape(source)}" alt=""><figcaption>{html.escape(caption)}'
        "</figcaption></figure>"
        for source, caption in pictures
    )
    return f'<div class="films">{figures}</div>'


def templates() -> jinja2.Environment:
    """The package's templates: what they are given is escaped, and a name they lack is an error."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("lingula.reporting", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
