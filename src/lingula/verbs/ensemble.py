"""`lingula ensemble`: combine scores of several models; choices are made on dev and kept."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lingula import ensembles, files
from lingula.config import Data, read_config
from lingula.csv_cells import plain_csv
from lingula.data.configured import configured_table
from lingula.data.table import Table, rows_of, subset
from lingula.ensembles import Ensemble
from lingula.errors import InputError, changes, differences, examples, nearest
from lingula.plausibility import warn_of_doubt
from lingula.predictions import Predictions, failed, read_scores, write_scores
from lingula.verbs.guarding import guarded_on, labelled
from lingula.verbs.run_labels import warn_of_other_labels

log = logging.getLogger("lingula")

RULES = ("model-wise", "class-wise", "guarded")


def ensemble(
    rule: str,
    runs: Sequence[str | Path] = (),
    *,
    members: Sequence[tuple[str, str | Path, str | Path]] = (),
    labels: str | Path | None = None,
    split: str = "dev",
    out: str | Path,
    top_k: int = 3,
    seed: int = 0,
    draws: int = 1000,
    overwrite: bool = False,
) -> Path:
    """Make an ensemble and its scores: `ensemble.json`, `choices.csv`, `scores/{dev,test}.csv`.

    Args:
        rule: `model-wise`, `class-wise` or `guarded`.
        runs: run folders; their `scores/dev.csv` and `scores/test.csv` are used.
        members: or names, each with a dev and a test scores file.
        labels: table with the dev labels; None: the first run's table.
        split: the split on which members are chosen.
        out: folder to write.
        top_k: members a class, for `class-wise`.
        seed: of the folds and draws that say what `guarded` is worth; the choice has no chance.
        draws: of the intervals, for `guarded`.
        overwrite: set an old folder aside first.

    Labels of other splits than `split` are never read for a choice. `guarded` reports its gain on
    the table's test rows afterwards, if there are any.
    """
    if rule not in RULES:
        raise InputError(
            f"There is no rule '{rule}'.{nearest(rule, RULES)} There are {', '.join(RULES)}."
        )
    named = _named(runs, members)
    folder = Path(out)
    chooses = rule != "model-wise"
    table_path, data = _labels(runs, labels, needed_by=rule if chooses else None)
    settings: dict[str, Any] = {
        "rule": rule,
        "members": {n: [files.sha256(dev), files.sha256(test)] for n, dev, test in named},
    }
    if chooses and table_path is not None:
        settings |= {"labels_sha256": files.sha256(table_path), "split": split}
        settings |= {"top_k": top_k} if rule == "class-wise" else {"seed": seed, "draws": draws}
    if not overwrite and _already(folder, settings):
        return folder
    if chooses and table_path is not None:
        sha256 = settings["labels_sha256"]
        warn_of_other_labels((path, table_path, sha256) for _, path, _ in named)
    dev = {name: read_scores(path) for name, path, _ in named}
    test = {name: read_scores(path) for name, _, path in named}
    for member in (*dev.values(), *test.values()):
        warn_of_doubt(member)
    report: dict[str, Any] = {}
    if table_path is None or not chooses:
        made = ensembles.model_wise(ensembles.same_rows(dev))
    elif rule == "class-wise":
        part = labelled(dev, _dev_part(table_path, data, split), data)
        made = ensembles.class_wise(*part, top_k)
    else:
        table = _table(table_path, data, split)
        made, report["guard"] = guarded_on(
            dev, test, table, data, split=split, draws=draws, seed=seed
        )
    mixed = {"dev": ensembles.apply(made, dev), "test": ensembles.apply(made, test)}
    if overwrite and folder.exists():
        log.info("Moved the old %s to %s.", folder, files.set_aside(folder))
    for name, members_there in (("dev", dev), ("test", test)):
        _write(mixed[name], members_there, folder / "scores" / f"{name}.csv")
    files.write_text(folder / "choices.csv", _choices(made))
    where = {"labels": None if table_path is None else str(table_path.resolve())}
    made_from = {"made_from": settings | where}
    files.write_json(folder / "ensemble.json", ensembles.to_json(made) | report | made_from)
    return folder


def ensemble_apply(
    made: str | Path,
    members: Sequence[tuple[str, str | Path]],
    *,
    out: str | Path,
    overwrite: bool = False,
) -> Path:
    """Apply `ensemble.json` to new scores of its members; writes one scores file.

    Args:
        made: the file that `ensemble` wrote.
        members: names and scores files, of all members and in any order.
        out: the scores file, `.csv` or `.parquet`.
        overwrite: set an old file with other scores aside first.
    """
    path, target = Path(made), Path(out)
    if not path.is_file():
        raise InputError(f"There is no ensemble {path}.")
    loaded = ensembles.from_json(_read_json(path), str(path))
    _check_distinct([name for name, _ in members])
    scores = {name: read_scores(file) for name, file in members}
    mixed = ensembles.apply(loaded, scores)
    if target.exists():
        if not overwrite and _same(mixed, target):
            return target
        if not overwrite:
            raise InputError(
                f"{target} is there already, with something else in it. Choose another --out, or "
                "--overwrite to set it aside."
            )
        log.info("Moved the old %s to %s.", target, files.set_aside(target))
    _write(mixed, scores, target)
    return target


def _same(scores: Predictions, path: Path) -> bool:
    try:
        there = read_scores(path)
    except InputError:
        return False
    return (there.images, there.classes) == (scores.images, scores.classes) and np.array_equal(
        there.probabilities, scores.probabilities, equal_nan=True
    )


def _write(mixed: Predictions, members: Mapping[str, Predictions], path: Path) -> None:
    """Write scores; images that failed in a member are blank, logged, and named in a file."""
    write_scores(mixed, path)
    if not failed(mixed).any():
        return
    lost = ensembles.failures(members)
    reasons = [(image, f"no scores of {', '.join(names)}") for image, names in lost.items()]
    log.warning("%s: %d images have no scores: %s.", path, len(lost), examples(lost))
    files.write_text(path.with_suffix(".failed.csv"), plain_csv(["image", "reason"], reasons))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}.") from None


def _check_distinct(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            f"Two members have the same name: {', '.join(twice)}. Name them with --member."
        )


def _named(
    runs: Sequence[str | Path], members: Sequence[tuple[str, str | Path, str | Path]]
) -> list[tuple[str, Path, Path]]:
    found: list[tuple[str, Path, Path]] = []
    for run in map(Path, runs):
        found.append((run.name, run / "scores" / "dev.csv", run / "scores" / "test.csv"))
    found += [(name, Path(dev), Path(test)) for name, dev, test in members]
    if not found:
        raise InputError("Name at least one run folder, or --member NAME DEV TEST.")
    _check_distinct([name for name, _, _ in found])
    for name, *paths in found:
        for path in paths:
            if not path.is_file():
                raise InputError(f"Member '{name}': there is no scores file {path}.")
    return found


def _labels(
    runs: Sequence[str | Path], labels: str | Path | None, *, needed_by: str | None
) -> tuple[Path | None, Data]:
    """The table, and how it is read: the first run's settings unless the table is named."""
    if labels is not None:
        if not Path(labels).is_file():
            raise InputError(f"There is no table {labels}.")
        return Path(labels), Data()
    wanted = None
    for settings in (Path(run) / "config.yaml" for run in runs):
        if settings.is_file():
            data = read_config(settings).data
            own = settings.with_name("table.csv")
            wanted = own if own.is_file() else Path(data.table)
            if wanted.is_file():
                return wanted, data
            break
    if needed_by is not None:
        why = "" if wanted is None else f" The run's own, {wanted}, is not there."
        raise InputError(f"{needed_by} chooses members on dev labels: give --labels TABLE.{why}")
    return None, Data()


def _already(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether the folder holds the ensemble of these settings; `InputError` for any other."""
    if not folder.exists():
        return False
    path = folder / "ensemble.json"
    if not path.is_file():
        if not folder.is_dir() or any(
            path.name not in ("scores", "choices.csv") and not path.name.startswith(".")
            for path in folder.iterdir()
        ):
            raise InputError(f"{folder} is there already and is no ensemble; choose another --out.")
        return False
    ensembles.from_json(_read_json(path), str(path))
    before = _read_json(path).get("made_from", {})
    changed = changes(before, settings, skip=("labels",))
    if changed:
        raise InputError(
            f"{folder} is an ensemble with other settings:\n{differences(changed)}\n"
            "Choose another --out, or --overwrite to set the old one aside."
        )
    log.info("%s is there already, made with the same settings.", folder)
    return True


def _table(path: Path, data: Data, split: str) -> Table:
    # A run's own copy of its table has no columns left to ignore.
    table = configured_table(data, None if path == Path(data.table) else path)
    if not len(rows_of(table, split)):
        raise InputError(f"{path} has no rows with split '{split}'.")
    return table


def _dev_part(path: Path, data: Data, split: str) -> Table:
    table = _table(path, data, split)
    return subset(table, rows_of(table, split))


def _choices(made: Ensemble) -> str:
    rows: list[tuple[object, ...]] = []
    for name, weights in made.weights.items():
        for member in made.members:
            found = made.dev_ap.get(name, {}).get(member)
            rows.append((name, member, "" if found is None else found, weights.get(member, 0)))
    return plain_csv(["class", "member", "dev_AP", "weight"], rows)
