"""Recorded cases, read without the libraries that this stack has not: a file of safetensors is a JSON header and the numbers behind it."""
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

WHOLE = {"F16": np.float16, "F32": np.float32, "F64": np.float64, "I32": np.int32, "I64": np.int64, "BOOL": np.bool_, "U8": np.uint8}


def _eight_bits(raw):
    """float8_e4m3fn: sign, four bits of exponent with bias 7, three of mantissa; no infinities."""
    exponent, mantissa = (raw >> 3) & 15, raw & 7
    size = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent.astype(np.float64) - 7))
    return np.where(raw >> 7, -size, size).astype(np.float32)


def tensors_in(path):
    """Name to tensor, floating-point numbers as fp32."""
    content = Path(path).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    tensors = {}
    for name, entry in json.loads(content[8:start]).items():
        if name == "__metadata__":
            continue
        first, last = entry["data_offsets"]
        raw = content[start + first : start + last]
        if entry["dtype"] == "F8_E4M3":
            values = _eight_bits(np.frombuffer(raw, np.uint8))
        else:
            values = np.frombuffer(raw, WHOLE[entry["dtype"]])
            values = values.astype(np.float32) if entry["dtype"] in ("F16", "F64") else values
        tensors[name] = torch.from_numpy(values.reshape(entry["shape"]).copy())
    return tensors


def folder_with(name):
    for folder in os.environ["RECORDED_CASES"].split(os.pathsep):
        if (Path(folder) / name).is_file():
            return Path(folder)
    return pytest.skip(f"{name} is in neither folder of recorded cases")


class Case:
    """A recorded case: tensors by key, its configuration, and the notes on how it was made."""

    def __init__(self, name):
        folder = folder_with(f"{name}.safetensors")
        self.tensors = tensors_in(folder / f"{name}.safetensors")
        self.config = yaml.safe_load((folder / f"{name}.yaml").read_text())
        self.notes = json.loads((folder / "index.json").read_text())[name]

    def __getitem__(self, key):
        return self.tensors[key]

    def under(self, prefix):
        return {key[len(prefix) + 1 :]: value for key, value in self.tensors.items() if key.startswith(prefix + "/")}

    def state_dict(self):
        """The weights, tables that are stored by their rows filled up with zeros."""
        state = self.under("sd")
        for key, shape in self.under("sparse_shape").items():
            table = torch.zeros(*shape.tolist())
            table[self[f"sparse_ids/{key}"].long()] = self[f"sparse_rows/{key}"]
            state[key] = table
        return state


def close(actual, expected, atol=5e-5):
    torch.testing.assert_close(actual.detach().float(), expected.float(), atol=atol, rtol=1e-5)


def gradient_close(actual, expected, rtol=1e-4):
    torch.testing.assert_close(actual, expected, atol=rtol * float(expected.abs().max()), rtol=0.0)
