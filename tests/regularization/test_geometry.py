"""Points between and around, against closed forms; directions, against brute force."""
import pytest
import torch

from ldm.regularization.geometry import length, lerp, slerp, uniform_in_span, uniform_on_simplex, unit

HALF = torch.tensor(0.5)


def normal(*shape, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def angle(a, b) -> torch.Tensor:
    a, b = a.double(), b.double()
    return torch.arccos(((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))).clamp(-1, 1))


def largest_gap(first: torch.Tensor, second: torch.Tensor) -> float:
    """Kolmogorov and Smirnov's statistic of two samples, over its limit for one false alarm in 1000."""
    points = torch.cat([first, second])
    shares = [torch.searchsorted(sample.sort().values, points, right=True) / len(sample) for sample in (first, second)]
    limit = 1.95 * (1 / len(first) + 1 / len(second)) ** 0.5
    return float((shares[0] - shares[1]).abs().max()) / limit


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
def test_lerp_divides_the_way(alpha):
    a, b = normal(2, 4, 3), normal(2, 4, 3, seed=1)
    c = lerp(a, b, torch.tensor(alpha))
    torch.testing.assert_close(length(c - a), alpha * length(b - a))
    torch.testing.assert_close(length(b - c), (1 - alpha) * length(b - a))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_slerp_divides_the_angle_of_each_token_and_interpolates_its_length(alpha):
    a, b = normal(2, 4, 5), 3 * normal(2, 4, 5, seed=1)
    c = slerp(a, b, torch.tensor(alpha))
    torch.testing.assert_close(angle(a, c), alpha * angle(a, b), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(angle(c, b), (1 - alpha) * angle(a, b), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(c.norm(dim=-1), (1 - alpha) * a.norm(dim=-1) + alpha * b.norm(dim=-1))


def test_slerp_takes_an_alpha_for_each_sample():
    a, b, alpha = normal(2, 4, 5), normal(2, 4, 5, seed=1), torch.tensor([0.2, 0.7]).view(-1, 1, 1)
    each = [slerp(a[i : i + 1], b[i : i + 1], alpha[i]) for i in range(2)]
    torch.testing.assert_close(slerp(a, b, alpha), torch.cat(each))


def test_slerp_of_parallel_opposite_and_zero_tokens_is_finite_and_so_is_its_gradient():
    a = torch.tensor([[[1.0, 0.0], [1.0, 2.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]], requires_grad=True)
    b = torch.tensor([[[3.0, 0.0], [1.0, 2.0], [-1.0, 0.0], [0.0, 0.0], [2.0, 0.0]]], requires_grad=True)
    c = slerp(a, b, HALF)
    torch.testing.assert_close(c[0, :2], torch.tensor([[2.0, 0.0], [1.0, 2.0]]))
    c.sum().backward()
    assert all(torch.isfinite(x).all() for x in (c, a.grad, b.grad))


def test_slerp_has_no_step_where_it_becomes_a_straight_line():
    a = torch.tensor([[[1.0, 0.0]]])
    for turn in (0.9e-4, 1.1e-4):
        c = slerp(a, torch.tensor([[[torch.tensor(turn).cos(), torch.tensor(turn).sin()]]]), torch.tensor(0.25))
        assert abs(float(c[0, 0, 1]) - 0.25 * turn) < 1e-8


def test_unit_has_length_1_over_the_sequence_or_for_each_token():
    x = normal(2, 4, 3)
    torch.testing.assert_close(unit(x, x).flatten(1).norm(dim=1), torch.ones(2))
    torch.testing.assert_close(unit(x, x, per_token=True).norm(dim=-1), torch.ones(2, 4))
    torch.testing.assert_close(unit(x, x)[1], x[1] / (x[1] ** 2).sum().sqrt())


def test_unit_of_rounding_is_zero_without_nan():
    a = 100 * normal(1, 4, 3)
    x = (a.nextafter(torch.tensor(torch.inf)) - a).requires_grad_()
    x_and_0 = torch.cat([x, torch.zeros(1, 4, 3, requires_grad=True)])
    direction = unit(x_and_0, torch.cat([a, a]))
    assert not direction.detach().any()
    direction.sum().backward()
    assert torch.isfinite(x.grad).all()
    assert unit(1e-3 * a, a).any()


def test_simplex_weights_are_distributed_as_those_found_by_rejection():
    w = uniform_on_simplex(3000, 3, torch.Generator().manual_seed(1))
    assert (w > 0).all()
    torch.testing.assert_close(w.sum(1), torch.ones(3000))
    square = torch.rand(8000, 2, generator=torch.Generator().manual_seed(2))
    inside = square[square.sum(1) < 1]  # uniform in the triangle
    expected = torch.cat([inside, 1 - inside.sum(1, keepdim=True)], dim=1)
    for axis in ([1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [1.0, -1.0, 0], [2.0, -1.0, 0.5]):
        assert largest_gap(w @ torch.tensor(axis), expected @ torch.tensor(axis)) < 1
    too_even = torch.rand(3000, 3, generator=torch.Generator().manual_seed(1))
    assert largest_gap(too_even[:, 0] / too_even.sum(1), expected[:, 0]) > 1, "the test would see weights that are not uniform"


@pytest.mark.parametrize("dependent", [False, True], ids=["independent", "one of them twice, one zero"])
def test_span_weights_give_an_orthonormal_frame(dependent):
    D = normal(3, 20) * torch.tensor([[1.0], [5.0], [0.3]])
    rank = 3
    if dependent:
        D = torch.cat([D, D[:1], torch.zeros(1, 20)])
    frame = torch.stack([uniform_in_span(D, g) @ D for g in torch.eye(len(D))])
    values = torch.linalg.svdvals(frame)
    torch.testing.assert_close(values[:rank], torch.ones(rank), atol=1e-4, rtol=0)
    assert values[rank:].abs().max() < 1e-4 if dependent else len(values) == rank
    basis = torch.linalg.svd(D, full_matrices=False).Vh[:rank]
    torch.testing.assert_close(frame @ basis.T @ basis, frame, atol=1e-4, rtol=0)


def test_span_of_nothing_is_no_direction():
    assert not uniform_in_span(torch.zeros(2, 5), torch.ones(2)).any()
