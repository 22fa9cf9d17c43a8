"""Boxes, the pointing game, and `lingula explain`."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lingula
from lingula.phantom import write_phantom
from lingula.scoring.attention import Look, described, from_json, look, rates, to_json
from lingula.settings.config import vary
from lingula.settings.recipes import recipe
from lingula.system.errors import InputError
from lingula.tables.reading import read_boxes


def test_a_map_that_is_the_same_everywhere_is_chance() -> None:
    one = look(np.full((4, 4), 1 / 16, dtype=np.float32), [(0.5, 0.5, 0.5, 0.5)], "Mass", "p")
    assert one.energy == pytest.approx(0.25) and one.covered == one.chance == 0.25
    assert not one.hit  # the first of equal cells is in the other corner


def test_pointing_by_hand() -> None:
    attention = np.zeros((2, 2), dtype=np.float32)
    attention[1, 0], attention[0, 0] = 0.75, 0.25  # strongest at the left, below
    small = look(attention, [(0.2, 0.7, 0.1, 0.1)], "Mass", "p")
    assert small.hit and small.chance == 0.25 and small.covered == pytest.approx(0.01, abs=2e-3)
    over = look(attention, [(0.4, 0.4, 0.2, 0.2)], "Mass", "p")  # reaches into all four cells
    assert over.hit and over.chance == 1.0
    beside = look(attention, [(0.5, 0.5, 0.5, 0.5), (0.1, 0.1, 0.4, 0.4)], "Mass", "p")
    assert not beside.hit and beside.chance == 0.5  # its edges touch the strongest cell, no more
    whole = look(attention, [(0.0, 0.5, 0.5, 0.5)], "Mass", "p")
    assert whole.hit and whole.energy == pytest.approx(0.75) and whole.chance == 0.25
    both = look(attention, [(0.0, 0.0, 0.5, 0.5), (0.0, 0.0, 0.5, 1.0)], "Mass", "p")
    assert both.energy == pytest.approx(1.0) and both.chance == 0.5  # boxes count once


@pytest.mark.parametrize("cells", [3, 6, 7])
def test_a_map_of_noise_hits_as_often_as_chance_says(cells: int) -> None:
    """However small the boxes are beside the cells: what makes `chance` the level to beat."""
    random = np.random.default_rng(0)
    looks = []
    for _ in range(4000):
        w, h = random.uniform(0.01, 0.3, 2)
        box = (random.uniform(0, 1 - w), random.uniform(0, 1 - h), w, h)
        noise = random.random((cells, cells)).astype(np.float32)
        looks.append(look(noise, [box], "Mass", str(len(looks))))
    rate = rates(looks)["Mass"]
    assert abs(rate.hit - rate.chance) < 0.02 and not rate.validated
    assert abs(rate.energy - rate.covered) < 0.01


def test_rates_by_patient() -> None:
    hits = [Look("Mass", f"p{i // 4}", i < 40, 0.1, 0.5, 0.1) for i in range(48)]
    found = rates(hits)["Mass"]
    assert found.n == 48 and found.hit == pytest.approx(40 / 48) and found.validated
    # Twelve patients, ten of whom always hit: the interval is that of twelve, not of 48.
    assert found.hit_ci[1] - found.hit_ci[0] > 0.3
    assert from_json(to_json({"Mass": found}))["Mass"] == found
    guess = rates([Look("Edema", f"p{i}", i % 10 == 0, 0.1, 0.1, 0.1) for i in range(50)])["Edema"]
    assert not guess.validated and "not better than chance" in described(guess)
    lucky = rates([Look("Nodule", "p", True, 0.1, 0.5, 0.1)] * 3)["Nodule"]
    assert lucky.hit == 1 and not lucky.validated and "too few" in described(lucky)
    assert described(None) == "not validated" and "83%" in described(found)


def test_boxes_are_read_by_name(tmp_path: Path) -> None:
    path = tmp_path / "boxes.csv"
    path.write_text(
        "image,finding,x,y,w,h,split\na.png,Effusion,1,2,3.5,4,dev\n001,Mass,0,0,1,1,\n"
    )
    found = read_boxes(path)
    assert found == {
        ("a.png", "Pleural Effusion"): [(1, 2, 3.5, 4)],
        ("001", "Mass"): [(0, 0, 1, 1)],
    }
    path.write_text("image,finding,x,y,w\na,Mass,1,2,3\n")
    with pytest.raises(InputError, match="no column `h`"):
        read_boxes(path)
    path.write_text("image,finding,x,y,w,h\na,Mass,1,2,3,wide\n")
    with pytest.raises(InputError, match="not a number"):
        read_boxes(path)


def test_explaining_a_run(tmp_path: Path) -> None:
    table = write_phantom(tmp_path / "phantom", n=60, size=32)
    config = vary(recipe("smoke"), data__table=str(table), optim__epochs=1)
    run = lingula.train(config, out=tmp_path / "run")
    assert (run / "attention.json").is_file()  # the phantom has boxes
    page = lingula.explain(run, data=table, split="test", out=tmp_path / "e", limit=5, top=2)
    rows = list(csv.DictReader((tmp_path / "e" / "explain.csv").read_text().splitlines()))
    assert len({row["image"] for row in rows}) == 5
    shown = [row for row in rows if row["overlay"]]
    assert shown and all("chance" in row["attention"] for row in shown)
    assert all(row["finding"] != "No Finding" for row in shown)
    with Image.open(tmp_path / "e" / shown[0]["overlay"]) as picture:
        assert picture.size == (512, 512)
    text = page.read_text()
    assert text.count("<section>") == 5 and "http" not in text
    only = lingula.explain(
        run, data=table, out=tmp_path / "o", classes=["Edema"], split="dev", limit=5
    )
    assert {
        r["finding"] for r in csv.DictReader((only.parent / "explain.csv").read_text().splitlines())
    } <= {
        "Edema",
        "",
    }
    with pytest.raises(InputError, match="Did you mean 'Edema'"):
        lingula.explain(run, data=table, out=tmp_path / "x", classes=["Edma"])
    with pytest.raises(InputError, match="there already"):
        lingula.explain(run, data=table, split="test", out=tmp_path / "e", limit=5)
    (tmp_path / "film.png").write_bytes(b"")
    broken = lingula.explain(
        run, data=tmp_path / "film.png", out=tmp_path / "b", allow_phantom_model=True
    )
    assert "empty" in (broken.parent / "explain.csv").read_text()


def test_real_films_are_refused_and_linear_models_do_not_attend(
    tiny_table: Path, tmp_path: Path
) -> None:
    table = write_phantom(tmp_path / "phantom", n=40, size=32)
    config = vary(
        recipe("smoke"), data__table=str(table), optim__epochs=1, model__classifier="linear"
    )
    run = lingula.train(config, out=tmp_path / "run")
    with pytest.raises(InputError, match="nothing attends"):
        lingula.explain(run, data=table, out=tmp_path / "e")
    decoder = lingula.train(vary(config, model__classifier="separate"), out=tmp_path / "decoder")
    with pytest.raises(InputError, match="phantom"):
        lingula.explain(decoder, data=tiny_table, out=tmp_path / "e")
