"""`lingula data folder`: labels of one's own joined to images, by image, study or patient."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lingula
from lingula.system.errors import InputError
from lingula.tables.attached import attach
from lingula.tables.mapping import parse_map
from lingula.tables.reading import read_table
from lingula.tables.table import BLANK, UNCERTAIN


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three patients: p1 with two studies, p2 and p3 with one; and some junk."""
    random = np.random.default_rng(0)
    for place in ("p1/s1/a", "p1/s2/b", "p2/s3/c", "p3/s4/d"):
        path = tmp_path / "films" / f"{place}.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(random.integers(0, 255, (40, 40), dtype=np.uint8)).save(path)
    (tmp_path / "films" / "notes.txt").write_text("x")
    (tmp_path / "films" / "._a.png").write_bytes(b"x")
    return tmp_path / "films"


def labels(folder: Path, text: str) -> Path:
    path = folder.parent / "labels.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["p1/s1/a.png", "a.png", "a"])
def test_by_image(folder: Path, name: str) -> None:
    file = labels(folder, f"image,Edema,Effusion\n{name},1,\nd.png,0,-1\nz,1,1\n")
    made = lingula.data_folder(folder, labels=file, out=folder.parent / "t.csv")
    table = read_table(made.path)
    assert table.images == ("p1/s1/a.png", "p3/s4/d.png")
    assert table.space.classes == ("Edema", "Pleural Effusion")
    np.testing.assert_array_equal(table.labels, [[1, -2], [0, -1]])
    assert table.root == folder
    assert made.joined.unmatched == (4,) and len(made.joined.unlabelled) == 2
    assert sum(made.joined.skipped.values()) == 2


def test_by_study_and_by_patient(folder: Path) -> None:
    file = labels(folder, "study,Edema\ns1,1\ns2,0\ns3,1\n")
    table = read_table(
        lingula.data_folder(folder, labels=file, key="study", out=folder.parent / "t.csv").path
    )
    assert table.studies == ("s1", "s2", "s3") and table.labels[:, 0].tolist() == [1, 0, 1]
    file = labels(folder, "subject_id,age,Edema\np1,50,1\np2,61,0\n")
    made = lingula.data_folder(
        folder, labels=file, key="subject_id", out=folder.parent / "u.parquet"
    )
    table = read_table(made.path)
    assert table.patients == ("p1", "p1", "p2") and table.ages == ("50", "50", "61")


def test_columns_that_look_like_labels_are_named(folder: Path) -> None:
    file = labels(folder, "image,Edema,Cardiomegally,smoker\na,1,0,1\nb,0,1,0\n")
    with pytest.raises(InputError, match=r"'Cardiomegally'.*Did you mean 'Cardiomegaly'"):
        lingula.data_folder(folder, labels=file, out=folder.parent / "t.csv")
    (folder.parent / "map.yaml").write_text("Cardiomegally: Cardiomegaly\nsmoker: null\n")
    made = lingula.data_folder(
        folder, labels=file, map_file=folder.parent / "map.yaml", out=folder.parent / "t.csv"
    )
    assert read_table(made.path).space.classes == ("Edema", "Cardiomegaly")
    assert dict(made.joined.unused) == {"smoker": ""}
    rules = parse_map({"Cardiomegally": "Hernia"}, "map")
    ignored = attach(folder, file, key="image", rules=rules, ignore_columns=["smoker"])
    assert ignored.frame.columns == ["image", "Edema", "Cardiomegally"]
    assert ignored.classes == ("Edema", "Hernia")
    (folder.parent / "map.yaml").write_text("Cardiomegally: Edema\nsmoker: null\n")
    with pytest.raises(InputError, match="several columns stand for Edema"):
        lingula.data_folder(
            folder, labels=file, map_file=folder.parent / "map.yaml", out=folder.parent / "v.csv"
        )


def test_a_map_of_rules_serves_a_folder_too(folder: Path) -> None:
    """The sources' spelling: unions, kinds of a class, and classes that are a kind of a term."""
    file = labels(
        folder,
        "image,heart big,heart huge,rib,Nodule/Mass,smoker,Edema\n"
        "a,1,0,1,1,1,0\nb,0,0,0,0,1,1\nc,0,1,0,1,0,-1\nd,,0,0,0,0,\n",
    )
    (folder.parent / "rules.yaml").write_text(
        "same: {Cardiomegaly: [heart big, heart huge]}\nnarrower: {Fracture: rib}\n"
        "broader: {Mass: [Nodule/Mass]}\nnone: [smoker]\n"
    )
    made = lingula.data_folder(
        folder, labels=file, map_file=folder.parent / "rules.yaml", out=folder.parent / "t.csv"
    )
    table = read_table(made.path)
    # A term that is a class by its own name stays one besides.
    assert table.space.classes == ("Cardiomegaly", "Fracture", "Mass", "Nodule/Mass", "Edema")
    assert table.labels.tolist() == [
        [1, 1, UNCERTAIN, 1, 0],
        [0, BLANK, 0, 0, 1],
        [1, BLANK, UNCERTAIN, 1, UNCERTAIN],
        [BLANK, BLANK, 0, 0, BLANK],
    ]
    # Two columns of one class are its union in the other spelling too; both may stand in one file.
    (folder.parent / "both.yaml").write_text(
        "heart big: Cardiomegaly\nheart huge: Cardiomegaly\nsmoker: null\n"
        "narrower: {Fracture: rib}\nbroader: {Mass: Nodule/Mass}\n"
    )
    again = lingula.data_folder(
        folder, labels=file, map_file=folder.parent / "both.yaml", out=folder.parent / "u.csv"
    )
    assert again.path.read_bytes() == made.path.read_bytes()
    (folder.parent / "rules.yaml").write_text("same: {Cardiomegaly: [heart bug]}\n")
    with pytest.raises(InputError, match=r"no column 'heart bug'.*Did you mean 'heart big'"):
        lingula.data_folder(
            folder, labels=file, map_file=folder.parent / "rules.yaml", out=folder.parent / "v.csv"
        )


def test_a_column_may_stand_for_another_class_than_its_name_says(folder: Path) -> None:
    file = labels(folder, "image,Effusion,Mass\na,1,0\nb,0,1\n")
    (folder.parent / "map.yaml").write_text("Effusion: Pericardial\nMass: null\n")
    made = lingula.data_folder(
        folder, labels=file, map_file=folder.parent / "map.yaml", out=folder.parent / "t.csv"
    )
    table = read_table(made.path)
    assert table.space.classes == ("Pericardial",) and table.labels.tolist() == [[1], [0]]


def test_what_does_not_fit_is_an_error(folder: Path) -> None:
    out = folder.parent / "t.csv"
    file = labels(folder, "image,Edema\na,1\na,0\n")
    with pytest.raises(InputError, match="different labels: 2 and 3"):
        lingula.data_folder(folder, labels=file, out=out)
    file = labels(folder, "image,Edema\nq,1\n")
    with pytest.raises(InputError, match="No image of"):
        lingula.data_folder(folder, labels=file, out=out)
    with pytest.raises(InputError, match="no column 'AccessionNumber'"):
        lingula.data_folder(folder, labels=file, key="AccessionNumber", out=out)
    Image.new("L", (40, 40), 9).save(folder / "p2" / "a.png")
    file = labels(folder, "image,Edema\na.png,1\n")
    with pytest.raises(InputError, match="several images"):
        lingula.data_folder(folder, labels=file, out=out)
    assert not out.exists()


# Case 56


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("image,patient,Edema\na,p1,1\na,p2,1\n", "different patient: 2 and 3"),
        ("image,split,Edema\nb,train,1\na,train,1\na,val,1\n", "different split: 3 and 4"),
        ("image,Edema\na,1\nb,1\na,0\nb,\n", "different labels: 2 and 4, 3 and 5"),
        ("image,study,age,Edema\na,s,1,1\na,t,2,1\n", "study: 2 and 3; different age: 2 and 3"),
    ],
)
def test_rows_of_one_key_that_differ_are_named_by_line(folder: Path, text: str, what: str) -> None:
    with pytest.raises(InputError, match=f"labels.csv: lines of the same image with .*{what}"):
        lingula.data_folder(folder, labels=labels(folder, text), out=folder.parent / "t.csv")


def test_rows_that_say_the_same_in_other_figures_are_one(folder: Path) -> None:
    file = labels(folder, "image,patient,split,Edema\na,7,dev,1\na,7.0,val,1.0\na,7,valid,True\n")
    table = read_table(lingula.data_folder(folder, labels=file, out=folder.parent / "t.csv").path)
    assert table.images == ("p1/s1/a.png",) and table.labels.tolist() == [[1]]
    assert table.patients == ("7",) and table.splits == ("dev",)
    file = labels(folder, "image,patient,Edema\na,p1,1\na,p2,1\n")
    again = lingula.data_folder(
        folder, labels=file, ignore_columns=["patient"], out=folder.parent / "u.csv"
    )
    assert read_table(again.path).patients is None


# Case 57


def test_keys_that_became_floats_find_their_films(tmp_path: Path) -> None:
    for study in (59999999, 59999998):
        (tmp_path / "films" / f"{study}").mkdir(parents=True)
        film = np.full((9, 9), study % 200, np.uint8)
        Image.fromarray(film).save(tmp_path / "films" / f"{study}" / "a.png")
    folder = tmp_path / "films"
    file = labels(folder, "study_id,Edema\n59999999.0,1\n,1\n59999998.0,0\n12.0,1\n,0\n")
    made = lingula.data_folder(folder, labels=file, key="study_id", out=tmp_path / "t.csv")
    table = read_table(made.path)
    assert table.studies == ("59999998", "59999999") and table.labels.tolist() == [[0], [1]]
    assert made.joined.unmatched == (3, 5, 6)  # rows without a key are told too
    file = labels(folder, "study_id,Edema\n5.9E+07,1\n59999998,0\n")
    with pytest.raises(InputError, match=r"labels.csv: .*rounded numbers such as 5\.9E"):
        lingula.data_folder(folder, labels=file, key="study_id", out=tmp_path / "u.csv")


# Case 62


def test_cells_that_are_no_labels_are_named_in_the_users_own_file(folder: Path) -> None:
    file = labels(folder, "image,smoker,Edema\nd,1,yes\nb,0,no\na,1,yes\n")
    with pytest.raises(InputError) as caught:
        lingula.data_folder(
            folder, labels=file, ignore_columns=["smoker"], out=folder.parent / "t.csv"
        )
    told = str(caught.value)
    assert told.startswith(f"{file}, row 2, column 'Edema': 'yes' is not a label (3 such cells)")
    assert '--ignore-columns "Edema"' in told and "joined.csv" not in told
    file = labels(folder, "image,split,Edema\nb,holdout,1\n")
    with pytest.raises(InputError) as caught:
        lingula.data_folder(folder, labels=file, out=folder.parent / "t.csv")
    assert str(caught.value).startswith(f"{file}: column 'split' has 'holdout'")


def test_the_same_line_again_and_another(folder: Path) -> None:
    out = folder.parent / "t.csv"
    file = labels(folder, "image,Edema\na,1\nb,0\n")
    lingula.data_folder(folder, labels=file, out=out)
    before = out.read_bytes()
    lingula.data_folder(folder, labels=file, out=out)
    assert out.read_bytes() == before
    with pytest.raises(InputError, match="key: 'image' there, 'Edema' now"):
        lingula.data_folder(folder, labels=file, key="Edema", out=out)
    out.with_suffix(".made.json").unlink()
    with pytest.raises(InputError, match="not made by this command"):
        lingula.data_folder(folder, labels=file, out=out)


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    """60 DICOM films in 20 studies of 10 patients, with names in them, and labels by accession."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian

    random = np.random.default_rng(0)
    lines = ["AccessionNumber,Edema,Fracture,Cardiomegally"]
    for study in range(20):
        lines.append(f"A{study:04},{study % 2},{('', '-1', '0')[study % 3]},{int(study % 4 == 0)}")
        for number in range(3):
            meta = FileMetaDataset()
            meta.TransferSyntaxUID = ExplicitVRLittleEndian
            meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
            meta.MediaStorageSOPInstanceUID = f"1.2.3.{study}.{number}"
            path = tmp_path / "pacs" / f"{study}" / f"{number}"
            path.parent.mkdir(parents=True, exist_ok=True)
            film = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
            film.SOPClassUID = ComputedRadiographyImageStorage
            film.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
            film.PatientName, film.PatientID = "Duck^Donald", f"MRN{study // 2}"
            film.PatientAge, film.PatientSex = "061Y", "M"
            film.AccessionNumber, film.StudyInstanceUID = f"A{study:04}", f"1.2.3.{study}"
            film.Modality, film.ViewPosition = "CR", "PA"
            film.PhotometricInterpretation, film.SamplesPerPixel = "MONOCHROME2", 1
            film.Rows = film.Columns = 40
            film.BitsAllocated, film.BitsStored, film.HighBit = 16, 12, 11
            film.PixelRepresentation = 0
            pixels = random.integers(0, 3000, (40, 40)).astype(np.uint16)
            pixels[20:] += np.uint16(1000 * (study % 2))
            film.PixelData = pixels.tobytes()
            film.save_as(path, enforce_file_format=True)
    assert pydicom
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_a_hospitals_films_by_accession_number(
    hospital: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = hospital / "table.csv"
    settings = {"labels": hospital / "labels.csv", "key": "AccessionNumber", "out": out}
    with pytest.raises(InputError, match=r"'Cardiomegally' looks like labels.*'Cardiomegaly'"):
        lingula.data_folder(hospital / "pacs", **settings)  # type: ignore[arg-type]
    (hospital / "map.yaml").write_text("Cardiomegally: Cardiomegaly\n")
    lingula.data_folder(
        hospital / "pacs",
        map_file=hospital / "map.yaml",
        **settings,  # type: ignore[arg-type]
    )
    table = read_table(out)
    assert len(table) == 60 and len(set(table.studies or ())) == 20
    assert len(set(table.patients or ())) == 10 and set(table.views or ()) == {"PA"}
    assert table.ages is None and table.sexes is None
    written = "".join(path.read_text() for path in hospital.glob("table.*")) + caplog.text
    for secret in ("MRN", "Donald", "A0003"):
        assert secret not in written
    again = hospital / "kept.csv"
    lingula.data_folder(
        hospital / "pacs",
        labels=hospital / "labels.csv",
        key="AccessionNumber",
        map_file=hospital / "map.yaml",
        keep_ids=True,
        age_and_sex=True,
        out=again,
    )
    kept = read_table(again)
    assert set(kept.patients or ()) == {f"MRN{i}" for i in range(10)}
    assert set(kept.ages or ()) == {"61"} and not again.with_suffix(".key").exists()


# Case 144


def test_patients_whose_rows_differ_are_not_named(
    hospital: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = hospital / "labels.csv"
    file.write_text("PatientID,Edema\nMRN4,1\nMRN5,0\nMRN4,0\nMRN77,1\n")
    with pytest.raises(InputError, match="same PatientID with different labels: 2 and 4") as told:
        lingula.data_folder(hospital / "pacs", labels=file, key="PatientID", out=hospital / "t.csv")
    assert "MRN" not in str(told.value) + caplog.text


def test_trained_on_dicom_and_predicted_by_study(hospital: Path) -> None:
    from lingula.scores.predictions import read_scores
    from lingula.settings.config import vary
    from lingula.settings.recipes import recipe

    (hospital / "map.yaml").write_text("Cardiomegally: Cardiomegaly\n")
    made = lingula.data_folder(
        hospital / "pacs",
        labels=hospital / "labels.csv",
        key="AccessionNumber",
        map_file=hospital / "map.yaml",
        out=hospital / "table.csv",
    )
    config = vary(recipe("smoke"), data__table=str(made.path), optim__epochs=1)
    run = lingula.train(config, out=hospital / "run")
    found = lingula.predict(run, data=made.path, by="study", out=hospital / "scores.csv")
    scores = read_scores(found.path)
    assert len(scores) == 60 and not found.failures
    by_study = {s: p for s, p in zip(scores.studies or (), scores.probabilities, strict=True)}
    for study, row in zip(scores.studies or (), scores.probabilities, strict=True):
        np.testing.assert_array_equal(row, by_study[study])


# Patients and facts of the CSV under names of their own


@pytest.mark.parametrize("name", ["PatientID", "patient_id", "Patient ID", "MRN", "case_id"])
def test_a_patient_column_is_carried_over(
    folder: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = labels(
        folder, f"image,{name},PatientAge,Gender,remark,Edema\na,q1,50,F,x,1\nb,q1,50,F,y,0\n"
    )
    with caplog.at_level("INFO", "lingula"):
        made = lingula.data_folder(folder, labels=file, out=folder.parent / "t.csv")
    table = read_table(made.path)
    assert (
        table.patients == ("q1", "q1") and table.ages == ("50", "50") and table.sexes == ("F", "F")
    )
    assert dict(made.joined.taken) == {name: "patient", "PatientAge": "age", "Gender": "sex"}
    assert dict(made.joined.unused) == {"remark": ""}
    assert f"{name} as patient" in caplog.text and "not used: remark" in caplog.text


def test_the_key_itself_is_carried_over_as_what_it_is(folder: Path) -> None:
    file = labels(folder, "PatientID,AccessionNumber,Edema\np1,7,1\np1,8,1\np2,9,0\n")
    made = lingula.data_folder(folder, labels=file, key="PatientID", out=folder.parent / "t.csv")
    table = read_table(made.path)
    # A study that differs among the rows of one patient can't be his images'.
    assert table.patients == ("p1", "p1", "p2") and table.studies is None
    assert "AccessionNumber" in made.joined.unused
    file = labels(folder, "image,MRN,Edema\na,1,1\na,2,1\n")
    with pytest.raises(InputError, match="different patient: 2 and 3"):
        lingula.data_folder(folder, labels=file, out=folder.parent / "u.csv")


def test_ids_of_headers_go_before_those_of_other_names(hospital: Path) -> None:
    """The CSV's PatientID and AccessionNumber change nothing where DICOM headers have their own."""
    text = "AccessionNumber,{}Edema\n" + "".join(
        f"A{study:04},{{}}{study % 2}\n" for study in range(20)
    )
    (hospital / "labels.csv").write_text(text.replace("{}", ""))
    settings = {"key": "AccessionNumber", "keep_ids": True, "labels": hospital / "labels.csv"}
    plain = lingula.data_folder(hospital / "pacs", out=hospital / "a.csv", **settings)  # type: ignore[arg-type]
    (hospital / "labels.csv").write_text(
        text.replace("{}", "PatientID,", 1).replace("{}", "other,")
    )
    more = lingula.data_folder(hospital / "pacs", out=hospital / "b.csv", **settings)  # type: ignore[arg-type]
    assert more.path.read_bytes() == plain.path.read_bytes()
    assert read_table(plain.path).studies is not None
    hidden = lingula.data_folder(
        hospital / "pacs",
        labels=hospital / "labels.csv",
        key="AccessionNumber",
        out=hospital / "c.csv",
    )
    assert "MRN" not in hidden.path.read_text()


# Keys that are names of files


@pytest.mark.parametrize(
    "cell",
    ["a.png", "a", "p1/s1/a.png", "p1/s1/a", "./p1//s1/a.png", r"p1\s1\a.png", "films/p1/s1/a.png",
     "/data/of/another/machine/p1/s1/a.png", r"D:\films\p1\s1\a.png", "{root}/p1/s1/a.png"],
)  # fmt: skip
@pytest.mark.parametrize("key", ["image", "filename"])
def test_a_key_may_be_a_name_or_a_path(folder: Path, cell: str, key: str) -> None:
    cell = cell.replace("{root}", str(folder))
    file = labels(folder, f"{key},Edema\n{cell},1\nd.png,0\nnowhere/a.jpg,1\n")
    made = lingula.data_folder(folder, labels=file, key=key, out=folder.parent / "t.csv")
    table = read_table(made.path)
    assert table.images == ("p1/s1/a.png", "p3/s4/d.png") and table.labels[:, 0].tolist() == [1, 0]
    assert table.studies is None  # a file's name is no study's
    assert made.joined.unmatched == (4,)


def test_a_file_name_that_fits_several_images_is_refused(folder: Path) -> None:
    Image.new("L", (40, 40), 9).save(folder / "p2" / "a.png")
    file = labels(folder, "filename,Edema\na.png,1\n")
    with pytest.raises(InputError, match="several images"):
        lingula.data_folder(folder, labels=file, key="filename", out=folder.parent / "t.csv")


def test_the_hint_of_a_map_names_the_column_in_question(folder: Path) -> None:
    file = labels(folder, "image,smoker,Edema,PatientID\na,1,0,q\nb,0,1,r\n")
    with pytest.raises(InputError, match=r"`smoker: CLASS`"):
        lingula.data_folder(folder, labels=file, out=folder.parent / "t.csv")
