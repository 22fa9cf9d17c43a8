"""Figures for the report: matplotlib charts as inline SVG, images and attention as inline PNG."""

from __future__ import annotations

import base64
import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lingula.scores.reliability import Bin

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#1f6f8b", "#d1495b", "#66a182", "#edae49", "#5c5470", "#00798c")
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lingula",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a94a6",
    "axes.labelcolor": "#3b4252",
    "xtick.color": "#5b6577",
    "ytick.color": "#5b6577",
    "axes.grid": True,
    "grid.color": "#e6e9ef",
    "axes.axisbelow": True,
}


@dataclass(frozen=True)
class Curve:
    """A line (x, y) of one class or run, named."""

    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]


@contextlib.contextmanager
def _figure(height: float, **margins: float) -> Iterator[Figure]:
    """An empty figure as wide as the page, with the page's style while it is drawn.

    `margins` in inches lay out its panels; without them they are laid out so that everything fits,
    which takes as long as drawing.
    """
    from matplotlib import rc_context  # imported late: it takes longer than a refusal
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(10.4, height), layout=None if margins else "constrained")
        if margins:
            figure.subplots_adjust(
                left=margins["side"] / 10.4,
                right=1 - 0.1 / 10.4,
                bottom=margins["below"] / height,
                top=1 - 0.25 / height,
                wspace=margins["between"],
                hspace=margins["between"],
            )
        yield figure


def to_svg(figure: Figure) -> str:
    """The figure as an <svg> element without XML header, the same for the same data."""
    stream = io.StringIO()
    with warnings.catch_warnings():
        # The text stays text, which a reader's browser draws in whatever fonts it has.
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from", UserWarning)
        figure.savefig(stream, format="svg", metadata={"Date": None}, transparent=True)
    text = stream.getvalue()
    return text[text.index("<svg") :]


def plot_history(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Loss, dev mAP and dev AUROC per epoch, one line per run; rows are those of metrics.jsonl."""
    panels = (("loss", "training loss"), ("dev_mAP", "dev mAP"), ("dev_AUROC", "dev AUROC"))
    with _figure(2.7, side=0.55, below=0.45, between=0.22) as figure:
        for axes, (key, title) in zip(figure.subplots(1, 3), panels, strict=True):
            for i, (name, rows) in enumerate(runs.items()):
                points = [(row["epoch"], row[key]) for row in rows if row[key] is not None]
                if points:
                    axes.plot(*zip(*points, strict=True), "o-", ms=3, color=_colour(i), label=name)
            axes.set_title(title, fontsize=10, loc="left", color="#3b4252")
            axes.set_xlabel("epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)
        if len(runs) > 1:
            figure.axes[0].legend(frameon=False, fontsize=8)
        return to_svg(figure)


def plot_curves(roc: Sequence[Curve], precision_recall: Sequence[Curve]) -> str:
    """ROC and precision-recall curves, one line per class, named beside the panels."""
    with _figure(3.9) as figure:
        left, right = figure.subplots(1, 2)
        left.plot([0, 1], [0, 1], "--", lw=1, color="#b4bccb")
        for i, curve in enumerate(roc):
            left.plot(curve.x, curve.y, lw=1.6, color=_colour(i), label=curve.name)
        for i, curve in enumerate(precision_recall):
            right.plot(curve.x, curve.y, lw=1.6, color=_colour(i), drawstyle="steps-post")
        left.set(xlabel="1 - specificity", ylabel="sensitivity", title="ROC")
        right.set(xlabel="recall (sensitivity)", ylabel="precision", title="precision - recall")
        for axes in (left, right):
            axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
            axes.title.set(fontsize=10, color="#3b4252")
        figure.legend(
            *left.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8
        )
        return to_svg(figure)


def plot_reliability(curves: Mapping[str, Sequence[Bin]]) -> str:
    """Share of positives against mean score, a small panel per class, with intervals."""
    with _figure(2.2 * -(-len(curves) // 6) + 0.2, side=0.42, below=0.3, between=0.32) as figure:
        panels = figure.subplots(max(1, -(-len(curves) // 6)), 6, squeeze=False).ravel()
        for axes in panels[len(curves) :]:
            axes.set_axis_off()
        for i, (axes, (name, bins)) in enumerate(zip(panels, curves.items(), strict=False)):
            top = max(*(max(b.score, b.share, b.ci[1] if b.ci else 0) for b in bins), 0.02) * 1.05
            axes.plot([0, top], [0, top], "--", lw=1, color="#b4bccb")
            for b in bins:
                if b.ci is not None:
                    axes.plot([b.score] * 2, b.ci, lw=1.4, color=_colour(i), alpha=0.45)
            axes.plot([b.score for b in bins], [b.share for b in bins], "o", ms=3, color=_colour(i))
            axes.set(xlim=(0, top), ylim=(0, top))
            axes.locator_params(nbins=3)  # more would not fit beside a rare class's panel
            axes.set_title(name, fontsize=8, loc="left", color="#3b4252")
            axes.tick_params(labelsize=7)
        return to_svg(figure)


def _colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def grey_picture(image: NDArray[np.uint8], side: int = 224) -> Image.Image:
    """A grey image (H, W) as a picture of `side` pixels."""
    return Image.fromarray(image).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)


def draw_overlay(
    image: NDArray[np.uint8],
    attention: NDArray[np.float32],
    boxes: Sequence[tuple[float, float, float, float]] = (),
    side: int = 224,
) -> Image.Image:
    """The image with the attention map (h, w) over it; boxes are x, y, w, h in parts of the image.

    The map is scaled by its own maximum: it shows where the decoder looked most, not how much.
    """
    from matplotlib import colormaps

    grey = np.asarray(grey_picture(image, side), dtype=np.float32)
    heat = attention / max(float(attention.max()), 1e-12)
    smooth = Image.fromarray(heat.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
    strength = np.clip(np.asarray(smooth), 0, 1)
    colour = colormaps["inferno"](strength)[..., :3].astype(np.float32) * 255
    alpha = (0.65 * strength)[..., None]
    picture = Image.fromarray((grey * (1 - alpha) + colour * alpha).clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    for x, y, w, h in boxes:
        pen.rectangle(
            (x * side, y * side, (x + w) * side, (y + h) * side), outline=(120, 220, 160), width=2
        )
    return picture


def png_uri(picture: Image.Image) -> str:
    """A picture as a data URI; 3 % larger than at the best level, in a tenth of the time."""
    return _data_uri(picture, "PNG", compress_level=4)


def jpeg_uri(picture: Image.Image) -> str:
    """A picture as a data URI of a lossy JPEG."""
    return _data_uri(picture, "JPEG", quality=80)


def _data_uri(picture: Image.Image, kind: str, **options: int) -> str:
    stream = io.BytesIO()
    picture.save(stream, format=kind, **options)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(stream.getvalue()).decode()
