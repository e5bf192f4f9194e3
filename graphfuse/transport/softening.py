"""A quick entropic coupling for intermediate steps, made of matrix-vector products.

Sinkhorn's scalings on a kernel that is kept in range: the potentials are absorbed into it whenever the scalings grow.
Source: Schmitzer, Stabilized Sparse Scaling Algorithms for Entropy Regularized Transport Problems (SIAM J. Sci. Comput.
2019), section 3.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graphfuse.transport.solvers import marginal

_ROUNDS = 40
_CHECK = 5
_TOLERANCE = 1e-3
_LARGE = 1e9


def soften(
    cost: Tensor, regularization: float, mu: Tensor | None = None, nu: Tensor | None = None, *, spend: bool = False
) -> Tensor:
    """Couplings of small cost whose marginals are met up to a thousandth of the mass or forty rounds.

    Parameters
    ----------
    cost : Tensor, shape (..., n, m)
        Finite. Adding a constant to a problem changes nothing.
    regularization : float
        Weight of the entropy relative to the range of each problem's costs.
    mu, nu : Tensor, shape (..., n) and (..., m), optional
        Marginals, scaled to mass 1; uniform by default. They broadcast over the leading indices.
    spend : bool
        The costs may be written over, and the result takes their place, so that two tables are held at most.

    Returns
    -------
    Tensor, shape (..., n, m)
        float32.
    """
    if cost.numel() == 0:
        return torch.zeros_like(cost, dtype=torch.float32)
    *lead, n, m = cost.shape
    given = cost.detach().reshape(-1, n, m)
    exponent = _exponent(given if spend else given.clone(), regularization)
    kernel = exponent.exp()
    mu, nu = marginal(mu, (*lead, n), kernel).unsqueeze(-1), marginal(nu, (*lead, m), kernel).unsqueeze(-1)
    u, v = torch.ones_like(mu), torch.ones_like(nu)
    for step in range(_ROUNDS):
        u = mu / (kernel @ v).clamp(min=1e-30)
        v = nu / (kernel.mT @ u).clamp(min=1e-30)
        if max(float(u.max()), float(v.max()), 1 / float(u.min()), 1 / float(v.min())) > _LARGE * n * m:
            exponent += u.log()
            exponent += v.log().mT
            torch.exp(exponent, out=kernel)
            u, v = torch.ones_like(u), torch.ones_like(v)
        if step % _CHECK == _CHECK - 1 and float((u * (kernel @ v) - mu).abs().sum(1).amax()) < _TOLERANCE:
            break
    return torch.mul(kernel, u, out=exponent).mul_(v.mT).reshape(*lead, n, m)


def _exponent(problems: Tensor, regularization: float) -> Tensor:
    """Minus the reduced costs over the regularisation, a zero in each row and column, else less: in their place."""
    least, largest = problems.amin(-1, keepdim=True), problems.amax((-2, -1), keepdim=True)
    span = largest - least.amin(-2, keepdim=True)
    scale = torch.where(span > 0, span, 1.0) * regularization
    exponent = problems.neg_().add_(least).float()
    exponent -= exponent.amax(-2, keepdim=True)
    return exponent.div_(scale)
