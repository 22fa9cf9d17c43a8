"""`lingula ensemble`: combine scores of several models; choices are made on dev and kept."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lingula.scores import ensembles
from lingula.scores.ensembles import Ensemble, combine
from lingula.scores.guarded import choose_guarded
from lingula.scores.members import (
    MISSING,
    Members,
    count_members,
    describe_missing,
    failures,
    fill_rows,
    join_members,
    same_rows,
)
from lingula.scores.predictions import (
    Predictions,
    failed,
    read_scores,
    warn_of_doubt,
    write_failures,
    write_scores,
)
from lingula.scoring.models import note_members
from lingula.settings.config import Data
from lingula.system import files
from lingula.system.claims import NOT_OURS, OTHER_CONTENT, claim, other_settings
from lingula.system.csv_cells import format_csv
from lingula.system.errors import InputError, examples, nearest
from lingula.tables.table import rows_of, subset
from lingula.training.run_labels import (
    find_labels,
    read_labels,
    warn_of_other_formats,
    warn_of_other_labels,
)

log = logging.getLogger("lingula")

LEFTOVERS = ("scores", "choices.csv", "members")  # of a command that was interrupted
RULES = ("model-wise", "class-wise", "guarded")


def ensemble(
    rule: str,
    runs: Sequence[str | Path] = (),
    *,
    members: Sequence[tuple[str, str | Path, str | Path]] = (),
    labels: str | Path | None = None,
    ignore_columns: Sequence[str] = (),
    split: str = "dev",
    out: str | Path,
    top_k: int = 3,
    seed: int = 0,
    draws: int = 1000,
    missing: str = "error",
    self_contained: bool = False,
    overwrite: bool = False,
) -> Path:
    """Make an ensemble and its scores: `ensemble.json`, `choices.csv`, `scores/{dev,test}.csv`.

    Args:
        rule: `model-wise`, `class-wise` or `guarded`.
        runs: run folders; their `scores/dev.csv` and `scores/test.csv` are used.
        members: or names, each with a dev and a test scores file.
        labels: table with the dev labels; None: the first run's table.
        ignore_columns: columns of `labels` that are neither ids nor classes.
        split: the split on which members are chosen.
        out: folder to write.
        top_k: members per class, for `class-wise`.
        seed: of the folds and draws that say what `guarded` is worth; the choice has no chance.
        draws: of the intervals, for `guarded`.
        missing: images that some members lack are an `error`, left out (`intersect`), or the
            `average` of the members that have them; `ensemble.json` and the log count them.
        self_contained: copy the models of the runs into the folder, so that it can be moved alone.
        overwrite: set an old folder aside first.

    `predict` and `explain` take an ensemble of runs as they take a run. Labels of other splits than
    `split` are never read for a choice. `guarded` then reports its gain on the table's test rows.
    """
    if rule not in RULES:
        raise InputError(
            f"There is no rule '{rule}'.{nearest(rule, RULES)} There are {', '.join(RULES)}."
        )
    _check_missing(missing)
    named = _name_members(runs, members)
    folder, chooses = Path(out), rule != "model-wise"
    table_path, data = _labels(runs, labels, ignore_columns, needed_by=rule if chooses else None)
    settings: dict[str, Any] = {
        "rule": rule,
        "members": {n: [files.sha256(dev), files.sha256(test)] for n, dev, test in named},
    }
    if chooses and table_path is not None:
        settings |= {"labels_sha256": files.sha256(table_path), "split": split}
        settings |= {"top_k": top_k} if rule == "class-wise" else {"seed": seed, "draws": draws}
    settings |= {"missing": missing} if missing != "error" else {}
    settings |= {"self_contained": True} if self_contained else {}
    conflict = None if overwrite else _conflict(folder, settings)
    place = claim(folder, conflict, overwrite=overwrite, leftovers=LEFTOVERS)
    if place.is_done:
        return folder
    if chooses and table_path is not None:
        _warn_of_others([path for _, path, _ in named], table_path, settings["labels_sha256"])
    dev, test = ({name: paths[i] for name, *paths in named} for i in (0, 1))
    sides = {"dev": _read(dev, missing, "dev"), "test": _read(test, missing, "test")}
    chosen, report = _choose(settings, sides, table_path, data)
    if missing != "error":
        report["missing"] = {name: describe_missing(side) for name, side in sides.items()}
    combined = {name: combine(chosen, side, missing) for name, side in sides.items()}
    place.make_room()
    for name, side in sides.items():
        _write(combined[name], side, folder / "scores" / f"{name}.csv", missing)
    models = note_members(folder, {run.name: run for run in map(Path, runs)}, copy=self_contained)
    report |= {"runs": models} if models else {}
    report["made_from"] = settings | {"labels": table_path and str(table_path.resolve())}
    _write_choice(chosen, report, folder)
    return folder


def _warn_of_others(scores: Sequence[Path], table: Path, sha256: str) -> None:
    """Warn of members that were trained on other labels, or scored in other number formats."""
    warn_of_other_labels((path, table, sha256) for path in scores)
    warn_of_other_formats(scores)


def _write_choice(chosen: Ensemble, report: Mapping[str, Any], folder: Path) -> None:
    """Write `choices.csv` and, as the last file of the folder, `ensemble.json`."""
    files.write_text(folder / "choices.csv", choices_csv(chosen))
    files.write_json(folder / "ensemble.json", {**ensembles.to_json(chosen), **report})


def _choose(
    settings: Mapping[str, Any], sides: Mapping[str, Members], table_path: Path | None, data: Data
) -> tuple[Ensemble, dict[str, Any]]:
    """What the rule makes of dev, and what else there is to say of it in `ensemble.json`."""
    dev, test, rule = sides["dev"].scores, sides["test"].scores, settings["rule"]
    if table_path is None or rule == "model-wise":
        return ensembles.model_wise(same_rows(dev)), {}
    split = settings["split"]
    classes = {name for member in dev.values() for name in member.classes}
    table = read_labels(table_path, data, classes)
    if not len(rows_of(table, split)):
        raise InputError(f"{table_path} has no rows with split '{split}'.")
    if rule == "class-wise":
        sample = join_members(dev, subset(table, rows_of(table, split)), data)
        return ensembles.class_wise(sample, settings["top_k"]), {}
    draws, seed = settings["draws"], settings["seed"]
    chosen, guard = choose_guarded(dev, test, table, data, split=split, draws=draws, seed=seed)
    return chosen, {"guard": guard}


def ensemble_apply(
    made: str | Path,
    members: Sequence[tuple[str, str | Path]],
    *,
    out: str | Path,
    missing: str = "error",
    overwrite: bool = False,
) -> Path:
    """Apply `ensemble.json` to new scores of its members; writes one scores file.

    Args:
        made: the file that `ensemble` wrote.
        members: names and scores files, of all members and in any order.
        out: the scores file, `.csv` or `.parquet`.
        missing: what is done with images that some members lack, as in `ensemble`.
        overwrite: set an old file with other scores aside first.
    """
    path, target = Path(made), Path(out)
    _check_missing(missing)
    if not path.is_file():
        own = path / "ensemble.json"
        raise files.not_a_file(path, "ensemble file", f" Its own is {own}." * own.is_file())
    loaded = ensembles.from_json(files.read_object(path), str(path))
    _check_distinct([name for name, _ in members])
    side = _read({name: Path(file) for name, file in members}, missing, target.name)
    combined = combine(loaded, side, missing)
    conflict = OTHER_CONTENT if target.exists() and not _same(combined, target) else None
    beside = [target.with_suffix(f".{kind}.csv") for kind in ("failed", "members")]
    place = claim(target, conflict, overwrite=overwrite, beside=beside)
    if place.is_done:
        return target
    place.make_room()
    _write(combined, side, target, missing)
    return target


def _same(scores: Predictions, path: Path) -> bool:
    try:
        there = read_scores(path)
    except InputError:
        return False
    return (there.images, there.classes) == (scores.images, scores.classes) and np.array_equal(
        there.probabilities, scores.probabilities, equal_nan=True
    )


def _check_missing(missing: str) -> None:
    if missing not in MISSING:
        raise InputError(
            f"--missing is {', '.join(MISSING)}, not '{missing}'.{nearest(missing, MISSING)}"
        )


def _read(paths: Mapping[str, Path], missing: str, what: str) -> Members:
    """The members' scores; with the same images, unless all must have all, which is checked later.

    What is done with images that some lack is logged, with their number.
    """
    scores = {name: read_scores(path) for name, path in paths.items()}
    for member in scores.values():
        warn_of_doubt(member)
    if missing == "error":
        return Members(scores)
    side = fill_rows(scores)
    rows = np.flatnonzero(~side.complete)
    images = next(iter(side.scores.values())).images
    if len(rows):
        done = "left out" if missing == "intersect" else "averaged over the members that have them"
        lost = examples(images[row] for row in rows)
        log.warning(
            "%s: %d of %d images are not in all members, %s: %s.",
            *(what, len(rows), len(images), done, lost),
        )
    return side


def _write(combined: Predictions, members: Members, path: Path, missing: str) -> None:
    """Write scores; images that failed are blank, logged, and named in a file.

    An average has a file beside it that says of how many members each image's scores are.
    """
    write_scores(combined, path)
    if missing == "average":
        counts = zip(combined.images, count_members(members).tolist(), strict=True)
        files.write_text(path.with_suffix(".members.csv"), format_csv(["image", "members"], counts))
    blank = {combined.images[row] for row in np.flatnonzero(failed(combined))}
    lacking = failures(members.scores) if blank else {}
    reasons = {k: f"no scores of {', '.join(v)}" for k, v in lacking.items() if k in blank}
    write_failures(path, reasons)
    if reasons:
        log.warning("%s: %d images have no scores: %s.", path, len(reasons), examples(reasons))


def _check_distinct(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            f"Two members have the same name: {', '.join(twice)}. Name them with --member."
        )


def _name_members(
    runs: Sequence[str | Path], members: Sequence[tuple[str, str | Path, str | Path]]
) -> list[tuple[str, Path, Path]]:
    found: list[tuple[str, Path, Path]] = []
    for run in map(Path, runs):
        if not run.is_dir():
            raise files.not_a_folder(run, " Name run folders, or --member NAME DEV TEST.")
        found.append((run.name, run / "scores" / "dev.csv", run / "scores" / "test.csv"))
    found += [(name, Path(dev), Path(test)) for name, dev, test in members]
    if not found:
        raise InputError("Name at least one run folder, or --member NAME DEV TEST.")
    _check_distinct([name for name, _, _ in found])
    for name, *paths in found:
        for path in paths:
            if not path.is_file():
                raise InputError(f"Member '{name}': {files.not_a_file(path, 'scores file')}")
    return found


def _labels(
    runs: Sequence[str | Path],
    labels: str | Path | None,
    ignore_columns: Sequence[str],
    *,
    needed_by: str | None,
) -> tuple[Path | None, Data]:
    """The table, and how it is read: the first run's settings unless the table is named."""
    run = next((Path(run) for run in runs if (Path(run) / "config.yaml").is_file()), None)
    table, data = find_labels(run, labels, ignore_columns)
    if labels is not None or (table is not None and table.is_file()):
        return table, data
    if needed_by is not None:
        why = "" if table is None else f" The run's own, {table}, is not there."
        raise InputError(f"{needed_by} chooses members on dev labels: give --labels TABLE.{why}")
    return None, Data()


def _conflict(folder: Path, settings: dict[str, Any]) -> str | None:
    """How an ensemble in the folder differs from one of these settings, for `claim`."""
    path = folder / "ensemble.json"
    if not path.is_file():
        return NOT_OURS
    value = files.read_object(path)
    ensembles.from_json(value, str(path))
    return other_settings(value.get("made_from", {}), settings, skip=("labels",))


def choices_csv(made: Ensemble) -> str:
    """`choices.csv`: per class and member, its AP on dev and its weight."""
    rows: list[tuple[object, ...]] = []
    for name, weights in made.weights.items():
        for member in made.members:
            found = made.dev_ap.get(name, {}).get(member)
            rows.append((name, member, "" if found is None else found, weights.get(member, 0)))
    return format_csv(["class", "member", "dev_AP", "weight"], rows)
