"""Models by name, on the command line: a factory with a checkpoint, or a transformers directory."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from graphfuse.errors import ModelSpecError
from graphfuse.io import pretrained
from graphfuse.io.checkpoints import load_into, load_state, must_be_finite, save_weights
from graphfuse.io.specs import describe, find

FORMS = """  expected: package.module:factory                          a function that returns the model, as it is
            package.module:factory@weights.safetensors      the same, with weights from a file
            path/to/directory                               of transformers: config.json and *.safetensors"""


@dataclass(frozen=True)
class ModelSpec:
    """A model's name, taken apart."""

    text: str
    kind: Literal["factory", "transformers"]
    target: str  # package.module:factory, or the directory
    checkpoint: str | None = None


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model in eval mode, where it came from, and example inputs (``(args, kwargs)``) if its makers gave any."""

    model: nn.Module
    spec: ModelSpec
    notes: tuple[str, ...] = ()
    example: tuple[tuple[Any, ...], dict[str, Any]] | None = None


def parse_spec(text: str) -> ModelSpec:
    """Take a model's name apart.

    >>> parse_spec("nets:net@a.safetensors").checkpoint
    'a.safetensors'

    Raises
    ------
    ModelSpecError
        The name has no known form, or names a directory that is no model.
    """
    if Path(text).is_dir():
        if not (Path(text) / "config.json").is_file():
            raise ModelSpecError(f"the directory {text} holds no config.json, so it is no transformers model.\n{FORMS}")
        return ModelSpec(text, "transformers", text)
    found = re.fullmatch(r"(?P<target>[A-Za-z_][\w.]*:[A-Za-z_][\w.]*)(?:@(?P<checkpoint>.+))?", text)
    if found is None:
        hint = "; there is no such directory" if "/" in text else ""
        raise ModelSpecError(f"the model {text!r} has no form that graphfuse knows{hint}.\n{FORMS}")
    return ModelSpec(text, "factory", found["target"], found["checkpoint"])


def load_model(spec: str | ModelSpec, seed: int = 0) -> LoadedModel:
    """Build a model and give it its weights.

    Example inputs come from ``factory.example_inputs()``, or ``example_inputs()`` beside the factory; for transformers
    they are made from the config, with ``seed``.

    Raises
    ------
    ModelSpecError
        The name leads to no model.
    CheckpointError
        The weights cannot be read, do not fit, or are not finite.
    """
    parsed = parse_spec(spec) if isinstance(spec, str) else spec
    if parsed.kind == "transformers":
        model, notes = pretrained.load(Path(parsed.target))
        must_be_finite(model, parsed.text)
        return LoadedModel(model.eval(), parsed, notes, pretrained.example_inputs(model, seed))
    factory = find(parsed.target, ModelSpecError)
    model = _build(factory, parsed)
    notes: tuple[str, ...] = ()
    if parsed.checkpoint is not None:
        checkpoint = load_state(parsed.checkpoint)
        load_into(model, checkpoint)
        notes = checkpoint.notes
    must_be_finite(model, parsed.text)
    return LoadedModel(model.eval(), parsed, notes, _example(factory, parsed))


def save_model(loaded: LoadedModel, model: nn.Module, folder: Path) -> None:
    """Write a model into an existing directory, in the form that ``loaded`` came in.

    A transformers model gets its directory back (config, weights, tokenizer and processor files); any other a
    ``model.safetensors``, to be read with ``package.module:factory@model.safetensors``.
    """
    if loaded.spec.kind == "transformers":
        pretrained.save(model, Path(loaded.spec.target), folder)
    else:
        save_weights(folder / "model.safetensors", model)


def as_call(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs in any usual form as ``(args, kwargs)``: a tensor, a tuple of arguments, a dict, or such a pair."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, tuple | list):
        match list(inputs):
            case [tuple() | list() as args, dict() as kwargs]:
                return tuple(args), dict(kwargs)
        return tuple(inputs), {}
    return (inputs,), {}


def _build(factory: Any, spec: ModelSpec) -> nn.Module:
    if isinstance(factory, nn.Module) or not callable(factory):
        raise ModelSpecError(
            f"{spec.target} is a {type(factory).__name__}.\n  expected: a function (or class) that takes no arguments "
            "and returns a new model"
        )
    try:
        model = factory()
    except Exception as failure:
        raise ModelSpecError(f"calling {spec.target}() failed: {describe(failure)}") from failure
    if not isinstance(model, nn.Module):
        raise ModelSpecError(f"{spec.target}() returned a {type(model).__name__}.\n  expected: a torch.nn.Module")
    return model


def _example(factory: Any, spec: ModelSpec) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    beside = sys.modules[spec.target.partition(":")[0]]
    make = getattr(factory, "example_inputs", None) or getattr(beside, "example_inputs", None)
    if make is None:
        return None
    try:
        inputs = make() if callable(make) else make
    except Exception as failure:
        raise ModelSpecError(f"example_inputs() of {spec.target} failed: {describe(failure)}") from failure
    args, kwargs = as_call(inputs)
    if not args and not kwargs:
        raise ModelSpecError(f"example_inputs() of {spec.target} returned nothing.\n  expected: (args, kwargs)")
    return args, kwargs
