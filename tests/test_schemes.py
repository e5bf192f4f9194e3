"""Several models at once: consistent around cycles, no worse than each onto the target, and none privileged."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import assert_same
from models import MLP, Decoder, ids
from test_align import ZOO, planted, scaled
from torch import Tensor, nn
from torch.testing import assert_close

from graphfuse.aligned import Aligned, Alignment
from graphfuse.aligning import align
from graphfuse.alignment import Prepared, match, prepare
from graphfuse.capture import state_of
from graphfuse.config import FuseConfig
from graphfuse.errors import ConfigError, DataError
from graphfuse.fuse import fuse


def noised(model: nn.Module, level: float, seed: int) -> nn.Module:
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            deviation = parameter.std() if parameter.numel() > 1 else 0.0
            parameter.add_(level * deviation * torch.randn(parameter.shape, generator=generator))
    return other


def copies(model: nn.Module, x: Tensor, level: float) -> list[nn.Module]:
    """Three copies, each with noise of its own and, but for the first, a random permutation of its own."""
    made = [noised(model, level, seed) for seed in range(3)]
    return [made[0], planted(made[1], x, 1), planted(made[2], x, 2)]


def onto(found: Alignment, a: int, b: int) -> Alignment:
    """Model b brought into the order of model a."""
    sizes = found.models[a].sizes
    return Alignment(
        0, "", found.axes, found.labels, found.aliases, (Aligned(sizes), Aligned(sizes, found.between(a, b)))
    )


def likeness_of_pairs(found: Alignment, models: list[nn.Module]) -> float:
    """Sum over pairs of the inner products of standardised aligned weights."""
    total = 0.0
    states = [found.apply(state_of(model), k) for k, model in enumerate(models)]
    for one, two in itertools.combinations(states, 2):
        for name, value in one.items():
            if value.numel() > 1 and float(value.detach().std()) > 0:
                pair = [x.detach().double() for x in (value, two[name])]
                total += float(
                    ((pair[0] - pair[0].mean()) / pair[0].std() * (pair[1] - pair[1].mean()) / pair[1].std()).sum()
                )
    return total


@pytest.mark.parametrize("scheme", ["barycenter", "cycle"])
@pytest.mark.parametrize("name", ["mlp", "grouped"])
def test_noised_copies_are_recovered(name: str, scheme: str) -> None:
    build, inputs = ZOO[name]
    model, x = scaled(build()), inputs()
    models = copies(model, x, 0.02)
    cases: list[dict[str, Any]] = [{}, {"data": [x]}]
    for given in cases:
        found = align(models, (x,), config={"scheme": scheme, "symmetry": "permutation"}, **given)
        for k in range(3):
            state = found.apply(state_of(models[k]), k)
            wanted = state_of(noised(model, 0.02, k))
            assert_same(state, dict(wanted), 0)
        assert not found.models[0].maps


@pytest.mark.parametrize("name", ["mlp", "grouped"])
def test_maps_agree_around_a_cycle(name: str) -> None:
    build, inputs = ZOO[name]
    models, x = [scaled(build(), seed) for seed in range(3)], inputs()
    for scheme in ("cycle", "anchor"):
        found = align(models, (x,), config={"scheme": scheme, "target": 1, "symmetry": "permutation"})
        state = dict(state_of(models[2]))
        direct = onto(found, 0, 2).apply(state, 1)
        through = onto(found, 0, 1).apply(onto(found, 1, 2).apply(state, 1), 1)
        assert_same(through, direct, 0)
        assert_same(onto(found, 2, 0).apply(direct, 1), state, 0)
        assert_same(onto(found, 1, 2).apply(state, 1), found.apply(state, 2), 0)
        assert any(not torch.equal(value, state[key]) for key, value in direct.items())


@pytest.mark.parametrize("name", ["mlp", "grouped"])
def test_the_likeness_of_all_pairs_is_more_than_by_the_anchor(name: str) -> None:
    build, inputs = ZOO[name]
    models, x = [scaled(build(), seed) for seed in range(3)], inputs()
    value = {
        scheme: likeness_of_pairs(align(models, (x,), config={"scheme": scheme, "symmetry": "permutation"}), models)
        for scheme in ("anchor", "barycenter", "cycle")
    }
    assert value["barycenter"] > value["anchor"]
    assert value["cycle"] > value["anchor"]


def test_the_mean_of_many_tells_noisy_copies_apart_where_a_single_one_cannot() -> None:
    model, x = scaled(MLP((5, 40, 30, 3))), torch.randn(64, 5)
    models = [planted(noised(model, 2.0, seed), x, seed) for seed in range(6)]
    prepared, truth = (
        prepare(models, (x,)),
        torch.stack([state_of(noised(model, 2.0, k))["2.weight"] for k in range(6)]),
    )
    short = {}
    for scheme in ("anchor", "barycenter", "cycle"):
        found = match(replace(prepared, config=FuseConfig.parse({"scheme": scheme})))
        mean = torch.stack([found.apply(state_of(m), k)["2.weight"] for k, m in enumerate(models)]).mean(0)
        short[scheme] = 1 - float(mean.norm() / truth.mean(0).norm())  # what is matched wrongly averages out
    assert short["anchor"] > 0.02
    assert short["barycenter"] < 0.01
    assert short["cycle"] < 0.01


def test_a_model_without_a_share_says_nothing() -> None:
    models, x = [scaled(MLP(), seed) for seed in range(3)], torch.randn(32, 5)
    cases: list[dict[str, Any]] = [{}, {"data": [x]}]
    for scheme in ("barycenter", "cycle"):
        for given in cases:
            two = align(models[:2], (x,), config={"scheme": scheme}, **given)
            three = align(models, (x,), config={"scheme": scheme, "weights": [1, 1, 0]}, **given)
            assert_same(three.apply(state_of(models[1]), 1), two.apply(state_of(models[1]), 1), 0)


def test_models_of_other_widths_have_a_barycenter_but_no_cycle() -> None:
    models, x = [scaled(MLP((5, n, 7, 3)), n) for n in (11, 9, 16)], torch.randn(64, 5)
    for method in ("weights", "activations"):
        result = fuse(models, data=[x], config={"scheme": "barycenter", "method": method})
        assert {k: v.shape for k, v in state_of(result.model).items()} == {
            k: v.shape for k, v in state_of(models[0]).items()
        }
        assert result.alignment.models[0].maps
        assert "model 0:" in str(result.alignment)
    with pytest.raises(
        ConfigError, match=r"cycle needs models of one width, but hidden\.0 has size 11 in model 0 and 9 in"
    ):
        align(models, (x,), config={"scheme": "cycle"})
    with pytest.raises(DataError, match="models 0 and 1 cannot be related to each other: the map of axis"):
        align(models, (x,)).between(0, 1)


def test_a_decoder_fused_by_every_scheme_keeps_its_function() -> None:
    model, x = scaled(Decoder(depth=1)), ids(16, vocabulary=31)
    models = [model, planted(model, x, 1), planted(model, x, 2)]
    for scheme in ("barycenter", "cycle"):
        config: dict[str, Any] = {"scheme": scheme, "target": 2}
        result = fuse(models, data=[x], config={**config, "method": "blend"})
        with torch.no_grad():
            assert_close(result.model(x), model(x), rtol=0, atol=1e-3)


def test_rounds_and_solvers_are_checked() -> None:
    models, x = [scaled(MLP(), seed) for seed in range(3)], torch.randn(8, 5)
    with pytest.raises(ConfigError, match="scheme cycle needs one-to-one maps; use solver assignment"):
        align(models, (x,), config={"scheme": "cycle", "solver": "sinkhorn"})
    with pytest.raises(ConfigError, match=r"use cost\.importance uniform, or scheme barycenter"):
        align(models, (x,), config={"scheme": "cycle", "cost": {"importance": "weights"}})
    with pytest.raises(ConfigError, match="scheme barycenter matches whole axes; use driver coordinate"):
        align(models, (x,), config={"scheme": "barycenter", "driver": "flow"})


@pytest.mark.parametrize("scheme", ["barycenter", "cycle"])
def test_more_rounds_bring_all_pairs_nearer(scheme: str) -> None:
    models, x = [scaled(MLP((5, 24, 24, 24, 24, 3)), seed) for seed in range(5)], torch.randn(8, 5)
    prepared, likeness = prepare(models, (x,)), list[float]()
    for rounds in (1, 2, 5):
        found = match(replace(prepared, config=FuseConfig.parse({"scheme": scheme, "rounds": rounds})))
        likeness.append(likeness_of_pairs(found, models))
    assert likeness[0] < likeness[1] < likeness[2]


def test_a_cycle_never_rotates() -> None:
    model, x = scaled(Decoder(depth=1)), ids(16, vocabulary=31)
    models = [model, planted(model, x, 1), planted(model, x, 2)]
    found = align(models, (x,), config={"scheme": "cycle"})
    assert not found.folds
    assert all(entry.index is not None for part in found.models for entry in part.maps.values())


# ------------------------------------------------------------- costs and filters


class Tokenwise(nn.Module):
    """Works on each token by itself, and takes a padding mask that changes nothing where it is one."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = MLP((5, 24, 20, 3))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.net(x * mask.unsqueeze(-1))


SCHEMES = ("anchor", "barycenter", "cycle")


def couplings(found: Alignment) -> dict[tuple[int, int], Tensor]:
    return {(k, id): entry.coupling() for k, part in enumerate(found.models) for id, entry in part.maps.items()}


def same(one: Alignment, two: Alignment) -> bool:
    first, second = couplings(one), couplings(two)
    return first.keys() == second.keys() and all(
        torch.allclose(value, second[key], rtol=0, atol=1e-6) for key, value in first.items()
    )


def by_scheme(models: Sequence[nn.Module], data: Any, scheme: str, **more: Any) -> Alignment:
    """Couplings by every scheme that allows them, so that the least change shows."""
    return rematched(prepare(models, data=[data], config={"symmetry": "permutation"}), scheme, **more)


def rematched(prepared: Prepared, scheme: str, **more: Any) -> Alignment:
    solver = {} if scheme == "cycle" else {"solver": "sinkhorn"}
    config = FuseConfig.parse({"scheme": scheme, "rounds": 2, **solver, **more, "symmetry": "permutation"})
    method = "activations" if config.method == "default" else config.method
    assert method != "auto"
    return match(replace(prepared, config=config, method=method))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_filters_of_tokens_reach_every_scheme(scheme: str) -> None:
    """A model that works token by token is matched as on the tokens that are kept alone."""
    models, x = [Tokenwise(seed) for seed in range(3)], torch.randn(32, 6, 5)
    mask, ones = torch.tensor([1.0, 1, 0, 1, 0, 0]).expand(32, 6), torch.ones(32, 6)
    everything = by_scheme(models, (x, ones), scheme)
    cases = {"first": ({"tokens": "first"}, x[:, :1]), "range": ({"tokens": {"start": 1, "stop": 4}}, x[:, 1:4])}
    for setting, kept in cases.values():
        found = by_scheme(models, (x, ones), scheme, filter=setting)
        assert same(found, by_scheme(models, (kept, ones[:, : kept.shape[1]]), scheme))
        assert not same(found, everything)
    masked = by_scheme(models, (x, mask), scheme, filter={"mask": "mask"})
    assert same(masked, by_scheme(models, (x[:, [0, 1, 3]], ones[:, :3]), scheme))
    assert not same(masked, by_scheme(models, (x, mask), scheme))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_only_sure_inputs_reach_every_scheme(scheme: str) -> None:
    models, x = [scaled(MLP((5, 24, 20, 3)), seed) for seed in range(2)], torch.randn(64, 5)
    with torch.no_grad():
        entropy = torch.stack([torch.special.entr(model(x).softmax(-1)).sum(-1) for model in models]).mean(0)
    found = by_scheme(models, x, scheme, filter={"loss": {"below": 0.5}})
    assert same(found, by_scheme(models, x[entropy <= entropy.kthvalue(32).values], scheme))
    assert not same(found, by_scheme(models, x, scheme))


COSTS: dict[str, dict[str, Any]] = {
    "activations": {"cost": {"activations": "standardised"}},
    "site": {"cost": {"site": "post"}},
    "clip": {"cost": {"clip": 0.2}},
    "normalize": {"metric": "squared", "cost": {"normalize": "log"}},
    "metric": {"metric": "cosine"},
    "method": {"method": "blend"},
    "blend": {"method": "blend", "blend": 0.1},
    "bias": {"method": "weights", "cost": {"bias": False}},
    "gains": {"method": "weights", "cost": {"gains": False}},
}
BESIDE: dict[str, dict[str, Any]] = {
    "normalize": {"metric": "squared"},
    "blend": {"method": "blend"},
    "bias": {"method": "weights"},
    "gains": {"method": "weights"},
}
"""What else is set, so that one option alone differs."""


class Normed(nn.Sequential):
    """With biases that matter, and gains that only the weights tell of."""

    def __init__(self, seed: int, widths: tuple[int, ...] = (3, 24, 6, 3)) -> None:
        torch.manual_seed(seed)
        n, m, k, out = widths
        super().__init__(nn.Linear(n, m), nn.LayerNorm(m), nn.ReLU(), nn.Linear(m, k), nn.Tanh(), nn.Linear(k, out))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape) / parameter.shape[-1] ** 0.5)


@functools.cache
def three() -> Prepared:
    models = [Normed(seed) for seed in range(3)]
    return prepare(models, data=[torch.randn(64, 3)], config={"symmetry": "permutation"})


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_costs_reach_every_scheme(scheme: str, name: str) -> None:
    plain, other = (rematched(three(), scheme, **more) for more in (BESIDE.get(name, {}), COSTS[name]))
    assert not same(plain, other)


@pytest.mark.parametrize("scheme", ["anchor", "barycenter"])
@pytest.mark.parametrize("importance", ["activations", "weights"])
def test_masses_reach_every_scheme_of_couplings(scheme: str, importance: str) -> None:
    models, x = [scaled(MLP(), seed) for seed in range(3)], torch.randn(64, 5)
    plain, other = (
        align(models, data=[x], config={"scheme": scheme, "solver": "emd", **more})
        for more in ({}, {"cost": {"importance": importance}})
    )
    assert plain.models[1].maps
    for part, changed in zip(plain.models, other.models, strict=True):
        for id, entry in part.maps.items():
            mass = changed.maps[id].coupling().sum(-1)
            assert_close(entry.coupling().sum(-1), torch.full_like(mass, 1 / len(mass)))
            assert float((mass - 1 / len(mass)).abs().max()) > 1e-3


# ------------------------------------------------------------------ other widths


def resized(model: nn.Module, into: nn.Module, data: Any, **config: Any) -> Alignment:
    found = fuse([model], data=[data], into=into, config=config).resized
    assert found is not None
    return found


@pytest.mark.parametrize("name", COSTS)
def test_costs_reach_another_width(name: str) -> None:
    model, into, x = Normed(1), Normed(2, (3, 13, 4, 3)), torch.randn(64, 3)
    plain, other = (resized(model, into, x, **more) for more in (BESIDE.get(name, {}), COSTS[name]))
    assert not same(plain, other)


def test_filters_reach_another_width() -> None:
    model, into, x = Tokenwise(1), Tokenwise(2), torch.randn(32, 6, 5)
    into.net = MLP((5, 13, 9, 3))
    ones = torch.ones(32, 6)
    found = resized(model, into, (x, ones), filter={"tokens": "first"})
    assert same(found, resized(model, into, (x[:, :1], ones[:, :1])))
    assert not same(found, resized(model, into, (x, ones)))


@pytest.mark.parametrize("importance", ["activations", "weights"])
def test_merged_units_count_by_their_mass(importance: str) -> None:
    model, into, x = scaled(MLP()), MLP((5, 6, 4, 3)), torch.randn(64, 5)
    plain, other = (resized(model, into, x, **more) for more in ({}, {"cost": {"importance": importance}}))
    for id, entry in plain.models[1].maps.items():
        mass = other.models[1].maps[id].coupling().sum(-2)
        assert_close(entry.coupling().sum(-2), torch.full_like(mass, 1 / len(mass)))
        assert float((mass - 1 / len(mass)).abs().max()) > 1e-3
        assert_close(mass.sum(), torch.tensor(1.0))
