"""Wires: an axis as it is at one place of the graph. All places of one wire share one map.

While a graph is walked wires are united (union-find) and learn where their map comes from: from *producers* (nodes and
tensors that write the axis anew) or from a *join*, the sum of a skip and a branch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from graphfuse.axes import Case, Dim, Factor, Layout, Leaf, Sum, walk_leaves
from graphfuse.symmetry import Axis, TensorLabel


@dataclass(frozen=True)
class Term:
    """One operand of a sum: the node that it comes from, and its wire."""

    node: str
    wire: int


@dataclass(frozen=True)
class Join:
    """The sum of a skip and a branch, at a node."""

    node: str
    skip: Term
    branch: Term


@dataclass(frozen=True)
class Wire:
    """An axis as it is in part of the graph.

    ``axis.id`` is the wire's own number; ``parts`` are the axes of the graph that it runs over (several where heads are
    free). Its map comes from ``join``, or from the evidence at ``sites`` (nodes) and in the rows of ``tensors``.
    """

    axis: Axis
    parts: tuple[int, ...]
    sites: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    join: Join | None = None


@dataclass(frozen=True, eq=False)
class Wiring:
    """A graph whose labels name wires in place of axes.

    ``wires`` are in an order in which they can be solved; ``ties`` are wires that share the mean of their maps;
    ``nodes`` has None for a value whose axes are no wires of their own.
    """

    wires: tuple[Wire, ...]
    labels: Mapping[str, TensorLabel]
    nodes: Mapping[str, tuple[Layout | None, ...]]
    ties: tuple[tuple[int, ...], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def labelled(self) -> set[int]:
        """The numbers of all axes that tensors have."""
        return {leaf.id for label in self.labels.values() for _, leaf in places(label.dims)}

    def sites(self, wire: Wire, known: Mapping[int, Sequence[str]], after: bool) -> tuple[str, ...]:
        """Where a wire is looked at: at its producers, or (``after``) at the known nodes that have it, if any do."""
        if not after:
            return wire.sites
        nodes = dict.fromkeys(node for part in wire.parts for node in known.get(part, ()))
        have = [n for n in nodes if any(leaf.id == wire.axis.id for x in self.nodes[n] for _, leaf in places(x or ()))]
        return tuple(have) if wire.sites and have else wire.sites

    def without(self, tensors: Collection[str], axes: Collection[int]) -> Wiring:
        """The wiring of a model that lacks some tensors, and has only some axes: what is joined is the rest."""
        gone: set[int] = set()
        kept: list[Wire] = []
        for wire in self.wires:
            join = wire.join
            lacking = bool(wire.tensors) and set(wire.tensors) <= set(tensors)
            if join is not None:
                terms = [term for term in (join.skip, join.branch) if term.wire not in gone]
                lacking = not terms
                wire = replace(wire, join=replace(join, skip=terms[0], branch=terms[-1])) if terms else wire
            if lacking or not set(wire.parts) <= set(axes):
                gone.add(wire.axis.id)
            else:
                kept.append(wire)
        ties = tuple(group for group in self.ties if not gone.intersection(group))
        return replace(self, wires=tuple(kept), ties=ties)

    def sizes(self, sizes: Mapping[int, int]) -> dict[int, int]:
        """The size of every axis of a model, those of the wires included."""
        found = dict(sizes)
        for wire in self.wires:
            if all(part in sizes for part in wire.parts):
                total = 1
                for part in wire.parts:
                    total *= sizes[part]
                found[wire.axis.id] = total
        return found


# ------------------------------------------------------------------ union-find


@dataclass
class Source:
    """What is known of one class of wires; ``born`` is when its first producer or join was met."""

    axis: int
    born: int = -1
    sites: dict[str, None] = field(default_factory=dict)
    tensors: dict[str, None] = field(default_factory=dict)
    join: Join | None = None

    @property
    def busy(self) -> bool:
        """Whether a map comes from somewhere already."""
        return self.join is not None or bool(self.sites) or bool(self.tensors)


class WireStore:
    """Classes of wires, growing while a graph is walked."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._sources: dict[int, Source] = {}
        self._clock = 0

    def new(self, axis: int) -> int:
        """A wire of its own."""
        wire = len(self._parent)
        self._parent.append(wire)
        self._sources[wire] = Source(axis)
        return wire

    def find(self, wire: int) -> int:
        """The root of a wire's class."""
        while self._parent[wire] != wire:
            self._parent[wire] = self._parent[self._parent[wire]]
            wire = self._parent[wire]
        return wire

    def source(self, wire: int) -> Source:
        """What is known of a wire's class."""
        return self._sources[self.find(wire)]

    def roots(self) -> list[int]:
        """One wire of each class."""
        return list(self._sources)

    def unite(self, *wires: int) -> int:
        """Make wires one. A join that is united with what has a map of its own shares one with both its operands."""
        root = self.find(wires[0])
        for other in wires[1:]:
            root = self._merge(root, self.find(other))
        return self.find(root)

    def _merge(self, a: int, b: int) -> int:
        if a == b:
            return a
        low, high = min(a, b), max(a, b)
        mine, other = self._sources[low], self._sources.pop(high)
        self._parent[high] = low
        dissolved = [s.join for s in (mine, other) if s.join is not None] if mine.busy and other.busy else []
        born = [s.born for s in (mine, other) if s.busy]
        self._sources[low] = Source(
            mine.axis,
            min(born, default=-1),
            mine.sites | other.sites,
            mine.tensors | other.tensors,
            None if dissolved else mine.join or other.join,
        )
        for join in dissolved:
            self.unite(low, join.skip.wire, join.branch.wire)
        return self.find(low)

    def follow(self, wire: int, leader: int) -> None:
        """Let a wire take the map of another, unless it has one: what is read twice follows its first reader."""
        if not self.source(wire).busy:
            self.unite(wire, leader)

    def produce(self, wire: int, site: str | None, tensors: Iterable[str]) -> None:
        """A node writes this wire anew, from the rows of some tensors."""
        source = self.source(wire)
        if source.join is None:
            source.born = source.born if source.busy else self._tick()
            source.sites |= {site: None} if site is not None else {}
            source.tensors |= dict.fromkeys(tensors)

    def join(self, node: str, skip: Term, branch: Term) -> int:
        """The wire of a sum."""
        if self.find(skip.wire) == self.find(branch.wire):
            return skip.wire
        wire = self.new(self.source(skip.wire).axis)
        source = self.source(wire)
        source.born, source.join = self._tick(), Join(node, skip, branch)
        return wire

    def settle(self) -> None:
        """Joins of a wire with itself are that wire."""
        changed = True
        while changed:
            changed = False
            for root in self.roots():
                source = self._sources.get(root)
                if source is not None and source.join is not None:
                    skip = self.find(source.join.skip.wire)
                    if skip == self.find(source.join.branch.wire):
                        source.join = None
                        self.unite(root, skip)
                        changed = True

    def _tick(self) -> int:
        self._clock += 1
        return self._clock


# --------------------------------------------------------------------- layouts


def places(layout: Layout) -> list[tuple[int, Leaf]]:
    """Every leaf of a layout and the dim that it is part of, in row-major order."""
    return [(d, leaf) for d, dim in enumerate(layout) for leaf in walk_leaves(dim)]


def relabelled(layout: Layout, numbers: Sequence[int]) -> Layout:
    """A layout whose leaves, in the order of :func:`places`, have other numbers; -1 leaves one as it is.

    The key of a case is renamed with the leaf that it names.
    """
    keys = {leaf.id: number for (_, leaf), number in zip(places(layout), numbers, strict=True) if number >= 0}
    rest = iter(numbers)
    return tuple(_relabelled(dim, rest, keys) for dim in layout)


def _relabelled(dim: Dim, numbers: Iterator[int], keys: Mapping[int, int]) -> Dim:
    words: list[Factor] = []
    for factor in dim:
        match factor:
            case Leaf():
                number = next(numbers)
                words.append(replace(factor, id=number) if number >= 0 else factor)
            case Sum():
                words.append(Sum(tuple(_relabelled(part, numbers, keys) for part in factor.parts)))
            case Case():
                branches = [
                    (replace(key, id=keys.get(key.id, key.id)), _relabelled(branch, numbers, keys))
                    for key, branch in factor.branches
                ]
                words.append(Case(tuple(branches)))
    return tuple(words)


def keys_of(layout: Iterable[Dim]) -> Iterator[int]:
    """The axes that cases in a layout depend on."""
    for dim in layout:
        for factor in dim:
            match factor:
                case Leaf():
                    continue
                case Sum():
                    yield from keys_of(factor.parts)
                case Case():
                    yield from (key.id for key, _ in factor.branches)
                    yield from keys_of(branch for _, branch in factor.branches)
