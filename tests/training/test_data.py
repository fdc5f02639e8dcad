"""The order of examples is a function of the seed and of how far training is; the workers do not matter."""
from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset

from ldm.data.base import Txt2ImgIterableBaseDataset
from ldm.training import random_state
from ldm.training.data import DataModuleFromConfig, WrappedDataset, worker_init_fn
from ldm.training.order import EpochSampler, SeededDataset, SeededIndex
from tests.training import toy

TRAIN = {"target": f"{toy.MODULE}.ToyData", "params": {"examples": 11}}


def module(**changes) -> DataModuleFromConfig:
    torch.manual_seed(changes.pop("seed", 5))
    data = DataModuleFromConfig(**{"batch_size": 3, "num_workers": 0, "train": TRAIN, "validation": TRAIN, **changes})
    data.prepare_data()
    data.setup()
    return data


def same(first: list, second: list) -> bool:
    return len(first) == len(second) and all(torch.equal(a[key], b[key]) for a, b in zip(first, second, strict=True) for key in a)


def test_loading_is_the_same_for_any_number_of_workers_and_another_for_another_seed():
    none, two, other = (list(module(**given).train_dataloader()) for given in ({}, {"num_workers": 2}, {"seed": 6}))
    assert same(none, two) and not same(none, other)


def test_loading_leaves_the_chance_of_training_alone():
    data = module()
    before = random_state.capture()
    list(data.train_dataloader())
    after = random_state.capture()
    assert torch.equal(before["torch"], after["torch"]) and before["random"] == after["random"] and torch.equal(before["numpy"][1], after["numpy"][1])


def test_training_is_shuffled_and_validation_only_where_asked():
    def order(loader) -> list[int]:
        return [place.index for place in loader.sampler]

    data = module()
    assert order(data.train_dataloader()) != list(range(11)) and sorted(order(data.train_dataloader())) == list(range(11))
    assert order(data.val_dataloader()) == list(range(11))
    assert order(module(shuffle_val_dataloader=True).val_dataloader()) != list(range(11))
    assert same(list(data.val_dataloader()), list(data.val_dataloader()))


def test_module_has_the_loaders_that_its_config_names_and_twice_as_many_workers_as_the_batch():
    data = DataModuleFromConfig(4, train=TRAIN, wrap=True)
    assert data.num_workers == 8 and list(data.dataset_configs) == ["train"]
    data.setup()
    assert isinstance(data.datasets["train"], WrappedDataset) and len(data.datasets["train"]) == 11
    for name in ("val", "test", "predict"):
        with pytest.raises(Exception, match=f"{name}_dataloader"):
            getattr(data, f"{name}_dataloader")()


def test_nothing_is_dropped_at_the_end_of_an_epoch():
    assert [len(batch["x"]) for batch in module().train_dataloader()] == [3, 3, 3, 2]


def sampler(done: int = 0, **changes) -> EpochSampler:
    return EpochSampler(**{"length": 11, "seed": 7, "batch_size": 3, "shuffle": True, "batches_done": lambda: done, **changes})


@pytest.mark.parametrize("done", range(9))
def test_order_from_any_batch_on_is_the_rest_of_the_whole_order(done):
    whole = [*sampler(0), *sampler(4), *sampler(8)]            # three epochs of four batches
    epoch, batch = divmod(done, 4)
    assert list(sampler(done)) == whole[epoch * 11 + batch * 3 : (epoch + 1) * 11]


def test_epochs_differ_and_so_do_the_seeds_of_their_examples():
    first, second = list(sampler(0)), list(sampler(4))
    assert [place.index for place in first] != [place.index for place in second]
    assert len({place.seed for place in first + second}) == 22


def test_short_epochs_count_the_batches_that_are_used():
    assert list(sampler(2, batches_per_epoch=2)) == sampler().epoch(1)


def test_processes_share_an_epoch_in_equal_parts():
    parts = [[place.index for place in sampler(0, rank=rank, replicas=4)] for rank in range(4)]
    assert [len(part) for part in parts] == [3, 3, 3, 3]
    assert set(sum(parts, [])) == set(range(11))


def test_example_is_drawn_under_its_own_seed():
    data = SeededDataset(toy.ToyData(examples=4))
    first, again, other = data[SeededIndex(2, 9)], data[SeededIndex(2, 9)], data[SeededIndex(2, 10)]
    assert torch.equal(first["x"], again["x"]) and not torch.equal(first["x"], other["x"])


class Stream(Txt2ImgIterableBaseDataset):
    def __iter__(self):
        for index in self.sample_ids:
            yield {"id": index, "draw": np.random.rand(), "other": random.random()}


def test_workers_share_a_stream_and_draw_differently():
    loader = torch.utils.data.DataLoader(Stream(6, list(range(6))), batch_size=None, num_workers=2, worker_init_fn=worker_init_fn)
    items = list(loader)
    assert sorted(item["id"] for item in items) == list(range(6))
    assert len({item["draw"] for item in items}) == len({item["other"] for item in items}) == 6


def test_stream_is_loaded_in_its_own_order(monkeypatch):
    data = module()
    data.datasets["train"] = Stream(5, [4, 2, 0])
    assert isinstance(data.datasets["train"], IterableDataset)
    assert [int(index) for batch in data.train_dataloader() for index in batch["id"]] == [4, 2, 0]


def test_sampler_follows_the_trainer_that_the_module_is_attached_to():
    data = module()
    progress = SimpleNamespace(total=SimpleNamespace(processed=5))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, limit_train_batches=None, fit_loop=loop)
    loader = data.train_dataloader()
    assert list(loader.sampler) == loader.sampler.epoch(1)[3:]
    progress.total.processed = 8
    assert list(loader.sampler) == loader.sampler.epoch(2)


def test_state_of_chance_survives_a_checkpoint(tmp_path):
    state = random_state.capture()
    torch.save(state, tmp_path / "s")

    def draw() -> tuple:
        return torch.rand(1).item(), np.random.rand(), random.random(), random.gauss(0, 1), np.random.randn()

    first = draw()
    random_state.restore(torch.load(tmp_path / "s", weights_only=True))
    assert draw() == first


def test_isolated_draws_leave_no_trace():
    random_state.restore(state := random_state.capture())
    with pytest.raises(KeyError), random_state.isolated():
        torch.rand(3), np.random.rand(), random.random()
        raise KeyError
    assert torch.equal(torch.get_rng_state(), state["torch"]) and random.getstate()[1] == tuple(state["random"][1])
