"""What columns are called: ids under the names of hospitals and public sets; helpers are no findings."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lingula
from builders import write
from lingula.scores.predictions import read_scores
from lingula.settings.label_space import (
    CXR_LT_2024,
    CXR_LT_2024_UNSEEN,
    NIH_CXR_LT,
    VINDR,
    LabelSpace,
)
from lingula.system.errors import InputError
from lingula.tables.checking import check
from lingula.tables.columns import helper_kind, known_columns
from lingula.tables.reading import read_table

HELPERS = {
    "a split": "fold is_valid isValid IsTest valid val train test dev holdout set subset partition "
    "kfold k-fold fold_0 fold3 split_train trainset validation_set in_test cv_fold phase",
    "a patient's fact": "sex_male sexFemale male female is_male PatientSex_F gender_1 age_over_65 "
    "age_18_40 race_white insurance_private inpatient child",
    "a view": "frontal lateral portable AP PA is_frontal view_PA ViewPosition_AP supine",
    "an image's fact": "height width weight sample_weight n_images num_views count is_duplicate "
    "inverted exclude has_report burned_in",
    "a place": "site site-B hospital hospital_2 scanner_1 dataset_nih manufacturer",
    "a row's number": "index level_0 __index_level_0__ row_id visit",
}


@pytest.mark.parametrize(("kind", "names"), HELPERS.items())
def test_names_of_helpers(kind: str, names: str) -> None:
    assert {name: helper_kind(name) for name in names.split()} == dict.fromkeys(names.split(), kind)


def test_no_finding_is_a_helper() -> None:
    known = {*CXR_LT_2024, *CXR_LT_2024_UNSEEN, *VINDR, *NIH_CXR_LT}
    own = {"Zebra", "abnormal", "label", "Rib Fracture", "mass left", "Devices", "tube", "smoker"}
    own |= {"testis", "validity", "Indexed", "ageing", "c0", "A", "viewed", "COVID-19", "sexton"}
    assert [name for name in sorted(known | own) if helper_kind(name)] == []


def helpers_table(folder: Path, n: int = 40) -> Path:
    (folder / "img").mkdir(parents=True)
    lines = ["image,patient,fold,is_valid,sex_male,frontal,weight,Edema"]
    for i in range(n):
        pixels = np.random.default_rng(i).integers(0, 255, (32, 32), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "img" / f"{i}.png")
        cells = [i % 2, int(i > 30), i % 2, (i // 2) % 2, i % 2, int(i % 3 == 0)]
        lines.append(f"img/{i}.png,p{i // 2}," + ",".join(map(str, cells)))
    return write(folder / "t.csv", "\n".join(lines) + "\n")


def test_helpers_never_become_classes_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = helpers_table(tmp_path)
    names = ["fold", "is_valid", "sex_male", "frontal", "weight"]
    with caplog.at_level("WARNING", "lingula"):
        assert read_table(path).space.classes == ("Edema",)
    (told,) = [record.message for record in caplog.records]
    assert all(f"'{name}' (looks like" in told for name in names)
    assert "For 'is_valid' to be the split" in told and "--ignore-columns" in told
    report = check(path, images=False)
    (fault,) = report.problems
    assert not report.fit and fault.message == told and fault.examples == tuple(names)
    assert list(report.facts["positives"]) == ["Edema"]


def test_helpers_that_are_ignored_or_named_are_not_asked_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = helpers_table(tmp_path)
    names = ["fold", "is_valid", "sex_male", "weight"]
    with caplog.at_level("WARNING", "lingula"):
        space = LabelSpace(("Edema", "frontal"))
        found = read_table(path, classes=space, ignore_columns=names)
        assert found.space.classes == ("Edema", "frontal")
        found = read_table(path, ignore_columns=names, named=("frontal",))
        assert found.space.classes == ("frontal", "Edema")
        write(tmp_path / "t.json", '{"format": 1, "classes": ["Edema", "frontal"]}')
        assert read_table(path, ignore_columns=names).space.classes == ("Edema", "frontal")
    assert not caplog.records
    with pytest.raises(InputError, match=r"neither ids nor one of the 2 classes: 'fold'"):
        read_table(path)
    (tmp_path / "t.json").unlink()
    write(path, "image,patient,is_valid\na,1,0\nb,2,1\n")
    with pytest.raises(InputError, match="no class columns"):
        read_table(path)


def test_a_model_of_a_class_of_a_helpers_name_is_measured_on_it(tmp_path: Path) -> None:
    labels = write(tmp_path / "t.csv", "image,Edema,portable\na,1,0\nb,0,1\nc,0,0\n")
    scores = write(tmp_path / "s.csv", "image,Edema,portable\na,.9,.1\nb,.1,.9\nc,.2,.2\n")
    assert lingula.evaluate(scores, labels=labels).classes == ("Edema", "portable")
    bare = write(tmp_path / "u.csv", "image,Edema\na,.9\nb,.1\nc,.2\n")
    assert lingula.evaluate(bare, labels=labels).classes == ("Edema",)


def test_a_training_leaves_helpers_out(tmp_path: Path) -> None:
    run = lingula.train(
        "smoke", [f"data.table={helpers_table(tmp_path)}", "optim.epochs=1"], out=tmp_path / "run"
    )
    with (run / "scores" / "test.csv").open() as stream:
        assert next(csv.reader(stream)) == ["image", "patient", "Edema"]


def test_names_of_splits_under_another_name_are_offered_as_the_split(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "image,subset,Edema\na,Train,1\nb,valid,0\nc,,0\n")
    with pytest.raises(
        InputError, match=r"'subset' \(e.g. 'Train'\) It contains names of splits: call it"
    ):
        read_table(path)
    write(path, "image,subset,Edema\na,Train,1\nb,other,0\n")
    with pytest.raises(InputError) as caught:
        read_table(path)
    assert "names of splits" not in str(caught.value)


# Ids and facts


@pytest.mark.parametrize(
    "name",
    ["PatientID", "patient_id", "Patient ID", "Patient Id", "patient-id", "MRN", "pid", "case_id",
     "SubjectID", "subject", "Patientennummer", "id_paciente", "deid_patient_id", "PatNr"],
)  # fmt: skip
def test_patients_under_other_names(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "t.csv", f"image,{name},Edema\na,59999999.0,1\nb,p7,0\n")
    assert read_table(path).patients == ("59999999", "p7")
    path = write(tmp_path / "s.csv", f"image,{name},Edema\na,59999999,0.5\nb,p7,0\n")
    assert read_scores(path).patients == ("59999999", "p7")


def test_facts_under_other_names(tmp_path: Path) -> None:
    head = "image,AccessionNumber,View Position,PatientAge,Gender,SOPInstanceUID,Edema"
    found = read_table(
        write(tmp_path / "t.csv", f"{head}\na,7.0,PA,63,0,1.2.3,1\nb,8,AP,,1,1.2.4,0\n")
    )
    assert found.studies == ("7", "8") and found.views == ("PA", "AP") and found.ages == ("63", "")
    assert found.sexes == ("0", "1") and found.ids == ("1.2.3", "1.2.4")
    assert found.space.classes == ("Edema",)


def test_a_tables_own_names_go_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert known_columns(["MRN", "PatientID", "AccessionNumber", "StudyInstanceUID"]) == {
        "PatientID": "patients",
        "StudyInstanceUID": "studies",
    }
    path = write(tmp_path / "t.csv", "image,PatientID,patient,Edema\na,x,1,1\nb,y,2,0\n")
    with pytest.raises(InputError, match="neither ids nor classes: 'PatientID'"):
        read_table(path)
    assert read_table(path, ignore_columns=["PatientID"]).patients == ("1", "2")
    with pytest.raises(InputError, match="both say the patient"):
        read_table(write(path, "image,subject_id,patient,Edema\na,x,1,1\n"))
    # 0 and 1 of a second column of the sex are no finding.
    path = write(path, "image,sex,gender,Edema\na,M,1,1\nb,F,0,0\n")
    with caplog.at_level("WARNING", "lingula"):
        assert read_table(path).space.classes == ("Edema",)
    assert "'gender' (looks like what another column says)" in caplog.text
    # What is named as a class is no alias.
    assert read_table(path, classes=LabelSpace(("gender", "Edema"))).labels.tolist() == [
        [1, 1],
        [0, 0],
    ]
    scores = write(tmp_path / "s.csv", "image,patient,MRN,Edema\na,1,x,0.5\n")
    assert read_scores(scores).classes == ("Edema",)
