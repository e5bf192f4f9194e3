"""An alignment that was found before, for the models that are fused now."""

from __future__ import annotations

from collections.abc import Iterator

from graphfuse.aligned import Alignment
from graphfuse.alignment import frame
from graphfuse.errors import CorrespondenceError
from graphfuse.prepared import Prepared


def reused(prepared: Prepared, alignment: Alignment) -> Alignment:
    """The alignment itself, if it is one of models like these under settings like these.

    Raises
    ------
    CorrespondenceError
        It has other models, axes or tensors, or folds other gains; names the first difference.
    """
    for what, got, expected in _differences(alignment, frame(prepared, alignment.driver)):
        raise CorrespondenceError(
            f"the alignment given is not one of these models: it has other {what}.\n  got: {got}\n"
            f"  expected: {expected}\n  what to do: align these models with the same config, or leave the alignment out"
        )
    return alignment


def _differences(given: Alignment, own: Alignment) -> Iterator[tuple[str, object, object]]:
    if len(given.models) != len(own.models):
        yield "models", len(given.models), len(own.models)
    if given.target != own.target:
        yield "targets", given.target, own.target
    axes = [{axis.name: f"{axis.size} units" for axis in one.axes} for one in (given, own)]
    parts = list(zip(given.models, own.models, strict=False))
    for what, mine, theirs in (
        ("axes", *axes),
        ("tensors", *({name: (x.shape, x.dims) for name, x in one.labels.items()} for one in (given, own))),
        ("folded gains", *({fold.gain: fold.into for fold in one.folds} for one in (given, own))),
        *((f"sizes of model {k}", a.sizes, b.sizes) for k, (a, b) in enumerate(parts)),
        *(("layers", a.absent, b.absent) for a, b in parts),
    ):
        if mine != theirs:
            yield what, _first(mine, theirs), _first(theirs, mine)


def _first(mine: object, other: object) -> object:
    """What is only in the first of two collections, the first of it; None when there is nothing."""
    if isinstance(mine, dict) and isinstance(other, dict):
        return next((f"{key}: {value}" for key, value in mine.items() if other.get(key) != value), None)
    return next(iter(sorted(mine - other)), None) if isinstance(mine, frozenset) else mine  # pyright: ignore
