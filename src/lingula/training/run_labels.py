"""What a run is measured against: its table as its settings read it, and thresholds from dev."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lingula.scores import thresholds
from lingula.scores.evaluation import Setting, evaluate_predictions, worst_classes
from lingula.scores.predictions import Predictions, align_rows, failed, read_scores
from lingula.scores.results import Evaluation
from lingula.settings.config import Config, Data, Worst, read_config
from lingula.system import files
from lingula.system.claims import read_settings_beside
from lingula.system.errors import InputError, examples
from lingula.tables.configured import configured_table, configured_targets, moved_table
from lingula.tables.reading import read_table
from lingula.tables.table import Table, rows_of, subset, with_splits
from lingula.training import run_folder

log = logging.getLogger("lingula")


@dataclass(frozen=True)
class RunLabels:
    """A table, and the settings that say what its unknown cells mean."""

    table: Table
    data: Data

    def part(self, split: str) -> Table:
        """The rows of a split."""
        return subset(self.table, rows_of(self.table, split))


def table_of_run(run: Path) -> tuple[Path, Data]:
    """Where a run's table is now, and how it is read: its own copy with the split that it made.

    A run that made no split has no copy; its table is the one that it was trained on.
    """
    data, kept = read_config(run / "config.yaml").data, run / "table.csv"
    return kept if kept.is_file() else run_folder.find_table(run, data.table), data


def find_labels(
    run: Path | None, labels: str | Path | None, ignore_columns: Sequence[str] = ()
) -> tuple[Path | None, Data]:
    """The table that is named, else the run's own, and how it is read; None without either.

    Raises `InputError` for a named table that is not there; the run's own may not be there.
    """
    if labels is not None:
        if not Path(labels).is_file():
            raise InputError(f"{files.not_a_file(Path(labels), 'table')} Give --labels TABLE.")
        return Path(labels), Data(table=str(labels), ignore_columns=tuple(ignore_columns))
    if run is not None and (run / "config.yaml").is_file():
        return table_of_run(run)
    made = {} if run is None else _section(run / "ensemble.json", "made_from")
    if run is not None and made.get("labels"):
        return _labels_of_ensemble(run, made)
    return None, Data()


def _labels_of_ensemble(folder: Path, made: Mapping[str, Any]) -> tuple[Path, Data]:
    """The table that an ensemble was made on, or its own copy, and how it is read."""
    own = next((p for p in (folder, folder.parent) if (p / "table.csv").is_file()), None)
    named = Path(made["labels"])
    table = own / "table.csv" if own is not None and not named.is_file() else named
    return table, Data(table=str(table), **made.get("data", {}))


def read_labels(path: Path, data: Data, named: Collection[str] = ()) -> Table:
    """The table of `find_labels`; a run's own copy has no columns left to ignore."""
    return configured_table(data, None if path == Path(data.table) else path, named)


def labels_of(
    folder: Path, trained: Sequence[Path] = (), table: str | Path | None = None
) -> RunLabels:
    """A run's own labels; an ensemble's are those of the first run named, or the ones it kept.

    Args:
        folder: the run or the ensemble.
        trained: runs that were named beside it.
        table: the table where it is now, or another one in its place, read as the run's was. If
            it has no splits, they are those that the run made.
    """
    if not folder.is_dir():
        if folder.exists():
            raise InputError(f"{folder} is a file, not a run or ensemble folder.")
        raise InputError(f"There is no run or ensemble folder {folder}.")
    for run in (folder, *trained):
        if (run / "config.yaml").is_file():
            return _labels_of_run(run, table)
    made = _section(folder / "ensemble.json", "made_from")
    if not (folder / "ensemble.json").is_file():
        raise InputError(
            f"{folder} is neither a run nor an ensemble: it has no config.yaml and no "
            "ensemble.json."
        )
    if not table and not made.get("labels"):
        raise InputError(f"{folder} does not say which labels it belongs to; name its runs too.")
    own, data = _labels_of_ensemble(folder, {**made, "labels": made.get("labels") or table})
    place = own if table is None else Path(table)
    if not place.is_file():
        raise _gone(place, folder)
    return RunLabels(read_table(place, soft=data.soft), data)


def _labels_of_run(run: Path, table: str | Path | None) -> RunLabels:
    data, kept = read_config(run / "config.yaml").data, run / "table.csv"
    split = configured_table(data, kept) if kept.is_file() else None
    if table is None and split is not None:
        return RunLabels(split, data)
    place = run_folder.find_table(run, data.table) if table is None else Path(table)
    if not place.is_file():
        raise _gone(place, run)
    found = moved_table(data, place) if str(place) != data.table else configured_table(data)
    if split is not None and found.splits is None:
        found = with_splits(found, _splits_of(found, split, place))
    return RunLabels(found, data)


def _splits_of(table: Table, made: Table, place: Path) -> tuple[str, ...]:
    """The splits that a run made of its table, for the same images of another."""
    by_image = dict(zip(made.images, made.splits or (), strict=True))
    missing = [image for image in table.images if image not in by_image]
    if missing:
        raise InputError(
            f"{place} has no split column, and images that the run did not have: "
            f"{examples(missing)}. Add a `split` column (train, dev or test)."
        )
    return tuple(by_image[image] for image in table.images)


def _gone(table: Path, folder: Path) -> InputError:
    if table.is_dir():
        return files.not_a_file(table, "table")
    return InputError(
        f"There is no table {table}, which {folder} was made with. If it is elsewhere now: "
        "--labels TABLE."
    )


def warn_of_other_labels(pairs: Iterable[tuple[Path, Path, str]]) -> None:
    """Warn once if scores are measured against other labels than those of their run or prediction.

    Args:
        pairs: scores files, each with the table that it is measured against and that table's hash.

    A run's own copy of its table counts as the table itself: reading it tells if it was changed.
    """
    told: dict[tuple[Path, str], dict[str, None]] = {}
    for scores, table, sha256 in pairs:
        found = _origin(scores, table)
        kept_by = table.parent if table.name == "table.csv" else table
        now = _trained_sha256(kept_by) if (kept_by / "config.yaml").is_file() else sha256
        if found is not None and now is not None and found[2] not in (now, sha256):
            words = f"{found[0]} {found[1]} (sha256 {found[2][:12]})"
            told.setdefault((table, sha256[:12]), {})[words] = None
    if told:
        lines = [
            f"{table} (sha256 {sha256}) is used as it is now, but {'; '.join(words)}."
            for (table, sha256), words in told.items()
        ]
        log.warning("The labels differ from those of before. %s", " ".join(lines))


def _origin(scores: Path, table: Path) -> tuple[str, str, str] | None:
    """Who used which table before, and its hash; None if that is not known."""
    place = scores if scores.parent.name else scores.absolute()
    folder = place.parent.parent
    if place.parent.name == "scores" and (folder / "config.yaml").is_file():
        before = _trained_sha256(folder)
        own = read_config(folder / "config.yaml").data.table
        return None if before is None else (f"{folder} was trained on", own, before)
    if place.parent.name == "scores" and (folder / "ensemble.json").is_file():
        made = _section(folder / "ensemble.json", "made_from")
        if made.get("labels_sha256"):
            return f"{folder} was chosen on", str(made.get("labels")), str(made["labels_sha256"])
    made = read_settings_beside(scores) or {}
    # Scores of one table may well be measured against another: only a change of that one is told.
    if made.get("data_sha256") and made.get("data") == str(table.resolve()):
        return f"{scores} was made for", made["data"], str(made["data_sha256"])
    return None


def _trained_sha256(run: Path) -> str | None:
    """The hash of the table that a run was trained on, without outside tables."""
    kept = _section(run / "best" / "model.json", "trained_on").get("sha256")
    if kept is None and not read_config(run / "config.yaml").data.outside:
        kept = run_folder.read_environment(run).get("data_sha256")
    return None if kept is None else str(kept)


def number_format(scores: Path) -> str | None:
    """The format that a scores file was computed in, `fp32` or `bf16`; None if it is not known."""
    folder = scores.absolute().parent.parent
    if scores.absolute().parent.name == "scores" and (folder / "config.yaml").is_file():
        known = run_folder.read_environment(folder)
        return known.get("scored_in", known.get("precision"))
    made = read_settings_beside(scores) or {}
    return str(made.get("precision", "fp32")) if made else None


def warn_of_other_formats(scores: Iterable[Path]) -> None:
    """Warn once if scores of different number formats are compared."""
    found = {path: number_format(path) for path in scores}
    if len(set(found.values()) - {None}) > 1:
        told = "; ".join(f"{path}: {kind}" for path, kind in found.items() if kind is not None)
        log.warning(
            "Scores of different number formats are compared, which alone moves an AP by up to "
            "some thousandths: %s. `lingula predict` computes all in fp32.",
            told,
        )


def _section(path: Path, name: str) -> dict[str, Any]:
    found = files.read_object(path, absent_ok=True).get(name) or {}
    if not isinstance(found, dict):
        raise InputError(f"{path} is damaged: its {name} is no JSON object.")
    return found


def warn_of_changed_runs(known: Iterable[tuple[Path, RunLabels]]) -> None:
    """Warn as `warn_of_other_labels` does, for folders of runs and ensembles and their labels."""
    warn_of_other_labels(
        (folder / "scores" / "dev.csv", labels.table.path, labels.table.sha256)
        for folder, labels in known
        if labels.table.path is not None
    )


def evaluate_run(
    predictions: Predictions,
    labels: RunLabels,
    split: str | None,
    *,
    ci: int = 0,
    setting: Setting | None = None,
) -> Evaluation:
    """Measure scores against the labels; unknown cells mean what the run's settings say."""
    return evaluate_predictions(
        predictions,
        labels.table,
        split=split,
        ci=ci,
        uncertain=labels.data.uncertain,
        blank=labels.data.blank,
        unmentioned=labels.data.unmentioned,
        setting=setting or Setting(),
    )


def scored_rows(
    predictions: Predictions, labels: RunLabels, split: str
) -> tuple[Table, NDArray[np.float64]]:
    """The rows of a split that have scores, and those scores in the same order."""
    part = labels.part(split)
    rows = align_rows(predictions, part.images, part.ids)
    good = ~failed(predictions)[rows]
    return subset(part, np.flatnonzero(good)), predictions.probabilities[rows[good]]


def dev_thresholds(run: Path, labels: RunLabels) -> dict[str, float]:
    """Max-F1 thresholds on dev, by class; a class without positives on dev has none."""
    predictions = read_scores(run / "scores" / "dev.csv")
    part, probabilities = scored_rows(predictions, labels, "dev")
    values, mask = configured_targets(labels.data, part)
    found = {}
    for column, name in enumerate(predictions.classes):
        k = part.space.index(name)
        known = mask[:, k]
        limit = thresholds.max_f1_threshold(probabilities[known, column], values[known, k] >= 0.5)
        if not np.isnan(limit):
            found[name] = limit
    return found


def weigh_worst_classes(config: Config) -> Config:
    """The config with `loss.worst` resolved: weights for the worst classes of that run on dev."""
    worst = config.loss.worst
    run = Path(str(worst.run))
    if not (run / "scores" / "dev.csv").is_file() or not (run / "config.yaml").is_file():
        raise InputError(f"{run} (loss.worst.run) is no finished run: it has no scores/dev.csv.")
    own = run_folder.find_table(run, read_config(run / "config.yaml").data.table)
    # If both were trained on one table that was moved, this training's settings say where it is.
    is_there = own.is_file() or (run / "table.csv").is_file()
    labels = labels_of(run, table=None if is_there else config.data.table)
    warn_of_changed_runs([(run, labels)])
    found = evaluate_run(read_scores(run / "scores" / "dev.csv"), labels, "dev")
    chosen = worst_classes(found, worst.k)
    log.info(
        "Worst on the dev split of %s, weighted by %g: %s.", run, worst.factor, examples(chosen, 26)
    )
    weights = {name: worst.factor for name in chosen} | config.loss.class_weights
    loss = config.loss.model_copy(update={"class_weights": weights, "worst": Worst()})
    return config.model_copy(update={"loss": loss})
