"""Moments against what numpy computes, where axes are written, and streaming over batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import randomise
from models import MLP, Decoder, ResNet, UNet, ids, images
from torch import Tensor, nn
from torch.testing import assert_close

from graphfuse.alignment import prepare
from graphfuse.carry import Labelled, in_source, in_target
from graphfuse.costs.activations import ActivationEvidence
from graphfuse.costs.evidence import Problem
from graphfuse.costs.moments import Moments, gram, likeness
from graphfuse.costs.sites import sites
from graphfuse.costs.weights import WeightEvidence
from graphfuse.errors import DataError, GraphFuseError
from graphfuse.lockstep import as_batch, batches
from graphfuse.symmetry import SymmetryGraph, trace


def plain_gram(a: Tensor, b: Tensor, total: Moments | None = None) -> Moments:
    """Moments of two tensors of shape (samples, units)."""
    return gram(a, Labelled(b, (in_target(0), in_source(1))), 1, (), (), total=total)


def test_likeness_is_what_it_says() -> None:
    a, b = torch.randn(50, 4, dtype=torch.float64) + 3, torch.randn(50, 6, dtype=torch.float64)
    found = plain_gram(a, b)
    assert_close(likeness(found, "correlation"), torch.corrcoef(torch.cat([a, b], 1).T)[:4, 4:])
    assert_close(likeness(found, "cosine"), torch.cosine_similarity(a.T[:, None], b.T[None], dim=-1))
    assert_close(likeness(found, "euclidean"), -torch.cdist(a.T, b.T), rtol=1e-6, atol=1e-6)
    assert_close(likeness(found, "squared"), -torch.cdist(a.T, b.T).square(), rtol=1e-6, atol=1e-6)


def test_moments_of_parts_merge_into_those_of_the_whole() -> None:
    a, b = torch.randn(50, 4, dtype=torch.float64) + 100, torch.randn(50, 6, dtype=torch.float64)
    merged = plain_gram(a[8:], b[8:], plain_gram(a[7:8], b[7:8], plain_gram(a[:7], b[:7])))
    whole = plain_gram(a, b)
    for name in ("mean_a", "mean_b", "square_a", "square_b", "cross"):
        assert_close(getattr(merged, name), getattr(whole, name))
    assert merged.count == whole.count == 50


def test_a_constant_unit_is_like_nothing() -> None:
    a, b = torch.randn(50, 3), torch.randn(50, 3)
    a[:, 1] = 5
    assert_close(likeness(plain_gram(a, b), "correlation")[1], torch.zeros(3), rtol=0, atol=0)


def role(graph: SymmetryGraph, name: str) -> int:
    return next(axis.id for axis in graph.axes if axis.role == name)


def ops(graph: SymmetryGraph, axis: int) -> list[str]:
    nodes = {node.name: str(node.target) for node in graph.captured.graph.nodes}
    return [nodes[name].split(".")[1] for name in sites(graph)[axis]]


def test_axes_are_seen_where_they_are_written() -> None:
    graph = trace(Decoder(depth=1).eval(), (ids(vocabulary=31),))
    assert ops(graph, role(graph, "hidden")) == ["linear"]
    assert ops(graph, role(graph, "heads")) == ["linear"]
    residual = ops(graph, role(graph, "residual"))
    assert residual.count("add") == 2
    assert residual.count("linear") == 2
    assert residual.count("embedding") == 1


def test_a_residual_of_convolutions_is_seen_at_convolutions_and_sums() -> None:
    graph = trace(ResNet().eval(), (images(),))
    first = ops(graph, role(graph, "residual"))
    assert first.count("conv2d") == 3
    assert first.count("add") == 2


def evidence_of(a: nn.Module, b: nn.Module, data: list[Any], samples: int = 512) -> tuple[Problem, ActivationEvidence]:
    prepared = prepare([a, b], data=data, config={"samples": samples})
    relation = prepared.correspondence
    problem = Problem(relation.free, relation.sizes[0], relation.sizes[1])
    labels = list(relation.graph.tensors.values())
    weights = WeightEvidence(problem, labels, prepared.states[0], prepared.states[1])
    return problem, ActivationEvidence(problem, prepared.lockstep, prepared.data, weights)


def first_likeness(a: nn.Module, b: nn.Module, data: list[Any]) -> list[Tensor]:
    problem, evidence = evidence_of(a, b, data)
    (axis, *_) = evidence.ready(list(problem.axes), {})
    return [likeness(entry(), "correlation") for entry in evidence.moments(axis, {})]


def test_streamed_moments_are_the_correlations_of_all_activations() -> None:
    a, b = randomise(MLP((5, 11, 3)), 1), randomise(MLP((5, 8, 3)), 2)
    x = torch.randn(60, 5)
    (found,) = first_likeness(a, b, [x[:20], x[20:40], x[40:]])
    with torch.no_grad():
        units = torch.cat([next(model.children())(x) for model in (a, b)], 1).double()
    assert_close(found.double(), torch.corrcoef(units.T)[:11, 11:], rtol=1e-5, atol=1e-5)


class Joint(nn.Module):
    """One projection for two operands of a product, read on a class token and six patches."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.both, self.out = nn.Parameter(torch.randn(1, 1, 5)), nn.Linear(5, 14), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1)
        a, b = self.both(x).chunk(2, -1)
        return self.out(a * b.tanh()).sum(1)


def test_blocks_of_a_node_are_one_population_but_for_those_along_the_axis_itself() -> None:
    x, models = torch.randn(20, 6, 5), [Joint(), Joint()]
    found = first_likeness(models[0], models[1], [x])
    with torch.no_grad():
        rows = [m.both(torch.cat([m.first.expand(20, -1, -1), x], 1)).flatten(0, 1) for m in models]
    assert len(found) == 2
    for block, entry in zip((slice(0, 7), slice(7, 14)), found, strict=True):
        units = torch.cat([y[:, block] for y in rows], 1).double()
        assert_close(entry.double(), torch.corrcoef(units.T)[:7, 7:], rtol=1e-5, atol=1e-5)


def test_batches_of_other_shapes_are_traced_anew() -> None:
    a, b = randomise(UNet(), 1), randomise(UNet(), 2)
    x = images(7)
    whole, cut = first_likeness(a, b, [x]), first_likeness(a, b, [x[:3], x[3:6], x[6:]])
    for one, other in zip(whole, cut, strict=True):
        assert_close(other, one, rtol=1e-4, atol=1e-4)


def test_a_batch_that_cannot_be_traced_is_left_out_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = randomise(MLP(), 1), randomise(MLP(), 2)
    x = torch.randn(9, 5)
    problem, evidence = evidence_of(a, b, [x[:4], x[4:8], x[8:]])
    lockstep = evidence._lockstep

    def refuse(*_: Any) -> SymmetryGraph:
        raise GraphFuseError("no such shape")

    monkeypatch.setattr(lockstep, "retrace", refuse)
    evidence.ready(list(problem.axes), {})
    assert len(lockstep.notes) == 1
    assert "left out" in lockstep.notes[0]
    assert all(entry().count == 1 for axis in problem.axes for entry in evidence.moments(axis, {}))


def test_activations_that_are_not_finite_are_refused() -> None:
    a, b = randomise(MLP(), 1), randomise(MLP(), 2)
    x = torch.randn(8, 5)
    x[3] = float("inf")
    problem, evidence = evidence_of(a, b, [x])
    with pytest.raises(DataError, match="activations at 'linear' are not finite"):
        evidence.ready(list(problem.axes), {})


def test_whole_batches_are_taken_until_there_are_enough_inputs() -> None:
    data = (torch.zeros(4, 5) for _ in range(100))
    assert [batch.count for batch in batches(data, 10)] == [4, 4, 4]
    assert len(list(data)) == 97
    assert [batch.count for batch in batches([{"x": torch.zeros(6, 5)}, (torch.zeros(7, 5), 3)], 100)] == [6, 7]
    assert [batch.count for batch in batches(torch.zeros(8, 5), 2)] == [8]


@pytest.mark.parametrize("data", [[], iter(()), [torch.zeros(0, 5)]])
def test_data_that_yields_nothing_is_refused(data: Any) -> None:
    with pytest.raises(DataError, match="yields no batch"):
        batches(data, 10)


def test_what_is_no_batch_is_refused() -> None:
    with pytest.raises(DataError, match="a batch of type str cannot be given to the model"):
        as_batch("images")
