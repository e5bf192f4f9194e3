"""Verification must catch wrong claims, say what it could not check, and name the axes to blame."""

from __future__ import annotations

import dataclasses

import models
import pytest
import torch
from torch import Tensor, nn

import graphfuse
from graphfuse import SymmetryGraph
from graphfuse.axes import Leaf
from graphfuse.errors import VerifyError
from graphfuse.permutations import permuted, sample


def with_false_claim(graph: SymmetryGraph, tensor: str, dim: int) -> tuple[SymmetryGraph, int]:
    """The same graph, with the fixed axis of one parameter's dim claimed to be free."""
    (leaf,) = graph.tensors[tensor].dims[dim]
    false = dataclasses.replace(graph.axis(leaf.id), reasons=())  # pyright: ignore
    return dataclasses.replace(graph, axes=(*graph.axes, false)), leaf.id  # pyright: ignore


@pytest.mark.parametrize(("tensor", "dim"), [("0.weight", 1), ("4.weight", 0)])
def test_a_false_claim_is_caught_and_blamed(tensor: str, dim: int) -> None:
    graph = graphfuse.trace(models.MLP((5, 11, 7, 4)), (torch.randn(2, 5),))
    wrong, axis = with_false_claim(graph, tensor, dim)
    result = graphfuse.verify(wrong)
    assert not result.ok
    assert [blamed.id for blamed in result.blamed] == [axis]
    assert "WRONG" in str(result)


def test_gains_of_one_hide_nothing() -> None:
    """A map on a norm's gain alone changes nothing while all gains are one."""
    model = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 3))
    graph = graphfuse.trace(model, (torch.randn(2, 5),))
    gain = dataclasses.replace(graph.tensors["1.weight"], dims=((Leaf(99, 6),),))  # forgets to move with its axis
    broken = dataclasses.replace(graph, tensors={**graph.tensors, "1.weight": gain})
    assert graphfuse.verify(graph).ok
    assert not graphfuse.verify(broken).ok


def test_a_random_model_is_said_to_be_so() -> None:
    class Noise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + torch.rand(4)

    result = graphfuse.verify(graphfuse.trace(Noise(), (torch.randn(2, 3),)))
    assert not result.ok
    assert not result.repeatable


def test_a_model_that_keeps_state_is_said_to_be_so() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.calls = nn.Linear(3, 4), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.a(x) * self.calls

    graph = graphfuse.trace(Counting(), (torch.randn(2, 3),))
    result = graphfuse.verify(graph)
    assert not result.ok
    assert not result.repeatable
    assert "keeps state" in str(result)


def test_meta_models_cannot_be_verified() -> None:
    with torch.device("meta"):
        graph = graphfuse.trace(models.MLP(), (torch.zeros(2, 5),))
    with pytest.raises(VerifyError, match=r"holds no values \(meta device\)"):
        graphfuse.verify(graph)


def test_the_model_and_its_mode_are_left_as_they_were() -> None:
    model = models.ResNet().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graphfuse.verify(graphfuse.trace(model, (models.images(),)))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_same_seed_same_result() -> None:
    graph = graphfuse.trace(models.Decoder(), (models.ids(),))
    assert graphfuse.verify(graph, seed=3) == graphfuse.verify(graph, seed=3)


@pytest.mark.parametrize(("most", "seen"), [(1e-3, 1.0), (0.0, 0.0)])
def test_saturated_outputs_are_checked_near_the_models_own_weights(most: float, seen: float) -> None:
    class Saturating(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x)).square().clamp(max=most)

    model = Saturating()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.mul_(0.1)
    result = graphfuse.verify(graphfuse.trace(model, (torch.randn(2, 3),)))
    assert result.ok
    assert result.sensitivity == seen
    assert ("proves nothing" in str(result)) == (seen == 0)
    assert ("of the probes were noticed" in " ".join(result.notes)) == (seen > 0)


def test_nested_maps_really_differ_between_heads() -> None:
    graph = graphfuse.trace(models.Decoder(), (models.ids(),))
    maps = sample(graph, torch.Generator().manual_seed(0))
    inner = next(axis for axis in graph.axes if axis.role == "head_dim_vo")
    assert maps[inner.id].shape == (4, 6)
    assert not torch.equal(maps[inner.id][0], maps[inner.id][1])


def test_permuting_moves_every_touched_tensor() -> None:
    torch.manual_seed(0)
    graph = graphfuse.trace(models.ResNet().eval(), (models.images(),))
    state = {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in graph.model.state_dict().items()}
    moved = permuted(graph, state, sample(graph, torch.Generator().manual_seed(0)))
    changed = {name for name in graph.tensors if not torch.equal(moved[name], state[name])}
    assert changed == {touch.tensor for axis in graph.axes for touch in axis.touches}


def test_a_model_that_does_not_run_with_random_weights_is_checked_near_its_own() -> None:
    class Careful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            if not torch.compiler.is_exporting() and self.a.weight.abs().max() > 1:
                raise ValueError("too long")
            return self.b(torch.relu(self.a(x)))

    model = Careful()
    with torch.no_grad():
        model.a.weight *= 0.01
    graph = graphfuse.trace(model, (torch.randn(4, 3),))
    result = graphfuse.verify(graph)
    assert result.ok
    assert "near the model's own weights" in result.notes[0]
    assert "too long" in result.notes[0]
    wrong, axis = with_false_claim(graph, "b.weight", 0)
    assert [blamed.id for blamed in graphfuse.verify(wrong).blamed] == [axis]


@pytest.mark.parametrize("value", [-torch.inf, -1e38])
def test_what_masks_write_into_the_outputs_hides_no_false_claim(value: float) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x))).masked_fill(torch.tensor([False, False, False, True]), value)

    graph = graphfuse.trace(Masked(), (torch.randn(4, 3),))
    result = graphfuse.verify(graph)
    assert result.ok
    assert result.sensitivity == 1
    wrong, axis = with_false_claim(graph, "a.weight", 1)
    assert [blamed.id for blamed in graphfuse.verify(wrong).blamed] == [axis]
