"""What a model does with each block of its parameters, in order: the skeleton that other lowerings of it share.

Between two parameters, a graph may compute an attention in one op or in five. What stays is which block is contracted
with, multiplied by, added to or looked up by what came out of which others. A *use* is one such event; its ``before``
are the uses whose results reach it without passing another use. Ops that only move elements are followed element by
element, on tensors of small numbers (a *source* for each element), so that the parts of a fused projection stay apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from graphfuse.flatgraph import last_use
from graphfuse.matching.blocks import Block, all_blocks, numbered
from graphfuse.matching.skeleton import Use, Uses
from graphfuse.matching.sources import (
    JOINS,
    LINEAR,
    MOVING,
    NOTHING,
    PRODUCTS,
    SUMS,
    TABLES,
    Source,
    Value,
    along,
    flat,
    ids_of,
    in_order,
    is_float,
    is_number,
    is_pointwise,
    op_name,
    places_of,
    plain,
    wrapped,
)  # fmt: skip
from graphfuse.rulebook import RuleBook
from graphfuse.symmetry import SymmetryGraph


def uses_of(graph: SymmetryGraph, book: RuleBook) -> Uses:
    """The uses of a model's parameters, from its captured graph."""
    return _Walk(graph, book).walk()


class _Walk:
    def __init__(self, graph: SymmetryGraph, book: RuleBook) -> None:
        self.graph, self.book, self.blocks = graph, book, all_blocks(graph)
        self.entries: list[Use] = []
        self.sources: list[Source] = [Source()]
        self.numbers: dict[Source, int] = {Source(): NOTHING}
        self.values: dict[fx.Node, Any] = {}

    def walk(self) -> Uses:
        slots, last = {slot.node: slot for slot in self.graph.captured.inputs}, last_use(self.graph.captured.graph)
        outputs: tuple[frozenset[int], ...] = ()
        for node in self.graph.captured.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = self._placeholder(node, slots[node.name].kind, slots[node.name].name)
            elif node.op == "output":
                outputs = tuple(self._uses([self.values[n]]) for n in node.all_input_nodes)
            elif node.op == "call_function":
                self.values[node] = self._call(node)
            for dead in last.get(node, ()):
                self.values.pop(dead, None)
        return Uses(self.graph, self.blocks, tuple(self.entries), outputs)

    # ---------------------------------------------------------------- sources

    def _number(self, source: Source) -> int:
        if source not in self.numbers:
            self.numbers[source] = len(self.sources)
            self.sources.append(source)
        return self.numbers[source]

    def _even(self, source: Source, node: fx.Node) -> Any:
        """A value of one source; for an op of several results, one for each."""
        number, value = self._number(source), node.meta.get("val")
        if isinstance(value, list | tuple):
            return [flat(number, part) for part in value]
        return flat(number, value)

    def _uses(self, values: Iterable[Any]) -> frozenset[int]:
        found = [self.sources[id].uses for value in plain(values) for id in value.known]
        return frozenset().union(*found)

    def _parameters(self, values: Iterable[Any]) -> frozenset[Block]:
        found = [self.sources[id].blocks for value in plain(values) for id in value.known]
        return frozenset().union(*found)

    def _use(self, kind: str, block: Block | None, node: fx.Node, before: frozenset[int]) -> int:
        self.entries.append(Use(kind, block, node.name, before))
        return len(self.entries) - 1

    def _placeholder(self, node: fx.Node, kind: str, name: str) -> Any:
        if kind == "user":
            count = sum(use.block is None for use in self.entries)
            return self._even(Source(frozenset({self._use(f"input {count}", None, node, frozenset())})), node)
        if name not in self.graph.tensors:
            return self._even(Source(), node)
        numbers = [self._number(Source(blocks=frozenset({block}))) for block in self.blocks[name]]
        if len(numbers) == 1:
            return flat(numbers[0], node.meta["val"])
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        return Value(numbered(self.graph.tensors[name], numbers[0]))

    # ---------------------------------------------------------------- ops

    def _call(self, node: fx.Node) -> Any:
        operands = [self.values[n] for n in node.all_input_nodes if n in self.values]
        name = op_name(node)
        static = not self._uses(operands)
        if self._moves(node):
            if name in JOINS and not static:
                self._release(node)
            return self._moved(node)
        if static and name not in TABLES:
            return self._alone(node, operands)
        if is_number(node):  # masks and positions: no data that flows on
            return self._even(Source(), node)
        return self._met(node, name, operands)

    def _moves(self, node: fx.Node) -> bool:
        target = node.target
        if not isinstance(target, OpOverload):
            return getattr(target, "__name__", "") == "getitem"
        views = any(entry.alias_info is not None for entry in target._schema.returns) and not target._schema.is_mutable
        return views or op_name(node) in MOVING

    def _moved(self, node: fx.Node) -> Any:
        """The same op on the numbers; where it does not take them, all that they stand for."""
        operands = [self.values[n] for n in node.all_input_nodes if n in self.values]
        turned = is_float(node) and any(not is_float(n) for n in node.all_input_nodes)
        if turned and not self._parameters(operands):
            return self._even(Source(), node)
        if op_name(node) in ("to", "_to_copy", "type_as"):
            return self.values[node.all_input_nodes[0]]
        known = {id for value in plain(operands) for id in value.known}
        if len(known) > 1:
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: ids_of(self.values[n]))
            try:
                return wrapped(node.target(*args, **kwargs))  # pyright: ignore[reportCallIssue]
            except (RuntimeError, TypeError, NotImplementedError):
                pass
        return self._even(self._union(known), node)

    def _union(self, known: Iterable[int]) -> Source:
        sources = [self.sources[id] for id in known]
        return Source(
            frozenset().union(*(source.uses for source in sources)),
            frozenset().union(*(source.blocks for source in sources)),
        )

    def _release(self, node: fx.Node) -> None:
        """Parameters that are laid beside data (a class token) flow on as data."""
        for operand in node.all_input_nodes:
            blocks = self._parameters([self.values[operand]])
            if blocks and not self._uses([self.values[operand]]):
                uses = frozenset(self._use("token", block, node, frozenset()) for block in in_order(blocks))
                self.values[operand] = self._even(Source(uses), operand)

    def _alone(self, node: fx.Node, operands: Sequence[Any]) -> Any:
        """What is computed of parameters and constants only: still parameters."""
        values = list(plain(operands))
        shape = getattr(node.meta.get("val"), "shape", None)
        whole = [value for value in values if value.known != [NOTHING]]
        if is_pointwise(node) and len(whole) == 1 and whole[0].ids.shape == shape:
            return whole[0]
        return self._even(self._union({id for value in values for id in value.known}), node)

    def _met(self, node: fx.Node, name: str, operands: Sequence[Any]) -> Any:
        spec = self.book.contraction(node.target)
        if spec is not None:
            x, weight, bias = (self._argument(node, key) for key in (spec.input, spec.weight, spec.bias))
            if x is not None and weight is not None and self._parameters([weight]):
                return self._shifted(node, spec.kind, self._contracted(node, spec.kind, x, weight), bias)
        if name in TABLES:
            return self._looked_up(node, operands)
        if any(self._argument(node, key) is not None for key in ("running_mean", "weight")) and spec is None:
            return self._normed(node)
        if is_pointwise(node):
            return self._pointwise(node, name, operands)
        self._entered(node, operands)
        return self._finished(node, name, self._uses(operands), self._parameters(operands))

    def _finished(self, node: fx.Node, kind: str, before: frozenset[int], blocks: frozenset[Block]) -> Any:
        """One value of everything, after the uses of the parameters, if any."""
        uses = frozenset(self._use(kind, block, node, before) for block in in_order(blocks))
        return self._even(Source(uses or before), node)

    def _argument(self, node: fx.Node, name: str | None) -> Any:
        if name is None or not isinstance(node.target, OpOverload):
            return None
        names = [argument.name for argument in node.target._schema.arguments]
        if name not in names:
            return None
        place = names.index(name)
        found = node.args[place] if place < len(node.args) else node.kwargs.get(name)
        return self.values.get(found) if isinstance(found, fx.Node) else None

    def _entered(self, node: fx.Node, operands: Sequence[Any]) -> None:
        """Remember at which operand of a product of activations each use comes in."""
        sets = [self._uses([value]) for value in operands]
        for place, uses in enumerate(sets):
            others = frozenset().union(*(other for k, other in enumerate(sets) if k != place))
            for use in uses - others if others else ():
                if not self.entries[use].order:
                    self.entries[use].order.append(place)

    def _looked_up(self, node: fx.Node, operands: Sequence[Any]) -> Any:
        blocks = self._parameters(operands)
        return self._finished(node, "looked up" if blocks else op_name(node), self._uses(operands), blocks)

    def _normed(self, node: fx.Node) -> Any:
        operand = self.values[node.all_input_nodes[0]]
        now = self._uses([operand])
        for names in (("running_mean", "running_var"), ("weight",), ("bias",)):
            after: set[int] = set()
            for name in names:
                blocks = self._parameters([self._argument(node, name)])
                kind = {"weight": "multiplied", "bias": "added"}.get(name, name)
                after |= {self._use(kind, block, node, now) for block in in_order(blocks)}
            now = frozenset(after) or now
        return self._even(Source(now), node)

    def _contracted(self, node: fx.Node, kind: str, x: Value, weight: Value) -> Value:
        """Each block of the weight reads its columns of the input, and makes its rows of the output."""
        shape = node.meta["val"].shape
        places = places_of(node, kind, x.ids, weight.ids)
        known = weight.known
        if places is None or len(known) == 1:
            before = self._uses([x])
            uses = [self._use("contracted", b, node, before) for b in in_order(self._parameters([weight]))]
            return flat(self._number(Source(frozenset(uses))), shape)
        (w_in, w_out), (x_in, y_out) = places
        made: dict[int, frozenset[int]] = {}
        for id in known:
            inside = weight.ids == id
            columns = inside.transpose(0, w_in).flatten(1).any(1)
            read = x.ids.transpose(0, x_in)[columns] if len(x.known) > 1 else x.ids
            before = self._uses([Value(read)])
            blocks = in_order(self.sources[id].blocks)
            made[id] = frozenset(self._use("contracted", block, node, before) for block in blocks)
        rows = weight.ids.transpose(0, w_out).flatten(1)
        starts = torch.cat([torch.ones(1, dtype=torch.bool), (rows[1:] != rows[:-1]).any(1)])
        numbers = [
            self._number(Source(frozenset().union(*(made[id] for id in torch.unique(row).tolist()))))
            for row in rows[starts]
        ]
        return Value(along(torch.tensor(numbers, dtype=torch.int32)[starts.cumsum(0) - 1], shape, y_out))

    def _shifted(self, node: fx.Node, kind: str, now: Value, bias: Value | None) -> Value:
        if bias is None or not self._parameters([bias]):
            return now
        out = 1 if kind == "convolution" else -1
        return self._blended(node, "added", [now, Value(along(bias.ids.flatten(), now.ids.shape, out))])

    def _pointwise(self, node: fx.Node, name: str, operands: Sequence[Any]) -> Any:
        kind = "added" if name in SUMS else "multiplied" if name in PRODUCTS else name
        shape = node.meta["val"].shape
        values = [Value(value.ids.expand(shape)) for value in plain(operands)]
        if len(values) == 1 and kind == name and name not in LINEAR:
            for source in (self.sources[id] for id in values[0].known):
                for use in source.uses if len(source.uses) == 1 else ():
                    self.entries[use].bent.append(True)
        return self._blended(node, kind, values)

    def _blended(self, node: fx.Node, kind: str, values: Sequence[Value]) -> Value:
        """Element by element: what the operands are made of, after the uses of parameters among them."""
        shape = values[0].ids.shape
        combos: list[tuple[int, ...]] = [()]
        ids = flat(0, shape).ids
        for value in values:
            known = value.known
            if len(known) == 1:
                combos = [(*key, known[0]) for key in combos]
                continue
            count = len(self.sources)
            unique, ids = torch.unique(ids.to(torch.int64) * count + value.ids, return_inverse=True)
            combos = [(*combos[int(pair) // count], int(pair) % count) for pair in unique]
        found = [self._union(key) for key in combos]
        before: dict[Block, frozenset[int]] = {}
        for source in found:
            for block in source.blocks:
                before[block] = before.get(block, frozenset()) | source.uses
        uses = {block: self._use(kind, block, node, before[block]) for block in in_order(before)}
        numbers = [self._number(Source(frozenset(uses[b] for b in source.blocks) or source.uses)) for source in found]
        if len(set(numbers)) == 1:
            return flat(numbers[0], shape)
        return Value(torch.tensor(numbers, dtype=torch.int32)[ids])
