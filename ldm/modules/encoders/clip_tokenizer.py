"""CLIP's byte-pair vocabulary, from the file that the `clip` package ships, as a tokenizer of `transformers`.

Radford et al. 2021, arXiv 2103.00020: 256 bytes, the same 256 at the end of a word, 48,894 merges, two marks: 49,408 tokens. The file lists
merges alone; the order of the rest is fixed by CLIP's weights.
"""
from __future__ import annotations

import functools
import gzip
import importlib.util
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
VOCABULARY_SIZE = 49408
POSITIONS = 77
MERGES_FILE = "bpe_simple_vocab_16e6.txt.gz"


@functools.cache
def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer: lower case, between start (49406) and end (49407), padded with the end mark.

    Needs no network and writes no file. All callers share one, since it takes half a second to build: copy it before you add tokens.
    Raises FileNotFoundError where the `clip` package is absent.
    """
    byte_symbols = sorted(ByteLevel.alphabet())
    n_merges = VOCABULARY_SIZE - 2 * len(byte_symbols) - len((START, END))
    with gzip.open(_merges_path(), "rt", encoding="utf-8") as file:
        next(file)  # the version
        merges = [tuple(next(file).split()) for _ in range(n_merges)]
    symbols = [*byte_symbols, *(symbol + WORD_END for symbol in byte_symbols), *(a + b for a, b in merges), START, END]
    vocabulary = {symbol: token for token, symbol in enumerate(symbols)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=POSITIONS)


def _merges_path() -> Path:
    # Found without importing the package, which would import torchvision and pkg_resources for one text file.
    package = importlib.util.find_spec("clip")
    folders = package.submodule_search_locations if package is not None and package.submodule_search_locations else []
    for folder in folders:
        path = Path(folder) / MERGES_FILE
        if path.is_file():
            return path
    raise FileNotFoundError(f"CLIP's vocabulary {MERGES_FILE} was not found: it comes with the package clip-anytorch (pip install clip-anytorch)")
