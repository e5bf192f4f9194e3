"""The coordinate driver: one axis after another is solved with the maps of all other axes as they are.

An axis whose map depends on another one (units inside heads) is solved for all pairs at once; the outer axis is then
solved with the inner optimum values as its likeness. Where likeness depends on other axes' maps, the first sweeps are
soft, with falling regularisation. Sources: Ainsworth et al., Git Re-Basin (arXiv 2209.04836), algorithm 1, which the
nested case generalises; Gold and Rangarajan, A graduated assignment algorithm for graph matching (PAMI 1996).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from graphfuse.config import FuseConfig, Measure
from graphfuse.costs.evidence import Evidence, Problem
from graphfuse.costs.ground import gains, plain
from graphfuse.costs.moments import likeness, linear_likeness
from graphfuse.maps import AxisMap, Maps
from graphfuse.scratch import ROOM, Place, Scratch
from graphfuse.symmetry import Axis
from graphfuse.transport.family import Agreement, Quality, agreement, optimum
from graphfuse.transport.procrustes import rotates, rotation
from graphfuse.transport.softening import soften
from graphfuse.transport.solvers import assign, couple
from graphfuse.transport.table import Compared, Seen, quality_of, table_of

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


@dataclass(eq=False)
class State:
    """Maps so far, and what each axis' last visit showed: the optimum of each member of a family, and its quality.

    No table of likeness outlives the visit that made it.
    """

    maps: MutableMapping[int, AxisMap] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    quality: dict[int, Quality] = field(default_factory=dict)
    still: bool = False
    kinds: dict[int, tuple[str, torch.dtype]] = field(default_factory=dict)

    def put(self, found: AxisMap) -> None:
        """Take a new map; ``still`` says whether all since it was set were as before."""
        kind = found.kind, found.values.dtype
        alike = self.still and self.kinds.get(found.axis) == kind  # else there is no need to read what was before
        self.still = alike and torch.equal(self.maps[found.axis].values, found.values)
        self.kinds[found.axis], self.maps[found.axis] = kind, found


def coordinate(
    problem: Problem,
    evidence: Evidence,
    config: FuseConfig,
    measure: Measure,
    importance: Evidence | None = None,
    start: Maps | None = None,
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
    start : mapping, optional
        Maps of all axes to begin with, where likeness depends on other axes' maps; no sweep is soft then.

    Returns
    -------
    Solution
        One-to-one maps are in index form.
    """
    with Scratch(room_for(problem)) as scratch:
        state, solver = State(Shelved(scratch)), Solver(config, importance)
        return _coordinate(problem, evidence, config, measure, state, solver, start)


def _coordinate(
    problem: Problem,
    evidence: Evidence,
    config: FuseConfig,
    measure: Measure,
    state: State,
    solver: Solver,
    start: Maps | None,
) -> Solution:
    warm = evidence.repeats and start is not None and all(axis.id in start for axis in problem.axes)
    state.maps.update(start if warm and start is not None else {})
    soft = _schedule(config) if evidence.repeats and not warm else ()
    pending = [] if warm else list(problem.axes)
    while pending:
        for axis in evidence.ready(pending, state.maps):
            visit(problem, evidence, measure, axis, state, solver.at(soft[0] if soft else None))
            pending.remove(axis)
    sweeps, best, order = 0 if warm else 1, float("-inf"), random.Random(config.seed)
    while evidence.repeats and (sweeps < config.sweeps or not state.quality):
        now = solver.at(soft[sweeps] if sweeps < len(soft) else None)
        state.still = True
        for family in order.sample(problem.families, len(problem.families)):
            for axis in family:
                visit(problem, evidence, measure, axis, state, now)
        sweeps += 1
        total = _objective(problem, state)
        if sweeps > len(soft) + 1 and (total - best <= config.tolerance * abs(total) or state.still):
            break
        best = total if sweeps > len(soft) else best
    quality = {id: agreement(problem, state.maps, id, found) for id, found in state.quality.items()}
    return Solution(dict(state.maps), quality, sweeps, _objective(problem, state))


def room_for(problem: Problem) -> int:
    """Bytes of tables that may wait in memory: an eighth of the largest cost matrix."""
    return max(ROOM, problem.largest)


class Shelved(MutableMapping[int, AxisMap]):
    """Maps whose plans and matrices lie elsewhere while they are not asked for."""

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self._maps: dict[int, AxisMap] = {}
        self._places: dict[int, Place] = {}

    def __getitem__(self, id: int) -> AxisMap:
        found = self._maps[id]
        return replace(found, **{found.kind: self._places[id].read()}) if found.values.is_meta else found

    def __setitem__(self, id: int, found: AxisMap) -> None:
        values = found.values
        if not found.hard:
            place = self._places.get(id)
            if place is None or (place.shape, place.dtype) != (values.shape, values.dtype):
                place = self._places[id] = self._scratch.place(values.shape, values.dtype, values.device)
            place.write(values)
            found = replace(found, **{found.kind: torch.empty_like(values, device="meta")})
        self._maps[id] = found

    def __delitem__(self, id: int) -> None:
        del self._maps[id]

    def __iter__(self) -> Iterator[int]:
        return iter(self._maps)

    def __len__(self) -> int:
        return len(self._maps)


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
        return self.config.rotating and rotates(axis)

    def gain(self, axis: Axis) -> Compared:
        """What matching two units gains, by one body of evidence."""
        return linear_likeness if self.rotates(axis) else partial(gains, config=self.config.cost)

    def likeness(self, axis: Axis) -> Compared:
        """What matches are told in."""
        return linear_likeness if self.rotates(axis) else likeness

    def spends(self, problem: Problem, axis: Axis) -> bool:
        """Whether costs are written over: in soft sweeps, unless another axis asks what this one reached."""
        return self.soft is not None and not self.rotates(axis) and not problem.context(axis)

    def assigns(self, axis: Axis, shape: Sequence[int]) -> bool:
        """Whether units are matched one to one."""
        one_to_one = self.config.for_axis(axis.name, axis.role).solver == "assignment" and shape[-1] == shape[-2]
        return one_to_one and self.soft is None and self.importance is None and not self.rotates(axis)

    def __call__(self, problem: Problem, axis: Axis, cost: Tensor) -> AxisMap:
        """The map of least cost."""
        context, along = problem.context(axis), problem.along(axis)
        if self.rotates(axis):
            return rotation(axis, -cost, context, along)
        mu, nu = marginals(self.importance, axis)
        if self.soft is not None:
            plan = soften(cost, self.soft, mu, nu, spend=self.spends(problem, axis)).bfloat16()
            return AxisMap(axis.id, context, along, plan=plan)
        settings = self.config.for_axis(axis.name, axis.role)
        if settings.solver == "assignment" and cost.shape[-1] == cost.shape[-2] and mu is None:
            return AxisMap(axis.id, context, along, index=assign(cost))
        return AxisMap(axis.id, context, along, plan=couple(cost, settings, mu, nu).float())


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
        state.put(problem.start(axis))
        return
    shape = (*problem.lead(axis), problem.sizes_a[axis.id], problem.sizes_b[axis.id])
    values = {id: state.values[id] for id in inner}
    exact = solver.assigns(axis, shape)
    reads = exact and plain(solver.config.cost) and (measure == "correlation" or (len(entries) == 1 and not inner))
    seen = Seen(measure if reads else None, solver.likeness(axis) if solver.soft is None else None)
    gain = solver.gain(axis)
    table = table_of(problem, axis, state.maps, entries, measure, values, shape, gain, wide=exact, seen=seen)
    solved = solver(problem, axis, table.neg_())
    state.put(solved)
    if solver.spends(problem, axis):
        return
    state.values[axis.id] = -optimum(solved, table)
    if solver.soft is None:
        told = {id: state.quality[id] for id in inner}
        state.quality[axis.id] = quality_of(problem, axis, state.maps, seen, told, table)


def _objective(problem: Problem, state: State) -> float:
    """What the outermost axes' last visits reached; an inner axis' optimum is part of it."""
    outer = (id for id in state.values if not problem.context(problem.moving[id]))
    return sum(float(state.values[id].mean()) for id in outer)
