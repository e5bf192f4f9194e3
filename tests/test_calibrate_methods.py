"""Calibration by name: each published method does what its paper says, and none makes the model worse."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from models import MLP, ResNet, images
from test_align import planted, scaled
from test_calibrate import OPS, calibrated, contraction, outputs, prepared_
from torch import Tensor, nn
from torch.testing import assert_close

import graphfuse
from graphfuse.alignment import match
from graphfuse.calibrate import calibrate
from graphfuse.calibrate.guard import held_back
from graphfuse.calibrate.published import rescaled
from graphfuse.capture import state_of
from graphfuse.errors import ConfigError
from graphfuse.fuse import average

METHODS = ("batch_norm", "repair", "regmean", "least_squares")


def pair(widths: tuple[int, ...] = (5, 40, 40, 3)) -> list[nn.Module]:
    return [scaled(MLP(widths), 1), scaled(MLP(widths), 2)]


@pytest.mark.parametrize("name", OPS)
def test_a_rescaled_contraction_has_the_parents_interpolated_statistics(name: str) -> None:
    model, x, weight, regression = contraction(name)
    bias = "b" if weight == "w" else "bias"
    state = dict(state_of(model))
    offset = state.get(bias) if name != "matmul" else None
    with torch.no_grad():
        before = model(x)
        parents = [before * torch.rand_like(before) * 3 + 1, torch.randn_like(before)]
        found = rescaled(regression, state[weight], offset, [before], [parents], (0.3, 0.7))
        assert found.weight is not None
        state[weight].add_(found.weight)
        if offset is not None and found.offset is not None:
            offset.add_(found.offset)
        after = regression.outputs(model(x))
    rows = [regression.outputs(parent) for parent in parents]
    assert_close(after.std(1, correction=0), 0.3 * rows[0].std(1, correction=0) + 0.7 * rows[1].std(1, correction=0))
    if offset is not None:
        assert_close(after.mean(1), 0.3 * rows[0].mean(1) + 0.7 * rows[1].mean(1))
        assert found.after < 1e-12 < found.before


def test_repair_restores_every_unit_of_the_fused_model_on_the_way() -> None:
    models, x = pair(), torch.randn(400, 5)
    prepared = prepared_(models, [x], {"method": "repair", "holdout": 0.0})
    alignment = match(prepared)
    state = average(prepared, alignment, (0.5, 0.5))
    found = calibrate(prepared, alignment, state, (0.5, 0.5))
    parents = [alignment.apply(state_of(model), k) for k, model in enumerate(models)]

    def spread(state: Any, layer: int) -> tuple[Tensor, Tensor]:
        part = copy.deepcopy(models[0])
        part.load_state_dict(dict(state))
        rows = nn.Sequential(*list(part.children())[: layer + 1])(x).detach()
        return rows.mean(0), rows.std(0)

    for layer in (0, 2, 4):
        each, got, plain = [spread(own, layer) for own in parents], spread(found.state, layer), spread(state, layer)
        mean, deviation = ((one + two) / 2 for one, two in zip(*each, strict=True))
        assert_close(got[0], mean, rtol=1e-3, atol=1e-3)
        assert_close(got[1], deviation, rtol=1e-3, atol=1e-3)
        assert float((plain[1] / deviation).mean()) < 0.95  # the average's deviations have collapsed


def test_regmean_is_its_closed_form() -> None:
    """W = (sum X'X)^-1 sum X'X W over the aligned parents' own inputs, the offset as one more feature."""
    models, x = pair((5, 11, 3)), torch.randn(400, 5)
    prepared = prepared_(models, [x[:100], x[100:]], {"method": "regmean", "holdout": 0.0, "ridge": 1e-9})
    alignment = match(prepared)
    state = average(prepared, alignment, (0.25, 0.75))
    found = calibrate(prepared, alignment, state, (0.25, 0.75))
    left, right = torch.zeros(12, 12, dtype=torch.float64), torch.zeros(12, 3, dtype=torch.float64)
    for k, share in enumerate((0.25, 0.75)):
        own = alignment.apply(state_of(models[k]), k)
        hidden = torch.relu(x @ own["0.weight"].T + own["0.bias"])
        rows = torch.cat([hidden, torch.ones(400, 1)], 1).double()
        left += share * rows.T @ rows
        right += share * rows.T @ rows @ torch.cat([own["2.weight"], own["2.bias"][:, None]], 1).T.double()
    wanted = torch.linalg.solve(left, right)
    assert_close(found.state["2.weight"].double(), wanted[:-1].T, rtol=1e-3, atol=1e-3)
    assert_close(found.state["2.bias"].double(), wanted[-1], rtol=1e-3, atol=1e-3)
    assert_close(found.state["0.weight"], state["0.weight"], rtol=1e-3, atol=1e-3)  # both read the same inputs
    assert float((found.state["2.weight"] - state["2.weight"]).abs().max()) > 0.05


@pytest.mark.parametrize("method", METHODS)
def test_no_method_changes_a_model_that_is_fused_with_itself(method: str) -> None:
    model, x = scaled(ResNet((5, 6))), images(16)
    result = graphfuse.fuse([model, planted(model, x)], data=[x], config={"calibrate": {"method": method}})
    wanted = model(x).detach()
    assert_close(result.model(x).detach(), wanted, rtol=0, atol=1e-3 * float(wanted.std()))


def test_the_methods_differ_and_those_that_solve_bring_outputs_nearer_on_new_inputs() -> None:
    models, data, x = pair(), [torch.randn(100, 5) for _ in range(10)], torch.randn(500, 5)
    wanted = (outputs(models[0], {}, x) + outputs(models[1], {}, x)) / 2
    errors, plain = dict[str, float](), 0.0
    for method in METHODS:
        state, found = calibrated(prepared_(models, data, {"method": method}))
        assert found.inputs == 1000
        errors[method] = float((outputs(models[0], found.state, x) - wanted).square().mean())
        plain = float((outputs(models[0], state, x) - wanted).square().mean())
    assert len(set(errors.values())) == len(METHODS)
    assert errors["batch_norm"] == pytest.approx(plain)
    assert all(error < 1.02 * plain for error in errors.values()), (plain, errors)
    assert errors["least_squares"] < 0.5 * plain and errors["regmean"] < plain


def test_a_calibration_that_makes_things_worse_is_held_back() -> None:
    models, data = pair(), [torch.randn(100, 5) for _ in range(4)]
    prepared = prepared_(models, data)
    alignment = match(prepared)
    state = average(prepared, alignment, (0.5, 0.5))
    spoilt = {name: value + 3 * torch.randn(value.shape) for name, value in state.items()}
    good = calibrated(prepared)[1].state
    for other, wanted in ((spoilt, 0.0), (good, 1.0)):
        kept, step = held_back(prepared, alignment, (0.5, 0.5), state, other, prepared.data)
        assert step == wanted
        for name, value in kept.items():
            assert_close(value, (other if wanted else state)[name])


def test_an_unknown_method_is_an_error_that_names_them() -> None:
    with pytest.raises(ConfigError, match=r"calibrate\.method.*'repair'"):
        graphfuse.fuse(pair(), data=[torch.randn(8, 5)], config={"calibrate": {"method": "magic"}})
