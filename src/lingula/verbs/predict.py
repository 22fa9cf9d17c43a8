"""`lingula predict`: scores of a trained model for a table, a folder or one image."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lingula import files
from lingula.calibration import Calibration, apply_curves
from lingula.data.cache_files import open_cache
from lingula.data.cached import CachedImages, locate
from lingula.data.folder import images_in
from lingula.data.phantom import is_phantom
from lingula.data.table import Table, image_path, rows_of, subset
from lingula.errors import ImageError, InputError, changes, differences, examples
from lingula.labels import fold
from lingula.predictions import Predictions, write_scores
from lingula.progress import counting, progress
from lingula.verbs.calibrate import calibration_of_run

log = logging.getLogger("lingula")


@dataclass(frozen=True)
class Predicted:
    """Where the scores are, and the images that could not be scored, with the reason."""

    path: Path
    images: int
    failures: dict[str, str]


def predict(
    run: str | Path,
    *,
    data: str | Path,
    out: str | Path,
    split: str | None = None,
    tta: Literal["none", "flip", "paper"] | None = None,
    by: Literal["image", "study"] = "image",
    calibrated: bool = False,
    batch_size: int = 32,
    workers: int = 0,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    precision: Literal["fp32", "bf16", "auto"] = "fp32",
    cache: str | Path | None = None,
    allow_phantom_model: bool = False,
    overwrite: bool = False,
) -> Predicted:
    """Score images with a trained model; one row an image, in the table's order.

    Args:
        run: a run folder or a model folder.
        data: a table, a folder (scanned by content) or one image.
        out: the scores file, `.csv` or `.parquet`.
        split: only the table's rows of this split.
        tta: test-time views; None is what the model's recipe says.
        by: `study` gives every image the mean of its study's scores.
        calibrated: map the scores with the run's `calibration.json` (after the study's mean).
        batch_size: changes speed and memory, never a score.
        workers: decoding processes; 0 decodes in threads.
        device: where to run.
        precision: fp32 is exact; bf16 may be faster and moves logits by some hundredths.
        cache: read the images from this folder, made by `lingula data cache`.
        allow_phantom_model: let a model trained on the phantom score real films.
        overwrite: replace a scores file made with other settings (the old one is set aside).

    Images that can't be read keep a row of blank scores and are named in `OUT.failed.csv`.
    """
    from lingula.model.checkpoint import read_facts  # imports torch

    target, facts = _scores_path(out), read_facts(Path(run))
    root, images, table = _chosen(Path(data), split)
    paths, bad = _paths(root, images)
    cached = None if cache is None else _cached(Path(cache), root, images, paths)
    if facts["trained_on"]["phantom"] and not allow_phantom_model:
        refuse_films(paths.values(), cached)
    settings = {
        "model": facts["weights_sha256"],
        "data": str(Path(data).resolve()),
        "data_sha256": table.sha256 if table is not None else None,
        "images": len(images),
        "split": split,
        "tta": tta or facts["evaluation"]["tta"],
        "merge": facts["evaluation"]["merge"],
        "by": by,
        **_lossy(cached),
        **({} if precision == "fp32" else {"precision": precision}),
    }
    calibration = _calibration(run, facts, settings) if calibrated else None
    first = _is_first()
    done = _already(target, settings, overwrite) if first or not overwrite else None
    if done is not None:
        return done
    found, reasons = _scores(run, facts, paths, settings, batch_size, workers, device, cached)
    probabilities = np.full((len(images), len(facts["classes"])), np.nan)
    probabilities[list(paths)] = found
    failures = {images[i]: reason for i, reason in sorted({**bad, **reasons}.items())}
    if by == "study":
        probabilities = _study_means(probabilities, table)
    predictions = _named(facts["classes"], images, probabilities, table)
    if calibration is not None:
        predictions = apply_curves(calibration, predictions)
    if first:
        _warn_of_odd_scores(probabilities)
        _write(predictions, failures, settings, target)
    return Predicted(target, len(images), failures)


def _named(
    classes: list[str],
    images: tuple[str, ...],
    probabilities: NDArray[np.float64],
    table: Table | None,
) -> Predictions:
    """Scores with the names of their classes, images, and what the table knows of these."""
    return Predictions(
        classes=tuple(classes),
        images=images,
        probabilities=probabilities,
        ids=table.ids if table else None,
        studies=table.studies if table else None,
        patients=table.patients if table else None,
    )


def _is_first() -> bool:
    """Whether this is the first, or the only, of the processes that torchrun started."""
    return int(os.environ.get("RANK", "0")) == 0


def _write(
    predictions: Predictions, failures: dict[str, str], settings: dict[str, Any], target: Path
) -> None:
    write_scores(predictions, target)
    _write_failures(target, failures)
    files.write_json(_made_path(target), settings)


def _calibration(run: str | Path, facts: dict[str, Any], settings: dict[str, Any]) -> Calibration:
    """The run's calibration, noted in the settings; checked before any image is scored."""
    calibration, settings["calibration"] = calibration_of_run(run, facts["weights_sha256"])
    known = {fold(name) for name in calibration.classes}
    absent = [name for name in facts["classes"] if fold(name) not in known]
    if absent:
        raise InputError(
            f"The run's calibration knows nothing of {examples(absent)}. Make it again: `lingula "
            "calibrate RUN --overwrite`."
        )
    usual = facts["evaluation"]["tta"]
    if settings["tta"] != usual:
        log.warning("The calibration was made with --tta %s, not %s.", usual, settings["tta"])
    return calibration


def _scores_path(out: str | Path) -> Path:
    target = Path(out)
    if target.suffix not in (".csv", ".parquet"):
        raise InputError(f"--out {target}: scores are written as .csv or .parquet.")
    return target


def _chosen(data: Path, split: str | None) -> tuple[Path, tuple[str, ...], Table | None]:
    root, images, table = images_in(data)
    if split is None:
        return root, images, table
    if table is None or table.splits is None:
        raise InputError(f"--split {split}: {data} has no split column.")
    rows = rows_of(table, split)
    if not len(rows):
        raise InputError(f"{data} has no rows with split '{split}'.")
    part = subset(table, rows)
    return root, part.images, part


def _paths(root: Path, images: tuple[str, ...]) -> tuple[dict[int, Path], dict[int, str]]:
    """Paths by row, and the reason for each row whose path is refused."""
    paths: dict[int, Path] = {}
    bad: dict[int, str] = {}
    for row, name in enumerate(images):
        try:
            paths[row] = image_path(root, name)
        except ImageError as error:
            bad[row] = str(error)
    return paths, bad


def _cached(
    cache: Path, root: Path, images: tuple[str, ...], paths: dict[int, Path]
) -> CachedImages:
    names = [images[row] for row in paths]
    return locate(open_cache(cache), root, names, list(paths.values()))


def _lossy(cached: CachedImages | None) -> dict[str, Any]:
    """What a cache adds to the settings that scores follow from: a raw one, nothing."""
    if cached is None or cached.settings.codec == "raw":
        return {}
    return {"cache": f"{cached.settings.codec} {cached.settings.quality}"}


def refuse_films(paths: Iterable[Path], cached: CachedImages | None = None) -> None:
    """Raise `InputError` unless every image there is was drawn by the phantom.

    Of cached images the cache knows, so that their files need not be there.
    """
    if cached is None:
        films = [path.name for path in paths if path.is_file() and not is_phantom(path)]
    else:
        film = (cached.file >= 0) & ~cached.phantom
        films = [path.name for path, it_is in zip(paths, film, strict=True) if it_is]
    if films:
        raise InputError(
            f"This model was trained on the phantom and is for phantoms; {examples(films, 3)} "
            "are not. Its scores for real films mean nothing. To see them all the same: "
            "--allow-phantom-model."
        )


def _scores(
    run: str | Path,
    facts: dict[str, Any],
    paths: dict[int, Path],
    settings: dict[str, Any],
    batch_size: int,
    workers: int,
    device: str,
    cached: CachedImages | None,
) -> tuple[NDArray[np.float64], dict[int, str]]:
    from lingula.config import from_plain, vary
    from lingula.data.batches import Radiographs
    from lingula.devices import make_fabric, resolve_device
    from lingula.model.checkpoint import load_model
    from lingula.prediction import score

    # Scoring is in fp32 whatever the training was in: exact is the default.
    precision = settings.get("precision", "fp32")
    wanted = resolve_device(vary(from_plain(facts["config"]), device=device, precision=precision))
    fabric = make_fabric(wanted.device, wanted.precision)
    network = load_model(Path(run)).network.to(fabric.device)
    reading = facts["reading"]
    dataset = Radiographs(list(paths.values()), reading["image_size"], reading["bits"], cached)
    with progress("scoring") as tick:
        found = score(
            network,
            dataset,
            fabric=fabric,
            tta=settings["tta"],
            merge=settings["merge"],
            batch_size=batch_size,
            workers=workers,
            channels_last=wanted.channels_last == "yes",
            tick=counting(tick),
        )
    rows = list(paths)
    return found.probabilities, {rows[i]: reason for i, reason in found.failures.items()}


def _study_means(probabilities: NDArray[np.float64], table: Table | None) -> NDArray[np.float64]:
    if table is None or table.studies is None:
        raise InputError("--by study needs a table with a study column.")
    # Some data sets count studies from 1 for each patient, so the patient is part of the key.
    patients = table.patients or ("",) * len(table.studies)
    rows: dict[tuple[str, str], list[int]] = {}
    for row, key in enumerate(zip(patients, table.studies, strict=True)):
        if key[1] and np.isfinite(probabilities[row]).all():
            rows.setdefault(key, []).append(row)
    means = probabilities.copy()
    for good in rows.values():
        means[good] = probabilities[good].mean(0)
    return means


def _warn_of_odd_scores(probabilities: NDArray[np.float64]) -> None:
    known = probabilities[np.isfinite(probabilities)]
    if len(known) > 100 and known.min() >= 0.45 and known.max() <= 0.55:
        log.warning("All scores lie between 0.45 and 0.55: the model may not have been trained.")


def _made_path(target: Path) -> Path:
    return target.with_suffix(".made.json")


def _failed_path(target: Path) -> Path:
    return target.with_suffix(".failed.csv")


def _already(target: Path, settings: dict[str, Any], overwrite: bool) -> Predicted | None:
    """The finished result of the same settings, or None; `InputError` for other settings."""
    import json

    if not target.exists():
        return None
    made = _made_path(target)
    before = json.loads(made.read_text(encoding="utf-8")) if made.is_file() else None
    if before == settings and not overwrite:
        log.info("%s is there already, made with the same settings.", target)
        return Predicted(target, settings["images"], _read_failures(target))
    if not overwrite:
        why = "and was not made by this command."
        if before is not None:
            why = f"made with other settings:\n{differences(changes(before, settings))}"
        raise InputError(
            f"{target} is there already, {why}\n"
            "Choose another --out, or --overwrite to set it aside."
        )
    for path in (target, made, _failed_path(target)):
        if path.exists():
            files.set_aside(path)
    return None


def _write_failures(target: Path, failures: dict[str, str]) -> None:
    if not failures:
        return
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["image", "reason"])
    writer.writerows(failures.items())
    files.write_text(_failed_path(target), stream.getvalue())


def _read_failures(target: Path) -> dict[str, str]:
    path = _failed_path(target)
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as stream:
        return {row["image"]: row["reason"] for row in csv.DictReader(stream)}
