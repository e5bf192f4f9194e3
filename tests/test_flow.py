"""The flow driver: exact maps come back under every policy, and every option does what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_same
from models import MLP, Decoder, ResNet, ids, images
from test_align import ZOO, planted, scaled, widened
from torch import Tensor, nn
from torch.testing import assert_close

import graphfuse
from graphfuse.alignment import Alignment, Prepared, match
from graphfuse.alignment import prepare as prepare_any
from graphfuse.average import average
from graphfuse.axes import walk_leaves
from graphfuse.calibrate import calibrate
from graphfuse.calibrate.walk import lanes_of
from graphfuse.capture import state_of
from graphfuse.config import FuseConfig
from graphfuse.errors import ConfigError, DataError
from graphfuse.symmetry import trace
from graphfuse.transport.circuit import wire
from graphfuse.transport.wires import Wiring

RESIDUAL = ("shared", "mean", "weighted_scalar", "weighted_matrix", "only_residual", "no_residual")


class Patches(nn.Module):
    """A vision transformer's head: a class token before the patches, positions added to both, q, k and v apart."""

    def __init__(self, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.patch, self.cls = nn.Conv2d(3, width, 4, 4), nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 5, width))
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down, self.head = nn.Linear(width, 30), nn.Linear(30, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.positions
        h = self.norm(x)
        q, k, v = (y(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (self.q, self.k, self.v))
        h = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.o(h)
        x = x + self.down(torch.relu(self.up(self.norm2(x))))
        return self.head(x[:, 0])


class Skipping(nn.Module):
    """One skip around one branch."""

    def __init__(self, width: int = 8, hidden: int = 11) -> None:
        super().__init__()
        self.inp, self.up = nn.Linear(5, width), nn.Linear(width, hidden)
        self.down, self.head = nn.Linear(hidden, width), nn.Linear(width, 3)

    def branch(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        return self.head(x + self.branch(x))


class Stacked(nn.Module):
    """Queries, keys and values as three slices of one projection, selected in another order than they lie in."""

    def __init__(self, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.inp, self.qkv = heads, nn.Linear(5, width), nn.Linear(width, 3 * width)
        self.out, self.head = nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        parts = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, v, k = parts[2], parts[0], parts[1]
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(x + self.out(y))


class Twice(Skipping):
    """The same weights used twice: what the second use reads has another map than what the first one reads."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        x = x + self.branch(x)
        return self.head(x + self.branch(x))


class Gated(nn.Module):
    """Channels gated by a function of themselves, then a state updated step by step."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.inp, self.squeeze, self.excite = nn.Linear(5, width), nn.Linear(width, 6), nn.Linear(6, width)
        self.cell, self.head = nn.GRUCell(width, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        x = x * torch.sigmoid(self.excite(torch.relu(self.squeeze(x))))
        h = self.cell(x)
        return self.head(self.cell(x * 0.5, h))


class Queries(nn.Module):
    """Learned queries, worked on before they see any data, and joined on both sides."""

    def __init__(self, width: int = 12, count: int = 5) -> None:
        super().__init__()
        self.queries, self.mix = nn.Parameter(torch.randn(count, width)), nn.Linear(width, width)
        self.inp, self.q, self.k, self.v = (
            nn.Linear(n, m) for n, m in ((6, width), (width, 9), (width, 9), (width, 10))
        )
        self.out, self.head = nn.Linear(10, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, y = self.inp(x), self.queries + torch.relu(self.mix(self.queries))
        scores = (self.q(y) @ self.k(x).transpose(-1, -2)).softmax(-1)
        return self.head(y + self.out(scores @ self.v(x)))


class Reduced(nn.Module):
    """Queries see the stream; keys and values a map of it that a layer made, which comes after the queries."""

    def __init__(self, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.inp, self.q, self.reduce = heads, nn.Linear(5, width), *(nn.Linear(width, width) for _ in "qr")
        self.kv, self.out, self.head = (
            nn.Linear(width, 2 * width, bias=False),
            nn.Linear(width, width),
            nn.Linear(width, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        kv = self.kv(torch.tanh(self.reduce(x[:, ::2]))).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, kv[0], kv[1]).transpose(1, 2).flatten(2)
        return self.head(x + self.out(y))


class Biased(nn.Module):
    """Two layers of attention that add the same positional bias to their scores, and so share their heads."""

    def __init__(self, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.bias = heads, nn.Parameter(torch.randn(heads, 6, 6))
        self.inp, self.head = nn.Linear(5, width), nn.Linear(width, 3)
        self.layers = [[nn.Linear(width, width, bias=False) for _ in range(4)] for _ in range(2)]
        self.all = nn.ModuleList(linear for layer in self.layers for linear in layer)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        for *qkv, out in self.layers:
            q, k, v = (y(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in qkv)
            scores = (q @ k.transpose(-1, -2) + self.bias).softmax(-1)
            x = x + out((scores @ v).transpose(1, 2).flatten(2))
        return self.head(x)


class Crossed(nn.Module):
    """Rows along two axes, none of which is known before the other."""

    def __init__(self, lines: int = 6, columns: int = 7) -> None:
        super().__init__()
        self.sizes, self.grid = (lines, columns), nn.Linear(5, lines * columns)
        self.down, self.across = nn.Linear(lines, 3), nn.Linear(columns, 3)

    def forward(self, x: Tensor) -> Tensor:
        grid = torch.relu(self.grid(x)).unflatten(1, self.sizes)
        return self.down(grid.mean(2)) + self.across(grid.mean(1))


CASES = {
    **ZOO,
    "crossed": (Crossed, lambda: torch.randn(64, 5)),
    "biased": (Biased, lambda: torch.randn(64, 6, 5)),
    "reduced": (Reduced, lambda: torch.randn(64, 6, 5)),
    "patches": (Patches, lambda: images(16)),
    "skipping": (Skipping, lambda: torch.randn(64, 5)),
    "stacked": (Stacked, lambda: torch.randn(16, 6, 5)),
    "twice": (Twice, lambda: torch.randn(64, 5)),
    "gated": (Gated, lambda: torch.randn(64, 5)),
    "queries": (Queries, lambda: torch.randn(16, 7, 6)),
}


def prepare(models: list[nn.Module], data: list[Tensor]) -> Prepared:
    """Models as they are: gains of norms stay, as maps flow through them."""
    return prepare_any(models, data=data, config={"driver": "flow"})


def flowing(prepared: Prepared, method: str | None = None, **settings: Any) -> Alignment:
    """An alignment by the flow driver."""
    flow = {key: settings.pop(key) for key in ("residual", "qk", "heads", "embeddings") if key in settings}
    config = FuseConfig.parse({"driver": "flow", "flow": flow, **settings})
    return match(replace(prepared, config=config, method=method or prepared.method))


def wired(model: nn.Module, x: Tensor, **flow: str) -> Wiring:
    graph = trace(model, (x,))
    return wire(graph, graph.axes, FuseConfig.parse({"flow": flow}).flow)


def ids_of(found: Wiring | Alignment, name: str) -> list[int]:
    """Numbers of the axes in a tensor's label."""
    label = found.labels[name]
    text = [leaf for dim in label.dims for leaf in walk_leaves(dim)]
    return [leaf.id for leaf in text]


# ------------------------------------------------------------------------ exact


@pytest.mark.parametrize("name", CASES)
def test_a_planted_permutation_is_recovered_under_every_policy(name: str) -> None:
    build, inputs = CASES[name]
    model, x = scaled(build()), inputs()
    other, expected = planted(model, x), dict(state_of(model))
    prepared = prepare([model, other], data=[x])
    for residual in RESIDUAL:
        for method in ("weights", "activations"):
            found = flowing(prepared, method, residual=residual)
            assert_same(found.apply(state_of(other), 1), expected, 0)


@pytest.mark.parametrize("name", ["decoder", "encoder", "grouped", "patches", "stacked"])
def test_a_planted_permutation_is_recovered_in_every_kind_of_attention(name: str) -> None:
    build, inputs = CASES[name]
    model, x = scaled(build()), inputs()
    other, expected = planted(model, x), dict(state_of(model))
    prepared = prepare([model, other], data=[x])
    for qk in ("separate", "joint", "tied"):
        for heads in ("nested", "free"):
            for method in ("weights", "activations"):
                found = flowing(prepared, method, qk=qk, heads=heads, embeddings="follow")
                assert_same(found.apply(state_of(other), 1), expected, 0)


# ------------------------------------------------------------------------ wires


def test_shared_and_joint_leave_one_map_for_each_axis() -> None:
    model, x = Decoder(depth=1), ids(4, vocabulary=31)
    found, labels = wired(model, x, residual="shared", qk="joint"), trace(model, (x,)).tensors
    assert {name: label.dims for name, label in found.labels.items()} == {n: label.dims for n, label in labels.items()}
    assert len(wired(model, x, residual="mean", qk="joint").wires) > len(found.wires) == 5


def test_wires_end_where_a_parameter_reads_and_begin_where_one_writes() -> None:
    found = wired(Decoder(depth=1), ids(4, vocabulary=31))
    joins = {wire.axis.id: wire.join for wire in found.wires if wire.join is not None}
    (tokens,), (positions,) = ([id for id in ids_of(found, f"{x}.weight")[1:]] for x in ("tokens", "positions"))
    (reads,) = ids_of(found, "blocks.0.norm1.weight")
    assert ids_of(found, "blocks.0.qkv.weight")[-1] == reads
    assert joins[reads] is not None and (joins[reads].skip.wire, joins[reads].branch.wire) == (tokens, positions)
    writes, after = ids_of(found, "blocks.0.out.weight")[0], ids_of(found, "blocks.0.norm2.weight")[0]
    assert (joins[after].skip.wire, joins[after].branch.wire) == (reads, writes)
    assert ids_of(found, "blocks.0.out.bias") == [writes]
    assert len({tokens, positions, reads, writes, after}) == 5


def test_the_skip_is_the_operand_that_fewer_weights_lie_on_the_way_to() -> None:
    found = wired(ResNet((6, 7)), images(2))
    joins = [wire.join for wire in found.wires if wire.join is not None]
    shortcut, conv = ids_of(found, "blocks.2.skip.0.weight")[0], ids_of(found, "blocks.2.conv2.weight")[0]
    assert (shortcut, conv) in [(join.skip.wire, join.branch.wire) for join in joins]


@pytest.mark.parametrize("build", [lambda: Stacked(), lambda: Decoder(depth=1)])
def test_queries_and_keys_of_one_projection_have_their_own_wires(build: Any) -> None:
    model = build()
    x = torch.randn(4, 6, 5) if isinstance(model, Stacked) else ids(4, vocabulary=31)
    count = {
        qk: sum(wire.axis.role == "head_dim_qk" for wire in wired(model, x, qk=qk).wires)
        for qk in ("separate", "joint", "tied")
    }
    assert count == {"separate": 2, "joint": 1, "tied": 2}
    assert len(wired(model, x, qk="tied").ties) == 1


def test_each_map_is_named_after_where_it_begins_and_the_last_one_after_its_axis() -> None:
    names = [wire.axis.name for wire in wired(Skipping(), torch.randn(4, 5)).wires]
    assert names == ["residual.0@inp", "hidden.0", "residual.0@down", "residual.0"]


# --------------------------------------------------------------------- policies


def pair(build: Any, *seeds: int) -> list[nn.Module]:
    return [scaled(build(), seed) for seed in seeds or (1, 2)]


def skipping() -> tuple[list[nn.Module], Prepared, Tensor]:
    models, x = pair(Skipping), torch.randn(64, 5)
    return models, prepare(models, data=[x]), x


def plans(found: Alignment) -> Mapping[str, Tensor]:
    part = found.models[1]
    return {axis.name: part.maps[axis.id].coupling() for axis in found.axes}


def test_the_map_after_a_sum_is_combined_by_policy() -> None:
    (model, _), prepared, x = skipping()
    assert isinstance(model, Skipping)
    skip = model.inp(x)
    one, two = skip.abs().mean(0).detach(), model.branch(skip).abs().mean(0).detach()
    each, scalar = (one / (one + two)).unsqueeze(-1), one.mean() / (one.mean() + two.mean())
    share = {"mean": 0.5, "weighted_scalar": scalar, "weighted_matrix": each, "only_residual": 1.0, "no_residual": 0.0}
    for policy, w in share.items():
        found = plans(flowing(prepared, residual=policy))
        expected = w * found["residual.0@inp"] + (1 - w) * found["residual.0@down"]
        assert not torch.equal(found["residual.0@inp"], found["residual.0@down"])
        assert_close(found["residual.0"], expected, rtol=1e-4, atol=1e-6)


def test_a_shared_map_is_judged_by_all_that_is_summed() -> None:
    _, prepared, _ = skipping()
    found = plans(flowing(prepared, residual="shared", solver="sinkhorn"))
    apart = plans(flowing(prepared, residual="mean", solver="sinkhorn"))
    assert [name for name in found if name.startswith("residual")] == ["residual.0"]
    assert all(not torch.allclose(found["residual.0"], apart[f"residual.0@{x}"]) for x in ("inp", "down"))


def test_rows_and_columns_take_the_maps_of_their_places() -> None:
    (_, other), prepared, _ = skipping()
    found = flowing(prepared, residual="mean", solver="sinkhorn")
    by_name, state = {axis.name: found.models[1].maps[axis.id] for axis in found.axes}, state_of(other)
    moved = found.apply(state, 1)
    after, hidden, branch = by_name["residual.0"], by_name["hidden.0"], by_name["residual.0@down"]
    skip = by_name["residual.0@inp"]
    assert_close(moved["inp.weight"], skip.rows() @ state["inp.weight"])
    assert_close(moved["up.weight"], hidden.rows() @ state["up.weight"] @ skip.columns().T)
    assert_close(moved["down.weight"], branch.rows() @ state["down.weight"] @ hidden.columns().T)
    assert_close(moved["down.bias"], branch.rows() @ state["down.bias"])
    assert_close(moved["head.weight"], state["head.weight"] @ after.columns().T)


def test_a_producer_is_judged_by_what_it_alone_shows() -> None:
    """What reads the stream, and what else writes it, has no say in a producer's map."""
    _, prepared, _ = skipping()
    changed = [scaled(Skipping(), seed) for seed in (1, 2)]
    with torch.no_grad():
        for name in ("head.weight", "down.weight", "down.bias", "up.weight"):
            changed[1].get_parameter(name).copy_(torch.randn_like(changed[1].get_parameter(name)))
    again = prepare(changed, data=[batch.args[0] for batch in prepared.data])
    for method in ("weights", "activations"):
        one, two = (plans(flowing(x, method, solver="sinkhorn")) for x in (prepared, again))
        assert_close(one["residual.0@inp"], two["residual.0@inp"])
        assert not torch.allclose(one["residual.0@down"], two["residual.0@down"])


# -------------------------------------------------------------------- attention


def attention() -> Prepared:
    x = ids(16, vocabulary=31)
    return prepare(pair(lambda: Decoder(depth=1)), data=[x])


def test_queries_and_keys_are_mapped_apart_jointly_or_by_their_mean() -> None:
    prepared = attention()
    maps = {}
    for qk in ("separate", "joint", "tied"):
        found = flowing(prepared, qk=qk, solver="sinkhorn")
        label = ids_of(found, "blocks.0.qkv.bias")
        maps[qk] = [found.models[1].maps[label[i]].coupling() for i in (1, 3)]
    query, key = maps["separate"]
    assert not torch.allclose(query, key)
    assert_close(maps["tied"], [(query + key) / 2] * 2)
    assert_close(maps["joint"][0], maps["joint"][1])
    assert not torch.allclose(maps["joint"][0], maps["tied"][0])


def test_heads_within_are_kept_in_order_and_their_units_matched() -> None:
    prepared = attention()
    found = flowing(prepared, heads="within")
    heads, _, _, units = ids_of(found, "blocks.0.out.weight")[1:] + ids_of(found, "blocks.0.qkv.bias")[-2:]
    assert torch.equal(found.models[1].maps[heads].values, torch.arange(4))
    own = found.models[1].maps[units]
    assert (own.context, own.along, own.lead) == ((), (heads,), (4,))
    assert not torch.equal(own.values, torch.arange(6).expand(4, 6))
    nested = flowing(prepared, heads="nested")
    assert nested.models[1].maps[units].context == (heads,)


def test_free_heads_are_matched_over_the_whole_width() -> None:
    """Values in an order that mixes heads are matched by free maps alone."""
    model, x = scaled(Patches()), images(16)
    other = scaled(Patches())
    order = torch.randperm(24, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for tensor in (other.get_parameter("v.weight"), other.get_parameter("v.bias")):
            tensor.copy_(tensor[order])
        other.get_parameter("o.weight").copy_(other.get_parameter("o.weight")[:, order])
    prepared = prepare([model, other], data=[x])
    for method in ("weights", "activations"):
        free = flowing(prepared, method, heads="free")
        assert_same(free.apply(state_of(other), 1)["v.weight"], model.get_parameter("v.weight"), 0)
        assert {axis.role for axis in free.axes} == {"residual", "head_dim_qk", "head_dim_vo", "hidden"}
        nested = flowing(prepared, method, heads="nested").apply(state_of(other), 1)
        assert not torch.equal(nested["v.weight"], state_of(model)["v.weight"])


def test_heads_that_cannot_be_free_are_matched_and_said_to_be() -> None:
    build, inputs = ZOO["grouped"]
    found = flowing(prepare(pair(build), data=[inputs()]), heads="free")
    assert any("heads.0, heads.1: matched, not free" in note for note in found.notes)
    assert "heads.0" in [axis.name for axis in found.axes]


def test_positions_and_class_tokens_have_a_map_of_their_own_or_follow() -> None:
    model, x, order = scaled(Patches()), images(16), torch.arange(24).flip(0)
    for name in ("cls", "positions"):
        other = scaled(Patches())
        with torch.no_grad():
            other.get_parameter(name).copy_(other.get_parameter(name)[..., order])
        prepared = prepare([model, other], data=[x])
        for method in ("weights", "activations"):
            own = flowing(prepared, method, embeddings="own", residual="only_residual").apply(state_of(other), 1)
            assert_same(own[name], model.get_parameter(name), 0)
            follow = flowing(prepared, "weights", embeddings="follow", residual="only_residual")
            assert_same(follow.apply(state_of(other), 1)[name], other.get_parameter(name), 0)


# ------------------------------------------------------------ widths, files, use


@pytest.mark.parametrize("method", ["weights", "activations"])
def test_a_model_and_its_widened_self_have_one_function(method: str) -> None:
    narrow, x = scaled(MLP()), torch.randn(64, 5)
    wide = planted(widened(narrow), x)
    for models in ([narrow, wide], [wide, narrow]):
        state = flowing(prepare(models, data=[x]), method).apply(models[1].state_dict(), 1)
        assert_close(torch.func.functional_call(models[0], state, (x,)), narrow(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("heads", ["nested", "free"])
def test_models_of_other_widths_and_heads_are_fused(heads: str) -> None:
    models = [scaled(Decoder(24, 4, 1, 40), 1), scaled(Decoder(18, 3, 1, 30), 2)]
    flow = {"heads": heads, "residual": "weighted_matrix", "qk": "tied"}
    config = {"driver": "flow", "solver": "sinkhorn", "flow": flow}
    result = graphfuse.fuse(models, data=[ids(8, vocabulary=31)], config=config)
    assert {k: v.shape for k, v in result.model.state_dict().items()} == {
        k: v.shape for k, v in models[0].state_dict().items()
    }
    assert len(result.report["calibration"]["solved"]) == 4


def test_an_alignment_with_maps_on_edges_is_the_same_when_loaded(tmp_path: Path) -> None:
    found = flowing(attention(), residual="weighted_matrix", heads="free", qk="separate", solver="sinkhorn")
    state = state_of(scaled(Decoder(depth=1), 2))
    found.save(tmp_path / "a.safetensors")
    loaded = Alignment.load(tmp_path / "a.safetensors")
    assert (loaded.to_json(), str(loaded), loaded.axes) == (found.to_json(), str(found), found.axes)
    assert found.nodes and loaded.nodes == found.nodes
    assert_same(loaded.apply(state, 1), found.apply(state, 1), 0)


def test_a_loaded_alignment_with_maps_on_edges_calibrates_to_the_same_bytes(tmp_path: Path) -> None:
    prepared, shares = attention(), (0.5, 0.5)
    found = flowing(prepared, residual="mean", qk="separate", solver="sinkhorn")
    found.save(tmp_path / "a.safetensors")
    loaded = Alignment.load(tmp_path / "a.safetensors")
    once, again, unlabelled = (
        calibrate(prepared, each, average(prepared, each, shares), shares).state
        for each in (found, loaded, replace(loaded, nodes={}))
    )
    assert_same(dict(again), dict(once), 0)
    assert any(not torch.equal(value, unlabelled[name]) for name, value in once.items())


def test_calibration_moves_activations_by_the_maps_of_their_places() -> None:
    models, prepared, x = skipping()
    found = flowing(prepared, residual="mean", solver="sinkhorn")
    state = state_of(models[0])
    (lane,) = lanes_of(prepared.lockstep, prepared.states, prepared.data, (0.5, 0.5), state, found.nodes)
    by_name = {axis.name: found.models[1].maps[axis.id] for axis in found.axes}
    other = models[1]
    assert isinstance(other, Skipping)
    skip = other.inp(x)
    branch = other.branch(skip)
    places = {"linear": ("@inp", skip), "linear_2": ("@down", branch), "add": ("", skip + branch)}
    for node, (place, value) in places.items():
        assert lane.comparable(node, found.models, (0, 1))
        assert_close(lane.aligned(node, found.models, (0, 1))[1], value @ by_name[f"residual.0{place}"].rows().T)


def test_a_model_fused_with_its_permuted_self_is_itself() -> None:
    model, x = scaled(Patches()), images(32)
    other = planted(model, x)
    for flow in ({}, {"residual": "weighted_scalar", "heads": "free", "qk": "separate"}):
        result = graphfuse.fuse([model, other], data=[x], config={"driver": "flow", "flow": flow})
        assert_close(result.model(x), model(x), rtol=1e-4, atol=1e-4)


def test_a_layer_that_the_other_model_lacks_has_no_say_in_the_stream() -> None:
    deep, x = scaled(Decoder(depth=2)), ids(16, vocabulary=31)
    shallow = Decoder(depth=1)
    state = {name: value for name, value in deep.state_dict().items() if not name.startswith("blocks.1")}
    shallow.load_state_dict(state)
    other = planted(shallow.eval(), x)
    config = {"driver": "flow", "layers": {0: 0}}
    found = graphfuse.align([deep, other], data=[x], config=config)
    assert_same(found.apply(state_of(other), 1), dict(state_of(shallow)), 0)


def test_settings_of_roles_hold_for_all_maps_of_an_axis() -> None:
    _, prepared, _ = skipping()
    for key in ("residual", "residual.0"):
        found = flowing(prepared, roles={key: {"solver": "sinkhorn"}})
        hard = {axis.name: found.models[1].maps[axis.id].hard for axis in found.axes}
        assert hard == {"residual.0@inp": False, "hidden.0": True, "residual.0@down": False, "residual.0": False}
    still = flowing(prepared, roles={"residual": {"align": False}})
    assert [axis.name for axis in still.axes] == ["hidden.0", "residual.0"]
    assert_close(plans(still)["residual.0"], torch.eye(8) / 8)


def test_bad_settings_are_refused() -> None:
    models = [Decoder(24, 4, 1, 40), Decoder(18, 3, 1, 30)]
    x = ids(4, vocabulary=31)
    with pytest.raises(
        ConfigError, match=r"flow\.heads: within keeps heads\.0 in order, but its size is 4 in model 0 and 3"
    ):
        graphfuse.align(models, (x,), config={"driver": "flow", "flow": {"heads": "within"}})
    with pytest.raises(DataError, match="weighted_scalar weighs by activations, but there is no data"):
        graphfuse.align(models, (x,), config={"driver": "flow", "flow": {"residual": "weighted_scalar"}})
    with pytest.raises(ConfigError, match=r"unknown key 'flow.residul'; did you mean 'residual'"):
        FuseConfig.parse({"flow": {"residul": "mean"}})
