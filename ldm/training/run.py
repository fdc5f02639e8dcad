"""One run, in the order in which things happen: words → config → checks → model, data, Trainer → plan → fit → test → results."""
from __future__ import annotations

import logging
import os
import sys
from typing import Any

from omegaconf import OmegaConf
from pytorch_lightning import seed_everything
from pytorch_lightning.loggers.logger import Logger

from ldm.training import arguments, compose
from ldm.training.assembly import build_trainer, learning_rate
from ldm.training.devices import chosen_devices, device_name
from ldm.training.run_folder import RunFolder, new_run, resumed_run
from ldm.util import instantiate_from_config

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code. One line on stderr says what went wrong, `--debug` shows where."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    debug = False
    try:
        opt, dotted = arguments.parse(argv)
        debug = opt.debug
        run(opt, dotted)
    except (ValueError, OSError, RuntimeError, TypeError, KeyError, AttributeError) as error:
        if debug:
            raise
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def run(opt: Any, dotted: list[str]) -> None:
    """Everything between the words and the exit code."""
    if opt.name and opt.resume:
        raise ValueError("-n names a new run and -r goes on with an old one: give one of them (the resumed run keeps its name)")
    if opt.resume:
        folder = resumed_run(opt.resume)
    else:
        folder = new_run(opt.logdir, data_root=opt.data_root, base=opt.base, name=opt.name, postfix=opt.postfix, datadir_in_name=opt.datadir_in_name)
    seed_everything(opt.seed, verbose=False)
    config = compose.merge([*folder.saved_configs, *opt.base], dotted)
    compose.write_flags(config, opt)
    project, lightning = compose.split(config)
    trainer_config = dict(OmegaConf.to_container(lightning.get("trainer") or OmegaConf.create(), resolve=True))
    trainer_config |= {name: getattr(opt, name) for name in arguments.nondefault_trainer_args(opt)}
    resume_from = trainer_config.pop("resume_from_checkpoint", None) or folder.resume_from
    trainer_config = chosen_devices(trainer_config)
    folder.create()
    fit(opt, folder, project, lightning, trainer_config, resume_from)


def fit(opt: Any, folder: RunFolder, project: Any, lightning: Any, trainer_config: dict[str, Any], resume_from: Any) -> None:
    """Builds model, data and Trainer, and trains."""
    model = instantiate_from_config(project.model)
    data = instantiate_from_config(project.data)
    trainer = build_trainer(folder, project, lightning, trainer_config, getattr(model, "monitor", None), trust_pickle=opt.trust_pickle)
    rate = learning_rate(model, project.model.base_learning_rate, batch_size=project.data.params.batch_size, devices=trainer.num_devices,
                         accumulate=trainer.accumulate_grad_batches, scale=opt.scale_lr)
    logger.info("device         %s", device_name(trainer.strategy.root_device, trainer.num_devices))
    logger.info("learning rate  %s", rate)
    logger.info("steps          %s", trainer.max_steps)
    logger.info("results        %s", folder.path)
    if opt.train:
        trainer.fit(model, data, ckpt_path=resume_from, weights_only=True)
        logger.info("finished after %d steps; results in %s", trainer.global_step, os.fspath(folder.path))


__all__ = ["Logger", "main", "run"]
