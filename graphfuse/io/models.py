"""Models by name: a factory, timm or torchvision with a checkpoint, a program, or a transformers directory."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import nn

from graphfuse.errors import ModelSpecError, kind_of
from graphfuse.io import libraries, pretrained, programs
from graphfuse.io.checkpoints import Checkpoint, load_state
from graphfuse.io.examples import cast
from graphfuse.io.fitting import fit, load_into, must_be_finite
from graphfuse.io.images import Preprocess
from graphfuse.io.precision import Dtypes, computed_in, floating, words
from graphfuse.io.sharding import SHARD, bytes_of, save_sharded
from graphfuse.io.specs import describe, find

FORMS = """  expected, one of:
    package.module:factory           a function that returns the model
    package.module:factory@WEIGHTS   the same, with weights from a file
    package.module:factory,width=64  the same, with arguments for it
    timm:NAME@WEIGHTS                or torchvision:NAME@WEIGHTS
    path/to/model.pt2                a program of torch.export.save
    path/to/directory                of transformers: config.json, *.safetensors"""
OPTION = r",([A-Za-z_]\w*)=([^,@]*)"
SPEC = re.compile(
    r"(?P<module>[A-Za-z_][\w.]*):(?P<name>[\w.-]+)(?P<options>(?:,[A-Za-z_]\w*=[^,@]*)*)(?:@(?P<checkpoint>.+))?"
)


@dataclass(frozen=True)
class ModelSpec:
    """A model's name, taken apart; ``options`` are keyword arguments for what builds it."""

    text: str
    kind: Literal["factory", "timm", "torchvision", "program", "transformers"]
    target: str  # package.module:factory, the library's name for it, or the path
    checkpoint: str | None = None
    options: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model in eval mode, where it came from, and example inputs (``(args, kwargs)``) if its makers gave any.

    ``stored`` has the dtypes of the floating tensors in the file, which :func:`save_model` goes back to; empty where
    the model is to be written as it is. ``preprocess`` says what it wants of images, where its library knows;
    ``dtype`` what it was asked to be computed in.
    """

    model: nn.Module
    spec: ModelSpec
    notes: tuple[str, ...] = ()
    example: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    stored: Dtypes = field(default_factory=dict)
    preprocess: Preprocess | None = None
    dtype: torch.dtype | None = None


def parse_spec(text: str) -> ModelSpec:
    """Take a model's name apart.

    >>> spec = parse_spec("nets:net,width=64@a.safetensors")
    >>> spec.target, spec.options, spec.checkpoint
    ('nets:net', (('width', 64),), 'a.safetensors')

    Raises
    ------
    ModelSpecError
        The name has no known form, or names a directory that is no model.
    """
    if Path(text).is_dir():
        if not (Path(text) / "config.json").is_file():
            raise ModelSpecError(f"the directory {text} holds no config.json, so it is no transformers model.\n{FORMS}")
        return ModelSpec(text, "transformers", text)
    if Path(text).suffix == programs.SUFFIX and ":" not in text:
        return ModelSpec(text, "program", text)
    found = SPEC.fullmatch(text)
    if found is None:
        hint = "; there is no such directory" if "/" in text else ""
        raise ModelSpecError(f"the model {text!r} has no form that graphfuse knows{hint}.\n{FORMS}")
    options = tuple((key, _value(key, value)) for key, value in re.findall(OPTION, found["options"]))
    for library in libraries.LIBRARIES:
        if found["module"] == library:
            return ModelSpec(text, library, found["name"], found["checkpoint"], options)
    return ModelSpec(text, "factory", f"{found['module']}:{found['name']}", found["checkpoint"], options)


def _value(key: str, text: str) -> Any:
    """A number, true, false, null, or a word."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ModelSpecError(
            f"the argument {key}={text} is neither a number, true, false, null, nor a word.\n"
            "  what to do: write a factory of your own for it: package.module:factory"
        ) from error


def load_model(
    spec: str | ModelSpec, seed: int = 0, *, dtype: torch.dtype | None = None, allow: Sequence[str] = ()
) -> LoadedModel:
    """Build a model and give it its weights.

    Example inputs come from ``factory.example_inputs()``, or ``example_inputs()`` beside the factory; for transformers
    they are made from the config, for timm and torchvision of the size that the library names, with ``seed``.

    Parameters
    ----------
    spec :
        The model's name.
    seed :
        For example inputs that are made up.
    dtype :
        What the model is computed in, and written in later. By default float16 and bfloat16 are computed in float32,
        and written as they were stored.
    allow :
        Beginnings of names (``head.``) that may be missing from the checkpoint, or left over in it.

    Raises
    ------
    ModelSpecError
        The name leads to no model.
    CheckpointError
        The weights cannot be read, do not fit, or are not finite.
    """
    parsed = parse_spec(spec) if isinstance(spec, str) else spec
    if parsed.kind == "transformers":
        loaded = _from_transformers(parsed, seed, allow)
    elif parsed.kind == "program":
        loaded = _from_program(parsed)
    else:
        loaded = _built(parsed, seed, allow)
    must_be_finite(loaded.model, parsed.text)
    if parsed.kind != "program":  # its precision is written into its graph
        computed_in(loaded.model, dtype)
    elif dtype is not None:
        raise ModelSpecError(f"{parsed.text} is a program, which has one precision.\n  what to do: leave out --dtype")
    loaded.model.eval()
    notes, stored = list(loaded.notes), {} if dtype is not None else loaded.stored
    computed = words(floating(loaded.model.state_dict()))
    if stored and words(stored) != computed:
        notes.append(f"{parsed.text}: computed in {computed}; saved again in {words(stored)}")
    example = cast(loaded.example, dtype)
    return LoadedModel(loaded.model, parsed, tuple(notes), example, stored, loaded.preprocess, dtype)


def _from_transformers(spec: ModelSpec, seed: int, allow: Sequence[str]) -> LoadedModel:
    folder = Path(spec.target)
    model, notes = pretrained.load(folder, allow)
    return LoadedModel(
        model, spec, notes, pretrained.example_inputs(model, seed), pretrained.stored(folder), pretrained.images(folder)
    )


def _from_program(spec: ModelSpec) -> LoadedModel:
    model, example = programs.load(Path(spec.target))
    stored = floating(model.state_dict())
    plain = set(stored.values()) <= {torch.float32}
    notes = () if plain else (f"{spec.text}: computed in {words(stored)}, as it was exported",)
    return LoadedModel(model, spec, notes, example)


def _built(spec: ModelSpec, seed: int, allow: Sequence[str]) -> LoadedModel:
    """From a factory, timm or torchvision, with weights from a file where one is named."""
    checkpoint = load_state(spec.checkpoint) if spec.checkpoint is not None else None
    notes: tuple[str, ...] = ()
    if spec.kind == "timm" or spec.kind == "torchvision":
        made = libraries.build(spec.kind, spec.target, dict(spec.options), checkpoint, seed)
        model, example, preprocess, notes = made.model, made.example, made.preprocess, made.notes
    else:
        factory = find(spec.target, ModelSpecError)
        model, example, preprocess = _build(factory, spec), _example(factory, spec), None
    stored = floating(model.state_dict())
    if checkpoint is not None:
        computed_in(model, None)
        notes += checkpoint.notes + load_into(model, checkpoint, allow)
        stored |= _stored(model, checkpoint)
    return LoadedModel(model, spec, notes, example, stored, preprocess)


def _stored(model: nn.Module, checkpoint: Checkpoint) -> dict[str, torch.dtype]:
    """The dtypes in the file, by the model's names."""
    found = fit(model, checkpoint)
    return {name: dtype for name, dtype in floating(found.state).items() if name in found.own}


def save_model(loaded: LoadedModel, model: nn.Module, folder: Path, shard: str = SHARD) -> None:
    """Write a model into an existing directory, in the form that ``loaded`` came in and the precision it was stored in.

    A transformers model gets its directory back (config, weights, tokenizer and processor files); any other a
    ``model.safetensors``, to be read with ``package.module:factory@DIRECTORY``, and a program also its ``model.pt2``,
    unless its widths are new. Weights beyond ``shard`` (5GB) are written in several files, with an index.

    Raises
    ------
    OutputError
        A value does not fit the precision that it was stored in.
    ConfigError
        ``shard`` is no size.
    """
    if loaded.spec.kind == "transformers":
        pretrained.save(model, folder, loaded.stored, Path(loaded.spec.target), bytes_of(shard))
    else:
        save_sharded(folder, model, loaded.stored, shard)
    if loaded.spec.kind == "program":
        programs.save(model, Path(loaded.spec.target), folder)


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
            f"{spec.target} is {kind_of(factory)}.\n  expected: a function (or class) that returns a new model"
        )
    try:
        model = factory(**dict(spec.options))
    except Exception as failure:
        raise ModelSpecError(f"calling {spec.target}({_given(spec)}) failed: {describe(failure)}") from failure
    if not isinstance(model, nn.Module):
        raise ModelSpecError(f"{spec.target}() returned {kind_of(model)}.\n  expected: a torch.nn.Module")
    return model


def _given(spec: ModelSpec) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in spec.options)


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
