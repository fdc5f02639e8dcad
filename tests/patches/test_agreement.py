"""The term here is the term there: what the other stack has kept, read and compared; and this stack's own record is still what it computes."""
import numpy as np
import pytest

from tests.patches.agreement import CASES, OTHER, THIS, answers, path_of

PRECISION = 1.0e-6  # of the term and of every gradient entry
ROUNDING = 5.0e-6  # of the largest entry: what single precision makes of as many operations in another order
FIELDS = ["R", "loss_simple", "theta_hash", "names", "gradient", "norms"]


@pytest.fixture(scope="module")
def computed():
    return answers()


def recorded(stack, case):
    with np.load(path_of(stack)) as file:
        return {field: file[f"{case}/{field}"] for field in FIELDS}


@pytest.mark.parametrize("stack", [OTHER, THIS])
@pytest.mark.parametrize("case", CASES)
def test_term_and_gradient_are_those_that_were_recorded(computed, case, stack):
    mine, theirs = {field: computed[f"{case}/{field}"] for field in FIELDS}, recorded(stack, case)
    assert str(mine["theta_hash"]) == str(theirs["theta_hash"])
    assert mine["names"].tolist() == theirs["names"].tolist() and len(mine["names"]) > 50
    assert mine["R"] > 1e-4, "the student has moved"
    for field in ("R", "loss_simple", "gradient", "norms"):
        allowed = min(PRECISION, ROUNDING * np.abs(theirs[field]).max())
        np.testing.assert_allclose(mine[field], theirs[field], rtol=0.0, atol=allowed, err_msg=field)
