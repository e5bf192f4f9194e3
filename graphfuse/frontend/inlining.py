"""Code that torch keeps in sub-graphs, written out: loops of known length step by step, both sides of a branch, scores
of attention for all pairs at once.

What is left in a sub-graph (a loop whose length depends on data) stays one opaque node.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten
Values = list[Any]


def inline(graph_module: fx.GraphModule) -> None:
    """Replace ``map``, ``scan``, ``cond`` and ``flex_attention`` by what they compute, innermost first, in place."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        expand = EXPANSIONS.get(str(node.target)) if node.op == "call_function" else None
        if expand is None:
            continue
        for operand in node.args:
            if isinstance(operand, fx.Node) and operand.op == "get_attr":
                inline(getattr(graph_module, str(operand.target)))
        try:
            with graph.inserting_before(node):
                results = expand(Writer(graph_module, node), *node.args)
        except Exception:  # a choice by a number, a size that depends on data: the node stays opaque, which is sound
            continue
        for user in list(node.users):  # an op of several results is read by index only
            user.replace_all_uses_with(results[user.args[1]])
            graph.erase_node(user)
        graph.erase_node(node)
    graph.eliminate_dead_code()
    graph_module.recompile()


class Writer:
    """Writes nodes in place of one."""

    def __init__(self, graph_module: fx.GraphModule, node: fx.Node) -> None:
        self.graph_module, self.node = graph_module, node

    def body(self, function: fx.Node, operands: Sequence[Any]) -> Values:
        """The nodes of a sub-graph, given its operands; returns its outputs."""
        inner: fx.Graph = getattr(self.graph_module, str(function.target)).graph
        known = dict(zip(inner.find_nodes(op="placeholder"), operands, strict=True))
        return list(self.node.graph.graph_copy(inner, known))  # pyright: ignore[reportArgumentType]

    def broadcast(self, function: fx.Node, operands: Sequence[Any]) -> fx.Node:
        """The result of a sub-graph that is written for single numbers, given tensors that broadcast."""
        inner: fx.Graph = getattr(self.graph_module, str(function.target)).graph
        known: dict[fx.Node, Any] = dict(zip(inner.find_nodes(op="placeholder"), operands, strict=True))
        for node in (node for node in inner.nodes if node.op == "call_function"):
            args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = self.op(node.target, *args, **kwargs)
        (result,) = next(iter(inner.find_nodes(op="output"))).args
        return known[result[0] if isinstance(result, list | tuple) else result]  # pyright: ignore[reportArgumentType]

    def op(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """One op, with the meta data that export would give it."""
        written = self.node.graph.call_function(target, args, kwargs)
        where = {key: self.node.meta[key] for key in ("stack_trace", "nn_module_stack") if key in self.node.meta}
        values, named = fx.map_arg((args, kwargs), lambda operand: operand.meta["val"])
        written.meta = {**where, "val": target(*values, **named)}
        return written

    def constant(self, value: Tensor) -> fx.Node:
        """A tensor that the graph holds."""
        name = f"_held_{len(self.node.graph.nodes)}"
        self.graph_module.register_buffer(name, value)
        held = self.node.graph.get_attr(name)
        mode = next(node.meta["val"].fake_mode for node in self.node.all_input_nodes)
        held.meta = {"val": mode.from_tensor(value)}
        return held

    def laid_out(self, value: fx.Node) -> fx.Node:
        """A tensor with its dims in memory in the order in which the replaced node's first result has them."""
        strides = self.node.meta["val"][0].stride()
        order = sorted(range(len(strides)), key=lambda d: -strides[d])
        turned = self.op(aten.permute.default, value, order)
        dense = self.op(aten.clone.default, turned, memory_format=torch.contiguous_format)
        return self.op(aten.permute.default, dense, [order.index(d) for d in range(len(order))])

    def rows(self, values: Sequence[fx.Node], i: int) -> Values:
        """The i-th slice of each."""
        return [self.op(aten.select.int, value, 0, i) for value in values]

    def stacks(self, steps: Sequence[Values]) -> Values:
        """What the steps gave, one after the other."""
        return [self.op(aten.stack.default, list(parts), 0) for parts in zip(*steps, strict=True)]


def _map(write: Writer, function: fx.Node, values: Sequence[fx.Node], shared: Sequence[Any]) -> Values:
    count = values[0].meta["val"].shape[0]
    return write.stacks([write.body(function, [*write.rows(values, i), *shared]) for i in range(count)])


def _scan(
    write: Writer, function: fx.Node, first: Sequence[Any], values: Sequence[fx.Node], shared: Sequence[Any]
) -> Values:
    carried, steps = list(first), []
    for i in range(values[0].meta["val"].shape[0]):
        results = write.body(function, [*carried, *write.rows(values, i), *shared])
        carried, step = results[: len(carried)], results[len(carried) :]
        steps.append(step)
    return [*carried, *write.stacks(steps)]


def _cond(write: Writer, choice: Any, yes: fx.Node, no: fx.Node, operands: Sequence[Any]) -> Values:
    sides = zip(write.body(yes, operands), write.body(no, operands), strict=True)
    return [write.op(aten.where.self, choice, a, b) for a, b in sides]


def _flex(
    write: Writer, query: fx.Node, key: fx.Node, value: fx.Node, score: fx.Node, mask: Sequence[Any], scale: float,
    options: Any, score_buffers: Sequence[Any] = (), mask_buffers: Sequence[Any] = (),
) -> Values:  # fmt: skip
    if any(user.args[1] for user in write.node.users):
        raise ValueError("its other results, sums and largest values of the scores, are read")
    (batch, heads, queries, _), (_, groups, keys, _) = query.meta["val"].shape, key.meta["val"].shape
    if heads != groups:
        key, value = (write.op(aten.repeat_interleave.self_int, x, heads // groups, 1) for x in (key, value))
    scores = write.op(aten.matmul.default, query, write.op(aten.transpose.int, key, -2, -1))
    shapes = ((batch, 1, 1, 1), (heads, 1, 1), (queries, 1), (keys,))
    places = [write.constant(torch.arange(shape[0]).view(shape)) for shape in shapes]
    scores = write.broadcast(score, [write.op(aten.mul.Tensor, scores, scale), *places, *score_buffers])
    seen = write.broadcast(mask[-1], [*places, *mask_buffers])
    scores = write.op(aten.where.ScalarOther, seen, scores, -torch.inf)
    return [write.laid_out(write.op(aten.matmul.default, write.op(aten.softmax.int, scores, -1), value))]


EXPANSIONS: Mapping[str, Callable[..., Values]] = {
    "map_impl": _map, "scan": _scan, "cond": _cond, "flex_attention": _flex,
}  # fmt: skip
