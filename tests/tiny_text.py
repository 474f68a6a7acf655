"""Tiny tokenizers and text encoders of the kinds that image networks hear, for tests."""

from __future__ import annotations

import json
from pathlib import Path

import sentencepiece
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from lumiere.conditioning.text import ClipText, freeze, small_t5

PROMPTS = ("a red ball", "", "a blue star bouncing, spinning")


def t5_tokenizer(folder: Path) -> T5Tokenizer:
    """A tokenizer in T5's own file format, spiece.model, as DeepFloyd IF's folders hold it."""
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join([*PROMPTS, "the quick brown fox jumps over the lazy dog"] * 4))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "spiece"),
        vocab_size=48,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 24}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return T5Tokenizer.from_pretrained(folder)


def t5_encoder(num_words: int, *, width: int = 16) -> T5EncoderModel:
    """A frozen T5 encoder with states of ``width``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = small_t5(num_words, width=width, num_layers=2, num_heads=2)
    freeze(encoder)
    return encoder


def clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer of single letters and one merge."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "re", "red</w>"]
    vocabulary = {piece: index for index, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=12)


def clip_text(folder: Path, kind: type = CLIPTextModel, *, width: int = 16, num_layers: int = 2) -> ClipText:
    """A CLIP tokenizer and a frozen text encoder with states of ``width``."""
    tokenizer = clip_tokenizer(folder)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        projection_dim=6,
        max_position_embeddings=12,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = kind(config)
    freeze(encoder)
    return ClipText(tokenizer, encoder)
