"""Which buffers a model writes to while it trains: those are learned, all others are tables of its architecture."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from graphfuse.frontend.tracing import evaluating, quiet, restoring


def written_in_training(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], names: Collection[str]
) -> frozenset[str]:
    """Of these buffers, those that a forward pass writes to when the modules that hold them are in training mode.

    The model is left as it was. A model that cannot run so writes to none.
    """
    if not names:
        return frozenset()
    owners = {name: model.get_submodule(name.rpartition(".")[0]) for name in names}
    with evaluating(model), restoring(model), quiet(), torch.no_grad(), torch.random.fork_rng(devices=[]):
        before = {name: model.get_buffer(name) for name in names}
        versions = {name: buffer._version for name, buffer in before.items() if not buffer.is_inference()}
        for owner in owners.values():
            owner.training = True
        try:
            model(*args, **kwargs)
        except Exception:
            return frozenset()
        after = {name: model.get_buffer(name) for name in versions}
        return frozenset(name for name, old in versions.items()
                         if after[name] is not before[name] or after[name]._version != old)  # fmt: skip
