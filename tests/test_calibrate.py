"""Calibration: the regressions are right for every op, solutions are those of least squares, and nothing gets worse."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from helpers import randomise
from models import MLP, Decoder, Encoder, ResNet, UNet, ids, images
from test_align import planted, scaled
from torch import Tensor, nn
from torch.testing import assert_close

from graphfuse.alignment import Prepared, match, prepare
from graphfuse.calibrate import Calibration, calibrate
from graphfuse.calibrate.fit import Evidence, fit
from graphfuse.calibrate.plan import plan_of
from graphfuse.calibrate.regression import Linear, Regression, regression_of
from graphfuse.calibrate.sensitivity import row_weights, sensitivities
from graphfuse.calibrate.solve import Moments, Rows
from graphfuse.capture import state_of
from graphfuse.config import CalibrateConfig
from graphfuse.errors import DataError
from graphfuse.fuse import average
from graphfuse.lockstep import Batch
from graphfuse.symmetry import Contraction, trace

# ------------------------------------------------------------------ regressions


class Product(nn.Module):
    """A product with the weight on the right; ``addmm`` when it has a bias."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.w, self.b = form, nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w if self.form == "matmul" else torch.addmm(self.b, x, self.w)


OPS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 4), (3, 2, 5)),
    "linear without bias": (lambda: nn.Linear(5, 4, bias=False), (3, 5)),
    "matmul": (lambda: Product("matmul"), (3, 2, 5)),
    "addmm": (lambda: Product("addmm"), (3, 5)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 5), stride=(1, 2), padding=(1, 0), dilation=(2, 1)), (2, 4, 9, 11)),
    "conv2d without a batch": (lambda: nn.Conv2d(4, 6, 3), (4, 9, 11)),
    "conv2d same": (lambda: nn.Conv2d(4, 6, (2, 3), padding="same", bias=False), (2, 4, 5, 7)),
    "conv2d in groups": (lambda: nn.Conv2d(6, 9, 3, groups=3), (2, 6, 5, 7)),
    "conv2d depthwise": (lambda: nn.Conv2d(6, 12, 3, groups=6), (2, 6, 5, 7)),
    "conv3d": (lambda: nn.Conv3d(2, 3, (2, 3, 1), stride=(1, 2, 1)), (2, 2, 4, 5, 3)),
    "conv1d transposed": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1), (2, 4, 5)),
    "conv2d transposed": (lambda: nn.ConvTranspose2d(4, 6, (2, 3), stride=(2, 1), dilation=(1, 2)), (2, 4, 3, 5)),
    "conv2d transposed in groups": (lambda: nn.ConvTranspose2d(4, 6, 3, padding=2, groups=2), (2, 4, 5, 6)),
}


def contraction(name: str) -> tuple[nn.Module, Tensor, str, Regression]:
    """One of the ops: its model, inputs, the name of its weight, and the regression that it is."""
    build, shape = OPS[name]
    model, x = build().double(), torch.randn(shape, dtype=torch.float64)
    captured = trace(model, (x,)).captured
    (node,) = [n for n in captured.graph.nodes if n.op == "call_function" and n.all_input_nodes]
    kind = "convolution" if "conv" in name else "matmul" if "m" in name[0] or name == "addmm" else "linear"
    weight = "w" if kind == "matmul" else "weight"
    regression = regression_of(node, Contraction(node.name, weight, None, node.all_input_nodes[0].name, kind))
    assert regression is not None
    return model, x, weight, regression


@pytest.mark.parametrize("name", OPS)
def test_a_change_of_the_weight_changes_the_output_as_its_regression_says(name: str) -> None:
    model, x, weight, regression = contraction(name)
    with torch.no_grad():
        before = model(x)
        ((rows, there),) = regression.pieces(x, before)
        assert_close(there, regression.outputs(before), rtol=0, atol=0)
        change = torch.randn(rows.shape[0], rows.shape[-1], there.shape[-1], dtype=torch.float64)
        parameter = model.get_parameter(weight)
        parameter += regression.weight(change)
        assert_close(regression.outputs(model(x) - before), rows @ change, rtol=1e-9, atol=1e-9)


def test_windows_come_in_bounded_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = nn.Conv2d(3, 4, 3), torch.randn(5, 3, 6, 7)
    graph = trace(model, (x,))
    regression = regression_of(next(n for n in graph.captured.graph.nodes if n.name == "conv2d"), graph.contractions[0])
    assert regression is not None
    y = model(x).detach()
    ((whole, _),) = regression.pieces(x, y)
    monkeypatch.setattr("graphfuse.calibrate.regression.PIECE", whole.numel() // 2)
    parts = list(regression.pieces(x, y))
    assert len(parts) > 1
    assert_close(torch.cat([rows for rows, _ in parts], 1), whole, rtol=0, atol=0)


def test_products_that_are_no_regression_are_left() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.b = nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.randn(4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.addmm(self.b, x, self.w, alpha=2.0)

    graph = trace(Scaled(), (torch.randn(3, 5),))
    assert plan_of(graph, CalibrateConfig.model_validate({})).left == (("w", "not a plain matrix product"),)


# ---------------------------------------------------------------- least squares


def test_moments_give_the_weighted_ridge_solution_with_a_free_offset() -> None:
    x, r = torch.randn(2, 50, 6, dtype=torch.float64) + 3, torch.randn(2, 50, 4, dtype=torch.float64)
    weight = torch.rand(50, dtype=torch.float64) + 0.1
    rows = Rows(x, r, r, weight)
    parts = Moments.of(rows.take(0, 17), True) + Moments.of(rows.take(17, 50), True)
    got = parts.solve(0.1, offset=True)
    assert got is not None
    for g in range(2):
        centre = (weight[:, None] * x[g]).sum(0) / weight.sum()
        gram = ((x[g] - centre) * weight[:, None]).T @ (x[g] - centre)
        pull = 0.1 * gram.diagonal().mean()
        roots = torch.cat([weight.sqrt(), torch.ones(6, dtype=torch.float64) * pull.sqrt()])[:, None]
        ones = torch.cat([torch.ones(50), torch.zeros(6)]).double()[:, None]
        stacked = torch.cat([torch.cat([x[g], torch.eye(6, dtype=torch.float64)]), ones], 1)
        wanted = torch.linalg.lstsq(stacked * roots, torch.cat([r[g], torch.zeros(6, 4)]) * roots).solution
        assert_close(got[g], wanted, rtol=1e-8, atol=1e-8)
    squares = weight[:, None] * (r - x @ got[:, :-1] * 0.3 - got[:, -1:] * 0.3).square()
    assert parts.error(got, 0.3) == pytest.approx(float(squares.sum()), rel=1e-9)
    assert parts.error(got, parts.step(got)) <= parts.error(got, 0.9) + 1e-9


def test_inputs_of_less_than_full_rank_and_dead_ones_are_no_trouble() -> None:
    x = torch.randn(1, 40, 3) @ torch.randn(3, 12)
    true = torch.randn(12, 5)
    fitted = fit(Linear(False), Evidence([x[0]], [torch.zeros(40, 5)], [x[0] @ true]), [1e-6], 0.0, offset=False)
    assert fitted.weight is not None
    assert_close(x[0] @ fitted.weight.T.float(), x[0] @ true, rtol=1e-3, atol=1e-3)
    dead = fit(Linear(False), Evidence([x[0] * 0], [torch.zeros(40, 5)], [x[0] @ true]), [1e-6], 0.0, offset=True)
    assert dead.weight is not None and dead.offset is not None
    assert_close(dead.weight, torch.zeros(5, 12, dtype=torch.float64), rtol=0, atol=0)
    assert_close(dead.offset.float(), (x[0] @ true).mean(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_leave_the_weight_averaged(bad: float) -> None:
    x = torch.randn(40, 3)
    x[3, 1] = bad
    fitted = fit(Linear(False), Evidence([x], [torch.zeros(40, 2)], [torch.randn(40, 2)]), [1e-4], 0.25, offset=True)
    assert fitted.weight is None and fitted.step == 0


@pytest.mark.parametrize("batches", [1, 10])
def test_held_out_rows_stop_a_fit_to_noise(batches: int) -> None:
    """One batch holds out its last rows, several hold out whole batches; either way noise is told from signal."""
    x, true = torch.randn(200, 30), torch.randn(30, 4)
    signal, noise = x @ true, 3 * torch.randn(200, 4)

    def fitted(target: Tensor, holdout: float) -> Any:
        parts = [part.chunk(batches) for part in (x, torch.zeros(200, 4), target)]
        return fit(Linear(False), Evidence(*parts), [1e-4], holdout, offset=True)

    assert fitted(noise, 0.2).step < 0.3 < 0.99 < fitted(noise, 0.0).step
    assert fitted(signal, 0.2).step > 0.999
    mixed = fitted(signal + noise, 0.2)
    assert 0.3 < mixed.step < 1 and mixed.after < mixed.before


def test_rows_count_by_their_weight() -> None:
    x = torch.randn(60, 3)
    one, other = torch.randn(3, 2), torch.randn(3, 2)
    target = torch.cat([x[:30] @ one, x[30:] @ other])
    weight = torch.cat([torch.ones(30), torch.zeros(30)])
    fitted = fit(Linear(True), Evidence([x], [target * 0], [target], [weight]), [1e-9], 0.0, offset=False)
    assert fitted.weight is not None
    assert_close(fitted.weight.float(), one, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------ sensitivity


def test_rows_that_no_output_reads_have_no_weight() -> None:
    """A classifier on the first token: in the last layer only its row counts, below it all rows do."""
    model, x = scaled(Encoder(depth=2)), ids(3, 7, vocabulary=31)
    graph = trace(model, (x,))
    nodes = {name: due.regression for name, due in plan_of(graph, CalibrateConfig.model_validate({})).fits.items()}
    found = sensitivities(graph.captured, state_of(model), Batch((x,), {}), nodes, 0)
    by_weight = {c.weight: found[c.node] for c in graph.contractions}
    last = by_weight["blocks.1.down.weight"].view(3, 7)
    assert (last[:, 0] > 0).all() and (last[:, 1:] == 0).all()
    assert (by_weight["blocks.0.down.weight"] > 0).all()
    (weights,) = row_weights([last.flatten()], 0.5) or [torch.zeros(0)]
    assert float(weights.mean()) == pytest.approx(1)
    assert row_weights([last], 0) is None and row_weights([last * 0], 0.5) is None


# ------------------------------------------------------------------- calibration


def prepared_(models: list[nn.Module], batches: list[Any], calibrate: Mapping[str, Any] | None = None) -> Prepared:
    return prepare(models, data=batches, config={"calibrate": dict(calibrate or {}), "samples": 10**6})


def calibrated(
    prepared: Prepared, damage: float = 0.0, shares: tuple[float, ...] = (0.5, 0.5)
) -> tuple[dict[str, Tensor], Calibration]:
    """The averaged state, with some noise on the weights of contractions, and what calibration makes of it."""
    alignment = match(prepared)
    state = average(prepared, alignment, shares)
    generator = torch.Generator().manual_seed(5)
    for value in (state[found.weight] for found in prepared.correspondence.graph.contractions):
        value += damage * value.std() * torch.randn(value.shape, generator=generator)
    return state, calibrate(prepared, alignment, state, shares)


def outputs(model: nn.Module, state: Mapping[str, Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.func.functional_call(model, dict(state), (x,))


ZOO: dict[str, tuple[Callable[[], nn.Module], Callable[[], list[Tensor]]]] = {
    "mlp": (MLP, lambda: [torch.randn(64, 5) for _ in range(4)]),
    "resnet": (lambda: ResNet((5, 6)), lambda: [images(8) for _ in range(4)]),
    "encoder": (lambda: Encoder(depth=1), lambda: [ids(16, 9, 31) for _ in range(8)]),
    "unet": (UNet, lambda: [images(4) for _ in range(4)]),
}


@pytest.mark.parametrize("name", ZOO)
def test_least_squares_finds_the_parents_function_again(name: str) -> None:
    """The parents are one function in two orders; the averaged weights are spoilt; what they were comes back."""
    build, data = ZOO[name]
    model, batches = scaled(build()), data()
    prepared = prepared_([model, planted(model, batches[0])], batches, {"batch_norm": False, "ridge": 1e-8})
    state, found = calibrated(prepared, damage=0.3)
    x = batches[0]
    wanted = outputs(model, {}, x)
    scale = float(wanted.std())
    skipped = [weight for weight, _ in found.left]
    assert not skipped
    assert float((outputs(model, state, x) - wanted).std()) > 0.05 * scale
    assert float((outputs(model, found.state, x) - wanted).std()) < 0.02 * scale


@pytest.mark.parametrize("name", ZOO)
def test_no_node_gets_worse_on_held_out_inputs(name: str) -> None:
    build, data = ZOO[name]
    _, found = calibrated(prepared_([scaled(build(), 1), scaled(build(), 2)], data()))
    assert found.nodes and any(node.kept for node in found.nodes)
    for node in found.nodes:
        assert node.after <= node.before * (1 + 1e-9), node
        assert node.kept == (node.step > 0) == (node.after < node.before), node


def test_inputs_left_aside_are_fitted_better_than_by_averaging() -> None:
    """The mean of two unrelated teachers, on inputs that calibration never saw."""
    models: list[nn.Module] = [scaled(MLP((5, 40, 40, 3)), 1), scaled(MLP((5, 40, 40, 3)), 2)]
    state, found = calibrated(prepared_(models, [torch.randn(100, 5) for _ in range(10)]))
    x = torch.randn(500, 5)
    wanted = (outputs(models[0], {}, x) + outputs(models[1], {}, x)) / 2
    before, after = (float((outputs(models[0], s, x) - wanted).square().mean()) for s in (state, found.state))
    assert after < 0.5 * before


def _recorder(seen: dict[str, Tensor], name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def record(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen[name] = args[0]

    return record


def settled(model: nn.Module, x: Tensor) -> nn.Module:
    """With batch norms whose statistics are those of these very inputs."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    model.train()(x)
    return model.eval()


def test_statistics_are_those_of_the_fused_models_own_activations() -> None:
    x = images(64)
    models = [settled(scaled(ResNet((5, 6)), seed), x) for seed in (1, 2)]
    before, found = calibrated(prepared_(models, [x[:32], x[32:]]))
    reference = ResNet((5, 6)).eval()
    state: dict[str, Any] = dict(found.state)
    reference.load_state_dict(state, strict=False)
    seen: dict[str, Tensor] = {}
    for name, module in reference.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(_recorder(seen, name))
    with torch.no_grad():
        reference(x)
    assert len(found.statistics) == len(seen) > 4
    moved = 0.0
    for name, value in seen.items():
        rows = value.movedim(1, -1).flatten(0, -2)
        scale = float(rows.std(0).mean())
        assert_close(found.state[f"{name}.running_mean"], rows.mean(0), rtol=0, atol=0.02 * scale)
        assert_close(found.state[f"{name}.running_var"], rows.var(0), rtol=0.02, atol=1e-5)
        moved = max(moved, float((before[f"{name}.running_mean"] - rows.mean(0)).abs().max()) / scale)
    assert moved > 0.1


def test_statistics_of_a_model_fused_with_itself_stay_although_the_inputs_have_others() -> None:
    model, x = scaled(ResNet((5, 6))), images(16)
    state, found = calibrated(prepared_([model, planted(model, x)], [x], {"method": "batch_norm"}))
    for name, value in state.items():
        assert_close(found.state[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("setting", "moves"),
    [({"method": "batch_norm"}, "running"), ({"batch_norm": False}, "weight"), ({}, "both")],
)
def test_each_part_can_be_switched_off(setting: dict[str, bool], moves: str) -> None:
    models: list[nn.Module] = [scaled(ResNet((5, 6)), 1), scaled(ResNet((5, 6)), 2)]
    state, found = calibrated(prepared_(models, [images(16)], setting))
    changed = {name for name, value in found.state.items() if not torch.equal(value, state[name])}
    assert any("running" in name for name in changed) == (moves in ("running", "both"))
    assert any(name.startswith("head") for name in changed) == (moves in ("weight", "both"))


@pytest.mark.parametrize(
    "setting", [{"drift": False}, {"sensitivity": 0.0}, {"ridge": 1.0}, {"ridge": [1.0, 1e-3]}, {"holdout": 0.0}]
)
def test_every_setting_makes_a_difference(setting: dict[str, Any]) -> None:
    def state(config: Mapping[str, Any]) -> Mapping[str, Tensor]:
        models: list[nn.Module] = [scaled(Encoder(depth=1), 1), scaled(Encoder(depth=1), 2)]
        torch.manual_seed(3)
        return calibrated(prepared_(models, [ids(16, 9, 31) for _ in range(5)], config))[1].state

    plain, other = state({}), state(setting)
    assert any(not torch.equal(value, other[name]) for name, value in plain.items())


def test_the_output_of_a_layer_makes_up_for_what_the_skip_is_off_by() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.mix, self.drop = nn.Parameter(torch.randn(6, 6)), nn.Linear(6, 6), nn.Dropout(0.1)

        def forward(self, x: Tensor) -> Tensor:
            skip = torch.exp(-((x @ torch.diag_embed(torch.ones(6))) ** 2)) * self.table.sum()
            return skip + self.drop(self.mix(x))

    model, x = Residual().eval(), torch.randn(30, 6)
    (due,) = plan_of(trace(model, (x,)), CalibrateConfig.model_validate({})).fits.values()
    assert due.skip == "mul"
    assert (
        next(iter(plan_of(trace(model, (x,)), CalibrateConfig.model_validate({"drift": False})).fits.values())).skip
        is None
    )


def test_a_matrix_that_several_nodes_read_stays_averaged_and_is_listed() -> None:
    models: list[nn.Module] = [scaled(Decoder(depth=1), 1), scaled(Decoder(depth=1), 2)]
    state, found = calibrated(prepared_(models, [ids(16, 9, 31)]))
    assert ("tokens.weight", "used by several nodes") in found.left
    assert_close(found.state["tokens.weight"], state["tokens.weight"], rtol=0, atol=0)
    assert "tokens.weight" not in {node.weight for node in found.nodes}


def test_batches_may_differ_in_shape() -> None:
    models: list[nn.Module] = [scaled(MLP(), 1), scaled(MLP(), 2)]
    _, found = calibrated(prepared_(models, [torch.randn(50, 5), torch.randn(50, 5), torch.randn(13, 5)]))
    assert found.inputs == 113 and not found.left and all(node.step > 0 for node in found.nodes)
    with pytest.raises(DataError, match="no batch"):
        prepared_(models, [])


@pytest.mark.parametrize("order", [(24, 18), (18, 24)])
def test_parents_of_another_width_run_in_their_own_graphs(order: tuple[int, int]) -> None:
    models: list[nn.Module] = [scaled(Encoder(width, width // 6, 1, 2 * width), width) for width in order]
    state, found = calibrated(prepared_(models, [ids(16, 9, 31) for _ in range(5)]))
    assert {name: value.shape for name, value in found.state.items()} == {
        name: value.shape for name, value in state_of(models[0]).items()
    }
    assert not found.left and all(node.after <= node.before for node in found.nodes)
    x = ids(64, 9, 31)
    wanted = sum(outputs(model, {}, x) for model in models) / 2
    before, after = (float((outputs(models[0], s, x) - wanted).square().mean()) for s in (state, found.state))
    assert after < before


def test_the_targets_are_the_parents_outputs_in_the_given_shares() -> None:
    """With all of the share on one parent, its function comes back, whatever the averaged weights were."""
    models: list[nn.Module] = [scaled(MLP(), 1), scaled(MLP(), 2)]
    prepared = prepared_(models, [torch.randn(200, 5) for _ in range(5)], {"ridge": 1e-8})
    alignment = match(prepared)
    state = average(prepared, alignment, (0.5, 0.5))
    found = calibrate(prepared, alignment, state, (1.0, 0.0))
    x = torch.randn(50, 5)
    assert_close(outputs(models[0], found.state, x), outputs(models[0], {}, x), rtol=1e-2, atol=1e-2)


def test_calibration_repeats_exactly_and_changes_nothing_that_it_was_given() -> None:
    models: list[nn.Module] = [scaled(ResNet((5, 6)), 1), scaled(ResNet((5, 6)), 2)]
    parents = [{name: value.clone() for name, value in state_of(model).items()} for model in models]
    prepared = prepared_(models, [images(8), images(8)])
    alignment = match(prepared)
    state = average(prepared, alignment, (0.5, 0.5))
    given = {name: value.clone() for name, value in state.items()}
    first, second = (calibrate(prepared, alignment, state, (0.5, 0.5)) for _ in range(2))
    assert dataclasses.asdict(first.nodes[0]) == dataclasses.asdict(second.nodes[0])
    for name, value in first.state.items():
        assert torch.equal(value, second.state[name])
        assert torch.equal(state[name], given[name])
        assert all(torch.equal(state_of(m)[name], p[name]) for m, p in zip(models, parents, strict=True))
        assert not value.requires_grad


def test_a_graph_without_gradients_counts_all_rows_the_same() -> None:
    class Rounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(5, 7), nn.Linear(7, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(torch.relu(self.one(x))).argmax(-1)

    models: list[nn.Module] = [randomise(Rounded(), 1), randomise(Rounded(), 2)]
    _, found = calibrated(prepared_(models, [torch.randn(50, 5)]))
    assert len(found.nodes) == 2


def test_of_several_ridges_a_layer_takes_the_one_that_is_best_on_held_out_rows() -> None:
    models: list[nn.Module] = [scaled(Encoder(depth=1), 1), scaled(Encoder(depth=1), 2)]
    torch.manual_seed(3)
    batches, ridges = [ids(16, 9, 31) for _ in range(5)], (1e-4, 1e-2, 1.0)
    alone = [calibrated(prepared_(models, batches, {"ridge": ridge}))[1].nodes[0] for ridge in ridges]
    chosen = calibrated(prepared_(models, batches, {"ridge": ridges}))[1].nodes[0]
    best = min(alone, key=lambda node: node.after)
    assert (chosen.ridge, chosen.after) == (best.ridge, pytest.approx(best.after))
    assert len({node.ridge for node in alone}) == 3 and len({node.after for node in alone}) == 3
    whole = calibrated(prepared_(models, batches, {"ridge": ridges, "holdout": 0.0}))[1].nodes[0]
    assert whole.ridge == 1e-4  # without held-out rows the first
