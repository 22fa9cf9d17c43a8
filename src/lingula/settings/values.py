"""A setting's value from the text after `key=`: its type is that of the setting; and YAML files.

YAML makes a number of `2024`, a mapping of `a: b` and a comment of ` #2`, all of which may be names
of folders.
"""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from lingula.system.errors import InputError
from lingula.system.files import not_a_file


def parse_value(key: str, text: str, annotation: Any) -> Any:
    """The value of a setting, as pydantic takes it.

    Text is taken literally; `null` is none where a setting may be none; `[a, "b, c"]` is a list
    where it may be a list of texts; everything else is read as YAML.

    Args:
        key: the setting, for messages.
        text: what follows `key=`.
        annotation: the setting's type.

    Raises:
        InputError: a text that is empty, or what is no YAML.
    """
    kinds = _kinds(annotation)
    if text in ("null", "") and type(None) in kinds:
        return None
    if tuple in kinds:
        bare = text.strip()
        if bare.startswith("[") and bare.endswith("]"):
            return parse_texts(bare)
        return text if str in kinds else [text]
    if str in kinds:
        if not text:
            raise InputError(f"{key}= is empty: say {key}=VALUE.")
        return text.strip() if Literal in kinds else text
    from omegaconf import OmegaConf  # takes longer than the answer to a wrong key

    try:
        read: Any = OmegaConf.from_dotlist([f"value={text}"])
        return OmegaConf.to_container(read, resolve=False)["value"]  # type: ignore[index,call-overload]
    except Exception as error:  # of its own, of YAML, of Python
        raise InputError(f"These settings can't be read: {key}={text}: {error}") from None


def read_yaml(path: str | Path, what: str, form: str, *, empty_ok: bool = False) -> dict[str, Any]:
    """The keys of a YAML file and their plain values; no object is ever made from its text.

    Args:
        path: the file.
        what: its kind, for messages: `map`.
        form: what it must contain, for messages: lines of `term: class`.
        empty_ok: whether an empty file has no keys, and is not wrong.

    Raises:
        InputError: it is missing or is no such file.
    """
    file = Path(path)
    if not file.is_file():
        raise not_a_file(file, f"{what} file")
    from omegaconf import OmegaConf

    try:
        plain = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except Exception as error:  # of its own, of YAML, of Python
        raise InputError(f"{file} is not a YAML {what}: {error}") from None
    if not isinstance(plain, dict) or not (plain or empty_ok):
        raise InputError(f"{file} is not a YAML {what}: it needs {form}.")
    return {str(key): value for key, value in plain.items()}


def _kinds(annotation: Any) -> set[Any]:
    """The types that a setting may have; `tuple` is one of texts, `list` one of anything else."""
    kinds: set[Any] = set()
    left = [annotation]
    while left:
        one = left.pop()
        origin, inside = get_origin(one), get_args(one)
        if origin is Annotated:
            left.append(inside[0])
        elif origin in (Union, UnionType):
            left += inside
        elif origin is Literal:
            kinds |= {Literal, *map(type, inside)}
        elif origin is tuple:
            kinds.add(tuple if str in inside else list)
        else:
            kinds.add(one)
    return kinds


def parse_texts(text: str) -> list[str]:
    """The texts of `[a, "b, c", 'd']`, each literally; blanks around bare ones go."""
    with contextlib.suppress(ValueError):
        found = json.loads(text)
        if isinstance(found, list) and all(isinstance(one, str) for one in found):
            return found
    items = re.findall(r"""\s*(?:"([^"]*)"|'([^']*)'|([^,]*?))\s*(?:,|$)""", text[1:-1].strip())
    return ["".join(item) for item in items if any(item)]
