"""What a model returns, leaf by leaf: how the leaves are named, and which of them a user wants kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from graphfuse.config.base import nearest
from graphfuse.errors import ConfigError


def output_names(spec: pytree.TreeSpec) -> list[str]:
    """A name for every leaf of what a model returns: ``logits``, ``0``, ``losses.1``; ``output`` where it is one alone.

    >>> output_names(pytree.tree_structure({"logits": 0, "states": (1, 2)}))
    ['logits', 'states.0', 'states.1']
    """
    return [".".join(path) or "output" for path in _paths(spec, ())]


def _paths(spec: pytree.TreeSpec, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if spec.is_leaf():
        yield path
        return
    children = spec.children()
    for key, child in zip(_keys(spec.context, len(children)), children, strict=True):
        yield from _paths(child, (*path, key))


def _keys(context: Any, count: int) -> list[str]:
    """The keys of a dict or of a library's own kind of result, the fields of a named tuple, else numbers."""
    names = getattr(context, "_fields", context)
    keyed = isinstance(names, list | tuple) and len(names) == count and all(isinstance(name, str) for name in names)
    return list(names) if keyed else [str(i) for i in range(count)]


def tensors_in(leaf: Any) -> list[Tensor]:
    """The tensors of a leaf: itself, or those in the fields of a dataclass, which torch's pytrees do not look into."""
    if isinstance(leaf, Tensor):
        return [leaf]
    if not dataclasses.is_dataclass(leaf) or isinstance(leaf, type):
        return []
    values = [getattr(leaf, field.name, None) for field in dataclasses.fields(leaf)]
    return [tensor for value in pytree.tree_leaves(values) for tensor in tensors_in(value)]


def is_wanted(name: str, wanted: Collection[str]) -> bool:
    """Whether a leaf is one of those that were asked for, or inside one; all are where none was asked for."""
    return not wanted or any(name == head or name.startswith(f"{head}.") for head in wanted)


def expect_outputs(names: Sequence[str], wanted: Collection[str], model: str) -> None:
    """Every name that was asked for is one of an output.

    Raises
    ------
    ConfigError
        One is not; names the nearest that is.
    """
    for head in wanted:
        if not any(is_wanted(name, [head]) for name in names):
            raise ConfigError(f"outputs: {model} returns no {head!r}; {nearest(head, list(names))}")
