"""What the full study costs: a training step of each kind of arm over the unregularised one's, and the time of all that is still to do."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

from omegaconf import DictConfig

from ldm.evaluation.full_study.arms import FROZEN, UNREGULARIZED, WITHOUT_RUN, Arm, arm_of
from ldm.evaluation.full_study.measure import NATS_DRAWS
from ldm.evaluation.full_study.plan import FullStudy, Job, PromptLists, Stage
from ldm.evaluation.full_study.rows import FullResultsFile
from ldm.evaluation.models import sampling_of
from ldm.evaluation.step_cost import peak_bytes, step_ratio
from ldm.training.compose import merge, read_config

Cost = dict[str, float | None]
OURS_AT_MOST, RIVALS_AT_MOST, PLAIN = 6, 3, 2  # finalists
STARTS_SECONDS = 45.0  # of the three processes and models that the cost of one kind needs
# passes through the network a step, a forward and a backward counting 1 and 2, over the unregularised run's: until they are measured
PASSES = {"cached": 2.0, "copy": 7 / 3, "prior_preservation": 2.0}


def cost_of(study: FullStudy, arm: Arm) -> Cost:
    """step_ratio and memory_ratio of an arm with a run: time and peak memory of a training step over the unregularised twin's, measured side by side.

    Both phases of a two-phase run are counted as the second, in which the term is computed.
    """
    plain, other = (merge([study.configs[one.ours, 1]], one.overrides()) for one in (UNREGULARIZED, arm))
    how = {"batch_size": int(plain.data.params.batch_size), "learning_rate": 1.0e-4, "pixels": int(plain.data.params.train.params.size)}
    _, ratio = step_ratio(plain.model, other.model, study.base, rounds=study.cost_rounds, cycle=arm.every, **how)
    peaks = [_peak(config, study.base, how) for config in (plain, other)]
    return {"step_ratio": round(ratio, 4), "memory_ratio": None if None in peaks else round(peaks[1] / peaks[0], 4)}


def measure_costs(study: FullStudy, results: FullResultsFile, arms: Iterable[Arm]) -> None:
    """Those of the arms' kinds that are not known yet, each kept as soon as it is known."""
    results.costs.setdefault(UNREGULARIZED.kind, {"step_ratio": 1.0, "memory_ratio": 1.0})
    results.costs.setdefault(FROZEN.kind, {"step_ratio": None, "memory_ratio": None})
    for arm in arms:
        if arm.kind not in results.costs:
            results.costs[arm.kind] = cost_of(study, arm)
            results.write()


class Estimator:
    """Seconds of what is to do, from the rows that were measured. Raises ValueError, when asked, without a row of a run that was trained."""

    def __init__(self, study: FullStudy, results: FullResultsFile):
        self.study, self.results = study, results
        self.config = read_config(study.configs[False, 1])
        self.guided = 2 if sampling_of(self.config).guidance_scale != 1.0 else 1
        self.prompts = PromptLists.read(study.prompts)
        own = {phases: int(read_config(study.configs[False, phases]).lightning.trainer.max_steps) for phases in (1, 2)}
        self.steps = own if study.train_steps is None else {phases: phases * study.train_steps for phases in own}  # of runs of one and of two phases

    def passes_of_row(self, stage: Stage) -> int:
        """Forward passes of one latent that measuring a row takes."""
        samples = len(self.prompts.for_samples) * stage.counts.samples * stage.steps * self.guided
        nats = len(self.prompts.texts["nats"]) * stage.trajectories * NATS_DRAWS
        return samples + len(self.prompts.for_drift) * stage.counts.drift_draws + stage.counts.loss_draws + nats

    def passes_once(self, stage: Stage) -> int:
        """The same for what a stage draws on the frozen model."""
        chains = len(self.prompts.texts["nats"]) * stage.trajectories * int(self.config.model.params.get("timesteps", 1000))
        return len(self.prompts.for_drift) * stage.counts.drift_draws * stage.steps + chains

    def seconds_of_pass(self) -> float:
        """Of one latent through the network while rows are made."""
        stages = {stage.name: stage for stage in (self.study.screen, self.study.finals)}
        measured = [row["measure_seconds"] / self.passes_of_row(stages[row["stage"]]) for row in self.results.rows if row["method"] != "frozen"]
        if not measured:
            raise ValueError("no row of a run is measured yet, so the time that others take is not known")
        return median(measured)

    def seconds_of_run(self) -> float:
        """Of an unregularised run."""
        trained = [row["train_seconds"] / self.ratio(arm_of(row)) for row in self.results.rows if row["train_seconds"] and self.ratio(arm_of(row)) > 0]
        if not trained:
            raise ValueError("no run was trained yet, so the time that others take is not known")
        return median(trained)

    def ratio(self, arm: Arm) -> float:
        """Of an arm's run to the unregularised one: as measured a step, as counted before that; with the steps of both phases."""
        if arm == FROZEN or arm.method in WITHOUT_RUN:
            return 0.0
        known = self.results.costs.get(arm.kind, {}).get("step_ratio")
        by_count = PASSES.get(arm.method, PASSES.get(arm.teacher or "", 1.0))
        return (known or by_count) * self.steps[arm.phases] / self.steps[1]

    def seconds_of(self, jobs: Iterable[Job]) -> float:
        """Of one worker that does these one after the other."""
        a_run, a_pass = self.seconds_of_run(), self.seconds_of_pass()
        return sum(a_run * self.ratio(job.arm) + a_pass * self.passes_of_row(job.stage) for job in jobs)

    def hours(self, screen: Sequence[Arm], *, began: Sequence[str] = ()) -> float:
        """Of all that is not there yet, with the finals as large as they may be. began: stages whose draws on the frozen model are made."""
        study, there = self.study, {(row["concept"], row["seed"], row["model"]) for row in self.results.rows}
        in_screen = [Job(study.screen, number, seed, arm) for number in study.screen.characters for seed in study.screen.seeds for arm in screen]
        ours = [arm for arm in screen if arm.ours][:OURS_AT_MOST]
        two_phase = [Job(study.screen, number, seed, Arm("locality", arm.conditioning, arm.latents, arm.strength, 2))
                     for number in study.screen.characters for seed in study.screen.seeds for arm in ours]  # fmt: skip
        rivals = [arm for arm in screen if arm.method in PASSES or arm.method == "output_preservation"][:RIVALS_AT_MOST]
        finalists = [FROZEN, *[UNREGULARIZED] * PLAIN, *ours, *rivals]
        in_finals = [Job(study.finals, number, seed, arm) for number in study.finals.characters for seed in study.finals.seeds for arm in finalists]
        of_rows = self.seconds_of(job for job in (*in_screen, *two_phase) if job.key not in there)
        finals_there = sum(row["stage"] == study.finals.name for row in self.results.rows)
        of_finals = self.seconds_of(in_finals) * max(0.0, 1 - finals_there / max(1, len(in_finals)))
        once = sum(self.passes_once(stage) for stage in (study.screen, study.finals) if stage.name not in began) * self.seconds_of_pass()
        kinds = len({arm.kind for arm in screen} - set(self.results.costs)) * STARTS_SECONDS
        return ((of_rows + of_finals) / study.workers + once + kinds) / 3600


def _peak(config: DictConfig, base: Path, how: dict[str, float]) -> int | None:
    return peak_bytes(config.model, base, **how)
