"""Several models at once: each is matched again and again with the mean of the others, so that none is privileged.

By weights, every step of one-to-one maps raises the likeness summed over all pairs. Sources: Agueh and Carlier,
Barycenters in the Wasserstein Space (SIAM J. Math. Anal. 2011), for couplings and other widths; Ainsworth et al., Git
Re-Basin (arXiv 2209.04836), algorithm 3; Crisostomi et al., C2M3 (arXiv 2405.17897), for one-to-one maps into one
common order, which are consistent around every cycle: the same sum over pairs, here by coordinate ascent over the
models in place of Frank-Wolfe steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from graphfuse.maps import Maps
from graphfuse.transport.coordinate import Solution

Realign = Callable[[int, Sequence[Maps], Sequence[float]], Solution]
"""Match a model with the mean of all under these maps and shares, starting from its own map."""


@dataclass(frozen=True, eq=False)
class Joint:
    """The solution of every model, and the objective of each round."""

    solutions: tuple[Solution, ...]
    objectives: tuple[float, ...]


def jointly(start: Sequence[Maps], shares: Sequence[float], realign: Realign, rounds: int, tolerance: float) -> Joint:
    """Match one model after another with the mean of the others, until that changes nothing.

    A model's own share is left out of the mean, where it would only hold the model where it is.

    Parameters
    ----------
    start :
        The maps of each model onto the target's order.
    shares : sequence of float
        Weight of each model; they sum to one. A model whose others have none keeps its maps.
    realign : callable
    rounds : int
        Upper bound.
    tolerance : float
        A round that changes the objective, the mean likeness of a model and the mean of the others, by less than this
        share is the last one.

    Notes
    -----
    A round's objective is measured while the mean changes, so it may fall although all pairs come nearer. Where not all
    maps are one to one, a fall is the end nevertheless: means of couplings blur from round to round.
    """
    solutions = [Solution(maps, {}, 0, 0.0) for maps in start]
    best, objectives = tuple(solutions), list[float]()
    for _ in range(rounds):
        before = [found.maps for found in solutions]
        for k, share in enumerate(shares):
            others = [0.0 if j == k else other / (1 - share) if share < 1 else 0.0 for j, other in enumerate(shares)]
            if any(others):
                solutions[k] = realign(k, [found.maps for found in solutions], others)
        value = sum(share * found.objective for share, found in zip(shares, solutions, strict=True))
        change = value - objectives[-1] if objectives else math.inf
        if change < 0 and any(not map.hard for found in solutions for map in found.maps.values()):
            break
        objectives.append(value)
        best = tuple(solutions)
        still = all(_same(one, two.maps) for one, two in zip(before, solutions, strict=True))
        if still or abs(change) <= tolerance * abs(value):
            break
    return Joint(best, tuple(objectives))


def _same(a: Maps, b: Maps) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[id].values, found.values) for id, found in b.items())
