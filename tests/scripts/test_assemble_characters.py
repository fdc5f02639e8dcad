"""Two training checkpoints become one file that loads as the whole model, averaged weights in it."""
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

REPOSITORY = Path(__file__).resolve().parents[2]


def saved(path, tensors):
    torch.save({"state_dict": tensors, "global_step": 1}, path)
    return str(path)


def test_averages_are_taken_and_keys_are_those_of_the_whole_model(tmp_path):
    first_stage = saved(tmp_path / "first.ckpt", {
        "encoder.conv_in.weight": torch.zeros(2), "loss.logvar": torch.zeros(1),
        "model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": torch.tensor(3), "model_ema.encoderconv_inweight": torch.ones(2),
    })  # fmt: skip
    denoiser = saved(tmp_path / "denoiser.ckpt", {
        "model.diffusion_model.out.2.weight": torch.zeros(3), "cond_stage_model.transformer.text_model.final_layer_norm.bias": torch.full((2,), 5.0),
        "betas": torch.zeros(4), "model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": torch.tensor(3),
        "model_ema.diffusion_modelout2weight": torch.full((3,), 2.0),
    })  # fmt: skip
    out = tmp_path / "out" / "model.safetensors"
    command = [sys.executable, "scripts/assemble_characters.py", "--first-stage", first_stage, "--denoiser", denoiser, "--out", str(out)]
    done = subprocess.run(command, cwd=REPOSITORY, env={"PYTHONPATH": str(REPOSITORY), "PATH": ""}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    weights = load_file(out)
    assert {key: (value.dtype, value.tolist()) for key, value in weights.items()} == {
        "first_stage_model.encoder.conv_in.weight": (torch.float16, [1.0, 1.0]),
        "model.diffusion_model.out.2.weight": (torch.float16, [2.0, 2.0, 2.0]),
        "cond_stage_model.transformer.text_model.final_layer_norm.bias": (torch.float16, [5.0, 5.0]),
    }
