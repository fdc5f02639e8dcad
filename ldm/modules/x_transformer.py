"""The text transformer of the LDM text-to-image models: a stack of pre-norm attention and feed-forward layers over learnt positions.

x <- x + f(LayerNorm(x)) for each layer, even layers attention, odd ones feed-forward (Vaswani et al. 2017, arXiv 1706.03762; pre-norm as
in Xiong et al. 2020, arXiv 2002.04745). Names and checkpoint keys are those of the x_transformers package of 2021, by which saved models
know it, and so are the constructors' parameters; of its many variants only what these models use is built, the rest is refused by name.
"""
from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.linear import Linear

DEFAULT_DIM_HEAD = 64
INIT_STD = 0.02

# embedding_manager: (token ids (B, L), token embeddings (B, L, d)) -> embeddings to go on with (B, L, d)
PlaceholderHook = Callable[[Tensor, Tensor], Tensor]


@functools.cache
def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}


def _refuse_unless_default(function: Callable[..., Any], **given: Any) -> None:
    """ValueError that names every option of `function` which differs from its default: that variant is not built here."""
    defaults = _defaults(function)
    refused = [f"{name}={value!r}" for name, value in given.items() if value is not defaults[name] and value != defaults[name]]
    if refused:
        raise ValueError(f"{function.__qualname__}: {', '.join(refused)} is a variant that this transformer does not have; leave it at its default")


class AbsolutePositionalEmbedding(nn.Module):
    """One learnt vector a position, N(0, 0.02) at the start."""

    def __init__(self, dim: int, max_seq_len: int):
        super().__init__()
        self.emb = nn.Embedding(max_seq_len, dim)
        self.init_()

    def init_(self) -> None:
        nn.init.normal_(self.emb.weight, std=INIT_STD)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, L, ...) -> the vectors of the first L positions, (1, L, dim)."""
        return self.emb.weight[None, : x.shape[1]]


class Residual(nn.Module):
    """The sum of a layer's output and its input."""

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return x + residual


class GEGLU(nn.Module):
    """value * GELU(gate), both linear in x (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, dim_in: int, dim_out: int):
        super().__init__()
        self.proj = Linear(dim_in, 2 * dim_out)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Per position: widen by `mult`, exact GELU (with `glu` gated), back to dim_out (default: dim)."""

    def __init__(self, dim: int, dim_out: int | None = None, mult: int = 4, glu: bool = False, dropout: float = 0.0):
        super().__init__()
        inner = int(dim * mult)
        widen = GEGLU(dim, inner) if glu else nn.Sequential(Linear(dim, inner), nn.GELU())
        self.net = nn.Sequential(widen, nn.Dropout(dropout), Linear(inner, dim if dim_out is None else dim_out))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Attention(nn.Module):
    """softmax(q k^T / sqrt(dim_head)) v with `heads` heads of dim_head, whatever the width: q, k, v without bias, the output with one."""

    def __init__(
        self,
        dim: int,
        dim_head: int = DEFAULT_DIM_HEAD,
        heads: int = 8,
        causal: bool = False,
        mask: Tensor | None = None,
        talking_heads: bool = False,
        sparse_topk: int | None = None,
        use_entmax15: bool = False,
        num_mem_kv: int = 0,
        dropout: float = 0.0,
        on_attn: bool = False,
    ):
        super().__init__()
        _refuse_unless_default(
            Attention,
            mask=mask,
            talking_heads=talking_heads,
            sparse_topk=sparse_topk,
            use_entmax15=use_entmax15,
            num_mem_kv=num_mem_kv,
            on_attn=on_attn,
        )
        inner = heads * dim_head
        self.heads = heads
        self.scale = dim_head**-0.5
        self.causal = causal
        self.to_q = Linear(dim, inner, bias=False)
        self.to_k = Linear(dim, inner, bias=False)
        self.to_v = Linear(dim, inner, bias=False)
        self.dropout = dropout
        self.to_out = Linear(inner, dim)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        rel_pos: Any = None,
        sinusoidal_emb: Any = None,
        prev_attn: Any = None,
        mem: Any = None,
    ) -> Tensor:
        """x: (B, L, dim); context: (B, M, dim), x itself by default; the context's mask: (B, M) bool, true where a key may be seen."""
        _refuse_unless_default(Attention.forward, rel_pos=rel_pos, sinusoidal_emb=sinusoidal_emb, prev_attn=prev_attn, mem=mem)
        seen = mask if context is None else context_mask
        context = x if context is None else context
        q, k, v = (self._split(part) for part in (self.to_q(x), self.to_k(context), self.to_v(context)))  # (B, heads, L or M, dim_head)
        dropout = self.dropout if self.training else 0.0
        causal = self.causal and seen is None  # with a mask, causality is in the mask
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self._mask(seen, q, k), dropout_p=dropout, is_causal=causal, scale=self.scale)
        return self.to_out(out.transpose(1, 2).flatten(2))  # (B, L, dim)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _mask(self, seen: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
        if seen is None:
            return None
        mask = seen[:, None, None, :].expand(-1, 1, q.shape[2], -1)
        return mask & torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril() if self.causal else mask


class AttentionLayers(nn.Module):
    """`depth` pairs of attention and feed-forward, each behind a LayerNorm and added to its input.

    kwargs: options of the two kinds of layer, prefixed `attn_` and `ff_` (attn_dropout, ff_mult ...).
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int = 8,
        causal: bool = False,
        cross_attend: bool = False,
        only_cross: bool = False,
        use_scalenorm: bool = False,
        use_rmsnorm: bool = False,
        use_rezero: bool = False,
        rel_pos_num_buckets: int = 32,
        rel_pos_max_distance: int = 128,
        position_infused_attn: bool = False,
        custom_layers: Any = None,
        sandwich_coef: Any = None,
        par_ratio: Any = None,
        residual_attn: bool = False,
        cross_residual_attn: bool = False,
        macaron: bool = False,
        pre_norm: bool = True,
        gate_residual: bool = False,
        **kwargs: Any,
    ):
        super().__init__()
        _refuse_unless_default(
            AttentionLayers,
            cross_attend=cross_attend,
            only_cross=only_cross,
            use_scalenorm=use_scalenorm,
            use_rmsnorm=use_rmsnorm,
            use_rezero=use_rezero,
            rel_pos_num_buckets=rel_pos_num_buckets,
            rel_pos_max_distance=rel_pos_max_distance,
            position_infused_attn=position_infused_attn,
            custom_layers=custom_layers,
            sandwich_coef=sandwich_coef,
            par_ratio=par_ratio,
            residual_attn=residual_attn,
            cross_residual_attn=cross_residual_attn,
            macaron=macaron,
            pre_norm=pre_norm,
            gate_residual=gate_residual,
        )
        attention_options = {name.removeprefix("attn_"): value for name, value in kwargs.items() if name.startswith("attn_")}
        feed_forward_options = {name.removeprefix("ff_"): value for name, value in kwargs.items() if name.startswith("ff_")}
        unknown = [name for name in kwargs if not name.startswith(("attn_", "ff_"))]
        if unknown:
            raise ValueError(f"AttentionLayers: unknown {', '.join(unknown)}; options of its layers begin with attn_ or ff_")
        self.dim = dim
        self.depth = depth
        self.layers = nn.ModuleList()
        for _ in range(depth):
            for layer in (Attention(dim, heads=heads, causal=causal, **attention_options), FeedForward(dim, **feed_forward_options)):
                self.layers.append(nn.ModuleList([nn.LayerNorm(dim), layer, Residual()]))

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        mems: Any = None,
        return_hiddens: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        """x: (B, L, dim) -> (B, L, dim); mask: (B, L) bool, true where a token may be seen."""
        _refuse_unless_default(AttentionLayers.forward, context=context, context_mask=context_mask, mems=mems, return_hiddens=return_hiddens)
        for norm, layer, residual in self.layers:
            x = residual(layer(norm(x), mask=mask) if isinstance(layer, Attention) else layer(norm(x)), x)
        return x


class Encoder(AttentionLayers):
    """Layers in which every token sees every other."""

    def __init__(self, **kwargs: Any):
        if "causal" in kwargs:
            raise ValueError("Encoder: causal cannot be set, an encoder's tokens see each other; use AttentionLayers")
        super().__init__(causal=False, **kwargs)


class TransformerWrapper(nn.Module):
    """Token ids to embeddings or logits: token table, placeholders, positions, layers, norm."""

    def __init__(
        self,
        *,
        num_tokens: int,
        max_seq_len: int,
        attn_layers: AttentionLayers,
        emb_dim: int | None = None,
        max_mem_len: float = 0.0,
        emb_dropout: float = 0.0,
        num_memory_tokens: int | None = None,
        tie_embedding: bool = False,
        use_pos_emb: bool = True,
    ):
        super().__init__()
        _refuse_unless_default(TransformerWrapper, max_mem_len=max_mem_len, num_memory_tokens=num_memory_tokens, tie_embedding=tie_embedding)
        dim = attn_layers.dim
        emb_dim = dim if emb_dim is None else emb_dim
        self.num_tokens = num_tokens
        self.max_seq_len = max_seq_len
        self.token_emb = nn.Embedding(num_tokens, emb_dim)
        self.pos_emb = AbsolutePositionalEmbedding(emb_dim, max_seq_len) if use_pos_emb else None
        self.emb_dropout = nn.Dropout(emb_dropout)
        self.project_emb = nn.Identity() if emb_dim == dim else nn.Linear(emb_dim, dim)
        self.attn_layers = attn_layers
        self.norm = nn.LayerNorm(dim)
        self.to_logits = nn.Linear(dim, num_tokens)
        self.init_()

    def init_(self) -> None:
        nn.init.normal_(self.token_emb.weight, std=INIT_STD)

    def forward(
        self,
        x: Tensor,
        return_embeddings: bool = False,
        mask: Tensor | None = None,
        return_mems: bool = False,
        return_attn: bool = False,
        mems: Any = None,
        embedding_manager: PlaceholderHook | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """x: ids (B, L), int64 -> logits (B, L, num_tokens), or with return_embeddings the normed output (B, L, dim).

        mask: (B, L) bool, true where a token may be seen. embedding_manager: called between the token table and the positions.
        Raises ValueError for more tokens than there are positions.
        """
        _refuse_unless_default(TransformerWrapper.forward, return_mems=return_mems, return_attn=return_attn, mems=mems)
        if x.shape[1] > self.max_seq_len:
            raise ValueError(f"{x.shape[1]} tokens, but the transformer has {self.max_seq_len} positions (max_seq_len)")
        h = self.token_emb(x)  # (B, L, emb_dim)
        if embedding_manager is not None:
            h = embedding_manager(x, h)
        if self.pos_emb is not None:
            h = h + self.pos_emb(h)
        h = self.project_emb(self.emb_dropout(h))  # (B, L, dim)
        h = self.norm(self.attn_layers(h, mask=mask, **kwargs))
        return h if return_embeddings else self.to_logits(h)
