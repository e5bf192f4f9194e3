"""Graph surgery and execution: what makes a captured graph flat, and what runs it node by node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

from graphfuse.frontend import ASSERTIONS, Slot
from graphfuse.inputs import Example


def lift_attributes(graph_module: fx.GraphModule, slots: dict[str, Slot], constants: dict[str, Tensor]) -> None:
    """Tensors that the graph holds as attributes become placeholders, so that consumers know one kind of input."""
    graph = graph_module.graph
    first = next(iter(graph.nodes))
    for node in graph.find_nodes(op="get_attr"):
        name = str(node.target)
        value = _attribute(graph_module, name)
        if not isinstance(value, Tensor):
            continue
        with graph.inserting_before(first):
            lifted = graph.placeholder(f"c_{name.replace('.', '_')}")
        lifted.meta = {**node.meta, "val": node.meta.get("val", value)}
        node.replace_all_uses_with(lifted)
        graph.erase_node(node)
        slots[lifted.name], constants[name] = Slot("constant", name), value


def tie(canonical: Mapping[str, str], graph: fx.Graph, slots: dict[str, Slot]) -> dict[str, str]:
    """Leave one placeholder for each tensor; returns other name -> canonical name."""
    keep: dict[str, fx.Node] = {}
    for node in graph.find_nodes(op="placeholder"):
        slot = slots.get(node.name)
        if slot is None or slot.kind not in ("parameter", "buffer"):
            continue
        name = canonical.get(slot.name, slot.name)
        slots[node.name] = Slot(slot.kind, name)
        if keep.setdefault(name, node) is not node:
            node.replace_all_uses_with(keep[name])
            graph.erase_node(node)
    return {name: first for name, first in canonical.items() if name != first}


def tidy(graph: fx.Graph, slots: Mapping[str, Slot], examples: Sequence[Example]) -> None:
    """Write non-tensor inputs into the graph, drop assertions and what nobody reads."""
    for node in graph.find_nodes(op="placeholder"):
        slot = slots.get(node.name)
        example = examples[int(slot.name)] if slot is not None and slot.kind == "user" else None
        if slot is None or (example is not None and example.shape is None):
            for user in list(node.users):
                user.args, user.kwargs = fx.map_arg(
                    (user.args, user.kwargs), lambda n, old=node, new=example: new and new.value if n is old else n
                )  # pyright: ignore[reportAttributeAccessIssue]
            graph.erase_node(node)
    for node in reversed(graph.nodes):
        if node.op == "call_function" and not node.users and any(word in str(node.target) for word in ASSERTIONS):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    graph.lint()


def last_use(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """Node -> the nodes whose values nobody reads after it."""
    reader = {node: node for node in graph.nodes}
    for node in graph.nodes:
        for operand in node.all_input_nodes:
            reader[operand] = node
    dead: dict[fx.Node, list[fx.Node]] = {}
    for node, last in reader.items():
        dead.setdefault(last, []).append(node)
    return dead


def execute(module: fx.GraphModule, node: fx.Node, env: Mapping[fx.Node, Any], values: Mapping[str, Tensor]) -> Any:
    if node.op == "placeholder":
        return values[node.name]
    if node.op == "get_attr":
        return _attribute(module, str(node.target))
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda operand: env[operand])
    if node.op == "output":
        return args[0]
    return node.target(*args, **kwargs)  # pyright: ignore[reportCallIssue]


def _attribute(module: nn.Module, path: str) -> Any:
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part)
    return value
