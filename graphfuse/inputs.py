"""Example inputs: how they are named, ordered, described, and checked against those of the capture."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from graphfuse.errors import DataError

Signature = tuple[tuple[tuple[int, ...], torch.dtype], ...]


@dataclass(frozen=True)
class Example:
    """One leaf of the user's inputs at capture: a tensor (shape and dtype), or a value that is part of the graph."""

    name: str
    shape: tuple[int, ...] | None
    dtype: torch.dtype | None
    value: Any = None


def signature_of(args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Signature:
    """Shape and dtype of every tensor among the inputs; a graph fits them when its ``signature`` is equal."""
    leaves = pytree.tree_leaves((tuple(args), dict(kwargs or {})))
    return tuple((tuple(leaf.shape), leaf.dtype) for leaf in leaves if isinstance(leaf, Tensor))


def expect_state(state: Mapping[str, Tensor], name: str, kind: str, node: fx.Node) -> Tensor:
    shape = tuple(node.meta["val"].shape)
    if name not in state:
        raise DataError(f"the state has no {kind} {name!r} (shape {shape}).\n  what to do: use state_of(model)")
    if tuple(state[name].shape) != shape:
        raise DataError(f"{kind} {name!r} has another shape.\n  got: {tuple(state[name].shape)}\n  expected: {shape}")
    return state[name]


def as_captured(value: Any, leaf: Example) -> Any:
    """The value of one input leaf, checked against what the graph was captured with."""
    if leaf.shape is None or leaf.dtype is None:
        if isinstance(value, Tensor) or value != leaf.value:
            raise DataError(
                f"input {leaf.name!r} is {value!r}, but the graph was captured with {leaf.value!r}, and a value that "
                "is no tensor is part of the graph.\n  what to do: trace the model again with this value"
            )
        return value
    if not isinstance(value, Tensor):
        raise DataError(f"input {leaf.name!r} is no tensor.\n  got: {value!r}\n  expected: a tensor {leaf.shape}")
    same_kind = value.dtype == leaf.dtype or (value.is_floating_point() and leaf.dtype.is_floating_point)
    if tuple(value.shape) != leaf.shape or not same_kind:
        raise DataError(
            f"input {leaf.name!r} does not fit the graph.\n  got: {tuple(value.shape)} {value.dtype}\n"
            f"  expected: {leaf.shape} {leaf.dtype}\n"
            "  what to do: graphs have fixed shapes; trace again with this input"
        )
    return value


def in_order(model: nn.Module, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments in the order in which ``forward`` names them, as the front end has them."""
    known = [name for name in inspect.signature(model.forward).parameters if name in kwargs]
    return {name: kwargs[name] for name in [*known, *(k for k in kwargs if k not in known)]}


def leaf_names(model: nn.Module, in_spec: pytree.TreeSpec) -> list[str]:
    """A name for every flat input: ``x``, ``batch.mask``, ``features[0]``; positional ones as in ``forward``."""
    parameters = inspect.signature(model.forward).parameters.values()
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    args, kwargs = pytree.tree_unflatten([0] * in_spec.num_leaves, in_spec)
    heads = [positional[i] if i < len(positional) else f"args[{i}]" for i in range(len(args))] + list(kwargs)
    names = []
    for head, value in zip(heads, [*args, *kwargs.values()], strict=True):
        names += [head + _path(keys) for keys, _ in pytree.tree_flatten_with_path(value)[0]]
    return names


def _path(keys: tuple[Any, ...]) -> str:
    return "".join(f".{key.key}" if isinstance(key, pytree.MappingKey) else str(key) for key in keys)


def outline(spec: pytree.TreeSpec) -> str:
    args, kwargs = pytree.tree_unflatten(["*"] * spec.num_leaves, spec)
    words = [str(arg) for arg in args] + [f"{name}={value}" for name, value in kwargs.items()]
    return f"({', '.join(words)})".replace("'*'", "*")
