"""Entropic optimal transport in the log domain, for a batch of problems at once.

The dual is solved in two ways that alternate: rounds of Sinkhorn, cheap and always safe, and Newton steps on the column
potential with the row potential eliminated, which need a handful where rounds need thousands (little regularisation).
The regularisation falls to its final value by quarters, each stage starting from the last one's potential.

Sources: Cuturi, Sinkhorn Distances (NeurIPS 2013); Schmitzer, Stabilized Sparse Scaling Algorithms (SIAM J. Sci.
Comput. 2019) for the falling regularisation; Brauer, Clason, Lorenz and Wirth, A Sinkhorn-Newton Method (2017) for the
Hessian; Chizat et al., Scaling Algorithms for Unbalanced Optimal Transport (Math. Comp. 2018), section 4;
Séjourné, Vialard and Peyré, Faster Unbalanced Optimal Transport (AISTATS 2022) for the shift.
"""

from __future__ import annotations

import torch
from torch import Tensor

_STAGE = 4.0  # factor by which the regularisation falls from stage to stage
_BURST = 8  # rounds of Sinkhorn at the start of a stage, before its Newton steps
_HALVINGS = 12  # of a Newton step that does not raise the dual
_STEPS = 60  # Newton steps of a stage
_LIMIT = 2000  # rounds of an unbalanced problem
_BISECTIONS = 14  # of the regularisation, over _DECADES powers of ten
_DECADES = (-4.0, 2.0)


def balanced(cost: Tensor, regularization: Tensor, mu: Tensor, nu: Tensor, tolerance: float = 1e-9) -> Tensor:
    """Couplings of least regularised cost.

    Parameters
    ----------
    cost : Tensor, shape (k, n, m)
        One problem for each leading index, of a range of about one.
    regularization : Tensor, shape (k,)
        Weight of the entropy, in units of the cost.
    mu, nu : Tensor, shape (k, n) and (k, m)
        Marginals: positive, of mass 1.
    tolerance : float
        Mass by which the column sums may be off; row sums are exact.

    Returns
    -------
    Tensor, shape (k, n, m)
    """
    if cost.shape[-1] > cost.shape[-2]:  # the smaller side gets the Newton steps
        return balanced(cost.mT, regularization, nu, mu, tolerance).mT
    potential, eps = cost.new_zeros(nu.shape), cost.new_ones(()).expand(regularization.shape)
    while bool((eps > regularization).any()):
        eps = torch.maximum(eps, regularization)
        potential = _solve(cost, eps, mu, nu, potential, 1e-2)
        eps = torch.maximum(eps / _STAGE, regularization)
    potential = _solve(cost, regularization, mu, nu, potential, tolerance)
    return _plan(cost, regularization, mu, potential)[0]


def eps_of_entropy(cost: Tensor, target: float, mu: Tensor, nu: Tensor) -> Tensor:
    """Regularisations, shape (k,), at which the rows' entropies have a given mean, by bisection for all at once.

    ``target`` is relative: 0 where each unit has one partner, 1 where all are partners alike (the entropy of ``nu``).
    Shapes as in :func:`balanced`. A problem whose costs are all equal has but one coupling, at any regularisation; one
    whose best partners tie may have no coupling as sharp as is asked for, and gets the least.
    """
    low, high = (cost.new_full(cost.shape[:1], bound) for bound in _DECADES)
    potential = cost.new_zeros(nu.shape)
    full = -(nu * nu.log()).sum(-1)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        potential = _solve(cost, 10**middle, mu, nu, potential, 1e-4)
        above = _entropy(_plan(cost, 10**middle, mu, potential)[0], mu) > target * full
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return 10 ** ((low + high) / 2)


def unbalanced(
    cost: Tensor, regularization: Tensor, mu: Tensor, nu: Tensor, mass: Tensor, tolerance: float = 1e-6
) -> Tensor:
    """Couplings whose marginals are only held by a penalty: ``mass`` times their KL divergence from ``mu`` and ``nu``.

    The entropy is the plan's KL divergence from the product of the marginals, so that the total mass is below 1. Shapes
    as in :func:`balanced`; ``mass`` has shape (k,).
    """
    damping = (mass * regularization / (mass + regularization)).unsqueeze(-1)
    left, right = cost.new_zeros(mu.shape), cost.new_zeros(nu.shape)
    eps, weight = regularization.unsqueeze(-1), mass.unsqueeze(-1)
    kernel = mu.log().unsqueeze(-1) + nu.log().unsqueeze(-2) - cost / eps.unsqueeze(-1)
    for _ in range(_LIMIT):
        before = right
        left = damping * (mu.log() - torch.logsumexp(kernel + (right / eps).unsqueeze(-2), -1))
        right = damping * (nu.log() - torch.logsumexp(kernel + (left / eps).unsqueeze(-1), -2))
        # the best shift between the two, the only thing that converges slowly
        excess = (mu.log() - left / weight).logsumexp(-1) - (nu.log() - right / weight).logsumexp(-1)
        shift = weight * excess.unsqueeze(-1) / 2
        left, right = left + shift, right - shift
        if bool(((right - before).abs() <= tolerance * eps).all()):
            break
    return torch.exp(kernel + (left / eps).unsqueeze(-1) + (right / eps).unsqueeze(-2))


def _plan(cost: Tensor, eps: Tensor, mu: Tensor, potential: Tensor) -> tuple[Tensor, Tensor]:
    """The plan of a column potential, its row sums made exact, and the value of the dual: shapes (k, n, m), (k,)."""
    scaled = (potential.unsqueeze(-2) - cost) / eps[:, None, None]
    sums = torch.logsumexp(scaled, -1, keepdim=True)
    plan = torch.exp(scaled - sums + mu.log().unsqueeze(-1))
    return plan, -eps * (mu * sums.squeeze(-1)).sum(-1)


def _round(potential: Tensor, plan: Tensor, eps: Tensor, nu: Tensor) -> Tensor:
    """One round of Sinkhorn: column sums made exact."""
    sums = plan.sum(-2).clamp(min=torch.finfo(plan.dtype).tiny)
    return potential + eps[:, None] * (nu.log() - sums.log())


def _solve(cost: Tensor, eps: Tensor, mu: Tensor, nu: Tensor, start: Tensor, tolerance: float) -> Tensor:
    """The column potential at which the column sums are right: bursts of rounds, then Newton steps."""
    potential = start
    for _ in range(_BURST):
        plan, _ = _plan(cost, eps, mu, potential)
        if bool(((nu - plan.sum(-2)).abs().sum(-1) <= tolerance).all()):
            return potential
        potential = _round(potential, plan, eps, nu)
    for _ in range(_STEPS):
        plan, dual = _plan(cost, eps, mu, potential)
        rest = nu - plan.sum(-2)
        error = rest.abs().sum(-1)
        if bool((error <= tolerance).all()):
            break
        potential = _newton(cost, eps, mu, nu, potential, plan, dual + (potential * nu).sum(-1), rest, error)
    return potential


def _newton(
    cost: Tensor, eps: Tensor, mu: Tensor, nu: Tensor, potential: Tensor, plan: Tensor, dual: Tensor, rest: Tensor,
    error: Tensor,
) -> Tensor:  # fmt: skip
    """One damped Newton step; a round of Sinkhorn for the problems whose dual it does not raise."""
    sums = plan.sum(-2)
    hessian = torch.diag_embed(sums + error[:, None].clamp(1e-13, 1e-1) * nu) - plan.mT @ (plan / mu.unsqueeze(-1))
    step = eps[:, None] * torch.linalg.solve(hessian, rest.unsqueeze(-1)).squeeze(-1)
    slope = (step * rest).sum(-1)
    size, found = torch.ones_like(eps), torch.zeros_like(eps, dtype=torch.bool)
    for _ in range(_HALVINGS):
        moved = potential + size[:, None] * step
        value = _plan(cost, eps, mu, moved)[1] + (moved * nu).sum(-1)
        found = value >= dual + 1e-4 * size * slope - 1e-14
        if bool(found.all()):
            break
        size = torch.where(found, size, size / 2)
    return torch.where(found[:, None], potential + size[:, None] * step, _round(potential, plan, eps, nu))


def _entropy(plan: Tensor, mu: Tensor) -> Tensor:
    """Mean entropy of the rows, shape (k,)."""
    rows = plan / mu.unsqueeze(-1)
    return -(mu * (rows * rows.clamp(min=1e-300).log()).sum(-1)).sum(-1)
