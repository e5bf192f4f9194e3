"""Data by name: files of arrays or text, folders, functions; in batches, with labels or without."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from graphfuse.errors import DataError, kind_of
from graphfuse.io import arrays, images, pretrained, saved, texts
from graphfuse.io.examples import Batches, Examples, Labelled, cast, in_batches, in_labelled_batches
from graphfuse.io.forward import Batch, Signature, label_among
from graphfuse.io.models import LoadedModel
from graphfuse.io.specs import find, looks_like_reference

__all__ = ["Batch", "Batches", "Labelled", "load_data", "load_labelled"]

TEXT, PIXELS = ".txt", "pixel_values"
FORMS = """  expected, one of:
    FILE.npz, FILE.safetensors  named arrays
    FOLDER                      of images (or one for each class), or a saved data set
    FILE.txt                    with the tokenizer of a transformers directory
    package.module:function     that returns batches"""


def load_data(
    spec: str,
    batch_size: int = 64,
    *,
    model: LoadedModel | None = None,
    samples: int | None = None,
    length: int | None = None,
) -> Batches[Batch]:
    """Unlabelled inputs by name.

    - ``.npz``, ``.safetensors``: arrays whose first dimension runs over the inputs. One array called ``x``,
      ``inputs``, ``input`` or ``data`` is the positional argument; otherwise each is the keyword argument of its name.
    - a folder of images, made as the model's library says, or of the shape of its example input.
    - a directory saved by ``datasets``: the columns that ``forward`` takes.
    - ``.txt``: windows of ``length`` tokens.
    - ``package.module:function``, which returns an iterable of batches: tensors, tuples (positional arguments) or dicts
      (keyword arguments).

    The last, smaller batch is left out, because a graph has fixed shapes. An array called ``labels``, ``label``,
    ``targets``, ``target`` or ``y`` holds labels and is left out, unless the model's ``forward`` needs an argument of
    that name; so is the second of two things that a function yields, where ``forward`` takes one. ``notes`` says so.

    Parameters
    ----------
    spec :
        The data's name.
    batch_size :
        Inputs in a batch; a function decides itself.
    model :
        The model that the inputs are for: their names are checked, and floating inputs get the dtype that it was
        loaded with, where one was asked for. Images and text need it.
    samples :
        No more inputs than these, spread evenly over the data; of a function's batches, the first that reach them.
    length :
        Tokens in a window of text; by default 128, or what the model can take.

    Raises
    ------
    DataError
        There is no such data, it holds something else or nothing, or it does not fit the model.
    """
    found = _find(spec, model, length)
    dtype = model.dtype if model is not None else None
    if isinstance(found, Examples):
        return in_batches(found, batch_size, samples, dtype)
    signature = _signature(model)
    left_out = _labels_in(next(iter(found)), signature)
    notes = tuple(f"{spec}: {name} holds labels; it is not given to the model" for name in left_out)
    return Batches(lambda: (cast(_unlabelled(item, signature), dtype) for item in _first(found, samples)), notes)


def load_labelled(
    spec: str,
    batch_size: int = 64,
    *,
    model: LoadedModel | None = None,
    samples: int | None = None,
    length: int | None = None,
) -> Batches[Labelled]:
    """The same data with its labels, all of it: the last batch may be smaller.

    In a file or a saved data set, an array called ``labels``, ``label``, ``targets``, ``target`` or ``y`` holds them.
    Images are labelled by their folders, in the order of the names, which are ``classes``. A function yields pairs
    ``(inputs, labels)``, or dicts with such a key.

    Raises
    ------
    DataError
        As :func:`load_data`; or the data has no labels.
    """
    found = _find(spec, model, length)
    dtype = model.dtype if model is not None else None
    if isinstance(found, Examples):
        return in_labelled_batches(found, batch_size, samples, dtype)
    _labelled(next(iter(found)), spec)
    return Batches(lambda: (_labelled(item, spec, dtype) for item in _first(found, samples)))


def _find(spec: str, model: LoadedModel | None, length: int | None) -> Examples | Batches[Any]:
    path = Path(spec)
    if path.is_dir():
        return _from_folder(path, model)
    if path.suffix in arrays.SUFFIXES:
        return arrays.read(path, _signature(model))
    if path.suffix == TEXT:
        return texts.read(path, _tokenizer(path, model), model.model if model is not None else None, length)
    if not looks_like_reference(spec):
        hint = "" if path.exists() else "; there is no such file or directory"
        raise DataError(f"the data {spec!r} is neither a file of arrays nor a function{hint}.\n{FORMS}")
    loader = find(spec, DataError)
    if not callable(loader):
        raise DataError(f"the data {spec!r} is {kind_of(loader)}, not a function that returns batches")
    return _from_loader(loader, spec)


def _from_folder(folder: Path, model: LoadedModel | None) -> Examples:
    if saved.is_saved(folder):
        return saved.read(folder, _signature(model))
    if not images.holds_images(folder):
        raise DataError(f"the directory {folder} holds neither images nor a data set that datasets saved.\n{FORMS}")
    if model is None:
        return images.read(folder, None)
    leaves = [leaf for leaf in pytree.tree_leaves(model.example) if _is_image(leaf)]
    how = model.preprocess or (images.Preprocess.for_shape(leaves[0].shape) if leaves else None)
    return images.read(folder, how, PIXELS if PIXELS in Signature.of(model.model).names else None)


def _is_image(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() == 4 and leaf.shape[1] in images.MODES


def _tokenizer(path: Path, model: LoadedModel | None) -> Any:
    if model is None or model.spec.kind != "transformers":
        raise DataError(
            f"the text {path} needs a tokenizer, and only a transformers directory has one.\n"
            "  what to do: give token ids: FILE.npz or FILE.safetensors with an array for each argument of forward"
        )
    return pretrained.tokenizer(Path(model.spec.target))


def _signature(model: LoadedModel | None) -> Signature | None:
    return Signature.of(model.model) if model is not None else None


# ------------------------------------------------------------------ functions that make batches


def _from_loader(loader: Callable[[], Any], spec: str) -> Batches[Any]:
    first = loader()
    if not isinstance(first, Iterable) or isinstance(first, Tensor | Mapping | str | nn.Module):
        raise DataError(f"{spec}() returned {kind_of(first)}, not an iterable of batches")
    kept = first if iter(first) is not first else list(first)  # a generator can be gone through only once
    batches = Batches(lambda: kept)
    for batch in batches:
        if not isinstance(batch, Tensor | tuple | list | dict | Labelled):
            raise DataError(
                f"{spec}() yields {kind_of(batch)}.\n  expected: batches that are tensors, tuples (positional "
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
        f"{spec}() yields {kind_of(item)} without labels.\n  expected: pairs (inputs, labels), or dicts with a "
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
