"""The paper's tables with ours beside them: markdown, CSV and HTML from the same lines."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from lingula.reporting.document import document, paragraph, table
from lingula.system.csv_cells import plain_csv

Interval = tuple[float, float] | None


@dataclass(frozen=True)
class Line:
    """A row: the paper's figures, ours, and what is to be said about it.

    Attributes:
        name: the recipe's or ensemble's name.
        design: what it consists of, one text a column of the paper's table.
        parent: the row that it changes one thing of, or empty.
        paper: the paper's mAP, and `paper_gain` over its parent.
        dev: our mAP on dev, the mean over seeds; None where it was not run.
        test: our mAP on test, the mean over seeds, and `spread`: their standard deviation.
        alone: test mAP minus the parent's of the same seed: mean and deviation over seeds.
        gain: test mAP minus the parent's, on scores averaged over seeds, and its interval.
        tail: test mAP over the tail classes; `tail_gain` over the first row, with its interval.
        seconds: what its trainings took, together; 0 where it shares one.
        note: why it was not run, or what stood in for what.
    """

    name: str
    design: tuple[str, ...]
    parent: str
    paper: float
    paper_gain: float | None = None
    dev: float | None = None
    test: float | None = None
    spread: float | None = None
    alone: tuple[float, float] | None = None
    gain: float | None = None
    gain_ci: Interval = None
    tail: float | None = None
    tail_gain: float | None = None
    tail_ci: Interval = None
    seconds: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Ladder:
    """A table to write.

    Attributes:
        title: what it reproduces.
        columns: names of the design columns.
        lines: its rows.
        comparable: whether the paper's absolute figures may stand beside ours: they are of another
            data set where ours are of the phantom, and then stand in a table of their own.
        facts: sentences below the table.
    """

    title: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    comparable: bool
    facts: tuple[str, ...]


def _number(value: float | None, digits: int = 4, sign: bool = False) -> str:
    if value is None:
        return ""
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def _with_interval(value: float | None, ci: Interval) -> str:
    if value is None:
        return ""
    around = "" if ci is None else f" ({ci[0]:+.4f} to {ci[1]:+.4f})"
    return _number(value, sign=True) + around


def _head(ladder: Ladder) -> list[str]:
    paper = ["paper mAP"] if ladder.comparable else []
    ours = ["dev mAP", "test mAP", "sd over seeds", "gain, same seed (sd)"]
    ours += ["gain, averaged seeds (95 %)", "the paper's gain"]
    tail = ["tail mAP", "tail gain over the first row (95 %)", "seconds", "note"]
    return ["row", *ladder.columns, "parent", *paper, *ours, *tail]


def _cells(ladder: Ladder, line: Line) -> list[str]:
    paper = [_number(line.paper)] if ladder.comparable else []
    return [
        line.name,
        *line.design,
        line.parent,
        *paper,
        _number(line.dev),
        _number(line.test),
        _number(line.spread),
        "" if line.alone is None else f"{line.alone[0]:+.4f} ({line.alone[1]:.4f})",
        _with_interval(line.gain, line.gain_ci),
        _number(line.paper_gain, sign=True),
        _number(line.tail),
        _with_interval(line.tail_gain, line.tail_ci),
        "" if line.seconds is None else f"{line.seconds:.0f}",
        line.note,
    ]


def _paper_table(ladder: Ladder) -> list[list[str]]:
    return [["row", "the paper's mAP"], *([x.name, _number(x.paper)] for x in ladder.lines)]


_APART = "The paper's own figures, on MIMIC-CXR; not to be compared with those above"


def to_markdown(ladder: Ladder) -> str:
    """The table as markdown."""
    rows = [_head(ladder), *(_cells(ladder, line) for line in ladder.lines)]
    text = [f"## {ladder.title}", "", *_markdown(rows), ""]
    if not ladder.comparable:
        text += [f"{_APART}:", "", *_markdown(_paper_table(ladder)), ""]
    return "\n".join([*text, *(f"- {fact}" for fact in ladder.facts)]) + "\n"


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def to_csv(ladder: Ladder) -> str:
    """The table as CSV, with plain numbers and intervals in columns of their own."""
    figures = ["paper_mAP", "paper_gain", "dev_mAP", "test_mAP", "sd", "gain_alone"]
    figures += ["gain_alone_sd", "gain", "gain_low", "gain_high"]
    figures += ["tail_mAP", "tail_gain", "tail_low", "tail_high", "seconds", "note"]
    rows: list[list[object]] = []
    for x in ladder.lines:
        alone, gain, tail = (pair or (None, None) for pair in (x.alone, x.gain_ci, x.tail_ci))
        ours = [x.dev, x.test, x.spread, *alone, x.gain, *gain]
        ours += [x.tail, x.tail_gain, *tail, x.seconds]
        rows.append([x.name, *x.design, x.parent, x.paper, x.paper_gain, *ours, x.note])
    return plain_csv(["row", *ladder.columns, "parent", *figures], rows)


def to_html(ladder: Ladder, notice: str) -> str:
    """The table as one page that needs nothing else; `notice` stands at its foot."""
    rows = [_head(ladder), *(_cells(ladder, line) for line in ladder.lines)]
    body = table(rows)
    if not ladder.comparable:
        body += paragraph(f"{_APART}:") + table(_paper_table(ladder))
    facts = "".join(f"<li>{html.escape(fact)}</li>" for fact in ladder.facts)
    return document(ladder.title, f"{body}<ul>{facts}</ul>", notice)
