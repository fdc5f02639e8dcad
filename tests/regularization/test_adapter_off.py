"""The model without its adapters is the frozen network: exact at the start, independent of training, and equal to a copy."""
from __future__ import annotations

import pytest
import torch

from ldm.regularization import AdapterOff, TrainingBatch
from tests.regularization.doubles import ToyModel, regularizer_of
from tests.regularization.tiny_runs import batch_of, equal, fit, plain_model, ready, regularized_model, tensors_of

ADAPTERS = {"unfreeze_model": False, "adapter_config": {"target": "ldm.models.adapters.LowRankAdapters", "params": {"rank": 2, "text_rank": 2}}}
OFF = {"teacher": "AdapterOff", "latents": "TrainingLatents"}


def adapted(base, tmp_path, params=ADAPTERS, **term):
    torch.manual_seed(4)  # of the adapters' random halves
    return ready(regularized_model(base, tmp_path / "banks", params, **{**OFF, **term}))


def R_of(model):
    torch.manual_seed(3)
    batch = TrainingBatch(torch.randn(2, 4, 8, 8), torch.tensor([3, 15]), tuple(batch_of(2)["caption"]))
    return model.regularizer(model, batch, step=0).loss


def gradients(model) -> list[torch.Tensor]:
    own = [p for module in model.tuned_modules().values() for p in model.adapters.parameters_of(module)]
    return torch.autograd.grad(R_of(model), own)


def take_a_step(model) -> None:
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for module in model.tuned_modules().values():
            for parameter in model.adapters.parameters_of(module):
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def test_term_and_gradient_are_exactly_zero_at_step_zero(base, tmp_path):
    model = adapted(base, tmp_path)
    assert R_of(model).item() == 0.0 == model.regularizer.floor
    assert not any(gradient.any() for gradient in gradients(model))


def test_it_is_the_copy_without_the_copy(base, tmp_path):
    """After a step R and its gradient are those of FrozenCopy, to the bit."""
    off, copy = adapted(base, tmp_path), adapted(base, tmp_path, teacher="FrozenCopy")
    assert off.regularizer.theta_hash == copy.regularizer.theta_hash
    for model in (off, copy):
        take_a_step(model)
    assert R_of(off).item() == R_of(copy).item() > 0
    assert all(torch.equal(one, other) for one, other in zip(gradients(off), gradients(copy), strict=True))


def test_theta_0_is_that_of_a_run_on_the_whole_network(base, tmp_path):
    """So that both find the same banks."""
    whole = ready(regularized_model(base, tmp_path / "banks", latents="TrainingLatents", teacher="FrozenCopy"))
    assert adapted(base, tmp_path).regularizer.theta_hash == whole.regularizer.theta_hash


@pytest.mark.parametrize(
    "term", [OFF, {"latents": "PriorSamples"}, {"latents": "NoiseLatents"}, {"teacher": "FrozenCopy"}, {"teacher": "CachedTeacher", "latents": "PriorSamples"}]
)  # fmt: skip
def test_training_moves_the_adapters_and_not_theta_0(base, tmp_path, term):
    model = adapted(base, tmp_path, **term)
    before = tensors_of(model)
    log = fit(model, tmp_path, steps=3)
    after, terms = tensors_of(model), log.by_step("train/loss_locality")
    assert terms[0] < 1e-10 < min(terms[1], terms[2])
    still = [key for key in before if key.startswith(("model.", "cond_stage_model.")) and key not in model.adapters.keys]
    assert still and all(torch.equal(before[key], after[key]) for key in still)
    assert any(not torch.equal(before[key], after[key]) for key in model.adapters.keys)


def test_with_weight_0_adapters_are_tuned_bit_by_bit_as_in_an_unregularised_run(base, tmp_path):
    torch.manual_seed(4)
    plain = plain_model(base, **ADAPTERS)
    torch.manual_seed(4)
    off = regularized_model(base, tmp_path / "banks", ADAPTERS, weight=0.0, **OFF)
    fit(plain, tmp_path / "plain", steps=3)
    fit(off, tmp_path / "off", steps=3)
    assert equal(tensors_of(plain), tensors_of(off))


def test_nothing_is_held_while_the_word_learns_alone(base, tmp_path):
    model = adapted(base, tmp_path)
    model.configure_opt_embedding()
    assert not model._held()
    with model.adapters.off():
        pass
    assert not model._held(), "switching adapters off and on does not make them train"
    model.configure_opt_model()
    assert model._held()


def test_an_untuned_text_encoder_is_not_copied(base, tmp_path):
    params = {**ADAPTERS, "adapter_config": {"target": "ldm.models.adapters.LowRankAdapters"}}
    assert list(adapted(base, tmp_path, params).tuned_modules()) == ["model"]


def test_a_model_without_adapters_is_refused_and_told_what_fits(base, tmp_path):
    with pytest.raises(ValueError, match="AdapterOff.*this model has none.*adapter_config.*FrozenCopy or CachedTeacher"):
        regularized_model(base, tmp_path, **OFF).setup("fit")
    with pytest.raises(ValueError, match="this model has none"):
        regularizer_of(ToyModel(), teacher=AdapterOff())
