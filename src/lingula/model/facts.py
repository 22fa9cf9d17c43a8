"""What a model folder says of its model, `model.json`: read without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lingula.system import files
from lingula.system.errors import InputError

MODEL_FORMAT = 1  # of model.json


def read_facts(folder: Path) -> dict[str, Any]:
    """What `model.json` in a model folder or a run folder says."""
    place = folder / "best" if (folder / "best" / "model.json").is_file() else folder
    description = place / "model.json"
    if not description.is_file():
        raise _no_model(folder)
    facts = files.read_object(description, "format")
    if facts.get("format") != MODEL_FORMAT:
        raise InputError(
            f"{description} has format {facts.get('format')}; this version reads {MODEL_FORMAT}."
        )
    return facts


def _no_model(folder: Path) -> InputError:
    """What to tell who takes something else for a run or model folder."""
    if not folder.exists():
        return InputError(f"There is no run or model folder {folder}.")
    if not folder.is_dir():
        run = folder.parent
        hint = f" Did you mean its folder, {run}?" if (run / "config.yaml").is_file() else ""
        return InputError(f"{folder} is a file, not a run or model folder.{hint}")
    told = f"{folder} has no trained model (no best/model.json)"
    if (folder / "ensemble.json").is_file():
        return InputError(f"{told}: it is an ensemble. Name one of its runs.")
    if (folder / "config.yaml").is_file():
        return InputError(
            f"{told}: its training has not ended an epoch. `lingula train --resume {folder}`."
        )
    weights = sorted(path for path in folder.iterdir() if path.suffix in _WEIGHTS)
    hint = f" To start from weights, name the file: model.weights={weights[0]}." if weights else ""
    return InputError(f"{told}; it is no run.{hint}")


_WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
