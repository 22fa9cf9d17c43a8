"""Published weights: where they are on this machine, and how to get the others.

Nothing here connects; `lingula fetch` is the one command that does.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lingula.system import files
from lingula.system.errors import InputError


@dataclass(frozen=True)
class TextSource:
    """A published text encoder: its place on the hub, how a person obtains it, its origin."""

    hub: str | None
    obtain: str
    origin: str


TEXT_SOURCES = {
    "med-kebert": TextSource(
        "xmcmic/Med-KEBERT",
        "`lingula fetch` puts it into a folder on a machine with internet.",
        "PubMedBERT tuned on UMLS (KAD, Zhang et al. 2023), the paper's first text encoder",
    ),
    "clinical-t5": TextSource(
        None,
        "PhysioNet gives it out to credentialed users only (physionet.org/content/clinical-t5): "
        "sign its agreement, download the folder Clinical-T5-Base there, and say model.text=FOLDER "
        "(`lingula reproduce`: --text clinical-t5=FOLDER). The paper names no variant; -Base, -Sci "
        "and -Scratch are 768 wide, as its d is, and -Large is 1024 wide, for which a learned "
        "projection is added.",
        "Clinical-T5 (Lehman and Johnson 2023), the paper's second text encoder",
    ),
    "sapbert": TextSource(
        "cambridgeltl/SapBERT-from-PubMedBERT-fulltext",
        "`lingula fetch` puts it into a folder on a machine with internet.",
        "SapBERT (Liu et al. 2021)",
    ),
}


def cache_folder() -> Path | None:
    """`lingula` in the user's cache folder; None for a user who has none, and no home.

    A relative `XDG_CACHE_HOME` is passed over, as its specification says: it would name another
    folder from each place that a command is given in.
    """
    for place in (os.environ.get("XDG_CACHE_HOME", ""), "~/.cache"):
        folder = files.expand_home(place)
        if folder.is_absolute():
            return folder / "lingula"
    return None


def weights_folder() -> Path | None:
    """`$LINGULA_WEIGHTS`, or `weights` in the cache folder; None if there is neither."""
    given = os.environ.get("LINGULA_WEIGHTS")
    if given:
        return files.expand_home(given)
    cache = cache_folder()
    return None if cache is None else cache / "weights"


def _is_file(path: Path) -> bool:
    """Whether there is a file; none where its folder is somebody else's and closed."""
    return os.path.isfile(path)  # noqa: PTH113 (that of `Path` raises)


def find_text(name: str) -> Path | None:
    """The folder of a text encoder by its name here or on the hub, if it is on this machine."""
    weights = weights_folder()
    if weights is not None:
        fetched = weights / name.replace("/", "--")
        if _is_file(fetched / "config.json"):
            return fetched
    hub = TEXT_SOURCES[name].hub if name in TEXT_SOURCES else name
    if hub is None:
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub, local_files_only=True))
    except (LocalEntryNotFoundError, ValueError, OSError, RuntimeError):  # RuntimeError: no home
        return None


def fetched_image(encoder: str) -> Path | None:
    """The ImageNet weights of an image encoder (with its tag), if they have been fetched."""
    weights = weights_folder()
    path = None if weights is None else weights / f"{encoder}.safetensors"
    return path if path is not None and _is_file(path) else None


def missing_text(name: str) -> InputError:
    """The error for a text encoder that is not on this machine: how to obtain it."""
    source = TEXT_SOURCES[name]
    return InputError(
        f"The text encoder '{name}' ({source.origin}) is not on this machine. {source.obtain} "
        "Or use model.text=orthogonal, which needs no text."
    )
