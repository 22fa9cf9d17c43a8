"""Members that do not have the same images: named by default, left out, or averaged over."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders import write
from lingula.cli import app
from lingula.scores import ensembles
from lingula.scores.ensembles import combine
from lingula.scores.members import MISSING, count_members, fill_rows
from lingula.scores.predictions import Predictions, failed, read_scores
from lingula.system.errors import InputError
from lingula.verbs.ensemble import ensemble, ensemble_apply


@pytest.fixture
def members(tmp_path: Path) -> list[tuple[str, Path, Path]]:
    """Dev is whole. In test A has a, b and d, B has a, c and d, which failed in B."""
    dev = "image,Edema,Mass\nv,.9,.1\nw,.1,.8\nx,.8,.3\n"
    return [
        (
            "A",
            write(tmp_path / "a-dev.csv", dev),
            write(tmp_path / "a.csv", "image,Edema,Mass\na,.9,.2\nb,.1,.4\nd,.3,.5\n"),
        ),
        (
            "B",
            write(tmp_path / "b-dev.csv", dev.replace(".8,.3", ".2,.9")),
            write(tmp_path / "b.csv", "image,Mass,Edema\nc,.6,.2\na,.4,.8\nd,,\n"),
        ),
    ]


LABELS = "image,patient,split,Edema,Mass\nv,1,dev,1,0\nw,2,dev,0,1\nx,3,dev,1,0\n"


def rows(path: Path) -> dict[str, list[float]]:
    found = read_scores(path)
    return dict(zip(found.images, found.probabilities.tolist(), strict=True))


def test_by_default_the_ids_are_listed(
    members: list[tuple[str, Path, Path]], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"b\.csv has no scores for b \(1 of 3"):
        ensemble("model-wise", members=members, out=tmp_path / "e")
    write(tmp_path / "a.csv", "image,Edema,Mass\na,.9,.2\nd,.3,.5\n")
    with pytest.raises(InputError, match=r"b\.csv has images that .*a\.csv lacks: c"):
        ensemble("model-wise", members=members, out=tmp_path / "e")
    write(tmp_path / "b.csv", "image,Edema,Mass\na,.9,.2\nd,.3,.5\na,.1,.1\n")
    for missing in MISSING:  # two values of one image are never averaged
        with pytest.raises(InputError, match="occur more than once: a"):
            ensemble("model-wise", members=members, out=tmp_path / "e", missing=missing)
    with pytest.raises(InputError, match="--missing is error, intersect, average, not 'averag'"):
        ensemble("model-wise", members=members, out=tmp_path / "e", missing="averag")
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("rule", ["model-wise", "class-wise", "guarded"])
def test_images_are_left_out_or_averaged_over_who_has_them(
    members: list[tuple[str, Path, Path]],
    tmp_path: Path,
    rule: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    given: dict[str, Any] = {"members": members, "draws": 20}
    if rule != "model-wise":
        given["labels"] = write(tmp_path / "labels.csv", LABELS)
    out = ensemble(rule, out=tmp_path / "i", missing="intersect", **given)
    assert "test: 2 of 4 images are not in all members, left out: b, c." in caplog.text
    both = rows(out / "scores" / "test.csv")
    assert list(both) == ["a", "d"] and np.isnan(both["d"]).all()  # d was there, and failed in B
    made = json.loads((out / "ensemble.json").read_text())
    count = {"images": 4, "in_all_members": 2, "lacking": {"A": 1, "B": 1}}
    assert made["missing"]["test"] == count and made["made_from"]["missing"] == "intersect"
    assert (out / "scores" / "test.failed.csv").read_text() == "image,reason\nd,no scores of B\n"
    caplog.clear()
    out = ensemble(rule, out=tmp_path / "m", missing="average", **given)
    assert "not in all members, averaged over the members that have them: b, c." in caplog.text
    every = rows(out / "scores" / "test.csv")
    assert every["a"] == both["a"]
    right = {"b": [0.1, 0.4], "c": [0.2, 0.6], "d": [0.3, 0.5]}
    for image, values in right.items():
        assert every[image] == pytest.approx(values)
    with (out / "scores" / "test.members.csv").open() as stream:
        counts = {row["image"]: row["members"] for row in csv.DictReader(stream)}
    assert counts == {"a": "2", "b": "1", "c": "1", "d": "1"}
    assert not (out / "scores" / "test.failed.csv").exists()
    assert json.loads((out / "ensemble.json").read_text())["missing"]["test"] == count
    with pytest.raises(InputError, match="missing: 'average' there, 'intersect' now"):
        ensemble(rule, out=out, missing="intersect", **given)


def test_weights_are_made_to_sum_to_one_over_who_is_there() -> None:
    """Three members, weights 1/2, 1/3, 1/6; a class of which only an absent one has weight."""
    shares = {"A": 1 / 2, "B": 1 / 3, "C": 1 / 6}
    made = ensembles.Ensemble("own", ("A", "B", "C"), {"Edema": shares, "Mass": {"A": 1.0}}, {})

    def one(images: str, edema: float, mass: float) -> Predictions:
        values = np.tile([edema, mass], (len(images), 1))
        return Predictions(("Edema", "Mass"), tuple(images), values)

    side = fill_rows({"A": one("x", 0.9, 0.7), "B": one("xy", 0.6, 0.2), "C": one("yxz", 0.3, 0.4)})
    found = combine(made, side, "average")
    assert found.images == ("x", "y", "z")
    right = [
        [0.9 / 2 + 0.6 / 3 + 0.3 / 6, 0.7],
        [(0.6 / 3 + 0.3 / 6) / (1 / 3 + 1 / 6), (0.2 + 0.4) / 2],
        [0.3, 0.4],
    ]
    np.testing.assert_allclose(found.probabilities, right, rtol=1e-12)
    assert count_members(side).tolist() == [3, 2, 1]
    whole = combine(made, side, "intersect")
    assert whole.images == ("x",) and whole.probabilities[0].tolist() == right[0]


def test_members_are_chosen_on_the_dev_images_that_all_have(
    members: list[tuple[str, Path, Path]], tmp_path: Path
) -> None:
    """On w and x B is wrong and A right, whatever B would have had for v."""
    labels = write(tmp_path / "labels.csv", LABELS)
    write(tmp_path / "b-dev.csv", "image,Edema,Mass\nw,.9,.1\nx,.2,.9\n")
    for missing in ("intersect", "average"):
        out = ensemble(
            "class-wise",
            members=members,
            labels=labels,
            out=tmp_path / missing,
            top_k=1,
            missing=missing,
        )
        made = json.loads((out / "ensemble.json").read_text())
        assert made["weights"] == {"Edema": {"A": 1.0}, "Mass": {"A": 1.0}}
        assert made["dev_ap"]["Edema"] == {"A": 1.0, "B": 0.5}
        assert list(rows(out / "scores" / "dev.csv")) == ["v", "w", "x"][missing == "intersect" :]


def test_ids_join_where_names_differ_and_facts_come_from_who_has_them() -> None:
    a = Predictions(("Edema",), ("x/1.png", "x/2.png"), np.array([[0.2], [0.4]]), ids=("1", "2"))
    b = Predictions(
        ("edema",),
        ("3.dcm", "2.dcm"),
        np.array([[0.8], [0.6]]),
        ids=("3", "2"),
        patients=("p", "q"),
    )
    side = fill_rows({"A": a, "B": b})
    found = combine(ensembles.model_wise(side.scores), side, "average")
    assert found.images == ("x/1.png", "x/2.png", "3.dcm") and found.ids == ("1", "2", "3")
    assert found.patients == ("", "q", "p")
    assert found.probabilities[:, 0] == pytest.approx([0.2, 0.5, 0.8])
    with pytest.raises(InputError, match="no image in common"):
        fill_rows({"A": a, "B": Predictions(("Edema",), ("z",), np.array([[0.1]]))})
    more = Predictions(("Edema", "Mass"), ("x/1.png",), np.array([[0.1, 0.2]]))
    with pytest.raises(InputError, match="classes that the scores lacks: Mass"):
        fill_rows({"A": a, "B": more})


def test_apply_as_typed(
    members: list[tuple[str, Path, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = ensemble("model-wise", members=members, out=tmp_path / "e", missing="average")
    pairs = [(name, test) for name, _, test in members]
    out = tmp_path / "new.csv"
    with pytest.raises(InputError, match="no scores for b"):
        ensemble_apply(made / "ensemble.json", pairs, out=out)
    words = ["ensemble", "apply", str(made / "ensemble.json"), "--missing", "average"]
    for name, test in pairs:
        words += ["--member", name, str(test)]
    app([*words, "--out", str(out)], standalone_mode=False)
    assert capsys.readouterr().out.strip() == str(out)
    assert out.read_bytes() == (made / "scores" / "test.csv").read_bytes()
    # What belongs to the old scores goes aside with them.
    ensemble_apply(made / "ensemble.json", pairs, out=out, missing="intersect", overwrite=True)
    assert not out.with_suffix(".members.csv").exists()
    assert failed(read_scores(out)).tolist() == [False, True]
    write(tmp_path / "b.csv", "image,Edema,Mass\na,.4,.8\nb,.1,.1\nd,.2,.2\n")
    ensemble_apply(made / "ensemble.json", pairs, out=out, overwrite=True)
    assert not out.with_suffix(".failed.csv").exists()
