"""Text in windows of one length, by a model's own tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from graphfuse.errors import DataError
from graphfuse.io.examples import Examples
from graphfuse.io.forward import Signature

LENGTH = 128


def read(path: Path, tokenizer: Any, model: Any, length: int | None = None) -> Examples:
    """The windows of a text file in UTF-8; see :func:`windows`.

    Raises
    ------
    DataError
        The file cannot be read, or is shorter than one window.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"the text {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"the text {path} is not in UTF-8: {error}") from error
    return windows(text, tokenizer, model, length, str(path))


def windows(text: str, tokenizer: Any, model: Any, length: int | None = None, where: str = "the text") -> Examples:
    """Text as token ids in windows, each with the special tokens that the tokenizer adds.

    An encoder-decoder gets each window on both sides. There is no mask: all windows are full; the rest is left out.

    Parameters
    ----------
    text, tokenizer, model :
        The text, and a tokenizer and model of transformers.
    length :
        Tokens in a window; by default 128, or what the model and the tokenizer can take if that is less.
    where :
        What the text is called in messages.

    Raises
    ------
    DataError
        The text is shorter than one window, the window longer than the model takes, or the tokenizer cannot cut.
    """
    most = _most(tokenizer, model.config)
    size = length if length is not None else min(LENGTH, most)
    if not 1 <= size <= most:
        raise DataError(f"windows of {size} tokens cannot be given to the model.\n  expected: 1 to {most}")
    cut = tokenizer(text, truncation=True, max_length=size, return_overflowing_tokens=True, verbose=False)["input_ids"]
    if not cut or not isinstance(cut[0], list):
        raise DataError(
            f"the tokenizer {type(tokenizer).__name__} cannot cut text into windows.\n"
            "  what to do: give token ids: FILE.npz or FILE.safetensors with input_ids"
        )
    full = [ids for ids in cut if len(ids) == size]
    if not full:
        raise DataError(
            f"{where} has {sum(map(len, cut))} tokens, and a window {size}.\n"
            "  what to do: give more text, or shorter windows: --length"
        )
    both = getattr(model.config, "is_encoder_decoder", False) and "decoder_input_ids" in Signature.of(model).names

    def inputs(rows: list[int]) -> dict[str, torch.Tensor]:
        ids = torch.tensor([full[row] for row in rows])
        return {"input_ids": ids, "decoder_input_ids": ids} if both else {"input_ids": ids}

    return Examples(where, len(full), inputs, notes=(f"{where}: {len(full)} windows of {size} tokens",))


def _most(tokenizer: Any, config: Any) -> int:
    text = config.get_text_config()
    known = [getattr(text, name, None) for name in ("max_position_embeddings", "n_positions")]
    return min(value for value in (*known, tokenizer.model_max_length) if value)
