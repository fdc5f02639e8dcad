"""Learnt words on disk, in the file that other programs of this family read too.

A pickled dictionary with two keys: `string_to_token` (placeholder -> 0-dim int64 tensor) and `string_to_param` (an nn.ParameterDict,
placeholder -> (vectors, width)).
"""
from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checkpoints.reading import checked, first_line, load_pickled, refusal
from ldm.checkpoints.writing import atomic_write

KEYS = ("string_to_token", "string_to_param")


def read_embeddings(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(placeholder -> token, a 0-dim int64 tensor; placeholder -> vectors (n, width), float), on the CPU and independent of the file.

    Reads nothing but tensors. Raises FileNotFoundError, or ValueError that says what the file holds instead of embeddings.
    """
    path = checked(path)
    try:
        with torch.serialization.safe_globals([nn.ParameterDict]):
            content = load_pickled(path, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: {refusal(path, error)}") from error
    except (RuntimeError, EOFError, OSError, ValueError, zipfile.BadZipFile, AttributeError, ImportError) as error:
        raise ValueError(f"{path}: not readable as embeddings, the file is damaged or was cut short ({first_line(error)})") from error
    if not isinstance(content, Mapping) or any(key not in content for key in KEYS):
        found = ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"{path}: not an embedding file: expected the keys {' and '.join(KEYS)}, found {found or 'none'}")
    tokens = {placeholder: torch.as_tensor(token, dtype=torch.int64).clone() for placeholder, token in content[KEYS[0]].items()}
    vectors = {placeholder: vector.detach().clone() for placeholder, vector in _entries(content[KEYS[1]]).items()}
    if tokens.keys() != vectors.keys() or not tokens:
        raise ValueError(f"{path}: has tokens for {_listed(tokens)} and vectors for {_listed(vectors)}; expected the same placeholders, at least one")
    for placeholder, vector in vectors.items():
        if vector.ndim != 2 or not vector.is_floating_point():
            raise ValueError(f"{path}: {placeholder!r} is a {vector.dtype} tensor of shape {tuple(vector.shape)}; expected (vectors, width) of floats")
    return tokens, vectors


def write_embeddings(path: str | Path, string_to_token: Mapping[str, Tensor], string_to_param: Mapping[str, Tensor]) -> None:
    """Write the two dictionaries to `path`, whole or not at all. string_to_param: placeholder -> (n, width)."""
    assert string_to_token.keys() == string_to_param.keys(), "tokens and vectors are for the same placeholders"
    tokens = {placeholder: torch.tensor(int(token)) for placeholder, token in string_to_token.items()}
    vectors = nn.ParameterDict({placeholder: nn.Parameter(vector.detach().cpu().clone()) for placeholder, vector in string_to_param.items()})
    with atomic_write(path) as temporary:
        torch.save({KEYS[0]: tokens, KEYS[1]: vectors}, temporary)


def _entries(parameters: Any) -> Mapping[str, Tensor]:
    # The list of keys that a ParameterDict reads its entries by is missing from files of torch before 1.12.
    return parameters._parameters if isinstance(parameters, nn.ParameterDict) else parameters


def _listed(entries: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, entries)) or "nothing"
