"""`lingula predict`: scores of a trained model for a table, a folder or one image."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lingula.images.cache import CachedImages, locate, open_cache, source_of
from lingula.images.files import image_path, is_phantom
from lingula.scores.calibration import Calibration, apply_curves
from lingula.scores.joining import study_means
from lingula.scores.predictions import (
    Predictions,
    failures_beside,
    read_failures,
    warn_of_doubt,
    write_failures,
    write_scores,
)
from lingula.scoring.blocks import (
    Job,
    Scores,
    blocks_folder,
    lock_blocks,
    read_settings,
    remove_blocks,
    score_all,
)
from lingula.scoring.models import ScoringModel, read_scoring_model
from lingula.settings.config import Config, parse_config, vary
from lingula.settings.label_space import fold
from lingula.system import files
from lingula.system.claims import claim, other_settings, read_settings_beside, settings_beside
from lingula.system.errors import ImageError, InputError, changes, examples
from lingula.system.processes import is_first
from lingula.tables.folder import images_in
from lingula.tables.table import Table, rows_of, subset
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
    batch_size: int | Literal["auto"] = 32,
    workers: int = 0,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    precision: Literal["fp32", "bf16", "auto"] = "fp32",
    cache: str | Path | Sequence[str | Path] | None = None,
    allow_phantom_model: bool = False,
    overwrite: bool = False,
) -> Predicted:
    """Score images with a trained model; one row per image, in the table's order.

    Args:
        run: a run folder, a model folder, or an ensemble of runs.
        data: a table, a folder (scanned by content) or one image.
        out: the scores file, `.csv` or `.parquet`.
        split: only the table's rows of this split.
        tta: test-time views; None is what the model's recipe says.
        by: `study` gives every image the mean of its study's scores.
        calibrated: map the scores with the run's `calibration.json` (after the study's mean).
        batch_size: changes speed and memory, never a score; `auto` is sized to the memory.
        workers: decoding processes; 0 decodes in threads.
        device: where to run.
        precision: fp32 is exact; bf16 moves logits by some hundredths, and is faster where the
            machine has instructions for it and much slower elsewhere; `auto` is
            the fastest that has been seen to keep every AP to 0.001, which so far is fp32.
        cache: read the images from this folder, or these, made by `lingula data cache`.
        allow_phantom_model: let a model trained on the phantom score real images.
        overwrite: replace a scores file made with other settings (the old one is set aside).

    Images that can't be read keep a row of blank scores and are named in `OUT.failed.csv`.
    Finished batches go to `.OUT.parts/`, so that the same call continues if it was interrupted.
    Batches of other images, or of files that changed in size or time since, are refused.
    """
    target, model = _scores_path(out), read_scoring_model(Path(run))
    selected = _select_images(Path(data), split, by, cache)
    if model.phantom and not allow_phantom_model:
        refuse_films(selected.paths, selected.cached)
    configs = tuple(_scoring_config(m.facts, device, precision) for m in model.members)
    views = tuple(_views_of(member.facts, tta) for member in model.members)
    settings = {
        "model": model.sha256,
        "never_positive": _never_positive(model),
        **_describe_images(Path(data), selected, split),
        "tta": _one_or_list([view for view, _ in views]),
        "merge": _one_or_list([merge for _, merge in views]),
        "by": by,
        **_cache_settings(selected.cached),
        **({} if configs[0].precision == "fp32" else {"precision": configs[0].precision}),
    }
    calibration = _calibration(model, settings) if calibrated else None
    if is_first() or not overwrite:
        done = _claim(target, settings, overwrite)
        if done is not None:
            return done
    job = Job(model, configs, views, selected.paths, selected.cached, batch_size, workers)
    with score_all(job, blocks_folder(target), settings) as found:
        failures = _reasons(selected, found)
        if is_first():
            predictions = _name_scores(found.scores, selected, model.classes, by, target)
            warn_of_doubt(predictions)
            if calibration is not None:
                predictions = apply_curves(calibration, predictions)
            write_failures(target, failures)
            files.write_json(settings_beside(target), settings)
            write_scores(predictions, target)  # last: once the scores are there, all is
            remove_blocks(blocks_folder(target))
    return Predicted(target, len(selected.images), failures)


def _name_scores(
    scores: NDArray[np.float64], selected: _Selection, classes: Sequence[str], by: str, target: Path
) -> Predictions:
    """The scores of all images in order, with the names of classes, and what the table knows."""
    table = selected.table
    values = np.full((len(selected.images), len(classes)), np.nan)
    values[selected.rows] = scores
    if by == "study" and table is not None and table.studies is not None:
        values = study_means(values, table.studies, table.patients)
    texts = (None, None, None) if table is None else (table.ids, table.studies, table.patients)
    return Predictions(tuple(classes), selected.images, values, *texts, str(target))


@dataclass(frozen=True)
class _Selection:
    """The images to score, relative to `root`, and the table if they are named by one.

    `paths` are those that are sound, of the images with the numbers `rows`; `bad` says what is
    wrong with the others. `cached` are the sound ones in a cache.
    """

    root: Path
    images: tuple[str, ...]
    table: Table | None
    paths: list[Path]
    rows: NDArray[np.intp]
    bad: dict[int, str]
    cached: CachedImages | None


def _select_images(
    data: Path, split: str | None, by: str, cache: str | Path | Sequence[str | Path] | None
) -> _Selection:
    root, images, table = _find_images(data, split)
    if by == "study" and (table is None or table.studies is None):
        raise InputError("--by study needs a table with a study column.")
    sound, bad = _check_paths(root, images)
    paths, rows = list(sound.values()), np.array(list(sound), dtype=np.intp)
    names = [images[row] for row in rows]
    cached = None if cache is None else locate(open_cache(cache), root, names, paths)
    return _Selection(root, images, table, paths, rows, bad, cached)


def _scoring_config(facts: dict[str, Any], device: str, precision: str) -> Config:
    """The model's config with device and number format decided.

    Scoring is in fp32 whatever the training was in: exact is the default. `auto` is not training's:
    bf16 moved an AP by 0.0016 on real films (docs/performance.md), more than the 0.001 allowed.
    """
    from lingula.model.devices import resolve_device  # imports torch

    precision = "fp32" if precision == "auto" else precision
    return resolve_device(vary(parse_config(facts["config"]), device=device, precision=precision))


def _hash_names(images: tuple[str, ...]) -> str:
    """A hash of the names in order: rows of blocks are numbers, and must mean the same images."""
    found = hashlib.sha256()
    for name in images:
        found.update(name.encode("utf-8", "surrogateescape") + b"\0")
    return found.hexdigest()


def hash_file_facts(paths: list[Path]) -> str:
    """A hash of the files' sizes and times (-1 where there is no file), in the paths' order.

    Reading every film again only to see that nothing changed would take as long as scoring does.
    In threads: a network disk takes its time for each file's facts.
    """

    def some(begin: int) -> bytes:
        sources = map(source_of, paths[begin : begin + _AT_ONCE])
        facts = [f"{source.size} {source.mtime_ns}\n" for source in sources]
        return hashlib.sha256("".join(facts).encode()).digest()

    with ThreadPoolExecutor(16) as pool:
        return hashlib.sha256(b"".join(pool.map(some, range(0, len(paths), _AT_ONCE)))).hexdigest()


_AT_ONCE = 256


def _views_of(facts: dict[str, Any], tta: str | None) -> tuple[str, str]:
    """Test-time views and how they are merged, as the recipe says unless others are wanted."""
    return tta or facts["evaluation"]["tta"], facts["evaluation"]["merge"]


def _one_or_list(values: list[str]) -> str | list[str]:
    return values[0] if len(set(values)) == 1 else values


def _calibration(model: ScoringModel, settings: dict[str, Any]) -> Calibration:
    """The model's calibration, noted in the settings; checked before any image is scored."""
    calibration, settings["calibration"] = calibration_of_run(model.place, model.sha256)
    known = {fold(name) for name in calibration.classes}
    absent = [name for name in model.classes if fold(name) not in known]
    if absent:
        raise InputError(
            f"The run's calibration knows nothing of {examples(absent)}. Make it again: `lingula "
            "calibrate RUN --overwrite`."
        )
    usual = _one_or_list([_views_of(member.facts, None)[0] for member in model.members])
    if settings["tta"] != usual:
        log.warning("The calibration was made with --tta %s, not %s.", usual, settings["tta"])
    return calibration


def _scores_path(out: str | Path) -> Path:
    target = Path(out)
    if target.suffix not in (".csv", ".parquet"):
        raise InputError(f"--out {target}: scores are written as .csv or .parquet.")
    return target


def _find_images(data: Path, split: str | None) -> tuple[Path, tuple[str, ...], Table | None]:
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


def _check_paths(root: Path, images: tuple[str, ...]) -> tuple[dict[int, Path], dict[int, str]]:
    """Paths by row, and the reason for each row whose path is refused."""
    paths: dict[int, Path] = {}
    bad: dict[int, str] = {}
    for row, name in enumerate(images):
        try:
            paths[row] = image_path(root, name)
        except ImageError as error:
            bad[row] = str(error)
    return paths, bad


def _describe_images(data: Path, selected: _Selection, split: str | None) -> dict[str, Any]:
    """What of the images the scores follow from: their names in order, their sizes and times."""
    return {
        "data": str(data.resolve()),
        "data_sha256": selected.table.sha256 if selected.table is not None else None,
        "root": str(selected.root.resolve()),
        "images": len(selected.images),
        "images_sha256": _hash_names(selected.images),
        "files_sha256": hash_file_facts(selected.paths),
        "split": split,
    }


def _reasons(selected: _Selection, found: Scores) -> dict[str, str]:
    """Why images have no scores, by name, in the order of the images."""
    reasons = selected.bad | {int(selected.rows[i]): why for i, why in found.failures.items()}
    return {selected.images[row]: reason for row, reason in sorted(reasons.items())}


def _never_positive(model: ScoringModel) -> list[str]:
    """The classes that no training image had, named in a warning: their scores mean nothing."""
    lists = [m.facts["trained_on"].get("never_positive", []) for m in model.members]
    found = [str(name) for name in lists[0] if all(name in names for names in lists)]
    if found and is_first():
        log.warning(
            "Never positive in training, so that their scores mean nothing: %s.",
            examples(found, 26),
        )
    return found


def _cache_settings(cached: CachedImages | None) -> dict[str, Any]:
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
        film = (cached.places["file"] >= 0) & ~cached.places["phantom"]
        films = [path.name for path, it_is in zip(paths, film, strict=True) if it_is]
    if films:
        raise InputError(
            f"This model was trained on the phantom and is for phantoms; {examples(films, 3)} "
            "are not. Its scores for real images mean nothing. To see them all the same: "
            "--allow-phantom-model."
        )


def _claim(target: Path, settings: dict[str, Any], overwrite: bool) -> Predicted | None:
    """The finished result of the same settings, or None where there is work to do.

    Raises `InputError` for a result, or blocks of one, that were made with other settings.
    """
    folder = blocks_folder(target)
    begun = read_settings(folder)
    if not target.exists():
        if begun is not None and begun != settings:
            other = f"an interrupted prediction {_conflict(begun, settings)}"
            claim(folder, other, overwrite=overwrite).make_room()
        return None
    conflict = _conflict(read_settings_beside(target), settings)
    beside = (folder, settings_beside(target), failures_beside(target))
    place = claim(target, conflict, overwrite=overwrite, beside=beside)
    place.make_room()
    if not place.is_done:
        return None
    if begun == settings and is_first():
        _clear(folder, settings)
    return Predicted(target, settings["images"], read_failures(target))


def _conflict(before: dict[str, Any] | None, now: dict[str, Any]) -> str | None:
    """How the settings differ, for `claim`; what a changed hash means is said in words."""
    conflict = other_settings(before, now)
    changed = changes(before or {}, now)
    if conflict is not None and before is not None and "images_sha256" in changed:
        conflict += "\nThe images are others than then, or in another order (images_sha256)."
    elif conflict is not None and before is not None and "files_sha256" in changed:
        conflict += "\nImage files have changed since, in size or time (files_sha256)."
    return conflict


def _clear(folder: Path, settings: dict[str, Any]) -> None:
    """Remove the blocks of a result that is complete: its process was killed before it did."""
    # Another process may be doing just that, which is as good.
    with contextlib.suppress(InputError), lock_blocks(folder, settings):
        remove_blocks(folder)
