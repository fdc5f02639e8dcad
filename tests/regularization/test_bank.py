"""What is made once: its key, its file, and what happens when the file is not what it should be."""
import hashlib
import logging

import pytest
import torch

from ldm.regularization.bank import hash_facts, hash_tensors, made_once


class Maker:
    def __init__(self, value: float = 1.0):
        self.calls, self.value = 0, value

    def __call__(self):
        self.calls += 1
        return {"z_0": torch.full((3, 2), self.value)}


def only_file(folder):
    (path,) = folder.iterdir()
    return path


def test_hash_is_of_names_shapes_and_values_in_fp32():
    tensors = {"b": torch.tensor([[1.0, 2.0]]), "a": torch.tensor(3)}
    by_hand = hashlib.sha256()
    for name, shape, values in (("a", "()", [3.0]), ("b", "(1, 2)", [1.0, 2.0])):
        by_hand.update(f"{name}\0{shape}\0".encode())
        by_hand.update(torch.tensor(values).numpy().tobytes())
    assert hash_tensors(tensors) == by_hand.hexdigest()
    assert hash_tensors(dict(reversed(tensors.items()))) == hash_tensors(tensors)
    assert hash_tensors({**tensors, "b": torch.tensor([[1.0, 2.0]], dtype=torch.float16)}) == hash_tensors(tensors)


@pytest.mark.parametrize(
    "other",
    [{"a": torch.zeros(2, 3)}, {"a": torch.zeros(3, 2).fill_(1e-30)}, {"b": torch.zeros(3, 2)}, {"a": torch.zeros(3, 2), "b": torch.zeros(0)}],
    ids=["shape", "value", "name", "one more"],
)
def test_hash_changes_with(other):
    assert hash_tensors(other) != hash_tensors({"a": torch.zeros(3, 2)})


def test_hash_of_a_view_is_that_of_its_values():
    base = torch.arange(12.0).reshape(3, 4)
    assert hash_tensors({"a": base.t()}) == hash_tensors({"a": base.t().contiguous()})


def test_facts_are_hashed_whatever_their_order():
    assert hash_facts({"a": 1, "b": [1, "x"]}) == hash_facts({"b": [1, "x"], "a": 1}) != hash_facts({"a": 1, "b": [1, "y"]})


def test_second_run_finds_what_the_first_has_made(tmp_path, caplog):
    maker = Maker()
    made = made_once("a bank", {"seed": 1}, maker, cache_dir=tmp_path)
    with caplog.at_level(logging.INFO, "ldm.regularization.bank"):
        found = made_once("a bank", {"seed": 1}, maker, cache_dir=tmp_path)
    assert maker.calls == 1 and torch.equal(made["z_0"], found["z_0"])
    assert str(only_file(tmp_path)) in caplog.text, "the log says where it was found"


def test_a_bank_of_another_base_is_left_alone_and_the_log_says_that_one_is_made(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "ldm.regularization.bank"):
        made_once("a bank", {"theta": "one"}, Maker(), cache_dir=tmp_path)
        assert f"a bank: none in {tmp_path}" in caplog.text and "made now" in caplog.text and "there are" not in caplog.text
        made_once("a bank", {"theta": "another"}, Maker(), cache_dir=tmp_path)
    assert "there are 1 of other models or settings" in caplog.text and len(list(tmp_path.glob("a-bank-*.pt"))) == 2


def test_any_other_fact_makes_another_bank(tmp_path):
    maker = Maker()
    for facts in ({"seed": 1}, {"seed": 2}, {"seed": 1, "theta": "x"}):
        made_once("a bank", facts, maker, cache_dir=tmp_path)
    assert maker.calls == 3 and len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("damage", ["truncated", "empty", "a picture", "another bank", "no bank"])
def test_a_file_that_is_not_the_bank_is_made_anew_and_named(tmp_path, caplog, damage):
    made_once("a bank", {"seed": 1}, Maker(), cache_dir=tmp_path)
    path = only_file(tmp_path)
    if damage == "another bank":
        made_once("a bank", {"seed": 2}, Maker(2.0), cache_dir=tmp_path / "other")
        path.write_bytes(only_file(tmp_path / "other").read_bytes())
    elif damage == "no bank":
        torch.save([1, 2], path)
    else:
        path.write_bytes({"truncated": path.read_bytes()[:300], "empty": b"", "a picture": b"\x89PNG\r\n\x1a\n" + bytes(50)}[damage])
    maker = Maker(1.0)
    with caplog.at_level(logging.WARNING):
        again = made_once("a bank", {"seed": 1}, maker, cache_dir=tmp_path)
    assert maker.calls == 1 and torch.equal(again["z_0"], torch.ones(3, 2))
    assert path.name in caplog.text and "made anew" in caplog.text
    assert made_once("a bank", {"seed": 1}, maker, cache_dir=tmp_path) and maker.calls == 1, "the new file is whole"


def test_a_bank_that_could_not_be_made_leaves_nothing(tmp_path):
    def fails():
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        made_once("a bank", {}, fails, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_breaks_off_leaves_nothing_and_the_run_goes_on(tmp_path, monkeypatch, caplog):
    def full_disk(content, file):
        file.write(b"half")
        raise RuntimeError("No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    tensors = made_once("a bank", {}, Maker(), cache_dir=tmp_path)
    assert torch.equal(tensors["z_0"], torch.ones(3, 2))
    assert list(tmp_path.iterdir()) == [] and "No space left" in caplog.text


def test_a_folder_that_cannot_be_made_costs_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    assert made_once("a bank", {}, Maker(), cache_dir=tmp_path / "file" / "below")["z_0"].shape == (3, 2)
    assert "cannot be written" in caplog.text


def test_other_ranks_wait_for_rank_0_and_read_its_file(tmp_path):
    first, second, order = Maker(), Maker(9.0), []

    def rank_0_arrives():
        order.append("waits")
        made_once("a bank", {}, first, cache_dir=tmp_path, rank=0, wait=lambda: order.append("rank 0 is done"))

    tensors = made_once("a bank", {}, second, cache_dir=tmp_path, rank=1, wait=rank_0_arrives)
    assert order == ["waits", "rank 0 is done"] and (first.calls, second.calls) == (1, 0)
    assert torch.equal(tensors["z_0"], torch.ones(3, 2))


def test_a_rank_that_does_not_see_the_file_makes_its_own(tmp_path):
    maker = Maker()
    made_once("a bank", {}, maker, cache_dir=tmp_path, rank=1, wait=lambda: None)
    assert maker.calls == 1 and list(tmp_path.iterdir()) == []


def test_rank_0_releases_the_others_even_if_it_fails(tmp_path):
    released = []
    with pytest.raises(ZeroDivisionError):
        made_once("a bank", {}, lambda: 1 / 0, cache_dir=tmp_path, wait=lambda: released.append(True))
    assert released == [True]


def test_default_folder_is_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made_once("a bank", {}, Maker())
    assert only_file(tmp_path / "ldm-locality").suffix == ".pt"
