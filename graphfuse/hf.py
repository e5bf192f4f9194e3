"""For users of transformers: fuse directories or models in one call, and get a model that ``from_pretrained`` loads.

Importing this needs no transformers; calling it does.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from graphfuse.capture import duplicate
from graphfuse.config import FuseConfig
from graphfuse.errors import DataError, ModelSpecError, kind_of
from graphfuse.fuse import FuseResult, fuse
from graphfuse.io import pretrained, texts
from graphfuse.io.batches import load_data
from graphfuse.io.cards import CARD, model_card
from graphfuse.io.examples import in_batches
from graphfuse.io.importing import import_library
from graphfuse.io.models import LoadedModel, ModelSpec, load_model, parse_spec
from graphfuse.io.precision import as_stored, computed_in, floating
from graphfuse.io.sharding import SHARD, bytes_of
from graphfuse.writing import ensure_new, new_directory

__all__ = ["fuse_pretrained"]


def fuse_pretrained(
    models: Sequence[Any],
    data: Any = None,
    out: str | Path | None = None,
    config: FuseConfig | Mapping[str, Any] | str | Path | None = None,
    *,
    tokenizer: Any = None,
    batch_size: int = 16,
    length: int | None = None,
    device: str | torch.device | None = None,
    max_shard_size: str = SHARD,
    **options: Any,
) -> FuseResult:
    """Fuse models of transformers.

    Parameters
    ----------
    models :
        Directories as transformers saves them, or models in memory, which are left as they are.
    data :
        Texts (a list of str), which are joined and cut into windows of tokens; or the name of data, as on the command
        line (a folder of images, a text file, arrays); or batches: dicts of keyword arguments, or tensors. Without
        data, models are matched by their weights alone.
    out :
        A new directory, which gets the model, its tokenizer and processor files, a model card (README.md), the
        alignment and report.json; by default nothing is written.
    config :
        Settings of the fusion: a dict, a YAML file or a FuseConfig.
    tokenizer :
        For texts; by default that of the first directory. With ``out`` it is saved where no directory has one.
    batch_size, length :
        Inputs in a batch, tokens in a window (by default 128, or what the model can take).
    device :
        Where it is done; by default where the first model is.
    max_shard_size :
        Larger weights are written in several files.
    options :
        As :func:`graphfuse.fuse` takes them: ``rules``, ``score``, ``progress``, ``alignment``.

    Returns
    -------
    FuseResult
        ``.model``, of the target's class, in eval mode and in the precision that the target was stored in;
        ``.alignment``, ``.report``.

    Raises
    ------
    ModelSpecError
        A model is neither a directory of transformers nor a model of it.
    DataError
        The data does not fit the models, or texts are given without a tokenizer.
    GraphFuseError
        What :func:`graphfuse.fuse` raises; nothing was written then.
    """
    settings = FuseConfig.parse(config)
    if out is not None:
        ensure_new(out)
    shard = bytes_of(max_shard_size)
    parents = [_parent(model, settings.seed) for model in models]
    if not parents:
        raise DataError("there are no models to fuse.\n  expected: directories or models of transformers")
    place = torch.device(device) if device is not None else next(parents[0].loaded.model.parameters()).device
    nets = [parent.loaded.model.to(place) for parent in parents]
    batches = _batches(data, parents, tokenizer, batch_size, length, settings.reads)
    args, kwargs = parents[0].loaded.example or ((), {})
    fed = [_moved(batch, place) for batch in batches] if batches is not None else None
    given = () if fed is not None else _moved((args, kwargs), place)
    result = fuse(nets, *given, data=fed, config=settings, **options)
    target = parents[settings.target]
    _restore(result.model, target)
    if out is not None:
        _write(Path(out), result, parents, target, tokenizer, shard)
    return result


@dataclass(frozen=True, eq=False)
class _Parent:
    """A model that may be worked on, in float32 or wider, and the directory that it came from.

    ``cache`` says whether it kept one when generating.
    """

    loaded: LoadedModel
    folder: Path | None
    cache: bool


def _parent(model: Any, seed: int) -> _Parent:
    if isinstance(model, str | Path):
        spec = parse_spec(str(model))
        if spec.kind != "transformers":
            raise ModelSpecError(f"{model} is no directory of transformers.\n  what to do: fuse it with graphfuse.fuse")
        return _Parent(load_model(spec, seed), Path(model), pretrained.caches(pretrained.config_of(Path(model))))
    transformers = import_library("transformers")
    if not isinstance(model, transformers.PreTrainedModel):
        raise ModelSpecError(
            f"{kind_of(model)} is no model of transformers.\n"
            "  expected: directories, or models of transformers; for others: graphfuse.fuse"
        )
    stored = floating(model.state_dict())
    own = computed_in(duplicate(model), None).eval()
    _set_cache(own, False)
    spec = ModelSpec(type(model).__name__, "transformers", "")
    return _Parent(
        LoadedModel(own, spec, (), pretrained.example_inputs(own, seed), stored), None, pretrained.caches(model.config)
    )


def _batches(
    data: Any, parents: Sequence[_Parent], tokenizer: Any, batch_size: int, length: int | None, samples: int
) -> Iterable[Any] | None:
    first = parents[0].loaded
    if data is None:
        return None
    if isinstance(data, str | Path):
        return load_data(str(data), batch_size, model=first, samples=samples, length=length)
    if not isinstance(data, Sequence) or not data or not all(isinstance(one, str) for one in data):
        return [data] if isinstance(data, torch.Tensor | Mapping) else data
    folder = next((parent.folder for parent in parents if parent.folder is not None), None)
    if tokenizer is None and folder is None:
        raise DataError("texts need a tokenizer, and models in memory have none.\n  what to do: pass tokenizer=")
    reader = tokenizer if tokenizer is not None or folder is None else pretrained.tokenizer(folder)
    return in_batches(texts.windows("\n".join(data), reader, first.model, length), batch_size, samples)


def _moved(value: Any, place: torch.device) -> Any:
    plain = dict(value) if isinstance(value, Mapping) else value  # a BatchEncoding is no dict
    return pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(place), plain)


def _set_cache(model: nn.Module, on: bool) -> None:
    """A cache for generation is no output that two models could agree on."""
    for module in model.modules():
        if isinstance(getattr(getattr(module, "config", None), "use_cache", None), bool):
            module.config.use_cache = on  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]


def _restore(model: nn.Module, target: _Parent) -> None:
    """The precision and the cache that the target came with."""
    state: dict[str, Any] = model.state_dict(keep_vars=True)
    for name, value in as_stored(state, target.loaded.stored).items():
        state[name].data = value.data
    _set_cache(model, target.cache)


def _write(
    out: Path, result: FuseResult, parents: Sequence[_Parent], target: _Parent, tokenizer: Any, shard: int
) -> None:
    source = target.folder or next((parent.folder for parent in parents if parent.folder is not None), None)
    with new_directory(out) as work:
        pretrained.save(result.model, work, target.loaded.stored, source, shard)
        if source is None and tokenizer is not None:
            tokenizer.save_pretrained(work)
        result.alignment.save(work / "alignment.safetensors")
        specs = [parent.loaded.spec.text for parent in parents]
        report = {"specs": specs, **result.report}
        (work / "report.json").write_text(json.dumps(report, indent=2, default=str) + "\n", encoding="utf-8")
        (work / CARD).write_text(model_card(target.loaded, specs, report), encoding="utf-8")
