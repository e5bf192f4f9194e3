"""Solvers of one matching problem, or of a batch of them: which unit of B plays the role of which unit of A.

The only module that imports POT (Python Optimal Transport, Flamary et al., JMLR 2021).
"""

from __future__ import annotations

import math
from typing import get_args

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from graphfuse.config import Solver
from graphfuse.errors import ConfigError, DataError

_ROUNDS = 2000
_TOLERANCE = 1e-7


def solve(
    cost: Tensor,
    solver: Solver = "assignment",
    regularization: float = 0.05,
    mu: Tensor | None = None,
    nu: Tensor | None = None,
) -> Tensor:
    """Couplings of least cost.

    Parameters
    ----------
    cost : Tensor, shape (..., n, m)
        One problem for each leading index. Adding a constant to a problem changes nothing.
    solver :
        ``assignment``: one to one (Hungarian method; exact optimal transport unless n == m with uniform marginals);
        ``emd``: exact optimal transport by the network simplex; ``sinkhorn``: entropic optimal transport in the log
        domain.
    regularization : float
        For ``sinkhorn``: the weight of the entropy relative to the range of each problem's costs (largest minus
        smallest), so that costs of any scale can share a setting.
    mu, nu : Tensor, shape (n,) and (m,), optional
        Marginals, of mass 1; uniform by default.

    Returns
    -------
    Tensor, shape (..., n, m)
        Couplings: non-negative, with row sums ``mu`` and column sums ``nu``. dtype and device of ``cost``.

    Raises
    ------
    DataError
        A cost is not finite.
    ConfigError
        The solver is unknown, or the regularisation is not positive.

    Notes
    -----
    Source: Cuturi, Sinkhorn Distances (NeurIPS 2013), in the log domain as in POT's ``solve_batch``; the result is
    rounded onto the marginals by Altschuler, Weed and Rigollet (NeurIPS 2017), algorithm 2.

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
    problems = _scaled(cost)
    mu = _marginal(mu, n, problems)
    nu = _marginal(nu, m, problems)
    plan = _sinkhorn(problems, regularization, mu, nu) if solver == "sinkhorn" else _emd(problems, mu, nu)
    return plan.reshape(*lead, n, m).to(cost)


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


def _scaled(cost: Tensor) -> Tensor:
    """Problems as one batch (k, n, m) in float64, each with costs from 0 to 1 (a constant cost becomes 0)."""
    problems = _finite(cost).detach().double().reshape(-1, *cost.shape[-2:])
    problems = problems - problems.amin((-2, -1), keepdim=True)
    span = problems.amax((-2, -1), keepdim=True)
    return problems / torch.where(span > 0, span, 1.0)


def _marginal(given: Tensor | None, size: int, problems: Tensor) -> Tensor:
    if given is None:
        return problems.new_full((size,), 1 / size)
    return given.to(problems) / given.to(problems).sum()


def _emd(problems: Tensor, mu: Tensor, nu: Tensor) -> Tensor:
    import ot  # here, as POT's own imports take seconds

    plans = []
    for problem in problems.cpu().numpy():
        plan, log = ot.emd(mu.cpu().numpy(), nu.cpu().numpy(), problem, numItermax=10_000_000, log=True)
        if log["warning"] is not None:
            raise DataError(f"exact optimal transport of a {problem.shape} problem failed: {log['warning']}")
        plans.append(torch.from_numpy(plan))
    return torch.stack(plans).to(problems.device)


def _sinkhorn(problems: Tensor, regularization: float, mu: Tensor, nu: Tensor) -> Tensor:
    if not regularization > 0:
        raise ConfigError(f"sinkhorn needs a positive regularization, got {regularization}")
    import ot.batch

    count = problems.shape[0]
    result = ot.batch.solve_batch(
        problems, reg=regularization, a=mu.expand(count, -1), b=nu.expand(count, -1), max_iter=_ROUNDS, tol=_TOLERANCE,
        method="log_sinkhorn", grad="detach",
    )  # fmt: skip
    plan: Tensor = result.plan  # pyright: ignore[reportAssignmentType]
    return _rounded(plan, mu, nu)


def _rounded(plan: Tensor, mu: Tensor, nu: Tensor) -> Tensor:
    """The nearby coupling whose marginals are exact."""
    plan = plan * (mu / plan.sum(-1).clamp(min=1e-30)).clamp(max=1).unsqueeze(-1)
    plan = plan * (nu / plan.sum(-2).clamp(min=1e-30)).clamp(max=1).unsqueeze(-2)
    rest_rows, rest_columns = mu - plan.sum(-1), nu - plan.sum(-2)
    mass = rest_rows.sum(-1)[..., None, None]
    repair = rest_rows.unsqueeze(-1) * rest_columns.unsqueeze(-2)
    return plan + torch.where(mass > 0, repair / torch.where(mass > 0, mass, 1.0), 0.0).clamp(min=0)
