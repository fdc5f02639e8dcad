"""Several processes do what one does with the joint batch: the same gradients, the same parameters. On the characters model, with gloo."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from ldm.training.run import main
from tests.training import repeatable, tiny

ROOT = Path(__file__).resolve().parents[2]
TERM = "model.params.regularization_config.params"
PRIOR = '{"target":"ldm.regularization.latents.PriorSamples","params":{"samples":4,"ddim_steps":2}}'
FEW_PROBES = [
    f'{TERM}.latents_config={{"target":"ldm.regularization.latents.MixedLatents","params":{{"parts":[{PRIOR}]}}}}',
    f"{TERM}.teacher_config.params.noisings=2",
]
# Plain steps: Adam would make a large difference of a small one wherever a gradient is next to nothing.
PLAIN_STEPS = 'model.params.optimizer_config={"target":"torch.optim.SGD","params":{"momentum":0.9}}'


class Left(NamedTuple):
    """What a run left."""

    gradients: list[dict[str, torch.Tensor]]      # of each step, as the optimiser met them
    weights: dict[str, torch.Tensor]
    ranks: list[list[str]]                        # of each: peak in KiB, device
    cache: list[str]                              # the banks' files


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Left]]:
    """Runs a configuration of the characters model, in this process or (processes > 1) in new ones."""
    pictures = tiny.photos(tmp_path / "pictures")
    repeatable.install()

    def run(config: str, target: str, *words: str, processes: int = 1) -> Left:
        out = tmp_path / f"{processes}"
        out.mkdir()
        batch = 2 // processes
        command = [
            "-b", str(ROOT / f"configs/characters/{config}.yaml"), "-t", "--no-test", "--actual_resume", str(ROOT / "assets/characters/model.safetensors"),
            "--data_root", str(pictures), "--init_word", "character", "-n", "trial", "-l", str(out / "logs"), "--accelerator", "cpu",
            "--limit_val_batches", "0", f"model.target={repeatable.MODULE}.{target}", f"data.params.batch_size={batch}", PLAIN_STEPS,
            "lightning.callbacks.image_logger.params.disabled=true", "lightning.modelcheckpoint.params.save_top_k=0", *words,
        ]  # fmt: skip
        if target == "Repeatable":
            command += [*FEW_PROBES, f"{TERM}.batch_size={batch}"]
        environment = {"LDM_GRADIENTS": str(out), "XDG_CACHE_HOME": str(out / "cache"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        if processes == 1:
            for name in ("LDM_GRADIENTS", "XDG_CACHE_HOME"):
                monkeypatch.setenv(name, environment[name])
            assert main(command) == 0
        else:
            script = [sys.executable, str(Path(repeatable.__file__)), *command, "--devices", str(processes)]
            ran = subprocess.run(script, env={**os.environ, **environment}, capture_output=True, text=True, timeout=600)
            assert ran.returncode == 0, ran.stderr
        (last,) = out.glob("logs/*/checkpoints/last.ckpt")
        return Left(
            [torch.load(path, weights_only=True) for path in sorted(out.glob("gradients_*.pt"))],
            torch.load(last, weights_only=True)["state_dict"],
            [path.read_text().split() for path in sorted(out.glob("rank_*.txt"))],
            sorted(path.name for path in out.glob("cache/ldm-locality/*")),
        )

    yield run
    sys.modules.pop(repeatable.MODULE, None)


def same(one: Left, two: Left) -> None:
    """Equal gradients in every step, and equal parameters after them, to rounding."""
    assert len(one.gradients) == len(two.gradients) > 0
    for step, (a, b) in enumerate(zip(one.gradients, two.gradients, strict=True)):
        assert a.keys() == b.keys()
        whole = sum(value.square().sum() for value in a.values()).sqrt()
        apart = sum((a[key] - b[key]).square().sum() for key in a).sqrt()
        assert whole > 0 and apart < 1e-5 * whole, (step, float(apart / whole))
    assert one.weights.keys() == two.weights.keys()
    for key, value in one.weights.items():
        torch.testing.assert_close(two.weights[key], value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("every", "strategy"), [(1, "ddp"), (4, "ddp_find_unused_parameters_true")])
def test_two_processes_give_the_gradient_of_one_with_the_joint_batch_and_the_joint_probes(trained, every, strategy):
    words = [f"{TERM}.weight_config.params.every={every}", "--max_steps", "4"]
    one = trained("finetune_unfrozen_reg", "Repeatable", *words)
    two = trained("finetune_unfrozen_reg", "Repeatable", *words, f"lightning.trainer.strategy={strategy}", processes=2)
    same(one, two)
    # the bank was made once and read by both; each process holds its own model on its own device, and neither two
    assert len(two.cache) == 2 and [name.split("-")[0] for name in two.cache] == [name.split("-")[0] for name in one.cache]
    (peak_0, device_0), (peak_1, device_1) = two.ranks
    assert device_0 == device_1 == "cpu" and abs(int(peak_1) - int(peak_0)) <= 0.25 * int(peak_0)


def test_two_processes_with_a_drift_budget_weigh_the_term_as_one_does(trained):
    """Every process comes to each measurement, or all would wait for ever."""
    few = {"prompts": ["a red house"], "samples": 2, "ddim_steps": 2, "noisings": 2, "points": 2}
    meter = {"target": "ldm.regularization.drift_meter.DriftMeter", "params": few}
    budget = {"budget": 1.0e-4, "weight": 2.0, "every": 2, "measure_every": 2, "meter_config": meter}
    words = [f"{TERM}.weight_config={json.dumps({'target': 'ldm.regularization.weight.DriftBudget', 'params': budget})}", "--max_steps", "4"]
    one = trained("finetune_unfrozen_reg", "Repeatable", *words)
    two = trained("finetune_unfrozen_reg", "Repeatable", *words, "--strategy", "ddp", processes=2)
    same(one, two)


def test_two_phases_in_two_processes_give_the_gradients_of_one(trained):
    """What DistributedDataParallel averages must follow what trains: it looks only once by itself."""
    words = ["lightning.callbacks.mode_swap.params.swap_step=2", "--limit_train_batches", "2", "--max_steps", "4"]
    one = trained("pivotal", "RepeatablePlain", *words)
    two = trained("pivotal", "RepeatablePlain", *words, "--strategy", "ddp", processes=2)
    assert [len(gradients) for gradients in one.gradients[:2]] == [1, 1] and len(one.gradients[2]) > 100
    same(one, two)
