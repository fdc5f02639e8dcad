"""The term here is the term there: what the other stack has kept, read and compared; and this stack's own record is still what it computes."""
import numpy as np
import pytest

from tests.patches.agreement import CASES, OTHER, PRECISIONS, THIS, answers, path_of

PRECISION = 1.0e-6  # of the term and of every gradient entry
# Of the largest entry. In single precision what as many operations in another order make of it; in double precision as good as nothing: an entry
# a millionth as large as the largest is still the same to a millionth of itself.
ROUNDING = {"single": 5.0e-6, "double": 1.0e-12}
FIELDS = ["R", "loss_simple", "theta_hash", "names", "gradient", "norms"]


@pytest.fixture(scope="module")
def computed():
    return answers()


def recorded(stack, case):
    with np.load(path_of(stack)) as file:
        return {field: file[f"{case}/{field}"] for field in FIELDS}


@pytest.mark.parametrize("stack", [OTHER, THIS])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CASES)
def test_term_and_gradient_are_those_that_were_recorded(computed, case, precision, stack):
    mine, theirs = {field: computed[f"{precision}/{case}/{field}"] for field in FIELDS}, recorded(stack, f"{precision}/{case}")
    assert str(mine["theta_hash"]) == str(theirs["theta_hash"])
    assert mine["names"].tolist() == theirs["names"].tolist() and len(mine["names"]) > 50
    assert mine["gradient"].dtype == theirs["gradient"].dtype == {"single": np.float32, "double": np.float64}[precision]
    assert mine["R"] > 1e-4, "the student has moved"
    for field in ("R", "loss_simple", "gradient", "norms"):
        allowed = min(PRECISION, ROUNDING[precision] * np.abs(theirs[field]).max())
        np.testing.assert_allclose(mine[field], theirs[field], rtol=0.0, atol=allowed, err_msg=field)
