"""Couplings: marginals, optimality, batches against single problems, and degenerate costs."""

from __future__ import annotations

from typing import get_args

import numpy as np
import ot
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.testing import assert_close

from graphfuse.config import Solver
from graphfuse.errors import ConfigError, DataError
from graphfuse.transport.softening import soften
from graphfuse.transport.solvers import assign, solve

SOLVERS = get_args(Solver)


@st.composite
def problems(draw: st.DrawFn) -> Tensor:
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(1, 6)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    scale = 10 ** draw(st.floats(-6, 6))
    return torch.randn(shape, generator=generator, dtype=torch.float64) * scale


@given(problems(), st.sampled_from(SOLVERS))
def test_plans_are_couplings_of_uniform_marginals(cost: Tensor, solver: Solver) -> None:
    plan = solve(cost, solver)
    _, n, m = cost.shape
    assert bool((plan >= 0).all())
    assert_close(plan.sum(-1), torch.full(cost.shape[:2], 1 / n, dtype=cost.dtype), rtol=0, atol=1e-9)
    assert_close(plan.sum(-2), torch.full((len(cost), m), 1 / m, dtype=cost.dtype), rtol=0, atol=1e-9)


@given(problems(), st.sampled_from(SOLVERS))
def test_a_batch_is_the_same_as_its_problems_one_by_one(cost: Tensor, solver: Solver) -> None:
    single = torch.stack([solve(problem, solver) for problem in cost])
    assert_close(solve(cost, solver), single, rtol=0, atol=1e-5)


@given(problems(), st.sampled_from(SOLVERS), st.floats(-100, 100))
def test_scale_and_shift_of_a_cost_do_not_matter(cost: Tensor, solver: Solver, shift: float) -> None:
    moved = 3 * cost + shift * cost.abs().max()
    value, expected = ((solve(c, solver) * cost).sum((-2, -1)) for c in (moved, cost))
    assert_close(value, expected, rtol=1e-5, atol=1e-5 * float(cost.abs().max()))


def test_given_marginals_are_kept() -> None:
    mu, nu = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.1, 0.9])
    for solver in SOLVERS:
        plan = solve(torch.rand(3, 2), solver, mu=mu, nu=nu)
        assert_close(plan.sum(1), mu, rtol=0, atol=1e-6)
        assert_close(plan.sum(0), nu, rtol=0, atol=1e-6)


def test_exact_solvers_reach_the_optimum() -> None:
    cost = torch.rand(7, 7, dtype=torch.float64)
    best = cost.numpy()[linear_sum_assignment(cost.numpy())].sum() / 7
    for solver in ("assignment", "emd"):
        assert float((solve(cost, solver) * cost).sum()) == pytest.approx(best, abs=1e-12)


def test_assign_names_the_column_of_each_row() -> None:
    order = torch.stack([torch.randperm(6), torch.randperm(6)])
    cost = -torch.nn.functional.one_hot(order, 6).float()
    assert_close(assign(cost), order, rtol=0, atol=0)


def test_entropic_plans_are_those_of_the_log_domain_sinkhorn() -> None:
    cost = torch.rand(9, 12, dtype=torch.float64)
    scaled = (cost - cost.min()) / (cost.max() - cost.min())
    expected = ot.sinkhorn(
        np.full(9, 1 / 9), np.full(12, 1 / 12), scaled.numpy(), 0.03, method="sinkhorn_log", numItermax=20_000,
        stopThr=1e-11,
    )  # fmt: skip
    assert_close(solve(cost, "sinkhorn", 0.03), torch.from_numpy(expected), rtol=0, atol=1e-6)


def test_less_regularisation_is_sharper() -> None:
    cost = torch.rand(8, 8, dtype=torch.float64)
    sharp, soft = solve(cost, "sinkhorn", 0.01), solve(cost, "sinkhorn", 1.0)
    assert float((sharp * cost).sum()) < float((soft * cost).sum())
    assert float(sharp.max()) > 2 * float(soft.max())


def test_the_quick_coupling_is_close_to_the_exact_one() -> None:
    cost = torch.rand(3, 8, 10, dtype=torch.float64)
    assert_close(soften(cost, 0.1).double(), solve(cost, "sinkhorn", 0.1), rtol=0, atol=2e-3)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_quick_coupling_stays_in_range_when_it_is_sharp(scale: float) -> None:
    cost = torch.cat([torch.rand(2, 40, 30), torch.rand(2, 40, 1) + torch.rand(2, 1, 30)])
    cost[1, :, 3] -= 5  # all want one unit
    plan = soften(scale * (cost + 3), 0.01)
    assert bool(torch.isfinite(plan).all())
    assert_close(plan.sum(-2), torch.full((4, 30), 1 / 30), rtol=1e-4, atol=0)
    exact = solve(cost, "sinkhorn", 0.01)
    assert_close((plan * cost).sum((-2, -1)), (exact * cost).sum((-2, -1)), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("solver", SOLVERS)
def test_constant_and_one_element_costs_work(solver: Solver) -> None:
    assert_close(solve(torch.full((1, 1), 7.0), solver), torch.ones(1, 1), rtol=0, atol=0)
    plan = solve(torch.full((2, 3), 7.0), solver)
    assert_close(plan.sum(1), torch.full((2,), 0.5), rtol=0, atol=1e-6)
    assert solve(torch.zeros(0, 3, 3), solver).shape == (0, 3, 3)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_cost_that_is_not_finite_is_refused(solver: Solver) -> None:
    cost = torch.rand(2, 4, 4)
    cost[1, 2, 3] = float("nan")
    with pytest.raises(DataError, match=r"1 of 32 matching costs are not finite"):
        solve(cost, solver)


def test_an_unknown_solver_and_a_bad_regularisation_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown solver 'magic'; valid: assignment, emd, sinkhorn"):
        solve(torch.rand(2, 2), "magic")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="positive regularization, got 0"):
        solve(torch.rand(2, 2), "sinkhorn", 0)
