"""Precision: models are computed in float32 or wider, and written as they were stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from graphfuse.errors import ConfigError, OutputError

HALF = (torch.float16, torch.bfloat16)
NAMES = ("float16", "bfloat16", "float32", "float64")
Dtypes = Mapping[str, torch.dtype]


def dtype_of(name: str | None) -> torch.dtype | None:
    """The floating dtype of a name; None of None.

    Raises
    ------
    ConfigError
        There is no such dtype.
    """
    if name is None:
        return None
    if name not in NAMES:
        raise ConfigError(f"there is no floating dtype {name!r}.\n  expected: {', '.join(NAMES)}")
    return getattr(torch, name)


def floating(state: Mapping[str, Tensor]) -> dict[str, torch.dtype]:
    """The dtypes of the floating tensors of a state dict."""
    return {name: value.dtype for name, value in state.items() if value.is_floating_point()}


def usual(dtypes: Dtypes) -> torch.dtype:
    """The dtype that most tensors have; float32 where there are none."""
    return Counter(dtypes.values()).most_common(1)[0][0] if dtypes else torch.float32


def words(dtypes: Dtypes) -> str:
    """The dtypes in words, the most frequent first."""
    return " and ".join(str(dtype).removeprefix("torch.") for dtype, _ in Counter(dtypes.values()).most_common())


def computed_in(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """The model itself with its floating tensors in ``dtype``; by default float16 and bfloat16 become float32."""
    with torch.no_grad():
        for module in model.modules():
            for value in (*module._parameters.values(), *module._buffers.values()):
                if value is not None and value.is_floating_point() and (dtype or value.dtype in HALF):
                    value.data = value.to(dtype or torch.float32)  # the same object, so that what is tied stays tied
    return model


def as_stored(state: Mapping[str, Tensor], stored: Dtypes, default: torch.dtype | None = None) -> dict[str, Tensor]:
    """The tensors in the dtypes that they were stored in, others in ``default`` (None: as they are).

    One tensor under several names stays one.

    Raises
    ------
    OutputError
        A value is too large for its dtype.
    """
    known = {id(value): stored[name] for name, value in state.items() if name in stored}
    narrow: dict[int, Tensor] = {}
    for name, value in state.items():
        if id(value) not in narrow:
            dtype = known.get(id(value), default) if value.is_floating_point() else None
            narrow[id(value)] = value if dtype is None else _narrow(name, value.detach(), dtype)
    return {name: narrow[id(value)] for name, value in state.items()}


def _narrow(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    narrow = value.to(dtype)
    if lost := int((torch.isinf(narrow) & torch.isfinite(value)).sum()):
        raise OutputError(
            f"{lost} of {value.numel()} values of {name} are too large for {str(dtype).removeprefix('torch.')}, in "
            "which it was stored.\n  what to do: choose another precision: --dtype float32"
        )
    return narrow
