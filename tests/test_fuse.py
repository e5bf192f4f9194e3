"""Fusing: a model and itself give itself, models are left alone, and the account of it is complete."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import assert_same
from models import MLP, Decoder, Encoder, ResNet, ids, images
from test_align import ZOO, planted, scaled, widened
from torch import Tensor, nn
from torch.testing import assert_close

from graphfuse.capture import state_of
from graphfuse.fuse import FuseResult, fuse

PLAIN = {"calibrate": {"method": "batch_norm", "batch_norm": False}}


def snapshot(models: list[nn.Module]) -> list[dict[str, Tensor]]:
    return [{name: value.clone() for name, value in state_of(model).items()} for model in models]


@torch.no_grad()
def run(model: nn.Module, *args: Tensor) -> Tensor:
    return model(*args)


# --------------------------------------------------------------- exact functions


@pytest.mark.parametrize("name", ZOO)
def test_a_model_fused_with_a_permuted_copy_of_itself_is_itself(name: str) -> None:
    build, inputs = ZOO[name]
    model, x = scaled(build()), inputs()
    result = fuse([model, planted(model, x)], x, config={"symmetry": "permutation"})
    assert_same(dict(state_of(result.model)), dict(state_of(model)), 1e-5)
    assert result.report["calibration"] is None
    wanted = run(model, x)
    turned = fuse([model, planted(model, x)], x)
    assert_close(run(turned.model, x), wanted, rtol=0, atol=1e-4 * float(wanted.std()))


@pytest.mark.parametrize("name", ["mlp", "resnet", "decoder", "grouped", "lstm", "unet"])
def test_calibration_does_not_take_a_model_away_from_itself(name: str) -> None:
    build, inputs = ZOO[name]
    model, x = scaled(build()), inputs()
    data = [x, inputs()]
    result = fuse([model, planted(model, x)], data=data)
    assert result.report["calibration"]["inputs"] > 0
    for batch in data:
        wanted = run(model, batch)
        assert_close(run(result.model, batch), wanted, rtol=0, atol=1e-4 * float(wanted.std()))


def test_three_permuted_copies_are_one_model_in_any_shares() -> None:
    model, x = scaled(MLP()), torch.randn(32, 5)
    models = [planted(model, x, 1), model, planted(model, x, 2)]
    for weights in (None, (0.2, 0.3, 0.5), (0, 0, 7)):
        result = fuse(models, x, config={"target": 1, "weights": weights})
        assert_same(dict(state_of(result.model)), dict(state_of(model)), 1e-5)
    assert [entry["share"] for entry in result.report["models"]] == [0, 0, 1]
    assert [entry["target"] for entry in result.report["models"]] == [False, True, False]


def test_shares_weigh_the_parents() -> None:
    models: list[nn.Module] = [scaled(MLP(), 1), scaled(MLP(), 2)]
    x = torch.randn(32, 5)
    same = {"roles": {"hidden": {"align": False}}, "method": "weights", **PLAIN}
    state = state_of(fuse(models, x, config={**same, "weights": (3, 1)}).model)
    a, b = (state_of(model) for model in models)
    for name, value in state.items():
        assert_close(value, 0.75 * a[name] + 0.25 * b[name])
    alone = state_of(fuse(models, x, config={**same, "weights": (1, 0)}).model)
    assert_same(dict(alone), dict(a), 0)


@pytest.mark.parametrize("order", ["narrow first", "wide first"])
def test_a_model_and_its_widened_self_fuse_to_the_same_function_in_either_width(order: str) -> None:
    narrow, x = scaled(MLP()), torch.randn(64, 5)
    assert isinstance(narrow, MLP)
    models = [narrow, planted(widened(narrow), x)]
    models = models if order == "narrow first" else models[::-1]
    for data in (None, [x]):
        result = fuse(models, x, data=data)
        shapes = [{name: value.shape for name, value in m.state_dict().items()} for m in (result.model, models[0])]
        assert shapes[0] == shapes[1]
        assert_close(run(result.model, x), run(narrow, x), rtol=1e-3, atol=1e-3)


# ------------------------------------------------------------------ what is kept


@pytest.mark.parametrize("config", [{}, {"refine": {"what": "both", "steps": 1}}, {"method": "auto", "budget": 0.01}])
def test_the_parents_are_left_as_they_are(config: dict[str, Any]) -> None:
    models: list[nn.Module] = [scaled(ResNet((6, 7)), 1).train(), scaled(ResNet((6, 7)), 2)]
    models[0].get_submodule("norm").eval()
    flags = [[module.training for module in model.modules()] for model in models]
    before = snapshot(models)
    result = fuse(models, data=[images(8), images(8)], config=config)
    assert_same(snapshot(models), before, 0)
    assert flags == [[module.training for module in model.modules()] for model in models]
    assert not any(module.training for module in result.model.modules())
    assert all(p.requires_grad and p.grad is None for model in (*models, result.model) for p in model.parameters())
    own = {value.untyped_storage().data_ptr() for value in state_of(result.model).values()}
    assert own.isdisjoint(value.untyped_storage().data_ptr() for m in models for value in state_of(m).values())


def test_tied_weights_stay_tied() -> None:
    models: list[nn.Module] = [scaled(Decoder(depth=1), 1), scaled(Decoder(depth=1), 2)]
    result = fuse(models, data=[ids(8, vocabulary=31)])
    fused = result.model
    assert isinstance(fused, Decoder) and fused.head.weight is fused.tokens.weight
    assert {"tensor": "tokens.weight", "reason": "used by several nodes"} in result.report["calibration"]["left"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_is_the_targets(dtype: torch.dtype) -> None:
    models: list[nn.Module] = [scaled(MLP(), 1).to(dtype), scaled(MLP(), 2)]
    x = torch.randn(64, 5, dtype=dtype)
    result = fuse(models, x, config={"method": "weights"})
    assert {value.dtype for value in state_of(result.model).values()} == {dtype}
    alike: list[nn.Module] = [models[0], scaled(MLP(), 2).to(dtype)]
    result = fuse(alike, data=[x, x])
    assert {value.dtype for value in state_of(result.model).values()} == {dtype}
    wanted = sum(run(model, x) for model in alike) / 2
    plain = fuse(alike, data=[x, x], config=PLAIN).model
    better, worse = (float((run(model, x) - wanted).square().mean()) for model in (result.model, plain))
    assert better < worse


def test_buffers_that_do_not_move_are_the_targets() -> None:
    class Counted(nn.Module):
        def __init__(self, steps: int) -> None:
            super().__init__()
            self.net = MLP()
            self.register_buffer("scale", torch.tensor([float(steps)]))
            self.register_buffer("steps", torch.tensor(steps))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x * self.get_buffer("scale"))

    state = state_of(fuse([scaled(Counted(3)), Counted(5)], torch.randn(4, 5), config={"target": 1}).model)
    assert int(state["steps"]) == 5 and float(state["scale"]) == 5


# --------------------------------------------------------------------------- data


class Recorded:
    """Batches that are made when they are asked for, and can be asked for once."""

    def __init__(self, batches: int) -> None:
        self.made, self._batches = 0, batches

    def __iter__(self) -> Iterator[Tensor]:
        while self.made < self._batches:
            self.made += 1
            yield torch.randn(10, 5)


def test_data_is_read_once_and_only_as_much_as_is_needed() -> None:
    models: list[nn.Module] = [scaled(MLP(), 1), scaled(MLP(), 2)]
    data = Recorded(100)
    result = fuse(models, data=data, config={"samples": 25})
    assert data.made == 3
    assert result.report["inputs"] == result.report["calibration"]["inputs"] == 30
    generator = (torch.randn(10, 5) for _ in range(2))
    assert fuse(models, data=generator).report["inputs"] == 20


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(5, 9), nn.Linear(4, 9), nn.Linear(9, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.out(torch.relu(self.one(x) + self.two(y)))


def test_batches_may_be_tensors_tuples_or_dicts() -> None:
    models: list[nn.Module] = [scaled(TwoInputs(), 1), scaled(TwoInputs(), 2)]
    x, y = torch.randn(30, 5), torch.randn(30, 4)
    positional, named = (fuse(models, data=[batch]) for batch in ((x, y), {"y": y, "x": x}))
    assert_same(dict(state_of(positional.model)), dict(state_of(named.model)), 1e-6)


def fused_twice(models: list[nn.Module], data: list[Tensor], config: dict[str, Any]) -> tuple[FuseResult, FuseResult]:
    torch.manual_seed(1)
    first = fuse(models, data=data, config=config)
    torch.manual_seed(2)  # nothing may depend on the global generator
    return first, fuse(models, data=data, config=config)


@pytest.mark.parametrize("config", [{}, {"solver": "sinkhorn"}, {"method": "weights", "seed": 4}])
def test_the_same_seed_gives_the_same_result_bit_by_bit(config: dict[str, Any]) -> None:
    models: list[nn.Module] = [scaled(Encoder(depth=1), 1), scaled(Encoder(depth=1), 2)]
    first, second = fused_twice(models, [ids(16, 9, 31), ids(16, 9, 31)], config)
    for name, value in state_of(first.model).items():
        assert torch.equal(value, state_of(second.model)[name]), name
    timeless = [
        {key: value for key, value in r.report.items() if key not in ("seconds", "memory")} for r in (first, second)
    ]
    for report in timeless:
        report["calibration"].pop("seconds")
    assert timeless[0] == timeless[1]


# ------------------------------------------------------------------------- account


def test_the_report_says_what_was_done_in_plain_values() -> None:
    models: list[nn.Module] = [scaled(ResNet((6, 7)), 1), scaled(ResNet((6, 7)), 2)]
    result = fuse(models, data=[images(8)], config={"weights": (1, 3)})
    report = json.loads(json.dumps(result.report))
    assert report == result.report
    assert [entry["share"] for entry in report["models"]] == [0.25, 0.75]
    assert {entry["role"] for entry in report["axes"]} == {"residual", "channels"}
    assert all(entry["reasons"] for entry in report["fixed"]) and not any(entry["reasons"] for entry in report["axes"])
    assert 0.9 < report["free_fraction"] <= 1
    agreement = report["alignment"]["models"][1]["agreement"]
    assert set(agreement) == {entry["name"] for entry in report["axes"]}
    solved = {node["weight"]: node for node in report["calibration"]["solved"]}
    assert set(solved) == {name for name, p in models[0].named_parameters() if p.dim() > 1}
    assert (
        solved["head.weight"]["module"] == "head" and solved["head.weight"]["after"] <= solved["head.weight"]["before"]
    )
    assert set(report["calibration"]["statistics"]) == {n for n in state_of(models[0]) if n.endswith("running_mean")}
    assert set(report["seconds"]) == {"trace", "match", "average", "calibrate", "judge", "total"}
    assert report["config"]["weights"] == [1, 3] and report["notes"] == []


def test_the_alignment_of_a_result_serves_another_checkpoint() -> None:
    model, x = scaled(MLP()), torch.randn(32, 5)
    other = planted(model, x)
    result = fuse([model, other], data=[x])
    assert_same(result.alignment.apply(other.state_dict(), 1), dict(model.state_dict()), 0)


def test_progress_is_told_for_every_stage() -> None:
    seen: list[tuple[str, int, int]] = []
    fuse([MLP(), MLP()], data=[torch.randn(8, 5)], progress=lambda *step: seen.append(step))
    stages = list(dict.fromkeys(stage for stage, _, _ in seen))
    assert stages == ["trace", "activations", "choose", "match", "calibrate"]
    for stage in stages:
        steps = [(done, total) for name, done, total in seen if name == stage]
        assert steps[-1][0] == steps[-1][1]
