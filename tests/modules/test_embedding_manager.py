"""Learnt words: the recorded numbers, and everything that a user can ask for or get wrong."""
import inspect
import logging

import pytest
import torch
from omegaconf import OmegaConf

from ldm.modules.embedding_manager import (
    DEFAULT_PLACEHOLDER_TOKEN,
    PROGRESSIVE_SCALE,
    EmbeddingManager,
    get_bert_token_for_string,
    get_clip_token_for_string,
    get_embedding_for_clip_token,
)
from ldm.modules.encoders.modules import BERTEmbedder
from ldm.prompts import imagenet_templates_small, per_img_token_list, style_templates_small
from ldm.util import instantiate_from_config
from tests.golden.case import assert_close_to_golden, golden_path, load_case
from tests.modules.text_encoders import BERT_WORDS, EMBEDDING_CASES, Adding, clip_of_case, clip_with_weights_of, tiny_bert, tiny_clip


@pytest.fixture(scope="module")
def clip():
    return tiny_clip()


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("bert"))


def recorded(name):
    """A case and its manager, with the recorded vectors and counter."""
    case = load_case(name)
    manager = instantiate_from_config(case.config.personalization_config, embedder=clip_of_case(case))
    state = {f"string_to_param_dict.{key}": value for key, value in case.under("param").items()}
    manager.load_state_dict(state | {f"initial_embeddings.{key}": value for key, value in case.under("initial_embeddings").items()})
    manager.progressive_counter = case.notes.get("progressive_counter_before", 0)
    return case, manager


def ids_of(clip, *texts):
    return clip.tokenizer(list(texts), truncation=True, max_length=77, padding="max_length", return_tensors="pt")["input_ids"]


# -- recorded numbers -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EMBEDDING_CASES)
def test_forward_puts_vectors_where_they_are_recorded(name):
    case, manager = recorded(name)
    ids, embeddings = case["in/ids"].clone(), case["in/emb"].clone()
    assert_close_to_golden(manager(ids, embeddings), case["out/emb"])
    assert torch.equal(ids, case["in/ids"]) and torch.equal(embeddings, case["in/emb"])
    assert manager.progressive_counter == case.notes["progressive_counter_after"] and type(manager.progressive_counter) is int


@pytest.mark.parametrize("name", EMBEDDING_CASES)
def test_norms_and_coarse_loss_are_the_recorded_ones(name):
    case, manager = recorded(name)
    assert_close_to_golden(manager.get_embedding_norms_squared(), case["out/norms_sq"])
    assert_close_to_golden(manager.embedding_to_coarse_loss(), case["out/coarse_loss"])


@pytest.mark.parametrize("name", EMBEDDING_CASES)
def test_names_and_shapes_are_the_recorded_ones(name):
    case, manager = recorded(name)
    assert list(manager.state_dict()) == case.notes["state_dict_keys"]
    assert [list(vectors.shape) for vectors in manager.embedding_parameters()] == case.notes["embedding_parameters"]
    assert {key: int(token) for key, token in manager.string_to_token_dict.items()} == case.notes["string_to_token"]
    assert [name for name, p in manager.named_parameters() if p.requires_grad] == [key for key in case.notes["state_dict_keys"] if "string_to_param" in key]


@torch.no_grad()
@pytest.mark.parametrize("which", ["ld_a", "ld_b"])
def test_a_prompt_is_encoded_as_recorded(which):
    """Start vector, token embeddings with positions, and the whole encoding, with one and with three vectors."""
    weights, core = load_case(f"{which}_weights"), load_case(f"{which}_core")
    encoder = clip_with_weights_of(weights)
    manager = instantiate_from_config(weights.config.model.params.personalization_config, embedder=encoder)
    state = {key.removeprefix("embedding_manager."): value for key, value in weights.state_dict().items() if key.startswith("embedding_manager.")}
    assert_close_to_golden(manager.initial_embeddings["*"], state["initial_embeddings.*"])
    manager.load_state_dict(state)
    assert_close_to_golden(encoder.encode(core.notes["PROMPTS"], embedding_manager=manager), core["out/learned_conditioning_PROMPTS"])
    model, ids = encoder.transformer.text_model, ids_of(encoder, *core.notes["PROMPTS"])
    embedded = manager(ids, model.embeddings.token_embedding(ids)) + model.embeddings.position_embedding.weight
    assert_close_to_golden(embedded, core["out/embeddings_layer_PROMPTS"])


# -- start vectors ----------------------------------------------------------------------------------------------------------------------


def test_clip_starts_from_the_words_vector_plus_position_0(clip):
    manager = EmbeddingManager(clip, ["*"], ["sculpture"], num_vectors_per_token=3)
    embeddings = clip.transformer.text_model.embeddings
    expected = (embeddings.token_embedding.weight[8757] + embeddings.position_embedding.weight[0]).expand(3, -1)
    assert torch.equal(manager.string_to_param_dict["*"], expected)
    assert torch.equal(manager.initial_embeddings["*"], expected)
    assert manager.is_clip


def test_bert_starts_from_the_words_vector_alone(bert):
    manager = EmbeddingManager(bert, ["*"], ["painting"])
    assert torch.equal(manager.string_to_param_dict["*"][0], bert.transformer.token_emb.weight[BERT_WORDS.index("painting")])
    assert not manager.is_clip and manager.string_to_token_dict["*"] == BERT_WORDS.index("*")


def test_training_a_vector_leaves_its_start_alone(clip):
    manager = EmbeddingManager(clip, ["*"], ["sculpture"])
    start = manager.initial_embeddings["*"].clone()
    with torch.no_grad():
        manager.string_to_param_dict["*"].add_(1.0)
    assert torch.equal(manager.initial_embeddings["*"], start)


def test_without_an_init_word_the_start_is_uniform_and_as_wide_as_the_encoder(clip, bert):
    for encoder, width in ((clip, 16), (bert, 24)):
        manager = EmbeddingManager(encoder, ["*"], num_vectors_per_token=8)
        vectors = manager.string_to_param_dict["*"]
        assert vectors.shape == (8, width) and vectors.is_leaf and vectors.requires_grad
        assert 0 <= vectors.min() < 0.2 and 0.8 < vectors.max() < 1
        assert not manager.initial_embeddings


def test_only_the_first_placeholders_have_init_words(clip):
    manager = EmbeddingManager(clip, ["*", "@"], ["sculpture"])
    assert list(manager.initial_embeddings) == ["*"] and list(manager.string_to_param_dict) == ["*", "@"]
    clip.encode(["a photo of a * with @"], embedding_manager=manager)


def test_coarse_loss_is_the_mean_matrix_and_zero_without_init_words(clip):
    manager = EmbeddingManager(clip, ["*", "@"], ["sculpture", "dog"], num_vectors_per_token=2)
    with torch.no_grad():
        manager.string_to_param_dict["*"][1] += 2.0
    assert torch.allclose(manager.embedding_to_coarse_loss(), torch.tensor([[0.0, 0.0], [0.0, 4.0 * 16 / 2]]))
    without = EmbeddingManager(clip, ["*"]).embedding_to_coarse_loss()
    assert without.shape == (1, 1) and without.mean() == 0


def test_defaults_of_the_constructor(clip):
    manager = EmbeddingManager(clip)
    assert list(manager.string_to_token_dict) == DEFAULT_PLACEHOLDER_TOKEN == ["*"]
    assert (manager.max_vectors_per_token, manager.progressive_words, manager.progressive_counter) == (1, False, 0)


def test_the_callers_lists_are_left_alone(bert):
    placeholders, words = ["*"], ["painting"]
    manager = EmbeddingManager(bert, placeholders, words, per_image_tokens=True)
    assert (placeholders, words) == (["*"], ["painting"])
    assert list(manager.string_to_token_dict) == ["*", *per_img_token_list]
    assert list(manager.initial_embeddings) == ["*"]


def test_lists_may_come_from_a_yaml_and_a_lone_string_is_one_entry(clip):
    config = OmegaConf.create({"placeholder_strings": ["@"], "initializer_words": ["dog"]})
    assert list(EmbeddingManager(clip, **config).string_to_token_dict) == ["@"]
    assert list(EmbeddingManager(clip, "sks", "dog").initial_embeddings) == ["sks"]


def test_a_manager_can_be_built_without_memory_for_its_model(tmp_path):
    """On the meta device, where names and shapes of a big model are read: tokens are known, vectors are not."""
    with torch.device("meta"):
        for encoder, word, token in ((tiny_clip(), "sculpture", 265), (tiny_bert(tmp_path), "dog", BERT_WORDS.index("*"))):
            manager = EmbeddingManager(encoder, ["*"], [word], num_vectors_per_token=2)
            assert manager.string_to_token_dict["*"] == token
            assert manager.string_to_param_dict["*"].is_meta and manager.string_to_param_dict["*"].shape == (2, encoder.encode(["a"]).shape[-1])


def test_the_encoder_is_not_part_of_the_manager(clip):
    manager = EmbeddingManager(clip, ["*"], ["dog"])
    assert list(manager.modules()) == [manager, manager.string_to_param_dict, manager.initial_embeddings]


# -- training ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vectors", [1, 4])
def test_gradients_reach_every_vector_and_the_encoder(clip, vectors):
    """With several vectors the ids are needed by the backward pass of the token table: changing them in place would end it."""
    manager = EmbeddingManager(clip, ["*", "@"], ["sculpture", "dog"], num_vectors_per_token=vectors)
    clip.zero_grad()
    clip.encode(["a photo of a *", "@ and * and a dog"], embedding_manager=manager).pow(2).sum().backward()
    for placeholder in "*@":
        assert manager.string_to_param_dict[placeholder].grad.abs().sum(dim=1).gt(0).all()
    table = clip.transformer.text_model.embeddings.token_embedding.weight.grad
    assert table[1929].abs().sum() > 0 and table[265].abs().sum() == 0 == table[287].abs().sum()
    assert all(p.grad is None for p in manager.initial_embeddings.parameters())


def test_each_of_several_vectors_is_trained(clip):
    manager = EmbeddingManager(clip, ["*"], ["sculpture"], num_vectors_per_token=4)
    optimiser = torch.optim.AdamW(manager.embedding_parameters(), lr=1e-2)
    for _ in range(3):
        optimiser.zero_grad()
        clip.encode(["a photo of a *"], embedding_manager=manager)[:, 5:].square().sum().backward()
        optimiser.step()
    assert (manager.string_to_param_dict["*"] - manager.initial_embeddings["*"]).abs().sum(dim=1).gt(1e-3).all()


def test_later_placeholders_are_found_behind_the_vectors_of_earlier_ones(clip):
    manager = EmbeddingManager(clip, ["*", "@"], num_vectors_per_token=2)
    out = manager(ids_of(clip, "* @ dog"), torch.zeros(1, 77, 16))
    expected = torch.cat([manager.string_to_param_dict["*"], manager.string_to_param_dict["@"]])
    assert torch.equal(out[0, 1:5], expected) and not out[0, 5:].any() and not out[0, 0].any()


# -- progressive words ------------------------------------------------------------------------------------------------------------------


def test_one_vector_more_every_2000_encodings(clip):
    manager = EmbeddingManager(clip, ["*"], num_vectors_per_token=3, progressive_words=True)
    ids, nothing = ids_of(clip, "*"), torch.zeros(1, 77, 16)
    used = {}
    for counter in (0, PROGRESSIVE_SCALE - 2, PROGRESSIVE_SCALE - 1, 2 * PROGRESSIVE_SCALE - 1, 9 * PROGRESSIVE_SCALE):
        manager.progressive_counter = counter
        used[counter] = int(manager(ids, nothing).abs().sum(dim=-1).gt(0).sum())
        assert manager.active_vectors == used[counter]
    assert list(used.values()) == [1, 1, 2, 3, 3]


def test_the_counter_goes_up_once_a_placeholder_in_any_mode_whether_it_occurs_or_not(clip):
    manager = EmbeddingManager(clip, ["*", "@"], num_vectors_per_token=2, progressive_words=True).eval()
    manager(ids_of(clip, "nothing"), torch.zeros(1, 77, 16))
    assert manager.progressive_counter == 2
    single = EmbeddingManager(clip, ["*"], progressive_words=True)
    single(ids_of(clip, "*"), torch.zeros(1, 77, 16))
    assert single.progressive_counter == 0


def test_untouched_encodings_leave_no_trace_and_use_the_vectors_now_active(clip):
    manager = EmbeddingManager(clip, ["*"], num_vectors_per_token=3, progressive_words=True)
    manager.progressive_counter = PROGRESSIVE_SCALE - 1
    ids, nothing = ids_of(clip, "*"), torch.zeros(1, 77, 16)
    with manager.untouched():
        with manager.untouched():
            inside = manager(ids, nothing)
        again = manager(ids, nothing)
        assert manager.active_vectors == 1
    assert manager.progressive_counter == PROGRESSIVE_SCALE - 1
    assert inside.abs().sum(dim=-1).gt(0).sum() == 1 and torch.equal(inside, again)
    with pytest.raises(RuntimeError, match="on purpose"), manager.untouched():
        raise RuntimeError("on purpose")
    assert manager(ids, nothing).abs().sum(dim=-1).gt(0).sum() == 2 and manager.progressive_counter == PROGRESSIVE_SCALE


# -- files ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EMBEDDING_CASES)
def test_recorded_files_load_and_come_back_the_same(name, tmp_path):
    case, manager = recorded(name)
    with torch.no_grad():
        for vectors in manager.embedding_parameters():
            vectors.zero_()
    manager.load(str(golden_path(f"{name}_embeddings.pt")), strict_counts=True)
    assert_close_to_golden(manager(case["in/ids"], case["in/emb"]), case["out/emb"])
    manager.save(str(tmp_path / "embeddings.pt"))
    other = EmbeddingManager(clip_of_case(case))
    other.load(str(tmp_path / "embeddings.pt"))
    assert other.string_to_token_dict == manager.string_to_token_dict
    assert all(torch.equal(a, b) for a, b in zip(other.embedding_parameters(), manager.embedding_parameters(), strict=True))


def test_the_files_placeholders_and_counts_win_when_sampling(clip):
    """A file with three vectors under a config that says one, in prompts with none, one and three occurrences."""
    case, trained = recorded("em_3vec_two_placeholders")
    manager = EmbeddingManager(clip, ["#"], ["dog"])
    manager.load(str(golden_path("em_3vec_two_placeholders_embeddings.pt")))
    assert list(manager.string_to_token_dict) == ["*", "@"] and manager.max_vectors_per_token == 3 and manager.active_vectors == 3
    ids = ids_of(clip, "", "a photo of a *", "* * @")
    embeddings = torch.randn(3, 77, 16)
    assert torch.equal(manager(ids, embeddings), trained(ids, embeddings))
    assert torch.equal(manager(ids, embeddings)[0], embeddings[0])
    assert all(p.requires_grad for p in manager.embedding_parameters())
    assert manager.embedding_to_coarse_loss().mean() == 0  # no placeholder is left that has a start to keep to


def test_another_count_is_refused_when_training(clip):
    manager = EmbeddingManager(clip, ["*"], ["dog"])
    before = manager.string_to_param_dict["*"].clone()
    with pytest.raises(ValueError, match=r"em_3vec_embeddings.pt: '\*' has 3 vectors, but num_vectors_per_token is 1.*num_vectors_per_token=3"):
        manager.load(str(golden_path("em_3vec_embeddings.pt")), strict_counts=True)
    assert torch.equal(manager.string_to_param_dict["*"], before) and manager.max_vectors_per_token == 1


def test_unlike_counts_cannot_be_compared_with_their_start(clip):
    manager = EmbeddingManager(clip, ["*"], ["dog"])
    manager.load(str(golden_path("em_3vec_embeddings.pt")))
    with pytest.raises(ValueError, match="has 3 vectors but started with 1"):
        manager.embedding_to_coarse_loss()


def test_another_width_is_refused_with_both_widths(bert):
    with pytest.raises(ValueError, match=r"em_1vec_embeddings.pt: the vectors of '\*' are 16 wide, expected 24"):
        EmbeddingManager(bert, ["*"]).load(str(golden_path("em_1vec_embeddings.pt")))


def test_losing_the_configs_placeholder_is_said_when_training(clip, caplog):
    manager = EmbeddingManager(clip, ["#"], ["dog"])
    with caplog.at_level(logging.WARNING):
        manager.load(str(golden_path("em_1vec_embeddings.pt")), strict_counts=True)
    assert "has the placeholders '*'" in caplog.text and "'#'" in caplog.text


# -- what cannot be had ----------------------------------------------------------------------------------------------------------------


def test_an_init_word_of_several_tokens_shows_them_and_the_ways_out(clip, bert):
    message = r"'opossum' is 2 tokens of the text encoder \('o', 'possum'\).*spelt alike: 'possum'.*personalization_config.params.init_word_mean=true"
    with pytest.raises(ValueError, match=message):
        EmbeddingManager(clip, ["*"], ["opossum"])
    with pytest.raises(ValueError, match=r"'opossum' is 3 tokens .*'o', '##poss', '##um'"):
        EmbeddingManager(bert, ["*"], ["opossum"])


def test_the_mean_of_an_init_words_tokens_is_used_if_asked(clip):
    manager = EmbeddingManager(clip, ["*"], ["opossum"], num_vectors_per_token=2, init_word_mean=True)
    pieces = ids_of(clip, "opossum")[0, 1:3]
    embeddings = clip.transformer.text_model.embeddings
    expected = embeddings.token_embedding.weight[pieces].mean(dim=0) + embeddings.position_embedding.weight[0]
    torch.testing.assert_close(manager.initial_embeddings["*"].data, expected.detach().expand(2, -1))


@pytest.mark.parametrize("word, message", [("", "'' has no token"), ("zebra", "'zebra' is not in the vocabulary")])
def test_init_words_that_are_none(bert, word, message):
    with pytest.raises(ValueError, match=f"initializer_words: {message}"):
        EmbeddingManager(bert, ["*"], [word], init_word_mean=True)


@pytest.mark.parametrize(
    "placeholders, message",
    [
        (["my dog"], r"'my dog' is 2 tokens of the text encoder \('my', 'dog'\).*Use '\*' instead"),
        (["*", "opossum"], r"'opossum' is 2 tokens.*Use '@' instead"),
        ([" "], "' ' has no token"),
        (["dog", "Dog"], "'Dog' and 'dog' are the same token"),
        (["."], r"cannot be stored under the name '\.'"),
        (["values"], "cannot be stored under the name 'values'"),
    ],
)
def test_placeholders_that_cannot_be_are_refused_with_an_alternative(clip, placeholders, message):
    with pytest.raises(ValueError, match=f"placeholder_strings: .*{message}"):
        EmbeddingManager(clip, placeholders)


def test_a_placeholder_outside_the_vocabulary_is_refused(bert):
    with pytest.raises(ValueError, match=r"'#' is not in the text encoder's vocabulary.*Use '\*' instead"):
        EmbeddingManager(bert, ["#"])


def test_more_init_words_than_placeholders_are_refused(clip):
    with pytest.raises(ValueError, match=r"2 words for 1 placeholders \('\*'\)"):
        EmbeddingManager(clip, ["*"], ["dog", "cat"])


def test_per_image_tokens_are_refused_with_clip(clip):
    with pytest.raises(ValueError, match="per_image_tokens: its letters are two tokens each for CLIP"):
        EmbeddingManager(clip, ["*"], per_image_tokens=True)


def test_an_encoder_without_a_tokenizer_is_refused():
    with pytest.raises(ValueError, match="BERTEmbedder has no tokenizer.*use_tokenizer: true"):
        EmbeddingManager(BERTEmbedder(8, 1, vocab_size=10, use_tokenizer=False))


@pytest.mark.parametrize("count", [2048, 77, 75, 67, 0, -1, 2.5, True, "8"])
def test_counts_that_do_not_fit_are_refused_with_the_largest(clip, count):
    with pytest.raises(ValueError, match=f"num_vectors_per_token is {count!r}; it must be a whole number from 1 to 66"):
        EmbeddingManager(clip, ["*"], num_vectors_per_token=count)


@pytest.mark.parametrize("count", [1, 8, 66])
def test_counts_that_fit_do_so_in_every_caption(clip, count):
    manager = EmbeddingManager(clip, ["*"], num_vectors_per_token=count)
    captions = [template.format("*") for template in (*imagenet_templates_small, *style_templates_small)]
    ids = ids_of(clip, *captions)
    marks = ids.clone().float()[..., None].expand(-1, -1, 16)
    out = manager(ids, marks)
    assert ((out - manager.string_to_param_dict["*"][-1]).abs().sum(dim=-1) == 0).any(dim=1).all()  # the last vector is in each
    assert (out == 49407).all(dim=-1).any(dim=1).all()  # and so is the end mark


def test_largest_count_with_a_second_word_in_the_caption(bert):
    """Two words of k vectors each, ten others and two marks in 40 places: k = 14."""
    with pytest.raises(ValueError, match="from 1 to 14"):
        EmbeddingManager(bert, ["*"], num_vectors_per_token=99, per_image_tokens=True)


def test_unknown_keywords_are_ignored_with_a_word_of_warning(clip, caplog):
    with caplog.at_level(logging.WARNING):
        EmbeddingManager(clip, ["*"], embedding_manager_ckpt="", num_vectors_per_tokn=3)
    assert "num_vectors_per_tokn is unknown and ignored; did you mean num_vectors_per_token?" in caplog.text
    assert "embedding_manager_ckpt" not in caplog.text


# -- names that others import -----------------------------------------------------------------------------------------------------------


def test_token_and_vector_of_a_string(clip, bert):
    token = get_clip_token_for_string(clip.tokenizer, "sculpture")
    assert token == 8757 and token.ndim == 0 and token.dtype == torch.int64
    embeddings = clip.transformer.text_model.embeddings
    expected = embeddings.token_embedding.weight[8757] + embeddings.position_embedding.weight[0]
    assert torch.equal(get_embedding_for_clip_token(embeddings, token), expected)
    assert get_bert_token_for_string(bert.tknz_fn, "dog") == BERT_WORDS.index("dog")
    for find, tokenizer in ((get_clip_token_for_string, clip.tokenizer), (get_bert_token_for_string, bert.tknz_fn)):
        with pytest.raises(ValueError, match="'opossum' is . tokens"):
            find(tokenizer, "opossum")


def test_any_callable_does_in_its_place(clip):
    with torch.no_grad():
        moved = clip.encode(["a dog"], embedding_manager=Adding(1.0))
        assert not torch.allclose(moved, clip.encode(["a dog"]))
    assert list(inspect.signature(EmbeddingManager.forward).parameters)[1:] == ["tokenized_text", "embedded_text"]
