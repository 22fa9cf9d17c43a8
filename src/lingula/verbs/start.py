"""`lingula start`: from a table to a model that can be trusted, in one command."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from lingula.settings.config import Config, Data, override_settings
from lingula.system import claims, files
from lingula.system.errors import InputError
from lingula.system.progress import count_only, progress

if TYPE_CHECKING:
    from lingula.planning.plan import StartPlan
    from lingula.planning.training_jobs import Job
    from lingula.tables.table import Table

# What imports torch is imported where it is used: it takes longer than the answer to wrong words.

log = logging.getLogger("lingula")

FINISHED = "finished.json"


@dataclass(frozen=True)
class Started:
    """Where the model is, and what is to be said of it.

    Attributes:
        folder: the model: `predict`, `explain`, `calibrate` and `report` take it as they take a
            run.
        plan: what was, or would be, done, as lines.
        jobs: with `print_jobs`, a line for a shell for each training that is left.
        summary: how good the model is, in sentences; empty if it is not finished.
        next: commands that use it.
        report: the page.
    """

    folder: Path
    plan: tuple[str, ...]
    jobs: tuple[str, ...] = ()
    summary: tuple[str, ...] = ()
    next: tuple[str, ...] = ()
    report: Path | None = None


def start(
    table: str | Path,
    overrides: Sequence[str] = (),
    *,
    out: str | Path,
    weights: str | Path | None = None,
    time: str = "1h",
    folds: int = 5,
    test: bool = True,
    dry_run: bool = False,
    print_jobs: bool = False,
    overwrite: bool = False,
) -> Started:
    """Make a model of a table of labelled images: plan, train by folds, choose, measure, report.

    The plan fills the time, from the check of the table to the report, and is written to
    `OUT/plan.yaml` before anything is trained. OUT is then a model that `predict` and `explain`
    take. The same line continues; a finished one is left alone.

    Args:
        table: a table of images and labels, or the `plan.yaml` of an earlier start.
        overrides: `key=value` settings that the plan is to have.
        out: the folder for everything.
        weights: image-encoder weights to start from, a file or a trained run; None: published
            weights that are on this machine, or else random ones.
        time: how long everything may take, such as 15m, 1h or 2h30m.
        folds: how many parts the patients are divided into; each is scored by models of the others.
        test: set a fifth of the patients aside as a test, if the table has no test split.
        dry_run: only check the table, time some steps, and write the plan.
        print_jobs: print a line for each training, for a cluster, and train nothing here.
        overwrite: set an existing folder aside (`NAME.old-1`) and start again.

    Images of the test split are read only at the end, once the model is fixed. Raises `InputError`
    for a table with problems, and if the time is too short or the table too small.
    """
    began = monotonic()
    folder = Path(out).resolve()
    source, settings, given = _settings(Path(table), overrides)
    data = override_settings(Config(data=Data(table=str(source))), _of_data(settings)).data
    asked = _asked(source, settings, given, weights=weights, time=time, folds=folds, test=test)
    there = _plan_there(folder, asked, overwrite)
    with claims.lock_folder(folder, "starting in"):
        done = files.read_object(folder / FINISHED, absent_ok=True)
        if there is not None and done:
            log.info("%s is finished; nothing to do.", folder)
            return _finished(folder, there, done)
        whole, has_test = _read(source, data, asked)
        plan = there or given
        if plan is None:
            plan = _make_plan(source, whole, has_test, asked, lambda: monotonic() - began)
        return _follow(plan, folder, whole, asked, dry_run, print_jobs, there is None)


def _follow(
    plan: StartPlan,
    folder: Path,
    whole: Table,
    asked: Mapping[str, Any],
    dry_run: bool,
    print_jobs: bool,
    new: bool,
) -> Started:
    """Do what is left of a plan."""
    from lingula.planning.folds import write_tables
    from lingula.planning.plan import PLAN, describe, write_plan
    from lingula.planning.training_jobs import job_lines, jobs_of, run_jobs

    if new:
        plan = replace(plan, asked=asked)
        write_plan(plan, folder / PLAN)
    lines = tuple(describe(plan))
    if dry_run:
        return Started(folder, lines)
    for line in lines:
        log.info("%s", line)
    write_tables(plan, folder, whole)
    jobs = jobs_of(plan, folder)
    if print_jobs:
        return Started(folder, lines, jobs=tuple(job_lines(jobs, plan.machine.threads)))
    with progress("training") as tick:
        run_jobs(jobs, plan.machine, folder / "logs", tick, plan.config.optim.epochs)
    return _finish(plan, folder, jobs, lines)


# --- what is asked for ---


def _settings(
    source: Path, overrides: Sequence[str]
) -> tuple[Path, tuple[str, ...], StartPlan | None]:
    """The table, the settings, and the plan if one is given instead of a table."""
    if source.suffix.lower() not in (".yaml", ".yml"):
        if not source.is_file():
            from lingula.tables.cells import FOLDER_TO_TABLE

            raise files.not_a_file(source, "table", " " + FOLDER_TO_TABLE)
        return source.resolve(), tuple(overrides), None
    from lingula.planning.plan import read_plan

    plan = read_plan(source)
    if overrides:
        raise InputError(
            "A plan has all its settings: give no key=value beside it. Change the file, or plan "
            "again from the table."
        )
    return Path(plan.config.data.table), tuple(plan.asked["settings"]), plan


def _of_data(settings: Sequence[str]) -> list[str]:
    """The settings of how the table is read."""
    return [word for word in settings if word.startswith("data.")]


def _asked(
    source: Path,
    settings: tuple[str, ...],
    given: StartPlan | None,
    *,
    weights: str | Path | None,
    time: str,
    folds: int,
    test: bool,
) -> dict[str, Any]:
    """What was asked for, as the plan keeps it, so that the same line is known again."""
    sha256 = files.sha256(source) if source.is_file() else None
    if given is not None:
        if sha256 != given.asked["table_sha256"]:
            raise InputError(
                f"{source} is not the table that the plan was made for, or has changed."
            )
        return dict(given.asked)
    from lingula.planning.budget import parse_time

    parse_time(time)
    seed = override_settings(Config(), [w for w in settings if w.startswith("seed=")]).seed
    return {
        "table_sha256": sha256,
        "settings": list(settings),
        "weights": None if weights is None else str(files.expand_home(str(weights)).resolve()),
        "time": time,
        "folds": folds,
        "test": test,
        "seed": seed,
    }


def _plan_there(folder: Path, asked: Mapping[str, Any], overwrite: bool) -> StartPlan | None:
    """The plan in the folder, if it was made for the same; None if the folder is free."""
    from lingula.planning.plan import PLAN, read_plan

    path = folder / PLAN
    there = read_plan(path) if path.is_file() else None
    conflict = claims.other_settings(None if there is None else there.asked, asked)
    if there is not None and conflict is None and not overwrite:
        return there
    claims.claim(folder, conflict, overwrite=overwrite).make_room()
    return None


def _read(source: Path, data: Data, asked: Mapping[str, Any]) -> tuple[Table, bool]:
    """The table, with `dev` for the images of the folds and `test`; and whether it had a test."""
    from lingula.planning.survey import set_test_aside
    from lingula.tables.configured import configured_table

    table = configured_table(data)
    whole = set_test_aside(
        table,
        test=asked["test"],
        seed=asked["seed"],
        images_are_patients=data.images_are_patients,
    )
    return whole, "test" in (table.splits or ())


# --- planning ---


def _make_plan(
    source: Path,
    whole: Table,
    has_test: bool,
    asked: Mapping[str, Any],
    spent: Callable[[], float],
) -> StartPlan:
    """Check the table, look at the machine, and choose."""
    from lingula.planning.budget import parse_time
    from lingula.planning.making import Wish, base_config, make_plan
    from lingula.planning.plan import Choice
    from lingula.planning.survey import (
        check_measurable,
        count_images,
        find_start,
        warn_if_busy,
    )
    from lingula.settings.config import with_absolute_paths

    wish = Wish(parse_time(asked["time"]), asked["folds"], tuple(asked["settings"]))
    given = asked["weights"] or wish.value("model.weights")
    encoder, start_weights, why = find_start(given, wish.value("model.encoder"))
    config = base_config(encoder, start_weights, [f"data.table={source}", *wish.settings])
    config = with_absolute_paths(config)
    reading = _check(source, whole, config.data)
    counts = check_measurable(whole, config, wish.folds)
    images = count_images(whole)
    rarest = sorted(counts, key=lambda name: counts[name])[:3]
    own = "the table's own test split" if has_test else "a fifth of the patients is set aside"
    notes = [
        Choice(
            "images",
            f"{images.pool:,} to learn from, {images.test:,} for the test",
            own if images.test else "nothing is set aside for a test",
        ),
        Choice(
            "findings",
            str(len(counts)),
            "rarest: " + ", ".join(f"{name} ({counts[name]} patients)" for name in rarest),
        ),
        Choice("encoder", config.model.encoder, why),
    ]
    warn_if_busy()
    log.info("Timing some steps on this machine ...")
    return make_plan(config, images, wish, asked=asked, reading=reading, spent=spent, notes=notes)


def _check(source: Path, whole: Table, data: Data) -> float:
    """Check the table and the images of the folds; seconds that reading one of them took.

    Raises `InputError` with all problems.
    """
    from lingula.planning.survey import count_images
    from lingula.tables.checking import check, to_text

    began = monotonic()
    with progress("reading images") as tick:
        report = check(source, data=data, splits=whole.splits, progress=count_only(tick))
    if not report.fit:
        raise InputError(
            f"{to_text(report)}\nFix these first; `lingula data check {source} --page check.html` "
            "shows them with images."
        )
    for warning in report.warnings:
        log.warning("%s", warning.message)
    return (monotonic() - began) / count_images(whole).pool


# --- what was trained becomes a model ---


def _finish(plan: StartPlan, folder: Path, jobs: Sequence[Job], lines: tuple[str, ...]) -> Started:
    """Choose, write the models, calibrate, measure on test once, and report."""
    from lingula.planning.folds import comparison_to_json, write_models
    from lingula.planning.making import LINEAR
    from lingula.verbs.calibrate import calibrate
    from lingula.verbs.report import report

    compared = write_models(plan, folder, jobs, LINEAR)
    chosen = next(one.name for one in compared if one.chosen)
    for one in compared:
        told = " (used)" if one.chosen else ""
        log.info("Out of fold, %s: mAP %.4f, AUROC %.4f%s.", one.name, one.mAP, one.AUROC, told)
    calibrate(folder)
    models = [folder] if chosen == LINEAR else [folder / LINEAR, folder]
    if plan.images.test:
        for model in models:
            _score_test(model, folder, plan)
    report(models, out=folder / "report.html")
    result = {
        "chosen": chosen,
        "candidates": comparison_to_json(compared),
        "summary": list(_summarise(folder, models)),
    }
    files.write_json(folder / FINISHED, result)
    return _finished(folder, plan, result, lines)


def _finished(
    folder: Path, plan: StartPlan, done: Mapping[str, Any], lines: tuple[str, ...] = ()
) -> Started:
    from lingula.planning.making import LINEAR
    from lingula.planning.plan import describe

    commands = [f"lingula predict {folder} --data IMAGES --out scores.csv"]
    if done["chosen"] != LINEAR:  # a linear head has no attention to show
        commands.append(f"lingula explain {folder} --data IMAGES --out maps")
    return Started(
        folder,
        lines or tuple(describe(plan)),
        summary=tuple(done["summary"]),
        next=tuple(commands),
        report=folder / "report.html",
    )


def _score_test(model: Path, folder: Path, plan: StartPlan) -> None:
    """Score the test split with a model that is fixed by now."""
    from lingula.verbs.predict import predict

    predict(
        model,
        data=folder / "table.csv",
        split="test",
        out=model / "scores" / "test.csv",
        device=plan.config.device,
        cache=plan.config.data.cache,
    )


def _summarise(folder: Path, models: Sequence[Path]) -> tuple[str, ...]:
    """The report's first sentences."""
    from lingula.reporting.summary import summarise
    from lingula.training.run_labels import labels_of

    others = [model for model in models if model != folder]
    return summarise(folder, labels_of(folder), others)
