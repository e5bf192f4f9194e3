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
from graphfuse.evaluation.states import State, at, batch_norms, line, mean_state, restated
from graphfuse.fuse import fuse
from graphfuse.lockstep import Batch, as_batch

STEPS = 40  # of fine-tuning
RATE = 3e-4
TUNING_SEED = 1_000_003
POINTS = 11
SOFT = {"solver": "sinkhorn"}
UNALIGNED = {"align": False}


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
    plain = mean_state([model.state_dict() for model in models]) if pair.same_kind else None
    averaged = at(models[0], plain) if plain else None
    step()
    hard = fuser(models, data=inputs, config={"target": pair.target})
    step()
    soft = fuser(models, data=inputs, config={"target": pair.target, **SOFT})
    step()
    calibrated = _unaligned(fuser, models, inputs, hard.report) if pair.same_kind else None
    step()
    moved = [hard.alignment.apply(model.state_dict(), k) for k, model in enumerate(models)]
    aligned = restated(at(models[pair.target], mean_state(moved)), _inputs(splits))
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


def _unaligned(fuser: Fuser, models: Sequence[nn.Module], inputs: list[Tensor], report: Mapping[str, Any]) -> nn.Module:
    """Everything that fusing does but the alignment: unit i is paired with unit i on every axis."""
    roles = {axis["role"]: UNALIGNED for axis in report.get("axes", [])}
    return fuser(models, data=inputs, config={"roles": roles}).model


def _curve(model: nn.Module, ends: Sequence[State], splits: Splits) -> tuple[float, ...]:
    """Accuracies along the straight line between two states, batch norms re-estimated between the ends."""
    first, last = ends
    points = line(model, first, last, POINTS, _inputs(splits))
    return tuple(recipes.accuracy(point, splits.test) for _, point in points)


def _inputs(splits: Splits) -> list[Batch]:
    return [as_batch(images) for images in batches(splits.unlabelled)]


def _restated(model: nn.Module, splits: Splits) -> float | None:
    """Accuracy with batch norms re-estimated; None where there is none."""
    return (
        recipes.accuracy(restated(copy.deepcopy(model), _inputs(splits)), splits.test) if batch_norms(model) else None
    )


def _tuned(model: nn.Module, splits: Splits) -> float:
    """Accuracy after the fine-tuning that every model gets: the same batches, steps and rate."""
    return recipes.accuracy(recipes.finetune(copy.deepcopy(model), STEPS, RATE, TUNING_SEED), splits.test)
