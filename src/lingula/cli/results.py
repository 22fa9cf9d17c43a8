"""What a command prints of its verb's result, and what a few take beyond its parameters."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

import lingula
from lingula.system.errors import InputError, examples

_JSON = click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object.")
_SOURCES = ("cxr_lt", "mimic", "nih", "chexpert", "padchest", "vindr", "medmnist")
_TABLES = [f"data_{name}" for name in (*_SOURCES, "join", "split", "filter")]
_FIGURES = [*(name for name in lingula.MODULES if name.startswith("bench_")), "doctor"]
_SHARES = {"dev": 0.15, "test": 0.25}  # of the phantom's images, unless others are given

EXTRA: dict[str, Sequence[click.Option]] = {
    **dict.fromkeys((*_TABLES, *_FIGURES, "data_check", "evaluate"), (_JSON,)),
    "calibrate": (
        click.Option(["--apply"], metavar="CALIBRATION", help="Apply this file to SOURCE."),
    ),
    "data_cache": (
        click.Option(["--verify"], metavar="DIR", help="Check a cache's checksums."),
        click.Option(["--join"], metavar="DIR", help="Check that all parts are there."),
    ),
    "data_phantom": [
        click.Option([f"--{name}"], type=float, help=f"Share of the images. [default: {share}]")
        for name, share in _SHARES.items()
    ],
}


def run(name: str, given: dict[str, Any]) -> None:
    """Call a verb with what was given, print its result, and exit with 3 if images failed."""
    as_json = given.pop("as_json", False)
    result = BEFORE[name](given) if name in BEFORE else getattr(lingula, name)(**given)
    if name in AFTER:
        AFTER[name](result, given)
    elif name in TEXT_AND_JSON:
        value, text = TEXT_AND_JSON[name](result)
        dumped = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        click.echo(dumped if as_json else text)
        if name == "data_check" and not result.fit:
            raise click.exceptions.Exit(2)
    elif isinstance(result, list):
        click.echo("\n".join(result))
    else:
        click.echo(str(result).rstrip("\n"))


# --- calls that are more than the verb's ---

# Commands with forms that need other parameters than the verb's: they check what was given.
SEVERAL_FORMS = ("data_cache",)


def _train(given: dict[str, Any]) -> Path:
    """Sort `[RECIPE|config.yaml] [key=value ...]` by what the words look like."""
    words = [*filter(None, [given.pop("name", None)]), *given.pop("overrides", ())]
    names = [word for word in words if not _is_setting(word)]
    if len(names) > 1:
        raise InputError(f"Give one recipe or one YAML file, not {', '.join(names)}.")
    settings = [word for word in words if _is_setting(word)]
    return lingula.train(names[0] if names else None, settings, **given)


def _is_setting(word: str) -> bool:
    """Whether a word is `key=value`, and not a YAML file in a folder such as `lr=0.1`."""
    from lingula.settings.config import is_key

    key, equals, _ = word.partition("=")
    return bool(equals) and (is_key(key) or not word.lower().endswith((".yaml", ".yml")))


def _calibrate(given: dict[str, Any]) -> Path:
    calibration = given.pop("apply", None)
    if calibration is None:
        return lingula.calibrate(**given)
    if "out" not in given or given.keys() - {"source", "out", "overwrite"}:
        raise InputError("--apply takes SCORES and --out; nothing is fitted, so no --labels.")
    return lingula.apply_calibration(calibration, given.pop("source"), **given)


def _data_cache(given: dict[str, Any]) -> Any:
    folders = {key: given.pop(key) for key in ("verify", "join") if key in given}
    if folders and (given or len(folders) > 1):
        raise InputError("--verify DIR and --join DIR stand alone, without a table or --out.")
    if "verify" in folders:
        return _verified(folders["verify"])
    if "join" in folders:
        return lingula.data_cache_join(folders["join"])
    if not {"table", "out"} <= given.keys():
        raise InputError("Say which table, and where to: lingula data cache TABLE --out DIR.")
    return lingula.data_cache(**given)


def _verified(folder: str) -> str:
    found = lingula.data_cache_verify(folder)
    if found["damaged"]:
        raise InputError(
            f"{len(found['damaged'])} of {found['images']} images of {folder} are damaged: "
            f"{examples((f'{name} ({why})' for name, why in found['damaged'].items()), 3)}. Copy "
            "these files again, or delete them with their .jsonl and run the same "
            "`lingula data cache` line again."
        )
    return f"{found['images']} images, every checksum right; {len(found['failed'])} failed"


def _data_phantom(given: dict[str, Any]) -> Path:
    dev, test = (given.pop(name, share) for name, share in _SHARES.items())
    return lingula.data_phantom(**given, shares=(dev, test))


BEFORE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "calibrate": _calibrate,
    "data_cache": _data_cache,
    "data_phantom": _data_phantom,
    "train": _train,
}

# --- what is printed ---


def _say_folder(folder: Path, given: dict[str, Any]) -> None:
    click.echo(folder)
    if not given.get("dry_run"):
        _exit_if_failed(folder / "scores" / "dev.csv", folder / "scores" / "test.csv")


def _say_scores(path: Path, _: dict[str, Any]) -> None:
    click.echo(path)
    _exit_if_failed(path)


def _exit_if_failed(*scores: Path) -> None:
    """Exit with status 3 if images have no scores in these files; a file beside each names them."""
    failed = [path for path in (p.with_suffix(".failed.csv") for p in scores) if path.is_file()]
    if failed:
        _exit_with_3(f"Images without scores are named in {', '.join(map(str, failed))}.")


def _exit_with_3(message: str) -> NoReturn:
    click.echo(message, err=True)
    raise click.exceptions.Exit(3)


def _say_predicted(done: Any, _: dict[str, Any]) -> None:
    click.echo(done.path)
    if done.failures:
        _exit_with_3(
            f"{len(done.failures)} of {done.images} images could not be scored; they are named in "
            f"{done.path.with_suffix('.failed.csv')}."
        )


def _say_cache(cached: Any, _: dict[str, Any]) -> None:
    if isinstance(cached, str):
        click.echo(cached)
        return
    click.echo(f"{cached.made} images made, {cached.kept} there already.", err=True)
    click.echo(cached.folder)
    if cached.failures:
        where = cached.failed or examples(cached.failures.values(), 3)
        _exit_with_3(f"{len(cached.failures)} images could not be read: {where}")


def _say_corrected(done: Any, given: dict[str, Any]) -> None:
    counted = f"{done.changed} labels changed, {done.confirmed} confirmed"
    click.echo(f"{counted}, {done.undecided} undecided", err=True)
    click.echo(given["out"])


def _say_submitted(done: Any, given: dict[str, Any]) -> None:
    if done.made.filled:
        failed = f"{len(done.made.filled)} images failed"
        click.echo(f"{failed}; submitted with {given['fill']}.", err=True)
    if done.rehearsal is not None:
        found = done.rehearsal
        defined = len(found.ap) - len(found.undefined)
        value = "undefined" if not defined else repr(found.mAP)
        click.echo(f"mAP {value} over {defined} of {len(found.ap)} classes, {found.n} images")
    if done.path is not None:
        click.echo(done.path)


def _say_started(done: Any, given: dict[str, Any]) -> None:
    if given.get("dry_run") or done.jobs:
        click.echo("\n".join(done.jobs or done.plan))
        return
    click.echo("\n".join([*done.summary, f"The report: {done.report}", "Next:"]))
    click.echo("\n".join(f"  {line}" for line in done.next))
    _exit_if_failed(done.folder / "scores" / "test.csv")


def _say_review(done: Any, _: dict[str, Any]) -> None:
    click.echo(done.page)
    click.echo(done.corrections)


AFTER: dict[str, Callable[[Any, dict[str, Any]], None]] = {
    "calibrate": _say_scores,
    "data_cache": _say_cache,
    "data_correct": _say_corrected,
    "data_folder": lambda made, _: click.echo(made.path),
    "ensemble": _say_folder,
    "ensemble_apply": _say_scores,
    "predict": _say_predicted,
    "review": _say_review,
    "start": _say_started,
    "submit": _say_submitted,
    "train": _say_folder,
}


def _evaluation(result: Any) -> tuple[Any, str]:
    from lingula.scores.results import to_json, to_text

    return to_json(result), to_text(result)


def _check(report: Any) -> tuple[Any, str]:
    from lingula.tables.checking import to_json, to_text

    return to_json(report), to_text(report)


def _table(made: Any) -> tuple[Any, str]:
    from lingula.tables.making import summary_as_json, summary_as_text

    return summary_as_json(made), summary_as_text(made)


def _figures(name: str) -> Callable[[Any], tuple[Any, str]]:
    """For a verb that measures or lists: its module says its result as text."""

    def say(result: Any) -> tuple[Any, str]:
        module = importlib.import_module(f"lingula.{lingula.MODULES[name]}")
        return result, str(module.to_text(result))

    return say


TEXT_AND_JSON: dict[str, Callable[[Any], tuple[Any, str]]] = {
    **{name: _figures(name) for name in _FIGURES},
    **dict.fromkeys(_TABLES, _table),
    "data_check": _check,
    "evaluate": _evaluation,
}
