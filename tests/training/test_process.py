"""The command as a process of its own: exit codes, what a terminal shows, a real Ctrl-C, two processes."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.training import tiny, toy

ROOT = Path(__file__).resolve().parents[2]


def first_stage(tmp_path: Path, **trainer: object) -> list[str]:
    """Words that train a tiny first stage on five pictures."""
    plain = tiny.config(tiny.photos(tmp_path / "P5"))
    params = {**tiny.first_stage()["params"], "lossconfig": {"target": "ldm.modules.losses.reconstruction.L1WithGradient", "params": {"kl_weight": 1.0e-4}}}
    plain["model"] = {"base_learning_rate": 1.0e-3, "target": "ldm.models.autoencoder.AutoencoderKL", "params": params}
    plain["lightning"] = {"callbacks": {"image_logger": {"params": {"disabled": True}}}, "trainer": {"limit_val_batches": 0, **trainer}}
    return [sys.executable, str(ROOT / "main.py"), "-b", toy.write(tmp_path / "ae.yaml", plain), "-t", "-n", "ae", "-l", str(tmp_path / "logs")]


@pytest.fixture
def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def test_command_trains_from_nothing_and_exits_0_and_a_wrong_one_exits_1(tmp_path, environment):
    words = first_stage(tmp_path)
    ran = subprocess.run([*words, "--max_steps", "2"], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert "finished after 2 steps" in ran.stderr and "2/2" in ran.stderr and "Traceback" not in ran.stderr
    (folder,) = (tmp_path / "logs").iterdir()
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    wrong = subprocess.run([*words, "model.params.embed_dimm=3"], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
    assert wrong.returncode == 1 and "did you mean embed_dim?" in wrong.stderr and "Traceback" not in wrong.stderr
    assert list((tmp_path / "logs").iterdir()) == [folder]


def test_ctrl_c_writes_last_ckpt_and_exits_with_one_line(tmp_path, environment):
    words = [*first_stage(tmp_path), "--max_steps", "100000"]
    running = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=tmp_path)
    deadline = time.monotonic() + 300
    while not any(path.stat().st_size for path in (tmp_path / "logs").glob("*/metrics.jsonl")):
        assert running.poll() is None and time.monotonic() < deadline, running.communicate()[0]
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    said = running.communicate(timeout=300)[0]
    (folder,) = (tmp_path / "logs").iterdir()
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert running.returncode == 130 and "Traceback" not in said
    assert said.rstrip().splitlines()[-1] == f"stopped: at step {last['global_step']}; go on with: python main.py -t -r {folder}"


def test_two_processes_share_one_run_folder_and_the_examples(tmp_path, environment):
    words = [*first_stage(tmp_path), "--max_steps", "2", "--accelerator", "cpu", "--devices", "2", "--strategy", "ddp"]
    ran = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
    assert ran.returncode == 0, ran.stderr
    (folder,) = (tmp_path / "logs").iterdir()
    assert len(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["random_states"]) == 2
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [0, 1]
    assert "2 devices × 2 batch size" in ran.stderr and ran.stderr.count("finished after") == 1
