"""Directories of transformers models, read and written by transformers itself (which graphfuse does not require)."""

from __future__ import annotations

import contextlib
import inspect
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import nn

from graphfuse.capture import canonical_names
from graphfuse.errors import CheckpointError, DataError, ModelSpecError
from graphfuse.io.images import Preprocess
from graphfuse.io.importing import import_library
from graphfuse.io.precision import Dtypes, as_stored, usual

WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.onnx", "*.index.json")
OURS = ("README.md", "config.yaml", "report.html", "report.json")  # of the parent, not of what is made of it
TOKENIZERS = ("tokenizer*", "vocab*", "*.model", "merges.txt")
AUDIO_SAMPLES = 4000
FLOATING = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def load(folder: Path, allow: Sequence[str] = ()) -> tuple[nn.Module, tuple[str, ...]]:
    """The model of a directory, of the class that its config names, in float32 and without a generation cache.

    Names that begin with one of ``allow`` may be missing from the weights, left over in them, or of another shape.

    Raises
    ------
    ModelSpecError
        transformers is not installed, or does not know the model.
    CheckpointError
        The weights cannot be read (only safetensors are), or do not fit the config.
    """
    transformers = import_library("transformers")
    config = config_of(folder)
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
    notes = _check_names(info, tuple(allow), folder, name)
    for module in model.modules():  # a cache for generation is no output that two models could agree on
        if getattr(getattr(module, "config", None), "use_cache", None):
            module.config.use_cache = False
    return model, (*notes, *_tied(model, folder))


def config_of(folder: Path) -> Any:
    """The config of a directory; ModelSpecError where transformers does not know it, or it asks for code to be run."""
    auto = import_library("transformers").AutoConfig
    try:
        return auto.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelSpecError(f"{folder}: transformers cannot read its config.json: {_line(error)}") from error


def caches(config: Any) -> bool:
    """Whether a model keeps a cache when it generates."""
    return bool(getattr(config.get_text_config(), "use_cache", False))


def _check_names(info: dict[str, Any], allow: tuple[str, ...], folder: Path, model: str) -> list[str]:
    kinds = {
        kind.removesuffix("_keys"): sorted(str(k[0] if isinstance(k, tuple) else k) for k in keys)
        for kind, keys in info.items()
        if keys
    }
    trouble = {kind: odd for kind, names in kinds.items() if (odd := [n for n in names if not n.startswith(allow)])}
    if trouble:
        lines = [f"  {kind} ({len(names)}): {'; '.join(names[:4])}" for kind, names in trouble.items()]
        advice = "  what to do: where these are meant to have fresh values, or to be left out, allow them: --allow NAME"
        raise CheckpointError("\n".join([f"{folder}: the weights do not fit {model}:", *lines, advice]))
    return [f"{folder}: {kind}, as allowed: {'; '.join(names[:4])}" for kind, names in kinds.items()]


def _tied(model: nn.Module, folder: Path) -> list[str]:
    known, canonical = stored(folder), canonical_names(model)
    return [
        f"{folder}: {name!r} is not in the file; the model ties it to {first!r}"
        for name, first in canonical.items()
        if name != first and name not in known and first in known
    ]


def save(model: nn.Module, folder: Path, dtypes: Dtypes, source: Path | None, shard: int) -> None:
    """Write a model as transformers does, in these dtypes, with the tokenizer and processor files of ``source``.

    Tensors that ``dtypes`` does not name get the dtype that most have; where it names none, all stay as they are.
    Weights beyond ``shard`` bytes are written in several files.
    """
    state = as_stored(model.state_dict(keep_vars=True), dtypes, usual(dtypes) if dtypes else None)
    with _without_bars(import_library("transformers")):
        model.save_pretrained(folder, state_dict=state, max_shard_size=shard)  # pyright: ignore[reportCallIssue]
    if source is None:
        return
    config = _config(folder)
    for key in ("use_cache", *(("dtype", "torch_dtype") if dtypes else ())):
        _restore(config, _config(source), key)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for file in sorted(source.iterdir()):
        ours = file.name in OURS or file.name.startswith(".") or any(file.match(pattern) for pattern in WEIGHTS)
        if file.is_file() and not ours and not (folder / file.name).exists():
            shutil.copy(file, folder / file.name)


def tokenizer(folder: Path) -> Any:
    """The tokenizer of a directory.

    Raises
    ------
    DataError
        There is none, or it cannot be loaded.
    """
    auto = import_library("transformers").AutoTokenizer
    try:
        if not any(file for pattern in TOKENIZERS for file in folder.glob(pattern)):
            raise OSError("it holds no tokenizer files")  # transformers would make an empty one
        return auto.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise DataError(
            f"{folder} has no tokenizer that can be loaded: {_line(error)}\n  what to do: save it beside the model: "
            f"tokenizer.save_pretrained({str(folder)!r})"
        ) from error


def stored(folder: Path) -> dict[str, torch.dtype]:
    """The dtypes of the floating tensors in the safetensors files of a directory, read from their headers."""
    found = {}
    for file in sorted(folder.glob("model*.safetensors")):
        with safetensors.safe_open(file, framework="pt") as opened:  # pyright: ignore[reportPrivateImportUsage]
            for name in opened.keys():  # noqa: SIM118
                dtype = FLOATING.get(opened.get_slice(name).get_dtype())
                if dtype is not None:
                    found[name] = dtype
    return found


def images(folder: Path) -> Preprocess | None:
    """What the image processor of a directory does; None where there is none."""
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelSpecError(f"{file} is no JSON: {_line(error)}") from error
    size, cut = _sides(config.get("size")), _sides(config.get("crop_size"))
    if size is None:
        return None
    cuts = bool(config.get("do_center_crop")) and cut is not None
    final = cut if cuts and cut is not None else size
    plain = (0.0,) * 3, (1.0,) * 3
    mean, std = config.get("image_mean"), config.get("image_std")
    mean, std = (mean, std) if config.get("do_normalize", True) and mean and std else plain
    name = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}.get(config.get("resample", 2), "bilinear")
    crop = min(final) / min(size) if cuts else 1.0
    return Preprocess(final, file.name, tuple(mean), tuple(std), crop, name, squash=not cuts)


def _sides(size: Any) -> tuple[int, int] | None:
    match size:
        case int():
            return size, size
        case {"height": int(height), "width": int(width)}:
            return height, width
        case {"shortest_edge": int(edge)}:
            return edge, edge
    return None


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


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
