"""Which models correspond, how their axes and nodes do, and what the errors say where they do not."""

from __future__ import annotations

import pytest
import torch
from models import MLP, Decoder, GroupedDecoder, ResNet, ids, images
from torch import Tensor, nn

from graphfuse.correspond import correspond
from graphfuse.errors import CorrespondenceError
from graphfuse.symmetry import SymmetryGraph, trace


def graph_of(model: nn.Module, *args: Tensor) -> SymmetryGraph:
    return trace(model.eval(), args)


def test_axes_correspond_across_widths() -> None:
    narrow, wide = (graph_of(MLP(widths), torch.zeros(2, 5)) for widths in ((5, 11, 7, 3), (5, 13, 17, 3)))
    found = correspond([narrow, wide])
    assert [found.sizes[0][axis.id] for axis in found.free] == [11, 7]
    assert [found.sizes[1][axis.id] for axis in found.free] == [13, 17]
    assert [found.axes[1][axis.id] for axis in found.free] == [axis.id for axis in wide.axes]
    names = set(narrow.nodes) - {"output"}
    assert set(found.nodes[1]) >= {name for name in names if narrow.nodes[name] is not None}


def test_the_target_can_be_any_of_the_models() -> None:
    graphs = [graph_of(MLP((5, h, 7, 3)), torch.zeros(2, 5)) for h in (11, 13, 17)]
    found = correspond(graphs, 2)
    assert [sizes[found.free[0].id] for sizes in found.sizes] == [11, 13, 17]


def test_the_target_corresponds_to_itself() -> None:
    graph = graph_of(Decoder(depth=1), ids())
    found = correspond([graph])
    assert all(mine == other for mine, other in found.axes[0].items())
    assert all(mine == other for mine, other in found.nodes[0].items())


def test_nodes_correspond_for_inputs_of_another_shape() -> None:
    model = ResNet().eval()
    found = correspond([graph_of(model, images(2)), graph_of(model, images(5))])
    calls = [node.name for node in found.graph.captured.graph.nodes if node.op == "call_function"]
    assert set(calls) <= set(found.nodes[1])


def test_another_number_of_heads_corresponds() -> None:
    a, b = (graph_of(Decoder(width=24, heads=heads, depth=1), ids()) for heads in (4, 3))
    found = correspond([a, b])
    heads = next(axis for axis in found.free if axis.role == "heads")
    units = next(axis for axis in found.free if axis.role == "head_dim_vo")
    assert (found.sizes[1][heads.id], found.sizes[1][units.id]) == (3, 8)
    assert units.context == (heads.id,)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (
            (MLP(), torch.zeros(2, 5)),
            (MLP((5, 11, 7, 9, 3)), torch.zeros(2, 5)),
            ["model 1 (MLP) has other parameters than model 0 (MLP)", "only model 1 has: 6.weight (3, 9)", "depth"],
        ),
        (
            (MLP(), torch.zeros(2, 5)),
            (MLP((6, 11, 7, 3)), torch.zeros(2, 6)),
            ["dim 1 of '0.weight'", "(11, 5)", "(11, 6)", "cannot be matched", "inputs, outputs and positions"],
        ),
        (
            (MLP(), torch.zeros(2, 5)),
            (MLP((5, 11, 7, 4)), torch.zeros(2, 5)),
            ["dim 0 of '4.weight'", "(3, 7)", "(4, 7)"],
        ),
        (
            (Decoder(heads=4, depth=1), ids()),
            (Decoder(heads=1, depth=1), ids()),
            ["another structure in model 1 than in model 0", "heads.0 of size 4", "a part of size 1"],
        ),
        (
            (MLP(), torch.zeros(2, 5)),
            (nn.Sequential(nn.Conv1d(5, 11, 1), nn.ReLU(), nn.Conv1d(11, 7, 1), nn.ReLU(), nn.Conv1d(7, 3, 1)),
             torch.zeros(2, 5, 4)),
            ["'0.weight' has 2 dims in model 0 and 3 in model 1", "(11, 5)", "(11, 5, 1)"],
        ),
        (
            (GroupedDecoder(heads=6, groups=2, depth=1), ids()),
            (GroupedDecoder(heads=6, groups=6, depth=1), ids()),
            ["another structure in model 1 than in model 0"],
        ),
    ],
)  # fmt: skip
def test_errors_name_the_first_difference(
    first: tuple[nn.Module, Tensor], second: tuple[nn.Module, Tensor], words: list[str]
) -> None:
    with pytest.raises(CorrespondenceError) as caught:
        correspond([graph_of(*first), graph_of(*second)])
    for word in words:
        assert word in str(caught.value), str(caught.value)


class Tied(nn.Module):
    """Two hidden layers that are one axis when a skip connects them."""

    def __init__(self, skip: bool) -> None:
        super().__init__()
        self.skip, self.a, self.b, self.c = skip, nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        return self.c(self.b(h) + h if self.skip else self.b(h))


def test_models_with_equal_shapes_but_other_ties_are_refused() -> None:
    graphs = [graph_of(Tied(skip), torch.zeros(2, 3)) for skip in (True, False)]
    for pair in (graphs, graphs[::-1]):
        with pytest.raises(CorrespondenceError, match="axes of models 0 and 1 do not correspond"):
            correspond(pair)


class Ordered(nn.Module):
    """Its hidden axis is fixed when it is sorted along the way."""

    def __init__(self, ordered: bool) -> None:
        super().__init__()
        self.ordered, self.a, self.b = ordered, nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(h.cumsum(-1) if self.ordered else h.relu())


def test_an_axis_that_is_fixed_in_one_model_is_not_matched() -> None:
    found = correspond([graph_of(Ordered(ordered), torch.zeros(2, 3)) for ordered in (False, True)])
    assert found.free == ()
    assert found.notes == ("hidden.0 is fixed in model 1, so it is not matched",)
    assert found.nodes[1] == {}
