"""Subgroups: each group is its rows alone, draws are shared, small groups are flagged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lingula.scores.evaluation import Setting, evaluate_predictions
from lingula.scores.intervals import bootstrap, interval
from lingula.scores.predictions import Predictions, select_rows
from lingula.scores.results import to_json, to_text
from lingula.scores.subgroups import age_bands, group_of_rows
from lingula.settings.label_space import LabelSpace
from lingula.settings.vocabulary import parse_age
from lingula.system.errors import InputError
from lingula.tables.table import BLANK, UNCERTAIN, Table, subset
from lingula.verbs.evaluate import evaluate

N = 400


def pair(**columns: Any) -> tuple[Predictions, Table]:
    random = np.random.default_rng(0)
    images = tuple(f"{i}.png" for i in range(N))
    labels = (random.random((N, 2)) < 0.3).astype(np.float32)
    values = np.clip(random.normal(0.4 + 0.2 * labels, 0.15), 0, 1)
    views = np.array(columns.get("views", [""] * N))
    values[views == "AP", 0] = random.random(int((views == "AP").sum()))  # worthless there
    space = LabelSpace(("Edema", "Mass"))
    return Predictions(space.classes, images, values), Table(
        images, Path(), space, labels, **columns
    )


def views() -> tuple[str, ...]:
    return tuple("AP" if i % 2 else "PA" for i in range(N))


def test_each_group_is_measured_as_its_rows_alone() -> None:
    made, labels = pair(views=views())
    result = evaluate_predictions(made, labels, setting=Setting(subgroups=("view",)))
    (part,) = result.subgroups
    assert [group.name for group in part.groups] == ["AP", "PA"]
    for group in part.groups:
        rows = np.flatnonzero(np.array(views()) == group.name)
        alone = evaluate_predictions(select_rows(made, rows), subset(labels, rows))
        np.testing.assert_array_equal(group.metrics.ap, alone.metrics.ap)
        np.testing.assert_array_equal(group.metrics.auroc, alone.metrics.auroc)
        np.testing.assert_array_equal(group.metrics.positives, alone.metrics.positives)
        assert (group.n, group.mAP, group.AUROC) == (
            200,
            alone.metrics.mAP,
            alone.metrics.macro_auroc,
        )
    assert part.gap is not None and (part.gap.high, part.gap.low) == ("PA", "AP")
    assert part.gap.difference == part.groups[1].AUROC - part.groups[0].AUROC
    assert part.gap.ci is None  # none asked for


def test_a_gap_has_the_interval_of_draws_of_the_same_patients() -> None:
    patients = tuple(f"p{i // 4}" for i in range(N))  # each patient has both views
    made, labels = pair(views=views(), patients=patients)
    result = evaluate_predictions(made, labels, ci=200, setting=Setting(subgroups=("view",)))
    gap = result.subgroups[0].gap
    assert gap is not None and gap.ci is not None
    known = labels.labels >= 0
    drawn = [
        bootstrap(
            made.probabilities,
            labels.labels,
            known & (np.array(views()) == name)[:, None],
            patients,
            draws=200,
        ).auroc.mean(axis=1)
        for name in ("PA", "AP")
    ]
    assert gap.ci == interval(drawn[0] - drawn[1])
    assert gap.ci[0] > 0.05  # a real gap: a class is worthless in AP
    edema = result.subgroups[0].gaps[0]
    assert edema is not None and edema.difference > gap.difference


def test_groups_without_a_difference_have_a_gap_that_holds_zero() -> None:
    made, labels = pair(sources=tuple("ab"[i % 2] for i in range(N)))
    result = evaluate_predictions(made, labels, ci=300, setting=Setting(subgroups=("source",)))
    gap = result.subgroups[0].gap
    assert gap is not None and gap.ci is not None and gap.ci[0] < 0 < gap.ci[1]


def test_small_groups_are_flagged_and_in_no_gap() -> None:
    sexes = tuple("M" if i < 195 else "F" if i < 390 else "" for i in range(N))
    made, labels = pair(sexes=sexes)
    result = evaluate_predictions(made, labels, ci=20, setting=Setting(subgroups=("sex",)))
    part = result.subgroups[0]
    assert [(g.name, g.n, g.small) for g in part.groups] == [
        ("F", 195, False),
        ("M", 195, False),
        ("unknown", 10, True),
    ]
    assert np.isnan(part.groups[2].AUROC) and part.groups[2].AUROC_ci is None
    assert part.gap is not None and {part.gap.high, part.gap.low} == {"F", "M"}
    assert "unknown*" in to_text(result)


def test_means_are_over_the_classes_that_every_group_can_measure() -> None:
    made, labels = pair(views=views())
    cells = labels.labels.copy()
    cells[np.array(views()) == "AP", 1] = 0  # Mass is never present in AP
    scarce = Table(labels.images, Path(), labels.space, cells, views=views())
    part = evaluate_predictions(made, scarce, setting=Setting(subgroups=("view",))).subgroups[0]
    assert part.compared == ("Edema",) and part.gaps[1] is None
    assert part.groups[1].metrics.auroc[0] == part.groups[1].AUROC


def test_a_group_of_few_films_does_not_leave_nothing_to_compare_by() -> None:
    """Age bands: the narrow ones at the ends have 20 positives of a finding or two."""
    random = np.random.default_rng(0)
    n, k = 900, 6
    ages = ["45"] * 400 + ["65"] * 400 + ["15"] * 100
    cells = (random.random((n, k)) < 0.3).astype(np.float32)
    cells[800:, 1:] = 0  # of the young, one class alone can be measured
    space = LabelSpace(tuple("ABCDEF"))
    names = tuple(f"{i}.png" for i in range(n))
    labels = Table(names, Path(), space, cells, ages=tuple(ages))
    made = Predictions(space.classes, names, random.random((n, k)))
    part = evaluate_predictions(made, labels, setting=Setting(subgroups=("age",))).subgroups[0]
    assert [(g.name, g.small) for g in part.groups] == [
        ("10-19", True),
        ("40-49", False),
        ("60-69", False),
    ]
    assert len(part.compared) == 6 and part.gap is not None and "10-19" not in part.gap.high
    assert part.gaps[0] is not None  # a class of its own is compared wherever it can be


def test_a_class_can_be_the_group() -> None:
    made, labels = pair()
    cells = labels.labels.copy()
    cells[0, 1], cells[1, 1] = UNCERTAIN, BLANK
    changed = Table(labels.images, Path(), labels.space, cells)
    found = group_of_rows(changed, "mass")
    assert found[:2] == ("unknown", "unknown")
    assert set(found[2:]) == {"Mass present", "Mass absent"}
    assert group_of_rows(Table(labels.images, Path(), labels.space, cells, blank="zero"), "Mass")[
        :2
    ] == ("unknown", "Mass absent")
    result = evaluate_predictions(made, changed, setting=Setting(subgroups=("Mass",)))
    assert result.subgroups[0].compared == ("Edema",)


def test_case_68_impossible_ages_and_sexes() -> None:
    assert [parse_age(cell) for cell in ("0", "411", "058Y", "", "57", "58.0")] == [
        None,
        None,
        58,
        None,
        57,
        58,
    ]
    assert parse_age("006M") == 0.5 and parse_age("000Y") is None
    assert parse_age("old") is None and parse_age("121") is None
    assert age_bands(("0", "411", "058Y", "", "10", "9", "95")) == (
        *("unknown", "unknown", "50-59", "unknown", "10-19", "0-9", "90+"),
    )
    assert age_bands(("17", "18", "64", "65"), (18, 65)) == ("0-17", "18-64", "18-64", "65+")
    with pytest.raises(InputError, match="must be positive and rise"):
        age_bands(("1",), (40, 18))
    sexes = ("M", "Male", "U", "") * (N // 4)
    made, labels = pair(sexes=sexes)
    result = evaluate_predictions(made, labels, setting=Setting(subgroups=("sex",)))
    value = to_json(result)["subgroups"]["sex"]
    assert {name: group["n"] for name, group in value["groups"].items()} == {
        "M": 200,
        "unknown": 200,
    }


def test_the_json_is_plain() -> None:
    made, labels = pair(views=views(), ages=tuple(str(20 + i % 60) for i in range(N)))
    result = evaluate_predictions(
        made, labels, ci=20, setting=Setting(subgroups=("view", "age"), age_edges=(40, 60))
    )
    value = to_json(result)
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    ages = value["subgroups"]["age"]
    assert list(ages["groups"]) == ["0-39", "40-59", "60+"]
    assert sum(group["n"] for group in ages["groups"].values()) == N
    low, high = ages["groups"]["60+"]["classes"]["Mass"]["AUROC_ci"]
    assert low < ages["groups"]["60+"]["classes"]["Mass"]["AUROC"] < high


def test_wrong_columns_are_refused() -> None:
    made, labels = pair()
    for column, message in (
        ("view", "has no column view"),
        ("veiw", "neither a column nor a class. Did you mean 'view'"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate_predictions(made, labels, setting=Setting(subgroups=(column,)))
    studied = pair(views=views(), studies=tuple(f"s{i // 2}" for i in range(N)))
    with pytest.raises(InputError, match="several views"):
        evaluate_predictions(*studied, by="study", setting=Setting(subgroups=("view",)))


def test_studies_have_the_cell_of_their_patient() -> None:
    sexes = tuple("MF"[i // 2 % 2] for i in range(N))
    studied = pair(sexes=sexes, studies=tuple(f"s{i // 2}" for i in range(N)))
    result = evaluate_predictions(*studied, by="study", setting=Setting(subgroups=("sex",)))
    assert [(g.name, g.n) for g in result.subgroups[0].groups] == [("F", 100), ("M", 100)]


def test_real_films(real_data: Path, tmp_path: Path) -> None:
    labels = real_data / "nih-mini" / "labels.csv"
    names = labels.read_text().splitlines()
    random = np.random.default_rng(0)
    path = tmp_path / "s.csv"
    rows = [f"{line.split(',')[0]},{random.random()},{random.random()}" for line in names[1:]]
    path.write_text("image,Effusion,Mass\n" + "\n".join(rows) + "\n")
    value = to_json(
        evaluate(path, labels=labels, ci=200, subgroups=("view", "sex", "age"), age_edges=(40, 65))
    )["subgroups"]
    assert set(value["view"]["groups"]) == {"AP", "PA"}
    assert sum(group["n"] for group in value["age"]["groups"].values()) == 1419
    for part in value.values():  # chance everywhere: no gap can be told from none
        assert part["gap"]["AUROC"] < 0.2


@pytest.mark.parametrize(
    ("asked", "right"),
    [
        ({}, {"present": 2, "absent": 3, "unknown": 3}),  # h's blank rows are absent
        ({"blank": "zero"}, {"present": 2, "absent": 4, "unknown": 2}),
        ({"blank": "ignore"}, {"present": 2, "absent": 1, "unknown": 5}),
        ({"uncertain": "zero"}, {"present": 2, "absent": 4, "unknown": 2}),
        ({"uncertain": "one"}, {"present": 3, "absent": 3, "unknown": 2}),
        ({"unmentioned": "zero"}, {"present": 2, "absent": 4, "unknown": 2}),
    ],
)
def test_a_findings_groups_are_what_its_cells_count_as(
    tmp_path: Path, asked: dict[str, Any], right: dict[str, int]
) -> None:
    """Of a source that leaves negatives blank, one that does not, and one without the finding."""
    cells = ["h,1", "h,", "h,", "g,1", "g,0", "g,", "g,-1", "f,"]
    rows = [f"{i}.png,{cell},{i % 2}" for i, cell in enumerate(cells)]
    labels = tmp_path / "t.csv"
    labels.write_text("image,source,Support Devices,Edema\n" + "\n".join(rows) + "\n")
    sources = {"h": {"blank": "zero"}, "f": {"knows": ["Edema"]}}
    described = {"format": 1, "blank": "ignore", "sources": sources}
    labels.with_suffix(".json").write_text(json.dumps(described))
    (tmp_path / "s.csv").write_text(
        "image,Edema\n" + "".join(f"{i}.png,{i / 10}\n" for i in range(8))
    )
    found = evaluate(tmp_path / "s.csv", labels=labels, subgroups=["Support Devices"], **asked)
    sizes = {group.name.rpartition(" ")[2]: group.n for group in found.subgroups[0].groups}
    assert sizes == right
