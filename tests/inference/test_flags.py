"""The words of the commands, as the original took them."""
from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from ldm.inference.sizes import latent_shape
from ldm.models.diffusion.conditioning import halvings
from tests.golden.case import REPOSITORY
from tests.inference.conftest import script_of

FACTS = json.loads((REPOSITORY / "tests/golden/data/facts_cli.json").read_text())
COMMANDS = sorted(set(FACTS) - {"main.py"})
KINDS = {"str": str, "int": int, "float": float, "None": None}
FROM_THE_MODEL = ("H", "W", "C", "f")  # no number of their own: what the model says, which is the recorded default for the recorded config
NOW_REQUIRED = ("ckpt_path", "data_dir")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_of_the_original_has_its_type_default_and_arity(command):
    ours = {action.dest: action for action in script_of(command).parser()._actions}
    for flag in FACTS[command]:
        action = ours[flag["dest"]]
        assert set(flag["flags"]) <= set(action.option_strings)
        default = None if flag["dest"] in FROM_THE_MODEL else flag["default"]
        assert (action.default, action.type or str, action.nargs, action.const) == (default, KINDS[flag["type"]] or str, flag["nargs"], flag["const"])
        assert (list(action.choices) if action.choices else None) in (flag["choices"], flag["choices"] and flag["choices"][::-1])
        assert action.required == (flag["required"] or flag["dest"] in NOW_REQUIRED)


@pytest.mark.parametrize("command", ["scripts/stable_txt2img.py", "scripts/txt2img.py"])
def test_sizes_come_from_the_model_and_are_the_recorded_ones_for_the_recorded_config(command):
    recorded = {flag["dest"]: flag["default"] for flag in FACTS[command]}
    params = OmegaConf.load(REPOSITORY / script_of(command).parser().get_default("config")).model.params
    unet = SimpleNamespace(diffusion_model=SimpleNamespace(channel_mult=params.unet_config.params.channel_mult))
    model = SimpleNamespace(num_downs=halvings(params.first_stage_config), image_size=params.image_size, channels=params.channels, model=unet)
    channels, height, width = latent_shape(model)
    f = 2**model.num_downs
    assert (height * f, width * f) == (recorded["H"], recorded["W"])
    assert (channels, f) == (recorded.get("C", 4), recorded.get("f", 8))


def test_a_prompt_without_quotes_is_noticed(command, small, tmp_path):
    code, said = command("scripts/stable_txt2img.py", *small.words, "--outdir", tmp_path / "o", "--prompt", "a", "photo", "of", "x")
    assert code == 1 and "photo of x: not understood" in said and "needs quotes" in said
    assert not (tmp_path / "o").exists()
