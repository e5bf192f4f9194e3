"""Axes that differ only in the number of their layer, taken together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from graphfuse.report.words import starred
from graphfuse.symmetry import Axis, SymmetryGraph


@dataclass(frozen=True)
class AxisGroup:
    """Axes that differ only in the number of their layer: ``names`` of one, ``pattern`` with ``*`` for that number."""

    axes: tuple[Axis, ...]
    along: str
    pattern: tuple[str, ...]

    @property
    def name(self) -> str:
        """``hidden.0``, ``hidden.0-11``, or ``heads.0 ... heads.6`` where other axes come in between."""
        first, last = self.axes[0].name, self.axes[-1].name
        if len(self.axes) == 1:
            return first
        start, end = (int(name.rpartition(".")[2]) for name in (first, last))
        return f"{first}-{end}" if end - start == len(self.axes) - 1 else f"{first} ... {last}"


def grouped(graph: SymmetryGraph, every: bool = False) -> list[AxisGroup]:
    """The free axes in the order of the graph, alike ones together (unless ``every`` is wanted on its own)."""
    groups: dict[Any, list[Axis]] = {}
    for axis in graph.axes:
        along = ", ".join(_role(graph.axis(key)) for key in axis.context)
        names = tuple(dict.fromkeys(f"{starred(touch.tensor)}[{touch.dim}]" for touch in axis.touches))
        key = axis.id if every else (axis.role, axis.size, axis.symmetry, along, names)
        groups.setdefault(key, []).append(axis)
    return [_group(graph, axes) for axes in groups.values()]


def _group(graph: SymmetryGraph, axes: Sequence[Axis]) -> AxisGroup:
    first = axes[0]
    star = starred if len(axes) > 1 else str
    along = ", ".join(_role(graph.axis(key)) if len(axes) > 1 else graph.axis(key).name for key in first.context)
    pattern = dict.fromkeys(f"{star(touch.tensor)}[{touch.dim}]" for touch in first.touches)
    return AxisGroup(tuple(axes), along, tuple(pattern))


def _role(axis: Axis) -> str:
    return axis.role if axis.free else axis.name
