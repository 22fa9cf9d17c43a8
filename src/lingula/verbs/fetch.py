"""`lingula fetch`: download the weights that a recipe needs, on a machine with internet."""

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

    These are ImageNet weights and text encoders. Everything that can be downloaded is downloaded
    before an error names the rest. What must be obtained by hand for a table is only logged.

    Args:
        name: a recipe's name, `table1` or `table2`, a YAML file, or a `Config`.
        out: the folder; None is `$LINGULA_WEIGHTS`, or `lingula/weights` in the cache folder.
            Training looks there by itself; take another folder along to the compute nodes and
            name it in `LINGULA_WEIGHTS`.

    Returns:
        The folder. What is in it already is not downloaded again.

    Raises:
        InputError: the hub can't be reached, or what the recipe needs is not published there.
    """
    trainings = TABLES.get(name) if isinstance(name, str) else None
    configs = [find_config(name)] if trainings is None else [recipe(each) for each in trainings]
    folder = weights_folder() if out is None else Path(out)
    if folder is None:
        raise InputError(
            "There is no home folder for the weights: say --out FOLDER, and name it in "
            "LINGULA_WEIGHTS where you train."
        )
    failed: list[str] = []
    by_hand: list[str] = []
    for text in dict.fromkeys(c.model.text for c in configs if c.model.classifier != "linear"):
        if not _is_download(text):
            continue
        hub = TEXT_SOURCES[text].hub if text in TEXT_SOURCES else text
        if hub is not None:
            _collect(failed, _fetch_text, hub, folder / text.replace("/", "--"))
        elif find_text(text) is None:
            by_hand.append(str(missing_text(text)))
    for encoder in dict.fromkeys(c.model.encoder for c in configs if c.model.weights == "imagenet"):
        _collect(failed, _fetch_image, encoder, folder)
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


def _collect(failed: list[str], download: Callable[..., None], *what: object) -> None:
    """Download something, or add to `failed` why that is impossible."""
    try:
        download(*what)
    except InputError as error:
        failed.append(str(error))


def _is_download(text: str) -> bool:
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
    _download(
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
            f"timm has no place on the hub for the weights of '{encoder}'. Give a file, "
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

    _download(known.hub, download)
    (part / "model.safetensors").replace(path)
    shutil.rmtree(part)
    log.info("Fetched %s (licence %s) to %s.", known.hub, known.license, path)


def _download(what: str, download: Callable[[], object]) -> None:
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
