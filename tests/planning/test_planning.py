"""A plan: what fits into a time, folds that never share a patient, and the choice of a design."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from builders import imagenet_of, write_tiny
from lingula.bench.speed import Speed, speed_from_json, speed_to_json
from lingula.planning import making, survey, training_jobs
from lingula.planning.budget import LEVELS, Images, Machine, parse_time, total_seconds
from lingula.planning.choosing import candidates_of, choose, compare_scores, pool_folds
from lingula.planning.folds import write_tables
from lingula.planning.making import Wish, fit_budget
from lingula.planning.plan import Choice, StartPlan, describe, read_plan, write_plan
from lingula.planning.training_jobs import Job, environment, fold_table, job_lines, jobs_of
from lingula.scores.members import Sample
from lingula.scores.predictions import Predictions
from lingula.settings.config import Config, read_config, vary
from lingula.settings.recipes import recipe
from lingula.system.errors import InputError, StoppedError
from lingula.tables.checking import check
from lingula.tables.reading import read_table
from lingula.tables.splits import folds_by_patient
from lingula.tables.table import Table, rows_of, subset, with_splits
from lingula.training.examples import Sizes

MACHINE = Machine("cpu", 2, 1, 0.001)
IMAGES = Images(1000, 200)


def speed(step: float, config: Config | None = None) -> Speed:
    return Speed(config or recipe("small"), 20, step, 0.01, 0.01, 0.0, 10**9, Sizes(10**8, 0))


def trainings(step: float = 1.0) -> list[tuple[Speed, Config]]:
    return [(speed(step), recipe("small")), (speed(step / 2), recipe("small"))]


def plan_of(config: Config, folds: int = 3, seeds: int = 1) -> StartPlan:
    designs: dict[str, dict[str, object]] = {"linear": {"model.classifier": "linear"}}
    designs["decoder"] = {}
    choices = (Choice("folds", str(folds), "as asked"),)
    asked = {"time": "1h", "settings": ["seed=3"], "weights": None}
    return StartPlan(
        *(config, designs, folds, seeds, MACHINE, IMAGES, {"training": 60.0}, None),
        *(choices, asked),
    )


# --- time ---


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("1h", 3600), ("2h30m", 9000), ("1D", 86400), (" 1h ", 3600)],
)
def test_times_are_read(text: str, seconds: int) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "1", "h", "-1h", "1.5h", "1h 2m", "30m1h"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="15m"):
        parse_time(text)


def test_more_time_never_buys_less() -> None:
    bought = []
    for minutes in (8, 10, 12, 20, 40, 80, 160, 320, 1000, 5000):
        wish = Wish(60.0 * minutes, 5, ())
        level, folds, parts = fit_budget(trainings(), LEVELS, MACHINE, IMAGES, wish, 10.0)
        assert sum(parts.values()) + 10 <= 60 * minutes
        bought.append((folds, LEVELS.index(level)))
    assert bought == sorted(bought)
    assert bought[0][0] < 5
    assert bought[-1] == (5, len(LEVELS) - 1)


def test_levels_cost_more_from_one_to_the_next() -> None:
    costs = [
        sum(
            total_seconds(
                [(s, making.at_level(c, level)) for s, c in trainings()],
                *(MACHINE, IMAGES, 5, level.seeds),
            ).values()
        )
        for level in LEVELS
    ]
    assert costs == sorted(costs)


def test_too_little_time_is_refused_with_what_would_do() -> None:
    with pytest.raises(InputError, match="too short") as refused:
        fit_budget(trainings(10.0), LEVELS, MACHINE, IMAGES, Wish(60.0, 5, ()), 1.0)
    minutes = int(str(refused.value).partition("--time ")[2].partition("--time ")[2].split("m")[0])
    level, folds, _ = fit_budget(
        trainings(10.0), LEVELS, MACHINE, IMAGES, Wish(60.0 * minutes, 5, ()), 1.0
    )
    assert (level, folds) == (LEVELS[0], 2)


def test_a_setting_that_was_given_is_kept() -> None:
    config = vary(recipe("small"), model__image_size=96)
    wish = Wish(3600.0, 5, ("model.image_size=96",))
    levels = making.levels_of(config, wish)
    assert {level.image_size for level in levels} == {96}
    assert len(set(levels)) == len(levels)


def test_a_linear_head_has_a_rate_of_its_own_unless_one_is_given() -> None:
    config = vary(recipe("small"), model__weights="w.safetensors")
    free, fixed = Wish(1.0, 5, ()), Wish(1.0, 5, ("optim.lr=1e-4",))
    assert list(making.designs_of(config, free)) == ["linear", "decoder"]
    assert "optim.lr" in making.designs_of(config, free)["linear"]
    assert "optim.lr" not in making.designs_of(config, fixed)["linear"]
    alone = vary(config, model__classifier="linear")
    assert list(making.designs_of(alone, free)) == ["linear"]


# --- the plan as a file ---


def test_a_plan_is_read_back_and_is_a_recipe(tmp_path: Path) -> None:
    config = vary(recipe("small"), data__table="/there/labels.csv", seed=3)
    plan = plan_of(config)
    write_plan(plan, tmp_path / "plan.yaml")
    assert read_plan(tmp_path / "plan.yaml") == plan
    assert read_config(tmp_path / "plan.yaml") == config
    assert plan.design("linear").model.classifier == "linear"
    assert plan.design("decoder") == config
    assert "in all" in describe(plan)[-1]


@pytest.mark.parametrize("text", ["seed: 1\n", "start: 3\n", "start: {format: 1}\n"])
def test_what_is_no_plan_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(InputError, match="not a plan"):
        read_plan(tmp_path / "plan.yaml")


def test_a_speed_survives_json() -> None:
    assert speed_from_json(speed_to_json(speed(1.5))) == speed(1.5)


# --- the table ---


def table_of(folder: Path, n: int = 60) -> Table:
    return read_table(write_tiny(folder, n))


def test_the_tests_own_split_is_kept_and_else_a_fifth_is_set_aside(tmp_path: Path) -> None:
    table = table_of(tmp_path)
    options = {"test": True, "seed": 0, "images_are_patients": False}
    own = survey.set_test_aside(table, **options)  # type: ignore[arg-type]
    assert rows_of(own, "test").tolist() == rows_of(table, "test").tolist()
    assert len(rows_of(own, "dev")) == len(table) - len(rows_of(own, "test"))
    bare = replace(table, splits=None)
    made = survey.set_test_aside(bare, **options)  # type: ignore[arg-type]
    assert 0.15 < len(rows_of(made, "test")) / len(table) < 0.25
    everything = survey.set_test_aside(bare, **{**options, "test": False})  # type: ignore[arg-type]
    assert len(rows_of(everything, "dev")) == len(table)


def test_rows_in_no_split_stay_in_none(tmp_path: Path) -> None:
    table = table_of(tmp_path)
    splits = ("", *(table.splits or ())[1:])
    made = survey.set_test_aside(
        with_splits(table, splits), test=True, seed=0, images_are_patients=False
    )
    assert (made.splits or ())[0] == ""


def test_a_table_that_says_nothing_is_refused(tmp_path: Path) -> None:
    table = table_of(tmp_path, 20)
    whole = survey.set_test_aside(table, test=True, seed=0, images_are_patients=False)
    few = replace(whole, labels=np.where(np.arange(20)[:, None] < 3, whole.labels, 0))
    with pytest.raises(InputError, match="too small to measure"):
        survey.check_measurable(few, Config(), 2)
    for wrong, told in ((replace(whole, patients=None), "patient"), (whole, "too few patients")):
        with pytest.raises(InputError, match=told):
            survey.check_measurable(wrong, Config(), 100)


def test_the_encoder_follows_from_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(survey, "imagenet_file", lambda name: None)
    assert survey.find_start(None, None)[:2] == ("regnetx_002", "none")
    assert survey.find_start("none", "resnet18")[:2] == ("resnet18", "none")
    with pytest.raises(InputError, match="fetch"):
        survey.find_start("imagenet", None)
    monkeypatch.setattr(survey, "ENCODERS", ("regnetx_002", "resnet18"))
    imagenet_of("resnet18", tmp_path)
    found = survey.find_start(tmp_path / "resnet18.safetensors", None)
    assert found[:2] == ("resnet18", str(tmp_path / "resnet18.safetensors"))
    imagenet_of("resnet34", tmp_path)
    with pytest.raises(InputError, match=r"model\.encoder=NAME"):
        survey.find_start(tmp_path / "resnet34.safetensors", None)
    named = survey.find_start(tmp_path / "resnet34.safetensors", "resnet34")
    assert named[0] == "resnet34"
    monkeypatch.setattr(survey, "imagenet_file", lambda name: tmp_path / "x")
    assert survey.find_start(None, None)[1] == "imagenet"


def test_no_patient_is_in_two_folds_and_every_image_is_in_one(tmp_path: Path) -> None:
    table = table_of(tmp_path, 60)
    twice = replace(table, patients=tuple(f"p{i // 2}" for i in range(60)))
    fold_of = folds_by_patient(twice, 5, seed=1)
    assert sorted(set(fold_of.tolist())) == [0, 1, 2, 3, 4]
    assert np.bincount(fold_of).max() - np.bincount(fold_of).min() <= 4
    patients = np.array(twice.patients)
    for fold in range(5):
        inside = set(patients[fold_of == fold])
        assert not inside & set(patients[fold_of != fold])
    assert fold_of.tolist() == folds_by_patient(twice, 5, seed=1).tolist()
    order = np.random.default_rng(0).permutation(60)
    assert folds_by_patient(subset(twice, order), 5, seed=1).tolist() == fold_of[order].tolist()
    with pytest.raises(InputError, match="at least 2"):
        folds_by_patient(twice, 1)
    with pytest.raises(InputError, match="too few patients"):
        folds_by_patient(subset(twice, np.arange(6)), 5)


def test_tables_of_folds_have_no_test_rows(tmp_path: Path) -> None:
    table = table_of(tmp_path / "data")
    whole = survey.set_test_aside(table, test=True, seed=0, images_are_patients=False)
    test = {whole.images[row] for row in rows_of(whole, "test")}
    pool = [whole.images[row] for row in rows_of(whole, "dev")]
    write_tables(plan_of(Config()), tmp_path, whole)
    scored = []
    for fold in range(3):
        part = read_table(fold_table(tmp_path, fold))
        assert not test & set(part.images)
        assert sorted(part.images) == sorted(pool)
        assert (part.root / part.images[0]).is_file()
        scored += [part.images[row] for row in rows_of(part, "dev")]
    assert sorted(scored) == sorted(pool)
    assert read_table(tmp_path / "table.csv").splits == whole.splits


def test_checking_for_folds_reads_no_test_image(tmp_path: Path) -> None:
    path = write_tiny(tmp_path)
    whole = survey.set_test_aside(read_table(path), test=True, seed=0, images_are_patients=False)
    for row in rows_of(whole, "test"):
        (tmp_path / whole.images[row]).unlink()
    assert not check(path).fit
    assert check(path, splits=whole.splits).fit


# --- trainings ---


def test_jobs_are_lines_that_train_takes(tmp_path: Path) -> None:
    config = vary(recipe("small"), data__ignore_columns=["note"], seed=3)
    jobs = jobs_of(plan_of(config, folds=2, seeds=2), tmp_path)
    assert len(jobs) == 8
    assert len({job.run for job in jobs}) == 8
    words = jobs[0].words
    assert words[:2] == ("train", str(tmp_path / "plan.yaml"))
    assert f"data.table={fold_table(tmp_path, 0)}" in words
    assert "data.ignore_columns=[]" in words
    assert {w for job in jobs for w in job.words if w.startswith("seed=")} == {"seed=3", "seed=4"}
    (jobs[0].run).mkdir(parents=True)
    (jobs[0].run / "finished.json").write_text("{}")
    assert len(job_lines(jobs, 4)) == 7
    assert job_lines(jobs, 4)[0].startswith("OMP_NUM_THREADS=4 lingula train ")


def test_each_share_has_its_threads_and_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Machine("cuda", 2, 3, 0.0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert environment(cuda, 1)["CUDA_VISIBLE_DEVICES"] == "1"
    assert environment(cuda, 1)["OMP_NUM_THREADS"] == "3"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert environment(cuda, 1)["CUDA_VISIBLE_DEVICES"] == "6"
    assert environment(Machine("cpu", 2, 1, 0.0), 1)["CUDA_VISIBLE_DEVICES"] == "4,6"


def _jobs(folder: Path, codes: Sequence[str]) -> list[Job]:
    return [Job(folder / "runs" / f"r{i}", "linear", i, 0, (code,)) for i, code in enumerate(codes)]


@pytest.fixture
def plain_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs whose only word is a program: `python -c WORD` stands in for `python -m lingula`."""
    popen = training_jobs.subprocess.Popen

    def start(words: Sequence[str], **more: object) -> object:
        return popen([sys.executable, "-c", words[3]], **more)  # type: ignore[call-overload]

    monkeypatch.setattr(training_jobs.subprocess, "Popen", start)
    monkeypatch.setattr(training_jobs, "WAIT", 0.02)


FINISH = (
    "import pathlib, sys; run = pathlib.Path({!r}); run.mkdir(parents=True); "
    "(run / 'finished.json').write_text('{{}}')"
)


@pytest.mark.usefixtures("plain_python")
def test_jobs_run_until_all_are_finished(tmp_path: Path) -> None:
    codes = [FINISH.format(str(tmp_path / "runs" / f"r{i}")) for i in range(3)]
    told: list[tuple[int, int]] = []
    run = (MACHINE, tmp_path / "logs", lambda a, b, _: told.append((a, b)), 4)
    training_jobs.run_jobs(_jobs(tmp_path, codes), *run)
    assert told[-1] == (12, 12)
    told.clear()
    training_jobs.run_jobs(_jobs(tmp_path, ["raise SystemExit(1)"] * 3), *run)
    assert not told  # all are finished


@pytest.mark.usefixtures("plain_python")
def test_a_training_that_fails_ends_the_others_and_is_named(tmp_path: Path) -> None:
    slow = "import time; time.sleep(60)"
    codes = ["import sys; sys.stderr.write('no such thing\\n'); sys.exit(2)", slow]
    with pytest.raises(StoppedError, match=r"r0 failed with status 2:\n  no such thing"):
        training_jobs.run_jobs(
            _jobs(tmp_path, codes), MACHINE, tmp_path / "logs", lambda *_: None, 1
        )


# --- the choice ---


def sample_of(members: Mapping[str, np.ndarray], positive: np.ndarray) -> Sample:
    rows = len(positive)
    return Sample(
        tuple(members),
        tuple(f"c{k}" for k in range(positive.shape[1])),
        np.stack(list(members.values())),
        positive,
        np.ones_like(positive),
        tuple(f"p{i // 2}" for i in range(rows)),
    )


def scored(positive: np.ndarray, skill: float, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=positive.shape)
    return 1 / (1 + np.exp(-(skill * positive + noise)))


POSITIVE = np.random.default_rng(0).random((400, 4)) < 0.2


def test_the_simplest_wins_a_tie() -> None:
    same = scored(POSITIVE, 1.0, 1)
    sample = sample_of({"linear": same, "decoder": same.copy()}, POSITIVE)
    compared = choose(candidates_of(sample), sample, draws=200)
    assert [one.name for one in compared] == ["linear", "decoder", "together", "guarded"]
    assert [one.chosen for one in compared] == [True, False, False, False]
    # Within noise of the best: a little worse is not worse.
    nearly = same + 1e-4 * np.random.default_rng(2).normal(size=same.shape)
    sample = sample_of({"linear": nearly.clip(0, 1), "decoder": same}, POSITIVE)
    assert choose(candidates_of(sample), sample, draws=200)[0].chosen


def test_what_is_better_beyond_noise_wins() -> None:
    poor, good = scored(POSITIVE, 0.2, 1), scored(POSITIVE, 2.0, 2)
    sample = sample_of({"linear": poor, "decoder": good}, POSITIVE)
    compared = choose(candidates_of(sample), sample, draws=200)
    assert not compared[0].chosen
    assert compared[0].behind > compared[0].error > 0
    both = [scored(POSITIVE, 1.0, seed) for seed in (3, 4)]
    sample = sample_of({"linear": both[0], "decoder": both[1]}, POSITIVE)
    assert choose(candidates_of(sample), sample, draws=200)[2].chosen
    found = compare_scores(np.mean(both, axis=0), both[0], sample, draws=200)
    assert found.mAP > 0
    assert found.mAP_ci is not None
    assert found.mAP_ci[0] > 0


def test_weights_that_are_chosen_are_those_of_other_patients() -> None:
    """Scores of one patient do not change with that patient's own labels."""
    members = {"linear": scored(POSITIVE, 1.0, 3), "decoder": scored(POSITIVE, 1.0, 4)}
    before = candidates_of(sample_of(members, POSITIVE))[3].scores
    changed = POSITIVE.copy()
    changed[:2] = ~changed[:2]  # both images of one patient
    after = candidates_of(sample_of(members, changed))[3].scores
    assert np.array_equal(before[:2], after[:2])
    assert not np.array_equal(before, after)


def test_folds_are_pooled_in_the_tables_order(tmp_path: Path) -> None:
    table = table_of(tmp_path, 6)

    def part(rows: list[int], values: float) -> Predictions:
        images = tuple(table.images[row] for row in rows)
        scores = np.array(rows)[:, None] / 10 + np.full((len(rows), 4), values)
        return Predictions(table.space.classes, images, scores)

    folds = [
        [part([4, 0], 0.1), part([0, 4], 0.3)],
        [part([1, 5], 0.1), part([5, 1], 0.3)],
        [part([3, 2], 0.1), part([3, 2], 0.3)],
    ]
    pooled = pool_folds(folds, table)
    assert pooled.images == table.images
    assert np.allclose(pooled.probabilities, np.arange(6)[:, None] / 10 + 0.2)
