"""At every moment the old file or the whole new one."""
from __future__ import annotations

import errno
import os
import stat

import pytest
import torch
from safetensors import safe_open
from torch import nn

from ldm.checkpoints import atomic_write, read_state_dict, save_weights


def test_new_content_takes_the_place_of_the_old(tmp_path):
    path = tmp_path / "f"
    path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old" and temporary.parent == path.parent
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyError("x"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_error_on_the_way_leaves_the_old_file_and_no_other(tmp_path, error):
    path = tmp_path / "f"
    path.write_text("old")
    with pytest.raises(type(error)), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:783] . PytorchStreamWriter failed writing file data/1: file write failed"),
        RuntimeError("unexpected pos 5376 vs 5270"),
    ],
)
def test_full_disk_is_said_in_words(tmp_path, error):
    with pytest.raises(ValueError, match="the disk is full") as caught, atomic_write(tmp_path / "f"):
        raise error
    assert str(tmp_path / "f") in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_disk_that_really_fills_up_keeps_the_old_file(tmp_path, suffix):
    """A limit on the size of files stands for the end of the disk: the kernel refuses the write in the middle."""
    path = tmp_path / f"m{suffix}"
    save_weights(path, {"w": torch.ones(3)})
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(ValueError, match="the disk is full"):
            save_weights(path, {"w": torch.ones(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert torch.equal(read_state_dict(path)["w"], torch.ones(3)) and list(tmp_path.iterdir()) == [path]


def test_file_gets_the_permissions_of_other_new_files(tmp_path):
    (tmp_path / "plain").touch()
    with atomic_write(tmp_path / "f") as temporary:
        temporary.touch()
    assert stat.S_IMODE(os.stat(tmp_path / "f").st_mode) == stat.S_IMODE(os.stat(tmp_path / "plain").st_mode)


def test_folder_that_is_a_file_is_an_error_of_the_users(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError), atomic_write(tmp_path / "file" / "f"):
        pass


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".safetensors"])
def test_weights_come_back_in_the_dtype_asked_for_and_integers_as_they_were(tmp_path, suffix):
    path = tmp_path / f"m{suffix}"
    save_weights(path, {"w": torch.randn(2, 3).t(), "ids": torch.tensor([1, 2])}, dtype=torch.float16)
    tensors = read_state_dict(path)
    assert tensors["w"].dtype == torch.float16 and tensors["w"].shape == (3, 2) and tensors["ids"].dtype == torch.int64


def test_tied_weights_are_both_written(tmp_path):
    layer = nn.Linear(3, 3)
    save_weights(tmp_path / "m.safetensors", {"a": layer.weight, "b": layer.weight})
    tensors = read_state_dict(tmp_path / "m.safetensors")
    assert torch.equal(tensors["a"], layer.weight) and torch.equal(tensors["b"], layer.weight)


def test_metadata_stands_in_the_head_of_a_safetensors_file(tmp_path):
    save_weights(tmp_path / "m.safetensors", {"a": torch.ones(1)}, metadata={"from": "a test"})
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert file.metadata() == {"from": "a test"}


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.onnx"):
        save_weights(tmp_path / "m.onnx", {"a": torch.ones(1)})
