"""The one door of tables: separators, encodings, workbooks; the same cells however they are stored."""

from __future__ import annotations

import gzip
import io
import logging
import sys
from pathlib import Path

import numpy as np
import openpyxl
import polars as pl
import pytest
from click.testing import CliRunner
from PIL import Image

import lingula
from lingula.cli import app
from lingula.scores.predictions import read_scores
from lingula.system.errors import InputError
from lingula.tables.cells import is_table, read_cells
from lingula.tables.folder import images_in
from lingula.tables.reading import read_boxes, read_table
from lingula.tables.table import BLANK, UNCERTAIN

HEAD = ["image", "patient", "Edema", "Nodule, Mass", "Effusion"]
ROWS = [
    ["a.png", "59999999", "1", "0", ""],
    ["b, c.png", "7", "-1", "1", "0"],
    ["d.png", "x7", "0", "", "1"],
]


def text_of(separator: str, rows: list[list[str]] = ROWS, quotes: bool = False) -> str:
    """Rows as a spreadsheet writes them: quotes only where they are needed, or everywhere."""

    def cell(value: str) -> str:
        return f'"{value}"' if quotes or separator in value else value

    return "".join(separator.join(map(cell, row)) + "\r\n" for row in [HEAD, *rows])


def book(path: Path, rows: list[list[object]], **sheets: list[list[object]]) -> Path:
    made = openpyxl.Workbook()
    made.remove(made.active)
    for name, lines in {"labels": rows, **sheets}.items():
        sheet = made.create_sheet(name)
        for line in lines:
            sheet.append(line)
    made.save(path)
    return path


def cells(path: Path) -> list[list[str]]:
    frame, _, faults = read_cells(path)
    assert not faults
    return [frame.columns, *map(list, frame.rows())]


@pytest.mark.parametrize("quotes", [False, True])
@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(
    ("separator", "called"),
    [(",", "commas"), (";", "semicolons"), ("\t", "tabs"), ("|", "bars")],
)
def test_any_separator_and_encoding_gives_the_same_cells(
    tmp_path: Path,
    separator: str,
    called: str,
    codec: str,
    quotes: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(text_of(separator, quotes=quotes).encode(codec))
    with caplog.at_level(logging.INFO, "lingula"):
        assert cells(path) == [HEAD, *ROWS]
        read_cells(path)
    told = [record.message for record in caplog.records if str(path) in record.message]
    if separator == "," and codec.startswith("utf-8"):
        assert not told
    else:
        assert len(told) == 1 and f"separated by {called}" in told[0]
        assert ("UTF-16" in told[0]) == codec.startswith("utf-16")


@pytest.mark.parametrize("name", ["t.tsv", "t.TXT", "t.tab", "t.csv.gz", "t.xls", "t.tsv.gz"])
def test_names_of_tables(tmp_path: Path, name: str) -> None:
    """Text may have any of these names; what is packed is known by its content."""
    path = tmp_path / name
    text = text_of("\t").encode("utf-16")
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    assert is_table(path) and cells(path) == [HEAD, *ROWS]
    assert not is_table("t.json") and not is_table("t.png")


def test_decimal_commas(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "image;patient;age;Edema;Mass\na,1.png;59999999,0;63,5;0,5;1,0\nb;7;1.5;1e-3;-1,0\n"
    )
    assert cells(path)[1:] == [
        ["a,1.png", "59999999.0", "63.5", "0.5", "1.0"],
        ["b", "7", "1.5", "1e-3", "-1.0"],
    ]
    found = read_table(path, soft=True)
    assert found.patients == ("59999999", "7") and found.ages == ("63.5", "1.5")
    np.testing.assert_allclose(found.labels, [[0.5, 1], [1e-3, UNCERTAIN]], rtol=1e-6)
    # Where commas part the cells, a comma inside of one is none of a number, but in labels and scores.
    path.write_text('image,id,Edema\na,"1,5","0,5"\nb,2,"-1,0"\n')
    found = read_table(path, soft=True)
    assert found.ids == ("1,5", "2") and found.labels.tolist() == [[0.5], [UNCERTAIN]]
    path.write_text('image,Edema\na,"0,25"\n')
    assert read_scores(path).probabilities.tolist() == [[0.25]]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('image;Edema;"Nodule, Mass"\na;1;0\n', ["image", "Edema", "Nodule, Mass"]),
        ("image;Edema;Nodule, Mass\na;1;0\nb;0;1\n", ["image", "Edema", "Nodule, Mass"]),
        ("image\tEdema; old\tNodule, Mass\na\t1\t0\n", ["image", "Edema; old", "Nodule, Mass"]),
        ("image,Edema; old,a|b\na,1,0\n", ["image", "Edema; old", "a|b"]),
        ("image,Edema;Mass\na,1\nb\n", ["image", "Edema;Mass"]),
        ("image\na\nb\n", ["image"]),
        ("sep=;\nimage;Edema\na;1\n", ["image", "Edema"]),
        ('"sep=\t"\r\nimage\tEdema, old\r\na\t1\r\n', ["image", "Edema, old"]),
        ("image;\nEdema\n".replace("\n", "\r"), ["image"]),
        ('image;"Pleural\nEffusion"\na;1\n', ["image", "Pleural Effusion"]),
        ('image;5" film;Edema\na;1;0\n', ["image", '5" film', "Edema"]),
        (";image;Edema\n0;a;1\n", ["image", "Edema"]),
        ("Unnamed: 0.1,image,Unnamed: 3\n0,a,1\n", ["image"]),
    ],
)
def test_the_header_line_tells_the_separator(tmp_path: Path, text: str, names: list[str]) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text, newline="")
    assert read_cells(path)[0].columns == names


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"image;Edema\na;1\nb;1;0\n", "line 3. A cell with a semicolon in it needs quotes"),
        (b"image;Edema;Mass\na;1;0\nb;1\n", "line 3. Was the file cut off? Each row needs all"),
        (b"sep=;\nimage;Edema;Mass\na;1;0\nb;1\n", "line 4"),
        (b"sep=;\nimage;Edema\na;1\nb\xe4;0\n", "line 4: the file is not UTF-8 text"),
        ("image;Öde\n".encode("latin-1"), "not UTF-8 text. Save it as UTF-8"),
        ("image;Edema\na;1\n".encode("utf-16")[:-1], "not complete UTF-16 text"),
        (b";;\n1;2;3\n", "no column `image`"),
        ("\ufeff".encode("utf-16"), "is empty"),
        (b"sep=;\n", "is empty"),
    ],
)
def test_what_can_not_be_read_is_named_by_line(tmp_path: Path, data: bytes, told: str) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_table(tmp_path / "t.csv")
    assert "t.csv" in str(caught.value) and told in str(caught.value)


def test_a_workbook(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Ids that Excel holds as numbers, or as numbers and text, are the text that was meant."""
    rows: list[list[object]] = [
        HEAD,
        ["a.png", 59999999, 1, 0, None],
        ["b, c.png", 7, -1, True, 0.0],
        [None] * 5,
        ["d.png", "x7", False, None, 1.0],
    ]
    for name in ("t.xlsx", "t.csv", "t.XLSX"):  # some programs name them so
        path = book(tmp_path / "t.xlsx", rows, notes=[["not this"]]).rename(tmp_path / name)
        with caplog.at_level(logging.INFO, "lingula"):
            found = read_table(path)
        assert f"{name}: its sheet 'labels' (not notes) is read" in caplog.text
        assert found.images == ("a.png", "b, c.png", "d.png")
        assert found.patients == ("59999999", "7", "x7")
        assert found.space.classes == ("Edema", "Nodule, Mass", "Pleural Effusion")
        assert found.labels.tolist() == [[1, 0, BLANK], [UNCERTAIN, 1, 0], [0, BLANK, 1]]


def test_shapes_of_workbooks(tmp_path: Path) -> None:
    path = tmp_path / "t.xlsx"
    made = openpyxl.Workbook()
    made.active.title, made.active.sheet_state = "lists", "hidden"
    sheet = made.create_sheet("films")
    for row in ([None], ["image", None, " Edema ", None], ["a", None, 0.25, None], ["b", None, 1]):
        sheet.append(row)
    made.active = 1
    made.save(path)
    assert cells(path) == [["image", "Edema"], ["a", "0.25"], ["b", "1.0"]]
    book(path, [["image", "Edema", "Edema"], ["a", 1, 0]])
    with pytest.raises(InputError, match="several columns named Edema"):
        read_table(path)
    book(path, [["image", "Edema", "Mass"], ["a"], ["b", 1]])
    assert cells(path)[1:] == [["a", "", ""], ["b", "1", ""]]
    for rows, told in (([], "has no cell"), ([["image", "Edema"]], "no rows")):
        book(path, rows)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=told):
            read_table(path)
    for data in (b"PK", b"PK\x03\x04 junk", b"image,Edema\na,1\n", b""):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"t\.xlsx can't be read as a workbook.*save it as"):
            read_table(path)


def test_ids_that_a_spreadsheet_rounded_are_refused(tmp_path: Path) -> None:
    """Case 57: of numbers with more than 15 digits the others are lost, without an exponent too."""
    path = book(tmp_path / "t.xlsx", [["image", "patient", "Edema"], ["a", 1234567890123456, 1]])
    with pytest.raises(InputError, match=r"rounded numbers such as 1\.2345"):
        read_table(path)
    book(path, [["image", "patient", "Edema"], ["a", "1234567890123456", 1]])
    assert read_table(path).patients == ("1234567890123456",)


def test_without_the_extra_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = book(tmp_path / "t.xlsx", [["image", "Edema"], ["a", 1]])
    monkeypatch.setitem(sys.modules, "fastexcel", None)
    with pytest.raises(InputError, match=r"pip install 'lingula\[xlsx\]'") as caught:
        read_table(path)
    assert "\n" not in str(caught.value)


# What one verb reads every verb reads


@pytest.fixture(params=["semicolons", "tabs", "workbook"])
def study(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Films, and `labels`, `scores`, `boxes` and a sheet of corrections in one foreign form."""
    tables: dict[str, list[list[object]]] = {
        "labels": [["image", "patient", "split", "Edema", "Mass"]],
        "scores": [["image", "Edema", "Mass"]],
        "boxes": [["image", "finding", "x", "y", "w", "h"], ["0.png", "Mass", 1, 2, 3.5, 4]],
        "sheet": [["image", "class", "decision"], ["0.png", "Mass", 1]],
    }
    for i in range(8):
        pixels = np.random.default_rng(i).integers(0, 255, (20, 20), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        split = ("train", "train", "dev", "test")[i % 4]
        tables["labels"].append([f"{i}.png", f"p{i}", split, i // 4, int(i % 3 == 1)])
        tables["scores"].append([f"{i}.png", 0.25 + i / 16, 0.5])
    for name, rows in tables.items():
        if request.param == "workbook":
            book(tmp_path / f"{name}.xlsx", rows)
            continue
        separator = {"semicolons": ";", "tabs": "\t"}[request.param]
        lines = [
            separator.join(str(cell).replace(".", ",", isinstance(cell, float)) for cell in row)
            for row in rows
        ]
        (tmp_path / f"{name}.xlsx").unlink(missing_ok=True)
        (tmp_path / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-16")
    return tmp_path


def test_every_verb_reads_them(study: Path) -> None:
    def table(name: str) -> Path:
        return next(study.glob(f"{name}.*"))

    out = study / "out"
    out.mkdir()
    assert lingula.data_check(table("labels")).fit
    lingula.data_check(table("labels"), drop_bad=out / "clean.csv")
    assert (
        read_table(out / "clean.csv").labels.tolist() == read_table(table("labels")).labels.tolist()
    )
    assert images_in(table("labels"))[1] == tuple(f"{i}.png" for i in range(8))
    found = lingula.evaluate(table("scores"), labels=table("labels"))
    assert found.n == 8
    assert read_scores(table("scores")).probabilities[1, 0] == 0.3125
    assert read_boxes(table("boxes")) == {("0.png", "Mass"): [(1, 2, 3.5, 4)]}
    lingula.review(table("scores"), labels=table("labels"), out=out / "review")
    made = lingula.data_correct(table("labels"), table("sheet"), out=out / "new.csv")
    assert made.changed == 1
    lingula.data_split(table("labels"), out=out / "split.csv")
    lingula.data_filter(table("labels"), where="Edema == 1", out=out / "part.csv")
    lingula.data_folder(study, labels=table("labels"), out=out / "folder.csv")
    cached = lingula.data_cache(table("labels"), out=out / "cache", size=32)
    assert cached.made == 8
    done = CliRunner().invoke(
        app,
        ["train", "smoke", f"data.table={table('labels')}", "--dry-run", "--out", str(out / "r")],
    )
    assert done.exit_code == 0, done.output


def test_a_release_in_another_separator(tmp_path: Path) -> None:
    """The public sets' files pass through the same door."""
    (tmp_path / "train").mkdir()
    text = "Path;Sex;Age;Frontal/Lateral;AP/PA;Edema;Fracture\n"
    text += (
        "CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg;Male;50;Frontal;PA;1,0;-1,0\n"
    )
    (tmp_path / "train.csv").write_text(text)
    made = lingula.data_chexpert(tmp_path, out=tmp_path / "t.csv", images=False)
    by_name = dict(zip(made.table.space.classes, made.table.labels[0].tolist(), strict=True))
    assert by_name["Edema"] == 1 and by_name["Fracture"] == UNCERTAIN


def test_any_bytes_are_a_table_or_refused(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    whole = io.BytesIO()
    book_bytes = book(tmp_path / "b.xlsx", [["image", "Edema"], ["a", 1]]).read_bytes()
    assert whole.getvalue() == b""
    for i in range(60):
        if i % 3 == 0:
            data = random.bytes(int(random.integers(0, 300)))
        elif i % 3 == 1:
            data = book_bytes[: int(random.integers(4, len(book_bytes)))]
        else:
            data = "image;Edema\na;1\n".encode("utf-16")[: int(random.integers(1, 34))]
        path = tmp_path / "t.csv"
        path.write_bytes(data)
        try:
            read_table(path)
        except InputError as error:
            assert "t.csv" in str(error)


def test_columns_to_ignore_may_be_named_wherever_labels_are_taken(
    study: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A table with a column of notes: what `evaluate` reads, calibrate, ensemble and submit do."""
    out = tmp_path_factory.mktemp("out")
    frame = read_cells(next(study.glob("labels.*")))[0]
    labels = out / "labels.csv"
    frame.with_columns(note=pl.lit("left")).write_csv(labels)
    scores = next(study.glob("scores.*"))
    template = out / "sample.csv"
    template.write_text("image,Edema,Mass\n" + "".join(f"{i}.png,0,0\n" for i in range(8)))
    noted = {"labels": labels, "ignore_columns": ["note"]}
    members = [("a", scores, scores), ("b", scores, scores)]
    lingula.evaluate(scores, **noted)  # type: ignore[arg-type]
    lingula.calibrate(scores, out=out / "c.json", **noted)  # type: ignore[arg-type]
    lingula.ensemble("class-wise", members=members, out=out / "e", **noted)  # type: ignore[arg-type]
    done = lingula.submit(scores, template=template, **noted)  # type: ignore[arg-type]
    assert done.rehearsal is not None and done.rehearsal.n == 8
    for line in (
        ["calibrate", str(scores), "--out", str(out / "d.json")],
        ["submit", str(scores), "--template", str(template)],
    ):
        line += ["--labels", str(labels)]
        assert isinstance(CliRunner().invoke(app, line).exception, InputError)
        typed = CliRunner().invoke(app, [*line, "--ignore-columns", "note"])
        assert typed.exit_code == 0, typed.output
