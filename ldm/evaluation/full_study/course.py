"""The full study: many ways of holding the prior looked at briefly (the screen), the best of them at length and on new characters (the finals).

Rows are on disk as soon as they are measured, so a stopped study goes on where it was. Which arms there are: `arms`; by what rule some of them
come to the finals: `finalists`.
"""
from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from itertools import product

from tqdm import tqdm

from ldm.data.characters import training_pictures
from ldm.evaluation.full_study.arms import FEWER_WEIGHTS, FROZEN, UNREGULARIZED, UNREGULARIZED_TWO_PHASE, WEIGHTS, Arm, screen_arms
from ldm.evaluation.full_study.costs import Estimator, measure_costs
from ldm.evaluation.full_study.finalists import finals_arms, two_phase_arms
from ldm.evaluation.full_study.measure import RowMaker, has_run, make_rows, trained
from ldm.evaluation.full_study.plan import FullStudy, Job, Stage
from ldm.evaluation.full_study.rows import FullResultsFile
from ldm.evaluation.results_file import Key

BAR = "{desc} {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} min [{elapsed}<{remaining}]"
FIRST = (FROZEN, UNREGULARIZED, UNREGULARIZED_TWO_PHASE)  # what others are compared with or made of


def run_full_study(study: FullStudy, *, say: Callable[[str], None]) -> FullResultsFile:
    """Measures the rows that are missing.

    Raises ValueError or FileNotFoundError where something is missing, or the file holds rows measured otherwise; and where a run fails: at once where
    others are compared with it or made of it, else when all that can be measured is.
    """
    results = FullResultsFile(study.out)
    results.read()
    if others := results.forget_other_arms(study.digest):
        say(f"measured again, since these arms are now something else: {', '.join(others)}")
    stages = (study.screen, study.finals)
    if study.fresh:
        for stage in stages:
            results.forget(stage.split)
        results.costs, results.plan = {}, {}
    for stage in stages:
        results.go_on_with(stage.split, study.settings(stage))
        for number in stage.characters:
            training_pictures(stage.character(number), study.pictures(Job(stage, number, 0, FROZEN)))
    _Course(study, results, say).run()
    return results


class _Course:
    """The order of things: one run, by which the rest is estimated; the screen; of its best a second phase; the finals."""

    def __init__(self, study: FullStudy, results: FullResultsFile, say: Callable[[str], None]):
        self.study, self.results, self.say = study, results, say
        self.estimator = Estimator(study, results)
        self.makers: dict[str, RowMaker] = {}
        self.failed: dict[Key, str] = {}

    def run(self) -> None:
        study = self.study
        if "weights" not in self.results.plan:
            self.plan()
        arms = study.wanted(screen_arms(self.results.plan["weights"]))
        minutes = round(60 * self.hours(arms), 1)
        self.say(f"about {minutes / 60:.1f} hours for what is missing, with {study.workers} rows at a time, by the rows so far")
        with tqdm(total=max(minutes, 0.1), unit="min", bar_format=BAR) as self.bar:
            self.measure(study.screen, arms)
            self.measure(study.screen, two_phase_arms(self.results.of_stage(study.screen.name)))
            self.clear(study.screen)
            finals = finals_arms(self.results.of_stage(study.screen.name))
            self.bar.write(f"in the finals: {', '.join(arm.name for arm in finals)}")
            self.measure(study.finals, finals)
            self.clear(study.finals)
        if self.failed:
            (concept, seed, name), words = next(iter(self.failed.items()))
            raise ValueError(f"{len(self.failed)} rows could not be made; all others are in {study.out}. The first, {name} of {concept}, seed {seed}: {words}")

    def plan(self) -> None:
        """Decides, once for all, how many weights the screen has."""
        study = self.study
        first = [Job(study.screen, study.screen.characters[0], study.screen.seeds[0], arm) for arm in FIRST[:2]]
        missing = [job for job in first if not self.results.has(job.key)]
        if missing:
            self.say("one run is made and measured first: the estimate rests on it")
        for job, row in make_rows(self.maker(study.screen), missing, {}) if missing else ():
            if isinstance(row, ValueError):
                raise row
            self.results.add({**row, "step_ratio": None if job.arm == FROZEN else 1.0, "memory_ratio": None if job.arm == FROZEN else 1.0})
        estimates = {len(weights): self.hours(study.wanted(screen_arms(weights))) for weights in (WEIGHTS, FEWER_WEIGHTS)}
        all_of_them = estimates[len(WEIGHTS)] <= study.hours
        weights = WEIGHTS if all_of_them else FEWER_WEIGHTS
        told = ", ".join(f"{count} weights about {hours:.1f} hours" for count, hours in estimates.items())
        self.say(f"the whole study: {told}; {study.hours:g} are allowed, so the screen has {len(weights)}")
        if min(estimates.values()) > study.hours:
            self.say("even so it takes longer; it can be stopped at any time and goes on where it was")
        self.results.plan = {"weights": list(weights), "hours_by_weights": {str(k): round(hours, 2) for k, hours in estimates.items()}, "hours": study.hours}
        self.results.write()

    def hours(self, arms: list[Arm]) -> float:
        return self.estimator.hours(arms, began=list(self.makers))

    def maker(self, stage: Stage) -> RowMaker:
        if stage.name not in self.makers:
            self.makers[stage.name] = RowMaker(self.study, stage)
        return self.makers[stage.name]

    def measure(self, stage: Stage, arms: Iterable[Arm]) -> None:
        """The rows of these arms that are missing, a seed after the other, so that what is there can be compared; first what others are made of."""
        arms = list(arms)
        jobs = [Job(stage, number, seed, arm) for seed in stage.seeds for arm in arms for number in stage.characters]
        missing = [job for job in jobs if not self.results.has(job.key)]
        if not missing:
            return
        self.bar.set_description(f"{stage.name}: costs of a step")
        measure_costs(self.study, self.results, [job.arm for job in missing])
        self.bar.set_description(f"{stage.name}: {len(missing)} rows")
        for seed, first in product(stage.seeds, (True, False)):
            now = [job for job in missing if job.seed == seed and (job.arm in FIRST) == first]
            for job in now:
                if job.arm.source != job.arm and not has_run(self.study, job):  # two workers must not train it at once
                    trained(self.study, job)
            for job, row in make_rows(self.maker(stage), now, self.results.costs):
                if isinstance(row, ValueError):
                    if first:
                        raise row
                    self.failed[job.key] = str(row)
                    self.bar.write(f"{job.arm.name} has no row: {row}")
                    continue
                self.results.add(row)
                minutes = self.estimator.seconds_of([job]) / 60 / self.study.workers
                self.bar.update(max(0.0, min(minutes, self.bar.total - self.bar.n)))
                if job.arm.source == job.arm and job.arm not in FIRST:
                    self.remove(job)

    def clear(self, stage: Stage) -> None:
        """Removes the runs that others were made of, once all rows of a stage are there."""
        for number in stage.characters:
            for seed in stage.seeds:
                for arm in FIRST:
                    self.remove(Job(stage, number, seed, arm))

    def remove(self, job: Job) -> None:
        if not self.study.keep_runs:
            shutil.rmtree(self.study.runs / job.run_name(job.arm), ignore_errors=True)
