"""Messages say what is the matter with the thing that was named."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import lingula
from builders import write_tiny
from lingula.reporting import figures
from lingula.reporting.report import distinct_names
from lingula.scores.subgroups import split_names
from lingula.settings.config import vary
from lingula.settings.recipes import recipe
from lingula.system import files
from lingula.system.errors import InputError
from lingula.tables.reading import read_table


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table, films and a run, whose findings have names of other scripts and with commas."""
    folder = tmp_path_factory.mktemp("place")
    table = write_tiny(folder / "data")
    header, rest = table.read_text().split("\n", 1)
    names = header.replace("Edema", '"Edema, acute"').replace("Fracture", "肺炎")
    table.write_text(f"{names}\n{rest}", encoding="utf-8")
    config = vary(
        recipe("smoke"),
        data__table=str(table),
        optim__batch_size=8,
        optim__epochs=1,
        precision="fp32",
    )
    lingula.train(config, out=folder / "run")
    return folder


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "evaluate RUN": (
        lambda p: lingula.evaluate(p / "run", labels=p / "data" / "labels.csv"),
        r"run is a folder, not a scores file\. Its scores: .*scores/dev\.csv, .*scores/test\.csv",
    ),
    "evaluate --labels FOLDER": (
        lambda p: lingula.evaluate(p / "run/scores/dev.csv", labels=p / "data"),
        "data is a folder, not a table",
    ),
    "evaluate --threshold FOLDER": (
        lambda p: lingula.evaluate(
            p / "run/scores/dev.csv", labels=p / "data/labels.csv", threshold=p / "run"
        ),
        "run is a folder, not a file",
    ),
    "evaluate nosuch": (
        lambda p: lingula.evaluate(p / "nosuch", labels=p / "data"),
        "There is no scores file",
    ),
    "data check FOLDER": (
        lambda p: lingula.data_check(p / "data"),
        "data is a folder, not a table.*lingula data folder",
    ),
    "data check --page": (
        lambda p: lingula.data_check(p / "data" / "labels.csv", page=p / "page.pdf"),
        r"page\.pdf: the page is written as \.html",
    ),
    "data folder FILE": (
        lambda p: lingula.data_folder(p / "data/labels.csv", labels=p, out=p / "t.csv"),
        "labels.csv is a file, not a folder",
    ),
    "data folder --labels FOLDER": (
        lambda p: lingula.data_folder(p / "data", labels=p / "data", out=p / "t.csv"),
        "data is a folder, not a label file",
    ),
    "data mimic FILE": (
        lambda p: lingula.data_mimic(p / "data" / "labels.csv", out=p / "t.csv"),
        "labels.csv is a file, not a folder",
    ),
    "report nosuch": (
        lambda p: lingula.report([p / "nosuch"], out=p / "r.html"),
        "There is no run or ensemble folder .*nosuch",
    ),
    "report FILE": (
        lambda p: lingula.report([p / "run" / "report.html"], out=p / "r.html"),
        "report.html is a file, not a run",
    ),
    "report FOLDER": (
        lambda p: lingula.report([p / "data"], out=p / "r.html"),
        "neither a run nor an ensemble",
    ),
    "report --out r.pdf": (
        lambda p: lingula.report([p / "run"], out=p / "r.pdf"),
        r"r\.pdf: a report is written as \.html",
    ),
    "predict report.html": (
        lambda p: lingula.predict(p / "run" / "report.html", data=p / "data", out=p / "s.csv"),
        r"report\.html is a file.*Did you mean its folder, .*run\?$",
    ),
    "explain --out FILE": (
        lambda p: lingula.explain(p / "run", data=p / "data", out=p / "data" / "labels.csv"),
        "is there already",
    ),
    "calibrate --out c.csv": (
        lambda p: lingula.calibrate(p / "run", out=p / "c.csv"),
        r"c\.csv: a calibration is written as \.json",
    ),
    "calibrate FOLDER": (lambda p: lingula.calibrate(p / "data"), "has no scores/dev.csv"),
    "calibrate --labels FOLDER": (
        lambda p: lingula.calibrate(p / "run", labels=p / "data"),
        "data is a folder, not a table",
    ),
    "calibrate --apply FOLDER": (
        lambda p: lingula.apply_calibration(p / "run", p / "s.csv", out=p / "c.csv"),
        "run is a folder, not a calibration",
    ),
    "ensemble FILE": (
        lambda p: lingula.ensemble("model-wise", [p / "run" / "report.html"], out=p / "e"),
        "report.html is a file, not a folder. Name run folders",
    ),
    "ensemble apply FOLDER": (
        lambda p: lingula.ensemble_apply(p / "run", [("a", p / "s.csv")], out=p / "o.csv"),
        "run is a folder, not an ensemble file",
    ),
    "submit --code FILE": (
        lambda p: lingula.submit(
            p / "run/scores/dev.csv",
            template=_sample(p),
            out=p / "submission.zip",
            code=p / "data/labels.csv",
        ),
        "--code: .*labels.csv is a file, not a folder",
    ),
    "train RUN": (lambda p: lingula.train(p / "run", out=p / "x"), "config.yaml"),
    "train --resume FILE": (
        lambda p: lingula.train(resume=p / "run" / "config.yaml"),
        r"no run folder.*Did you mean .*run\?",
    ),
    "train data.table=FOLDER": (
        lambda p: lingula.train("smoke", [f"data.table={p / 'data'}"], out=p / "x"),
        "data is a folder, not a table",
    ),
}


def _sample(place: Path) -> Path:
    scores = (place / "run" / "scores" / "dev.csv").read_text().splitlines()
    path = place / "sample.csv"
    ids = [line.split(",")[0] for line in scores[1:]]
    path.write_text("image,Cardiomegaly\n" + "".join(f"{name},0\n" for name in ids))
    return path


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_such_thing_is_told_for_what_it_is(place: Path, case: str) -> None:
    call, words = WRONG[case]
    before = sorted(place.rglob("*"))
    with pytest.raises(InputError) as refused:
        call(place)
    assert re.search(words, str(refused.value)), str(refused.value)
    assert sorted(set(place.rglob("*")) - {place / "sample.csv"}) == [
        path for path in before if path != place / "sample.csv"
    ]


def test_a_file_in_the_way_of_a_folder_is_wrong_input(place: Path) -> None:
    with pytest.raises(InputError, match="can't be written"):
        files.write_text(place / "data" / "labels.csv" / "o.csv", "")
    with pytest.raises(InputError, match="can't be written"):
        files.write_text(place / "data", "")


def test_runs_of_one_name_are_told_apart_in_a_report(place: Path, tmp_path: Path) -> None:
    for folder in ("x", "y"):
        shutil.copytree(place / "run", tmp_path / folder / "run")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("lingula.reporting.report.DRAWS", 20)
        lingula.report([tmp_path / "x" / "run", tmp_path / "y" / "run"], out=tmp_path / "two.html")
    page = (tmp_path / "two.html").read_text()
    assert page.count("x/run") >= 2 and page.count("y/run") >= 2  # in the table and the figure
    a, b, c = Path("p/x/run"), Path("q/x/run"), Path("other")
    assert distinct_names([a, b, c]) == {a: "p/x/run", b: "q/x/run", c: "other"}


def test_names_in_any_script_are_in_the_figures_without_a_word(place: Path) -> None:
    """As text, which the reader's browser has fonts for; the run's own report has them too."""
    x = np.linspace(0, 1, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = figures.plot_curves([figures.Curve("肺炎", x, x)], [figures.Curve("عظم", x, x)])
        history = figures.plot_history(
            {
                "Öffentlich 測試": [{"epoch": 1, "loss": 1.0, "dev_mAP": 0.5, "dev_AUROC": 0.5}],
                "b": [],
            }
        )
    assert "肺炎" in drawn and "測試" in history
    assert "肺炎" in (place / "run" / "report.html").read_text(encoding="utf-8")


def test_subgroups_by_classes_with_commas_in_their_names(place: Path) -> None:
    table = read_table(place / "data" / "labels.csv")
    for given, wanted in (
        (["Edema, acute"], ["Edema, acute"]),
        (["view, edema, Acute,Cardiomegaly"], ["view", "edema, Acute", "Cardiomegaly"]),
        (["view,sex", "Edema, acute"], ["view", "sex", "Edema, acute"]),
        (["Edema, chronic"], ["Edema", "chronic"]),
        ([""], []),
    ):
        assert split_names(given, table) == wanted
    scores, labels = place / "run" / "scores" / "dev.csv", place / "data" / "labels.csv"
    found = lingula.evaluate(scores, labels=labels, subgroups=["Edema, acute"])
    assert [group.column for group in found.subgroups] == ["Edema, acute"]


@pytest.mark.parametrize(
    ("cells", "is_list"),
    [
        (("Edema", "Mass|Nodule"), True),
        (("", "Edema; Mass"), True),
        (("['Edema', 'Mass']", ""), True),
        (("north, ward 3", "south"), False),
    ],
)
def test_a_column_of_lists_is_told_for_what_it_is(
    tmp_path: Path, cells: tuple[str, str], is_list: bool
) -> None:
    """Wherever the first list stands."""
    table = tmp_path / "t.csv"
    rows = "".join(f'{i}.png,1,"{cell}"\n' for i, cell in enumerate(cells))
    table.write_text(f"image,Fracture,labels\n{rows}")
    with pytest.raises(InputError, match="labels") as refused:
        read_table(table)
    assert ("It contains lists" in str(refused.value)) == is_list


@pytest.mark.parametrize("suffix", [".jpg", ".dcm", ".png"])
@pytest.mark.parametrize("inside", [False, True])
def test_mimic_films_of_any_kind_are_found(tmp_path: Path, suffix: str, inside: bool) -> None:
    """MIMIC-CXR has the same films as MIMIC-CXR-JPG, as DICOM."""
    root, rows = tmp_path / "mimic", []
    for i in range(3):
        name, patient, study = f"{i:08x}", f"1000000{i}", f"5000000{i}"
        film = root / "files" / "p10" / f"p{patient}" / f"s{study}" / f"{name}{suffix}"
        film.parent.mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(film, format="PNG")
        rows.append((name, patient, study))
    for kind, header, pick in (
        (
            "metadata",
            "dicom_id,subject_id,study_id,ViewPosition",
            lambda r: f"{r[0]},{r[1]},{r[2]},PA",
        ),
        ("chexpert", "subject_id,study_id,Edema", lambda r: f"{r[1]},{r[2]},1.0"),
    ):
        lines = [header, *map(pick, rows)]  # type: ignore[arg-type]
        (root / f"mimic-cxr-2.0.0-{kind}.csv").write_text("\n".join(lines) + "\n")
    place = root / "files" if inside else root
    made = lingula.data_mimic(place, labels=root, out=tmp_path / "t.csv")
    assert not made.missing
    images = read_table(tmp_path / "t.csv").images
    assert all(image.endswith(suffix) for image in images) and len(images) == 3
