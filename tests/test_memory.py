"""Matching holds little more than the largest table of costs, and what it does for that changes no result."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from models import MLP, Decoder, ids
from test_align import planted, scaled
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from graphfuse.aligned import Alignment
from graphfuse.alignment import match, prepare
from graphfuse.carry import Labelled, in_source, in_target
from graphfuse.costs import moments
from graphfuse.costs.moments import Measure, gram, likeness, matched_correlation
from graphfuse.costs.weights import WeightEvidence
from graphfuse.transport.softening import soften
from graphfuse.transport.solvers import assign, widened


class Held(TorchDispatchMode):
    """Counts the bytes of all storages that operators have made and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(x.untyped_storage()) for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for made in pytree.tree_leaves(out):
            if isinstance(made, Tensor) and made.device.type == "cpu" and id(made.untyped_storage()) not in given:
                size = made.untyped_storage().nbytes()
                self.now += size
                self.most = max(self.most, self.now)
                weakref.finalize(made.untyped_storage(), self._freed, size)
        return out

    def _freed(self, size: int) -> None:
        self.now -= size


@contextmanager
def taking_in(which: list[bool]) -> Iterator[None]:
    """Writes down what each soft map that might be taken in led to; an empty list forbids it."""
    real, forbidden = WeightEvidence.takes_in, not which

    def told(self: WeightEvidence, axis: Any, maps: Any, spare: bool) -> bool:
        found = real(self, axis, maps, spare and not forbidden)
        which.append(found)
        return found

    WeightEvidence.takes_in = told
    try:
        yield
    finally:
        WeightEvidence.takes_in = real


def wide(seed: int) -> nn.Module:
    return scaled(MLP((5, 600, 3)), seed)


@pytest.mark.parametrize("sweeps", [1, 6])
def test_matching_by_weights_holds_little_more_than_the_largest_cost(sweeps: int) -> None:
    """A table in single precision beside one in double: one and a half; the double one is not there as a whole yet."""
    prepared = prepare([wide(1), wide(2)], torch.randn(2, 5), config={"sweeps": sweeps})
    with Held() as held:
        match(prepared)
    largest = 8 * 600**2
    assert largest < held.most < 1.75 * largest


def test_activations_are_matched_in_little_more_than_their_moments_and_the_largest_cost() -> None:
    """Moments of the one wide axis, half a largest cost, turn into its table."""
    prepared = prepare([wide(1), wide(2)], data=[torch.randn(32, 5)])
    with Held() as held:
        match(prepared)
    largest = 8 * 600**2
    assert largest < held.most < 1.75 * largest


def maps(found: Alignment) -> list[Tensor]:
    return [entry.values for part in found.models for entry in part.maps.values()]


def test_maps_that_evidence_takes_in_lead_to_the_same() -> None:
    models, x = [scaled(Decoder(16, 2, 2, 60), seed) for seed in (1, 2)], ids(8, vocabulary=31)
    prepared = prepare(models, x)
    seen, never = [True], list[bool]()
    with taking_in(seen):
        found = match(prepared)
    with taking_in(never):
        plain = match(prepared)
    assert any(seen[1:]) and not any(never)
    assert all(torch.equal(a, b) for a, b in zip(maps(found), maps(plain), strict=True))
    assert all(entry.device.type == "cpu" for entry in maps(found))
    for id, agreement in found.models[1].agreement.items():
        assert agreement.value == pytest.approx(plain.models[1].agreement[id].value, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_compared_piece_by_piece_lead_to_the_same(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    model, x = scaled(Decoder(16, 2, 1, 60)).to(dtype), ids(8, vocabulary=31)
    prepared = prepare([model, planted(model, x)], x, config={"symmetry": "permutation"})
    whole = match(prepared)
    monkeypatch.setattr(moments, "PIECE", 50)
    cut = match(prepared)
    assert all(torch.equal(a, b) for a, b in zip(maps(whole), maps(cut), strict=True))
    for id, agreement in cut.models[1].agreement.items():
        assert agreement.value == pytest.approx(1, abs=1e-3)
        assert agreement.value == pytest.approx(whole.models[1].agreement[id].value, abs=1e-5)


@pytest.mark.parametrize("shape", [(7, 7), (2, 3, 5, 5), (1, 1), (600, 600), (0, 4, 4), (3, 9)])
def test_a_widened_table_is_the_same_in_double_precision(shape: tuple[int, ...]) -> None:
    table = torch.randn(shape)
    given = [table]
    found = widened(given)
    assert not given and found.dtype == torch.float64
    assert_close(found, table.double(), rtol=0, atol=0)


@pytest.mark.parametrize("measure", ["cosine", "squared", "euclidean"])
def test_correlations_are_read_off_the_table_that_took_the_place_of_the_moments(measure: Measure) -> None:
    a, b = torch.randn(50, 9) + torch.arange(9), 2 * torch.randn(50, 9) - 1
    b[:, 4] = 3  # constant: like nothing
    seen = gram(a, Labelled(b, (in_target(0), in_source(1))), 1, (), ())
    wanted = likeness(seen, "correlation")
    table = likeness(seen.copied(), measure, spend=True)
    assert_close(table, likeness(seen, measure), rtol=0, atol=0)
    index = assign(-table)
    found = matched_correlation(seen, index, table.gather(-1, index.unsqueeze(-1)).squeeze(-1), measure)
    assert_close(found.float(), wanted.gather(-1, index.unsqueeze(-1)).squeeze(-1), rtol=0, atol=1e-4)
    assert float(found.abs().max()) > 0.1


def test_costs_that_are_spent_give_the_same_coupling() -> None:
    cost = torch.randn(3, 8, 6)
    kept = cost.clone()
    wanted = soften(cost, 0.05)
    assert_close(cost, kept, rtol=0, atol=0)
    assert_close(soften(cost, 0.05, spend=True), wanted, rtol=0, atol=0)
    assert not torch.equal(cost, kept)
