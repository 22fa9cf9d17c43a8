"""Running a `transformers` text encoder from its folder, safely; and tiny ones for smoke runs.

Nothing in the folder is executed, no weight that the folder lacks is filled in at random, and no
class is represented by the token for unknown words.
"""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lingula.settings.label_space import canonical, fold
from lingula.system.errors import InputError, examples

_BLANKS = "\u2581\u0120 "  # how tokenizers write the blank before a word


def phrase(name: str) -> str:
    """What the text encoder reads for a class: its name, lower case, underscores as blanks."""
    return fold(canonical(name))


def encode(
    classes: Sequence[str], phrases: list[str], folder: Path, pooling: str
) -> tuple[Tensor, str]:
    """(K, E) from a BERT-like model or a T5 encoder, and the pooling used.

    `InputError` for a folder that is incomplete or wants code run, and for classes whose words the
    tokenizer does not know.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # loading from a folder must not ask the hub
    transformers = _import_transformers()
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
        return _pool(output, tokens["attention_mask"], used).contiguous(), used


def _import_transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise InputError(
            "A text encoder needs the extra `text`: pip install 'lingula[text]'."
        ) from None
    return transformers


@contextlib.contextmanager
def _refusing(folder: Path) -> Iterator[None]:
    """Whatever the library meets in a folder is the folder's fault, and is said in our words."""
    try:
        yield
    except InputError:
        raise
    except pickle.UnpicklingError:
        raise InputError(
            f"{folder} (model.text) has weights that are Python objects, not only tensors, and "
            "are not opened: such a file can run anything. Get the encoder's model.safetensors, "
            "or save its state dict alone."
        ) from None
    except Exception as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise InputError(
            f"{folder} can't be used as a text encoder (model.text): {type(error).__name__}: "
            f"{reason}. It needs config.json, model.safetensors and all files of the tokenizer; "
            "code beside them is never run. Download it again, or use another encoder, "
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


def _pool(output: Any, mask: Tensor, pooling: str) -> Tensor:
    """(K, E) from an encoder's output, by its pooler, the first token or the masked mean."""
    states: Tensor = output.pooler_output if pooling == "pooler" else output.last_hidden_state
    if pooling == "mean":
        weights = mask.unsqueeze(-1).to(states)
        return (states * weights).sum(1) / weights.sum(1)
    return states if pooling == "pooler" else states[:, 0]


_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def save_tiny(folder: Path, kind: Literal["bert", "t5"], classes: Sequence[str]) -> Path:
    """Write a random BERT or T5 encoder of a few thousand weights, with a tokenizer of words.

    Args:
        folder: where; one that is there already is left as it is.
        kind: `bert` (with a pooler) or `t5` (encoder only).
        classes: names whose words make up the vocabulary.

    Returns:
        The folder. The same kind and classes give the same weights.
    """
    if (folder / "config.json").is_file():
        return folder
    transformers = _import_transformers()
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = dict.fromkeys([*_SPECIAL, *(w for name in classes for w in phrase(name).split())])
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "bert":
            sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
            settings = transformers.BertConfig(vocab_size=len(words), num_hidden_layers=1, **sizes)
            model = transformers.BertModel(settings)
        else:
            sizes = {"d_model": 32, "d_kv": 16, "d_ff": 32, "num_heads": 2}
            settings = transformers.T5Config(vocab_size=len(words), num_layers=1, **sizes)
            model = transformers.T5EncoderModel(settings)
    folder.mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder
