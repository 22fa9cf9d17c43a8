"""The content of `lingula report`: what one page shows of runs and ensembles."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lingula.images.cache import locate, open_cache, read_cached
from lingula.images.files import image_path
from lingula.images.reading import read_image
from lingula.reporting import figures
from lingula.reporting.pages import render_page
from lingula.reporting.sentences import mean_prevalence
from lingula.reporting.summary import (
    DRAWS,
    describe_calibration,
    list_facts,
    readable,
    scored_split,
    summarise,
)
from lingula.scores import metrics
from lingula.scores.evaluation import Setting
from lingula.scores.predictions import Predictions, read_scores
from lingula.scores.reliability import reliability_curves
from lingula.scores.results import to_json
from lingula.scoring.attention import (
    Rate,
    Reading,
    attend_members,
    described,
    has_decoder,
    in_parts,
    known_rates,
    load_networks,
    measure_attention,
    measured_splits,
    read_for_members,
    readings_of,
)
from lingula.scoring.models import ENSEMBLE, ScoringModel
from lingula.system import files
from lingula.system.errors import ImageError, InputError, examples
from lingula.tables.configured import configured_targets
from lingula.tables.reading import boxes_beside
from lingula.tables.table import Table
from lingula.training.run_folder import read_rows
from lingula.training.run_labels import (
    RunLabels,
    dev_thresholds,
    evaluate_run,
    scored_rows,
)

log = logging.getLogger("lingula")

EXAMPLES = 6
DRAWN_CLASSES = 6  # the classes with the most positives, which the charts show


@dataclass(frozen=True)
class Guess:
    """One finding of one example: its score, whether it is present (None: unknown), its picture.

    `validity` says how often maps of this finding point at it, or that it was not measured.
    """

    name: str
    score: float
    present: bool | None
    picture: str | None = None
    validity: str = ""


@dataclass(frozen=True)
class Example:
    """One image of the page: its picture, its labels, and the model's highest scores."""

    image: str
    picture: str
    labels: tuple[str, ...]
    guesses: tuple[Guess, ...]


@dataclass(frozen=True)
class Entry:
    """One run or ensemble of the report.

    `result` is an evaluation in the shape of `lingula evaluate --json`, of `split`; `facts` are
    (name, value) lines about the model and its training data; `settings` is the YAML.
    """

    name: str
    kind: str
    split: str
    result: Mapping[str, Any]
    facts: Sequence[tuple[str, str]]
    settings: str = ""


def render_report(folders: Sequence[Path], labels: Mapping[Path, RunLabels]) -> str:
    """The page of runs and ensembles; the last folder is shown first and in detail."""
    main, names = folders[-1], distinct_names(folders)
    runs = [folder for folder in folders if (folder / "config.yaml").is_file()]
    entries = [
        _describe(folder, names[folder], labels[folder], detailed=folder is main)
        for folder in (main, *folders[:-1])
    ]
    result, split = entries[0].result, entries[0].split
    predictions = read_scores(main / "scores" / f"{split}.csv")
    shown = _shown_model(main, runs)
    hits = _hits(shown, labels[main].table) if shown else {}
    pictures: list[Example] = []
    boxed = False
    if shown is not None:
        pictures, boxed = _examples(shown, hits, labels.get(shown.place, labels[main]), split)
    histories = {names[run]: read_rows(run / "metrics.jsonl") for run in runs}
    return render_page(
        "report.html",
        title="Chest radiograph classification",
        entries=entries,
        main=entries[0],
        summary=summarise(main, labels[main], folders[:-1], result=result),
        rows=_class_rows(result),
        mean_prevalence=mean_prevalence(result),
        history=figures.plot_history(histories) if runs else "",
        curves=_curves(predictions, labels[main], split),
        reliability=_reliability(predictions, labels[main], split),
        calibration=describe_calibration(main, predictions, labels[main], split),
        hits=hits,
        hits_on=measured_splits(shown.place) if shown else [],
        examples=pictures,
        examples_of=names[shown.place] if shown else "",
        boxes_shown=boxed,
        attends=shown is not None and has_decoder(shown),
        phantom=labels[main].table.phantom,
    )


def distinct_names(folders: Sequence[Path]) -> dict[Path, str]:
    """A name for each folder: its own, with as many of its parents as make it distinct."""
    parts = {folder: folder.absolute().parts for folder in folders}

    def name(folder: Path) -> str:
        mine = parts[folder]
        for depth in range(1, len(mine) + 1):
            if not any(parts[o][-depth:] == mine[-depth:] for o in folders if o != folder):
                return "/".join(mine[-depth:])
        return str(folder)

    return {folder: name(folder) for folder in folders}


def _describe(folder: Path, name: str, labels: RunLabels, *, detailed: bool) -> Entry:
    """A run or an ensemble, evaluated; in subgroups too if it is shown in detail."""
    is_run = (folder / "config.yaml").is_file()
    if not is_run and not (folder / ENSEMBLE).is_file():
        raise InputError(f"{folder} is neither a run nor an ensemble.")
    split = scored_split(folder)
    scores = folder / "scores" / f"{split}.csv"
    limits = dev_thresholds(folder, labels) if (folder / "scores" / "dev.csv").is_file() else 0.5
    setting = Setting(limits, subgroups=_subgroup_columns(labels.table) if detailed else ())
    result = to_json(evaluate_run(read_scores(scores), labels, split, ci=DRAWS, setting=setting))
    facts = list_facts(folder, labels.table)
    if not is_run:
        rule = files.read_object(folder / ENSEMBLE).get("rule")
        return Entry(name, f"{rule} ensemble", split, result, facts)
    settings = (folder / "config.yaml").read_text(encoding="utf-8")
    return Entry(name, "model", split, result, facts, settings)


def _subgroup_columns(table: Table) -> tuple[str, ...]:
    """The columns that have two known values or more."""
    columns = {"view": table.views, "sex": table.sexes, "source": table.sources}
    found = [name for name, cells in columns.items() if cells and len(set(cells) - {""}) > 1]
    return (*found, "age") if table.ages and any(table.ages) else tuple(found)


def _class_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The classes as table rows, defined ones first, by falling prevalence."""
    rows = []
    for name, value in result["classes"].items():
        group = next((g for g, v in result["groups"].items() if name in v["classes"]), "")
        known = value["AP"] and value["prevalence"]
        lift = value["AP"] / value["prevalence"] if known else None
        rows.append({"name": name, "group": group, "lift": lift, **value})
    return sorted(rows, key=lambda row: (row["AP"] is None, -(row["prevalence"] or 0)))


def _most_frequent(
    predictions: Predictions, labels: RunLabels, split: str
) -> tuple[Table, list[str], NDArray[np.float64], NDArray[np.float32], NDArray[np.bool_]]:
    """The rows of a split that have scores, and of the classes with the most positives: names,
    scores, targets, and which of them are known.
    """
    part, probabilities = scored_rows(predictions, labels, split)
    values, mask = configured_targets(labels.data, part)
    columns = [part.space.index(name) for name in predictions.classes]
    values, mask = values[:, columns], mask[:, columns]
    most = np.argsort(-((values >= 0.5) & mask).sum(0), kind="stable")[:DRAWN_CLASSES]
    names = [predictions.classes[k] for k in most]
    return part, names, probabilities[:, most], values[:, most], mask[:, most]


def _reliability(predictions: Predictions, labels: RunLabels, split: str) -> str:
    """Reliability curves as a figure."""
    part, names, scores, values, mask = _most_frequent(predictions, labels, split)
    found = reliability_curves(scores, values, mask, patients=part.patients, draws=300)
    curves = zip(names, found, strict=True)
    return figures.plot_reliability({name: curve.bins for name, curve in curves if curve.bins})


def _curves(predictions: Predictions, labels: RunLabels, split: str) -> str:
    """ROC and precision-recall curves as a figure."""
    _, names, scores, values, mask = _most_frequent(predictions, labels, split)
    roc, precision_recall = [], []
    for k, name in enumerate(names):
        known, positive = mask[:, k], values[mask[:, k], k] >= 0.5
        if positive.any() and not positive.all():
            x, y = metrics.roc_curve(scores[known, k], positive)
            roc.append(figures.Curve(name, x, y))
            x, y = metrics.precision_recall_curve(scores[known, k], positive)
            precision_recall.append(figures.Curve(name, x, y))
    return figures.plot_curves(roc, precision_recall)


def _shown_model(main: Path, runs: Sequence[Path]) -> ScoringModel | None:
    """The model whose examples are shown: the main one, or the first run where that has none."""
    if readable(main) is not None:
        return readable(main)
    return readable(runs[0]) if runs else None


def _hits(model: ScoringModel, table: Table) -> dict[str, Rate]:
    """How well the attention points, by finding, best first; of an ensemble it is measured once."""
    rates = known_rates(model.place)
    if not rates and model.weights is not None:
        try:
            rates = measure_attention(model.place, table)
        except OSError as error:  # the folder of someone else
            log.warning("Where %s looks is not measured: %s", model.place, error)
    best = sorted(rates.items(), key=lambda item: item[1].chance - item[1].hit)
    return dict(best)


def _examples(
    model: ScoringModel, rates: Mapping[str, Rate], labels: RunLabels, split: str
) -> tuple[list[Example], bool]:
    """Some images with findings, drawn at random; and whether the table has boxes."""
    part = labels.part(split)
    normal = [k for k, n in enumerate(part.space.classes) if n in ("No Finding", "Support Devices")]
    candidates = np.flatnonzero((np.delete(part.labels, normal, axis=1) == 1).any(1))
    networks = load_networks(model)
    dev = model.place / "scores" / "dev.csv"
    thresholds = dev_thresholds(model.place, labels) if dev.is_file() else {}
    boxes = boxes_beside(labels.table)
    found: list[Example] = []
    lost: list[str] = []
    for row in np.random.default_rng(0).permutation(candidates):
        name = part.images[row]
        try:
            image, read = _read(model, part.root, name, labels.data.cache)
        except ImageError as error:
            lost.append(str(error))
            continue
        scores, maps = attend_members(model, networks, [read])
        # Boxes are in pixels of the image itself, which a cache does not keep.
        whole = image_path(part.root, name).is_file()
        cells = dict(zip(part.space.classes, part.labels[row].tolist(), strict=True))
        guesses = []
        for k in _above(scores[0], model.classes, thresholds)[:3]:
            finding = model.classes[k]
            picture = None
            if maps is not None and finding != "No Finding":
                frames = in_parts(boxes.get((name, finding), []) if whole else [], *image.shape)
                picture = figures.png_uri(figures.draw_overlay(image, maps[0, k], frames))
            label = cells.get(finding, -2.0)
            present = None if label < 0 else label >= 0.5
            validity = described(rates.get(finding)) if picture else ""
            guesses.append(Guess(finding, float(scores[0, k]), present, picture, validity))
        picture = figures.png_uri(figures.grey_picture(image))
        present_findings = tuple(finding for finding, value in cells.items() if value == 1)
        found.append(Example(name, picture, present_findings, tuple(guesses)))
        if len(found) == EXAMPLES:
            break
    if lost:
        log.warning("%d images can't be read and are not shown: %s", len(lost), examples(lost, 3))
    return found, bool(boxes)


def _read(
    model: ScoringModel, root: Path, name: str, cache: str | tuple[str, ...] | None
) -> tuple[NDArray[np.uint8], dict[Reading, NDArray[np.uint8]]]:
    """An image as it is and as the members read it; all alike if only the cache has it."""
    path = image_path(root, name)
    if cache is not None and not path.is_file():
        small = read_cached(locate(open_cache(cache), root, [name], [path]), 0)
        if any(side != len(small) for side, _ in readings_of(model)):
            raise ImageError("missing", f"{path} is not there, and its cache has another size.")
        return small, dict.fromkeys(readings_of(model), small)
    bits = model.members[0].facts["reading"]["bits"]
    return read_image(path, bits=bits), read_for_members(model, path)


def _above(
    scores: NDArray[np.float64], classes: Sequence[str], thresholds: dict[str, float]
) -> list[int]:
    """The classes at or above their threshold, by falling score."""
    limits = np.array([thresholds.get(name, np.inf) for name in classes])
    return [int(k) for k in np.argsort(-scores, kind="stable") if scores[k] >= limits[k]]
