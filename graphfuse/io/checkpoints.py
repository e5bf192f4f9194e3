"""Weights in files: read without running code, written whole or not at all."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from graphfuse import archive
from graphfuse.capture import canonical_names
from graphfuse.errors import CheckpointError, kind_of
from graphfuse.io.precision import Dtypes, as_stored

PREFIXES = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights", "params")
ALIASES = "graphfuse.aliases"
INDEX = ".index.json"
SHOWN = 4


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a file holds: tensors by name, and what was done to read it."""

    path: Path
    state: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()


def load_state(path: str | Path) -> Checkpoint:
    """Read a state dict from a ``.safetensors`` file or a torch file that holds nothing but tensors.

    Shards are named by their index (``*.index.json``), or by the directory that holds the index. Names that all begin
    with ``module.`` or ``_orig_mod.`` lose that prefix, and a state dict inside a larger training checkpoint is found;
    ``notes`` says so.

    Raises
    ------
    CheckpointError
        The file is missing, damaged, holds Python objects whose loading would run code, or holds no state dict.
    """
    file = _index_in(Path(path))
    state, notes = _read_shards(file) if file.name.endswith(INDEX) else _read(file)
    for prefix in PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
            notes.append(f"{file.name}: stripped the prefix {prefix!r} from every name")
    return Checkpoint(file, state, tuple(notes))


def _index_in(path: Path) -> Path:
    """The index of the shards in a directory, or its only safetensors file; any other path as it is."""
    if not path.is_dir():
        return path
    usual = [path / name for name in (f"model.safetensors{INDEX}", "model.safetensors") if (path / name).is_file()]
    found = usual[:1] or sorted(path.glob(f"*.safetensors{INDEX}")) or sorted(path.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    raise CheckpointError(
        f"{path} is a directory that holds {len(found) or 'no'} safetensors files{' and no index' if found else ''}.\n"
        "  expected: one model.safetensors, or shards with their model.safetensors.index.json"
    )


def _read_shards(index: Path) -> tuple[dict[str, Tensor], list[str]]:
    try:
        where = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(where.values()))
    except OSError as error:
        raise CheckpointError(f"{index} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index of shards.\n  expected: a JSON object with 'weight_map'") from error
    shards = {name: _read(index.parent / Path(name).name)[0] for name in files}
    absent = [name for name, file in where.items() if name not in shards[file]]
    if absent:
        raise CheckpointError(
            f"{index}: {len(absent)} tensors are not in the shards that it names: {'; '.join(absent[:SHOWN])}\n"
            "  what to do: fetch the shards again; they and the index must be of one checkpoint"
        )
    notes = [f"{index.name}: {len(where)} tensors from {len(files)} shards"]
    return {name: value for shard in shards.values() for name, value in shard.items()}, notes


def _read(file: Path) -> tuple[dict[str, Tensor], list[str]]:
    try:
        with file.open("rb") as stream:
            start = stream.read(9)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    try:
        return _read_safetensors(file) if start[8:] == b"{" else _read_torch(file)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} holds Python objects, and loading those runs whatever code the file names; it was not loaded.\n"
            "  what to do: where you trust the file, load it in your own session and save the weights alone: "
            "safetensors.torch.save_model(model, 'model.safetensors')"
        ) from error
    except (safetensors.SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise CheckpointError(
            f"{file} is no checkpoint, or a damaged one: {reason}\n  expected: a safetensors file, or a torch file of "
            "a state dict"
        ) from error


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], list[str]]:
    with safetensors.safe_open(file, framework="pt") as stored:  # pyright: ignore[reportPrivateImportUsage]
        metadata = stored.metadata() or {}
        state = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    for alias, name in json.loads(metadata.get(ALIASES, "{}")).items():
        state.setdefault(alias, state[name])
    return state, []


def _read_torch(file: Path) -> tuple[dict[str, Tensor], list[str]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about old formats; what cannot be read raises
        found: Any = torch.load(file, map_location="cpu", weights_only=True)
    notes = []
    while isinstance(found, Mapping) and not _is_state(found):
        maps = [key for key in WRAPPERS if isinstance(found.get(key), Mapping)]
        inside = next((key for key in maps if _is_state(found[key])), maps[0] if maps else None)
        if inside is None:
            break
        notes.append(f"{file.name}: took the state dict under {inside!r}")
        found = found[inside]
    if not _is_state(found):
        what = kind_of(found)
        if isinstance(found, Mapping):
            what = f"a dict with the keys {', '.join(map(repr, list(found)[:SHOWN]))}"
        raise ValueError(f"it holds {what}, not tensors by name")
    return dict(found), notes


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def save_state(path: str | Path, state: Mapping[str, Tensor], aliases: Mapping[str, str] | None = None) -> None:
    """Write tensors to a safetensors file, whole or not at all.

    Parameters
    ----------
    path :
        The file; one that is there is replaced.
    state :
        Name -> tensor. Tensors that share memory are written once each under the names given.
    aliases :
        Other name -> name in ``state``, for tied tensors; :func:`load_state` gives them back under all names.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    metadata = {"format": "pt"} | ({ALIASES: json.dumps(dict(aliases))} if aliases else {})
    archive.save(plain, path, metadata)


def save_weights(path: str | Path, model: nn.Module, stored: Dtypes | None = None) -> None:
    """Write a model's state dict to a safetensors file, each tied tensor once under its canonical name.

    ``stored`` has the dtypes that tensors are to be written in; by default they are written as they are.
    """
    save_state(path, *untied(model, stored))


def untied(model: nn.Module, stored: Dtypes | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What a file of a model holds: each tensor once in the dtype that it was stored in, and other names for them."""
    canonical, state = canonical_names(model), model.state_dict()
    aliases = {name: first for name in state if (first := canonical.get(name, name)) != name and first in state}
    own = {name: value for name, value in state.items() if name not in aliases and isinstance(value, Tensor)}
    return as_stored(own, stored or {}), aliases
