"""`lingula recipes`: the list of recipes with the paper's ladder, or one of them as YAML."""

from __future__ import annotations

from lingula.settings.config import to_yaml
from lingula.settings.recipes import (
    ASSUMED,
    ENSEMBLES,
    EXOGENOUS,
    RECIPES,
    TABLE_1,
    TABLE_2,
    Row,
    recipe,
)


def recipes(name: str | None = None) -> str:
    """The recipes with their purpose and cost, and the paper's tables; or the YAML of `name`.

    `lingula train` takes the YAML back. An ensemble's YAML names its rule and members.
    """
    if name in ENSEMBLES:
        row = ENSEMBLES[name]
        lines = [f"# made by: lingula reproduce table2 --out DIR (paper: test mAP {row.mAP:.3f})"]
        return "\n".join(
            [*lines, f"rule: {row.rule}", "members:", *(f"- {m}" for m in row.members)]
        )
    if name is not None:
        return to_yaml(recipe(name))
    own = {known: entry for known, entry in RECIPES.items() if not known.startswith("paper/")}
    width = max(len(known) for known in [*own, *(other.name for other in EXOGENOUS)])
    lines = [f"{known:<{width}}  {entry.purpose} ({entry.cost})" for known, entry in own.items()]
    lines += ["", "Table 1 of the paper (mAP on its development set):", *ladder(), ""]
    lines += [f"Each row: {RECIPES[TABLE_1[0].name].cost}.", ""]
    for other in EXOGENOUS:
        lines.append(f"{other.name:<{width}}  {other.purpose} ({RECIPES[other.name].cost})")
    lines += ["", "Table 2 of the paper (mAP on its test set), made by `lingula reproduce table2`:"]
    for row in TABLE_2:
        beside = " with outside data" if "paper/exo-both" in row.members else ""
        lines.append(f"{row.name}  {row.rule}, {len(row.members)} members{beside}: {row.mAP:.3f}")
    lines += [
        "",
        "Hours, memory and disk on this machine, by some steps of each training: "
        "lingula reproduce table1 --scale paper --out DIR --estimate",
    ]
    lines += ["", "Assumed, because the paper does not say:", *(f"- {text}" for text in ASSUMED)]
    return "\n".join(lines)


def ladder() -> list[str]:
    """Table 1 as lines of text, each row with its parent."""
    head = ("recipe", "image encoder", "text encoder", "separate", "re-weighting", "MixUp", "TTA")
    cells = [(*head, "mAP", "parent"), *(_cells(row) for row in TABLE_1)]
    width = [max(len(row[k]) for row in cells) for k in range(len(cells[0]))]
    return ["  ".join(text.ljust(width[k]) for k, text in enumerate(row)).rstrip() for row in cells]


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        row.encoder,
        row.text,
        "x" if row.separate else "",
        "" if row.factor is None else f"x {row.factor}",
        "x" if row.mixup else "",
        "x" if row.tta else "",
        f"{row.mAP:.4f}",
        "" if row.parent is None else f"t1r{row.parent}",
    )
