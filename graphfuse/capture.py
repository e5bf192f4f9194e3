"""Capture: a module and example inputs become a flat, functional ATen graph whose every tensor is an input.

The result, :class:`Captured`, is a value: it holds no weights. Parameters and buffers are given at run time as a
*state* (``dict`` of canonical state-dict names to tensors, see :func:`state_of`), so the same graph runs with the
model's own weights, with random ones, in float64, or with those of another model.
"""

from __future__ import annotations

import copy
import warnings
from collections import deque
from collections.abc import Callable, Collection, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from graphfuse.errors import CaptureError, DataError
from graphfuse.flatgraph import execute, last_use, lift_attributes, tidy, tie
from graphfuse.frontend import (
    AtomCall,
    AtomOf,
    Kind,
    dotted,
    in_force,
    packed,
    program,
    source_in,
    taken_whole,
    unpacked,
)
from graphfuse.inputs import Example, Signature, as_captured, expect_state, in_order, leaf_names, outline, signature_of
from graphfuse.outputs import expect_outputs, is_wanted, output_names

__all__ = ["Captured", "Example", "Input", "Site", "canonical_names", "capture", "duplicate", "signature_of",
           "state_of"]  # fmt: skip

Steps = Generator[tuple[fx.Node, Any], Any, None]


@dataclass(frozen=True)
class Site:
    """Where in the model a node stands: node name, op, dotted module path, and ``file:line: code`` of the user."""

    node: str
    op: str
    module: str
    source: str

    def __str__(self) -> str:
        return f"{self.op} in {self.module or 'the top module'}" + (f" ({self.source})" if self.source else "")


@dataclass(frozen=True)
class Input:
    """What a placeholder stands for; ``name`` is canonical (a tied tensor's first name in the state dict)."""

    node: str
    kind: Kind
    name: str


@dataclass(frozen=True, eq=False)
class Captured:
    """A flat functional graph over ATen; parameters, buffers, constants and user tensors are all placeholders.

    ``inputs`` lists the placeholders in order; ``outputs`` the names of the nodes that the user gets back, in flat
    order; ``wanted`` what the user calls those that must stay as they are (empty: all must); ``aliases`` maps a tied
    tensor's other names to its canonical one; ``constants`` holds the values of the tensors that the trace lifted out
    of the code; ``atoms`` the calls of modules that a rule takes whole; ``reads`` nodes whose values left the graph for
    Python code, so that they must stay as they are, too.
    """

    graph_module: fx.GraphModule
    inputs: tuple[Input, ...]
    aliases: Mapping[str, str]
    constants: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    method: Literal["export", "make_fx"]
    notes: tuple[str, ...]
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    examples: tuple[Example, ...]
    atoms: tuple[AtomCall, ...] = ()
    wanted: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        return {"packed": packed(vars(self))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(unpacked(state["packed"]))

    @property
    def graph(self) -> fx.Graph:
        """The graph of ``graph_module``."""
        return self.graph_module.graph

    @property
    def signature(self) -> Signature:
        """Shape and dtype of every user tensor, in flat order; compare with :func:`signature_of`."""
        return tuple((leaf.shape, leaf.dtype) for leaf in self.examples if leaf.shape is not None and leaf.dtype)

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of the nodes that must stay as they are: those outputs that are wanted, and what Python code reads."""
        (values,) = next(iter(self.graph.find_nodes(op="output"))).args
        named = zip(output_names(self.out_spec), values, strict=False)  # pyright: ignore[reportArgumentType]
        wanted = [value.name for name, value in named if isinstance(value, fx.Node) and is_wanted(name, self.wanted)]
        return (*wanted, *self.reads)

    def site(self, node: fx.Node) -> Site:
        """Where in the model a node stands, for messages and reports."""
        stack = node.meta.get("nn_module_stack") or {}
        last = next(reversed(stack.values()))[0] if stack else ""
        return Site(node.name, str(node.target), dotted(last), source_in(node.meta.get("stack_trace") or ""))

    def bind(
        self, state: Mapping[str, Tensor], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> dict[str, Tensor]:
        """Placeholder name -> tensor, for :meth:`steps`.

        Shapes must be those of the capture; floating tensors may have another precision. Extra entries of ``state``
        are ignored.

        Raises
        ------
        DataError
            An input or a state tensor is missing, has another shape or kind, or a non-tensor input differs from the
            value that the graph was captured with.
        """
        user = self._match(args, kwargs)
        values: dict[str, Tensor] = {}
        for slot, node in zip(self.inputs, self.graph.find_nodes(op="placeholder"), strict=True):
            if slot.kind == "user":
                values[slot.node] = user[slot.name]
            elif slot.kind == "constant":
                values[slot.node] = self.constants[slot.name]
            else:
                values[slot.node] = expect_state(state, slot.name, slot.kind, node)
        return values

    def steps(self, values: Mapping[str, Tensor]) -> Steps:
        """Run the graph node by node, yielding ``(node, value)`` for every node in order, the output node last.

        ``values`` are the placeholders' (see :meth:`bind`). A value that no later node reads is dropped at once, so
        memory stays that of the widest point. To replace the value just yielded, ``send`` the new one: the generator
        then yields the same node with the new value once more as the answer to ``send``, so a ``for`` loop around it
        goes on with the next node.

        >>> steps = captured.steps(captured.bind(state, (x,)))       # doctest: +SKIP
        >>> for node, value in steps:                                 # doctest: +SKIP
        ...     if node.name == "relu":
        ...         steps.send(value * 2)
        """
        last = last_use(self.graph)
        env: dict[fx.Node, Any] = {}
        for node in self.graph.nodes:
            with in_force(self.atoms):
                value = execute(self.graph_module, node, env, values)
            while (new := (yield node, value)) is not None:
                value = new
            env[node] = value
            del value, new
            for dead in last.get(node, ()):
                del env[dead]

    def run(
        self, state: Mapping[str, Tensor], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the graph with this state; returns what the model returns (the same pytree).

        Raises
        ------
        DataError
            As :meth:`bind`.
        """
        with torch.no_grad():
            ((_, value),) = deque(self.steps(self.bind(state, args, kwargs)), maxlen=1)
        return pytree.tree_unflatten(list(value)[: self.out_spec.num_leaves], self.out_spec)

    def _match(self, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None) -> dict[str, Tensor]:
        given = dict(kwargs or {})
        expected = self.in_spec.children()[1].context or []
        if set(given) == set(expected):
            given = {key: given[key] for key in expected}
        flat, spec = pytree.tree_flatten((tuple(args), given))
        if spec != self.in_spec:
            raise DataError(
                "the inputs have another structure than those of the capture.\n"
                f"  got: {outline(spec)}\n  expected: {outline(self.in_spec)}\n"
                "  what to do: pass the same positional and keyword arguments, or trace the model again with these"
            )
        return {leaf.name: as_captured(value, leaf) for leaf, value in zip(self.examples, flat, strict=True)}


def capture(
    model: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    decompose: Callable[[OpOverload], bool] = lambda op: False,
    atom_of: AtomOf = lambda module: None,
    wanted: Collection[str] = (),
) -> Captured:
    """Capture what ``model(*args, **kwargs)`` computes in eval mode as a flat functional graph.

    Parameters
    ----------
    model : nn.Module
        Left as it was. May live on the meta device, or hold fake tensors.
    args, kwargs :
        Example inputs. Tensors may be nested in lists, tuples and dicts; anything that is no tensor becomes part of
        the graph.
    decompose : callable
        Says of an ATen op whether it should be decomposed, because nothing is known about it.
    atom_of : callable
        Says of a module whether it becomes one op, and how (see :class:`graphfuse.frontend.atoms.Atom`).
    wanted : collection of str
        Names of the outputs that must stay as they are; all of them where none is named.

    Raises
    ------
    ConfigError
        The model returns no output of a name in ``wanted``.
    CaptureError
        The model does not run on these inputs, or cannot be captured; names the user's source line.
    """
    _expect_code(model)
    args, given = tuple(args), in_order(model, dict(kwargs or {}))
    flat, in_spec = pytree.tree_flatten((args, given))
    with taken_whole(model, atom_of) as calls:
        raw = program(model, args, given, decompose)
    expect_outputs(output_names(raw.out_spec), wanted, type(model).__name__)
    examples = tuple(
        Example(name, tuple(x.shape), x.dtype) if isinstance(x, Tensor) else Example(name, None, None, x)
        for name, x in zip(leaf_names(model, in_spec), flat, strict=True)
    )
    slots, constants = dict(raw.slots), dict(raw.constants)
    graph = raw.graph_module.graph
    next(iter(graph.find_nodes(op="output"))).args = ([*raw.outputs, *raw.reads],)
    lift_attributes(raw.graph_module, slots, constants)
    aliases = tie(canonical_names(model), graph, slots)
    tidy(graph, slots, examples)
    raw.graph_module.recompile()
    placeholders = [(node.name, slots[node.name]) for node in graph.find_nodes(op="placeholder")]
    return Captured(
        graph_module=raw.graph_module,
        inputs=tuple(
            Input(node, slot.kind, examples[int(slot.name)].name if slot.kind == "user" else slot.name)
            for node, slot in placeholders
        ),
        aliases=aliases,
        constants={name: value.detach() for name, value in constants.items()},
        outputs=tuple(value.name for value in raw.outputs if isinstance(value, fx.Node)),
        method=raw.method,
        notes=raw.notes,
        in_spec=in_spec,
        out_spec=raw.out_spec,
        examples=examples,
        atoms=tuple(calls),
        wanted=tuple(wanted),
        reads=tuple(node.name for node in raw.reads),
    )


def duplicate(model: nn.Module) -> nn.Module:
    """A deep copy; what hooks keep on a module with its history (a weight times a mask, say) is cut off from that."""
    kept = (value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)  # torch copies the specs of its own programs
        return copy.deepcopy(model, {id(value): value.detach().clone() for value in kept if not value.is_leaf})


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Canonical name -> tensor: every parameter and every buffer, persistent or not, each tied tensor once.

    The tensors are the model's own, detached: writing into one writes into the model.
    """
    canonical = canonical_names(model)
    tensors = _named_tensors(model)
    return {name: tensors[name].detach() for name in tensors if canonical[name] == name}


def canonical_names(model: nn.Module) -> dict[str, str]:
    """Every name of a parameter or buffer -> the first name of that tensor (tied tensors have several)."""
    first: dict[Any, str] = {}
    return {name: first.setdefault(_identity(tensor), name) for name, tensor in _named_tensors(model).items()}


def _expect_code(model: nn.Module) -> None:
    """A graph can be captured of code that Python runs on the model's own tensors."""
    compiled = next((name for name, part in model.named_modules() if isinstance(part, torch.jit.ScriptModule)), None)
    if compiled is not None:
        raise CaptureError(
            f"{type(model).__name__} holds TorchScript ({compiled or 'the whole model'}), which cannot be captured.\n"
            "  what to do: pass the module that it was scripted or traced from; its state dict has the same names"
        )
    if isinstance(model, nn.DataParallel):
        raise CaptureError("DataParallel has no code of its own.\n  what to do: pass the module inside, model.module")


def _named_tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def _identity(tensor: Tensor) -> Any:
    """Equal for names of one tensor, also when it is wrapped in two parameters over the same storage."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.numel() == 0:
        return id(tensor)
    storage = tensor.untyped_storage()._cdata
    return (storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
