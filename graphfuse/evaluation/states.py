"""Weights as points: their mean, the straight line between two, and models at such points."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from graphfuse.capture import duplicate, state_of
from graphfuse.lockstep import Batch

State = Mapping[str, Tensor]


def alike(states: Sequence[State]) -> bool:
    """Whether all have the same names and shapes, so that they can be averaged as they are."""
    outlines = [{name: tensor.shape for name, tensor in state.items()} for state in states]
    return all(outline == outlines[0] for outline in outlines)


def mean_state(states: Sequence[State], shares: Sequence[float] | None = None) -> dict[str, Tensor]:
    """The weighted mean of alike states, name by name; what is no floating-point number is the first's.

    Parameters
    ----------
    states : sequence of mappings
    shares : sequence of float, optional
        Summing to one; by default all equal.
    """
    shares = shares or [1 / len(states)] * len(states)
    return {
        name: sum(share * state[name] for share, state in zip(shares, states, strict=True))  # pyright: ignore
        if value.is_floating_point()
        else value.clone()
        for name, value in states[0].items()
    }


def at(model: nn.Module, state: State) -> nn.Module:
    """A copy of a model, in eval mode, with other weights (by canonical names, or those of its state dict)."""
    other = duplicate(model).eval()
    with torch.no_grad():
        for name, tensor in state_of(other).items():
            if name in state:
                tensor.copy_(state[name])
    return other


def line(
    model: nn.Module, first: State, last: State, points: int, inputs: Sequence[Batch]
) -> Iterator[tuple[float, nn.Module]]:
    """(share, model) at even steps from one state to another; between the ends batch norms are re-estimated."""
    for i in range(points):
        share = i / (points - 1)
        state = {
            name: torch.lerp(value, last[name].to(value), share) if value.is_floating_point() else value
            for name, value in first.items()
        }
        yield share, restated(at(model, state), inputs if 0 < i < points - 1 else ())


@torch.no_grad()
def restated(model: nn.Module, inputs: Iterable[Batch]) -> nn.Module:
    """The model itself, each of its batch norms with the statistics of these inputs; without inputs as it was."""
    inputs, norms = list(inputs), batch_norms(model)
    if not norms or not inputs:
        return model
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over all batches
        norm.train()
    for batch in inputs:
        model(*batch.args, **batch.kwargs)
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
        norm.eval()
    return model


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The batch norms of a model that keep statistics."""
    found = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    return [norm for norm in found if norm.track_running_stats]
