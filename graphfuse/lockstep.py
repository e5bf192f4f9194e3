"""Run several captured models of one architecture on the same inputs, node by node, side by side.

Captured graphs have fixed shapes. A batch of another shape than the examples gets graphs of its own, traced once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from graphfuse.axes import Layout
from graphfuse.capture import signature_of, state_of
from graphfuse.correspond import Correspondence, correspond, node_layouts
from graphfuse.errors import DataError, GraphFuseError
from graphfuse.symmetry import SymmetryGraph, trace

Retrace = Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any]], SymmetryGraph]


@dataclass(frozen=True, eq=False)
class Batch:
    """Inputs of one run, as ``model(*args, **kwargs)`` takes them."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def count(self) -> int:
        """Number of inputs: the length of the first tensor's first dim."""
        for value in pytree.tree_leaves((self.args, dict(self.kwargs))):
            if isinstance(value, Tensor) and value.dim():
                return value.shape[0]
        return 1


def rows_of(batch: Batch, rows: Tensor) -> Batch:
    """Some inputs of a batch: every tensor as long as the batch is indexed along its first dim."""
    count = batch.count

    def take(value: Any) -> Any:
        fits = isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == count
        return value[rows.to(value.device)] if fits else value

    return Batch(*pytree.tree_map(take, (batch.args, dict(batch.kwargs))))


def parted(found: Sequence[Batch], share: float) -> tuple[list[Batch], list[Batch]]:
    """Batches in two parts, the second with this share of the inputs: whole batches when there are enough, else rows.

    Either part is the whole when there is too little to part.
    """
    if len(found) * share >= 1:
        held = [i for i in range(len(found)) if int((i + 1) * share) > int(i * share)]
        return [b for i, b in enumerate(found) if i not in held], [found[i] for i in held]
    first, second = [], []
    for batch in found:
        cut = batch.count - round(batch.count * share)
        if 0 < cut < batch.count:
            first.append(rows_of(batch, torch.arange(cut)))
            second.append(rows_of(batch, torch.arange(cut, batch.count)))
    return (first, second) if first else (list(found), list(found))


def first(found: Sequence[Batch], count: int) -> list[Batch]:
    """The first batches, whole, until at least this many inputs are in them."""
    before = itertools.accumulate((batch.count for batch in found), initial=0)
    return [batch for seen, batch in zip(before, found, strict=False) if seen < count]


def batches(data: Iterable[Any], samples: int) -> list[Batch]:
    """Whole batches of the data, until at least this many inputs are seen.

    A batch is a tensor or a tuple or list (positional arguments), or a mapping (keyword arguments). A single tensor in
    place of an iterable is one batch.

    Raises
    ------
    DataError
        The data yields nothing, or something that is no batch.
    """
    if isinstance(data, Tensor | Mapping):
        data = [data]
    found: list[Batch] = []
    seen = 0
    for item in data:
        batch = as_batch(item)
        if batch.count == 0:
            continue
        found.append(batch)
        seen += batch.count
        if seen >= samples:
            break
    if not found:
        raise DataError(
            "the data yields no batch.\n  got: an empty iterable\n  expected: batches of inputs\n"
            "  what to do: pass a list or a data loader; an iterator that was used up is empty the second time"
        )
    return found


def as_batch(item: Any) -> Batch:
    """One batch as positional and keyword arguments; DataError when it is no batch."""
    match item:
        case Batch():
            return item
        case Tensor():
            return Batch((item,), {})
        case Mapping() if all(isinstance(key, str) for key in item):
            return Batch((), dict(item))
        case tuple() | list():
            return Batch(tuple(item), {})
    raise DataError(
        f"a batch of type {type(item).__name__} cannot be given to the model.\n"
        "  expected: a tensor, a tuple of positional arguments, or a dict of keyword arguments"
    )


class Steps:
    """A run of a captured graph that stops where it is told to; the last value may be asked for again."""

    def __init__(self, steps: Iterator[tuple[Any, Any]]) -> None:
        self._steps = steps
        self._last: tuple[str, Any] = ("", None)

    def to(self, name: str) -> Any:
        """Run on to a node, which must not come before the last one, and return its value."""
        if name != self._last[0]:
            self._last = "", None
            for node, value in self._steps:
                if node.name == name:
                    self._last = name, value
                    break
            else:
                raise DataError(f"the captured graph has no node {name!r} after those already run")
        return self._last[1]


@dataclass(frozen=True, eq=False)
class Moment:
    """What all models have at one node: values, and the axis sizes (by the target's axis numbers) that they have.

    ``dims`` is the node's label in the target's graph; a node with several outputs gives one moment for each.
    """

    node: str
    dims: Layout
    values: tuple[Tensor, ...]
    sizes: tuple[Mapping[int, int], ...]


@dataclass(eq=False)
class Lockstep:
    """Runs corresponding models side by side.

    Parameters
    ----------
    models : sequence of nn.Module
        In the order of ``correspondence.graphs``.
    correspondence : Correspondence
        Of the graphs of these models on the example inputs.
    states : sequence of mappings, optional
        Weights to run with instead of the models' own.
    retrace : callable
        ``(model, args, kwargs) -> SymmetryGraph``, for batches of another shape.
    labels : mapping, optional
        Labels of the target's nodes to be used in place of its graph's own, with axes of their own.
    resized : callable
        Sizes of the graph's axes -> those of all axes in ``labels``.
    """

    models: Sequence[nn.Module]
    correspondence: Correspondence
    states: Sequence[Mapping[str, Tensor]] | None = None
    retrace: Retrace = trace
    notes: list[str] = field(default_factory=list)
    labels: Mapping[str, tuple[Layout | None, ...]] | None = None
    resized: Callable[[Mapping[int, int]], Mapping[int, int]] = dict
    known: dict[Any, tuple[Correspondence, Correspondence] | None] = field(default_factory=dict)

    @cached_property
    def layouts(self) -> Mapping[str, tuple[Layout | None, ...]]:
        """The labels of all nodes of the target's graph."""
        return node_layouts(self.correspondence.graph) if self.labels is None else self.labels

    @cached_property
    def shared(self) -> frozenset[str]:
        """Nodes of the target's graph that every model has."""
        return frozenset.intersection(*(frozenset(nodes) for nodes in self.correspondence.nodes))

    def run(self, batch: Batch, wanted: Collection[str]) -> Iterator[Moment]:
        """Values of the wanted nodes (names of the target's graph), in order.

        A batch that the models cannot be traced on is left out with a note, unless it is the first.
        """
        found = self.graphs(batch)
        if found is None:
            return
        graphs, names = found
        states = self.states if self.states is not None else [state_of(model) for model in self.models]
        runs = [
            Steps(graph.captured.steps(graph.captured.bind(state, batch.args, batch.kwargs)))
            for graph, state in zip(graphs.graphs, states, strict=True)
        ]
        places = [names.nodes[1 + k] for k in range(len(runs))]
        order = self._order(wanted)
        common = [name for name in order if all(name in place for place in places)]
        if len(common) < len(order):
            self._remark(f"{len(order) - len(common)} of {len(order)} nodes were not looked at for batches of "
                         f"{batch.count}: their labels are not those of the first batch")  # fmt: skip
        with torch.no_grad():
            for name in common:
                yield from self._moments(name, [run.to(at[name]) for run, at in zip(runs, places, strict=True)], names)

    def tensors(self, batch: Batch) -> dict[str, Tensor]:
        """A batch's tensors by the names of the target's inputs; empty for a batch that is left out."""
        found = self.graphs(batch)
        if found is None:
            return {}
        captured = found[0].graph.captured
        state = self.states[found[0].target] if self.states is not None else state_of(self.models[found[0].target])
        values = captured.bind(state, batch.args, batch.kwargs)
        return {slot.name: values[slot.node] for slot in captured.inputs if slot.kind == "user"}

    def _remark(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _order(self, wanted: Collection[str]) -> list[str]:
        nodes = self.correspondence.graph.captured.graph.nodes
        return [node.name for node in nodes if node.name in wanted and node.op == "call_function"]

    def _moments(self, name: str, values: Sequence[Any], names: Correspondence) -> Iterator[Moment]:
        for i, dims in enumerate(self.layouts[name]):
            parts = tuple(value[i] if isinstance(value, tuple | list) else value for value in values)
            if dims is not None and all(isinstance(part, Tensor) for part in parts):
                yield Moment(name, dims, parts, tuple(map(self.resized, names.sizes[1:])))
            del parts

    def graphs(self, batch: Batch) -> tuple[Correspondence, Correspondence] | None:
        """Graphs that fit a batch, related to each other and to the graphs of the examples."""
        key = signature_of(batch.args, batch.kwargs)
        if key not in self.known:
            try:
                self.known[key] = self._fit(batch)
            except GraphFuseError as error:
                if not any(self.known.values()):
                    raise
                self.known[key] = None
                self.notes.append(f"a batch of another shape was left out, as it cannot be traced: {error}")
        return self.known[key]

    def _fit(self, batch: Batch) -> tuple[Correspondence, Correspondence]:
        reference = self.correspondence
        key = signature_of(batch.args, batch.kwargs)
        if all(graph.captured.signature == key for graph in reference.graphs):
            fitting = reference
        else:
            graphs = [self.retrace(model, batch.args, batch.kwargs) for model in self.models]
            fitting = correspond(graphs, reference.target, reference.absent)
        return fitting, correspond([reference.graph, *fitting.graphs], 0, [(), *reference.absent])
