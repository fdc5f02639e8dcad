"""`--gpus` means what it meant, and what cannot be had is refused."""
from __future__ import annotations

import pytest
import torch

from ldm.training.devices import check_precision, chosen_devices


@pytest.fixture(params=[0, 2], ids=["no GPU", "two GPUs"])
def cards(request, monkeypatch) -> int:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)
    return request.param


@pytest.mark.parametrize("gpus", [None, "", 0, "0", []])
def test_no_gpus_means_the_cpu(cards, gpus):
    assert chosen_devices({"gpus": gpus, "max_steps": 3}) == {"max_steps": 3, "accelerator": "cpu", "devices": 1}


def test_without_any_choice_the_cpu_is_used_as_in_the_original(cards):
    assert chosen_devices({}) == {"accelerator": "cpu", "devices": 1}


@pytest.mark.parametrize(("gpus", "devices"), [("0,", [0]), ("1,", [1]), ("0,1", [0, 1]), ("1", 1), (2, 2), ([1], [1]), ("-1", [0, 1])])
def test_cards_by_number_with_a_comma_and_by_count_without(cards, gpus, devices):
    if cards:
        assert chosen_devices({"gpus": gpus}) == {"accelerator": "gpu", "devices": devices}
    else:
        with pytest.raises(ValueError, match="no GPU that torch can use"):
            chosen_devices({"gpus": gpus})


@pytest.mark.parametrize("gpus", ["2,", "0,2", "3"])
def test_cards_beyond_those_there_are_refused_with_how_many_there_are(monkeypatch, gpus):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"this machine has 2 \(numbers 0 to 1\)"):
        chosen_devices({"gpus": gpus})


def test_two_choices_of_a_device_are_refused(cards):
    with pytest.raises(ValueError, match="--gpus and --accelerator"):
        chosen_devices({"gpus": "0,", "accelerator": "cpu"})


def test_accelerator_gpu_without_one_is_refused(cards):
    if cards:
        assert chosen_devices({"accelerator": "gpu"})["accelerator"] == "gpu"
    else:
        with pytest.raises(ValueError, match="no GPU"):
            chosen_devices({"accelerator": "gpu"})


def test_words_that_are_no_cards_are_explained(cards):
    with pytest.raises(ValueError, match="expected `0,`"):
        chosen_devices({"gpus": "first"})


@pytest.mark.parametrize("name", ["ddp", "ddp_spawn"])
def test_accelerators_of_old_lightning_that_are_strategies_today(cards, name):
    """Configs saved by runs of the original say `accelerator: ddp`."""
    assert chosen_devices({"gpus": 0, "accelerator": name}) == {"accelerator": "cpu", "devices": 1, "strategy": name}


@pytest.mark.parametrize("precision", [16, "16", "16-mixed"])
def test_float16_on_a_cpu_is_refused_with_what_it_can(precision):
    with pytest.raises(ValueError, match=rf"--precision {precision}: a CPU .*bf16-mixed"):
        check_precision({"accelerator": "cpu", "precision": precision})
    check_precision({"accelerator": "gpu", "precision": precision})


def test_bfloat16_on_a_gpu_without_it_is_refused_with_what_it_can(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    with pytest.raises(ValueError, match="--precision bf16-mixed: this GPU .*16-mixed"):
        check_precision({"accelerator": "gpu", "precision": "bf16-mixed"})
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    check_precision({"accelerator": "gpu", "precision": "bf16-mixed"})


@pytest.mark.parametrize("precision", [None, 32, "32-true", "bf16-mixed"])
def test_a_cpu_is_left_what_it_can(precision):
    check_precision({"accelerator": "cpu", "precision": precision})


@pytest.mark.parametrize("precision", ["16-true", "bf16-true", "64-true", 64, "64"])
@pytest.mark.parametrize("accelerator", ["cpu", "gpu"])
def test_weights_in_another_format_than_float32_are_refused_with_what_fits(accelerator, precision):
    with pytest.raises(ValueError, match=rf"--precision {precision}: .*bf16-mixed, 16-mixed \(on a GPU\) or 32-true"):
        check_precision({"accelerator": accelerator, "precision": precision})
