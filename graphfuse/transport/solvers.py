"""Solvers of one matching problem, or of a batch of them: which unit of B plays the role of which unit of A.

The only module that imports POT (Python Optimal Transport, Flamary et al., JMLR 2021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from graphfuse.config import RoleConfig, Scale, Solver
from graphfuse.errors import ConfigError, DataError
from graphfuse.transport.sinkhorn import balanced, eps_of_entropy, unbalanced

_TOLERANCE = 1e-8
_BLOCK = 1 << 18  # elements that are copied at a time
_LEAST = 1e-6  # regularisation, relative to the range of a problem's costs, below which float64 has no digits left


def solve(
    cost: Tensor,
    solver: Solver = "assignment",
    regularization: float = 0.05,
    mu: Tensor | None = None,
    nu: Tensor | None = None,
    *,
    scale: Scale = "range",
    mass: float = 1.0,
    share: float = 0.9,
) -> Tensor:
    """Couplings of least cost.

    Parameters
    ----------
    cost : Tensor, shape (..., n, m)
        One problem for each leading index. Adding a constant to a problem changes nothing.
    solver :
        ``assignment``: one to one (Hungarian method; exact optimal transport unless n == m with uniform marginals);
        ``emd``: exact optimal transport by the network simplex; ``sinkhorn``: entropic optimal transport in the log
        domain; ``unbalanced``: the same with marginals held by a penalty only; ``partial``: exact optimal transport of
        a share of the mass, the rest spread out over what is left of the marginals.
    regularization : float
        For ``sinkhorn`` and ``unbalanced``: see ``scale``.
    mu, nu : Tensor, shape (..., n) and (..., m), optional
        Marginals, scaled to mass 1; uniform by default. They broadcast over the leading indices.
    scale :
        ``range``: the weight of the entropy is relative to the range of each problem's costs (largest minus smallest),
        so that costs of any scale can share a setting; ``absolute``: it is in units of the cost; ``entropy``:
        ``regularization`` is the mean entropy of a row's partners, relative to that of ``nu``, for which each problem
        gets its own weight (by bisection, as if balanced).
    mass : float
        For ``unbalanced``: weight of the marginals' divergence, in the units of ``scale`` (for entropy: of range).
    share : float
        For ``partial``: mass that is matched.

    Returns
    -------
    Tensor, shape (..., n, m)
        Couplings: non-negative, of mass 1, with row sums ``mu`` and column sums ``nu`` (unbalanced: near them, and
        positive). dtype and device of ``cost``.

    Raises
    ------
    DataError
        A cost is not finite.
    ConfigError
        The solver is unknown, or the regularisation is not positive (for scale entropy: not between 0 and 1).

    Notes
    -----
    Sources: :mod:`graphfuse.transport.sinkhorn`; entropic plans are rounded onto the marginals by Altschuler, Weed and
    Rigollet (NeurIPS 2017), algorithm 2. Partial: Chapel, Alaya and Gasso (NeurIPS 2020).

    Examples
    --------
    >>> solve(torch.tensor([[1.0, 0.0], [0.0, 1.0]])).tolist()
    [[0.0, 0.5], [0.5, 0.0]]
    """
    if solver not in get_args(Solver):
        raise ConfigError(f"unknown solver {solver!r}; valid: {', '.join(get_args(Solver))}")
    *lead, n, m = cost.shape
    if cost.numel() == 0:
        return torch.zeros_like(cost)
    if solver == "assignment" and n == m and mu is None and nu is None:
        return _from_index(assign(cost), cost)
    problems, span = _scaled(cost)
    mu, nu = marginal(mu, (*lead, n), problems), marginal(nu, (*lead, m), problems)
    if solver in ("sinkhorn", "unbalanced"):
        plan = _entropic(problems, span, solver, regularization, scale, mass, mu, nu)
    else:
        plan = _exact(problems, mu, nu, share if solver == "partial" else 1.0)
    return plan.reshape(*lead, n, m).to(cost)


def couple(cost: Tensor, settings: RoleConfig, mu: Tensor | None = None, nu: Tensor | None = None) -> Tensor:
    """:func:`solve` with the settings of an axis; what they leave open has the defaults of the config."""
    given = settings.model_dump(include={"solver", "regularization", "scale", "mass", "share"}, exclude_none=True)
    return solve(cost, mu=mu, nu=nu, **given)


def assign(cost: Tensor) -> Tensor:
    """The one-to-one matching of least cost.

    Parameters
    ----------
    cost : Tensor, shape (..., n, n)

    Returns
    -------
    Tensor of int64, shape (..., n)
        For each row its column.

    Raises
    ------
    DataError
        A cost is not finite.
    """
    n = cost.shape[-1]
    problems = _finite(cost).detach().reshape(-1, n, n).cpu().double().numpy()
    columns = [torch.from_numpy(linear_sum_assignment(problem)[1]) for problem in problems]
    return torch.stack(columns).long().reshape(cost.shape[:-1]).to(cost.device)


def widened(given: list[Tensor]) -> Tensor:
    """A table of costs in double precision, as an assignment needs it.

    Parameters
    ----------
    given : list of one Tensor
        In single precision on the CPU; it is taken out of the list, so that it is freed when nobody else holds it.

    Returns
    -------
    Tensor of float64
        Of the same shape. The single precision lies in the latter half of its memory while it is written from the
        front, so that at no time more is held than itself.
    """
    table = given.pop()
    if table.dtype != torch.float32 or not table.numel():
        return table.double()
    wide = torch.empty(table.shape, dtype=torch.float64)
    held = wide.view(-1).view(table.dtype)[-table.numel() :].view(-1, table.shape[-1])
    held.copy_(table.reshape(held.shape))
    del table
    rows, step = wide.view(held.shape), max(1, _BLOCK // held.shape[-1])
    for start in range(0, len(rows), step):
        rows[start : start + step] = held[start : start + step].clone()
    return wide


def differentiable(scores: Tensor, regularization: float, rounds: int = 30) -> Tensor:
    """The entropic coupling of given scores, with gradients: a fixed number of rounds in the log domain.

    Parameters
    ----------
    scores : Tensor, shape (..., n, m)
        The larger, the more a pair is matched; on an absolute scale.
    regularization : float
        Weight of the entropy.
    rounds : int
        Of alternately normalising rows and columns; the columns' sums are exact.

    Returns
    -------
    Tensor, shape (..., n, m)
        Of mass 1 each, with uniform marginals as far as the rounds reach.
    """
    n, m = scores.shape[-2:]
    log = scores / regularization
    for _ in range(rounds):
        log = log - log.logsumexp(-1, keepdim=True) - math.log(n)
        log = log - log.logsumexp(-2, keepdim=True) - math.log(m)
    return log.exp()


def _from_index(index: Tensor, cost: Tensor) -> Tensor:
    return torch.zeros_like(cost).scatter_(-1, index.unsqueeze(-1), 1 / cost.shape[-1])


def _finite(cost: Tensor) -> Tensor:
    if not bool(torch.isfinite(cost.sum())) and not bool(torch.isfinite(cost).all()):
        bad = int((~torch.isfinite(cost)).sum())
        raise DataError(
            f"{bad} of {cost.numel()} matching costs are not finite (shape {tuple(cost.shape)}).\n"
            "  what to do: look for NaN or infinite values in the weights and in the activations on this data"
        )
    return cost


def _scaled(cost: Tensor) -> tuple[Tensor, Tensor]:
    """Problems as one batch (k, n, m) in float64, each with costs from 0 to 1 (a constant cost becomes 0); ranges."""
    problems = _finite(cost).detach().double().reshape(-1, *cost.shape[-2:])
    problems = problems - problems.amin((-2, -1), keepdim=True)
    span = problems.amax((-2, -1), keepdim=True)
    span = torch.where(span > 0, span, 1.0)
    return problems / span, span[:, 0, 0]


def marginal(given: Tensor | None, shape: Sequence[int], problems: Tensor) -> Tensor:
    """Marginals of a batch, shape (k, units), of mass 1; no unit is quite without, so that all have partners."""
    if given is None:
        return problems.new_full((len(problems), shape[-1]), 1 / shape[-1])
    weight = given.to(problems).expand(tuple(shape)).reshape(-1, shape[-1])
    weight = torch.maximum(weight, 1e-9 * weight.mean(-1, keepdim=True))
    return weight / weight.sum(-1, keepdim=True)


def _exact(problems: Tensor, mu: Tensor, nu: Tensor, share: float) -> Tensor:
    import ot  # here, as POT's own imports take seconds

    plans = []
    for problem, left, right in zip(problems.cpu().numpy(), mu.cpu().numpy(), nu.cpu().numpy(), strict=True):
        if share < 1:
            plan, log = ot.partial.partial_wasserstein(left, right, problem, m=share, log=True)
        else:
            plan, log = ot.emd(left, right, problem, numItermax=10_000_000, log=True)
        if log.get("warning") is not None:
            raise DataError(f"exact optimal transport of a {problem.shape} problem failed: {log['warning']}")
        plans.append(torch.from_numpy(plan))
    plan = torch.stack(plans).to(problems.device)
    return _rounded(plan, mu, nu) if share < 1 else plan


def _entropic(
    problems: Tensor, span: Tensor, solver: Solver, regularization: float, scale: Scale, mass: float, mu: Tensor,
    nu: Tensor,
) -> Tensor:  # fmt: skip
    if not regularization > 0:
        raise ConfigError(f"{solver} needs a positive regularization, got {regularization}")
    if scale == "entropy":
        if not regularization < 1:
            raise ConfigError(f"an entropy to aim at is between 0 and 1, got regularization {regularization}")
        eps = eps_of_entropy(problems, regularization, mu, nu)
    else:
        eps = regularization / span if scale == "absolute" else torch.full_like(span, regularization)
    eps = eps.clamp(min=_LEAST)
    if solver == "sinkhorn":
        return _rounded(balanced(problems, eps, mu, nu, _TOLERANCE), mu, nu)
    weight = mass / span if scale == "absolute" else torch.full_like(span, mass)
    plan = unbalanced(problems, eps, mu, nu, weight)
    plan = plan + 1e-9 * mu.unsqueeze(-1) * nu.unsqueeze(-2)  # a unit too dear to be matched is still a mean of others
    return plan / plan.sum((-2, -1), keepdim=True)


def _rounded(plan: Tensor, mu: Tensor, nu: Tensor) -> Tensor:
    """The nearby coupling whose marginals, (k, n) and (k, m), are exact; what a plan lacks is spread out."""
    plan = plan * (mu / plan.sum(-1).clamp(min=1e-30)).clamp(max=1).unsqueeze(-1)
    plan = plan * (nu / plan.sum(-2).clamp(min=1e-30)).clamp(max=1).unsqueeze(-2)
    rest_rows, rest_columns = mu - plan.sum(-1), nu - plan.sum(-2)
    mass = rest_rows.sum(-1)[..., None, None]
    repair = rest_rows.unsqueeze(-1) * rest_columns.unsqueeze(-2)
    return plan + torch.where(mass > 0, repair / torch.where(mass > 0, mass, 1.0), 0.0).clamp(min=0)
