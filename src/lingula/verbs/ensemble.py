"""`lingula ensemble`: combine scores of several models; choices are made on dev and kept."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lingula import ensembles, files
from lingula.config import read_config
from lingula.data.reading import read_table
from lingula.data.table import rows_of, subset, targets
from lingula.ensembles import Ensemble
from lingula.errors import InputError, nearest
from lingula.predictions import Predictions, aligned, failed, picked, read_scores, write_scores

log = logging.getLogger("lingula")

RULES = ("model-wise", "class-wise")


def ensemble(
    rule: str,
    runs: Sequence[str | Path] = (),
    *,
    members: Sequence[tuple[str, str | Path, str | Path]] = (),
    labels: str | Path | None = None,
    split: str = "dev",
    out: str | Path,
    top_k: int = 3,
    overwrite: bool = False,
) -> Path:
    """Make an ensemble and its scores: `ensemble.json`, `choices.csv`, `scores/{dev,test}.csv`.

    Args:
        rule: `model-wise` or `class-wise`.
        runs: run folders; their `scores/dev.csv` and `scores/test.csv` are used.
        members: or names, each with a dev and a test scores file.
        labels: table with the dev labels; None: the first run's table.
        split: the split on which members are chosen.
        out: folder to write.
        top_k: members a class, for `class-wise`.
        overwrite: set an old folder aside first.

    Labels of other splits than `split` are never read for a choice.
    """
    if rule not in RULES:
        raise InputError(
            f"There is no rule '{rule}'.{nearest(rule, RULES)} There are {', '.join(RULES)}."
        )
    named = _named(runs, members)
    folder = Path(out)
    table_path = Path(labels) if labels is not None else _table_of(runs)
    settings = {
        "rule": rule,
        "members": {n: [files.sha256(dev), files.sha256(test)] for n, dev, test in named},
        "labels_sha256": None if table_path is None else files.sha256(table_path),
        "labels": None if table_path is None else str(table_path.resolve()),
        "split": split,
        "top_k": top_k if rule == "class-wise" else None,
    }
    if _already(folder, settings, overwrite):
        return folder
    dev = {name: read_scores(path) for name, path, _ in named}
    test = {name: read_scores(path) for name, _, path in named}
    made = _chosen(rule, dev, table_path, split, top_k)
    write_scores(ensembles.apply(made, dev), folder / "scores" / "dev.csv")
    write_scores(ensembles.apply(made, test), folder / "scores" / "test.csv")
    files.write_text(folder / "choices.csv", _choices(made))
    files.write_json(folder / "ensemble.json", ensembles.to_json(made) | {"made_from": settings})
    return folder


def ensemble_apply(
    made: str | Path, members: Sequence[tuple[str, str | Path]], *, out: str | Path
) -> Path:
    """Apply `ensemble.json` to new scores of its members; writes one scores file."""
    path = Path(made)
    if not path.is_file():
        raise InputError(f"There is no ensemble {path}.")
    loaded = ensembles.from_json(json.loads(path.read_text(encoding="utf-8")), str(path))
    scores = {name: read_scores(file) for name, file in members}
    write_scores(ensembles.apply(loaded, scores), out)
    return Path(out)


def _named(
    runs: Sequence[str | Path], members: Sequence[tuple[str, str | Path, str | Path]]
) -> list[tuple[str, Path, Path]]:
    found: list[tuple[str, Path, Path]] = []
    for run in map(Path, runs):
        found.append((run.name, run / "scores" / "dev.csv", run / "scores" / "test.csv"))
    found += [(name, Path(dev), Path(test)) for name, dev, test in members]
    if not found:
        raise InputError("Name at least one run folder, or --member NAME DEV TEST.")
    names = [name for name, _, _ in found]
    if len(set(names)) < len(names):
        raise InputError(f"Two members have the same name: {', '.join(names)}.")
    for name, *paths in found:
        for path in paths:
            if not path.is_file():
                raise InputError(f"Member '{name}': there is no scores file {path}.")
    return found


def _table_of(runs: Sequence[str | Path]) -> Path | None:
    for run in runs:
        kept = Path(run) / "table.csv"
        if kept.is_file():
            return kept
        settings = Path(run) / "config.yaml"
        if settings.is_file():
            return Path(read_config(settings).data.table)
    return None


def _already(folder: Path, settings: dict[str, Any], overwrite: bool) -> bool:
    if not folder.exists():
        return False
    if overwrite:
        log.info("Moved the old %s to %s.", folder, files.set_aside(folder))
        return False
    path = folder / "ensemble.json"
    if not path.is_file():
        if any(p.name not in ("scores", "choices.csv") for p in folder.iterdir()):
            raise InputError(f"{folder} is there already and is no ensemble; choose another --out.")
        return False
    before = json.loads(path.read_text(encoding="utf-8")).get("made_from", {})
    changed = [key for key in settings if before.get(key) != settings[key]]
    if changed:
        lines = [f"  {key}: {before.get(key)!r} there, {settings[key]!r} now" for key in changed]
        raise InputError(
            f"{folder} is an ensemble with other settings:\n"
            + "\n".join(lines)
            + "\nChoose another --out, or --overwrite to set the old one aside."
        )
    log.info("%s is there already, made with the same settings.", folder)
    return True


def _chosen(
    rule: str, dev: dict[str, Predictions], table_path: Path | None, split: str, top_k: int
) -> Ensemble:
    alike = ensembles.same_rows(dev)
    if rule == "model-wise":
        return ensembles.model_wise(alike)
    if table_path is None:
        raise InputError("class-wise chooses members on dev labels: give --labels TABLE.")
    table = read_table(table_path)
    rows = rows_of(table, split)
    if not len(rows):
        raise InputError(f"{table_path} has no rows with split '{split}'.")
    part = subset(table, rows)
    first = next(iter(alike.values()))
    places = aligned(first, part.images, part.ids)
    lost = np.any([failed(p)[places] for p in alike.values()], axis=0)
    values, mask = targets(subset(part, np.flatnonzero(~lost)))
    columns = [table.space.index(name) for name in first.classes]
    chosen = {name: picked(p, places[~lost]) for name, p in alike.items()}
    return ensembles.class_wise(chosen, values[:, columns], mask[:, columns], top_k)


def _choices(made: Ensemble) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["class", "member", "dev_AP", "weight"])
    for name, weights in made.weights.items():
        for member in made.members:
            found = made.dev_ap.get(name, {}).get(member)
            writer.writerow([name, member, "" if found is None else found, weights.get(member, 0)])
    return stream.getvalue()
