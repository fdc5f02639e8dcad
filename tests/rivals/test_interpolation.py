"""Between base and tuned weights: the ends are exact, the way is straight, and the words come along."""
from __future__ import annotations

import pytest
import torch

from ldm.rivals.interpolation import interpolated
from tests.regularization.tiny_runs import equal, plain_model, tensors_of
from tests.rivals.tiny_rivals import moved

WORD = "embedding_manager.string_to_param_dict.*"


@pytest.fixture
def ends(base):
    tuned = moved(plain_model(base))
    with torch.no_grad():
        tuned.embedding_manager.string_to_param_dict["*"].add_(1.0)
    return {key: value for key, value in tensors_of(plain_model(base)).items() if not key.startswith("embedding_manager")}, tensors_of(tuned)


def test_at_0_it_is_the_base_with_the_words_as_tuned(ends):
    base, tuned = ends
    at_0 = interpolated(base, tuned, 0.0)
    assert equal({key: at_0[key] for key in base}, base) and torch.equal(at_0[WORD], tuned[WORD])


def test_at_1_it_is_the_tuned_model(ends):
    assert equal(interpolated(*ends, 1.0), ends[1])


def test_between_it_is_linear_and_leaves_both_ends_as_they_are(ends):
    base, tuned = ends
    kept = [{key: value.clone() for key, value in tensors.items()} for tensors in ends]
    for s in (0.25, 0.7):
        between = interpolated(base, tuned, s)
        networks = [key for key in base if key.startswith(("model.", "cond_stage_model."))]
        assert len(networks) > 100
        for key in networks:
            torch.testing.assert_close(between[key], base[key] + s * (tuned[key] - base[key]))
    assert equal(base, kept[0]) and equal(tuned, kept[1])


def test_averages_are_left_out(ends):
    base, tuned = ends
    assert equal(interpolated(base, {**tuned, "model_ema.decay": torch.tensor(0.9)}, 1.0), tuned)


@pytest.mark.parametrize("s", [-0.1, 1.1])
def test_a_fraction_beyond_the_ends_is_refused(ends, s):
    with pytest.raises(ValueError, match=f"s is {s}; expected a number from 0"):
        interpolated(*ends, s)


def test_another_models_base_is_refused(ends):
    base, tuned = ends
    key = next(key for key in base if key.startswith("model."))
    with pytest.raises(ValueError, match=f"1 tensors .*{key}"):
        interpolated({**base, key: base[key].flatten()[:1]}, tuned, 0.5)
    with pytest.raises(ValueError, match="0 tensors"):
        interpolated({}, {}, 0.5)
