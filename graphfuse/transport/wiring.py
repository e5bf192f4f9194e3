"""Walk a labelled graph and say where each wire begins, which wires are one, and where two are joined.

A contraction with a parameter ends the wires that it consumes and begins those that it writes; norms, views and
attention hand wires on; a sum of two values joins theirs by policy; any other op on two values makes their wires one.
Source: Imfeld et al., Transformer Fusion with Optimal Transport (arXiv 2310.05719), section 4.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from graphfuse.axes import Layout
from graphfuse.cells import cells
from graphfuse.config import FlowConfig
from graphfuse.correspond import node_layouts
from graphfuse.symmetry import Axis, SymmetryGraph
from graphfuse.transport.tracing import moved, op_name, same_structure
from graphfuse.transport.wires import Term, WireStore, keys_of, places

Numbers = list[int]
"""A wire for each place of a layout; -1 where no axis moves."""


@dataclass(frozen=True, eq=False)
class Walked:
    """What a walk found: the wires of every node's values and of every tensor, and pairs that share a mean."""

    store: WireStore
    layouts: Mapping[str, tuple[Layout | None, ...]]
    values: Mapping[str, list[Numbers | None]]
    tensors: Mapping[str, Numbers]
    ties: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Entry:
    """How one axis occurs in one operand: wires that the node hands on or reads elementwise, and those it consumes."""

    node: fx.Node
    data: bool
    kept: tuple[int, ...]
    eaten: tuple[int, ...]


def walk(graph: SymmetryGraph, axes: Sequence[Axis], config: FlowConfig) -> Walked:
    """Find the wires of some axes of a graph."""
    return _Walk(graph, axes, config).run()


class _Walk:
    def __init__(self, graph: SymmetryGraph, axes: Sequence[Axis], config: FlowConfig) -> None:
        self.graph, self.config = graph, config
        self.axes = {axis.id: axis for axis in axes}
        self.layouts = node_layouts(graph)
        self.store = WireStore()
        self.whole = {id: self.store.new(id) for id in sorted(whole_axes(graph, axes))}
        self.values: dict[str, list[Numbers | None]] = {}
        self.data = {slot.node for slot in graph.captured.inputs if slot.kind == "user"}
        self.origin: dict[str, frozenset[str]] = {}
        self.depth: dict[str, int] = {}
        self.ties: list[tuple[int, int]] = []

    def run(self) -> Walked:
        named = {slot.node: slot.name for slot in self.graph.captured.inputs if slot.name in self.graph.tensors}
        for node in self.graph.captured.graph.nodes:
            operands = node.all_input_nodes
            if any(operand.name in self.data for operand in operands):
                self.data.add(node.name)
            own = {named[node.name]} if node.name in named else set()
            self.origin[node.name] = frozenset(own).union(*(self.origin[operand.name] for operand in operands))
            self.values[node.name] = self._fresh(node) if node.op != "call_function" else self._call(node)
        for pair in self.ties:
            if any(self.store.source(wire).join is not None for wire in pair):
                self.store.unite(*pair)
        self.store.settle()
        tensors = {name: self.values[node][0] or [] for node, name in named.items()}
        return Walked(self.store, self.layouts, self.values, tensors, tuple(self.ties))

    # ---------------------------------------------------------------- nodes

    def _fresh(self, node: fx.Node) -> list[Numbers | None]:
        self.depth[node.name] = 0
        layouts = self.layouts[node.name]
        return [None if x is None else [self._new(leaf.id) for _, leaf in places(x)] for x in layouts]

    def _new(self, axis: int) -> int:
        if axis not in self.axes:
            return -1
        return self.whole[axis] if axis in self.whole else self.store.new(axis)

    def _call(self, node: fx.Node) -> list[Numbers | None]:
        operands, layouts = node.all_input_nodes, self.layouts[node.name]
        consumed = self.graph.consumed.get(node.name, frozenset())
        weighted = any(name not in self.data and self.origin[name] for name, _ in consumed)
        self.depth[node.name] = weighted + max((self.depth[operand.name] for operand in operands), default=0)
        if node.target is operator.getitem and isinstance(part := node.args[1], int):
            return [self.values[operands[0].name][part]]
        found: list[Numbers | None] = [None if x is None else [-1] * len(places(x)) for x in layouts]
        slots: dict[int, list[tuple[int, int]]] = {}
        for part, layout in enumerate(layouts):
            for i, (_, leaf) in enumerate(places(layout or ())):
                slots.setdefault(leaf.id, []).append((part, i))
        entries = [self._entries(operand, consumed) for operand in operands]
        for axis in dict.fromkeys([*(axis for entry in entries for axis in entry), *slots]):
            if axis in self.axes:
                here = slots.get(axis, [])
                wires = self._axis(node, axis, [entry[axis] for entry in entries if axis in entry], len(here))
                for (part, i), wire in zip(here, wires, strict=True):
                    numbers = found[part]
                    assert numbers is not None
                    numbers[i] = wire
        self._settle_keys(layouts, found)
        return found

    def _settle_keys(self, layouts: Sequence[Layout | None], found: Sequence[Numbers | None]) -> None:
        """Where a case depends on an axis, this has one wire in the value."""
        for layout, numbers in zip(layouts, found, strict=True):
            for key in set(keys_of(layout or ())) & self.axes.keys():
                pairs = zip(places(layout or ()), numbers or (), strict=True)
                self.store.unite(*[wire for (_, leaf), wire in pairs if leaf.id == key] or [self._new(key)])

    def _entries(self, operand: fx.Node, consumed: Iterable[tuple[str, int]]) -> dict[int, _Entry]:
        """The axes of an operand."""
        away = {d for name, d in consumed if name == operand.name}
        lists: dict[int, tuple[Numbers, Numbers]] = {}
        layout, numbers = self.layouts[operand.name][0], self.values[operand.name][0]
        for (d, leaf), wire in zip(places(layout or ()), numbers or (), strict=True):
            if wire >= 0:
                lists.setdefault(leaf.id, ([], []))[d in away].append(wire)
        data = operand.name in self.data
        return {axis: _Entry(operand, data, tuple(kept), tuple(eaten)) for axis, (kept, eaten) in lists.items()}

    def _axis(self, node: fx.Node, axis: int, entries: Sequence[_Entry], n: int) -> Sequence[int]:
        """The wires of the ``n`` occurrences of an axis in a node's outputs."""
        data = [entry for entry in entries if entry.data and entry.kept]
        still = [entry for entry in entries if not entry.data and entry.kept]
        self._consume(axis, entries, data, still, n)
        if n == 0:
            return ()
        if node.name not in self.data:
            return self._passed(node, axis, still, n)
        if op_name(node) == "cat":
            return self._concatenated(node, axis, data, still, n)
        if not data:
            return self._produced(node, axis, still, n)
        if op_name(node) == "add":
            return self._summed(node, axis, data, still, n)
        wires = self._passed(node, axis, data, n)
        for entry in still:
            self._follow(entry.kept, wires)
        return wires

    # ---------------------------------------------------------------- ends

    def _consume(
        self, axis: int, entries: Sequence[_Entry], data: Sequence[_Entry], still: Sequence[_Entry], n: int
    ) -> None:
        """Columns of a parameter follow the data that they are contracted with."""
        readers = [entry.eaten for entry in entries if not entry.data and entry.eaten]
        read = [entry.eaten for entry in entries if entry.data and entry.eaten]
        if n == 0 and not read:
            read = [entry.kept for entry in data]
        if readers and read:
            for wires in readers:
                self._follow(wires, read[0])
        elif readers:  # inside the op: a state that it writes and reads itself
            self.store.unite(*(wire for wires in [*readers, *(entry.kept for entry in still)] for wire in wires))
        for one, two in itertools.pairwise(read):
            self._meet(axis, one, two)

    def _meet(self, axis: int, one: Sequence[int], two: Sequence[int]) -> None:
        """Two data values are contracted with each other: queries and keys, by policy; else they share a map."""
        policy = self.config.qk if self.axes[axis].role == "head_dim_qk" else "joint"
        if policy == "joint":
            self._united([one, two], len(one))
        elif policy == "tied":
            self.ties += [(a, b) for a, b in zip(one, two, strict=False) if self.store.find(a) != self.store.find(b)]

    # ---------------------------------------------------------------- beginnings

    def _produced(self, node: fx.Node, axis: int, still: Sequence[_Entry], n: int) -> Sequence[int]:
        """No data brings the axis: the node writes it from its parameters, or makes it."""
        if not still:
            return [self._new(axis)] * n
        wires = self._united([entry.kept for entry in still], n)
        for wire in dict.fromkeys(wires):
            self.store.produce(wire, node.name, self._tensors(still))
        return wires

    def _tensors(self, still: Iterable[_Entry]) -> list[str]:
        return sorted(set().union(*(self.origin[entry.node.name] for entry in still)))

    # ---------------------------------------------------------------- on the way

    def _passed(self, node: fx.Node, axis: int, entries: Sequence[_Entry], n: int) -> Sequence[int]:
        """Handed on; where several values meet elementwise, their wires become one."""
        if not entries:
            return [self._new(axis)] * n
        kept = [entry.kept for entry in entries]
        if len(entries) > 1 or self._one(kept[0]):
            return self._united(kept, n)
        layouts, (operand,) = self.layouts[node.name], (entry.node.name for entry in entries)
        before = self.layouts[operand][0] or ()
        if len(layouts) == 1 and layouts[0] is not None and same_structure(before, layouts[0], axis):
            return kept[0]
        found = moved(node, {operand: (before, range(len(kept[0])))}, layouts, axis)
        if found is None or any(not there or -1 in there for there in found):
            return self._united(kept, n)
        return [self.store.unite(*(kept[0][i] for i in there)) for there in found]

    def _concatenated(
        self, node: fx.Node, axis: int, data: Sequence[_Entry], still: Sequence[_Entry], n: int
    ) -> Sequence[int]:
        """Blocks keep their wires along the dim that is concatenated; along others they are one.

        Parameters among the blocks (a class token) have a map of their own by policy, which ends here.
        """
        entries = [*data, *still]
        wires = [wire for entry in entries for wire in entry.kept]
        operands: dict[str, tuple[Layout, Sequence[int]]] = {}
        start = 0
        for operand in node.all_input_nodes:
            operands[operand.name] = (self.layouts[operand.name][0] or (), ())
        for entry in entries:
            layout = self.layouts[entry.node.name][0] or ()
            operands[entry.node.name] = (layout, range(start, start := start + len(entry.kept)))
        found = moved(node, operands, self.layouts[node.name], axis)
        if found is None:
            return self._united([entry.kept for entry in entries], n)
        moving = sum(len(entry.kept) for entry in data)
        result = []
        for there in found:
            lead = [wires[i] for i in sorted(there) if 0 <= i < moving]
            rest = [wires[i] for i in sorted(there) if i >= moving]
            wire = self.store.unite(*(lead or rest or [self._new(axis)]))
            for other in rest:
                self._enter(other, wire, self._tensors(entry for entry in still if other in entry.kept))
            result.append(wire)
        return result

    def _enter(self, wire: int, leader: int, tensors: Sequence[str]) -> None:
        """A parameter joins the data."""
        if self.config.embeddings == "own":
            self.store.produce(wire, None, tensors)
            if self.config.residual == "shared":
                self.store.unite(wire, leader)
        else:
            self.store.follow(wire, leader)

    def _summed(
        self, node: fx.Node, axis: int, data: Sequence[_Entry], still: Sequence[_Entry], n: int
    ) -> Sequence[int]:
        """Values are added: joined by policy. What is added of parameters alone is a bias, unless it has other dims."""
        terms = list(data)
        for entry in still:
            if self.config.embeddings == "own" and self._wide(entry, axis):
                for wire in entry.kept:
                    self.store.produce(wire, None, self._tensors([entry]))
                terms.append(entry)
        shared = self.config.residual == "shared" or any(len(term.kept) != n for term in terms)
        if len(terms) == 1:
            wires = self._passed(node, axis, terms, n)
        elif shared or len(terms) > 2:
            wires = self._united([term.kept for term in terms], n)
        else:
            skip, branch = sorted(terms, key=lambda term: (not term.data, self.depth[term.node.name]))
            pairs = zip(skip.kept, branch.kept, strict=True)
            wires = [self._joined(node, Term(skip.node.name, a), Term(branch.node.name, b)) for a, b in pairs]
        for entry in still:
            if entry not in terms:
                self._follow(entry.kept, wires)
        return wires

    def _joined(self, node: fx.Node, skip: Term, branch: Term) -> int:
        """What has no map of its own (zeros, an expanded number) takes that of the other."""
        for one, two in ((skip, branch), (branch, skip)):
            if not self.store.source(one.wire).busy:
                return self.store.unite(one.wire, two.wire)
        return self.store.join(node.name, skip, branch)

    def _wide(self, entry: _Entry, axis: int) -> bool:
        """Whether a parameter varies along more than one axis (positions do, a bias does not)."""
        labels = [self.graph.tensors[name] for name in self.origin[entry.node.name]]
        inside = [{d for d, leaf in places(label.dims) if leaf.id == axis} for label in labels]
        return any(
            found and any(size > 1 for d, size in enumerate(label.shape) if d not in found)
            for label, found in zip(labels, inside, strict=True)
        )

    # ---------------------------------------------------------------- wires

    def _one(self, wires: Sequence[int]) -> bool:
        return len({self.store.find(wire) for wire in wires}) == 1

    def _united(self, lists: Sequence[Sequence[int]], n: int) -> Sequence[int]:
        """One for each of ``n`` occurrences, pairing the lists in order where they are of this length."""
        if all(len(wires) == n for wires in lists):
            return [self.store.unite(*column) for column in zip(*lists, strict=True)]
        return [self.store.unite(*(wire for wires in lists for wire in wires))] * n

    def _follow(self, wires: Sequence[int], leaders: Sequence[int]) -> None:
        if len(wires) == len(leaders) or self._one(leaders):
            for i, wire in enumerate(wires):
                self.store.follow(wire, leaders[min(i, len(leaders) - 1)])
        else:
            self.store.unite(*wires, *leaders)


# ------------------------------------------------------------------ whole axes


def whole_axes(graph: SymmetryGraph, axes: Iterable[Axis]) -> set[int]:
    """Axes that keep one map in the whole graph.

    Those that other maps depend on (heads); and those that depend on an axis that one tensor has twice, as rows and as
    columns, so that it would be open which of its places is meant.
    """
    axes = list(axes)
    twice = {
        axis
        for label in graph.tensors.values()
        for cell in cells((), label.dims, ())
        for axis in cell.axes
        if cell.axes.count(axis) > 1
    }
    found = {key for axis in axes for key in axis.context}
    found |= {axis.id for axis in axes if twice.intersection(axis.context)}
    return {axis.id for axis in axes if axis.id in found}
