"""Alignments: planted permutations come back, functions are kept, files round-trip, and errors say what is wrong."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_same, randomise
from models import MLP, Decoder, DenseExperts, Encoder, GroupedDecoder, Recurrent, ResNet, TopExperts, UNet, ids, images
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.testing import assert_close

from graphfuse.aligning import align, matched
from graphfuse.alignment import Alignment, match, prepare
from graphfuse.average import average
from graphfuse.calibrate.judge import judge_of
from graphfuse.capture import state_of
from graphfuse.config import FuseConfig
from graphfuse.errors import (
    CheckpointError,
    ConfigError,
    CorrespondenceError,
    DataError,
    GraphFuseError,
    OutputError,
)
from graphfuse.fuse import fuse
from graphfuse.maps import AxisMap
from graphfuse.permutations import permuted, sample
from graphfuse.symmetry import trace


class Mixer(nn.Module):
    """Mixes positions and channels in turn: one activation has two axes that move and depend on nothing."""

    def __init__(self, channels: int = 10, places: int = 6) -> None:
        super().__init__()
        self.embed, self.norm1, self.norm2 = nn.Linear(5, channels), nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.over, self.back = nn.Linear(places, 9), nn.Linear(9, places)
        self.up, self.down, self.head = nn.Linear(channels, 14), nn.Linear(14, channels), nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.back(torch.relu(self.over(self.norm1(x).transpose(1, 2)))).transpose(1, 2)
        x = x + self.down(torch.relu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


ZOO: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "mlp": (MLP, lambda: torch.randn(32, 5)),
    "resnet": (lambda: ResNet((6, 7)), lambda: images(16)),
    "decoder": (lambda: Decoder(depth=1), lambda: ids(16, vocabulary=31)),
    "encoder": (lambda: Encoder(depth=1), lambda: ids(16, vocabulary=31)),
    "grouped": (lambda: GroupedDecoder(depth=1), lambda: ids(16, vocabulary=31)),
    "experts": (DenseExperts, lambda: torch.randn(32, 5)),
    "chosen experts": (TopExperts, lambda: torch.randn(32, 5)),
    "lstm": (Recurrent, lambda: ids(16)),
    "unet": (UNet, lambda: images(8)),
    "mixer": (Mixer, lambda: torch.randn(16, 6, 5)),
}


def scaled(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights of a size that keeps activations moderate."""
    randomise(model, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(parameter[0].numel() ** -0.5)
    return model


def planted(model: nn.Module, x: Tensor, seed: int = 1) -> nn.Module:
    """A copy of the model with every free axis permuted at random, nested ones differently in each context."""
    graph = trace(model, (x,))
    maps = sample(graph, torch.Generator().manual_seed(seed))
    other = copy.deepcopy(model)
    other.load_state_dict(permuted(graph, state_of(model), maps), strict=False)
    return other


@pytest.mark.parametrize("name", ZOO)
def test_a_planted_permutation_is_recovered(name: str) -> None:
    build, inputs = ZOO[name]
    model, x = scaled(build()), inputs()
    other = planted(model, x)
    expected = state_of(model)
    assert any(not torch.equal(value, expected[key]) for key, value in state_of(other).items())
    prepared = prepare([model, other], data=[x], config={"symmetry": "permutation"})
    for method in ("weights", "activations"):
        found = match(replace(prepared, method=method))
        assert_same(found.apply(state_of(other), 1), dict(expected), 0)
        for axis in found.axes:
            assert found.models[1].agreement[axis.id].value == pytest.approx(1, abs=1e-3), (method, axis.name)


@pytest.mark.parametrize(
    ("build", "inputs"),
    [(ResNet, lambda: images(16)), (lambda: GroupedDecoder(depth=3), lambda: ids(16, vocabulary=31))],
    ids=["eight blocks with batch norm", "three pre-norm blocks with grouped heads"],
)
def test_planted_permutations_of_deep_residual_networks_come_back(
    build: Callable[[], nn.Module], inputs: Callable[[], Tensor]
) -> None:
    """Exactly, by weights and by activations, nested ones too (where git-re-basin's issue 8 says that it fails)."""
    model, x = scaled(build()), inputs()
    graph = trace(model, (x,))
    maps = sample(graph, torch.Generator().manual_seed(3))
    other = copy.deepcopy(model)
    other.load_state_dict(permuted(graph, state_of(model), maps), strict=False)
    assert all(
        not torch.equal(value, state_of(model)[key]) for key, value in state_of(other).items() if value.dim() > 1
    )
    prepared = prepare([model, other], data=[x], config={"symmetry": "permutation"})
    for method in ("weights", "activations"):
        found = match(replace(prepared, method=method))
        assert_same(found.apply(state_of(other), 1), dict(state_of(model)), 0)
        assert len(found.axes) == len(graph.axes)
        assert all(entry.value == pytest.approx(1, abs=1e-3) for entry in found.models[1].agreement.values())


def test_blending_and_other_solvers_recover_it_too() -> None:
    model, x = scaled(DenseExperts()), torch.randn(64, 5)
    other = planted(model, x)
    prepared = prepare([model, other], data=[x])
    for config in ({"method": "blend"}, {"solver": "emd"}, {"solver": "sinkhorn", "regularization": 0.002}):
        settings = FuseConfig.parse({**config, "symmetry": "permutation"})
        method = "blend" if settings.method == "blend" else "activations"
        state = match(replace(prepared, config=settings, method=method)).apply(state_of(other), 1)
        for name, value in state_of(model).items():
            assert_close(state[name], value, rtol=0, atol=2e-2)


def test_each_of_three_models_is_aligned_onto_the_target() -> None:
    model, x = scaled(MLP()), torch.randn(32, 5)
    models = [planted(model, x, 1), planted(model, x, 2), model]
    found = align(models, (x,), config={"target": 2})
    for k in range(2):
        assert_same(found.apply(models[k].state_dict(), k), dict(model.state_dict()), 0)
    assert_same(found.apply(model.state_dict(), 2), dict(model.state_dict()), 0)


# -------------------------------------------------------------- different widths


def widened(model: nn.Module) -> nn.Module:
    """Net2Net: every hidden unit twice, its outgoing weight halved; the same function."""
    state = model.state_dict()
    for name in ("2.weight", "4.weight"):
        state[name] = state[name].repeat(1, 2) / 2
    for name in ("0.weight", "0.bias", "2.weight", "2.bias"):
        state[name] = state[name].repeat(2, *([1] * (state[name].dim() - 1)))
    wide = MLP((5, 22, 14, 3))
    wide.load_state_dict(state)
    return wide.eval()


@pytest.mark.parametrize("method", ["weights", "activations"])
def test_a_model_and_its_widened_self_have_one_function_in_either_width(method: str) -> None:
    narrow, x = scaled(MLP()), torch.randn(64, 5)
    wide = planted(widened(narrow), x)
    for models in ([narrow, wide], [wide, narrow]):
        found = align(models, data=[x], config={"method": method})
        state = found.apply(models[1].state_dict(), 1)
        assert {key: value.shape for key, value in state.items()} == {
            key: value.shape for key, value in models[0].state_dict().items()
        }
        result = torch.func.functional_call(models[0], state, (x,))
        assert_close(result, narrow(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["weights", "activations", "blend"])
def test_models_of_other_widths_and_heads_are_mapped_to_the_targets_shapes(method: str) -> None:
    models = [scaled(Decoder(24, 4, 1, 40), 1), scaled(Decoder(18, 3, 1, 30), 2)]
    found = align(models, data=[ids(8, vocabulary=31)], config={"method": method})
    state = found.apply(models[1].state_dict(), 1)
    models[0].load_state_dict(state)
    assert all(entry.before is None for entry in found.models[1].agreement.values())


# ---------------------------------------------------------------------- config


def test_the_same_seed_gives_the_same_maps() -> None:
    models = [scaled(UNet(), seed) for seed in (1, 2)]
    for config in ({"method": "weights", "seed": 3}, {"method": "activations"}):
        prepared = prepare(models, data=[images(8)], config=config)
        first, second = (match(prepared) for _ in range(2))
        for id, found in first.models[1].maps.items():
            assert torch.equal(found.values, second.models[1].maps[id].values)


def test_roles_that_are_not_aligned_keep_their_order() -> None:
    model, x = scaled(Decoder(depth=1)), ids(16, vocabulary=31)
    other = planted(model, x)
    found = align([model, other], data=[x], config={"roles": {"hidden": {"align": False}, "heads.0": {"align": False}}})
    by_name = {axis.name: found.models[1].maps[axis.id] for axis in found.axes}
    for name in ("hidden.0", "heads.0"):
        values = by_name[name].values
        assert torch.equal(values, torch.arange(len(values)))
    units = by_name["head_dim_vo.0"]
    assert (units.context, units.lead) == ((), (4,))
    assert not torch.equal(by_name["residual.0"].values, torch.arange(24))


def test_metrics_and_solvers_are_obeyed() -> None:
    models, x = [scaled(MLP(), seed) for seed in (1, 2)], torch.randn(64, 5)
    maps, prepared = {}, prepare(models, data=[x])
    for metric in ("correlation", "cosine", "euclidean", "squared"):
        found = match(replace(prepared, config=FuseConfig.parse({"solver": "sinkhorn", "metric": metric})))
        maps[metric] = found.models[1].maps[found.axes[0].id].coupling()
    for metric, plan in maps.items():
        assert all(not torch.equal(plan, other) for name, other in maps.items() if name != metric)
    soft = match(replace(prepared, config=FuseConfig.parse({"roles": {"hidden.1": {"solver": "sinkhorn"}}})))
    assert [soft.models[1].maps[axis.id].hard for axis in soft.axes] == [True, False]


def test_progress_is_told() -> None:
    seen: list[tuple[str, int, int]] = []
    x = torch.randn(8, 5)
    align([MLP(), MLP()], data=[x, x], progress=lambda *step: seen.append(step))
    assert seen == [
        ("trace", 1, 2), ("trace", 2, 2), ("activations", 1, 2), ("activations", 2, 2),
        ("choose", 1, 3), ("choose", 2, 3), ("choose", 3, 3), ("match", 2, 2),
    ]  # fmt: skip


def tuned(model: nn.Module, x: Tensor, steps: int = 3) -> nn.Module:
    """A copy of the model after a few steps of training on random targets."""
    near = copy.deepcopy(model)
    optimizer = torch.optim.SGD(near.parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        out = near(x)
        (out - torch.randn_like(out)).square().mean().backward()
        optimizer.step()
    return near


@pytest.mark.parametrize("name", ["resnet", "grouped"])
def test_an_alignment_about_the_identity_is_said_to_be(name: str) -> None:
    build, inputs = ZOO[name]
    model, x = scaled(build()), inputs()
    near = tuned(model, x)
    assert not torch.equal(near(x), model(x))
    for method in ("weights", "activations"):
        found = align([model, near], data=[x], config={"method": method})
        share = found.models[1].in_place
        assert share is not None and share > 0.98
        assert f"about the identity: {share:.1%} of the units stay in place" in "\n".join(found.notes)
        assert found.to_json()["models"][1]["in_place"] == share
    for other in (planted(model, x), scaled(build(), 5)):  # the same in other places, and another model
        found = align([model, other], data=[x])
        share = found.models[1].in_place
        assert share is not None and share < 0.5 and not any("identity" in note for note in found.notes)


# ----------------------------------------------------------------------- files


def test_a_saved_alignment_is_the_same_when_loaded(tmp_path: Path) -> None:
    model, x = scaled(Decoder(depth=1)), ids(16, vocabulary=31)
    other = planted(model, x)
    prepared = prepare([model, other], data=[x])
    for config in ({}, {"solver": "sinkhorn"}):
        found = match(replace(prepared, config=FuseConfig.parse(config)))
        found.save(tmp_path / "a.safetensors")
        loaded = Alignment.load(tmp_path / "a.safetensors")
        assert loaded.to_json() == found.to_json()
        assert str(loaded) == str(found)
        assert loaded.axes == found.axes
        assert loaded.labels == found.labels
        assert_same(loaded.apply(state_of(other), 1), found.apply(state_of(other), 1), 0)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(2)}, tmp_path / "w.safetensors")
    (tmp_path / "p.bin").write_bytes(pickle.dumps({"w": 1}))
    with pytest.raises(CheckpointError, match=r"w\.safetensors: is not a graphfuse alignment"):
        Alignment.load(tmp_path / "w.safetensors")
    for name in ("p.bin", "missing.safetensors"):
        with pytest.raises(CheckpointError, match=f"{name}: cannot be read"):
            Alignment.load(tmp_path / name)


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    found = align([MLP(), MLP()], torch.randn(2, 5))
    with pytest.raises(OutputError, match="cannot write"):
        found.save(tmp_path / "missing" / "a.safetensors")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        found.save(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(7, 10), nn.Linear(10, 7, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.tokens(ids))


def test_tied_names_may_be_in_the_checkpoint_or_not() -> None:
    model, x = scaled(Tied()), ids(vocabulary=7)
    other = planted(model, x)
    found = align([model, other], (x,), config={"metric": "correlation", "symmetry": "permutation"})
    assert_same(found.apply(other.state_dict(), 1), dict(model.state_dict()), 0)
    assert list(found.apply(state_of(other), 1)) == ["tokens.weight"]


def test_a_checkpoint_that_does_not_fit_is_refused() -> None:
    found = align([MLP(), MLP()], torch.randn(2, 5))
    state = MLP().state_dict()
    with pytest.raises(DataError, match="there is no model 2"):
        found.apply(state, 2)
    with pytest.raises(CheckpointError, match=r"lacks 1 of 6 tensors, the first is '0\.bias'"):
        found.apply({key: value for key, value in state.items() if key != "0.bias"}, 1)
    with pytest.raises(
        CheckpointError, match=r"'0\.weight' has another shape .*\n  got: \(12, 5\)\n  expected: \(11, 5\)"
    ):
        found.apply({**state, "0.weight": torch.zeros(12, 5)}, 1)


# ---------------------------------------------------------------------- errors


def poisoned() -> MLP:
    model = MLP()
    model.state_dict()["2.weight"][0, 0] = float("nan")
    return model


X = torch.zeros(2, 5)


@pytest.mark.parametrize(
    ("models", "given", "error", "words"),
    [
        ([MLP()], {"args": X}, DataError, "two or more models, got 1"),
        ([MLP(), "resnet"], {"args": X}, DataError, "model 1 is no torch.nn.Module but a str"),
        ([MLP(), MLP()], {}, DataError, "no example inputs"),
        ([MLP(), MLP()], {"data": []}, DataError, "yields no batch"),
        ([MLP(), MLP()], {"args": X, "config": {"method": "blend"}}, DataError, "there is no data"),
        ([MLP(), poisoned()], {"args": X}, CheckpointError, "model 1 has values that are not finite.*2.weight"),
        ([MLP(), MLP((5, 11, 3))], {"args": X}, CorrespondenceError, "of different depth.*there is no data"),
        ([MLP(), MLP()], {"args": X, "config": {"target": 2}}, ConfigError, "there is no model 2"),
        ([MLP(), MLP()], {"args": X, "config": {"weights": [1]}}, ConfigError, "one for each of 2 models, got 1"),
        ([MLP(), MLP()], {"args": X, "config": {"roles": {"hiden": {}}}}, ConfigError, "did you mean 'hidden'?"),
        ([MLP(), MLP((5, 9, 7, 3))], {"args": X, "config": {"roles": {"hidden": {"align": False}}}}, ConfigError,
         "hidden.0 is not to be aligned, but its size is 11 in model 0 and 9 in model 1"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(
    models: list[Any], given: dict[str, Any], error: type[GraphFuseError], words: str
) -> None:
    with pytest.raises(error, match=words):
        align(models, given.pop("args", ()), **given)


@torch.no_grad()
def test_the_method_both_keeps_the_solution_whose_average_correlates_best() -> None:
    for seed in range(6):
        torch.manual_seed(seed)
        models: list[nn.Module] = [MLP(), MLP()]
        data, x = torch.randn(80, 5), torch.randn(20, 5)  # a fifth of the inputs judges
        wanted, found = (models[0](x) + models[1](x)) / 2, {}
        for method in ("activations", "weights", "both"):
            config = {"method": method, "calibrate": {"method": "batch_norm"}}
            prepared = prepare(models, data=[torch.cat([data, x])], config=config)
            state = average(prepared, matched(prepared), (0.5, 0.5))
            output = torch.func.functional_call(models[0], state, (x,))
            rows = (tensor - tensor.mean(-1, keepdim=True) for tensor in (output, wanted))
            found[method] = float(torch.cosine_similarity(*rows, dim=-1).mean())
        best = max(found["weights"], found["activations"])  # two of the three solutions
        assert found["both"] >= best - 1e-6


@torch.no_grad()
def test_a_judge_chooses_among_both_starts_and_activations_alone() -> None:
    torch.manual_seed(0)
    models: list[nn.Module] = [MLP(), MLP()]
    x = torch.randn(100, 5)
    prepared = prepare(models, data=[x], config={"method": "both"})
    alone = match(prepare(models, data=[x], config={"method": "activations"})).models[1].maps
    for chosen in range(3):
        seen: list[Alignment] = []

        def judge(alignment: Alignment, shares: Sequence[float], seen: list[Alignment] = seen) -> float:
            assert list(shares) == [0.5, 0.5]
            seen.append(alignment)
            return float(len(seen) - 1 != chosen)  # noqa: B023

        found = match(prepared, judge=judge)
        assert len(seen) == 3
        assert same_maps(found.models[1].maps, seen[chosen].models[1].maps)
        assert same_maps(seen[chosen].models[1].maps, alone) == (chosen == 2)


class Stream(nn.Module):
    """A residual stream of 11, which has a map at each place where maps flow, and two hidden layers."""

    def __init__(self, hidden: int = 11) -> None:
        super().__init__()
        self.inp, self.up, self.down = nn.Linear(5, 11), nn.Linear(11, hidden), nn.Linear(hidden, 11)
        self.mix, self.head = nn.Linear(11, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        x = x + self.down(torch.relu(self.up(x)))
        return self.head(torch.relu(self.mix(x)))


@torch.no_grad()
@pytest.mark.parametrize(
    ("hidden", "config", "flows"),
    [
        (10, {}, True),
        (10, {"driver": "coordinate"}, False),
        (10, {"solver": "emd"}, False),
        (10, {"roles": {"hidden.1": {"keep": 0.5}}}, False),
        (10, {"cost": {"importance": "weights"}}, False),
        (10, {"method": "activations"}, False),
        (11, {}, False),
    ],
)
def test_maps_that_flow_are_among_the_solutions_where_widths_differ(
    hidden: int, config: dict[str, Any], flows: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    models: list[nn.Module] = [Stream(), Stream(hidden)]
    x = torch.randn(100, 5)
    prepared = prepare(models, data=[x], config=config)
    found = match(prepared, judge=lambda alignment, shares: float(alignment.driver != "flow"))
    assert found.driver == ("flow" if flows else "coordinate")
    if flows:
        soft = {"driver": "flow", "method": "activations", "solver": "sinkhorn"}
        wanted, state = align(models, data=[x], config=soft), models[1].state_dict()
        assert all(torch.equal(y, wanted.apply(state)[name]) for name, y in found.apply(state).items())
    found.save(tmp_path / "maps.safetensors")
    loaded = Alignment.load(tmp_path / "maps.safetensors")
    assert loaded.driver == found.driver
    again = fuse(models, data=[x], config=config, alignment=loaded)
    assert again.report["alignment"]["driver"] == found.driver


def same_maps(a: Mapping[int, AxisMap], b: Mapping[int, AxisMap]) -> bool:
    """Whether all maps permute alike."""
    pairs = [(found.index, b[id].index) for id, found in a.items()]
    return all(x is not None and y is not None and torch.equal(x, y) for x, y in pairs)


def test_fusing_takes_the_solution_that_is_best_after_calibration() -> None:
    torch.manual_seed(0)
    models: list[nn.Module] = [MLP(), MLP()]
    data = list(torch.randn(200, 5).split(20))
    prepared = prepare(models, data=data, config={"method": "both"})
    judge = judge_of(prepared)
    assert judge is not None
    values: list[float] = []

    def noted(alignment: Alignment, shares: Sequence[float]) -> float:
        values.append(judge(alignment, shares))
        return values[-1]

    match(prepared, judge=noted)
    assert len(set(values)) == 3
    assert judge(matched(prepared), (0.5, 0.5)) == min(values)
    assert judge_of(prepare(models, data=data, config={"method": "weights"})) is None
