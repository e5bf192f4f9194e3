"""Ties, reparametrisations, adapters, buffers, odd parameters, views and custom ops: free axes counted by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mathematics import Net, check, shapes, weight
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import graphfuse


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def rows(width: int = 5, count: int = 4) -> Tensor:
    return torch.randn(count, width)


def ids(vocabulary: int = 11) -> Tensor:
    return torch.randint(0, vocabulary, (2, 6))


# -------------------------------------------------------------------- ties


def test_tied_embeddings_share_the_residual_axis() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        return F.linear(torch.relu(s.a(s.tokens(x))), s.tokens.weight)

    check(Net(forward, tokens=nn.Embedding(11, 7), a=nn.Linear(7, 7)), ids(), expect={(7, ()): 1})


def test_tied_layers_make_one_axis_of_their_ends() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        h = torch.relu(s.inp(x))
        return s.out(torch.relu(s.w(torch.relu(s.w(h)))))

    check(Net(forward, inp=nn.Linear(5, 7), w=nn.Linear(7, 7), out=nn.Linear(7, 2)), rows(), expect={(7, ()): 1})


def test_a_tied_autoencoder_uses_its_weights_both_ways() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        code = torch.relu(F.linear(torch.relu(F.linear(x, s.a)), s.b))
        return F.linear(torch.relu(F.linear(code, s.b.t())), s.a.t())

    check(Net(forward, a=weight(9, 5), b=weight(7, 9)), rows(), expect={(9, ()): 1, (7, ()): 1})


def test_a_parameter_under_two_views_obeys_both() -> None:
    """One 12-vector, once as a bias, once as 3 x 4 under a softmax: its axis splits into both factors."""

    def forward(s: Net, x: Tensor) -> Tensor:
        h = torch.relu(s.a(x) + s.p)
        return s.out((h.view(-1, 3, 4) * s.p.view(3, 4)).softmax(-1).flatten(1))

    expect = {(3, ()): 1, (4, (3,)): 1}
    graph = check(Net(forward, a=nn.Linear(5, 12), p=weight(12), out=nn.Linear(12, 2)), rows(), expect=expect)
    assert graph.tensors["p"].shape == (12,)


def test_views_of_different_structure_are_both_kept() -> None:
    """As 3 x 4 with a sum over 4, and as a cut into 6 + 6: nothing finer than what both allow is free."""

    def forward(s: Net, x: Tensor) -> Tensor:
        h = s.a(x)
        means = h.view(-1, 3, 4).softmax(-1)
        low, high = h.chunk(2, -1)
        return s.out(torch.cat([means.flatten(1), torch.relu(low) * high], -1))

    graph = graphfuse.trace(Net(forward, a=nn.Linear(5, 12), out=nn.Linear(18, 2)).eval(), (rows(),))
    assert graphfuse.verify(graph, classes=True).ok


# -------------------------------------------------------------------- reparametrised weights


def test_weight_norm_moves_directions_and_lengths_together() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        return s.out(torch.relu(s.b(torch.relu(s.a(x)))))

    model = Net(
        forward, a=parametrizations.weight_norm(nn.Linear(5, 7)), b=parametrizations.weight_norm(nn.Linear(7, 9)),
        out=nn.Linear(9, 2),
    )  # fmt: skip
    check(model, rows(), expect={(7, ()): 1, (9, ()): 1})


def test_spectral_norm_moves_its_singular_vectors_along() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        return s.out(torch.relu(s.b(torch.relu(s.a(x)))))

    model = Net(
        forward, a=parametrizations.spectral_norm(nn.Linear(5, 7)), b=parametrizations.spectral_norm(nn.Linear(7, 9)),
        out=nn.Linear(9, 2),
    )  # fmt: skip
    graph = check(model, rows(), expect={(7, ()): 1, (9, ()): 1})
    assert "a.parametrizations.weight.0._u" in graph.tensors


def test_an_adapter_of_low_rank_has_an_axis_of_its_own() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        x = torch.relu(s.inp(x))
        return s.out(torch.relu(s.w(x) + s.up(s.down(x)) * 0.5))

    model = Net(
        forward, inp=nn.Linear(5, 9), w=nn.Linear(9, 7), down=nn.Linear(9, 3, bias=False),
        up=nn.Linear(3, 7, bias=False), out=nn.Linear(7, 2),
    )  # fmt: skip
    graph = check(model, rows(), expect={(9, ()): 1, (7, ()): 1, (3, ()): 1})
    assert {axis.size: str(axis.symmetry) for axis in graph.axes} == {9: "scaling", 7: "scaling", 3: "linear"}


def test_a_hypernetwork_writes_a_weight_whose_axes_are_its_own_outputs() -> None:
    """A linear layer's 6 x 7 outputs are a weight [6, 7]; its rows meet a bias, its columns the layer before."""

    def forward(s: Net, x: Tensor, z: Tensor) -> Tensor:
        made = s.make(torch.relu(s.latent(z))).view(-1, 6, 7)
        h = torch.relu(torch.einsum("bi,boi->bo", torch.relu(s.inp(x)), made) + s.bias)
        return s.out(h)

    model = Net(
        forward, inp=nn.Linear(5, 7), latent=nn.Linear(3, 4), make=nn.Linear(4, 42), bias=weight(6), out=nn.Linear(6, 2)
    )
    check(model, rows(), rows(3), expect={(7, ()): 1, (6, ()): 1, (4, ()): 1})


def test_bags_of_embeddings_and_bilinear_forms() -> None:
    def forward(s: Net, i: Tensor, x: Tensor) -> Tensor:
        return s.out(torch.relu(s.form(s.bag(i), s.inp(x))))

    model = Net(
        forward, bag=nn.EmbeddingBag(11, 7, mode="mean"), inp=nn.Linear(5, 9), form=nn.Bilinear(7, 9, 6),
        out=nn.Linear(6, 2),
    )  # fmt: skip
    graph = check(model, ids()[:, :3], rows(count=2), expect={(7, ()): 1, (9, ()): 1, (6, ()): 1})
    assert {axis.size: str(axis.symmetry) for axis in graph.axes} == {7: "linear", 9: "linear", 6: "scaling"}


# -------------------------------------------------------------------- buffers


def test_statistics_of_a_batch_norm_move_with_their_channels() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        return s.out(torch.relu(s.norm(s.a(x))))

    graph = check(
        Net(forward, a=nn.Linear(5, 7), norm=nn.BatchNorm1d(7), out=nn.Linear(7, 2)), rows(), expect={(7, ()): 1}
    )
    assert {"norm.running_mean", "norm.running_var"} <= graph.tensors.keys()


class Buffered(nn.Module):
    """A hidden layer that is shifted by a buffer, which training may keep as a running mean."""

    shift: Tensor

    def __init__(self, value: Tensor, persistent: bool = True, running: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.running = nn.Linear(5, 7), nn.Linear(7, 2), running
        self.register_buffer("shift", value, persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.training and self.running:
            self.shift.lerp_(h.mean(0), 0.1)
        return self.b(torch.relu(h + self.shift))


def test_a_buffer_that_training_writes_moves_like_a_parameter() -> None:
    model = Buffered(torch.randn(7), running=True)
    before = model.shift.clone()
    graph = check(model, rows(), expect={(7, ()): 1})
    assert "shift" in graph.tensors
    assert torch.equal(model.shift, before)  # it was looked at, not trained
    assert not model.training


@pytest.mark.parametrize(
    ("value", "persistent"),
    [(torch.linspace(-1, 1, 7), True), (torch.randn(7), False)],
    ids=["never written", "not in checkpoints"],
)
def test_a_table_of_the_architecture_fixes_what_it_varies_along(value: Tensor, persistent: bool) -> None:
    check(Buffered(value, persistent, running=not persistent), rows(), expect={})


def test_a_buffer_of_equal_values_fixes_nothing() -> None:
    check(Buffered(torch.full((7,), 0.5)), rows(), expect={(7, ()): 1})


# -------------------------------------------------------------------- odd parameters


def test_parameters_that_are_unused_scalar_or_empty_are_no_obstacle() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        h = torch.relu(s.a(x)) * s.scale + s.empty.sum()
        return s.b(torch.cat([h, s.empty.expand(x.shape[0], 0)], -1))

    model = Net(
        forward, a=nn.Linear(5, 7), b=nn.Linear(7, 2), unused=nn.Linear(3, 4), scale=nn.Parameter(torch.tensor(1.5)),
        empty=nn.Parameter(torch.zeros(0)),
    )  # fmt: skip
    graph = graphfuse.trace(model.eval(), (rows(),))
    assert {touch.tensor for axis in graph.axes for touch in axis.touches} >= {"a.weight", "a.bias", "b.weight"}
    assert (7, ()) in shapes(graph)
    assert graphfuse.verify(graph, classes=True).ok


def test_writes_in_place_and_views_of_views() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        h = s.a(x)
        h.relu_().mul_(2)
        view = h.view(-1, 3, 4)[:, :, :2]
        view.add_(s.shift)
        h[:, 4:8] = torch.tanh(h[:, 4:8])
        return s.b(h)

    model = Net(forward, a=nn.Linear(5, 12), b=nn.Linear(12, 2), shift=weight(3, 2))
    graph = graphfuse.trace(model.eval(), (rows(),))
    assert not graph.notes, graph.notes
    # 3 x (2 + 2), of which the middle of the three is treated apart; in each half the two units may be exchanged
    assert sum(axis.size > 1 for axis in graph.axes) >= 2
    assert graphfuse.verify(graph, classes=True).ok


# -------------------------------------------------------------------- custom ops


@torch.library.custom_op("graphfuse_math::mix", mutates_args=())
def mix(x: Tensor, w: Tensor) -> Tensor:
    return torch.relu(x @ w.t())


@mix.register_fake
def _(x: Tensor, w: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], w.shape[0])


def custom() -> Net:
    def forward(s: Net, x: Tensor) -> Any:
        return s.b(torch.ops.graphfuse_math.mix(torch.relu(s.a(x)), s.w))

    return Net(forward, a=nn.Linear(5, 7), w=weight(9, 7), b=nn.Linear(9, 2)).eval()


def test_a_custom_op_without_a_rule_fixes_what_it_touches_and_is_named() -> None:
    graph = graphfuse.trace(custom(), (rows(),))
    assert shapes(graph) == {}
    (note,) = graph.notes
    assert "graphfuse_math.mix" in note.message
    assert note.site.source


def test_a_custom_op_with_a_rule_is_like_any_other(tmp_path: Path) -> None:
    pack = tmp_path / "mix.yaml"
    pack.write_text("""
version: 1
rules:
  - op: graphfuse_math.mix
    kind: linear
    signature: "x[... i], w[o i] -> [... o]"
    class: {i: linear, o: scaling, "...": scaling}
    example: {args: [{shape: [2, 3]}, {shape: [4, 3]}]}
""")
    graph = graphfuse.trace(custom(), (rows(),), rules=[str(pack)])
    assert shapes(graph) == {(7, ()): 1, (9, ()): 1}
    assert {axis.size: str(axis.symmetry) for axis in graph.axes} == {7: "scaling", 9: "scaling"}
    assert graphfuse.verify(graph, classes=True).ok


@pytest.mark.parametrize("how", ["inverse", "solve"])
def test_a_kernel_between_learned_points_moves_with_them(how: str) -> None:
    """Gaussian process regression: the kernel of 7 points is inverted, and its rows and columns are the points."""

    def forward(s: Net, x: Tensor) -> Tensor:
        kernel = torch.exp(-torch.cdist(s.points, s.points)) + torch.eye(7)
        weights = torch.linalg.inv(kernel) @ s.values if how == "inverse" else torch.linalg.solve(kernel, s.values)
        return torch.exp(-torch.cdist(torch.tanh(s.a(x)), s.points)) @ weights

    model = Net(forward, a=nn.Linear(5, 3), points=weight(7, 3), values=weight(7, 2))
    check(model, torch.randn(4, 5), expect={(3, ()): 1, (7, ()): 1})


@pytest.mark.parametrize("how", ["matrix", "flat", "buffer", "noisy", "diagonal"])
def test_an_identity_ties_rows_to_columns_and_fixes_neither(how: str) -> None:
    """A transformation of features that is learned beside the identity, as point clouds are aligned with."""

    def forward(s: Net, x: Tensor) -> Tensor:
        x = torch.relu(s.a(x))
        identity = torch.diag(torch.arange(1.0, 8.0)) if how == "diagonal" else torch.eye(7)
        identity = s.b.eye if how == "buffer" else identity
        moves = s.b(x.mean(1))
        if how == "flat":
            moves = (moves + identity.flatten()).view(-1, 7, 7)
        else:
            moves = moves.view(-1, 7, 7) + (identity + torch.arange(7) if how == "noisy" else identity)
        return s.out(torch.relu(x @ moves))

    model = Net(forward, a=nn.Linear(5, 7), b=nn.Linear(7, 49), out=nn.Linear(7, 2))
    model.b.register_buffer("eye", torch.eye(7))
    check(model, torch.randn(2, 4, 5), expect={} if how in ("noisy", "diagonal") else {(7, ()): 1})


def test_a_sparse_matrix_of_constants_fixes_what_it_mixes_only() -> None:
    edges = torch.tensor([[0, 1, 2, 3, 0], [1, 2, 3, 0, 2]])
    graph = torch.sparse_coo_tensor(edges, torch.rand(5), (4, 4), check_invariants=True).coalesce()

    def forward(s: Net, x: Tensor) -> Tensor:
        return s.b(torch.relu(torch.sparse.mm(graph, s.a(x))))

    check(Net(forward, a=nn.Linear(5, 7), b=nn.Linear(7, 2)), torch.randn(4, 5), expect={(7, ()): 1}, notes=True)


@pytest.mark.parametrize("how", ["weight norm", "spectral norm", "masked"])
@pytest.mark.filterwarnings("ignore:`torch.nn.utils")
def test_weights_that_hooks_compute_before_each_call(how: str) -> None:
    layers = [nn.Linear(5, 7), nn.Linear(7, 6), nn.Linear(6, 2)]
    if how == "masked":  # the mask tells some units from the others
        prune.custom_from_mask(layers[1], "weight", torch.ones(6, 7).index_fill(0, torch.tensor([3, 5]), 0))
    elif how == "weight norm":
        nn.utils.weight_norm(layers[1])
    else:
        nn.utils.spectral_norm(layers[1])
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    check(model, torch.randn(4, 5), expect={(7, ()): 1} if how == "masked" else {(7, ()): 1, (6, ()): 1})


@pytest.mark.parametrize("how", ["in place", "assigned"])
def test_a_weight_whose_data_are_masked_in_each_call(how: str) -> None:
    """Kernels that see only what came before a pixel are often written so."""

    class Masked(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            mask = torch.ones(3, 3).index_put((torch.tensor([1, 2]), torch.tensor([2, 0])), torch.zeros(2))
            if how == "in place":
                self.weight.data *= mask
            else:
                self.weight.data = self.weight.data * mask
            return super().forward(input)

    model = nn.Sequential(Masked(3, 7, 3), nn.ReLU(), Masked(7, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1))
    graph = check(model, torch.randn(2, 3, 6, 6), expect={(7, ()): 1, (6, ()): 1}, notes=True)
    assert any("aten.mul" in str(node.target) for node in graph.captured.graph.nodes)
