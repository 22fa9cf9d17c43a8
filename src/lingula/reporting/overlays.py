"""The page of `lingula explain`: films with the attention of the findings that were called."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from lingula.reporting.document import document, paragraph


@dataclass(frozen=True)
class Overlay:
    """One finding of one film: its score, how well its maps point, and the picture's path."""

    finding: str
    score: float
    validity: str
    picture: str


@dataclass(frozen=True)
class Sheet:
    """One film: its picture and overlays, or the reason why it can't be read."""

    image: str
    failure: str
    film: str | None
    overlays: tuple[Overlay, ...]


_STYLE = """
body { background: #14202b; color: #eef3f7; } h2 { font-size: .95rem; overflow-wrap: anywhere; }
p { color: #a9bac8; } section { border-top: 1px solid #2b3a48; padding: .4rem 0 1rem; }
section div { display: flex; gap: .8rem; flex-wrap: wrap; }
figure { margin: 0; width: 300px; } figcaption { font-size: .82rem; color: #a9bac8; }
section img { width: 100%; border-radius: 6px; display: block; background: #000; }
b { color: #eef3f7; }
"""


def render(sheets: Sequence[Sheet], run: str, thresholds: str, notice: str) -> str:
    """The page; its pictures lie beside it."""
    about = (
        f"Run {run}. Shown are the findings that the model scored above their threshold "
        f"({thresholds}), and where its decoder attended for them. Attention sums to one over the "
        "film whatever is there: it is no proof that the finding is there, nor where it ends. "
        "Green frames, where there are any, are boxes that a person or the phantom gave."
    )
    body = "".join(_sheet(sheet) for sheet in sheets)
    return document("Where the decoder attended", paragraph(about) + body, notice, _STYLE)


def _sheet(sheet: Sheet) -> str:
    title = f"<h2>{html.escape(sheet.image)}</h2>"
    if sheet.failure or sheet.film is None:
        return f"<section>{title}<p>{html.escape(sheet.failure)}</p></section>"
    figures = [_figure(sheet.film, "film", "the film")]
    figures += [
        _figure(
            one.picture,
            f"attention for {one.finding}",
            f"<b>{html.escape(one.finding)}</b> {one.score:.2f}<br>{html.escape(one.validity)}",
        )
        for one in sheet.overlays
    ]
    nothing = "" if sheet.overlays else "<p>No finding above its threshold.</p>"
    return f"<section>{title}<div>{''.join(figures)}</div>{nothing}</section>"


def _figure(path: str, alt: str, caption: str) -> str:
    source, text = quote(path), html.escape(alt)
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{caption}</figcaption></figure>'
