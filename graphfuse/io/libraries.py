"""Models of timm and torchvision by name, built without a download."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from graphfuse.errors import ModelSpecError
from graphfuse.io import importing
from graphfuse.io.checkpoints import Checkpoint
from graphfuse.io.fitting import fit
from graphfuse.io.images import Preprocess
from graphfuse.io.specs import describe

Library = Literal["timm", "torchvision"]
LIBRARIES: tuple[Library, ...] = ("timm", "torchvision")
SIZE = 224
CLASSES = "num_classes"


@dataclass(frozen=True, eq=False)
class Built:
    """A model, what it wants of images, example inputs, and what was done."""

    model: nn.Module
    preprocess: Preprocess
    example: tuple[tuple[Any, ...], dict[str, Any]]
    notes: tuple[str, ...]


def build(library: Library, name: str, options: Mapping[str, Any], checkpoint: Checkpoint | None, seed: int) -> Built:
    """A model by its name, with the keyword arguments of the library's builder, without weights.

    Where ``num_classes`` is not given and the checkpoint's head has another number of classes, the model gets that.

    Raises
    ------
    ModelSpecError
        The library is not installed or cannot be imported, has no such model, or cannot build it so.
    """
    make = _maker(library, name)
    model, notes = _called(make, options, library, name), [*importing.declarations()]
    if checkpoint is not None and CLASSES not in options and (found := _classes(model, checkpoint)) is not None:
        classes, where = found
        model = _called(make, {**options, CLASSES: classes}, library, name)
        notes.append(f"{library}:{name}: built with {CLASSES}={classes}, because {checkpoint.path.name} has {where}")
    how = _timm_images(model, options) if library == "timm" else _torchvision_images(name)
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(2, how.channels, *how.size, generator=generator)
    return Built(model, how, ((image,), {}), tuple(notes))


def _maker(library: Library, name: str) -> Any:
    module = importing.import_library(library)
    if library == "timm":
        known = module.list_models()
        if name.partition(".")[0] not in known:
            raise _unknown(library, name, known)
        return lambda **options: module.create_model(name, pretrained=False, **options)
    models = importlib.import_module("torchvision.models")
    known = models.list_models()
    if name not in known:
        raise _unknown(library, name, known)
    builder = models.get_model_builder(name)
    accepted = inspect.signature(builder).parameters
    quiet: dict[str, Any] = {"weights_backbone": None} if "weights_backbone" in accepted else {}
    if "init_weights" in accepted:
        quiet["init_weights"] = False
    return lambda **options: builder(weights=None, **{**quiet, **options})


def _called(make: Any, options: Mapping[str, Any], library: str, name: str) -> nn.Module:
    try:
        return make(**options)
    except Exception as failure:
        given = ", ".join(f"{key}={value!r}" for key, value in options.items())
        raise ModelSpecError(f"{library} cannot build {name}({given}): {describe(failure)}") from failure


def _classes(model: nn.Module, checkpoint: Checkpoint) -> tuple[int, str] | None:
    """The number of classes of a checkpoint whose shapes differ from the model's in nothing else."""
    found = fit(model, checkpoint)
    if not found.misshapen:
        return None
    pairs = [(name, found.own[name].shape, found.state[name].shape) for name in found.misshapen]
    sizes = {(own[0], other[0]) for _, own, other in pairs if len(own) == len(other) > 0 and own[1:] == other[1:]}
    if len(sizes) != 1 or any(own[1:] != other[1:] for _, own, other in pairs):
        return None
    name, _, shape = pairs[0]
    return shape[0], f"{name} {tuple(shape)}"


def _timm_images(model: Any, options: Mapping[str, Any]) -> Preprocess:
    config = importlib.import_module("timm.data").resolve_model_data_config(model)
    channels, height, width = config["input_size"]
    size = options.get("img_size", None)
    height, width = (size, size) if isinstance(size, int) else (height, width)
    channels = options.get("in_chans", channels)
    mean, std = (tuple(config[key]) for key in ("mean", "std"))
    if len(mean) != channels:
        mean, std = (mean[0],) * channels, (std[0],) * channels
    squash = config.get("crop_mode") == "squash"
    return Preprocess((height, width), "timm", mean, std, config["crop_pct"], config["interpolation"], squash)


def _torchvision_images(name: str) -> Preprocess:
    models = importlib.import_module("torchvision.models")
    best = getattr(models.get_model_weights(name), "DEFAULT", None)
    how = best.transforms() if best is not None else None
    cut = getattr(how, "crop_size", None)
    if how is None or not isinstance(cut, list):
        return Preprocess((SIZE, SIZE), "graphfuse (torchvision names no size)")
    height, width = cut if len(cut) == 2 else cut * 2
    crop = min(height, width) / getattr(how, "resize_size", cut)[0]
    mean, std = tuple(getattr(how, "mean", ())), tuple(getattr(how, "std", ()))
    return Preprocess((height, width), "torchvision", mean, std, crop, how.interpolation.value)


def _unknown(library: str, name: str, known: list[str]) -> ModelSpecError:
    near = difflib.get_close_matches(name.partition(".")[0], known, 3)
    hint = f"; did you mean {' or '.join(near)}?" if near else f".\n  what to do: see {library}'s list_models()"
    return ModelSpecError(f"{library} has no model {name!r}{hint}")
