"""Training on tables from outside, and up-weighting what an earlier run did worst on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import lingula
from lingula.phantom import write_phantom
from lingula.scores.evaluation import evaluate_predictions, worst_classes
from lingula.scores.predictions import Predictions
from lingula.settings.config import Config, read_config, vary
from lingula.settings.label_space import CHEXPERT, CXR_LT_2023, NIH, LabelSpace
from lingula.system.errors import InputError
from lingula.tables.joins import check_apart, outside
from lingula.tables.reading import read_table
from lingula.tables.table import UNMENTIONED, targets


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("phantoms")
    return {
        style: write_phantom(folder / style, n=60, size=32, style=style)
        for style in ("cxr-lt", "nih", "chexpert")
    }


def test_three_label_spaces_become_one(phantoms: dict[str, Path]) -> None:
    own = read_table(phantoms["cxr-lt"])
    for style, knows in (("nih", set(NIH) - {"No Finding"}), ("chexpert", set(CHEXPERT))):
        table = read_table(phantoms[style])
        joined = outside(table, own.space)
        assert joined.table.space.classes == CXR_LT_2023 and not joined.dropped
        assert set(joined.lacks) == set(CXR_LT_2023) - knows and len(knows) == 14
        assert set(joined.table.splits or ()) == {"train"}
        for name in CXR_LT_2023:
            cells = joined.table.labels[:, own.space.index(name)]
            if name in knows:
                train = np.array(table.splits) == "train"
                np.testing.assert_array_equal(cells, table.labels[train, table.space.index(name)])
            else:
                assert (cells == UNMENTIONED).all()


def test_what_is_unmentioned_is_masked_or_zero(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,patient,Effusion,Zebra\nx,1,1,0\ny,2,,1\n")
    joined = outside(read_table(tmp_path / "a.csv"), LabelSpace(("Fracture", "Pleural Effusion")))
    assert joined.lacks == ("Fracture",) and joined.dropped == ("Zebra",)
    values, mask = targets(joined.table)
    assert mask.tolist() == [[False, True], [False, False]]
    values, mask = targets(joined.table, unmentioned="zero")
    assert mask.tolist() == [[True, True], [True, False]] and values[0].tolist() == [0, 1]
    with pytest.raises(InputError, match="none of the classes"):
        outside(read_table(tmp_path / "a.csv"), LabelSpace(("Hernia",)))


def test_patients_who_are_measured_are_not_trained_on(tmp_path: Path) -> None:
    own = tmp_path / "own.csv"
    own.write_text("image,patient,source,split,Edema\na,1,h,train,1\nb,2,h,test,0\nc,3,h,dev,1\n")
    head = "image,patient,source,Edema\n"
    (tmp_path / "same.csv").write_text(head + "n1,2,h,1\nn2,7,h,0\n")
    (tmp_path / "other.csv").write_text(head + "n1,2,elsewhere,1\nn2,1,h,0\n")
    (tmp_path / "names.csv").write_text("image,Edema\nb,1\nz,0\n")
    table = read_table(own)
    check_apart(table, read_table(tmp_path / "other.csv"))
    with pytest.raises(InputError, match=r"patients of the dev or test split.*: 2 \(h, test\)\."):
        check_apart(table, read_table(tmp_path / "same.csv"))
    with pytest.raises(InputError, match="images named as"):
        check_apart(table, read_table(tmp_path / "names.csv"))


@pytest.mark.parametrize(("mine", "theirs"), [(None, None), ("h", None), (None, "h"), ("h", "")])
def test_an_outside_table_of_no_stated_source_may_hold_ones_own_patients(
    tmp_path: Path, mine: str | None, theirs: str | None
) -> None:
    def written(name: str, rows: list[str], source: str | None) -> Path:
        head, end = (
            ("image,patient,split,Edema", "")
            if source is None
            else ("image,patient,split,Edema,source", f",{source}")
        )
        (tmp_path / name).write_text("\n".join([head, *(row + end for row in rows)]) + "\n")
        return tmp_path / name

    own = written("own.csv", ["a,p1,train,1", "b,p2,dev,0"], mine)
    other = written("other.csv", ["n,p2,train,1", "m,p7,train,0"], theirs)
    with pytest.raises(InputError, match=r"other.csv has patients.*: p2 \(.*column `source`"):
        check_apart(read_table(own), read_table(other))
    apart = written("apart.csv", ["n,p2,train,1"], "elsewhere")
    if mine is not None:
        check_apart(read_table(own), read_table(apart))


def test_two_shared_file_names_are_two_too_many(tmp_path: Path) -> None:
    own, other = tmp_path / "own.csv", tmp_path / "other.csv"
    own.write_text("image,split,Edema\na/1.png,train,1\na/2.png,dev,0\na/3.png,test,1\n")
    rows = [f"b/{i},1" for i in range(250)] + ["b/2.png,1", "b/3.png,0"]
    other.write_text("image,Edema\n" + "\n".join(rows) + "\n")
    with pytest.raises(InputError, match=r"images named as .*: b/2.png, b/3.png\."):
        check_apart(read_table(own), read_table(other))
    other.write_text("image,Edema\n" + "\n".join([*rows[:250], "b/1.png,1"]) + "\n")
    check_apart(read_table(own), read_table(other))


def test_a_run_on_three_tables(phantoms: dict[str, Path], tmp_path: Path) -> None:
    from lingula.settings.recipes import recipe

    config = vary(
        recipe("smoke"),
        data__table=str(phantoms["cxr-lt"]),
        data__outside=[str(phantoms["nih"]), str(phantoms["chexpert"])],
        data__unmentioned="zero",
        optim__epochs=1,
    )
    run = lingula.train(config, out=tmp_path / "run")
    facts = json.loads((run / "best" / "model.json").read_text())["trained_on"]
    assert [len(o["unmentioned"]) for o in facts["outside"]] == [12, 12]
    counted = sum(o["images"] for o in facts["outside"])
    assert counted > 60
    steps = json.loads((run / "finished.json").read_text())["steps"]
    assert steps == -(-(facts["images"] + counted) // 32)
    with pytest.raises(InputError, match="changed since"):
        lingula.train(vary(config, data__outside=()), out=run)


def test_an_outside_phantom_wants_a_phantom(tiny_config: Config, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give tables of real images"):
        lingula.train(vary(tiny_config, data__outside=["phantom:nih"]), out=tmp_path / "run")


@pytest.mark.usefixtures("no_page")
def test_the_worst_classes_of_a_run_are_weighted(tiny_config: Config, tmp_path: Path) -> None:
    first = lingula.train(vary(tiny_config, optim__epochs=1), out=tmp_path / "first")
    second = vary(
        tiny_config, optim__epochs=1, loss__worst={"run": str(first), "k": 2, "factor": 3.0}
    )
    run = lingula.train(second, out=tmp_path / "second")
    written = read_config(run / "config.yaml").loss
    assert list(written.class_weights.values()) == [3.0, 3.0] and written.worst.run is None
    assert lingula.train(second, out=run) == run  # the same line again finds it finished
    with pytest.raises(InputError, match="no finished run"):
        wrong = vary(tiny_config, loss__worst={"run": str(tmp_path), "k": 2, "factor": 3.0})
        lingula.train(wrong, out=tmp_path / "third")


def test_worst_first_and_undefined_never(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("image,patient,A a,B b,C c,D d\nx,1,1,0,0,1\ny,2,0,1,0,0\nz,3,0,0,0,1\n")
    found = evaluate_predictions(
        Predictions(
            ("A a", "B b", "C c", "D d"),
            ("x", "y", "z"),
            np.array([[0.9, 0.9, 0.1, 0.9], [0.1, 0.1, 0.2, 0.1], [0.2, 0.2, 0.3, 0.8]]),
        ),
        read_table(path),
    )
    assert worst_classes(found, 3) == ("B b", "A a", "D d")
    assert worst_classes(found, 9) == ("B b", "A a", "D d")


def test_three_public_data_sets_as_they_lie_on_disk(tmp_path: Path) -> None:
    """One command each, joined, and trained on by the paper's recipe with a tiny encoder."""
    from builders import CHEXPERT_HEAD, csv, cxr_lt_2023, film, mimic_images, nih_row, nih_tree
    from lingula.model.text_encoder import save_tiny
    from lingula.settings.config import vary
    from lingula.settings.recipes import recipe

    own = lingula.data_cxr_lt(
        mimic_images(tmp_path / "mimic", range(33)),
        labels=[cxr_lt_2023(tmp_path / "cxr-lt-2023")],
        out=tmp_path / "cxr-lt.csv",
    )
    findings = ("Effusion|Mass", "No Finding", "Hernia", "Infiltration|Edema")
    nih = nih_tree(tmp_path / "nih", [nih_row(i + 1, text) for i, text in enumerate(findings)])
    (nih / "train_val_list.txt").write_text("".join(f"{i:08}_000.png\n" for i in (1, 2, 3)))
    (nih / "test_list.txt").write_text("00000004_000.png\n")
    chexpert, rows = tmp_path / "CheXpert-v1.0-small", []
    for i in range(4):
        path = f"train/patient{i:05}/study1/view1_frontal.jpg"
        film(chexpert / path, i)
        rows.append(f"CheXpert-v1.0-small/{path},Female,68,Frontal,AP,,,1.0,,,,,,-1.0,,,,,1.0")
    csv(chexpert / "train.csv", CHEXPERT_HEAD, *rows)
    outside_made = [
        lingula.data_nih(nih, out=tmp_path / "nih.csv"),
        lingula.data_chexpert(chexpert, out=tmp_path / "chexpert.csv"),
    ]
    config = vary(
        recipe("paper/exo-both"),
        data__table=str(own.path),
        data__outside=[str(made.path) for made in outside_made],
        model__encoder="test_resnet.r160_in1k",
        model__weights="none",
        model__image_size=32,
        model__text=str(save_tiny(tmp_path / "text", "bert", CXR_LT_2023)),
        model__decoder={"layers": 1, "width": 32, "heads": 2, "feedforward": 32},
        optim__epochs=1,
        optim__warmup_epochs=None,
    )
    run = lingula.train(config, out=tmp_path / "run")
    on = json.loads((run / "best" / "model.json").read_text())["trained_on"]
    # 26 of one's own, NIH's official training list, CheXpert's train split.
    assert (on["images"], [o["images"] for o in on["outside"]]) == (26, [3, 4])
    assert on["positives"]["Hernia"] == 2 and on["positives"]["Support Devices"] == 5
    joined = lingula.data_join(
        [own.path, *(made.path for made in outside_made)],
        classes="cxr-lt-2023",
        out=tmp_path / "all.csv",
    )
    table = read_table(joined.path)
    assert len(table) == 33 + 4 + 4 and table.space.classes == CXR_LT_2023
    nih_rows = np.array(table.sources) == "chestxray14"
    assert (table.labels[nih_rows][:, table.space.index("Fracture")] == UNMENTIONED).all()
