"""Settings from YAML: every error with its line, its key and the nearest valid key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError

from graphfuse.config.base import Settings, nearest
from graphfuse.errors import ConfigError

S = TypeVar("S", bound=Settings)
Key = tuple[Any, ...]


@dataclass(frozen=True)
class Document:
    """What was read, the name of where from, and for each key path the line (from 1) on which it stands."""

    value: Any
    where: str = "config"
    lines: Mapping[Key, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with settings; ``line`` is None for those that come from no file."""

    key: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        at = f"line {self.line}: " if self.line is not None else ""
        return f"{at}{self.message}"


def read(path: str | Path) -> Document:
    """A YAML file.

    Raises
    ------
    ConfigError
        It cannot be read, is not valid YAML, or says a key twice; with the line.
    """
    where = f"config {path}"
    try:
        loader = yaml.SafeLoader(Path(path).read_text(encoding="utf-8"))
        node = loader.get_single_node()
        lines = dict(_lines(node, where)) if node is not None else {}
        return Document(loader.construct_document(node) if node is not None else None, where, lines)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{where}: cannot be read: {reason}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        raise ConfigError(f"{where}: {at}is not valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: is not valid YAML: {error}") from error


def _lines(node: yaml.Node, where: str, path: Key = (), above: tuple[int, ...] = ()) -> Iterator[tuple[Key, int]]:
    """(path, line) of every key and item; a key that is said twice would silently win over the first."""
    if id(node) in above:  # an alias inside what it stands for
        return
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen and name != "<<":
                raise ConfigError(f"{where}: line {line}: the key {name!r} was given before, on line {seen[name]}")
            seen[name] = line
            yield (*path, name), line
            yield from _lines(value, where, (*path, name), (*above, id(node)))
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            yield (*path, str(i)), item.start_mark.line + 1
            yield from _lines(item, where, (*path, str(i)), (*above, id(node)))


def checked(model: type[S], document: Document) -> S:
    """Settings from what was read.

    Raises
    ------
    ConfigError
        With one line for each thing that is wrong.
    """
    found = problems(model, document)
    if isinstance(found, Settings):
        return found
    raise ConfigError("\n".join(f"{document.where}: {problem}" for problem in found))


def problems(model: type[S], document: Document) -> S | tuple[Problem, ...]:
    """The settings, or everything that is wrong with them, in the order of the file."""
    value = {} if document.value is None else document.value
    if not isinstance(value, Mapping):
        what = f"expected a mapping of settings, got {type(value).__name__}"
        return (Problem("", f"{what}.\n  what to do: pass a dict, a {model.__name__} or the path of a YAML file"),)
    try:
        return model.model_validate(dict(value))
    except ValidationError as error:
        return _problems(model, document, value, error)


def _problems(model: type[Settings], document: Document, value: Any, error: ValidationError) -> tuple[Problem, ...]:
    reasons: dict[Key, list[str]] = {}
    inputs: dict[Key, Any] = {}
    for detail in error.errors():
        path = _within(value, tuple(detail["loc"]))
        if detail["type"] == "extra_forbidden":
            reason = f"unknown key {'.'.join(path)!r}; {nearest(path[-1], keys(model, path[:-1]))}"
        elif detail["type"] == "missing":
            reason = f"{'.'.join(map(str, detail['loc']))}: is missing"
        else:
            reason = detail["msg"].removeprefix("Value error, ")
            reason = reason[:1].lower() + reason[1:]
            inputs[path] = detail["input"]
        reasons.setdefault(path, []).append(reason)
    found = []
    for path, said in reasons.items():
        text = ", or ".join(dict.fromkeys(said))
        if path in inputs:
            got = f", got {inputs[path]!r}" if path else ""
            text = f"{'.'.join(path) or 'the whole'}: {text}{got}"
        found.append(Problem(".".join(path), text, document.lines.get(path)))
    return tuple(sorted(found, key=lambda problem: problem.line or 0))


def _within(value: Any, loc: Key) -> tuple[str, ...]:
    """The part of an error's place that leads to something in the value; the rest names a kind of a union."""
    path: list[str] = []
    for part in loc:
        if isinstance(value, Mapping):
            known = {str(key): key for key in value}
            if str(part) not in known:
                break
            value = value[known[str(part)]]
        elif isinstance(value, list | tuple) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            break
        path.append(str(part))
    return tuple(path)


def keys(model: type[Settings], path: Key = ()) -> list[str]:
    """Valid keys of the section that a path leads to; at the top also those of its sections, by their whole path."""
    if not path:
        inner = (f"{name}.{key}" for name, part in sections(model) if name != "roles" for key in part.model_fields)
        return [*model.model_fields, *inner]
    section: type[Settings] = model
    for part in path:  # a key of a mapping of sections, as a role, leads no deeper
        section = dict(sections(section)).get(part, section)
    return list(section.model_fields)


def sections(model: type[Settings]) -> Iterator[tuple[str, type[Settings]]]:
    """Fields that are settings themselves, or may hold such."""
    for name, entry in model.model_fields.items():
        for kind in (entry.annotation, *get_args(entry.annotation)):
            if isinstance(kind, type) and issubclass(kind, Settings):
                yield name, kind
