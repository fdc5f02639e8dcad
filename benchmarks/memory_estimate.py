"""The memory that a run's plan names against what the run then took: for each case the ratio of estimate and measured peak.

python benchmarks/memory_estimate.py --weights BASE --pictures FOLDER [--case NAME …] [--steps 2] [--keep FOLDER]

Each case is one run of main.py in a process of its own; its peak is the kernel's (ru_maxrss), its estimate is read from the plan. The last line
printed is one JSON object. The full-size cases need 5 to 20 GiB of memory; --weights is a checkpoint of Stable Diffusion 1 or one drawn by
benchmarks/full_size.py.
"""
from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SD, SMALL = "configs/stable-diffusion", "configs/characters"
FULL_SIZE = {
    f"{name} at {pixels} px": (f"{SD}/{name}.yaml", pixels)
    for name in ("v1-finetune", "v1-finetune_unfrozen", "v1-finetune_unfrozen_reg")
    for pixels in (256, 512)
}
CHARACTERS = {name: (f"{SMALL}/{name}.yaml", 64) for name in ("pivotal", "pivotal_reg", "pivotal_lora_reg")}
CASES = FULL_SIZE | CHARACTERS
# The bank of a trial: as the shipped one, fewer.
BANK = "model.params.regularization_config.params"
FEW_PROBES = [f"{BANK}.latents_config.params.samples=2", f"{BANK}.latents_config.params.ddim_steps=4", f"{BANK}.teacher_config.params.noisings=2"]
PLANNED = re.compile(r"^memory +about ([\d.]+) (GiB|MiB)", re.MULTILINE)
UNIT = {"GiB": 2**30, "MiB": 2**20}


def words(case: str, options: argparse.Namespace, logs: Path) -> list[str]:
    """The command of a case."""
    config, pixels = CASES[case]
    weights = options.weights if config.startswith(SD) else REPOSITORY / "assets/characters/model.safetensors"
    sizes = [f"data.params.{name}.params.size={pixels}" for name in ("train", "validation")]
    limits = ["--max_steps", str(options.steps), "--limit_val_batches", "1", "--num_sanity_val_steps", "1"]
    if config.startswith(SD):
        limits += ["data.params.batch_size=1", "data.params.num_workers=0"]
    if config.endswith("_reg.yaml") and config.startswith(SD):
        limits += [*FEW_PROBES, f"{BANK}.weight_config.params.every=1"]
    init = "cartoon" if config.startswith(SD) else "character"
    return ["main.py", "-b", config, "-t", "--actual_resume", str(weights), "--data_root", str(options.pictures), "--init_word", init, "-n", "trial",
            "-l", str(logs), f"model.params.image_size={pixels // 8}", *sizes, *limits, *options.extra]  # fmt: skip


def measured(case: str, options: argparse.Namespace) -> dict[str, float | str]:
    """Estimate and peak in GiB, and their ratio. Raises CalledProcessError where the run failed."""
    logs = Path(options.keep or tempfile.mkdtemp(dir=options.work))
    environment = {**os.environ, "XDG_CACHE_HOME": str(logs / "cache"), "PYTHONPATH": str(REPOSITORY)}
    try:
        run = subprocess.Popen([sys.executable, *words(case, options, logs)], cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True)
        said = run.stderr.read()
        _, status, usage = os.wait4(run.pid, 0)
        if status:
            raise subprocess.CalledProcessError(status, case, stderr=said)
    finally:
        if not options.keep:
            shutil.rmtree(logs, ignore_errors=True)
    number, unit = PLANNED.search(said).groups()
    estimate, peak = float(number) * UNIT[unit], usage.ru_maxrss * 1024
    return {"estimate_gib": round(estimate / 2**30, 3), "peak_gib": round(peak / 2**30, 3), "ratio": round(estimate / peak, 3)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="checkpoint of Stable Diffusion 1, for the full-size cases")
    parser.add_argument("--pictures", type=Path, required=True, help="folder of a concept's pictures")
    parser.add_argument("--case", nargs="*", choices=list(CASES), help="which (all)")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--work", type=Path, help="where the runs' folders are made meanwhile")
    parser.add_argument("--keep", type=Path, help="keep the run folders here")
    parser.add_argument("extra", nargs="*", help="further words of main.py, after --")
    options = parser.parse_args(argv)
    cases = options.case or (list(CASES) if options.weights else list(CHARACTERS))
    rows = {}
    for case in cases:
        row = rows[case] = measured(case, options)
        print(f"{case:<36} estimated {row['estimate_gib']:7.3f} GiB   peak {row['peak_gib']:7.3f} GiB   ratio {row['ratio']:.3f}", flush=True)
    print(json.dumps({"benchmark": "memory_estimate", "cases": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
