"""Where published weights are found on this machine, and how to get those that are not.

Nothing here connects; `lingula fetch` is the one command that does.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lingula.errors import InputError


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


def weights_folder() -> Path:
    """`$LINGULA_WEIGHTS`, or `lingula/weights` in the user's cache folder."""
    told = os.environ.get("LINGULA_WEIGHTS")
    if told:
        return Path(told).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    return cache / "lingula" / "weights"


def fetched_text(name: str) -> Path | None:
    """The folder of a named text encoder, if it has been fetched."""
    folder = weights_folder() / name.replace("/", "--")
    return folder if (folder / "config.json").is_file() else None


def find_text(name: str) -> Path | None:
    """The folder of a text encoder by its name here or on the hub, if it is on this machine."""
    fetched = fetched_text(name)
    hub = TEXT_SOURCES[name].hub if name in TEXT_SOURCES else name
    if fetched is not None or hub is None:
        return fetched
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub, local_files_only=True))
    except (LocalEntryNotFoundError, ValueError, OSError):
        return None


def fetched_image(encoder: str) -> Path | None:
    """The ImageNet weights of an image encoder (with its tag), if they have been fetched."""
    path = weights_folder() / f"{encoder}.safetensors"
    return path if path.is_file() else None


def missing_text(name: str) -> InputError:
    """What to tell who asks for a named text encoder that is not here."""
    source = TEXT_SOURCES[name]
    return InputError(
        f"The text encoder '{name}' ({source.origin}) is not on this machine. {source.obtain} "
        "Or use model.text=orthogonal, which needs no text."
    )
