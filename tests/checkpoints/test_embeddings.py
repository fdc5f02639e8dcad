"""Embedding files: the recorded ones read, ours in the same format, everything else told apart."""
import zipfile

import pytest
import torch
from torch import nn

from ldm.checkpoints import embeddings as module
from ldm.checkpoints.embeddings import read_embeddings, write_embeddings
from tests.golden.case import golden_path, load_case
from tests.modules.text_encoders import EMBEDDING_CASES


@pytest.mark.parametrize("name", EMBEDDING_CASES)
def test_recorded_files_are_read(name):
    case = load_case(name)
    tokens, vectors = read_embeddings(golden_path(f"{name}_embeddings.pt"))
    assert {placeholder: int(token) for placeholder, token in tokens.items()} == case.notes["string_to_token"]
    assert vectors.keys() == case.under("param").keys()
    assert all(torch.equal(vectors[placeholder], value) for placeholder, value in case.under("param").items())
    assert not any(vector.requires_grad for vector in vectors.values())


@pytest.mark.parametrize("name", ["em_1vec", "em_3vec_two_placeholders"])
def test_written_files_have_the_recorded_types(name, tmp_path):
    """What other programs find: a dict of 0-dim int64 tensors and a ParameterDict of trainable float32 parameters, on the CPU."""
    case = load_case(name)
    path = tmp_path / "embeddings.pt"
    write_embeddings(path, *read_embeddings(golden_path(f"{name}_embeddings.pt")))
    content = torch.load(path, weights_only=False)

    def described(entries):
        rows = {
            key: [f"torch.{type(value).__name__}" if type(value) is torch.Tensor else f"torch.nn.parameter.{type(value).__name__}", str(value.dtype),
                  list(value.shape), value.requires_grad, str(value.device)]
            for key, value in entries.items()
        }  # fmt: skip
        return {"container": f"{type(entries).__module__}.{type(entries).__qualname__}", "entries": rows}

    assert list(content) == ["string_to_token", "string_to_param"]
    assert {key: described(value) for key, value in content.items()} == case.notes["pt_types"]


def test_a_file_reads_back_as_written(tmp_path):
    path = tmp_path / "words.pt"
    vectors = {"*": torch.randn(2, 5), "@": torch.randn(1, 5)}
    write_embeddings(path, {"*": torch.tensor(265), "@": torch.tensor(287)}, vectors)
    tokens, found = read_embeddings(path)
    assert {key: int(value) for key, value in tokens.items()} == {"*": 265, "@": 287}
    assert all(torch.equal(found[key], vectors[key]) for key in vectors)
    write_embeddings(path, tokens, {key: value + 1 for key, value in found.items()})  # what was read does not depend on the file
    assert all(torch.equal(found[key], vectors[key]) for key in vectors)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "words.pt"
    write_embeddings(path, {"*": torch.tensor(265)}, {"*": torch.zeros(1, 4)})
    before = path.read_bytes()

    def half(content, file):
        file.write_bytes(b"PK")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.torch, "save", half)
    with pytest.raises(ValueError, match="disk is full"):
        write_embeddings(path, {"*": torch.tensor(265)}, {"*": torch.ones(1, 4)})
    assert path.read_bytes() == before and [entry.name for entry in tmp_path.iterdir()] == ["words.pt"]


def test_files_of_old_torch_are_read(tmp_path):
    """Before torch 1.12 a ParameterDict kept no list of its keys."""
    words = nn.ParameterDict({"*": nn.Parameter(torch.ones(1, 4))})
    del words._keys
    torch.save({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": words}, tmp_path / "old.pt")
    assert torch.equal(read_embeddings(tmp_path / "old.pt")[1]["*"], torch.ones(1, 4))


def test_plain_dictionaries_with_more_keys_are_read(tmp_path):
    """As the web UIs write them."""
    content = {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.ones(2, 4)}, "name": "x", "step": 3, "sd_checkpoint": None}
    torch.save(content, tmp_path / "web.pt")
    tokens, vectors = read_embeddings(tmp_path / "web.pt")
    assert tokens["*"] == 265 and tokens["*"].dtype == torch.int64 and vectors["*"].shape == (2, 4)


class Harmful:
    def __reduce__(self):
        return print, ("run",)


def test_code_in_a_file_is_not_run(tmp_path, capsys):
    torch.save({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": Harmful()}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="holds more than weights"):
        read_embeddings(tmp_path / "x.pt")
    assert "run" not in capsys.readouterr().out


def test_a_damaged_file_is_told(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(golden_path("em_1vec_embeddings.pt").read_bytes()[:1500])
    with pytest.raises(ValueError, match="x.pt: .*(damaged|cut short)"):
        read_embeddings(path)


@pytest.mark.parametrize(
    "name, content, found", [("a.yaml", b"model:\n", "a yaml config"), ("a.pt", b"", "an empty file"), ("a.pt", b"\x89PNG\r\n\x1a\n123", "a picture")]
)
def test_files_of_other_kinds_are_named(tmp_path, name, content, found):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=found):
        read_embeddings(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no checkpoint .*absent.pt"):
        read_embeddings(tmp_path / "absent.pt")


@pytest.mark.parametrize(
    "content, message",
    [
        ({"state_dict": {"a": torch.zeros(1)}}, "expected the keys string_to_token and string_to_param, found state_dict"),
        ([torch.zeros(1)], "found list"),
        ({"string_to_token": {}, "string_to_param": {}}, "tokens for nothing and vectors for nothing"),
        ({"string_to_token": {"*": torch.tensor(1)}, "string_to_param": {"@": torch.zeros(1, 4)}}, "tokens for '\\*' and vectors for '@'"),
        ({"string_to_token": {"*": torch.tensor(1)}, "string_to_param": {"*": torch.zeros(4)}}, r"shape \(4,\); expected \(vectors, width\)"),
    ],
)
def test_other_contents_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pt")
    assert zipfile.is_zipfile(tmp_path / "x.pt")
    with pytest.raises(ValueError, match=message):
        read_embeddings(tmp_path / "x.pt")
