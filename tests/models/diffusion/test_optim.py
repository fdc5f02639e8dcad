"""Who trains, and at what rate."""
from __future__ import annotations

import importlib.util
import io
import json
import sys
import types

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from ldm.models.diffusion.optim import Group, ParameterPlan, disabled_train, freeze, thaw, with_schedule
from tests.golden.case import oracle_file
from tests.models.diffusion.tiny import LATENTS, TEXT, WORDS, latent_diffusion, recorded_model

SCHEDULE = {
    "target": "ldm.lr_scheduler.LambdaLinearScheduler",
    "params": {"warm_up_steps": [10], "cycle_lengths": [1000], "f_start": [0.1], "f_max": [1.0], "f_min": [1.0]},
}


def ready(model, learning_rate: float = 5.0e-5):
    model.learning_rate = learning_rate
    return model


def names_of(model: nn.Module, parameters) -> list[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for parameter in parameters]


@pytest.mark.parametrize("unfreeze", [True, False])
def test_groups_are_the_recorded_ones(unfreeze):
    recorded = json.loads(oracle_file("facts_optimizers_ddim.json").read_text())[f"unfreeze_{unfreeze}"]
    model = ready(recorded_model("ld_a", unfreeze_model=unfreeze, model_lr=1.0e-7))
    optimizer = model.configure_optimizers()
    assert type(optimizer).__name__ == recorded["class"]
    assert len(optimizer.param_groups) == len(recorded["groups"])
    for group, wanted in zip(optimizer.param_groups, recorded["groups"], strict=True):
        names = names_of(model, group["params"])
        assert {key: group[key] for key in ("lr", "eps", "weight_decay")} == {key: wanted[key] for key in ("lr", "eps", "weight_decay")}
        assert list(group["betas"]) == wanted["betas"]
        assert {p.requires_grad for p in group["params"]} == set(wanted["requires_grad"])
        assert names == comparable(wanted["names"], names)
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == set(recorded["requires_grad_true_prefixes"])
    model.train()
    assert {name: getattr(model, name).training for name in recorded["training_flags_after_model_train()"]} == recorded["training_flags_after_model_train()"]


def comparable(recorded: list[str], names: list[str]) -> list[str]:
    """The recorded order, cut to the modules that this smaller model has; all of them where both have the same."""
    return recorded if len(recorded) == len(names) else [name for name in recorded if name in set(names)]


@pytest.mark.parametrize("unfreeze", [True, False])
def test_the_two_phases_of_pivotal_tuning(unfreeze):
    model = ready(recorded_model("ld_b", unfreeze_model=unfreeze, model_lr=1.0e-7))
    model.train()
    first = model.configure_opt_embedding()
    assert [group["lr"] for group in first.param_groups] == [5.0e-5]
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {"embedding_manager"}
    assert not model.model.training and not model.cond_stage_model.training
    second = model.configure_opt_model()
    assert [group["lr"] for group in second.param_groups] == [5.0e-5, 1.0e-7]
    assert names_of(model, second.param_groups[0]["params"]) == ["embedding_manager.string_to_param_dict.*"]
    assert names_of(model, second.param_groups[1]["params"])[0].startswith("cond_stage_model.")
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {"embedding_manager", "cond_stage_model", "model"}
    assert model.model.training and model.cond_stage_model.training and not model.first_stage_model.training
    assert not any(p.requires_grad for p in model.embedding_manager.initial_embeddings.parameters())


def test_the_second_phase_can_hold_the_word():
    model = ready(latent_diffusion(personalization_config=WORDS, unfreeze_model=True, model_lr=1e-3))
    model.configure_opt_embedding()
    model.train_embeddings = False
    optimizer = model.configure_opt_model()
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3]
    assert not any(p.requires_grad for p in model.embedding_manager.parameters())


def test_a_fixed_word_is_in_no_group():
    model = ready(latent_diffusion(personalization_config=WORDS, unfreeze_model=True, model_lr=1e-3, train_embeddings=False))
    assert [group["lr"] for group in model.configure_optimizers().param_groups] == [1e-3]
    assert not any(p.requires_grad for p in model.embedding_manager.parameters())


def test_nothing_to_train_is_an_error_that_names_the_keys():
    model = ready(latent_diffusion(personalization_config=WORDS, train_embeddings=False))
    with pytest.raises(ValueError, match="train_embeddings, unfreeze_model"):
        model.configure_optimizers()


def test_words_without_gradients_are_an_error_that_names_the_key():
    model = ready(latent_diffusion(personalization_config=WORDS, cond_stage_trainable=False))
    with pytest.raises(ValueError, match="cond_stage_trainable is false"):
        model.configure_optimizers()
    fixed = ready(latent_diffusion(personalization_config=WORDS, cond_stage_trainable=False, unfreeze_model=True, model_lr=1e-3, train_embeddings=False))
    (group,) = fixed.configure_optimizers().param_groups
    assert all(name.startswith("model.") for name in names_of(fixed, group["params"]))


@pytest.mark.parametrize("trainable", [True, False])
def test_without_words_the_network_trains_and_the_encoder_if_it_may(trainable):
    model = ready(latent_diffusion(cond_stage_trainable=trainable))
    (group,) = model.configure_optimizers().param_groups
    names = names_of(model, group["params"])
    assert group["lr"] == 5.0e-5 and all(p.requires_grad for p in group["params"])
    assert names[0].startswith("model.")
    assert any(name.startswith("cond_stage_model.") for name in names) == trainable
    assert model.train().cond_stage_model.training == trainable
    with pytest.raises(ValueError, match="personalization_config"):
        model.configure_opt_embedding()


@pytest.mark.parametrize("words", [None, WORDS])
def test_a_learnt_logvar_is_given_to_the_optimiser(words):
    model = ready(latent_diffusion(learn_logvar=True, personalization_config=words))
    groups = model.configure_optimizers().param_groups
    assert names_of(model, groups[-1]["params"])[-1] == "logvar"
    assert groups[-1]["lr"] == 5.0e-5


def test_an_unset_rate_is_an_error_that_says_where_it_comes_from():
    with pytest.raises(ValueError, match="base_learning_rate"):
        latent_diffusion().configure_optimizers()


def test_a_model_rate_of_zero_is_warned_of(caplog):
    ready(latent_diffusion(personalization_config=WORDS, unfreeze_model=True)).configure_optimizers()
    assert "model_lr is 0" in caplog.text


def test_the_optimiser_can_be_chosen_and_its_state_holds_plain_values():
    config = OmegaConf.create({"target": "torch.optim.Adam", "params": {"betas": [0.5, 0.9]}})
    optimizer = ready(latent_diffusion(optimizer_config=config)).configure_optimizers()
    assert type(optimizer) is torch.optim.Adam
    assert tuple(optimizer.param_groups[0]["betas"]) == (0.5, 0.9)
    torch.serialization.save(optimizer.state_dict(), buffer := io.BytesIO())
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True)["param_groups"][0]["lr"] == 5.0e-5


@pytest.mark.parametrize(
    ("config", "state_per_value"),
    [
        (None, 2.0),
        ({"target": "torch.optim.SGD"}, 0.0),
        ({"target": "torch.optim.Adafactor"}, 0.35),          # a row and a column of each matrix, a value each of the small rest
    ],
    ids=["AdamW", "SGD", "Adafactor"],
)
def test_an_optimiser_with_less_state_can_be_chosen(config, state_per_value):
    model = ready(latent_diffusion(personalization_config=WORDS, unfreeze_model=True, model_lr=1.0e-4, optimizer_config=config))
    optimizer = model.configure_optimizers()
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    before = [parameter.detach().clone() for parameter in trained]
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert all(not torch.equal(was, now) for was, now in zip(before, trained, strict=True))
    kept = sum(value.numel() for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor) and value.ndim)
    assert kept <= state_per_value * sum(parameter.numel() for parameter in trained)
    assert [group["lr"] for group in optimizer.param_groups] == [5.0e-5, 1.0e-4]


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_an_optimiser_of_a_library_that_is_absent_is_refused_by_its_name():
    model = ready(latent_diffusion(optimizer_config={"target": "bitsandbytes.optim.AdamW8bit"}))
    with pytest.raises(ValueError, match=r"bitsandbytes.optim.AdamW8bit.*the package bitsandbytes is not installed"):
        model.configure_optimizers()


def test_an_optimiser_of_a_library_that_is_there_is_built_with_the_groups_and_rates(monkeypatch):
    library = types.ModuleType("bitsandbytes.optim")
    library.AdamW8bit = type("AdamW8bit", (torch.optim.AdamW,), {})
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", library)
    config = {"target": "bitsandbytes.optim.AdamW8bit", "params": {"weight_decay": 0.02}}
    optimizer = ready(latent_diffusion(personalization_config=WORDS, unfreeze_model=True, model_lr=1.0e-4, optimizer_config=config)).configure_optimizers()
    assert type(optimizer) is library.AdamW8bit
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(5.0e-5, 0.02), (1.0e-4, 0.02)]


def test_adam_of_8_bits_goes_where_adam_goes_with_a_quarter_of_its_memory():
    pytest.importorskip("bitsandbytes", reason="the extra 8bit is not installed")
    moved, kept = {}, {}
    for name, config in {"full": None, "8bit": {"target": "bitsandbytes.optim.AdamW8bit", "params": {"weight_decay": 0.01}}}.items():
        torch.manual_seed(0)
        model = ready(latent_diffusion(personalization_config=WORDS, unfreeze_model=True, model_lr=1.0e-4, optimizer_config=config))
        optimizer = model.configure_optimizers()
        large = [parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.numel() >= 4096]  # smaller ones it keeps whole
        before = [parameter.detach().clone() for parameter in large]
        for _ in range(5):
            for parameter in large:
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        moved[name] = torch.cat([(now - was).flatten() for was, now in zip(before, large, strict=True)])
        tables = [value for parameter in large for key, value in optimizer.state[parameter].items() if isinstance(value, torch.Tensor) and "qmap" not in key]
        kept[name] = sum(value.nbytes for value in tables)
    assert torch.cosine_similarity(moved["full"], moved["8bit"], dim=0) > 0.99
    assert kept["8bit"] < 0.3 * kept["full"]


def test_a_schedule_is_attached_for_each_step():
    answer = ready(latent_diffusion(scheduler_config=SCHEDULE)).configure_optimizers()
    scheduler = answer["lr_scheduler"]["scheduler"]
    assert isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR) and answer["lr_scheduler"]["interval"] == "step"
    assert answer["optimizer"].param_groups[0]["lr"] == pytest.approx(0.1 * 5.0e-5)
    answer["optimizer"].step()
    scheduler.step()
    assert answer["optimizer"].param_groups[0]["lr"] == pytest.approx(0.19 * 5.0e-5)
    assert with_schedule(answer["optimizer"], None) is answer["optimizer"]


def test_a_frozen_module_stays_in_eval_until_it_is_thawed():
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    parent = nn.ModuleList([module])
    freeze(module)
    parent.train()
    assert parent.training and not module.training and module.train(True) is module and not module[1].training
    assert not any(p.requires_grad for p in module.parameters())
    assert disabled_train(module, True) is module
    thaw(module)
    assert module[1].training and not parent.eval()[0].training


def test_a_plan_of_empty_groups_has_nothing_to_train():
    with pytest.raises(ValueError, match="no parameter is left to train"):
        ParameterPlan([Group("logvar", [], [], 1e-3)], frozen=[]).optimizer()


def test_the_first_stage_never_trains():
    for config in ({}, {"personalization_config": WORDS, "unfreeze_model": True}, {"first_stage_config": LATENTS, "image_size": 16}):
        model = latent_diffusion(**config, cond_stage_config=TEXT)
        model.train()
        model.first_stage_model.train()
        assert not model.first_stage_model.training
        assert not any(p.requires_grad for p in model.first_stage_model.parameters())
