"""Weights into a model: names are brought together, and all is checked before anything is changed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from graphfuse.capture import canonical_names
from graphfuse.errors import CheckpointError
from graphfuse.io.checkpoints import PREFIXES, Checkpoint

SHOWN = 4
WRAPPINGS = (*PREFIXES, "model.", "net.")  # the last two: an attribute of a training module
DEEPEST = 3  # wrappers in each other


@dataclass(frozen=True)
class Fit:
    """How a checkpoint fits a model: the tensors by the model's names, and what does not fit, in words.

    ``stored`` maps the canonical name of each tensor to the name under which the file has it.
    """

    state: Mapping[str, Tensor]
    own: Mapping[str, Tensor]
    stored: Mapping[str, str]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[str, ...]
    notes: tuple[str, ...]


def fit(model: nn.Module, checkpoint: Checkpoint) -> Fit:
    """Bring the names of a checkpoint and of a model together; nothing is changed.

    Raises
    ------
    CheckpointError
        Tensors that are one in the model are two different ones in the file.
    """
    canonical = canonical_names(model)
    own = {name: value for name, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    state, notes = _renamed(checkpoint, own)
    stored: dict[str, str] = {}
    for name in own:
        if name in state:
            first = stored.setdefault(canonical.get(name, name), name)
            if first != name and not torch.equal(state[first], state[name]):
                raise CheckpointError(
                    f"{checkpoint.path}: {first!r} and {name!r} are one tensor in the model, but two different ones in "
                    "the file.\n  what to do: untie them in the model, or store the one that is meant"
                )
    tied = [(name, stored[canonical.get(name, name)]) for name in own if canonical.get(name, name) in stored]
    notes += [
        f"{checkpoint.path.name}: {name!r} is not in the file; the model ties it to {other!r}"
        for name, other in tied
        if name not in state
    ]
    return Fit(
        state,
        own,
        stored,
        tuple(name for name in own if canonical.get(name, name) not in stored),
        tuple(name for name in state if name not in own),
        tuple(name for name in stored.values() if state[name].shape != own[name].shape),
        tuple(notes),
    )


def load_into(model: nn.Module, checkpoint: Checkpoint, allow: Sequence[str] = ()) -> tuple[str, ...]:
    """Copy a checkpoint into a model, after checking that it fits; the model is unchanged when it does not.

    A tied tensor may be stored under any of its names. Prefixes that wrappers add are taken off, or put on, where the
    model's names then match. What was done is returned in words.

    Parameters
    ----------
    model, checkpoint :
        The model, and what a file holds.
    allow :
        Beginnings of names that need not match: such tensors keep the model's values where the file lacks them or has
        another shape, and are left out where only the file has them. A new head is ``("head.",)``.

    Raises
    ------
    CheckpointError
        Names are missing or unexpected, shapes differ, tied tensors differ, or values are not finite.
    """
    found = fit(model, checkpoint)
    state, own = found.state, found.own

    def meant(name: str) -> bool:
        return name.startswith(tuple(allow))

    trouble = _listing("missing from the file", [_shaped(name, own) for name in found.missing if not meant(name)])
    trouble += _listing("unknown to the model", [_shaped(name, state) for name in found.unexpected if not meant(name)])
    trouble += _listing(
        "of another shape",
        [
            f"{name}: got {tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
            for name in found.misshapen
            if not meant(name)
        ],
    )
    if trouble:
        raise CheckpointError(
            f"{checkpoint.path} does not fit {type(model).__name__}:\n{trouble}"
            "  what to do: build the model with the settings that it was trained with" + _advice(found)
        )
    taken = [name for name in found.stored.values() if name not in found.misshapen]
    _must_be_finite({name: state[name] for name in taken}, _buffers(model), str(checkpoint.path))
    with torch.no_grad():
        for name in taken:
            own[name].copy_(state[name])
    fresh, left = [*found.missing, *found.misshapen], list(found.unexpected)
    file = checkpoint.path.name
    return (
        *found.notes,
        *([f"{file}: not loaded, so with the values that the model was built with: {_few(fresh)}"] if fresh else []),
        *([f"{file}: left out, because the model has no such tensor: {_few(left)}"] if left else []),
    )


def must_be_finite(model: nn.Module, where: str) -> None:
    """CheckpointError when a parameter of the model is NaN or infinite, or a buffer NaN."""
    _must_be_finite(dict(model.named_parameters()) | dict(model.named_buffers()), _buffers(model), where)


def _renamed(checkpoint: Checkpoint, own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The state with the wrappings off or on that make more of its names the model's."""
    state = dict(checkpoint.state)
    if own.keys() <= state.keys():
        return state, []
    chains = [chain for depth in range(1, DEEPEST + 1) for chain in itertools.product(WRAPPINGS, repeat=depth)]
    options = [(state, "")]
    options += [({_without(name, c): v for name, v in state.items()}, f"took {''.join(c)!r} off") for c in chains]
    options += [({w + name: v for name, v in state.items()}, f"put {w!r} in front of") for w in WRAPPINGS]
    best, what = max(options, key=lambda option: len(option[0].keys() & own.keys()))
    if not what or len(best) < len(state):
        return state, []
    return best, [f"{checkpoint.path.name}: {what} the names, as the model has them"]


def _without(name: str, chain: Sequence[str]) -> str:
    for prefix in chain:
        name = name.removeprefix(prefix)
    return name


def _advice(found: Fit) -> str:
    """For a head that is missing: what stands before the last dot of its names, where that is one module."""
    odd = [*found.missing, *found.misshapen]
    modules = {name.rpartition(".")[0] for name in odd}
    if len(modules) != 1 or not (module := modules.pop()) or found.unexpected:
        return ""
    return f",\n  or, if {module} is to keep the values that it was built with, allow it: --allow {module}."


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


def _shaped(name: str, tensors: Mapping[str, Tensor]) -> str:
    return f"{name} {tuple(tensors[name].shape)}"


def _few(names: Sequence[str]) -> str:
    return "; ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _listing(what: str, names: list[str]) -> str:
    return f"  {what} ({len(names)}): {_few(names)}\n" if names else ""
