"""`lingula data folder`: labels of one's own joined to images, by image, study or patient."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lingula
from lingula.data.attached import attach
from lingula.data.reading import read_table
from lingula.errors import InputError


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
    ignored = attach(
        folder, file, key="image", mapping={"Cardiomegally": "Hernia"}, ignore_columns=["smoker"]
    )
    assert ignored.frame.columns == ["image", "Edema", "Hernia"]
    (folder.parent / "map.yaml").write_text("Cardiomegally: Edema\nsmoker: null\n")
    with pytest.raises(InputError, match="several columns stand for Edema"):
        lingula.data_folder(
            folder, labels=file, map_file=folder.parent / "map.yaml", out=folder.parent / "v.csv"
        )


def test_what_does_not_fit_is_an_error(folder: Path) -> None:
    out = folder.parent / "t.csv"
    file = labels(folder, "image,Edema\na,1\na,0\n")
    with pytest.raises(InputError, match="different labels: a"):
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
