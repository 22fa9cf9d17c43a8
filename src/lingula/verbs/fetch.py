"""`lingula fetch`: the weights that a recipe will need, into a folder, where there is internet."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from lingula import files
from lingula.config import Config
from lingula.errors import InputError
from lingula.verbs.train import settings_of
from lingula.weights import TEXT_SOURCES, missing_text, weights_folder

log = logging.getLogger("lingula")

_TEXT_FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "*.bin"]


def fetch(name: str | Path | Config, *, out: str | Path | None = None) -> Path:
    """Download what a recipe needs: ImageNet weights, and its text encoder.

    Args:
        name: a recipe's name, a YAML file, or a `Config`.
        out: the folder; None is `$LINGULA_WEIGHTS`, or `lingula/weights` in the cache folder.
            Training looks there by itself; take another folder along to the compute nodes and
            name it in `LINGULA_WEIGHTS`.

    Returns:
        The folder. What is there already is not fetched again.

    Raises:
        InputError: there is no way to the hub, or something is not given out there.
    """
    config = settings_of(name)
    folder = weights_folder() if out is None else Path(out)
    if folder is None:
        raise InputError(
            "There is no home folder to keep weights in: say --out FOLDER, and name it in "
            "LINGULA_WEIGHTS where it is trained."
        )
    text, encoder = config.model.text, config.model.encoder
    if config.model.classifier != "linear" and _named(text):
        hub = TEXT_SOURCES[text].hub if text in TEXT_SOURCES else text
        if hub is None:
            raise missing_text(text)
        _fetch_text(hub, folder / text.replace("/", "--"))
    if config.model.weights == "imagenet":
        _fetch_image(encoder, folder / f"{encoder}.safetensors")
    return folder


def _named(text: str) -> bool:
    """Whether `model.text` names something to download: no file, folder or built-in basis."""
    if text == "orthogonal" or text.endswith(".safetensors") or files.expanded(text).exists():
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


def _fetch_image(encoder: str, path: Path) -> None:
    if path.is_file():
        log.info("%s is there already.", path)
        return
    from huggingface_hub import hf_hub_download

    from lingula.model.loader import imagenet_repository  # imports torch

    repository = imagenet_repository(encoder)
    if repository is None:
        raise InputError(
            f"timm names no place on the hub for the weights of '{encoder}'. Give a file, "
            "model.weights=FILE."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")

    def download() -> object:
        return hf_hub_download(repository, "model.safetensors", local_dir=part)

    _reached(repository, download)
    (part / "model.safetensors").replace(path)
    shutil.rmtree(part)
    log.info("Fetched %s to %s.", repository, path)


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
