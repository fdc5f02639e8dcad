"""Stand-in for the published repository: CLIP's text transformer, with the hook through which learnt words enter.

`encode(text, embedding_manager=f)`: after the token table and before positions are added, f(token ids, token embeddings) is called. As there,
the way in is a function bound to the transformer's own parts, not a class of its own: a copy of the encoder must bind it anew.
"""
import functools
import importlib.util
import json
import types
from pathlib import Path

import torch
from torch import nn

END, START, POSITIONS, VOCABULARY = 49407, 49406, 77, 49408


@functools.lru_cache(maxsize=None)
def _pieces():
    """The `clip` package's own tokenizer, found without importing the package, which would want torchvision."""
    folder = importlib.util.find_spec("clip").submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location("clip_simple_tokenizer", str(Path(folder) / "simple_tokenizer.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer()


class Tokenizer:
    """Called as a tokenizer of `transformers` is: text to padded ids, between start and end."""

    def __call__(self, text, truncation=True, max_length=POSITIONS, padding="max_length", return_tensors="pt", **ignored):
        rows = []
        for one in [text] if isinstance(text, str) else text:
            ids = [START, *_pieces().encode(one)[: max_length - 2], END]
            rows.append(ids + [END] * (max_length - len(ids)))
        return {"input_ids": torch.tensor(rows)}


class _Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        B, L, width = x.shape
        q, k, v = (layer(x).view(B, L, self.heads, -1).transpose(1, 2) for layer in (self.q_proj, self.k_proj, self.v_proj))
        later = torch.full((L, L), float("-inf"), device=x.device).triu(1)
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + later).softmax(dim=-1)
        return self.out_proj((weights @ v).transpose(1, 2).reshape(B, L, width))


class _FeedForward(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x):
        h = self.fc1(x)
        return self.fc2(h * (1.702 * h).sigmoid())


class _Layer(nn.Module):
    def __init__(self, width, inner, heads):
        super().__init__()
        self.self_attn, self.layer_norm1 = _Attention(width, heads), nn.LayerNorm(width)
        self.mlp, self.layer_norm2 = _FeedForward(width, inner), nn.LayerNorm(width)

    def forward(self, x):
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class _Embeddings(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.token_embedding, self.position_embedding = nn.Embedding(VOCABULARY, width), nn.Embedding(POSITIONS, width)
        self.register_buffer("position_ids", torch.arange(POSITIONS)[None])
        for table in (self.token_embedding, self.position_embedding):
            nn.init.normal_(table.weight, std=0.02)


class _TextModel(nn.Module):
    def __init__(self, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads):
        super().__init__()
        self.embeddings = _Embeddings(hidden_size)
        layers = [_Layer(hidden_size, intermediate_size, num_attention_heads) for _ in range(num_hidden_layers)]
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.final_layer_norm = nn.LayerNorm(hidden_size)


def _embed(self, ids, embedding_manager=None):
    embedded = self.token_embedding(ids)
    if embedding_manager is not None:
        embedded = embedding_manager(ids, embedded)
    return embedded + self.position_embedding(self.position_ids[:, : ids.shape[1]])


def _last_hidden_state(self, ids, embedding_manager=None):
    h = self.embeddings(ids, embedding_manager)
    for layer in self.encoder["layers"]:
        h = layer(h)
    return self.final_layer_norm(h)


class FrozenCLIPEmbedder(nn.Module):
    """A text or B texts -> (B, max_length, width). version: a folder whose config.json has the sizes."""

    def __init__(self, version="openai/clip-vit-large-patch14", device="cuda", max_length=77):
        super().__init__()
        sizes = json.loads((Path(version) / "config.json").read_text())
        self.tokenizer = Tokenizer()
        self.transformer = nn.Module()
        self.transformer.text_model = _TextModel(**sizes)
        self.transformer.text_model.embeddings.forward = types.MethodType(_embed, self.transformer.text_model.embeddings)
        self.transformer.text_model.forward = types.MethodType(_last_hidden_state, self.transformer.text_model)
        self.device = device
        self.max_length = max_length

    def forward(self, text, **kwargs):
        found = self.tokenizer(text, truncation=True, max_length=self.max_length, return_length=True, return_overflowing_tokens=False,
                               padding="max_length", return_tensors="pt")  # fmt: skip
        return self.transformer.text_model(found["input_ids"].to(self.device), **kwargs)

    def encode(self, text, **kwargs):
        return self(text, **kwargs)
