"""Heads that are free: one axis in place of heads and the units in them, so that one map runs over the whole width.

Source: Imfeld et al., Transformer Fusion with Optimal Transport (arXiv 2310.05719), section 4.2.2. Attention is not
invariant to such a map, unless it happens to keep the units of each head together.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from graphfuse.axes import Case, Dim, Factor, Layout, Leaf, Sum
from graphfuse.symmetry import Axis, SymmetryGraph
from graphfuse.transport.wires import Wire, Wiring, places

Run = tuple[int, ...]
_NONE = -1


def free_heads(graph: SymmetryGraph, axes: Sequence[Axis], heads: Collection[int]) -> set[int]:
    """Of some axes of heads, those that every tensor has right before units that differ along them.

    Not so for rotary queries (their units are fixed), grouped queries (a value's units follow other heads where they
    are written than where they are read), or parameters with one number for each head.
    """
    inner = {axis.id for axis in axes if heads and set(heads).intersection(axis.context)}
    runs = {run for label in graph.tensors.values() for dim in label.dims for run in _runs(dim, set(heads))}
    before: dict[int, set[Run]] = {}
    for run in runs:
        before.setdefault(run[-1], set()).add(run[:-1])
    found = set(heads)
    while True:
        bad = [
            run for run in runs if run[-1] not in inner or len(before[run[-1]]) > 1 or not found.issuperset(run[:-1])
        ]
        left = found.difference(*(run[:-1] for run in bad))
        if left == found:
            return found
        found = left


def merged(wiring: Wiring, heads: Collection[int]) -> Wiring:
    """The wiring where the wires right after some heads take their place and that of the heads before them."""
    if not heads:
        return wiring
    runs = [run for label in wiring.labels.values() for dim in label.dims for run in _runs(dim, set(heads))]
    free = _Free(wiring, set(heads), {run[-1]: run[:-1] for run in runs if len(run) > 1})
    return replace(
        wiring,
        wires=tuple(free.wire(wire) for wire in wiring.wires),
        labels={name: replace(x, dims=tuple(map(free.dim, x.dims))) for name, x in wiring.labels.items()},
        nodes={name: tuple(map(free.layout, parts)) for name, parts in wiring.nodes.items()},
        ties=tuple(tuple(free.ids.get(id, id) for id in group) for group in wiring.ties),
    )


class _Free:
    """Wires that take the place of themselves and the heads before them, under new numbers."""

    def __init__(self, wiring: Wiring, heads: set[int], outer: Mapping[int, Run]) -> None:
        self.heads, self.outer = heads, outer
        every = [layout for parts in wiring.nodes.values() for layout in parts if layout is not None]
        every += [label.dims for label in wiring.labels.values()]
        leaves = [leaf for layout in every for _, leaf in places(layout)]
        start, self.size = 1 + max((leaf.id for leaf in leaves), default=0), {leaf.id: leaf.size for leaf in leaves}
        self.ids = {id: start + i for i, id in enumerate(outer)}

    def wire(self, wire: Wire) -> Wire:
        join = wire.join
        if join is not None:
            skip, branch = (replace(t, wire=self.ids.get(t.wire, t.wire)) for t in (join.skip, join.branch))
            wire = replace(wire, join=replace(join, skip=skip, branch=branch))
        if wire.axis.id not in self.outer:
            return wire
        keys, axis = self.outer[wire.axis.id], wire.axis
        context = tuple(key for key in axis.context if key not in self.heads)
        axis = replace(axis, id=self.ids[axis.id], size=self._width(axis.id), context=context)
        return replace(wire, axis=axis, parts=(*keys, *wire.parts))

    def _width(self, id: int) -> int:
        return math.prod(self.size[key] for key in (*self.outer[id], id))

    def dim(self, dim: Dim) -> Dim:
        result: list[Factor] = []
        for factor in dim:
            match factor:
                case Leaf() if factor.id in self.outer:
                    del result[len(result) - len(self.outer[factor.id]) :]
                    result.append(replace(factor, id=self.ids[factor.id], size=self._width(factor.id)))
                case Leaf():
                    result.append(factor)
                case Sum():
                    result.append(Sum(tuple(map(self.dim, factor.parts))))
                case Case():
                    result.append(Case(tuple((key, self.dim(branch)) for key, branch in factor.branches)))
        return tuple(result)

    def layout(self, layout: Layout | None) -> Layout | None:
        """A value's label; None where it has heads and units apart."""
        runs = [run for dim in layout or () for run in _runs(dim, self.heads)]
        if layout is None or any(run[-1] in self.outer and run[:-1] != self.outer[run[-1]] for run in runs):
            return None
        return tuple(map(self.dim, layout))


def _runs(dim: Dim, heads: set[int]) -> list[Run]:
    """For each leaf of a dim that is no head: the heads right before it, and itself; heads before none end in _NONE."""
    found: list[Run] = []
    before: Run = ()
    for factor in dim:
        match factor:
            case Leaf() if factor.id in heads:
                before = (*before, factor.id)
                continue
            case Leaf():
                found.append((*before, factor.id))
                before = ()
                continue
            case Sum():
                found += [run for part in factor.parts for run in _runs(part, heads)]
            case Case():
                found += [run for _, branch in factor.branches for run in _runs(branch, heads)]
        found += [(*before, _NONE)] if before else []
        before = ()
    return [*found, (*before, _NONE)] if before else found
