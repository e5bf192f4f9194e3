"""Arguments with which the self-check calls an op: those of an entry's examples, or made up from its signature."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload

from graphfuse.errors import RuleError
from graphfuse.frontend.atoms import AtomCall, bound, in_force, operator_of, tensors_in
from graphfuse.rulebook.packs import atom_of
from graphfuse.rulebook.schema import Entry, Example, TensorExample
from graphfuse.rulebook.signature import Operand, Signature

STARS = 2  # dims that a made-up starred name or '...' stands for


@dataclass(frozen=True)
class Call:
    """An op with concrete arguments, by schema name and in schema order."""

    op: OpOverload
    arguments: Mapping[str, Any]
    atoms: tuple[AtomCall, ...] = ()

    def run(self, tensors: Mapping[str, Tensor] | None = None) -> tuple[Any, ...]:
        """The op's outputs, with some of its tensors replaced."""
        given = {name: _replaced(name, value, tensors or {}) for name, value in self.arguments.items()}
        schema = self.op._schema.arguments
        positional = [given[a.name] for a in schema if a.name in given and not a.kwarg_only]
        named = {a.name: given[a.name] for a in schema if a.name in given and a.kwarg_only}
        with in_force(self.atoms):
            answer = self.op(*positional, **named)
        return tuple(answer) if isinstance(answer, tuple | list) else (answer,)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensor arguments; those of a list are called ``xs.0``, ``xs.1``, ..."""
        found: dict[str, Tensor] = {}
        for name, value in self.arguments.items():
            items = enumerate(value) if isinstance(value, list) else ()
            named = {name: value} | {f"{name}.{i}": item for i, item in items}
            found |= {key: item for key, item in named.items() if isinstance(item, Tensor)}
        return found


def _replaced(name: str, value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [tensors.get(f"{name}.{i}", item) for i, item in enumerate(value)]
    return tensors.get(name, value)


def calls(entry: Entry, op: OpOverload, generator: torch.Generator) -> list[Call]:
    """The calls with which an op of an entry is checked.

    Raises
    ------
    RuleError
        When an example does not fit the op's schema, or there is none and none can be made up.
    """
    names = {str(op), str(op).rpartition(".")[0]}
    fitting = [example for example in entry.examples if not example.op or names & set(example.op)]
    fitting = fitting or ([] if entry.examples else [_made_up(entry, op)])
    return [Call(op, _arguments(op, example, generator)) for example in fitting]


def module_calls(entry: Entry, generator: torch.Generator) -> list[Call]:
    """The calls with which an entry for a module is checked: its class is imported and built as each example says.

    Raises
    ------
    RuleError
        There is no example, or the class cannot be found.
    """
    if not entry.examples:
        raise RuleError("a module needs an example: 'build' (keyword arguments of the class) and 'args' of its forward")
    return [_module_call(entry, example, generator) for example in entry.examples]


def _module_call(entry: Entry, example: Example, generator: torch.Generator) -> Call:
    module = _class(example.of or entry.module or "")(**example.build).double().eval()
    state = tensors_in(module)
    with torch.no_grad():
        for tensor in state.values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) + 0.5)
    args = [_value(value, generator) for value in example.args]
    kwargs = {name: _value(value, generator) for name, value in example.kwargs.items()}
    call, operands = bound(module, atom_of(entry, entry.title), state, args, kwargs)
    given = {name: None if x is None else x.detach() for name, x in zip(call.atom.operands, operands, strict=True)}
    return Call(operator_of(call.atom), {**given, "call": 0}, (call,))


def _class(path: str) -> type[nn.Module]:
    package, _, name = path.rpartition(".")
    if package == "*":
        raise RuleError(f"{path}: of which package? Say 'of: package.{name}' in the example")
    try:
        found = getattr(importlib.import_module(package), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RuleError(f"{path}: cannot be imported ({error}); run where the package can be found") from error
    return found


def _arguments(op: OpOverload, example: Example, generator: torch.Generator) -> dict[str, Any]:
    schema = op._schema.arguments
    if len(example.args) > len(schema):
        raise RuleError(f"example: {op} takes {len(schema)} arguments, got {len(example.args)}")
    given: dict[str, Any] = dict(zip((argument.name for argument in schema), example.args, strict=False))
    given |= example.kwargs
    arguments: dict[str, Any] = {}
    for argument in schema:
        if argument.name in given:
            value = _value(given.pop(argument.name), generator)
            length = getattr(argument, "N", None)  # of int[2], for which one int may stand
            spread = isinstance(value, int) and length is not None and str(argument.type) == "List[int]"
            arguments[argument.name] = [value] * (length or 1) if spread else value
        elif argument.has_default_value():
            arguments[argument.name] = argument.default_value
        else:
            raise RuleError(f"example: no value for argument {argument.name!r} of {op}: {op._schema}")
    if given:
        raise RuleError(f"example: {op} has no argument {next(iter(given))!r}: {op._schema}")
    return arguments


def _value(value: Any, generator: torch.Generator) -> Any:
    if isinstance(value, list | tuple):
        return [_value(item, generator) for item in value]
    if isinstance(value, str) and hasattr(torch, value) and isinstance(getattr(torch, value), torch.dtype):
        return getattr(torch, value)
    return _tensor(value, generator) if isinstance(value, TensorExample) else value


def _tensor(spec: TensorExample, generator: torch.Generator) -> Tensor:
    if spec.dtype == "bool":
        return torch.rand(spec.shape, generator=generator) < 0.5
    if spec.dtype == "int":
        return torch.randint(int(spec.low or 0), int(spec.high or 10), spec.shape, generator=generator)
    if spec.low is None and spec.high is None:
        return torch.randn(spec.shape, generator=generator, dtype=torch.float64)
    low, high = spec.low or 0.0, 1.0 if spec.high is None else spec.high
    return low + (high - low) * torch.rand(spec.shape, generator=generator, dtype=torch.float64)


# -------------------------------------------------------------------- made-up examples


def _made_up(entry: Entry, op: OpOverload) -> Example:
    schema = [argument for argument in op._schema.arguments]
    if entry.signature is None:
        shapes = itertools.chain([(2, 3, 4), (3, 4)], itertools.repeat((4,)))
        return Example(args=_filled(schema, shapes, {}))
    sizes = _sizes(entry.signature)
    shapes = iter(_shape(operand, sizes) if operand else () for operand in entry.signature.inputs)
    fills = {
        source: [sizes[f"{name}.{i}"] for i in range(STARS)] if name in entry.signature.variadic_names else sizes[name]
        for name, source in entry.sizes.items()
        if isinstance(source, str)
    }
    return Example(args=_filled(schema, shapes, fills))


def _filled(schema: list[Any], shapes: Iterator[tuple[int, ...]], fills: Mapping[str, Any]) -> tuple[Any, ...]:
    """A value for every argument up to the last one that needs one."""
    values: list[Any] = []
    for argument in schema:
        shape = next(shapes, ()) if "Tensor" in str(argument.type) or argument.name in fills else next(shapes, None)
        if argument.name in fills:
            values.append(fills[argument.name])
        elif "Tensor" in str(argument.type):
            tensor = TensorExample(shape=shape or ())
            values.append([tensor, tensor] if str(argument.type).startswith("List[") else tensor)
        elif argument.has_default_value() or argument.kwarg_only:
            break
        elif str(argument.type) in ("number", "float"):
            values.append(0.7)
        else:
            raise RuleError(f"no {argument.type} {argument.name!r} can be made up; give the entry an 'example'")
    return tuple(values)


def _sizes(signature: Signature) -> dict[str, int]:
    """Distinct sizes for all names, so that no two axes can be taken for each other."""
    names: list[str] = []
    for operand in (*signature.inputs, *signature.outputs):
        for name in (name for slot in (operand.slots if operand else ()) for name in slot):
            names += [f"{name.text}.{i}" for i in range(STARS)] if name.variadic else [name.text]
    return {name: size for size, name in enumerate(dict.fromkeys(names), start=2)}


def _shape(operand: Operand, sizes: Mapping[str, int]) -> tuple[int, ...]:
    shape: list[int] = []
    for slot in operand.slots:
        if len(slot) == 1 and slot[0].variadic:
            shape += [1 if slot[0].text == "1" else sizes[f"{slot[0].text}.{i}"] for i in range(STARS)]
        else:
            size = 1
            for name in slot:
                size *= sizes[name.text]
            shape.append(size)
    return tuple(shape)
