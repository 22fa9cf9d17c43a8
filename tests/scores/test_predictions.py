"""Scores files of other people: what is read, what is refused, and how rows are joined."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import write
from lingula.scores.predictions import (
    Predictions,
    align_rows,
    class_columns,
    failed,
    read_scores,
    select_rows,
    write_scores,
)
from lingula.system.errors import InputError
from lingula.tables.reading import read_table
from lingula.verbs.evaluate import evaluate


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_any_probability_survives_a_file(
    tmp_path_factory: pytest.TempPathFactory, values: list[float]
) -> None:
    folder = tmp_path_factory.mktemp("scores")
    images = tuple(f"{i}.png" for i in range(len(values)))
    made = Predictions(("Edema",), images, np.array(values)[:, None])
    for name in ("s.csv", "s.parquet"):
        write_scores(made, folder / name)
        again = read_scores(folder / name)
        assert again.probabilities.tobytes() == made.probabilities.tobytes()


def test_files_keep_names_ids_and_failed_rows(tmp_path: Path) -> None:
    made = Predictions(
        ("Pleural Effusion", "Own class"),
        ("a.png", "b.png"),
        np.array([[0.25, 1.0], [np.nan, np.nan]]),
        ids=("007", "1e3"),
        studies=("1", "2"),
        patients=("01", ""),
    )
    for name in ("s.csv", "s.parquet"):
        write_scores(made, tmp_path / name)
        again = read_scores(tmp_path / name)
        assert (again.classes, again.images) == (made.classes, made.images)
        assert (again.ids, again.studies, again.patients) == (
            ("007", "1e3"),
            ("1", "2"),
            ("01", ""),
        )
        assert failed(again).tolist() == [False, True]
    assert (tmp_path / "s.csv").read_text().splitlines()[2] == 'b.png,1e3,2,"",,'
    with pytest.raises(InputError, match=r"\.csv or \.parquet"):
        write_scores(made, tmp_path / "s.txt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.csv", "s.parquet"]


def test_single_precision_parquet_is_read_as_stored(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random(50).astype(np.float32)
    names = [f"{i}" for i in range(50)]
    pl.DataFrame({"image": names, "Mass": values}).write_parquet(tmp_path / "s.parquet")
    assert (read_scores(tmp_path / "s.parquet").probabilities[:, 0] == values).all()


def test_a_row_index_is_no_class(tmp_path: Path) -> None:
    found = read_scores(write(tmp_path / "s.csv", ",image,Edema\n0,a,.5\n1,b,.5\n"))
    assert found.classes == ("Edema",) and found.images == ("a", "b")


def test_a_challenge_file_is_keyed_by_its_ids(tmp_path: Path) -> None:
    text = "\ufeffdicom_id,subject_id,view,Effusion, Pleural_Thickening \nx-1,10,PA,.5,1e-07\n"
    found = read_scores(write(tmp_path / "s.csv", text))
    assert found.images == found.ids == ("x-1",) and found.patients == ("10",)
    assert found.classes == ("Pleural Effusion", "Pleural Thickening")
    assert found.probabilities.tolist() == [[0.5, 1e-07]]
    assert align_rows(found, ["files/x-1.jpg"], ["x-1"]).tolist() == [0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,Edema\na,1.5\n", "image 'a', class 'Edema'"),
        ("image,Edema\na,x\n", "image 'a', class 'Edema'"),
        ("image,Edema,Mass\na,0.5,\n", "all its scores or"),
        ("image,Edema\na,0.5\na,0.6\n", "more than once: a"),
        ("name,Edema\na,0.5\n", "needs an `image`"),
        ("image,Effusion,Pleural Effusion\na,0.5,0.5\n", "one class"),
        ("image;Edema\na;1,5\n", "image 'a', class 'Edema' has 1.5"),
        ("image,Edema\na,nan\n", "image 'a', class 'Edema' has 'nan'"),
        ("image,Edema\na,inf\n", "image 'a', class 'Edema' has inf"),
        ("image,Edema\na,-0.1\nb,.5\n", "sigmoid"),
        ("image,Edema\na,.5\nb,tensor(0.3)\n", "image 'b'.*tensor"),
        ("image,Edema,comment\na,.5,good\nb,.5,bad\n", "Without any number: comment"),
        ("image,path,Edema\na,b,.5\n", "both say the image. Remove one"),
        ("image,Edema,Edema\na,.5,.5\n", "several columns named Edema"),
        ("image,my_class,My  Class\na,.5,.5\n", "one class: my_class, My  Class"),
        ("image,Edema\n,.5\n", "row 1 has no image name"),
        ("image,Edema\n", "no rows"),
        ("", "empty"),
        ("image,Edema\na,.5,.6\n", "more cells than its 2 columns: line 2"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "s.csv", text)
    with pytest.raises(InputError, match=message) as caught:
        read_scores(path)
    assert str(path) in str(caught.value)


def test_absent_and_undecodable_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no scores file"):
        read_scores(tmp_path / "none.csv")
    (tmp_path / "s.csv").write_bytes("image,Ödema\na,.5\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"s\.csv is not UTF-8"):
        read_scores(tmp_path / "s.csv")
    (tmp_path / "s.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match=r"s\.parquet can't be read"):
        read_scores(tmp_path / "s.parquet")


def test_values_of_ones_own_are_checked_too() -> None:
    with pytest.raises(InputError, match="2 images and 1 classes"):
        Predictions(("Edema",), ("a", "b"), np.zeros((1, 1)))
    with pytest.raises(InputError, match="1 ids for 2 images"):
        Predictions(("Edema",), ("a", "b"), np.zeros((2, 1)), ids=("x",))
    with pytest.raises(InputError, match="class 'Mass' has no score"):
        Predictions(("Edema", "Mass"), ("a",), np.array([[0.5, np.nan]]))


def test_rows_join_by_name_or_id_and_never_by_position() -> None:
    values = np.array([[0.1], [0.2], [0.3]])
    made = Predictions(("Edema",), ("a", "b", "c"), values, ids=("1", "2", "2"))
    assert align_rows(made, ["c", "a"]).tolist() == [2, 0]
    assert align_rows(made, ["x"], ["1"]).tolist() == [0]
    with pytest.raises(InputError, match=r"no scores for x \(1 of 2 images\)"):
        align_rows(made, ["a", "x"])
    with pytest.raises(InputError, match="belong to several images: 2"):
        align_rows(made, ["x"], ["2"])
    with pytest.raises(InputError, match="belong to several images: 1"):
        align_rows(made, ["x", "y"], ["1", "1"])
    with pytest.raises(InputError, match="no scores for x"):
        align_rows(made, ["x"], [""])
    part = select_rows(made, np.array([2, 0]))
    assert part.images == ("c", "a") and part.ids == ("2", "1")
    assert part.probabilities.tolist() == [[0.3], [0.1]]


def test_classes_join_by_any_spelling() -> None:
    made = Predictions(("Effusion", "my_class"), ("a",), np.array([[0.1, 0.2]]))
    assert class_columns(made, ["My Class", "pleural_effusion"]).tolist() == [1, 0]
    with pytest.raises(InputError, match=r"no scores of Pleural Efusion.*Did you mean"):
        class_columns(made, ["Pleural Efusion"])


# Case 57


@pytest.mark.parametrize(
    ("there", "here"), [("101.0", "101.0"), ("101", "101.0"), ("101.0", "101")]
)
def test_ids_are_read_alike_in_tables_and_scores(tmp_path: Path, there: str, here: str) -> None:
    labels = write(
        tmp_path / "t.csv", f"image,id,study,Edema\na.png,{there},7.0,1\nb.png,102,8,0\n"
    )
    file = write(tmp_path / "s.csv", f"id,study,Edema\n102,8,0.25\n{here},7,0.75\n")
    table, found = read_table(labels), read_scores(file)
    assert table.ids == ("101", "102") and found.ids == ("102", "101")
    assert align_rows(found, table.images, table.ids).tolist() == [1, 0]
    for by in ("image", "study"):  # the study 7 of the scores is the table's 7.0
        measured = evaluate(file, labels=labels, by=by)  # type: ignore[arg-type]
        assert measured.n == 2 and measured.metrics.auroc.tolist() == [1]
    write(file, "id,Edema\n1.9E+38,0.25\n1,0.75\n")
    with pytest.raises(InputError, match="rounded numbers"):
        read_scores(file)
