"""Models made ready to be aligned: traced, in the target's form, related to each other, and checked."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from graphfuse.capture import state_of
from graphfuse.config import FuseConfig, nearest
from graphfuse.correspond import Correspondence, correspond
from graphfuse.errors import CheckpointError, ConfigError, DataError, kind_of
from graphfuse.folding import Fold
from graphfuse.lockstep import Batch, Lockstep, batches, first
from graphfuse.matching import Form, Tracer, call_of, forms_of, without_gains
from graphfuse.roles import ROLES
from graphfuse.rulebook import load_rules
from graphfuse.teacher import run_model

__all__ = ["Config", "Prepared", "Progress", "prepare"]

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
Matching = Literal["weights", "activations", "both", "blend"]
Config = FuseConfig | Mapping[str, Any] | str | Path | None


@dataclass(frozen=True, eq=False)
class Prepared:
    """Models that have been traced, related to each other and checked, with the data to be used.

    ``further`` is data that only refinement sees.
    """

    models: tuple[nn.Module, ...]
    states: tuple[Mapping[str, Tensor], ...]
    correspondence: Correspondence
    lockstep: Lockstep
    data: tuple[Batch, ...]
    config: FuseConfig
    method: Matching
    forms: tuple[Form, ...] = ()
    folds: tuple[Fold, ...] = ()
    notes: tuple[str, ...] = ()
    further: tuple[Batch, ...] = ()


def prepare(
    models: Sequence[nn.Module],
    args: tuple[Any, ...] | Tensor = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    data: Iterable[Any] | None = None,
    config: Config = None,
    rules: Iterable[Any] = (),
    progress: Progress | None = None,
) -> Prepared:
    """Everything that can go wrong with the inputs of :func:`graphfuse.align`, before anything is computed.

    Parameters and errors are those of :func:`graphfuse.align`, whose signature this is.
    """
    settings = FuseConfig.parse(config)
    models = _some(models, settings)
    method = _method(settings, data is not None)
    _check_costs(settings, method)
    read = tuple(batches(data, settings.reads)) if data is not None else ()
    found = tuple(first(read, settings.samples))
    args = (args,) if isinstance(args, Tensor) else tuple(args)
    if found:
        args, kwargs = found[0].args, found[0].kwargs
    elif settings.refine.what not in ("default", "none"):
        raise DataError("refine: there are no inputs to learn from.\n  what to do: pass data, or leave refine out")
    elif not args and not kwargs:
        raise DataError("no example inputs.\n  what to do: pass args or kwargs as the models take them, or data")
    for k, model in enumerate(models):
        _check_finite(state_of(model), k)
    logger.info("tracing %d models, to be matched by %s", len(models), method)
    tracer = Tracer(load_rules(rules), outputs=settings.outputs)
    forms = forms_of(models, args, kwargs or {}, found, settings, tracer, progress)
    calls = [call_of(models[settings.target], form.model, args, kwargs or {}) for form in forms]
    folds: tuple[Fold, ...] = ()
    if settings.rotating:
        forms, folds = without_gains(forms, calls, tracer, settings.target)
    models = tuple(form.model for form in forms)
    graphs = [tracer(model, *call) for model, call in zip(models, calls, strict=True)]
    states = tuple(form.state for form in forms)
    relation = correspond(graphs, settings.target, [form.absent(graphs[settings.target]) for form in forms])
    _check_roles(settings, relation)
    _check_runs(models, calls, found)
    lockstep = Lockstep(models, relation, states, tracer)
    notes = tuple(note for form in forms for note in form.notes)
    logger.info("%d free axes; %d gains folded; %d inputs", len(relation.free), len(folds), sum(b.count for b in found))
    further = read[len(found) :]
    return Prepared(models, states, relation, lockstep, found, settings, method, forms, folds, notes, further)


# --------------------------------------------------------------------- checks


def _some(models: Sequence[nn.Module], config: FuseConfig) -> tuple[nn.Module, ...]:
    models = tuple(models)
    if len(models) < 2:
        raise DataError(f"expected two or more models, got {len(models)}")
    for k, model in enumerate(models):
        if not isinstance(model, nn.Module):
            raise DataError(f"model {k} is no torch.nn.Module but {kind_of(model)}")
    if config.target >= len(models):
        raise ConfigError(f"config: target: there is no model {config.target}; the {len(models)} models count from 0")
    if config.weights is not None and len(config.weights) != len(models):
        raise ConfigError(f"config: weights: expected one for each of {len(models)} models, got {len(config.weights)}")
    return models


def _method(config: FuseConfig, has_data: bool) -> Matching:
    if config.driver == "flow" and config.flow.weighs and not has_data:
        raise DataError(
            f"flow.residual {config.flow.residual} weighs by activations, but there is no data.\n"
            "  what to do: pass data, or use residual: mean"
        )
    if config.method in ("default", "auto"):
        by_data = "activations" if config.driver == "flow" or _of_activations(config) else "both"
        return by_data if has_data else "weights"
    if config.method != "weights" and not has_data:
        raise DataError(
            f"method {config.method} compares activations, but there is no data.\n"
            "  what to do: pass data, or use method weights"
        )
    return config.method


def _check_costs(config: FuseConfig, method: str) -> None:
    """Settings that speak of activations are an error where none are looked at."""
    for key in _of_activations(config) if method == "weights" else ():
        raise ConfigError(
            f"config: {key}: speaks of activations, but models are matched by their weights.\n"
            "  what to do: pass data, with method activations or blend, or leave it out"
        )


def _of_activations(config: FuseConfig) -> list[str]:
    """Settings given that speak of activations."""
    defaults = FuseConfig.model_validate({})
    said = {
        "filter": config.filter != defaults.filter,
        "cost: site": config.cost.site != defaults.cost.site,
        "cost: activations": config.cost.activations != defaults.cost.activations,
        "cost: importance": config.cost.importance == "activations",
    }
    return [key for key, given in said.items() if given]


def _check_finite(state: Mapping[str, Tensor], k: int) -> None:
    bad = [name for name, x in state.items() if x.is_floating_point() and not bool(torch.isfinite(x).all())]
    if bad:
        raise CheckpointError(
            f"model {k} has values that are not finite, in {len(bad)} of {len(state)} tensors: {', '.join(bad[:3])}.\n"
            "  what to do: use a checkpoint without NaN or infinite values"
        )


@torch.no_grad()
def _check_runs(models: Sequence[nn.Module], calls: Sequence[Any], found: Sequence[Batch]) -> None:
    """Shapes were checked by tracing; values and dtypes are only by running."""
    for k, (model, (args, kwargs)) in enumerate(zip(models, calls, strict=True)) if found else ():
        try:
            run_model(model, None, Batch(tuple(args), dict(kwargs)))
        except Exception as error:
            raise DataError(
                f"model {k} ({type(model).__name__}) does not run on the first batch: {type(error).__name__}: {error}\n"
                "  what to do: give inputs as the model takes them, of its dtypes and within its range of ids"
            ) from error


def _check_roles(config: FuseConfig, relation: Correspondence) -> None:
    valid = [*ROLES, *(axis.name for axis in relation.free)]
    for key in config.roles:
        if key not in valid:
            raise ConfigError(f"config: roles: no role or axis {key!r}; {nearest(key, valid)}")
