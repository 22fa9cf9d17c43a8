"""The paper's tables with ours beside them: markdown, CSV and HTML from the same lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lingula.reporting.pages import render_page
from lingula.system.csv_cells import format_csv

Interval = tuple[float, float] | None


@dataclass(frozen=True)
class Line:
    """A row: the paper's figures, ours, and a note.

    Attributes:
        name: the recipe's or ensemble's name.
        design: what it consists of, one text per column of the paper's table.
        parent: the row that it differs from in one thing, or empty.
        paper: the paper's mAP, and `paper_gain` over its parent.
        dev: our mAP on dev, the mean over seeds; None if it was not run.
        test: our mAP on test, the mean over seeds, and `spread`: their standard deviation.
        alone: test mAP minus the parent's of the same seed: mean and deviation over seeds.
        gain: test mAP minus the parent's, on scores averaged over seeds, and its interval.
        tail: test mAP over the tail classes; `tail_gain` over the first row, with its interval.
        seconds: the time of all its trainings; 0 if it shares another row's.
        note: why it was not run, or which parts were replaced by others.
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
        comparable: whether ours are of the paper's data at the paper's scale; if not, the paper's
            absolute figures are in a table of their own.
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


def _rows(ladder: Ladder) -> list[list[str]]:
    """The table as texts; the first row is its head."""
    paper = ["paper mAP"] if ladder.comparable else []
    ours = ["dev mAP", "test mAP", "sd over seeds", "gain over parent, per training (sd)"]
    ours += ["gain over parent, seeds averaged (95 %)", "the paper's gain"]
    tail = ["tail mAP", "tail gain over the first row (95 %)", "seconds", "note"]
    head = ["row", *ladder.columns, "parent", *paper, *ours, *tail]
    return [head, *(_cells(ladder, line) for line in ladder.lines)]


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


_APART = "The paper's own figures, on MIMIC-CXR, which can't be compared with those above"


def to_markdown(ladder: Ladder) -> str:
    """The table as markdown."""
    text = [f"## {ladder.title}", "", *_markdown(_rows(ladder)), ""]
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
    return format_csv(["row", *ladder.columns, "parent", *figures], rows)


def to_html(ladder: Ladder) -> str:
    """The table as one page that needs nothing else."""
    paper = [] if ladder.comparable else _paper_table(ladder)
    return render_page("ladder.html", ladder=ladder, rows=_rows(ladder), paper=paper, apart=_APART)
