"""Text encoders behind one protocol, against transformers called by hand; and how prompts are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
)

from lumiere.conditioning.text import (
    ClipText,
    T5Text,
    TextStates,
    freeze,
    mean_state,
    text_encoder_for,
    text_notes,
    unknown_words,
    word_tokenizer,
)
from tests.tiny_text import PROMPTS, clip_text, clip_tokenizer, t5_encoder, t5_tokenizer

WORDS = ("a", "red", "blue", "ball", "star", "bouncing", "spinning", "it's")


def word_text() -> T5Text:
    tokenizer = word_tokenizer(WORDS, max_length=8)
    return T5Text(tokenizer, t5_encoder(len(tokenizer)))


@pytest.fixture(scope="module")
def sentencepiece_t5(tmp_path_factory: pytest.TempPathFactory) -> T5Text:
    tokenizer = t5_tokenizer(tmp_path_factory.mktemp("t5"))
    return T5Text(tokenizer, t5_encoder(len(tokenizer)))


@pytest.mark.parametrize("kind", ["words", "sentencepiece"])
def test_t5_states_are_those_of_the_prompt_alone_without_padding(kind: str, sentencepiece_t5: T5Text) -> None:
    text = word_text() if kind == "words" else sentencepiece_t5
    found = text.encode(PROMPTS)
    assert found.states.shape == (3, text.tokenizer.model_max_length, 16)
    assert found.mask is not None
    for index, prompt in enumerate(PROMPTS):
        ids = torch.tensor([text.tokenizer(prompt).input_ids])
        alone = text.text_encoder(input_ids=ids).last_hidden_state[0]
        assert found.mask[index].tolist() == [place < ids.shape[1] for place in range(found.states.shape[1])]
        assert torch.allclose(found.states[index, found.mask[index]], alone, atol=1e-5)


def test_sentencepiece_reads_a_prompt_as_its_own_library_does(sentencepiece_t5: T5Text) -> None:
    reader = sentencepiece.SentencePieceProcessor(model_file=sentencepiece_t5.tokenizer.vocab_file)
    for prompt in PROMPTS:
        assert sentencepiece_t5.tokenizer(prompt).input_ids == [*reader.encode(prompt), 1]


@pytest.mark.parametrize("kind", [CLIPTextModel, CLIPTextModelWithProjection])
def test_clip_states_are_those_that_stable_diffusion_sees(kind: type, tmp_path: Path) -> None:
    text = clip_text(tmp_path, kind)
    found = text.encode(("a red star", "red"))
    ids = text.tokenizer(["a red star", "red"], padding="max_length", return_tensors="pt").input_ids
    expected = text.text_encoder(ids)
    assert found.mask is None
    assert torch.equal(found.states, expected[0] if kind is CLIPTextModel else expected.last_hidden_state)
    end = (ids == text.tokenizer.eos_token_id).int().argmax(1)
    pooled = found.states[torch.arange(2), end]
    if kind is CLIPTextModelWithProjection:
        pooled = text.text_encoder.text_projection(pooled)
    assert found.pooled is not None
    assert torch.allclose(found.pooled, pooled, atol=1e-6)


@pytest.mark.parametrize("kind", ["words", "sentencepiece", "clip"])
def test_a_prompt_s_states_do_not_depend_on_its_batch(kind: str, sentencepiece_t5: T5Text, tmp_path: Path) -> None:
    made: dict[str, Any] = {"words": word_text, "sentencepiece": lambda: sentencepiece_t5}
    text = made[kind]() if kind in made else clip_text(tmp_path)
    together = text.encode(PROMPTS).states
    for index, prompt in enumerate(PROMPTS):
        assert torch.allclose(text.encode([prompt]).states[0], together[index], atol=1e-5)
    assert not torch.allclose(together[0], together[2])


def test_the_encoder_is_chosen_by_its_class(tmp_path: Path) -> None:
    t5, clip = word_text(), clip_text(tmp_path)
    assert isinstance(text_encoder_for(t5.tokenizer, t5.text_encoder), T5Text)
    assert isinstance(text_encoder_for(clip.tokenizer, clip.text_encoder), ClipText)
    other = BertModel(BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    with pytest.raises(ValueError, match="BertModel; known are T5EncoderModel, CLIPTextModel"):
        text_encoder_for(t5.tokenizer, other)


def test_a_tokenizer_without_a_length_is_refused() -> None:
    text = word_text()
    text.tokenizer.model_max_length = int(1e30)
    with pytest.raises(ValueError, match="model_max_length"):
        text.encode(["a ball"])


def test_gradients_reach_the_encoder_unless_it_is_frozen() -> None:
    text = word_text()
    text.text_encoder.requires_grad_(True)
    text.encode(["a ball"]).states.sum().backward()
    assert all(weight.grad is not None for weight in text.text_encoder.parameters())
    freeze(text.text_encoder)
    assert not text.encode(["a ball"]).states.requires_grad


def test_the_mean_state_is_over_the_words_alone() -> None:
    states = torch.randn(2, 5, 3)
    mask = torch.tensor([[True, True, False, False, False], [True] * 5])
    expected = torch.stack([states[0, :2].mean(0), states[1].mean(0)])
    assert torch.allclose(mean_state(TextStates(states, mask)), expected)
    assert torch.allclose(mean_state(TextStates(states)), states.mean(1))


def test_words_are_read_whatever_their_case_and_punctuation() -> None:
    tokenizer = word_tokenizer(WORDS, max_length=8)
    plain = tokenizer("a red ball bouncing").input_ids
    for same in (
        "A RED ball, bouncing!",
        "  a red\nball   bouncing.",
        '"a red (ball)" - bouncing',
        "ａ red ball bouncing",
    ):
        assert tokenizer(same).input_ids == plain
    assert tokenizer.convert_ids_to_tokens(plain) == ["a", "red", "ball", "bouncing", "</s>"]
    assert tokenizer("it's").input_ids == [tokenizer.get_vocab()["it's"], tokenizer.eos_token_id]
    assert tokenizer("dragon").input_ids[0] == tokenizer.unk_token_id


def test_the_word_tokenizer_survives_its_folder(tmp_path: Path) -> None:
    tokenizer = word_tokenizer(WORDS, max_length=8)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.model_max_length == 8
    for prompt in (*PROMPTS, "A dragon!"):
        assert again(prompt).input_ids == tokenizer(prompt).input_ids
    assert unknown_words(again, ["a red dragon"]) == ["dragon"]


def test_unknown_words_are_named_once_with_the_nearest() -> None:
    tokenizer = word_tokenizer(WORDS, max_length=8)
    assert unknown_words(tokenizer, ["A Red dragon", "a dragon; stars"]) == ["dragon", "stars"]
    assert unknown_words(tokenizer, PROMPTS) == []
    notes = text_notes(tokenizer, ["a stars", "a xylophone"])
    assert notes == [
        "the model has never seen the word 'stars'; the nearest that it knows: star",
        "the model has never seen the word 'xylophone'; it knows no word like it",
    ]
    assert unknown_words(tokenizer, ["a red шар, café"]) == ["шар", "café"]


def test_the_end_that_is_not_read_is_quoted(sentencepiece_t5: T5Text, tmp_path: Path) -> None:
    tokenizer = word_tokenizer(WORDS, max_length=5)
    assert text_notes(tokenizer, ["a red ball spinning", ""]) == []
    (note,) = text_notes(tokenizer, ["a red ball spinning blue star"])
    assert note == "the model reads 4 words or pieces of a prompt; this end is not read: 'blue star'"
    *_, note = text_notes(tokenizer, ["a red ball spinning zebra"])
    assert note.endswith("this end is not read: 'zebra'")
    (note,) = text_notes(sentencepiece_t5.tokenizer, ["a red ball " * 9])
    assert note.endswith("ball'")
    (note,) = text_notes(clip_tokenizer(tmp_path), ["red " * 11])
    assert note == "the model reads 10 words or pieces of a prompt; this end is not read: 'red'"


def test_tokenizers_of_pieces_know_every_word(sentencepiece_t5: T5Text, tmp_path: Path) -> None:
    assert unknown_words(sentencepiece_t5.tokenizer, ["xylophone"]) == []
    assert unknown_words(clip_tokenizer(tmp_path), ["xylophone"]) == []
