"""Refinement by gradient, and the search for the best settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import randomise
from models import Decoder
from torch import Tensor, nn
from torch.testing import assert_close

import graphfuse
from graphfuse.alignment import match, prepare
from graphfuse.capture import state_of
from graphfuse.config import FuseConfig, RefineConfig
from graphfuse.errors import ConfigError, DataError
from graphfuse.lockstep import Batch, parted
from graphfuse.refine import finetune, refine_maps
from graphfuse.refine.loop import Budget, descend, peak_share
from graphfuse.teacher import Teacher, held_out, run_model
from graphfuse.transport.solvers import differentiable

SHARES = (0.5, 0.5)


def net(seed: int, width: int = 16) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 3))
    randomise(model, seed)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5)
    return model.eval()


def inputs(n: int = 4, size: int = 32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(size, 5, generator=generator) for _ in range(n)]


def distance(model: nn.Module, models: list[nn.Module], loss: Any = "squared") -> float:
    batches = [Batch((x,), {}) for x in inputs()]
    return held_out(Teacher.of(models, SHARES, batches, loss), lambda batch: run_model(model, None, batch))


def test_weights_come_nearer_to_the_parents_mean_outputs() -> None:
    models: list[nn.Module] = [net(1), net(2)]
    plain = graphfuse.fuse(models, data=inputs())
    for loss in ("squared", "divergence"):
        config = {"refine": {"what": "weights", "steps": 60, "rate": 0.02, "loss": loss, "batch": 16}}
        result = graphfuse.fuse(models, data=inputs(), config=config)
        found = result.report["refinement"]["weights"]
        assert found["after"] < 0.8 * found["before"] and found["kept"] > 0
        assert distance(result.model, models, loss) < 0.8 * distance(plain.model, models, loss)
        assert not any(p.grad is not None for p in result.model.parameters())
        assert all(p.requires_grad for p in result.model.parameters())


@pytest.mark.parametrize("straight", [True, False])
def test_maps_come_nearer_and_stay_maps(straight: bool) -> None:
    models: list[nn.Module] = [net(1), net(2)]
    config = {"calibrate": {"method": "batch_norm"}, "symmetry": "permutation", "method": "activations"}
    refine = {"what": "maps", "steps": 40, "straight_through": straight, "maps_rate": 0.3}
    plain = graphfuse.fuse(models, data=inputs(), config=config)
    result = graphfuse.fuse(models, data=inputs(), config={**config, "refine": refine})
    assert result.report["refinement"]["maps"]["kept"] > 0
    assert distance(result.model, models) < distance(plain.model, models)
    for found in result.alignment.models[1].maps.values():
        assert found.hard == straight
        assert_close(found.coupling().sum((-2, -1)), torch.tensor(1.0))
    for before, after in zip(models, [net(1), net(2)], strict=True):
        assert all(torch.equal(x, y) for x, y in zip(state_of(before).values(), state_of(after).values(), strict=True))


def test_rotations_are_refined_as_rotations() -> None:
    def build(seed: int) -> nn.Module:
        model = Decoder(depth=1).eval()
        model.head = nn.Linear(24, 31)
        randomise(model, seed)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(0.4 if p.dim() > 1 else 1.0)
        return model

    models = [build(1), build(2)]
    data = [torch.randint(0, 31, (8, 6), generator=torch.Generator().manual_seed(i)) for i in range(4)]
    prepared = prepare(models, data=data)
    start = match(prepared)
    settings = RefineConfig.model_validate({"what": "maps", "steps": 15, "maps_rate": 0.02})
    refined, descent = refine_maps(prepared, start, SHARES, settings)
    assert descent.kept > 0 and descent.after < descent.before
    stream = next(axis for axis in refined.axes if axis.role == "residual")
    q = refined.models[1].maps[stream.id].matrix
    assert q is not None and not torch.equal(q, start.models[1].maps[stream.id].values)
    assert_close(q[0] @ q[1].T, torch.eye(24), rtol=0, atol=1e-4)
    assert_close(q[0] @ torch.ones(24), torch.ones(24), rtol=0, atol=1e-4)


def test_the_step_of_the_least_held_out_loss_is_kept() -> None:
    models: list[nn.Module] = [net(1), net(2)]
    config = {"refine": {"what": "weights", "steps": 20, "rate": 1e9}}
    result = graphfuse.fuse(models, data=inputs(), config=config)
    assert result.report["refinement"]["weights"]["kept"] == 0  # such steps ruin everything
    assert distance(result.model, models) < 1


def test_a_time_budget_ends_a_descent() -> None:
    config = {"refine": {"what": "weights", "steps": 100_000, "seconds": 0.2}}
    found = graphfuse.fuse([net(1), net(2)], data=inputs(), config=config).report["refinement"]["weights"]
    assert 0 < found["steps"] < 100_000


def test_steps_that_are_too_large_are_taken_back_and_made_smaller() -> None:
    """With the same peak to the end, every look at the held-out loss finds it above that of the start."""
    models: list[nn.Module] = [net(1), net(2)]
    config = {"refine": {"what": "weights", "steps": 60, "rate": 3.0}}
    found = graphfuse.fuse(models, data=inputs(), config=config).report["refinement"]["weights"]
    assert found["kept"] > 0 and found["after"] < found["before"]


def test_a_loss_that_is_no_number_is_taken_back() -> None:
    point = torch.ones(1, requires_grad=True)

    def loss() -> Tensor:
        return (point.square() if abs(float(point.detach())) < 2 else point * float("nan")).sum()

    found = descend([([point], 100.0)], lambda step: loss(), lambda: float(loss().detach()), Budget(200))
    assert found.after < 0.1 * found.before and abs(float(point.detach())) < 1


@pytest.mark.parametrize("what", ["weights", "maps"])
def test_outputs_that_do_not_fit_are_made_again(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[nn.Module] = [net(1), net(2)]
    bare = {"calibrate": {"method": "batch_norm"}, "symmetry": "permutation", "method": "activations"}
    config = {**bare, "refine": {"what": what, "steps": 40, "batch": 20, "maps_rate": 0.3}}
    with torch.no_grad():
        values = torch.cat([run_model(model, None, Batch((torch.cat(inputs()),), {})) for model in models]).chunk(2)
    whole = graphfuse.fuse(models, data=inputs(), config=config)
    assert whole.report["refinement"][what]["kept"] > 0
    for room in (0, 2 * 4 * 32 * values[0].shape[-1]):  # none, and two batches of four
        monkeypatch.setattr("graphfuse.teacher.ROOM", room)
        teacher = Teacher.of(models, SHARES, [Batch((x,), {}) for x in inputs()], "squared")
        assert [target is None for target in teacher.targets] == [
            i >= room / 32 / 4 / values[0].shape[-1] for i in range(4)
        ]
        assert teacher.scales[0] == pytest.approx(float(torch.stack(values).mean(0).var(correction=0)), rel=1e-5)
        again = graphfuse.fuse(models, data=inputs(), config=config)
        for x, y in zip(state_of(whole.model).values(), state_of(again.model).values(), strict=True):
            assert_close(x, y, rtol=1e-4, atol=1e-5)


def test_correlation_is_blind_to_scales_and_shifts_of_rows() -> None:
    batch = Batch((torch.randn(6, 5),), {})
    teacher = Teacher.of([nn.Identity()], [1.0], [batch], "correlation")
    outputs = batch.args[0]
    assert float(teacher.measure(3 * outputs + torch.randn(6, 1), 0)) == pytest.approx(0, abs=1e-6)
    assert float(teacher.measure(-outputs, 0)) == pytest.approx(2)
    single = Teacher.of([nn.Identity()], [1.0], [Batch((outputs[:, :1],), {})], "correlation")
    assert float(single.measure(outputs[:, :1] + 1, 0)) == pytest.approx(1 / single.scales[0], rel=1e-4)


def test_the_step_size_has_fallen_when_the_time_is_over() -> None:
    budget = Budget(steps=100_000, seconds=10.0)
    shares = [peak_share(step, budget, step / 10) for step in range(100)]  # ten steps a second: a hundred will fit
    assert shares[5] < shares[10] > shares[50] > shares[99]
    assert shares[99] < 0.01
    assert peak_share(99, Budget(steps=100), 1e9) == peak_share(99, Budget(steps=100, seconds=1e9), 1.0)


def test_couplings_of_scores_have_gradients_and_marginals() -> None:
    scores = torch.randn(2, 4, 6, requires_grad=True)
    plan = differentiable(scores, 0.3, rounds=200)
    assert_close(plan.sum(-1), torch.full((2, 4), 1 / 4), rtol=0, atol=1e-4)
    assert_close(plan.sum(-2), torch.full((2, 6), 1 / 6), rtol=0, atol=1e-4)
    (gradient,) = torch.autograd.grad(plan[..., 0, 0].sum(), scores)
    assert float(gradient.abs().max()) > 0


@pytest.mark.parametrize("what", ["weights", "none"])
def test_refinement_may_see_more_inputs_than_the_alignment(what: str) -> None:
    data = [x[:8] for x in inputs(6)]
    config = {"samples": 16, "refine": {"what": what, "steps": 1, "samples": 40}}
    read: list[int] = []
    result = graphfuse.fuse([net(1), net(2)], data=(read.append(i) or x for i, x in enumerate(data)), config=config)
    assert result.report["inputs"] == 16
    assert len(read) == (5 if what == "weights" else 2)


def test_refinement_without_inputs_is_refused() -> None:
    with pytest.raises(DataError, match="no inputs to learn from"):
        graphfuse.fuse([net(1), net(2)], inputs()[0], config={"refine": {"what": "weights"}})
    with pytest.raises(ConfigError, match=r"refine\.what"):
        FuseConfig.parse({"refine": {"what": "everything"}})


def test_inputs_are_parted_in_whole_batches_or_in_rows() -> None:
    batches = [Batch((x,), {}) for x in inputs(5)]
    seen, held = parted(batches, 0.4)
    assert ([b.count for b in seen], [b.count for b in held]) == ([32] * 3, [32] * 2)
    seen, held = parted(batches[:1], 0.25)
    assert ([b.count for b in seen], [b.count for b in held]) == ([24], [8])
    assert_close(torch.cat([seen[0].args[0], held[0].args[0]]), batches[0].args[0])


# -------------------------------------------------------------------- fine-tuning


def test_finetuning_trains_a_copy() -> None:
    model, x = net(1), inputs(3)
    wanted = [net(9)(batch).detach() for batch in x]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tuned, found = finetune(
        model, list(zip(x, wanted, strict=True)), lambda m, batch: (m(batch[0]) - batch[1]).square().mean(),
        steps=60, rate=0.02,
    )  # fmt: skip
    assert found.after < 0.5 * found.before and found.steps == 60 and not tuned.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    _, found = finetune(model, x, lambda m, batch: m(batch).square().mean(), steps=100_000, seconds=0.1)
    assert 0 < found.steps < 100_000
    with pytest.raises(DataError, match="nothing to train on"):
        finetune(model, [], lambda m, batch: m(batch))


# -------------------------------------------------------------------- method auto


def test_auto_tries_chooses_the_best_and_says_so() -> None:
    models: list[nn.Module] = [net(1), net(2)]
    config = {"method": "auto", "budget": 600, "refine": {"steps": 30, "rate": 0.01}}
    result = graphfuse.fuse(models, data=inputs(8), config=config)
    tried = result.report["tried"]
    scores = [entry["score"] for entry in tried]
    assert len(tried) >= 7 and all(score is not None for score in scores)
    assert {entry["settings"]["method"] for entry in tried} == {"both", "activations", "weights", "blend"}
    assert {entry["settings"].get("driver", "coordinate") for entry in tried} == {"coordinate", "flow"}
    best = tried[scores.index(max(scores))]["settings"]
    assert result.report["config"]["method"] == best["method"]
    assert result.report["refinement"]["weights"]["steps"] == 30
    plain = graphfuse.fuse(models, data=inputs(8))
    assert distance(result.model, models) <= distance(plain.model, models)


def test_auto_obeys_the_users_score_and_says_what_failed() -> None:
    models: list[nn.Module] = [net(1), net(2, width=20)]  # cannot be averaged unaligned
    config = {"method": "auto", "budget": 600, "refine": {"steps": 1}}
    result = graphfuse.fuse(models, data=inputs(8), config=config, score=lambda m: -float(m(inputs()[0]).abs().sum()))
    failed = [entry for entry in result.report["tried"] if entry["score"] is None]
    assert len(failed) == 1 and "is not to be aligned" in failed[0]["reason"]


def test_auto_tries_no_more_than_its_budget_allows() -> None:
    config = {"method": "auto", "budget": 1e-3}
    result = graphfuse.fuse([net(1), net(2)], data=inputs(), config=config)
    assert len(result.report["tried"]) == 1 and result.report["refinement"] == {}


def test_auto_keeps_to_a_calibration_and_to_no_refinement() -> None:
    models: list[nn.Module] = [net(1), net(2)]
    config = {"method": "auto", "calibrate": {"method": "batch_norm"}, "refine": {"what": "none"}}
    result = graphfuse.fuse(models, data=inputs(8), config=config)
    assert len(result.report["tried"]) == 8 and result.report["refinement"] == {}
    assert not any("calibrate" in entry["settings"] for entry in result.report["tried"])
    assert result.report["config"]["calibrate"]["method"] == "batch_norm"
    plain = next(entry for entry in result.report["tried"] if "roles" in entry["settings"])
    average = graphfuse.fuse(models, data=inputs(8), config={**plain["settings"], "calibrate": config["calibrate"]})
    held = parted([Batch((x,), {}) for x in inputs(8)], 0.2)[1]
    assert -plain["score"] == pytest.approx(Teacher.of(models, SHARES, held, "correlation").distance(average.model))


def test_auto_reads_what_its_refinement_may_see() -> None:
    read: list[int] = []

    def batches_of_eight() -> Iterator[Tensor]:
        for i in range(100):
            read.append(i)
            yield inputs()[0][:8]

    config = {"method": "auto", "budget": 1e-3, "samples": 16, "refine": {"samples": 64}}
    graphfuse.fuse([net(1), net(2)], data=batches_of_eight(), config=config)
    assert len(read) == 8


def test_auto_without_data_compares_weights() -> None:
    result = graphfuse.fuse([net(1), net(2)], inputs()[0], config={"method": "auto"})
    tried = result.report["tried"]
    assert [entry["settings"]["symmetry"] for entry in tried] == ["full", "permutation"]
    assert all(-1.5 < entry["score"] < 0 for entry in tried)
    assert result.report["refinement"] == {}
