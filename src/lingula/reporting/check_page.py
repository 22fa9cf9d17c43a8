"""The page of `lingula data check`: the facts of a table and its faults, with films."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from lingula.reporting.document import document, films, paragraph, table

_PAIRS = 15


def render(
    checked: Mapping[str, Any], pictures: Mapping[str, Sequence[tuple[str, str]]], notice: str
) -> str:
    """The page.

    Args:
        checked: a check as plain values (`data.checking.to_json`).
        pictures: films to show under a fault, by the fault's name: source and caption.
        notice: for the foot of the page.
    """
    facts = checked["facts"]
    verdict = (
        '<p class="good">Fit to train on.</p>'
        if checked["fit"]
        else '<p class="bad">Not fit to train on: mend the problems.</p>'
    )
    body = verdict + paragraph(_sizes(facts))
    for title, key in (("Problems", "problems"), ("To know of", "warnings")):
        if checked[key]:
            body += f"<h2>{title}</h2>" + "".join(_fault(f, pictures) for f in checked[key])
    if "positives" in facts:
        body += "<h2>Positives by class</h2>" + table(_counts(facts))
        body += "<h2>What occurs together</h2>" + paragraph(
            f"The {_PAIRS} commonest pairs of findings, by images that have both."
        )
        body += table(_pairs(facts))
    if pictures.get(""):
        body += "<h2>A sheet of its films</h2>" + films(pictures[""])
    return document(f"Check of {checked['table']}", body, notice)


def _sizes(facts: Mapping[str, Any]) -> str:
    if "splits" not in facts:
        return f"{facts.get('images', 0)} images."
    shown = ", ".join(f"{n} {split}" for split, n in facts["splits"].items()) or "no split"
    patients = "unknown" if facts["patients"] is None else facts["patients"]
    sources = ", ".join(f"{name} {n}" for name, n in facts["sources"].items())
    return (
        f"{facts['images']} images of {patients} patients: {shown}. "
        f"Cells: {facts['uncertain_cells']} uncertain, {facts['blank_cells']} blank (meaning "
        f"{facts['blank_means']}), {facts['unmentioned_cells']} of classes unknown to their source."
        + (f" Sources: {sources}." if sources else "")
    )


def _fault(fault: Mapping[str, Any], pictures: Mapping[str, Sequence[tuple[str, str]]]) -> str:
    shown = pictures.get(fault["what"], ())
    what, message = html.escape(fault["what"]), html.escape(fault["message"])
    return f"<p><b>{what}</b> ({fault['count']})<br>{message}</p>" + (films(shown) if shown else "")


def _counts(facts: Mapping[str, Any]) -> list[list[str]]:
    group_of = {name: group for group, names in facts["groups"].items() for name in names}
    splits = [*facts["splits"], "all"]
    rows = [["class", "group", *splits, "share of all"]]
    for name, found in facts["positives"].items():
        share = found["all"] / max(1, facts["images"])
        cells = [str(found[split]) for split in splits]
        rows.append([name, group_of.get(name, ""), *cells, f"{100 * share:.2f} %"])
    return rows


def _pairs(facts: Mapping[str, Any]) -> list[list[str]]:
    rows = [["finding", "with", "images", "share of the rarer one's"]]
    for pair in facts["together"][:_PAIRS]:
        rarer = min(facts["positives"][name]["all"] for name in pair["classes"])
        share = f"{100 * pair['images'] / max(1, rarer):.0f} %"
        rows.append([*pair["classes"], str(pair["images"]), share])
    return rows
