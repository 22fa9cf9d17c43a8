"""Class embeddings from a frozen text encoder (paper section 2.2, Textual Feature Extractor).

The encoder runs once, in eval mode; its output is a constant of the network. Nothing here ever
downloads: a hub name is looked up in the local hub cache, a folder or file is read as it is.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lingula.model.text_encoder import encode, phrase
from lingula.settings.label_space import canonical
from lingula.settings.weight_sources import TEXT_SOURCES, find_text, missing_text
from lingula.system import files
from lingula.system.errors import InputError, StoppedError, examples

log = logging.getLogger("lingula")


@dataclass(frozen=True)
class TextEmbeddings:
    """Class embeddings (K, E) float32 in the order asked for, and where they come from."""

    values: Tensor
    origin: str


def embed(
    classes: Sequence[str],
    source: str,
    *,
    pooling: str = "auto",
    width: int = 768,
    cache: Path | None = None,
) -> TextEmbeddings:
    """Embeddings of the class names.

    Args:
        classes: K class names.
        source: `orthogonal`; a `.safetensors` file with one vector per class name; or the folder or
            hub name of a `transformers` text encoder.
        pooling: `auto` is the pooler where the model has one, else the masked mean (T5 encoders and
            sentence encoders without a pooler).
        width: E for `orthogonal`.
        cache: a folder to keep a text encoder's output in, by the hash of all files of its
            folder, or None.

    Raises:
        InputError: the source is missing, damaged or unsafe, or gives two classes one embedding.
    """
    if source == "orthogonal":
        return TextEmbeddings(orthogonal(classes, width), "orthogonal (a random basis: no text)")
    if source.endswith(".safetensors"):
        return _from_file(classes, files.expand_home(source))
    return _from_encoder(classes, source, pooling, cache)


def orthogonal(classes: Sequence[str], width: int) -> Tensor:
    """(K, width) orthogonal rows of length sqrt(width), each tied to its class's name.

    Permuting the classes permutes the rows: a Gaussian vector is drawn from each name, and the set
    is made orthogonal symmetrically (Loewdin), which has no first or last vector. With more classes
    than `width` the rows are left as drawn.
    """
    rows = []
    for name in classes:
        digest = hashlib.sha256(phrase(name).encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        rows.append(torch.randn(width, generator=generator, dtype=torch.float64))
    drawn = torch.stack(rows)
    if len(rows) <= width:
        values, vectors = torch.linalg.eigh(drawn @ drawn.T)
        drawn = vectors @ torch.diag(values.rsqrt()) @ vectors.T @ drawn * width**0.5
    return drawn.float()


def _from_file(classes: Sequence[str], path: Path) -> TextEmbeddings:
    if not path.is_file():
        raise files.not_a_file(path, "file of class embeddings (model.text)")
    stored = _stored(path)
    absent = [name for name in classes if phrase(name) not in stored]
    if absent:
        raise InputError(
            f"{path} has no embedding for {examples(absent)}. It needs one 1-D tensor per class, "
            "named as the class is."
        )
    vectors = [stored[phrase(name)].float() for name in classes]
    if len({vector.shape for vector in vectors}) > 1 or vectors[0].ndim != 1:
        raise InputError(f"{path}: the embeddings must be 1-D and of one length.")
    values = torch.stack(vectors)
    _check_apart(classes, values, path)
    return TextEmbeddings(values, f"file {path.name}, sha256 {files.sha256(path)[:16]}")


def _stored(path: Path) -> dict[str, Tensor]:
    """The vectors in a file by phrase; two spellings of one class are an error."""
    try:
        vectors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} can't be read as class embeddings (model.text); it may be damaged: {error}. "
            "Copy or write it again: a .safetensors file with one 1-D tensor per class."
        ) from None
    stored: dict[str, Tensor] = {}
    for name, vector in vectors.items():
        if phrase(name) in stored:
            raise InputError(f"{path} has two embeddings for '{canonical(name)}'; leave one.")
        stored[phrase(name)] = vector
    return stored


def _check_apart(classes: Sequence[str], values: Tensor, place: Path) -> None:
    """Refuse embeddings that are not finite, and classes that share one.

    A class is only its embedding to the decoder: two that share one are one class to it. What
    comes from the same words is as far apart as rounding moves it, which is far less than `_SAME`.
    """
    wrong = [n for n, row in zip(classes, values, strict=True) if not torch.isfinite(row).all()]
    if wrong:
        raise InputError(f"{place} (model.text): not finite are {examples(wrong)}.")
    exact = values.double()
    lengths = exact.norm(dim=1)
    apart = torch.cdist(exact, exact, compute_mode="donot_use_mm_for_euclid_dist")
    same = apart <= _SAME * torch.maximum(lengths[:, None], lengths[None])
    sharing = [n for n, row in zip(classes, same, strict=True) if int(row.sum()) > 1]
    if sharing:
        raise InputError(
            f"{place} (model.text) gives the same embedding to {examples(sharing)}: the model "
            "could not tell them apart. Does the encoder know their words, and are its "
            "tokenizer's files there? Each class needs an embedding of its own; "
            "model.text=orthogonal gives one without text."
        )


_SAME = 1e-5


def _from_encoder(
    classes: Sequence[str], source: str, pooling: str, cache: Path | None
) -> TextEmbeddings:
    phrases = [phrase(name) for name in classes]
    folder = _folder(source)
    read = files_hash(folder)
    key = hashlib.sha256("\x1f".join([read, pooling, *phrases]).encode()).hexdigest()
    kept = cache / f"{key}.safetensors" if cache is not None else None
    found = _cached(kept) if kept is not None else None
    if found is None:
        values, used = encode(classes, phrases, folder, pooling)
        found = TextEmbeddings(values, f"{source}, {used}, files sha256 {read[:16]}")
        if kept is not None:
            _keep(found, kept)
    _check_apart(classes, found.values, folder)
    return found


def _keep(found: TextEmbeddings, kept: Path) -> None:
    """Save an encoder's output for the next time, where that can be: nothing depends on it."""
    try:
        with files.write_atomically(kept) as temporary:
            save_file({"values": found.values}, temporary, metadata={"origin": found.origin})
    except (InputError, StoppedError) as error:
        log.info("The text encoder's output is not kept for the next time: %s", error)


def _cached(kept: Path) -> TextEmbeddings | None:
    """An encoder's output that was kept; None if it is not there, or damaged and computed again."""
    try:
        if not kept.is_file():
            return None
        with safe_open(kept, framework="pt") as stream:
            return TextEmbeddings(stream.get_tensor("values"), stream.metadata()["origin"])
    except (SafetensorError, OSError) as error:
        log.warning("%s can't be read and is computed again: %s", kept, error)
        return None


def _folder(source: str) -> Path:
    """The local folder of a text encoder; a hub name is only looked up in the hub's cache."""
    folder = files.expand_home(source)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder} has no config.json: it is not a text encoder's folder.")
        return folder
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise files.not_a_folder(folder, " A file for model.text is a .safetensors.")
    found = find_text(source)
    if found is not None:
        return found
    if source in TEXT_SOURCES:
        raise missing_text(source)
    raise InputError(
        f"The text encoder '{source}' (model.text) is not on this machine. Download it where "
        f"there is internet (`hf download {source} --local-dir FOLDER`) and say "
        "model.text=FOLDER, or use model.text=orthogonal, which needs no text."
    )


def files_hash(folder: Path) -> str:
    """Hash of all files of an encoder's folder, by name; but for hidden ones, which it never reads.

    All, for which of them count is the library's affair: vocabularies, merges, pooling settings. Of
    a hub name the folder is its snapshot in the hub's cache, whose links are followed.
    """
    digest = hashlib.sha256()
    try:
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder)
            if path.is_file() and not any(part.startswith(".") for part in name.parts):
                digest.update(f"{name.as_posix()} {files.sha256(path)}\n".encode())
    except OSError as error:
        raise InputError(
            f"{folder} (model.text) can't be read: {error}. Make its files readable."
        ) from None
    return digest.hexdigest()
