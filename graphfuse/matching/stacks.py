"""Lists of layers in a model, and how the layers of one are called in another of a different depth."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

Outline = Mapping[str, int]
"""What a layer is made of: its tensors' names within it, and their numbers of dims."""


@dataclass(frozen=True)
class Stack:
    """A list of modules: its path, and the paths of those members that hold tensors, in order."""

    path: str
    layers: tuple[str, ...]

    def __str__(self) -> str:
        return f"{len(self.layers)} layers in {self.path!r}"


def stacks_of(model: nn.Module) -> dict[str, Stack]:
    """Every list of modules (numbered children, as in ModuleList and Sequential) that has members with tensors."""
    found = {}
    for path, module in model.named_modules():
        members = [name for name, child in module.named_children() if name.isdigit() and outline(child)]
        if members:
            found[path] = Stack(path, tuple(f"{path}.{name}" if path else name for name in members))
    return found


def unequal(target: nn.Module, other: nn.Module) -> list[tuple[Stack, Stack]]:
    """Lists of equal paths and different length, outermost only, if all else has the same names in both models.

    Empty where depth is not what the models differ in.
    """
    ours, theirs = stacks_of(target), stacks_of(other)
    found: list[tuple[Stack, Stack]] = []
    for path, mine in ours.items():
        inside = any(_within(path, outer.path) for outer, _ in found)
        if path in theirs and len(mine.layers) != len(theirs[path].layers) and not inside:
            found.append((mine, theirs[path]))
    left, right = (
        {name for name in outline(model) if not any(_within(name, layer) for layer in layers)}
        for model, layers in (
            (target, [layer for mine, _ in found for layer in mine.layers]),
            (other, [layer for _, their in found for layer in their.layers]),
        )
    )
    return found if left == right else []


def outline(module: nn.Module) -> Outline:
    """The names of a module's parameters and buffers, and how many dims each has."""
    return {name: tensor.dim() for name, tensor in [*module.named_parameters(), *module.named_buffers()]}


def renamed(name: str, layers: Mapping[str, str | None]) -> str | None:
    """A tensor's name when its layer is called otherwise; None when its layer has no counterpart."""
    for end in (i for i, letter in enumerate(name) if letter == "."):
        if name[:end] in layers:
            other = layers[name[:end]]
            return None if other is None else other + name[end:]
    return name


def of_depth(model: nn.Module, other: nn.Module) -> nn.Module | None:
    """A copy of a model with as many layers in its main list as another model has in its own, whatever their names.

    None where there is no such list, or where both are equally deep.
    """
    mine, theirs = _main(model), _main(other)
    if mine is None or theirs is None or len(mine.layers) == len(theirs.layers):
        return None
    resized = copy.deepcopy(model)
    members = resized.get_submodule(mine.path)
    if not isinstance(members, nn.ModuleList | nn.Sequential):
        return None
    count = len(members) + len(theirs.layers) - len(mine.layers)
    while len(members) > count:
        del members[-1]
    while len(members) < count:
        members.append(copy.deepcopy(members[-1]))
    return resized


def _main(model: nn.Module) -> Stack | None:
    """The list of alike layers that holds the most parameters."""
    sizes = {}
    for stack in stacks_of(model).values():
        layers = [model.get_submodule(path) for path in stack.layers]
        if len(layers) > 1 and all(outline(layer) == outline(layers[0]) for layer in layers):
            sizes[stack] = sum(p.numel() for layer in layers for p in layer.parameters())
    return max(sizes, key=sizes.__getitem__, default=None)


def _within(path: str, outer: str) -> bool:
    return path == outer or outer == "" or path.startswith(f"{outer}.")
