"""The mean of several aligned models as a partner to match with: its weights, and its activations."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from graphfuse.carry import movable, transform
from graphfuse.cells import Sizes
from graphfuse.costs.weights import scale_of
from graphfuse.lockstep import Batch, Lockstep, Moment
from graphfuse.maps import Maps
from graphfuse.symmetry import TensorLabel


def mean_weights(
    labels: Sequence[TensorLabel],
    states: Sequence[Mapping[str, Tensor]],
    maps: Sequence[Maps],
    shares: Sequence[float],
    sizes: Sequence[Sizes],
    target: int,
) -> dict[str, Tensor]:
    """The mean of the aligned models' tensors, each standardised by its own mean and deviation.

    Returns
    -------
    dict
        Name -> tensor in the target's coordinates, at least in single precision; those that are constant in a model
        are left out.
    """
    result = {}
    for label in labels:
        scales = [scale_of(state[label.name]) for state in states]
        total: Tensor | None = None
        for k, (state, scale, share) in enumerate(zip(states, scales, shares, strict=True)):
            if share and scale is not None and None not in scales:
                kind = torch.promote_types(state[label.name].dtype, torch.float32)
                part = (state[label.name].detach().to(kind) - scale[0]) * (share / scale[1])
                part = transform(part, label.dims, label.consumed, maps[k], sizes[k], sizes[target])
                total = part if total is None else total.add_(part)
        if total is not None:
            result[label.name] = total
    return result


@dataclass(eq=False)
class MeanLockstep(Lockstep):
    """Several models side by side, seen as two: the mean of all, in the target's coordinates, and the one ``other``."""

    maps: Sequence[Maps] = ()
    shares: Sequence[float] = ()
    other: int = 0

    def run(self, batch: Batch, wanted: Collection[str]) -> Iterator[Moment]:
        """As in :class:`Lockstep`; nodes whose values cannot be moved are left out."""
        target = self.correspondence.target
        for moment in super().run(batch, wanted):
            if not moment.values[0].is_floating_point():
                continue
            if not all(movable(moment.dims, maps) for maps, share in zip(self.maps, self.shares, strict=True) if share):
                continue
            sizes = moment.sizes[target], moment.sizes[self.other]
            yield replace(moment, values=(self._mean(moment, target), moment.values[self.other]), sizes=sizes)

    def _mean(self, moment: Moment, target: int) -> Tensor:
        consumed = (False,) * len(moment.dims)
        parts = [
            share * transform(value, moment.dims, consumed, maps, sizes, moment.sizes[target])
            for value, maps, share, sizes in zip(moment.values, self.maps, self.shares, moment.sizes, strict=True)
            if share
        ]
        return torch.stack(parts).sum(0)
