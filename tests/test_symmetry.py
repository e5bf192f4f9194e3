"""Hand counts: the free axes of small models whose symmetries are known, and that each claim keeps the function."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import models
import pytest
import torch
from torch import Tensor, nn

import graphfuse
from graphfuse import SymmetryGraph

Case = tuple[Callable[[], nn.Module], Callable[[], Tensor], dict[str, int]]

COUNTS: dict[str, Case] = {
    # every hidden layer is one axis; inputs and outputs are fixed
    "mlp": (models.MLP, lambda: torch.randn(2, 5), {"hidden": 2}),
    # each stage's residual stream, and one inner axis for each basic block: 4 + 8 = 12
    "resnet": (models.ResNet, models.images, {"residual": 4, "channels": 8}),
    # one residual axis; in each layer heads, qk and vo head dims for each head, one hidden axis
    "decoder": (models.Decoder, models.ids,
                {"residual": 1, "heads": 2, "head_dim_qk": 2, "head_dim_vo": 2, "hidden": 2}),
    "encoder": (models.Encoder, models.ids,
                {"residual": 1, "heads": 2, "head_dim_qk": 2, "head_dim_vo": 2, "hidden": 2}),
    # key heads, query heads within them, vo head dim for each key head, gated hidden axis; RoPE fixes the qk head dim
    "grouped": (models.GroupedDecoder, models.ids, {"residual": 1, "heads": 4, "head_dim_vo": 2, "gate": 2}),
    # the expert axis, a hidden axis that differs for each expert, and the axes before and after
    "dense experts": (models.DenseExperts, lambda: torch.randn(3, 5), {"experts": 1, "hidden": 3}),
    "top experts": (models.TopExperts, lambda: torch.randn(3, 5), {"experts": 1, "hidden": 3}),
    # one hidden axis for each layer and direction, shared by its gates; the embedding
    "lstm": (models.Recurrent, models.ids, {"recurrent": 2, "embedding": 1}),
    "bilstm": (lambda: models.Recurrent(both=True), models.ids, {"recurrent": 4, "embedding": 1}),
    "gru": (lambda: models.Recurrent("GRU", layers=1), models.ids, {"recurrent": 1, "embedding": 1}),
    # skip and up blocks keep their own axes through the concat
    "unet": (models.UNet, models.images, {"channels": 4}),
}  # fmt: skip


def traced(name: str) -> SymmetryGraph:
    torch.manual_seed(0)
    build, inputs, _ = COUNTS[name]
    return graphfuse.trace(build().eval(), (inputs(),))


@pytest.mark.parametrize("name", COUNTS)
def test_to_lower_a_graph_that_needs_it_not_changes_no_label(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = traced(name)
    monkeypatch.setattr("graphfuse.frontend.lowering.is_lowered", lambda *_: False)
    assert str(traced(name)) == str(graph)


@pytest.mark.parametrize("name", COUNTS)
def test_free_axes_are_those_counted_by_hand(name: str) -> None:
    graph = traced(name)
    assert Counter(axis.role for axis in graph.axes) == COUNTS[name][2], f"\n{graph}"
    assert not graph.notes


@pytest.mark.parametrize("name", COUNTS)
def test_random_maps_on_all_free_axes_keep_the_function(name: str) -> None:
    result = graphfuse.verify(traced(name))
    assert result.ok, result
    assert result.sensitivity == 1.0


@pytest.mark.parametrize("name", ["decoder", "encoder"])
def test_maps_inside_a_head_may_differ_for_each_head(name: str) -> None:
    graph = traced(name)
    inner = [axis for axis in graph.axes if axis.role.startswith("head_dim")]
    assert [graph.axis(axis.context[0]).role for axis in inner] == ["heads"] * 4


def test_grouped_queries_nest_in_their_key_heads() -> None:
    graph = traced("grouped")
    nested = {axis.size: [graph.axis(key).size for key in axis.context] for axis in graph.axes if axis.context}
    assert nested == {3: [2], 8: [2]}  # 3 query heads in each of 2 key heads; vo head dim 8 differs for each key head


@pytest.mark.parametrize("name", ["dense experts", "top experts"])
def test_hidden_units_may_differ_for_each_expert(name: str) -> None:
    graph = traced(name)
    (inner,) = (axis for axis in graph.axes if axis.context)
    assert inner.size == 12
    assert graph.axis(inner.context[0]).role == "experts"


def test_fixed_axes_say_why() -> None:
    graph = traced("mlp")
    assert {axis.size: [reason.why for reason in axis.reasons] for axis in graph.fixed} == {5: ["input"], 3: ["output"]}
    assert graph.fixed[0].reasons[0].node


def test_free_fraction_counts_elements_with_a_free_dim() -> None:
    graph = traced("mlp")
    outside = 3  # the output bias
    every = 5 * 11 + 11 + 11 * 7 + 7 + 7 * 3 + 3
    assert graph.free_fraction == pytest.approx(1 - outside / every)


def test_tied_weights_are_one_tensor() -> None:
    graph = traced("decoder")
    assert "tokens.weight" in graph.tensors
    assert "head.weight" not in graph.tensors
    assert graph.captured.aliases["head.weight"] == "tokens.weight"


def test_columns_are_told_from_rows() -> None:
    graph = traced("mlp")
    assert graph.tensors["2.weight"].consumed == (False, True)
    assert graph.tensors["2.bias"].consumed == (False,)
    assert traced("lstm").tensors["rnn.weight_hh_l0"].consumed == (False, True)
    assert traced("decoder").tensors["tokens.weight"].consumed == (False, False)  # tied: a row where it embeds


def test_contractions_and_statistics_are_listed() -> None:
    graph = traced("unet")
    assert (graph.contractions[0].weight, graph.contractions[0].kind) == ("down.weight", "convolution")
    assert [(s.mean, s.var) for s in graph.statistics] == [("norm.running_mean", "norm.running_var")]


def test_symmetry_classes_follow_the_ops_on_the_way() -> None:
    class Classes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = nn.Linear(3, 5), nn.Linear(5, 7), nn.Linear(7, 9), nn.Linear(9, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.d(torch.sigmoid(self.c(torch.tanh(self.b(torch.relu(self.a(x)))))))

    graph = graphfuse.trace(Classes(), (torch.randn(2, 3),))
    assert {axis.size: str(axis.symmetry) for axis in graph.axes} == {5: "scaling", 7: "signed", 9: "permutation"}


def test_networkx_view_joins_axes_to_tensors() -> None:
    graph = traced("mlp")
    view = graph.to_networkx()
    hidden = graph.axes[0]
    assert view.nodes["axis", hidden.id]["role"] == "hidden"
    assert {name for _, name in view["axis", hidden.id]} == {"0.weight", "0.bias", "2.weight"}
    assert view.edges[("axis", hidden.id), ("tensor", "2.weight")]["dim"] == [1]


def test_printing_shows_a_table_of_free_axes() -> None:
    lines = str(traced("decoder")).splitlines()
    assert lines[0].startswith("Decoder: 9 free axes, ")
    assert lines[1].split() == ["axis", "size", "class", "differs", "along", "touches"]
    assert any(line.startswith("head_dim_qk.0") and "heads.0" in line for line in lines)


def test_tracing_works_on_the_meta_device() -> None:
    with torch.device("meta"):
        model, ids = models.GroupedDecoder(), torch.zeros(2, 7, dtype=torch.long)
    graph = graphfuse.trace(model, (ids,))
    assert str(graph).splitlines()[1:] == str(traced("grouped")).splitlines()[1:]


def test_an_op_without_a_rule_fixes_what_it_touches_and_says_so() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 6), nn.Linear(6, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.relu(self.b(torch.ops.graphfuse_tests.odd(self.a(x)))))

    @torch.library.custom_op("graphfuse_tests::odd", mutates_args=())
    def odd(x: Tensor) -> Tensor:
        return x.flip(-1)

    @odd.register_fake
    def _(x: Tensor) -> Tensor:
        return torch.empty_like(x)

    graph = graphfuse.trace(Odd(), (torch.randn(2, 3),))
    assert [axis.size for axis in graph.axes] == [4]
    assert any("graphfuse_tests.odd" in note.message and "no rule" in note.message for note in graph.notes)
    assert graphfuse.verify(graph).ok
