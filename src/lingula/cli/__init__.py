"""The command line: each command parses its arguments and calls the verb of the same name.

Only the verb that runs is imported, so `--help` and wrong arguments answer at once.
"""

from __future__ import annotations

import logging
import sys
from typing import Annotated, NoReturn

import typer

import lingula
from lingula.cli import bench, data, ensemble, models, scores
from lingula.errors import InputError

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
) -> None:
    """Shared options."""


def _log_to_terminal() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("lingula")
    log.addHandler(handler)
    log.setLevel(logging.INFO)


def _leave_together() -> None:
    """Let processes that torchrun started end at once: one that is left behind is aborted."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def main() -> NoReturn:
    """Run the command line and exit with its status (0 done, 2 wrong input, 3 partly)."""
    _log_to_terminal()
    try:
        app(ensemble.folded(sys.argv[1:]))
    except SystemExit as ended:
        if ended.code in (None, 0, 3):
            _leave_together()
        raise
    except InputError as error:
        sys.stderr.write(f"lingula: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("lingula: interrupted; the same line again continues.\n")
        sys.exit(130)
    sys.exit(0)
