"""Whatever a user gives for a checkpoint is read, or named for what it is."""
from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from safetensors.torch import save_file

from ldm.checkpoints import read_checkpoint, read_state_dict, save_weights
from ldm.checkpoints.reading import StandIn, trusting_pickles

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([3, 4])}


@pytest.fixture
def written(tmp_path):
    """Writes a file of a given name."""

    def write(name: str, content: object) -> Path:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif path.suffix == ".safetensors":
            save_file(content, path)
        else:
            torch.save(content, path)
        return path

    return write


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.safetensors", TENSORS),
        ("m.pt", TENSORS),
        ("m.ckpt", {"state_dict": TENSORS, "epoch": 3, "callbacks": {"x": 1}}),
    ],
)
def test_every_format_gives_the_same_tensors(written, name, content):
    tensors = read_state_dict(written(name, content))
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[key], value) for key, value in TENSORS.items())


def test_old_zipless_files_are_read(tmp_path):
    torch.save({"state_dict": TENSORS}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert torch.equal(read_state_dict(tmp_path / "old.ckpt")["b"], TENSORS["b"])


def test_whole_checkpoint_keeps_what_is_beside_the_weights(written):
    assert read_checkpoint(written("m.ckpt", {"state_dict": TENSORS, "global_step": 7}))["global_step"] == 7


@pytest.mark.parametrize(
    ("name", "content", "looks"),
    [
        ("c.yaml", b"model:\n  target: x\n", "a yaml config"),
        ("p.ckpt", b"\x89PNG\r\n\x1a\n" + b"\x00" * 30, "a picture"),
        ("j.ckpt", b"\xff\xd8\xff\xe0" + b"\x00" * 30, "a picture"),
        ("lfs.ckpt", b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 4\n", "git lfs pull"),
        ("lfs.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 4\n", "git lfs pull"),
        ("zero.ckpt", b"", "0 bytes"),
        ("page.ckpt", b"<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        ("notes.pt", "näin, notes about a model\n".encode(), "a text file that begins with 'näin, notes"),
    ],
)
def test_what_is_no_checkpoint_is_named_for_what_it_looks_like(written, name, content, looks):
    path = written(name, content)
    with pytest.raises(ValueError, match="not a checkpoint") as caught:
        read_state_dict(path)
    assert looks in str(caught.value) and str(path) in str(caught.value)


def test_folder_and_missing_file_are_named(tmp_path):
    with pytest.raises(ValueError, match="a folder"):
        read_state_dict(tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing.ckpt"):
        read_state_dict(tmp_path / "nothing.ckpt")


@pytest.mark.parametrize("name", ["m.ckpt", "m.safetensors"])
@pytest.mark.parametrize("kept", [0.3, 0.95])
def test_truncated_file_is_said_to_be_cut_short(written, name, kept):
    content = {"w": torch.randn(64, 64)}
    path = written(name, content if name.endswith("safetensors") else {"state_dict": content})
    os.truncate(path, int(path.stat().st_size * kept))
    with pytest.raises(ValueError, match="cut short|damaged"):
        read_state_dict(path)


@pytest.mark.parametrize("name", ["m.ckpt", "m.safetensors"])
@pytest.mark.parametrize("how", ["cut", "turned", "zeroed"])
def test_damage_anywhere_is_one_message_or_leaves_names_and_shapes(written, name, how):
    """Bytes of the weights themselves carry no checksum in either format; all others must not lead to an error of another kind."""
    content = {f"model.{k}.weight": torch.randn(16, 16) for k in range(4)}
    path = written(name, content if name.endswith("safetensors") else {"state_dict": content})
    good = path.read_bytes()
    for offset in [*range(0, 1024, 3), *range(1024, len(good) - 512, 97), *range(len(good) - 512, len(good), 5)]:
        broken = bytearray(good)
        if how == "cut":
            del broken[offset:]
        elif how == "turned":
            broken[offset] ^= 0xFF
        else:
            broken[offset : offset + 16] = bytes(len(broken[offset : offset + 16]))
        path.write_bytes(broken)
        try:
            tensors = read_state_dict(path)
        except ValueError as error:
            assert str(path) in str(error), offset
        else:
            assert how != "cut" and all(isinstance(value, torch.Tensor) for value in tensors.values())


class Malicious:
    def __reduce__(self):
        return (os.system, ("touch /tmp/this-must-not-be-made",))


def test_file_that_needs_more_than_weights_is_refused_naming_the_flag(written):
    path = written("m.ckpt", {"state_dict": TENSORS, "extra": Malicious()})
    with pytest.raises(ValueError, match="--trust_pickle") as caught:
        read_state_dict(path)
    assert "system" in str(caught.value)
    assert not Path("/tmp/this-must-not-be-made").exists()


def test_trusted_file_may_hold_objects(written):
    content = {"state_dict": TENSORS, "path": Path("x")}
    assert read_checkpoint(written("m.ckpt", content), trust_pickle=True)["path"] == Path("x")


def test_reader_trusts_where_the_user_said_so(written):
    path = written("m.ckpt", {"state_dict": TENSORS, "path": Path("x")})
    with trusting_pickles():
        assert read_checkpoint(path)["path"] == Path("x")
    with pytest.raises(ValueError, match="--trust_pickle"):
        read_checkpoint(path)


def test_checkpoint_of_lightning_1_is_read_without_trust(written):
    """Stable Diffusion's own names its callbacks by class and their scores as numpy's numbers."""
    callbacks = {ModelCheckpoint: {"best_model_score": np.float64(0.5), "best_model_path": "x"}}
    content = read_checkpoint(written("m.ckpt", {"state_dict": TENSORS, "global_step": 470000, "callbacks": callbacks}))
    assert content["global_step"] == 470000 and list(content["callbacks"]) == [StandIn]
    assert content["callbacks"][StandIn]["best_model_score"] == 0.5


def test_file_without_tensors_lists_its_keys(written):
    with pytest.raises(ValueError, match="epoch"):
        read_state_dict(written("m.ckpt", {"epoch": 3}))
    with pytest.raises(ValueError, match="list"):
        read_state_dict(written("l.ckpt", [1, 2]))


@pytest.mark.skipif(sys.platform != "linux", reason="counts pages by /proc")
@pytest.mark.parametrize("name", ["m.safetensors", "m.ckpt"])
def test_reading_maps_the_file_instead_of_copying_it(tmp_path, name):
    """64 MiB are named, hardly any private memory is taken until they are used."""
    save_weights(tmp_path / name, {"w": torch.zeros(16, 2**20)})

    def private_kib() -> int:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))

    before = private_kib()
    tensors = read_state_dict(tmp_path / name)
    assert private_kib() - before < 16 * 1024
    assert tensors["w"].shape == (16, 2**20)
