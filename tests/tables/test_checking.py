"""`data check` names every fault in one run; folders and tables are found for `--data`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import lingula
from dicom_files import dcm, save
from lingula.cli import app
from lingula.images import files as image_files
from lingula.system.errors import InputError
from lingula.tables.checking import CheckReport, check, to_json, to_text
from lingula.tables.folder import images_in, scan
from lingula.tables.table import UNMENTIONED


def film(path: Path, seed: int, dtype: type = np.uint8, top: int = 255) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, top, (20, 20)).astype(dtype)
    Image.fromarray(pixels).save(path, "PNG")
    return path


def checked(folder: Path, text: str, images: bool = False) -> CheckReport:
    (folder / "t.csv").write_text(text, encoding="utf-8")
    return check(folder / "t.csv", images=images)


def test_a_sound_table_is_fit(tiny_table: Path) -> None:
    report = lingula.data_check(tiny_table)
    assert report.fit and not report.problems
    facts = report.facts
    assert facts["images"] == facts["patients"] == 40
    assert sum(facts["splits"].values()) == 40
    assert facts["positives"]["Cardiomegaly"]["all"] == 20
    assert facts["groups"]["head"] and facts["sha256"]
    assert "fit to train on" in to_text(report)
    assert json.loads(json.dumps(to_json(report)))["fit"] is True


def test_every_fault_of_the_columns_is_told(tmp_path: Path) -> None:
    report = checked(
        tmp_path,
        "image,path,patient,split,Edema,Edema,Effusion,Pleural Effusion,note\n"
        "a,a,1.2E+10,train,yes,1,0,0,text\n"
        "a,a,2,early,1,1,0,2,text\n",
    )
    found = {fault.what: fault for fault in report.problems}
    assert set(found) == {
        "repeated columns",
        "columns of the same meaning",
        "columns of the same class",
        "columns that are neither ids nor classes",
        "ids that were rounded",
        "unknown names of splits",
        "images in more than one row",
        "cells of 'Edema' that are not labels",
    }
    text = to_text(report)
    for part in ("'early'", "note", "1.2E+10", "row 2", "not fit"):
        assert part in text


def test_counts_and_examples_are_bounded(tmp_path: Path) -> None:
    rows = "".join(f"{i}.png,{i},maybe\n" for i in range(50))
    report = checked(tmp_path, "image,patient,Edema\n" + rows, images=True)
    for fault in report.problems:
        assert fault.count == 50 and len(fault.examples) == 5
    missing = next(fault for fault in report.problems if fault.what == "images: missing")
    # Case 53: the count and one full path that was tried.
    assert "50 images: missing" in missing.message and str(tmp_path / "0.png") in missing.message


@pytest.mark.parametrize("text", ["patient;Edema\na;1\n", "", "image,Edema\n", "Edema\n1\n"])
def test_what_is_no_table_is_one_problem(tmp_path: Path, text: str) -> None:
    report = checked(tmp_path, text)
    assert not report.fit and report.problems[0].what == "the table can't be read"
    assert "not fit" in to_text(report)
    with pytest.raises(InputError, match="no table"):
        lingula.data_check(tmp_path / "nowhere.csv")


def test_images_are_read_and_sorted_by_fault(tmp_path: Path) -> None:
    for i in range(4):
        film(tmp_path / f"{i}.png", i)
    (tmp_path / "page.png").write_text("<html>403</html>")
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:200])
    (tmp_path / "empty.png").touch()
    Image.fromarray(np.full((9, 9), 5, np.uint8)).save(tmp_path / "flat.png")
    Image.fromarray(np.full((9, 9), 5, np.uint8)).save(tmp_path / "flat2.png")
    film(tmp_path / "dark.png", 9, np.uint16, 4000)
    film(tmp_path / "again.png", 3)
    names = ["0", "1", "2", "3", "page", "cut", "empty", "flat", "flat2", "dark", "again", "gone"]
    splits = {"1": "train", "3": "train", "again": "test"}
    rows = [f"{n}.png,{n},{splits.get(n, 'dev')},{i % 2}" for i, n in enumerate(names)]
    ticks: list[tuple[int, int]] = []
    (tmp_path / "t.csv").write_text("\n".join(["image,patient,split,Edema", *rows, "/x,y,dev,0"]))
    report = check(tmp_path / "t.csv", progress=lambda done, total: ticks.append((done, total)))
    problems = {fault.what: fault.examples for fault in report.problems}
    assert problems == {
        "images: missing": ("gone.png",),
        "images: not an image": ("page.png",),
        "images: truncated": ("cut.png",),
        "images: empty": ("empty.png",),
        "images: outside the data root": ("/x",),
    }
    warnings = {fault.what: fault for fault in report.warnings}
    assert warnings["images: blank"].examples == ("flat.png", "flat2.png")
    assert warnings["images: mis-scaled"].examples == ("dark.png",)
    assert "data.bits=12" in warnings["images: mis-scaled"].message
    assert warnings["images with the same pixels"].examples == ("3.png = again.png",)
    leak = warnings["images with the same pixels in two splits"].examples
    assert leak == ("3.png (train) = again.png (test)",)
    assert ticks[-1] == (13, 13) and len(ticks) == 13


# Case 47


def test_no_finding_beside_support_devices_is_legal(tmp_path: Path) -> None:
    report = checked(
        tmp_path,
        "image,patient,split,No Finding,Support Devices,Edema,Pneumonia\n"
        "a,1,train,1,1,,0\nb,2,train,1,0,0,1\nc,3,dev,1,0,0,0\n",
    )
    assert report.fit
    found = {fault.what: fault for fault in report.warnings}
    assert found["images with No Finding and a finding"].examples == ("b",)
    assert found["classes without a positive in train"].examples == ("Edema",)
    assert report.facts["blank_cells"] == 1


def test_leaks_and_blank_ids(tmp_path: Path) -> None:
    report = checked(
        tmp_path, "image,patient,split,Edema\na,1,train,1\nb,1,test,1\nc,,dev,0\nd,2,,0\n"
    )
    assert report.problems[0].what == "patients in more than one split"
    assert report.problems[0].examples == ("1 (train, test)",)
    warnings = {fault.what: fault.examples for fault in report.warnings}
    assert warnings["images without a patient"] == ("c",)
    assert warnings["images without a split"] == ("d",)


@pytest.mark.parametrize(("name", "rows"), [("nih-mini", 1419), ("nih-64", 993)])
def test_real_tables(real_data: Path, name: str, rows: int) -> None:
    report = check(real_data / name / "labels.csv", images=name == "nih-64")
    assert report.fit and report.facts["images"] == rows
    assert not any(fault.what.startswith("images: ") for fault in report.warnings)
    noted = {fault.what: fault.examples for fault in report.warnings}
    assert name == "nih-mini" or "Hernia" in noted["classes without a positive in test"]


# What training refuses at once is not fit, in the same words


REFUSED = {
    "no positive": ("image,patient,Edema,Mass\n", "{i}.png,p{i},0,0\n", 40, "no class has a positive"),
    "only unsure": ("image,patient,split,Edema\n", "{i}.png,p{i},{s},-1\n", 9, "no class has a pos"),
    "one image": ("image,patient,Edema\n", "{i}.png,p,1\n", 1, "too few patients to split"),
    "one patient": ("image,patient,Edema\n", "{i}.png,p,{b}\n", 30, "too few patients to split"),
    "two patients": ("image,patient,Edema\n", "{i}.png,p{b},{b}\n", 30, "none for"),
    "three images": ("image,patient,Edema\n", "{i}.png,p{i},1\n", 3, "1 image to train on"),
    "no patients": ("image,Edema\n", "{i}.png,{b}\n", 30, "images_are_patients=true"),
    "no dev": ("image,patient,split,Edema\n", "{i}.png,p{i},train,{b}\n", 9, "no rows with split 'dev'"),
    "no train": ("image,patient,split,Edema\n", "{i}.png,p{i},dev,{b}\n", 9, "no rows with split 'train'"),
    "positives in dev only": (
        "image,patient,split,Edema\n", "{i}.png,p{i},{s},{d}\n", 9, "no class has a positive"),
}  # fmt: skip


def rows_of(head: str, row: str, n: int) -> str:
    lines = [
        row.format(i=i, b=i % 2, s="dev" if i % 3 == 0 else "train", d=int(i % 3 == 0))
        for i in range(n)
    ]
    return head + "".join(lines)


@pytest.mark.parametrize("name", REFUSED)
def test_what_training_refuses_at_once_is_not_fit(name: str, tmp_path: Path) -> None:
    head, row, n, told = REFUSED[name]
    for i in range(n):
        film(tmp_path / f"{i}.png", i)
    report = checked(tmp_path, rows_of(head, row, n), images=True)
    with pytest.raises(InputError) as refused:
        lingula.train("smoke", [f"data.table={tmp_path / 't.csv'}"], out=tmp_path / "run")
    assert [fault.message for fault in report.problems] == [str(refused.value)]
    assert told in str(refused.value) and not report.fit
    done = CliRunner().invoke(app, ["data", "check", str(tmp_path / "t.csv"), "--no-images"])
    assert done.exit_code == 2 and told in done.output


@pytest.mark.parametrize("n", [4, 5, 12, 40])
def test_what_is_fit_can_be_trained(n: int, tmp_path: Path) -> None:
    """Few patients get a split all the same, with each of its parts."""
    for i in range(n):
        film(tmp_path / f"{i}.png", i)
    text = rows_of("image,patient,Edema,Mass\n", "{i}.png,p{i},1,{b}\n", n)
    assert checked(tmp_path, text, images=True).fit
    overrides = [f"data.table={tmp_path / 't.csv'}", "optim.epochs=1"]
    run = lingula.train("smoke", overrides, out=tmp_path / "run")
    assert (run / "scores" / "dev.csv").is_file()


def test_a_table_is_checked_as_it_will_be_read(tmp_path: Path) -> None:
    """By the settings of training, as typed: root, classes, columns to ignore, soft labels."""
    films = tmp_path / "films"
    for i in range(12):
        film(films / f"{i}.png", i)
    text = "image,note,portable,Edema\n" + "".join(
        f"{i}.png,x,{i % 2},0.{i % 9 + 1}\n" for i in range(12)
    )
    table = tmp_path / "t.csv"
    table.write_text(text)
    line = ["data", "check", str(table)]
    assert CliRunner().invoke(app, line).exit_code == 2
    line += ["--root", str(films), "--ignore-columns", "note", "--soft", "--images-are-patients"]
    done = CliRunner().invoke(app, [*line, "--classes", "Edema,portable"])
    assert done.exit_code == 0, done.output
    assert "portable" in done.output and "PROBLEM" not in done.output
    found = lingula.data_check(
        table, root=films, ignore_columns=["note", "portable"], soft=True, images_are_patients=True
    )
    assert found.fit and list(found.facts["positives"]) == ["Edema"]


def test_what_was_passed_over_is_told_of_each_film(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image_files.warned.clear()
    x = (np.arange(400).reshape(20, 20) * 10).astype(np.uint16)
    for i, centre in enumerate((2048, 60000, 70000)):
        save(dcm(x + i, 12, WindowCenter=centre, WindowWidth=4096), tmp_path / f"{i}.dcm")
    save(dcm(x + 9, 12, WindowCenter=9, WindowWidth=0), tmp_path / "3.dcm")
    Image.fromarray((x // 16).astype(np.uint8)).save(tmp_path / "4.dcm", "JPEG")
    whole = (tmp_path / "4.dcm").read_bytes()
    (tmp_path / "4.dcm").write_bytes(whole[:-2] + bytes(9) + whole[-2:])
    text = "image,patient,split,Edema\n" + "".join(
        f"{i}.dcm,p{i},{'dev' if i == 4 else 'train'},{i % 2}\n" for i in range(5)
    )
    report = checked(tmp_path, text, images=True)
    assert report.fit
    found = {fault.what: fault for fault in report.warnings}
    lost = found["images: the window leaves nothing of the grey levels"]
    assert lost.examples == ("1.dcm", "2.dcm") and "stretched instead" in lost.message
    assert report.odd[lost.what] == lost.examples
    assert found["images: the window can't be used"].examples == ("3.dcm",)
    assert found["images: there are stray bytes before a marker of the JPEG"].examples == ("4.dcm",)
    assert "images: blank" not in found and not caplog.records  # told here, and not in the log


# Folders


def test_a_folder_is_scanned_by_content(tmp_path: Path) -> None:
    film(tmp_path / "b" / "png.jpg", 0)
    film(tmp_path / "a", 1)
    film(tmp_path / "C.PNG", 2)
    (tmp_path / "page.png").write_text("<html>")
    film(tmp_path / "__MACOSX" / "x.png", 3)
    for junk in ("._a.png", ".DS_Store", "Thumbs.db"):
        (tmp_path / junk).write_bytes(b"junk")
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "d").write_bytes(bytes(128) + b"DICM" + bytes(100))
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    images, skipped = scan(tmp_path)
    # A file that bears an image's name and is none stays in, to fail by name.
    assert images == ("C.PNG", "a", "b/png.jpg", "d", "page.png")
    assert skipped == {
        "hidden or system files": 3,
        "files that are not images": 1,
        "links to nothing, pipes and devices": 2,
    }
    assert images_in(tmp_path) == (tmp_path, images, None)


def test_a_folder_without_images_is_wrong_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no images"):
        scan(tmp_path)


def test_one_file(tmp_path: Path) -> None:
    path = film(tmp_path / "röntgen é.png", 0)
    assert images_in(path) == (tmp_path, ("röntgen é.png",), None)
    with pytest.raises(InputError, match="There is no"):
        images_in(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match="save it as"):
        (tmp_path / "t.xlsx").write_bytes(b"PK")
        images_in(tmp_path / "t.xlsx")


def test_a_table_without_classes_can_be_predicted(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("image,patient,split,finding_text\na.png,7,val,COVID-19\nb.png,8,test,maybe\n")
    root, images, table = images_in(path)
    assert root == tmp_path and images == ("a.png", "b.png")
    assert table is not None and table.patients == ("7", "8") and table.splits == ("dev", "test")
    assert (table.labels == UNMENTIONED).all()
    path.write_text("image,patient\na.png,7\na.png,8\n")
    with pytest.raises(InputError, match=r"more than one row: a\.png"):
        images_in(path)


def test_the_page_shows_faults_with_films(tmp_path: Path) -> None:
    for i in range(4):
        film(tmp_path / f"{i}.png", i)
    film(tmp_path / "same.png", 0)
    Image.fromarray(np.full((20, 60), 7, np.uint8)).save(tmp_path / "strip.png")
    Image.fromarray(np.tile(np.arange(100, 104, dtype=np.uint8), (20, 5))).save(
        tmp_path / "grey.png"
    )
    (tmp_path / "empty.png").write_bytes(b"")
    names = ["0.png", "1.png", "2.png", "3.png", "same.png", "strip.png", "grey.png", "empty.png"]
    rows = [f"{name},p{i},{i % 2},{(i + 1) % 2}" for i, name in enumerate(names)]
    table = tmp_path / "t.csv"
    table.write_text("\n".join(["image,patient,Edema,<b>Mass</b>", *rows]) + "\n")
    before = table.read_bytes()
    report = lingula.data_check(
        table, page=tmp_path / "check.html", drop_bad=tmp_path / "clean.csv"
    )
    assert report.bad == ("empty.png",) and not report.fit
    whats = {fault.what for fault in report.warnings}
    assert {"images: almost without contrast", "images with the same pixels"} <= whats
    assert "strip.png" in report.odd["images: blank"]
    page = (tmp_path / "check.html").read_text()
    assert "data:image/png" in page and "http" not in page
    assert "&lt;b&gt;Mass&lt;/b&gt;" in page and "<b>Mass</b>" not in page
    assert table.read_bytes() == before
    clean = lingula.data_check(tmp_path / "clean.csv")
    assert clean.fit and clean.facts["images"] == 7
    assert clean.facts["together"] == []
    with pytest.raises(InputError, match="is an input of this command"):
        lingula.data_check(table, drop_bad=table)
    with pytest.raises(InputError, match="something else in it"):
        lingula.data_check(tmp_path / "clean.csv", drop_bad=table.with_name("t.csv"))


def test_pairs_that_occur_together(tmp_path: Path) -> None:
    report = checked(
        tmp_path,
        "image,patient,Edema,Mass,Hernia\na,1,1,1,0\nb,2,1,1,0\nc,3,1,0,1\nd,4,-1,1,1\n",
    )
    assert report.facts["together"] == [
        {"classes": ["Edema", "Mass"], "images": 2},
        {"classes": ["Edema", "Hernia"], "images": 1},
        {"classes": ["Mass", "Hernia"], "images": 1},
    ]
