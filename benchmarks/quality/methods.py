"""Every way of making one model of the parents that the tables compare, and how each is measured.

Fusing sees the parents and at most 512 unlabelled inputs; what has to be chosen is chosen on validation data.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from graphfuse.config import RefineConfig
from graphfuse.errors import GraphFuseError
from graphfuse.evaluation.states import restated
from graphfuse.fuse import FuseResult, fuse
from graphfuse.lockstep import as_batch, parted
from graphfuse.refine.weights import refine_weights
from graphfuse.roles import ROLES
from quality import training
from quality.data import Data, Part
from quality.tasks import Task

SAMPLES, BATCH = 512, 64
STEPS, RATES, TUNING_SEED = 60, (1e-5, 1e-4, 3e-4, 1e-3), 1_000_003
POINTS, BARRIER = 11, 1000
BARE = {"method": "batch_norm", "batch_norm": True}
BUDGET = 300
"""Seconds that auto may take, roughly."""
UNALIGNED = {role: {"align": False} for role in ROLES}
STAGES = ("oneshot", "calibrated", "refined", "longer", "tuned", "barrier")
NO_LABELS = "there are no labels to train these parents with"
Config = dict[str, Any]
REFINE = {"refined": (8192, 400), "longer": (32768, 1000)}
"""Inputs that refinement may see, and its steps; one shot and calibration see SAMPLES."""
FUSED = ("oneshot", "calibrated", "refined", "longer")
"""Stages that come of one call of ``fuse`` each."""


@dataclass(frozen=True)
class Method:
    """A column of the tables; of several configs the one that is best on validation data, and without any no fusion."""

    title: str
    configs: tuple[Config, ...] = ()


UNITS: Config = {"symmetry": "permutation"}
"""What is published permutes units."""

METHODS: dict[str, Method] = {
    "parents": Method("parents"),
    "ensemble": Method("ensemble"),
    "plain": Method("plain average", ({**UNITS, "roles": UNALIGNED, "method": "weights"},)),
    "weights": Method("weight matching", ({**UNITS, "method": "weights"},)),
    "activations": Method("activation matching", ({**UNITS, "method": "activations"},)),
    "flow": Method("flow (the paper's)", (
        {**UNITS, "driver": "flow", "method": "activations"},
        {**UNITS, "driver": "flow", "method": "activations", "solver": "sinkhorn"},
    )),
    "default": Method("graphfuse default", ({},)),
    "auto": Method("graphfuse auto", ({"method": "auto", "budget": BUDGET},)),
}  # fmt: skip


class Skipped(Exception):
    """A cell that cannot be filled, and why."""


@dataclass(frozen=True)
class Bench:
    """What is fused and measured: the parents (the first is the target), the data, the metric."""

    models: tuple[nn.Module, ...]
    data: Data
    metric: str
    samples: int = SAMPLES
    batch: int = 128

    def unlabelled(self, samples: int | None = None) -> list[Tensor]:
        """All that fusing sees, by default ``samples`` inputs."""
        return list(self.data.train.inputs[: samples or self.samples].split(min(BATCH, self.batch)))

    @property
    def labelled(self) -> bool:
        """Whether targets are labels, and outputs scores of them, to train with."""
        return self.metric in ("accuracy", "loss")

    @property
    def aim(self) -> Literal["divergence", "squared"]:
        """What refinement descends on: targets of labelled data are classes, so outputs are logits."""
        return "divergence" if self.labelled else "squared"

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


def bench_of(task: Task, seeds: Sequence[int], store: training.Store) -> Bench:
    """The parents of a pair with their data."""
    parents = [training.parent(kind, seed, store)[0] for kind, seed in zip(task.kinds, seeds, strict=True)]
    spec = training.KINDS[task.kinds[0]]
    data = training.load_data(spec.data, store.data)
    return Bench(tuple(parents), data, spec.metric, batch=spec.recipe.batch)


Cell = dict[str, Any]
"""What a record says of a cell besides where it stands: scores, seconds, samples, or ``skipped`` with the reason."""


def cells(name: str, bench: Bench, stages: Sequence[str]) -> dict[str, Cell]:
    """The cells of a column for one pair: stage -> what was measured."""
    if name == "ensemble":
        return {"oneshot": _ensemble(bench)} if "oneshot" in stages else {}
    return _parents(bench, stages) if name == "parents" else _fusions(METHODS[name], bench, stages)


def _ensemble(bench: Bench) -> Cell:
    def mean(part: Part) -> float:
        outputs = zip(*(training.scores_of(model, part.inputs) for model in bench.models), strict=True)
        return training.score_of((torch.stack(scores).mean(0) for scores in outputs), part, bench.metric)

    begin = time.perf_counter()
    found = {"val": mean(bench.data.val), "test": mean(bench.data.test)}
    return {**found, "seconds": time.perf_counter() - begin, "samples": 0}


def _parents(bench: Bench, stages: Sequence[str]) -> dict[str, Cell]:
    found: dict[str, Cell] = {}
    if "oneshot" in stages:
        found["oneshot"] = {"each": [bench.scores(model) for model in bench.models], "samples": 0}
    if "longer" in stages:
        found["longer"] = {"each": [_taught(bench, model) for model in bench.models], "samples": REFINE["longer"][0]}
    if "tuned" in stages and bench.labelled:
        found["tuned"] = {"each": [_tuned(bench, model) for model in bench.models], "samples": 0}
    for cell in found.values():
        best = min(cell["each"], key=lambda one: one["val"] if bench.metric == "loss" else -one["val"])
        seconds = sum(one.get("seconds", 0) for one in cell["each"])
        cell |= {"val": best["val"], "test": best["test"], "seconds": seconds}
    return found if bench.labelled else {"tuned": {"skipped": NO_LABELS}, **found}


def _taught(bench: Bench, parent: nn.Module) -> dict[str, float]:
    """One parent, refined towards the mean outputs of all as the fused models are: what fusing has to beat."""
    begin, (samples, steps) = time.perf_counter(), REFINE["longer"]
    model, shares = copy.deepcopy(parent), [1 / len(bench.models)] * len(bench.models)
    config = RefineConfig.model_validate({"loss": bench.aim, "steps": steps})
    seen, held = parted([as_batch(batch) for batch in bench.unlabelled(samples)], config.holdout)
    refine_weights(model, bench.models, shares, seen, held, config)
    return {**bench.scores(model), "seconds": time.perf_counter() - begin}


def _fusions(method: Method, bench: Bench, stages: Sequence[str]) -> dict[str, Cell]:
    found: dict[str, Cell] = {}
    results: dict[str, FuseResult] = {}
    needed = set(stages) | ({"oneshot"} if "barrier" in stages else set())
    needed |= {"oneshot", "calibrated", "refined"} if "tuned" in stages else set()
    for stage in (stage for stage in FUSED if stage in needed):
        try:
            configs = [{**config, **_extra(stage, bench, config)} for config in method.configs]
            results[stage], found[stage] = _best(bench, configs)
        except Skipped as reason:
            found[stage] = {"skipped": str(reason)}
    models = {stage: result.model for stage, result in results.items()}
    later: dict[str, Callable[[], Cell]] = {
        "tuned": lambda: _tuned_best(bench, models, found),
        "barrier": lambda: _barrier(bench, results),
    }
    refused = next((cell["skipped"] for cell in found.values() if "skipped" in cell), None)
    for stage, measure in later.items():
        if stage in stages:
            reason = refused if not results else None if bench.labelled else NO_LABELS
            found[stage] = {"skipped": reason} if reason else measure()
    return found


def _extra(stage: str, bench: Bench, config: Config) -> Config:
    """What a stage adds to a config."""
    if stage not in REFINE:
        return {"refine": {"what": "none"}, **({"calibrate": BARE} if stage == "oneshot" else {})}
    samples, steps = REFINE[stage]
    what = "default" if config.get("method") == "auto" else "weights"  # auto refines only what it has chosen
    return {"refine": {"what": what, "loss": bench.aim, "steps": steps, "samples": samples}}


def _best(bench: Bench, configs: Sequence[Config]) -> tuple[FuseResult, Cell]:
    """The fusion, of these configs, that is best on validation data, and its cell; the seconds are of all of them.

    Skipped where graphfuse refuses them all.
    """
    seconds, kept, refused = 0.0, None, Skipped("there is no config")
    for config in configs:
        try:
            result, took = _fused(bench, config)
        except Skipped as reason:
            refused = reason
            continue
        seconds += took
        cell = {**bench.scores(result.model), "samples": _read(bench, config), "config": config}
        if kept is None or bench.better(cell["val"], kept[1]["val"]):
            kept = result, cell
    if kept is None:
        raise refused
    return kept[0], {**kept[1], "seconds": seconds}


def _read(bench: Bench, config: Config) -> int:
    """Inputs that a fusion is given."""
    return config.get("refine", {}).get("samples", bench.samples)


def _fused(bench: Bench, config: Config) -> tuple[FuseResult, float]:
    """A fusion and its seconds; Skipped where graphfuse refuses."""
    if not bench.same_shapes and config.get("roles") == UNALIGNED:
        raise Skipped("parents of different shapes have no plain average")
    begin = time.perf_counter()
    try:
        given = {"samples": bench.samples, **config}
        result = fuse(bench.models, data=bench.unlabelled(_read(bench, config)), config=given)
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
        tuned = training.optimise(copy.deepcopy(model), bench.data.train, recipe, TUNING_SEED)
        val = training.score(tuned, bench.data.val, bench.metric)
        if best is None or bench.better(val, best["val"]):
            best, kept = {"val": val, "rate": rate}, tuned
    assert best is not None and kept is not None
    test = training.score(kept, bench.data.test, bench.metric)
    return {**best, "test": test, "seconds": time.perf_counter() - begin}


@torch.no_grad()
def _barrier(bench: Bench, results: Mapping[str, FuseResult]) -> Cell:
    """The largest rise of the loss above the straight line between its ends, from the first to the aligned second."""
    if "oneshot" not in results:
        return {"skipped": "there is no one-shot fusion"}
    target, part = bench.models[0], bench.data.test.take(slice(BARRIER))
    try:
        ends = [results["oneshot"].alignment.apply(m.state_dict(), k) for k, m in enumerate(bench.models[:2])]
    except GraphFuseError as error:
        return {"skipped": str(error).splitlines()[0]}
    begin, losses = time.perf_counter(), []
    for i in range(POINTS):
        point = copy.deepcopy(target)
        point.load_state_dict({
            name: torch.lerp(value, ends[1][name], i / (POINTS - 1)) if value.is_floating_point() else value
            for name, value in ends[0].items()
        })  # fmt: skip
        losses.append(training.score(restated(point, map(as_batch, bench.unlabelled())), part, "loss"))
    line = torch.linspace(losses[0], losses[-1], POINTS)
    barrier = (torch.tensor(losses) - line).max().item()
    return {"test": barrier, "losses": losses, "seconds": time.perf_counter() - begin, "samples": bench.samples}
