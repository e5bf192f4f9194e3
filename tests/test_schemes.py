"""Several models at once: consistent around cycles, no worse than each onto the target, and none privileged."""

from __future__ import annotations

import copy
import itertools
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
from graphfuse.alignment import align, match, prepare
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
    short = align(models, (x,), config={"scheme": "cycle", "rounds": 1, "sweeps": 1})
    long = align(models, (x,), config={"scheme": "cycle"})
    assert likeness_of_pairs(long, models) >= likeness_of_pairs(short, models)


def test_a_cycle_never_rotates() -> None:
    model, x = scaled(Decoder(depth=1)), ids(16, vocabulary=31)
    models = [model, planted(model, x, 1), planted(model, x, 2)]
    found = align(models, (x,), config={"scheme": "cycle"})
    assert not found.folds
    assert all(entry.index is not None for part in found.models for entry in part.maps.values())


def test_masses_filters_and_costs_reach_every_scheme() -> None:
    models, x = [scaled(MLP(), seed) for seed in range(3)], torch.randn(64, 5)
    plain, other = (
        align(models, data=[x], config={"scheme": "barycenter", "solver": "emd", **more})
        for more in ({}, {"cost": {"importance": "activations", "activations": "centred"}})
    )
    for part, changed in zip(plain.models, other.models, strict=True):
        for id, entry in part.maps.items():
            mass = changed.maps[id].coupling().sum(-1)
            assert_close(entry.coupling().sum(-1), torch.full_like(mass, 1 / len(mass)))
            assert float((mass - 1 / len(mass)).abs().max()) > 1e-3
