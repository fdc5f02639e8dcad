"""CLIP's text transformer with a way in for learnt words, under the names of the original's checkpoints.

The layers are those of `transformers`; today's `CLIPTextModel` has no `text_model.` in its keys and no argument for embeddings, so it sits here
under that name and is run part by part: token table, placeholders, positions, layers (causal, no padding mask), last norm.
"""
from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ldm.modules.encoders.clip_tokenizer import VOCABULARY_SIZE, clip_tokenizer

logger = logging.getLogger(__name__)

# The text tower of CLIP ViT-L/14, the text encoder of Stable Diffusion 1.
VIT_L_14 = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": 768,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}
BUILT_IN = {"openai/clip-vit-large-patch14": VIT_L_14}
# What a yaml may set under text_config.
TEXT_CONFIG_KEYS = (*VIT_L_14, "attention_dropout", "initializer_range", "initializer_factor")
ATTENTION = "sdpa"


class ClipTextTransformer(nn.Module):
    """Token ids (B, L) to CLIP's last hidden state, after the final norm (B, L, d).

    State-dict keys begin with `text_model.`; an old checkpoint's `text_model.embeddings.position_ids` is accepted and not kept.
    """

    def __init__(self, text_model: CLIPTextModel):
        super().__init__()
        self.text_model = text_model
        self.text_model.embeddings.register_load_state_dict_pre_hook(_drop_position_ids)

    def forward(self, input_ids: Tensor, embedding_manager: Callable[[Tensor, Tensor], Tensor] | None = None) -> Tensor:
        """input_ids: (B, L) int64. embedding_manager: (ids (B, L), token embeddings (B, L, d)) -> (B, L, d), before positions are added."""
        model = self.text_model
        h = model.embeddings.token_embedding(input_ids)  # (B, L, d)
        if embedding_manager is not None:
            h = embedding_manager(input_ids, h)
        h = h + model.embeddings.position_embedding.weight[: h.shape[1]]
        for layer in model.encoder.layers:
            h = layer(h, attention_mask=None, is_causal=True)
        return model.final_layer_norm(h)


def _drop_position_ids(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    # 0 ... 76, which today's embeddings compute.
    state_dict.pop(f"{prefix}position_ids", None)


def build_text_model(version: str, text_config: Mapping[str, Any] | None = None) -> tuple[CLIPTextModel, CLIPTokenizer]:
    """The text model with its tokenizer.

    version: a folder in the Hugging Face layout (then weights and tokenizer are its own, and text_config counts for nothing), or a name of
    BUILT_IN; text_config: values of `transformers.CLIPTextConfig` that differ from it. Without a folder the weights are random: a checkpoint
    brings them. No hub is asked. Raises FileNotFoundError or ValueError for a name that is neither, ValueError for a folder without weights
    or for an unknown key.
    """
    folder = Path(version).expanduser()
    if folder.is_dir():
        return _text_model_from(folder), _tokenizer_from(folder)
    if version not in BUILT_IN:
        raise FileNotFoundError(
            f"FrozenCLIPEmbedder: version {version!r} is no folder (looked from {Path.cwd()}) and no name whose configuration is built in "
            f"({', '.join(BUILT_IN)}). Give a folder in the Hugging Face layout, or leave version out and set text_config."
        )
    config = CLIPTextConfig(**BUILT_IN[version] | _checked(text_config or {}), attn_implementation=ATTENTION)
    return CLIPTextModel(config), clip_tokenizer()


def _checked(text_config: Mapping[str, Any]) -> dict[str, Any]:
    problems = []
    for key in text_config:
        if key not in TEXT_CONFIG_KEYS:
            near = difflib.get_close_matches(key, TEXT_CONFIG_KEYS, n=1)
            problems.append(f"{key}: unknown" + (f", did you mean {near[0]}?" if near else f"; known are {', '.join(TEXT_CONFIG_KEYS)}"))
    width, heads = (text_config.get(key, VIT_L_14[key]) for key in ("hidden_size", "num_attention_heads"))
    if width % heads:
        problems.append(f"hidden_size {width} is no multiple of num_attention_heads {heads}")
    if text_config.get("vocab_size", VOCABULARY_SIZE) < VOCABULARY_SIZE:
        problems.append(f"vocab_size {text_config['vocab_size']} is less than the {VOCABULARY_SIZE} tokens of CLIP's vocabulary")
    if problems:
        raise ValueError("FrozenCLIPEmbedder: text_config: " + "; ".join(problems))
    return dict(text_config)


def _text_model_from(folder: Path) -> CLIPTextModel:
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"FrozenCLIPEmbedder: version: the folder {folder} has no config.json; expected config, weights and tokenizer files of a CLIP text model"
        )
    try:
        model, report = CLIPTextModel.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, attn_implementation=ATTENTION, output_loading_info=True
        )
    except OSError as error:
        raise ValueError(f"FrozenCLIPEmbedder: version: the folder {folder} holds no weights that can be read ({error})") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"FrozenCLIPEmbedder: version: the weights in {folder} lack {len(missing)} tensors of a CLIP text model, e.g. {missing[0]}")
    return model


def _tokenizer_from(folder: Path) -> CLIPTokenizer:
    if (folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file():
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    logger.info("%s has no tokenizer files; CLIP's own vocabulary is used", folder)
    return clip_tokenizer()
