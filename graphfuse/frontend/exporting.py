"""Capture by ``torch.export``: a graph that holds for all values of the inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from graphfuse.frontend.lowering import Decompose, Kind, Program, Slot, lower, user_outputs
from graphfuse.frontend.tracing import quiet, restoring

KINDS: dict[InputKind, Kind] = {
    InputKind.PARAMETER: "parameter",
    InputKind.BUFFER: "buffer",
    InputKind.CONSTANT_TENSOR: "constant",
    InputKind.USER_INPUT: "user",
}


def by_export(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], decompose: Decompose) -> Program:
    with quiet(), restoring(model):
        exported, notes = lower(_export(model, args, kwargs), decompose)
    signature = exported.graph_signature
    slots: dict[str, Slot] = {}
    position = 0
    for spec in signature.input_specs:
        kind = KINDS.get(spec.kind)
        if kind is None:
            continue
        slots[spec.arg.name] = Slot(kind, str(position) if kind == "user" else spec.target or spec.arg.name)
        position += kind == "user"
    outputs = tuple(user_outputs(exported))
    written = sorted(
        {spec.target for spec in signature.output_specs if spec.kind == OutputKind.BUFFER_MUTATION and spec.target}
    )
    if written:
        notes += (f"the model writes to its buffers while it runs; the new values are ignored: {', '.join(written)}",)
    values = {**exported.constants, **exported.state_dict}
    constants = {slot.name: values[slot.name] for slot in slots.values() if slot.kind == "constant"}
    spec = exported.call_spec.out_spec
    assert spec is not None  # run_decompositions keeps it
    return Program(exported.graph_module, slots, constants, outputs, spec, "export", notes)


def _export(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ExportedProgram:
    try:
        return torch.export.export(model, args, dict(kwargs), strict=False)
    except Exception:
        if not any(tensor.is_meta for tensor in model.parameters()):
            raise
        with torch.device("meta"):  # tensors that forward makes without naming a device would be the only real ones
            return torch.export.export(model, args, dict(kwargs), strict=False)
