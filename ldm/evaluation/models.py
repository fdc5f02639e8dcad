"""Models to be compared: the base as it was, and what runs made of it, each built from the config that its run folder carries."""
from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from ldm.checkpoints import load_tensors, read_checkpoint
from ldm.evaluation.comparison import Subject
from ldm.evaluation.sampling import Sampling
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.pixels import OPTIONAL_WEIGHTS
from ldm.training.compose import merge
from ldm.util import instantiate_from_config

logger = logging.getLogger(__name__)

PLAIN = "ldm.models.diffusion.ddpm.LatentDiffusion"
REGULARIZED = "ldm.models.diffusion.regularized.RegularizedLatentDiffusion"
DECIDE_ABOUT_SAMPLES = (  # of model.params: what a frozen model draws rests on these and its weights alone
    "unet_config", "cond_stage_config", "first_stage_config", "parameterization", "scale_factor", "timesteps", "linear_start", "linear_end", "beta_schedule",
    "channels", "image_size",
)  # fmt: skip
GUIDANCE_KEY = "lightning.callbacks.image_logger.params.log_images_kwargs.unconditional_guidance_scale"


@dataclass(frozen=True)
class Run:
    """A folder that the training command wrote. config: all that it saved under configs, merged."""

    folder: Path
    config: DictConfig

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def role(self) -> str:
        """"regularized" where the locality term is on, else "unregularized"."""
        weight = OmegaConf.select(self.config, "model.params.regularization_config.params.weight_config.params.weight")
        given = OmegaConf.select(self.config, "model.params.regularization_config") is not None
        return "regularized" if given and weight != 0 else "unregularized"

    @property
    def pictures(self) -> Path | None:
        """The folder that the run was tuned on, if its config names one."""
        root = OmegaConf.select(self.config, "data.params.train.params.data_root")
        return Path(root) if root else None


def open_run(folder: Path, config: DictConfig | None = None) -> Run:
    """The run in a folder; `config` in place of one that it does not carry.

    Raises FileNotFoundError or ValueError where there is nothing to be compared.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"runs: no folder {folder} (looked from {Path.cwd()})")
    saved = sorted((folder / "configs").glob("*.yaml"))
    if saved:
        config = merge(saved, [])
    if config is None:
        raise ValueError(f"runs: {folder} carries no configs/*.yaml, so it is not known what to build. Name its config with --config.")
    _model_section(config, str(folder))
    run = Run(folder, config)
    if not run.checkpoint.is_file():
        raise FileNotFoundError(f"runs: {folder} holds no checkpoints/last.ckpt: that run was stopped before its first checkpoint, or it is no run folder")
    return run


def load_frozen(config: DictConfig, base: Path, *, device: torch.device, trust_pickle: bool = False) -> LatentDiffusion:
    """The model of a config with the base checkpoint's weights, in eval mode and without gradients; the new word is at its init word."""
    section = evaluation_model(config)
    section.params.ckpt_path = str(base)
    if trust_pickle:
        section.params.trust_pickle = True
    model = instantiate_from_config(section)
    if not isinstance(model, LatentDiffusion):
        raise ValueError(f"model.target is {section.target}, a {type(model).__name__}; only LatentDiffusion and its subclasses can be compared")
    return model.eval().requires_grad_(False).to(device)


def load_run(run: Run, base: Path, *, device: torch.device, trust_pickle: bool = False, checkpoint: Path | None = None) -> LatentDiffusion:
    """The model that a run ended with: its last.ckpt (or another of its checkpoints) over the base, in eval mode and without gradients."""
    model = load_frozen(run.config, base, device=torch.device("cpu"), trust_pickle=trust_pickle)
    checkpoint = checkpoint or run.checkpoint
    saved = read_checkpoint(checkpoint, trust_pickle=trust_pickle)
    model.on_load_checkpoint(saved)  # a run on a frozen base saves what it learnt alone
    load_tensors(model, saved["state_dict"], source=str(checkpoint), may_miss=OPTIONAL_WEIGHTS, may_be_unexpected=OPTIONAL_WEIGHTS)
    return model.to(device)


def evaluation_model(config: DictConfig) -> DictConfig:
    """The section `model:` without what only training needs: the locality term, and files to start from."""
    section = copy.deepcopy(_model_section(config, "the config"))
    OmegaConf.set_struct(section, False)
    if section.target == REGULARIZED:
        section.target = PLAIN
        section.params.pop("regularization_config", None)
    words = OmegaConf.select(section, "params.personalization_config.params")
    if isinstance(words, DictConfig):
        words.pop("embedding_manager_ckpt", None)
    return section


def subjects(runs: Sequence[Run], base: Path, *, names: Sequence[str], device: torch.device, trust_pickle: bool = False) -> list[Subject]:
    """The frozen base and the runs, ready to be compared.

    Raises ValueError where a run's networks are built otherwise than the first one's.
    """
    first = runs[0]
    for run in runs[1:]:
        differing = [key for key in DECIDE_ABOUT_SAMPLES
                     if OmegaConf.select(run.config, f"model.params.{key}") != OmegaConf.select(first.config, f"model.params.{key}")]  # fmt: skip
        if differing:
            raise ValueError(f"runs: {run.folder} and {first.folder} are of different models (model.params.{differing[0]}). Give each a page of its own.")
    options: dict[str, Any] = {"device": device, "trust_pickle": trust_pickle}
    compared = [Subject("Frozen", "frozen", lambda: load_frozen(first.config, base, **options))]
    for run, name in zip(runs, names, strict=True):
        compared.append(Subject(name, run.role, lambda run=run: load_run(run, base, **options), run.folder))
    return compared


def default_names(runs: Sequence[Run]) -> list[str]:
    """What each run is called: by its role where that tells the runs apart, else by its folder's name, else by its path."""
    roles = [run.role for run in runs]
    if len(set(roles)) == len(roles):
        return [{"regularized": "Regularised", "unregularized": "Unregularised"}[role] for role in roles]
    folders = [run.folder.name for run in runs]
    return folders if len(set(folders)) == len(folders) else [str(run.folder) for run in runs]


def words_of(config: DictConfig) -> tuple[str, str | None]:
    """The new word and the class word (its init word) of a config; ("*", None) where none is said."""
    words = OmegaConf.select(config, "model.params.personalization_config.params") or {}
    placeholders, initial = words.get("placeholder_strings") or ["*"], words.get("initializer_words") or [None]
    return placeholders[0], initial[0]


def sampling_of(config: DictConfig, **given: Any) -> Sampling:
    """The sampling of a config's own previews, but for what is given and not None."""
    guidance = OmegaConf.select(config, GUIDANCE_KEY)
    settings = {"guidance_scale": float(guidance)} if guidance is not None else {}
    return Sampling(**(settings | {name: value for name, value in given.items() if value is not None}))


def chosen_device(name: str | None) -> torch.device:
    """The device of that name, by default the machine's accelerator if it has one.

    Raises ValueError for a name that torch does not know, and for a device that is not there.
    """
    if name is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device  # a device that torch knows need not be in this machine
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: {error}") from error


def _model_section(config: DictConfig, source: str) -> DictConfig:
    section = config.get("model")
    if not isinstance(section, DictConfig) or "target" not in section or not isinstance(section.get("params"), DictConfig):
        raise ValueError(f"{source} has no section model: with target: and params:")
    return section
