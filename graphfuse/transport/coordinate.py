"""The coordinate driver: one axis after another is solved with the maps of all other axes as they are.

An axis whose map depends on another one (units inside heads) is solved for all pairs at once; the outer axis is then
solved with the inner optimum values as its likeness. Where likeness depends on other axes' maps, the first sweeps are
soft, with falling regularisation. Sources: Ainsworth et al., Git Re-Basin (arXiv 2209.04836), algorithm 1, which the
nested case generalises; Gold and Rangarajan, A graduated assignment algorithm for graph matching (PAMI 1996).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from graphfuse.config import FuseConfig
from graphfuse.costs.evidence import Evidence, Problem
from graphfuse.costs.ground import gains
from graphfuse.costs.moments import Measure, Moments, likeness, linear_likeness
from graphfuse.maps import AxisMap
from graphfuse.symmetry import Axis
from graphfuse.transport.family import Agreement, agreement, optimum, seen_from
from graphfuse.transport.procrustes import rotates, rotation
from graphfuse.transport.solvers import assign, couple, soften

_LEAST_MASS = 1e-3  # of a unit, relative to the mean


@dataclass(frozen=True, eq=False)
class Solution:
    """What a driver found: a map for each axis, how well it fits, and how many sweeps that took.

    An axis that nothing was known about keeps its order and has no agreement.
    """

    maps: Mapping[int, AxisMap]
    agreement: Mapping[int, Agreement]
    sweeps: int
    objective: float


_Table = Literal["gain", "correlation"]
"""What is optimised, and what matches are told in."""


@dataclass(eq=False)
class State:
    """Maps so far, and what each axis' last visit showed.

    ``values`` holds the optimum of each member of a family, in gains and in correlations; ``tables`` the correlations
    of its units, and ``weights`` how many correlations were summed up in each.
    """

    maps: dict[int, AxisMap] = field(default_factory=dict)
    values: dict[int, dict[_Table, Tensor]] = field(default_factory=dict)
    tables: dict[int, Tensor] = field(default_factory=dict)
    weights: dict[int, float] = field(default_factory=dict)
    objective: dict[int, float] = field(default_factory=dict)


def coordinate(
    problem: Problem, evidence: Evidence, config: FuseConfig, measure: Measure, importance: Evidence | None = None
) -> Solution:
    """Match all axes of a problem.

    Parameters
    ----------
    problem : Problem
    evidence : Evidence
        Where the likeness of units comes from. In the first sweep it says which axes come next; later sweeps visit
        families of axes in an order drawn from the seed, inner axes first.
    config : FuseConfig
        Solver, regularisation, sweeps, tolerance, seed, and what is said of single roles.
    measure :
        How moments become likeness.
    importance : Evidence, optional
        Whose norms of units are their masses; by default all units have the same.

    Returns
    -------
    Solution
        One-to-one maps are in index form.
    """
    state, solver = State(), Solver(config, importance)
    soft = _schedule(config) if evidence.repeats else ()
    pending = list(problem.axes)
    while pending:
        for axis in evidence.ready(pending, state.maps):
            visit(problem, evidence, measure, axis, state, solver.at(soft[0] if soft else None))
            pending.remove(axis)
    sweeps, best, order = 1, float("-inf"), random.Random(config.seed)
    while evidence.repeats and sweeps < config.sweeps:
        before, now = dict(state.maps), solver.at(soft[sweeps] if sweeps < len(soft) else None)
        for family in order.sample(problem.families, len(problem.families)):
            for axis in family:
                visit(problem, evidence, measure, axis, state, now)
        sweeps += 1
        total = _objective(problem, state)
        if sweeps > len(soft) + 1 and (total - best <= config.tolerance * abs(total) or _same(before, state.maps)):
            break
        best = total if sweeps > len(soft) else best
    quality = {id: agreement(problem, state.maps, id, state.tables[id], state.weights[id]) for id in state.tables}
    return Solution(state.maps, quality, sweeps, _objective(problem, state))


def _schedule(config: FuseConfig) -> tuple[float, ...]:
    """Regularisations of the soft first sweeps, at most half of all and above that of the solver itself."""
    entropic = config.solver in ("sinkhorn", "unbalanced") and config.scale == "range"
    floor = config.regularization if entropic else 0.0
    return tuple(value for value in config.anneal if value > floor)[: config.sweeps // 2]


@dataclass(frozen=True)
class Solver:
    """The solver of each axis; ``soft`` is set during the soft first sweeps."""

    config: FuseConfig
    importance: Evidence | None = None
    soft: float | None = None

    def at(self, soft: float | None) -> Solver:
        return replace(self, soft=soft)

    def rotates(self, axis: Axis) -> bool:
        """Whether the axis is aligned by a rotation."""
        return self.config.symmetry == "full" and rotates(axis)

    def table(self, axis: Axis, entry: Moments, measure: Measure, name: _Table) -> Tensor:
        """What matching two units gains by one body of evidence, or their correlation."""
        if self.rotates(axis):
            return linear_likeness(entry, measure if name == "gain" else "correlation")
        return gains(entry, measure, self.config.cost) if name == "gain" else likeness(entry, "correlation")

    def __call__(self, problem: Problem, axis: Axis, gain: Tensor) -> AxisMap:
        """The map of largest gain."""
        context, along = problem.context(axis), problem.along(axis)
        if self.rotates(axis):
            return rotation(axis, gain, context, along)
        mu, nu = marginals(self.importance, axis)
        if self.soft is not None:
            return AxisMap(axis.id, context, along, plan=soften(-gain, self.soft, mu, nu))
        settings = self.config.for_axis(axis.name, axis.role)
        if settings.solver == "assignment" and gain.shape[-1] == gain.shape[-2] and mu is None:
            return AxisMap(axis.id, context, along, index=assign(-gain))
        return AxisMap(axis.id, context, along, plan=couple(-gain, settings, mu, nu).float())


def marginals(importance: Evidence | None, axis: Axis) -> tuple[Tensor | None, Tensor | None]:
    """Masses of the units of A and of B in proportion to their norms; none without mass, so that all have partners."""
    found = importance.norms(axis) if importance is not None else None
    if found is None:
        return None, None
    left, right = (torch.maximum(norm, _LEAST_MASS * norm.mean(-1, keepdim=True)) for norm in found)
    return left, right


def visit(problem: Problem, evidence: Evidence, measure: Measure, axis: Axis, state: State, solver: Solver) -> None:
    """Solve one axis with the maps of the others as they are."""
    entries = evidence.moments(axis, state.maps)
    inner = [id for id in problem.nearest[axis.id] if id in state.values]
    if not entries and not inner:
        state.maps[axis.id] = problem.start(axis)
        return
    tables: dict[_Table, Tensor] = {}
    shape = (*problem.lead(axis), problem.sizes_a[axis.id], problem.sizes_b[axis.id])
    for name in ("gain", "correlation"):
        parts = [entry.weight * solver.table(axis, entry, measure, name) for entry in entries]
        parts += [seen_from(problem, state.maps, axis, problem.moving[id], state.values[id][name]) for id in inner]
        tables[name] = sum(parts, torch.zeros(())).expand(shape)
    solved = solver(problem, axis, tables["gain"])
    state.maps[axis.id] = solved
    state.values[axis.id] = {name: optimum(solved, table) for name, table in tables.items()}
    state.objective[axis.id] = float(state.values[axis.id]["gain"].mean())
    state.tables[axis.id] = tables["correlation"]
    state.weights[axis.id] = sum(entry.weight for entry in entries) + sum(
        problem.sizes_a[id] * state.weights[id] for id in inner
    )


def _objective(problem: Problem, state: State) -> float:
    """What the outermost axes' last visits reached; an inner axis' optimum is part of it."""
    return sum(value for id, value in state.objective.items() if not problem.context(problem.moving[id]))


def _same(before: Mapping[int, AxisMap], after: Mapping[int, AxisMap]) -> bool:
    return all(torch.equal(before[id].values, found.values) for id, found in after.items())
