"""Names for axes from structure alone: what the ops around an axis do with it, never what a module is called."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from torch import fx

from graphfuse.axes import Dim, Leaf
from graphfuse.flow import Flow
from graphfuse.labeling import Labelling
from graphfuse.rulebook.op import Label

ROLES = (
    "experts", "heads", "head_dim_qk", "head_dim_vo", "recurrent",
    "residual", "gate", "channels", "embedding", "hidden",
)  # fmt: skip
"""Every role; where several fit an axis, the first one wins."""


def roles_of(flow: Flow, labelling: Labelling, free: Iterable[Leaf]) -> dict[Leaf, str]:
    """The role of each free axis."""
    found: dict[str, set[Leaf]] = defaultdict(set)
    for node in flow.nodes.values():
        if node.op == "call_function":
            _observe(flow, labelling, node, found)
    return {leaf: next((role for role in ROLES if leaf in found[role]), "hidden") for leaf in free}


def _observe(flow: Flow, labelling: Labelling, node: fx.Node, found: dict[str, set[Leaf]]) -> None:
    op = str(node.target)
    operands = [n for n in node.all_input_nodes if isinstance(labelling.values[n.name], Label)]
    data = [n for n in operands if flow.is_data(n)]
    leaves = labelling.algebra.layout_leaves
    dims = {n: _label(labelling, n).dims for n in operands}
    if any(word in op for word in ("lstm", "gru", "rnn_")):
        output = labelling.values[node.name]
        parts = output if isinstance(output, list) else [output]
        found["recurrent"] |= frozenset().union(*(leaves(part.dims) for part in parts if part is not None))
    elif "conv" in op and len(operands) > 1:
        found["channels"] |= leaves(dims[operands[1]])
    elif op.startswith("aten.embedding"):
        found["embedding"] |= leaves(dims[operands[0]])
    elif op.startswith(("aten.softmax", "aten._softmax", "aten.topk", "aten.sigmoid")) and data:
        found["experts"] |= _softmax_axes(labelling, node, data[0], op)
    elif op.startswith("aten.add.") and len(data) == 2:
        found["residual"] |= leaves(dims[data[0]]) & leaves(dims[data[1]])
    elif op.startswith("aten.mul.") and len(data) == 2:
        found["gate"] |= _last(labelling, dims[data[0]]) & _last(labelling, dims[data[1]])
    elif "scaled_dot_product" in op:
        query, _, value = (dims[n] for n in node.args[:3] if isinstance(n, fx.Node))
        found["head_dim_qk"] |= labelling.algebra.leaves(query[-1])
        found["head_dim_vo"] |= labelling.algebra.leaves(value[-1])
        found["heads"] |= leaves(query[:-2])
    elif len(data) == 2 and labelling.consumed.get(node.name) and not any(_label(labelling, n).held for n in data):
        _observe_product(labelling, node, data, found)


def _observe_product(labelling: Labelling, node: fx.Node, data: list[fx.Node], found: dict[str, set[Leaf]]) -> None:
    """A product of two activations: queries with keys, or weights with values."""
    algebra, away = labelling.algebra, labelling.consumed[node.name]
    first, second = (_label(labelling, n).dims for n in data)
    output = labelling.values[node.name]
    kept = algebra.layout_leaves(output.dims) if isinstance(output, Label) else frozenset()
    gone = frozenset().union(*(algebra.leaves(_label(labelling, flown).dims[d]) for flown in data
                               for name, d in away if name == flown.name))  # fmt: skip
    shared = algebra.layout_leaves(first) & algebra.layout_leaves(second)
    found["head_dim_qk"] |= gone
    found["heads"] |= (shared & kept) - gone
    found["head_dim_vo"] |= algebra.leaves(second[-1]) - shared


def _softmax_axes(labelling: Labelling, node: fx.Node, operand: fx.Node, op: str) -> frozenset[Leaf]:
    """The axis that a softmax or a ranking runs over; free ones choose between experts."""
    if op.startswith("aten.sigmoid"):
        return frozenset()
    place = 2 if "topk" in op else 1
    d = node.args[place] if len(node.args) > place else node.kwargs.get("dim", -1)
    return labelling.algebra.leaves(_label(labelling, operand).dims[d]) if isinstance(d, int) else frozenset()


def _last(labelling: Labelling, dims: tuple[Dim, ...]) -> frozenset[Leaf]:
    return labelling.algebra.layout_leaves(dims)


def _label(labelling: Labelling, node: fx.Node) -> Label:
    label = labelling.values[node.name]
    assert isinstance(label, Label)
    return label
