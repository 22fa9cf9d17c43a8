"""`lingula recipes`: the list of recipes, or one of them as YAML."""

from __future__ import annotations

from lingula.config import to_yaml
from lingula.recipe import RECIPES, recipe


def recipes(name: str | None = None) -> str:
    """The recipes with their purpose and cost, one a line; or the YAML of `name`.

    `lingula train` takes the YAML back.
    """
    if name is not None:
        return to_yaml(recipe(name))
    width = max(len(known) for known in RECIPES)
    return "\n".join(
        f"{known:<{width}}  {entry.purpose} ({entry.cost})" for known, entry in RECIPES.items()
    )
