"""What the rivals with a term have in common: off they leave no trace, on they hold to the base checkpoint and disturb nothing else."""
from __future__ import annotations

import pytest
import torch

from tests.regularization.tiny_runs import batch_of, equal, fit, plain_model, tensors_of
from tests.rivals.tiny_rivals import BASE, HELD, OUTPUT, PRIOR, built, held, moved, started

EACH = pytest.mark.parametrize("rival", HELD.values(), ids=HELD)


@EACH
def test_with_weight_0_the_run_is_bit_identical_to_the_plain_one(base, tmp_path, rival):
    plain, off = plain_model(base), held(rival, base, 0.0)
    logs = [fit(model, tmp_path / name, steps=5, save=True) for name, model in (("plain", plain), ("off", off))]
    assert equal(tensors_of(plain), tensors_of(off))
    assert (logs[0].steps, logs[0].epochs) == (logs[1].steps, logs[1].epochs) and len(logs[0].steps) == 5
    saved = [torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("plain", "off")]
    assert saved[0].keys() == saved[1].keys()


@EACH
def test_the_term_changes_no_other_random_draw_of_the_run(base, tmp_path, rival):
    """Rate 0: nothing moves, so a run that draws the same noise and timesteps has the same original losses."""
    plain, on = plain_model(base, model_lr=0.0), held(rival, base, 3.0, model_lr=0.0)
    plain.learning_rate = on.learning_rate = 0.0
    plain_log, log = fit(plain, tmp_path / "plain", steps=3, validate=True), fit(on, tmp_path / "on", steps=3, validate=True)
    assert log.by_step("train/loss_original") == plain_log.by_step("train/loss")
    assert log.by_epoch("val/loss") == plain_log.by_epoch("val/loss"), "the term is of training only"


@EACH
def test_what_is_differentiated_is_the_plain_loss_and_the_weighted_term(base, rival):
    plain, on = moved(plain_model(base)).train(), moved(started(held(rival, base, 3.0)))
    losses = []
    for model in (plain, on):
        torch.manual_seed(1)
        losses.append(model.shared_step(batch_of(2)))
    (original, _), (total, logs) = losses
    assert torch.equal(logs["train/loss_original"], original) and torch.equal(logs["train/loss"], total)
    assert logs[rival.log] > 0
    torch.testing.assert_close(total, original + 3.0 * logs[rival.log])


@EACH
def test_gradient_of_the_term_reaches_network_and_encoder_but_not_the_concept(base, rival):
    model = moved(started(held(rival, base, 1.0)))
    model.shared_step(batch_of(2))  # for the captions
    model.term(torch.randn(2, 4, 8, 8), torch.tensor([3, 11]), torch.randn(2, 4, 8, 8)).backward()
    reached = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.any()}
    assert reached == {"model", "cond_stage_model"}


@EACH
def test_checkpoints_have_the_keys_of_plain_ones(base, tmp_path, rival):
    plain, on = plain_model(base), held(rival, base, 1.0)
    fit(on, tmp_path, steps=2, save=True)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert list(saved) == list(on.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(saved)
    assert equal(tensors_of(plain), tensors_of(on))


@EACH
def test_a_resumed_run_holds_to_the_base_and_goes_on_with_its_own_draws(base, tmp_path, rival):
    straight, first, resumed = (held(rival, base, 5.0) for _ in range(3))
    log = fit(straight, tmp_path / "straight", steps=4, pictures=2)
    fit(first, tmp_path / "first", steps=2, pictures=2, save=True)
    log_of_rest = fit(resumed, tmp_path / "rest", steps=4, pictures=2, resume=str(tmp_path / "first" / "last.ckpt"))
    assert list(log.by_step(rival.log)) == [0, 1, 2, 3] and list(log_of_rest.by_step(rival.log)) == [2, 3]
    assert log_of_rest.by_step(rival.log)[2] > 1e-8, "had θ₀ been taken from the resumed weights, two of the terms would be 0 here"
    if rival is PRIOR:
        assert torch.equal(resumed._z_0, straight._z_0)
        assert torch.equal(resumed._generator.get_state(), straight._generator.get_state())
        return
    kept = [model._theta_0 if rival is BASE else model._frozen["model"].state_dict() for model in (straight, resumed)]
    assert kept[0] and equal(*kept)


@pytest.mark.parametrize("rival", [BASE, OUTPUT], ids=["base_weights", "output"])
def test_a_larger_weight_leaves_less_drift(base, tmp_path, rival):
    free, loose, tight = (drift_of_a_run(rival, base, tmp_path, weight) for weight in (0.0, 1.0, 30.0))
    assert free > 1.2 * loose > 1.2**2 * tight > 0


def drift_of_a_run(rival, base, folder, weight) -> float:
    """After a few steps: the unweighted term, at points on which no run was trained."""
    model, judge = held(rival, base, weight), started(held(rival, base, 1.0))
    fit(model, folder, steps=8)
    judge.load_state_dict(model.state_dict())
    judge._captions = ["a picture of a *"] * 4
    generator = torch.Generator().manual_seed(9)
    x, noise = (torch.randn(4, 4, 8, 8, generator=generator) for _ in range(2))
    with torch.no_grad():
        return float(judge.term(x, torch.tensor([1, 6, 11, 16]), noise))


@EACH
@pytest.mark.parametrize("weight", [-1.0, float("nan"), "1e-3"])
def test_a_weight_that_is_no_number_from_0_is_refused(base, rival, weight):
    with pytest.raises(ValueError, match=f"{rival.key} is .*expected a number of at least 0"):
        held(rival, base, weight)


@EACH
def test_without_a_base_checkpoint_training_is_refused(rival):
    with pytest.raises(ValueError, match=f"{rival.key} is 1.0.*ckpt_path names none"):
        held(rival, None, 1.0).setup("fit")
    held(rival, None, 0.0).setup("fit")


@EACH
def test_a_weight_where_no_network_is_tuned_is_refused(base, rival):
    with pytest.raises(ValueError, match=f"{rival.key} is 1.0 but unfreeze_model is false"):
        held(rival, base, 1.0, unfreeze_model=False)


@pytest.mark.parametrize("rival", [PRIOR, OUTPUT], ids=["prior", "output"])
def test_a_concept_without_a_class_is_refused(base, rival):
    nameless = {"target": "ldm.modules.embedding_manager.EmbeddingManager", "params": {"placeholder_strings": ["*"]}}
    with pytest.raises(ValueError, match="class_word is None, and there is no init word"):
        held(rival, base, 1.0, personalization_config=nameless)
    held(rival, base, 1.0, personalization_config=nameless, class_word="dog")
    built(rival.target, base, personalization_config=nameless, **{rival.key: 0.0})
