"""The five sentences with which a report begins, on evaluations that are made up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lingula.reporting.sentences import About, Measured, Rival, find_rare_groups, five_sentences
from lingula.settings.label_space import LabelSpace
from lingula.tables.table import Table, rows_of, subset

CLASSES = ("Edema", "Mass", "Hernia")
ABOUT = About("runs/a", images=(60,), patients=(60,), sources=("north",))


def table(n: int = 120, **columns: Any) -> Table:
    """n images of n patients, half of them for training; every second has the first finding."""
    labels = np.zeros((n, 3), dtype=np.float32)
    labels[::2, 0] = 1
    labels[::10, 1] = 1
    made = Table(
        images=tuple(f"{i}.png" for i in range(n)),
        root=Path(),
        space=LabelSpace(CLASSES),
        labels=labels,
        patients=tuple(f"p{i}" for i in range(n)),
        splits=tuple("train" if i < n // 2 else "test" for i in range(n)),
        views=tuple(("PA", "AP", "LATERAL")[i % 3] for i in range(n)),
        sexes=tuple("FM"[i % 2] for i in range(n)),
        ages=tuple(str((8, 40, 70)[i % 3]) for i in range(n)),
        sources=("north",) * n,
    )
    return replace(made, **columns)


def row(auroc: float | None, ci: tuple[float, float] | None, positives: int = 30) -> dict[str, Any]:
    known = None if not positives else 0.6
    return {
        "AP": known,
        "AUROC": auroc,
        "AUROC_ci": ci,
        "positives": positives,
        "prevalence": positives / 60,
    }


def evaluation(*rows: dict[str, Any], **changes: Any) -> dict[str, Any]:
    value = {
        "mAP": 0.6,
        "mAP_ci": (0.5, 0.7),
        "AUROC": 0.8,
        "AUROC_ci": (0.7, 0.9),
        "n_classes": sum(r["AP"] is not None for r in rows),
        "failed": [],
        "left_out": {"only_in_scores": []},
        "classes": dict(zip(CLASSES, rows, strict=False)),
    }
    return value | changes


GOOD = evaluation(*[row(0.8, (0.7, 0.9))] * 3)


def told(
    result: dict[str, Any] = GOOD,
    about: About = ABOUT,
    every: Table | None = None,
    rival: Rival | None = None,
) -> tuple[str, ...]:
    every = every or table()
    part = subset(every, rows_of(every, "test"))
    return five_sentences(Measured(result, "test", part, every, rival), about)


def test_each_is_one_sentence() -> None:
    said = told()
    assert len(said) == 5
    for sentence in said:
        assert sentence.endswith(".") and sentence[0].isupper() and ". " not in sentence


def test_how_good_with_intervals_and_guessing() -> None:
    assert told()[0] == (
        "On the 60 images of 60 patients of the test split the mean average precision (mAP) over "
        "3 findings is 0.600 (95 % interval 0.500 to 0.700), 1.2 times that of guessing, and the "
        "mean AUROC 0.800 (0.700 to 0.900)."
    )
    assert "(1 more could not be read)" in told(GOOD | {"failed": ["x.png"]})[0]
    assert "of patients" not in told(every=table(patients=None))[0]


def test_an_auroc_whose_interval_includes_a_half_is_not_called_better() -> None:
    assert "not shown to be better than the 0.5" in told(GOOD | {"AUROC_ci": (0.45, 0.9)})[0]
    assert "not shown to be better than the 0.5" in told(GOOD | {"AUROC_ci": None})[0]


@pytest.mark.parametrize(
    ("rival", "words"),
    [
        (Rival("a", True, 0.02, (0.01, 0.03)), '0.020 above that of the linear head "a"'),
        (Rival("a", True, 0.02, (0.01, 0.03)), "better beyond chance"),
        (Rival("a", False, 0.02, (-0.01, 0.03)), "may be chance: neither is shown to be better"),
        (Rival("a", False, -0.02, (-0.03, -0.01)), '0.020 below that of the model "a"'),
        (Rival("a", False, -0.02, (-0.03, -0.01)), "worse beyond chance"),
        (Rival("a", False, 0.02, None), "whether that is chance is not known"),
        (Rival("a", True, 0.02, (0.01, 0.03), 2), '"a", the best of the 2 linear heads'),
        (Rival("a", False, 0.02, (0.01, 0.03), 3), '"a", the best of the 3 other models'),
    ],
)
def test_another_model_is_compared_in_pairs(rival: Rival, words: str) -> None:
    assert words in told(rival=rival)[0]


def test_nothing_can_be_said_without_positives() -> None:
    result = evaluation(*[row(None, None, 0)] * 3, mAP=None, AUROC=None)
    said = told(result)
    assert said[0].startswith("Nothing can be said")
    assert said[2].startswith("No finding could be measured; not measured, for lack of positives")


def test_on_what_it_was_trained_and_measured() -> None:
    assert told()[1] == (
        "The model was trained on 60 images of 60 patients (north), and measured on 60 images of "
        "60 patients (north), none of whom has an image in training."
    )
    members = replace(ABOUT, images=(50, 60), patients=(48, 48))
    assert (
        "The 2 models were trained on 50 to 60 images of 48 patients each" in told(GOOD, members)[1]
    )
    unknown = replace(ABOUT, images=(), patients=(), has_models=False)
    assert told(GOOD, unknown)[1].startswith("The models are not at hand")


def test_figures_that_are_too_kind_are_called_so() -> None:
    chosen = replace(ABOUT, chosen=("the epoch", "the weights of the members"))
    assert (
        "the epoch and the weights of the members were chosen on these same"
        in told(GOOD, chosen)[1]
    )
    assert "the epoch was chosen" in told(GOOD, replace(ABOUT, chosen=("the epoch",)))[1]
    assert "does not say whose images" in told(every=table(patients=None))[1]
    shared = table()
    assert shared.patients is not None
    shared = replace(shared, patients=("p60", *shared.patients[1:]))
    assert "1 patient of these has images in training too" in told(every=shared)[1]


def test_scores_out_of_fold_are_called_so() -> None:
    about = replace(ABOUT, out_of_fold=True)
    assert "each scored by models that never saw its patient" in told(GOOD, about)[1]
    assert "were not trained on it" in told(GOOD, about, table(patients=None))[1]


def test_findings_that_are_not_shown_to_be_better_than_guessing_are_named() -> None:
    result = evaluation(row(0.6, (0.4, 0.8)), row(0.3, (0.2, 0.4)), row(None, None, 0))
    said = told(result)[2]
    assert "For 1 of the 2 findings measured it is not shown to be better" in said
    assert said.endswith(
        "Edema; it is worse than guessing for Mass; not measured, for lack of positives: Hernia."
    )
    assert "each of the 3 findings" in told()[2]
    one = told(evaluation(row(0.8, (0.7, 0.9))))[2]
    assert one.startswith("For the one finding measured it is better than guessing")
    worse = told(evaluation(row(0.3, (0.2, 0.4))))[2]
    assert worse == "It is worse than guessing for Edema."
    assert "Edema" in told(evaluation(row(0.9, None)))[2]
    everywhere = told(evaluation(row(None, None, 60)))[2]
    assert "for lack of negatives: Edema" in everywhere
    assert (
        "for lack of labels: Fracture"
        in told(GOOD | {"left_out": {"only_in_scores": ["Fracture"]}})[2]
    )


def test_for_whom_it_was_not_measured() -> None:
    assert told()[3].startswith("Each view, sex, age group and source")
    every = table(views=("PA",) * 120, sexes=None, ages=("3",) * 10 + ("50",) * 110)
    assert told(every=every)[3] == (
        "For these groups it was measured on too few patients or none: AP views (none), lateral "
        "views (none), children under 18 (none) and patients of 65 and over (none); the table does "
        "not say the sex of the images measured; no image from a hospital outside the table was measured."
    )
    bare = told(every=table(views=None, sexes=None, ages=None, sources=None))[3]
    assert "does not say the views, sex and age" in bare


def test_groups_count_patients_and_not_images() -> None:
    every = table(patients=tuple(f"p{i % 6}" for i in range(120)))
    few, _ = find_rare_groups(every, every)
    assert few["PA views"] == 2 and few["female patients"] == 3
    assert not find_rare_groups(*[replace(every, patients=None)] * 2)[0]


def test_a_source_that_is_only_in_training_was_not_measured() -> None:
    few, _ = find_rare_groups(table(sources=("north",) * 120), table(sources=("south",) * 120))
    assert few["images of south"] == 0


def test_drawn_images_say_nothing_of_patients() -> None:
    said = told(GOOD, replace(ABOUT, phantom=True))
    assert "say nothing about patients" in said[1]
    assert said[3] == "It was measured for nobody: the images are drawn and have no patients."
    assert "lingula start TABLE" in said[4] and "predict" not in said[4]


def test_what_to_do_next() -> None:
    result = evaluation(row(0.8, (0.7, 0.9)), row(0.6, (0.4, 0.8), 6), row(None, None, 0))
    said = told(result, replace(ABOUT, place="runs/my a"))[4]
    assert said.startswith("Next: `lingula predict 'runs/my a' --data FOLDER --out scores.csv`")
    assert (
        "Hernia (0 in the table, 0 of them measured) and Mass (12 in the table, 6 of them measured)"
        in said
    )
    assert "lingula calibrate 'runs/my a'" in said and "research use only" in said
    assert "--calibrated" in told(GOOD, replace(ABOUT, calibrated=True))[4]
    assert "label more" not in told()[4]
    scores_only = told(GOOD, replace(ABOUT, has_models=False))[4]
    assert "lingula ensemble apply runs/a/ensemble.json" in scores_only
