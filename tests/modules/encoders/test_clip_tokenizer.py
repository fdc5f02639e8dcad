"""The tokenizer built from the clip package's file: its ids are that package's own, padded as Stable Diffusion needs them."""
import random

import pytest
from clip.simple_tokenizer import SimpleTokenizer

from ldm.modules.encoders import clip_tokenizer as module
from ldm.modules.encoders.clip_tokenizer import clip_tokenizer
from ldm.prompts import imagenet_templates_small, per_img_token_list, style_templates_small
from tests.golden.case import load_case

START, END = 49406, 49407


@pytest.fixture(scope="module")
def reference():
    return SimpleTokenizer()


def strings():
    chance = random.Random(5)
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,;:!?'-*@#%+=/()[]"
    fixed = [
        "", "*", "@", "a photo of a *", "opossum", "It's the dog's; they're here, I'd've said we'll go", "don't DON'T", "1234567890 3.14", "x" * 60,
        "naïve café Ångström", "日本語の文章", "привет мир", "😀👍🏽 emoji", "tabs\tand\nnewlines   and  spaces ", "a_b-c/d\\e", "«quoted» — dashes…",
        "C++ & C#", "²³½ ① Ⅷ", "<|startoftext|> marks <|endoftext|>", *per_img_token_list,
    ]  # fmt: skip
    templates = [template.format(word) for template in (*imagenet_templates_small, *style_templates_small) for word in ("*", "sculpture")]
    return fixed + templates + ["".join(chance.choices(letters, k=chance.randrange(1, 50))) for _ in range(300)]


def test_ids_are_those_of_the_clip_package(reference):
    tokenizer = clip_tokenizer()
    different = [text for text in strings() if tokenizer(text)["input_ids"] != [START, *reference.encode(text), END]]
    assert not different


@pytest.mark.parametrize("text", ["ﬁ", "“curly”", "&amp;"])
def test_text_is_not_repaired(reference, text):
    """The clip package straightens quotes, ligatures and HTML marks before it splits; the tokenizer of Stable Diffusion takes texts as they are."""
    assert clip_tokenizer()(text)["input_ids"] != [START, *reference.encode(text), END]


def test_known_tokens_and_padding():
    tokenizer = clip_tokenizer()
    ids = tokenizer(["*", "a sculpture"], truncation=True, max_length=77, padding="max_length", return_tensors="pt")["input_ids"]
    assert ids.shape == (2, 77)
    assert ids[0, :3].tolist() == [START, 265, END] and ids[1, 2] == 8757
    assert (ids[0, 2:] == END).all()
    assert len(tokenizer) == 49408 and tokenizer.pad_token_id == END


def test_recorded_ids():
    case = load_case("ld_a_core")
    ids = clip_tokenizer()(case.notes["PROMPTS"], truncation=True, max_length=77, padding="max_length", return_tensors="pt")["input_ids"]
    assert ids.tolist() == case["out/token_ids_PROMPTS"].tolist()


def test_long_texts_are_cut_and_keep_the_end_mark():
    ids = clip_tokenizer()("word " * 100, truncation=True, max_length=77, padding="max_length")["input_ids"]
    assert len(ids) == 77 and ids[-1] == END and ids[-2] != END


def test_absent_package_is_named(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install clip-anytorch"):
        clip_tokenizer.__wrapped__()
