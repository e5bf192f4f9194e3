"""Where in the graph the units of an axis are looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tag, fx

from graphfuse.axes import Layout, SymmetryClass, walk_leaves
from graphfuse.correspond import node_layouts
from graphfuse.rulebook import RuleBook, load_rules
from graphfuse.symmetry import SymmetryGraph

Sites = dict[int, tuple[str, ...]]
"""Axis number -> node names; an axis that no activation has is left out."""


def sites(graph: SymmetryGraph, where: Literal["pre", "post"] = "pre") -> Sites:
    """Nodes at which each free axis is looked at, in the order of the graph.

    With ``pre`` these are the nodes where it is written: those that depend on data and where the axis appears (no
    operand that depends on data has it), the contractions with a parameter that write it, and the sums of two such
    values (residual adds). With ``post`` see :func:`after`.
    """
    free, data = {axis.id for axis in graph.axes}, data_nodes(graph)
    contractions = {entry.node for entry in graph.contractions}
    present = {name: _axes_of(layouts) & free for name, layouts in node_layouts(graph).items()}
    found: dict[int, dict[str, None]] = {}
    for node in graph.captured.graph.nodes:
        operands = [operand for operand in node.all_input_nodes if operand.name in data]
        if not operands or node.op != "call_function":
            continue
        read = [present[operand.name] for operand in operands]
        for id in present[node.name]:
            times = sum(id in axes for axes in read)
            if times == 0 or node.name in contractions or (times > 1 and _is_sum(node)):
                found.setdefault(id, {})[node.name] = None
    written = {id: tuple(names) for id, names in found.items()}
    return after(graph, written) if where == "post" else written


def after(graph: SymmetryGraph, written: Mapping[int, Sequence[str]]) -> Sites:
    """Each node gives way to the elementwise nonlinearity that its value goes through before anything else reads it.

    Where there is one: norms and views may stand between; a value that several nodes read stays as it is.
    """
    book, data, nodes = load_rules(), data_nodes(graph), {node.name: node for node in graph.captured.graph.nodes}
    present = {name: _axes_of(layouts) for name, layouts in node_layouts(graph).items()}
    return {
        id: tuple(dict.fromkeys(_after(nodes[name], id, data, present, book).name for name in names))
        for id, names in written.items()
    }


def data_nodes(graph: SymmetryGraph) -> set[str]:
    """Nodes whose values depend on the inputs."""
    data = {slot.node for slot in graph.captured.inputs if slot.kind == "user"}
    for node in graph.captured.graph.nodes:
        if any(operand.name in data for operand in node.all_input_nodes):
            data.add(node.name)
    return data


def _after(node: fx.Node, id: int, data: set[str], present: dict[str, set[int]], book: RuleBook) -> fx.Node:
    """The nonlinearity that a value goes through alone and before all else; the node itself when there is none."""
    now = node
    while len(now.users) == 1:
        (now,) = now.users
        operands = [operand for operand in now.all_input_nodes if operand.name in data]
        if len(operands) != 1 or id not in present.get(now.name, ()) or _contracts(now, book):
            return node
        if _bends(now.target, book):
            return now
    return node


def _contracts(node: fx.Node, book: RuleBook) -> bool:
    located = book.entry(node.target)
    return located is not None and located.entry.kind in ("linear", "matmul", "convolution", "attention")


def _bends(op: Any, book: RuleBook) -> bool:
    """Whether an op of one operand that depends on data is an elementwise nonlinearity."""
    located = book.entry(op)
    if located is None:
        return Tag.pointwise in getattr(op, "tags", ())
    spec = located.entry.pointwise
    if spec is None:
        return located.entry.kind == "pointwise" and Tag.pointwise in getattr(op, "tags", ())
    alone = spec.alone if isinstance(spec.alone, SymmetryClass) else SymmetryClass.LINEAR
    return SymmetryClass.LINEAR not in (spec.shared, alone)


def _axes_of(layouts: Sequence[Layout | None]) -> set[int]:
    return {leaf.id for dims in layouts if dims is not None for dim in dims for leaf in walk_leaves(dim)}


def _is_sum(node: fx.Node) -> bool:
    return str(node.target).startswith(("aten.add.", "aten.add_."))
