"""What the user says of names: which parameter, or which part of the model, is which of the other's."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence

from graphfuse.errors import ConfigError
from graphfuse.matching.skeleton import Uses

Names = Mapping[str, str | Sequence[str]]


def tags_of(names: Names, a: Uses, b: Uses) -> tuple[dict[int, Hashable], dict[int, Hashable]]:
    """For each model, use -> what was said of it; uses are paired only when the same was said of both.

    Parameters
    ----------
    names :
        Parameter or module path of the target -> that of the other model. Parts of a fused parameter are listed in its
        order: {"qkv.weight": ["q.weight", "k.weight", "v.weight"]}, or the other way round one key for each part.

    Raises
    ------
    ConfigError
        A name is neither a parameter nor a module path of its model.
    """
    pairs = [(mine, [other] if isinstance(other, str) else list(other)) for mine, other in names.items()]
    parts: dict[str, list[str]] = defaultdict(list)
    for mine, others in pairs:
        for other in others:
            parts[other].append(mine)
    said_a: dict[tuple[str, int | None], set[Hashable]] = defaultdict(set)
    said_b: dict[tuple[str, int | None], set[Hashable]] = defaultdict(set)
    for mine, others in pairs:
        for i, other in enumerate(others):
            fused_a, fused_b = len(others) > 1, len(parts[other]) > 1
            said = (mine, other)
            for name in _under(mine, a, "target"):
                said_a[name, i if fused_a else None].add(said)
            for name in _under(other, b, "other model"):
                said_b[name, parts[other].index(mine) if fused_b else None].add(said)
    return _tags(said_a, a), _tags(said_b, b)


def _tags(said: Mapping[tuple[str, int | None], set[Hashable]], uses: Uses) -> dict[int, Hashable]:
    found: dict[int, Hashable] = {}
    for i, use in enumerate(uses.entries):
        if use.block is not None:
            whole, part = (
                said.get((use.block.tensor, None), set()),
                said.get((use.block.tensor, use.block.index), set()),
            )
            if whole or part:
                found[i] = frozenset({*whole, *part})
    return found


def _under(path: str, uses: Uses, whose: str) -> list[str]:
    """The tensors with this name, or of the module with this path."""
    names = list(uses.graph.tensors)
    path = uses.graph.captured.aliases.get(path, path)
    found = [name for name in names if name == path or name.startswith(f"{path}.")]
    if not found:
        valid = sorted({name.rsplit(".", cut)[0] for name in names for cut in range(name.count(".") + 1)})
        close = difflib.get_close_matches(path, valid, n=1, cutoff=0.0)
        raise ConfigError(
            f"names: the {whose} ({type(uses.graph.model).__name__}) has no parameter or module {path!r}; "
            f"did you mean {close[0]!r}?"
            if close
            else f"names: the {whose} has no parameter {path!r}"
        )
    return found
