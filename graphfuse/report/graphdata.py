"""A symmetry graph as plain data (dicts, lists, strings, numbers): what reports, pages and other programs read.

A *dim* is a list of factors; a factor is the number of an axis, ``{"sum": [dim, ...]}``, or ``{"case": [[number, dim],
...]}``, as in :mod:`graphfuse.axes`. Every name is that of the state dict, every number is that of an axis in ``axes``.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from torch import fx

from graphfuse.axes import Case, Dim, Layout, Leaf, Sum
from graphfuse.symmetry import Axis, SymmetryGraph

Json = dict[str, Any]

NICER = {"_native_batch_norm_legit_no_training": "batch_norm", "_unsafe_view": "view"}
"""What people call an op whose ATen name says how it is computed."""


def graph_json(graph: SymmetryGraph, name: str | None = None) -> Json:
    """A symmetry graph as data that ``json.dumps`` takes.

    Parameters
    ----------
    graph : SymmetryGraph
    name : str, optional
        What to call the model; by default the name of its class.

    Returns
    -------
    dict
        ``name``, ``parameters`` (how many numbers), ``free_fraction``, ``method``, ``notes``; ``axes`` (free ones
        first), ``tensors``, and ``nodes``, the ops between the inputs and the outputs in order of execution, each with
        the nodes and tensors it reads and the label of its value.
    """
    parameters = {slot.name for slot in graph.captured.inputs if slot.kind == "parameter"}
    sizes = {name: _count(tensor.shape) for name, tensor in graph.tensors.items() if name in parameters}
    return {
        "name": name or type(graph.model).__name__,
        "parameters": sum(sizes.values()),
        "free_fraction": graph.free_fraction,
        "method": graph.captured.method,
        "notes": [note.message for note in graph.notes],
        "axes": [_axis(axis) for axis in (*graph.axes, *graph.fixed)],
        "tensors": [
            {"name": tensor.name, "shape": list(tensor.shape), "dims": dims_json(tensor.dims)}
            for tensor in graph.tensors.values()
        ],
        "nodes": _nodes(graph),
    }


def dims_json(layout: Layout) -> list[list[Any]]:
    """The label of a tensor as nested lists; see the module."""
    return [_dim(dim) for dim in layout]


def leaves(dims: Any) -> list[int]:
    """The axes that a dim or a whole label, as nested lists, names: each once, in order."""
    found: dict[int, None] = {}
    stack = [dims]
    while stack:
        item = stack.pop()
        if isinstance(item, int):
            found[item] = None
        elif isinstance(item, dict):
            stack.extend(reversed(item.get("sum") or [branch for _, branch in item["case"]]))
        elif item is not None:
            stack.extend(reversed(item))
    return list(found)


def describe(dims: list[list[Any]] | None, shape: list[int] | None, names: Mapping[int, str]) -> str:
    """A label for people: ``[2, residual.0, heads.0 x head_dim_vo.0]``; dims without a named axis show their size."""
    if dims is None or shape is None:
        return ""
    words = (
        _words(dim, names) if any(axis in names for axis in leaves(dim)) else str(size)
        for dim, size in zip(dims, shape, strict=True)
    )
    return f"[{', '.join(words)}]"


def _words(dim: list[Any], names: Mapping[int, str]) -> str:
    words = []
    for factor in dim:
        if isinstance(factor, int):
            words.append(names.get(factor, "fixed"))
        elif "sum" in factor:
            words.append("(" + " + ".join(_words(part, names) for part in factor["sum"]) + ")")
        else:
            words.append("{" + " | ".join(dict.fromkeys(_words(branch, names) for _, branch in factor["case"])) + "}")
    return " x ".join(words) or "1"


def _dim(dim: Dim) -> list[Any]:
    return [_factor(factor) for factor in dim]


def _factor(factor: Leaf | Sum | Case) -> Any:
    match factor:
        case Leaf():
            return factor.id
        case Sum():
            return {"sum": [_dim(part) for part in factor.parts]}
        case Case():
            return {"case": [[key.id, _dim(branch)] for key, branch in factor.branches]}


def _axis(axis: Axis) -> Json:
    return {
        "id": axis.id,
        "name": axis.name,
        "role": axis.role,
        "size": axis.size,
        "class": str(axis.symmetry),
        "context": list(axis.context),
        "free": axis.free,
        "touches": [{"tensor": touch.tensor, "dim": touch.dim} for touch in axis.touches],
        "reasons": [str(reason) for reason in axis.reasons],
    }


def _nodes(graph: SymmetryGraph) -> list[Json]:
    """Every op that leads to an output, and the inputs and outputs themselves."""
    captured = graph.captured
    slots = {slot.node: slot for slot in captured.inputs}
    alive = _alive(captured.graph, captured.outputs)
    nodes = []
    for node in captured.graph.nodes:
        slot = slots.get(node.name)
        if node.name not in alive or node.op == "output" or (slot is not None and slot.kind != "user"):
            continue
        operands = [(other, slots.get(other.name)) for other in node.all_input_nodes]
        names = [slot.name for _, slot in operands if slot is not None and slot.name in graph.tensors]
        site = captured.site(node)
        nodes.append({
            "id": node.name, "kind": "input" if slot is not None else "op", "op": _op_name(node),
            "module": site.module, "source": site.source, "tensors": names,
            "inputs": [other.name for other, slot in operands if slot is None or slot.kind == "user"],
            **_value(graph, node),
        })  # fmt: skip
    for i, name in enumerate(captured.outputs):
        label = "output" if len(captured.outputs) == 1 else f"output {i}"
        nodes.append({
            "id": f"output.{i}", "kind": "output", "op": label, "module": "", "source": "", "tensors": [],
            "inputs": [name] if name in alive else [], "dims": None, "shape": None,
        })  # fmt: skip
    return nodes


def _value(graph: SymmetryGraph, node: fx.Node) -> Json:
    """Label and shape of a node's value; of a node with several values neither (their readers have them)."""
    label, value = graph.nodes.get(node.name), node.meta.get("val")
    shape = getattr(value, "shape", None)
    if label is None or shape is None or len(label) != len(shape):
        return {"dims": None, "shape": None}
    return {"dims": [_dim(dim) if dim is not None else [] for dim in label], "shape": [int(size) for size in shape]}  # pyright: ignore


def _alive(graph: fx.Graph, outputs: tuple[str, ...]) -> set[str]:
    stack = [node for node in graph.nodes if node.name in outputs]
    alive: set[str] = set()
    while stack:
        node = stack.pop()
        if node.name not in alive:
            alive.add(node.name)
            stack.extend(node.all_input_nodes)
    return alive


def _op_name(node: fx.Node) -> str:
    """``linear`` for ``aten.linear.default``; a library's own ops keep the library's name."""
    if node.op == "placeholder":
        return node.name
    if node.target is operator.getitem:
        return "getitem"
    words = str(node.target).split(".")
    return NICER.get(words[1], words[1].strip("_")) if words[0] == "aten" and len(words) > 1 else ".".join(words[:2])


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
