"""Review: the strongest disagreements, the page that shows them, and the sheet that is applied."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from builders import scores, table
from lingula.reporting.review import COLUMNS, apply_corrections, disagreements
from lingula.scores.predictions import Predictions, read_scores, write_scores
from lingula.system.errors import InputError
from lingula.tables.reading import read_table
from lingula.tables.table import BLANK, UNCERTAIN
from lingula.verbs.review import data_correct, review


def random_scores(table_path: Path, out: Path) -> Path:
    made = read_table(table_path)
    values = np.random.default_rng(0).random(made.labels.shape)
    write_scores(Predictions(made.space.classes, made.images, values), out)
    return out


def test_the_strongest_come_first_both_kinds_in_turn() -> None:
    y = [[0], [0], [0], [1], [1], [1]]
    s = [[0.95], [0.1], [0.7], [0.05], [0.9], [0.6]]
    found = disagreements(scores(s, "Edema"), table(y, "Edema"), top=4)
    assert [(one.image, one.label, one.suggested) for one in found] == [
        ("0.png", 0, 1),  # absent, 0.95: above every present one
        ("3.png", 1, 0),  # present, 0.05
        ("2.png", 0, 1),  # absent, 0.7: above the middle present one, 0.6
        ("5.png", 1, 0),  # present, 0.6: below the middle absent one, 0.7
    ]
    assert found[0].rank == pytest.approx(5 / 6) and found[1].rank == 0
    only = disagreements(scores(s, "Edema"), table(y, "Edema"), top=1)
    assert [one.image for one in only] == ["0.png"]


def test_a_model_that_agrees_has_nothing_to_review() -> None:
    y = [[0], [0], [1], [1]]
    assert disagreements(scores([[0.1], [0.2], [0.8], [0.9]], "Edema"), table(y, "Edema")) == ()


def test_unknown_cells_and_failed_images_are_not_reviewed() -> None:
    y = [[0, UNCERTAIN], [1, BLANK], [0, 0], [1, 1], [0, UNCERTAIN]]
    s = [[0.9, 1.0], [0.1, 1.0], [np.nan, np.nan], [0.2, 0.3], [0.15, 0.2]]
    found = disagreements(scores(s), table(y))
    assert {one.name for one in found} == {"Edema"}  # of Mass only one cell is known and scored
    assert "2.png" not in {one.image for one in found}


def test_there_are_at_most_top_a_class_and_never_more_than_there_are() -> None:
    random = np.random.default_rng(0)
    y = (random.random((300, 2)) < 0.3).astype(int)
    s = random.random((300, 2))
    for top in (1, 5, 20, 1000):
        found = disagreements(scores(s), table(y), top=top)
        for name in ("Edema", "Mass"):
            part = [one for one in found if one.name == name]
            assert len(part) <= top and len({one.image for one in part}) == len(part)
            gaps = [abs(one.label - one.score) for one in part if one.label == 0]
            assert gaps == sorted(gaps, reverse=True)
        assert top > 20 or len(found) == 2 * top
    with pytest.raises(InputError, match="at least 1"):
        disagreements(scores(s), table(y), top=0)


def test_rows_join_by_name_and_a_split_can_be_chosen() -> None:
    y = [[0], [1], [0], [1]]
    turned = Predictions(
        ("edema",), ("3.png", "2.png", "1.png", "0.png"), np.array([[0.1], [0.9], [0.2], [0.8]])
    )
    labels = table(y, "Edema", splits=("dev", "dev", "test", "test"))
    found = disagreements(turned, labels, split="test")
    assert {one.image: one.score for one in found} == {"2.png": 0.9, "3.png": 0.1}


def test_the_page_shows_films_and_needs_nothing_from_outside(
    tiny_table: Path, tmp_path: Path
) -> None:
    made = random_scores(tiny_table, tmp_path / "s.csv")
    (tiny_table.parent / "images" / "000.png").write_bytes(b"no image")
    before = tiny_table.read_bytes()
    done = review(made, labels=tiny_table, out=tmp_path / "review", top=30)
    page = done.page.read_text()
    shown = {one.image for one in done.found}
    assert "images/000.png" in shown and page.count("not shown: not an image") >= 1
    readable = sum(one.image != "images/000.png" for one in done.found)
    assert page.count('src="data:image/jpeg;base64,') == readable
    assert not re.search(r"https?://|src=\"(?!data:)", page)
    rows = list(csv.reader(done.corrections.read_text().splitlines()))
    assert tuple(rows[0]) == COLUMNS and len(rows) == len(done.found) + 1
    assert all(row[5] == "" for row in rows[1:])
    by_image = dict(zip(read_scores(made).images, range(40), strict=True))
    first = done.found[0]
    k = read_scores(made).classes.index(first.name)
    assert float(rows[1][3]) == read_scores(made).probabilities[by_image[first.image], k]
    assert tiny_table.read_bytes() == before


def test_a_sheet_with_decisions_is_never_overwritten(tiny_table: Path, tmp_path: Path) -> None:
    made = random_scores(tiny_table, tmp_path / "s.csv")
    done = review(made, labels=tiny_table, out=tmp_path / "review")
    done.corrections.write_text("mine")
    with pytest.raises(InputError, match="may contain decisions"):
        review(made, labels=tiny_table, out=tmp_path / "review")
    assert done.corrections.read_text() == "mine"
    review(made, labels=tiny_table, out=tmp_path / "review", overwrite=True)
    assert (tmp_path / "review.old-1" / "corrections.csv").read_text() == "mine"


def test_names_are_text_in_the_page(tiny_table: Path, tmp_path: Path) -> None:
    text = tiny_table.read_text().replace("images/001.png", "images/<b>&.png")
    nasty = tiny_table.with_name("n.csv")
    nasty.write_text(text)
    done = review(
        random_scores(nasty, tmp_path / "s.csv"), labels=nasty, out=tmp_path / "r", top=1000
    )
    page = done.page.read_text()
    assert "images/<b>&.png" in {one.image for one in done.found}
    assert "<b>&.png" not in page and "&lt;b&gt;&amp;.png" in page


def sheet(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(["image,class,label,score,suggested,decision", *rows]) + "\n")
    return path


def test_decisions_make_a_new_table(tiny_table: Path, tmp_path: Path) -> None:
    before = tiny_table.read_bytes()
    old = read_table(tiny_table)
    filled = sheet(
        tmp_path / "c.csv",
        "images/000.png,cardiomegaly,1,0.1,0,0",
        "images/001.png,Edema,0,0.9,1,present",
        "images/002.png,Edema,0,0.9,1,-1",
        "images/003.png,Edema,1,0.9,0,blank",
        "images/004.png,Edema,0,0.9,1,",
        "images/005.png,Edema,0,0.9,1,Keep",
        "images/006.png,Edema,1,0.9,0,1",
    )
    done = data_correct(tiny_table, filled, out=tmp_path / "new" / "t.csv")
    assert (done.changed, done.confirmed, done.undecided) == (4, 1, 2)
    new = read_table(tmp_path / "new" / "t.csv")
    expected = old.labels.copy()
    expected[0, 0], expected[1, 1], expected[2, 1], expected[3, 1] = 0, 1, UNCERTAIN, BLANK
    np.testing.assert_array_equal(new.labels, expected)
    for field in ("images", "patients", "studies", "splits", "space"):
        assert getattr(new, field) == getattr(old, field)
    assert (new.root / new.images[0]).is_file()
    assert tiny_table.read_bytes() == before
    with pytest.raises(InputError, match="there already"):
        data_correct(tiny_table, filled, out=tmp_path / "new" / "t.csv")
    with pytest.raises(InputError, match="belong to another table, or was it applied already"):
        apply_corrections(new, filled)


def test_an_empty_sheet_changes_nothing(tiny_table: Path, tmp_path: Path) -> None:
    made = random_scores(tiny_table, tmp_path / "s.csv")
    done = review(made, labels=tiny_table, out=tmp_path / "review")
    same = apply_corrections(read_table(tiny_table), done.corrections)
    assert (same.changed, same.confirmed, same.undecided) == (0, 0, len(done.found))
    np.testing.assert_array_equal(same.table.labels, read_table(tiny_table).labels)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("images/999.png,Edema,0,0.9,1,1", r"line 2: the table has no image 'images/999\.png'"),
        ("images/000.png,Edem,1,0.9,0,1", "no class 'Edem'. Did you mean 'Edema'"),
        ("images/000.png,Edema,1,0.9,0,yes", "'yes' is no decision"),
        ("images/000.png,Edema,0,0.9,1,1", "the label is 0 in the sheet and 1 in the table"),
        (
            "images/000.png,Edema,1,0.9,0,0\nimages/000.png,Edema,1,0.9,0,1",
            "line 3.*another decision further up",
        ),
    ],
)
def test_wrong_sheets_are_refused(row: str, message: str, tiny_table: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        apply_corrections(read_table(tiny_table), sheet(tmp_path / "c.csv", row))
    (tmp_path / "d.csv").write_text("image,class\na,b\n")
    with pytest.raises(InputError, match="no column decision"):
        apply_corrections(read_table(tiny_table), tmp_path / "d.csv")


def test_as_typed_and_without_torch(tiny_table: Path, tmp_path: Path) -> None:
    made = random_scores(tiny_table, tmp_path / "s.csv")
    code = (
        "import sys\nfrom lingula.cli import app\n"
        f"app(['review', {str(made)!r}, '--labels', {str(tiny_table)!r}, '--out', "
        f"{str(tmp_path / 'r')!r}, '--top', '3'], standalone_mode=False)\n"
        f"app(['data', 'correct', {str(tiny_table)!r}, {str(tmp_path / 'r' / 'corrections.csv')!r}, "
        f"'--out', {str(tmp_path / 'new.csv')!r}], standalone_mode=False)\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == str(tmp_path / "new.csv")
    assert "0 labels changed, 0 confirmed" in done.stderr
