"""Modules taken whole: their code is run, never looked into, and a rule says how their dims are related.

While a model is captured, the forward of such a module (an *atom*) calls an operator that is made for it. Its operands
are the module's tensor arguments, parameters and buffers, so that what follows sees an operator like any other. A graph
names each distinct call by its number; the calls themselves stand beside the graph, and are in force while it runs.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, wraps
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from graphfuse.errors import RuleError

NAMESPACE = "module"
Operands = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Atom:
    """How modules of one kind are called as an operator.

    ``operands`` are names of forward's arguments, parameters and buffers (a dot as an underscore), in the order of the
    rule's signature; those in ``optional`` may be missing. ``rule`` is what messages call the rule.
    """

    name: str
    rule: str
    operands: tuple[str, ...]
    optional: frozenset[str]
    outputs: int

    @property
    def schema(self) -> str:
        """The operator's schema; ``call`` tells what is no tensor."""
        tensors = ", ".join(f"Tensor{'?' if name in self.optional else ''} {name}" for name in self.operands)
        results = "Tensor" if self.outputs == 1 else f"({', '.join(['Tensor'] * self.outputs)})"
        return f"({tensors}, *, int call) -> {results}"


AtomOf = Callable[[nn.Module], Atom | None]


@dataclass(frozen=True, eq=False)
class AtomCall:
    """One way to call one module: its code, what its operands are, and its other arguments.

    ``held`` maps an operand to the dotted name of the parameter or buffer that it is; ``rest`` are the buffers that are
    no operands (counters).
    """

    atom: Atom
    module: nn.Module
    held: Mapping[str, str]
    rest: Mapping[str, Tensor]
    others: Mapping[str, Any]

    def run(self, operands: Sequence[Tensor | None]) -> Any:
        """What the module returns for these operands."""
        given = dict(zip(self.atom.operands, operands, strict=True))
        own = {name: tensor for operand, name in self.held.items() if (tensor := given.pop(operand)) is not None}
        arguments = {**self.others, **{name: value for name, value in given.items() if value is not None}}
        return torch.func.functional_call(self.module, {**self.rest, **own}, (), arguments)

    def outline(self, operands: Sequence[Tensor | None]) -> Any:
        """What the module returns for zeros of these shapes, run for real whatever traces at the moment."""
        with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
            zeros = [
                None if x is None else torch.zeros(tuple(x.shape), dtype=x.dtype, device=x.device) for x in operands
            ]
            return self.run(zeros)


def tensors_of(result: Any, atom: Atom) -> list[Tensor]:
    """The tensors among an atom's results.

    Raises
    ------
    RuleError
        They are not as many as the rule's signature has outputs.
    """
    found = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
    if len(found) != atom.outputs:
        raise RuleError(f"{atom.rule}: the module returns {len(found)} tensors, its signature has {atom.outputs}")
    return found


# -------------------------------------------------------------------- binding a call


def tensors_in(module: nn.Module) -> dict[str, Tensor]:
    """Dotted name -> parameter or buffer."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def bound(
    module: nn.Module, atom: Atom, state: Mapping[str, Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[AtomCall, Operands]:
    """A call of a module that holds ``state`` (see :func:`tensors_in`), and its operands.

    Raises
    ------
    RuleError
        The signature leaves out a tensor of the module or of the call, or names one that there is not.
    """
    signature = inspect.signature(module.forward)
    arguments = dict(signature.bind(*args, **kwargs).arguments)
    names = {key: name for name in state if (key := name.replace(".", "_")) not in signature.parameters}
    held = {operand: names[operand] for operand in atom.operands if operand in names}
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    others = {name: value for name, value in arguments.items() if name not in tensors}
    rest = {name: tensor for name, tensor in state.items() if name not in held.values()}
    unnamed = [name for name, tensor in rest.items() if tensor.numel() > 1]
    unnamed += [name for name in tensors if name not in atom.operands]
    nested = [name for name, value in others.items() if any(isinstance(x, Tensor) for x in pytree.tree_leaves(value))]
    absent = [o for o in atom.operands if o not in held and o not in tensors and o not in atom.optional]
    if unnamed or nested or absent:
        raise RuleError(_misfit(atom, unnamed, nested, absent, [*arguments, *names]))
    operands = tuple(attrgetter(held[o])(module) if o in held else tensors.get(o) for o in atom.operands)
    return AtomCall(atom, module, held, rest, {k: v for k, v in others.items() if k not in atom.operands}), operands


def _misfit(atom: Atom, unnamed: list[str], nested: list[str], absent: list[str], there: list[str]) -> str:
    lines = [f"{atom.rule}: its signature does not fit the module."]
    if unnamed:
        lines.append(f"  not in the signature: {', '.join(unnamed)}; mark dims whose order matters with '!'")
    if nested:
        lines.append(f"  tensors inside a list or dict: {', '.join(nested)}; only plain tensors can be operands")
    if absent:
        lines.append(f"  not in the module: {', '.join(absent)}")
    return "\n".join([*lines, f"  the module has: {', '.join(there)} (arguments of forward, parameters, buffers)"])


# -------------------------------------------------------------------- operators

_calls: ContextVar[Sequence[AtomCall]] = ContextVar("calls", default=())


@contextlib.contextmanager
def in_force(calls: Sequence[AtomCall]) -> Iterator[None]:
    """While this is open, operators of atoms run these calls."""
    token = _calls.set(calls)
    try:
        yield
    finally:
        _calls.reset(token)


def operator_of(atom: Atom) -> OpOverload:
    """The operator that stands for an atom; one for each name and schema, registered once as torch's own are."""
    return _registered(atom.name, atom.schema)[1]


@cache
def _registered(name: str, schema: str) -> tuple[torch.library.Library, OpOverload]:
    overload = f"{name}.s{hashlib.blake2b(schema.encode(), digest_size=3).hexdigest()}"
    library = torch.library.Library(NAMESPACE, "FRAGMENT")
    library.define(overload + schema)

    def real(*operands: Tensor | None, call: int) -> Any:
        spec = _calls.get()[call]
        given = {x.untyped_storage().data_ptr() for x in operands if x is not None}
        found = tensors_of(spec.run(operands), spec.atom)
        fresh = [x.clone() if x.untyped_storage().data_ptr() in given else x for x in found]
        return fresh[0] if len(fresh) == 1 else tuple(fresh)

    def fake(*operands: Tensor | None, call: int) -> Any:
        spec = _calls.get()[call]
        like = next(x for x in operands if x is not None)
        found = tensors_of(spec.outline(operands), spec.atom)
        empty = [like.new_empty(tuple(x.shape), dtype=x.dtype, device=x.device) for x in found]
        return empty[0] if len(empty) == 1 else tuple(empty)

    library.impl(overload, real, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{overload}", fake, lib=library)
    torch.library.register_autograd(f"{NAMESPACE}::{overload}", _backward, setup_context=_remember, lib=library)
    word, _, which = overload.partition(".")
    return library, getattr(getattr(torch.ops.module, word), which)


def _remember(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: Mapping[str, Any], output: Any) -> None:
    ctx.operands, ctx.spec = inputs, _calls.get()[keyword_only_inputs["call"]]


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    """The module is run once more; code that torch cannot follow has no gradient, which is an error, not zero."""
    operands = [None if x is None else x.detach().requires_grad_(x.is_floating_point()) for x in ctx.operands]
    with torch.enable_grad():
        found = tensors_of(ctx.spec.run(operands), ctx.spec.atom)
    ends = [(x, grad) for x, grad in zip(found, grads, strict=True) if grad is not None]
    if not all(x.requires_grad for x, _ in ends):
        raise RuntimeError(f"{ctx.spec.atom.rule}: the module has no gradient")
    wanted = [x for x in operands if x is not None and x.requires_grad]
    answers = iter(torch.autograd.grad([x for x, _ in ends], wanted, [grad for _, grad in ends], allow_unused=True))
    return tuple(None if x is None or not x.requires_grad else next(answers) for x in operands)


# -------------------------------------------------------------------- capture


@contextlib.contextmanager
def taken_whole(model: nn.Module, atom_of: AtomOf) -> Iterator[list[AtomCall]]:
    """While this is open, the outermost atoms of a model call their operators; yields the calls made so far."""
    calls: list[AtomCall] = []
    found: dict[str, tuple[nn.Module, Atom]] = {}
    for name, module in model.named_modules():
        inside = any(not outer or name.startswith(outer + ".") for outer in found)
        if not inside and (atom := atom_of(module)) is not None:
            found[name] = module, atom
    before = {name: vars(module).get("forward") for name, (module, _) in found.items()}
    for module, atom in found.values():
        module.forward = _replacement(module, atom, calls)
    try:
        with in_force(calls):
            yield calls
    finally:
        for name, (module, _) in found.items():
            del module.forward
            if (forward := before[name]) is not None:
                module.forward = forward


def _replacement(module: nn.Module, atom: Atom, calls: list[AtomCall]) -> Callable[..., Any]:
    twin, state = copy.copy(module), tensors_in(module)  # the twin shares everything, but keeps its forward

    @wraps(module.forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        made, operands = bound(twin, atom, state, args, kwargs)
        number = next((i for i, one in enumerate(calls) if one.module is twin and one.others == made.others), None)
        if number is None:
            number = len(calls)
            calls.append(made)
        result = made.outline(operands)
        tensors_of(result, atom)
        answer = operator_of(atom)(*operands, call=number)
        given = iter(answer if isinstance(answer, tuple | list) else [answer])
        return pytree.tree_map(lambda leaf: next(given) if isinstance(leaf, Tensor) else leaf, result)

    return forward
