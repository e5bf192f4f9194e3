"""Evaluation, comparison and task vectors: numbers that are known beforehand, and what cannot be had is said."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same, randomise
from models import MLP, Decoder, Encoder, ResNet, ids, images
from torch import Tensor, nn

import graphfuse
from graphfuse.capture import state_of
from graphfuse.config import FuseConfig
from graphfuse.errors import CheckpointError, ConfigError, DataError
from graphfuse.evaluation import METRICS, Curve, Metric
from graphfuse.evaluation.metrics import metrics_for
from graphfuse.evaluation.states import at, line, mean_state, restated
from graphfuse.evaluation.tokens import next_tokens
from graphfuse.lockstep import as_batch
from graphfuse.permutations import permuted, sample
from graphfuse.symmetry import trace


def labelled(model: nn.Module, count: int = 60) -> list[tuple[Tensor, Tensor]]:
    """Inputs with the classes that the model itself names."""
    x = torch.randn(count, 5)
    with torch.no_grad():
        return [(part, model(part).argmax(-1)) for part in x.split(25)]


def twin(model: nn.Module, *args: Any) -> nn.Module:
    """The same function with its units in another order."""
    graph = trace(model, args)
    maps = sample(graph, torch.Generator().manual_seed(3))
    return at(model, permuted(graph, state_of(model), maps))


# ------------------------------------------------------------------ metrics


def test_metrics_are_what_torch_says_over_any_batches() -> None:
    scores, targets = torch.randn(9, 4), torch.tensor([0, 1, 2, 3, -100, 1, 1, 0, 2])
    counted = targets != -100
    expected = {
        "accuracy": float((scores.argmax(1) == targets)[counted].float().mean()),
        "loss": float(F.cross_entropy(scores, targets)),
        "perplexity": math.exp(float(F.cross_entropy(scores, targets))),
    }
    for name, value in expected.items():
        parts = [METRICS[name].part(*pair) for pair in zip(scores.split(4), targets.split(4), strict=True)]
        assert METRICS[name].total(parts) == pytest.approx(value, rel=1e-5)
    numbers = torch.randn(9, 1)
    assert METRICS["mse"].total([METRICS["mse"].part(numbers, numbers[:, 0] + 2)]) == pytest.approx(4)


@pytest.mark.parametrize(
    ("outputs", "targets", "expected"),
    [
        ((7, 3), torch.zeros(7, dtype=torch.long), ["accuracy", "loss"]),
        ((2, 5, 3), torch.zeros(2, 5, dtype=torch.long), ["loss", "perplexity"]),
        ((2, 3, 5, 4), torch.zeros(2, 5, 4, dtype=torch.long), ["accuracy", "loss"]),
        ((7, 1), torch.zeros(7), ["mse"]),
        ((7, 3), torch.zeros(7, 3), ["mse"]),
    ],
)
def test_a_metric_is_chosen_that_suits(outputs: tuple[int, ...], targets: Tensor, expected: list[str]) -> None:
    assert [metric.name for metric in metrics_for(None, torch.zeros(outputs), targets)] == expected


def test_metrics_that_do_not_suit_are_refused() -> None:
    with pytest.raises(DataError, match=r"no metric suits outputs \(7, 3\) and targets \(6,\) torch.int64"):
        metrics_for(None, torch.zeros(7, 3), torch.zeros(6, dtype=torch.long))
    with pytest.raises(ConfigError, match="no metric 'acuracy'; did you mean 'accuracy'"):
        metrics_for("acuracy", torch.zeros(7, 3), torch.zeros(7))
    with pytest.raises(DataError, match="do not name one class for each output"):
        METRICS["accuracy"].part(torch.zeros(7, 1), torch.zeros(7))
    with pytest.raises(DataError, match="mse needs targets of the outputs' shape"):
        METRICS["mse"].part(torch.zeros(7, 3), torch.zeros(7))


# ------------------------------------------------------------------ averages and lines


def test_a_mean_and_a_line_of_states() -> None:
    a, b = MLP(), MLP()
    mean = mean_state([state_of(a), state_of(b)], [0.25, 0.75])
    first, second = (model.state_dict()["0.weight"] for model in (a, b))
    assert_same(mean["0.weight"], 0.25 * first + 0.75 * second)
    points = list(line(a, state_of(a), state_of(b), 5, ()))
    assert [share for share, _ in points] == [0, 0.25, 0.5, 0.75, 1]
    assert_same(dict(state_of(points[3][1])), mean)


def test_batch_norms_get_the_statistics_of_the_inputs() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    batches = [torch.randn(32, 3) + 2, torch.randn(32, 3)]
    restated(model, map(as_batch, batches))
    expected = torch.stack([model[0](batch).mean(0) for batch in batches]).mean(0)
    assert_same(model[1].running_mean, expected, 1e-5)
    assert not model[1].training and model[1].momentum == 0.1


def test_a_barrier_is_how_much_worse_the_worst_point_is() -> None:
    assert Curve.of(METRICS["accuracy"], [0.8, 0.2, 0.6]).barrier == pytest.approx(0.5)
    assert Curve.of(METRICS["loss"], [1.0, 3.0, 2.0]).barrier == pytest.approx(1.5)
    assert Curve.of(METRICS["loss"], [1.0, 1.2, 2.0]).barrier == 0


# ------------------------------------------------------------------ evaluate


def test_a_model_and_its_twin_have_a_barrier_before_alignment_and_none_after() -> None:
    a = randomise(MLP())
    b = twin(a, torch.zeros(1, 5))
    before = [copy.deepcopy(model.state_dict()) for model in (a, b)]
    data = labelled(a)
    result = graphfuse.fuse([a, b], data=[x for x, _ in data], config={"symmetry": "permutation"})
    told: list[tuple[str, int, int]] = []
    metrics = ["loss", "accuracy"]
    found = graphfuse.evaluate([a, b], result, data, metrics, progress=lambda *step: told.append(step))
    assert found.metrics == ("loss", "accuracy") and found.inputs == 60
    assert found.parents[0]["accuracy"] == found.parents[1]["accuracy"] == 1
    assert found.ensemble is not None and found.ensemble["accuracy"] == 1
    assert found.ensemble["loss"] == pytest.approx(found.parents[0]["loss"], rel=1e-5)
    assert found.fused is not None and found.fused["loss"] == pytest.approx(found.parents[0]["loss"], rel=1e-3)
    assert found.plain is not None and found.plain["loss"] > 2 * found.parents[0]["loss"]
    assert found.before is not None and found.after is not None
    assert found.before.barrier > 0.1 and found.after.barrier < 1e-6
    assert len(found.before.values) == 11 and found.before.values[5] == pytest.approx(found.plain["loss"], rel=1e-5)
    assert told[-1] == ("evaluate", 25, 25) and [done for _, done, _ in told] == list(range(1, 26))
    assert found.to_json()["after"]["values"] == found.after.values
    assert "plain average" in str(found) and "barrier" in str(found)
    for model, state in zip((a, b), before, strict=True):
        assert_same(dict(model.state_dict()), dict(state), 0)


def test_weights_metrics_and_outputs_of_ones_own() -> None:
    a, b = randomise(MLP()), randomise(MLP(), 1)
    data = labelled(a)

    def wrong(outputs: Tensor, targets: Tensor) -> Tensor:
        assert outputs.shape == (60, 3) and targets.shape == (60,)
        return (outputs.argmax(1) != targets).float().mean()

    found = graphfuse.evaluate([a, b], a, data, [Metric.of(wrong, higher=False), "accuracy"], weights=[1, 0], points=3)
    assert found.metrics == ("wrong", "accuracy")
    assert found.ensemble == found.plain == found.fused == {"wrong": 0, "accuracy": 1} == found.parents[0]
    assert found.before is not None and found.before.metric == "wrong" and len(found.before.values) == 3
    assert found.after is None


def test_what_cannot_be_made_is_left_out_with_a_note() -> None:
    a, b = randomise(MLP()), randomise(MLP((5, 13, 7, 3)), 1)
    data = labelled(a)
    alignment = graphfuse.align([a, b], data=[x for x, _ in data])
    found = graphfuse.evaluate([a, b], None, data, alignment=alignment, points=3)
    assert found.plain is None and found.before is None and found.ensemble is not None
    assert found.after is not None and found.after.values[0] == 1
    assert any("differ in names or shapes" in note for note in found.notes)
    deep = randomise(MLP((5, 11, 7, 7, 3)), 2)
    other = graphfuse.align([deep, a], data=[x for x, _ in data], config={"layers": {"0": "0", "6": "4"}})
    found = graphfuse.evaluate([deep, a], None, data, alignment=other, points=3)
    assert found.after is None and "lacks layers of the target" in " ".join(found.notes)


def test_batch_norms_of_averages_are_re_estimated_and_it_is_said() -> None:
    a, b = randomise(ResNet()), randomise(ResNet(), 1)
    x = images()
    found = graphfuse.evaluate([a, b], None, [(x, torch.tensor([0, 1]))], points=2)
    assert "were re-estimated on the inputs" in found.notes[-1]
    alone = restated(at(a, mean_state([state_of(a), state_of(b)])), [as_batch(x)])
    with torch.no_grad():
        expected = F.cross_entropy(alone(x), torch.tensor([0, 1]))
    assert found.plain is not None and found.plain["loss"] == pytest.approx(float(expected), rel=1e-4)


def test_bad_input_to_evaluate() -> None:
    a, data = MLP(), [(torch.randn(4, 5), torch.zeros(4, dtype=torch.long))]
    with pytest.raises(DataError, match="nothing to evaluate"):
        graphfuse.evaluate([], None, data)
    with pytest.raises(DataError, match="the data yields no batch"):
        graphfuse.evaluate([a], None, [])
    with pytest.raises(ConfigError, match="the model returns no 'logit'"):
        graphfuse.evaluate([a], None, data, output="logit")
    with pytest.raises(DataError, match="the alignment is of 2 models, not of 3"):
        found = graphfuse.align([a, MLP()], torch.zeros(1, 5))
        graphfuse.evaluate([a, MLP(), MLP()], None, data, alignment=found)


def test_the_next_token_is_the_target_of_a_causal_model_alone() -> None:
    model, x = randomise(Decoder(depth=1)), ids(vocabulary=31)
    ((batch, targets),) = next_tokens(model, [x])
    assert torch.equal(targets[:, :-1], x[:, 1:]) and bool((targets[:, -1] == -100).all())
    found = graphfuse.evaluate([model], None, [(batch, targets)])
    with torch.no_grad():
        loss = F.cross_entropy(model(x)[:, :-1].flatten(0, 1), x[:, 1:].flatten())
    assert found.metrics == ("loss", "perplexity")
    assert found.parents[0]["perplexity"] == pytest.approx(math.exp(float(loss)), rel=1e-4)
    with pytest.raises(DataError, match="Encoder does not predict each token from those before it"):
        list(next_tokens(Encoder(depth=1).eval(), [x]))
    with pytest.raises(DataError, match="not token ids alone"):
        list(next_tokens(MLP(), [torch.randn(4, 5)]))


# ------------------------------------------------------------------ compare


def test_a_twin_is_alike_in_every_layer_and_matched_completely() -> None:
    a = randomise(MLP())
    b = twin(a, torch.zeros(1, 5))
    found = graphfuse.compare(a, b, [torch.randn(40, 5), torch.randn(40, 5)])
    assert [one.layer for one in found.layers] == ["0", "2", "4"] and found.inputs == 80
    assert all(one.cka == pytest.approx(1, abs=1e-6) for one in found.layers)
    for axis in found.axes:
        assert axis.after == pytest.approx(1, abs=1e-5) and axis.before is not None and axis.before < 0.9
    other = graphfuse.compare(a, randomise(MLP((5, 12, 7, 3)), 4), [torch.randn(80, 5)])
    assert all(one.cka < 0.95 for one in other.layers)
    assert other.axes[0].sizes == (11, 12) and other.axes[0].before is None
    assert "linear CKA" in str(found) and found.to_json()["layers"][0]["layer"] == "0"


def test_the_units_of_a_convolution_are_its_channels() -> None:
    a = randomise(nn.Sequential(nn.Conv1d(3, 6, 3), nn.ReLU(), nn.Conv1d(6, 4, 3)))
    b = twin(a, torch.zeros(1, 3, 9))
    found = graphfuse.compare(a, b, [torch.randn(16, 3, 9)])
    assert [one.cka for one in found.layers] == pytest.approx([1, 1], abs=1e-6)


# ------------------------------------------------------------------ task vectors


@pytest.mark.parametrize("symmetry", ["permutation", "full"])
def test_a_task_vector_carried_to_a_twin_does_there_what_it_did(symmetry: str) -> None:
    """With symmetry full the gains of norms are folded and the residual stream is rotated."""
    x = ids(vocabulary=31)
    target = randomise(Decoder(depth=1))
    base = twin(target, x)
    tuned = at(base, {name: value + 0.05 * torch.randn_like(value) for name, value in state_of(base).items()})
    alignment = graphfuse.align([target, base], data=[x], config={"symmetry": symmetry})
    assert bool(alignment.folds) is (symmetry == "full")
    vector = graphfuse.task_vector(alignment, tuned.state_dict(), base.state_dict())
    for scale, like in ((1.0, tuned), (0.0, target)):
        made = at(target, graphfuse.add_task_vector(alignment, target.state_dict(), vector, scale))
        with torch.no_grad():
            assert_same(made(x), like(x), 2e-3)
    with torch.no_grad():
        assert float((tuned(x) - target(x)).abs().max()) > 0.1


def test_task_vectors_that_do_not_fit_are_refused() -> None:
    a, b = MLP(), MLP()
    alignment = graphfuse.align([a, b], torch.zeros(1, 5))
    vector = graphfuse.task_vector(alignment, b.state_dict(), b.state_dict())
    assert all(not bool(value.any()) for value in vector.values())
    del vector["2.bias"]
    with pytest.raises(
        CheckpointError, match=r"the task vector does not fit: '2.bias' \(7,\) has no such tensor there"
    ):
        graphfuse.add_task_vector(alignment, a.state_dict(), vector)
    with pytest.raises(DataError, match="there is no model 2"):
        graphfuse.task_vector(alignment, b.state_dict(), b.state_dict(), model=2)


def test_weights_of_a_config_are_shares() -> None:
    assert FuseConfig.parse({"weights": [1, 3]}).shares(2) == (0.25, 0.75)
