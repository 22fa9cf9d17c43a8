"""Public data sets as they lie on disk: headers, layouts and quirks of the real releases, in small."""

from __future__ import annotations

import gzip
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from PIL import Image

import lingula
from builders import (
    CHEXPERT_HEAD,
    DICOM,
    HEAD,
    NIH_HEAD,
    csv,
    cxr_lt_2023,
    cxr_lt_rows,
    film,
    mimic_images,
    nih_row,
    nih_tree,
)
from lingula.cli import app
from lingula.scores.subgroups import age_bands
from lingula.settings.label_space import CHEXPERT, CXR_LT_2023, CXR_LT_2024, NIH, NIH_CXR_LT
from lingula.sources.chexpert import chexpert
from lingula.sources.cxr_lt import cxr_lt
from lingula.sources.mimic import mimic
from lingula.sources.nih import nih
from lingula.sources.padchest import padchest
from lingula.sources.released import read_ages, read_sexes
from lingula.sources.vindr import vindr
from lingula.system.errors import InputError
from lingula.tables.checking import check
from lingula.tables.reading import boxes_beside, read_table
from lingula.tables.table import BLANK, UNCERTAIN, Table, targets


def is_sound(table: Path) -> bool:
    """Whether nothing is wrong with a table but that it is too small to be trained on."""
    return {fault.what for fault in check(table).problems} <= {"no training can use it"}


def cell(table: Table, image: str, name: str) -> float:
    row = next(i for i, path in enumerate(table.images) if image in path)
    return float(table.labels[row, table.space.index(name)])


# ---- CXR-LT


def released_2024(classes: tuple[str, ...]) -> tuple[str, ...]:
    """Names as 2024 spells them, where training is alphabetical with `Normal`."""
    return tuple(sorted("Normal" if name == "No Finding" else name for name in classes))


def cxr_lt_2024(folder: Path) -> Path:
    names = released_2024(CXR_LT_2024)
    head = HEAD.format("fpath", ",".join(names))
    csv(folder / "train_labeled.csv", head, *cxr_lt_rows(0, 40, names, "s"))
    csv(folder / "development_labeled_task1.csv", head, *cxr_lt_rows(40, 2, names, "s"))
    csv(folder / "test_labeled_task1.csv", head, *cxr_lt_rows(42, 2, names, "s"))
    return folder


def test_cxr_lt_2023_has_26_classes_and_its_own_splits(tmp_path: Path) -> None:
    root = mimic_images(tmp_path / "mimic", range(33))
    labels = cxr_lt_2023(tmp_path / "cxr-lt-2023")
    found = lingula.data_cxr_lt(root, labels=[labels], out=tmp_path / "t.csv")
    table = read_table(found.path)
    assert table.space.classes == CXR_LT_2023 and table.space.name == "cxr-lt-2023"
    assert [table.splits.count(s) for s in ("train", "dev", "test")] == [26, 3, 4]
    assert table.labels[:26].tolist() == np.eye(26).tolist()
    assert table.patients[0] == "10000000" and table.studies[0] == "50000000"
    assert table.ids[0] == DICOM.format(0) and set(table.sources) == {"mimic-cxr"}
    assert is_sound(found.path) and not found.missing
    described = json.loads((tmp_path / "t.json").read_text())
    assert described["root"] == "mimic" and described["blank"] == "ignore"
    assert described["sources"] == {"mimic-cxr": {"knows": list(CXR_LT_2023)}}
    assert set(described["made_from"]) == {"train.csv", "development.csv", "test.csv"}


def test_cxr_lt_2024_reads_fpath_normal_and_ids_with_s(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    table = cxr_lt(tmp_path, [cxr_lt_2024(tmp_path / "cxr-lt-2024")])
    assert table.space.classes == CXR_LT_2024 and table.space.name == "cxr-lt-2024"
    assert table.studies[0] == "50000000"
    # Bound by name: the row that `Normal` marks, wherever its column stands.
    normal = released_2024(CXR_LT_2024).index("Normal")
    assert table.labels[normal, table.space.index("No Finding")] == 1
    assert (table.labels.sum(axis=1) == 1).all()


def test_task_2_in_its_own_order_gives_the_same_cells(tmp_path: Path) -> None:
    """Task 2 has `Normal` where 2023 had No Finding, between Mass and Nodule: not alphabetical."""
    names = tuple("Normal" if name == "No Finding" else name for name in CXR_LT_2023)
    assert names != tuple(sorted(names))
    rows = cxr_lt_rows(0, 26, names, "s")
    shown = csv(tmp_path / "test_labeled_task2.csv", HEAD.format("fpath", ",".join(names)), *rows)
    table = cxr_lt(tmp_path, [shown])
    assert table.labels.tolist() == np.eye(26).tolist()
    assert set(table.splits) == {"test"} and table.space.classes == CXR_LT_2023


def test_the_two_releases_are_not_mixed(tmp_path: Path) -> None:
    a, b = cxr_lt_2023(tmp_path / "cxr-lt-2023"), cxr_lt_2024(tmp_path / "cxr-lt-2024")
    with pytest.raises(InputError, match=r"train.csv is of the 2023 release and .*train_labeled"):
        cxr_lt(tmp_path, [a / "train.csv", b / "train_labeled.csv"])
    with pytest.raises(InputError, match="more than one release"):
        cxr_lt(tmp_path, [tmp_path])


def test_labels_csv_of_2024_with_its_split_column(tmp_path: Path) -> None:
    names = (*released_2024(CXR_LT_2024), "Bulla", "Cardiomyopathy", "Hilum", "Osteopenia")
    rows = cxr_lt_rows(0, 44, (*names, "Scoliosis"), "s")
    head = HEAD.format("fpath", ",".join((*names, "Scoliosis"))) + ",split"
    splits = ["train", "development", "test", "train"] * 11
    csv(tmp_path / "l" / "labels.csv", head, *(f"{r},{s}" for r, s in zip(rows, splits)))  # noqa: B905
    table = cxr_lt(tmp_path, [tmp_path / "l"])
    assert len(table.space) == 45 and table.splits[:3] == ("train", "dev", "test")


def test_cxr_lt_names_a_wrong_header(tmp_path: Path) -> None:
    rows = cxr_lt_rows(0, 1, ("Edema", "x"))
    path = csv(tmp_path / "train.csv", HEAD.format("path", "Edema,Pneumothoraks"), *rows)
    with pytest.raises(InputError, match=r"train.csv: column 'Pneumothoraks'.*'Pneumothorax'"):
        cxr_lt(tmp_path, [path])
    assert cxr_lt(tmp_path, [path], ["Pneumothoraks"]).space.classes == ("Edema",)
    path = csv(tmp_path / "train2.csv", "dicom_id,subject_id,study_id,Edema", "a,1,2,1")
    with pytest.raises(InputError, match=r"train2.csv has no column `path` or `fpath`"):
        cxr_lt(tmp_path, [path])
    path = csv(tmp_path / "train3.csv", HEAD.format("path", "Edema"), "a,1,2,PA,,files/a.jpg,maybe")
    with pytest.raises(
        InputError, match=r"train3.csv, row 2, column 'Edema': 'maybe' is not a label"
    ):
        cxr_lt(tmp_path, [path])


def test_a_patient_in_two_splits_is_named(tmp_path: Path) -> None:
    head = HEAD.format("path", "Edema")
    a = csv(tmp_path / "train.csv", head, "a,10000777,1,PA,,files/a.jpg,1")
    b = csv(tmp_path / "test.csv", head, "b,10000777,2,PA,,files/b.jpg,0")
    with pytest.raises(InputError, match=r"10000777 \(train, test\)"):
        cxr_lt(tmp_path, [a, b])


# Case 141


@pytest.mark.parametrize("path", ["../../etc/hostname", "/etc/hostname", r"C:\x", "file:///x"])
def test_paths_of_a_label_file_stay_inside(path: str, tmp_path: Path) -> None:
    table = csv(tmp_path / "train.csv", HEAD.format("path", "Edema"), f"a,1,2,PA,,{path},1")
    with pytest.raises(InputError, match=r"train.csv, row 2: .*not a path inside"):
        cxr_lt(tmp_path, [table])


# ---- MIMIC


def mimic_files(folder: Path, subject: str = "10999999", labels: str = "") -> Path:
    names = ",".join(CHEXPERT)
    a, b = DICOM.format(1), DICOM.format(2)
    head = "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
    meta = [
        f"{d},{subject},59999999,CHEST,{v},10,10,21800101,1.5,x,y,z"
        for d, v in ((a, "PA"), (b, "LATERAL"))
    ]
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(
        [head, *meta, f"{DICOM.format(3)},{subject},58888888,CHEST,AP,1,1,2,3,x,y,z", ""]
    )
    (folder / "mimic-cxr-2.0.0-metadata.csv.gz").write_bytes(gzip.compress(text.encode()))
    cells = labels or ("1.0,-1.0,,0.0" + "," * 10)
    csv(
        folder / "mimic-cxr-2.0.0-chexpert.csv",
        f"subject_id,study_id,{names}",
        f"10999999,59999999,{cells}",
    )
    csv(
        folder / "mimic-cxr-2.0.0-negbio.csv",
        f"subject_id,study_id,{names}",
        f"10999999,59999999,{'0.0,' * 13}0.0",
    )
    csv(
        folder / "mimic-cxr-2.0.0-split.csv",
        "dicom_id,study_id,subject_id,split",
        *(f"{DICOM.format(i)},5,1,validate" for i in (1, 2, 3)),
    )
    return folder


# Cases 53, 55, 57


@pytest.mark.parametrize("below", ["files/", ""])
@pytest.mark.parametrize("subject", ["10999999", "p10999999", "10999999.0", "p10999999.0"])
def test_mimic_finds_the_same_file(below: str, subject: str, tmp_path: Path) -> None:
    root = tmp_path / "jpg"
    for i in (1, 2):
        film(root / f"{below}p10/p10999999/s59999999/{DICOM.format(i)}.jpg", i)
    labels = mimic_files(tmp_path / "tables", subject)
    found = lingula.data_mimic(root, labels=[labels], out=tmp_path / "t.csv")
    table = read_table(found.path)
    assert not found.missing and is_sound(found.path)
    assert table.images[0] == f"{below}p10/p10999999/s59999999/{DICOM.format(1)}.jpg"
    assert table.patients == ("10999999",) * 2 and table.studies == ("59999999",) * 2
    assert table.views == ("PA", "LATERAL") and table.splits == ("dev", "dev")
    # Study labels stand at both of its images.
    assert (table.labels[0] == table.labels[1]).all()
    assert table.labels[0, :4].tolist() == [1, UNCERTAIN, BLANK, 0] and table.blank == "zero"


def test_mimic_leaves_out_images_that_were_never_labelled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = mimic_files(tmp_path)
    with caplog.at_level(logging.WARNING, "lingula"):
        table = mimic(tmp_path, [labels])
    # A blank cell is "absent" here: study 58888888 must not become an image without findings.
    assert "58888888" not in table.studies and len(table) == 2
    assert DICOM.format(3) in caplog.text and "1 images left out" in caplog.text


def test_mimic_labels_of_either_labeller(tmp_path: Path) -> None:
    labels = mimic_files(tmp_path)
    assert mimic(tmp_path, [labels]).labels[0, 0] == 1
    assert mimic(tmp_path, [labels], labeler="negbio").labels[0, 0] == 0
    (labels / "mimic-cxr-2.0.0-metadata.csv.gz").unlink()
    with pytest.raises(InputError, match="metadata"):
        mimic(tmp_path, [labels])


def test_no_image_found_shows_a_tried_path_and_the_count(tmp_path: Path) -> None:
    labels = mimic_files(tmp_path / "t")
    (tmp_path / "empty").mkdir()
    tried = tmp_path / f"empty/files/p10/p10999999/s59999999/{DICOM.format(1)}.jpg"
    with pytest.raises(InputError, match=f"None of the 2 images .*{tried}"):
        lingula.data_mimic(tmp_path / "empty", labels=[labels], out=tmp_path / "t.csv")
    assert not (tmp_path / "t.csv").exists()


def test_mimic_takes_a_file_packed_and_unpacked_as_one(tmp_path: Path) -> None:
    folder = mimic_files(tmp_path)
    packed = folder / "mimic-cxr-2.0.0-metadata.csv.gz"
    (folder / "mimic-cxr-2.0.0-metadata.csv").write_bytes(gzip.decompress(packed.read_bytes()))
    assert len(mimic(tmp_path)) == 2
    (folder / "mimic-cxr-2.1.0-metadata.csv").write_bytes(gzip.decompress(packed.read_bytes()))
    with pytest.raises(InputError, match="are both there"):
        mimic(tmp_path)
    packed.write_bytes(packed.read_bytes()[:40])
    with pytest.raises(InputError, match=r"metadata.csv.gz can't be opened"):
        mimic(tmp_path, [packed, folder / "mimic-cxr-2.0.0-chexpert.csv"])


# Case 54


def test_cut_ids_are_unmatched_never_guessed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = mimic_files(tmp_path)
    whole = DICOM.format(1)
    csv(
        folder / "mimic-cxr-2.0.0-split.csv",
        "dicom_id,study_id,subject_id,split",
        f"{whole[:-5]},5,1,train",
    )
    with caplog.at_level(logging.WARNING, "lingula"):
        table = mimic(tmp_path, [folder])
    assert table.splits is None and whole in caplog.text


# Case 56


def test_a_study_labelled_twice_must_agree(tmp_path: Path) -> None:
    folder = mimic_files(tmp_path)
    names = ",".join(CHEXPERT)
    same = "10999999,59999999,1" + ",0" * 13
    path = folder / "mimic-cxr-2.0.0-chexpert.csv"
    csv(path, f"subject_id,study_id,{names}", same, same)
    assert len(mimic(tmp_path, [folder])) == 2
    csv(path, f"subject_id,study_id,{names}", same, "10999999,59999999,0" + ",0" * 13)
    with pytest.raises(InputError, match="different labels: 10999999 59999999"):
        mimic(tmp_path, [folder])


# ---- NIH


# Case 48


def test_nih_findings_are_whole_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [nih_row(1, "Subcutaneous Emphysema"), nih_row(2, "Emphysema|Mass")]
    silent = [nih_row(i, text) for i, text in enumerate(("", "|", " | "), start=4)]
    root = nih_tree(tmp_path, [*rows, nih_row(3, "No Finding"), *silent])
    with caplog.at_level(logging.WARNING, "lingula"):
        table = nih(root)
    assert cell(table, "00000001", "Emphysema") == 0
    assert cell(table, "00000001", "Subcutaneous Emphysema") == 1
    assert cell(table, "00000002", "Emphysema") == cell(table, "00000002", "Mass") == 1
    assert table.labels[2].sum() == 1 and cell(table, "00000003", "No Finding") == 1
    assert (table.labels[3:] == BLANK).all() and "00000004_000.png" in caplog.text
    assert "3 images without any entry" in caplog.text and not targets(table)[1][3:].any()


def test_nih_with_its_eleven_fields_lists_and_folders(tmp_path: Path) -> None:
    rows = [
        nih_row(1, "Effusion|Pleural_Thickening", "058Y", "M"),
        nih_row(2, "Hernia", "414", "F"),
    ]
    root = nih_tree(tmp_path / "nih", rows)
    (root / "train_val_list.txt").write_text("00000001_000.png")  # no newline at the end
    (root / "test_list.txt").write_text("00000002_000.png\n")
    found = lingula.data_nih(root, out=tmp_path / "t.csv")
    table = read_table(found.path)
    assert table.space.classes == NIH and table.space.name == "nih"
    assert table.images == (
        "images_001/images/00000001_000.png",
        "images_002/images/00000002_000.png",
    )
    assert table.splits == ("train", "test") and table.patients == ("1", "2")
    assert table.ages == ("58", "") and table.sexes == ("M", "F") and table.studies[0] == "1_0"
    assert cell(table, "00000001", "Pleural Effusion") == 1
    assert cell(table, "00000001", "Pleural Thickening") == 1 and table.labels.sum() == 3
    assert is_sound(found.path)


def test_nih_first_release_ends_lines_with_a_comma(tmp_path: Path) -> None:
    plain = nih(nih_tree(tmp_path / "a", [nih_row(1, "Mass"), nih_row(2, "Edema")]))
    first = [nih_row(1, "Mass", end=","), nih_row(2, "Edema", end=",")]
    other = nih(nih_tree(tmp_path / "b", first, end=","))
    assert other.images == plain.images and (other.labels == plain.labels).all()


def test_nih_faults_are_named(tmp_path: Path) -> None:
    root = nih_tree(tmp_path, [nih_row(1, "Mas"), nih_row(2, "Edema")])
    with pytest.raises(InputError, match=r"Data_Entry_2017.csv, row 2.*'Mas'.*Did you mean 'Mass'"):
        nih(root)
    nih_tree(tmp_path, [nih_row(1, "Mass"), nih_row(2, "Edema")], images=False)
    (root / "train_val_list.txt").write_text("00000001_000.png\n")
    (root / "test_list.txt").write_text("00000001_000.png\n")
    with pytest.raises(InputError, match=r"both lists: 00000001_000.png"):
        nih(root)
    (root / "test_list.txt").write_text("00000002_000.png\n")
    film(root / "copy" / "00000001_000.png")
    with pytest.raises(InputError, match=r"'00000001_000.png' is in two places below"):
        nih(root)
    (root / "test_list.txt").write_bytes(b"\xff\xfe0")
    with pytest.raises(InputError, match=r"test_list.txt can't be read as text"):
        nih(root)
    csv(root / "Data_Entry_2017.csv", "Image Index,Labels,Patient ID", "a,b,1")
    with pytest.raises(InputError, match=r"Data_Entry_2017.csv has no column `Finding Labels`"):
        nih(root)


def test_nih_cxr_lt_adds_its_five_findings(tmp_path: Path) -> None:
    root = nih_tree(tmp_path, [nih_row(1, "No Finding"), nih_row(2, "Mass"), nih_row(3, "Edema")])
    order = (
        "No Finding",
        "Tortuous Aorta",
        *(n for n in NIH_CXR_LT if n not in ("No Finding", "Tortuous Aorta")),
    )
    spelled = (
        ",".join(order)
        .replace("Pleural Effusion", "Effusion")
        .replace("Pleural Thickening", "Pleural_Thickening")
    )
    one = ",".join(str(int(name == "Tortuous Aorta")) for name in order)
    two = ",".join(str(int(name == "Mass")) for name in order)
    csv(
        root / "nih-cxr-lt_single-label_train.csv",
        f"id,{spelled}",
        f"00000001_000.png,{one}",
        f"00000002_000.png,{two}",
    )
    table = nih(root)
    assert table.space.classes == NIH_CXR_LT
    assert (
        cell(table, "00000001", "Tortuous Aorta") == 1
        and cell(table, "00000001", "No Finding") == 0
    )
    assert cell(table, "00000002", "Tortuous Aorta") == 0 and cell(table, "00000002", "Mass") == 1
    # Not in the benchmark: nothing is known of its five findings.
    assert (
        cell(table, "00000003", "Tortuous Aorta") == BLANK and cell(table, "00000003", "Edema") == 1
    )


def test_nih_rows_without_image_are_named_or_dropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = nih_tree(tmp_path, [nih_row(1, "Mass"), nih_row(2, "Edema")])
    next((root / "images_002").rglob("*.png")).unlink()
    with caplog.at_level(logging.WARNING, "lingula"):
        found = lingula.data_nih(root, out=tmp_path / "t.csv")
    assert found.missing == ("00000002_000.png",) and len(found.table) == 2
    assert "1 of 2 images are not there" in caplog.text
    found = lingula.data_nih(root, out=tmp_path / "u.csv", drop_missing=True)
    assert found.table.patients == ("1",)


# ---- CheXpert


# Cases 44, 45


@pytest.mark.parametrize(
    "prefix",
    ["CheXpert-v1.0-small/", "CheXpert-v1.0/", "", "CheXpert-v1.0 batch 2 (train 1)/"],
)
@pytest.mark.parametrize("inside", [True, False])
def test_chexpert_paths_whatever_the_name_of_the_csv(
    prefix: str, inside: bool, tmp_path: Path
) -> None:
    path = "train/patient00001/study1/view1_frontal.jpg"
    film(tmp_path / prefix / path)
    labels = csv(
        tmp_path / "labels.csv",
        CHEXPERT_HEAD,
        f"{prefix}{path},Female,68,Frontal,AP,1.0,,,,,,,,,,0.0,,,-1.0",
    )
    root = tmp_path / prefix if inside else tmp_path
    found = lingula.data_chexpert(root, labels=[labels], out=tmp_path / "t.csv")
    table = read_table(found.path)
    assert table.images == (path if inside else prefix + path,)
    assert table.patients == ("patient00001",) and table.studies == ("patient00001/study1",)
    assert table.splits == ("train",) and table.sexes == ("F",) and table.ages == ("68",)
    assert not found.missing and is_sound(found.path)


def batches(folder: Path, train: str = "", head: str = "CheXpert-v1.0/") -> Path:
    """The full release as it unpacks: the CSVs and `valid` in batch 1, patients in the others."""
    first = folder / "CheXpert-v1.0 batch 1 (validate & csv)"
    rows = {"train": [], "valid": []}
    for i in range(6):
        name = f"patient{i + 1:05}/study1/view1_frontal.jpg"
        film(folder / f"CheXpert-v1.0 batch {2 + i % 3} (train {1 + i % 3})" / train / name)
        rows["train"].append(f"{head}train/{name},Male,50,Frontal,PA" + ",1" * 14)
    name = "patient64541/study1/view1_frontal.jpg"
    film(first / "valid" / name)
    rows["valid"].append(f"{head}valid/{name},Male,50,Frontal,PA" + ",0" * 14)
    for split, lines in rows.items():
        csv(first / f"{split}.csv", CHEXPERT_HEAD, *lines)
    return folder


@pytest.mark.parametrize("train", ["", "train"])
@pytest.mark.parametrize("head", ["CheXpert-v1.0/", "CheXpert-v1.0-small/", ""])
def test_chexpert_as_its_batches_unpack(
    train: str, head: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = batches(tmp_path / "full", train, head)
    with caplog.at_level(logging.INFO, "lingula"):
        found = lingula.data_chexpert(root, out=tmp_path / "t.csv")
    assert not found.missing and len(found.table) == 7
    assert "CheXpert-v1.0 batch 2 (train 1)" in caplog.text
    table = read_table(found.path)
    assert sorted(set(table.splits or ())) == ["dev", "train"]
    assert table.images[1].startswith("CheXpert-v1.0 batch 3 (train 2)/")
    assert table.patients == (*(f"patient{i + 1:05}" for i in range(6)), "patient64541")
    assert is_sound(found.path)


def test_a_chexpert_batch_is_not_taken_for_the_release(tmp_path: Path) -> None:
    root = batches(tmp_path / "full")
    with pytest.raises(InputError, match=r"one batch of the release.*Name the folder.*full$"):
        lingula.data_chexpert(
            root / "CheXpert-v1.0 batch 1 (validate & csv)", out=tmp_path / "t.csv"
        )
    # A batch that is not there yet leaves its images out, as any missing file.
    shutil.rmtree(root / "CheXpert-v1.0 batch 4 (train 3)")
    found = lingula.data_chexpert(root, out=tmp_path / "t.csv", drop_missing=True)
    assert len(found.missing) == 2 and len(found.table) == 5
    # Two copies in neither of the known places are not chosen from.
    shutil.copytree(root, root / "copy")
    with pytest.raises(InputError, match=r"patient00001 lies in .* and in"):
        lingula.data_chexpert(root, labels=[next(root.glob("*batch 1*"))], out=tmp_path / "u.csv")


def test_chexpert_keeps_uncertain_and_blank_apart(tmp_path: Path) -> None:
    head = "Path,Sex,Age,Frontal/Lateral,AP/PA,Edema,Fracture"
    rows = [f"CheXpert-v1.0/train/patient0000{i}/study1/view1_frontal.jpg,{sex},{age},{view},{cells}"
            for i, (sex, age, view, cells) in enumerate([
                ("Male", 0, "Frontal,AP", "1.0,0.0"), ("Unknown", 60, "Lateral,", "-1.0,"),
                ("Female", 90, "Frontal,PA", ",1.0"), ("", 50, "Frontal,LL", "0.0,-1.0")])]  # fmt: skip
    table = chexpert(tmp_path, [csv(tmp_path / "x.csv", head, *rows)])
    assert table.labels[:, 0].tolist() == [1, UNCERTAIN, BLANK, 0]
    assert table.labels[:, 1].tolist() == [0, BLANK, 1, UNCERTAIN] and table.blank == "zero"
    values, mask = targets(table)
    assert values[:, 0].tolist() == [1, 0, 0, 0] and mask[:, 0].tolist() == [
        True,
        False,
        True,
        True,
    ]
    assert targets(table, uncertain="one")[0][:, 0].tolist() == [1, 1, 0, 0]
    assert not targets(table, blank="ignore")[1][2, 0] and values.min() >= 0
    # Case 68: age 0 is unknown here; a stated Unknown is not a blank.
    assert table.ages == ("", "60", "90", "50") and table.sexes == ("M", "U", "F", "")
    assert table.views == ("AP", "LATERAL", "PA", "LL")


def test_chexpert_takes_an_image_under_both_prefixes_for_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = "train/patient00001/study1/view1_frontal.jpg"
    film(tmp_path / "CheXpert-v1.0-small" / path)
    both = [f"CheXpert-v1.0{size}/{path}" for size in ("", "-small")]
    file = csv(tmp_path / "x.csv", "Path,Edema", f"{both[0]},1.0", f"{both[1]},1.0")
    with caplog.at_level(logging.WARNING, "lingula"):
        table = chexpert(tmp_path, [file])
    assert table.images == (both[1],) and table.labels.tolist() == [[1]]
    assert "1 images stood in several rows that say the same" in caplog.text
    csv(tmp_path / "x.csv", "Path,Edema", f"{both[0]},1.0", f"{both[1]},0.0")
    with pytest.raises(InputError, match=f"different labels: {both[1]}. Keep one row per image"):
        chexpert(tmp_path, [file])


def test_chexpert_faults_are_named(tmp_path: Path) -> None:
    path = "CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg"
    with pytest.raises(InputError, match=r"x.csv: column 'Edma'.*Did you mean 'Edema'"):
        chexpert(tmp_path, [csv(tmp_path / "x.csv", "Path,Edma", f"{path},1")])
    with pytest.raises(InputError, match=r"x.csv, row 2: 'a.jpg' is not a path of CheXpert's"):
        chexpert(tmp_path, [csv(tmp_path / "x.csv", "Path,Edema", "a.jpg,1")])
    with pytest.raises(
        InputError, match=r"different labels: train/patient00001.*one row per image"
    ):
        chexpert(tmp_path, [csv(tmp_path / "x.csv", "Path,Edema", f"{path},1", f"{path},0")])
    rows = (f"{path},1,60", f"{path},1,61")
    with pytest.raises(InputError, match=r"rows that differ: train/patient00001"):
        chexpert(tmp_path, [csv(tmp_path / "x.csv", "Path,Edema,Age", *rows)])
    # Case 56: rows that say the same are one.
    assert len(chexpert(tmp_path, [csv(tmp_path / "x.csv", "Path,Edema", *[f"{path},1"] * 2)])) == 1
    with pytest.raises(InputError, match=r"no label file or folder .*nowhere.csv"):
        chexpert(tmp_path, [tmp_path / "nowhere.csv"])


def test_chexpert_plus(tmp_path: Path) -> None:
    head = (
        "path_to_image,path_to_dcm,frontal_lateral,ap_pa,deid_patient_id,report,age,sex,race,split"
    )
    rows = [
        f'train/patient0000{i}/study1/view1_frontal.jpg,x.dcm,Frontal,AP,patient0000{i},"a,b\n",7{i},Male,x,train'
        for i in (1, 2)
    ]
    table_file = csv(tmp_path / "df_chexpert_plus_240401.csv", head, *rows)
    line = {
        "path_to_image": "train/patient00001/study1/view1_frontal.jpg",
        "Edema": -1.0,
        "Fracture": None,
        "Pneumonia": 1.0,
    }
    (tmp_path / "report_fixed.json").write_text(json.dumps(line) + "\n")
    film(tmp_path / "PNG/train/patient00001/study1/view1_frontal.png")
    table = chexpert(tmp_path, [table_file, tmp_path / "report_fixed.json"])
    assert table.images == ("PNG/train/patient00001/study1/view1_frontal.png",)
    assert cell(table, "patient00001", "Edema") == UNCERTAIN and table.ages == ("71",)
    assert (
        cell(table, "patient00001", "Fracture") == BLANK
        and cell(table, "patient00001", "Pneumonia") == 1
    )
    with pytest.raises(InputError, match=r"labels in .json files"):
        chexpert(tmp_path, [table_file])


# Case 47


def test_no_finding_beside_support_devices_stays(tmp_path: Path) -> None:
    path = "CheXpert-v1.0/train/patient{}/study1/view1_frontal.jpg"
    head = "Path,No Finding,Support Devices,Edema,Pneumonia"
    rows = [f"{path.format('00001')},1.0,1.0,,", f"{path.format('00002')},1.0,,,1.0"]
    labels = csv(tmp_path / "x.csv", head, *rows)
    found = lingula.data_chexpert(tmp_path, labels=[labels], out=tmp_path / "t.csv", images=False)
    assert cell(found.table, "00001", "Support Devices") == 1
    warnings = {fault.what: fault for fault in check(found.path, images=False).warnings}
    conflict = warnings["images with No Finding and a finding"]
    assert conflict.count == 1 and "patient00002" in conflict.examples[0]


# ---- PadChest

PADCHEST_HEAD = ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,ViewPosition_DICOM,Projection,MethodLabel,Labels"


def padchest_rows(*labels: str) -> list[str]:
    return [
        f'{i},img{i}.png,0,20140915,study{i},83986048869429233163798823568146098{i},1930.0,F,,{"L" if i else "PA"},Physician,"{text}"'
        for i, text in enumerate(labels)
    ]


def test_padchest_lists(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = padchest_rows(
        "['cardiomegaly', ' pleural effusion ', 'pseudonodule']",
        "['normal']",
        "",
        "['exclude']",
        "['nodule', '']",
    )
    path = csv(
        tmp_path / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv", PADCHEST_HEAD, *rows
    )
    film(tmp_path / "0" / "img0.png")
    pixels = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    Image.fromarray(pixels).save(tmp_path / "0" / "img1.png")
    with caplog.at_level(logging.WARNING, "lingula"):
        table = padchest(tmp_path, [path])
    assert table.images[:3] == ("0/img0.png", "0/img1.png", "img2.png")
    assert set(table.space.classes) == {
        "Cardiomegaly",
        "Pleural Effusion",
        "pseudonodule",
        "No Finding",
        "Nodule",
    }
    assert cell(table, "img0", "Nodule") == 0 and cell(table, "img0", "pseudonodule") == 1
    assert cell(table, "img0", "Pleural Effusion") == 1 and cell(table, "img1", "No Finding") == 1
    assert (table.labels[2:4] == BLANK).all() and "img2.png, img3.png" in caplog.text
    assert table.patients[0] == "839860488694292331637988235681460980"
    assert table.ages[0] == "84" and table.views[:2] == ("PA", "LATERAL")


# Case 143


def test_a_padchest_infant_keeps_an_age(tmp_path: Path) -> None:
    """Case 68: born in the year of the film is less than a year old, and 0 would be unknown."""
    row = padchest_rows("['normal']")[0]
    rows = [row.replace("1930.0", born).replace("img0", f"img{born}") for born in
            ("2014.0", "2013.0", "", "1850.0")]  # fmt: skip
    table = padchest(tmp_path, [csv(tmp_path / "PADCHEST_x.csv", PADCHEST_HEAD, *rows)])
    assert table.ages == ("0.5", "1", "", "")
    assert age_bands(table.ages) == ("0-9", "0-9", "unknown", "unknown")


def test_padchest_lists_are_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for bad in ("__import__('os').system('touch pwned')", "['a'", "{'a': 1}", "[1]", "[" * 300):
        csv(tmp_path / "PADCHEST_x.csv", PADCHEST_HEAD, *padchest_rows("['normal']", bad))
        with pytest.raises(InputError, match=r"PADCHEST_x.csv, row 3, column 'Labels'"):
            padchest(tmp_path)
    assert not (tmp_path / "pwned").exists()


def test_padchest_rounded_patients_are_refused(tmp_path: Path) -> None:
    row = padchest_rows("['normal']")[0].replace("839860488694292331637988235681460980", "1.90E+38")
    csv(tmp_path / "PADCHEST_x.csv", PADCHEST_HEAD, row)
    with pytest.raises(InputError, match=r"'patient' has rounded numbers such as 1.90E\+38"):
        padchest(tmp_path)


def test_padchest_in_the_challenges_classes(tmp_path: Path) -> None:
    rows = padchest_rows(
        "['rib fracture', 'hydropneumothorax']",
        "['pacemaker', 'calcified densities']",
        "['normal']",
    )
    csv(tmp_path / "PADCHEST_x.csv", PADCHEST_HEAD, *rows)
    found = lingula.data_padchest(
        tmp_path, out=tmp_path / "t.csv", classes="cxr-lt-2023", images=False
    )
    table = read_table(found.path)
    assert table.space.classes == CXR_LT_2023
    for name, cells in (
        ("Fracture", [1, 0, 0]),
        ("Pneumothorax", [1, 0, 0]),
        ("Pleural Effusion", [1, 0, 0]),
        ("Support Devices", [0, 1, 0]),
        ("No Finding", [0, 0, 1]),
    ):
        assert table.labels[:, table.space.index(name)].tolist() == cells, name
    (known,) = found.coverage
    assert {"Lung Lesion", "Lung Opacity", "Enlarged Cardiomediastinum"} <= set(known.lacks)


# ---- VinDr

KAGGLE = "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max"


# Case 56


def test_vindr_readers_become_one_by_a_named_rule(tmp_path: Path) -> None:
    rows = ["x,No finding,14,R1,,,,", "x,No finding,14,R2,,,,", "x,Nodule/Mass,8,R3,1,2,11,22",
            "x,Nodule/Mass,8,R3,5,5,6,6", "y,Cardiomegaly,3,R1,0,0,9,9", "y,Cardiomegaly,3,R2,0,0,9,9",
            "y,Cardiomegaly,3,R3,0,1,9,9"]  # fmt: skip
    csv(tmp_path / "train.csv", KAGGLE, *rows)
    film(tmp_path / "train" / "x.png")
    with pytest.raises(
        InputError, match=r"differ on 1 of 2 images: x.*--readers any, majority or all"
    ):
        vindr(tmp_path)
    right = {"any": (1, 0), "majority": (0, 1), "all": (0, 0)}
    for rule, (mass, none) in right.items():
        table = vindr(tmp_path, readers=rule)  # type: ignore[arg-type]
        assert len(table) == 2 and table.images == ("train/x.png", "y") and table.splits is None
        assert (cell(table, "x", "Nodule/Mass"), cell(table, "x", "No Finding")) == (mass, none)
        assert cell(table, "y", "Cardiomegaly") == 1 and cell(table, "y", "No Finding") == 0
    assert len(table.space) == 15
    found = lingula.data_vindr(tmp_path, out=tmp_path / "t.csv", readers="any")
    boxes = pl.read_csv(tmp_path / "t.boxes.csv")
    assert boxes.columns[:7] == ["image", "finding", "x", "y", "w", "h", "split"]
    assert boxes.height == 5 and found.missing == ("y",)
    assert boxes.row(0)[:6] == ("train/x.png", "Nodule/Mass", 1.0, 2.0, 10.0, 20.0)


def test_the_boxes_of_vindr_are_those_that_attention_is_measured_by(tmp_path: Path) -> None:
    """What `data vindr` writes beside its table is what `explain` and `report` read there."""
    csv(
        tmp_path / "train.csv",
        KAGGLE,
        "x,Pulmonary fibrosis,13,R1,1,2,11,22",
        "x,Pleural effusion,10,R1,3,3,5,7",
        "y,No finding,14,R1,,,,",
    )
    of_image = {"Pleural Effusion": [(3.0, 3.0, 2.0, 4.0)]}
    scar = [(1.0, 2.0, 10.0, 20.0)]
    own = lingula.data_vindr(tmp_path, out=tmp_path / "own" / "t.csv", images=False)
    found = boxes_beside(read_table(own.path))
    assert found == {("x", n): b for n, b in (of_image | {"Pulmonary Fibrosis": scar}).items()}
    made = lingula.data_vindr(
        tmp_path, out=tmp_path / "t.csv", images=False, classes=["Fibrosis", "Pleural Effusion"]
    )
    found = boxes_beside(read_table(made.path))
    assert found == {("x", n): b for n, b in (of_image | {"Fibrosis": scar}).items()}
    # Where several tables are in one folder, the boxes of each are its own.
    (tmp_path / "boxes.csv").write_text("image,finding,x,y,w,h\ny,Mass,1,1,1,1\n")
    assert boxes_beside(read_table(made.path)) == found


def test_vindr_of_physionet_with_its_test_set(tmp_path: Path) -> None:
    notes = tmp_path / "annotations"
    names = "Aortic enlargement,Rib fracture,Other diseases,No finding"
    csv(
        notes / "image_labels_train.csv",
        f"image_id,rad_id,{names}",
        "a,R1,1,0,0,0",
        "a,R2,1,0,0,0",
        "b,R1,0,0,0,1",
        "b,R1,0,0,0,1",
    )
    csv(notes / "image_labels_test.csv", f"image_id,{names}", "c,0,1,0,0")
    csv(
        notes / "annotations_train.csv",
        "image_id,rad_id,class_name,x_min,y_min,x_max,y_max",
        "a,R1,Aortic enlargement,1,1,3,3",
        "b,R1,No finding,,,,",
    )
    found = lingula.data_vindr(
        tmp_path, out=tmp_path / "t.csv", classes="cxr-lt-2023", images=False
    )
    assert found.table.splits == ("train", "train", "test")
    # No rib broken is not "no fracture"; a wide aorta is not a tortuous one.
    assert [cell(found.table, i, "Fracture") for i in "abc"] == [BLANK, BLANK, 1]
    assert "Tortuous Aorta" in found.coverage[0].lacks
    assert (tmp_path / "t.boxes.csv").read_text().splitlines()[1:] == [
        "a,Aortic Enlargement,1.0,1.0,2.0,2.0,train,R1"
    ]


def test_vindr_faults_are_named(tmp_path: Path) -> None:
    head = "image_id,rad_id,Edema,No finding"
    a = csv(tmp_path / "image_labels_train.csv", head, "a,R1,1,0", "a,R2,,1")
    with pytest.raises(InputError, match=r"train.csv, row 3, column 'Edema': readers say 1 or 0"):
        vindr(tmp_path, [a], "any")
    csv(a, head, "a,R1,1,0")
    b = csv(tmp_path / "image_labels_test.csv", "image_id,No finding", "b,1")
    with pytest.raises(InputError, match=r"do not know the same findings: Edema"):
        vindr(tmp_path, [a, b])
    c = csv(tmp_path / "train.csv", KAGGLE, "a,Cardiomegali,3,R1,0,0,9,9")
    with pytest.raises(
        InputError, match=r"row 2, column 'class_name'.*Did you mean 'Cardiomegaly'"
    ):
        vindr(tmp_path, [c])
    csv(c, KAGGLE, "../x,Cardiomegaly,3,R1,0,0,9,9")
    with pytest.raises(InputError, match="not a path inside"):
        vindr(tmp_path, [c])
    csv(c, KAGGLE, "a,Cardiomegaly,3,R1,9,0,9,9")
    with pytest.raises(InputError, match=r"row 2: the box has no area"):
        lingula.data_vindr(tmp_path, labels=c, out=tmp_path / "t.csv")
    assert not (tmp_path / "t.csv").exists()


# ---- ChestMNIST


def npz(path: Path, **change: np.ndarray) -> Path:
    random = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for part, n in (("train", 4), ("val", 2), ("test", 3)):
        arrays[f"{part}_images"] = random.integers(0, 255, (n, 28, 28), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.eye(14, dtype=np.uint8)[12 : 12 + n].repeat(n, 0)[:n]
    np.savez_compressed(path, **(arrays | change))
    return path


def test_chestmnist_becomes_png_files(tmp_path: Path) -> None:
    source = npz(tmp_path / "chestmnist.npz")
    found = lingula.data_medmnist(source, out=tmp_path / "out" / "t.csv")
    table = read_table(found.path)
    assert table.splits == ("train",) * 4 + ("dev",) * 2 + ("test",) * 3 and table.patients is None
    assert set(table.space.classes) == set(NIH) - {"No Finding"}
    assert table.labels[0, table.space.index("Pleural Thickening")] == 1
    with np.load(source) as arrays:
        written = np.asarray(Image.open(table.root / table.images[4]))
        assert (written == arrays["val_images"][0]).all()
    assert is_sound(found.path)
    again = lingula.data_medmnist(tmp_path, out=tmp_path / "out" / "t.csv")
    assert again.table.images == table.images


def test_a_damaged_npz_is_refused(tmp_path: Path) -> None:
    source = npz(tmp_path / "chestmnist.npz")
    data = bytearray(source.read_bytes())
    for damaged in (data[:3000], b"no archive", data[:400] + bytes(200) + data[600:]):
        source.write_bytes(damaged)
        with pytest.raises(InputError, match=r"chestmnist.npz is damaged or no .npz"):
            lingula.data_medmnist(source, out=tmp_path / "t.csv")
    assert not (tmp_path / "t.csv").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"val_labels": np.zeros((2, 3), np.uint8)},
        {"val_labels": np.array([[object()] * 14] * 2)},
        {"val_labels": np.full((2, 14), 7, np.uint8)},
        {"test_images": np.zeros((3, 28, 28, 3), np.uint8)},
    ],
    ids=["three labels", "a pickle", "sevens", "colour"],
)
def test_an_npz_of_something_else_is_refused(change: dict[str, np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"chestmnist.npz: array '(val_labels|test_images)'"):
        lingula.data_medmnist(npz(tmp_path / "chestmnist.npz", **change), out=tmp_path / "t.csv")
    assert not (tmp_path / "t.csv").exists()


# ---- what they share


# Cases 59, 60


def test_byte_order_marks_carriage_returns_and_names_that_look_like_nothing(tmp_path: Path) -> None:
    head = "\ufeffdicom_id, subject_id,study_id,fpath, Edema"
    rows = ['"a,b",NA,1,files/a.jpg,1', "c,None,2,files/c.jpg,NA"]
    labels = csv(tmp_path / "train.csv", head, *rows, end="\r\n")
    table = cxr_lt(tmp_path, [labels])
    assert table.ids == ("a,b", "c") and table.patients == ("NA", "None")
    assert table.labels[:, 0].tolist() == [1, BLANK] and table.space.classes == ("Edema",)
    csv(tmp_path / "train.csv", *(text.replace(",", ";") for text in (head, rows[1])))
    assert cxr_lt(tmp_path, [labels]).patients == ("None",)


def test_no_source_file_is_changed_and_outputs_are_whole(tmp_path: Path) -> None:
    root = nih_tree(tmp_path / "nih", [nih_row(1, "Mass"), nih_row(2, "Edema")])
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    labels = root / "Data_Entry_2017.csv"
    for overwrite in (False, True):
        with pytest.raises(InputError, match="lingula did not write it"):
            lingula.data_nih(root, out=labels, overwrite=overwrite)
    lingula.data_nih(root, labels=labels, out=tmp_path / "t.parquet")
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["nih", "t.json", "t.parquet"]
    with pytest.raises(InputError, match=r"needs the classes"):
        lingula.data_nih(root, out=tmp_path / "u.csv", mapping=tmp_path / "map.yaml")


def test_the_command_line_of_a_source(tmp_path: Path) -> None:
    root = nih_tree(tmp_path / "nih", [nih_row(1, "Mass"), nih_row(2, "Edema")])
    (root / "train_val_list.txt").write_text("00000001_000.png\n00000002_000.png\n")
    arguments = ["data", "nih", str(root), "--out", str(tmp_path / "t.csv")]
    told = CliRunner().invoke(app, [*arguments, "--classes", "Mass,Hernia,Zebra"])
    assert told.exit_code == 0, told.output
    assert "knows 2 of 3 classes" in told.stdout and "does not know: Zebra" in told.stdout
    assert "lingula data split" in told.stdout  # no dev set is official
    facts = json.loads(
        CliRunner().invoke(app, [*arguments, "--classes", "Mass,Hernia,Zebra", "--json"]).stdout
    )
    assert facts["splits"] == {"train": 2} and facts["classes"]["Zebra"]["unmentioned"] == 2
    assert facts["sexes"] == {"M": 2} and facts["ages_known"] == 2


# Case 68


def test_ages_and_sexes() -> None:
    given = pl.Series(["0", "411", "058Y", "", "58.0", "013M", "x", "120", "-4"])
    assert read_ages(given).to_list() == ["0", "", "58", "", "58", "1", "", "120", ""]
    assert read_ages(given, zero_is_unknown=True)[0] == ""
    infants = pl.Series(["030D", "11M", "0.5", "000D", "364 D", "365.D", "012M", "000Y"])
    found = read_ages(infants).to_list()
    assert found == ["0.08", "0.92", "0.5", "0.01", "0.99", "0.99", "1", "0"]
    assert read_ages(infants, zero_is_unknown=True).to_list() == [*found[:-1], ""]
    # A known age stays one where groups are measured; only the bare 0 is none.
    assert set(age_bands(found[:-1])) == {"0-9"} and age_bands(found[-1:]) == ("unknown",)
    assert read_sexes(pl.Series(["M", "Male", "U", "", "female", "O"])).to_list() == [
        "M",
        "M",
        "U",
        "",
        "F",
        "O",
    ]


def test_the_real_mini_nih_comes_back_from_its_release_form(
    real_data: Path, tmp_path: Path
) -> None:
    """Real films, their labels written as NIH writes them, and read again: the same cells."""
    own = read_table(real_data / "nih-64" / "labels.csv")
    names = {"Pleural Effusion": "Effusion", "Pleural Thickening": "Pleural_Thickening"}
    rows = []
    for i, image in enumerate(own.images):
        found = [names.get(c, c) for k, c in enumerate(own.space.classes) if own.labels[i, k] == 1]
        study = own.studies[i].partition("_")[2]
        rows.append(
            f"{Path(image).name},{'|'.join(found)},{study},{own.patients[i]},{own.ages[i]},{own.sexes[i]},{own.views[i]},1,1,1,1"
        )
    labels = csv(tmp_path / "Data_Entry_2017_v2020.csv", NIH_HEAD, *rows)
    made = lingula.data_nih(real_data / "nih-64", labels=[labels], out=tmp_path / "t.csv")
    table = read_table(made.path, classes=own.space)
    assert not made.missing and table.images == own.images and table.studies == own.studies
    assert (table.labels == own.labels).all() and table.patients == own.patients
