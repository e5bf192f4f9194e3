"""Labelling: one pass over a captured graph gives every tensor dimension an expression over axes.

Parameters start with fresh axes, user inputs with fixed ones; each node's rule relates its inputs to its outputs; the
dims of the outputs that the user gets back are fixed. What no rule understands is fixed too, and noted: never a crash,
never a wrong claim.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from graphfuse.algebra import Algebra, Held, Reason
from graphfuse.axes import Layout, Leaf, SymmetryClass
from graphfuse.capture import Captured
from graphfuse.constants import Constants, constant_label, makes_constants
from graphfuse.rulebook import RuleBook
from graphfuse.rulebook.op import Label, Op, Rule, Shape

Value = Label | list[Label | None] | None
"""What labelling knows of one node: a label, one for each of several outputs, or nothing (no tensor)."""

NUMBERS = (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool)  # those that depend on data are symbols
UNKNOWN_SIZE = 1_000_003  # least stand-in for a size that depends on data; odd, so that it never splits evenly


@dataclass(frozen=True, slots=True)
class Note:
    """Something a person should know about one node: the op had no rule, or its rule could not be applied."""

    message: str
    site: Reason


@dataclass(frozen=True)
class Labelling:
    """Labels of every node and every movable tensor, over one algebra.

    ``consumed`` holds, by node name, the ``(operand node, dim)`` pairs that the node's op contracts away; ``factors``
    those that multiply the other operand elementwise.
    """

    algebra: Algebra
    values: Mapping[str, Value]
    tensors: Mapping[str, Layout]
    consumed: Mapping[str, frozenset[tuple[str, int]]]
    factors: Mapping[str, frozenset[tuple[str, int]]]
    notes: tuple[Note, ...]


def label(captured: Captured, rules: RuleBook, state: Mapping[str, Tensor], learned: Collection[str] = ()) -> Labelling:
    """Label a captured graph.

    Parameters
    ----------
    captured : Captured
    rules : RuleBook
    state : mapping
        Canonical names to parameters and buffers; only buffers' values are looked at, as constants.
    learned : collection of str
        Buffers that move like parameters, beside those that an op's rule names as statistics.
    """
    return _Labeller(captured, rules, state, learned).run()


class _Labeller:
    """The state of one pass."""

    def __init__(
        self, captured: Captured, rules: RuleBook, state: Mapping[str, Tensor], learned: Collection[str]
    ) -> None:
        self.captured, self.rules = captured, rules
        self.algebra = Algebra()
        self.moved = {slot.node: slot.name for slot in captured.inputs if slot.kind == "parameter"}
        self.moved |= statistics_of(captured, rules)
        self.moved |= {slot.node: slot.name for slot in captured.inputs if slot.name in learned}
        still = {
            slot.node: captured.constants[slot.name] if slot.kind == "constant" else state[slot.name]
            for slot in captured.inputs
            if slot.kind in ("constant", "buffer") and slot.node not in self.moved
        }
        self.constants = Constants(still)
        self.values: dict[fx.Node, Value] = {}
        self.tensors: dict[str, Layout] = {}
        self.consumed: dict[str, frozenset[tuple[str, int]]] = {}
        self.factors: dict[str, frozenset[tuple[str, int]]] = {}
        self.notes: list[Note] = []
        self.tokens = itertools.count()

    def run(self) -> Labelling:
        for node in self.captured.graph.nodes:
            site = self.captured.site(node)
            op = _op_name(node)
            self.algebra.site = Reason("", op, node.name, site.module, site.source)
            self.values[node] = self._value(node)
        for name in self.captured.kept:
            self._protect(name)
        self._settle()
        named = {node.name: value for node, value in self.values.items()}
        return Labelling(self.algebra, named, self.tensors, self.consumed, self.factors, tuple(self.notes))

    # ---------------------------------------------------------------- nodes

    def _value(self, node: fx.Node) -> Value:
        if node.op == "output":
            return None
        constant = self.constants.value(node)
        if constant is not None:
            return constant_label(self.algebra, constant)
        if node.op == "placeholder":
            return self._placeholder(node)
        if node.target is operator.getitem:
            whole, index = self.values[node.args[0]], node.args[1]  # pyright: ignore[reportArgumentType]
            return whole[index] if isinstance(whole, list) and isinstance(index, int) else None
        if not isinstance(node.target, OpOverload):
            return self._unknown(node, "not an ATen op") if any(s is not None for s in _shapes(node)) else None
        if not any(shape is not None for shape in _shapes(node)):
            self._read_as_number(node)
            return None
        if _is_summed_square(node):
            operand = self.values[node.all_input_nodes[0]]
            if isinstance(operand, Label) and operand.points is None:
                return replace(operand, value=None, squared=True)
        rule = self.rules.lookup(node.target)
        if rule is None and makes_constants(node.target):
            return self._made(node)
        return self._unknown(node, "no rule") if rule is None else self._apply(node, node.target, rule)

    def _made(self, node: fx.Node) -> Value:
        """Made of no tensor, but not known: of random values, or of a size that depends on data."""
        equal = str(node.target).split(".")[1] in ("zeros", "ones", "full", "empty")
        found = [
            self.algebra.fresh(shape, None if equal else "constant") for shape in _shapes(node) if shape is not None
        ]
        for dims in found:
            self.algebra.meet(tuple(factor for dim in dims for factor in dim), SymmetryClass.PERMUTATION)
        uniform = [self.algebra.layout_leaves(dims) if equal else frozenset[Leaf]() for dims in found]
        labels: list[Label | None] = [Label(dims, uniform=same) for dims, same in zip(found, uniform, strict=True)]
        return labels if isinstance(node.meta["val"], list | tuple) else labels[0]

    def _placeholder(self, node: fx.Node) -> Value:
        shape = _shapes(node)[0]
        if shape is None:
            return None
        name = self.moved.get(node.name)
        if name is not None:
            self.tensors[name] = self.algebra.fresh(shape)
            return Label(self.tensors[name])
        kind = next(slot.kind for slot in self.captured.inputs if slot.node == node.name)
        return Label(
            self.algebra.fresh(shape, "input" if kind == "user" else "constant"), is_mask=_is_mask(node.meta["val"])
        )

    def _apply(self, node: fx.Node, target: OpOverload, rule: Rule) -> Value:
        op = Op(
            name=_op_name(node),
            algebra=self.algebra,
            args=self._bound(node, target),
            shapes=_shapes(node),
            several=isinstance(node.meta["val"], list | tuple),
        )
        operands = list(op.labels())
        stacked = self.rules.stacked(target)
        held = self._merge_held(operands, op.args.get(stacked) if stacked else None)
        if not stacked and not self.rules.keeps_index(target):
            for label in operands:
                if label.offsets is not None:  # a running total is of one order of what it counts
                    self._fix_whole(label, "order")
        try:
            answer = rule(op)
            outputs = answer if isinstance(answer, list) else [answer]
            if op.several != isinstance(answer, list) or not _fits(outputs, op.shapes):
                got = [output.shape for output in outputs]
                return self._unknown(node, f"its rule gave shapes {got} for outputs {list(op.shapes)}")
        except Exception as error:  # whatever a rule fails on, fixing all that the op touches stays sound
            return self._unknown(node, f"its rule failed: {type(error).__name__}: {error}")
        self.consumed[node.name] = frozenset(_operand_dims(node, target, op.consumed))
        if op.factors:
            self.factors[node.name] = frozenset(_operand_dims(node, target, op.factors))
        metas = node.meta["val"] if op.several else [node.meta["val"]]
        done = [self._finish(output, operands, held, meta) for output, meta in zip(outputs, metas, strict=False)]
        return [*done] if op.several else done[0]

    def _finish(self, output: Label, operands: list[Label], held: Mapping[Leaf, Held], meta: Any) -> Label:
        """Drop contexts that the output does not carry, and what it no longer holds or is no longer uniform along."""
        own = self.algebra.layout_leaves(output.dims)
        self._lower_classes(own, operands, meta)
        scope = {
            axis: hold
            for axis, hold in {**held, **output.held}.items()
            if axis not in own and self.algebra.layout_leaves((leaf,) for leaf in hold.rows) <= own
        }
        dims = self.algebra.limit(output.dims, scope)
        uniform = frozenset(x for x in own - self._varying(operands) if self.algebra.sorted_by((x,)) is None)
        if output.points is not None and output.token is None:
            output = replace(output, token=next(self.tokens))
        return replace(output, dims=dims, held=scope, is_mask=_is_mask(meta), value=None, uniform=uniform)

    def _lower_classes(self, own: frozenset[Leaf], operands: list[Label], meta: Any) -> None:
        """An axis that the op makes holds equal elements, which only permutations keep; integers have no rotations."""
        made = own.difference(*(self.algebra.layout_leaves(x.dims) for x in operands))
        self.algebra.meet(tuple(made), SymmetryClass.PERMUTATION)
        if isinstance(meta, Tensor) and not (meta.is_floating_point() or meta.is_complex()):
            self.algebra.meet(tuple(own - made), SymmetryClass.MONOMIAL)

    def _varying(self, operands: list[Label]) -> frozenset[Leaf]:
        """Axes along which some operand's elements differ; one that no operand has is a broadcast dim."""
        algebra = self.algebra
        return frozenset().union(*(algebra.layout_leaves(x.dims) - algebra.leaves(tuple(x.uniform)) for x in operands))

    def _merge_held(self, labels: list[Label], stacked: Label | None) -> dict[Leaf, Held]:
        """Operands whose rows came from one axis by one index agree along it; any others may not differ along it.

        ``stacked`` has a member for each element of such an axis, of which every row meets its own.
        """
        merged: dict[Leaf, Held] = {}
        clash: set[Leaf] = set()
        refined = [self._refined(label.held) for label in labels]
        for held in refined:
            for axis, hold in held.items():
                if merged.setdefault(axis, hold).token != hold.token:
                    clash.add(axis)
        plain = [label for label in labels if label is not stacked and label.offsets is None]
        clash |= {axis for axis in merged for label in plain if axis in self.algebra.layout_leaves(label.dims)}
        if clash:
            for label, held in zip(labels, refined, strict=True):
                self.algebra.limit(label.dims, [axis for axis in held if axis not in clash])
        return {axis: hold for axis, hold in merged.items() if axis not in clash}

    def _refined(self, held: Mapping[Leaf, Held]) -> dict[Leaf, Held]:
        return {leaf: hold for axis, hold in held.items() for leaf in self.algebra.leaves((axis,))}

    # ---------------------------------------------------------------- what no rule covers

    def _unknown(self, node: fx.Node, why: str) -> Value:
        reason = f"op:{_op_name(node)}"
        for operand in node.all_input_nodes:
            for part in _labels(self.values[operand]):
                self._fix_whole(part, reason)
        self.notes.append(Note(f"{_op_name(node)}: {why}; everything that it touches is fixed", self.algebra.site))
        metas = node.meta.get("val")
        several = isinstance(metas, list | tuple)
        fresh: list[Label | None] = [
            None if shape is None else Label(self.algebra.fresh(shape, reason), is_mask=_is_mask(meta))
            for shape, meta in zip(_shapes(node), metas if isinstance(metas, list | tuple) else [metas], strict=True)
        ]
        return fresh if several else fresh[0]

    def _fix_whole(self, label: Label, why: str) -> None:
        for dim in label.dims:
            self.algebra.separate(label.dims, dim)
            self.algebra.fix(dim, why)
        if label.points is not None:
            self.algebra.fix(label.points, why)

    def _read_as_number(self, node: fx.Node) -> None:
        """``.item()`` and the like: a value that points into an axis is used as a number."""
        for operand in node.all_input_nodes:
            for part in _labels(self.values.get(operand)):
                if "item" in _op_name(node) or "local_scalar" in _op_name(node):
                    self._fix_whole(part, "read as a number")

    def _protect(self, name: str) -> None:
        """The user sees this tensor: none of its dims may move."""
        node = next(node for node in self.captured.graph.nodes if node.name == name)
        site = self.captured.site(node)
        self.algebra.site = Reason("", _op_name(node), name, site.module, site.source)
        for part in _labels(self.values[node]):
            self._fix_whole(part, "output")

    def _bound(self, node: fx.Node, target: OpOverload) -> dict[str, Any]:
        """The op's arguments by name, tensors as labels, defaults filled in."""

        def look(operand: fx.Node) -> Any:
            value = self.values[operand]
            number = operand.meta.get("val")
            return number if value is None and isinstance(number, NUMBERS) else value

        arguments = target._schema.arguments
        bound = {argument.name: argument.default_value for argument in arguments if argument.has_default_value()}
        bound |= {argument.name: value for argument, value in zip(arguments, node.args, strict=False)}
        bound |= node.kwargs
        return {a.name: fx.map_arg(bound[a.name], look) for a in arguments if a.name in bound}

    # ---------------------------------------------------------------- the end

    def _settle(self) -> None:
        """Make every context definite: present in the tensor's own blocks, and never mutual."""
        self.algebra.settle_sorted(self.tensors.values())
        for _ in range(8):
            before = dict(self.tensors)
            for name, layout in self.tensors.items():
                self.tensors[name] = self.algebra.definite(self.algebra.limit(layout))
            if before == self.tensors:
                break
        self.algebra.order_contexts(self.algebra.layout_leaves(dim for t in self.tensors.values() for dim in t))
        for node, value in self.values.items():
            if isinstance(value, Label):
                self.values[node] = replace(value, dims=self.algebra.norm_all(value.dims))
            elif isinstance(value, list):
                self.values[node] = [v and replace(v, dims=self.algebra.norm_all(v.dims)) for v in value]


def statistics_of(captured: Captured, rules: RuleBook) -> dict[str, str]:
    """Placeholder -> name of the buffers that an op's rule names as statistics."""
    buffers = {slot.node: slot.name for slot in captured.inputs if slot.kind == "buffer"}
    found: dict[str, str] = {}
    for node in captured.graph.nodes:
        if isinstance(node.target, OpOverload):
            named = set(rules.statistics(node.target).values())
            for argument, value in zip(node.target._schema.arguments, node.args, strict=False):
                if argument.name in named and isinstance(value, fx.Node) and value.name in buffers:
                    found[value.name] = buffers[value.name]
    return found


def _is_summed_square(node: fx.Node) -> bool:
    """Whether the node squares a real tensor and all that reads the squares are sums or means over some dims."""
    aten, value = torch.ops.aten, node.meta.get("val")
    squares = (
        node.target is aten.square.default
        or (node.target is aten.pow.Tensor_Scalar and bool(node.args[1] == 2))
        or (node.target is aten.mul.Tensor and node.args[0] is node.args[1])
    )
    sums = (aten.sum.dim_IntList, aten.mean.dim, aten.sum.default, aten.mean.default)
    real = isinstance(value, Tensor) and value.is_floating_point()
    return squares and real and len(node.users) > 0 and all(user.target in sums for user in node.users)


def _op_name(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_function" else node.op


def _shapes(node: fx.Node) -> tuple[Shape | None, ...]:
    value = node.meta.get("val")
    values = value if isinstance(value, list | tuple) else [value]
    return tuple(tuple(_size(size) for size in v.shape) if isinstance(v, Tensor) else None for v in values)


def _size(size: Any) -> int:
    """A size as an int; where it depends on data, each symbol gets a number of its own, and sums of them add up."""
    if isinstance(size, int):
        return size
    if size.node.has_hint():
        return int(size.node.hint)
    term = size.node.expr
    return int(term.subs({symbol: UNKNOWN_SIZE + 2 * crc32(str(symbol).encode()) for symbol in term.free_symbols}))


def _is_mask(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.bool


def _fits(outputs: list[Label], shapes: tuple[Shape | None, ...]) -> bool:
    wanted = [shape for shape in shapes if shape is not None]
    return len(outputs) >= len(wanted) and all(
        output.shape == shape for output, shape in zip(outputs, shapes, strict=False) if shape is not None
    )


def _labels(value: Value) -> Iterator[Label]:
    if isinstance(value, Label):
        yield value
    elif isinstance(value, list):
        yield from (part for part in value if part is not None)


def _operand_dims(node: fx.Node, target: OpOverload, consumed: set[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    """Argument names (``params.3`` inside a list) as the graph nodes given for them."""
    names = {argument.name: i for i, argument in enumerate(target._schema.arguments)}
    for name, dim in consumed:
        head, _, index = name.partition(".")
        place = names[head]
        value: Any = node.args[place] if place < len(node.args) else node.kwargs.get(head)
        value = value[int(index)] if index else value
        if isinstance(value, fx.Node):
            yield value.name, dim
