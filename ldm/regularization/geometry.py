"""Points between, towards and around encodings: pure functions of tensors.

c (B, L, d) is a sequence of L tokens. A length is that of the whole sequence, over all (L, d), or one for each token. A difference
that is no more than rounding counts as zero: nothing is divided by its length.
"""
import torch
from torch import Tensor

NEGLIGIBLE = 1.0e-6  # of the length of what was subtracted: what an encoder in fp32 rounds
SMALLEST_SINE = 1.0e-4  # below it an arc and its chord differ by less than fp32 rounds
DEPENDENT = 1.0e-6  # of the largest eigenvalue: directions a thousand times shorter than the longest are left out


def lerp(a: Tensor, b: Tensor, alpha: Tensor) -> Tensor:
    """The point a fraction alpha of the way from a to b; alpha broadcasts over them."""
    return a + alpha * (b - a)


def slerp(a: Tensor, b: Tensor, alpha: Tensor) -> Tensor:
    """Token by token the direction a fraction alpha along the great circle from a to b, with the length interpolated too (Shoemake 1985).

    a, b: (B, L, d); alpha broadcasts over them. Tokens of one direction, or of opposite ones, which no shortest arc joins: a straight line.
    """
    to_a, to_b = unit(a, a, per_token=True), unit(b, b, per_token=True)
    # Stable for small angles, where arccos has no derivative: the angle from the chord of the unit vectors and that of their sum.
    angle = 2 * torch.atan2(length(to_b - to_a, per_token=True), length(to_b + to_a, per_token=True))
    straight = angle.sin() < SMALLEST_SINE
    angle = torch.where(straight, torch.ones_like(angle), angle)
    share_a = torch.where(straight, (1 - alpha).expand_as(angle), ((1 - alpha) * angle).sin() / angle.sin())
    share_b = torch.where(straight, alpha.expand_as(angle), (alpha * angle).sin() / angle.sin())
    return lerp(length(a, per_token=True), length(b, per_token=True), alpha) * (share_a * to_a + share_b * to_b)


def length(x: Tensor, per_token: bool = False) -> Tensor:
    """‖x‖ of (B, L, d): (B, 1, 1), or (B, L, 1) for each token."""
    return x.norm(dim=-1, keepdim=True) if per_token else x.flatten(1).norm(dim=1).view(-1, 1, 1)


def unit(x: Tensor, subtracted: Tensor, per_token: bool = False) -> Tensor:
    """x (B, L, d) at length 1; zero where it is negligible beside `subtracted`, a tensor of which it is a difference."""
    size = length(x, per_token)
    there = size > NEGLIGIBLE * length(subtracted, per_token)
    return torch.where(there, x / torch.where(there, size, torch.ones_like(size)), torch.zeros_like(x))


def uniform_on_simplex(n: int, corners: int, generator: torch.Generator) -> Tensor:
    """n points of positive weights that add up to 1, uniform among all such: (n, corners)."""
    lengths = torch.empty(n, corners).exponential_(generator=generator)
    return lengths / lengths.sum(dim=1, keepdim=True)


def uniform_in_span(differences: Tensor, normal: Tensor) -> Tensor:
    """Weights w (P,) for which Σ_p w_p · differences_p is as uniform in direction as a normal vector of their span.

    differences: (P, N); normal: (P,), from N(0, 1). With D the matrix of differences and D Dᵀ = V Λ Vᵀ, Dᵀ V Λ^{-1/2} has orthonormal
    columns: w = V Λ^{-1/2} g. It is R⁻¹g of a QR decomposition up to a rotation of g, and stands where some are dependent: those are left out.
    """
    D = differences.double()
    values, vectors = torch.linalg.eigh(D @ D.t())
    kept = values > DEPENDENT * values.max()
    scale = torch.where(kept, values, torch.ones_like(values)).rsqrt() * kept
    return (vectors @ (scale * normal.to(D))).to(differences.dtype)
