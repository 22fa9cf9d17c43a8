"""The command line: each command parses its arguments and calls the verb of the same name.

Only the verb that runs is imported, so `--help` and wrong arguments answer at once.
"""

from __future__ import annotations

import logging
import sys
import traceback
from typing import Annotated, NoReturn

import typer

import lingula
from lingula.cli import bench, data, ensemble, models, paper, scores
from lingula.system import files, signals
from lingula.system.errors import InputError, StoppedError

app = typer.Typer(
    name="lingula",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Classify chest radiographs: train, predict, ensemble, evaluate, explain. "
    + lingula.NOTICE,
)
app.add_typer(models.app)
app.add_typer(paper.app)
app.add_typer(scores.app)
app.add_typer(data.app, name="data")
app.add_typer(ensemble.app, name="ensemble")
app.add_typer(bench.app, name="bench")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lingula {lingula.__version__}. {lingula.NOTICE}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error came from, too.")
    ] = False,
) -> None:
    """Shared options."""


def _log_to_terminal() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("lingula")
    log.addHandler(handler)
    log.setLevel(logging.INFO)


def _leave_together() -> None:
    """Let the processes of a job end at once: one that is left behind is aborted."""
    meeting = sys.modules.get("lingula.system.meeting")  # imports torch, which few commands do
    if meeting is not None and meeting.is_met():
        meeting.dist.barrier()
        meeting.leave()


def _is_about_a_peer(error: RuntimeError) -> bool:
    meeting = sys.modules.get("lingula.system.meeting")
    return meeting is not None and meeting.is_about_a_peer(error)


def _leave(message: str, status: int, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    sys.stderr.write(f"lingula: {message}\n")
    sys.exit(status)


def main() -> NoReturn:
    """Run the command line and exit with its status.

    0 done, 1 failed, 2 wrong input, 3 partly done, 130 or 143 asked to stop (the same line again
    continues). `--debug` may stand anywhere, so it is taken out here.
    """
    _log_to_terminal()
    signals.stop_at_once()
    words = [word for word in sys.argv[1:] if word != "--debug"]
    debug = len(words) < len(sys.argv) - 1
    try:
        app(ensemble.folded(words))
    except SystemExit as ended:
        if ended.code in (None, 0, 3):
            _leave_together()
        raise
    except InputError as error:
        _leave(str(error), 2, debug)
    except StoppedError as error:
        _leave(str(error), 1, debug)
    except RuntimeError as error:
        if not _is_about_a_peer(error):
            raise
        _leave(
            "another process of this job has ended, so this one can't go on; that one's message "
            "says why. The same line again continues.",
            1,
            debug,
        )
    except signals.Interrupted as asked:
        _leave(f"stopped by {asked}; the same line again continues.", asked.status, debug)
    except OSError as error:
        if not files.about_the_disk(error):
            raise
        where = "" if error.filename is None else f"{error.filename}: "
        _leave(
            f"{where}{error.strerror}. What was finished is kept. Make room, or mend the disk or "
            "its permissions, and give the same line again.",
            1,
            debug,
        )
    sys.exit(0)
