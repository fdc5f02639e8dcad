"""What is said in words follows the numbers, favourable or not."""
from __future__ import annotations

import pytest

from ldm.evaluation.comparison import Result
from ldm.evaluation.verdict import factor, percent, plain_number, verdict

READ = {"trait_rate_class": 0.84, "trait_rate_concept": 1.0, "edit_hat": 0.3, "edit_background": 0.5}


def of(role, **numbers):
    return Result(role, role, None, numbers)


@pytest.mark.parametrize(("rate", "words"), [(0.0, "0 %"), (0.004, "<1 %"), (0.0051, "1 %"), (0.84, "84 %"), (1.0, "100 %")])
def test_a_small_rate_is_not_called_nought(rate, words):
    assert percent(rate) == words


@pytest.mark.parametrize(
    ("plain", "held", "words"),
    [(0.26, 0.01, "26 times less"), (0.03, 0.01, "3.0 times less"), (0.01, 0.02, "2.0 times more"), (0.5, 0.5, "as much"), (0.1, 0.0, "not at all")],
)
def test_factor(plain, held, words):
    assert factor(plain, held) == words


def test_numbers_are_written_without_an_exponent():
    assert [plain_number(value) for value in (0.0, 3.4912e-5, 0.0312, 0.1, 1.2345)] == ["0", "0.0000349", "0.0312", "0.1", "1.23"]


def test_the_leak_is_the_headline():
    said = verdict([of("frozen"), of("unregularized", **READ), of("regularized", **{**READ, "trait_rate_class": 0.02})], fresh_pictures=True)
    assert said[0] == "“a character” shows the new character's traits (eyes, colour) in 84 % of samples without the regulariser, 2 % with it."


def test_a_regulariser_that_does_harm_is_told_so():
    numbers = {"drift_class": 0.01, "denoising_loss": 0.10}
    said = " ".join(verdict([of("frozen"), of("unregularized", **numbers), of("regularized", drift_class=0.02, denoising_loss=0.15)], fresh_pictures=False))
    assert "2.0 times more on prompts of the class" in said
    assert "the training pictures of the concept is 50 % higher with the regulariser" in said


def test_runs_without_a_pair_are_listed():
    said = verdict([of("frozen", drift_class=0.0), of("unregularized", drift_class=0.0123), of("unregularized")], fresh_pictures=False)
    assert said[1:] == ["unregularized: drift 0.0123 on class prompts.", "unregularized: no prompts to measure drift on."]


def test_there_is_always_something_to_say():
    assert verdict([of("frozen"), of("unregularized"), of("regularized")], fresh_pictures=False)
