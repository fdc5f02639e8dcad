"""BERT's tokenizer over a made-up vocabulary, and the checkpoint keys of the LDM text-to-image model."""
import json

import pytest
import torch

from ldm.modules.encoders.bert_vocabulary import bert_tokenizer
from ldm.modules.encoders.modules import BERTEmbedder, BERTTokenizer
from tests.golden.case import oracle_file
from tests.modules.text_encoders import BERT_WORDS, bert_vocabulary, tiny_bert


def ids_of(*words):
    return [BERT_WORDS.index(word) for word in words]


def test_text_becomes_marked_and_padded_ids(tmp_path):
    tokens = BERTTokenizer(device="cpu", vq_interface=False, max_length=10, vocabulary=str(bert_vocabulary(tmp_path)))(["A Photo of a *", "sculpture zebra"])
    assert tokens.dtype == torch.int64
    assert tokens[0].tolist() == ids_of("[CLS]", "a", "photo", "of", "a", "*", "[SEP]") + [0] * 3
    assert tokens[1].tolist() == ids_of("[CLS]", "sculpt", "##ure", "[UNK]", "[SEP]") + [0] * 5


def test_long_text_is_cut_and_keeps_its_end_mark(tmp_path):
    tokens = BERTTokenizer(max_length=6, vocabulary=str(bert_vocabulary(tmp_path)))("a photo of a painting of a dog")
    assert tokens.tolist() == [ids_of("[CLS]", "a", "photo", "of", "a", "[SEP]")]


def test_tokenizer_can_stand_in_for_a_first_stage(tmp_path):
    tokenizer = BERTTokenizer(max_length=8, vocabulary=str(bert_vocabulary(tmp_path)))
    quantised, loss, (_, _, tokens) = tokenizer.encode("a dog")
    assert quantised is None and loss is None and torch.equal(tokens, tokenizer("a dog"))
    assert tokenizer.decode("a dog") == "a dog"


def test_a_folder_is_as_good_as_the_file(tmp_path):
    path = bert_vocabulary(tmp_path)
    assert bert_tokenizer(tmp_path)("a dog")["input_ids"] == bert_tokenizer(path)("a dog")["input_ids"]


def test_embedder_encodes_text_through_its_tokenizer(tmp_path):
    embedder = tiny_bert(tmp_path)
    with torch.no_grad():
        z = embedder.encode(["a photo of a *", "a dog"])
        assert z.shape == (2, 40, 24)
        assert torch.equal(z, embedder.transformer(embedder.tknz_fn(["a photo of a *", "a dog"]), return_embeddings=True))


def test_without_a_vocabulary_the_error_says_how_to_get_one():
    with pytest.raises(ValueError, match="no vocabulary given.*cond_stage_config.params.vocabulary.*bert-base-uncased"):
        BERTEmbedder(n_embed=8, n_layer=1)


def test_wrong_vocabularies_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file .*vocab.txt"):
        bert_tokenizer(tmp_path)
    path = tmp_path / "vocab.txt"
    path.write_text("just\nwords\n")
    with pytest.raises(ValueError, match=r"2 lines\) has no line \[PAD\], \[UNK\], \[CLS\], \[SEP\]"):
        bert_tokenizer(path)
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ValueError, match="no text file"):
        bert_tokenizer(path)


def test_a_vocabulary_larger_than_the_table_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"has {len(BERT_WORDS)} tokens, but vocab_size is 10"):
        tiny_bert(tmp_path, vocab_size=10)


def test_keys_and_shapes_are_those_of_the_ldm_text_to_image_checkpoint(tmp_path):
    manifest = json.loads(oracle_file("manifest_txt2img_1p4B.json").read_text())["keys"]
    prefix = "cond_stage_model."
    expected = {key[len(prefix) :]: entry["shape"] for key, entry in manifest.items() if key.startswith(prefix)}
    with torch.device("meta"):
        embedder = BERTEmbedder(n_embed=1280, n_layer=32, vocabulary=str(bert_vocabulary(tmp_path)))
    assert {key: list(value.shape) for key, value in embedder.state_dict().items()} == expected
