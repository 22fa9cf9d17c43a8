"""The table that a training gets: leaks are refused, and what can't be learned or measured is named."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from lingula.settings.config import Config, vary
from lingula.settings.recipes import recipe
from lingula.system.errors import InputError
from lingula.tables.checking import check
from lingula.tables.configured import prepared_table


def config_of(folder: Path, text: str, **more: object) -> Config:
    (folder / "t.csv").write_text("\n".join(text.split()) + "\n")
    return vary(recipe("smoke"), data__table=str(folder / "t.csv"), **more)


# Cases 55, 57 and 63: what is one patient or study stands in one split, however it is written.


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("image,study,split,Edema a,s1,train,1 b,s1,dev,0", r"study s1 \(train, dev\)"),
        ("image,patient,split,Edema a,1,train,1 b,2,dev,0 c,1.0,test,0", r"1 \(train, test\)"),
        ("image,patient,study,split,Edema a,1,x,train,1 b,,x,dev,0", r"1 \(train, dev\)"),
        ("image,patient,split,Edema a,p77,train,1 b,77,dev,0", r"p77 = 77 \(train, dev\)"),
    ],
)
def test_a_leak_is_an_error_of_training_and_a_problem_of_the_check(
    tmp_path: Path, text: str, named: str
) -> None:
    config = config_of(tmp_path, text)
    with pytest.raises(InputError, match=f"in more than one split.*{named}"):
        prepared_table(config)
    report = check(tmp_path / "t.csv", images=False)
    assert len(report.problems) == 1 and not report.fit


def test_ids_spelled_twice_in_one_split_are_a_problem_of_the_check_alone(tmp_path: Path) -> None:
    config = config_of(tmp_path, "image,patient,split,Edema a,p77,train,1 b,77,train,0 c,3,dev,1")
    prepared_table(config)
    found = check(tmp_path / "t.csv", images=False).problems
    assert [fault.what for fault in found] == ["patients whose ids are spelled in two ways"]
    assert found[0].examples == ("p77 = 77",)


# Case 64


def test_a_class_without_positives_in_a_split_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [f"{p},p{p},{int(p < 2)},{int(p < 2 or p % 2)}" for p in range(30)]
    config = config_of(tmp_path, "image,patient,Hernia,Edema " + " ".join(rows))
    with caplog.at_level(logging.INFO, "lingula"):
        table, split_made = prepared_table(config)
    assert split_made
    has = {s for s, row in zip(table.splits or (), table.labels, strict=True) if row[0] == 1}
    lines = [line for line in caplog.messages if line.startswith("No positives in ")]
    assert len(lines) == 1 and lines[0].endswith("of: Hernia.")
    assert {lines[0].split()[3].strip(",")} == {"train", "dev", "test"} - has
    assert "(70 % train, 10 % dev, 20 % test)" in caplog.text and "%%" not in caplog.text
