"""Alignment along scales and general linear maps: planted ones come back, and the function stays what it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import MLP, Decoder, DenseExperts, Encoder, GroupedDecoder, TopExperts, UNet, ids, images
from test_align import planted, scaled
from torch import Tensor, nn
from torch.testing import assert_close

import graphfuse
from graphfuse.aligned import Alignment
from graphfuse.axes import SymmetryClass
from graphfuse.capture import state_of
from graphfuse.gauge import normal_forms
from graphfuse.groups import Element, sample_elements, transformed
from graphfuse.prepared import prepare
from graphfuse.symmetry import trace


class ConvNet(nn.Sequential):
    """Convolutions and ReLUs without norms, pooled."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3, groups=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
            nn.Flatten(), nn.Linear(24, 7), nn.ReLU(), nn.Linear(7, 4),
        )  # fmt: skip


def untied() -> nn.Module:
    model = Decoder(depth=1)
    model.head = nn.Linear(24, 31)
    return model


SCALED: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "mlp": (lambda: MLP((5, 11, 9, 7, 3)), lambda: torch.randn(64, 5)),
    "convolutions": (ConvNet, lambda: images(8)),
    "experts": (DenseExperts, lambda: torch.randn(64, 5)),
    "chosen experts": (TopExperts, lambda: torch.randn(64, 5)),
    "u-net": (UNet, lambda: images(8)),
}
LINEAR: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "decoder": (untied, lambda: ids(16, 9, 31)),
    "encoder": (lambda: Encoder(depth=1), lambda: ids(16, 9, 31)),
    "grouped queries": (GroupedDecoder, lambda: ids(16, 9, 31)),
}


def moved(model: nn.Module, x: Tensor, wanted: Callable[[SymmetryClass], bool]) -> tuple[nn.Module, dict[int, Element]]:
    """The same function: axes of a class moved by a random element of it, then every free axis permuted."""
    graph = trace(model, (x,))
    drawn = sample_elements(graph, torch.Generator().manual_seed(3))
    elements = {
        axis.id: Element(axis.id, axis.context, drawn[axis.id].value.abs(), drawn[axis.id].dual.abs())
        if drawn[axis.id].diagonal
        else drawn[axis.id]
        for axis in graph.axes
        if wanted(axis.symmetry)
    }
    assert elements
    other = copy.deepcopy(model)
    state = transformed(graph, {name: value.double() for name, value in state_of(other).items()}, elements)
    other.load_state_dict({name: value.float() for name, value in state.items()}, strict=False)
    return planted(other, x), elements


def scales(symmetry: SymmetryClass) -> bool:
    return bool(symmetry & SymmetryClass.SCALING) and not symmetry & SymmetryClass.CENTRED


def linear(symmetry: SymmetryClass) -> bool:
    return symmetry == SymmetryClass.LINEAR


def fused_error(pair: list[nn.Module], x: Tensor, config: dict[str, Any]) -> tuple[float, graphfuse.FuseResult]:
    wanted = pair[0](x).detach()
    result = graphfuse.fuse(pair, data=[x], config={"calibrate": {"method": "batch_norm"}, **config})
    return float((result.model(x).detach() - wanted).std() / wanted.std()), result


# what experts read has more units than the inputs have dims, so that activations do not tell its rotations apart
CASES = [(name, method) for name in SCALED for method in ("weights", "activations")
         if method == "weights" or "experts" not in name]  # fmt: skip


@pytest.mark.parametrize(("name", "method"), CASES)
def test_planted_scales_and_permutations_come_back(name: str, method: str, tmp_path: Path) -> None:
    build, inputs = SCALED[name]
    model, x = scaled(build(), 1), inputs()
    other, elements = moved(model, x, scales)
    assert_close(other(x), model(x), rtol=1e-3, atol=1e-3 * float(model(x).detach().std()))
    for option, close in ((True, True), (False, False)):
        error, result = fused_error([model, other], x, {"method": method, "scaling": option})
        assert (error < 1e-4) == close, (option, error)
        if not close:
            continue
        maps = result.alignment.models[1].maps
        for id, element in elements.items():
            factors = maps[id].factors(dual=False)
            assert factors is not None
            own = factors.squeeze() if factors.dim() == element.value.dim() else factors
            if own.shape == element.value.shape:
                assert_close(own.double() * element.value, torch.ones_like(element.value), rtol=1e-3, atol=1e-3)
        back = result.alignment.apply(other.state_dict(), 1)
        result.alignment.save(tmp_path / "a.safetensors")
        again = Alignment.load(tmp_path / "a.safetensors").apply(other.state_dict(), 1)
        for key, value in model.state_dict().items():
            assert_close(back[key], value, rtol=1e-3, atol=1e-3)
            assert_close(again[key], back[key], rtol=0, atol=0)


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("method", ["weights", "activations"])
def test_planted_linear_maps_inside_heads_come_back(name: str, method: str) -> None:
    build, inputs = LINEAR[name]
    model, x = scaled(build(), 1), inputs()
    other, _ = moved(model, x, linear)
    assert_close(other(x), model(x), rtol=0, atol=1e-3 * float(model(x).detach().std()))
    for option in (True, False):
        error, _ = fused_error([model, other], x, {"method": method, "linear": option})
        assert (error < 1e-3) == option, (option, error)


@pytest.mark.parametrize("option", ["scaling", "linear"])
def test_maps_that_are_permutations_only_have_neither(option: str) -> None:
    name = "mlp" if option == "scaling" else "encoder"
    build, inputs = {**SCALED, **LINEAR}[name]
    pair, x = [scaled(build(), 1), scaled(build(), 2)], inputs()
    for symmetry, there in (("full", True), ("permutation", False)):
        config = {"symmetry": symmetry, option: True, "method": "weights"}
        found = graphfuse.align(pair, (x,), config=config).models[1].maps.values()
        assert any(m.scales is not None or m.matrix is not None for m in found) == there


def test_a_normal_form_keeps_the_function_and_balances_both_sides() -> None:
    pair, x = [scaled(MLP((5, 11, 9, 3)), 1), scaled(MLP((5, 8, 9, 3)), 2)], torch.randn(16, 5)
    prepared = prepare(pair, (x,), config={"scaling": True, "method": "weights"})
    framed, forms = normal_forms(prepared)
    for k, (model, state) in enumerate(zip(pair, framed.states, strict=True)):
        assert forms[k] and not torch.equal(state["0.weight"], state_of(model)["0.weight"])
        got = torch.func.functional_call(model, dict(state), (x,))
        assert_close(got, model(x), rtol=1e-4, atol=1e-4)
        for into, out in (("0", "2"), ("2", "4")):
            written = state[f"{into}.weight"].square().sum(1) + state[f"{into}.bias"].square()
            assert_close(written, state[f"{out}.weight"].square().sum(0), rtol=1e-4, atol=1e-4)


def test_scaled_models_of_one_function_relate_to_each_other_through_the_target() -> None:
    model, x = scaled(MLP((5, 11, 9, 3)), 1), torch.randn(64, 5)
    others = [moved(model, x, scales)[0], planted(moved(model, x, scales)[0], x, 7)]
    found = graphfuse.align([model, *others], (x,), config={"scaling": True, "method": "weights"})
    between = found.between(1, 2)
    second = Alignment(0, "weights", found.axes, found.labels, found.aliases, (found.models[0], found.models[0]))
    part = copy.deepcopy(found.models[2])
    object.__setattr__(part, "maps", between)
    object.__setattr__(second, "models", (found.models[1], part))
    for name, value in second.apply(others[1].state_dict(), 1).items():
        assert_close(value, others[0].state_dict()[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("solver", ["sinkhorn", "assignment"])
def test_scales_go_with_couplings_and_other_widths(solver: str) -> None:
    wide = scaled(MLP((5, 22, 3)), 1)
    narrow = scaled(MLP((5, 11, 3)), 1)
    with torch.no_grad():  # every unit twice, its outgoing weight shared out, at another scale
        factor = torch.rand(22) + 0.5
        wide[0].weight.copy_(narrow[0].weight.repeat(2, 1) * factor[:, None])  # pyright: ignore
        wide[0].bias.copy_(narrow[0].bias.repeat(2) * factor)  # pyright: ignore
        wide[2].weight.copy_(narrow[2].weight.repeat(1, 2) / 2 / factor)  # pyright: ignore
        wide[2].bias.copy_(narrow[2].bias)  # pyright: ignore
    x = torch.randn(256, 5)
    config = {"solver": solver, "regularization": 0.005, "scaling": True}
    error, result = fused_error([narrow, wide], x, config)
    assert result.alignment.models[1].maps[result.alignment.axes[0].id].plan is not None
    assert error < 2e-2
    assert fused_error([narrow, wide], x, {**config, "scaling": False})[0] > 2 * error + 1e-3


def test_the_rest_of_the_pipeline_knows_scales() -> None:
    """Calibration moves activations by scaled maps; refinement of the maps keeps them."""
    model, x = scaled(MLP((5, 11, 9, 3)), 1), torch.randn(64, 5)
    other, _ = moved(model, x, scales)
    wanted = model(x).detach()
    config = {"scaling": True, "refine": {"what": "maps", "steps": 3}}
    result = graphfuse.fuse([model, other], data=[x], config=config)
    assert_close(result.model(x).detach(), wanted, rtol=0, atol=1e-3 * float(wanted.std()))
    assert all(found.scales is not None for found in result.alignment.models[1].maps.values())
