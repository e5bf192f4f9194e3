"""From an exported program to functional ATen ops, of which as few as possible have no rule."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any, Literal

from torch import Tensor, fx
from torch._decomp import decomposition_table as every_decomposition
from torch._ops import OpOverload
from torch.export import ExportedProgram, default_decompositions
from torch.export.graph_signature import OutputKind
from torch.utils import _pytree as pytree

from graphfuse.frontend.inlining import inline
from graphfuse.frontend.striding import unstride
from graphfuse.frontend.tracing import headline

Kind = Literal["parameter", "buffer", "constant", "user"]
Decompose = Callable[[OpOverload], bool]
MAX_ROUNDS = 8
ASSERTIONS = ("_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range")
"""Ops that check and compute nothing."""


@dataclass(frozen=True)
class Slot:
    """What one placeholder stands for: a name of the state dict, a lifted constant, or the n-th flat user input."""

    kind: Kind
    name: str


@dataclass(frozen=True, eq=False)
class Program:
    """An ATen graph as the front end gave it; ``outputs`` is what the user gets back, in flat order.

    ``reads`` are nodes whose values left the graph for Python code.
    """

    graph_module: fx.GraphModule
    slots: Mapping[str, Slot]
    constants: Mapping[str, Tensor]
    outputs: tuple[Any, ...]
    out_spec: pytree.TreeSpec
    method: Literal["export", "make_fx"]
    notes: tuple[str, ...]
    reads: tuple[fx.Node, ...] = ()


def lower(exported: ExportedProgram, decompose: Decompose) -> tuple[ExportedProgram, tuple[str, ...]]:
    """Functionalise, and decompose the ops that have no rule until none of them can be decomposed any further."""
    if is_lowered(exported.graph_module, decompose):
        unstride(exported.graph_module)
        return exported, ()
    standard = default_decompositions()
    table: dict[Any, Callable[..., Any]] = {}
    lowered = None
    notes: list[str] = []
    refused: set[OpOverload] = set()
    for _ in range(MAX_ROUNDS):
        found = {}
        for op in ops_of((lowered or exported).graph_module) - table.keys() - refused:
            how = decomposition(op, standard)
            if how is not None and decompose(op):
                found[op] = how
        if lowered is not None and not found:
            break
        try:
            lowered = exported.run_decompositions({**table, **found})
            table |= found
        except Exception as error:
            if not found:
                raise
            refused |= found.keys()
            notes.append(f"not decomposed: {', '.join(sorted(map(str, found)))} ({headline(error)})")
    lowered = lowered or exported
    _restore_sites(exported, lowered)
    inline(lowered.graph_module)
    unstride(lowered.graph_module)
    return lowered, tuple(notes)


def is_lowered(graph_module: fx.GraphModule, decompose: Decompose) -> bool:
    """Whether a graph is flat and functional as it stands and each of its ops has a rule, so that to trace it once more
    would take as long as the export did and change nothing. What calls a sub-graph is no ATen op."""
    targets = {node.target for node in graph_module.graph.nodes if node.op == "call_function"} - {getitem}
    return all(
        isinstance(op, OpOverload)
        and not op._schema.is_mutable
        and (not decompose(op) or any(word in str(op) for word in ASSERTIONS))
        for op in targets
    )


def _restore_sites(exported: ExportedProgram, lowered: ExportedProgram) -> None:
    """Blocks that torch wraps in a sub-graph (autocast, enable_grad) come back inlined, but forget where they were."""
    metas: dict[tuple[str, str], dict[str, Any]] = {}
    for module in exported.graph_module.modules():
        if isinstance(module, fx.GraphModule):
            file = type(module).forward.__code__.co_filename
            metas |= {(file, node.name): node.meta for node in module.graph.nodes}
    for node in lowered.graph.nodes:
        found = re.search(r'File "(<eval_with_key>[^"]*)", line \d+, in forward\n\s*(\w+)', _trace_of(node))
        before = metas.get((found[1], found[2])) if found else None
        if before:
            node.meta |= {key: before[key] for key in ("stack_trace", "nn_module_stack") if before.get(key)}


def _trace_of(node: fx.Node) -> str:
    return node.meta.get("stack_trace") or ""


def ops_of(graph_module: fx.GraphModule) -> set[OpOverload]:
    """Every ATen op of a graph, those of its sub-graphs included."""
    graphs = [m.graph for m in graph_module.modules() if isinstance(m, fx.GraphModule)]
    return {node.target for graph in graphs for node in graph.nodes if isinstance(node.target, OpOverload)}


def output_node(graph_module: fx.GraphModule) -> fx.Node:
    return next(iter(graph_module.graph.find_nodes(op="output")))


def user_outputs(exported: ExportedProgram) -> list[Any]:
    results: Sequence[Any] = output_node(exported.graph_module).args[0]  # pyright: ignore[reportAssignmentType]
    specs = exported.graph_signature.output_specs
    return [value for value, spec in zip(results, specs, strict=True) if spec.kind == OutputKind.USER_OUTPUT]


def decomposition(op: OpOverload, standard: Mapping[Any, Callable[..., Any]]) -> Callable[..., Any] | None:
    """How torch takes an op apart: export's own table first, then the larger one of its compiler."""
    return standard[op] if op in standard else every_decomposition.get(op)
