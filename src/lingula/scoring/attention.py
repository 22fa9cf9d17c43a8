"""Where a model or an ensemble looked, and how well its maps hit the boxes of its table."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lingula.images.files import image_path
from lingula.images.reading import read_image
from lingula.scores.intervals import mean_interval, resample, unit_names
from lingula.scoring.models import ScoringModel, has_out_of_fold_scores, read_scoring_model
from lingula.system import files
from lingula.system.errors import ImageError
from lingula.tables.reading import Box, boxes_beside
from lingula.tables.table import Table

if TYPE_CHECKING:
    from lingula.model.network import Network

log = logging.getLogger("lingula")

BATCH = 32


def in_parts(boxes: Sequence[Box], height: int, width: int) -> list[Box]:
    """Boxes in pixels of an image as fractions of its sides."""
    return [(x / width, y / height, w / width, h / height) for x, y, w, h in boxes]


def measure_attention(place: Path, table: Table) -> dict[str, Rate]:
    """Point at the boxes of the dev and test images and keep the rates in `PLACE/attention.json`.

    Args:
        place: a run, or an ensemble of runs, whose maps are combined as `explain` combines them.
        table: its table; boxes are beside it.

    Only findings that are present count. Members that were trained on folds of the dev images have
    learned from them, so for their ensemble only test images count. Nothing is written, and nothing
    returned, where the table has no boxes or no model a decoder.
    """
    boxes = boxes_beside(table)
    if not boxes or table.splits is None:
        return {}
    model = read_scoring_model(place)
    if not has_decoder(model):
        return {}
    networks = load_networks(model)
    by_image: dict[str, list[str]] = {}
    for image, finding in boxes:
        if finding in model.classes:
            by_image.setdefault(image, []).append(finding)
    splits = ["test"] if has_out_of_fold_scores(place) else ["dev", "test"]
    rows = [
        row
        for row, image in enumerate(table.images)
        if table.splits[row] in splits and image in by_image
    ]
    looks: list[Look] = []
    for start in range(0, len(rows), BATCH):
        looks += _looks(model, networks, table, rows[start : start + BATCH], by_image, boxes)
    if not looks:
        return {}
    found = rates(looks)
    kept = to_json(found, splits=splits, films=len(rows))
    files.write_json(place / "attention.json", kept)
    better = sum(rate.validated for rate in found.values())
    log.info("Attention points better than chance for %d of %d findings.", better, len(found))
    return found


def _looks(
    model: ScoringModel,
    networks: Sequence[Network],
    table: Table,
    rows: Sequence[int],
    by_image: Mapping[str, Sequence[str]],
    boxes: Mapping[tuple[str, str], Sequence[Box]],
) -> list[Look]:
    bits = model.members[0].facts["reading"]["bits"]
    images, sides, read = [], [], []
    for row in rows:
        path = image_path(table.root, table.images[row])
        try:
            film = read_image(path, bits=bits)
            images.append(read_for_members(model, path))
        except ImageError:
            continue  # it is named among the failures of its scores
        sides.append(film.shape)
        read.append(row)
    if not read:
        return []
    _, maps = attend_members(model, networks, images)
    assert maps is not None
    found = []
    for i, row in enumerate(read):
        image = table.images[row]
        patient = table.patients[row] if table.patients else ""
        for finding in by_image[image]:
            parts = in_parts(boxes[image, finding], *sides[i])
            k = model.classes.index(finding)
            found.append(look(maps[i, k], parts, finding, patient))
    return found


def known_rates(place: Path) -> dict[str, Rate]:
    """The rates kept in `PLACE/attention.json`; empty without rates by the present rule."""
    kept = files.read_object(place / "attention.json", absent_ok=True)
    return from_json(kept) if kept.get("format") == FORMAT else {}


def measured_splits(place: Path) -> list[str]:
    """The splits that the rates in `PLACE/attention.json` are of."""
    kept = files.read_object(place / "attention.json", absent_ok=True)
    return [str(split) for split in kept.get("splits", ())]


FORMAT = 2  # of `attention.json`; in 1 the middle of a cell had to lie in a box
DRAWS = 1000
LEAST = 10  # patients; a single hit would have an interval without width
FINE = 256  # shares of maps and boxes are taken on a grid of so many cells a side
_EDGE = 1e-9  # of the film; what a box's edges are off by after a sum of floats


@dataclass(frozen=True)
class Look:
    """One map of one finding that is there: whether it points at it, and by how much."""

    finding: str
    patient: str
    hit: bool
    chance: float
    energy: float
    covered: float


@dataclass(frozen=True)
class Rate:
    """Over the `n` images with boxes of a finding.

    Attributes:
        n: images.
        patients: whose they are; of fewer than `LEAST` nothing is claimed.
        hit: share of the images whose map points into a box, and its 95 % interval.
        chance: mean share of the cells that are hits.
        gain_ci: 95 % interval of hit minus chance, by patient; above zero: better than chance.
        energy: mean share of the map within the boxes.
        covered: mean share of the film within the boxes, which is the energy of chance.
    """

    n: int
    patients: int
    hit: float
    hit_ci: tuple[float, float]
    chance: float
    gain_ci: tuple[float, float]
    energy: float
    covered: float

    @property
    def validated(self) -> bool:
        """Whether the maps point better than chance, beyond the noise."""
        return self.gain_ci[0] > 0 and not self.too_few

    @property
    def too_few(self) -> bool:
        """Whether these are too few patients to claim anything."""
        return self.patients < LEAST


def look(
    attention: NDArray[np.float32],
    boxes: Sequence[tuple[float, float, float, float]],
    finding: str,
    patient: str,
) -> Look:
    """One map (h, w), and the boxes as x, y, w, h in fractions of the image.

    Of cells that are as strong the first counts, from the top left.
    """
    height, width = attention.shape
    cells = _reached(boxes, height, width)
    covered = _covered(boxes)
    rows = (np.arange(FINE) * height) // FINE
    columns = (np.arange(FINE) * width) // FINE
    spread = attention[np.ix_(rows, columns)].astype(np.float64)
    total = float(spread.sum())
    energy = float(spread[covered].sum()) / total if total > 0 else 0.0
    hit = bool(cells.flat[int(np.argmax(attention))])
    return Look(finding, patient, hit, float(cells.mean()), energy, float(covered.mean()))


def _reached(
    boxes: Sequence[tuple[float, float, float, float]], height: int, width: int
) -> NDArray[np.bool_]:
    """(height, width) True for the cells that a box reaches into by more than its edge."""
    top, left = np.arange(height) / height, np.arange(width) / width
    cells = np.zeros((height, width), dtype=bool)
    for x, y, w, h in boxes:
        down = (top < y + h - _EDGE) & (top + 1 / height > y + _EDGE)
        across = (left < x + w - _EDGE) & (left + 1 / width > x + _EDGE)
        cells |= down[:, None] & across[None, :]
    return cells


def _covered(boxes: Sequence[tuple[float, float, float, float]]) -> NDArray[np.bool_]:
    """(FINE, FINE) True where a box covers the middle of a cell."""
    middle = (np.arange(FINE) + 0.5) / FINE
    covered = np.zeros((FINE, FINE), dtype=bool)
    for x, y, w, h in boxes:
        inside_y = (middle >= y) & (middle < y + h)
        inside_x = (middle >= x) & (middle < x + w)
        covered |= inside_y[:, None] & inside_x[None, :]
    return covered


def rates(looks: Sequence[Look], *, seed: int = 0) -> dict[str, Rate]:
    """The rate of each finding, in the order of its first look; intervals by patient."""
    by_finding: dict[str, list[Look]] = {}
    for one in looks:
        by_finding.setdefault(one.finding, []).append(one)
    return {finding: _rate(every, seed) for finding, every in by_finding.items()}


def _rate(looks: Sequence[Look], seed: int) -> Rate:
    hit = np.array([one.hit for one in looks], dtype=np.float64)
    chance = np.array([one.chance for one in looks])
    patients = [one.patient for one in looks]
    names, unit = np.unique(unit_names(patients, range(len(looks))), return_inverse=True)
    counts = resample(np.random.default_rng(seed), len(names), DRAWS).astype(float)
    hit_ci = mean_interval(hit, unit, counts)
    gain_ci = mean_interval(hit - chance, unit, counts)
    assert hit_ci is not None and gain_ci is not None  # each draw has rows
    return Rate(
        n=len(looks),
        patients=len(names),
        hit=float(hit.mean()),
        hit_ci=hit_ci,
        chance=float(chance.mean()),
        gain_ci=gain_ci,
        energy=float(np.mean([one.energy for one in looks])),
        covered=float(np.mean([one.covered for one in looks])),
    )


def to_json(found: Mapping[str, Rate], **about: Any) -> dict[str, Any]:
    """The rates as plain values, for `attention.json`."""
    return {
        "format": FORMAT,
        **about,
        "classes": {name: asdict(rate) for name, rate in found.items()},
    }


def from_json(value: Mapping[str, Any]) -> dict[str, Rate]:
    """The rates that `to_json` wrote."""
    return {
        name: Rate(
            n=int(rate["n"]),
            patients=int(rate["patients"]),
            hit=float(rate["hit"]),
            hit_ci=(float(rate["hit_ci"][0]), float(rate["hit_ci"][1])),
            chance=float(rate["chance"]),
            gain_ci=(float(rate["gain_ci"][0]), float(rate["gain_ci"][1])),
            energy=float(rate["energy"]),
            covered=float(rate["covered"]),
        )
        for name, rate in value["classes"].items()
    }


def described(rate: Rate | None) -> str:
    """The text under a map: how often maps of this finding point at it, or `not validated`."""
    if rate is None:
        return "not validated"
    worse = "" if rate.validated else ", not better than chance"
    if rate.too_few:
        worse = ", too few to say"
    return f"points at it in {rate.hit:.0%} of {rate.n} images (chance {rate.chance:.0%}{worse})"


Reading = tuple[int, int | None]  # the side in pixels and the bits that a member reads


def has_decoder(model: ScoringModel) -> bool:
    """Whether a member has a decoder, so that something attends."""
    return any(m.facts["architecture"]["classifier"] != "linear" for m in model.members)


def load_networks(model: ScoringModel) -> list[Network]:
    """The members' networks, in their order."""
    from lingula.model.checkpoint import load_model  # imports torch

    return [load_model(member.folder).network for member in model.members]


def readings_of(model: ScoringModel) -> list[Reading]:
    """How each member reads images, in their order."""
    readings = [member.facts["reading"] for member in model.members]
    return [(reading["image_size"], reading["bits"]) for reading in readings]


def read_for_members(model: ScoringModel, path: Path) -> dict[Reading, NDArray[np.uint8]]:
    """An image file as the members need it: members that read alike share one array.

    Raises:
        ImageError: the image can't be read.
    """
    return {
        (side, bits): read_image(path, side, bits=bits)
        for side, bits in dict.fromkeys(readings_of(model))
    }


def attend_members(
    model: ScoringModel,
    networks: Sequence[Network],
    images: Sequence[Mapping[Reading, NDArray[np.uint8]]],
) -> tuple[NDArray[np.float64], NDArray[np.float32] | None]:
    """Scores (B, K) of images, and where the decoder looked for each class: (B, K, h, w).

    An ensemble's map of a class is the mean of its members' maps, with the weights that they have
    for that class (equal ones where only members without a decoder count), on the finest grid.
    None instead of maps if no member has a decoder.
    """
    import torch
    from torch.nn.functional import interpolate

    from lingula.scoring.scoring import attend

    weights = np.ones((1, len(model.classes))) if model.weights is None else model.weights
    batches = {
        reading: torch.from_numpy(np.stack([image[reading] for image in images])[:, None])
        for reading in dict.fromkeys(readings_of(model))
    }
    scores, maps, shares = [], [], []
    for place, (reading, network) in enumerate(zip(readings_of(model), networks, strict=True)):
        own, seen = attend(network, batches[reading])
        scores.append(own)
        if seen is not None:
            maps.append(torch.from_numpy(seen[:, model.columns[place]]))
            shares.append(weights[place])
    combined = model.combine(np.stack(scores))
    if not maps:
        return combined, None
    side = max(seen.shape[-1] for seen in maps)
    scaled = [
        interpolate(m, (side, side), mode="bilinear") * (m.shape[-1] / side) ** 2
        if m.shape[-1] != side
        else m
        for m in maps
    ]
    counted = np.stack(shares)
    counted = np.where(counted.any(axis=0), counted, 1.0)
    counted = (counted / counted.sum(axis=0))[:, None, :, None, None].astype(np.float32)
    return combined, (np.stack([m.numpy() for m in scaled]) * counted).sum(axis=0)
