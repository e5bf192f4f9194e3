"""Outputs that are not used need not keep their coordinates: hidden states that a model also returns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from mathematics import Net, shapes
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import graphfuse
from graphfuse.errors import ConfigError
from graphfuse.outputs import output_names


class Pair(NamedTuple):
    scores: Tensor
    states: list[Tensor]


def forward(s: Net, x: Tensor) -> dict[str, Any]:
    h = torch.tanh(s.up(x))
    return {"scores": s.down(h), "states": [h, s.side(h)]}


def model() -> Net:
    return Net(forward, up=nn.Linear(5, 8), down=nn.Linear(8, 3), side=nn.Linear(8, 6))


def test_every_leaf_has_a_name() -> None:
    def names(value: Any) -> list[str]:
        return output_names(pytree.tree_structure(value))

    x = torch.zeros(1)
    assert names(x) == ["output"]
    assert names((x, [x, x])) == ["0", "1.0", "1.1"]
    assert names({"scores": x, "states": (x,)}) == ["scores", "states.0"]
    assert names(Pair(x, [x, x])) == ["scores", "states.0", "states.1"]


def test_only_the_outputs_that_are_used_are_fixed() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 5)
    assert shapes(graphfuse.trace(model(), x)) == {}
    graph = graphfuse.trace(model(), x, outputs=["scores"])
    assert shapes(graph) == {(8, ()): 1, (6, ()): 1}
    result = graphfuse.verify(graph, classes=True)
    assert result.ok
    assert result.sensitivity == 0.6  # of five tensors that move, the two of the side branch no longer count
    assert shapes(graphfuse.trace(model(), x, outputs=["states.1"])) == {(8, ()): 1, (3, ()): 1}
    assert shapes(graphfuse.trace(model(), x, outputs=["scores", "states"])) == {}


def test_verification_looks_at_the_used_outputs_alone() -> None:
    torch.manual_seed(0)
    graph = graphfuse.trace(model(), torch.randn(4, 5), outputs=["states.1"])
    wanted = graphfuse.trace(model(), torch.randn(4, 5), outputs=["scores"])
    swapped = graphfuse.verify(replace(graph, captured=wanted.captured))
    assert not swapped.ok
    assert [axis.size for axis in swapped.blamed] == [3]


def test_a_name_that_is_none_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"outputs: Net returns no 'score'; did you mean 'scores'\?"):
        graphfuse.trace(model(), torch.randn(4, 5), outputs=["score"])


@pytest.mark.parametrize("as_file", [False, True])
def test_fusing_moves_what_only_unused_outputs_show(as_file: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    a = model()
    b = model()
    b.load_state_dict(a.state_dict())
    order = torch.randperm(8)
    with torch.no_grad():
        for part, dim in ((b.up, 0), (b.down, 1), (b.side, 1)):
            part.weight.copy_(part.weight.index_select(dim, order))
        b.up.bias.copy_(b.up.bias[order])
    config: Any = {"outputs": ["scores"], "calibrate": {"method": "batch_norm"}}
    if as_file:
        (tmp_path / "c.yaml").write_text("outputs: [scores]\ncalibrate: {method: batch_norm}\n")
        config = tmp_path / "c.yaml"
    x = torch.randn(64, 5)
    fused = graphfuse.fuse([a, b], data=[x], config=config).model
    torch.testing.assert_close(fused(x)["scores"], a(x)["scores"], rtol=1e-4, atol=1e-5)


@dataclass
class Answer:
    """A result of one's own kind."""

    scores: Tensor
    states: list[Tensor] | None = None


@pytest.mark.parametrize("nested", [False, True])
def test_tensors_in_a_dataclass_stay_as_they_are(nested: bool) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Answer:
            h = torch.relu(self.a(x))
            return Answer(self.b(h), [h] if nested else None)

    graph = graphfuse.trace(Model(), (torch.randn(2, 3),))
    assert [axis.size for axis in graph.axes] == ([] if nested else [6])
    assert any("Answer" in note.message for note in graph.notes)
    result = graphfuse.verify(graph)
    assert result.ok
    assert result.sensitivity == 1
