"""Alignment along the full class of an axis: rotations that are planted come back, in equal and in other widths."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import randomise
from models import Decoder, GroupedDecoder, ids
from torch import nn
from torch.testing import assert_close

import graphfuse
from graphfuse.aligned import Alignment
from graphfuse.axes import Leaf, SymmetryClass
from graphfuse.capture import state_of
from graphfuse.carry import transform
from graphfuse.folding import fold_gains
from graphfuse.groups import sample_elements, transformed
from graphfuse.maps import AxisMap
from graphfuse.symmetry import SymmetryGraph
from graphfuse.transport.procrustes import procrustes


def untied() -> nn.Module:
    model = Decoder()
    model.head = nn.Linear(24, 31)
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {"layer norms": untied, "root-mean-square norms": GroupedDecoder}


def weighted(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    model = build().eval()
    randomise(model, seed)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(p[0].numel() ** -0.5 if p.dim() > 1 else 1)
    return model


def rotated(model: nn.Module, x: torch.Tensor) -> tuple[nn.Module, SymmetryGraph]:
    """The same function, every axis turned by a random orthogonal element of its class, gains folded."""
    graph = fold_gains(graphfuse.trace(model, (x,))).graph
    other = copy.deepcopy(graph.model)
    elements = sample_elements(graph, torch.Generator().manual_seed(3))
    turning = {
        axis.id: elements[axis.id]
        for axis in graph.axes
        if axis.symmetry in (SymmetryClass.CENTRED, SymmetryClass.ORTHOGONAL)
    }
    assert turning
    state = transformed(graph, {name: value.double() for name, value in state_of(other).items()}, turning)
    other.load_state_dict({name: state[name].float() for name in state}, strict=False)
    return other, graph


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", ["weights", "activations"])
def test_planted_rotations_come_back(name: str, method: str) -> None:
    model, x = weighted(MODELS[name], 1), ids(32, 9, 31)
    other, graph = rotated(model, x)
    wanted = model(x).detach()
    scale = float(wanted.std())
    assert_close(other(x), wanted, rtol=0, atol=1e-4 * scale)
    stream = next(axis for axis in graph.axes if axis.role == "residual")
    for symmetry, close in (("full", True), ("permutation", False)):
        config = {"method": method, "symmetry": symmetry, "calibrate": {"method": "batch_norm"}}
        result = graphfuse.fuse([model, other], data=[x], config=config)
        error = float((result.model(x).detach() - wanted).std()) / scale
        assert (error < 1e-3) == close, (symmetry, error)
        if close:
            assert result.alignment.models[1].agreement[stream.id].value == pytest.approx(1, abs=1e-2)


def test_an_alignment_folds_checkpoints_and_survives_saving(tmp_path: Path) -> None:
    models, x = [weighted(untied, seed) for seed in (1, 2)], ids(16, 9, 31)
    found = graphfuse.align(models, (x,), config={"method": "weights"})
    state = found.apply(models[1].state_dict(), 1)
    assert torch.equal(state["norm.weight"], torch.ones(24)) and not state["norm.bias"].any()
    moved = copy.deepcopy(models[1])
    moved.load_state_dict(state)
    wanted = models[1](x).detach()
    assert_close(moved(x).detach(), wanted, rtol=0, atol=1e-4 * float(wanted.std()))
    found.save(tmp_path / "a.safetensors")
    again = Alignment.load(tmp_path / "a.safetensors").apply(models[1].state_dict(), 1)
    assert state.keys() == again.keys()
    for name, value in state.items():
        assert_close(value, again[name], rtol=1e-5, atol=1e-6)


def test_streams_of_other_widths_are_turned_into_each_other() -> None:
    models = [weighted(lambda w=w: _decoder(w), seed) for seed, w in enumerate((24, 16))]
    x = ids(16, 9, 31)
    for pair in (models, models[::-1]):
        result = graphfuse.fuse(pair, data=[x], config={"calibrate": {"method": "batch_norm"}})
        assert result.model(x).isfinite().all()
        assert state_of(result.model)["norm.weight"].shape == state_of(pair[0])["norm.weight"].shape


def _decoder(width: int) -> nn.Module:
    model = Decoder(width=width)
    model.head = nn.Linear(width, 31)
    return model


def test_procrustes_is_the_best_rotation() -> None:
    generator = torch.Generator().manual_seed(0)
    cross = torch.randn(3, 6, 6, generator=generator, dtype=torch.float64)
    for keeps_sum in (False, True):
        best = procrustes(cross, keeps_sum)
        assert_close(best @ best.mT, torch.eye(6, dtype=torch.float64).expand(3, 6, 6))
        if keeps_sum:
            assert_close(best.sum(-1), torch.ones(3, 6, dtype=torch.float64))
        value = (best * cross).sum((-2, -1))
        for _ in range(20):
            turn = torch.linalg.matrix_exp(0.1 * _skew(generator, keeps_sum))
            assert bool(((best @ turn * cross).sum((-2, -1)) <= value + 1e-9).all())
    wide = procrustes(torch.randn(4, 6, generator=generator, dtype=torch.float64), keeps_sum=True)
    assert_close(wide @ wide.mT, torch.eye(4, dtype=torch.float64))
    assert_close(wide @ torch.full((6,), 6**-0.5).double(), torch.full((4,), 4**-0.5).double())


def _skew(generator: torch.Generator, keeps_sum: bool) -> torch.Tensor:
    noise = torch.randn(3, 6, 6, generator=generator, dtype=torch.float64)
    skew = noise - noise.mT
    if keeps_sum:
        skew = skew - skew.mean(-1, keepdim=True)
        skew = skew - skew.mean(-2, keepdim=True)
    return skew


def test_a_matrix_acts_on_one_side_and_its_dual_on_the_other() -> None:
    units = Leaf(0, 3)
    matrix = torch.randn(2, 3, 3)
    maps = {0: AxisMap(0, matrix=matrix)}
    x = torch.randn(3, 4)
    row = Leaf(1, 4)
    assert_close(transform(x, ((units,), (row,)), (False, False), maps), matrix[0] @ x)
    assert_close(transform(x, ((Leaf(0, 3, dual=True),), (row,)), (True, False), maps), matrix[1] @ x)
    with pytest.raises(ValueError, match="one of a plan, an index and a matrix"):
        AxisMap(0, index=torch.arange(3), matrix=matrix)
