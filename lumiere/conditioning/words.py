"""New words for a text encoder that knows only the words it was trained with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast, T5EncoderModel

from lumiere.conditioning.text import unknown_words

LONGEST = 96
"""Words of a caption that a small text encoder is stretched to read; its positions are relative, so it can."""


def add_words(
    tokenizer: Any, text_encoder: Any, prompts: Sequence[str], *, generator: torch.Generator
) -> tuple[Any, list[str]]:
    """The tokenizer with those words of ``prompts`` that it lacks, and these words in the order of their first use.

    Every known word keeps its number; the text encoder gets an embedding for each new one, drawn like those it has.
    Long prompts are then read to their end, up to 96 words. A tokenizer of word pieces comes back as it is.
    """
    if not _is_word_tokenizer(tokenizer):
        return tokenizer, []
    words = unknown_words(tokenizer, prompts)
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = described["model"]["vocab"]
    first = max(vocabulary.values()) + 1
    vocabulary.update({word: first + index for index, word in enumerate(words)})
    described["truncation"] = described["padding"] = None
    backend = Tokenizer.from_str(json.dumps(described))
    longest = max((len(backend.encode(prompt).ids) for prompt in prompts), default=1)
    grown = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=tokenizer.eos_token,
        unk_token=tokenizer.unk_token,
        pad_token=tokenizer.pad_token,
        model_max_length=max(tokenizer.model_max_length, min(longest, LONGEST)),
        model_input_names=tokenizer.model_input_names,
    )
    _grow_embeddings(text_encoder, len(vocabulary), generator)
    return grown, words


def _is_word_tokenizer(tokenizer: Any) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and json.loads(backend.to_str())["model"]["type"] == "WordLevel"


@torch.no_grad()
def _grow_embeddings(text_encoder: T5EncoderModel, count: int, generator: torch.Generator) -> None:
    """Make room for ``count`` words; new rows have the mean and spread of the known ones."""
    known = text_encoder.get_input_embeddings().weight.detach().clone()
    if count <= len(known):
        return
    text_encoder.resize_token_embeddings(count, mean_resizing=False)
    noise = torch.randn(count - len(known), known.shape[1], generator=generator).to(known)
    text_encoder.get_input_embeddings().weight[len(known) :] = known.mean(0) + known.std(0) * noise
