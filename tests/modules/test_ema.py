"""The average of weights: recorded numbers, its closed form, and that a visit to the averages leaves no trace."""
from __future__ import annotations

import pytest
import torch
from torch import nn

from ldm.modules.ema import LitEma
from tests.golden.case import assert_close_to_golden, load_case


def recorded_module() -> nn.Sequential:
    module = nn.Sequential(nn.Linear(3, 2), nn.Module(), nn.Linear(2, 2))
    module[2].bias.requires_grad_(False)
    return module


def test_a_recorded_average_is_read_and_carried_on():
    """The case holds the state after three updates (under each of its numbers); the next update has d = (1 + 4) / (10 + 4)."""
    case = load_case("lit_ema")
    state = case.under("ema3")
    module = recorded_module()
    ema = LitEma(module, decay=case.config.decay, use_num_upates=case.config.use_num_upates)
    assert list(ema.state_dict()) == ["decay", "num_updates", "0weight", "0bias", "2weight"]
    assert ema.m_name2s_name == {"0.weight": "0weight", "0.bias": "0bias", "2.weight": "2weight"}
    assert {name: (value.shape, value.dtype) for name, value in ema.state_dict().items()} == {n: (v.shape, v.dtype) for n, v in state.items()}
    ema.load_state_dict(state)
    assert ema.num_updates.item() == 3

    module.load_state_dict(case.under("model3"))
    ema.copy_to(module)
    assert torch.equal(module[0].weight, state["0weight"])
    assert torch.equal(module[2].bias, case["model3/2.bias"])  # frozen when the average began: not averaged

    module.load_state_dict(case.under("model3"))
    ema(module)
    assert_close_to_golden(ema.get_buffer("2weight"), 5 / 14 * state["2weight"] + 9 / 14 * case["model3/2.weight"])


def test_average_warms_up_by_counting_its_updates():
    """With weights 1, 2, 3, … and d_n = min(decay, (1 + n) / (10 + n)), the sum of the definition."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    ema, expected = LitEma(module, decay=0.25), 0.0
    for n in range(1, 8):
        nn.init.constant_(module.weight, n)
        ema(module)
        d = min(0.25, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * n
        assert ema.weight.item() == pytest.approx(expected, rel=1e-6)
        assert ema.num_updates.item() == n
    assert ema.decay.item() == 0.25


def test_without_count_the_decay_is_constant():
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    ema = LitEma(module, decay=0.9, use_num_upates=False)
    nn.init.ones_(module.weight)
    for _ in range(5):
        ema(module)
    assert ema.weight.item() == pytest.approx(1 - 0.9**5)
    assert ema.num_updates.item() == -1


def test_restore_brings_back_what_store_saw():
    module = nn.Linear(2, 2)
    ema = LitEma(module, decay=0.5)
    trained = {name: value.clone() + 1 for name, value in module.state_dict().items()}
    module.load_state_dict(trained)
    averages = {"weight": ema.weight.clone(), "bias": ema.bias.clone()}
    ema.store(module.parameters())
    ema.copy_to(module)
    assert all(torch.equal(value, averages[name]) for name, value in module.state_dict().items())
    ema.restore(module.parameters())
    assert all(torch.equal(value, trained[name]) for name, value in module.state_dict().items())
    assert ema.collected_params == []


def test_restart_forgets_the_past():
    module = nn.Linear(2, 2)
    ema = LitEma(module)
    ema(module)
    nn.init.ones_(module.weight)
    ema.restart(module)
    assert torch.equal(ema.weight, module.weight)
    assert ema.num_updates.item() == 0


def test_decay_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"1\.5.*\[0, 1\]"):
        LitEma(nn.Linear(1, 1), decay=1.5)
