"""State dicts in several files, with an index that says which tensor is where."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from graphfuse.errors import ConfigError
from graphfuse.io.checkpoints import save_state, untied
from graphfuse.io.precision import Dtypes

UNITS = {"": 1, "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4}
SHARD = "5GB"


def bytes_of(size: str) -> int:
    """The bytes of a size in words.

    >>> bytes_of("1.5GB")
    1500000000

    Raises
    ------
    ConfigError
        It is no size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B)?", size.strip().upper())
    if found is None or float(found[1]) == 0:
        raise ConfigError(f"{size!r} is no size of a file.\n  expected: 500MB, 5GB")
    return int(float(found[1]) * UNITS[found[2] or ""])


def save_sharded(folder: Path, model: nn.Module, stored: Dtypes | None = None, shard: str = SHARD) -> None:
    """Write a model's state dict as ``model.safetensors``, or as shards of at most that size with their index.

    Each tied tensor is written once under its canonical name; :func:`graphfuse.io.checkpoints.load_state` of the
    folder gives it back under all. A tensor that is larger than a shard has one alone.

    Parameters
    ----------
    folder, model :
        An existing directory, and what is written there.
    stored :
        The dtypes that tensors are to be written in; by default as they are.
    shard :
        The size: 5GB, 500MB.
    """
    state, aliases = untied(model, stored)
    parts = _parts(state, bytes_of(shard))
    names = [f"model-{k:05}-of-{len(parts):05}.safetensors" for k in range(1, len(parts) + 1)]
    names = names if len(parts) > 1 else ["model.safetensors"]
    for name, part in zip(names, parts, strict=True):
        save_state(folder / name, part, {alias: first for alias, first in aliases.items() if first in part})
    if len(parts) > 1:
        where = {key: name for name, part in zip(names, parts, strict=True) for key in part}
        total = sum(value.nbytes for part in parts for value in part.values())
        index = {"metadata": {"total_size": total}, "weight_map": where}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _parts(state: Mapping[str, Tensor], most: int) -> list[dict[str, Tensor]]:
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, value in state.items():
        if parts[-1] and size + value.nbytes > most:
            parts.append({})
            size = 0
        parts[-1][name] = value
        size += value.nbytes
    return parts
