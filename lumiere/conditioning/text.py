"""Text encoders behind one protocol, and the small T5 of the embedded weights with its own word tokenizer."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

END, UNKNOWN, PAD = "</s>", "<unk>", "<pad>"


@dataclass(frozen=True)
class TextStates:
    """What a text encoder says of some prompts: states [B, L, D], their mask [B, L] (True: a word), pooled [B, D'].

    ``sizes`` [B, 6] is what SDXL's networks are told of their pictures beside the pooled state (``told_size``).
    """

    states: Tensor
    mask: Tensor | None = None
    pooled: Tensor | None = None
    sizes: Tensor | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> TextStates:
        """The same where a network runs, the numbers in its dtype."""
        return TextStates(
            self.states.to(device, dtype),
            None if self.mask is None else self.mask.to(device),
            None if self.pooled is None else self.pooled.to(device, dtype),
            None if self.sizes is None else self.sizes.to(device, dtype),
        )

    def repeated(self, count: int) -> TextStates:
        """Those of each prompt ``count`` times in a row."""
        mask, pooled, sizes = (
            None if part is None else part.repeat_interleave(count, 0) for part in (self.mask, self.pooled, self.sizes)
        )
        return TextStates(self.states.repeat_interleave(count, 0), mask, pooled, sizes)

    def told_size(self, height: int, width: int) -> TextStates:
        """The same for a network that is told how large its pictures are: whole ones of ``height`` x ``width`` pixels.

        Source: SDXL (Podell et al., arXiv 2307.01952), section 2.2.
        """
        sizes = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32)
        return replace(self, sizes=sizes.expand(len(self.states), -1))

    def added(self) -> dict[str, Tensor]:
        """diffusers' added conditions: pooled state and sizes, for a network that is told sizes; else none."""
        if self.sizes is None or self.pooled is None:
            return {}
        return {"text_embeds": self.pooled, "time_ids": self.sizes}


MAX_LENGTH = 4096
"""Longer prompts mean that a tokenizer does not say its length (transformers then gives it an endless one)."""


@dataclass(frozen=True)
class Reading:
    """How an image network was used to prompts being read, where that is not the encoder's own way."""

    lower_case: bool = False
    """Prompts are written in lower case, without spaces around."""
    hides_padding: bool = True
    """Whether the network is told which states are padding."""
    length: int | None = None
    """Tokens that prompts are padded and cut to; None: the tokenizer's own."""
    zeros_for_nothing: bool = False
    """An empty prompt has states of zeros."""

    def as_dict(self) -> dict[str, Any]:
        """What a configuration stores."""
        return asdict(self)


DEEPFLOYD_READING = Reading(lower_case=True, hides_padding=False, length=77)
"""As diffusers' DeepFloyd IF pipelines read, when they are not asked to clean prompts."""


class TextEncoder(Protocol):
    """Prompts in, states out."""

    def encode(self, prompts: Sequence[str]) -> TextStates:
        """The states of ``prompts``, padded to one length."""


class T5Text:
    """Prompts through a T5 encoder of transformers: DeepFloyd IF's, or the small one of the embedded weights.

    Every prompt is padded to the tokenizer's full length, so that a prompt's states do not depend on its batch.
    """

    def __init__(self, tokenizer: Any, text_encoder: T5EncoderModel, reading: Reading | None = None) -> None:
        self.tokenizer, self.text_encoder, self.reading = tokenizer, text_encoder, reading or Reading()

    def encode(self, prompts: Sequence[str]) -> TextStates:
        """States [B, L, D] and mask [B, L]; gradients flow, so that the encoder can be trained."""
        if self.reading.lower_case:
            prompts = [prompt.lower().strip() for prompt in prompts]
        tokens = _padded_tokens(self.tokenizer, prompts, self.reading.length)
        device = self.text_encoder.device
        mask = tokens.attention_mask.to(device)
        states = self.text_encoder(tokens.input_ids.to(device), attention_mask=mask).last_hidden_state
        return TextStates(states, mask.bool() if self.reading.hides_padding else None)


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


class TwoClipText:
    """Prompts through both CLIP encoders of SDXL: the states before their last layers side by side, and the second's
    pooled state; no mask, as these networks saw the padding too.

    Source: SDXL (Podell et al., arXiv 2307.01952); which states is diffusers' reading of it.
    """

    def __init__(self, tokenizers: tuple[Any, Any], text_encoders: tuple[Any, Any], reading: Reading | None = None):
        self.tokenizers, self.text_encoders, self.reading = tokenizers, text_encoders, reading or Reading()

    def encode(self, prompts: Sequence[str]) -> TextStates:
        """States [B, 77, D + D'] and the pooled state [B, D'']."""
        states, pooled = [], None
        for tokenizer, text_encoder in zip(self.tokenizers, self.text_encoders, strict=True):
            tokens = _padded_tokens(tokenizer, prompts, self.reading.length)
            output = text_encoder(tokens.input_ids.to(text_encoder.device), output_hidden_states=True)
            states.append(output.hidden_states[-2])
            pooled = output.text_embeds if hasattr(output, "text_embeds") else None
        assert pooled is not None
        said = TextStates(torch.cat(states, dim=-1), pooled=pooled)
        if not self.reading.zeros_for_nothing:
            return said
        counts = torch.tensor([bool(prompt) for prompt in prompts], device=pooled.device)
        return TextStates(said.states * counts.view(-1, 1, 1), pooled=pooled * counts.view(-1, 1))


def _padded_tokens(tokenizer: Any, prompts: Sequence[str], length: int | None = None) -> Any:
    """Token ids and mask [B, L], L the given length or else the tokenizer's own."""
    if length is not None:
        return tokenizer(list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    if tokenizer.model_max_length > MAX_LENGTH:
        raise ValueError(
            "the tokenizer has no model_max_length; set it to the length that its network was trained with"
        )
    return tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt")


def text_encoder_for(
    tokenizer: Any,
    text_encoder: Any,
    *,
    second: tuple[Any, Any] | None = None,
    reading: Reading | None = None,
) -> TextEncoder:
    """The way to encode prompts that fits a text encoder of transformers: a T5 encoder, or CLIP's text part.

    ``second`` is SDXL's second (tokenizer, text encoder). Raises ValueError for any other.
    """
    if second is not None:
        if not (type(text_encoder).__name__ in _CLIP and type(second[1]).__name__ == "CLIPTextModelWithProjection"):
            raise ValueError(
                f"text encoders are a {type(text_encoder).__name__} and a {type(second[1]).__name__}; SDXL's are a"
                " CLIPTextModel and a CLIPTextModelWithProjection"
            )
        return TwoClipText((tokenizer, second[0]), (text_encoder, second[1]), reading)
    kinds: dict[str, Callable[[Any, Any], TextEncoder]] = {
        "T5EncoderModel": partial(T5Text, reading=reading),
        "CLIPTextModel": ClipText,
        "CLIPTextModelWithProjection": ClipText,
    }
    kind = kinds.get(type(text_encoder).__name__)
    if kind is None:
        raise ValueError(f"text encoder is a {type(text_encoder).__name__}; known are {', '.join(kinds)}")
    return kind(tokenizer, text_encoder)


_CLIP = ("CLIPTextModel", "CLIPTextModelWithProjection")


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
