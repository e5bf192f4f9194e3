"""Fusing one pair of the demo in every way, and measuring each on the test images.

Fusing is one call, :func:`graphfuse.fuse.fuse` with the models, unlabelled images and a config: nothing in here knows
what the models look like inside.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from graphfuse.demo import recipes
from graphfuse.demo.data import Splits, batches
from graphfuse.demo.pairs import Pair
from graphfuse.demo.results import PairResult
from graphfuse.fuse import fuse

STEPS = 40  # of fine-tuning
RATE = 3e-4
TUNING_SEED = 1_000_003
POINTS = 11
SOFT = {"solver": "sinkhorn"}
UNALIGNED = {"align": False}
State = Mapping[str, Tensor]


class Fused(Protocol):
    """What the demo needs of the result of a fusion."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def alignment(self) -> Any: ...

    @property
    def report(self) -> dict[str, Any]: ...


Fuser = Callable[..., Fused]


def evaluate(
    pair: Pair,
    models: Sequence[nn.Module],
    splits: Splits,
    *,
    fuser: Fuser = fuse,
    progress: recipes.Progress = lambda done, steps: None,
) -> PairResult:
    """Fuse the models of a pair and measure everything that the demo shows about it.

    Parameters
    ----------
    pair : Pair
    models : sequence of nn.Module
        Its trained networks, in its order.
    splits : Splits
        ``unlabelled`` is what fusing sees, ``train`` what fine-tuning sees, ``test`` what measures.
    fuser : callable
        ``fuser(models, data=..., config=...)``.
    progress : callable
        Called with the steps done and the steps in all.

    Returns
    -------
    PairResult
    """
    began, steps = time.monotonic(), iter(range(1, 8))

    def step() -> None:
        progress(next(steps), 7)

    inputs, test = batches(splits.unlabelled), splits.test
    accuracies = tuple(recipes.accuracy(model, test) for model in models)
    scores = torch.stack([recipes.logits(model, test.images) for model in models])
    plain = average([model.state_dict() for model in models]) if pair.same_kind else None
    averaged = _loaded(models[0], plain) if plain else None
    step()
    hard = fuser(models, data=inputs, config={"target": pair.target})
    step()
    soft = fuser(models, data=inputs, config={"target": pair.target, **SOFT})
    step()
    calibrated = _unaligned(fuser, models, inputs, hard.report) if pair.same_kind else None
    step()
    moved = [hard.alignment.apply(model.state_dict(), k) for k, model in enumerate(models)]
    aligned = recipes.reestimate(_loaded(models[pair.target], average(moved)), splits.unlabelled)
    aligned_curve = _curve(models[pair.target], (moved[0], moved[-1]), splits)
    step()
    plain_curve = _curve(models[0], (models[0].state_dict(), models[-1].state_dict()), splits) if plain else None
    step()
    best = models[max(range(len(models)), key=accuracies.__getitem__)]
    tuned = {"parent": best, "plain": averaged, "fused": hard.model}
    result = PairResult(
        name=pair.name,
        title=pair.title,
        parents=tuple(map(str, pair.parents)),
        accuracies=accuracies,
        ensemble=recipes.agreement(scores.mean(dim=0), test.labels),
        plain=recipes.accuracy(averaged, test) if averaged else None,
        plain_statistics=_restated(averaged, splits) if averaged else None,
        plain_calibrated=recipes.accuracy(calibrated, test) if calibrated else None,
        aligned=recipes.accuracy(aligned, test),
        hard=recipes.accuracy(hard.model, test),
        soft=recipes.accuracy(soft.model, test),
        tuned={name: _tuned(model, splits) if model else None for name, model in tuned.items()},
        plain_curve=plain_curve,
        aligned_curve=aligned_curve,
        seconds=time.monotonic() - began,
        report=hard.report,
    )
    step()
    return result


def average(states: Sequence[State]) -> dict[str, Tensor]:
    """The mean of states of equal shapes, name by name; what is no floating-point number is the first's."""
    return {
        name: torch.stack([state[name] for state in states]).mean(dim=0) if value.is_floating_point() else value.clone()
        for name, value in states[0].items()
    }


def _loaded(model: nn.Module, state: State) -> nn.Module:
    """A copy of the model with other weights."""
    other = copy.deepcopy(model)
    other.load_state_dict(state)
    return other.eval()


def _unaligned(fuser: Fuser, models: Sequence[nn.Module], inputs: list[Tensor], report: Mapping[str, Any]) -> nn.Module:
    """Everything that fusing does but the alignment: unit i is paired with unit i on every axis."""
    roles = {axis["role"]: UNALIGNED for axis in report.get("axes", [])}
    return fuser(models, data=inputs, config={"roles": roles}).model


def _curve(model: nn.Module, ends: Sequence[State], splits: Splits) -> tuple[float, ...]:
    """Accuracies along the straight line between two states, batch norms re-estimated between the ends."""
    first, last = ends
    accuracies = []
    for i in range(POINTS):
        share = i / (POINTS - 1)
        state = {
            name: torch.lerp(value, last[name], share) if value.is_floating_point() else value
            for name, value in first.items()
        }
        point = _loaded(model, state)
        if 0 < i < POINTS - 1:
            recipes.reestimate(point, splits.unlabelled)
        accuracies.append(recipes.accuracy(point, splits.test))
    return tuple(accuracies)


def _restated(model: nn.Module, splits: Splits) -> float | None:
    """Accuracy with batch norms re-estimated; None where there is none."""
    restated = recipes.reestimate(copy.deepcopy(model), splits.unlabelled)
    changed = any(not torch.equal(a, b) for a, b in zip(model.buffers(), restated.buffers(), strict=True))
    return recipes.accuracy(restated, splits.test) if changed else None


def _tuned(model: nn.Module, splits: Splits) -> float:
    """Accuracy after the fine-tuning that every model gets: the same batches, steps and rate."""
    return recipes.accuracy(recipes.finetune(copy.deepcopy(model), STEPS, RATE, TUNING_SEED), splits.test)
