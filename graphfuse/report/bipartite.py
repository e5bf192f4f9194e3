"""The symmetry graph made small enough to draw: axes and tensors that differ only in the number of a layer are one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graphfuse.report.grouping import AxisGroup, grouped
from graphfuse.report.words import starred
from graphfuse.symmetry import SymmetryGraph


@dataclass(frozen=True)
class Side:
    """Alike axes, and the (tensor, dim) pairs that they run along."""

    name: str
    role: str
    size: int
    symmetry: str
    touches: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Bipartite:
    """Both sides, in the order in which they are drawn from top to bottom."""

    axes: tuple[Side, ...]
    tensors: tuple[str, ...]


def bipartite(graph: SymmetryGraph) -> Bipartite:
    """The free axes in the order of the graph, and the tensors where their lines cross least (by mean place)."""
    groups = grouped(graph)
    lines: dict[str, dict[tuple[int, int], None]] = {}
    for i, group in enumerate(groups):
        for touch in (touch for axis in group.axes for touch in axis.touches):
            lines.setdefault(touch.tensor, {})[i, touch.dim] = None
    names = _names({name: frozenset(touched) for name, touched in lines.items()})
    drawn = {names[name]: tuple(touched) for name, touched in lines.items()}
    sides = tuple(_side(i, group, drawn) for i, group in enumerate(groups))
    return Bipartite(sides, tuple(sorted(drawn, key=lambda name: _mean([i for i, _ in drawn[name]]))))


def _names(lines: Mapping[str, frozenset[tuple[int, int]]]) -> dict[str, str]:
    """What each tensor is called: with stars for the numbers of layers where all of that name have the same lines."""
    kinds: dict[str, set[frozenset[tuple[int, int]]]] = {}
    for name, touched in lines.items():
        kinds.setdefault(starred(name), set()).add(touched)
    counts = Counter(map(starred, lines))
    alike = {pattern for pattern, found in kinds.items() if len(found) == 1 and counts[pattern] > 1}
    return {name: starred(name) if starred(name) in alike else name for name in lines}


def _side(i: int, group: AxisGroup, drawn: Mapping[str, tuple[tuple[int, int], ...]]) -> Side:
    first = group.axes[0]
    touches = tuple((name, dim) for name, touched in drawn.items() for k, dim in touched if k == i)
    return Side(group.name, first.role, first.size, str(first.symmetry), touches)


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values)
