"""Tables: what is read, what is refused by name, and what is written."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lingula.images.files import find_absent, image_path
from lingula.settings.label_space import LabelSpace, canonical, group_by_prevalence, label_space
from lingula.system.errors import ImageError, InputError
from lingula.tables.checking import check
from lingula.tables.joins import union
from lingula.tables.reading import read_table, write_table
from lingula.tables.table import BLANK, UNCERTAIN, UNMENTIONED, Table, class_counts, subset, targets


def table(folder: Path, text: str, name: str = "t.csv", **options: object) -> Table:
    path = folder / name
    path.write_text(text, encoding="utf-8", newline="")
    return read_table(path, **options)  # type: ignore[arg-type]


def test_cells_mean_what_they_say(tmp_path: Path) -> None:
    text = "image,Edema,Fracture\na,1.0,-1\nb,-1.0,\nc,,True\nd,0.0, 1\ne,NA,0\n"
    found = table(tmp_path, text)
    assert found.labels[:, 0].tolist() == [1, UNCERTAIN, BLANK, 0, BLANK]
    assert found.labels[:, 1].tolist() == [UNCERTAIN, BLANK, 1, 1, 0]
    values, mask = targets(found)
    assert np.isfinite(values).all() and values.min() >= 0
    assert mask.sum() == 5 and not mask[1, 0]
    ones, mask = targets(found, uncertain="one", blank="zero")
    assert ones[:, 0].tolist() == [1, 1, 0, 0, 0] and mask.all()


@pytest.mark.parametrize("cell", ["yes", "2", "0.5", "positive"])
def test_other_cells_are_refused_by_place(tmp_path: Path, cell: str) -> None:
    with pytest.raises(InputError, match=r"row 3, column 'Edema'"):
        table(tmp_path, f"image,Edema\na,1\nb,{cell}\n")


def test_soft_labels_on_request(tmp_path: Path) -> None:
    assert table(tmp_path, "image,Edema\na,0.5\nb,1\n", soft=True).labels[:, 0].tolist() == [0.5, 1]
    with pytest.raises(InputError):
        table(tmp_path, "image,Edema\na,1.5\n", soft=True)


def test_ids_stay_text(tmp_path: Path) -> None:
    found = table(tmp_path, "image,study,patient,Edema\na,59999999,NA,1\nb,,None,0\n")
    assert found.studies == ("59999999", "") and found.patients == ("NA", "None")
    frame = pl.DataFrame({"image": ["a", "b"], "study": [59999999.0, None], "Edema": [1, 0]})
    frame.write_parquet(tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet").studies == ("59999999", "")


def test_header_quirks(tmp_path: Path) -> None:
    found = table(tmp_path, '\ufeffimage, Edema\r\n"a,b",1\r\n')
    assert found.images == ("a,b",) and found.space.classes == ("Edema",)
    assert table(tmp_path, "image;Edema\na;1\n").space.classes == ("Edema",)
    with pytest.raises(InputError, match="several columns named"):
        table(tmp_path, "image,Edema,Edema\na,1,1\n")


def test_aliases_are_one_class(tmp_path: Path) -> None:
    found = table(tmp_path, "image,Pleural_Thickening,Effusion,Infiltrate\na,1,0,1\n")
    assert found.space.classes == ("Pleural Thickening", "Pleural Effusion", "Infiltration")
    assert canonical("pleural thickening ") == "Pleural Thickening"
    assert canonical("Lung Lesion") != canonical("Nodule")
    with pytest.raises(InputError, match="same class"):
        table(tmp_path, "image,Effusion,Pleural Effusion\na,1,0\n")


def test_columns_that_are_nearly_classes_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'Edemaa'.*Did you mean 'Edema'"):
        table(tmp_path, "image,Edema,Edemaa\na,1,0\n", classes=LabelSpace(("Edema",)))
    with pytest.raises(InputError, match="finding_text"):
        table(tmp_path, "image,Edema,finding_text\na,1,none of note\n")
    found = table(
        tmp_path, "image,Edema,finding_text\na,1,none of note\n", ignore_columns=["finding_text"]
    )
    assert found.space.classes == ("Edema",)


def test_columns_bind_by_name(tmp_path: Path) -> None:
    space = LabelSpace(("Edema", "Fracture", "Mass"))
    found = table(tmp_path, "image,Mass,Edema\na,1,0\n", classes=space)
    assert found.labels.tolist() == [[0, UNMENTIONED, 1]]


def test_missing_and_empty_tables(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no table .*nowhere.csv"):
        read_table(tmp_path / "nowhere.csv")
    with pytest.raises(InputError, match="no rows"):
        table(tmp_path, "image,Edema\n")


@pytest.mark.parametrize(
    "cell", ["../../etc/hostname", "/etc/hostname", r"C:\x", "file:///etc/hostname", "a\0b", ""]
)
def test_paths_stay_inside_the_root(cell: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        image_path(tmp_path, cell)
    assert caught.value.kind == "outside the data root"


def test_the_description_is_obeyed(tmp_path: Path) -> None:
    described = {
        "format": 1,
        "root": "films",
        "classes": ["Edema", "Mass"],
        "blank": "zero",
        "sources": {"b": {"knows": ["Edema"]}},
    }
    (tmp_path / "t.json").write_text(json.dumps(described))
    found = table(tmp_path, "image,source,Edema,Mass\nx,a,,1\ny,b,1,\n")
    assert found.root == tmp_path / "films" and found.blank == "zero"
    assert found.labels.tolist() == [[BLANK, 1], [1, UNMENTIONED]]


def test_writing_and_reading_gives_the_same(tiny_table: Path, tmp_path: Path) -> None:
    first = read_table(tiny_table)
    write_table(first, tmp_path / "copy.csv")
    second = read_table(tmp_path / "copy.csv")
    assert second.images == first.images and second.splits == first.splits
    assert (second.labels == first.labels).all() and second.root.samefile(first.root)


def test_label_spaces() -> None:
    assert len(label_space("cxr-lt-2023")) == 26 and len(label_space("nih")) == 15
    assert len(label_space("chexpert")) == 14
    with pytest.raises(InputError, match="Did you mean 'chexpert'"):
        label_space("chexprt")
    with pytest.raises(InputError, match="Did you mean 'Edema'"):
        LabelSpace(("Edema",)).index("Edemma")
    found = group_by_prevalence({"a": 20, "b": 5, "c": 0}, 100)
    assert found == {"head": ("a",), "medium": ("b",), "tail": ("c",)}


def test_subsets_keep_columns_together(tiny_table: Path) -> None:
    whole = read_table(tiny_table)
    part = subset(whole, np.array([3, 1]))
    assert part.images == (whole.images[3], whole.images[1])
    assert (part.labels == whole.labels[[3, 1]]).all()


def test_odd_cells_that_are_labels(tmp_path: Path) -> None:
    text = "image,Edema\na,True\nb,1\nc,1.0\nd, 1\ne,FALSE\nf,-1\ng,nan\nh,null\n"
    assert table(tmp_path, text).labels[:, 0].tolist() == [1, 1, 1, 1, 0, UNCERTAIN, BLANK, BLANK]


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    text = "image,split,Edema,Mass,note\na,train,yes,1,x\nb,middle,1,2,y\n"
    with pytest.raises(InputError) as caught:
        table(tmp_path, text)
    for part in ("'yes'", "row 3, column 'Mass'", "'middle'", "'note'", "data.ignore_columns"):
        assert part in str(caught.value)


def test_text_columns_are_told_how_to_leave_out(tmp_path: Path) -> None:
    text = 'image,Finding Labels,AP/PA\na,"Mass|Edema",AP\n'
    with pytest.raises(InputError) as caught:
        table(tmp_path, text)
    assert "a column of 1 and 0 for each finding" in str(caught.value)
    assert """'data.ignore_columns=["Finding Labels","AP/PA"]'""" in str(caught.value)


def test_lists_and_code_in_cells_are_never_run(tmp_path: Path) -> None:
    # Case 143.
    cell = f"__import__('pathlib').Path('{tmp_path}/pwned').touch()"
    with pytest.raises(InputError, match="Labels"):
        table(tmp_path, f'image,Edema,Labels\na,1,"{cell}"\n')
    with pytest.raises(InputError, match="is not a label"):
        table(tmp_path, f'image,Edema\na,"{cell}"\n')
    assert not (tmp_path / "pwned").exists()


def test_own_classes_keep_their_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = table(tmp_path, "image,Rib Fracture,Cardiomegaly_\na,1,0\n")
    assert found.space.classes == ("Rib Fracture", "Cardiomegaly")
    with caplog.at_level("WARNING", "lingula"):
        table(tmp_path, "image,Cardiomegali\na,1\n")
    assert "Is it 'Cardiomegaly'" in caplog.text


def test_column_aliases(tmp_path: Path) -> None:
    text = "dicom_id,subject_id,study_id,ViewPosition,fpath,Edema\nd,1,s2,PA,f/d.jpg,1\n"
    found = table(tmp_path, text)
    assert (found.ids, found.patients, found.studies) == (("d",), ("1",), ("s2",))
    assert found.views == ("PA",) and found.images == ("f/d.jpg",)
    with pytest.raises(InputError, match="both say the image"):
        table(tmp_path, "image,path,Edema\na,b,1\n")
    upper = table(tmp_path, "IMAGE,Patient,SPLIT,Edema\na,1,VALIDATE,1\nb,2,,0\n")
    assert upper.splits == ("dev", "")


def test_ids_that_were_rounded_are_refused(tmp_path: Path) -> None:
    # Case 57 and the CXR-LT 2026 files.
    with pytest.raises(InputError, match=r"rounded numbers such as 1\.90E\+38"):
        table(tmp_path, "image,patient,Edema\na,1.90E+38,1\nb,1.90E+38,0\n")
    for cell in ("1.90E38", "1.9e38", "2E+10"):
        with pytest.raises(InputError, match="rounded numbers such as"):
            table(tmp_path, f"image,patient,Edema\na,{cell},1\nb,7,0\n")
    hexadecimal = table(tmp_path, "image,patient,Edema\na,1e38,1\nb,12E5,0\n")
    assert hexadecimal.patients == ("1e38", "12E5")
    floats = table(tmp_path, "image,study,Edema\na,59999999.0,1\nb,,0\n")
    assert floats.studies == ("59999999", "")
    mixed = table(tmp_path, "image,patient,Edema\na,1,1\nb,2,0\nc,1.0,0\nd,1.2.0,1\n")
    assert mixed.patients == ("1", "2", "1", "1.2.0")
    frame = pl.DataFrame({"image": ["a", "b"], "patient": [1.9e38, 1.9e38], "Edema": [1, 0]})
    frame.write_parquet(tmp_path / "r.parquet")
    with pytest.raises(InputError, match="rounded"):
        read_table(tmp_path / "r.parquet")


def test_a_class_called_na(tmp_path: Path) -> None:
    # Case 59.
    found = table(tmp_path, "image,NA,Edema\na,1,NA\nNone,0,1\n")
    assert found.space.classes == ("NA", "Edema") and found.images == ("a", "None")
    assert found.labels.tolist() == [[1, BLANK], [0, 1]]


def test_shapes_of_files(tmp_path: Path) -> None:
    assert len(table(tmp_path, "image,Edema\na,1\n\nb,0\n,\n\n")) == 2
    indexed = table(tmp_path, ",image,Edema\n0,a,1\n1,b,0\n")
    assert indexed.space.classes == ("Edema",)
    for text, told in (
        ("image,Edema,Mass\na,1,0\nb,1\n", "fewer cells.*line 3"),
        ("", "is empty"),
        ("image,patient\na,b\n", "no class columns"),
        ("patient,Edema\na,1\n", "no column `image`"),
        ("image,Edema\n,1\n", "without an image: row 2"),
    ):
        with pytest.raises(InputError, match=told):
            table(tmp_path, text)
    for name in ("t.xlsx", "gone.parquet"):
        with pytest.raises(InputError, match=name):
            read_table(tmp_path / name)
    (tmp_path / "junk.parquet").write_bytes(b"PAR1 junk")
    with pytest.raises(InputError, match="can't be read as a table"):
        read_table(tmp_path / "junk.parquet")


def test_files_named_like_patterns(tmp_path: Path) -> None:
    folder = tmp_path / "patient=5" / "[x] *"
    folder.mkdir(parents=True)
    pl.DataFrame({"image": ["a"], "Edema": [True]}).write_parquet(folder / "t.parquet")
    found = read_table(folder / "t.parquet")
    assert found.patients is None and found.labels.tolist() == [[1]]
    assert len(table(folder, "image,Edema\na,1\n")) == 1


def test_label_space_asked_for(tmp_path: Path) -> None:
    space = LabelSpace(("Edema",))
    assert table(tmp_path, "image,Mass,Edema\na,1,0\n", classes=space).labels.tolist() == [[0]]
    with pytest.raises(InputError, match="none of the classes as a column"):
        table(tmp_path, "image,Mass\na,1\n", classes=space)
    with pytest.raises(InputError, match=r"no column 'notes' to ignore.*Did you mean 'note'"):
        table(tmp_path, "image,note,Edema\na,x,0\n", ignore_columns=["notes"])


@pytest.mark.parametrize(
    ("described", "told"),
    [
        ('{"format": 2}', "format 2"),
        ('{"format": 1, "blank": "maybe"}', "blank can't be"),
        ('{"format": 1, "classes": [1]}', "classes can't be"),
        ("{", "damaged"),
    ],
)
def test_wrong_descriptions_are_refused(tmp_path: Path, described: str, told: str) -> None:
    (tmp_path / "t.json").write_text(described)
    with pytest.raises(InputError, match=told):
        table(tmp_path, "image,Edema\na,1\n")


def test_a_changed_table_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # Case 66.
    found = table(tmp_path, "image,Edema\na,1\nb,0\n")
    write_table(found, tmp_path / "w.csv")
    caplog.clear()
    assert read_table(tmp_path / "w.csv").sha256
    assert "changed" not in caplog.text
    (tmp_path / "w.csv").write_text("image,Edema\na,0\nb,0\n")
    assert read_table(tmp_path / "w.csv").labels.tolist() == [[0], [0]]
    assert "has changed" in caplog.text
    (tmp_path / "x.json").write_text('{"somebody": "else"}')
    assert len(table(tmp_path, "image,Edema\na,1\n", "x.csv")) == 1


@given(
    data=st.data(),
    n=st.integers(1, 12),
    soft=st.booleans(),
    suffix=st.sampled_from(["csv", "parquet"]),
)
@settings(max_examples=60, deadline=None)
def test_any_table_survives_writing(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, n: int, soft: bool, suffix: str
) -> None:
    folder = tmp_path_factory.mktemp("w")
    knows = {"one": (True, True, False), 'two, "b"': (True, False, False)}
    sources = tuple(data.draw(st.sampled_from(sorted(knows))) for _ in range(n))
    cell = st.floats(0, 1, width=32) if soft else st.sampled_from([0.0, 1.0])
    cells = st.one_of(cell, st.just(UNCERTAIN), st.just(BLANK))
    rows = [
        [data.draw(cells) if known else UNMENTIONED for known in knows[source]]
        for source in sources
    ]
    # One source may leave out a class that it knows only in some rows: as blank, never unmentioned.
    text = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=6)
    images = tuple(f"{i}{data.draw(text)}" for i in range(n))
    first = Table(
        images=images,
        root=folder / "films",
        space=LabelSpace(("Edema", "Mass", "Hernia")),
        labels=np.array(rows, np.float32),
        ids=tuple(data.draw(st.sampled_from(["NA", "007", "", '"', "1,5"])) for _ in range(n)),
        sources=sources,
        blank="zero",
        phantom=True,
    )
    path = folder / f"t.{suffix}"
    write_table(first, path)
    second = read_table(path, soft=soft)
    assert np.array_equal(second.labels, first.labels)
    assert second.space.classes == first.space.classes and second.images == first.images
    assert (second.ids, second.sources) == (first.ids, first.sources)
    assert (second.blank, second.phantom) == ("zero", True)
    assert second.root.resolve() == first.root.resolve()


def test_unmentioned_cells_need_a_source(tmp_path: Path) -> None:
    labels = np.array([[1, UNMENTIONED], [1, 0]], np.float32)
    mixed = Table(("a", "b"), Path(), LabelSpace(("Edema", "Mass")), labels)
    with pytest.raises(InputError, match="no `source` column"):
        write_table(mixed, tmp_path / "t.csv")
    assert not (tmp_path / "t.csv").exists()


@pytest.mark.parametrize(("cell", "file"), [("a.png", "a.png"), ("a/../b.png", "b.png")])
def test_paths_inside_the_root(cell: str, file: str, tmp_path: Path) -> None:
    assert image_path(tmp_path, cell) == tmp_path / file
    assert image_path(tmp_path, "..a/b..c.png") == tmp_path / "..a/b..c.png"
    for outside in ("a/../../b.png", r"a\..\..\b.png", "..", ".", r"\\host\x", "https://x/y.png"):
        with pytest.raises(ImageError):
            image_path(tmp_path, outside)


def films(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), 7).save(folder / name, "PNG")
    return folder


def test_absolute_paths_may_lie_in_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By any name of the root: its own, one through a link, or as a URL of a file."""
    root = films(tmp_path / "data", "img/a b.png")
    (tmp_path / "link").symlink_to(root)
    (tmp_path / "second").symlink_to(tmp_path)
    names = [root, tmp_path / "link", tmp_path / "second" / "data", tmp_path / "x" / ".." / "data"]
    monkeypatch.chdir(root)
    for place in (root, tmp_path / "link", Path(), Path("../data"), Path("img/..")):
        for name in names:
            path = image_path(place, f"{name}/img/a b.png")
            assert path == place / "img" / "a b.png" and path.is_file()
    assert image_path(root, f"file://{root}/img/a%20b.png").is_file()
    for cell in (f"{root}x/a.png", f"{root}/../other/a.png", str(root), f"file://{root}/%00"):
        with pytest.raises(ImageError):
            image_path(root, cell)


@pytest.mark.parametrize(
    ("cell", "strip"),
    [("/old/disk/img/a.png", "'/old/disk/'"), (r"D:\films\img\a.png", repr("D:\\films\\")),
     ("file://host/img/a.png", "'file://host/'"), ("/elsewhere/b.png", "")],
)  # fmt: skip
def test_paths_of_another_machine_are_told_what_to_strip(
    cell: str, strip: str, tmp_path: Path
) -> None:
    with pytest.raises(ImageError) as caught:
        image_path(films(tmp_path, "img/a.png"), cell)
    told = str(caught.value)
    assert caught.value.kind == "outside the data root" and str(tmp_path) in told
    assert (f"strip {strip} from the cells" in told) if strip else "relative to it" in told


def test_backslashes_are_taken_for_slashes_where_nothing_else_fits(tmp_path: Path) -> None:
    films(tmp_path, "img/sub/a.png", "odd\\b.png", "odd/b.png")
    for cell in (r"img\sub\a.png", r"img\sub/a.png", r".\img\sub\a.png"):
        assert image_path(tmp_path, cell).resolve() == tmp_path / "img" / "sub" / "a.png"
    assert image_path(tmp_path, r"odd\b.png").name == r"odd\b.png"  # a file of that very name
    assert "\\" not in str(image_path(tmp_path, r"gone\c.png"))
    with pytest.raises(ImageError):
        image_path(tmp_path, r"\img\sub\a.png")


def test_one_image_in_two_of_these_spellings_stands_twice(tmp_path: Path) -> None:
    films(tmp_path, "img/a.png")
    for other in (r"img\a.png", f"{tmp_path}/img/a.png", f"{tmp_path}//img/./a.png"):
        with pytest.raises(InputError, match=r"more than one row: img/a\.png"):
            table(tmp_path, f"image,Edema\nimg/a.png,1\n{other},0\n")
    assert table(tmp_path, "image,Edema\n img/a.png \t,1\n").images == ("img/a.png",)


@pytest.mark.parametrize("form", ["{root}/img/{i}.png", "img\\{i}.png", "./img/{i}.png"])
def test_such_tables_are_checked_and_joined(form: str, tmp_path: Path) -> None:
    root = films(tmp_path / "one", *(f"img/{i}.png" for i in range(3)))
    rows = "".join(f"{form.format(root=root, i=i)},p{i},{i % 2}\n" for i in range(3))
    first = table(root, "image,patient,Edema\n" + rows)
    assert not [f for f in check(root / "t.csv").problems if f.what.startswith("images")]
    other = films(tmp_path / "two", "x.png")
    second = table(other, "image,patient,Edema\nx.png,q,1\n", "u.csv")
    joined = union([first, second], None, None)
    assert joined.root == tmp_path
    assert all(image_path(joined.root, cell).is_file() for cell in joined.images)
    assert not find_absent([image_path(first.root, name) for name in first.images])


def test_counts(tmp_path: Path) -> None:
    found = table(tmp_path, "image,Edema,Mass\na,1,-1\nb,1,1\nc,,0\n")
    assert class_counts(found) == {"Edema": 2, "Mass": 1}
    assert class_counts(found, np.array([2])) == {"Edema": 0, "Mass": 0}


# Case 56


@pytest.mark.parametrize(
    "images",
    [
        ("f/a.png", "f/a.png"),
        ("f/a.png", "./f/a.png"),
        ("f/a.png", "f//a.png"),
        ("g/../f/a.png", "f/a.png"),
        ("f/.//a.png", "f/./a.png"),
    ],
)
def test_an_image_in_two_rows_is_refused_however_it_is_written(
    images: tuple[str, str], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"more than one row: f/a\.png\. Keep one"):
        table(tmp_path, f"image,split,Edema\n{images[0]},train,1\n{images[1]},dev,0\n")


def test_image_cells_stay_as_they_are_written(tmp_path: Path) -> None:
    names = ("./f/a.png", "f/b.png", "f//c.png", "F/b.png", "f/.b.png", "f/b..png")
    found = table(tmp_path, "image,Edema\n" + "".join(f"{name},1\n" for name in names))
    assert found.images == names


# Case 95


def test_a_label_that_is_no_number_is_masked_and_finite() -> None:
    labels = np.array([[np.nan, 1], [0, np.nan]], np.float32)
    found = Table(("a", "b"), Path(), LabelSpace(("Edema", "Mass")), labels)
    for blank in ("ignore", "zero"):
        values, mask = targets(found, uncertain="zero", blank=blank, unmentioned="zero")  # type: ignore[arg-type]
        assert values.tolist() == [[0, 1], [0, 0]] and values.dtype == np.float32
        assert mask.tolist() == [[False, True], [True, False]]


# Case 50


@pytest.mark.parametrize(
    ("column", "meant"),
    [
        ("Effusions", "Pleural Effusion"),
        ("Infiltrates", "Infiltration"),
        ("Lung Opacities", "Lung Opacity"),
        ("pleural_effusions", "Pleural Effusion"),
        ("Cardiomegally", "Cardiomegaly"),
        ("Zebra", None),
        ("Lung Lesions of old", None),
    ],
)
def test_a_name_near_a_synonym_is_named_too(
    column: str, meant: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "lingula"):
        found = table(tmp_path, f"image,{column},Edema\na,1,0\n")
    assert found.space.classes == (column, "Edema")
    told = f"'{column}' is read as a class of its own. Is it '{meant}'?"
    assert (told in caplog.text) if meant else "class of its own" not in caplog.text


# Case 60


@pytest.mark.parametrize(
    "text",
    [
        "image,Edema\ra,1\rb,0\r",
        "\ufeffimage,Edema\ra,1\rb,0",
        "image,Edema\ra,1\r\nb,0\n",
        "image,Edema\na,1\rb,0\n",
        '\ufeff"image", Edema \r\n"a",1\r\nb,0\r\n',
        'image,"\nEdema\n"\na,1\nb,0\n',
    ],
)
def test_line_ends_of_all_kinds(text: str, tmp_path: Path) -> None:
    found = table(tmp_path, text)
    assert found.images == ("a", "b") and found.space.classes == ("Edema",)
    assert found.labels.tolist() == [[1], [0]]


def test_a_name_over_two_lines_is_one_name(tmp_path: Path) -> None:
    for end in ("\n", "\r\n"):
        found = table(tmp_path, f'image,"Pleural{end}Effusion"{end}a,1{end}b,0{end}')
        assert found.space.classes == ("Pleural Effusion",) and found.labels.tolist() == [[1], [0]]


def test_a_quote_inside_a_cell_is_read(tmp_path: Path) -> None:
    text = 'image,view,Edema\na,5" film,1\nb,"5"" film, left",\n\nc,PA,0\n'
    found = table(tmp_path, text)
    assert found.views == ('5" film', '5" film, left', "PA")
    assert found.labels.tolist() == [[1], [BLANK], [0]]
    headed = table(tmp_path, 'image,5" film,Edema\na,1,1\nb,0,0\n')
    assert headed.space.classes == ('5" film', "Edema") and len(headed) == 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('image,"Edema\na,1\nb,0\n', "line 1: a quote among the column names does not end"),
        ('image,Edema\nz,1\n"a,1\nb,0\n', "line 3: a quote does not end where its cell does"),
        ('image,"Ed\nema"\nz,1\na,"1\nb,0\n', "line 4: a quote does not end"),
        ("image,Edema\na,1,5\nb,0\n", "more cells than its 2 columns: line 2"),
        ("image,Edema\na,1\nb,0,7\n", "more cells than its 2 columns: line 3"),
        ("\n\n", "is empty: it has no line of column names"),
    ],
)
def test_shapes_that_can_not_be_read_are_named_by_line(
    text: str, told: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        table(tmp_path, text)
    assert told in str(caught.value) and "schema" not in str(caught.value)


def test_text_that_is_not_utf8_is_named_by_line(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("image,Edema\na,1\nb\xe4,0\n".encode("latin1"))
    with pytest.raises(InputError, match=r"t\.csv, line 3: the file is not UTF-8 text"):
        read_table(tmp_path / "t.csv")
