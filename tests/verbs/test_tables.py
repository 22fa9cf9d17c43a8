"""Tables from tables: maps between label spaces, coverage, join, split, filter, and their size."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import lingula
from lingula.cli import app
from lingula.settings.label_space import CHEXPERT, CXR_LT_2023, NIH, LabelSpace, label_space
from lingula.system.errors import InputError
from lingula.tables.joins import overlap
from lingula.tables.mapping import LabelMap, coverage, map_classes, read_map
from lingula.tables.reading import read_table
from lingula.tables.splits import patients_in_two_splits, split_by_patient
from lingula.tables.table import BLANK, UNCERTAIN, UNMENTIONED, Table, targets
from lingula.tables.where import rows_where


def table(path: Path, text: str, **described: object) -> Path:
    """A table with lines separated by blanks, and a description if any is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(text.split()) + "\n", encoding="utf-8")
    if described:
        path.with_suffix(".json").write_text(json.dumps({"format": 1, **described}))
    return path


def of_cells(classes: tuple[str, ...], labels: list[list[float]], **more: object) -> Table:
    n = len(labels)
    cells = np.array(labels, dtype=np.float32)
    return Table(tuple(f"{i}.png" for i in range(n)), Path(), LabelSpace(classes), cells, **more)  # type: ignore[arg-type]


# ---- maps (case 50)


def test_names_go_together_and_nothing_broad_is_taken_for_narrow() -> None:
    own = of_cells(
        ("Effusion", "Pleural_Thickening", "Infiltrate", "Lung Lesion", "Pleural Other"),
        [[1, 0, 1, 1, 1]],
    )
    found = map_classes(own, label_space("cxr-lt-2023"), None)
    by_name = dict(zip(found.space.classes, found.labels[0].tolist(), strict=True))
    assert by_name["Pleural Effusion"] == by_name["Infiltration"] == 1
    assert by_name["Pleural Thickening"] == 0  # not 1, though Pleural Other is broader
    assert by_name["Nodule"] == by_name["Mass"] == by_name["Fibrosis"] == UNMENTIONED


def test_the_union_of_terms() -> None:
    cells = [
        [0, 1],
        [0, 0],
        [0, UNCERTAIN],
        [BLANK, 0],
        [UNCERTAIN, 1],
        [BLANK, UNCERTAIN],
        [UNMENTIONED] * 2,
    ]
    rules = LabelMap(same={"Mass": ("a", "b")})
    found = map_classes(of_cells(("a", "b"), cells), LabelSpace(("Mass",)), rules)
    assert found.labels[:, 0].tolist() == [1, 0, UNCERTAIN, BLANK, 1, UNCERTAIN, UNMENTIONED]


def test_narrow_terms_never_say_absent_and_broad_ones_never_present() -> None:
    own = of_cells(("rib fracture", "Nodule/Mass"), [[1, 1], [0, 0]])
    rules = LabelMap(narrower={"Fracture": ("rib fracture",)}, broader={"Nodule": ("Nodule/Mass",)})
    found = map_classes(own, LabelSpace(("Fracture", "Nodule")), rules)
    assert found.labels.tolist() == [[1, UNCERTAIN], [BLANK, 0]]


def test_what_a_rule_leaves_open_does_not_become_absent() -> None:
    """Where blank means absent, blank cells are stated before a rule makes cells that mean nothing."""
    own = of_cells(("rib fracture", "Edema"), [[0, BLANK]], blank="zero")
    rules = LabelMap(narrower={"Fracture": ("rib fracture",)})
    found = map_classes(own, LabelSpace(("Fracture", "Edema")), rules)
    assert found.labels.tolist() == [[BLANK, 0]] and targets(found)[1].tolist() == [[False, True]]


def test_maps_from_yaml(tmp_path: Path) -> None:
    path = tmp_path / "map.yaml"
    path.write_text("same:\n  Nodule: [nodule, multiple nodules]\nbroader:\n  Mass: Nodule/Mass\n")
    rules = read_map(path)
    assert rules.same == {"Nodule": ("nodule", "multiple nodules")}
    assert rules.broader == {"Mass": ("Nodule/Mass",)}
    own = of_cells(("nodule", "multiple nodule", "Nodule/Mass"), [[1, 0, 1]])
    with pytest.raises(
        InputError, match=r"no class 'multiple nodules'.*Did you mean 'multiple nodule'"
    ):
        map_classes(own, label_space("cxr-lt-2023"), rules)
    with pytest.raises(InputError, match="Did you mean 'Mass'"):
        map_classes(own, label_space("cxr-lt-2023"), LabelMap(same={"Mas": ("nodule",)}))


def test_a_map_may_say_term_by_term_what_each_stands_for(tmp_path: Path) -> None:
    """The spelling of `data folder`: the same map as by classes, but a term is nothing besides."""
    path = tmp_path / "map.yaml"
    path.write_text("knot: Nodule\nmany knots: Nodule\nEffusion: Edema\nMass: null\n")
    rules = read_map(path)
    assert rules.same == {"Nodule": ("knot", "many knots"), "Edema": ("Effusion",)}
    own = of_cells(("knot", "many knots", "Effusion", "Mass"), [[0, 1, 1, 1], [0, 0, 0, 1]])
    space = LabelSpace(("Nodule", "Edema", "Pleural Effusion", "Mass"))
    found = map_classes(own, space, rules).labels
    assert found.tolist() == [[1, 1, UNMENTIONED, UNMENTIONED], [0, 0, UNMENTIONED, UNMENTIONED]]
    path.write_text("same: {Nodule: [knot, many knots], Edema: Effusion}\nnone: Mass\n")
    found = map_classes(own, space, read_map(path)).labels
    assert found.tolist() == [[1, 1, 1, UNMENTIONED], [0, 0, 0, UNMENTIONED]]
    with pytest.raises(InputError, match=r"no class 'Masses'.*Did you mean 'Mass'"):
        map_classes(own, space, LabelMap(apart=("Masses",)))


def test_one_map_serves_sources_and_joins(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    paths = []
    for name, text in (
        ("flat", "Edema: Nodule\nMass: null\n"),
        ("rules", "same: {Nodule: Edema}\n"),
    ):
        (tmp_path / f"{name}.yaml").write_text(text)
        found = lingula.data_join(
            [a, b],
            out=tmp_path / f"{name}.csv",
            classes=["Nodule", "Hernia", "Mass"],
            mapping=tmp_path / f"{name}.yaml",
        )
        paths.append(found.table.labels)
    flat, rules = paths
    assert (flat[:, :2] == rules[:, :2]).all() and (rules[:, 0] >= 0).any()
    assert (flat[:, 2] == UNMENTIONED).all() and (rules[:, 2] != UNMENTIONED).any()


# Case 143


@pytest.mark.parametrize(
    "text",
    ['!!python/object/apply:os.system ["touch pwned"]', "- a", "", "some: {a: b}", "same: a",
     "same: {a: [1]}", "same: {a: []}", "a: 1", "a: [b]", "none: {a: b}", "none: null", "a: B\nnarrower: {b: c}", "same: {a: b}\nbroader: {A: c}", "same: ["],
)  # fmt: skip
def test_wrong_maps_are_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "map.yaml").write_text(text)
    with pytest.raises(InputError, match=r"map\.yaml"):
        read_map(tmp_path / "map.yaml")
    assert not (tmp_path / "pwned").exists()


def test_coverage_of_nih_and_chexpert() -> None:
    """Their union knows 21 of the challenge's 26 classes, and none twice is counted once."""
    a = of_cells(NIH, [[0] * 15] * 3, sources=("nih",) * 3)
    b = of_cells(CHEXPERT, [[0] * 13 + [UNCERTAIN], [BLANK] * 14], sources=("chexpert",) * 2)
    nih, chexpert = coverage([a, b], label_space("cxr-lt-2023"))
    assert (len(nih.knows), nih.images, nih.filled) == (15, 3, 3 * 11)
    assert (len(chexpert.knows), chexpert.filled) == (14, 2 * 12)
    assert (chexpert.uncertain, chexpert.blank) == (1, 14)
    assert len(set(nih.knows) | set(chexpert.knows)) == 21


# ---- join


def two(folder: Path) -> tuple[Path, Path]:
    a = table(
        folder / "a" / "a.csv",
        "image,patient,source,Edema,Mass,Hernia x.png,1,h,1,0,-1 y.png,2,h,0,,0",
        blank="zero",
    )
    b = table(
        folder / "b" / "b.csv",
        "image,patient,split,Effusion,edema x.png,7,train,1,0 z.png,5,dev,,1",
    )
    return a, b


# Case 52


def test_joined_tables_keep_what_each_source_knows(tmp_path: Path) -> None:
    found = lingula.data_join(two(tmp_path), out=tmp_path / "t.csv")
    joined = read_table(found.path)
    assert joined.space.classes == ("Edema", "Mass", "Hernia", "Pleural Effusion")
    no = UNMENTIONED
    right = [[1, 0, UNCERTAIN, no], [0, BLANK, 0, no], [0, no, no, 1], [1, no, no, BLANK]]
    assert joined.labels.tolist() == right
    assert joined.sources == ("h", "h", "b", "b") and joined.patients == ("1", "2", "7", "5")
    assert joined.images == ("a/x.png", "a/y.png", "b/x.png", "b/z.png")
    assert joined.root.samefile(tmp_path) and joined.splits == ("", "", "train", "dev")
    described = json.loads((tmp_path / "t.json").read_text())
    assert described["sources"]["b"] == {"knows": ["Edema", "Pleural Effusion"]}
    assert [known.filled for known in found.coverage] == [2, 4]
    # Blank means absent in the first source and nothing in the second, as each said.
    assert described["sources"]["h"]["blank"] == "zero" and described["blank"] == "ignore"
    assert targets(joined)[1].tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 1], [1, 0, 0, 0]]
    assert targets(joined, unmentioned="zero")[1].sum() == 16 - 2
    assert targets(joined, blank="ignore")[1].sum() == 8 - 1
    for made in (tmp_path / "a" / "a.csv", tmp_path / "b" / "b.csv"):
        assert made.is_file()


def test_joined_into_asked_classes_in_their_order(tmp_path: Path) -> None:
    found = lingula.data_join(two(tmp_path), out=tmp_path / "t.csv", classes="cxr-lt-2023")
    joined = read_table(found.path)
    assert joined.space.classes == CXR_LT_2023 and joined.space.name == "cxr-lt-2023"
    edema = joined.labels[:, joined.space.index("Edema")]
    assert edema.tolist() == [1, 0, 0, 1]


def test_a_join_can_be_joined_and_split_again(tmp_path: Path) -> None:
    lingula.data_join(two(tmp_path), out=tmp_path / "t.csv")
    c = table(tmp_path / "c" / "c.csv", "image,patient,source,Edema q.png,1,k,1")
    found = read_table(lingula.data_join([tmp_path / "t.csv", c], out=tmp_path / "u.parquet").path)
    first = read_table(tmp_path / "t.csv")
    assert (found.labels[:4] == first.labels).all() and found.blanks == {"h": "zero"}
    # Patient 1 of h and of k are two people: no one stands in two splits.
    assert not patients_in_two_splits(found)


def test_one_source_must_know_one_set_of_classes(tmp_path: Path) -> None:
    a = table(tmp_path / "a.csv", "image,patient,source,Edema,Mass x.png,1,h,1,0")
    b = table(tmp_path / "b.csv", "image,patient,source,Edema y.png,2,h,1")
    with pytest.raises(InputError, match=r"source 'h', but only one knows Mass"):
        lingula.data_join([a, b], out=tmp_path / "t.csv")
    found = lingula.data_join([a, b], out=tmp_path / "t.csv", classes=["Edema"])
    assert found.table.labels.tolist() == [[1], [1]]


# Case 63


def test_patients_of_two_tables_are_named(tmp_path: Path) -> None:
    a = table(tmp_path / "a.csv", "image,patient,source,split,Edema x.png,p77,h,train,1")
    b = table(tmp_path / "b.csv", "image,patient,source,split,Edema y.png,p77,h,test,0")
    with pytest.raises(InputError, match=r"more than one: p77 \(h, train, test\)"):
        lingula.data_join([a, b], out=tmp_path / "t.csv")
    assert not (tmp_path / "t.csv").exists()


@pytest.mark.parametrize(("of_a", "of_b"), [("", ""), ("h", ""), ("", "h"), ("h", "k")])
def test_an_id_is_one_patient_unless_different_sources_are_stated(
    tmp_path: Path, of_a: str, of_b: str
) -> None:
    """The case's own two files: p1 in train of the one and in test of the other."""
    head = "image,patient,split,Edema" + ",source"
    a = table(tmp_path / "train.csv", f"{head} i1.png,p1,train,1,{of_a} i2.png,p2,train,0,{of_a}")
    b = table(tmp_path / "test.csv", f"{head} i3.png,p1,test,1,{of_b} i4.png,p4,test,0,{of_b}")
    if not of_a and not of_b:
        a.write_text(a.read_text().replace(",source", "").replace(",\n", "\n"))
        b.write_text(b.read_text().replace(",source", "").replace(",\n", "\n"))
    out = tmp_path / "j.csv"
    if of_a and of_b:
        assert not patients_in_two_splits(lingula.data_join([a, b], out=out).table)
        return
    with pytest.raises(InputError, match=r"1 patients .*: p1 \(train, test\).*column `source`"):
        lingula.data_join([a, b], out=out)
    assert not out.exists()


def test_a_patient_with_and_without_a_source_is_one(tmp_path: Path) -> None:
    """In one table too: such rows stay together in a split, and are no two people after a join."""
    rows = [f"{i}.png,{i % 5},{'h' if i % 2 else ''},{i % 2}" for i in range(20)]
    a = table(tmp_path / "a.csv", "image,patient,source,Edema " + " ".join(rows))
    b = table(tmp_path / "b.csv", "image,patient,source,Edema q.png,9,h,1")
    split = lingula.data_split(a, out=tmp_path / "s.csv", fractions=(0.4, 0.3, 0.3)).table
    for patient in "01234":
        mine = [
            s for s, p in zip(split.splits or (), split.patients or (), strict=True) if p == patient
        ]
        assert len(mine) == 4 and len(set(mine)) == 1
    own = of_cells(
        ("a",), [[1], [0]], patients=("1", "1"), sources=("h", ""), splits=("train", "test")
    )
    assert patients_in_two_splits(own) == {"1": ("train", "test")}
    with pytest.raises(InputError, match=r"a `source` in some rows and none in others: .*Fill"):
        lingula.data_join([a, b], out=tmp_path / "j.csv")


@pytest.mark.parametrize(
    ("ours", "theirs", "named"),
    [
        ("patient,split i,p77,train", "patient,split j,77,test", r"77 = p77 \(train, test\)"),
        ("study,split i,s1,train", "study,split j,s1,dev", r"study s1 \(train, dev\)"),
        ("patient,study i,7,s1", "study j,s1", "7"),
        ("patient i,7", "patient j,7.0", "7"),
    ],
)
def test_one_patient_is_found_in_two_tables_however_it_is_told(
    ours: str, theirs: str, named: str, tmp_path: Path
) -> None:
    a = table(tmp_path / "a.csv", "Edema,image," + ours.replace(" ", " 1,"))
    b = table(tmp_path / "b.csv", "Edema,image," + theirs.replace(" ", " 0,"))
    with pytest.raises(InputError, match=f"1 patients are in more than one: {named}\\."):
        lingula.data_join([a, b], out=tmp_path / "t.csv")


def test_images_without_ids_are_no_patients(tmp_path: Path) -> None:
    a = table(tmp_path / "a" / "a.csv", "image,patient,Edema i,,1 j,,0")
    b = table(tmp_path / "b" / "b.csv", "image,Edema i,1")
    assert len(lingula.data_join([a, b], out=tmp_path / "t.csv", images=False).table) == 3


def test_an_image_of_two_tables_is_found_however_it_is_written(tmp_path: Path) -> None:
    a = table(tmp_path / "a.csv", "image,Edema f/x.png,1")
    b = table(tmp_path / "b.csv", "image,Edema ./f//x.png,0")
    with pytest.raises(InputError, match=r"are in two of the tables: f/x\.png"):
        lingula.data_join([a, b], out=tmp_path / "t.csv")


def test_image_files_of_two_tables(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for folder, seeds in (("a", (1, 2)), ("b", (2, 3))):
        for i, seed in enumerate(seeds):
            (tmp_path / folder).mkdir(exist_ok=True)
            pixels = np.random.default_rng(seed).integers(0, 255, (9, 9), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{i}.png")
    a = table(tmp_path / "a" / "a.csv", "image,split,Edema 0.png,train,1 1.png,train,1")
    b = table(tmp_path / "b" / "b.csv", "image,split,Edema 0.png,train,1 1.png,test,1")
    pair = (str(tmp_path / "a/1.png"), str(tmp_path / "b/0.png"))
    assert overlap([read_table(a), read_table(b)]).images == (pair,)
    with caplog.at_level(logging.WARNING, "lingula"):
        lingula.data_join([a, b], out=tmp_path / "t.csv")
    assert f"1 images are in two tables: {pair[0]} = {pair[1]}" in caplog.text
    table(b, "image,split,Edema 0.png,test,1 1.png,test,1")
    with pytest.raises(
        InputError, match=r"in different splits: .*a/1.png \(train\) = .*b/0.png \(test"
    ):
        lingula.data_join([a, b], out=tmp_path / "u.csv")


def test_no_table_is_written_over(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    mine = table(tmp_path / "notes.csv", "something,else 1,2")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"notes.csv is there already, and lingula did not"):
            lingula.data_join([a, b], out=mine, overwrite=overwrite)
    assert mine.read_text() == "something,else\n1,2\n"
    out = lingula.data_join([a, b], out=tmp_path / "t.csv").path
    stamp = out.stat().st_mtime_ns
    lingula.data_join([a, b], out=out)  # the same line again
    assert out.stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match="--overwrite"):
        lingula.data_join([a, b], out=out, classes=["Edema"])
    lingula.data_join([a, b], out=out, classes=["Edema"], overwrite=True)
    assert (tmp_path / "t.csv.old-1").is_file() and read_table(out).space.classes == ("Edema",)
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(InputError, match=r"mine.json is there already"):
        lingula.data_join([a, b], out=tmp_path / "mine.csv")


def test_an_output_can_not_be_an_input(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    for run in (
        lambda: lingula.data_join([a, b], out=a, overwrite=True),
        lambda: lingula.data_filter(b, out=b, where="split == 'train'", overwrite=True),
        lambda: lingula.data_split(b, out=b, overwrite=True),
    ):
        with pytest.raises(InputError, match="input"):
            run()
    assert a.is_file() and b.is_file()


def test_a_map_joins_what_names_do_not(tmp_path: Path) -> None:
    a = table(tmp_path / "a.csv", "image,patient,source,Nodule x.png,1,h,1")
    b = table(tmp_path / "b.csv", "image,patient,source,knots,note y.png,1,k,1,abc z.png,2,k,0,")
    (tmp_path / "map.yaml").write_text("same: {Nodule: knots}")
    options = {"mapping": tmp_path / "map.yaml", "classes": ["Nodule"], "ignore_columns": ["note"]}
    found = lingula.data_join([a, b], out=tmp_path / "t.csv", **options)
    assert found.table.labels[:, 0].tolist() == [1, 1, 0]
    (tmp_path / "map.yaml").write_text("same: {Nodule: knot}")
    with pytest.raises(InputError, match=r"the tables have no class 'knot'.*Did you mean 'knots'"):
        lingula.data_join([a, b], out=tmp_path / "u.csv", **options)


# ---- split (cases 63 to 65)


def test_split_is_by_patient_and_covers_all_rows(tmp_path: Path) -> None:
    rows = [f"{p}_{i}.png,p{p},{int(p in (1, 4, 7))}" for p in range(10) for i in range(3)]
    path = table(tmp_path / "t.csv", "image,patient,Hernia " + " ".join(rows))
    found = lingula.data_split(path, out=tmp_path / "s.csv", fractions=(0.6, 0.2, 0.2), seed=3)
    split = read_table(found.path)
    assert len(split) == 30 and not patients_in_two_splits(split)
    assert {split.splits.count(s) for s in ("dev", "test")} == {6}
    again = lingula.data_split(path, out=tmp_path / "s2.csv", fractions=(0.6, 0.2, 0.2), seed=3)
    assert again.table.splits == split.splits
    # Three patients have the class, three splits want it: each gets one.
    positive = split.labels[:, 0] == 1
    assert {s for s, has in zip(split.splits, positive, strict=True) if has} == {
        "train",
        "dev",
        "test",
    }


def test_split_says_which_class_is_missing_where(tmp_path: Path) -> None:
    rows = [f"{p}.png,p{p},{int(p < 2)},{p % 2}" for p in range(10)]
    path = table(tmp_path / "t.csv", "image,patient,Hernia,Edema " + " ".join(rows))
    result = CliRunner().invoke(app, ["data", "split", str(path), "--out", str(tmp_path / "s.csv")])
    assert result.exit_code == 0
    lacking = [line for line in result.stdout.splitlines() if "without a positive in" in line]
    assert len(lacking) == 1 and "Hernia" in lacking[0]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(0, 1), min_size=2, max_size=2), min_size=1, max_size=30))
def test_train_dev_and_test_are_apart(labels: list[list[int]]) -> None:
    own = of_cells(("a", "b"), labels, patients=tuple(f"p{i % 7}" for i in range(len(labels))))  # type: ignore[arg-type]
    splits = split_by_patient(own)
    assert len(splits) == len(labels) and set(splits) <= {"train", "dev", "test"}
    by_patient = {(own.patients or ())[i]: set[str]() for i in range(len(own))}
    for patient, split in zip(own.patients or (), splits, strict=True):
        by_patient[patient].add(split)
    assert all(len(found) == 1 for found in by_patient.values())


def test_dev_out_of_an_official_training_set(tmp_path: Path) -> None:
    rows = [f"{p}.png,p{p},{'test' if p >= 30 else 'train'},{p % 2}" for p in range(40)]
    path = table(tmp_path / "t.csv", "image,patient,split,Edema " + " ".join(rows))
    options = {"fractions": (0.8, 0.2, 0.0), "within": "train"}
    split = lingula.data_split(path, out=tmp_path / "s.csv", **options).table
    assert split.splits[30:] == ("test",) * 10
    assert [split.splits.count(s) for s in ("train", "dev")] == [24, 6]
    with pytest.raises(InputError, match="no rows with split 'dev'"):
        lingula.data_split(path, out=tmp_path / "x.csv", within="dev")


def test_patients_of_two_sources_are_two_patients() -> None:
    own = of_cells(
        ("a",), [[1], [0]], patients=("1", "1"), sources=("h", "k"), splits=("train", "test")
    )
    assert not patients_in_two_splits(own)
    assert patients_in_two_splits(
        of_cells(("a",), [[1], [0]], patients=("1", "1"), splits=("train", "test"))
    )


# ---- filter


@pytest.fixture
def people(tmp_path: Path) -> Table:
    text = """image,patient,view,age,sex,Edema,Lung_Opacity
        a,1,PA,17,M,1,0 b,2,AP,18,F,0,-1 c,3,LATERAL,,F,,1 d,4,PA,64.5,U,1,1"""
    return read_table(table(tmp_path / "people.csv", text))


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ("view in ('PA', 'AP')", "abd"),
        ("view not in ['PA']", "bc"),
        ("age >= 18", "bd"),
        ("not age >= 18", "ac"),  # no age: not known to be 18
        ("18 <= age < 64.5", "b"),
        ("18 > age", "a"),
        ("sex == 'F' and (view == 'AP' or Edema == 1)", "b"),
        ("Edema == 1 or Lung_Opacity == -1", "abd"),
        ("Edema != 1", "b"),  # blank is neither 1 nor anything else
        ("view != 'PA'", "bc"),
        ("'PA' == view", "ad"),
        ("patient == 3", "c"),
        ("patient in (1, 4)", "ad"),
    ],
)
def test_conditions(condition: str, rows: str, people: Table) -> None:
    assert "".join(people.images[i] for i in rows_where(people, condition)) == rows


@pytest.mark.parametrize(
    "condition",
    [
        "__import__('os').system('touch pwned')",
        "view",
        "view.upper() == 'PA'",
        "[x for x in view]",
        "view == sex",
        "view < 'PB'",
        "age + 1 > 3",
        "view in 'PA'",
        "1 == 1",
        "view is 'PA'",
        "age == True",
        "(lambda: view)() == 1",
        "Edema == 'yes'",
        "viw == 'PA'",
        "view = 'PA'",
        "(" * 500 + "view" + ")" * 500,
        "age == " + "9" * 3000,
        "",
    ],
)
def test_what_is_no_condition_is_refused(
    condition: str, people: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError):
        rows_where(people, condition)
    assert not (tmp_path / "pwned").exists()


def test_filter_writes_the_rows_with_all_that_is_known(tmp_path: Path) -> None:
    path = lingula.data_join(two(tmp_path), out=tmp_path / "t.csv").path
    found = lingula.data_filter(
        path, out=tmp_path / "sub" / "f.csv", where="source == 'h' and Edema == 0"
    )
    kept = read_table(found.path)
    assert kept.images == ("a/y.png",) and kept.root.samefile(tmp_path)
    assert kept.labels.tolist() == [[0, BLANK, 0, UNMENTIONED]]
    assert targets(kept)[1].tolist() == [[True, True, True, False]]
    with pytest.raises(InputError, match="No row of"):
        lingula.data_filter(path, out=tmp_path / "g.csv", where="source == 'nobody'")


def test_the_command_line_joins_splits_and_filters(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    run = CliRunner().invoke
    joined = run(app, ["data", "join", str(a), str(b), "--out", str(tmp_path / "t.csv"), "--json"])
    assert joined.exit_code == 0, joined.output
    facts = json.loads(joined.stdout)
    assert facts["images"] == 4 and facts["sources"]["b"]["lacks"] == ["Mass", "Hernia"]
    assert facts["classes"]["Edema"] == {
        "present": 2,
        "absent": 2,
        "uncertain": 0,
        "blank": 0,
        "unmentioned": 0,
    }
    filtered = run(
        app,
        [
            "data",
            "filter",
            str(tmp_path / "t.csv"),
            "--where",
            "Edema == 1",
            "--out",
            str(tmp_path / "f.csv"),
        ],
    )
    assert filtered.exit_code == 0 and filtered.stdout.splitlines()[-1] == str(tmp_path / "f.csv")
    assert (
        "knows 3 of 4 classes" in filtered.stdout
        and "does not know: Pleural Effusion" in filtered.stdout
    )
    split = run(
        app,
        [
            "data",
            "split",
            str(tmp_path / "t.csv"),
            "--fractions",
            ".5",
            ".25",
            ".25",
            "--out",
            str(tmp_path / "s.csv"),
        ],
    )
    assert split.exit_code == 0, split.output


# ---- size


@pytest.mark.slow
def test_a_table_of_the_challenges_size(tmp_path: Path) -> None:
    """377,110 rows, 26 classes: made, read, checked and joined in 15 seconds and 2 GB.

    Processor seconds on an idle machine: beside other tests on shared cores they are up to a third
    more, which the limit allows for.
    """
    n = 377_110
    random = np.random.default_rng(0)
    patient = np.sort(random.integers(0, 65_000, n)) + 10_000_000
    study = patient * 10 + random.integers(0, 4, n)
    names = [f"{i:08x}-{i:08x}-{i:08x}-{i:08x}-{i:08x}" for i in range(n)]
    paths = [
        f"files/p{p // 1_000_000}/p{p}/s{s}/{d}.jpg"
        for p, s, d in zip(patient, study, names, strict=True)
    ]
    frame = pl.DataFrame(
        {
            "dicom_id": names,
            "subject_id": patient,
            "study_id": study,
            "ViewPosition": ["PA"] * n,
            "path": paths,
        }
        | {name: (random.random(n) < 0.05).astype(np.int8) for name in CXR_LT_2023}
    )
    for split, part in (
        ("train", patient % 3 == 0),
        ("development", patient % 3 == 1),
        ("test", patient % 3 == 2),
    ):
        frame.filter(pl.Series(part)).write_csv(tmp_path / f"{split}.csv")
    other = table(tmp_path / "o" / "other.csv", "image,patient,source,Edema x.png,1,h,1")
    del frame, names, paths
    # A process of its own: this one's peak is that of whatever tests ran in it before. Seconds of
    # all cores together: on a machine with nothing else to do the wall clock shows less.
    ran = subprocess.run(
        [sys.executable, "-c", _MEASURED, str(tmp_path), str(other)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["rows"] == [n, n, n + 1]
    assert found["seconds"] < 20, f"{found['seconds']:.1f} s"
    assert found["peak"] < 2, f"{found['peak']:.2f} GiB"


_MEASURED = """
import json, resource, sys, time
from pathlib import Path
import lingula
from lingula.tables.reading import read_table

folder, other = Path(sys.argv[1]), Path(sys.argv[2])
made = lingula.data_cxr_lt(folder, out=folder / "t.csv", images=False)
rows = [len(made.table), len(read_table(made.path))]
assert not lingula.data_check(made.path, images=False).problems
rows.append(len(lingula.data_join([made.path, other], out=folder / "j.csv", images=False).table))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
print(json.dumps({"rows": rows, "seconds": time.process_time(), "peak": peak}))
"""
