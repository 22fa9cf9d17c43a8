from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from PIL import Image

from lingula.images.files import is_phantom
from lingula.phantom import write_phantom
from lingula.phantom.drawing import Box, draw
from lingula.phantom.population import Seeds, plan_studies, prevalences
from lingula.settings.label_space import CXR_LT_2023
from lingula.system import files
from lingula.system.errors import InputError
from lingula.verbs.data_phantom import data_phantom

DRAWN = [name for name in CXR_LT_2023 if name != "No Finding"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def render(
    findings: list[str], *, seed: int, size: int = 128, view: str = "PA"
) -> tuple[NDArray[np.uint8], list[Box]]:
    return draw(findings, Seeds(np.random.SeedSequence(seed, spawn_key=(0, 0, 0))), size, view)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantom") / "set"
    data_phantom(out, n=240, size=48, seed=3)
    return out


@pytest.fixture(scope="module")
def labels() -> pl.DataFrame:
    rows = []
    for study in plan_studies(4000, 1):
        for _ in study.views:
            row = {"patient": study.patient, "study": study.number, "split": study.split}
            rows.append(row | {name: int(name in study.findings) for name in CXR_LT_2023})
    return pl.DataFrame(rows)


def test_frequencies_are_those_of_the_public_data(labels: pl.DataFrame) -> None:
    train = labels.filter(pl.col("split") == "train")
    for name, share in prevalences().items():
        error = 4 * math.sqrt(share * (1 - share) * train.height) + 2
        assert abs(train[name].sum() - share * train.height) <= error, name
    mean = train.select(CXR_LT_2023).sum_horizontal().mean()
    assert mean == pytest.approx(2.4, abs=0.15)


def test_imbalance_tempers_the_ratio() -> None:
    share = prevalences(10.0)
    assert max(share.values()) / min(share.values()) == pytest.approx(10.0)
    assert sum(share.values()) == pytest.approx(sum(prevalences().values()))
    assert max(prevalences(1e6).values()) <= 0.6


def test_no_finding_stands_alone_but_for_devices(labels: pl.DataFrame) -> None:
    others = [name for name in CXR_LT_2023 if name not in ("No Finding", "Support Devices")]
    rows = labels.with_columns(n=pl.sum_horizontal(others))
    assert rows.filter(pl.col("No Finding") == 1)["n"].max() == 0
    assert rows.filter(pl.col("No Finding") == 0)["n"].min() >= 1


def test_findings_keep_company(labels: pl.DataFrame) -> None:
    ill = labels.filter(pl.col("No Finding") == 0)
    for a, b in [
        ("Cardiomegaly", "Enlarged Cardiomediastinum"),
        ("Pleural Effusion", "Atelectasis"),
        ("Cardiomegaly", "Edema"),
        ("Consolidation", "Lung Opacity"),
        ("Subcutaneous Emphysema", "Pneumothorax"),
        ("Pneumothorax", "Support Devices"),
    ]:
        assert ill.filter(pl.col(a) == 1)[b].mean() > 1.15 * ill[b].mean(), (a, b)


@pytest.mark.parametrize("n", [1000, 2000])
def test_floors(n: int) -> None:
    for split, floor in (("train", 2), ("dev", 10), ("test", 10)):
        studies = [study for study in plan_studies(n, 0) if study.split == split]
        for name in CXR_LT_2023:
            assert sum(len(s.views) for s in studies if name in s.findings) >= floor, (split, name)


@pytest.mark.parametrize("imbalance", [None, 1.0, 500.0])
def test_small_sets_can_be_planned(imbalance: float | None) -> None:
    for n in range(30, 60):
        studies = plan_studies(n, n, imbalance)
        assert sum(len(study.views) for study in studies) == n
        assert {study.split for study in studies} == {"train", "dev", "test"}
        assert all(study.findings for study in studies)


def test_patients_are_whole(labels: pl.DataFrame) -> None:
    assert labels.group_by("patient").agg(pl.col("split").n_unique())["split"].max() == 1
    same = labels.group_by("patient", "study").agg(pl.col(CXR_LT_2023).n_unique(), pl.len())
    assert same.select(pl.max_horizontal(CXR_LT_2023).max()).item() == 1
    assert set(same["len"]) == {1, 2}
    assert set(same.group_by("patient").len()["len"]) == {1, 2, 3, 4}
    for split, share in (("train", 0.6), ("dev", 0.15), ("test", 0.25)):
        assert (labels["split"] == split).mean() == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("size", [32, 128, 512])
@pytest.mark.parametrize("view", ["PA", "AP"])
def test_render_is_deterministic(size: int, view: str) -> None:
    first, boxes = render(["Edema", "Nodule"], seed=5, size=size, view=view)
    again, same = render(["Nodule", "Edema"], seed=5, size=size, view=view)
    assert first.shape == (size, size) and first.dtype == np.uint8
    assert np.array_equal(first, again) and boxes == same
    assert not np.array_equal(first, render(["Edema", "Nodule"], seed=6, size=size)[0])


@pytest.mark.parametrize("finding", DRAWN)
def test_every_finding_is_seen_in_its_box(finding: str) -> None:
    size = 128
    for seed in range(8):
        clean = render([], seed=seed, size=size)[0].astype(int)
        image, boxes = render([finding], seed=seed, size=size)
        change = np.abs(image.astype(int) - clean)
        assert boxes and {box.finding for box in boxes} == {finding}
        inside = np.zeros((size, size), dtype=bool)
        for box in boxes:
            assert box.w > 0 and box.h > 0 and box.x >= 0 and box.y >= 0
            assert box.x + box.w <= size and box.y + box.h <= size
            inside[box.y : box.y + box.h, box.x : box.x + box.w] = True
        assert change[inside].max() >= 4
        assert change[inside].mean() > change[~inside].mean()


def test_healthy_images_have_no_boxes() -> None:
    assert render(["No Finding"], seed=1)[1] == []
    kin = render(["Lung Opacity", "Mass"], seed=1)[1]
    assert {box.finding for box in kin} == {"Lung Opacity", "Mass"}


def test_the_table_and_the_images(made: Path) -> None:
    table = pl.read_csv(made / "labels.csv")
    about = ["image", "id", "patient", "study", "view", "split", "age", "sex", "source"]
    assert table.columns == [*about, *CXR_LT_2023]
    assert table.height == 240 and table["id"].n_unique() == 240
    assert {p.name for p in (made / "images").iterdir()} == {Path(i).name for i in table["image"]}
    for name in table["image"].head(10):
        with Image.open(made / name) as image:
            assert image.mode == "L" and image.size == (48, 48)
    described = json.loads((made / "labels.json").read_text(encoding="utf-8"))
    assert described["sha256"] == files.sha256(made / "labels.csv")
    assert described["made_by"]["n"] == 240 and described["phantom"] is True
    assert described["sources"]["phantom"]["knows"] == list(CXR_LT_2023)


def test_boxes_belong_to_positives(made: Path) -> None:
    boxes = pl.read_csv(made / "boxes.csv")
    assert boxes.columns == ["image", "finding", "x", "y", "w", "h", "split"]
    assert boxes.select((pl.col("x") + pl.col("w")).max() <= 48).item()
    assert boxes.select((pl.col("y") + pl.col("h")).max() <= 48).item()
    assert boxes.select(pl.min_horizontal("x", "y").min() >= 0).item()
    assert boxes.select(pl.min_horizontal("w", "h").min() >= 1).item()
    table = pl.read_csv(made / "labels.csv").unpivot(
        DRAWN, index=["image", "split"], variable_name="finding"
    )
    positive = set(table.filter(pl.col("value") == 1).select("image", "finding", "split").rows())
    assert set(boxes.select("image", "finding", "split").rows()) == positive


def test_images_are_marked(made: Path, tmp_path: Path) -> None:
    image = next((made / "images").iterdir())
    assert is_phantom(image)
    with Image.open(image) as opened:
        opened.load()
        opened.save(tmp_path / "plain.png")
    assert not is_phantom(tmp_path / "plain.png")
    assert not is_phantom(made / "labels.csv")
    assert not is_phantom(tmp_path / "none.png")
    (tmp_path / "cut.png").write_bytes(image.read_bytes()[:20])
    assert not is_phantom(tmp_path / "cut.png")


def test_an_interrupted_run_ends_the_same(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    write_phantom(whole, n=40, size=32, seed=2)

    def stop(done: int, total: int) -> None:
        if done == 17:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_phantom(broken, n=40, size=32, seed=2, progress=stop)
    assert not (broken / "labels.json").exists()
    with pytest.raises(InputError, match="n: 40 there, 41 now"):
        write_phantom(broken, n=41, size=32, seed=2)
    write_phantom(broken, n=40, size=32, seed=2)
    assert contents(broken) == contents(whole)
    for name in ("boxes.csv", "labels.csv", "labels.json"):
        (broken / name).unlink()
    next((broken / "images").iterdir()).unlink()
    write_phantom(broken, n=40, size=32, seed=2)
    assert contents(broken) == contents(whole)


def test_a_finished_folder_is_left_alone(made: Path, tmp_path: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in made.rglob("*")}
    assert data_phantom(made, n=240, size=48, seed=3) == made / "labels.csv"
    assert before == {p: p.stat().st_mtime_ns for p in made.rglob("*")}
    with pytest.raises(InputError, match="seed: 3 there, 4 now"):
        data_phantom(made, n=240, size=48, seed=4)


def test_other_folders_are_refused_or_set_aside(tmp_path: Path) -> None:
    out = tmp_path / "set"
    out.mkdir()
    (out / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="something else"):
        write_phantom(out, n=30, size=32)
    write_phantom(out, n=30, size=32, overwrite=True)
    assert (tmp_path / "set.old-1" / "thesis.txt").read_text(encoding="utf-8") == "mine"
    assert (out / "labels.json").is_file()
    with pytest.raises(InputError, match=r"labels\.csv is there already"):
        write_phantom(out / "labels.csv", n=30, size=32)


@pytest.mark.parametrize(
    "wrong",
    [{"n": 29}, {"size": 31}, {"size": 4096}, {"imbalance": 0.5}, {"imbalance": math.nan}],
)
def test_arguments_are_checked(wrong: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        data_phantom(tmp_path / "x", **wrong)  # type: ignore[arg-type]
