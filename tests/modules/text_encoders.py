"""Small text encoders for tests: CLIP from a size or as a folder in the Hugging Face layout, BERT over a made-up vocabulary."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from transformers import CLIPTextConfig, CLIPTextModel

from ldm.modules.encoders.clip_tokenizer import clip_tokenizer
from ldm.modules.encoders.modules import BERTEmbedder, FrozenCLIPEmbedder
from ldm.prompts import per_img_token_list
from tests.golden.case import Case

EMBEDDING_CASES = ["em_1vec", "em_1vec_two_placeholders", "em_3vec", "em_3vec_two_placeholders"]
EMBEDDING_CASES += ["em_3vec_progressive_c0", "em_3vec_progressive_c1999", "em_3vec_progressive_c4000"]
TINY = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
# Line number = token id. "sculpture" is two pieces, "opossum" three.
BERT_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "*", "@", "a", "an", "the", "photo", "of", "painting", "in", "style", "dog", "sculpt", "##ure"]
BERT_WORDS += ["o", "##poss", "##um", "close", "-", "up", "with", *per_img_token_list]


def tiny_clip(**options: Any) -> FrozenCLIPEmbedder:
    return FrozenCLIPEmbedder(device="cpu", text_config=TINY, **options)


def clip_folder(folder: Path, text_config: Mapping[str, Any]) -> Path:
    """A random CLIP text model of that size in `folder`: config, weights, tokenizer files."""
    config = CLIPTextConfig(**text_config, pad_token_id=49407)
    CLIPTextModel(config).save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    return folder


def clip_of_case(case: Case) -> FrozenCLIPEmbedder:
    """The encoder of a golden case, with random weights."""
    return FrozenCLIPEmbedder(device="cpu", text_config=OmegaConf.to_container(case.config.clip_text_config))


def clip_with_weights_of(weights: Case) -> FrozenCLIPEmbedder:
    """The encoder of a golden case, with the weights recorded for it."""
    encoder = clip_of_case(weights)
    prefix = "cond_stage_model."
    encoder.load_state_dict({key[len(prefix) :]: value for key, value in weights.state_dict().items() if key.startswith(prefix)})
    return encoder


def bert_vocabulary(folder: Path) -> Path:
    path = folder / "vocab.txt"
    path.write_text("\n".join(BERT_WORDS) + "\n", encoding="utf-8")
    return path


def tiny_bert(folder: Path, **options: Any) -> BERTEmbedder:
    settings = {"n_embed": 24, "n_layer": 1, "vocab_size": len(BERT_WORDS), "max_seq_len": 40, "device": "cpu"}
    return BERTEmbedder(**(settings | options), vocabulary=str(bert_vocabulary(folder)))


class Adding:
    """A callable in place of an embedding manager: remembers what it was given and adds a constant."""

    def __init__(self, constant: float):
        self.constant = constant
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, ids: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        self.seen.append((ids, embeddings))
        return embeddings + self.constant
