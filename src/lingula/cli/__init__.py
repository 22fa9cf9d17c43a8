"""The command line: `lingula data check` calls `lingula.data_check`, and so on for every verb.

Only the verb that runs is imported, so `--help` and wrong arguments answer at once.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NoReturn

import click

import lingula
from lingula.cli.results import EXTRA, SEVERAL_FORMS, run
from lingula.cli.signatures import command_of, read_verb
from lingula.system import files, signals
from lingula.system.errors import InputError, StoppedError

GROUPS = {
    "data": "Make and check tables of images and labels.",
    "ensemble": "Combine the scores of several models.",
    "bench": "Measure how fast this machine is.",
}
FIRST_STEPS = f"""lingula classifies chest radiographs. {lingula.NOTICE}

First steps:
  lingula demo                                  see everything work, in minutes and without data
  lingula start labels.csv --out runs/mine      your own table: a model and a report in an hour
  lingula data check labels.csv                 only find the table's faults
  lingula reproduce table1 --scale tiny --out runs/paper       the paper's rows, on drawn images

`lingula --help` lists all commands, and `lingula COMMAND --help` explains one."""
# Verbs that are an option of another command: `calibrate --apply`, `data cache --join`, `--verify`.
WITHIN_OTHERS = {"apply_calibration", "data_cache_join", "data_cache_verify"}
# The rules of an ensemble, and the parameters that a rule does not use.
RULES = {
    "model-wise": ("top_k", "seed", "draws"),
    "class-wise": ("seed", "draws"),
    "guarded": ("top_k",),
}


class _Group(click.Group):
    """Commands that are made when they are needed, by their names."""

    def __init__(self, makers: Mapping[str, Callable[[], click.Command]], **about: Any) -> None:
        super().__init__(no_args_is_help=True, **about)
        self.makers = makers

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names, in the order in which they were given."""
        return list(self.makers)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name; None if there is none."""
        return self.makers[cmd_name]() if cmd_name in self.makers else None


def _command(verb: str, name: str) -> click.Command:
    optional = verb in SEVERAL_FORMS
    extra = EXTRA.get(verb, ())
    return command_of(name, read_verb(verb), partial(run, verb), extra, all_optional=optional)


def _rule(rule: str) -> click.Command:
    """`lingula ensemble RULE`: the verb with this rule, and the options that the rule uses."""
    verb = read_verb("ensemble")
    without = ("rule", *RULES[rule])
    return command_of(
        rule, verb, lambda given: run("ensemble", {"rule": rule, **given}), (), without
    )


def _commands() -> dict[str, Callable[[], click.Command]]:
    grouped: dict[str, dict[str, Callable[[], click.Command]]] = {name: {} for name in GROUPS}
    grouped["ensemble"] = {rule: partial(_rule, rule) for rule in RULES}
    commands: dict[str, Callable[[], click.Command]] = {}
    for verb in lingula.MODULES:
        group, _, rest = verb.partition("_")
        if verb in WITHIN_OTHERS:
            continue
        if group not in GROUPS:
            commands[verb] = partial(_command, verb, verb)
            continue
        if rest:
            name = rest.replace("_", "-")
            grouped[group][name] = partial(_command, verb, name)
        commands.setdefault(group, partial(_Group, grouped[group], name=group, help=GROUPS[group]))
    return commands


app = _Group(
    _commands(),
    name="lingula",
    help="Classify chest radiographs: train, predict, ensemble, evaluate, explain. "
    + lingula.NOTICE,
    params=[
        click.Option(["--debug"], is_flag=True, help="Show where an error came from, too."),
    ],
    callback=lambda debug: None,
)
click.version_option(
    lingula.__version__, prog_name="lingula", message=f"%(prog)s %(version)s. {lingula.NOTICE}"
)(app)


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
        if not words:
            click.echo(FIRST_STEPS)
            sys.exit(0)
        app(words, prog_name="lingula")
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
        if not files.is_about_the_disk(error):
            raise
        where = "" if error.filename is None else f"{error.filename}: "
        _leave(
            f"{where}{error.strerror}. What was finished is kept. Make room, or mend the disk or "
            "its permissions, and give the same line again.",
            1,
            debug,
        )
    sys.exit(0)
