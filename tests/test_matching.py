"""Models under other names and in other layouts: a translated model computes exactly what the original did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import randomise
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

import graphfuse
from graphfuse.errors import ConfigError, CorrespondenceError
from graphfuse.matching import refine, translate

WIDTH, HEADS, HIDDEN = 24, 4, 40


class FusedBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, HEADS, d // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(y.transpose(1, 2).reshape(b, n, d))
        return x + self.mlp(self.norm2(x))


class Fused(nn.Module):
    """Queries, keys and values in one weight; attention in one op."""

    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.inp = nn.Linear(7, WIDTH)
        self.blocks = nn.ModuleList(FusedBlock() for _ in range(depth))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inp(x)
        for block in self.blocks:
            h = block(h)
        return self.head(h.mean(1))


class Attention(nn.Module):
    """Keys first, Conv1D-like weights for queries, the attention written out."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.query = nn.Parameter(torch.zeros(WIDTH, WIDTH))
        self.query_bias = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        k, v, q = (
            y.view(b, n, HEADS, d // HEADS).transpose(1, 2)
            for y in (self.key(x), self.value(x), x @ self.query + self.query_bias)
        )
        scores = (q / (d // HEADS) ** 0.5) @ k.transpose(-1, -2)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, d))


class Norm(nn.Module):
    """A layer norm written out."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.gain + self.shift


class SeparateLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ff = nn.ModuleDict({"up": nn.Linear(WIDTH, HIDDEN), "down": nn.Linear(HIDDEN, WIDTH)})
        self.before, self.after = Norm(), nn.LayerNorm(WIDTH)
        self.attention = Attention()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before(x))
        return self.ff["down"](F.gelu(self.ff["up"](self.after(x)))) + x


class Separate(nn.Module):
    """The same as Fused, under other names, in other layouts and other ops."""

    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.classifier = nn.Linear(WIDTH, 5)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(SeparateLayer() for _ in range(depth))})
        self.embed = nn.Conv1d(7, WIDTH, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens.transpose(1, 2)).transpose(1, 2)
        for layer in self.encoder["layer"]:  # pyright: ignore[reportGeneralTypeIssues]
            h = layer(h)
        return self.classifier(h.mean(1))


def small(model: nn.Module, seed: int) -> nn.Module:
    """Random weights that keep activations of order one."""
    randomise(model, seed)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.3)
    return model


def example() -> Tensor:
    return torch.randn(3, 6, 7, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("order", [(Fused, Separate), (Separate, Fused)])
def test_other_names_and_layouts_are_the_same_function(order: tuple[type[nn.Module], type[nn.Module]]) -> None:
    target, other = (small(kind(), seed) for seed, kind in enumerate(order))
    told: list[tuple[str, int, int]] = []
    found = translate(target, other, example(), progress=lambda *step: told.append(step))
    assert told == [("translate", done, 4) for done in range(1, 5)]
    assert type(found.model) is order[0]
    assert_close(found.model(example()), other(example()), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(target(example()), other(example()), rtol=1e-2, atol=1e-2)
    assert found.error < 1e-4
    if order[0] is Fused:
        assert found.pairs["blocks.1.qkv.weight"] == (
            "encoder.layer.1.attention.query", "encoder.layer.1.attention.key.weight",
            "encoder.layer.1.attention.value.weight",
        )  # fmt: skip


class Named(nn.Module):
    """Layers under given names, and what is done with them."""

    def __init__(self, run: Callable[[nn.ModuleDict, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.run, self.layers = run, nn.ModuleDict(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.layers, x)


def same(a: nn.Module, b: nn.Module, x: Tensor, **options: object) -> None:
    found = translate(a.eval(), b.eval(), x, **options)  # pyright: ignore[reportArgumentType]
    assert_close(found.model(x), b(x), rtol=1e-4, atol=1e-5)
    assert (a(x).shape != b(x).shape) or not torch.allclose(a(x), b(x), rtol=1e-2, atol=1e-2)


def gated(**layers: nn.Module) -> Named:
    return Named(lambda m, x: m["down"](F.silu(m["gate"](x)) * m["up"](x)), **layers)


def test_a_gate_is_known_by_its_function_not_by_its_place() -> None:
    def other_way(m: nn.ModuleDict, x: Tensor) -> Tensor:
        up, gate = m["w3"](x), m["w1"](x)
        return m["w2"](up * F.silu(gate))

    def fused(m: nn.ModuleDict, x: Tensor) -> Tensor:
        up, gate = m["both"](x).chunk(2, -1)
        return m["down"](gate * torch.sigmoid(gate) * up)

    torch.manual_seed(0)
    target = gated(gate=nn.Linear(7, 9), up=nn.Linear(7, 9), down=nn.Linear(9, 3))
    same(target, Named(other_way, w3=nn.Linear(7, 9), w1=nn.Linear(7, 9), w2=nn.Linear(9, 3)), example())
    same(target, Named(fused, both=nn.Linear(7, 18), down=nn.Linear(9, 3)), example())


def test_blocks_of_a_concatenation_are_known_by_where_they_go() -> None:
    def first(m: nn.ModuleDict, x: Tensor) -> Tensor:
        u, v = m["a"](x).tanh(), m["b"](x).tanh()
        return m["o"](torch.cat([u, v], -1))

    def second(m: nn.ModuleDict, x: Tensor) -> Tensor:
        v, u = m["q"](x).tanh(), m["p"](x).tanh()
        return m["z"](torch.cat([u, v], -1))

    torch.manual_seed(0)
    a = Named(first, a=nn.Linear(7, 8), b=nn.Linear(7, 6), o=nn.Linear(14, 3))
    b = Named(second, q=nn.Linear(7, 6), p=nn.Linear(7, 8), z=nn.Linear(14, 3))
    same(a, b, example())


def test_hidden_widths_may_differ() -> None:
    torch.manual_seed(0)
    a = nn.Sequential(nn.Linear(7, 9), nn.LayerNorm(9), nn.ReLU(), nn.Linear(9, 3))
    b = Named(lambda m, x: m["z"](m["n"](m["y"](x)).relu()), z=nn.Linear(13, 3), n=nn.LayerNorm(13), y=nn.Linear(7, 13))
    found = translate(a, b, example())
    assert found.model[0].weight.shape == (13, 7)  # pyright: ignore[reportIndexIssue]
    assert_close(found.model(example()), b(example()))
    assert graphfuse.fuse([a, b], example()).model(example()).shape == (3, 6, 3)


def test_residual_layers_that_look_alike_are_told_apart_by_their_order() -> None:
    def chain(order: str) -> Callable[[nn.ModuleDict, Tensor], Tensor]:
        def run(m: nn.ModuleDict, x: Tensor) -> Tensor:
            h = m["in"](x)
            for key in order:
                h = h + m[key](h).relu()
            return m["out"](h)

        return run

    def build(order: str) -> Named:
        return Named(chain(order), **{"in": nn.Linear(7, 8), "out": nn.Linear(8, 3)},
                     **{key: nn.Linear(8, 8) for key in "abcd"})  # fmt: skip

    torch.manual_seed(0)
    a, b = build("abcd"), build("cadb")
    pairs = translate(a, b, example()).pairs
    assert [pairs[f"layers.{key}.weight"] for key in "abcd"] == [(f"layers.{key}.weight",) for key in "cadb"]
    same(a, b, example())


class Positions(nn.Module):
    """Words and positions; positions counted from some number."""

    def __init__(self, first: int, rows: int) -> None:
        super().__init__()
        self.first = first
        self.words, self.places, self.out = nn.Embedding(11, 8), nn.Embedding(rows, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1]) + self.first
        return self.out((self.words(ids) + self.places(places)).tanh())


def test_tables_may_be_read_from_another_row_on() -> None:
    torch.manual_seed(0)
    a, b, ids = Positions(0, 6), Positions(2, 8), torch.randint(0, 11, (2, 4))
    found = translate(a, b, ids)
    assert_close(found.model(ids), b(ids))
    assert_close(found.model.places.weight[:6], b.places.weight[2:8])  # pyright: ignore
    assert any("2 rows further on" in note for note in found.notes)


def test_batch_norms_bring_their_statistics() -> None:
    def first(m: nn.ModuleDict, x: Tensor) -> Tensor:
        return m["out"](m["norm"](m["conv"](x)).relu().mean((2, 3)))

    def second(m: nn.ModuleDict, x: Tensor) -> Tensor:
        return m["z"](m["b"](m["a"](x)).relu().mean((2, 3)))

    a = Named(first, conv=nn.Conv2d(3, 8, 3), norm=nn.BatchNorm2d(8), out=nn.Linear(8, 2))
    b = Named(second, z=nn.Linear(8, 2), b=nn.BatchNorm2d(8), a=nn.Conv2d(3, 8, 3))
    same(small(a, 0), small(b, 1), torch.randn(2, 3, 8, 8))
    pairs = translate(a, b, torch.randn(2, 3, 8, 8)).pairs
    assert pairs["layers.norm.running_var"] == ("layers.b.running_var",)


def test_parameters_that_nothing_depends_on_are_the_targets_own() -> None:
    def pooled(m: nn.ModuleDict, x: Tensor) -> Tensor:
        h = m["a"](x).tanh()
        m["pooler"](h)
        return m["b"](h)

    a = Named(pooled, a=nn.Linear(7, 9), pooler=nn.Linear(9, 9), b=nn.Linear(9, 2))
    b = nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 2))
    same(a, b, example())
    found = translate(a, b, example())
    assert not any("pooler" in name for name in found.pairs)
    assert torch.equal(dict(found.model.named_parameters())["layers.pooler.weight"], a.layers["pooler"].weight)  # pyright: ignore[reportArgumentType]


def test_the_number_of_rounds_does_not_grow_with_the_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each round looks at every use once, so a deep pair costs as much more as it is deeper."""
    rounds: list[int] = []
    one_round = refine._round

    def counted(*args: Any) -> Any:
        rounds[-1] += 1
        return one_round(*args)

    monkeypatch.setattr(refine, "_round", counted)
    for depth in (2, 8):
        rounds.append(0)
        translate(small(Fused(depth), 0), small(Separate(depth), 1), example())
    assert rounds[0] == rounds[1] > 0


def swapped() -> tuple[Named, Named, Tensor]:
    """Two branches that nothing but the sign of their sum tells apart."""
    torch.manual_seed(0)
    a = Named(lambda m, x: m["o"](m["a"](x).tanh() - m["b"](x).tanh()),
              a=nn.Linear(7, 8), b=nn.Linear(7, 8), o=nn.Linear(8, 3))  # fmt: skip
    b = Named(lambda m, x: m["o"](-m["p"](x).tanh() + m["q"](x).tanh()),
              p=nn.Linear(7, 8), q=nn.Linear(7, 8), o=nn.Linear(8, 3))  # fmt: skip
    return a, b, example()


def test_what_is_ambiguous_is_shown_and_can_be_said_by_hand() -> None:
    a, b, x = swapped()
    with pytest.raises(CorrespondenceError) as caught:
        translate(a, b, x)
    for word in ("could not be told apart", "'layers.a.weight' (8, 7)", "'layers.p.weight' (8, 7)", "names={"):
        assert word in str(caught.value), str(caught.value)
    same(a, b, x, names={"layers.a": "layers.q"})
    same(a, b, x, names={"layers.a.weight": "layers.q.weight", "layers.a.bias": "layers.q.bias"})
    result = graphfuse.fuse([a, b], x, config={"names": {"layers.a": "layers.q"}})
    assert isinstance(result.model, Named)


def test_fresh_weights_hide_no_wrong_pair() -> None:
    """Branches scaled by almost nothing: the outputs agree whichever is which, but the pairing must not be guessed."""
    torch.manual_seed(0)
    a, b, x = swapped()
    for model in (a, b):
        nn.init.normal_(model.layers["o"].weight, std=1e-6)  # pyright: ignore[reportArgumentType]
    with pytest.raises(CorrespondenceError, match="could not be told apart"):
        translate(a, b, x)


def test_parts_of_a_fused_parameter_can_be_named() -> None:
    a, b = small(Fused(1), 0), small(Separate(1), 1)
    query, key, value = ("query", "key.weight", "value.weight")
    parts = [f"encoder.layer.0.attention.{name}" for name in (query, key, value)]
    same(a, b, example(), names={"blocks.0.qkv.weight": parts})
    same(b, a, example(), names=dict.fromkeys(parts, "blocks.0.qkv.weight"))
    with pytest.raises(CorrespondenceError):
        translate(a, b, example(), names={"blocks.0.qkv.weight": parts[::-1]})


def test_a_name_that_is_not_there_is_an_error() -> None:
    a, b, x = swapped()
    with pytest.raises(ConfigError, match=r"target \(Named\) has no parameter or module 'layers.k'; did you mean"):
        translate(a, b, x, names={"layers.k": "layers.q"})


def test_an_impossible_match_shows_the_nearest_nodes() -> None:
    a, b = small(Fused(1), 0), small(Separate(2), 1)
    with pytest.raises(CorrespondenceError) as caught:
        translate(a, b, example())
    for word in ("Separate does not do the same as Fused", "target: 'head.weight' (5, 24)", "default in head",
                 "other: 'encoder.layer.1.before.gain' (24,), multiplied by aten.mul.Tensor", "names={"):  # fmt: skip
        assert word in str(caught.value), str(caught.value)
    with pytest.raises(CorrespondenceError, match="has other parameters than model 0"):
        graphfuse.fuse([a, b], example())


def test_another_number_of_outputs_is_an_error() -> None:
    a, b = (nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, n)) for n in (3, 4))
    with pytest.raises(CorrespondenceError, match="cannot be matched"):
        translate(a, b, example())


def test_another_function_is_found_out() -> None:
    a, b = (nn.Sequential(nn.Linear(7, 9), act, nn.Linear(9, 3)) for act in (nn.Tanh(), nn.Sigmoid()))
    with pytest.raises(CorrespondenceError, match="only the target uses: tanh"):
        translate(small(a, 0), small(b, 1), example())


def test_fuse_takes_models_of_other_names_and_of_other_arguments() -> None:
    a, b = small(Fused(), 0), small(Separate(), 1)
    result = graphfuse.fuse([a, b], data=[{"x": torch.randn(16, 6, 7)}])
    assert type(result.model) is Fused
    assert any("Separate was written in the names of Fused" in note for note in result.report["notes"])
    assert torch.isfinite(result.model(example())).all()


def test_a_model_and_its_translation_align_perfectly() -> None:
    """What was translated back is the model itself, so fusing changes nothing."""
    a = small(Fused(), 0)
    there = translate(small(Separate(), 1), a, example()).model
    result = graphfuse.fuse([a, there], example())
    assert_close(result.model(example()), a(example()), rtol=1e-4, atol=1e-5)
