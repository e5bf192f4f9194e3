"""Data batches by name: a file of arrays, or a function that makes them; with labels or without."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graphfuse.errors import DataError
from graphfuse.io import arrays
from graphfuse.io.examples import Batches, Examples, Labelled, cast, in_batches, in_labelled_batches
from graphfuse.io.forward import Batch, Signature, label_among
from graphfuse.io.models import LoadedModel
from graphfuse.io.specs import find, looks_like_reference

__all__ = ["Batch", "Batches", "Labelled", "load_data", "load_labelled"]

FORMS = "  expected: FILE.npz, FILE.safetensors, or package.module:function"


def load_data(
    spec: str, batch_size: int = 64, *, model: LoadedModel | None = None, samples: int | None = None
) -> Batches[Batch]:
    """Unlabelled inputs from a ``.npz`` or ``.safetensors`` file, or from ``package.module:function``.

    A file holds arrays whose first dimension runs over the inputs. One array called ``x``, ``inputs``, ``input`` or
    ``data`` is the model's positional argument; otherwise each array is the keyword argument of its name. The last,
    smaller batch is left out, because a graph has fixed shapes. A function returns an iterable of batches: tensors,
    tuples (positional arguments) or dicts (keyword arguments).

    An array called ``labels``, ``label``, ``targets``, ``target`` or ``y`` holds labels and is left out, unless the
    model's ``forward`` needs an argument of that name; so is the second of two things that a function yields, where
    ``forward`` takes one. ``notes`` says so.

    Parameters
    ----------
    spec :
        The data's name.
    batch_size :
        Inputs in a batch; a function decides itself.
    model :
        The model that the inputs are for: their names are checked, and floating inputs get the dtype that it was
        loaded with, where one was asked for.
    samples :
        No more inputs than these, spread evenly over the data; of a function's batches, the first that reach them.

    Raises
    ------
    DataError
        There is no such file or function, it holds something else, or it yields nothing.
    """
    found = _find(spec, model)
    dtype = model.dtype if model is not None else None
    if isinstance(found, Examples):
        return in_batches(found, batch_size, samples, dtype)
    signature = _signature(model)
    left_out = [name for item in found for name in _labels_in(item, signature)][:1]
    notes = tuple(f"{spec}: {name} holds labels; it is not given to the model" for name in left_out)
    return Batches(lambda: (cast(_unlabelled(item, signature), dtype) for item in _first(found, samples)), notes)


def load_labelled(
    spec: str, batch_size: int = 64, *, model: LoadedModel | None = None, samples: int | None = None
) -> Batches[Labelled]:
    """The same data with its labels, all of it: the last batch may be smaller.

    In a file, an array called ``labels``, ``label``, ``targets``, ``target`` or ``y`` holds them. A function yields
    pairs ``(inputs, labels)``, or dicts with such a key.

    Raises
    ------
    DataError
        As :func:`load_data`; or the data has no labels.
    """
    found = _find(spec, model)
    dtype = model.dtype if model is not None else None
    if isinstance(found, Examples):
        return in_labelled_batches(found, batch_size, samples, dtype)
    for item in found:
        _labelled(item, spec)
        break
    return Batches(lambda: (_labelled(item, spec, dtype) for item in _first(found, samples)))


def _find(spec: str, model: LoadedModel | None) -> Examples | Batches[Any]:
    if Path(spec).suffix in arrays.SUFFIXES:
        return arrays.read(Path(spec), _signature(model))
    if not looks_like_reference(spec):
        raise DataError(f"the data {spec!r} is neither a file of arrays nor a function.\n{FORMS}")
    loader = find(spec, DataError)
    if not callable(loader):
        raise DataError(f"the data {spec!r} is a {type(loader).__name__}, not a function that returns batches")
    return _from_loader(loader, spec)


def _signature(model: LoadedModel | None) -> Signature | None:
    return Signature.of(model.model) if model is not None else None


# ------------------------------------------------------------------ functions that make batches


def _from_loader(loader: Callable[[], Any], spec: str) -> Batches[Any]:
    first = loader()
    if not isinstance(first, Iterable) or isinstance(first, Tensor | Mapping | str | nn.Module):
        raise DataError(f"{spec}() returned a {type(first).__name__}, not an iterable of batches")
    kept = first if iter(first) is not first else list(first)  # a generator can be gone through only once
    batches = Batches(lambda: kept)
    for batch in batches:
        if not isinstance(batch, Tensor | tuple | list | dict | Labelled):
            raise DataError(
                f"{spec}() yields a {type(batch).__name__}.\n  expected: batches that are tensors, tuples (positional "
                "arguments) or dicts (keyword arguments)"
            )
        return batches
    raise DataError(f"{spec}() yields nothing.\n  what to do: return at least one batch of unlabelled inputs")


def _labels_in(item: Any, signature: Signature | None) -> list[str]:
    """What a batch holds beside the inputs, in words; empty when it holds nothing else."""
    if isinstance(item, Labelled):
        return ["each batch's second part"]
    if isinstance(item, dict):
        name = label_among(item, signature)
        return [repr(name)] if name is not None else []
    alone = signature is not None and not signature.anything and len(signature.names) == 1
    return ["the second of each pair"] if alone and isinstance(item, tuple | list) and len(item) == 2 else []


def _unlabelled(item: Any, signature: Signature | None) -> Any:
    if not _labels_in(item, signature):
        return item
    if isinstance(item, dict):
        return {name: value for name, value in item.items() if name != label_among(item, signature)}
    return item.inputs if isinstance(item, Labelled) else item[0]


def _labelled(item: Any, spec: str, dtype: torch.dtype | None = None) -> Labelled:
    match item:
        case Labelled(inputs, labels):
            return Labelled(cast(inputs, dtype), labels)
        case dict() if (name := label_among(item, None)) is not None:
            inputs = {key: value for key, value in item.items() if key != name}
            return Labelled(cast(inputs, dtype), item[name])
        case (inputs, Tensor() as labels):
            return Labelled(cast(inputs, dtype), labels)
    raise DataError(
        f"{spec}() yields a {type(item).__name__} without labels.\n  expected: pairs (inputs, labels), or dicts with a "
        "key labels (or label, targets, target, y)"
    )


def _first(batches: Batches[Any], samples: int | None) -> Iterator[Any]:
    seen = 0
    for batch in batches:
        yield batch
        seen += _count(batch)
        if samples is not None and seen >= samples:
            return


def _count(batch: Any) -> int:
    value = batch.labels if isinstance(batch, Labelled) else batch
    while not isinstance(value, Tensor):
        value = next(iter(value.values() if isinstance(value, dict) else value), None)
        if value is None or isinstance(value, str):
            return 0
    return len(value) if value.dim() else 1
