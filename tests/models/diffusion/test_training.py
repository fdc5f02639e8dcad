"""Models as a Trainer drives them: what is logged, averaged, scaled, attached and checked."""
from __future__ import annotations

import math

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from ldm.models.diffusion.ddpm import LatentDiffusion
from tests.models.diffusion.test_optim import SCHEDULE
from tests.models.diffusion.tiny import LATENTS, TEXT, UNET, WORDS, batch_of_pictures, latent_diffusion, randomise, with_params

CACHED = {"first_stage_config": LATENTS, "unet_config": UNET, "cond_stage_config": TEXT}


class Examples(torch.utils.data.Dataset):
    """Six captioned pictures, or latents."""

    def __init__(self, side: int = 16, channels: int = 3):
        generator = torch.Generator().manual_seed(1)
        self.images = torch.rand(6, side, side, channels, generator=generator) * 2 - 1

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return {"image": self.images[i], "caption": f"a photo of a * number {i}"}


class Seen(pl.Callback):
    """What was logged, step by step."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps.append({key: float(value) for key, value in trainer.callback_metrics.items()})


def fit(model: LatentDiffusion, steps: int, *, side: int = 16, channels: int = 3, learning_rate: float = 1e-3) -> tuple[pl.Trainer, Seen]:
    """Train for `steps` of two examples, three an epoch; one validation batch an epoch."""
    model.learning_rate = learning_rate
    seen = Seen()
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, limit_val_batches=1, callbacks=[seen],
    )  # fmt: skip
    loader = DataLoader(Examples(side, channels), batch_size=2)
    trainer.fit(model, loader, val_dataloaders=loader)
    return trainer, seen


def test_a_model_trains_from_nothing_on_cached_latents():
    """No words, the text encoder trained, weights averaged, captions as they come in a batch."""
    model = latent_diffusion(**CACHED, use_ema=True, ema_decay=0.9)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer, seen = fit(model, 4, side=8, channels=4)
    assert trainer.global_step == 4
    moved = {name.split(".")[0] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"model", "cond_stage_model"}
    assert math.isfinite(seen.steps[-1]["train/loss"])
    assert {"train/loss", "train/loss_simple", "train/loss_vlb", "global_step", "train/loss_step", "train/loss_epoch"} <= set(trainer.callback_metrics)
    assert "lr_abs" not in trainer.callback_metrics
    assert model.model_ema.decay.item() == pytest.approx(0.9) and model.model_ema.num_updates.item() == 4
    z, c = model.get_input(batch_of_pictures(2, side=8, channels=4), "image")
    assert z.shape == (2, 4, 8, 8) and c == ["a photo of a *", "a rendering of the cool *"]


def test_loss_falls():
    model = latent_diffusion(**CACHED, linear_start=0.2, linear_end=0.7)  # much noise, easily seen
    _, seen = fit(model, 30, side=8, channels=4, learning_rate=3e-3)
    first, last = (sum(step["train/loss_simple_step"] for step in part) / 5 for part in (seen.steps[:5], seen.steps[-5:]))
    assert last < 0.8 * first


def test_averaged_weights_come_and_go():
    model = latent_diffusion(**CACHED, use_ema=True)
    trained = model.model.diffusion_model.out[2].weight
    with torch.no_grad():
        trained.fill_(7.0)
    with model.ema_scope("test"):
        assert not trained.any(), "the average still is the start"
    assert (trained == 7.0).all()
    with pytest.raises(RuntimeError, match="inside"), model.ema_scope():
        raise RuntimeError("inside")
    assert (trained == 7.0).all(), "restored after an error as well"
    model.on_train_batch_end()
    with model.ema_scope():
        assert trained.mean().item() == pytest.approx(7.0 * (1 - 2 / 11))
    unaveraged = latent_diffusion(**CACHED)
    with unaveraged.ema_scope():
        assert not hasattr(unaveraged, "model_ema")


def test_validation_logs_both_sets_of_weights():
    trainer, _ = fit(latent_diffusion(**CACHED, use_ema=True), 3, side=8, channels=4)
    names = {"val/loss", "val/loss_simple", "val/loss_vlb"}
    assert names | {f"{name}_ema" for name in names} <= set(trainer.callback_metrics)


def test_a_schedule_moves_the_rate_each_step():
    _, seen = fit(latent_diffusion(**CACHED, scheduler_config=SCHEDULE), 4, side=8, channels=4, learning_rate=1e-3)
    rates = [step["lr_abs"] for step in seen.steps]
    assert rates == pytest.approx([1e-4, 1.9e-4, 2.8e-4, 3.7e-4])


def test_a_learnt_logvar_moves():
    model = latent_diffusion(**CACHED, learn_logvar=True, logvar_init=0.5)
    trainer, _ = fit(model, 3, side=8, channels=4)
    assert (model.logvar != 0.5).any()
    assert {"logvar", "train/loss_gamma"} <= set(trainer.callback_metrics)
    assert "logvar" in model.state_dict() and "logvar" not in latent_diffusion(**CACHED).state_dict()


@pytest.mark.parametrize("vectors", [1, 3])
@pytest.mark.parametrize("unfreeze", [False, True])
def test_words_train_alone_or_with_the_networks(vectors, unfreeze):
    words = with_params(WORDS, num_vectors_per_token=vectors)
    model = latent_diffusion(personalization_config=words, unfreeze_model=unfreeze, model_lr=1e-3)
    torch.nn.init.normal_(model.model.diffusion_model.out[2].weight)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fit(model, 3)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {name.split(".")[0] for name in moved} == ({"embedding_manager", "model", "cond_stage_model"} if unfreeze else {"embedding_manager"})
    vectors_moved = (model.embedding_manager.string_to_param_dict["*"] != before["embedding_manager.string_to_param_dict.*"]).any(dim=1)
    assert vectors_moved.all() and len(vectors_moved) == vectors
    assert torch.equal(model.embedding_manager.initial_embeddings["*"], before["embedding_manager.initial_embeddings.*"])


@pytest.mark.parametrize("unfreeze", [False, True])
def test_gradients_in_16_bit_are_the_same_with_checkpointing(unfreeze):
    gradients = []
    for use_checkpoint in (False, True):
        torch.manual_seed(3)
        unet = with_params(UNET, use_checkpoint=use_checkpoint)
        model = randomise(latent_diffusion(personalization_config=WORDS, unfreeze_model=unfreeze, unet_config=unet), scale=0.1).train()
        torch.manual_seed(4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, _ = model.shared_step(batch_of_pictures())
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys() and any(gradient.any() for gradient in plain.values())
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=0.0, atol=1e-2 * gradient.abs().max().item())


def test_a_fixed_word_stays_while_the_networks_train():
    model = latent_diffusion(personalization_config=WORDS, unfreeze_model=True, model_lr=1e-3, train_embeddings=False)
    before = model.embedding_manager.string_to_param_dict["*"].detach().clone()
    weight = model.model.diffusion_model.out[2].weight.detach().clone()
    fit(model, 2)
    assert torch.equal(model.embedding_manager.string_to_param_dict["*"], before)
    assert not torch.equal(model.model.diffusion_model.out[2].weight, weight)


def test_scale_by_std_gives_the_first_batch_unit_variance():
    model = latent_diffusion(**CACHED, scale_by_std=True)
    assert "scale_factor" in model.state_dict() and "scale_factor" not in latent_diffusion(**CACHED).state_dict()
    fit(model, 2, side=8, channels=4)
    first = Examples(8, 4).images[:2]
    assert model.scale_factor.item() == pytest.approx(1 / first.std().item(), rel=1e-4)
    z, _ = model.get_input({"image": first, "caption": ["", ""]}, "image")
    assert z.std().item() == pytest.approx(1.0, rel=1e-4)
    torch.testing.assert_close(model.decode_first_stage(z), first.permute(0, 3, 1, 2))


def test_a_model_started_from_weights_keeps_their_scale(tmp_path):
    source = latent_diffusion(**CACHED, scale_by_std=True)
    source.scale_factor.fill_(0.25)
    torch.save({"state_dict": source.state_dict()}, tmp_path / "model.ckpt")
    model = latent_diffusion(**CACHED, scale_by_std=True, ckpt_path=str(tmp_path / "model.ckpt"))
    fit(model, 1, side=8, channels=4)
    assert model.scale_factor.item() == 0.25


def test_pixels_in_place_of_latents_are_found_before_the_first_step():
    model = latent_diffusion(image_size=16, personalization_config=WORDS)
    with pytest.raises(ValueError, match="image_size is 16.*16×16 pixels become latents of 8×8.*set it to 8"):
        fit(model, 1)
    assert model.trainer.global_step == 0


@pytest.mark.parametrize(
    "params, message",
    [
        ({"scale_by_std": True, "scale_factor": 0.2}, "scale_by_std"),
        ({"use_positional_encodings": True}, "use_positional_encodings"),
        ({"embedding_reg_weight": 0.1}, "embedding_reg_weight is 0.1.*personalization_config"),
        ({"channels": 3}, "channels is 3.*latents have 4"),
        ({"num_timesteps_cond": 21}, "num_timesteps_cond is 21"),
        ({"cond_stage_config": "__is_first_stage__"}, "__is_first_stage__ has nothing of its own to train"),
        ({"cond_stage_config": "__is_unconditional__"}, "cond_stage_trainable"),
        ({"parameterization": "v"}, "parameterization is 'v'"),
        ({"loss_type": "huber"}, "loss_type is 'huber'.*l1 or l2"),
    ],
)
def test_contradictions_are_refused_by_name(params, message):
    with pytest.raises(ValueError, match=message):
        latent_diffusion(**params).p_losses(torch.zeros(1, 4, 8, 8), torch.zeros(1, 77, 32), torch.tensor([3]))


def test_monitor_none_leaves_no_attribute():
    assert not hasattr(latent_diffusion(), "monitor")
    assert latent_diffusion(monitor="val/loss").monitor == "val/loss"


@pytest.mark.parametrize("concat_mode, key", [(True, "concat"), (False, "crossattn")])
def test_the_way_in_that_concat_mode_chooses(concat_mode, key):
    unet = with_params(UNET, in_channels=8) if concat_mode else UNET
    assert latent_diffusion(conditioning_key=None, concat_mode=concat_mode, unet_config=unet).model.conditioning_key == key


def test_a_missing_condition_is_an_error():
    with pytest.raises(ValueError, match="without a condition"):
        latent_diffusion()(torch.zeros(1, 4, 8, 8), None)
