"""Submissions: the organisers' columns, order and ids, every digit, and nothing that does not fit."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import lingula
from builders import csv as write
from lingula.reporting.submission import read_template
from lingula.scores import metrics
from lingula.scores.predictions import Predictions, write_scores
from lingula.settings.label_space import CXR_LT_2023
from lingula.system.errors import InputError
from lingula.system.files import sha256
from lingula.verbs.submit import submit

ORDER_2024_TASK_2 = tuple("Normal" if name == "No Finding" else name for name in CXR_LT_2023)
CLASSES_2026 = ("Normal", "aortic elongation", "cardiomegaly", "Nodule", "pneumoperitoneo")


def template(path: Path, key: str, ids: list[str], classes: tuple[str, ...]) -> Path:
    rows = [",".join([name, *("0" for _ in classes)]) for name in ids]
    return write(path, ",".join([key, *classes]), *rows)


def scores(path: Path, images: list[str], classes: tuple[str, ...], seed: int = 0) -> Predictions:
    values = np.random.default_rng(seed).random((len(images), len(classes)))
    made = Predictions(classes, tuple(images), values, ids=tuple(images))
    write_scores(made, path)
    return made


def submitted(path: Path) -> list[list[str]]:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.startswith("code/")]
        assert names == ["submission.csv"]
        return list(csv.reader(io.StringIO(archive.read(names[0]).decode())))


@pytest.mark.parametrize(
    ("key", "classes"),
    [
        ("dicom_id", CXR_LT_2023),
        ("dicom_id", ORDER_2024_TASK_2),
        ("ImageID", CLASSES_2026),
    ],
)
def test_columns_order_and_ids_are_the_organisers(
    key: str, classes: tuple[str, ...], tmp_path: Path
) -> None:
    """Scores in another order, under other spellings: bound by id and by class name."""
    ids = [f"0{i}-ab" for i in range(6)]
    wanted = template(tmp_path / "sample.csv", key, ids, classes)
    turned = tuple(name.replace(" ", "_").upper() for name in reversed(classes))
    made = scores(tmp_path / "s.csv", ids[::-1], turned)
    submit(tmp_path / "s.csv", template=wanted, out=tmp_path / "submission.zip")
    rows = submitted(tmp_path / "submission.zip")
    assert rows[0] == [key, *classes]
    assert [row[0] for row in rows[1:]] == ids
    values = np.array([row[1:] for row in rows[1:]], dtype=float)
    np.testing.assert_array_equal(values, made.probabilities[::-1, ::-1])  # every digit


@pytest.mark.parametrize("written", ["7.0", "7"])
def test_ids_that_look_like_floats_stay_the_organisers(written: str, tmp_path: Path) -> None:
    """Case 57: scores' ids are read without `.0`; those of the file are the template's own."""
    wanted = template(tmp_path / "sample.csv", "dicom_id", ["7.0", "8"], ("Edema",))
    for columns, key in (("id", ""), ("image,id", "x.png,")):
        rows = [f"{key.replace('x', str(i))}{name},0.{i}" for i, name in enumerate((8, written), 1)]
        (tmp_path / "s.csv").write_text("\n".join([f"{columns},Edema", *rows]) + "\n")
        out = tmp_path / columns / "submission.zip"
        submit(tmp_path / "s.csv", template=wanted, out=out)
        assert submitted(out) == [["dicom_id", "Edema"], ["7.0", "0.2"], ["8", "0.1"]]


def test_case_125_no_rounding_makes_ties(tmp_path: Path) -> None:
    values = [0.12345612, 0.12345638, 0.5000001, 0.5000004, 1e-7, 1 - 2**-53]
    ids = [f"i{k}" for k in range(6)]
    write_scores(Predictions(("Edema",), tuple(ids), np.array(values)[:, None]), tmp_path / "s.csv")
    submit(
        tmp_path / "s.csv",
        template=template(tmp_path / "t.csv", "dicom_id", ids, ("Edema",)),
        out=tmp_path / "submission.zip",
    )
    back = [float(row[1]) for row in submitted(tmp_path / "submission.zip")[1:]]
    assert back == values
    assert metrics.average_precision(np.array(back[:4]), np.array([0, 1, 0, 1])) == pytest.approx(
        0.8333, abs=1e-4
    )


def test_case_126_half_precision_keeps_its_order(tmp_path: Path) -> None:
    """float16 scores are written as plain decimal numbers, each as it is."""
    values = np.unique(np.random.default_rng(0).random(500).astype(np.float16))
    ids = [f"i{k}" for k in range(len(values))]
    write_scores(
        Predictions(("Edema",), tuple(ids), values[:, None].astype(float)), tmp_path / "s.csv"
    )
    wanted = template(tmp_path / "t.csv", "dicom_id", ids, ("Edema",))
    submit(tmp_path / "s.csv", template=wanted, out=tmp_path / "submission.csv")
    cells = [line.split(",")[1] for line in (tmp_path / "submission.csv").read_text().splitlines()]
    assert [np.float16(cell) for cell in cells[1:]] == list(values)
    assert not any(set(cell) - set("0123456789.e-") for cell in cells[1:])


def test_case_128_missing_and_extra_ids_are_refused_by_name(tmp_path: Path) -> None:
    wanted = template(tmp_path / "t.csv", "dicom_id", ["a", "b", "c"], ("Edema",))
    scores(tmp_path / "s.csv", ["c", "a", "x"], ("Edema",))
    out = tmp_path / "submission.zip"
    with pytest.raises(InputError, match=r"no scores of 1: b\.\n.*does not contain: x") as error:
        submit(tmp_path / "s.csv", template=wanted, out=out)
    assert "--allow-extra" in str(error.value) and not out.exists()
    scores(tmp_path / "more.csv", ["c", "x", "b", "a"], ("Edema",))
    done = submit(tmp_path / "more.csv", template=wanted, out=out, allow_extra=True)
    assert done.made.left_over == 1
    assert [row[0] for row in submitted(out)[1:]] == ["a", "b", "c"]


def test_failed_images_need_an_explicit_fill(tmp_path: Path) -> None:
    wanted = template(tmp_path / "t.csv", "dicom_id", ["a", "b"], ("Edema", "Mass"))
    path = write(tmp_path / "s.csv", "image,Edema,Mass\na,,\nb,.2,.3")
    with pytest.raises(InputError, match=r"1 images failed.*: a\. .*--fill"):
        submit(path, template=wanted, out=tmp_path / "submission.zip")
    with pytest.raises(InputError, match="probability in"):
        submit(path, template=wanted, out=tmp_path / "submission.zip", fill=1.5)
    done = submit(path, template=wanted, out=tmp_path / "submission.zip", fill=0.25)
    assert done.made.filled == ("a",)
    rows = submitted(tmp_path / "submission.zip")
    assert rows[1:] == [["a", "0.25", "0.25"], ["b", "0.2", "0.3"]]


def test_ids_join_to_paths_by_their_file_names(tmp_path: Path) -> None:
    """MIMIC's rows are paths; the organisers ask for dicom ids."""
    path = write(
        tmp_path / "s.csv", "image,Edema\nfiles/p10/s5/a-1.jpg,.1\nfiles/p11/s6/b.2.jpg,.9"
    )
    wanted = template(tmp_path / "t.csv", "dicom_id", ["b.2", "a-1"], ("Edema",))
    submit(path, template=wanted, out=tmp_path / "submission.zip")
    assert submitted(tmp_path / "submission.zip")[1:] == [["b.2", "0.9"], ["a-1", "0.1"]]
    twice = write(tmp_path / "d.csv", "image,Edema\nx/a.jpg,.1\ny/a.jpg,.9")
    only = template(tmp_path / "o.csv", "dicom_id", ["a"], ("Edema",))
    with pytest.raises(InputError, match="several images have the id a"):
        submit(twice, template=only, out=tmp_path / "other.zip")


def test_other_columns_of_the_template_are_kept_as_they_are(tmp_path: Path) -> None:
    wanted = write(tmp_path / "t.csv", "dicom_id,study_id,Edema\na,s0050414267,\nb,s0050414268,")
    scores(tmp_path / "s.csv", ["b", "a"], ("Edema",))
    submit(tmp_path / "s.csv", template=wanted, out=tmp_path / "submission.zip")
    rows = submitted(tmp_path / "submission.zip")
    assert rows[0] == ["dicom_id", "study_id", "Edema"]
    assert [row[:2] for row in rows[1:]] == [["a", "s0050414267"], ["b", "s0050414268"]]


def test_the_zip_is_flat_holds_the_code_and_is_the_same_twice(tmp_path: Path) -> None:
    code = tmp_path / "code"
    (code / "deep" / "__pycache__").mkdir(parents=True)
    (code / "run.py").write_text("print()\n")
    (code / "deep" / "a.txt").write_text("x")
    (code / "deep" / "__pycache__" / "a.pyc").write_text("x")
    (code / ".git").mkdir()
    (code / ".git" / "config").write_text("x")
    wanted = template(tmp_path / "t.csv", "dicom_id", ["a"], ("Edema",))
    scores(tmp_path / "s.csv", ["a"], ("Edema",))
    out = tmp_path / "submission.zip"
    submit(tmp_path / "s.csv", template=wanted, out=out, code=code)
    first = out.read_bytes()
    with zipfile.ZipFile(out) as archive:
        assert archive.namelist() == ["submission.csv", "code/deep/a.txt", "code/run.py"]
        assert archive.testzip() is None
    submit(tmp_path / "s.csv", template=wanted, out=out, code=code)
    assert out.read_bytes() == first
    with pytest.raises(InputError, match="is inside"):
        submit(tmp_path / "s.csv", template=wanted, out=code / "s.zip", code=code)
    with pytest.raises(InputError, match="no folder"):
        submit(tmp_path / "s.csv", template=wanted, out=out, code=tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"is a \.zip"):
        submit(tmp_path / "s.csv", template=wanted, out=tmp_path / "s.tar")
    with pytest.raises(InputError, match="is an input of this command"):
        submit(tmp_path / "s.csv", template=wanted, out=wanted)
    assert out.read_bytes() == first


def test_a_rehearsal_scores_what_is_submitted(tmp_path: Path) -> None:
    ids = [f"i{k}" for k in range(40)]
    made = scores(tmp_path / "s.csv", ids, ("Mass", "Edema", "Hernia"))
    y = (np.random.default_rng(1).random((40, 2)) < 0.4).astype(int)
    lines = [f"{i},{a},{b},0" for i, (a, b) in zip(ids, y, strict=True)]
    table = write(tmp_path / "t.csv", "image,Edema,Mass,Hernia", *lines)
    wanted = template(tmp_path / "sample.csv", "dicom_id", ids[::-1], ("Edema", "Mass", "Hernia"))
    done = submit(tmp_path / "s.csv", template=wanted, labels=table)
    assert done.path is None and done.rehearsal is not None
    right = [metrics.average_precision(made.probabilities[:, 1 - k], y[:, k]) for k in (0, 1)]
    assert done.rehearsal.mAP == np.mean(right)
    assert done.rehearsal.undefined == ("Hernia",) and done.rehearsal.n == 40
    paths = "\n".join(
        line if k == 0 else "images/" + line.replace(",", ".png,", 1)
        for k, line in enumerate(table.read_text().splitlines())
    )
    by_file = submit(tmp_path / "s.csv", template=wanted, labels=write(tmp_path / "p.csv", paths))
    assert by_file.rehearsal is not None and by_file.rehearsal.mAP == done.rehearsal.mAP
    lacking = write(tmp_path / "u.csv", "image,Edema,Mass", *(f"{i},1,0" for i in ids))
    with pytest.raises(InputError, match="no labels of Hernia"):
        submit(tmp_path / "s.csv", template=wanted, labels=lacking)
    short = write(tmp_path / "v.csv", "image,Edema,Mass,Hernia", "i0,1,0,1")
    with pytest.raises(InputError, match="no labels of 39"):
        submit(tmp_path / "s.csv", template=wanted, labels=short)
    with pytest.raises(InputError, match="--out"):
        submit(tmp_path / "s.csv", template=wanted)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,Edema\na,0\n", "no column of ids"),
        ("dicom_id,Edema\na,0\na,0\n", "repeat: a"),
        ("dicom_id,study_id\na,0\n", "needs a column per class"),
        ("dicom_id,Edema\n", "needs a column per class and a row"),
        ("dicom_id,Effusion,Pleural Effusion\na,0,0\n", "several columns of one class"),
        ("dicom_id,Edema\n ,0\n", "rows without dicom_id: 2"),
    ],
)
def test_templates_that_are_none(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_template(write(tmp_path / "t.csv", text.rstrip("\n")))


def test_the_command_prints_the_file_last_and_needs_no_torch(tmp_path: Path) -> None:
    wanted = template(tmp_path / "t.csv", "dicom_id", ["a", "b"], ("Edema",))
    path = write(tmp_path / "s.csv", "image,Edema\na,\nb,.2")
    out = tmp_path / "submission.zip"
    labels = write(tmp_path / "l.csv", "image,Edema\na,0\nb,1")
    code = (
        "import sys\nfrom lingula.cli import app\n"
        f"app(['submit', {str(path)!r}, '--template', {str(wanted)!r}, '--out', {str(out)!r}, "
        f"'--fill', '0', '--labels', {str(labels)!r}], standalone_mode=False)\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["mAP 1.0 over 1 of 1 classes, 2 images", str(out)]
    assert "1 images failed; submitted with 0.0" in done.stderr
    assert lingula.submit is submit


IDS = [f"1.2.826.{i}" for i in range(6)]


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("StudyInstanceUID,Edema,Mass", "{id},0,0"),  # RANZCR
        ("image_name,Edema,Mass", "{id},0,0"),  # SIIM-ISIC
        ("filename,Edema,Mass", "{id}.png,0,0"),
        ("Edema,Mass,case", "0,0,{id}"),
        (",Edema,Mass", "{id},0,0"),  # ids that were the index of a data frame
        (",uid,Edema,Mass", "{n},{id},0,0"),
        ("Unnamed: 0,uid,Edema,Mass", "{n},{id},0,0"),
        ("id,uid,Edema,Mass", "{n},{id},0,0"),  # what is called `id` numbers the rows
        ("uid,PatientID,Usage,Edema,Mass", "{id},p{n},Public,0,0"),
        ("row_id,uid,Edema,Mass", "{n}0,{id},,"),
    ],
)
def test_the_column_of_ids_is_the_one_with_the_images_names(
    header: str, row: str, tmp_path: Path
) -> None:
    made = scores(tmp_path / "s.csv", [f"img/{name}.png" for name in IDS], ("Mass", "Edema"))
    rows = [row.format(id=name, n=n) for n, name in enumerate(IDS)]
    sample = write(tmp_path / "sample.csv", header, *rows)
    lingula.submit(tmp_path / "s.csv", template=sample, out=tmp_path / "submission.csv")
    with (tmp_path / "submission.csv").open(newline="") as stream:
        found = list(csv.reader(stream))
    columns = header.split(",")
    assert found[0] == columns
    for cells, wanted in zip(found[1:], rows, strict=True):
        for name, cell, before in zip(columns, cells, wanted.split(","), strict=True):
            if name not in ("Edema", "Mass"):
                assert cell == before
    values = [
        [float(cells[columns.index(name)]) for name in ("Mass", "Edema")] for cells in found[1:]
    ]
    np.testing.assert_array_equal(values, made.probabilities)


def test_the_column_of_ids_can_be_named(tmp_path: Path) -> None:
    scores(tmp_path / "s.csv", ["7", "8"], ("Edema",))
    sample = write(tmp_path / "sample.csv", "a,b,Edema\n7,8,0.5\n8,7,0.5")
    for key, order in (("a", ["7", "8"]), ("b", ["8", "7"])):
        lingula.submit(tmp_path / "s.csv", template=sample, out=tmp_path / "o.csv", key=key)
        column = 0 if key == "a" else 1
        lines = (tmp_path / "o.csv").read_text().splitlines()[1:]
        assert [line.split(",")[column] for line in lines] == order
    with pytest.raises(InputError, match=r"no column 'aa'.* Did you mean 'a'"):
        lingula.submit(tmp_path / "s.csv", template=sample, out=tmp_path / "o.csv", key="aa")


def test_a_template_of_other_images_or_classes_is_named(tmp_path: Path) -> None:
    scores(tmp_path / "s.csv", ["a", "b"], ("Edema",))
    other = write(tmp_path / "other.csv", "uid,Edema\nx,0\ny,0")
    with pytest.raises(InputError, match="has no scores of 2: x, y"):
        lingula.submit(tmp_path / "s.csv", template=other, out=tmp_path / "o.csv")
    vague = write(tmp_path / "vague.csv", "uid,site,Edema\nx,north,0\ny,south,0")
    with pytest.raises(InputError, match=r"Name it: --key COLUMN\. The file has: uid, site"):
        lingula.submit(tmp_path / "s.csv", template=vague, out=tmp_path / "o.csv")
    for cells in ("0", "0.5", ""):
        lacking = write(tmp_path / "l.csv", f"uid,Edema,Mass\na,0,{cells}\nb,0,{cells}")
        with pytest.raises(InputError, match="no scores of Mass"):
            lingula.submit(tmp_path / "s.csv", template=lacking, out=tmp_path / "o.csv")


def test_of_a_whole_tables_scores_other_splits_are_left_out(tmp_path: Path) -> None:
    """A challenge asks for the test rows; rows of splits of which it asks some are a mistake."""
    rows = [
        f"{name}.png,{split}"
        for name, split in zip("abcdef", ("train", "dev", "test") * 2, strict=True)
    ]
    table = write(tmp_path / "t.csv", "image,split", *rows)
    scores(tmp_path / "s.csv", [f"{name}.png" for name in "abcdef"], ("Edema",))
    made = {"data": str(table), "data_sha256": sha256(table), "split": None}
    write(tmp_path / "s.made.json", json.dumps(made))
    out = tmp_path / "o.csv"
    wanted = template(tmp_path / "sample.csv", "uid", ["f", "c"], ("Edema",))
    done = submit(tmp_path / "s.csv", template=wanted, out=out)
    assert done.made.left_over == 4 and out.read_text().splitlines()[1].startswith("f,")
    half = template(tmp_path / "half.csv", "uid", ["f"], ("Edema",))
    with pytest.raises(InputError, match=r"1 images .*: c\."):
        submit(tmp_path / "s.csv", template=half, out=tmp_path / "p.csv")
    table.write_text(table.read_text().replace("a.png,train", "a.png,test"))  # no more what it was
    with pytest.raises(InputError, match="4 images"):
        submit(tmp_path / "s.csv", template=wanted, out=tmp_path / "p.csv")
