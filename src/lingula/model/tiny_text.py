"""Tiny text encoders with random weights, saved as real ones are: stand-ins for smoke runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from lingula.model.text import phrase
from lingula.system.errors import InputError

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
    try:
        import transformers
        from tokenizers import Tokenizer, models, pre_tokenizers, processors
    except ImportError:
        raise InputError(
            "A text encoder needs the extra `text`: pip install 'lingula[text]'."
        ) from None
    words = dict.fromkeys([*_SPECIAL, *(w for name in classes for w in phrase(name).split())])
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast: Any = transformers.PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _bert(len(words)) if kind == "bert" else _t5(len(words))
    folder.mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def _bert(words: int) -> Any:
    import transformers

    return transformers.BertModel(
        transformers.BertConfig(
            vocab_size=words,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
        )
    )


def _t5(words: int) -> Any:
    import transformers

    return transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=words, d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2
        )
    )
