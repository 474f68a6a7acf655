"""Text encoders behind one protocol, and the small T5 of the embedded weights with its own word tokenizer."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

END, UNKNOWN, PAD = "</s>", "<unk>", "<pad>"


@dataclass(frozen=True)
class TextStates:
    """What a text encoder says of some prompts: states [B, L, D], their mask [B, L] (True: a word), pooled [B, D']."""

    states: Tensor
    mask: Tensor | None = None
    pooled: Tensor | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> TextStates:
        """The same where a network runs, the numbers in its dtype."""
        return TextStates(
            self.states.to(device, dtype),
            None if self.mask is None else self.mask.to(device),
            None if self.pooled is None else self.pooled.to(device, dtype),
        )


MAX_LENGTH = 4096
"""Longer prompts mean that a tokenizer does not say its length (transformers then gives it an endless one)."""


class TextEncoder(Protocol):
    """Prompts in, states out."""

    def encode(self, prompts: Sequence[str]) -> TextStates:
        """The states of ``prompts``, padded to one length."""


class T5Text:
    """Prompts through a T5 encoder of transformers: DeepFloyd IF's, or the small one of the embedded weights.

    Every prompt is padded to the tokenizer's full length, so that a prompt's states do not depend on its batch.
    """

    def __init__(self, tokenizer: Any, text_encoder: T5EncoderModel) -> None:
        self.tokenizer, self.text_encoder = tokenizer, text_encoder

    def encode(self, prompts: Sequence[str]) -> TextStates:
        """States [B, L, D] and mask [B, L]; gradients flow, so that the encoder can be trained."""
        tokens = _padded_tokens(self.tokenizer, prompts)
        device = self.text_encoder.device
        mask = tokens.attention_mask.to(device)
        states = self.text_encoder(tokens.input_ids.to(device), attention_mask=mask).last_hidden_state
        return TextStates(states, mask.bool())


class ClipText:
    """Prompts through a CLIP text encoder of transformers, as Stable Diffusion's networks were trained with.

    The states are those of the last layer after its norm; no mask, because these networks saw the padding too.
    """

    def __init__(self, tokenizer: Any, text_encoder: Any) -> None:
        self.tokenizer, self.text_encoder = tokenizer, text_encoder

    def encode(self, prompts: Sequence[str]) -> TextStates:
        """States [B, 77, D] and the pooled state [B, D]."""
        tokens = _padded_tokens(self.tokenizer, prompts)
        output = self.text_encoder(tokens.input_ids.to(self.text_encoder.device))
        pooled = output.text_embeds if hasattr(output, "text_embeds") else output.pooler_output
        return TextStates(output.last_hidden_state, pooled=pooled)


def _padded_tokens(tokenizer: Any, prompts: Sequence[str]) -> Any:
    """Token ids and mask [B, L], L the tokenizer's own length."""
    if tokenizer.model_max_length > MAX_LENGTH:
        raise ValueError(
            "the tokenizer has no model_max_length; set it to the length that its network was trained with"
        )
    return tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt")


def text_encoder_for(tokenizer: Any, text_encoder: Any) -> TextEncoder:
    """The way to encode prompts that fits a text encoder of transformers: a T5 encoder, or CLIP's text part.

    Raises ValueError for any other.
    """
    kinds: dict[str, Callable[[Any, Any], TextEncoder]] = {
        "T5EncoderModel": T5Text,
        "CLIPTextModel": ClipText,
        "CLIPTextModelWithProjection": ClipText,
    }
    kind = kinds.get(type(text_encoder).__name__)
    if kind is None:
        raise ValueError(f"text encoder is a {type(text_encoder).__name__}; known are {', '.join(kinds)}")
    return kind(tokenizer, text_encoder)


def mean_state(text: TextStates) -> Tensor:
    """The mean [B, D] of each prompt's states over its words."""
    if text.mask is None:
        return text.states.mean(1)
    weights = text.mask.to(text.states.dtype).unsqueeze(-1)
    return (text.states * weights).sum(1) / weights.sum(1)


def word_tokenizer(words: Sequence[str], *, max_length: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are ``words``, lower case; punctuation is dropped, prompts end with </s>."""
    vocabulary = {token: index for index, token in enumerate([PAD, END, UNKNOWN, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\p{L}\p{M}\p{N}']+"), behavior="removed", invert=True)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        unk_token=UNKNOWN,
        pad_token=PAD,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
    )


def small_t5(num_words: int, *, width: int = 128, num_layers: int = 2, num_heads: int = 4) -> T5EncoderModel:
    """A small random T5 encoder with ``num_words`` embeddings and states of ``width``."""
    config = T5Config(
        vocab_size=num_words,
        d_model=width,
        d_kv=width // num_heads,
        d_ff=2 * width,
        num_layers=num_layers,
        num_heads=num_heads,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
    )
    return T5EncoderModel(config)


def unknown_words(tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    """The words of ``prompts`` that a word tokenizer has never seen, in order, each once; other tokenizers know all."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not isinstance(backend.model, models.WordLevel):
        return []
    vocabulary = tokenizer.get_vocab()
    seen: dict[str, None] = {}
    for prompt in prompts:
        pieces = backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(prompt))
        seen.update({word: None for word, _ in pieces if word not in vocabulary})
    return list(seen)


def text_notes(tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    """What a person should know of how ``prompts`` are read: words never seen, with the nearest known, and cut ends."""
    special = set(tokenizer.all_special_tokens)
    known = [word for word in tokenizer.get_vocab() if word not in special]
    notes = []
    for word in unknown_words(tokenizer, prompts):
        near = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
        hint = f"the nearest that it knows: {', '.join(near)}" if near else "it knows no word like it"
        notes.append(f"the model has never seen the word {word!r}; {hint}")
    limit = tokenizer.model_max_length
    num_read = limit - tokenizer.num_special_tokens_to_add()
    for prompt in dict.fromkeys(prompts):
        ids = tokenizer(prompt, verbose=False).input_ids
        if len(ids) > limit:
            cut = tokenizer.decode(ids[limit - 1 :], skip_special_tokens=True)
            if tokenizer.is_fast:  # The prompt's own words, also those that are never seen.
                starts = tokenizer(prompt, verbose=False, return_offsets_mapping=True).offset_mapping
                cut = prompt[starts[limit - 1][0] :]
            notes.append(
                f"the model reads {num_read} words or pieces of a prompt; this end is not read: {cut.strip()!r}"
            )
    return notes


def freeze(module: torch.nn.Module) -> None:
    """Take a module out of training: no gradients, evaluation mode."""
    module.requires_grad_(False).eval()
