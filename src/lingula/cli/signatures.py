"""From a verb's source to a click command: its parameters are the options, its docstring the help.

The source is read and not imported, so that `--help` and wrong arguments answer at once.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.util
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click

import lingula
from lingula.system.errors import InputError

# Options that are not called as their parameter, and parameters that are no options.
OPTION = {
    "draws": "ci",
    "image_size": "size",
    "map_file": "map",
    "mapping": "map",
    "members": "member",
    "settings": "set",
    "stand_ins": "stand-in",
    "texts": "text",
    "thresholds": "threshold",
}
# What an option is where its verb's docstring does not say.
HELP = {
    "folder": "the folder",
    "ignore_columns": "a column that is neither an id nor a class; repeatable",
    "labeler": "whose labels; default: CheXpert's",
    "labels": "a label file, or a folder of them; repeatable; default: ROOT",
    "name": "print this one as YAML",
    "out": "the table to write, .csv or .parquet",
    "overwrite": "rename what is in the way",
    "readers": "how several readers become one",
    "root": "the folder of the data set",
    "rounds": "how often each part is timed",
    "size": "pixels a side",
    "soft": "label cells may be probabilities",
    "table": "the table: .csv, .tsv, .parquet or .xlsx",
    "where": "a condition, such as \"view in ('PA', 'AP') and age >= 18\"",
}
OWN_NAME = {("bench_metrics", "draws")}
PYTHON_ONLY = {("bench_train", "steps"), ("bench_metrics", "repeats"), ("data_phantom", "shares")}
MAY_BE_ZERO = ("seed", "ci", "workers")


@dataclass(frozen=True)
class Parameter:
    """One parameter of a verb, as its source has it.

    Attributes:
        name: in Python.
        types: the parts of its annotation without None, such as `("str", "Path")`.
        default: its source text, or None if it must be given.
        positional: whether it is an argument, which comes without its name.
        help: its entry in the docstring.
    """

    name: str
    types: tuple[str, ...]
    default: str | None
    positional: bool
    help: str

    @property
    def item(self) -> str | None:
        """The type of one item, where the parameter is a sequence."""
        return next((t[9:-1] for t in self.types if t.startswith("Sequence[")), None)


@dataclass(frozen=True)
class Verb:
    """A verb's name in Python, its docstring without the sections, and its parameters."""

    name: str
    text: str
    parameters: tuple[Parameter, ...]


def read_verb(name: str) -> Verb:
    """Read a verb of the package from its source.

    A `**more: Unpack[More]` stands for the keys of `More`, a TypedDict of the same file, which are
    false by default or, as `images`, true.
    """
    spec = importlib.util.find_spec(f"lingula.{lingula.MODULES[name]}")
    assert spec is not None and isinstance(spec.loader, importlib.abc.InspectLoader)
    tree = ast.parse(spec.loader.get_source(spec.name) or "")
    defined = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    function = defined[name]
    assert isinstance(function, ast.FunctionDef)
    text, entries = _docstring(function)
    a = function.args
    required: list[ast.expr | None] = [None] * (len(a.args) - len(a.defaults))
    positional = zip(a.args, [*required, *a.defaults], strict=True)
    named = zip(a.kwonlyargs, a.kw_defaults, strict=True)
    parameters = [_parameter(argument, default, True, entries) for argument, default in positional]
    parameters += [_parameter(argument, default, False, entries) for argument, default in named]
    if a.kwarg is not None:
        more = defined[ast.unparse(a.kwarg.annotation or a.kwarg)[len("Unpack[") : -1]]
        _, entries = _docstring(more)
        for key in (node for node in more.body if isinstance(node, ast.AnnAssign)):
            argument = ast.arg(ast.unparse(key.target), key.annotation)
            default = ast.Constant(argument.arg == "images")
            parameters.append(_parameter(argument, default, False, entries))
    return Verb(name, text, tuple(parameters))


def _parameter(
    argument: ast.arg, default: ast.expr | None, positional: bool, entries: dict[str, str]
) -> Parameter:
    name = argument.arg
    optional_in_python = name in ("out", "data") and default is not None
    return Parameter(
        name,
        _types(argument.annotation),
        None if default is None else ast.unparse(default),
        positional and name != "members" and not optional_in_python,
        entries.get(name, HELP.get(name, "")),
    )


def _types(annotation: ast.expr | None) -> tuple[str, ...]:
    """The parts of `A | B | None`, without None."""
    if isinstance(annotation, ast.BinOp):
        return _types(annotation.left) + _types(annotation.right)
    text = ast.unparse(annotation) if annotation is not None else ""
    return () if text == "None" else (text,)


def _docstring(node: ast.FunctionDef | ast.ClassDef) -> tuple[str, dict[str, str]]:
    """A docstring's paragraphs, and its entries under `Args:` or `Attributes:` by name."""
    text = inspect.cleandoc(ast.get_docstring(node) or "").replace("`", "")
    head, *sections = re.split(r"^(Args|Attributes|Returns|Raises):\n", text, flags=re.MULTILINE)
    entries: dict[str, str] = {}
    for title, body in zip(sections[::2], sections[1::2], strict=True):
        if title in ("Args", "Attributes"):
            for key, said in re.findall(r"^    (\w+): (.*(?:\n     .*)*)", body, re.MULTILINE):
                entries[key] = " ".join(said.split())
    return head.strip(), entries


def command_of(
    name: str,
    verb: Verb,
    run: Callable[[dict[str, Any]], None],
    extra: Sequence[click.Parameter] = (),
    without: Sequence[str] = (),
    all_optional: bool = False,
) -> click.Command:
    """The command of a verb.

    Args:
        name: the command's own name.
        verb: what was read.
        run: called with the values that were given on the command line, and no defaults.
        extra: options that are no parameter of the verb.
        without: parameters that the command does not have.
        all_optional: whether nothing is required here, since `run` checks what must be given.
    """
    shown = [
        p
        for p in verb.parameters
        if (verb.name, p.name) not in PYTHON_ONLY and p.name not in without
    ]
    repeated = {p.name for p in shown if p.item is not None}
    about = [f"  {p.name.upper()}: {p.help}" for p in shown if p.positional and p.help]

    def call(**values: Any) -> None:
        context = click.get_current_context()
        typed = click.core.ParameterSource.COMMANDLINE
        given = {k: v for k, v in values.items() if context.get_parameter_source(k) == typed}
        run({k: list(v) if k in repeated else v for k, v in given.items()})

    return click.Command(
        name,
        callback=call,
        params=[*(_declared(verb, p, all_optional) for p in shown), *extra],
        help="\n\n".join([verb.text, *about]),
        short_help=verb.text.partition("\n")[0],
    )


def _declared(verb: Verb, p: Parameter, all_optional: bool) -> click.Parameter:
    """The click argument or option of a parameter."""
    required = p.default is None and not all_optional
    if p.positional:
        many = p.item is not None
        metavar = (p.name.upper() if required else f"[{p.name.upper()}]") + "..." * many
        nargs = -1 if many else 1
        return click.Argument([p.name], required=required, nargs=nargs, metavar=metavar)
    own = p.name.replace("_", "-")
    option = own if (verb.name, p.name) in OWN_NAME else OPTION.get(p.name, own)
    if p.types == ("bool",) and p.default == "True":
        option += f"/--no-{option}"
    help_text = p.help[:1].upper() + p.help[1:]
    if p.item is not None and p.item != "int" and "repeatable" not in help_text:
        help_text = f"{help_text.rstrip('.')}. Repeatable."
    if p.default is not None and re.fullmatch(r"\d.*|'.+'|\(\d.*\)|\('.*\)", p.default):
        help_text += f" [default: {p.default.strip('()').replace(chr(39), '').rstrip(',')}]"
    return click.Option([f"--{option}", p.name], required=required, help=help_text, **_kind(p))


def _kind(p: Parameter) -> dict[str, Any]:
    """How click reads an option: its type, whether it repeats, how many words it takes."""
    types, item = p.types, p.item
    words = [w for t in types if t.startswith("Literal[") for w in re.findall(r"'(.+?)'", t)]
    if types == ("bool",):
        return {"is_flag": True}
    if words:
        return {"type": _WholeNumber(1, words[0]) if "int" in types else click.Choice(words)}
    if item is not None and item.startswith("tuple["):
        names = ("NAME", "DEV", "TEST") if item.count("Path") == 2 else ("NAME", "SCORES")
        metavar, type_ = " ".join(names), _NoOption()
        return {"multiple": True, "nargs": len(names), "metavar": metavar, "type": type_}
    if types == ("str", "Sequence[str]"):
        return {"callback": _names}
    if item is not None:
        numbers = {"callback": _whole_numbers, "metavar": "N,N,..."} if item == "int" else {}
        return {"multiple": True, "metavar": "PATH" if "Path" in item else "TEXT", **numbers}
    if types[0].startswith("Mapping["):
        return {"multiple": True, "callback": _folders, "metavar": "NAME=FOLDER"}
    if types[0].startswith("tuple["):
        return {"type": float, "nargs": types[0].count("float")}
    if types == ("int",):
        return {"type": _WholeNumber(0 if p.name in MAY_BE_ZERO else 1)}
    if types == ("float",):
        return {"type": float, "metavar": "X"}
    return {"metavar": "PATH" if "Path" in types else "TEXT"}


class _NoOption(click.ParamType[str]):
    """One of several words of an option, which can't be the next option's name."""

    name = "word"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        """The word as it is."""
        if str(value).startswith("--"):
            self.fail(f"it takes {param.metavar}, and {value} is the next option.", param, ctx)
        return str(value)


class _WholeNumber(click.ParamType[int | str]):
    """A whole number of at least `least`, or a word that stands for one."""

    def __init__(self, least: int, word: str | None = None) -> None:
        self.least, self.word, self.name = least, word, f"N|{word}" if word else "N"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """How help shows the value."""
        return self.name

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """The number, or the word as it is."""
        if value == self.word:
            return value
        if not str(value).isdecimal() or int(value) < self.least:
            either = f"neither {self.word} nor" if self.word else "not"
            self.fail(f"{value!r} is {either} a whole number of at least {self.least}.")
        return int(value)


def _names(_: click.Context, __: click.Parameter, text: str | None) -> Any:
    """A name of a label space, or a list of classes; `["a, b"]` has one with a comma in it."""
    if text is not None and text.strip().startswith("["):
        from lingula.settings.values import parse_texts

        return parse_texts(text.strip())
    if text is None or "," not in text:
        return text
    return [name.strip() for name in text.split(",") if name.strip()]


def _whole_numbers(_: click.Context, option: click.Parameter, given: Sequence[str]) -> list[int]:
    words = [word for text in given for word in text.split(",") if word.strip()]
    try:
        return [int(word) for word in words]
    except ValueError:
        raise InputError(
            f"{option.opts[0]} takes whole numbers such as 18,40,65, not {', '.join(given)}."
        ) from None


def _folders(_: click.Context, option: click.Parameter, given: Sequence[str]) -> dict[str, str]:
    """`NAME=FOLDER` words as a mapping."""
    pairs = [word.partition("=") for word in given]
    names = [name for name, _, _ in pairs]
    if any(not folder for _, _, folder in pairs):
        raise InputError(f"{option.opts[0]} takes NAME=FOLDER, such as clinical-t5=my/t5.")
    if len(set(names)) < len(names):
        raise InputError(f"{option.opts[0]} is given twice for one name: {', '.join(names)}.")
    return {name: folder for name, _, folder in pairs}
