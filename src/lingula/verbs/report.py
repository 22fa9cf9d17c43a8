"""`lingula report`: one HTML page about one or more runs or ensembles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lingula.reporting.report import render_report
from lingula.system import files
from lingula.system.errors import InputError
from lingula.training.run_labels import labels_of, warn_of_changed_runs, warn_of_other_formats


def report(
    runs: Sequence[str | Path], *, out: str | Path, labels: str | Path | None = None
) -> Path:
    """Write the page; the last folder named is the one shown in detail.

    Args:
        runs: run folders, and ensemble folders made by `lingula ensemble`.
        out: the .html file; it needs nothing else to be read.
        labels: the table where it lies now, or another one in its place; None: the runs' own.
    """
    folders = list(dict.fromkeys(Path(run) for run in runs))
    if not folders:
        raise InputError("Name at least one run folder.")
    files.check_suffix(Path(out), (".html", ".htm"), "a report")
    trained = [folder for folder in folders if (folder / "config.yaml").is_file()]
    known = {folder: labels_of(folder, trained, labels) for folder in (folders[-1], *folders[:-1])}
    warn_of_changed_runs(known.items())
    warn_of_other_formats(run / "scores" / "dev.csv" for run in trained)
    files.write_text(out, render_report(folders, known))
    return Path(out)
