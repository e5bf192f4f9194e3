"""From the walk of a graph to its wiring: wires in the order in which they are solved, and labels that name them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from graphfuse.axes import Layout
from graphfuse.config import FlowConfig
from graphfuse.symmetry import Axis, SymmetryGraph, TensorLabel, Touch
from graphfuse.transport.freeheads import free_heads, merged
from graphfuse.transport.wires import Join, Term, Wire, Wiring, places, relabelled
from graphfuse.transport.wiring import Walked, walk


def wire(graph: SymmetryGraph, axes: Sequence[Axis], config: FlowConfig) -> Wiring:
    """The wiring of a graph.

    Parameters
    ----------
    graph : SymmetryGraph
        The target's.
    axes : sequence of Axis
        Those to be matched, with the contexts that all models share.
    config : FlowConfig

    Returns
    -------
    Wiring
        The last wire of each axis has the axis' own number and name, so that what knows of axes alone finds a map.
    """
    heads = {axis.id for axis in axes if axis.role == "heads"} if config.heads != "nested" else set[int]()
    free = free_heads(graph, axes, heads) if config.heads == "free" else set[int]()
    axes = [axis for axis in axes if axis.id not in (free if config.heads == "free" else heads)]
    walked = walk(graph, axes, config)
    order = _order(walked, {axis.id: axis for axis in axes}, graph.tensors)
    numbers = _numbers(walked, order)
    labels = {name: _label(graph.tensors[name], walked, numbers) for name in graph.tensors}
    nodes = {
        name: tuple(
            None if layout is None else _renamed(layout, walked, numbers, value)
            for layout, value in zip(walked.layouts[name], values, strict=True)
        )
        for name, values in walked.values.items()
    }
    wires = _wires(walked, order, numbers, {axis.id: axis for axis in axes}, labels)
    pairs = {frozenset(numbers[walked.store.find(w)] for w in pair) for pair in walked.ties}
    ties = tuple(tuple(sorted(group)) for group in _groups(pairs))
    bound = ", ".join(axis.name for axis in axes if axis.id in heads)
    note = f"{bound}: matched, not free, as not every tensor has them right before the units in them"
    return merged(Wiring(wires, labels, nodes, ties, (note,) if bound else ()), free)


# ---------------------------------------------------------------------- order


def _order(walked: Walked, axes: Mapping[int, Axis], labels: Mapping[str, TensorLabel]) -> list[int]:
    """Roots, a join after its operands, an axis after those inside it, but for those that are made of what it moves:
    where layers share their heads, those of the first layer decide."""
    store = walked.store
    placed: dict[int, None] = {}
    roots = sorted(store.roots(), key=lambda root: (store.source(root).born, root))
    ways = {root: _ways(walked, root, labels) for root in roots}

    def place(root: int) -> None:
        if root in placed:
            return
        source = store.source(root)
        if source.join is not None:
            place(store.find(source.join.skip.wire))
            place(store.find(source.join.branch.wire))
        inside = [other for other in roots if source.axis in axes[store.source(other).axis].context]
        before = _known_without(root, ways) if inside else {}
        for other in inside:
            if other in before:
                reach(other, before)
        placed[root] = None

    def reach(root: int, taken: Mapping[int, set[int]]) -> None:
        for other in sorted(taken[root] - placed.keys()):
            reach(other, taken)
        place(root)

    for root in roots:
        place(root)
    return list(placed)


def _ways(walked: Walked, root: int, labels: Mapping[str, TensorLabel]) -> list[set[int]]:
    """The ways to a wire's map, each by the wires it takes: those of a sum's operands, or of what a producer reads.

    A vector (a bias) is none, as it tells little of a unit.
    """
    source, find = walked.store.source(root), walked.store.find
    if source.join is not None:
        return [{find(source.join.skip.wire), find(source.join.branch.wire)}]
    return [
        {
            find(wire)
            for (d, _), wire in zip(places(labels[name].dims), walked.tensors[name], strict=True)
            if wire >= 0 and labels[name].consumed[d]
        }
        for name in source.tensors
        if sum(size > 1 for size in labels[name].shape) > 1
    ]


def _known_without(root: int, ways: Mapping[int, Sequence[set[int]]]) -> dict[int, set[int]]:
    """The wires whose maps can be found before that of ``root``, each with the way to it."""
    known, count = dict[int, set[int]](), -1
    while len(known) > count:
        count = len(known)
        for wire, some in ways.items():
            way = next((way for way in some if way <= known.keys()), None if some else set[int]())
            if wire != root and wire not in known and way is not None:
                known[wire] = way
    return known


def _numbers(walked: Walked, order: Sequence[int]) -> dict[int, int]:
    """Root -> number of its wire: the last one on an axis has that of the axis."""
    last = {walked.store.source(root).axis: root for root in order}
    every = (leaf.id for parts in walked.layouts.values() for layout in parts for _, leaf in places(layout or ()))
    start = 1 + max(every, default=0)
    found: dict[int, int] = {}
    for root in order:
        axis = walked.store.source(root).axis
        found[root] = axis if last[axis] == root else start + len(found)
    return found


def _groups(pairs: Iterable[frozenset[int]]) -> list[set[int]]:
    groups: list[set[int]] = []
    for pair in pairs:
        if len(pair) > 1:
            apart = [group for group in groups if not group & pair]
            groups = [*apart, set(pair).union(*(group for group in groups if group & pair))]
    return groups


# --------------------------------------------------------------------- labels


def _renamed(layout: Layout, walked: Walked, numbers: Mapping[int, int], value: Sequence[int] | None) -> Layout:
    return relabelled(layout, [numbers[walked.store.find(w)] if w >= 0 else -1 for w in value or ()])


def _label(label: TensorLabel, walked: Walked, numbers: Mapping[int, int]) -> TensorLabel:
    return replace(label, dims=_renamed(label.dims, walked, numbers, walked.tensors[label.name]))


def _wires(
    walked: Walked,
    order: Sequence[int],
    numbers: Mapping[int, int],
    axes: Mapping[int, Axis],
    labels: Mapping[str, TensorLabel],
) -> tuple[Wire, ...]:
    touches = _touches(labels)
    found, taken = [], set[str]()
    for root in order:
        source, id = walked.store.source(root), numbers[root]
        touched = tuple(touches.get(id, ()))
        tensors = tuple(source.tensors) or tuple(dict.fromkeys(touch.tensor for touch in touched))
        join = source.join and Join(
            source.join.node,
            Term(source.join.skip.node, numbers[walked.store.find(source.join.skip.wire)]),
            Term(source.join.branch.node, numbers[walked.store.find(source.join.branch.wire)]),
        )
        axis = axes[source.axis]
        if id != axis.id:
            axis = replace(axis, id=id, name=_name(axis, tensors, join, taken))
        sites = () if join is not None else tuple(source.sites)
        found.append(Wire(replace(axis, touches=touched), (source.axis,), sites, () if join else tensors, join))
    return tuple(found)


def _name(axis: Axis, tensors: Sequence[str], join: Join | None, taken: set[str]) -> str:
    """The axis' name, and where the wire begins."""
    place = join.node if join is not None else tensors[0].rpartition(".")[0] or tensors[0] if tensors else "made"
    name, count = f"{axis.name}@{place}", 1
    while name in taken:
        count += 1
        name = f"{axis.name}@{place}#{count}"
    taken.add(name)
    return name


def _touches(labels: Mapping[str, TensorLabel]) -> dict[int, dict[Touch, None]]:
    found: dict[int, dict[Touch, None]] = {}
    for label in labels.values():
        for d, leaf in places(label.dims):
            found.setdefault(leaf.id, {})[Touch(label.name, d)] = None
    return found
