"""Findings of one label space as those of another, by stated rules; and what a source then knows.

Names that are the same, or spellings of one, always go together. Anything else is stated in a
`LabelMap`, and nothing broad is taken for something narrow unless a map says so.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lingula.settings.label_space import LabelSpace, canonical, fold
from lingula.settings.values import read_yaml
from lingula.system.errors import InputError, examples, nearest
from lingula.tables.table import BLANK, UNCERTAIN, UNMENTIONED, Table, rows_with_zero_blanks

log = logging.getLogger("lingula")

_KINDS = ("same", "narrower", "broader")
_NONE = "none"


@dataclass(frozen=True)
class LabelMap:
    """For classes of a target: the terms of a source that speak of them.

    Attributes:
        name: what to call it in messages.
        same: terms whose union is the class: present if any is, absent if all are.
        narrower: terms that are kinds of the class: present if any is, else nothing is known.
        broader: terms that the class is a kind of: absent if the term is, uncertain if it is
            present (so `data.uncertain=one` takes the broad finding for the narrow one).
        apart: terms that are not the class of their own name, but of another one or of none.

    Raises `InputError` for a class in two of them, or without terms.
    """

    name: str = "own"
    same: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    narrower: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    broader: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    apart: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for kind in _KINDS:
            for target, terms in getattr(self, kind).items():
                if not terms:
                    raise InputError(f"Map {self.name}: class '{target}' has no terms.")
                if fold(canonical(target)) in seen:
                    raise InputError(f"Map {self.name}: class '{target}' is listed twice.")
                seen.add(fold(canonical(target)))

    def targets_of(self, term: str, kinds: Sequence[str] = _KINDS) -> tuple[str, ...]:
        """The classes that a term is the same as, narrower or broader than."""
        return tuple(
            target
            for kind in kinds
            for target, terms in getattr(self, kind).items()
            if fold(term) in {fold(other) for other in terms}
        )

    @property
    def terms(self) -> tuple[str, ...]:
        """Every term that the map names, once."""
        rules = [terms for kind in _KINDS for terms in getattr(self, kind).values()]
        return tuple(dict.fromkeys([*(term for terms in rules for term in terms), *self.apart]))


def read_map(path: str | Path) -> LabelMap:
    """Read a map from YAML; one file may have both spellings.

        Cardiomegally: Cardiomegaly     # a term and the one class that it means
        smoker: null                    # a term that is not a class; `none: [smoker]` says the same
        same:                           # classes and their terms; also `narrower:`, `broader:`
          Nodule: [nodule, multiple nodules]

    Raises `InputError` for what is no such file; no object is ever made from its text.
    """
    return parse_map(read_map_lines(path), str(path))


def read_map_lines(path: str | Path) -> dict[str, Any]:
    """A map's YAML as plain values, not yet checked."""
    return read_yaml(path, "map", f"lines of `term: class`, or `{':`, `'.join(_KINDS)}:`")


def parse_map(written: Mapping[str, Any], name: str) -> LabelMap:
    """The map in plain values; `InputError`, with `name`, for values that are not a map."""
    rules: dict[str, dict[str, tuple[str, ...]]] = {kind: {} for kind in _KINDS}
    single: dict[str, list[str]] = {}
    apart: list[str] = []
    for key, value in written.items():
        if key in _KINDS:
            if not isinstance(value, dict):
                raise InputError(f"{name}: `{key}` must hold class names, each with its terms.")
            rules[key] = {str(target): _parse_terms(t, name, target) for target, t in value.items()}
        elif key == _NONE:
            apart += _parse_terms(value, name, key)
        elif value is None or isinstance(value, str):
            apart.append(key)
            if value is not None:
                single.setdefault(canonical(value), []).append(key)
        else:
            hint = nearest(key, (*_KINDS, _NONE))
            raise InputError(
                f"{name}: '{key}' is none of {', '.join((*_KINDS, _NONE))}, and a term stands for "
                f"one class by its name, or for none by null; not for {value!r}.{hint}"
            )
    for target, terms in single.items():
        rules["same"][target] = (*rules["same"].get(target, ()), *terms)
    return LabelMap(name, **rules, apart=tuple(dict.fromkeys(apart)))


def _parse_terms(terms: object, name: str, target: object) -> tuple[str, ...]:
    listed = terms if isinstance(terms, list) else [terms]
    if not all(isinstance(term, str) for term in listed):
        raise InputError(f"{name}: the terms of '{target}' must be names, not {terms!r}.")
    return tuple(listed)


def map_classes(
    table: Table, space: LabelSpace, rules: LabelMap | None = None, strict: bool = True
) -> Table:
    """The table with the classes of `space`; what it says nothing of is `UNMENTIONED`.

    Args:
        table: labels (N, J) of its own space.
        space: the K classes wanted.
        rules: for classes that are not found by name; where they name a class, they go first.
        strict: a term that the table does not have, or a class that `space` does not, is an error;
            else it is passed over (for maps that lingula ships).

    Raises `InputError` if nothing of `space` is known, or for a wrong term or class.
    """
    rules = rules or LabelMap()
    if strict:
        check_names(rules, space, [table.space])
    vague = [*rules.narrower.values(), *rules.broader.values()]
    if any(_columns_of(table, terms) for terms in vague):
        table = _state_zeros(table)
    cells = np.full((len(table), len(space)), UNMENTIONED, dtype=np.float32)
    apart = {fold(canonical(term)) for term in rules.apart}
    names = enumerate(table.space.classes)
    known = {fold(name): j for j, name in names if fold(name) not in apart}
    for k, name in enumerate(space.classes):
        for kind in _KINDS:
            stated = {fold(canonical(t)): terms for t, terms in getattr(rules, kind).items()}
            columns = _columns_of(table, stated.get(fold(name), ()))
            if columns:
                cells[:, k] = _COMBINED[kind](table.labels[:, columns])
                break
        else:
            if fold(name) in known:
                cells[:, k] = table.labels[:, known[fold(name)]]
    if (cells == UNMENTIONED).all():
        raise InputError(
            f"The source knows none of the classes {examples(space.classes)}: it has "
            f"{examples(table.space.classes)}. State a map: --map map.yaml"
        )
    return replace(table, space=space, labels=cells)


def _columns_of(table: Table, terms: Sequence[str]) -> list[int]:
    return [table.space.index(term) for term in terms if term in table.space]


def check_names(rules: LabelMap, space: LabelSpace, known: Sequence[LabelSpace]) -> None:
    """Refuse a map with a class that `space` does not have, or a term that none of `known` has."""
    used: list[tuple[str, str]] = []
    for kind in _KINDS:
        for target, terms in getattr(rules, kind).items():
            space.index(target)
            used += [(term, f" (for '{target}')") for term in terms]
    used += [(term, "") for term in rules.apart]
    for term, of in used:
        if not any(term in one for one in known):
            names = [name for one in known for name in one.classes]
            tables = "the table has" if len(known) == 1 else "the tables have"
            raise InputError(
                f"Map {rules.name}: {tables} no class '{term}'{of}.{nearest(term, names)}"
            )


def _state_zeros(table: Table) -> Table:
    """The table with zeros for blank cells that mean zero: beside rules that make blank cells which
    mean nothing, the two must not be mixed up."""
    zero = (table.labels == BLANK) & rows_with_zero_blanks(table)[:, None]
    if not zero.any():
        return replace(table, blank="ignore", blanks={})
    log.info("%d blank cells that mean absent are written as 0.", int(zero.sum()))
    labels = np.where(zero, np.float32(0.0), table.labels)
    return replace(table, labels=labels, blank="ignore", blanks={})


def _union(cells: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, T) -> (N,): present if any is; else unknown if any is; else absent."""
    best = cells.max(axis=1)
    found = np.where((cells == UNCERTAIN).any(1), np.float32(UNCERTAIN), best)
    vague = ~(cells == UNCERTAIN).any(1) & (cells <= BLANK).any(1)
    found = np.where(vague, np.float32(BLANK), found)
    found = np.where(best >= 0.5, best, found)
    return np.where(best == UNMENTIONED, np.float32(UNMENTIONED), found)


def _union_of_narrower(cells: NDArray[np.float32]) -> NDArray[np.float32]:
    """As `_union`, but terms that are all absent leave the class unknown."""
    found = _union(cells)
    return np.where((found >= 0) & (found < 0.5), np.float32(BLANK), found)


def _union_of_broader(cells: NDArray[np.float32]) -> NDArray[np.float32]:
    """As `_union` of the broad terms, but one that is present leaves the class uncertain."""
    found = _union(cells)
    return np.where(found >= 0.5, np.float32(UNCERTAIN), found)


_COMBINED = {"same": _union, "narrower": _union_of_narrower, "broader": _union_of_broader}


@dataclass(frozen=True)
class Known:
    """What one source says of the classes of a label space.

    `filled` counts the (row, class) cells of classes that it does not know; `uncertain` and `blank`
    those that it knows and does not decide.
    """

    source: str
    images: int
    knows: tuple[str, ...]
    lacks: tuple[str, ...]
    filled: int
    uncertain: int
    blank: int


def coverage(tables: Sequence[Table], space: LabelSpace) -> tuple[Known, ...]:
    """For each source of the tables, the classes of `space` that it knows, by name."""
    found = []
    for table in tables:
        sources = np.array(table.sources or (str(table.path or "the table"),) * len(table))
        for source in dict.fromkeys(sources.tolist()):
            here = sources == source
            cells = table.labels if here.all() else table.labels[here]
            stated = (cells != UNMENTIONED).any(axis=0)
            names = enumerate(table.space.classes)
            known = {fold(name): k for k, name in names if stated[k]}
            knows = tuple(name for name in space.classes if fold(name) in known)
            lacks = tuple(name for name in space.classes if fold(name) not in known)
            part = cells[:, [known[fold(name)] for name in knows]]
            found.append(
                Known(
                    source,
                    len(cells),
                    knows,
                    lacks,
                    filled=len(cells) * len(lacks) + int((part == UNMENTIONED).sum()),
                    uncertain=int((part == UNCERTAIN).sum()),
                    blank=int((part == BLANK).sum()),
                )
            )
    return tuple(found)


def coverage_text(found: Sequence[Known], space: LabelSpace) -> str:
    """The coverage as lines for a terminal."""
    lines = []
    for known in found:
        lines.append(
            f"{known.source}: {known.images} images, knows {len(known.knows)} of {len(space)} "
            f"classes; cells: {known.uncertain} uncertain, {known.blank} blank, {known.filled} of "
            "classes it does not know"
        )
        if known.lacks:
            lines.append(f"  does not know: {examples(known.lacks, 26)}")
    nobody = [n for n in space.classes if not any(n in known.knows for known in found)]
    if nobody and len(found) > 1:
        lines.append(f"known to no source: {examples(nobody, 26)}")
    return "\n".join(lines)
