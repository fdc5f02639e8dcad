"""Real models, base checkpoint, pictures and Trainer, small enough for a test: what its namesake is elsewhere, by Lightning 1.5's calls."""
import collections
import copy

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.base import LightningLoggerBase
from torch.utils.data import DataLoader

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.regularized import RegularizedLatentDiffusion
from ldm.prompts import imagenet_templates_small
from tests.models.diffusion.tiny import DEFAULTS, WORDS

PARAMS = {**DEFAULTS, "personalization_config": WORDS, "unfreeze_model": True, "model_lr": 1.0e-3}
ISLAND = "ldm.regularization"


def write_base(path):
    """A checkpoint of a model none of whose layers is zero, so that everything it computes depends on everything."""
    torch.manual_seed(0)
    model = LatentDiffusion(**copy.deepcopy(PARAMS))
    with torch.no_grad():
        for parameter in model.model.parameters():
            if not parameter.any():
                parameter.normal_(0.0, 0.05)
    torch.save({"state_dict": {key: value for key, value in model.state_dict().items() if not key.startswith("embedding_manager")}}, path)
    return str(path)


def term_config(
    cache_dir, *, weight=10.0, every=1, warmup_steps=0, conditioning="ClassPrompts", latents="PriorSamples", teacher="CachedTeacher", loss="NoiseMSE",
    batch_size=2, seed=23, **more,
):  # fmt: skip
    """A regularization_config; a part is a class name or (class name, params)."""
    defaults = {
        "PriorSamples": {"samples": 4, "ddim_steps": 2, "cache_dir": str(cache_dir)},
        "NoiseLatents": {"samples": 4},
        "CachedTeacher": {"noisings": 3, "cache_dir": str(cache_dir)},
    }

    def part(module, chosen):
        name, params = chosen if isinstance(chosen, tuple) else (chosen, {})
        return {"target": f"{ISLAND}.{module}.{name}", "params": {**defaults.get(name, {}), **params}}

    return {
        "target": f"{ISLAND}.regularizer.LocalityRegularizer",
        "params": {
            "batch_size": batch_size,
            "seed": seed,
            "weight_config": part("weight", ("ConstantWeight", {"weight": weight, "every": every, "warmup_steps": warmup_steps})),
            "conditioning_config": part("conditioning", conditioning),
            "latents_config": part("latents", latents),
            "teacher_config": part("teacher", teacher),
            "loss_config": part("losses", loss),
            **more,
        },
    }


def plain_model(base, **params):
    return _with_rate(LatentDiffusion(**copy.deepcopy({**PARAMS, **params}), ckpt_path=base))


def regularized_model(base, cache_dir, params=None, **term):
    config = term_config(cache_dir, **term)
    return _with_rate(RegularizedLatentDiffusion(**copy.deepcopy({**PARAMS, **(params or {})}), ckpt_path=base, regularization_config=config))


def _with_rate(model):
    model.learning_rate = 5.0e-3
    return model


def ready(model):
    """As a Trainer leaves it before the first step."""
    model.setup("fit")
    return model.train()


class Pictures(torch.utils.data.Dataset):
    """Random pictures with training captions."""

    def __init__(self, count):
        generator = torch.Generator().manual_seed(7)
        self.pictures = torch.rand(count, 16, 16, 3, generator=generator) * 2 - 1

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        return {"image": self.pictures[index], "caption": imagenet_templates_small[index].format("*")}


def batch_of(size):
    return next(iter(DataLoader(Pictures(size), batch_size=size)))


class Log(LightningLoggerBase):
    """What was logged: by optimiser step, and of whole epochs."""

    name, version, experiment = "log", 0, None

    def __init__(self):
        super().__init__()
        self.steps, self.epochs = {}, []

    def log_metrics(self, metrics, step=None):
        of_step = {key[: -len("_step")]: value for key, value in metrics.items() if key.endswith("_step")}
        if of_step:
            self.steps.setdefault(step, {}).update(of_step)
        else:
            self.epochs.append(metrics)

    def log_hyperparams(self, *args, **kwargs):
        pass

    def by_step(self, key):
        return {step: metrics[key] for step, metrics in self.steps.items() if key in metrics}

    def by_epoch(self, key):
        return [metrics[key] for metrics in self.epochs if key in metrics]


# The last few are kept: a model knows its trainer by a weak reference, and this torch looks through all its attributes.
TRAINERS = collections.deque(maxlen=4)


def fit(model, folder, *, steps, pictures=4, batch_size=2, resume=None, validate=False, save=False, datamodule=None, **settings):
    """Train in order of the pictures, or on a data module; with `save`, leave `last.ckpt` in `folder`, as main.py does: while it trains.

    (What this Lightning saves when training is over counts one step too many.)
    """
    pl.seed_everything(11)
    log = Log()
    if save:
        checkpoints = pl.callbacks.ModelCheckpoint(dirpath=str(folder), save_last=True, every_n_train_steps=steps)
        settings = {"enable_checkpointing": True, "callbacks": [checkpoints], **settings}
    trainer = pl.Trainer(
        **{"max_steps": steps, "max_epochs": -1, "accelerator": "cpu", "devices": 1, "logger": log, "log_every_n_steps": 1, "enable_checkpointing": False,
           "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0, "default_root_dir": str(folder), **settings}
    )  # fmt: skip
    TRAINERS.append(trainer)
    validation = DataLoader(Pictures(2), batch_size=2) if validate else None
    data = {"datamodule": datamodule} if datamodule else {"train_dataloaders": DataLoader(Pictures(pictures), batch_size=batch_size)}
    trainer.fit(model, val_dataloaders=validation, ckpt_path=resume, **data)
    return log


def tensors_of(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def equal(first, second):
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)
