"""Partial fusion: what is kept apart is kept whole, and more room brings the result nearer to the ensemble."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import MLP, Encoder, ResNet, ids, images
from test_align import planted, scaled
from torch import Tensor, nn
from torch.testing import assert_close

import graphfuse
from graphfuse.capture import state_of
from graphfuse.errors import ConfigError

AVERAGE = {"calibrate": {"method": "batch_norm", "batch_norm": False}}


def pair(widths: tuple[int, ...] = (5, 20, 16, 3), count: int = 2) -> list[nn.Module]:
    return [scaled(MLP(widths), seed + 1) for seed in range(count)]


def gap(models: list[nn.Module], result: graphfuse.FuseResult, x: Tensor, shares: tuple[float, ...]) -> float:
    with torch.no_grad():
        wanted = torch.stack([share * model(x) for share, model in zip(shares, models, strict=True)]).sum(0)
        return float((result.model(x) - wanted).square().mean().sqrt() / wanted.std())


@pytest.mark.parametrize("method", ["weights", "activations"])
def test_with_all_units_kept_the_result_is_the_ensemble(method: str) -> None:
    models, x = pair(), torch.randn(200, 5)
    config = {**AVERAGE, "method": method, "keep": 1.0, "weights": [0.3, 0.7]}
    result = graphfuse.fuse(models, data=[x], config=config)
    assert [tuple(p.shape) for p in result.model.parameters()] == [(40, 5), (40,), (32, 40), (32,), (3, 32), (3,)]
    assert result.model[0].out_features == 40  # pyright: ignore[reportIndexIssue]
    assert gap(models, result, x, (0.3, 0.7)) < 1e-5
    assert gap(models, graphfuse.fuse(models, data=[x], config={**config, "keep": 0}), x, (0.3, 0.7)) > 0.1


def test_three_models_are_kept_apart_too() -> None:
    models, x = pair(count=3), torch.randn(200, 5)
    result = graphfuse.fuse(models, data=[x], config={**AVERAGE, "keep": 2.0})
    assert gap(models, result, x, (1 / 3,) * 3) < 1e-5


def test_more_room_brings_the_result_nearer_to_the_ensemble() -> None:
    models, x = pair((5, 60, 3)), torch.randn(400, 5)
    gaps = []
    for keep in (0.0, 0.25, 0.5, 0.75, 1.0):
        result = graphfuse.fuse(models, data=[x], config={**AVERAGE, "keep": keep})
        assert state_of(result.model)["0.weight"].shape == (60 + round(60 * keep), 5)
        gaps.append(gap(models, result, x, (0.5, 0.5)))
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] < 1e-5 < 0.1 < gaps[0], gaps


@pytest.mark.parametrize("method", ["weights", "activations"])
def test_units_that_do_not_match_are_those_that_are_kept(method: str) -> None:
    """A permuted copy with three units replaced: three units more make it exact."""
    model, x = scaled(MLP((20, 12, 3)), 1), torch.randn(400, 20)
    other = scaled(MLP((20, 12, 3)), 1)
    with torch.no_grad():
        torch.manual_seed(4)
        for tensor in (other[0].weight, other[0].bias, other[2].weight.T):  # pyright: ignore
            tensor[:3] = torch.randn_like(tensor[:3]) * tensor.std()
    pair_ = [model, planted(other, x)]
    config = {**AVERAGE, "method": method, "roles": {"hidden": {"keep": 0.25}}}
    result = graphfuse.fuse(pair_, data=[x], config=config)
    assert state_of(result.model)["0.weight"].shape == (15, 20)
    assert gap(pair_, result, x, (0.5, 0.5)) < 1e-5


ZOO: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], str]] = {
    "channels between batch norms": (lambda: ResNet((5, 6)), lambda: images(24), "channels"),
    "feed-forward layers": (lambda: Encoder(depth=1), lambda: ids(16, 9, 31), "hidden"),
}


@pytest.mark.parametrize("calibrate", ["batch_norm", "least_squares"])
@pytest.mark.parametrize("name", ZOO)
def test_a_model_kept_apart_from_itself_stays_what_it_is(name: str, calibrate: str) -> None:
    build, inputs, role = ZOO[name]
    model, x = scaled(build(), 1), inputs()
    config: dict[str, Any] = {"calibrate": {"method": calibrate}, "roles": {role: {"keep": 0.5}}}
    result = graphfuse.fuse([model, planted(model, x)], data=[x], config=config)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, result.model))
    assert after > before
    wanted = model(x).detach()
    assert_close(result.model(x).detach(), wanted, rtol=0, atol=1e-3 * float(wanted.std()))


def test_calibration_knows_which_parent_a_kept_unit_is_of() -> None:
    models, x = pair(), torch.randn(600, 5)
    plain = graphfuse.fuse(models, data=[x], config={**AVERAGE, "keep": 0.25})
    solved = graphfuse.fuse(models, data=[x[:300], x[300:]], config={"keep": 0.25})
    assert gap(models, solved, x, (0.5, 0.5)) < 0.7 * gap(models, plain, x, (0.5, 0.5))
    whole = graphfuse.fuse(models, data=[x], config={"keep": 1.0})
    assert gap(models, whole, x, (0.5, 0.5)) < 1e-3


def test_the_alignment_maps_each_parent_into_the_wider_model(tmp_path: Path) -> None:
    models, x = pair(), torch.randn(200, 5)
    result = graphfuse.fuse(models, data=[x], config={**AVERAGE, "keep": 0.5})
    result.alignment.save(tmp_path / "a.safetensors")
    again = graphfuse.Alignment.load(tmp_path / "a.safetensors")
    for k, model in enumerate(models):
        state = result.alignment.apply(model.state_dict(), k)
        assert {name: v.shape for name, v in state.items()} == {n: v.shape for n, v in state_of(result.model).items()}
        wider = MLP((5, 30, 24, 3)).eval()
        wider.load_state_dict(again.apply(model.state_dict(), k))
        assert_close(wider(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"solver": "sinkhorn"}, "not matched one to one"),
        ({"driver": "flow"}, "driver coordinate"),
        ({"calibrate": {"method": "repair"}}, "least_squares or batch_norm"),
        ({"refine": {"what": "maps"}}, "refine.what weights"),
    ],
)
def test_what_cannot_be_kept_apart_is_an_error_that_says_why(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        graphfuse.fuse(pair(), data=[torch.randn(50, 5)], config={"keep": 0.5, **config})


def test_a_width_that_is_built_in_is_an_error_that_says_so() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.norm, self.down = nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(torch.tanh(self.norm(self.up(x))))

    models: list[nn.Module] = [scaled(Normed(), 1), scaled(Normed(), 2)]
    with pytest.raises(ConfigError, match=r"Normed does not run with other widths(.|\n)*leave keep out"):
        graphfuse.fuse(models, data=[torch.randn(50, 5)], config={"keep": 0.5})
