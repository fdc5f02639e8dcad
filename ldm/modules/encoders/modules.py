"""Encoders of conditions: text, class labels, pictures. A yaml file names one under `cond_stage_config`.

A text encoder's `encode(text, embedding_manager=f)` calls f(token ids (B, L), token embeddings (B, L, d)) after the token table and before
positions are added, and goes on with what f returns: the way in for learnt words.
Nothing here asks a network; what needs files takes their path.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.encoders.bert_vocabulary import bert_tokenizer
from ldm.modules.encoders.clip_text import ClipTextTransformer, build_text_model
from ldm.modules.x_transformer import Encoder, PlaceholderHook, TransformerWrapper

# Mean and standard deviation of CLIP's training pictures, RGB in [0, 1] (Radford et al. 2021, arXiv 2103.00020).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CLIP_PIXELS = 224
INTERPOLATIONS = ("nearest", "linear", "bilinear", "trilinear", "bicubic", "area")


class AbstractEncoder(nn.Module):
    """What turns a condition into tensors."""

    def __init__(self) -> None:
        super().__init__()

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no encode")


class ClassEmbedder(nn.Module):
    """A learnt vector for each class label of a batch."""

    def __init__(self, embed_dim: int, n_classes: int = 1000, key: str = "class"):
        super().__init__()
        self.key = key
        self.embedding = nn.Embedding(n_classes, embed_dim)

    def forward(self, batch: Mapping[str, Any], key: str | None = None) -> Tensor:
        """batch[key]: (B,) int64, key by default the constructor's -> (B, 1, embed_dim)."""
        return self.embedding(batch[self.key if key is None else key])[:, None]


class TransformerEmbedder(AbstractEncoder):
    """A transformer over token ids, without a tokenizer."""

    def __init__(self, n_embed: int, n_layer: int, vocab_size: int, max_seq_len: int = 77, device: str = "cuda"):
        super().__init__()
        self.device = device
        self.transformer = _transformer(n_embed, n_layer, vocab_size, max_seq_len)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (B, L) int64 -> (B, L, n_embed)."""
        return self.transformer(tokens.to(_device(self)), return_embeddings=True)

    def encode(self, x: Tensor) -> Tensor:
        return self(x)


class BERTTokenizer(AbstractEncoder):
    """Text to ids of BERT's vocabulary: [CLS] words [SEP], cut and padded to max_length.

    vocabulary: a vocabulary file or its folder (`bert_tokenizer`). vq_interface: `encode` answers like a first stage, ids in place of code
    indices. device: remembered only; ids are made on the CPU and moved by whoever has weights.
    """

    def __init__(self, device: str = "cuda", vq_interface: bool = True, max_length: int = 77, *, vocabulary: str | None = None):
        super().__init__()
        self.tokenizer = bert_tokenizer(vocabulary)
        self.device = device
        self.vq_interface = vq_interface
        self.max_length = max_length

    def forward(self, text: str | Sequence[str]) -> Tensor:
        """A text or B texts -> (B, max_length) int64."""
        return _token_ids(self.tokenizer, text, self.max_length)

    @torch.no_grad()
    def encode(self, text: str | Sequence[str]) -> Any:
        """The ids; with vq_interface as (None, None, [None, None, ids])."""
        tokens = self(text)
        return (None, None, [None, None, tokens]) if self.vq_interface else tokens

    def decode(self, text: Any) -> Any:
        """The text as it is: there is nothing to decode."""
        return text


class BERTEmbedder(AbstractEncoder):
    """The text encoder of the LDM text-to-image models: BERT's tokenizer, and a transformer trained with the UNet.

    vocabulary: needed with use_tokenizer, see `bert_tokenizer`. Without use_tokenizer ids come in place of text.
    """

    def __init__(
        self,
        n_embed: int,
        n_layer: int,
        vocab_size: int = 30522,
        max_seq_len: int = 77,
        device: str = "cuda",
        use_tokenizer: bool = True,
        embedding_dropout: float = 0.0,
        *,
        vocabulary: str | None = None,
    ):
        super().__init__()
        self.use_tknz_fn = use_tokenizer
        if use_tokenizer:
            self.tknz_fn = BERTTokenizer(device, vq_interface=False, max_length=max_seq_len, vocabulary=vocabulary)
            if len(self.tknz_fn.tokenizer) > vocab_size:
                raise ValueError(f"BERTEmbedder: {vocabulary} has {len(self.tknz_fn.tokenizer)} tokens, but vocab_size is {vocab_size}")
        self.device = device
        self.transformer = _transformer(n_embed, n_layer, vocab_size, max_seq_len, embedding_dropout)

    def forward(self, text: str | Sequence[str] | Tensor, embedding_manager: PlaceholderHook | None = None) -> Tensor:
        """B texts, or with use_tokenizer off ids (B, L) -> (B, L, n_embed); with a tokenizer L = max_seq_len."""
        tokens = self.tknz_fn(text) if self.use_tknz_fn else text
        return self.transformer(tokens.to(_device(self)), return_embeddings=True, embedding_manager=embedding_manager)

    def encode(self, text: str | Sequence[str] | Tensor, **kwargs: Any) -> Tensor:
        return self(text, **kwargs)


class SpatialRescaler(nn.Module):
    """A picture, or a map of labels, at another size: `n_stages` times interpolated by `multiplier`, then an optional 1x1 convolution."""

    def __init__(
        self,
        n_stages: int = 1,
        method: str = "bilinear",
        multiplier: float = 0.5,
        in_channels: int = 3,
        out_channels: int | None = None,
        bias: bool = False,
    ):
        super().__init__()
        if n_stages < 0:
            raise ValueError(f"SpatialRescaler: n_stages is {n_stages}; it must be 0 or more")
        if method not in INTERPOLATIONS:
            raise ValueError(f"SpatialRescaler: method is {method!r}; it must be one of {', '.join(INTERPOLATIONS)}")
        self.n_stages = n_stages
        self.multiplier = multiplier
        self.interpolator = partial(F.interpolate, mode=method)
        self.remap_output = out_channels is not None
        if self.remap_output:
            self.channel_mapper = nn.Conv2d(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, in_channels, H, W) -> (B, out_channels or in_channels, H * multiplier^n_stages, W * multiplier^n_stages)."""
        for _ in range(self.n_stages):
            x = self.interpolator(x, scale_factor=self.multiplier)
        return self.channel_mapper(x) if self.remap_output else x

    def encode(self, x: Tensor) -> Tensor:
        return self(x)


class FrozenCLIPEmbedder(AbstractEncoder):
    """The text encoder of Stable Diffusion: CLIP's text transformer, all positions after its final norm.

    version: a name whose configuration is built in (weights then come from the model's checkpoint), or a folder in the Hugging Face layout,
    whose configuration, weights and tokenizer are used and win over everything else. text_config: values that differ from the named
    configuration (hidden_size, intermediate_size, num_hidden_layers, num_attention_heads ...). device: remembered only.
    Frozen by who trains: `freeze` is there to be called.
    """

    def __init__(
        self,
        version: str = "openai/clip-vit-large-patch14",
        device: str = "cuda",
        max_length: int = 77,
        *,
        text_config: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        text_model, self.tokenizer = build_text_model(version, text_config)
        positions = text_model.config.max_position_embeddings
        if max_length > positions:
            raise ValueError(f"FrozenCLIPEmbedder: max_length is {max_length}, but the text model has {positions} positions")
        self.transformer = ClipTextTransformer(text_model)
        self.device = device
        self.max_length = max_length

    def freeze(self) -> None:
        """No gradients, and eval mode for the transformer."""
        self.transformer.eval()
        self.requires_grad_(False)

    def forward(self, text: str | Sequence[str], **kwargs: Any) -> Tensor:
        """A text or B texts -> (B, max_length, hidden_size). kwargs: embedding_manager."""
        tokens = _token_ids(self.tokenizer, text, self.max_length)
        return self.transformer(tokens.to(_device(self)), **kwargs)

    def encode(self, text: str | Sequence[str], **kwargs: Any) -> Tensor:
        return self(text, **kwargs)


class FrozenCLIPTextEmbedder(nn.Module):
    """CLIP's pooled text embedding, by the `clip` package's own model and tokenizer (which pads with 0).

    version: the path of a weights file of that package. normalize: to length 1. n_repeat: how often `encode` repeats the one vector.
    """

    def __init__(self, version: str = "ViT-L/14", device: str = "cuda", max_length: int = 77, n_repeat: int = 1, normalize: bool = True):
        super().__init__()
        self.model = _clip_model(version)
        self.device = device
        self.max_length = max_length
        self.n_repeat = n_repeat
        self.normalize = normalize

    def freeze(self) -> None:
        """No gradients, and eval mode."""
        self.model.eval()
        self.requires_grad_(False)

    def forward(self, text: str | Sequence[str]) -> Tensor:
        """A text or B texts -> (B, d)."""
        import clip  # slow to import, and needed here alone

        tokens = clip.tokenize(text if isinstance(text, str) else list(text), context_length=self.max_length, truncate=True)
        z = self.model.encode_text(tokens.to(_device(self)))
        return F.normalize(z, dim=1) if self.normalize else z

    def encode(self, text: str | Sequence[str]) -> Tensor:
        """A text or B texts -> (B, n_repeat, d)."""
        return self(text)[:, None].repeat(1, self.n_repeat, 1)


class FrozenClipImageEmbedder(nn.Module):
    """CLIP's embedding of pictures. model: the path of a weights file of the `clip` package; jit: run it as the archive it is."""

    def __init__(
        self, model: str, jit: bool = False, device: str = "cuda" if torch.cuda.is_available() else "cpu", antialias: bool = False
    ):
        super().__init__()
        self.model = _clip_model(model, jit=jit)
        self.antialias = antialias
        self.register_buffer("mean", torch.tensor(CLIP_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD)[:, None, None], persistent=False)
        self.to(device)

    def preprocess(self, x: Tensor) -> Tensor:
        """x: (B, 3, H, W) in [-1, 1] -> (B, 3, 224, 224) as CLIP was trained on."""
        x = F.interpolate(x, size=(CLIP_PIXELS, CLIP_PIXELS), mode="bicubic", align_corners=True, antialias=self.antialias)
        return ((x + 1.0) / 2.0 - self.mean) / self.std

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, 3, H, W) in [-1, 1] -> (B, d)."""
        return self.model.encode_image(self.preprocess(x))


def _transformer(n_embed: int, n_layer: int, vocab_size: int, max_seq_len: int, dropout: float = 0.0) -> TransformerWrapper:
    layers = Encoder(dim=n_embed, depth=n_layer)
    return TransformerWrapper(num_tokens=vocab_size, max_seq_len=max_seq_len, attn_layers=layers, emb_dropout=dropout)


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _token_ids(tokenizer: Any, text: str | Sequence[str], length: int) -> Tensor:
    texts = [text] if isinstance(text, str) else list(text)
    ids = tokenizer(texts, truncation=True, max_length=length, padding="max_length")["input_ids"]
    return torch.tensor(ids, device="cpu")  # also where the model is being built on another device, or on none


def _clip_model(path: str, jit: bool = False) -> nn.Module:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path} (looked from {Path.cwd()}): give the path of a weights file of the clip package; nothing is downloaded")
    import clip

    return clip.load(str(path), device="cpu", jit=jit)[0]
