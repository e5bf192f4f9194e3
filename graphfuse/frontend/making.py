"""Capture by ``make_fx`` on the real inputs, where ``torch.export`` refuses: straight-line code for these inputs.

The model is traced once without functionalisation, so that composite ops stay whole. The straight-line code is then
exported; where export refuses even that (sizes that depend on data), it is traced a second time, functionalised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.fx.traceback as node_meta
from torch import Tensor, fx, nn
from torch.export import default_decompositions
from torch.export.graph_signature import InputKind
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from graphfuse.frontend.lowering import (
    MAX_ROUNDS,
    Decompose,
    Program,
    Slot,
    decomposition,
    lower,
    ops_of,
    output_node,
    user_outputs,
)
from graphfuse.frontend.tracing import Reads, headline, module_names, quiet, restoring, source_of
from graphfuse.outputs import tensors_in

FLAT = pytree.tree_structure([])


def by_make_fx(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], decompose: Decompose, refusal: Exception
) -> Program:
    """Trace on the real inputs into straight-line code, then bring that into the same form as an export."""
    parameters = dict(model.named_parameters())
    state = {**parameters, **dict(model.named_buffers())}
    flat, in_spec = pytree.tree_flatten((args, dict(kwargs)))
    where = [i for i, value in enumerate(flat) if isinstance(value, Tensor)]
    results: list[Any] = []
    spec: list[pytree.TreeSpec] = []
    reads = Reads("straight")

    def straight(*values: Tensor) -> list[Tensor]:
        inputs = list(flat)
        for i, value in zip(where, values[len(state) :], strict=True):
            inputs[i] = value
        a, k = pytree.tree_unflatten(inputs, in_spec)
        reads.tensors.clear()
        with reads:
            out = torch.func.functional_call(model, dict(zip(state, values, strict=False)), a, k)
        leaves, out_spec = pytree.tree_flatten(out)
        results[:], spec[:] = leaves, [out_spec]
        inside = [x for leaf in leaves if not isinstance(leaf, Tensor) for x in tensors_in(leaf)]
        return [leaf for leaf in (*leaves, *reads.tensors, *inside) if isinstance(leaf, Tensor)]

    values = [v.detach() if name in parameters else v.detach().clone() for name, v in state.items()]
    values += [flat[i].detach().clone() for i in where]  # tracing on real values runs in-place writes for real
    names = [Slot("parameter" if name in parameters else "buffer", name) for name in state]
    names += [Slot("user", str(i)) for i in where]
    with quiet(), module_names(model), restoring(model), torch.random.fork_rng(devices=[]):
        traced = _trace(straight, values, pre_dispatch=True)
        functional = _functionalise(traced, values, names, decompose)
    notes = [_note(refusal), *functional.notes]
    if reads.lines:
        notes.append(
            f"values read out of tensors became constants of the graph, at {'; '.join(sorted(reads.lines)[:5])}"
        )
    tensors = iter(functional.outputs)
    outputs = [next(tensors) if isinstance(leaf, Tensor) else leaf for leaf in results]
    for i, leaf in enumerate(results):
        if not isinstance(leaf, Tensor | bool | int | float | str | None):
            outputs[i] = None
            kept = "; the tensors in it stay as they are" if tensors_in(leaf) else ""
            notes.append(f"an output of type {type(leaf).__name__} is left out: it is no tensor and no pytree{kept}")
    return replace(functional, outputs=tuple(outputs), reads=tuple(tensors), out_spec=spec[0], notes=tuple(notes))


def _trace(function: Any, values: Sequence[Tensor], **options: Any) -> fx.GraphModule:
    traced = make_fx(function, _error_on_data_dependent_ops=False, record_stack_traces=True, **options)(*values)
    _drop_scalar_reads(traced)
    return traced


def _functionalise(
    traced: fx.GraphModule, values: Sequence[Tensor], names: Sequence[Slot], decompose: Decompose
) -> Program:
    """Straight-line code in functional form; its outputs and ``out_spec`` are those of the flat tensors."""
    try:
        exported, notes = lower(torch.export.export(_Replay(traced), tuple(values), strict=False), decompose)
    except Exception as error:
        return _trace_again(traced, values, names, decompose, error)
    arguments = iter(names)
    slots: dict[str, Slot] = {}
    for spec in exported.graph_signature.input_specs:
        constant = spec.kind != InputKind.USER_INPUT
        slots[spec.arg.name] = Slot("constant", spec.target or spec.arg.name) if constant else next(arguments)
    known = {**exported.constants, **exported.state_dict}
    constants = {slot.name: known[slot.name] for slot in slots.values() if slot.kind == "constant"}
    outputs = tuple(user_outputs(exported))
    return Program(exported.graph_module, slots, constants, outputs, FLAT, "make_fx", notes)


def _trace_again(
    traced: fx.GraphModule, values: Sequence[Tensor], names: Sequence[Slot], decompose: Decompose, error: Exception
) -> Program:
    """On real values, sizes that depend on data are plain numbers; the price is that composite ops come apart."""
    replay = torch.func.functionalize(_Replay(traced), remove="mutations")
    again = _trace(replay, values)
    standard = default_decompositions()
    table = {op: how for op in ops_of(again) if (how := decomposition(op, standard)) and decompose(op)}
    if table:
        again = _trace(_Replay(again), values, decomposition_table=table)
    for _ in range(MAX_ROUNDS):  # what an op that came apart wrote in place is seen in the next round only
        if not any(op._schema.is_mutable for op in ops_of(again)):
            break
        again = _trace(torch.func.functionalize(_Replay(again), remove="mutations"), values)
    slots = {node.name: slot for node, slot in zip(again.graph.find_nodes(op="placeholder"), names, strict=True)}
    results: Any = output_node(again).args[0]
    note = f"sizes depend on the data too: composite ops are taken apart ({headline(error)})"
    return Program(again, slots, {}, tuple(results), FLAT, "make_fx", (note,))


def _note(refusal: Exception) -> str:
    line = source_of(refusal.__traceback__)
    return (
        f"captured for these inputs only: torch.export refused ({headline(refusal)}){f' at {line}' if line else ''}; "
        "branches and loops that depend on data are the ones that these inputs took"
    )


class _Replay(nn.Module):
    """Runs a traced graph node by node, so that the new trace keeps each node's module and source line."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__()
        self.traced = traced

    def forward(self, *values: Tensor) -> Any:
        with node_meta.preserve_node_meta():
            return fx.Interpreter(self.traced).run(*values)


def _drop_scalar_reads(traced: fx.GraphModule) -> None:
    """The branches are taken, so the numbers that they were taken on are read by nobody."""
    for node in reversed(traced.graph.nodes):
        if (
            node.op == "call_function"
            and not node.users
            and node.target
            in (
                torch.ops.aten.item.default,
                torch.ops.aten._local_scalar_dense.default,
            )
        ):
            traced.graph.erase_node(node)
    traced.graph.eliminate_dead_code()
    traced.recompile()
