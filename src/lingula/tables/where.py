"""Choosing rows by a condition such as `view in ('PA', 'AP') and age >= 18`; nothing is executed.

The condition is parsed, never evaluated as code: comparisons of a column with a constant, joined by
`and`, `or`, `not` and brackets.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lingula.settings.label_space import fold
from lingula.system.errors import InputError, nearest
from lingula.tables.columns import NAMES
from lingula.tables.table import UNCERTAIN, Table

Rows = NDArray[np.bool_]

_LONGEST = 2000  # characters
_ORDERS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_MIRRORED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.Gt,
    ast.LtE: ast.GtE,
    ast.Gt: ast.Lt,
    ast.GtE: ast.LtE,
    ast.Eq: ast.Eq,
    ast.NotEq: ast.NotEq,
}


def rows_where(table: Table, condition: str) -> NDArray[np.intp]:
    """The rows for which a condition holds.

    A name is a column (`view`, `split`, `age`, ...) or a class (`Pleural_Effusion`; `_` for a
    blank): 1, 0, or -1 where uncertain. Text is compared by `==`, `!=`, `in`, `not in`; numbers by
    `<` and the like too. A cell without a value fulfils no comparison with a number.

    Raises:
        InputError: what is no such condition, or names no column; it says which part.
    """
    if len(condition) > _LONGEST:
        raise InputError(f"The condition has {len(condition)} characters; {_LONGEST} are allowed.")
    try:
        parsed = ast.parse(condition.strip(), mode="eval")
        return np.flatnonzero(_evaluate(table, parsed.body))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise InputError(
            f"{condition!r} is not a condition. Write e.g. \"view in ('PA', 'AP') and age >= 18\"."
        ) from None


def _evaluate(table: Table, node: ast.expr) -> Rows:
    if isinstance(node, ast.BoolOp):
        parts = [_evaluate(table, value) for value in node.values]
        joined = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
        return np.asarray(joined.reduce(parts), dtype=np.bool_)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return ~_evaluate(table, node.operand)
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        each = [
            _compare(table, left, op, right)
            for left, op, right in zip(sides, node.ops, sides[1:], strict=False)
        ]
        return np.asarray(np.logical_and.reduce(each), dtype=np.bool_)
    raise _refusal(node)


def _compare(table: Table, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Rows:
    """One comparison of a column with a constant, whichever side it is on."""
    if isinstance(op, ast.In | ast.NotIn):
        if not isinstance(left, ast.Name) or not isinstance(right, ast.Tuple | ast.List | ast.Set):
            raise _refusal(right if isinstance(left, ast.Name) else left, "a list after `in`")
        found = np.zeros(len(table), dtype=np.bool_)
        _, there = _cells_like(table, left.id, _constant(right.elts[0]) if right.elts else "")
        for item in right.elts:
            value = _constant(item)
            cells, there = _cells_like(table, left.id, value)
            found |= there & (cells == value)
        return found if isinstance(op, ast.In) else there & ~found
    if not isinstance(left, ast.Name):
        if type(op) not in _MIRRORED or not isinstance(right, ast.Name):
            raise _refusal(left, "a column on one side and a constant on the other")
        left, op, right = right, _MIRRORED[type(op)](), left
    value = _constant(right)
    cells, there = _cells_like(table, left.id, value)
    if isinstance(op, ast.Eq):
        return np.asarray(there & (cells == value), dtype=np.bool_)
    if isinstance(op, ast.NotEq):
        return np.asarray(there & (cells != value), dtype=np.bool_)
    if type(op) not in _ORDERS or isinstance(value, str):
        raise _refusal(right, "a number beside <, <=, > and >=")
    return np.asarray(there & _ORDERS[type(op)](cells, value), dtype=np.bool_)


def _constant(node: ast.expr) -> str | float:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _constant(node.operand)
        if isinstance(value, str):
            raise _refusal(node)
        return -value
    if (
        isinstance(node, ast.Constant)
        and isinstance(node.value, str | int | float)
        and not isinstance(node.value, bool)
    ):
        return node.value
    raise _refusal(node, "a text in quotes or a number")


def _cells_like(table: Table, name: str, value: str | float) -> tuple[NDArray[Any], Rows]:
    """A column's cells as text or as numbers, as the constant is; and which have a value."""
    column = _find_column(table, name)
    if isinstance(column, np.ndarray):
        if isinstance(value, str):
            raise InputError(f"'{name}' is a class: compare it with 1, 0 or -1, not {value!r}.")
        return column, column >= UNCERTAIN
    if isinstance(value, str):
        return np.array(column, dtype=object), np.ones(len(table), dtype=np.bool_)
    numbers = np.array([_parse_number(cell) for cell in column])
    return numbers, np.isfinite(numbers)


def _find_column(table: Table, name: str) -> tuple[str, ...] | NDArray[np.float32]:
    fields = {fold(column): field for field, column in NAMES.items()}
    field = fields.get(fold(name))
    if field is not None:
        cells = getattr(table, field)
        if cells is None:
            raise InputError(f"{table.path} has no column '{name}'.")
        found: tuple[str, ...] = cells
        return found
    if name in table.space:
        classes: NDArray[np.float32] = table.labels[:, table.space.index(name)]
        return classes
    known = [c for f, c in NAMES.items() if getattr(table, f) is not None]
    raise InputError(
        f"{table.path} has no column '{name}'.{nearest(name, [*known, *table.space.classes])}"
    )


def _parse_number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")


def _refusal(node: ast.expr, wanted: str = "comparisons joined by and, or, not") -> InputError:
    return InputError(f"The condition can't have {ast.unparse(node)!r} there; it wants {wanted}.")
