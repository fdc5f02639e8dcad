"""Stand-in for the published repository: attention over latents and to a text, under its checkpoint keys."""
import torch
from torch import nn


def _heads(x, n):
    return x.reshape(x.shape[0], x.shape[1], n, -1).transpose(1, 2)


class CrossAttention(nn.Module):
    def __init__(self, width, context_width, heads, head_width):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, heads * head_width, bias=False)
        self.to_k = nn.Linear(context_width, heads * head_width, bias=False)
        self.to_v = nn.Linear(context_width, heads * head_width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * head_width, width), nn.Identity())

    def forward(self, x, context=None):
        context = x if context is None else context
        q, k, v = (_heads(part, self.heads) for part in (self.to_q(x), self.to_k(context), self.to_v(context)))
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1)
        return self.to_out((weights @ v).transpose(1, 2).flatten(2))


class _Gated(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x):
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * nn.functional.gelu(gate)


class _FeedForward(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.net = nn.Sequential(_Gated(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x):
        return self.net(x)


class _Block(nn.Module):
    def __init__(self, width, heads, head_width, context_width):
        super().__init__()
        self.attn1 = CrossAttention(width, width, heads, head_width)
        self.ff = _FeedForward(width)
        self.attn2 = CrossAttention(width, context_width, heads, head_width)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x, context):
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """(B, C, h, w) with a text (B, L, d) -> the same shape."""

    def __init__(self, channels, heads, head_width, depth, context_width):
        super().__init__()
        inner = heads * head_width
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, inner, 1)
        self.transformer_blocks = nn.ModuleList([_Block(inner, heads, head_width, context_width) for _ in range(depth)])
        self.proj_out = nn.Conv2d(inner, channels, 1)
        for parameter in self.proj_out.parameters():
            torch.nn.init.zeros_(parameter)

    def forward(self, x, context):
        h = self.proj_in(self.norm(x))
        size = h.shape
        h = h.flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            h = block(h, context)
        return x + self.proj_out(h.transpose(1, 2).reshape(size))
