"""Running a `transformers` text encoder from its folder: safely, once, and only if it is whole.

Nothing that lies in the folder is executed, and a random number never stands in for a weight, nor
the token for unknown words for a class.
"""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lingula.system.errors import InputError, examples

_BLANKS = "\u2581\u0120 "  # how tokenizers write the blank before a word


def encode(
    classes: Sequence[str], phrases: list[str], folder: Path, pooling: str
) -> tuple[Tensor, str]:
    """(K, E) from a BERT-like model or a T5 encoder, and the pooling used.

    `InputError` for a folder that is not whole or wants code run, and for classes whose words the
    tokenizer does not know.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # loading from a folder must not ask the hub
    try:
        import transformers
    except ImportError:
        raise InputError(
            "A text encoder needs the extra `text`: pip install 'lingula[text]'."
        ) from None
    here: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with _refusing(folder), _quiet(transformers.utils.logging):
        settings = transformers.AutoConfig.from_pretrained(folder, **here)
        is_t5 = settings.model_type in ("t5", "mt5", "longt5", "umt5")
        kind: Any = transformers.T5EncoderModel if is_t5 else transformers.AutoModel
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, **here)
        model, found = kind.from_pretrained(folder, output_loading_info=True, **here)
        _check_read(classes, phrases, tokenizer, folder)
        missing = sorted(found["missing_keys"])
        untrained = _check_whole(missing, folder)
        model = model.float().eval()
        tokens = tokenizer(phrases, padding=True, return_tensors="pt")
        with torch.no_grad():
            output = model(**{k: tokens[k] for k in ("input_ids", "attention_mask")})
        has_pooler = getattr(output, "pooler_output", None) is not None and not untrained
        used = _chosen_pooling(pooling, has_pooler, is_t5, folder)
        return POOLINGS[used](output, tokens["attention_mask"]).contiguous(), used


@contextlib.contextmanager
def _refusing(folder: Path) -> Iterator[None]:
    """Whatever the library meets in a folder is the folder's fault, and is said in our words."""
    try:
        yield
    except InputError:
        raise
    except pickle.UnpicklingError:
        raise InputError(
            f"{folder} (model.text) holds weights that are Python objects, not only tensors, and "
            "are not opened: such a file can run anything. Get the encoder's model.safetensors, "
            "or save its state dict alone."
        ) from None
    except Exception as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise InputError(
            f"{folder} can't be used as a text encoder (model.text): {type(error).__name__}: "
            f"{reason}. It needs config.json, model.safetensors and the tokenizer's files, whole; "
            "code that lies beside them is never run. Download it again, or use another encoder, "
            "or model.text=orthogonal, which needs no text."
        ) from None


@contextlib.contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """No bars and no tables of weights: what matters in them is checked here, and is an error."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _check_read(classes: Sequence[str], phrases: list[str], tokenizer: Any, folder: Path) -> None:
    """Refuse classes of which the tokenizer reads no word: they would all be the same to it."""
    unread = []
    every = tokenizer(phrases, add_special_tokens=False)["input_ids"]
    for name, ids in zip(classes, every, strict=True):
        pieces = (str(piece) for piece in tokenizer.convert_ids_to_tokens(ids))
        if not any(p.strip(_BLANKS) for p in pieces if p != tokenizer.unk_token):
            unread.append(name)
    if unread:
        raise InputError(
            f"The tokenizer in {folder} (model.text) knows no word of {examples(unread)}: they "
            "would share one embedding, which says nothing of them. Are the tokenizer's files "
            "there (tokenizer.json, vocab.txt, spiece.model, merges.txt)? If they are, use an "
            "encoder whose vocabulary has these words."
        )


def _check_whole(missing: Sequence[str], folder: Path) -> bool:
    """Refuse weights that lack tensors; whether it is the pooler alone that they lack.

    The library fills in random numbers. Many published encoders have no pooler of their own.
    """
    lacking = [name for name in missing if "pooler" not in name.split(".")]
    if lacking:
        raise InputError(
            f"The weights in {folder} (model.text) lack {len(lacking)} of the encoder's tensors "
            f"({examples(lacking, 3)}), which would be random. They are of another model than its "
            "config.json says: download the folder again."
        )
    return bool(missing)


def _chosen_pooling(pooling: str, has_pooler: bool, is_t5: bool, folder: Path) -> str:
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
