"""Couplings: marginals, optimality, batches against single problems, and degenerate costs."""

from __future__ import annotations

import math
from typing import Any, get_args

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
from graphfuse.maps import AxisMap
from graphfuse.transport import sinkhorn
from graphfuse.transport.sinkhorn import balanced, unbalanced
from graphfuse.transport.softening import soften
from graphfuse.transport.solvers import assign, solve

SOLVERS = get_args(Solver)
BALANCED = [name for name in SOLVERS if name != "unbalanced"]


@st.composite
def problems(draw: st.DrawFn) -> Tensor:
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(1, 6)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    scale = 10 ** draw(st.floats(-6, 6))
    return torch.randn(shape, generator=generator, dtype=torch.float64) * scale


@given(problems(), st.sampled_from(BALANCED))
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
    for solver in BALANCED:
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
    mu, nu = torch.rand(3, 8) + 0.1, torch.rand(10) + 0.1
    exact = solve(cost, "sinkhorn", 0.1, mu, nu)
    assert_close(soften(cost, 0.1, mu, nu).double(), exact, rtol=0, atol=2e-3)
    assert float((exact - solve(cost, "sinkhorn", 0.1)).abs().max()) > 1e-2


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
    with pytest.raises(
        ConfigError, match="unknown solver 'magic'; valid: assignment, emd, sinkhorn, unbalanced, partial"
    ):
        solve(torch.rand(2, 2), "magic")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="positive regularization, got 0"):
        solve(torch.rand(2, 2), "sinkhorn", 0)
    with pytest.raises(ConfigError, match="between 0 and 1, got regularization 2"):
        solve(torch.rand(2, 2), "sinkhorn", 2, scale="entropy")


def entropies(plan: Tensor) -> Tensor:
    """Mean entropy of the rows, relative to that of uniform ones."""
    rows = plan / plan.sum(-1, keepdim=True)
    return -(rows * rows.clamp(min=1e-300).log()).sum(-1).mean(-1) / math.log(plan.shape[-1])


@given(problems(), st.sampled_from([0.1, 0.01, 1e-3, 1e-4]))
def test_entropic_plans_fulfil_the_conditions_of_the_optimum(cost: Tensor, strength: float) -> None:
    """Marginals, and log plan + cost / regularization the sum of a row's and a column's number."""
    k, n, m = cost.shape
    low, high = cost.amin((-2, -1), keepdim=True), cost.amax((-2, -1), keepdim=True)
    scaled = (cost - low) / (high - low).clamp(min=1e-300)
    mu, nu = (torch.rand(k, size, dtype=torch.float64) + 0.1 for size in (n, m))
    mu, nu = mu / mu.sum(-1, keepdim=True), nu / nu.sum(-1, keepdim=True)
    plan = balanced(scaled, scaled.new_full((k,), strength), mu, nu)
    assert_close(plan.sum(-1), mu, rtol=0, atol=1e-8)
    assert_close(plan.sum(-2), nu, rtol=0, atol=1e-8)
    if strength >= 0.01:  # below, most of a plan is below the smallest number there is
        rest = plan.log() + scaled / strength
        rest = rest - rest.mean(-1, keepdim=True)
        assert_close(rest, rest.mean(-2, keepdim=True).expand_as(rest), rtol=0, atol=1e-6)


def test_little_regularisation_takes_no_thousands_of_rounds() -> None:
    """Rounds of Sinkhorn alone are still off by a share of the mass after 2,000 (more than 141 s on a transformer)."""
    points = torch.randn(2, 64, 8, dtype=torch.float64)
    cost = torch.cdist(points[0], points[1]).square()
    cost = ((cost - cost.min()) / (cost.max() - cost.min())).unsqueeze(0)
    even = cost.new_full((1, 64), 1 / 64)
    passes = 0

    def counted(*args: Any) -> Any:
        nonlocal passes
        passes += 1
        return plan_of(*args)

    plan_of = sinkhorn._plan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sinkhorn, "_plan", counted)
        plan = balanced(cost, cost.new_full((1,), 1e-3), even, even)
    assert_close(plan.sum(-2), even, rtol=0, atol=1e-9)
    assert passes < 300
    slow = ot.sinkhorn(even[0].numpy(), even[0].numpy(), cost[0].numpy(), 1e-3, method="sinkhorn_log", numItermax=300,
                       warn=False)  # fmt: skip
    assert np.abs(np.asarray(slow).sum(0) - 1 / 64).sum() > 1e-4


def test_an_absolute_regularisation_is_in_units_of_the_cost() -> None:
    cost = torch.rand(2, 6, 7, dtype=torch.float64)
    span = (cost.amax((-2, -1)) - cost.amin((-2, -1))).tolist()
    for strength in (0.02, 0.3):
        plan = solve(cost, "sinkhorn", strength, scale="absolute")
        single = torch.stack([solve(c, "sinkhorn", strength / s) for c, s in zip(cost, span, strict=True)])
        assert_close(plan, single, rtol=0, atol=1e-7)
    assert float(entropies(solve(10 * cost, "sinkhorn", 0.1, scale="absolute")).max()) < float(
        entropies(solve(cost, "sinkhorn", 0.1, scale="absolute")).min()
    )


def test_an_entropy_aimed_at_is_met() -> None:
    cost = torch.rand(5, 12, 12, dtype=torch.float64) * torch.tensor([1e-3, 1, 5, 70, 1e4]).view(5, 1, 1)
    for target in (0.1, 0.4, 0.9):
        found = entropies(solve(cost, "sinkhorn", target, scale="entropy"))
        assert_close(found, torch.full((5,), target, dtype=torch.float64), rtol=0, atol=5e-3)


def test_unbalanced_plans_are_those_of_the_reference() -> None:
    cost = torch.rand(9, 12, dtype=torch.float64)
    mu, nu = torch.rand(9, dtype=torch.float64) + 0.1, torch.rand(12, dtype=torch.float64) + 0.1
    mu, nu = mu / mu.sum(), nu / nu.sum()
    expected = ot.unbalanced.sinkhorn_unbalanced(
        mu.numpy(), nu.numpy(), cost.numpy(), 0.05, 0.5, reg_type="kl", numItermax=50_000, stopThr=1e-13
    )
    strength, mass = (cost.new_tensor([value]) for value in (0.05, 0.5))
    plan = unbalanced(cost[None], strength, mu[None], nu[None], mass, 1e-10)
    assert_close(plan[0], torch.from_numpy(expected), rtol=0, atol=1e-7)


def test_unbalanced_plans_leave_out_what_fits_nowhere_but_never_a_whole_row() -> None:
    cost = 1 - torch.eye(6, dtype=torch.float64)
    cost[5] = 40.0
    strict, free = (solve(cost, "unbalanced", 0.05, scale="absolute", mass=mass) for mass in (1e4, 0.5))
    assert_close(strict.sum(-1), torch.full((6,), 1 / 6, dtype=cost.dtype), rtol=0, atol=1e-3)
    assert float(free[5].sum()) < 1e-6
    assert float(free.sum()) == pytest.approx(1)
    rows = AxisMap(0, plan=free).rows(torch.float64)
    assert_close(rows.sum(-1), torch.ones(6, dtype=cost.dtype), rtol=0, atol=1e-9)


def test_partial_plans_match_what_fits_best_and_spread_the_rest() -> None:
    cost = 1 - torch.eye(5, dtype=torch.float64)
    cost[3:, 3:] = torch.tensor([[9.0, 8.0], [8.5, 9.5]], dtype=torch.float64)
    cost[3:, :3] = cost[:3, 3:] = 9.0
    plan = solve(cost, "partial", share=0.6)
    assert_close(plan[:3, :3], torch.eye(3, dtype=cost.dtype) / 5, rtol=0, atol=1e-9)
    assert_close(plan[3:, 3:], torch.full((2, 2), 0.1, dtype=cost.dtype), rtol=0, atol=1e-9)
    assert_close(solve(cost, "partial", share=1.0), solve(cost, "emd"), rtol=0, atol=1e-9)


def test_marginals_of_each_problem_are_its_own_and_units_without_mass_have_partners() -> None:
    mu = torch.tensor([[0.0, 1.0, 1.0], [2.0, 1.0, 1.0]])
    for solver in SOLVERS:
        plan = solve(torch.rand(2, 3, 4), solver, mu=mu, nu=torch.ones(4))
        rows = AxisMap(0, (), (9,), plan=plan.double()).rows(torch.float64)
        assert_close(rows.sum(-1), torch.ones(2, 3, dtype=torch.float64), rtol=0, atol=1e-4)
        if solver != "unbalanced":
            assert_close(plan.sum(-1), mu / mu.sum(-1, keepdim=True), rtol=0, atol=1e-5)
