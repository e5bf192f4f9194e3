"""Directories of transformers models, read and written by transformers itself (which graphfuse does not require)."""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import inspect
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graphfuse.errors import CheckpointError, ModelSpecError

WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.onnx", "*.index.json")
AUDIO_SAMPLES = 4000


def load(folder: Path) -> tuple[nn.Module, tuple[str, ...]]:
    """The model of a directory, of the class that its config names, in float32 and without a generation cache.

    Raises
    ------
    ModelSpecError
        transformers is not installed, or does not know the model.
    CheckpointError
        The weights cannot be read (only safetensors are), or do not fit the config.
    """
    transformers = import_transformers()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelSpecError(f"{folder}: transformers cannot read its config.json: {_line(error)}") from error
    name = (config.architectures or ["AutoModel"])[0]
    cls = getattr(transformers, name, None)
    if cls is None:
        raise ModelSpecError(
            f"{folder}: config.json names the architecture {name!r}, which transformers {transformers.__version__} has "
            "not.\n  what to do: install the version that wrote it, or give the model as package.module:factory"
        )
    how = {"local_files_only": True, "use_safetensors": True, "dtype": torch.float32, "output_loading_info": True}
    try:
        with _without_bars(transformers):
            model, info = cls.from_pretrained(folder, config=config, **how)
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: the weights cannot be loaded: {_line(error)}\n  expected: model.safetensors (or its shards); "
            "weights in pickles (*.bin) are not loaded, because loading those can run code"
        ) from error
    trouble = [(kind.removesuffix("_keys"), sorted(map(str, keys))) for kind, keys in info.items() if keys]
    if trouble:
        lines = [f"  {kind} ({len(keys)}): {'; '.join(keys[:4])}" for kind, keys in trouble]
        raise CheckpointError("\n".join([f"{folder}: the weights do not fit {name}:", *lines]))
    for module in model.modules():  # a cache for generation is no output that two models could agree on
        if getattr(getattr(module, "config", None), "use_cache", None):
            module.config.use_cache = False
    stored = _stored_dtype(folder)
    note = f"{folder}: computed in float32; saved again in {str(stored).removeprefix('torch.')}"
    return model, (note,) if stored != torch.float32 else ()


def save(model: nn.Module, source: Path, folder: Path) -> None:
    """Write a model as transformers does, in the precision of ``source``, with its tokenizer and processor files."""
    stored = _stored_dtype(source)
    written: Any = model if stored == torch.float32 else copy.deepcopy(model).to(stored)
    with _without_bars(import_transformers()):
        written.save_pretrained(folder)
    config = _config(folder)
    _restore(config, _config(source), "use_cache")
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for file in sorted(source.iterdir()):
        weights = any(file.match(pattern) for pattern in WEIGHTS)
        if file.is_file() and not weights and not file.name.startswith(".") and not (folder / file.name).exists():
            shutil.copy(file, folder / file.name)


def example_inputs(model: Any, seed: int = 0) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Two random inputs of the kind that the model's ``forward`` takes; None when its kind is unknown."""
    generator = torch.Generator().manual_seed(seed)
    accepted = inspect.signature(model.forward).parameters
    config = model.config
    kwargs: dict[str, Any] = {}
    if "input_ids" in accepted:
        text = config.get_text_config()
        length = min(8, _setting(text, "max_position_embeddings", "n_positions") or 8)
        first = min(10, (_setting(text, "vocab_size") or 11) - 1)  # low ids are often special tokens
        ids = torch.randint(first, _setting(text, "vocab_size") or 11, (2, length), generator=generator)
        kwargs["input_ids"] = ids
        if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in accepted:
            kwargs["decoder_input_ids"] = ids.flip(1)
    if "pixel_values" in accepted:
        vision = getattr(config, "vision_config", config)
        size, channels = _setting(vision, "image_size") or 224, _setting(vision, "num_channels") or 3
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        kwargs["pixel_values"] = torch.randn(2, channels, height, width, generator=generator)
    if "input_values" in accepted and not kwargs:
        kwargs["input_values"] = torch.randn(2, AUDIO_SAMPLES, generator=generator)
    return ((), kwargs) if kwargs else None


def _setting(config: Any, *names: str) -> Any:
    return next((getattr(config, name) for name in names if getattr(config, name, None) is not None), None)


def _config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def _restore(config: dict[str, Any], original: dict[str, Any], key: str) -> None:
    """Give ``key`` its original value, or absence, in a config and in the configs inside it."""
    config.pop(key, None)
    if key in original:
        config[key] = original[key]
    for name, inner in config.items():
        if isinstance(inner, dict):
            _restore(inner, original.get(name) or {}, key)


def _stored_dtype(folder: Path) -> torch.dtype:
    config = _config(folder)
    dtype = getattr(torch, str(config.get("dtype") or config.get("torch_dtype") or "float32"), torch.float32)
    return dtype if isinstance(dtype, torch.dtype) and dtype.is_floating_point else torch.float32


def import_transformers() -> Any:
    """The transformers library, also beside a torchvision that was built for another torch.

    Raises
    ------
    ModelSpecError
        It is not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        raise ModelSpecError(
            "a directory of transformers needs transformers, which is not installed.\n"
            "  what to do: pip install 'graphfuse[zoo]', or give the model as package.module:factory"
        )
    hidden = _hide_broken_torchvision()
    transformers = importlib.import_module("transformers")
    if hidden:  # it may have been imported before, and have looked for torchvision then
        for name in ("is_torchvision_available", "is_torchvision_v2_available"):
            getattr(getattr(transformers.utils, name, None), "cache_clear", lambda: None)()
    return transformers


@contextlib.contextmanager
def _without_bars(transformers: Any) -> Iterator[None]:
    """The command line draws its own progress bars."""
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _hide_broken_torchvision() -> bool:
    """A torchvision built for another torch fails when imported, and transformers with it; without it all is well."""
    try:
        importlib.import_module("torchvision")
    except ImportError:
        return False
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.modules["torchvision"] = None  # pyright: ignore[reportArgumentType]
        return True
    return False


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
