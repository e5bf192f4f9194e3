"""Fuse models of one architecture into one: the whole pipeline, and the only place that knows its order."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from graphfuse.aligned import Alignment
from graphfuse.aligning import matched
from graphfuse.alignment import Prepared, Progress, prepare
from graphfuse.average import average, shares_of
from graphfuse.calibrate import Calibration, calibrate
from graphfuse.capture import duplicate, state_of
from graphfuse.closeness import closeness
from graphfuse.config import FuseConfig
from graphfuse.errors import CheckpointError, DataError, kind_of
from graphfuse.footprint import footprint
from graphfuse.lockstep import batches, parted
from graphfuse.partial import extra, widened
from graphfuse.prepared import Config
from graphfuse.refine import Descent, refine_maps, refine_weights
from graphfuse.resize import resize
from graphfuse.reuse import reused
from graphfuse.search import Score, Tried, search
from graphfuse.symmetry import Axis, SymmetryGraph
from graphfuse.tables import Table

__all__ = ["FuseResult", "fuse"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class FuseResult:
    """A fused model, how its parents were aligned, and an account of what was done, as plain values.

    ``resized`` relates the target's width to that of ``into``, where one was given: model 1 of it is the one that was
    fused in the target's width.
    """

    model: nn.Module
    alignment: Alignment
    report: dict[str, Any]
    resized: Alignment | None = None

    @property
    def table(self) -> Table:
        """What was fused, one row for each model."""
        report = self.report
        rows = tuple(
            (str(k), one["class"], f"{one['parameters']:,}", f"{one['share']:.0%}", "target" if one["target"] else "")
            for k, one in enumerate(report["models"])
        )
        how = f"by {self.alignment.method}, on {report['inputs']} inputs, in {report['seconds']['total']:.1f} s"
        title = f"{type(self.model).__name__}, fused of {len(rows)} models, {how}"
        return Table(title, ("model", "class", "parameters", "share", ""), rows, tuple(report["notes"]))

    def __str__(self) -> str:
        return str(self.table)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.table.html() + "".join(table.html() for table in self.alignment.tables)


def fuse(
    models: Sequence[nn.Module],
    args: tuple[Any, ...] | Tensor = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    data: Iterable[Any] | None = None,
    into: nn.Module | None = None,
    alignment: Alignment | None = None,
    config: Config = None,
    rules: Iterable[Any] = (),
    score: Score | None = None,
    progress: Progress | None = None,
) -> FuseResult:
    """Fuse two or more trained models of one architecture into one, or write one into another width.

    Parameters
    ----------
    models : sequence of nn.Module
        Their hidden widths may differ; the result has those of ``config.target``, by default the first. They are left
        as they are.
    args, kwargs :
        Example inputs, as the models take them; by default the first batch of the data.
    data : iterable of batches, optional
        A few hundred unlabelled inputs, by which units are matched and the result is calibrated. A batch is a tensor, a
        tuple (positional arguments) or a dict (keyword arguments). No more than ``config.samples`` inputs are read, or
        ``config.refine.samples`` where that is more.
    into : nn.Module, optional
        A model of the same architecture with the widths that the result shall have; its weights do not count, and it is
        left as it is. The models are fused in the target's width, then units are merged or doubled and the result is
        calibrated. With it, one model may be given alone, to be compressed or widened.
    alignment : Alignment, optional
        Of these models, from :func:`graphfuse.align` with the same config; by default they are aligned here.
    config : FuseConfig, dict or path of a YAML file, optional
    rules :
        Further rule packs for tracing.
    score : callable, optional
        For method auto: judges a fused model, the larger the better, say by its accuracy on validation data.
    progress : callable, optional
        Called with (stage, done, total).

    Returns
    -------
    FuseResult
        ``.model`` is new, in eval mode, with the target's dtype and device; ``.alignment``; ``.report``.

    Raises
    ------
    CorrespondenceError
        The models are not of one architecture, or the alignment is of others.
    DataError
        There are fewer than two models (or none, with ``into``), no inputs, or inputs that do not fit; models on
        several devices.
    CheckpointError
        A model holds values that are not finite, or none (the meta device).
    ConfigError
        A setting is unknown or cannot be used here.

    Examples
    --------
    >>> a, b = (torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)) for _ in range(2))
    >>> result = fuse([a, b], data=[torch.randn(64, 4)])
    >>> result.report["calibration"]["inputs"]
    64
    """
    _check_places(models if into is None else [*models, _module(into)])
    clock, settings = _Clock(), FuseConfig.parse(config)
    given = batches(data, settings.reads) if data is not None else None

    def prepare_for(settings: FuseConfig) -> Prepared:
        return prepare(models, args, kwargs, data=given, config=settings, rules=rules, progress=progress)

    def attempt(prepared: Prepared) -> tuple[nn.Module, Alignment]:
        made = _run(prepared, _Clock(), rules)
        return made.model, made.alignment

    first: FuseResult | None = None
    if into is None or len(models) != 1:
        tried: tuple[Tried, ...] = ()
        if settings.method == "auto" and alignment is None:
            settings, tried = search(settings, prepare_for, attempt, score, progress)
            clock.lap("search")
        prepared = prepare_for(settings)
        clock.lap("trace")
        made = _run(prepared, clock, rules, progress, alignment)
        first = FuseResult(made.model, made.alignment, _report(prepared, made, tried, clock))
    if into is None:
        assert first is not None
        return first
    clock, whole = _Clock(), models[0] if first is None else first.model
    prepared, resized = resize(whole, into, args, kwargs, given, settings, rules)
    clock.lap("match")
    made = replace(_finished(prepared, resized, prepared.models[0], clock, progress), alignment=resized)
    report = _report(prepared, made, (), clock)
    if first is None:
        return FuseResult(made.model, resized, report, resized)
    return FuseResult(made.model, first.alignment, {**first.report, "into": report}, resized)


@dataclass(frozen=True, eq=False)
class _Made:
    """A finished model, the alignment that it was made by, and what is known about how it was made."""

    model: nn.Module
    alignment: Alignment
    calibration: Calibration | None
    descents: Mapping[str, Descent]
    outputs: Mapping[str, Any] | None


def _run(
    prepared: Prepared,
    clock: _Clock,
    rules: Iterable[Any] = (),
    progress: Progress | None = None,
    given: Alignment | None = None,
) -> _Made:
    """Match, average, calibrate, refine."""
    alignment = matched(prepared, progress) if given is None else reused(prepared, given)
    target = prepared.config.target
    more = extra(prepared)
    clock.lap("match")
    if not more:
        return _finished(prepared, alignment, _copied(prepared.models[target]), clock, progress)
    wide, wider = widened(prepared, alignment, more, rules)
    clock.lap("widen")
    made = _finished(wide, wider, wide.models[0], clock, progress)
    outputs = made.outputs and {**made.outputs, "models": made.outputs["models"][1:]}  # without the wide one
    alignment = replace(made.alignment, target=target, models=made.alignment.models[1:])
    return replace(made, alignment=alignment, outputs=outputs)


def _finished(
    prepared: Prepared, alignment: Alignment, model: nn.Module, clock: _Clock, progress: Progress | None
) -> _Made:
    """Average, calibrate and refine aligned models, and write the result into this one of the target's shapes."""
    shares, refine, descents = shares_of(prepared), prepared.config.refine, dict[str, Descent]()
    if prepared.data and refine.what in ("maps", "both"):
        whole = replace(prepared, data=(*prepared.data, *prepared.further))
        alignment, descents["maps"] = refine_maps(whole, alignment, shares, refine, progress)
        clock.lap("refine maps")
    with torch.no_grad():
        state = average(prepared, alignment, shares)
    _write(model, state)
    clock.lap("average")
    calibration, later = None, bool(prepared.data) and refine.what in ("weights", "both")
    # calibration must not see what judges the refinement
    seen, held = parted(prepared.data, refine.holdout) if later else (prepared.data, prepared.data)
    # one model in its own width is what it was, and needs no calibration
    changed = sum(map(bool, shares)) > 1 or any(not found.hard for m in alignment.models for found in m.maps.values())
    if seen and changed and (prepared.config.calibrate.method != "batch_norm" or prepared.config.calibrate.batch_norm):
        calibration = calibrate(replace(prepared, data=tuple(seen)), alignment, state, shares, progress)
        _write(model, calibration.state)
        clock.lap("calibrate")
    if later:
        more, judges = parted(prepared.further, refine.holdout) if prepared.further else ([], [])
        seen, held, seed = [*seen, *more], [*held, *judges], prepared.config.seed
        descents["weights"] = refine_weights(model, prepared.models, shares, seen, held, refine, seed, progress)
        clock.lap("refine weights")
    outputs = closeness(prepared, state, model)
    clock.lap("judge")
    return _Made(model, alignment, calibration, descents, outputs)


@torch.no_grad()
def _write(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    for name, tensor in state_of(model).items():
        tensor.copy_(state[name])


# --------------------------------------------------------------------- checks


def _check_places(models: Sequence[nn.Module]) -> None:
    """All tensors of all models must be real, and on one device."""
    first: tuple[torch.device, str] | None = None
    for k, model in enumerate(models):
        for name, tensor in state_of(model).items() if isinstance(model, nn.Module) else ():
            if tensor.is_meta:
                raise CheckpointError(
                    f"model {k} has no values: {name!r} is on the meta device.\n"
                    "  what to do: load its weights; trace and verify need none, fuse does"
                )
            first = first or (tensor.device, f"{name!r} of model {k}")
            if tensor.device != first[0]:
                raise DataError(
                    f"the models are on several devices.\n  {first[1]}: {first[0]}\n  {name!r} of model {k}: "
                    f"{tensor.device}\n  what to do: move them all to one device with model.to(device)"
                )


def _module(into: Any) -> nn.Module:
    if isinstance(into, nn.Module):
        return into
    raise DataError(
        f"into is no torch.nn.Module but {kind_of(into)}.\n"
        "  what to do: build a model of the same class with the widths that the result shall have"
    )


def _copied(model: nn.Module) -> nn.Module:
    try:
        return duplicate(model).eval()
    except Exception as error:
        raise DataError(
            f"{type(model).__name__} cannot be copied, and the result must be a new model: {error}\n"
            "  what to do: make copy.deepcopy(model) work"
        ) from error


# --------------------------------------------------------------------- report


class _Clock:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, stage: str) -> None:
        """The stage that began at the last lap is over."""
        now = time.perf_counter()
        self.laps[stage], self._since = round(now - self._since, 3), now
        logger.info("%s: %.1f s", stage, self.laps[stage])


def _report(prepared: Prepared, made: _Made, tried: Sequence[Tried], clock: _Clock) -> dict[str, Any]:
    graph, shares = prepared.correspondence.graph, shares_of(prepared)
    alignment, calibration = made.alignment, made.calibration
    found = [*(note.message for note in graph.notes), *alignment.notes, *(calibration.notes if calibration else ())]
    notes = list(dict.fromkeys(found))
    for note in notes:
        logger.info("note: %s", note)
    return {
        "models": [
            {
                "class": type(model).__name__,
                "parameters": sum(p.numel() for p in model.parameters()),
                "share": share,
                "target": k == alignment.target,
            }
            for k, (model, share) in enumerate(zip(prepared.models, shares, strict=True))
        ],
        "inputs": sum(batch.count for batch in prepared.data),
        "config": prepared.config.model_dump(mode="json"),
        "free_fraction": graph.free_fraction,
        "axes": [_axis(graph, axis) for axis in graph.axes],
        "fixed": [_axis(graph, axis) for axis in graph.fixed],
        "alignment": alignment.to_json(),
        "calibration": calibration.to_json() if calibration else None,
        "tried": [asdict(entry) for entry in tried],
        "refinement": {name: asdict(descent) for name, descent in made.descents.items()},
        "outputs": made.outputs,
        "seconds": {**clock.laps, "total": round(sum(clock.laps.values()), 3)},
        "memory": footprint(prepared.states),
        "notes": notes,
    }


def _axis(graph: SymmetryGraph, axis: Axis) -> dict[str, Any]:
    return {
        "name": axis.name,
        "role": axis.role,
        "size": axis.size,
        "symmetry": str(axis.symmetry),
        "context": [graph.axis(key).name for key in axis.context],
        "touches": [f"{touch.tensor}[{touch.dim}]" for touch in axis.touches],
        "reasons": [str(reason) for reason in axis.reasons],
    }
