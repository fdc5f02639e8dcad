"""What of a prompt reaches the model: tokens that are read, words that stand in it."""
from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ldm.inference.prompts import reading_of, warn_of_absent_words, without_words
from tests.modules.text_encoders import tiny_bert, tiny_clip

LENGTH = 8  # two of them for marks


def model_with(encoder, **vectors):
    """An encoder, and words of so many vectors; their tokens by this encoder."""
    from ldm.modules.encoder_words import words_of

    words = words_of(encoder)
    names = {"star": "*", "at": "@"}
    manager = SimpleNamespace(
        string_to_param_dict={names[key]: torch.zeros(count, 1) for key, count in vectors.items()},
        string_to_token_dict={names[key]: torch.tensor(words.pieces(names[key])[0]) for key in vectors},
    )
    return SimpleNamespace(cond_stage_model=encoder, embedding_manager=manager if vectors else None)


@pytest.fixture(params=["clip", "bert"])
def encoder(request, tmp_path) -> nn.Module:
    return tiny_clip(max_length=LENGTH) if request.param == "clip" else tiny_bert(tmp_path, max_seq_len=LENGTH)


@pytest.mark.parametrize(
    ("vectors", "prompt", "unread"),
    [
        ({}, "a photo of a dog", ""),
        ({}, "a photo of a dog in", ""),
        ({}, "a photo of a dog in a painting", "a painting"),
        ({"star": 1}, "a photo of a * in", ""),
        ({"star": 4}, "* a photo of", ""),
        ({"star": 4}, "* a photo of a dog", "a dog"),
        ({"star": 4}, "a photo of a *", "*"),
        ({"star": 4, "at": 3}, "* @ a", "a"),
        ({"star": 9}, "* a", "* a"),
        ({}, "", ""),
    ],
)
def test_what_is_not_read_is_known(encoder, vectors, prompt, unread):
    assert reading_of(model_with(encoder, **vectors), prompt).unread == unread


def test_what_is_called_unread_does_not_change_the_encoding(encoder):
    read, whole = "a photo of a dog in", "a photo of a dog in a painting"
    assert reading_of(model_with(encoder), whole).unread == "a painting"
    torch.testing.assert_close(encoder.encode([whole]), encoder.encode([read]))


def test_one_word_of_several_is_enough(encoder, caplog):
    model = model_with(encoder, star=1, at=1)
    warn_of_absent_words(model, ["a photo of *", "a photo of @"], "words.pt")
    assert not caplog.messages
    warn_of_absent_words(model, ["a photo of *", "a dog", "a painting"], "words.pt")
    (said,) = caplog.messages
    assert said.startswith("2 of 3 prompts hold none of the learnt words of words.pt, which are '*', '@'") and "“a dog”, “a painting”" in said


def test_without_words_a_model_is_not_asked_for_them(encoder, caplog):
    warn_of_absent_words(model_with(encoder), ["a dog"], "words.pt")
    assert not caplog.messages


def test_a_prompt_without_its_words(encoder):
    assert without_words(model_with(encoder, star=1, at=2), "a photo of * in the style of @ ") == "a photo of in the style of"
    assert without_words(model_with(encoder), "a photo of *") == "a photo of *"
