"""Fewer or more units than there are: which are kept or doubled, and the coupling that says so.

One coupling, normalised in two ways (see :mod:`graphfuse.maps`): a kept unit is the mean of those merged into it, and
they add up in what reads them, so that merging equal units keeps the function; a doubled unit's outgoing weights are
shared out (Chen et al., Net2Net, arXiv 1511.05641, section 2).
"""

from __future__ import annotations

import torch
from torch import Tensor


def representatives(likeness: Tensor, count: int, mass: Tensor | None = None) -> Tensor:
    """Units that stand for all, chosen one by one so that each unit is as like the nearest of them as can be.

    Parameters
    ----------
    likeness : Tensor, shape (n, n)
        Of a model's units with each other, largest on the diagonal; minus the squared distance, so that k-medoids are
        found and large or odd units are not passed over.
    count : int
        At most n: that many different units. More: each unit in turn, again and again.
    mass : Tensor, shape (n,), optional
        How much it counts that a unit is stood for well; by default all count the same.

    Returns
    -------
    Tensor of int64, shape (count,)
        In the units' order.

    Notes
    -----
    Source: Nemhauser, Wolsey and Fisher (1978), the greedy algorithm for facility location.
    """
    n = len(likeness)
    if count >= n:
        return torch.arange(count, device=likeness.device) % n
    reached = torch.full((n,), 2 * float(likeness.min()) - float(likeness.max()) - 1).to(likeness)
    free = torch.ones(n, dtype=torch.bool, device=likeness.device)
    for _ in range(count):
        gain = (likeness - reached).clamp_(min=0)
        gain = gain.sum(1) if mass is None else gain @ mass.to(gain)
        best = int(gain.masked_fill_(~free, -1).argmax())
        free[best] = False
        reached = torch.maximum(reached, likeness[best])
    return (~free).nonzero().squeeze(1)


def merging(likeness: Tensor, chosen: Tensor, mass: Tensor | None = None) -> Tensor:
    """The coupling of the chosen units with all, each of these going to the one that it is most like.

    Parameters
    ----------
    likeness : Tensor, shape (n, m)
        Of the units of which some were chosen, with all units to be merged; n == m.
    chosen : Tensor, shape (count,)
        Units as :func:`representatives` gives them.
    mass : Tensor, shape (m,), optional
        Share of each of the units that are merged in their mean; by default all have the same.

    Returns
    -------
    Tensor, shape (count, m)
        Of mass 1, float32.
    """
    m, count = likeness.shape[1], len(chosen)
    if count < m:
        home = likeness[chosen].argmax(0)
        plan = torch.zeros(count, m, device=likeness.device)
        plan[home, torch.arange(m, device=likeness.device)] = 1 / m if mass is None else (mass / mass.sum()).to(plan)
        return plan
    plan = torch.zeros(count, m, device=likeness.device)
    plan[torch.arange(count, device=likeness.device), chosen] = 1 / count
    return plan
