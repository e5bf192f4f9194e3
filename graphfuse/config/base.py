"""What all settings have in common: frozen, checked, and no unknown keys."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

RUN_KEYS = (
    "models", "into", "data", "batch_size", "length", "rules", "device", "dtype", "allow", "alignment",
    "max_shard_size", "out",
)  # fmt: skip
"""What the file of a run says beyond the settings of the fusion: what is given to functions as arguments."""


class Settings(BaseModel):
    """A section of a config."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def section(kind: type[Settings], description: str) -> Any:
    """A field that holds a section of its own, by default with its defaults."""
    return Field(default_factory=lambda: kind.model_validate({}), description=description)


def nearest(word: str, valid: list[str]) -> str:
    """A hint that names the valid word nearest to the given one, or all of them."""
    ends = [key for key in valid if key.split(".")[-1] == word]
    close = ends or difflib.get_close_matches(word, valid, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(sorted(valid))}"
