"""What a model's ``forward`` takes, and how named arrays become its arguments."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from graphfuse.errors import DataError

POSITIONAL = ("x", "inputs", "input", "data", "arr_0")
LABELS = ("labels", "label", "targets", "target", "y")
Batch = Tensor | tuple[Any, ...] | dict[str, Any]


@dataclass(frozen=True)
class Signature:
    """The arguments of a model's ``forward``; ``anything`` when it also takes names that it does not list."""

    model: str
    names: tuple[str, ...]
    required: frozenset[str]
    anything: bool

    @classmethod
    def of(cls, model: nn.Module) -> Signature:
        """Read off ``model.forward``."""
        parameters = inspect.signature(model.forward).parameters.values()
        named = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        loose = any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)
        required = frozenset(p.name for p in named if p.default is p.empty)
        return cls(type(model).__name__, tuple(p.name for p in named), required, loose)


def label_among(names: Iterable[str], signature: Signature | None) -> str | None:
    """The name that holds labels: ``labels``, ``label``, ``targets``, ``target`` or ``y``.

    None when there is no such name, no other name beside it, or ``forward`` cannot do without it.
    """
    found = list(names)
    needed = signature.required if signature is not None else frozenset()
    return next((name for name in LABELS if name in found and len(found) > 1 and name not in needed), None)


def arguments(arrays: Mapping[str, Tensor], signature: Signature | None, where: str) -> Batch:
    """Named arrays as the model takes them: one positional argument, or a keyword argument each.

    Raises
    ------
    DataError
        ``forward`` takes no argument of some name.
    """
    names = signature.names if signature is not None and not signature.anything else None
    if len(arrays) == 1:
        (name,) = arrays
        if name in POSITIONAL or (names is not None and name not in names):
            return arrays[name]
    unknown = [name for name in arrays if names is not None and name not in names]
    if signature is not None and unknown:
        raise DataError(
            f"{where}: {signature.model}.forward takes no argument {', '.join(map(repr, unknown))}.\n"
            f"  it takes: {', '.join(signature.names)}\n  what to do: name the arrays as forward names its arguments"
        )
    return dict(arrays)
