"""Likeness by activations and weights together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from graphfuse.costs.evidence import Entry, Evidence
from graphfuse.costs.moments import Moments
from graphfuse.maps import Maps
from graphfuse.symmetry import Axis


class BlendEvidence:
    """A weighted mean of two sources; the first one says in which order axes are first solved.

    Parameters
    ----------
    activations, weights : Evidence
    share : float
        Weight of the activations, from 0 to 1.
    """

    repeats = True

    def __init__(self, activations: Evidence, weights: Evidence, share: float) -> None:
        self._sources = ((activations, share), (weights, 1 - share))

    def ready(self, pending: Sequence[Axis], maps: Maps) -> Sequence[Axis]:
        """As the activations have it."""
        return self._sources[0][0].ready(pending, maps)

    def moments(self, axis: Axis, maps: Maps) -> list[Entry]:
        """Entries of both; each source's share its weight."""
        found: list[Entry] = []
        for source, share in self._sources:
            entries = source.moments(axis, maps) if share > 0 else []
            found += [partial(_weighing, entry, share / len(entries)) for entry in entries]
        return found

    def norms(self, axis: Axis) -> tuple[Tensor, Tensor] | None:
        """As the activations have it, else as the weights do."""
        return self._sources[0][0].norms(axis) or self._sources[1][0].norms(axis)


def _weighing(entry: Entry, weight: float) -> Moments:
    return replace(entry(), weight=weight)
