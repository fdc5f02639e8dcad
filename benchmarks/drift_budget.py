"""Whether a run ends within the drift that its user accepted: drift at its end over the stated budget, for several budgets and characters.

python benchmarks/drift_budget.py [--characters 0 2] [--budgets 0.05 0.1 0.2 0.35 0.5] [--seed 0] [--logs logs/drift_budget]

For each of the dev characters one unregularised run on the small model, and one with `DriftBudget` for each budget, which is stated as a share of the
unregularised run's drift on the meter's prompts (assets/characters/prompts/budget_meter.txt). Drift at the end is measured on both lists:
the meter's, and budget_heldout.txt, which neither the term nor the meter has seen. The last line is one JSON object:
    within_15_percent      runs whose held-out drift is within 15 % of the budget
    runs                   of so many
    ratios                 character → budget → held-out drift over it
A run that is there is not made again. About 90 seconds each on one core.
"""
from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean

from ldm.data.characters import NEW_CHARACTERS, training_pictures
from ldm.evaluation.attributes import DEFAULT_WEIGHTS
from ldm.evaluation.bench import Bench
from ldm.evaluation.comparison import DRIFT_SEED, Counts, DriftPoints
from ldm.evaluation.full_study.arms import CONFIGS
from ldm.evaluation.full_study.measure import WITHOUT_EXTRAS
from ldm.evaluation.metrics import drift_by_prompt
from ldm.evaluation.models import chosen_device, load_run, open_run, sampling_of
from ldm.evaluation.prompts import read_prompts
from ldm.evaluation.tuning import CHARACTER_BASE, tune
from ldm.training.compose import read_config

PROMPTS = Path("assets/characters/prompts")
PLAIN, REGULARIZED = CONFIGS[False, 1], CONFIGS[True, 1]
WEIGHT = "model.params.regularization_config.params.weight_config"
DRAWS = 16  # a prompt
# For a run of 200 steps: the weight has to find its place within a few dozen measurements.
FAST = {"weight": 0.1, "min_weight": 1.0e-4, "measure_every": 4, "step_size": 0.5}


def weight_config(budget: float) -> dict[str, object]:
    """The word that follows from a budget."""
    meter = {"prompts": str(PROMPTS / "budget_meter.txt"), "samples": 96, "noisings": 16, "points": 64}
    held = {"target": "ldm.regularization.drift_meter.DriftMeter", "params": meter}
    return {"target": "ldm.regularization.weight.DriftBudget", "params": {"budget": budget, "meter_config": held, **FAST}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--characters", type=int, nargs="+", default=[0, 2], help="of the split dev")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.35, 0.5])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--logs", type=Path, default=Path("logs/drift_budget"))
    options = parser.parse_args()
    plain = read_config(PLAIN)
    counts = Counts(samples=1, drift_draws=DRAWS, loss_draws=1)
    bench = Bench(
        plain, CHARACTER_BASE, DEFAULT_WEIGHTS, sampling=sampling_of(plain, steps=50), counts=counts, runs=options.logs, device=chosen_device(None)
    )  # fmt: skip
    lists = {name: [prompt.text for prompt in read_prompts(PROMPTS / f"budget_{name}.txt")] for name in ("meter", "heldout")}
    points = {name: bench.kept_points(name, prompts, DRIFT_SEED) for name, prompts in lists.items()}

    def tuned(number: int, name: str, config: Path, words: list[str]) -> dict[str, float]:
        """Drift of a run on both lists; the run is made if it is not there."""
        character, logdir = NEW_CHARACTERS["dev"][number], options.logs / f"dev-{number}-seed{options.seed}-{name}"
        pictures = options.logs / f"pictures-{number}"
        training_pictures(character, pictures)
        logdir.mkdir(parents=True, exist_ok=True)
        words = [*WITHOUT_EXTRAS, *words]
        run = tune(config, CHARACTER_BASE, pictures, logdir=logdir, name="run", seed=options.seed, overrides=words, reuse=True, log=logdir / "said.txt")
        network = load_run(open_run(run), CHARACTER_BASE, device=bench.device)

        def drift(of: DriftPoints) -> float:
            return fmean(drift_by_prompt(network, of.draws, of.frozen_noise, batch_size=bench.sampling.batch_size).values())

        return {which: drift(of) for which, of in points.items()}

    ratios: dict[str, dict[str, float]] = {}
    for number in options.characters:
        unregularized = tuned(number, "plain", PLAIN, [])
        for share in options.budgets:
            budget = share * unregularized["meter"]
            found = tuned(number, f"budget-{share:g}", REGULARIZED, [f"{WEIGHT}={json.dumps(weight_config(budget))}"])
            ratios.setdefault(f"dev/{number}", {})[f"{share:g}"] = round(found["heldout"] / budget, 3)
            print(f"dev/{number}, {share:g} of the unregularised drift ({budget:.3g}): ended at {found['meter'] / budget:.3f} of it on the meter's "
                  f"prompts, at {found['heldout'] / budget:.3f} on held-out ones", flush=True)  # fmt: skip
    every = [ratio for of_character in ratios.values() for ratio in of_character.values()]
    print(json.dumps({"benchmark": "drift_budget", "within_15_percent": sum(abs(ratio - 1) <= 0.15 for ratio in every), "runs": len(every), "ratios": ratios}))


if __name__ == "__main__":
    main()
