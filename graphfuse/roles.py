"""Names for axes from structure alone: what the ops around an axis do with it, never what a module is called.

Every activation has an *origin*: the product with a weight (or the cut, or the sum of several) that it came from, seen
through everything elementwise. A residual stream adds two origins, a gate multiplies two, a function such as an
activation written out in sums and products has one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import fx

from graphfuse.axes import Leaf, walk_leaves
from graphfuse.flow import Flow
from graphfuse.labeling import Labelling
from graphfuse.rulebook.op import Label

ROLES = (
    "recurrent", "state", "experts", "heads", "head_dim_qk", "head_dim_vo", "residual", "gate", "channels",
    "embedding", "hidden",
)  # fmt: skip
"""Every role; where several fit an axis, the first one wins."""

RECURRENT = ("lstm", "gru", "rnn_")
NORMALISED = ("softmax", "topk")
CUTS = ("getitem", "slice", "select", "narrow")


def roles_of(flow: Flow, labelling: Labelling, free: Iterable[Leaf]) -> dict[Leaf, str]:
    """The role of each free axis."""
    free = frozenset(free)
    found = _Observer(flow, labelling, free).observe()
    return {leaf: next((role for role in ROLES if leaf in found[role]), "hidden") for leaf in free}


@dataclass
class _Observer:
    """One pass over the nodes, in order; ``scores`` are products of activations that a softmax may still normalise."""

    flow: Flow
    labelling: Labelling
    free: frozenset[Leaf]
    origin: dict[str, str] = field(default_factory=dict)
    scores: dict[str, fx.Node] = field(default_factory=dict)
    found: dict[str, set[Leaf]] = field(default_factory=lambda: defaultdict(set))

    def observe(self) -> Mapping[str, set[Leaf]]:
        outer = {key for leaf in self.free for key in self.labelling.algebra.context(leaf)}
        self.stacked = outer | {leaf for dims in self.labelling.tensors.values() if len(dims) > 2 for d in dims[:1]
                                for leaf in walk_leaves(d)}  # fmt: skip
        self.rates = self._rates()
        for node in self.flow.nodes.values():
            if node.op == "call_function" and self.flow.is_data(node):
                self._visit(node)
        self._loops()
        return self.found

    # ---------------------------------------------------------------- what a node is made of

    def leaves(self, node: fx.Node) -> frozenset[Leaf]:
        value = self.labelling.values.get(node.name)
        parts = value if isinstance(value, list) else [value]
        dims = [dim for part in parts if isinstance(part, Label) for dim in part.dims]
        return self.labelling.algebra.layout_leaves(dims) & self.free

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        value = self.labelling.values.get(node.name)
        return value.shape if isinstance(value, Label) else ()

    def _gathered(self, node: fx.Node) -> bool:
        """Whether the value is rows of a weight, chosen by data."""
        value = self.labelling.values.get(node.name)
        return isinstance(value, Label) and bool(value.held)

    def _visit(self, node: fx.Node) -> None:
        op = _name(node)
        data = [operand for operand in node.all_input_nodes if self.flow.is_data(operand)]
        others = [operand for operand in node.all_input_nodes if not self.flow.is_data(operand)]
        multiplied = [self.flow.nodes[name] for name, _ in self.labelling.consumed.get(node.name, ())]
        weighing = any(not self.flow.is_data(factor) or self._gathered(factor) for factor in multiplied)
        origins = {self.origin.get(operand.name, operand.name) for operand in data}
        plain = len(origins) == 1 and not weighing and not any(op.startswith(cut) for cut in CUTS)
        self.origin[node.name] = origins.pop() if plain else node.name
        self._name_simple(node, op, data, others)
        if "scaled_dot_product" in op:
            self._attention(node)
        elif multiplied and not weighing:
            self._product(node, list(dict.fromkeys(multiplied)))
        elif any(word in op for word in NORMALISED):
            self._normalised(node, data)
        elif len(data) == 1 and data[0].name in self.scores and not weighing:
            self.scores[node.name] = self.scores[data[0].name]
        elif op in ("add", "mul", "sub", "cat", "where") and (
            score := next((d.name for d in data if d.name in self.scores), None)
        ):
            self.scores[node.name] = self.scores[score]

    def _summed(self, node: fx.Node) -> frozenset[Leaf]:
        """The free axes that the node sums a product over."""
        places = self.labelling.consumed.get(node.name, ())
        labels = [(self.labelling.values[name], d) for name, d in places]
        dims = [label.dims[d] for label, d in labels if isinstance(label, Label)]
        return self.labelling.algebra.layout_leaves(dims) & self.free

    # ---------------------------------------------------------------- roles of single ops

    def _name_simple(self, node: fx.Node, op: str, data: list[fx.Node], others: list[fx.Node]) -> None:
        found = self.found
        if any(word in op for word in RECURRENT):
            found["recurrent"] |= self.leaves(node)
        elif "conv" in op and others:
            found["channels"] |= self.leaves(others[0])
        elif op.startswith("embedding"):
            found["embedding"] |= frozenset().union(*map(self.leaves, others))
        elif op == "glu":
            found["gate"] |= self.leaves(node)
        elif op == "add" and len(data) == 2 and self._differ(data):
            found["residual"] |= self.leaves(data[0]) & self.leaves(data[1])
        elif op == "mul" and len(data) == 2 and self._differ(data) and self.shape(data[0]) == self.shape(data[1]):
            found["gate"] |= self.leaves(data[0]) & self.leaves(data[1])

    def _differ(self, data: list[fx.Node]) -> bool:
        first, second = (self.origin.get(node.name, node.name) for node in data)
        return first != second

    # ---------------------------------------------------------------- attention, experts, states

    def _attention(self, node: fx.Node) -> None:
        query, _, value = (n for n in node.args[:3] if isinstance(n, fx.Node))
        labels = [self.labelling.values[n.name] for n in (query, value)]
        if all(isinstance(label, Label) for label in labels):
            q, v = (label.dims for label in labels if isinstance(label, Label))
            leaves = self.labelling.algebra.leaves
            self.found["head_dim_qk"] |= leaves(q[-1])
            self.found["head_dim_vo"] |= leaves(v[-1])
            self.found["heads"] |= self.labelling.algebra.layout_leaves(q[:-2])

    def _product(self, node: fx.Node, data: list[fx.Node]) -> None:
        """A product of two activations: of queries and keys, of weights and values, or of a state and what reads it."""
        weights = [d for d in data if d.name in self.scores and self.scores[d.name] is not d]
        summed = self._summed(node)
        shared = self.leaves(data[0]) & self.leaves(data[-1]) & self.leaves(node)
        states = summed & self.rates
        self.found["state"] |= states
        if weights:
            values = next((d for d in data if d not in weights), data[-1])
            self.found["head_dim_vo"] |= (self.leaves(values) & self.leaves(node)) - shared
        else:
            self.found["head_dim_qk"] |= summed - states
            self.scores[node.name] = node
        self.found["heads"] |= shared

    def _rates(self) -> frozenset[Leaf]:
        """Axes along which a parameter of several dims scales activations elementwise: rates of a state's decay."""
        found = (self.leaves(node) for node in self._parameters() if self._scales(node))
        return frozenset().union(*found)

    def _parameters(self) -> list[fx.Node]:
        """Parameters of several dims."""
        return [
            node for node in self.flow.nodes.values()
            if node.op == "placeholder" and not self.flow.is_data(node) and len(self.shape(node)) > 1
        ]  # fmt: skip

    def _scales(self, node: fx.Node) -> bool:
        """Whether data is multiplied elementwise by the parameter, or by what is made of it."""
        users = [(user, self.flow.is_data(user)) for user in node.users]
        return any(_name(user) == "mul" if data else self._scales(user) for user, data in users)

    def _normalised(self, node: fx.Node, data: list[fx.Node]) -> None:
        """A softmax or a ranking: over the scores of attention, or over experts, of which each has weights."""
        place = 2 if "topk" in _name(node) else 1
        d = node.args[place] if len(node.args) > place else node.kwargs.get("dim", -1)
        value = self.labelling.values.get(data[0].name) if data else None
        if isinstance(value, Label) and isinstance(d, int):
            over = self.labelling.algebra.leaves(value.dims[d]) & self.free
            self.found["experts"] |= over & self.stacked
        if data and data[0].name in self.scores:
            self.scores[node.name] = self.scores[data[0].name]

    # ---------------------------------------------------------------- loops

    def _loops(self) -> None:
        """An axis that a weight maps to itself, again and again, is the state of a loop."""
        for node in self._parameters():
            label = self.labelling.values[node.name]
            if not isinstance(label, Label) or label.rank != 2:
                continue
            both = self.labelling.algebra.leaves(label.dims[0]) & self.labelling.algebra.leaves(label.dims[1])
            if sum(self.flow.is_data(user) for user in node.users) > 1:
                self.found["recurrent"] |= both & self.free


def _name(node: fx.Node) -> str:
    """An op's plain name: ``add`` for ``aten.add.Tensor``."""
    text = str(node.target)
    return text.split(".")[1].lstrip("_") if text.startswith("aten.") else "getitem" if "getitem" in text else text
