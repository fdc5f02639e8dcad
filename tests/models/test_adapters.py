"""Low-rank adapters on a real model: who trains, what stands still, what is saved, and what comes out merged."""
from __future__ import annotations

import copy
import sys

import pytest
import torch
from safetensors.torch import save_file

from ldm.checkpoints import load_weights, read_state_dict
from ldm.checkpoints.export import export_weights
from ldm.models.adapters import LowRankAdapters
from ldm.models.diffusion.pixels import OPTIONAL_WEIGHTS
from tests.models.diffusion.test_checkpoints import restored, saved
from tests.models.diffusion.test_training import fit
from tests.models.diffusion.tiny import WORDS, latent_diffusion, randomise


def adapters(**params) -> dict:
    return {"target": "ldm.models.adapters.LowRankAdapters", "params": {"rank": 3, "alpha": 6.0, **params}}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    save_file({key: value.contiguous() for key, value in randomise(latent_diffusion(), seed=1, scale=0.1).state_dict().items()}, path)
    return str(path)


def adapted(base: str | None, **params):
    model = latent_diffusion(ckpt_path=base, personalization_config=WORDS, model_lr=1e-2, **{"adapter_config": adapters(), **params})
    model.learning_rate = 1e-3
    return model


@pytest.fixture(scope="module")
def tuned(base):
    """A model after three steps."""
    model = adapted(base, adapter_config=adapters(text_rank=2))
    fit(model, 3, learning_rate=1e-3)
    return model.eval()


def names(model, parameters) -> list[str]:
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    return [known[id(parameter)] for parameter in parameters]


def output(model) -> torch.Tensor:
    torch.manual_seed(5)
    with torch.no_grad():
        c = model.get_learned_conditioning(["a photo of a *", "a house"])
        return model.apply_model(torch.randn(2, 4, 8, 8), torch.tensor([3, 11]), c)


def test_the_base_keeps_its_keys_and_loads_under_them(base):
    plain, model = latent_diffusion(personalization_config=WORDS).state_dict(), adapted(base)
    own = model.state_dict()
    assert [key for key in own if key not in model.adapters.keys] == list(plain)
    assert model.adapters.keys == own.keys() - plain.keys() and len(model.adapters.keys) % 3 == 0
    assert {key.split(".attn")[1].split(".", 1)[1] for key in model.adapters.keys} == {
        f"{layer}.{part}" for layer in ("to_q", "to_k", "to_v", "to_out.0") for part in ("lora_A.weight", "lora_B.weight", "alpha")
    }
    assert all(torch.equal(own[key], value) for key, value in read_state_dict(base).items())
    load_weights(model, base, may_miss=(*OPTIONAL_WEIGHTS, *model.adapters.keys))


def test_new_adapters_change_nothing(base):
    plain = latent_diffusion(ckpt_path=base, personalization_config=WORDS).eval()
    assert torch.equal(output(adapted(base, adapter_config=adapters(text_rank=2)).eval()), output(plain))


def test_adapters_and_words_train_at_their_own_rates_and_nothing_else(base):
    model = adapted(base)
    words, network = model.configure_optimizers().param_groups
    assert (words["lr"], network["lr"]) == (1e-3, 1e-2)
    assert names(model, words["params"]) == ["embedding_manager.string_to_param_dict.*"]
    assert all(".lora_" in name and name.startswith("model.") for name in names(model, network["params"]))
    assert len(network["params"]) == 2 * len(model.adapters.keys) / 3
    assert sum(p.requires_grad for p in model.parameters()) == 1 + len(network["params"])
    assert model.train().model.training and not model.cond_stage_model.training


def test_the_text_encoders_adapters_come_first_where_asked_for(base):
    model = adapted(base, adapter_config=adapters(text_rank=2))
    group = model.configure_optimizers().param_groups[1]
    parts = [name.split(".")[0] for name in names(model, group["params"])]
    assert parts == sorted(parts) and set(parts) == {"cond_stage_model", "model"}
    assert {len(p) for p, part in zip(group["params"], parts, strict=True) if part == "cond_stage_model" and p.shape[1] == 32} == {2}


def test_the_two_phases_of_pivotal_tuning(base):
    model = adapted(base)
    (first,) = model.configure_opt_embedding().param_groups
    assert first["lr"] == 1e-3 and [n for n, p in model.named_parameters() if p.requires_grad] == ["embedding_manager.string_to_param_dict.*"]
    model.train_embeddings = False
    (second,) = model.configure_opt_model().param_groups
    assert second["lr"] == 1e-2 and {n.split(".")[-3] for n, p in model.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}


def test_base_weights_stand_still_while_adapters_move(base, tuned):
    own = tuned.state_dict()
    assert all(torch.equal(own[key], value) for key, value in read_state_dict(base).items())
    assert all(own[key].any() for key in own if key.endswith("lora_B.weight"))


def test_off_is_the_base_and_leaves_no_trace(base, tuned):
    moved, required = output(tuned), [p.requires_grad for p in tuned.parameters()]
    plain = latent_diffusion(ckpt_path=base, personalization_config=WORDS).eval()
    plain.embedding_manager.load_state_dict(tuned.embedding_manager.state_dict())
    with tuned.adapters.off():
        assert torch.equal(output(tuned), output(plain))
        with tuned.adapters.off():
            pass
        assert torch.equal(output(tuned), output(plain)), "an inner block does not end the outer one"
    with pytest.raises(ZeroDivisionError), tuned.adapters.off():
        1 / 0  # noqa: B018
    assert torch.equal(output(tuned), moved) and not torch.equal(moved, output(plain))
    assert [p.requires_grad for p in tuned.parameters()] == required


def test_a_copy_has_adapters_of_its_own(tuned):
    twin = copy.deepcopy(tuned)
    moved = output(tuned)
    with twin.adapters.off():
        assert torch.equal(output(tuned), moved) and not torch.equal(output(twin), moved)


# -- checkpoints -----------------------------------------------------------------------------------------------------------------------


def test_a_checkpoint_holds_what_was_learnt_and_goes_on(base, tuned):
    checkpoint = saved(tuned)
    within = {key for key in checkpoint["state_dict"] if key.startswith(("model.", "cond_stage_model.", "first_stage_model."))}
    assert within == tuned.adapters.keys and checkpoint["latent_diffusion"]["base_path"] == base
    fresh = restored(adapted(base, adapter_config=adapters(text_rank=2)), checkpoint)
    for key, value in tuned.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], value), key


def test_another_base_is_refused(tuned, tmp_path):
    torch.save({"state_dict": randomise(latent_diffusion(), seed=2).state_dict()}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="--actual_resume"):
        restored(adapted(str(tmp_path / "other.ckpt"), adapter_config=adapters(text_rank=2)), saved(tuned))


def test_another_alpha_is_refused_with_both(base, tuned):
    with pytest.raises(ValueError, match="alpha is 6 in the file and 5 by adapter_config"):
        restored(adapted(base, adapter_config=adapters(text_rank=2, alpha=5.0)), saved(tuned))


def test_a_checkpoint_without_adapters_does_not_pass_for_one_with(base):
    words_alone = saved(latent_diffusion(ckpt_path=base, personalization_config=WORDS))
    with pytest.raises(RuntimeError, match="lora_A"):
        restored(adapted(base), words_alone)


# -- merged ----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tuned, tmp_path_factory):
    """The file that a run ends with."""
    path = tmp_path_factory.mktemp("run") / "last.ckpt"
    torch.save({**saved(tuned), "loops": {}}, path)
    return path


def test_merged_weights_are_pefts_own_and_linear_in_the_strength(base, tuned, run, tmp_path):
    """A39."""
    start, results = read_state_dict(base), {}
    for strength in (0.2, 0.8, 1.0):
        export_weights(run, tmp_path / "merged.safetensors", adapter_strength=strength)
        results[strength] = read_state_dict(tmp_path / "merged.safetensors")
    assert {key for key in results[1.0] if not key.startswith("embedding_manager.")} == start.keys(), "the base's own keys"
    layers = {name: layer for name, layer in tuned.named_modules() if hasattr(layer, "get_delta_weight")}
    assert len(layers) == len(tuned.adapters.keys) / 3
    for name, layer in layers.items():
        key, delta = f"{name}.weight", layer.get_delta_weight("default").detach()
        for strength, merged in results.items():
            torch.testing.assert_close(merged[key], start[key] + strength * delta, rtol=1e-6, atol=1e-7)
        assert not torch.equal(results[0.2][key], results[0.8][key])
    still = set(start) - {f"{name}.weight" for name in layers}
    assert all(torch.equal(results[0.8][key], start[key]) for key in still)


def test_the_merged_model_is_the_tuned_one_and_needs_no_adapters(tuned, run, tmp_path):
    export_weights(run, tmp_path / "merged.safetensors")
    plain = latent_diffusion(ckpt_path=str(tmp_path / "merged.safetensors"), personalization_config=WORDS).eval()
    torch.testing.assert_close(output(plain), output(tuned), rtol=1e-4, atol=1e-5)
    export_weights(run, tmp_path / "nothing.safetensors", adapter_strength=0.0)
    nothing = latent_diffusion(ckpt_path=str(tmp_path / "nothing.safetensors"), personalization_config=WORDS).eval()
    with tuned.adapters.off():
        assert torch.equal(output(nothing), output(tuned))


def test_a_run_is_merged_into_no_other_base(base, run, tmp_path):
    torch.save({"state_dict": randomise(latent_diffusion(), seed=2).state_dict()}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="other.ckpt holds others.*--base-checkpoint"):
        export_weights(run, tmp_path / "m.ckpt", base=tmp_path / "other.ckpt")
    assert not (tmp_path / "m.ckpt").exists()
    with pytest.raises(ValueError, match="holds no low-rank adapters"):
        export_weights(base, tmp_path / "m.ckpt", adapter_strength=0.5)
    with pytest.raises(ValueError, match="adapter-strength is nan"):
        export_weights(run, tmp_path / "m.ckpt", adapter_strength=float("nan"))


def test_an_adapter_run_without_its_base_is_no_model(run):
    with pytest.raises(ValueError, match="low-rank adapters, no model.*export_weights"):
        latent_diffusion(ckpt_path=str(run), personalization_config=WORDS)


def test_a_run_from_nothing_is_saved_whole_and_merged_from_one_file(tmp_path):
    model = adapted(None)
    checkpoint = saved(model)
    assert set(checkpoint["state_dict"]) == set(model.state_dict())
    torch.save({**checkpoint, "loops": {}}, tmp_path / "last.ckpt")
    export_weights(tmp_path / "last.ckpt", tmp_path / "m.ckpt", adapter_strength=0.5)
    assert set(read_state_dict(tmp_path / "m.ckpt")) == set(model.state_dict()) - model.adapters.keys


# -- what contradicts itself -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"unfreeze_model": True}, "unfreeze_model is true.*adapter_config"),
        ({"use_ema": True}, "use_ema is true.*adapter_config"),
        ({"adapter_config": adapters(text_rank=2), "cond_stage_trainable": False}, "text_rank.*cond_stage_trainable is false"),
        ({"adapter_config": adapters(layers=["to_q", "to_x"])}, "adapter_config.params.layers.*to_x; there are .*attn1.to_q"),
        ({"adapter_config": adapters(rank=0)}, "adapter_config.params.rank is 0"),
        ({"adapter_config": adapters(text_rank=1.5)}, "adapter_config.params.text_rank is 1.5"),
        ({"adapter_config": adapters(alpha=-1.0)}, "adapter_config.params.alpha is -1"),
        ({"adapter_config": adapters(dropout=1.0)}, "adapter_config.params.dropout is 1"),
        ({"adapter_config": adapters(layers="to_q")}, "adapter_config.params.layers is 'to_q'"),
        ({"adapter_config": adapters(rnk=2)}, "rnk.*rank"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_message_that_names_the_keys(base, params, said):
    with pytest.raises(ValueError, match=said):
        adapted(base, **params)


def test_without_peft_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"peft, which is not installed: pip install -e '.\[lora\]'"):
        LowRankAdapters()


def test_dropout_acts_in_training_alone(base):
    model = adapted(base, adapter_config=adapters(dropout=0.5))
    with torch.no_grad():
        for parameter in model.adapters.parameters_of(model.model):
            parameter.normal_()
    assert torch.equal(output(model.eval()), output(model))
    model.train()
    c, z, t = torch.randn(1, 77, 32), torch.randn(1, 4, 8, 8), torch.tensor([3])
    assert not torch.equal(model.apply_model(z, t, c), model.apply_model(z, t, c))
