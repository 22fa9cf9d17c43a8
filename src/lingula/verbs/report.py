"""`lingula report`: one HTML page about one or more runs or ensembles."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lingula.images.cache import locate, open_cache, read_cached
from lingula.images.files import image_path
from lingula.images.reading import read_image
from lingula.model.facts import read_facts
from lingula.reporting import figures
from lingula.reporting.page import Entry, Guess, Page, Sample, render
from lingula.scores import metrics
from lingula.scores.ensembles import from_json
from lingula.scores.evaluation import Setting, to_json
from lingula.scores.predictions import Predictions, failed, read_scores
from lingula.scores.reliability import reliability
from lingula.scoring.attention import Rate, described
from lingula.system import files
from lingula.system.errors import ImageError, InputError, examples
from lingula.tables.configured import configured_targets
from lingula.tables.reading import boxes_beside
from lingula.tables.table import Table
from lingula.training.run_folder import read_rows
from lingula.training.run_labels import (
    RunLabels,
    dev_thresholds,
    labels_of,
    measured,
    number_format,
    scored,
    warn_of_changed_runs,
    warn_of_other_formats,
)

log = logging.getLogger("lingula")

DRAWS = 1000
SAMPLES = 6


def report(
    runs: Sequence[str | Path], *, out: str | Path, labels: str | Path | None = None
) -> Path:
    """Write the page; the last folder named is the one shown in detail.

    Args:
        runs: run folders, and ensemble folders made by `lingula ensemble`.
        out: the .html file; it needs nothing else to be read.
        labels: the table where it lies now, or another one in its place; None: the runs' own.
    """
    folders = list(dict.fromkeys(Path(run) for run in runs))
    if not folders:
        raise InputError("Name at least one run folder.")
    files.check_suffix(Path(out), (".html", ".htm"), "a report")
    ordered = [folders[-1], *folders[:-1]]
    trained = [folder for folder in folders if (folder / "config.yaml").is_file()]
    known = {folder: labels_of(folder, trained, labels) for folder in ordered}
    warn_of_changed_runs(known.items())
    warn_of_other_formats(folder / "scores" / "dev.csv" for folder in trained)
    names = told_apart(folders)
    entries = [
        _entry(folder, names[folder], known[folder], detailed=folder is ordered[0])
        for folder in ordered
    ]
    shown = known[ordered[0]]
    split = entries[0].split
    predictions = read_scores(ordered[0] / "scores" / f"{split}.csv")
    roc, pr = _curves(predictions, shown, split)
    samples, boxed = _samples(trained[0], known[trained[0]], split) if trained else ((), False)
    page = Page(
        title="Chest radiograph classification",
        entries=entries,
        history=figures.history(
            {names[folder]: read_rows(folder / "metrics.jsonl") for folder in trained}
        )
        if trained
        else "",
        curves=figures.curves(roc, pr),
        reliability=_reliability(predictions, shown, split),
        hits=_hits(trained[0]) if trained else (),
        samples=samples,
        boxes_shown=boxed,
        phantom=shown.table.phantom,
    )
    files.write_text(out, render(page))
    return Path(out)


def told_apart(folders: Sequence[Path]) -> dict[Path, str]:
    """A name of each folder: its own, with as many of the folders around it as it takes."""
    parts = {folder: folder.absolute().parts for folder in folders}

    def name(folder: Path) -> str:
        mine = parts[folder]
        for depth in range(1, len(mine) + 1):
            if not any(parts[o][-depth:] == mine[-depth:] for o in folders if o != folder):
                return "/".join(mine[-depth:])
        return str(folder)

    return {folder: name(folder) for folder in folders}


def _entry(folder: Path, name: str, labels: RunLabels, *, detailed: bool) -> Entry:
    is_run = (folder / "config.yaml").is_file()
    if not is_run and not (folder / "ensemble.json").is_file():
        raise InputError(f"{folder} is neither a run nor an ensemble.")
    split = _measured_on(folder)
    scores = folder / "scores" / f"{split}.csv"
    limits = dev_thresholds(folder, labels) if (folder / "scores" / "dev.csv").is_file() else 0.5
    setting = Setting(limits, subgroups=_subgroups(labels.table) if detailed else ())
    result = to_json(measured(read_scores(scores), labels, split, ci=DRAWS, setting=setting))
    if not is_run:
        value = files.read_object(folder / "ensemble.json")
        made = from_json(value, str(folder / "ensemble.json"))
        facts = [("Rule", made.rule), ("Members", ", ".join(made.members))]
        return Entry(name, f"{made.rule} ensemble", split, result, facts)
    settings = (folder / "config.yaml").read_text(encoding="utf-8")
    return Entry(name, "model", split, result, _facts(folder, labels.table), settings)


def _measured_on(folder: Path) -> str:
    """`test`, or `dev` where no test image has scores."""
    for split in ("test", "dev"):
        scores = folder / "scores" / f"{split}.csv"
        if scores.is_file() and not failed(read_scores(scores)).all():
            return split
    raise InputError(f"{folder} has no scores yet; finish it first.")


def _subgroups(table: Table) -> tuple[str, ...]:
    """Columns by which the rows can be told apart: those with two known values or more."""
    columns = {"view": table.views, "sex": table.sexes, "source": table.sources}
    found = [name for name, cells in columns.items() if cells and len(set(cells) - {""}) > 1]
    return (*found, "age") if table.ages and any(table.ages) else tuple(found)


def _reliability(predictions: Predictions, labels: RunLabels, split: str) -> str:
    """Reliability curves of the six classes with the most positives, as a figure."""
    part, probabilities = scored(predictions, labels, split)
    values, mask = configured_targets(labels.data, part)
    columns = [part.space.index(name) for name in predictions.classes]
    values, mask = values[:, columns], mask[:, columns]
    most = np.argsort(-((values >= 0.5) & mask).sum(0), kind="stable")[:6]
    found = reliability(
        probabilities[:, most], values[:, most], mask[:, most], patients=part.patients, draws=300
    )
    named = {predictions.classes[k]: curve for k, curve in zip(most, found, strict=True)}
    return figures.reliabilities({name: curve.bins for name, curve in named.items() if curve.bins})


def _hits(run: Path) -> tuple[tuple[str, Rate], ...]:
    """How well the attention points, by class, best first."""
    from lingula.scoring.attention import known_rates

    rates = known_rates(run)
    return tuple(sorted(rates.items(), key=lambda item: item[1].chance - item[1].hit))


def _facts(run: Path, table: Table) -> list[tuple[str, str]]:
    facts = read_facts(run)
    a, on = facts["architecture"], facts["trained_on"]
    decoder = (
        "none (linear on pooled features)"
        if a["classifier"] == "linear"
        else f"{a['layers']} x {a['width']}, {a['classifier']} classifier"
    )
    lines = [
        ("Image encoder", f"{a['encoder']}, {a['image_size']} px"),
        ("Decoder", decoder),
        ("Class queries", facts["text"]),
        ("Starting weights", facts["weights"]),
        ("Test-time views", facts["evaluation"]["tta"]),
        ("Scores computed in", number_format(run / "scores" / "dev.csv") or "not known"),
        ("Training images", f"{on['images']} of {on['patients'] or 'unknown'} patients"),
        ("Table", f"{on['table']}, sha256 {on['sha256'][:12]}"),
        ("Sources", ", ".join(on["sources"]) or "not stated"),
        ("Best epoch", f"{facts['epoch']} by dev mAP {facts['dev_mAP'] or float('nan'):.4f}"),
        ("Never positive in training", ", ".join(on["never_positive"]) or "none"),
    ]
    uncertain = int((table.labels == -1).sum())
    if uncertain:
        lines.append(("Uncertain cells", str(uncertain)))
    return lines


def _curves(
    predictions: Predictions, labels: RunLabels, split: str
) -> tuple[list[figures.Curve], list[figures.Curve]]:
    part, probabilities = scored(predictions, labels, split)
    values, mask = configured_targets(labels.data, part)
    roc, pr = [], []
    counts = {
        name: int(((values[:, k] >= 0.5) & mask[:, k]).sum())
        for k, name in enumerate(part.space.classes)
        if name in predictions.classes
    }
    for name in sorted(counts, key=lambda n: -counts[n])[:6]:
        k, column = part.space.index(name), predictions.classes.index(name)
        known = mask[:, k]
        if not 0 < counts[name] < known.sum():
            continue
        scores, positive = probabilities[known, column], values[known, k] >= 0.5
        x, y = metrics.roc_curve(scores, positive)
        roc.append(figures.Curve(name, x, y))
        x, y = metrics.precision_recall_curve(scores, positive)
        pr.append(figures.Curve(name, x, y))
    return roc, pr


def _samples(run: Path, labels: RunLabels, split: str) -> tuple[tuple[Sample, ...], bool]:
    """A few images with the classes scored above their threshold and where the decoder looked."""
    import torch

    from lingula.model.checkpoint import load_model
    from lingula.scoring.attention import in_parts, known_rates
    from lingula.scoring.scoring import attend

    part = labels.part(split)
    normal = [k for k, n in enumerate(part.space.classes) if n in ("No Finding", "Support Devices")]
    findings = np.delete(part.labels, normal, axis=1)
    candidates = np.flatnonzero((findings == 1).any(1))
    order = np.random.default_rng(0).permutation(candidates)
    trained = load_model(run)
    reading = trained.facts["reading"]
    boxes = boxes_beside(labels.table)
    known = known_rates(run)
    thresholds = dev_thresholds(run, labels)
    samples: list[Sample] = []
    lost: list[str] = []
    for row in order:
        name = part.images[row]
        try:
            grey, small = _seen(part.root, name, reading, labels.data.cache)
        except ImageError as error:
            lost.append(str(error))
            continue
        found, maps = attend(trained.network, torch.from_numpy(small.copy())[None, None])
        cells = {n: float(part.labels[row, k]) for k, n in enumerate(part.space.classes)}
        guesses = []
        for k in _above(found[0], trained.classes, thresholds)[:3]:
            class_name = trained.classes[k]
            # Boxes are in pixels of the film itself, which a cache does not hold.
            true = boxes.get((name, class_name), []) if grey is not small else []
            mine = in_parts(true, *grey.shape)
            picture = None
            if maps is not None and class_name != "No Finding":
                picture = figures.png(figures.overlay(grey, maps[0, k], mine))
            label = cells.get(class_name, -2.0)
            present = None if label < 0 else label >= 0.5
            validity = described(known.get(class_name)) if picture else ""
            guesses.append(Guess(class_name, float(found[0, k]), present, picture, validity))
        truth = tuple(n for n, value in cells.items() if value == 1)
        samples.append(Sample(name, figures.png(figures.film(grey)), truth, tuple(guesses)))
        if len(samples) == SAMPLES:
            break
    if lost:
        log.warning("%d films can't be read and are not shown: %s", len(lost), examples(lost, 3))
    return tuple(samples), bool(boxes)


def _seen(
    root: Path, name: str, reading: Mapping[str, Any], cache: str | tuple[str, ...] | None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An image as it is and at the model's size; the latter twice where only the cache has it."""
    path = image_path(root, name)
    if cache is not None and not path.is_file():
        small = read_cached(locate(open_cache(cache), root, [name], [path]), 0)
        return small, small
    size, bits = reading["image_size"], reading["bits"]
    return read_image(path, bits=bits), read_image(path, size, bits=bits)


def _above(
    scores: NDArray[np.float64], classes: Sequence[str], thresholds: dict[str, float]
) -> list[int]:
    """The classes at or above their threshold, by falling score."""
    limits = np.array([thresholds.get(name, np.inf) for name in classes])
    return [int(k) for k in np.argsort(-scores, kind="stable") if scores[k] >= limits[k]]
