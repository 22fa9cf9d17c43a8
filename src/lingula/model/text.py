"""Class embeddings from a frozen text encoder (paper section 2.2, Textual Feature Extractor).

The encoder runs once, in eval mode; its output is a constant of the network. Nothing here ever
downloads: a hub name is looked up in the local hub cache, a folder or file is read as it is.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lingula import files
from lingula.errors import InputError, examples
from lingula.labels import canonical, fold
from lingula.weights import TEXT_SOURCES, find_text, missing_text


@dataclass(frozen=True)
class TextEmbeddings:
    """Class embeddings (K, E) float32 in the order asked for, and where they come from."""

    values: Tensor
    origin: str


def phrase(name: str) -> str:
    """What the text encoder reads for a class: its name, lower case, underscores as blanks."""
    return fold(canonical(name))


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
        source: `orthogonal`; a `.safetensors` file with one vector a class name; or the folder or
            hub name of a `transformers` text encoder.
        pooling: `auto` is the pooler where the model has one, else the masked mean (T5 encoders and
            sentence encoders without a pooler).
        width: E for `orthogonal`.
        cache: a folder to keep a text encoder's output in, or None.
    """
    if source == "orthogonal":
        return TextEmbeddings(orthogonal(classes, width), "orthogonal (a random basis: no text)")
    if source.endswith(".safetensors"):
        return _from_file(classes, Path(source))
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
        raise InputError(f"There is no file of class embeddings {path} (model.text).")
    stored = {fold(canonical(name)): vector for name, vector in load_file(path).items()}
    absent = [name for name in classes if fold(canonical(name)) not in stored]
    if absent:
        raise InputError(
            f"{path} has no embedding for {examples(absent)}. It needs one 1-D tensor a class, "
            "named as the class is."
        )
    vectors = [stored[fold(canonical(name))].float() for name in classes]
    if len({vector.shape for vector in vectors}) > 1 or vectors[0].ndim != 1:
        raise InputError(f"{path}: the embeddings must be 1-D and of one length.")
    values = torch.stack(vectors)
    if not torch.isfinite(values).all():
        raise InputError(f"{path} holds values that are not finite.")
    return TextEmbeddings(values, f"file {path.name}, sha256 {files.sha256(path)[:16]}")


def _from_encoder(
    classes: Sequence[str], source: str, pooling: str, cache: Path | None
) -> TextEmbeddings:
    phrases = [phrase(name) for name in classes]
    folder = _folder(source)
    weights = _weights_hash(folder)
    key = hashlib.sha256("\x1f".join([weights, pooling, *phrases]).encode()).hexdigest()
    kept = cache / f"{key}.safetensors" if cache is not None else None
    if kept is not None and kept.is_file():
        with safe_open(kept, framework="pt") as stream:
            return TextEmbeddings(stream.get_tensor("values"), stream.metadata()["origin"])
    values, used = _encode(phrases, folder, pooling)
    origin = f"{source}, {used}, weights sha256 {weights[:16]}"
    if kept is not None:
        with files.whole(kept) as temporary:
            save_file({"values": values}, temporary, metadata={"origin": origin})
    return TextEmbeddings(values, origin)


def _folder(source: str) -> Path:
    """The local folder of a text encoder; a hub name is only looked up in the hub's cache."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder} holds no config.json: it is not a text encoder's folder.")
        return folder
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise InputError(f"There is no folder {folder} (model.text).")
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


def _weights_hash(folder: Path) -> str:
    found = sorted(
        path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".json")
    )
    digest = hashlib.sha256()
    for path in found:
        digest.update(f"{path.name} {files.sha256(path)}\n".encode())
    return digest.hexdigest()


def _encode(phrases: list[str], folder: Path, pooling: str) -> tuple[Tensor, str]:
    """(K, E) from a BERT-like model or a T5 encoder, and the pooling used."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # loading from a folder must not ask the hub
    try:
        import transformers
    except ImportError:
        raise InputError(
            "A text encoder needs the extra `text`: pip install 'lingula[text]'."
        ) from None
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    settings = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    is_t5 = settings.model_type in ("t5", "mt5", "longt5", "umt5")
    kind: Any = transformers.T5EncoderModel if is_t5 else transformers.AutoModel
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = kind.from_pretrained(folder, local_files_only=True).float().eval()
    tokens = tokenizer(phrases, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(**{k: tokens[k] for k in ("input_ids", "attention_mask")})
    used = _chosen_pooling(pooling, output, is_t5, folder)
    return POOLINGS[used](output, tokens["attention_mask"]).contiguous(), used


def _chosen_pooling(pooling: str, output: Any, is_t5: bool, folder: Path) -> str:
    has_pooler = getattr(output, "pooler_output", None) is not None
    # A sentence encoder says how it pools; its pooler's weights were never trained.
    sentence = (folder / "1_Pooling").is_dir() or (folder / "modules.json").is_file()
    if pooling == "auto":
        return "mean" if is_t5 or sentence or not has_pooler else "pooler"
    if pooling == "pooler" and not has_pooler:
        raise InputError(f"{folder} has no pooler; use model.text_pooling=cls or mean.")
    if pooling == "cls" and is_t5:
        raise InputError(f"{folder} is a T5, which has no [CLS]; use model.text_pooling=mean.")
    return pooling


def _pooler(output: Any, mask: Tensor) -> Tensor:
    pooled: Tensor = output.pooler_output
    return pooled


def _cls(output: Any, mask: Tensor) -> Tensor:
    first: Tensor = output.last_hidden_state[:, 0]
    return first


def _masked_mean(output: Any, mask: Tensor) -> Tensor:
    states: Tensor = output.last_hidden_state
    weights = mask.unsqueeze(-1).to(states)
    return (states * weights).sum(1) / weights.sum(1)


POOLINGS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "pooler": _pooler,
    "cls": _cls,
    "mean": _masked_mean,
}
