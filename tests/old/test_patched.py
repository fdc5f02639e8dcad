"""The patched repository as its users meet it: the shipped yaml, the checkpoint loaded twice, runs, resuming, and what is refused."""
import copy
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import instantiate_from_config
from tests.models.diffusion.tiny import PICTURES, TEXT, UNET, WORDS, with_params
from tests.regularization.tiny_runs import Log, Pictures, batch_of, fit, ready, regularized_model, tensors_of, write_base

TREE = Path(__file__).resolve().parents[2]
SHIPPED = ["configs/stable-diffusion/v1-finetune_unfrozen_reg.yaml", "configs/latent-diffusion/txt2img-1p4B-finetune_unfrozen_reg.yaml"]
COPY = {"teacher": "FrozenCopy", "latents": "TrainingLatents"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base") / "base.ckpt")


@pytest.fixture(autouse=True)
def no_cache_but_the_tests_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "users-cache"))


def toy(path, every=1):
    """The shipped yaml with networks of test size, as OmegaConf nodes; its own term, with a smaller bank."""
    config = OmegaConf.load(TREE / path)
    params = config.model.params
    params.update(unet_config=UNET, first_stage_config=PICTURES, cond_stage_config=TEXT, timesteps=20, image_size=8, monitor=None, model_lr=1.0e-3)
    term = params.regularization_config.params
    term.latents_config.params.update(samples=4, ddim_steps=2)
    term.teacher_config.params.noisings = 2
    term.weight_config.params.every = every
    return config


def model_of(config, base):
    """As main.py makes it of --actual_resume: built with ckpt_path, then loaded a second time."""
    config.model.params.ckpt_path = base
    model = instantiate_from_config(config.model)
    model.load_state_dict(torch.load(base, map_location="cpu")["state_dict"], strict=False)
    model.learning_rate = 5.0e-3
    return model


def trainer_of(folder, steps, **settings):
    log = Log()
    checkpoints = pl.callbacks.ModelCheckpoint(dirpath=str(folder / "checkpoints"), filename="{epoch:06}", save_last=True, every_n_train_steps=2)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0, "log_every_n_steps": 1}
    return log, pl.Trainer(max_steps=steps, logger=log, callbacks=[checkpoints], default_root_dir=str(folder), **quiet, **settings)


def pictures():
    return DataLoader(Pictures(2), batch_size=1)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: Path(path).stem)
def test_the_shipped_yaml_trains_and_resumes_from_the_base(base, tmp_path, path):
    model = model_of(toy(path), base)
    log, trainer = trainer_of(tmp_path, 4)
    trainer.fit(model, pictures(), pictures())
    term = log.by_step("train/loss_locality")
    assert list(term) == [0, 1, 2, 3] and term[0] < 1e-9 and term[3] > 1e-6
    assert log.by_epoch("val/loss_locality")[-1] > 0
    folder = tmp_path / "checkpoints"
    assert (folder / "embeddings.pt").is_file() and (folder / "last.ckpt").is_file()
    saved = torch.load(folder / "last.ckpt")
    assert set(saved["state_dict"]) == set(LatentDiffusion(**plain_params(path)).state_dict())
    resumed = model_of(toy(path), base)
    log, trainer = trainer_of(tmp_path / "resumed", 6, resume_from_checkpoint=str(folder / "last.ckpt"))
    trainer.fit(resumed, pictures())
    assert resumed.regularizer.theta_hash == model.regularizer.theta_hash == saved["regularization"]["theta_hash"]
    term = log.by_step("train/loss_locality")
    assert list(term) == [4, 5] and term[4] > 1e-6, "had θ₀ been taken from the resumed weights, R would be 0 here"
    assert resumed.regularizer.acted == 6


def plain_params(path):
    params = OmegaConf.to_container(toy(path).model.params)
    params.pop("regularization_config")
    return params


def test_resuming_on_another_base_is_refused(base, tmp_path):
    fit(regularized_model(base, tmp_path / "banks", **COPY), tmp_path, steps=1, save=True)
    other = regularized_model(base, tmp_path / "banks", **COPY)
    other.model.diffusion_model.out[2].bias.data.add_(1e-3)
    with pytest.raises(ValueError, match="started from another base"):
        fit(other, tmp_path, steps=2, resume=str(tmp_path / "last.ckpt"))


@pytest.mark.parametrize("left", ["nothing", "an empty one"])
def test_without_a_regularization_config_the_class_refuses(base, left):
    config = toy(SHIPPED[0])
    if left == "nothing":
        del config.model.params["regularization_config"]
    else:
        config.model.params.regularization_config = {}
    with pytest.raises(ValueError, match="regularization_config is empty.*LatentDiffusion"):
        model_of(config, base)


def test_without_a_base_checkpoint_the_run_is_refused(tmp_path):
    config = toy(SHIPPED[0])
    model = instantiate_from_config(config.model)
    with pytest.raises(ValueError, match="--actual_resume"):
        model.setup("fit")


def test_the_bank_is_sampled_where_the_model_lies_though_the_sampler_wants_cuda(base, tmp_path):
    if not torch.cuda.is_available():
        with pytest.raises((RuntimeError, AssertionError)):
            DDIMSampler(LatentDiffusion(**plain_params(SHIPPED[0]))).make_schedule(2)
    model = ready(regularized_model(base, tmp_path, latents=("PriorSamples", {"guidance_scale": 2.0})))
    assert model.regularizer.ready and model.regularizer.latents._z_0.device.type == "cpu"


def test_several_processes_meet_the_same_hooks(base, tmp_path):
    """main.py trains by "ddp"; here with one process, on the CPU."""
    model = model_of(toy(SHIPPED[0]), base)
    log, trainer = trainer_of(tmp_path, 2, strategy="ddp", num_processes=1)
    trainer.fit(model, pictures())
    assert list(log.by_step("train/loss_locality")) == [0, 1]


def test_the_copy_of_a_patched_encoder_is_bound_to_its_own_weights(base, tmp_path):
    """Its forward is a function bound to the instance: a copy must not go on calling the student's."""
    model = ready(regularized_model(base, tmp_path, **COPY))
    frozen = model.regularizer.teacher._theta["cond_stage_model"]
    with torch.no_grad():
        before = model.encode_prompts(["a cat"])
        for parameter in model.cond_stage_model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        assert torch.equal(frozen.encode(["a cat"]), before) and not torch.equal(model.encode_prompts(["a cat"]), before)


def test_captions_are_seen_where_the_encoder_is_not_trained(base, tmp_path):
    model = ready(regularized_model(base, tmp_path, {"cond_stage_trainable": False}, **COPY))
    seen, choose = [], model.regularizer.conditioning.choose
    model.regularizer.conditioning.choose = lambda prompts, generator: seen.extend(prompts) or choose(prompts, generator)
    with torch.no_grad():
        model.shared_step(batch_of(2))
    assert seen == ["a photo of a sculpture", "a rendering of a sculpture"]


def test_a_word_of_several_vectors_does_not_notice_the_term(base, tmp_path):
    """The term encodes prompts through the same manager, which counts its calls and writes into its arguments."""
    words = with_params(WORDS, num_vectors_per_token=3, progressive_words=True)
    model = ready(regularized_model(base, tmp_path, {"personalization_config": words}, **COPY))
    model.embedding_manager.progressive_counter = 4000
    model.encode_prompts(["a photo of a *", "a cat"])[1].sum().backward()
    assert model.embedding_manager.progressive_counter == 4000
    assert all(vectors.grad is None for vectors in model.embedding_manager.embedding_parameters())


def test_weight_0_leaves_the_published_run_as_it_is(base, tmp_path):
    config = toy(SHIPPED[0])
    config.model.params.regularization_config.params.weight_config.params.weight = 0.0
    off = model_of(config, base)
    plain = copy.deepcopy(config)
    plain.model.target = "ldm.models.diffusion.ddpm.LatentDiffusion"
    del plain.model.params["regularization_config"]
    without = model_of(plain, base)
    for name, model in (("off", off), ("without", without)):
        fit(model, tmp_path / name, steps=3)
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(off).values(), tensors_of(without).values()))
