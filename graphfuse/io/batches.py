"""Data batches by name: a file of arrays, or a function that makes them."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from graphfuse.errors import DataError
from graphfuse.io.specs import find, looks_like_reference

POSITIONAL = ("x", "inputs", "input", "data", "arr_0")
Batch = Tensor | tuple[Any, ...] | dict[str, Any]


@dataclass(frozen=True, eq=False)
class Batches:
    """Batches that can be gone through again and again."""

    make: Callable[[], Iterable[Batch]]

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.make())


def load_data(spec: str, batch_size: int = 64) -> Batches:
    """Unlabelled inputs from a ``.npz`` or ``.safetensors`` file, or from ``package.module:function``.

    A file holds arrays whose first dimension runs over the inputs. One array called ``x``, ``inputs``, ``input`` or
    ``data`` is the model's positional argument; otherwise each array is the keyword argument of its name. The last,
    smaller batch is left out, because a graph has fixed shapes. A function returns an iterable of batches: tensors,
    tuples (positional arguments) or dicts (keyword arguments).

    Raises
    ------
    DataError
        There is no such file or function, it holds something else, or it yields nothing.
    """
    if Path(spec).suffix in (".npz", ".safetensors"):
        return _from_arrays(_read(Path(spec)), spec, batch_size)
    if not looks_like_reference(spec):
        raise DataError(
            f"the data {spec!r} is neither a file of arrays nor a function.\n"
            "  expected: FILE.npz, FILE.safetensors, or package.module:function"
        )
    loader = find(spec, DataError)
    if not callable(loader):
        raise DataError(f"the data {spec!r} is a {type(loader).__name__}, not a function that returns batches")
    return _from_loader(loader, spec)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with np.load(path, allow_pickle=False) as stored:
            return {name: torch.from_numpy(np.ascontiguousarray(stored[name])) for name in stored.files}
    except OSError as error:
        raise DataError(f"the data file {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, zipfile.BadZipFile, safetensors.SafetensorError) as error:
        raise DataError(f"the data file {path} holds no plain arrays: {error}") from error


def _from_arrays(arrays: dict[str, Tensor], spec: str, batch_size: int) -> Batches:
    if batch_size < 1:
        raise DataError(f"a batch of {batch_size} inputs is none.\n  expected: a batch size of at least 1")
    sizes = {name: len(value) if value.dim() else -1 for name, value in arrays.items()}
    if not arrays or 0 in sizes.values():
        raise DataError(f"{spec} holds no inputs: {_words(arrays) or 'no arrays'}")
    if len(set(sizes.values())) > 1 or -1 in sizes.values():
        raise DataError(
            f"{spec}: the first dimension must run over the same inputs in every array.\n  got: {_words(arrays)}"
        )
    tensors = {name: _as_input(value) for name, value in arrays.items()}
    for name, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise DataError(f"{spec}: the array {name!r} holds NaN or infinity")
    total = next(iter(sizes.values()))
    size = min(batch_size, total)
    starts = range(0, total - size + 1, size)
    positional = next(iter(tensors)) if len(tensors) == 1 and next(iter(tensors)) in POSITIONAL else None

    def batches() -> Iterator[Batch]:
        for start in starts:
            batch = {name: value[start : start + size] for name, value in tensors.items()}
            yield batch[positional] if positional else batch

    return Batches(batches)


def _as_input(value: Tensor) -> Tensor:
    """The precision that models are written for: float32, int64, bool; bytes stay bytes."""
    if value.is_floating_point():
        return value.float()
    return value if value.dtype in (torch.bool, torch.uint8) else value.long()


def _from_loader(loader: Callable[[], Any], spec: str) -> Batches:
    first = loader()
    if not isinstance(first, Iterable) or isinstance(first, Tensor | Mapping | str):
        raise DataError(f"{spec}() returned a {type(first).__name__}, not an iterable of batches")
    kept = first if iter(first) is not first else list(first)  # a generator can be gone through only once
    batches = Batches(lambda: kept)
    for batch in batches:
        if not isinstance(batch, Tensor | tuple | list | dict):
            raise DataError(
                f"{spec}() yields a {type(batch).__name__}.\n  expected: batches that are tensors, tuples (positional "
                "arguments) or dicts (keyword arguments)"
            )
        return batches
    raise DataError(f"{spec}() yields nothing.\n  what to do: return at least one batch of unlabelled inputs")


def _words(arrays: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(value.shape)}" for name, value in arrays.items())
