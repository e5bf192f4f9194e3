"""Named arrays in a ``.npz`` or ``.safetensors`` file."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from graphfuse.errors import DataError
from graphfuse.io.examples import Examples
from graphfuse.io.forward import Signature, arguments, label_among

SUFFIXES = (".npz", ".safetensors")


def read(path: Path, signature: Signature | None = None) -> Examples:
    """Arrays whose first dimension runs over the examples.

    One array called ``x``, ``inputs``, ``input`` or ``data``, or one alone that ``forward`` has no argument for, is
    the positional argument; otherwise each is the keyword argument of its name.

    Raises
    ------
    DataError
        The file cannot be read, or its arrays are not finite, not equally long, or not what ``forward`` takes.
    """
    arrays = _load(path)
    sizes = {name: len(value) if value.dim() else -1 for name, value in arrays.items()}
    if not arrays or 0 in sizes.values():
        raise DataError(f"{path} holds no inputs: {_words(arrays) or 'no arrays'}")
    if len(set(sizes.values())) > 1 or -1 in sizes.values():
        raise DataError(
            f"{path}: the first dimension must run over the same inputs in every array.\n  got: {_words(arrays)}"
        )
    tensors = {name: as_input(value) for name, value in arrays.items()}
    for name, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise DataError(f"{path}: the array {name!r} holds NaN or infinity")
    label = label_among(tensors, signature)
    labels = tensors.pop(label) if label is not None else None
    arguments(tensors, signature, str(path))
    return Examples(
        str(path),
        next(iter(sizes.values())),
        lambda rows: arguments({name: value[rows] for name, value in tensors.items()}, signature, str(path)),
        labels,
        label,
    )


def _load(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with np.load(path, allow_pickle=False) as stored:
            return {name: torch.from_numpy(np.ascontiguousarray(stored[name])) for name in stored.files}
    except OSError as error:
        raise DataError(f"the data file {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, zipfile.BadZipFile, safetensors.SafetensorError) as error:
        raise DataError(f"the data file {path} holds no plain arrays: {error}") from error


def as_input(value: Tensor) -> Tensor:
    """The precision that models are written for: float32, int64, bool; bytes stay bytes."""
    if value.is_floating_point():
        return value.float()
    return value if value.dtype in (torch.bool, torch.uint8) else value.long()


def _words(arrays: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(value.shape)}" for name, value in arrays.items())
