"""Captured graphs as bytes, so that what holds one can be pickled."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Mapping
from typing import Any

from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx._graph_pickler import GraphPickler, Options
from torch.fx.experimental.symbolic_shapes import ShapeEnv

KEPT = ("val", "nn_module_stack", "stack_trace")  # what graphfuse reads of a node's meta


def packed(fields: Mapping[str, Any]) -> bytes:
    """Values by name; graph modules among them with their nodes' shapes, modules and source lines."""
    graphs = {name: _graph_out(value) for name, value in fields.items() if isinstance(value, fx.GraphModule)}
    rest = {name: value for name, value in fields.items() if name not in graphs}
    return pickle.dumps((graphs, rest))


def unpacked(data: bytes) -> dict[str, Any]:
    """The values that were packed. As with every pickle: only from where it can be trusted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, on how it makes the specs of pytrees
        graphs, rest = pickle.loads(data)
    return {**rest, **{name: _graph_in(value) for name, value in graphs.items()}}


def _graph_out(module: fx.GraphModule) -> bytes:
    plain = copy.deepcopy(module)
    plain.meta = {}
    for node in plain.graph.nodes:
        node.meta = {key: node.meta[key] for key in KEPT if key in node.meta}
    return GraphPickler.dumps(plain, Options(ops_filter=None))


def _graph_in(data: bytes) -> fx.GraphModule:
    found = GraphPickler.loads(data, FakeTensorMode(shape_env=ShapeEnv()))
    assert isinstance(found, fx.GraphModule)
    return found
