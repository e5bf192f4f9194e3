"""The settings of a whole run of ``graphfuse fuse``: which models, on which data, where to, and how."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field

from graphfuse.config.base import RUN_KEYS
from graphfuse.config.fuse import FuseConfig
from graphfuse.config.reading import Document, checked, read


class RunConfig(FuseConfig):
    """Everything that ``graphfuse fuse`` takes: what a fusion takes, and models, data and output by their names.

    Paths are relative to the directory in which the command runs.
    """

    models: tuple[str, ...] = Field(
        (), description="The models to be fused, as on the command line: see `graphfuse fuse --help` for the forms."
    )
    into: str | None = Field(
        None, description="A model whose widths, not weights, the result has; one model may then be given alone."
    )
    data: str | None = Field(
        None, description="Unlabelled inputs, a few hundred; without, models are matched by their weights alone."
    )
    batch_size: int = Field(64, ge=1, description="Inputs in one batch of the data, where the data has no batches.")
    length: int | None = Field(
        None, ge=1, description="Tokens in a window of text; by default 128, or what the model can take."
    )
    rules: tuple[str, ...] = Field((), description="Further rule packs: PACK.yaml, or module:table of rules in Python.")
    device: str = Field("cpu", description="Where models run: cpu, cuda, cuda:1, mps.")
    dtype: Literal["float16", "bfloat16", "float32", "float64"] | None = Field(
        None, description="What models are computed in and written in; by default float32, and as they were stored."
    )
    allow: tuple[str, ...] = Field(
        (), description="Tensors whose names begin so may be missing from a checkpoint, or left over in it: head."
    )
    alignment: str | None = Field(
        None, description="A saved alignment of these models (.safetensors) to be used; by default they are aligned."
    )
    max_shard_size: str = Field("5GB", description="Weights beyond this size are written in several files: 500MB, 5GB.")
    out: str | None = Field(None, description="A new directory for the fused model.")

    @classmethod
    def parse(cls, value: FuseConfig | Mapping[str, Any] | str | Path | None = None) -> Self:
        """A run from a dict, a YAML file, a config, or None (the defaults); errors as those of FuseConfig.parse."""
        if isinstance(value, cls):
            return value
        if isinstance(value, FuseConfig):
            return cls.model_construct(value.model_fields_set, **dict(value))
        return checked(cls, read(value) if isinstance(value, str | Path) else Document(value))

    @property
    def settings(self) -> FuseConfig:
        """What :func:`graphfuse.fuse` takes as ``config``."""
        names = FuseConfig.model_fields
        return FuseConfig.model_construct(
            self.model_fields_set & set(names), **{name: getattr(self, name) for name in names}
        )

    def to_yaml(self) -> str:
        """All settings as YAML, defaults too; :meth:`parse` gives the same run back."""
        values = self.model_dump(mode="json")
        ordered = {key: values[key] for key in (*RUN_KEYS, *values)}
        return yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True, width=120)
