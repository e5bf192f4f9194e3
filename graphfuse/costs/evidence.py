"""What the driver asks of a source of likeness, and the structure of a matching problem that all sources share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from torch import Tensor

from graphfuse.carry import Slot, slots_of
from graphfuse.cells import Cell
from graphfuse.costs.moments import Moments
from graphfuse.maps import AxisMap, Maps, proportional
from graphfuse.symmetry import Axis


@dataclass(frozen=True, eq=False)
class Problem:
    """Axes to be matched between the target A and one other model B.

    ``axes`` are those to be solved, ``sizes`` the sizes in A and in B of every axis (free and fixed).
    """

    axes: tuple[Axis, ...]
    sizes_a: Mapping[int, int]
    sizes_b: Mapping[int, int]

    @cached_property
    def moving(self) -> Mapping[int, Axis]:
        """The axes to be solved, by number."""
        return {axis.id: axis for axis in self.axes}

    @cached_property
    def inner(self) -> Mapping[int, tuple[int, ...]]:
        """For each axis, those whose maps depend on it."""
        return {axis.id: tuple(other.id for other in self.axes if axis.id in other.context) for axis in self.axes}

    @cached_property
    def nearest(self) -> Mapping[int, tuple[int, ...]]:
        """As ``inner``, without those that depend on it through another one as well."""
        return {
            id: tuple(i for i in inner if not any(i in self.inner[j] for j in inner))
            for id, inner in self.inner.items()
        }

    @cached_property
    def families(self) -> list[list[Axis]]:
        """Axes that are tied by contexts, inner ones first."""
        found: list[set[int]] = []
        for axis in self.axes:
            group = {axis.id, *self.context(axis)}
            apart = [other for other in found if not other & group]
            found = [*apart, group.union(*(other for other in found if other & group))]
        return [sorted((self.moving[id] for id in group), key=lambda a: (-self.depth(a), a.id)) for group in found]

    def depth(self, axis: Axis) -> int:
        """How deep an axis is nested."""
        return max((1 + self.depth(self.moving[key]) for key in self.context(axis)), default=0)

    def context(self, axis: Axis) -> tuple[int, ...]:
        """The axes to be solved that the map of this one depends on."""
        return tuple(key for key in axis.context if key in self.moving)

    def along(self, axis: Axis) -> tuple[int, ...]:
        """The fixed axes that the map of this one depends on."""
        return tuple(key for key in axis.context if key not in self.moving)

    def lead(self, axis: Axis) -> tuple[int, ...]:
        """Shape of the family of maps."""
        context = self.context(axis)
        return (
            *(self.sizes_a[key] for key in self.along(axis)),
            *(self.sizes_a[key] for key in context),
            *(self.sizes_b[key] for key in context),
        )

    def entries(self, axis: Axis) -> int:
        """How many entries the table of an axis has, in all members of its family."""
        return math.prod(self.lead(axis)) * self.sizes_a[axis.id] * self.sizes_b[axis.id]

    @cached_property
    def largest(self) -> int:
        """Entries of the largest table."""
        return max(map(self.entries, self.axes), default=0)

    def start(self, axis: Axis) -> AxisMap:
        """The map that keeps the order of the units."""
        return proportional(
            axis.id, self.sizes_a[axis.id], self.sizes_b[axis.id], self.lead(axis), self.context(axis), self.along(axis)
        )


Entry = Callable[[], Moments]
"""Makes the moments of one body of evidence, to be called once; they are the caller's, to be written over."""


class Evidence(Protocol):
    """A source of likeness between the units of A and B."""

    repeats: bool
    """Whether likeness changes with the maps of other axes, so that several sweeps make sense."""

    def ready(self, pending: Sequence[Axis], maps: Maps) -> Sequence[Axis]:
        """Of the axes that have no map yet (never empty), those to be solved next, at least one."""
        ...

    def moments(self, axis: Axis, maps: Maps) -> list[Entry]:
        """One entry for each body of evidence to be judged by itself, none where there is none."""
        ...

    def norms(self, axis: Axis) -> tuple[Tensor, Tensor] | None:
        """How large the units of A and of B are, (\\*lead, n_A) and (\\*lead, n_B) or what broadcasts over that.

        None where nothing is known of an axis.
        """
        ...


def slots_for(
    cell: Cell, consumed: Sequence[bool], axis: Axis, position: int, problem: Problem, maps: Maps
) -> tuple[list[Slot], tuple[int, ...], tuple[int, ...]]:
    """Slots of a cell, and where the fixed and the free axes stand that the axis at this position depends on.

    These and the axis itself are not to be carried, so their slots have no maps.
    """
    along = tuple(cell.along(position, key) for key in problem.along(axis))
    context = tuple(cell.along(position, key) for key in problem.context(axis))
    return slots_of(cell, consumed, maps, keep={position, *context}), along, context


def judges(cell_axes: Sequence[int], position: int, problem: Problem, resolved: Iterable[int]) -> bool:
    """Whether a cell is direct evidence for the axis at a position, given the axes that have maps.

    All other axes that move must have a map, or be among those that the axis depends on; what any of these maps depends
    on must be in the cell (an activation gathered by chosen experts has units, but no expert). A cell that also has an
    axis that depends on this one is judged there: its likeness reaches this axis through the inner problem's optimum.
    """
    known = set(resolved)
    axis = problem.moving[cell_axes[position]]
    context = problem.context(axis)
    for p, other in enumerate(cell_axes):
        if other in problem.moving and not all(key in cell_axes for key in problem.moving[other].context):
            return False
        if p == position or other not in problem.moving or other in context:
            continue
        if other in problem.inner[axis.id] or other not in known:
            return False
    return True
