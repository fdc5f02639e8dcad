"""First stages train: with one optimiser or two, with accumulation, clipping, a schedule and averaged weights."""
from __future__ import annotations

import copy

import pytest
import pytorch_lightning as pl
import torch

from ldm.models.autoencoder import VQModelInterface
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from tests.models.first_stages import KL_GAN, L1, NO_TRAINING, VQ_GAN, blocks, kl_model, loader, trainer, vq_model

HALVING = {"target": "ldm.lr_scheduler.LambdaLinearScheduler"}
HALVING["params"] = {"warm_up_steps": [1], "cycle_lengths": [1000], "f_start": [0.5], "f_max": [1.0], "f_min": [1.0]}


class Record(pl.Callback):
    """Learning rates and counters after each batch."""

    def __init__(self):
        self.rates, self.steps, self.autoencoder_steps = [], [], []

    def on_train_batch_end(self, trainer, module, *args):
        self.rates.append([optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers])
        self.steps.append(trainer.global_step)
        self.autoencoder_steps.append(module.autoencoder_step)


def without_chance(model) -> None:
    """Let the encoder give its mean."""
    encode = model.encode
    model.encode = lambda x: DiagonalGaussianDistribution(encode(x).parameters, deterministic=True)


def copy_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in module.named_parameters()}


def changed(module: torch.nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return any(not torch.equal(weight, before[name]) for name, weight in module.named_parameters())


def reconstruction_error(model, pictures: torch.Tensor) -> float:
    with torch.no_grad():
        return (model.reconstruct(pictures)[0] - pictures).abs().mean().item()


@pytest.mark.parametrize("lossconfig", [L1, KL_GAN], ids=["one optimiser", "two optimisers"])
def test_training_lowers_the_error_and_a_schedule_sets_the_rate(lossconfig, tmp_path):
    model = kl_model(lossconfig, scheduler_config=HALVING)
    model.learning_rate = 4e-3
    pictures = blocks(4)
    data = torch.utils.data.DataLoader([{"image": picture} for picture in pictures], batch_size=4)
    before = reconstruction_error(model, pictures.permute(0, 3, 1, 2))
    record, optimisers = Record(), 1 if lossconfig is L1 else 2
    trainer(tmp_path, max_epochs=25, callbacks=[record], gradient_clip_val=None if optimisers == 2 else 1.0).fit(model, data)
    assert reconstruction_error(model, pictures.permute(0, 3, 1, 2)) < 0.75 * before
    assert record.rates[:2] == [[4e-3] * optimisers] * 2
    assert record.steps[-1] == 25 * optimisers
    assert record.autoencoder_steps[-1] == 25


@pytest.mark.parametrize("make", [lambda: kl_model(KL_GAN), lambda: vq_model(VQ_GAN), lambda: vq_model(VQ_GAN, VQModelInterface)])
def test_two_optimisers_share_the_weights_between_them(make, tmp_path):
    model = make()
    before = copy_of(model)
    fit = trainer(tmp_path, max_epochs=1, limit_train_batches=1)
    fit.fit(model, loader(4), loader(2))
    autoencoder, discriminator = fit.optimizers
    in_use = [{id(weight) for group in optimiser.param_groups for weight in group["params"]} for optimiser in (autoencoder, discriminator)]
    everything = {id(weight) for name, weight in model.named_parameters() if name != "loss.logvar" and not name.startswith("loss.perceptual_loss.")}
    assert in_use[0] | in_use[1] == everything and not in_use[0] & in_use[1]
    assert in_use[1] == {id(weight) for weight in model.loss.discriminator.parameters()}
    assert autoencoder.defaults["betas"] == (0.5, 0.9)
    for part in ("encoder", "decoder", "quant_conv", "post_quant_conv", "loss.discriminator"):
        assert changed(model.get_submodule(part), {k[len(part) + 1 :]: v for k, v in before.items() if k.startswith(part + ".")}), part
    assert {"aeloss", "discloss", "train/disc_loss", "train/rec_loss", "val/rec_loss", "val/disc_loss"} <= set(fit.callback_metrics)
    assert all(weight.requires_grad for name, weight in model.named_parameters() if not name.startswith("loss.perceptual_loss."))


def test_discriminator_learns_from_its_own_loss_on_what_the_autoencoder_makes_now(tmp_path):
    model = kl_model(KL_GAN)
    without_chance(model)
    first = copy.deepcopy(model.loss)
    pictures = blocks(2)
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(model, torch.utils.data.DataLoader([{"image": picture} for picture in pictures], batch_size=2))
    x = pictures.permute(0, 3, 1, 2)
    first.train().discriminator_term(x, model.reconstruct(x)[0], 0, None)[0].backward()
    for weight, state in zip(first.discriminator.parameters(), fit.optimizers[1].state.values(), strict=True):
        # after one step the first moment is (1 − β₁) times the gradient
        torch.testing.assert_close(state["exp_avg"], 0.5 * weight.grad, rtol=1e-3, atol=1e-5 * weight.grad.abs().max().item() + 1e-9)


def test_accumulated_batches_are_one_step_of_their_mean(tmp_path):
    """Two optimisers: a step of two halves is the step of the whole; the discriminator waits, so no batch statistics enter."""
    waiting = {**KL_GAN, "params": {**KL_GAN["params"], "disc_start": 10, "kl_weight": 0.0}}
    pictures = blocks(4)
    results = []
    for batch_size, accumulate in ((4, 1), (2, 2)):
        torch.manual_seed(3)
        model = kl_model(waiting)
        without_chance(model)
        model.accumulate_grad_batches = accumulate
        data = torch.utils.data.DataLoader([{"image": picture} for picture in pictures], batch_size=batch_size)
        fit = trainer(tmp_path, max_epochs=1)
        fit.fit(model, data)
        assert fit.global_step == 2
        results.append(torch.cat([state["exp_avg"].flatten() for state in fit.optimizers[0].state.values()]))
    whole, halves = results
    torch.testing.assert_close(halves, whole, rtol=0, atol=1e-4 * whole.abs().max().item())


def test_clipping_bounds_the_gradient_of_each_optimiser(tmp_path):
    model = kl_model(KL_GAN)
    model.gradient_clip_val = 1e-3
    fit = trainer(tmp_path, max_steps=2)
    fit.fit(model, loader(2))
    for optimiser in fit.optimizers:
        # after one step the first moment is (1 − β₁) times the gradient
        moments = torch.cat([state["exp_avg"].flatten() for state in optimiser.state.values()])
        assert moments.norm().item() == pytest.approx(0.5e-3, rel=1e-2)


def test_settings_of_the_trainer_hold_with_two_optimisers_too(tmp_path):
    fit = trainer(tmp_path, max_steps=2, accumulate_grad_batches=2, gradient_clip_val=1e-3)
    model, record = kl_model(KL_GAN), Record()
    fit.callbacks.append(record)
    model.take_over(fit)
    fit.fit(model, loader(16))
    assert (model.accumulate_grad_batches, model.gradient_clip_val) == (2, 1e-3)
    assert record.autoencoder_steps == [0, 1, 1, 2]  # four batches, two steps

    plain = trainer(tmp_path, max_steps=2, accumulate_grad_batches=2, gradient_clip_val=1e-3)
    kl_model().take_over(plain)
    assert (plain.max_steps, plain.accumulate_grad_batches, plain.gradient_clip_val) == (2, 2, 1e-3)


def test_rate_of_the_autoencoder_has_a_factor():
    rates = [optimiser.param_groups[0]["lr"] for optimiser in vq_model(VQ_GAN, lr_g_factor=0.25).configure_optimizers()]
    assert rates == [0.25e-3, 1e-3]


def test_optimiser_is_chosen_in_the_config_and_keeps_plain_values():
    config = {"target": "torch.optim.AdamW", "params": {"betas": [0.9, 0.99], "weight_decay": 0.5}}
    (optimiser,) = kl_model(optimizer_config=config).configure_optimizers()
    assert type(optimiser) is torch.optim.AdamW
    group = optimiser.param_groups[0]
    assert (group["lr"], list(group["betas"]), group["weight_decay"]) == (1e-3, [0.9, 0.99], 0.5)
    assert type(group["betas"]) in (list, tuple)


@pytest.mark.parametrize("lossconfig", [NO_TRAINING, {"target": "ldm.modules.losses.contperceptual.DummyLoss"}], ids=["Identity", "DummyLoss"])
def test_a_loss_that_is_none_cannot_be_trained_on(lossconfig, tmp_path):
    with pytest.raises(ValueError, match="lossconfig.*cannot be trained on"):
        trainer(tmp_path, max_steps=1).fit(kl_model(lossconfig), loader(2))


def test_published_loss_without_its_weights_refuses_to_train(tmp_path):
    model = vq_model({**VQ_GAN, "params": {"disc_start": 0}})
    with pytest.raises(ValueError, match="LPIPS has no weights"):
        trainer(tmp_path, max_steps=1).fit(model, loader(2))


def test_averaged_weights_are_kept_validated_and_resumed(tmp_path):
    model = kl_model(use_ema=True, ema_decay=0.5)
    path = tmp_path / "last.ckpt"
    fit = trainer(tmp_path, max_epochs=2)
    fit.fit(model, loader(4), loader(2))
    assert model.model_ema.num_updates == 4
    assert {"val/rec_loss", "val_ema/rec_loss"} <= set(fit.callback_metrics)
    assert fit.callback_metrics["val/rec_loss"] != fit.callback_metrics["val_ema/rec_loss"]
    trained = copy_of(model)
    with pytest.raises(RuntimeError, match="inside"), model.ema_scope("test"):
        assert torch.equal(model.decoder.conv_out.weight, model.model_ema.get_buffer("decoderconv_outweight"))
        assert changed(model, trained)
        raise RuntimeError("inside")
    assert not changed(model, trained)

    fit.save_checkpoint(path)
    resumed = kl_model(use_ema=True, ema_decay=0.5)
    again = trainer(tmp_path, max_epochs=3)
    again.fit(resumed, loader(4), ckpt_path=path)
    assert resumed.model_ema.num_updates == 6
    assert again.global_step == 6
