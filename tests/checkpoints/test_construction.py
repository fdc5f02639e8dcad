"""Weights come from the file, once; what is built without them ends up as if it had been built with them."""
from __future__ import annotations

import copy
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ldm.checkpoints import load_weights, read_state_dict, save_weights
from ldm.checkpoints.construction import apart, fill, weights_at_hand, weights_to_come
from ldm.models.diffusion.ddpm import LatentDiffusion
from tests.models.diffusion.tiny import DEFAULTS, WORDS, latent_diffusion, randomise
from tests.models.first_stages import KL_GAN, NO_TRAINING, kl_model, vq_model

SUFFIXES = (".ckpt", ".safetensors")


class Net(nn.Module):
    """A trained layer, a frozen one, and buffers of both kinds."""

    def __init__(self):
        super().__init__()
        self.trained = nn.Linear(3, 4)
        self.frozen = nn.Linear(4, 2).requires_grad_(False)
        self.register_buffer("kept", torch.arange(3.0))
        self.register_buffer("computed", torch.arange(5.0), persistent=False)


def hollow() -> Net:
    with weights_to_come():
        return Net()


def data_of(path: Path) -> bytes:
    return path.read_bytes()


@pytest.fixture(params=SUFFIXES)
def base(request, tmp_path):
    """A base checkpoint without words, in both formats."""
    path = tmp_path / f"base{request.param}"
    save_weights(path, randomise(latent_diffusion(), seed=1).state_dict())
    return path


def test_parameters_wait_for_data_and_buffers_do_not():
    net = hollow()
    assert all(parameter.is_meta for parameter in net.parameters()) and not any(buffer.is_meta for buffer in net.buffers())
    assert [p.requires_grad for p in net.parameters()] == [p.requires_grad for p in Net().parameters()]
    assert not any(p.is_meta for p in Net().parameters()), "the block leaves nothing behind"
    with weights_to_come(), weights_at_hand():
        assert not any(p.is_meta for p in Net().parameters())
    with weights_to_come(False):
        assert not any(p.is_meta for p in Net().parameters())


def test_nothing_is_drawn_where_weights_are_to_come():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    hollow()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_has_data_is_written_in_place_and_what_has_none_is_replaced():
    source, present, waiting = Net(), Net(), hollow()
    places = {key: value.data_ptr() for key, value in present.state_dict().items()}
    for target in (present, waiting):
        fill(target, source.state_dict())
        assert all(torch.equal(value, source.state_dict()[key]) for key, value in target.state_dict().items())
    assert {key: value.data_ptr() for key, value in present.state_dict().items()} == places, "an optimiser that knows the parameter must see the new values"
    assert waiting.trained.weight.requires_grad and not waiting.frozen.weight.requires_grad
    assert waiting.trained.weight.data_ptr() == source.trained.weight.data_ptr(), "no copy"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_formats_are_converted_to_the_models_own(dtype):
    source = Net()
    net = hollow()
    fill(net, {key: value.to(dtype) for key, value in source.state_dict().items()})
    assert all(value.dtype == torch.float32 for value in net.state_dict().values())
    torch.testing.assert_close(net.trained.weight, source.trained.weight, atol=1e-2, rtol=1e-2)


def test_tensors_that_share_memory_in_the_file_do_not_in_the_model(tmp_path):
    """Two keys of one tensor: training one must not move the other."""
    one = torch.randn(4, 3)
    state = {**Net().state_dict(), "trained.weight": one, "frozen.weight": one.flatten()[:8].view(2, 4)}
    torch.save(state, tmp_path / "m.pt")
    net = hollow()
    load_weights(net, tmp_path / "m.pt")
    with torch.no_grad():
        net.trained.weight.zero_()
    assert torch.equal(net.frozen.weight.flatten(), one.flatten()[:8])


def test_transposed_and_expanded_tensors_arrive_as_ordinary_ones(tmp_path):
    state = {**Net().state_dict(), "trained.weight": torch.arange(12.0).view(3, 4).T, "frozen.bias": torch.ones(1).expand(2)}
    torch.save(state, tmp_path / "m.pt")
    net = hollow()
    load_weights(net, tmp_path / "m.pt")
    assert torch.equal(net.trained.weight, state["trained.weight"])
    assert net.trained.weight.is_contiguous() and net.frozen.bias.is_contiguous()


def test_neighbours_in_memory_are_not_taken_for_sharers():
    both = torch.arange(8.0)
    tensors = apart({"a": both[:4], "b": both[4:], "empty": both[4:4]})
    assert tensors["a"].data_ptr() == both.data_ptr() and tensors["b"].data_ptr() == both[4:].data_ptr()


# -- models ------------------------------------------------------------------------------------------------------------------------------


def test_a_model_built_for_its_checkpoint_equals_one_built_first_and_loaded_then(base):
    direct = latent_diffusion(ckpt_path=str(base), personalization_config=WORDS, unfreeze_model=True)
    later = latent_diffusion(personalization_config=WORDS, unfreeze_model=True)
    later.init_from_ckpt(str(base))
    assert list(direct.state_dict()) == list(later.state_dict())
    assert all(torch.equal(value, later.state_dict()[key]) for key, value in direct.state_dict().items() if not key.startswith("embedding_manager."))
    assert [p.requires_grad for p in direct.parameters()] == [p.requires_grad for p in later.parameters()]
    assert not any(p.is_meta for p in direct.parameters())


def test_training_moves_the_model_and_leaves_the_file_as_it_is(base):
    before = data_of(base)
    model = latent_diffusion(ckpt_path=str(base), personalization_config=WORDS, unfreeze_model=True, model_lr=1e-2)
    model.learning_rate = 1e-2
    weight = model.model.diffusion_model.out[2].weight
    start = weight.detach().clone()
    optimizer = model.configure_optimizers()
    optimizer = optimizer if isinstance(optimizer, torch.optim.Optimizer) else optimizer[0][0]
    weight.square().sum().backward()
    optimizer.step()
    assert not torch.equal(weight, start)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert data_of(base) == before
    assert torch.equal(latent_diffusion(ckpt_path=str(base)).model.diffusion_model.out[2].weight, start)


def test_a_file_that_is_replaced_keeps_its_old_weights_in_the_model(base):
    """Every writer here puts a new file in the old one's place; the model holds on to the old one."""
    model = latent_diffusion(ckpt_path=str(base))
    values = {key: value.clone() for key, value in model.state_dict().items()}
    save_weights(base, {key: torch.zeros_like(value) for key, value in values.items()})
    assert all(torch.equal(value, values[key]) for key, value in model.state_dict().items())
    base.unlink()
    assert all(torch.equal(value, values[key]) for key, value in model.state_dict().items())


def test_a_model_can_be_written_over_the_file_that_it_was_loaded_from(base):
    model = latent_diffusion(ckpt_path=str(base))
    values = {key: value.clone() for key, value in model.state_dict().items()}
    save_weights(base, model.state_dict())
    again = latent_diffusion(ckpt_path=str(base))
    assert all(torch.equal(value, values[key]) for key, value in again.state_dict().items())


def test_a_frozen_copy_is_independent_of_the_model_and_the_file(base):
    model = latent_diffusion(ckpt_path=str(base))
    teacher = copy.deepcopy(model.model)
    with torch.no_grad():
        model.model.diffusion_model.out[2].weight.add_(1.0)
    difference = model.model.diffusion_model.out[2].weight - teacher.diffusion_model.out[2].weight
    torch.testing.assert_close(difference, torch.ones_like(difference))


def test_averages_come_from_the_file_or_begin_at_its_weights(tmp_path):
    source = randomise(latent_diffusion(use_ema=True), seed=1)
    save_weights(tmp_path / "with.safetensors", source.state_dict())
    loaded = latent_diffusion(use_ema=True, ckpt_path=str(tmp_path / "with.safetensors"))
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in loaded.state_dict().items())
    plain = {key: value for key, value in source.state_dict().items() if not key.startswith("model_ema.")}
    save_weights(tmp_path / "without.safetensors", plain)
    begun = latent_diffusion(use_ema=True, ckpt_path=str(tmp_path / "without.safetensors"))
    weight = "diffusion_model.out.2.weight"
    average = begun.model_ema.get_buffer(weight.replace(".", ""))
    assert torch.equal(average, source.model.get_parameter(weight)) and int(begun.model_ema.num_updates) == 0
    assert average.data_ptr() != begun.model.get_parameter(weight).data_ptr()


def test_condition_encoded_by_the_first_stage_is_the_first_stage(tmp_path):
    options = {"cond_stage_config": "__is_first_stage__", "conditioning_key": "concat", "cond_stage_trainable": False}
    path = tmp_path / "m.safetensors"
    model = latent_diffusion(**options)
    save_weights(path, model.state_dict())
    loaded = latent_diffusion(**options, ckpt_path=str(path))
    assert loaded.cond_stage_model is loaded.first_stage_model
    key = "decoder.conv_out.weight"
    assert loaded.cond_stage_model.get_parameter(key).data_ptr() == loaded.first_stage_model.get_parameter(key).data_ptr()
    assert torch.equal(loaded.first_stage_model.get_parameter(key), model.first_stage_model.get_parameter(key))


def test_an_own_way_of_loading_finds_parameters_that_have_data(base):
    """A subclass that loads by hand, leniently, as code written for the original does."""

    class Lenient(LatentDiffusion):
        def init_from_ckpt(self, path, ignore_keys=(), only_model=False):
            self.load_state_dict({"model.diffusion_model.out.2.weight": read_state_dict(path)["model.diffusion_model.out.2.weight"]}, strict=False)

    model = Lenient(**copy.deepcopy({**DEFAULTS, "ckpt_path": str(base)}))
    assert not any(p.is_meta for p in model.parameters()) and model.first_stage_model.encoder.conv_in.weight.any()
    assert model.model.diffusion_model.out[2].weight.any(), "zeros before it was loaded"


@pytest.mark.parametrize("make", [kl_model, vq_model])
def test_first_stages_load_without_drawing_weights_and_keep_a_loss_that_the_file_lacks(tmp_path, make):
    source = make(NO_TRAINING)
    save_weights(tmp_path / "vae.ckpt", source.state_dict())
    loaded = make(KL_GAN if make is kl_model else NO_TRAINING, ckpt_path=str(tmp_path / "vae.ckpt"), use_ema=True)
    assert not any(tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in source.state_dict().items())
    name = "decoder.conv_out.weight"
    assert torch.equal(loaded.model_ema.get_buffer(name.replace(".", "")), source.get_parameter(name))


@pytest.mark.skipif(sys.platform != "linux", reason="counts pages by /proc")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_loading_takes_no_memory_of_its_own_for_weights(tmp_path, suffix):
    """64 MiB of weights are loaded, and hardly any anonymous memory is taken."""

    def anonymous_kib() -> int:
        return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0])

    save_weights(tmp_path / f"m{suffix}", nn.Linear(4096, 4096, bias=False).state_dict())
    before = anonymous_kib()
    with weights_to_come():
        net = nn.Linear(4096, 4096, bias=False)
    load_weights(net, tmp_path / f"m{suffix}")
    assert float(net.weight.detach().abs().max()) > 0
    assert anonymous_kib() - before < 16 * 1024 and os.path.getsize(tmp_path / f"m{suffix}") > 60 * 2**20
