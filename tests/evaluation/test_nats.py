"""Drift in nats between whole models: closed forms, batches, and the command."""
from __future__ import annotations

import copy
import json

import pytest

from ldm.evaluation.nats import chains_by_prompt, nats_by_prompt
from ldm.regularization.losses import vlb_weights


def shifted(model, by):
    """The model with `by` added to its output."""
    double = copy.copy(model)
    double.apply_model = lambda z, t, c: model.apply_model(z, t, c) + by
    return double


def nats(frozen, tuned, **counts):
    (found,) = nats_by_prompt(tuned, chains_by_prompt(frozen, ["a character"], **counts)).values()
    return found


def entries(model):
    return model.channels * model.image_size**2


def test_a_constant_shift_costs_its_square_times_the_sum_of_the_weights(model):
    found = nats(model, shifted(model, 0.1), trajectories=4, draws=3)
    weights = vlb_weights(model.alphas_cumprod)[1:].sum().item()
    assert found.mean == pytest.approx(entries(model) * 0.01 * weights, rel=1e-3)
    assert found.trajectories == 4


def test_a_shift_of_x0_is_told_in_noise(model):
    """Δε = −√(ᾱ/(1−ᾱ))·Δx0: where it grows with ᾱ, less noise costs more than for a shift of ε by the same amount."""
    of_x0 = copy.copy(model)
    of_x0.parameterization = "x0"
    alone = nats(of_x0, of_x0, trajectories=4, draws=2)
    assert alone.mean < 1e-6  # rounding: the two are asked in batches of different sizes
    weights, abar = vlb_weights(model.alphas_cumprod)[1:], model.alphas_cumprod.double()[1:]
    expected = (entries(model) * 1e-6 * (weights * abar / (1 - abar)).sum()).item()
    found = nats(of_x0, shifted(of_x0, 1e-3), trajectories=4, draws=400)
    assert abs(found.mean - expected) <= 4 * found.standard_error + 0.02 * expected


def test_batches_change_nothing(model):
    one, many = (nats_by_prompt(shifted(model, 0.1), chains_by_prompt(model, ["a character"], trajectories=4, draws=3, batch_size=size), batch_size=size)
                 for size in (2, 64))  # fmt: skip
    assert one["a character"].mean == pytest.approx(many["a character"].mean, rel=1e-4)


def test_the_command_writes_what_it_says(command, pair, tmp_path):
    (tmp_path / "prompts.txt").write_text("a character\n")
    out = tmp_path / "nats.json"
    runs = [pair.runs["unregularized"], pair.runs["regularized"]]
    words = ["--base-checkpoint", pair.base, "--runs", *runs, "--prompts", tmp_path / "prompts.txt", "--out", out, "--device", "cpu"]
    code, said = command("drift_in_nats", *words, "--trajectories", 4, "--draws", 2)
    assert code == 0, said
    written = json.loads(out.read_text())["runs"]
    assert set(written) == {"Unregularised", "Regularised"} and all(0 < run["a character"]["mean"] for run in written.values())
    assert f"{written['Unregularised']['a character']['mean']:.3f}" in said
    code, said = command("drift_in_nats", *words, "--trajectories", 3)
    assert code == 1 and "at least 4 trajectories" in said and "Traceback" not in said
    (tmp_path / "file").touch()
    code, said = command("drift_in_nats", *words, "--out", tmp_path / "file" / "nats.json")
    assert code == 1 and "file" in said and "Traceback" not in said
