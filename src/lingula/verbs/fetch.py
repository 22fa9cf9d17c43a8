"""`lingula fetch`: the weights that a recipe will need, into a folder, where there is internet."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from lingula.settings.config import Config
from lingula.settings.recipes import TABLE_1, TABLE_2, find_config, recipe
from lingula.settings.weight_sources import TEXT_SOURCES, find_text, missing_text, weights_folder
from lingula.system import files
from lingula.system.errors import InputError

log = logging.getLogger("lingula")

_TEXT_FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "*.bin"]


def fetch(name: str | Path | Config, *, out: str | Path | None = None) -> Path:
    """Download what a recipe, or all trainings of a table of the paper, need.

    That is the ImageNet weights and the text encoder. All that can be brought is brought before
    anything is said to be missing; what must be obtained by hand for a table is logged.

    Args:
        name: a recipe's name, `table1` or `table2`, a YAML file, or a `Config`.
        out: the folder; None is `$LINGULA_WEIGHTS`, or `lingula/weights` in the cache folder.
            Training looks there by itself; take another folder along to the compute nodes and
            name it in `LINGULA_WEIGHTS`.

    Returns:
        The folder. What is there already is not fetched again.

    Raises:
        InputError: there is no way to the hub, or what the recipe needs is not given out there.
    """
    trainings = TABLES.get(name) if isinstance(name, str) else None
    configs = [find_config(name)] if trainings is None else [recipe(each) for each in trainings]
    folder = weights_folder() if out is None else Path(out)
    if folder is None:
        raise InputError(
            "There is no home folder to keep weights in: say --out FOLDER, and name it in "
            "LINGULA_WEIGHTS where it is trained."
        )
    failed: list[str] = []
    by_hand: list[str] = []
    for text in dict.fromkeys(c.model.text for c in configs if c.model.classifier != "linear"):
        if not _named(text):
            continue
        hub = TEXT_SOURCES[text].hub if text in TEXT_SOURCES else text
        if hub is not None:
            _try(failed, _fetch_text, hub, folder / text.replace("/", "--"))
        elif find_text(text) is None:
            by_hand.append(str(missing_text(text)))
    for encoder in dict.fromkeys(c.model.encoder for c in configs if c.model.weights == "imagenet"):
        _try(failed, _fetch_image, encoder, folder)
    if failed or (by_hand and trainings is None):
        raise InputError("\n".join([*failed, *by_hand]))
    for what in by_hand:
        log.warning("To be obtained by hand: %s", what)
    return folder


# The trainings behind each table of the paper.
TABLES = {
    "table1": tuple(row.name for row in TABLE_1),
    "table2": tuple(dict.fromkeys(name for row in TABLE_2 for name in row.members)),
}


def _try(failed: list[str], bring: Callable[..., None], *what: object) -> None:
    """Bring something; the reason is added to `failed` if that can't be."""
    try:
        bring(*what)
    except InputError as error:
        failed.append(str(error))


def _named(text: str) -> bool:
    """Whether `model.text` names something to download: no file, folder or built-in basis."""
    if text == "orthogonal" or text.endswith(".safetensors") or files.expand_home(text).exists():
        return False
    return text in TEXT_SOURCES or (text.count("/") == 1 and not text.startswith((".", "~", "/")))


def _fetch_text(hub: str, folder: Path) -> None:
    if (folder / "config.json").is_file():
        log.info("%s is there already.", folder)
        return
    from huggingface_hub import snapshot_download

    part = folder.with_name(f".{folder.name}.part")
    _reached(
        hub, lambda: snapshot_download(hub, local_dir=part, allow_patterns=_TEXT_FILES, token=None)
    )
    part.replace(folder)
    log.info("Fetched %s to %s.", hub, folder)


def _fetch_image(encoder: str, folder: Path) -> None:
    from huggingface_hub import hf_hub_download

    from lingula.model.loader import pretrained  # imports torch

    known = pretrained(encoder)
    if known is None:
        raise InputError(
            f"timm names no place on the hub for the weights of '{encoder}'. Give a file, "
            "model.weights=FILE."
        )
    path = folder / f"{known.name}.safetensors"
    if path.is_file():
        log.info("%s is there already.", path)
        return
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")

    def download() -> object:
        return hf_hub_download(known.hub, "model.safetensors", local_dir=part)

    _reached(known.hub, download)
    (part / "model.safetensors").replace(path)
    shutil.rmtree(part)
    log.info("Fetched %s (licence %s) to %s.", known.hub, known.license, path)


def _reached(what: str, download: Callable[[], object]) -> None:
    """Run a download; `InputError` with its reason if it fails."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        download()
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"'{what}' could not be fetched: {reason} Run `lingula fetch` on a machine with "
            "internet and take the folder along."
        ) from None
