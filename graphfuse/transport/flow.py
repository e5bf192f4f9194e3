"""The flow driver: maps on the edges of the graph, in one pass in its order.

Every producer makes its own map from its incoming ones, by what it alone shows: the activations that it writes, or
its rows. At a sum the maps of skip and branch are combined by policy. Source: Imfeld et al., Transformer Fusion with
Optimal Transport (arXiv 2310.05719), section 4.

What differs from there: a coupling acts with two normalisations (:mod:`graphfuse.maps`) instead of one scaled by n, so
that other widths keep the scale of activations; weights in a combination are those of the target's units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from graphfuse.axes import walk_leaves
from graphfuse.config import FuseConfig, Measure
from graphfuse.costs.evidence import Evidence, Problem
from graphfuse.costs.magnitude import Place
from graphfuse.maps import AxisMap
from graphfuse.transport.coordinate import Solution, Solver, State, visit
from graphfuse.transport.family import agreement
from graphfuse.transport.wires import Term, Wire, Wiring


def flow(
    problem: Problem,
    wiring: Wiring,
    evidence: Evidence,
    config: FuseConfig,
    measure: Measure,
    sizes: Mapping[Place, Tensor] | None = None,
    importance: Evidence | None = None,
) -> Solution:
    """Match all wires of a graph.

    Parameters
    ----------
    problem : Problem
        Its axes are the wires'.
    wiring : Wiring
    evidence : Evidence
        Of each wire, by its producers alone.
    config : FuseConfig
        Solver, regularisation, and the policy at sums.
    measure :
        How moments become likeness. A wire of one number for each unit (a class token) is compared by distance, as
        correlation says nothing there.
    sizes : mapping, optional
        Mean absolute activations of the operands of sums, for the weighted policies.
    importance : Evidence, optional
        Whose norms of units are their masses; by default all units have the same.

    Returns
    -------
    Solution
        A map for each wire. The combined ones have no agreement of their own.
    """
    state, solver = State(), Solver(config.model_copy(update={"driver": "flow"}), importance)
    made = {wire.axis.id: wire for wire in wiring.wires if wire.join is None}
    pending = [wire.axis for wire in made.values()]
    for wire in wiring.wires:
        id = wire.axis.id
        if wire.join is not None:
            state.maps[id] = _joined(wire, state.maps, config, sizes or {})
            continue
        evidence.ready(pending if len(pending) == len(made) else [wire.axis], state.maps)
        lonely = measure in ("correlation", "cosine") and not wire.axis.context and _lonely(wire, wiring)
        visit(problem, evidence, "squared" if lonely else measure, wire.axis, state, solver)
        pending.remove(wire.axis)
        for group in wiring.ties:
            if id in group and all(other in state.maps for other in group):
                share = 1 / len(group)
                mean = mixed([state.maps[other] for other in group], [share] * len(group))
                state.maps.update((other, replace(mean, axis=other)) for other in group)
    quality = {id: agreement(problem, state.maps, id, found) for id, found in state.quality.items()}
    return Solution(state.maps, quality, 1, sum(float(value.mean()) for value in state.values.values()))


def places_of(wiring: Wiring, config: FuseConfig) -> set[Place]:
    """Where the weighted policies need to know how large activations are."""
    if not config.flow.weighs:
        return set()
    joins = [(wire.axis.id, wire.join) for wire in wiring.wires if wire.join is not None]
    return {(term.node, term.wire) for _, join in joins for term in (join.skip, join.branch)}


def _joined(wire: Wire, maps: Mapping[int, AxisMap], config: FuseConfig, sizes: Mapping[Place, Tensor]) -> AxisMap:
    """The map of a sum."""
    assert wire.join is not None
    skip, branch = maps[wire.join.skip.wire], maps[wire.join.branch.wire]
    match config.flow.residual:
        case "only_residual":
            found = skip
        case "no_residual":
            found = branch
        case "weighted_scalar" | "weighted_matrix":
            share = _share(wire.join.skip, wire.join.branch, sizes, config.flow.residual == "weighted_matrix", skip)
            found = mixed([skip, branch], [share, 1 - share])
        case _:
            found = mixed([skip, branch], [0.5, 0.5])
    return replace(found, axis=wire.axis.id)


def _share(skip: Term, branch: Term, sizes: Mapping[Place, Tensor], each: bool, like: AxisMap) -> Tensor:
    """E|a_r| / (E|a_r| + E|a_i|), for each unit or for all together; half where both are zero or unknown."""
    one, two = sizes.get((skip.node, skip.wire)), sizes.get((branch.node, branch.wire))
    if one is None or two is None:
        return torch.tensor(0.5)
    if not each:
        one, two = one.mean(), two.mean()
    total = one + two
    share = torch.where(total > 0, one / torch.where(total > 0, total, 1.0), 0.5)
    if not each:
        return share.float()
    lead = len(like.along) + len(like.context)  # of A's indices; those of B follow, then the units of A and of B
    shape = (*share.shape[:lead], *([1] * len(like.context)), share.shape[-1], 1)
    return share.reshape(shape).float()


def mixed(maps: Sequence[AxisMap], shares: Sequence[Tensor | float]) -> AxisMap:
    """The weighted sum of couplings; the first map itself when all are the same permutation."""
    first = maps[0]
    if first.index is not None and all(x.index is not None and torch.equal(x.index, first.index) for x in maps):
        return first
    plans = [share * found.coupling() for share, found in zip(shares, maps, strict=True)]
    return replace(first, index=None, plan=torch.stack(plans).sum(0))


def _lonely(wire: Wire, wiring: Wiring) -> bool:
    """Whether all that is known of a wire's units is one number each."""
    inside = {wire.axis.id, *wire.axis.context}
    labels = [wiring.labels[name] for name in wire.tensors]
    return not wire.sites and all(
        size == 1 or inside.intersection(leaf.id for leaf in walk_leaves(dim))
        for label in labels
        for size, dim in zip(label.shape, label.dims, strict=True)
    )
