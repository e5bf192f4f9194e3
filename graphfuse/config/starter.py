"""A config file to start from, and the JSON schema by which editors check and complete one."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterator
from typing import Any

import yaml
from pydantic.fields import FieldInfo

from graphfuse.config.base import RUN_KEYS, Settings
from graphfuse.config.reading import sections
from graphfuse.config.run import RunConfig

WIDTH = 100
USUAL = (
    *RUN_KEYS[:5],
    "out",
    "method",
    "solver",
    "scheme",
    "target",
    "weights",
    "samples",
    "seed",
    "roles",
    "calibrate",
)
EXAMPLE = {
    "models": ["nets:build@a.safetensors", "nets:build@b.safetensors"],
    "data": "inputs.npz",
    "out": "fused",
}
HEAD = """\
# A run of graphfuse: graphfuse fuse --config FILE
# What is left out has the value shown here, but for models, data and out. Arguments on the command line come first.
"""


def schema() -> dict[str, Any]:
    """The JSON schema of the file of a run."""
    found = RunConfig.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found, "title": "A run of graphfuse fuse"}


def starter(full: bool = False, schema_file: str | None = None) -> str:
    """A commented YAML file: each key with its description and default, the usual ones or all.

    ``schema_file`` is where editors find the schema.
    """
    first = f"# yaml-language-server: $schema={schema_file}\n" if schema_file is not None else ""
    names = [name for name in (*RUN_KEYS, *RunConfig.model_fields) if full or name in USUAL]
    return first + HEAD + "\n".join(_lines(RunConfig, list(dict.fromkeys(names)))) + "\n"


def reference(model: type[Settings] = RunConfig, path: str = "") -> str:
    """Markdown: every key by its path, with its default and description, those of sections after them."""
    names = dict.fromkeys((*RUN_KEYS, *model.model_fields)) if model is RunConfig else model.model_fields
    lines, inner = [], dict(sections(model))
    for name in names:
        entry = model.model_fields[name]
        default = entry.get_default(call_default_factory=True)
        plain = entry.is_required() or isinstance(default, Settings)
        said = "" if plain else f" (default: `{_text(default)}`)"
        lines.append(f"- `{path}{name}`{said}: {entry.description}")
        if name in inner:
            below = f"{path}{name}.NAME." if name == "roles" else f"{path}{name}."
            lines.append(reference(inner[name], below))
    return "\n".join(lines)


def _lines(model: type[Settings], names: Collection[str], indent: str = "") -> Iterator[str]:
    inner = dict(sections(model))
    for name in names:
        entry = model.model_fields[name]
        yield ""
        yield from _comment(entry, indent)
        default = entry.get_default(call_default_factory=True)
        if isinstance(default, Settings):
            yield f"{indent}{name}:"
            yield from _lines(type(default), list(type(default).model_fields), indent + "  ")
            continue
        value = EXAMPLE.get(name, default) if not indent else default
        yield f"{indent}{name}: {_text(value)}"
        if name in inner:
            lead = "# for one role or axis, as residual or heads.0:" if name == "roles" else "# or a mapping of:"
            yield f"{indent}{lead}"
            for key, part in inner[name].model_fields.items():
                yield from _wrapped(f"{key}: {part.description}", f"{indent}#   ", f"{indent}#     ")


def _text(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def _comment(entry: FieldInfo, indent: str) -> Iterator[str]:
    yield from _wrapped(entry.description or "", f"{indent}# ", f"{indent}# ")


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False)
