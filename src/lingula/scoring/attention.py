"""How well a run's attention maps hit the boxes of its table's dev and test films."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lingula.images.files import image_path
from lingula.images.reading import read_image
from lingula.scores.localisation import FORMAT, Look, Rate, from_json, look, rates, to_json
from lingula.system import files
from lingula.system.errors import ImageError
from lingula.tables.reading import Box, boxes_beside
from lingula.tables.table import Table

if TYPE_CHECKING:
    from lingula.model.checkpoint import Trained

log = logging.getLogger("lingula")

BATCH = 32


def in_parts(boxes: Sequence[Box], height: int, width: int) -> list[Box]:
    """Boxes in pixels of an image as parts of its sides."""
    return [(x / width, y / height, w / width, h / height) for x, y, w, h in boxes]


def measure_attention(run: Path, table: Table) -> dict[str, Rate]:
    """Point at the boxes of the dev and test films and keep the rates in `RUN/attention.json`.

    Only findings that are present count. Nothing is written, and nothing returned, where the table
    has no boxes or the network no decoder.
    """
    boxes = boxes_beside(table)
    if not boxes or table.splits is None:
        return {}
    from lingula.model.checkpoint import load_model  # imports torch

    trained = load_model(run)
    if trained.facts["architecture"]["classifier"] == "linear":
        return {}
    by_image: dict[str, list[str]] = {}
    for image, finding in boxes:
        if finding in trained.classes:
            by_image.setdefault(image, []).append(finding)
    rows = [
        row
        for row, image in enumerate(table.images)
        if table.splits[row] in ("dev", "test") and image in by_image
    ]
    looks: list[Look] = []
    for start in range(0, len(rows), BATCH):
        looks += _looks(trained, table, rows[start : start + BATCH], by_image, boxes)
    if not looks:
        return {}
    found = rates(looks)
    about = {"splits": ["dev", "test"], "films": len(rows)}
    files.write_json(run / "attention.json", to_json(found, **about))
    better = sum(rate.validated for rate in found.values())
    log.info("Attention points better than chance for %d of %d findings.", better, len(found))
    return found


def _looks(
    trained: Trained,
    table: Table,
    rows: Sequence[int],
    by_image: Mapping[str, Sequence[str]],
    boxes: Mapping[tuple[str, str], Sequence[Box]],
) -> list[Look]:
    import torch

    from lingula.scoring.scoring import attend

    reading = trained.facts["reading"]
    pixels, sides, read = [], [], []
    for row in rows:
        path = image_path(table.root, table.images[row])
        try:
            film = read_image(path, bits=reading["bits"])
            pixels.append(read_image(path, reading["image_size"], bits=reading["bits"]))
        except ImageError:
            continue  # it is named among the failures of its scores
        sides.append(film.shape)
        read.append(row)
    if not read:
        return []
    batch = torch.stack([torch.from_numpy(image.copy())[None] for image in pixels])
    _, maps = attend(trained.network, batch)
    assert maps is not None
    found = []
    for i, row in enumerate(read):
        image = table.images[row]
        patient = table.patients[row] if table.patients else ""
        for finding in by_image[image]:
            parts = in_parts(boxes[image, finding], *sides[i])
            k = trained.classes.index(finding)
            found.append(look(maps[i, k], parts, finding, patient))
    return found


def known_rates(run: Path) -> dict[str, Rate]:
    """The rates kept in a run's `attention.json`; none where there is none by today's rule."""
    kept = files.read_object(run / "attention.json", absent_ok=True)
    return from_json(kept) if kept.get("format") == FORMAT else {}
