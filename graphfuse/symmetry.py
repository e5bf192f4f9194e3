"""The symmetry graph: which axes of a model are free, what they are, what they touch, and why the others are fixed."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import networkx as nx
from torch import Tensor, fx, nn

from graphfuse.algebra import Reason
from graphfuse.axes import Layout, Leaf, SymmetryClass, walk_leaves
from graphfuse.capture import Captured, capture, state_of
from graphfuse.constants import makes_constants
from graphfuse.flow import Flow, consumed_dims, flow_of, free_elements, free_leaves, gain_dims, settle_products
from graphfuse.frontend import written_in_training
from graphfuse.labeling import Labelling, Note, Value, label, statistics_of
from graphfuse.roles import roles_of
from graphfuse.rulebook import RuleBook, Rules, load_rules
from graphfuse.rulebook.op import Label
from graphfuse.tables import Table


@dataclass(frozen=True, slots=True)
class Touch:
    """One dimension of one parameter or moved buffer."""

    tensor: str
    dim: int


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a model: free when ``reasons`` is empty.

    ``context`` lists the axes along which its map may differ (its own map for each head, say); ``symmetry`` is the
    largest class of maps that all its ops keep (``verify`` checks permutations, with ``classes=True`` all of it).
    """

    id: int
    name: str
    role: str
    size: int
    symmetry: SymmetryClass
    context: tuple[int, ...]
    touches: tuple[Touch, ...]
    reasons: tuple[Reason, ...] = ()

    @property
    def free(self) -> bool:
        """Whether the axis may be permuted."""
        return not self.reasons


@dataclass(frozen=True, slots=True)
class TensorLabel:
    """A parameter or moved buffer: its label, and which of its dims are columns (contracted by all that reads them).

    Along the dims of ``gains`` it only multiplies data elementwise, so scales and signs of the axis leave it as it is.
    """

    name: str
    shape: tuple[int, ...]
    dims: Layout
    consumed: tuple[bool, ...]
    gains: tuple[bool, ...] = ()


@dataclass(frozen=True, slots=True)
class Contraction:
    """A node that contracts an activation with a parameter which no other node reads."""

    node: str
    weight: str
    bias: str | None
    operand: str
    kind: Literal["linear", "matmul", "convolution"]


@dataclass(frozen=True, slots=True)
class Statistics:
    """A node that normalises by stored statistics of its operand."""

    node: str
    operand: str
    mean: str
    var: str


@dataclass(frozen=True, eq=False)
class SymmetryGraph:
    """A model, its captured graph, and the symmetries found in it.

    ``consumed`` has, for each node, the (operand, dim) pairs that it contracts away.
    """

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    captured: Captured
    axes: tuple[Axis, ...]
    fixed: tuple[Axis, ...]
    tensors: Mapping[str, TensorLabel]
    nodes: Mapping[str, Layout | tuple[Layout | None, ...] | None]
    contractions: tuple[Contraction, ...]
    statistics: tuple[Statistics, ...]
    notes: tuple[Note, ...]
    free_fraction: float
    consumed: Mapping[str, frozenset[tuple[str, int]]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def _by_id(self) -> dict[int, Axis]:
        return {axis.id: axis for axis in (*self.axes, *self.fixed)}

    def axis(self, id: int) -> Axis:
        """An axis, free or fixed, by its number."""
        return self._by_id[id]

    def to_networkx(self) -> nx.Graph:
        """A bipartite graph: axes on one side, parameters and moved buffers on the other, one edge for each touch.

        Axis nodes are ``("axis", id)`` with the fields of :class:`Axis`, tensor nodes ``("tensor", name)`` with
        ``shape``; edges carry ``dim`` (a list, as an axis may occur in several dims of one tensor).
        """
        graph = nx.Graph()
        for axis in (*self.axes, *self.fixed):
            graph.add_node(
                ("axis", axis.id), name=axis.name, role=axis.role, size=axis.size, symmetry=str(axis.symmetry),
                free=axis.free, context=axis.context, reasons=[str(reason) for reason in axis.reasons],
            )  # fmt: skip
        for name, tensor in self.tensors.items():
            graph.add_node(("tensor", name), shape=tensor.shape)
        for axis in (*self.axes, *self.fixed):
            for touch in axis.touches:
                ends = ("axis", axis.id), ("tensor", touch.tensor)
                dims = graph.edges[ends]["dim"] if graph.has_edge(*ends) else []
                graph.add_edge(*ends, dim=[*dims, touch.dim])
        return graph

    @property
    def table(self) -> Table:
        """The free axes, one row each."""
        summary = (
            f"{type(self.model).__name__}: {len(self.axes)} free axes, {self.free_fraction:.1%} of the parameters "
            f"move ({self.captured.method})"
        )
        rows, notes = tuple(self._row(axis) for axis in self.axes), tuple(note.message for note in self.notes)
        return Table(summary, ("axis", "size", "class", "differs along", "touches"), rows, notes)

    def __str__(self) -> str:
        return str(self.table)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.table.html()

    def _row(self, axis: Axis) -> tuple[str, ...]:
        names = [f"{touch.tensor}[{touch.dim}]" for touch in axis.touches]
        shown = ", ".join(names[:3]) + (f", ... ({len(names)})" if len(names) > 3 else "")
        along = ", ".join(self.axis(key).name for key in axis.context)
        return axis.name, str(axis.size), str(axis.symmetry), along, shown


def trace(
    model: nn.Module,
    args: tuple[Any, ...] | Tensor = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    rules: Iterable[Rules] | RuleBook = (),
    outputs: Collection[str] = (),
) -> SymmetryGraph:
    """Find the permutation symmetries of a model.

    Parameters
    ----------
    model : nn.Module
        Any module; it is looked at in eval mode and left as it was. May live on the meta device.
    args, kwargs :
        Example inputs, as ``model(*args, **kwargs)`` takes them. Only their shapes matter, unless the model branches
        on their values.
    rules : RuleBook or paths
        Further rule packs (YAML files), or a whole rule book.
    outputs : collection of str
        Names of the outputs that are used (``["logits"]``; numbers in a tuple); the others, hidden states that a model
        also returns, may change their coordinates. By default all of them must stay.

    Returns
    -------
    SymmetryGraph
        ``.axes`` (free), ``.fixed`` (with reasons), ``.tensors``, ``.free_fraction``; ``print`` shows a table.

    Raises
    ------
    CaptureError
        The model does not run on these inputs or cannot be captured.
    ConfigError
        The model has no output of such a name.
    RuleError
        A rule pack is malformed.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> [(axis.role, axis.size) for axis in trace(model, (torch.zeros(1, 4),)).axes]
    [('hidden', 8)]
    """
    args = (args,) if isinstance(args, Tensor) else tuple(args)
    book = rules if isinstance(rules, RuleBook) else load_rules(rules)
    start = time.perf_counter()
    unknown = lambda op: not (book.has_rule(op) or makes_constants(op))  # noqa: E731
    captured = capture(model, args, kwargs, unknown, book.atom, outputs)
    middle = time.perf_counter()
    state = state_of(model)
    learned = written_in_training(model, args, dict(kwargs or {}), _candidates(model, captured, book, state))
    labelling = label(captured, book, state, learned)
    graph = assemble(model, args, dict(kwargs or {}), captured, labelling, book)
    return replace(graph, seconds={"capture": middle - start, "label": time.perf_counter() - middle})


def _candidates(model: nn.Module, captured: Captured, book: RuleBook, state: Mapping[str, Tensor]) -> list[str]:
    """Buffers of checkpoints that hold numbers and are no statistics of an op: learned, if training writes to them."""
    saved, named = model.state_dict(keep_vars=True).keys(), set(statistics_of(captured, book).values())
    names = [slot.name for slot in captured.inputs if slot.kind == "buffer" and slot.name in saved - named]
    return [name for name in names if state[name].is_floating_point() and state[name].numel() > 1]


def assemble(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    captured: Captured,
    labelling: Labelling,
    book: RuleBook,
) -> SymmetryGraph:
    """The symmetry graph of a labelled capture."""
    flow = flow_of(captured)
    settle_products(flow, labelling)
    free = free_leaves(labelling)
    placeholders = {slot.name: flow.nodes[slot.node] for slot in captured.inputs if slot.name in labelling.tensors}
    tensors = {
        name: TensorLabel(name, tuple(placeholders[name].meta["val"].shape), labelling.algebra.norm_all(layout),
                          consumed_dims(flow, labelling, placeholders[name]),
                          gain_dims(flow, labelling, placeholders[name]))
        for name, layout in labelling.tensors.items()
    }  # fmt: skip
    axes = _axes(labelling, tensors, roles_of(flow, labelling, free))
    parameters = {slot.name for slot in captured.inputs if slot.kind == "parameter"}
    counts = [free_elements(labelling, name, free) for name in tensors if name in parameters]
    every = sum(total for _, total in counts)
    return SymmetryGraph(
        model=model, args=args, kwargs=kwargs, captured=captured,
        axes=tuple(axis for axis in axes if axis.free),
        fixed=tuple(axis for axis in axes if not axis.free),
        tensors=tensors,
        nodes={name: _layouts(value) for name, value in labelling.values.items()},
        contractions=_contractions(flow, captured, book),
        statistics=_statistics(flow, captured, book),
        notes=(*(Note(text, Reason("")) for text in captured.notes), *labelling.notes),
        free_fraction=sum(moved for moved, _ in counts) / every if every else 0.0,
        consumed=labelling.consumed,
    )  # fmt: skip


def _axes(labelling: Labelling, tensors: Mapping[str, TensorLabel], roles: Mapping[Leaf, str]) -> list[Axis]:
    touches: dict[Leaf, dict[Touch, None]] = {}
    for name, tensor in tensors.items():
        for d, dim in enumerate(tensor.dims):
            for leaf in walk_leaves(dim):
                if leaf.size > 1:
                    touches.setdefault(leaf, {})[Touch(name, d)] = None
    counts: dict[str, int] = defaultdict(int)
    axes = []
    outer = {key for leaf in touches for key in labelling.algebra.context(leaf)}
    for leaf, touched in touches.items():
        role = roles.get(leaf, "fixed")
        context = tuple(sorted(key.id for key in labelling.algebra.context(leaf) if key.size > 1))
        symmetry, reasons = labelling.algebra.symmetry(leaf), labelling.algebra.reasons(leaf)
        if leaf in outer:  # what differs along an axis cannot follow a mixture of its elements
            symmetry &= SymmetryClass.MONOMIAL
        name = f"{role}.{counts[role]}"
        axes.append(Axis(leaf.id, name, role, leaf.size, symmetry, context, tuple(touched), reasons))
        counts[role] += 1
    return axes


def _layouts(value: Value) -> Layout | tuple[Layout | None, ...] | None:
    if isinstance(value, list):
        return tuple(part.dims if part is not None else None for part in value)
    return value.dims if isinstance(value, Label) else None


def _contractions(flow: Flow, captured: Captured, book: RuleBook) -> tuple[Contraction, ...]:
    """Nodes whose rule says which operand is data and which is the weight, and whose weight is theirs alone."""
    parameters = {slot.node: slot.name for slot in captured.inputs if slot.kind == "parameter"}

    def own(node: fx.Node | None) -> str | None:
        return parameters.get(node.name) if node is not None and len(node.users) == 1 else None

    found = []
    for node in flow.nodes.values():
        spec = book.contraction(node.target)
        if spec is None:
            continue
        operand, weight, bias = (_operand(node, name) for name in (spec.input, spec.weight, spec.bias))
        name, shift = own(weight), own(bias)
        if operand is not None and name is not None and flow.is_data(operand) and (bias is None or shift is not None):
            found.append(Contraction(node.name, name, shift, operand.name, spec.kind))
    return tuple(found)


def _statistics(flow: Flow, captured: Captured, book: RuleBook) -> tuple[Statistics, ...]:
    buffers = {slot.node: slot.name for slot in captured.inputs if slot.kind == "buffer"}
    found = []
    for node in flow.nodes.values():
        names = book.statistics(node.target)
        if names:
            mean, var = (_operand(node, names[key]) for key in ("mean", "var"))
            if mean is not None and var is not None and mean.name in buffers and var.name in buffers:
                operand = node.all_input_nodes[0]
                found.append(Statistics(node.name, operand.name, buffers[mean.name], buffers[var.name]))
    return tuple(found)


def _operand(node: fx.Node, name: str | None) -> fx.Node | None:
    """The graph node given for a schema argument, if it is one."""
    if name is None:
        return None
    names = [argument.name for argument in node.target._schema.arguments]  # pyright: ignore
    place = names.index(name)
    value = node.args[place] if place < len(node.args) else node.kwargs.get(name)
    return value if isinstance(value, fx.Node) else None
