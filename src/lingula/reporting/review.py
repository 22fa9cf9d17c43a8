"""Where labels and scores disagree most, as a page and as a sheet of corrections to fill in.

A disagreement is a known cell whose score says otherwise: a high score of an absent finding, a low
one of a present finding. Scores are compared within a class, never between classes: those of a rare
class are low everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

from lingula.images.files import image_path
from lingula.images.reading import read_image
from lingula.reporting.figures import jpeg_uri
from lingula.reporting.pages import render_page
from lingula.scores.joining import rows_to_measure
from lingula.scores.predictions import Predictions, align_rows, class_columns, failed
from lingula.settings.label_space import canonical, fold
from lingula.system import files
from lingula.system.csv_cells import escape_cell, unescape_cell
from lingula.system.errors import ImageError, InputError, examples, nearest
from lingula.tables.cells import read_frame
from lingula.tables.configured import Meaning, configured_targets
from lingula.tables.table import BLANK, UNCERTAIN, Table

COLUMNS = ("image", "class", "label", "score", "suggested", "decision")
SIDE = 224  # pixels of a thumbnail
# What a decision may be, folded, and the cell that it makes; None keeps the label.
DECISIONS: Mapping[str, float | None] = {
    "": None,
    "keep": None,
    "1": 1.0,
    "1.0": 1.0,
    "present": 1.0,
    "0": 0.0,
    "0.0": 0.0,
    "absent": 0.0,
    "-1": UNCERTAIN,
    "-1.0": UNCERTAIN,
    "uncertain": UNCERTAIN,
    "blank": BLANK,
}


@dataclass(frozen=True)
class Disagreement:
    """One cell of the table: `label` is its 1 or 0, `suggested` the other.

    `rank` is the share of the class's known images with a lower score: how unusual the score is.
    """

    image: str
    name: str
    label: int
    score: float
    rank: float
    suggested: int


def disagreements(
    predictions: Predictions, table: Table, *, split: str | None = None, top: int = 20
) -> tuple[Disagreement, ...]:
    """The strongest disagreements of each class, at most `top` per class, strongest first.

    Half are absent findings with the highest scores and half present ones with the lowest; if there
    are fewer of one kind, more of the other. Ties are in the table's order. Only cells with a known
    label count, and only those on the wrong side: absent findings that score above the class's
    median present one, and present findings that score below its median absent one.

    Raises:
        InputError: images of the table without a row of scores, or no class in common.
    """
    if top < 1:
        raise InputError(f"--top is the number of disagreements per class, at least 1, not {top}.")
    part = rows_to_measure(predictions, table, split)
    rows = align_rows(predictions, part.images, part.ids)
    theirs = {fold(name) for name in predictions.classes}
    classes = [name for name in part.space.classes if fold(name) in theirs]
    if not classes:
        raise InputError(f"{predictions.origin} and the table have no class in common.")
    columns = class_columns(predictions, classes)
    values, mask = configured_targets(Meaning(blank="ignore"), part)
    scored = ~failed(predictions)[rows]
    found: list[Disagreement] = []
    for name, column in zip(classes, columns, strict=True):
        k = part.space.index(name)
        kept = np.flatnonzero(mask[:, k] & scored)
        scores = predictions.probabilities[rows[kept], column]
        present = values[kept, k] >= 0.5
        ordered = np.sort(scores)
        for i in _strongest(scores, present, top):
            label = int(present[i])
            below = float(np.searchsorted(ordered, scores[i]) / len(scores))
            image = part.images[kept[i]]
            found.append(Disagreement(image, name, label, float(scores[i]), below, 1 - label))
    return tuple(found)


def _strongest(
    scores: np.ndarray[tuple[int], np.dtype[np.float64]],
    present: np.ndarray[tuple[int], np.dtype[np.bool_]],
    top: int,
) -> list[int]:
    """Indices of the strongest disagreements, the two kinds in turn."""
    if present.all() or not present.any():
        return []
    high = np.flatnonzero(~present & (scores > np.median(scores[present])))
    low = np.flatnonzero(present & (scores < np.median(scores[~present])))
    high = high[np.argsort(-scores[high], kind="stable")]
    low = low[np.argsort(scores[low], kind="stable")]
    many = min(len(high), max(top - top // 2, top - len(low)))
    few = min(len(low), top - many)
    turns = [(turn, 0, int(i)) for turn, i in enumerate(high[:many])]
    turns += [(turn, 1, int(i)) for turn, i in enumerate(low[:few])]
    return [i for _, _, i in sorted(turns)]


def render_review(found: Sequence[Disagreement], root: Path, *, scores: str, labels: str) -> str:
    """The page, one section per class, with the images below `root` or why they are not shown."""
    sections: dict[str, list[Disagreement]] = {}
    for one in found:
        sections.setdefault(one.name, []).append(one)
    shown = {image: _thumbnail(root, image) for image in dict.fromkeys(one.image for one in found)}
    return render_page(
        "review.html",
        sections=sections,
        shown=shown,
        count=len(found),
        scores=scores,
        labels=labels,
    )


def _thumbnail(root: Path, image: str) -> tuple[str, str]:
    """An image as (data URI, "") or ("", why it can't be shown)."""
    try:
        return jpeg_uri(Image.fromarray(read_image(image_path(root, image), SIDE))), ""
    except ImageError as error:
        return "", f"not shown: {error.kind}"


def write_corrections(found: Sequence[Disagreement], path: str | Path) -> None:
    """Write the sheet to fill in; the column `decision` is blank."""
    frame = pl.DataFrame(
        [
            (d.image, escape_cell(d.name), str(d.label), repr(d.score), str(d.suggested), None)
            for d in found
        ],
        schema=dict.fromkeys(COLUMNS, pl.String),
        orient="row",
    )
    with files.write_atomically(path) as temporary:
        frame.write_csv(temporary)


@dataclass(frozen=True)
class Corrected:
    """A corrected table, and how many cells of the sheet were decided.

    `changed` cells have another value now, `confirmed` ones the same; `undecided` rows were left
    blank or say `keep`.
    """

    table: Table
    changed: int
    confirmed: int
    undecided: int


def apply_corrections(table: Table, path: str | Path) -> Corrected:
    """A new table with the decisions of a filled sheet.

    Decisions are 1, 0, -1 or present, absent, uncertain, blank; an empty one or `keep` changes
    nothing. Rows are joined by image and class name. Other columns are ignored except `label`: if
    it differs from the table's, the sheet belongs to another table.

    Raises:
        InputError: a sheet without the columns `image`, `class`, `decision`; images or classes
            that the table lacks; words that are no decision; cells decided twice in different ways;
            labels other than the table's.
    """
    file = Path(path)
    frame = read_frame(file)
    names = {fold(name): name for name in frame.columns}
    absent = [name for name in ("image", "class", "decision") if name not in names]
    if absent:
        raise InputError(
            f"{file} has no column {examples(absent)}. A sheet of corrections has "
            f"{', '.join(COLUMNS)}."
        )
    images, classes, decisions = (
        frame[names[name]].str.strip_chars().to_list() for name in ("image", "class", "decision")
    )
    labels = (
        frame[names["label"]].str.strip_chars().to_list()
        if "label" in names
        else [""] * len(images)
    )
    place = {name: row for row, name in enumerate(table.images)}
    cells = table.labels.copy()
    decided: dict[tuple[int, int], float] = {}
    undecided = 0
    for line, (image, name, label, word) in enumerate(
        zip(images, classes, labels, decisions, strict=True), start=2
    ):
        where = f"{file}, line {line}"
        row, k = _cell(table, place, image, unescape_cell(name), where)
        value = _decision(word, where)
        _check_label(table.labels[row, k], label, where)
        if value is None:
            undecided += 1
            continue
        if decided.setdefault((row, k), value) != value:
            raise InputError(f"{where}: '{image}', '{name}' has another decision further up.")
        cells[row, k] = value
    changed = sum(float(table.labels[cell]) != value for cell, value in decided.items())
    made = replace(table, labels=cells, path=None, sha256="")
    return Corrected(made, changed, len(decided) - changed, undecided)


def _cell(
    table: Table, place: Mapping[str, int], image: str, name: str, where: str
) -> tuple[int, int]:
    if image not in place:
        raise InputError(f"{where}: the table has no image '{image}'.{nearest(image, place)}")
    if canonical(name) not in table.space:
        raise InputError(
            f"{where}: the table has no class '{name}'.{nearest(name, table.space.classes)}"
        )
    return place[image], table.space.index(name)


def _decision(word: str, where: str) -> float | None:
    folded = word.casefold()
    if folded not in DECISIONS:
        raise InputError(
            f"{where}: '{word}' is no decision. Write 1 (present), 0 (absent), -1 (uncertain), "
            "blank, or keep; or leave it empty."
        )
    return DECISIONS[folded]


def _check_label(cell: float, label: str, where: str) -> None:
    """Refuse a label other than the table's; a fraction counts as present from 0.5."""
    if label not in ("0", "1") or cell < 0:
        return
    if int(cell >= 0.5) != int(label):
        raise InputError(
            f"{where}: the label is {label} in the sheet and {cell:g} in the table. Does the sheet "
            "belong to another table, or was it applied already?"
        )
