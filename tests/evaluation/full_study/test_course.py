"""The full study at toy size: its real course, from the words of its command through the real training command to its page; its estimate and its plan."""
from __future__ import annotations

import json
import subprocess
from dataclasses import replace

import pytest
import torch
import yaml
from tqdm import tqdm

from ldm.data.characters import training_pictures
from ldm.evaluation import bench, tuning
from ldm.evaluation.full_study import arms, costs, course, plan
from ldm.evaluation.full_study.arms import EARLY, FROZEN, IDEAS, MIXTURE, SHIPPED, UNREGULARIZED, Arm, screen_arms
from ldm.evaluation.full_study.costs import Estimator, cost_of
from ldm.evaluation.full_study.finalists import finals_arms
from ldm.evaluation.full_study.measure import RowMaker, early_step, make_rows, run_words, trained
from ldm.evaluation.full_study.plan import FINALS, SCREEN, FullStudy, Job
from ldm.evaluation.full_study.rows import FullResultsFile
from ldm.evaluation.full_study.statistics import standings
from ldm.evaluation.prompts import read_prompts
from ldm.evaluation.step_cost import FORGET_PEAK
from ldm.prompts import imagenet_templates_small
from ldm.training.compose import read_config
from ldm.training.run import main as training_command
from tests.evaluation import small_characters
from tests.evaluation.full_study.world import made_row, made_rows
from tests.evaluation.test_results import KEYS
from tests.golden.case import REPOSITORY
from tests.regularization.tiny_runs import term_config

PROMPTS = REPOSITORY / "assets" / "characters" / "prompts"
MORE_KEYS = [
    "method", "conditioning", "latents", "strength", "phases", "every",
    "teacher", "drift_in_pattern", "drift_off_pattern", "leak_in_pattern", "leak_off_pattern",
    "nats", "step_ratio", "memory_ratio", "train_seconds", "measure_seconds", "stage", "arm_sha256",
]  # fmt: skip
ARMS = ["locality/empty+class/training/1.5", "kv_only/0.001", "interpolation/0.5", "early_stopping/0.5"]
FEW = [
    "--workers", "1", "--train-steps", "8", "--cost-rounds", "1", "--device", "cpu",
    *(word for stage in ("screen", "finals") for word in (f"--{stage}-characters", "1", f"--{stage}-seeds", "0", f"--{stage}-samples", "2",
                                                          f"--{stage}-steps", "2", f"--{stage}-drift-draws", "1", f"--{stage}-loss-draws", "4")),
    "--finals-trajectories", "4",
]  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return small_characters.write_base(tmp_path_factory.mktemp("base") / "base.safetensors")


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """The four shipped configs at toy size."""
    folder = tmp_path_factory.mktemp("configs")
    paths = {}
    for regularized in (False, True):
        for phases in (1, 2):
            config = small_characters.config(term=term_config(folder / "banks") if regularized else None)
            if phases == 2:
                config["lightning"]["callbacks"]["mode_swap"] = {"target": "main.ModeSwapCallback", "params": {"swap_step": 2, "train_embeddings_after": False}}
            paths[regularized, phases] = folder / f"{regularized}-{phases}.yaml"
            paths[regularized, phases].write_text(yaml.safe_dump(config))
    return paths


@pytest.fixture
def study(tmp_path, base, classifiers, configs):
    return FullStudy(tmp_path / "rows.json", tmp_path / "runs", base, classifiers, PROMPTS, configs=configs, workers=1, device="cpu", cost_rounds=1)


@pytest.fixture
def toy_size(monkeypatch, configs):
    """The training command runs in this process. Returns the words of each of its calls."""
    calls = []
    monkeypatch.setattr(plan, "CONFIGS", configs)

    def run(words, **options):
        calls.append(words[2:])
        return subprocess.CompletedProcess(words, training_command(words[2:]))

    monkeypatch.setattr(tuning.subprocess, "run", run)
    return calls


@pytest.fixture
def short_lists(tmp_path):
    """The shipped lists of prompts, two of each."""
    folder = tmp_path / "prompts"
    folder.mkdir()
    for name in plan.LISTS:
        texts = [prompt.text for prompt in read_prompts(PROMPTS / f"{name}.txt")]
        (folder / f"{name}.txt").write_text("\n".join(texts[:2]))
    return folder


def test_the_full_study_goes_from_words_to_rows_to_page_and_on_where_it_stopped(command, base, classifiers, toy_size, short_lists, tmp_path, monkeypatch):
    monkeypatch.setattr(costs, "peak_bytes", lambda config, base, **how: 1000 if "regularization_config" not in config.params else 1250)
    out, runs, page = tmp_path / "full.json", tmp_path / "runs", tmp_path / "results.md"
    words = ["--out", out, "--runs", runs, "--base-checkpoint", base, "--classifiers", classifiers, "--prompts", short_lists, *FEW, "--arms", *ARMS]
    code, said = command("study_full", *words)
    assert code == 0, said
    content = json.loads(out.read_text())
    rows = content["rows"]
    assert all(list(row) == [*KEYS, *MORE_KEYS] for row in rows)
    in_screen = [row["model"] for row in rows if row["stage"] == "screen"]
    second = ["locality/empty+class/training/1.5/two-phase", "kv_only/0.001/two-phase"]
    assert sorted(in_screen) == sorted(["frozen", "unregularized", "unregularized/two-phase", *ARMS, *second])
    in_finals = [row for row in rows if row["stage"] == "finals"]
    assert {row["method"] for row in in_finals} == {"frozen", "unregularized", "locality", "kv_only", "interpolation", "early_stopping"}
    assert {row["concept"] for row in in_finals}.isdisjoint(row["concept"] for row in rows if row["stage"] == "screen")

    by_name = {row["model"]: row for row in in_finals}
    assert by_name["frozen"]["drift_off_pattern"] == by_name["frozen"]["drift_class"] == 0.0 and by_name["frozen"]["step_ratio"] is None
    plain, between, early = (by_name[name] for name in ("unregularized", "interpolation/0.5", "early_stopping/0.5"))
    assert 0 < between["drift_off_pattern"] < plain["drift_off_pattern"] and 0 < early["drift_off_pattern"] != plain["drift_off_pattern"]
    assert plain["step_ratio"] == between["step_ratio"] == 1.0 and between["train_seconds"] is None and plain["train_seconds"] > 0
    (ours,) = [row for row in in_finals if row["method"] == "locality"]
    assert ours["teacher"] == "copy" and ours["memory_ratio"] == 1.25 and ours["step_ratio"] > 0
    assert len(ours["nats"]) == 2 and all(one["upper_bound"] > one["mean"] > 0 for one in ours["nats"].values())
    assert all(row["nats"] is None for row in rows if row["stage"] == "screen")
    assert not [path for path in runs.iterdir() if path.is_dir() and path.name != "pictures"]  # runs are gone once their rows are there
    assert "the whole study: 3 weights about" in said and content["plan"]["weights"] == [1.5, 7.5, 37.5]

    # rows lost: what is there is not measured again, and what a lost one is made of is trained for it
    calls = len(toy_size)
    content["rows"] = [row for row in rows if not (row["stage"] == "screen" and row["model"] == "interpolation/0.5")]
    out.write_text(json.dumps(content))
    code, said = command("study_full", *words)
    assert code == 0, said
    assert len(toy_size) == calls + 1
    again = json.loads(out.read_text())["rows"]
    assert again[:-1] == content["rows"]
    lost = next(row for row in rows if row["stage"] == "screen" and row["model"] == "interpolation/0.5")
    assert {**again[-1], "measure_seconds": 0} == {**lost, "measure_seconds": 0}

    code, said = command("study_full", *words, "--screen-steps", "3")
    assert code == 1 and "sampling differ" in said

    code, said = command("full_results_page", "--rows", out, "--page", page, "--chart", tmp_path / "full.png")
    assert code == 0, said
    assert "### Finals: 1 character × 1 seed" in page.read_text() and (tmp_path / "full.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--workers", "0"], "--workers is 0"),
        (["--screen-samples", "0"], "--screen-samples is 0"),
        (["--finals-characters", "9"], "--finals-characters 9: split later has 0 … 3"),
        (["--prompts", "nowhere"], "no file nowhere"),
        (["--base-checkpoint", "nowhere"], "no file nowhere"),
    ],
)
def test_bad_words_get_one_line_before_anything_is_written(command, base, classifiers, toy_size, tmp_path, words, told):
    given = ["--out", tmp_path / "full.json", "--runs", tmp_path / "runs", "--base-checkpoint", base, "--classifiers", classifiers, "--prompts", PROMPTS]
    code, said = command("study_full", *given, *words)
    assert code == 1 and told in said and "Traceback" not in said
    assert not toy_size and not (tmp_path / "full.json").exists()


def test_the_lists_of_prompts_are_what_they_say():
    lists = plan.PromptLists.read(PROMPTS).texts
    assert set(lists["heldout"]) < set(lists["off_pattern"]) and {"character", "a character"} < set(lists["off_pattern"])
    assert not set(lists["in_pattern"]) & set(lists["off_pattern"]) and not set(lists["leak_in_pattern"]) & set(lists["leak_off_pattern"])
    captions = {template.format("character") for template in imagenet_templates_small}
    assert set(lists["in_pattern"]) | set(lists["leak_in_pattern"]) <= captions
    assert not captions & (set(lists["off_pattern"]) | set(lists["leak_off_pattern"]))


def rows_of(study, arms):
    return [made_row(arm) | {"arm_sha256": study.digest(arm)} for arm in arms]


def test_a_row_of_an_arm_that_is_told_otherwise_now_is_forgotten(study, monkeypatch):
    results, kept = FullResultsFile(study.out), [Arm("kv_only", strength=0.001), Arm("locality", "empty", "prior", 1.5), UNREGULARIZED]
    results.rows = rows_of(study, (*kept, Arm("locality", "class", "noise", 1.5), Arm("base_weights", strength=0.1)))
    monkeypatch.setitem(arms.LATENTS, "noise", {"target": "ldm.regularization.latents.NoiseLatents"})
    monkeypatch.delitem(arms.LATENTS, "trajectories")
    monkeypatch.setitem(arms.RIVALS, "base_weights", (("model.params.base_weight={strength}", "model.params.model_lr=1"), (0.1,)))
    results.rows.append(made_row(kept[1]) | {"latents": "trajectories", "model": "no longer there"})
    assert results.forget_other_arms(study.digest) == ["locality/class/noise/1.5", "base_weights/0.1", "no longer there"]
    assert [row["model"] for row in results.rows] == [arm.name for arm in kept]


def test_another_shipped_term_costs_the_rows_of_the_shipped_arm_alone(study, configs, tmp_path):
    """What else the configs say decides about all rows."""
    config = yaml.safe_load(configs[True, 1].read_text())
    config["model"]["params"]["regularization_config"]["params"]["batch_size"] = 3

    def with_config(name):
        (tmp_path / name).write_text(yaml.safe_dump(config))
        return replace(study, configs={**configs, (True, 1): tmp_path / name})

    results, shipped = FullResultsFile(study.out), Arm("locality", SHIPPED, "prior", 1.5)
    kept = [UNREGULARIZED, Arm("locality", "class", "prior", 1.5)]
    results.rows = rows_of(study, [*kept, shipped])
    results.costs = {arm.kind: {"step_ratio": 1.5, "memory_ratio": 1.1} for arm in (*kept, shipped)}
    other = with_config("term.yaml")
    assert other.settings(SCREEN) == study.settings(SCREEN)
    assert results.forget_other_arms(other.digest) == [shipped.name]
    assert [row["model"] for row in results.rows] == [arm.name for arm in kept]
    assert list(results.costs) == [arm.kind for arm in kept]

    config["model"]["params"]["model_lr"] = 1.0
    assert with_config("rate.yaml").settings(SCREEN) != study.settings(SCREEN)


def test_the_finals_go_on_seed_by_seed(study, monkeypatch):
    """Whenever they are stopped, the seeds that are there are there for all arms and characters."""
    order = []

    def some_rows(maker, jobs, costs):
        order.extend((job.seed, job.arm) for job in jobs)
        return [(job, {**made_row(job.arm, stage=job.stage.name), "concept": job.key[0], "seed": job.seed}) for job in jobs]

    monkeypatch.setattr(course, "make_rows", some_rows)
    monkeypatch.setattr(course, "measure_costs", lambda *_: None)
    results = FullResultsFile(study.out)
    results.rows = [made_row(UNREGULARIZED, "nobody")]
    going = course._Course(replace(study, finals=replace(FINALS, characters=(0, 1), seeds=(0, 1))), results, lambda words: None)
    going.makers = {"finals": None}
    kv_only, interpolation = Arm("kv_only", strength=0.001), Arm("interpolation", strength=0.5)
    monkeypatch.setattr(course, "has_run", lambda *_: True)
    with tqdm(total=1.0, disable=True) as going.bar:
        going.measure(going.study.finals, [interpolation, kv_only, UNREGULARIZED])
    assert order == [(seed, arm) for seed in (0, 1) for arm in (UNREGULARIZED, interpolation, kv_only) for _ in range(2)]


def test_the_shipped_term_stands_for_no_idea():
    """Its loss is another: it would be measured with it."""
    shipped, ideas = Arm("locality", SHIPPED, "prior", 1.5), [Arm("locality", name, "prior", 1.5) for name in ("empty", "class")]
    rows = made_rows([(ideas[1], 1.0, 1.0), (shipped, 1.0, 1.2), (ideas[0], 1.0, 1.5)])
    assert finals_arms(rows)[2:] == ideas


def test_a_run_stopped_early_is_looked_at_where_its_weights_are_kept(study):
    plain = REPOSITORY / "configs/characters/finetune_unfrozen.yaml"
    assert [early_step(read_config(plain), study, share) for share in EARLY] == [25, 50, 100, 150]
    assert "every_n_train_steps=25" in run_words(replace(study, configs={(False, 1): plain}), UNREGULARIZED)[-1]


def test_a_run_that_fails_names_the_file_with_its_words(study, monkeypatch, tmp_path):
    monkeypatch.setattr(tuning.subprocess, "run", lambda words, **options: subprocess.CompletedProcess(words, 3))
    job = Job(SCREEN, 0, 0, UNREGULARIZED)
    training_pictures(job.character, study.pictures(job), count=1)
    with pytest.raises(ValueError, match="exit code 3.*said.txt"):
        trained(study, job)


def test_several_workers_make_the_rows_that_one_makes(study, tmp_path):
    stage = replace(SCREEN, counts=replace(SCREEN.counts, samples=1, drift_draws=1, loss_draws=2), steps=1)
    maker = RowMaker(replace(study, workers=2), stage)
    jobs = [Job(stage, number, 0, FROZEN) for number in (0, 1)]
    made = dict(make_rows(maker, jobs, {FROZEN.kind: {"step_ratio": None}}))
    assert list(sorted(made, key=jobs.index)) == jobs
    for job, row in made.items():
        assert {**row, "measure_seconds": 0} == {**maker.row(job, {}), "measure_seconds": 0}


def test_an_arm_whose_run_fails_does_not_stop_the_others(study, monkeypatch):
    """But it is told in the end; and nothing goes on without the run that all others are compared with."""
    def some_rows(maker, jobs, costs):
        for job in jobs:
            broken = ValueError("its loss is no number") if job.arm.name in failing else None
            yield job, broken or {**made_row(job.arm, stage=job.stage.name), "concept": job.key[0], "seed": job.seed}

    def run(out):
        results = FullResultsFile(out)
        results.plan = {"weights": [1.5]}
        results.rows = [made_row(UNREGULARIZED, "nobody")]
        going = course._Course(replace(study, out=out, only=("kv_only/*",)), results, lambda words: None)
        going.makers = dict.fromkeys(("screen", "finals"))
        return going

    monkeypatch.setattr(course, "make_rows", some_rows)
    monkeypatch.setattr(course, "measure_costs", lambda *_: None)
    failing = {"kv_only/0.0001"}
    going = run(study.out)
    with pytest.raises(ValueError, match="2 rows could not be made.*kv_only/0.0001 of .*seed 0: its loss is no number"):
        going.run()
    kept = [row["model"] for row in going.results.rows if row["stage"] == "screen"]
    assert "kv_only/0.0001" not in kept and {"kv_only/0.0003", "kv_only/0.001", "kv_only/0.003"} < set(kept)
    assert len([row for row in going.results.rows if row["stage"] == "finals"]) == 3 * len(study.finals.characters) * len(study.finals.seeds)

    failing = {"unregularized"}
    going = run(study.out.with_name("other.json"))
    with pytest.raises(ValueError, match="its loss is no number"):
        going.run()
    assert not [row for row in going.results.rows if row["method"] == "kv_only"]


def test_what_the_frozen_model_draws_is_kept(study, monkeypatch):
    stage = replace(FINALS, counts=replace(FINALS.counts, drift_draws=1), steps=1, trajectories=4)
    first = RowMaker(study, stage)
    monkeypatch.setattr(bench, "chains_by_prompt", None)
    monkeypatch.setattr(bench, "drift_points", None)
    again = RowMaker(study, stage)
    assert list(again.chains) == list(first.chains) and torch.equal(again.points.frozen_noise, first.points.frozen_noise)
    for prompt, chain in first.chains.items():
        assert all(torch.equal(one, other) for one, other in zip(chain[:-1], again.chains[prompt][:-1], strict=True))
        assert again.chains[prompt].draws == chain.draws


# -- the estimate ------------------------------------------------------------------------------------------------------------------------


def estimator(study, *, train: float = 60.0, measure: float = 30.0, **results) -> Estimator:
    file = FullResultsFile(study.out)
    file.rows = [{**made_row(UNREGULARIZED, "nobody"), "train_seconds": train, "measure_seconds": measure}]
    for key, value in results.items():
        setattr(file, key, value)
    return Estimator(study, file)


def test_a_row_is_estimated_by_the_run_that_was_measured(study):
    asked = estimator(study)
    assert asked.seconds_of([Job(study.screen, 0, 0, UNREGULARIZED)]) == pytest.approx(90.0)
    assert asked.seconds_of([Job(study.screen, 0, 0, Arm("interpolation", strength=0.5))]) == pytest.approx(30.0)
    assert asked.seconds_of([Job(study.screen, 0, 0, Arm("locality", "class", "prior", 1.5))]) == pytest.approx(2 * 60 + 30)
    finals = asked.seconds_of([Job(study.finals, 0, 0, FROZEN)])
    assert finals == pytest.approx(30 * asked.passes_of_row(FINALS) / asked.passes_of_row(SCREEN)) and finals > 6 * 30


def test_measured_costs_take_the_place_of_counted_ones(study):
    asked = estimator(study, costs={"locality/class/bank": {"step_ratio": 1.5}})
    assert asked.ratio(Arm("locality", "class", "trajectories", 0.3)) == 1.5


def test_hours_grow_with_the_weights_and_fall_with_workers_and_rows(study):
    three, two = screen_arms(), screen_arms((1.5, 7.5))
    asked = estimator(study)
    assert asked.hours(three) > asked.hours(two) > 0
    assert estimator(replace(study, workers=2)).hours(three) < asked.hours(three)
    there = [made_row(arm, "pink-star-boxy-smile") for arm in three]
    assert asked.hours(three) - estimator(study, rows=[*asked.results.rows, *there]).hours(three) > 1


def test_without_a_measured_run_there_is_no_estimate(study):
    with pytest.raises(ValueError, match="not known"):
        Estimator(study, FullResultsFile(study.out)).hours(screen_arms())


def test_a_screen_that_takes_too_long_has_fewer_weights_and_keeps_them(study, monkeypatch):
    said, planned = [], FullResultsFile(study.out)
    planned.rows = estimator(study).results.rows
    monkeypatch.setattr(FullResultsFile, "has", lambda self, key: True)
    for hours, weights in ((1000.0, [1.5, 7.5, 37.5]), (0.5, [1.5, 7.5])):
        course._Course(replace(study, hours=hours), planned, said.append).plan()
        assert planned.plan["weights"] == weights == json.loads(study.out.read_text())["plan"]["weights"]
    assert "even so it takes longer" in said[-1]


def test_the_cost_of_an_arm_is_a_number_of_time_and_where_the_system_tells_peaks_one_of_memory(study):
    """Asked of a model of a few thousand weights: what the numbers are is a machine's."""
    cost = cost_of(study, Arm("locality", "class", "training", 1.5))
    assert 0 < cost["step_ratio"] < float("inf")
    assert cost["memory_ratio"] > 0 if FORGET_PEAK.exists() else cost["memory_ratio"] is None


def test_all_ideas_have_an_arm_that_can_win():
    rows = [made_row(arm, concept) for arm in screen_arms() for concept in "ab"]
    assert {arm.conditioning for arm in standings(rows) if arm.ours} >= {*IDEAS, MIXTURE}
