"""How values flow through a labelled graph: which depend on data, which dims of a parameter are contracted away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from graphfuse.axes import Case, Dim, Leaf, Sum, SymmetryClass, dim_size, walk_leaves
from graphfuse.capture import Captured
from graphfuse.labeling import Labelling
from graphfuse.rulebook.op import Label


@dataclass(frozen=True)
class Flow:
    """Facts about a captured graph: names of the nodes that depend on user inputs, and nodes by name."""

    nodes: Mapping[str, fx.Node]
    data: frozenset[str]

    def is_data(self, node: fx.Node) -> bool:
        """Whether the node's value depends on a user input."""
        return node.name in self.data


def flow_of(captured: Captured) -> Flow:
    """Which nodes of a graph depend on the user's inputs."""
    data = {slot.node for slot in captured.inputs if slot.kind == "user"}
    for node in captured.graph.nodes:
        if any(operand.name in data for operand in node.all_input_nodes):
            data.add(node.name)
    return Flow({node.name: node for node in captured.graph.nodes}, frozenset(data))


def consumed_dims(flow: Flow, labelling: Labelling, node: fx.Node) -> tuple[bool, ...]:
    """For each dim of a parameter: whether every op that reads it contracts it with data, so that it is a column."""
    label = labelling.values[node.name]
    assert isinstance(label, Label)
    written: set[int] = set()
    read: set[int] = set()
    for user in node.users:
        away = {dim for name, dim in labelling.consumed.get(user.name, ()) if name == node.name}
        if flow.is_data(user):
            read |= away
            written |= set(range(label.rank)) - away
        elif isinstance(derived := labelling.values[user.name], Label):
            columns = consumed_dims(flow, labelling, user)
            for dim in range(label.rank):
                inside = set(walk_leaves(label.dims[dim]))
                met = {c for d, c in zip(derived.dims, columns, strict=True) if inside & set(walk_leaves(d))}
                (read if met == {True} else written).add(dim)
    return tuple(dim in read and dim not in written for dim in range(label.rank))


def settle_products(flow: Flow, labelling: Labelling) -> None:
    """Where two tensors are multiplied elementwise, let scales pass only if one of the two is a gain, which stays."""
    for name, places in labelling.factors.items():
        operands = flow.nodes[name].all_input_nodes
        still = [(operand, dim) for operand, dim in places if not flow.is_data(flow.nodes[operand])]
        one_gain = len(operands) == 2 and any(flow.is_data(node) for node in operands) and len(still) > 0
        if not (one_gain and all(_is_gain(flow, labelling, flow.nodes[operand], dim) for operand, dim in still)):
            for operand, dim in places:
                labelling.algebra.meet(_label_of(labelling, operand).dims[dim], SymmetryClass.PERMUTATION)


def gain_dims(flow: Flow, labelling: Labelling, node: fx.Node) -> tuple[bool, ...]:
    """For each dim of a parameter: whether all that reads it multiplies data by it elementwise along that dim."""
    label = _label_of(labelling, node.name)
    return tuple(_is_gain(flow, labelling, node, dim) for dim in range(label.rank))


def _is_gain(flow: Flow, labelling: Labelling, node: fx.Node, dim: int) -> bool:
    inside = set(walk_leaves(_label_of(labelling, node.name).dims[dim]))
    for user in node.users:
        if flow.is_data(user):
            if (node.name, dim) not in labelling.factors.get(user.name, ()):
                return False
        elif not isinstance(derived := labelling.values[user.name], Label):
            return False
        else:
            places = [d for d, other in enumerate(derived.dims) if inside & set(walk_leaves(other))]
            if not places or not all(_is_gain(flow, labelling, user, d) for d in places):
                return False
    return bool(node.users)


def _label_of(labelling: Labelling, name: str) -> Label:
    label = labelling.values[name]
    assert isinstance(label, Label)
    return label


def free_leaves(labelling: Labelling) -> frozenset[Leaf]:
    """The axes of parameters and moved buffers that may move."""
    algebra = labelling.algebra
    every = algebra.layout_leaves(dim for layout in labelling.tensors.values() for dim in layout)
    return frozenset(leaf for leaf in every if leaf.size > 1 and not algebra.reasons(leaf))


def free_elements(labelling: Labelling, name: str, free: frozenset[Leaf]) -> tuple[int, int]:
    """Of one tensor: elements that lie along at least one free axis, and all elements."""
    total, still = 1, 1.0
    for dim in labelling.tensors[name]:
        size = dim_size(dim)
        total *= size
        still *= _fixed_positions(dim, free) / size if size else 0
    return total - round(total * still), total


def _fixed_positions(dim: Dim, free: frozenset[Leaf]) -> int:
    """Positions of a dim that no free axis runs along."""
    count = 1
    for factor in dim:
        match factor:
            case Leaf():
                count *= 0 if factor in free else factor.size
            case Sum():
                count *= sum(_fixed_positions(part, free) for part in factor.parts)
            case Case():
                count *= min(_fixed_positions(branch, free) for _, branch in factor.branches)
    return count
