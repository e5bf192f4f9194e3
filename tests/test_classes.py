"""Symmetry classes beyond permutations: what each axis admits, and that every claim keeps the function."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mathematics import Net
from models import Decoder, GroupedDecoder, Recurrent, ids
from torch import Tensor, nn

import graphfuse
from graphfuse import groups
from graphfuse.axes import walk_leaves
from graphfuse.folding import fold_gains
from graphfuse.groups import sample_elements, transformed
from graphfuse.maps import keeping_sum


class Chain(nn.Module):
    """Linear layers 3 -> 5 -> 7 -> 2 with functions between them."""

    def __init__(self, *functions: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.functions = functions
        widths = [*[3, 5, 7, 9][: len(functions) + 1], 2]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer, function in zip(self.layers, (*self.functions, lambda x: x), strict=True):
            x = function(layer(x))
        return x


class Written(nn.Module):
    """Root-mean-square norm as people write it out, with an optional gain."""

    def __init__(self, width: int, gain: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width)) if gain else None

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return x if self.weight is None else self.weight * x


class Stream(nn.Module):
    """A residual stream of width 8 with norms before every reader."""

    def __init__(self, norm: Callable[[], nn.Module], tied: bool = False) -> None:
        super().__init__()
        self.tokens, self.up, self.down = nn.Embedding(11, 8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.norm, self.last, self.head = norm(), norm(), nn.Linear(8, 11, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        x = x + self.down(torch.tanh(self.up(self.norm(x))))
        return self.head(self.last(x))


class Attention(nn.Module):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.inp, self.qkv, self.out = nn.Linear(5, 12), nn.Linear(12, 36, bias=bias), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.inp(x)).view(*x.shape[:2], 3, 2, 6).permute(2, 0, 3, 1, 4)
        y = (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


class SelfProduct(nn.Module):
    """x . x is kept by rotations only: the axis is contracted with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 6, bias=False), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(h @ h.transpose(-1, -2))


class Shared(nn.Module):
    """One square layer used twice: its rows and columns are one axis, with opposite variance."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.w, self.o = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(torch.relu(self.w(torch.relu(self.w(torch.relu(self.i(x)))))))


def classes(graph: graphfuse.SymmetryGraph) -> dict[int, str]:
    return {axis.size: str(axis.symmetry) for axis in graph.axes}


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], dict[int, str]]] = {
    "functions": (lambda: Chain(torch.relu, torch.tanh, torch.sigmoid), lambda: torch.randn(4, 3),
                  {5: "scaling", 7: "signed", 9: "permutation"}),
    "linear": (lambda: Chain(lambda x: x, lambda x: x * 2), lambda: torch.randn(4, 3), {5: "linear", 7: "linear"}),
    "shifted": (lambda: Chain(lambda x: x + 1, F.leaky_relu), lambda: torch.randn(4, 3),
                {5: "permutation", 7: "scaling"}),
    "shared layer": (Shared, lambda: torch.randn(4, 3), {6: "scaling"}),
    "self product": (SelfProduct, lambda: torch.randn(2, 4, 3), {6: "orthogonal"}),
    # q.k and v.o are each a pair of inverse maps, one for each head
    "attention": (Attention, lambda: torch.randn(2, 4, 5), {12: "linear", 2: "permutation", 6: "linear"}),
    "written norm": (lambda: Stream(lambda: Written(8, False)), lambda: ids(vocabulary=11),
                     {8: "orthogonal", 12: "signed"}),
    # a gain stays where it is, so it admits the signs of the stream but no rotation
    "written norm, gain": (lambda: Stream(lambda: Written(8, True)), lambda: ids(vocabulary=11),
                           {8: "signed", 12: "signed"}),
    "native norm": (lambda: Stream(lambda: nn.RMSNorm(8, elementwise_affine=False)), lambda: ids(vocabulary=11),
                    {8: "orthogonal", 12: "signed"}),
    "native norm, gain": (lambda: Stream(lambda: nn.RMSNorm(8)), lambda: ids(vocabulary=11),
                          {8: "signed", 12: "signed"}),
    "layer norm": (lambda: Stream(lambda: nn.LayerNorm(8)), lambda: ids(vocabulary=11),
                   {8: "permutation", 12: "signed"}),
    "recurrent": (lambda: Recurrent(layers=1), ids, {6: "linear", 10: "permutation"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_axis_admits_the_class_that_its_ops_keep(name: str) -> None:
    torch.manual_seed(0)
    build, inputs, expected = CASES[name]
    graph = graphfuse.trace(build().eval(), (inputs(),))
    assert classes(graph) == expected, f"\n{graph}"
    result = graphfuse.verify(graph, classes=True)
    assert result.ok, result
    assert result.sensitivity == 1.0 or name == "self product"  # its one axis may be permuted on one side alone


def test_the_two_sides_of_a_contraction_have_opposite_variance() -> None:
    graph = graphfuse.trace(Attention().eval(), (torch.randn(2, 4, 5),))
    (rows,) = graph.tensors["qkv.bias"].dims
    sides = [(leaf.id, leaf.dual) for leaf in walk_leaves(rows) if leaf.size == 6]
    assert len(sides) == 3  # q, k, v
    assert sides[0][0] == sides[1][0] != sides[2][0]
    assert sides[0][1] != sides[1][1]


def test_elements_reach_the_whole_class() -> None:
    """What is drawn is no permutation: inverse variance matters, members differ along the context."""
    graph = graphfuse.trace(Attention().eval(), (torch.randn(2, 4, 5),))
    elements = sample_elements(graph, torch.Generator().manual_seed(0))
    for axis in graph.axes:
        if str(axis.symmetry) == "linear" and axis.context:
            element = elements[axis.id]
            assert element.value.shape == (2, 6, 6)
            assert torch.allclose(element.value @ element.dual.transpose(-1, -2), torch.eye(6, dtype=torch.float64))
            assert not torch.allclose(element.value, element.dual)
            assert not torch.allclose(element.value[0], element.value[1])
    state = {name: p.detach().double() for name, p in graph.model.named_parameters()}
    moved = transformed(graph, state, elements)
    assert all(not torch.allclose(moved[name], state[name]) for name in ("qkv.weight", "inp.weight", "out.weight"))
    assert torch.equal(moved["out.bias"], state["out.bias"])


def test_a_class_claimed_wrongly_is_caught_and_blamed(tmp_path: Path) -> None:
    pack = tmp_path / "wrong.yaml"
    pack.write_text("version: 1\nrules:\n  - {op: aten.gelu, pointwise: {class: scaling}, replace: true}\n")
    graph = graphfuse.trace(Chain(F.gelu, torch.relu), (torch.randn(4, 3),), rules=[str(pack)])
    assert graphfuse.verify(graph).ok  # its permutations are right
    result = graphfuse.verify(graph, classes=True)
    assert not result.ok
    assert [axis.size for axis in result.blamed] == [5]


# -------------------------------------------------------------------- folding


@pytest.mark.parametrize("norm", [lambda: Written(8, True), lambda: nn.RMSNorm(8)], ids=["written", "native"])
def test_folding_gains_keeps_the_function_and_frees_the_rotations(norm: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = Stream(norm).eval()
    with torch.no_grad():
        for one in (model.norm, model.last):
            assert isinstance(one.weight, Tensor)
            one.weight.copy_(torch.randn(8))
    before = copy.deepcopy(model.state_dict())
    x = ids(vocabulary=11)
    folded = fold_gains(graphfuse.trace(model, (x,)))
    assert {fold.gain: fold.into for fold in folded.folds} == {
        "norm.weight": (("up.weight", 1),), "last.weight": (("head.weight", 1),)
    }  # fmt: skip
    assert folded.kept == {}
    torch.testing.assert_close(folded.graph.model(x), model(x))
    assert torch.equal(folded.graph.model.state_dict()["norm.weight"], torch.ones(8))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert classes(folded.graph) == {8: "orthogonal", 12: "signed"}
    assert "norm.weight" not in folded.graph.tensors
    result = graphfuse.verify(folded.graph, classes=True)
    assert result.ok, result


def test_a_gain_whose_reader_is_tied_elsewhere_is_kept_and_says_why() -> None:
    model = Stream(lambda: nn.RMSNorm(8), tied=True).eval()
    folded = fold_gains(graphfuse.trace(model, (ids(vocabulary=11),)))
    assert [fold.gain for fold in folded.folds] == ["norm.weight"]
    assert "no weight of its own" in folded.kept["last.weight"]
    assert classes(folded.graph)[8] == "signed"
    assert graphfuse.verify(folded.graph, classes=True).ok


def test_the_residual_stream_of_a_gated_decoder_can_be_rotated_once_its_gains_are_folded() -> None:
    torch.manual_seed(0)
    graph = graphfuse.trace(GroupedDecoder().eval(), (ids(),))
    folded = fold_gains(graph)
    assert len(folded.folds) == 5
    residual = {g: next(axis for axis in g.axes if axis.role == "residual") for g in (graph, folded.graph)}
    assert [str(axis.symmetry) for axis in residual.values()] == ["signed", "orthogonal"]
    assert graphfuse.verify(folded.graph, classes=True).ok


def test_between_layer_norms_rotations_that_keep_the_sum_are_free_once_gains_and_offsets_are_folded() -> None:
    torch.manual_seed(0)
    model = Decoder(depth=2).eval()
    model.head = nn.Linear(24, 31)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    graph = graphfuse.trace(model, (ids(),))
    folded = fold_gains(graph)
    assert folded.kept == {}
    assert all(fold.offsets and len(fold.biases) == len(fold.into) for fold in folded.folds)
    x = ids()
    torch.testing.assert_close(folded.graph.model(x), model(x), rtol=1e-4, atol=1e-4)
    residual = [next(axis for axis in g.axes if axis.role == "residual") for g in (graph, folded.graph)]
    assert [str(axis.symmetry) for axis in residual] == ["permutation", "centred"]
    result = graphfuse.verify(folded.graph, classes=True)
    assert result.ok, result


def test_a_gain_whose_offset_has_nowhere_to_go_is_kept() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 2, bias=False))
    folded = fold_gains(graphfuse.trace(model, (torch.zeros(1, 3),)))
    assert "cannot go into a bias" in folded.kept["1.weight"]


def test_a_rotation_that_keeps_the_sum_is_one() -> None:
    q = keeping_sum(torch.linalg.qr(torch.randn(2, 4, 4, dtype=torch.float64)).Q)
    eye, ones = torch.eye(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
    torch.testing.assert_close(q @ q.mT, eye.expand(2, 5, 5))
    torch.testing.assert_close(q @ ones, ones.expand(2, 5))
    assert float((q - eye).abs().max()) > 0.1


def test_an_axis_too_large_for_matrices_is_checked_by_scales_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    graph = graphfuse.trace(nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 2)), torch.randn(3, 5))
    assert not graphfuse.verify(graph, classes=True).notes
    monkeypatch.setattr(groups, "ELEMENTS", 63)
    result = graphfuse.verify(graph, classes=True)
    assert result.ok
    assert result.notes == ("too large for matrices, checked by scales and signs: hidden.0",)
    assert sample_elements(graph, torch.Generator())[graph.axes[0].id].diagonal


def test_complex_parameters_are_drawn_and_moved_like_real_ones() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        h = torch.fft.rfft(s.a(x), dim=1)
        return s.out(torch.fft.irfft(torch.einsum("bti,io->bto", h, s.mix), n=x.shape[1], dim=1))

    torch.manual_seed(0)
    mix = nn.Parameter(torch.randn(8, 7, dtype=torch.cfloat))
    graph = graphfuse.trace(Net(forward, a=nn.Linear(5, 8), mix=mix, out=nn.Linear(7, 2)), torch.randn(3, 6, 5))
    assert [(axis.size, str(axis.symmetry)) for axis in graph.axes] == [(8, "linear"), (7, "linear")]
    result = graphfuse.verify(graph, classes=True)
    assert result.ok and not result.notes
    assert result.max_error < 1e-12
