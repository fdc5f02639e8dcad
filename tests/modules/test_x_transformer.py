"""The text transformer of the LDM models: recorded numbers, and what its options promise."""
import pytest
import torch
import torch.nn.functional as F

from ldm.modules.encoders.modules import BERTEmbedder, TransformerEmbedder
from ldm.modules.x_transformer import Attention, AttentionLayers, Encoder, FeedForward, TransformerWrapper
from tests.golden.case import assert_close_to_golden, load_case


@pytest.fixture(scope="module")
def case():
    return load_case("bert_embedder")


@pytest.fixture(scope="module")
def embedder(case):
    embedder = BERTEmbedder(**case.config.model.params)
    embedder.load_state_dict(case.state_dict())
    return embedder


def test_embeddings_and_logits_are_the_recorded_ones(case, embedder):
    ids = case["in/ids"]
    assert_close_to_golden(embedder(ids), case["out/z"])
    assert_close_to_golden(embedder.encode(ids), case["out/z"])
    assert_close_to_golden(embedder.transformer(ids), case["out/logits"])


def test_shorter_texts_use_the_first_positions(case, embedder):
    assert_close_to_golden(embedder(case["in/ids"][:, : case["out/z_short"].shape[1]]), case["out/z_short"])


def test_placeholders_enter_between_table_and_positions(case, embedder):
    ids = case["in/ids"]
    vector = torch.linspace(-1, 1, 32)
    z = embedder.encode(ids, embedding_manager=lambda ids, e: torch.where((ids == ids[0, 1])[..., None], vector, e))
    assert_close_to_golden(z, case["out/z_with_manager"])


def test_transformer_embedder_is_the_same_network(case, embedder):
    other = TransformerEmbedder(32, 2, 50, 12, device="cpu")
    other.load_state_dict(case.state_dict())
    assert torch.equal(other.encode(case["in/ids"]), embedder(case["in/ids"]))


def test_more_tokens_than_positions_are_refused(embedder):
    with pytest.raises(ValueError, match="13 tokens.*12 positions"):
        embedder(torch.zeros(1, 13, dtype=torch.long))


def test_tables_start_small():
    network = TransformerWrapper(num_tokens=500, max_seq_len=40, attn_layers=Encoder(dim=32, depth=1))
    assert network.token_emb.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert network.pos_emb.emb.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_attention_is_softmax_of_scaled_products():
    attention = Attention(12, dim_head=8, heads=3)
    x = torch.randn(2, 5, 12)
    q, k, v = (layer(x).view(2, 5, 3, 8) for layer in (attention.to_q, attention.to_k, attention.to_v))
    weights = (torch.einsum("bihd,bjhd->bhij", q, k) * 8**-0.5).softmax(dim=-1)
    expected = attention.to_out(torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2))
    torch.testing.assert_close(attention(x), expected, atol=1e-6, rtol=1e-5)


def test_heads_are_64_wide_whatever_the_width():
    assert Attention(40).to_q.weight.shape == (512, 40)


def test_hidden_tokens_have_no_influence():
    layers = Encoder(dim=16, depth=2)
    x, mask = torch.randn(2, 6, 16), torch.tensor([[True] * 4 + [False] * 2, [True] * 6])
    changed = x.clone()
    changed[0, 4:] = 9.0
    assert torch.equal(layers(x, mask=mask)[0, :4], layers(changed, mask=mask)[0, :4])
    assert not torch.allclose(layers(x)[0, :4], layers(changed)[0, :4])


@pytest.mark.parametrize("masked", [False, True])
def test_causal_layers_do_not_look_ahead(masked):
    layers = AttentionLayers(dim=16, depth=2, causal=True)
    x, mask = torch.randn(1, 6, 16), torch.ones(1, 6, dtype=torch.bool) if masked else None
    changed = x.clone()
    changed[:, 3:] = 9.0
    assert torch.equal(layers(x, mask=mask)[:, :3], layers(changed, mask=mask)[:, :3])
    assert not torch.allclose(layers(x, mask=mask)[:, 3:], layers(changed, mask=mask)[:, 3:])


def test_gated_feed_forward_is_value_times_gelu_of_gate():
    network = FeedForward(6, mult=2, glu=True)
    x = torch.randn(3, 6)
    value, gate = F.linear(x, network.net[0].proj.weight, network.net[0].proj.bias).chunk(2, dim=-1)
    torch.testing.assert_close(network(x), network.net[2](value * F.gelu(gate)))


@pytest.mark.parametrize(
    "build",
    [
        lambda: Encoder(dim=8, depth=1, use_rmsnorm=True),
        lambda: Encoder(dim=8, depth=1, attn_talking_heads=True),
        lambda: TransformerWrapper(num_tokens=4, max_seq_len=4, attn_layers=Encoder(dim=8, depth=1), tie_embedding=True),
        lambda: Attention(8)(torch.zeros(1, 2, 8), rel_pos=1),
        lambda: TransformerWrapper(num_tokens=4, max_seq_len=4, attn_layers=Encoder(dim=8, depth=1))(torch.zeros(1, 2).long(), return_attn=True),
        lambda: Encoder(dim=8, depth=1, causal=True),
        lambda: Encoder(dim=8, depth=1, rotary=3),
    ],
)
def test_variants_that_are_not_built_are_refused_by_name(build):
    with pytest.raises(ValueError, match="use_rmsnorm=True|talking_heads=True|tie_embedding=True|rel_pos=1|return_attn=True|causal|unknown rotary"):
        build()
