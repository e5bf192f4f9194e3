"""``method: auto``: try what the data and the time budget allow, score each on held-out inputs, and choose.

Without labels, a fused model is scored by how far its outputs are from the mean of its parents' outputs on inputs that
neither matching nor calibration saw. Without data, by how far the aligned weights are from the target's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from graphfuse.aligned import Alignment
from graphfuse.alignment import FLOWING
from graphfuse.average import shares_of
from graphfuse.capture import state_of
from graphfuse.config import FuseConfig
from graphfuse.errors import GraphFuseError
from graphfuse.lockstep import parted
from graphfuse.prepared import Prepared, Progress
from graphfuse.roles import ROLES
from graphfuse.teacher import Teacher

logger = logging.getLogger(__name__)

Settings = Mapping[str, Any]
Prepare = Callable[[FuseConfig], Prepared]
Run = Callable[[Prepared], tuple[nn.Module, Alignment]]
Score = Callable[[nn.Module], float]
"""The larger, the better."""

UNALIGNED: Settings = {"method": "weights", "symmetry": "permutation",
                       "roles": {role: {"align": False} for role in ROLES}}  # fmt: skip
WITH_DATA: tuple[Settings, ...] = (
    {"method": "both", "symmetry": "full"},
    {"method": "weights", "symmetry": "full"},
    {"method": "activations", "symmetry": "full"},
    {"method": "blend", "symmetry": "full"},
    {"method": "weights", "symmetry": "permutation"},
    {"method": "activations", "symmetry": "permutation"},
    {"symmetry": "permutation", **FLOWING},
    UNALIGNED,
)
WITHOUT: tuple[Settings, ...] = (
    {"method": "weights", "symmetry": "full"},
    {"method": "weights", "symmetry": "permutation"},
)
CALIBRATIONS: tuple[Settings, ...] = (
    {"method": "batch_norm"},
    {"method": "repair"},
    {"method": "regmean"},
)
HOLDOUT = 0.2
TRYING = 0.25
"""Share of the time budget that trying may take where the best is refined; the rest is for that."""


@dataclass(frozen=True)
class Tried:
    """One attempt: what was set, its score (None: it failed, see ``reason``), and how long it took."""

    settings: Settings
    score: float | None
    seconds: float
    reason: str | None = None


def search(
    settings: FuseConfig,
    prepare: Prepare,
    run: Run,
    score: Score | None = None,
    progress: Progress | None = None,
) -> tuple[FuseConfig, tuple[Tried, ...]]:
    """The best settings that were tried, with the rest of the time budget for refinement when there is data.

    Parameters
    ----------
    settings : FuseConfig
        All that is not tried stays as it is here; ``budget`` is the time in seconds. Calibrations are tried where
        ``calibrate.method`` is least_squares, and the best is refined where ``refine.what`` is default.
    prepare, run : callable
        Settings -> prepared models, and prepared models -> the fused model and its alignment.
    score : callable, optional
        Judges a fused model, say its accuracy on validation data; by default closeness to the parents.
    progress : callable, optional
        Called with ("search", seconds, seconds that trying may take).
    """
    began, trials = time.perf_counter(), _Trials(settings, prepare, run, score)
    usual = settings.model_copy(update={"method": "default"})
    first = trials.prepared(usual)
    refines = bool(first.data) and settings.refine.what == "default"
    most, runs = (TRYING * settings.budget, 1) if refines else (settings.budget, 2)  # the best is run once more

    def attempt(options: Settings) -> None:
        if not trials.done or time.perf_counter() - began + runs * trials.longest < most:
            trials.attempt(options)
            if progress is not None:
                seconds = max(1, round(most))
                progress("search", min(round(time.perf_counter() - began), seconds), seconds)

    for options in WITH_DATA if first.data else WITHOUT:
        attempt(options)
    for options in CALIBRATIONS if first.data and settings.calibrate.method == "least_squares" else ():
        attempt({**trials.best[0], "calibrate": {**settings.calibrate.model_dump(), **options}})
    chosen = _with(settings, trials.best[0])
    logger.info("chosen: %s", dict(trials.best[0]))
    left = settings.budget - (time.perf_counter() - began) - trials.longest
    if refines and left > trials.longest:
        seconds = min(left, settings.refine.seconds or left)
        chosen = chosen.model_copy(
            update={"refine": settings.refine.model_copy(update={"what": "weights", "seconds": seconds})}
        )
    return chosen, tuple(trials.done)


def _with(settings: FuseConfig, options: Settings) -> FuseConfig:
    given = settings.model_dump(exclude_unset=True)
    roles = {**options.get("roles", {}), **given.get("roles", {})}
    return FuseConfig.parse({**given, **options, **({"roles": roles} if roles else {})})


class _Trials:
    """Attempts so far; models are prepared once for each kind of symmetry."""

    def __init__(self, settings: FuseConfig, prepare: Prepare, run: Run, score: Score | None) -> None:
        self.settings, self._prepare, self._run, self._given = settings, prepare, run, score
        self.done: list[Tried] = []
        self._ready: dict[str, Prepared] = {}
        self._teacher: Teacher | None = None

    @property
    def longest(self) -> float:
        """Seconds of the longest attempt."""
        return max((tried.seconds for tried in self.done), default=0.0)

    @property
    def best(self) -> tuple[Settings, float]:
        """The settings of the best score, the first of equals; what is usual where none has one."""
        scored = [(tried.settings, tried.score) for tried in self.done if tried.score is not None]
        return max(scored, key=lambda pair: pair[1]) if scored else ({"method": "default"}, float("-inf"))

    def prepared(self, config: FuseConfig) -> Prepared:
        """Models prepared for a config, with the inputs that attempts may see."""
        if config.symmetry not in self._ready:
            self._ready[config.symmetry] = self._prepare(config)
        found = self._ready[config.symmetry]
        seen = tuple(parted(found.data, HOLDOUT)[0]) if found.data else ()
        method = config.method if config.method not in ("default", "auto") else found.method
        return replace(found, config=config, method=method, data=seen)

    def attempt(self, options: Settings) -> None:
        """Fuse with these settings and score the result."""
        began = time.perf_counter()
        try:
            prepared = self.prepared(_with(self.settings, options))
            model, alignment = self._run(prepared)
            score, reason = self._score(prepared, model, alignment), None
        except GraphFuseError as error:
            score, reason = None, str(error).splitlines()[0]
        self.done.append(Tried(options, score, time.perf_counter() - began, reason))
        logger.info("tried %s: %s", dict(options), reason or f"score {score:.4g}")

    @torch.no_grad()
    def _score(self, prepared: Prepared, model: nn.Module, alignment: Alignment) -> float:
        if self._given is not None:
            return float(self._given(model))
        if not prepared.data:
            return -_apart(prepared, alignment)
        if self._teacher is None:
            whole = next(iter(self._ready.values()))
            held = parted(whole.data, HOLDOUT)[1]
            self._teacher = Teacher.of(prepared.models, shares_of(prepared), held, self.settings.calibrate.aim)
        return -self._teacher.distance(model)


@torch.no_grad()
def _apart(prepared: Prepared, alignment: Alignment) -> float:
    """Squared distance of the aligned weights from the target's, as a share of both squares."""
    states = [alignment.apply(state_of(model), k) for k, model in enumerate(prepared.models)]
    own = states.pop(alignment.target)
    pairs = list(_pairs(own, states, alignment))
    squares = sum(float(a.double().square().sum() + b.double().square().sum()) for a, b in pairs)
    return sum(float((a.double() - b.double()).square().sum()) for a, b in pairs) / max(squares, 1e-300)


def _pairs(own: Mapping[str, Any], states: list[dict[str, Any]], alignment: Alignment) -> Iterator[tuple[Any, Any]]:
    for state in states:
        for name in alignment.labels:
            if name in state and own[name].is_floating_point():
                yield own[name], state[name]
