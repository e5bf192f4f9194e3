"""A model written into another width: the units of each axis are merged or doubled by how alike they are.

Sources: Imfeld et al., Transformer Fusion with Optimal Transport (arXiv 2310.05719), section 5.3, compresses a model by
mapping it onto a narrower one; here the narrower one needs no training, as its units are chosen among the wide one's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from graphfuse.aligned import Aligned, Alignment
from graphfuse.alignment import Prepared, prepare
from graphfuse.capture import duplicate
from graphfuse.config import FuseConfig
from graphfuse.correspond import correspond
from graphfuse.costs.evidence import Evidence, Problem
from graphfuse.costs.ground import gains
from graphfuse.costs.sources import Comparison, compared
from graphfuse.costs.weights import WeightEvidence
from graphfuse.errors import CorrespondenceError
from graphfuse.lockstep import Lockstep
from graphfuse.maps import AxisMap
from graphfuse.matching.stacks import unequal
from graphfuse.scratch import ROOM, Scratch
from graphfuse.symmetry import Axis
from graphfuse.transport.coordinate import marginals
from graphfuse.transport.family import optimum
from graphfuse.transport.selection import merging, representatives
from graphfuse.transport.solvers import assign
from graphfuse.transport.table import table_of


def resize(
    model: nn.Module,
    into: nn.Module,
    args: tuple[Any, ...] | Tensor,
    kwargs: Mapping[str, Any] | None,
    data: Iterable[Any] | None,
    config: FuseConfig,
    rules: Iterable[Any] = (),
) -> tuple[Prepared, Alignment]:
    """Relate a model to one of its architecture with other widths, whose weights do not count.

    Returns
    -------
    Prepared, Alignment
        Of [a copy of ``into``, model], the first being the target.

    Raises
    ------
    CorrespondenceError
        The two are not of one architecture, or differ along an axis that may not move.
    """
    method = "default" if config.method == "auto" else config.method
    what = "weights" if config.refine.what in ("weights", "both") else "none"  # these maps are not to be learned
    refine = config.refine.model_copy(update={"what": what})
    settings = config.model_copy(
        update={
            "target": 0,
            "weights": (0.0, 1.0),
            "scheme": "anchor",
            "method": method,
            "refine": refine,
            "symmetry": "permutation",
            "driver": "coordinate",
        }
    )
    if unequal(into, model):
        raise _other_depth()
    blank = duplicate(into).eval()
    prepared = prepare([blank, model], args, kwargs, data=data, config=settings, rules=rules)
    relation = prepared.correspondence
    if prepared.forms[1].depth is not None:
        raise _other_depth()
    narrow, wide = relation.sizes
    with Scratch(ROOM) as scratch:
        maps = _Resizing.of(prepared, scratch).maps()
    alignment = Alignment(
        target=0,
        method=prepared.method,
        axes=relation.free,
        labels=dict(relation.graph.tensors),
        aliases=dict(relation.graph.captured.aliases),
        models=(Aligned(dict(narrow)), Aligned(dict(wide), maps)),
        notes=(*prepared.notes, *relation.notes, *prepared.lockstep.notes),
    )
    return prepared, alignment


def _other_depth() -> CorrespondenceError:
    return CorrespondenceError(
        "into has another depth than the models to be fused.\n  what to do: give it the target's depth; only its "
        "widths may differ"
    )


@dataclass(frozen=True, eq=False)
class _Resizing:
    """A model's axes matched with themselves (``problem``, in the model's own axis numbers), and the sizes wanted."""

    problem: Problem
    evidence: Evidence
    importance: Evidence | None
    config: FuseConfig
    wanted: Mapping[int, int]
    names: Mapping[int, int]  # the model's axis number -> that of the model to be filled

    @classmethod
    def of(cls, prepared: Prepared, scratch: Scratch) -> _Resizing:
        """The axes that are free in both models, and what is known of the second one's units."""
        relation, model, state = prepared.correspondence, prepared.models[1], prepared.states[1]
        own = relation.axes[1]
        sizes = {own[id]: size for id, size in relation.sizes[1].items() if id in own}
        axes = tuple(
            replace(axis, id=own[axis.id], size=sizes[own[axis.id]], context=tuple(own[key] for key in axis.context))
            for axis in relation.free
        )
        problem, graph, config = Problem(axes, sizes, sizes), relation.graphs[1], prepared.config
        weights = WeightEvidence(problem, compared(graph, graph.tensors, config), state, state)
        pair = Lockstep([model, model], correspond([graph, graph], 0), [state, state], prepared.lockstep.retrace)
        evidence, importance = Comparison.of(config, prepared.method, pair, prepared.data).evidence(
            problem, weights, pair, scratch
        )
        wanted = {own[axis.id]: axis.size for axis in relation.free}
        return cls(problem, evidence, importance, config, wanted, {other: id for id, other in own.items()})

    def maps(self) -> dict[int, AxisMap]:
        """Axis number of the model to be filled -> coupling of its units with the model's."""
        tables = self._tables() if any(self._changes(axis) for axis in self.problem.axes) else {}
        masses = {id: self._mass(self.problem.moving[id]) for id in tables}
        chosen = {
            id: representatives(table, self.wanted[id], masses[id]) for id, table in tables.items() if table.dim() == 2
        }
        found, moving = {}, self.problem.moving
        for axis in self.problem.axes:
            context, along = self.problem.context(axis), self.problem.along(axis)
            names = (self.names[axis.id], self._named(context), self._named(along))
            if not any(self._changes(each) for each in (axis, *(moving[key] for key in context))):
                found[names[0]] = AxisMap(*names, index=self.problem.start(axis).index)
            elif context or along:
                found[names[0]] = AxisMap(*names, plan=self._family(axis, tables[axis.id], masses[axis.id], chosen))
            else:
                found[names[0]] = AxisMap(*names, plan=merging(tables[axis.id], chosen[axis.id], masses[axis.id]))
        return found

    def _changes(self, axis: Axis) -> bool:
        return self.wanted[axis.id] != self.problem.sizes_b[axis.id]

    def _mass(self, axis: Axis) -> Tensor | None:
        """How much each unit counts, (\\*lead, units), for each pair of contexts; None: all the same."""
        _, mass = marginals(self.importance, axis)
        return None if mass is None else mass.expand(*self.problem.lead(axis), self.problem.sizes_b[axis.id])

    def _named(self, ids: Sequence[int]) -> tuple[int, ...]:
        return tuple(self.names[id] for id in ids)

    def _tables(self) -> dict[int, Tensor]:
        """Likeness of each axis' units, in all pairs of contexts: by default minus squared distances."""
        measure = "squared" if self.config.metric == "auto" else self.config.metric
        problem, kept = self.problem, {axis.id: self.problem.start(axis) for axis in self.problem.axes}
        gain = partial(gains, config=self.config.cost)
        tables, values = dict[int, Tensor](), dict[int, Tensor]()
        pending = list(problem.axes)
        while pending:
            for axis in self.evidence.ready(pending, kept):
                pending.remove(axis)
                entries = self.evidence.moments(axis, kept)
                inner = {id: values[id] for id in problem.nearest[axis.id] if id in values}
                shape = (*problem.lead(axis), problem.sizes_a[axis.id], problem.sizes_b[axis.id])
                if entries or inner:
                    table = table_of(problem, axis, kept, entries, measure, inner, shape, gain)
                else:  # nothing is known: neighbours are alike
                    place = torch.arange(shape[-1], dtype=torch.float32)
                    table = -(place[:, None] - place).square().expand(shape).clone()
                tables[axis.id] = table
                if problem.context(axis):
                    solved = AxisMap(axis.id, problem.context(axis), problem.along(axis), index=assign(-table))
                    values[axis.id] = optimum(solved, table)
        return tables

    def _family(self, axis: Axis, table: Tensor, mass: Tensor | None, chosen: Mapping[int, Tensor]) -> Tensor:
        """A coupling for each pair of contexts: of a kept context's chosen units with those of each other context."""
        problem, context = self.problem, self.problem.context(axis)
        along = tuple(problem.sizes_b[key] for key in problem.along(axis))
        new, old = (tuple(sizes[key] for key in context) for sizes in (self.wanted, problem.sizes_b))
        count, m = self.wanted[axis.id], problem.sizes_b[axis.id]
        plan = torch.zeros(*along, *new, *old, count, m)
        kept = [
            chosen.get(key, torch.arange(size) % problem.sizes_b[key]) for key, size in zip(context, new, strict=True)
        ]
        for place in itertools.product(*map(range, (*along, *new))):
            a, c = place[: len(along)], place[len(along) :]
            home = tuple(int(each[i]) for each, i in zip(kept, c, strict=True))
            at = (*a, *home, *home)
            units = representatives(table[at], count, None if mass is None else mass[at])
            for other in itertools.product(*map(range, old)):
                at = (*a, *home, *other)
                share = None if mass is None else mass[at]
                plan[(*a, *c, *other)] = _carried(table[at], units, home == other, share)
        return plan


def _carried(likeness: Tensor, units: Tensor, own: bool, mass: Tensor | None) -> Tensor:
    """The coupling of a context's chosen units with those of a context merged into it."""
    n = len(likeness)
    if own or len(units) < n:
        return merging(likeness, units, mass)
    partner = assign(-likeness)
    return merging(likeness, partner[units], mass)
