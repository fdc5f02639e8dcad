"""The training command.

    python main.py --base CONFIG.yaml -t --actual_resume WEIGHTS --data_root PICTURES --init_word WORD -n NAME

`python main.py --help` lists the flags; every other `dotted.key=value` overrides the config.
"""
import sys

from ldm.training.arguments import get_parser, nondefault_trainer_args
from ldm.training.callbacks import CUDACallback, ModeSwapCallback, SetupCallback
from ldm.training.data import DataModuleFromConfig, WrappedDataset, worker_init_fn
from ldm.training.image_logger import ImageLogger
from ldm.training.model import load_model_from_config
from ldm.training.run import main

__all__ = [
    "CUDACallback",
    "DataModuleFromConfig",
    "ImageLogger",
    "ModeSwapCallback",
    "SetupCallback",
    "WrappedDataset",
    "get_parser",
    "load_model_from_config",
    "main",
    "nondefault_trainer_args",
    "worker_init_fn",
]

if __name__ == "__main__":
    sys.exit(main())
