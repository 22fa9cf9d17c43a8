"""The report as one HTML page that needs nothing from outside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lingula
from lingula.reporting.document import templates
from lingula.scoring.attention import Rate


@dataclass(frozen=True)
class Guess:
    """One class of one image: its score, whether it is true (None: unknown), and its picture.

    `validity` says how often maps of this class point at it, or that it was not measured.
    """

    name: str
    score: float
    present: bool | None
    picture: str | None = None
    validity: str = ""


@dataclass(frozen=True)
class Sample:
    """One image of the sheet: the film, what is true of it, and the model's highest scores."""

    image: str
    film: str
    labels: tuple[str, ...]
    guesses: tuple[Guess, ...]


@dataclass(frozen=True)
class Entry:
    """One run or ensemble of the report.

    `result` is an evaluation in the shape of `lingula evaluate --json`, of `split`; `facts` are
    (name, value) lines of what was trained on what; `settings` is the YAML.
    """

    name: str
    kind: str
    split: str
    result: Mapping[str, Any]
    facts: Sequence[tuple[str, str]]
    settings: str = ""


@dataclass(frozen=True)
class Page:
    """Everything that the page shows. The first entry is the one shown in detail."""

    title: str
    entries: Sequence[Entry]
    history: str = ""
    curves: str = ""
    samples: Sequence[Sample] = ()
    boxes_shown: bool = False
    phantom: bool = False
    reliability: str = ""
    hits: Sequence[tuple[str, Rate]] = ()


def render(page: Page) -> str:
    """The page as HTML."""
    environment = templates()
    environment.filters |= {"number": number, "percent": percent, "span": span}
    main = page.entries[0]
    return environment.get_template("report.html").render(
        page=page,
        main=main,
        rows=class_rows(main.result),
        mean_prevalence=mean_prevalence(main.result),
        to_fill_in=TO_FILL_IN,
        notice=lingula.NOTICE,
        version=lingula.__version__,
    )


# What no run can know of itself, and a model card needs.
TO_FILL_IN = (
    "What it is meant for, and what it must not be used for",
    "Whose films these are: hospitals, years, devices, how patients came to be filmed",
    "Who labelled them, how, and how often the labels are wrong",
    "Who may use the data and the model, under which terms and approvals",
    "Where it fails: films of children, of other views, after surgery, of poor quality",
    "Who is responsible for it, and how to reach them",
)


def class_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The classes as table rows, defined ones first, by falling prevalence."""
    rows = [
        {
            "name": name,
            "group": next((g for g, v in result["groups"].items() if name in v["classes"]), ""),
            "lift": value["AP"] / value["prevalence"]
            if value["AP"] and value["prevalence"]
            else None,
            **value,
        }
        for name, value in result["classes"].items()
    ]
    return sorted(rows, key=lambda row: (row["AP"] is None, -(row["prevalence"] or 0)))


def mean_prevalence(result: Mapping[str, Any]) -> float | None:
    """Mean prevalence of the classes that have an AP: the mAP of a model that knows nothing."""
    shares = [v["prevalence"] for v in result["classes"].values() if v["AP"] is not None]
    return sum(shares) / len(shares) if shares else None


def number(value: float | None, digits: int = 3) -> str:
    """A number with fixed digits, or a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """A share as per cent with sensible digits, or a dash."""
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" if value >= 0.01 else f"{100 * value:.2f} %"


def span(interval: Sequence[float | None] | None) -> str:
    """An interval as `0.61 to 0.74`, or nothing."""
    if not interval or interval[0] is None or interval[1] is None:
        return ""
    return f"{interval[0]:.2f} to {interval[1]:.2f}"
