"""The ops of a model that no rule covers: where they occur, what they cost, and a stub for each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx
from torch._ops import OpOverload

from graphfuse.rulebook.authoring import stub
from graphfuse.symmetry import SymmetryGraph


@dataclass(frozen=True)
class Place:
    """One occurrence: the module that it belongs to, and the user's line."""

    module: str
    source: str


@dataclass(frozen=True)
class MissingRule:
    """An op that fixes all that it touches: why, where it occurs, and a pack to start from."""

    op: str
    why: str
    places: tuple[Place, ...]
    stub: str


def missing_rules(graph: SymmetryGraph) -> tuple[MissingRule, ...]:
    """The ops of a traced model for which there was no rule, or whose rule could not be applied, in graph order."""
    nodes = {node.name: node for node in graph.captured.graph.nodes}
    found: dict[str, tuple[str, list[Place], fx.Node]] = {}
    for note in graph.notes:
        node = nodes.get(note.site.node)
        if node is not None and isinstance(node.target, OpOverload):
            why = note.message.removeprefix(f"{note.site.op}: ").partition(";")[0]
            found.setdefault(note.site.op, (why, [], node))[1].append(Place(note.site.module, note.site.source))
    return tuple(MissingRule(op, why, tuple(places), _stub(node)) for op, (why, places, node) in found.items())


def _stub(node: fx.Node) -> str:
    op = node.target
    assert isinstance(op, OpOverload)
    names = [argument.name for argument in op._schema.arguments]
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    shapes = {name: shape for name, value in given.items() if (shape := _shape(value)) is not None}
    outputs = [shape for shape in map(_shape, _results(node)) if shape is not None]
    return stub(op, shapes, outputs)


def _results(node: fx.Node) -> Iterator[Any]:
    value = node.meta.get("val")
    yield from value if isinstance(value, list | tuple) else [value]


def _shape(value: Any) -> tuple[int, ...] | None:
    tensor = value.meta.get("val") if isinstance(value, fx.Node) else value
    if not isinstance(tensor, Tensor) or not all(isinstance(size, int) for size in tensor.shape):
        return None
    return tuple(tensor.shape)
