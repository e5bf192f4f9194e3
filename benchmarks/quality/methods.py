"""Every way of making one model of the parents that the tables compare, and how each is measured.

Fusing sees the parents and at most 512 unlabelled inputs; what has to be chosen is chosen on validation data.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graphfuse.depth import match_depth
from graphfuse.errors import GraphFuseError
from graphfuse.fuse import FuseResult, fuse
from graphfuse.roles import ROLES
from quality import training
from quality.data import Data, Part

SAMPLES, BATCH = 512, 64
STEPS, RATES, TUNING_SEED = 60, (1e-4, 3e-4, 1e-3), 1_000_003
POINTS, BARRIER = 11, 1000
BARE = {"least_squares": False, "batch_norm": True}
UNALIGNED = {role: {"align": False} for role in ROLES}
STAGES = ("oneshot", "calibrated", "refined", "tuned", "barrier")
Config = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """A column of the tables; without ``config`` it is no fusion."""

    title: str
    config: Config | None = None


METHODS: dict[str, Method] = {
    "parents": Method("parents"),
    "ensemble": Method("ensemble"),
    "plain": Method("plain average", {"roles": UNALIGNED, "method": "weights"}),
    "weights": Method("weight matching", {"method": "weights"}),
    "activations": Method("activation matching", {"method": "activations"}),
    "flow": Method("flow (the paper's)", {"driver": "flow"}),
    "default": Method("graphfuse default", {}),
    "auto": Method("graphfuse auto", {"method": "auto"}),
}


class Skipped(Exception):
    """A cell that cannot be filled, and why."""


@dataclass(frozen=True)
class Bench:
    """What is fused and measured: models of one depth (the first is the target), the data, the metric."""

    models: tuple[nn.Module, ...]
    data: Data
    metric: str
    samples: int = SAMPLES
    batch: int = 128
    tuning: Part | None = None

    @property
    def unlabelled(self) -> list[Tensor]:
        """All that fusing sees."""
        return list(self.data.train.inputs[: self.samples].split(BATCH))

    @property
    def same_shapes(self) -> bool:
        """Whether the models' plain average exists."""
        shapes = [[tuple(p.shape) for p in model.parameters()] for model in self.models]
        return all(other == shapes[0] for other in shapes)

    def better(self, a: float, b: float) -> bool:
        """Whether score ``a`` is better than ``b``."""
        return a < b if self.metric == "loss" else a > b

    def scores(self, model: nn.Module) -> dict[str, float]:
        """A model on validation and test data."""
        return {part: training.score(model, getattr(self.data, part), self.metric) for part in ("val", "test")}


Cell = dict[str, Any]
"""What a record says of a cell besides where it stands: scores, seconds, samples, or ``skipped`` with the reason."""


def same_depth(models: Sequence[nn.Module], data: Data) -> tuple[nn.Module, ...]:
    """The models, those of another depth than the first brought to its depth."""
    target, inputs = models[0], list(data.train.inputs[:SAMPLES].split(BATCH))
    names = target.state_dict().keys()
    return tuple(m if m.state_dict().keys() == names else match_depth(target, m, inputs).model for m in models)


def cells(name: str, bench: Bench, stages: Sequence[str], parents: Sequence[nn.Module]) -> dict[str, Cell]:
    """The cells of a column for one pair: stage -> what was measured.

    ``parents`` are the models before they were brought to one depth; they are what is scored as such.
    """
    if name == "ensemble":
        return {"oneshot": _ensemble(bench, parents)} if "oneshot" in stages else {}
    if name == "parents":
        return _parents(bench, stages, parents)
    return _fusions(METHODS[name].config or {}, bench, stages)


def _ensemble(bench: Bench, parents: Sequence[nn.Module]) -> Cell:
    def mean(part: Part) -> float:
        outputs = zip(*(training.scores_of(model, part.inputs) for model in parents), strict=True)
        return training.score_of((torch.stack(scores).mean(0) for scores in outputs), part, bench.metric)

    begin = time.perf_counter()
    found = {"val": mean(bench.data.val), "test": mean(bench.data.test)}
    return {**found, "seconds": time.perf_counter() - begin, "samples": 0}


def _parents(bench: Bench, stages: Sequence[str], parents: Sequence[nn.Module]) -> dict[str, Cell]:
    found: dict[str, Cell] = {}
    if "oneshot" in stages:
        found["oneshot"] = {"each": [bench.scores(model) for model in parents], "samples": 0}
    if "tuned" in stages:
        found["tuned"] = {"each": [_tuned(bench, model) for model in parents], "samples": 0}
    for cell in found.values():
        best = min(cell["each"], key=lambda one: one["val"] if bench.metric == "loss" else -one["val"])
        seconds = sum(one.get("seconds", 0) for one in cell["each"])
        cell |= {"val": best["val"], "test": best["test"], "seconds": seconds}
    return found


def _fusions(config: Config, bench: Bench, stages: Sequence[str]) -> dict[str, Cell]:
    found: dict[str, Cell] = {}
    results: dict[str, FuseResult] = {}
    extra: dict[str, Config] = {
        "oneshot": {"calibrate": BARE}, "calibrated": {}, "refined": {"refine": {"enabled": True}},
    }  # fmt: skip
    needed = set(stages) | ({"oneshot"} if "barrier" in stages else set())
    needed |= {"oneshot", "calibrated"} if "tuned" in stages else set()
    for stage, more in extra.items():
        if stage in needed:
            try:
                results[stage], seconds = _fused(bench, {**config, **more})
            except Skipped as reason:
                found[stage] = {"skipped": str(reason)}
                continue
            found[stage] = {**bench.scores(results[stage].model), "seconds": seconds, "samples": bench.samples}
    models = {stage: result.model for stage, result in results.items()}
    later: dict[str, Callable[[], Cell]] = {
        "tuned": lambda: _tuned_best(bench, models, found),
        "barrier": lambda: _barrier(bench, results["oneshot"]),
    }
    for stage, measure in later.items():
        if stage in stages:
            found[stage] = measure() if results else {"skipped": next(iter(found.values()))["skipped"]}
    return found


def _fused(bench: Bench, config: Config) -> tuple[FuseResult, float]:
    """A fusion and its seconds; Skipped where graphfuse refuses."""
    if not bench.same_shapes and config.get("roles") == UNALIGNED:
        raise Skipped("models of different widths have no plain average")
    begin = time.perf_counter()
    try:
        result = fuse(bench.models, data=bench.unlabelled, config={"samples": bench.samples, **config})
    except GraphFuseError as error:
        raise Skipped(str(error).splitlines()[0]) from error
    return result, time.perf_counter() - begin


def _tuned_best(bench: Bench, models: Mapping[str, nn.Module], cells: Mapping[str, Cell]) -> Cell:
    """Fine-tuning of the stage that is best on validation data."""
    best = next(iter(models))
    for stage in models:
        best = stage if bench.better(cells[stage]["val"], cells[best]["val"]) else best
    return {**_tuned(bench, models[best]), "from": best, "samples": STEPS * bench.batch}


def _tuned(bench: Bench, model: nn.Module) -> Cell:
    """The same labelled batches and steps for every model, at the rate that is best on validation data."""
    begin, best, kept = time.perf_counter(), None, None
    for rate in RATES:
        recipe = training.Recipe(STEPS, rate, bench.batch)
        tuned = training.optimise(copy.deepcopy(model), bench.tuning or bench.data.train, recipe, TUNING_SEED)
        val = training.score(tuned, bench.data.val, bench.metric)
        if best is None or bench.better(val, best["val"]):
            best, kept = {"val": val, "rate": rate}, tuned
    assert best is not None and kept is not None
    test = training.score(kept, bench.data.test, bench.metric)
    return {**best, "test": test, "seconds": time.perf_counter() - begin}


@torch.no_grad()
def _barrier(bench: Bench, result: FuseResult) -> Cell:
    """The largest rise of the loss above the straight line between its ends, from the first to the aligned second."""
    target, part = bench.models[0], bench.data.test.take(slice(BARRIER))
    ends = [result.alignment.apply(model.state_dict(), k) for k, model in enumerate(bench.models[:2])]
    begin, losses = time.perf_counter(), []
    for i in range(POINTS):
        point = copy.deepcopy(target)
        point.load_state_dict({
            name: torch.lerp(value, ends[1][name], i / (POINTS - 1)) if value.is_floating_point() else value
            for name, value in ends[0].items()
        })  # fmt: skip
        if 0 < i < POINTS - 1:
            reestimate(point, bench.unlabelled)
        losses.append(training.score(point, part, "loss"))
    line = torch.linspace(losses[0], losses[-1], POINTS)
    barrier = (torch.tensor(losses) - line).max().item()
    return {"test": barrier, "losses": losses, "seconds": time.perf_counter() - begin, "samples": bench.samples}


@torch.no_grad()
def reestimate(model: nn.Module, inputs: Sequence[Tensor]) -> nn.Module:
    """Give each batch norm of a model, in place, the statistics of these inputs; other models stay as they are."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    kept = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over all batches
        norm.train()
    if norms:
        for batch in inputs:
            model(batch)
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
        norm.eval()
    return model
