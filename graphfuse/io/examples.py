"""Examples of a data set by their index, read only when they are needed, and cut into batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from graphfuse.errors import DataError
from graphfuse.io.forward import Batch

T = TypeVar("T", covariant=True)


@dataclass(frozen=True, eq=False)
class Examples:
    """``count`` examples; ``read(rows)`` gives the inputs of some of them, as the model takes them.

    ``label`` says what the labels are called in the data; ``classes`` names the values of integer labels.
    """

    where: str
    count: int
    read: Callable[[list[int]], Batch]
    labels: Tensor | None = None
    label: str | None = None
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Batches(Generic[T]):
    """Batches that can be gone through again and again."""

    make: Callable[[], Iterable[T]]
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[T]:
        return iter(self.make())


@dataclass(frozen=True, eq=False)
class Labelled:
    """One batch: inputs as the model takes them, and their labels, whose first dimension runs over the inputs."""

    inputs: Batch
    labels: Tensor


def chosen(count: int, samples: int | None) -> list[int]:
    """The rows of ``samples`` examples, spread evenly over all of them; all when there are no more.

    >>> chosen(10, 4)
    [0, 2, 5, 7]
    """
    if samples is None or samples >= count:
        return list(range(count))
    return [number * count // samples for number in range(samples)]


def in_batches(
    examples: Examples, batch_size: int, samples: int | None, dtype: torch.dtype | None = None
) -> Batches[Batch]:
    """Inputs without labels; the last, smaller batch is left out, because a graph has fixed shapes."""
    rows = _rows(examples, batch_size, samples)
    size = min(batch_size, len(rows))
    notes = examples.notes
    if examples.label is not None:
        notes += (f"{examples.where}: {examples.label!r} holds labels; it is not given to the model",)
    parts = [rows[start : start + size] for start in range(0, len(rows) - size + 1, size)]
    return Batches(lambda: (cast(examples.read(part), dtype) for part in parts), notes, examples.classes)


def in_labelled_batches(
    examples: Examples, batch_size: int, samples: int | None, dtype: torch.dtype | None = None
) -> Batches[Labelled]:
    """Inputs with labels, all of them: the last batch may be smaller."""
    rows, labels = _rows(examples, batch_size, samples), examples.labels
    if labels is None:
        raise DataError(
            f"{examples.where} has no labels.\n  what to do: store them as an array named labels (or label, targets, "
            "target, y), put images into a folder for each class, or give a function that yields (inputs, labels)"
        )
    parts = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return Batches(
        lambda: (Labelled(cast(examples.read(part), dtype), labels[part]) for part in parts),
        examples.notes,
        examples.classes,
    )


def _rows(examples: Examples, batch_size: int, samples: int | None) -> list[int]:
    if batch_size < 1:
        raise DataError(f"a batch of {batch_size} inputs is none.\n  expected: a batch size of at least 1")
    if samples is not None and samples < 1:
        raise DataError(f"{samples} samples are none.\n  expected: at least 1")
    if not examples.count:
        raise DataError(f"{examples.where} holds no inputs")
    return chosen(examples.count, samples)


def cast(value: Any, dtype: torch.dtype | None) -> Any:
    """Inputs with their floating tensors in another precision."""
    if dtype is None:
        return value
    return pytree.tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, value)
