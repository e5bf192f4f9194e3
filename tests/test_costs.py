"""Ground costs: each option against what plain tensors give, and each changes what is matched."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest
import torch
from helpers import assert_same, randomise
from models import MLP, Decoder, ResNet, ids, images
from torch import Tensor, nn
from torch.testing import assert_close

from graphfuse.aligning import align
from graphfuse.alignment import Alignment
from graphfuse.carry import Labelled, in_source, in_target
from graphfuse.config import CostConfig
from graphfuse.costs.ground import evened, gains
from graphfuse.costs.moments import Measure, gram
from graphfuse.costs.sites import sites
from graphfuse.costs.weights import left_out
from graphfuse.errors import ConfigError, DataError
from graphfuse.symmetry import SymmetryGraph, trace


def config(**given: Any) -> CostConfig:
    return CostConfig.model_validate(given)


def table(a: Tensor, b: Tensor, measure: Measure, **given: Any) -> Tensor:
    """Costs of two tensors of shape (samples, units), from their moments."""
    moments = gram(a, Labelled(b, (in_target(0), in_source(1))), 1, (), ())
    settings = config(**given)
    return -gains(evened(moments, settings.activations), measure, settings)


def plan_of(found: Alignment, name: str) -> Tensor:
    axis = next(axis for axis in found.axes if axis.name == name)
    return found.models[1].maps[axis.id].coupling()


A, B = (torch.randn(50, units, dtype=torch.float64) * torch.arange(1, units + 1) + 3 for units in (4, 6))


@pytest.mark.parametrize("kind", ["raw", "centred", "standardised", "normalised"])
def test_activations_are_what_they_say(kind: str) -> None:
    def treated(x: Tensor) -> Tensor:
        match kind:
            case "centred":
                x = x - x.mean(0)
            case "standardised":
                return (x - x.mean(0)) / x.std(0, correction=0) / 50**0.5
            case "normalised":
                return x / x.norm(dim=0)
        return x / (50 * (A.var(0, correction=0).mean() + B.var(0, correction=0).mean()) / 2).sqrt()

    expected = torch.cdist(treated(A).T, treated(B).T)
    assert_close(table(A, B, "euclidean", activations=kind), expected, rtol=1e-6, atol=1e-7)
    assert_close(table(A, B, "squared", activations=kind), expected.square(), rtol=1e-6, atol=1e-7)


def test_costs_are_clipped_at_a_quantile_and_then_scaled() -> None:
    plain = table(A, B, "euclidean")
    assert_close(table(A, B, "euclidean", normalize="max"), plain / plain.max())
    assert_close(table(A, B, "euclidean", normalize="mean"), plain / plain.mean())
    assert_close(table(A, B, "euclidean", normalize="median"), plain / plain.median())
    assert_close(table(A, B, "euclidean", normalize="log"), plain.log1p())
    limit = plain.flatten().sort().values[17]  # of 24
    assert_close(table(A, B, "euclidean", clip=0.75), plain.clamp(max=limit))
    assert_close(table(A, B, "euclidean", clip=0.75, normalize="max"), plain.clamp(max=limit) / limit)
    alike = -table(A, B, "correlation")
    assert_close(table(A, B, "correlation", normalize="max"), (1 - alike) / (1 - alike).max())


@pytest.mark.parametrize("normalize", ["max", "mean", "median", "log"])
def test_costs_that_are_all_nothing_can_be_scaled(normalize: str) -> None:
    same = torch.ones(9, 3)
    assert_close(table(same, same, "euclidean", normalize=normalize).double(), torch.zeros(3, 3).double())


@pytest.mark.parametrize(
    "given",
    [
        {"cost": {"activations": "raw"}, "metric": "squared"},
        {"cost": {"activations": "centred"}},
        {"cost": {"activations": "standardised"}},
        {"cost": {"activations": "normalised"}},
        {"cost": {"site": "post"}},
        {"cost": {"clip": 0.5}},
        {"cost": {"normalize": "max"}, "scale": "absolute"},
        {"cost": {"normalize": "log"}},
        {"cost": {"importance": "activations"}},
        {"cost": {"importance": "weights"}},
        {"scale": "absolute"},
        {"scale": "entropy", "regularization": 0.3},
        {"solver": "unbalanced"},
        {"solver": "unbalanced", "mass": 0.1},
        {"solver": "partial", "share": 0.5},
        {"filter": {"loss": {"below": 0.5}}},
        {},
    ],
)
def test_every_option_is_obeyed(given: dict[str, Any], seen: dict[str, Tensor] = {}) -> None:  # noqa: B006
    """No two of these give the same plan."""
    generator = torch.Generator().manual_seed(0)
    models, x = [randomise(MLP(), seed) for seed in (1, 2)], torch.randn(64, 5, generator=generator)
    plan = plan_of(align(models, data=[x], config={"method": "activations", "solver": "sinkhorn", **given}), "hidden.1")
    assert not any(torch.allclose(plan, other, rtol=0, atol=1e-5) for other in seen.values()), [*seen]
    assert plan.shape == (7, 7)
    assert float(plan.sum()) == pytest.approx(1, abs=1e-5)
    seen[str(given)] = plan


# ----------------------------------------------------------------------- sites


def ops(graph: SymmetryGraph, role: str, where: Any) -> list[str]:
    nodes = {node.name: str(node.target) for node in graph.captured.graph.nodes}
    (axis, *_) = [axis.id for axis in graph.axes if axis.role == role]
    return [nodes[name].split(".")[1] for name in sites(graph, where)[axis]]


def test_units_may_be_looked_at_after_the_nonlinearity() -> None:
    graph = trace(Decoder(depth=1).eval(), (ids(vocabulary=31),))
    assert ops(graph, "hidden", "pre") == ["linear"]
    assert ops(graph, "hidden", "post") == ["gelu"]
    assert ops(graph, "residual", "post") == ops(graph, "residual", "pre")
    assert ops(graph, "heads", "post") == ops(graph, "heads", "pre")
    graph = trace(ResNet().eval(), (images(),))
    assert ops(graph, "residual", "pre") == ["conv2d", "conv2d", "add", "conv2d", "add"]
    assert ops(graph, "residual", "post") == ["relu", "conv2d", "relu", "conv2d", "relu"]  # past norms and sums
    assert ops(graph, "channels", "post") == ["relu"]


# --------------------------------------------------------------------- weights


class Told(nn.Module):
    """Hidden units that differ in the bias of their layer and in the gain and bias of their norm only."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.norm, self.out = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        with torch.no_grad():
            self.inp.weight.copy_(torch.randn(1, 5).expand(8, 5))
            self.out.weight.copy_(torch.randn(3, 1).expand(3, 8))
            for vector in (self.inp.bias, self.norm.weight, self.norm.bias):
                vector.copy_(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.norm(self.inp(x))))


def moved(model: nn.Module, order: Tensor, names: tuple[str, ...]) -> nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name in names:
            other.get_parameter(name).copy_(model.get_parameter(name)[order])
    return other.eval()


def test_biases_and_gains_count_or_not() -> None:
    model, order, x = Told().eval(), torch.tensor([3, 1, 0, 2, 7, 6, 5, 4]), torch.zeros(2, 5)
    graph = trace(model, (x,))

    for given, names in (
        ({}, set()),
        ({"gains": False}, {"norm.weight"}),
        ({"bias": False}, {"inp.bias", "norm.bias", "out.bias"}),
    ):
        assert {name for name in left_out(graph, config(**given)) if "running" not in name} == names
    for tensors, given in (
        (("inp.bias", "norm.bias"), {"gains": False}),
        (("norm.weight",), {"bias": False}),
    ):
        other = moved(model, order, tensors)
        for cost, right in ((given, True), ({"bias": False, "gains": False}, False)):
            plan = plan_of(align([model, other], (x,), config={"method": "weights", "cost": cost}), "hidden.0")
            assert bool((plan.argmax(-1) == order.argsort()).all()) is right, cost


# ------------------------------------------------------------------ importance


def test_masses_are_the_norms_of_units() -> None:
    a, b = randomise(MLP((5, 11, 3)), 1), randomise(MLP((5, 8, 3)), 2)
    x = torch.randn(60, 5)
    with torch.no_grad():
        seen = [cast(Any, model)[0](x).square().mean(0).sqrt() for model in (a, b)]
        own = []
        for model in (a, b):
            first, last = (cast(Any, model)[i] for i in (0, 2))
            parts = [(first.weight, 0), (first.bias, 0), (last.weight, 1)]
            energy = [(w / w.std()).square() for w, _ in parts]
            own.append((energy[0].sum(1) + energy[1] + energy[2].sum(0)).sqrt())
    for importance, (left, right) in (("activations", seen), ("weights", own)):
        for solver in ("assignment", "sinkhorn"):
            given = {"solver": solver, "cost": {"importance": importance}}
            plan = plan_of(align([a, b], data=[x], config=given), "hidden.0")
            assert_close(plan.sum(1), left / left.sum(), rtol=1e-3, atol=1e-5)
            assert_close(plan.sum(0), right / right.sum(), rtol=1e-3, atol=1e-5)


def test_units_that_are_dead_have_a_little_mass_and_whole_partners() -> None:
    a, b = randomise(MLP((5, 11, 3)), 1), randomise(MLP((5, 11, 3)), 2)
    with torch.no_grad():
        cast(Any, a)[0].bias[4] = -1e3
    found = align([a, b], data=[torch.randn(60, 5)], config={"cost": {"site": "post", "importance": "activations"}})
    (axis,) = found.axes
    plan = found.models[1].maps[axis.id]
    assert 0 < float(plan.coupling()[4].sum()) < 1e-3
    assert_close(plan.rows().sum(-1), torch.ones(11))


@pytest.mark.parametrize("importance", ["activations", "weights"])
def test_nested_axes_with_masses_keep_a_planted_permutation(importance: str) -> None:
    from test_align import planted, scaled

    model, x = scaled(Decoder(depth=1)), ids(16, vocabulary=31)
    other = planted(model, x)
    found = align([model, other], data=[x], config={"symmetry": "permutation", "cost": {"importance": importance}})
    assert not any(entry.hard for entry in found.models[1].maps.values() if entry.context)
    assert_same(found.apply(other.state_dict(), 1), dict(model.state_dict()), 1e-4)


@pytest.mark.parametrize("given", [{"solver": "partial"}, {"solver": "unbalanced", "regularization": 0.002},
                                   {"solver": "sinkhorn", "scale": "entropy", "regularization": 0.003}])  # fmt: skip
def test_other_solvers_keep_a_planted_permutation(given: dict[str, Any]) -> None:
    from test_align import planted, scaled

    model, x = scaled(MLP()), torch.randn(64, 5)
    other = planted(model, x)
    share = {"share": 1.0} if given["solver"] == "partial" else {}
    found = align([model, other], data=[x], config={"symmetry": "permutation", **given, **share})
    for name, value in found.apply(other.state_dict(), 1).items():
        assert_close(value, model.state_dict()[name], rtol=0, atol=2e-2)


# --------------------------------------------------------------------- filters


class Tokens(nn.Module):
    """A class token and a square of patches; units of the layer read by a mean over all."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inp, self.out = nn.Parameter(torch.randn(1, 1, 5)), nn.Linear(5, 7), nn.Linear(7, 3)

    def joined(self, x: Tensor) -> Tensor:
        return torch.cat([self.first * x.mean(1, keepdim=True), x], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.inp(self.joined(x)))).mean(1)

    def units(self, x: Tensor) -> Tensor:
        """Shape (inputs, tokens, units)."""
        with torch.no_grad():
            return self.inp(self.joined(x))


def correlation(models: list[Any], rows: list[Tensor]) -> float:
    """Mean correlation of unit i with unit i over the given rows, (samples, units) each."""
    units = torch.cat(rows, 1).double()
    return float(torch.corrcoef(units.T)[:7, 7:].diagonal().mean())


def before(models: list[Any], data: list[Any], filter: dict[str, Any]) -> float:
    """The same as an alignment tells it."""
    found = align(models, data=data, config={"method": "activations", "filter": filter})
    (axis,) = (axis for axis in found.axes if axis.role == "hidden")
    value = found.models[1].agreement[axis.id].before
    assert value is not None
    return value


@pytest.mark.parametrize(
    ("tokens", "places"),
    [
        ("all", range(17)),
        ("first", [0]),
        ({"start": 2, "stop": 5}, [2, 3, 4]),
        ({"start": 12}, range(12, 17)),
        ({"centre": 2}, [6, 7, 10, 11]),
        ({"centre": 9}, range(1, 17)),
    ],
)
def test_tokens_that_count(tokens: Any, places: Any) -> None:
    models, x = [Tokens(), Tokens()], torch.randn(24, 16, 5)
    with torch.no_grad():
        for model in models:
            model.inp.bias.add_(torch.randn(7))
    x[:, 3:9] += 2
    rows = [model.units(x)[:, list(places)].flatten(0, 1) for model in models]
    assert before(models, [x[:10], x[10:]], {"tokens": tokens}) == pytest.approx(correlation(models, rows), abs=1e-5)


class Masked(nn.Module):
    """Its layer is read on inputs and tokens, or on both merged into one dim, where labels do not tell them apart."""

    def __init__(self, merged: bool = False) -> None:
        super().__init__()
        self.inp, self.out, self.merged = nn.Linear(5, 7), nn.Linear(7, 3), merged

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        y = torch.relu(self.inp(x.reshape(-1, 5) if self.merged else x)).view(*x.shape[:2], 7)
        return (self.out(y.transpose(0, 1)) * mask.unsqueeze(-1)).sum(1)


def test_tokens_that_a_mask_leaves_out_do_not_count() -> None:
    models = [Masked(), Masked()]
    x, mask = torch.randn(24, 9, 5), torch.rand(24, 9) < 0.6
    x[~mask] *= 5
    for name, kept in (("mask", mask), ("~mask", ~mask)):
        with torch.no_grad():
            rows = [model.inp(x)[kept] for model in models]
        found = before(models, [(x[:11], mask[:11]), (x[11:], mask[11:])], {"mask": name})
        assert found == pytest.approx(correlation(models, rows), abs=1e-5)
    with torch.no_grad():
        units = [model.inp(x[:, :1])[mask[:, 0], 0] for model in models]
    first = before(models, [(x, mask)], {"mask": "mask", "tokens": "first"})
    assert first == pytest.approx(correlation(models, units), abs=1e-5)


def test_values_that_a_filter_does_not_reach_are_told_of() -> None:
    data, words = [(torch.randn(8, 9, 5), torch.ones(8, 9))], "the filter leaves 1 of 1 nodes as they are"
    assert any(words in x for x in align([Masked(True), Masked(True)], data=data, config={"filter": MASK}).notes)
    assert not any("filter" in x for x in align([Masked(), Masked()], data=data, config={"filter": MASK}).notes)


MASK = {"mask": "mask"}


def test_only_inputs_that_the_models_are_sure_of_count() -> None:
    models, x = [randomise(MLP((5, 7, 3)), seed) for seed in (1, 2)], torch.randn(40, 5)
    with torch.no_grad():
        chances = [model(x).double().softmax(-1) for model in models]
        entropy = sum(-(p * p.log()).sum(-1) for p in chances)
        largest = sum(model(x).amax(-1) for model in models)
        for filter, order in (({"below": 0.3}, entropy), ({"below": 0.3, "score": lambda y: y.amax(-1)}, largest)):
            chosen = cast(Tensor, order).argsort()[:12]
            rows = [cast(Any, model)[0](x[chosen]) for model in models]
            found = before(models, [x[:15], x[15:]], {"loss": filter})
            assert found == pytest.approx(correlation(models, rows), abs=1e-5)


def test_filters_that_cannot_be_used_say_why() -> None:
    models, x = [Tokens(), Tokens()], torch.randn(4, 15, 5)
    plain, y = [MLP(), MLP()], torch.randn(8, 5)
    for given, words in (
        ({"filter": {"tokens": {"centre": 2}}}, "centre needs a square of patches, but this model has 15 tokens"),
        ({"filter": {"mask": "z"}}, "mask: the model has no input 'z'; valid: x"),
    ):
        with pytest.raises(ConfigError, match=words):
            align(models, data=[x], config=given)
    with pytest.raises(ConfigError, match="tokens: first needs activations that have tokens"):
        align(plain, data=[y], config={"filter": {"tokens": "first"}})
    with pytest.raises(DataError, match="the score of 8 inputs has shape"):
        align(plain, data=[y], config={"filter": {"loss": {"below": 0.5, "score": lambda out: out}}})
    with pytest.raises(DataError, match=r"needs outputs of shape \(inputs, classes\), got \(4, 16, 3\)"):
        align([Joint(), Joint()], data=[x], config={"filter": {"loss": {"below": 0.5}}})


class Joint(Tokens):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.inp(self.joined(x))))


@pytest.mark.parametrize(
    "given",
    [
        {"filter": {"tokens": "first"}},
        {"cost": {"site": "post"}},
        {"cost": {"activations": "centred"}},
        {"cost": {"importance": "activations"}},
    ],
)
def test_what_is_said_of_activations_is_refused_where_none_are_looked_at(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="speaks of activations, but models are matched by their weights"):
        align([MLP(), MLP()], torch.randn(2, 5), config=given)
