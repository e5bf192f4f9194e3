"""Weights in files: read without running code, checked before they are used, written whole or not at all."""

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
from graphfuse.errors import CheckpointError
from graphfuse.io.outputs import new_file

PREFIXES = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile
WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "weights")
ALIASES = "graphfuse.aliases"
SHOWN = 4


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: tensors by name, and what was done to read it."""

    path: Path
    state: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()


def load_state(path: str | Path) -> Checkpoint:
    """Read a state dict from a ``.safetensors`` file or a torch file that holds nothing but tensors.

    Names that all begin with ``module.`` or ``_orig_mod.`` lose that prefix, and a state dict inside a larger training
    checkpoint is found; ``notes`` says so.

    Raises
    ------
    CheckpointError
        The file is missing, damaged, holds Python objects whose loading would run code, or holds no state dict.
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            start = stream.read(9)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    try:
        state, notes = _read_safetensors(file) if start[8:] == b"{" else _read_torch(file)
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
    for prefix in PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
            notes.append(f"{file.name}: stripped the prefix {prefix!r} from every name")
    return Checkpoint(file, state, tuple(notes))


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
    if isinstance(found, Mapping) and not _is_state(found):
        inside = [key for key in WRAPPERS if _is_state(found.get(key))]
        if inside:
            notes.append(f"{file.name}: took the state dict under {inside[0]!r}")
            found = found[inside[0]]
    if not _is_state(found):
        what = f"a {type(found).__name__}"
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


def load_into(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy a checkpoint into a model, after checking that it fits; the model is unchanged when it does not.

    A tied tensor may be stored under any of its names.

    Raises
    ------
    CheckpointError
        Names are missing or unexpected, shapes differ, tied tensors differ, or values are not finite.
    """
    state = checkpoint.state
    canonical = canonical_names(model)
    own = {name: value for name, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    stored: dict[str, str] = {}
    for name in own:
        if name in state:
            first = stored.setdefault(canonical.get(name, name), name)
            if first != name and not torch.equal(state[first], state[name]):
                raise CheckpointError(
                    f"{checkpoint.path}: {first!r} and {name!r} are one tensor in the model, but two different ones in "
                    "the file.\n  what to do: untie them in the model, or store the one that is meant"
                )
    missing = [f"{name} {tuple(own[name].shape)}" for name in own if canonical.get(name, name) not in stored]
    unexpected = [f"{name} {tuple(value.shape)}" for name, value in state.items() if name not in own]
    shapes = [
        f"{name}: got {tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
        for name in stored.values()
        if state[name].shape != own[name].shape
    ]
    trouble = _listing("missing from the file", missing) + _listing("unknown to the model", unexpected)
    trouble += _listing("of another shape", shapes)
    if trouble:
        raise CheckpointError(
            f"{checkpoint.path} does not fit {type(model).__name__}:\n{trouble}"
            "  what to do: build the model with the settings that it was trained with"
        )
    _must_be_finite({name: state[name] for name in stored.values()}, _buffers(model), str(checkpoint.path))
    with torch.no_grad():
        for name in stored.values():
            own[name].copy_(state[name])


def must_be_finite(model: nn.Module, where: str) -> None:
    """CheckpointError when a parameter of the model is NaN or infinite, or a buffer NaN."""
    _must_be_finite(dict(model.named_parameters()) | dict(model.named_buffers()), _buffers(model), where)


def _buffers(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_buffers(remove_duplicate=False)}


def _must_be_finite(state: Mapping[str, Tensor], buffers: set[str], where: str) -> None:
    bad = []
    for name, value in state.items():
        if value.is_floating_point() and not value.is_meta:
            wrong = torch.isnan(value) if name in buffers else ~torch.isfinite(value)  # masks may be minus infinity
            if count := int(wrong.sum()):
                bad.append(f"{name} {tuple(value.shape)}: {count} of {value.numel()} values")
    if bad:
        raise CheckpointError(
            f"{where}: weights that are NaN or infinite:\n{_listing('not finite', bad)}"
            "  what to do: take a checkpoint from before the training diverged"
        )


def _listing(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"  {what} ({len(names)}): {'; '.join(names[:SHOWN])}{more}\n"


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
    with new_file(path) as work:
        safetensors.torch.save_file(plain, work, metadata=metadata)
        archive.in_order(work)


def save_weights(path: str | Path, model: nn.Module) -> None:
    """Write a model's state dict to a safetensors file, each tied tensor once under its canonical name."""
    canonical = canonical_names(model)
    state = model.state_dict()
    aliases = {
        name: canonical[name] for name in state if canonical.get(name, name) != name and canonical[name] in state
    }
    save_state(path, {name: value for name, value in state.items() if name not in aliases}, aliases)
