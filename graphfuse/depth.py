"""Models of one kind and different depth: which layer of one plays the part of which layer of the other.

Layers are matched by what they compute on the same inputs: linear centred kernel alignment (Kornblith et al. 2019,
arXiv 1905.00414, equation 5) between all pairs, then the monotone matching of the largest sum, by dynamic programming.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graphfuse.errors import CorrespondenceError
from graphfuse.lockstep import as_batch

ROWS = 2048  # activations of a layer that are looked at


@dataclass(frozen=True, eq=False)
class DepthMatch:
    """``model`` has the target's depth and the other model's weights, layer by layer as ``layers`` says.

    ``layers`` maps a layer of the target to one of the other. Those of the target that have no partner (``kept``) have
    the target's own weights here; fusing with data does not know this and moves them like all others. Those of the
    other that have none are ``dropped``.
    ``similarity`` is the alignment of each pair, shape (target's layers, other's layers), None for a mapping by hand.
    """

    model: nn.Module
    layers: Mapping[int, int]
    kept: tuple[int, ...]
    dropped: tuple[int, ...]
    similarity: Tensor | None


def match_depth(
    target: nn.Module,
    other: nn.Module,
    data: Iterable[Any] = (),
    *,
    layers: Mapping[int, int] | None = None,
) -> DepthMatch:
    """Write the layers of a deeper or shallower model into a copy of the target.

    Parameters
    ----------
    target, other : nn.Module
        Alike but for the number of layers in their longest repeated list of modules; equal names and widths.
    data : iterable of batches
        Unlabelled inputs, as for ``fuse``; not needed with ``layers``.
    layers : mapping, optional
        Target's layer -> other's layer, by hand; both must increase.

    Raises
    ------
    CorrespondenceError
        The models differ in more than depth, there is no repeated list, or the mapping by hand is not monotone.
    """
    ours, theirs = _repeated(target), _repeated(other)
    n, m = (len(stack) for stack in (ours.layers, theirs.layers))
    _check_alike(target, other, ours, theirs)
    similarity = None
    if layers is None:
        similarity = _similarity(target, other, ours, theirs, list(data))
        layers = _monotone(similarity)
    else:
        _check_monotone(layers, n, m)
    model = copy.deepcopy(target)
    state, source = model.state_dict(keep_vars=True), other.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            index = ours.index(name)
            if index is None:
                tensor.copy_(source[name])
            elif index in layers:
                tensor.copy_(source[theirs.name(layers[index], ours.rest(name))])
    kept = tuple(i for i in range(n) if i not in layers)
    dropped = tuple(j for j in range(m) if j not in set(layers.values()))
    return DepthMatch(model, dict(layers), kept, dropped, similarity)


# -------------------------------------------------------------------- repeated layers


@dataclass(frozen=True)
class _Stack:
    """A list of alike modules: where it stands, and the indices that its members have there."""

    path: str
    layers: tuple[int, ...]

    def index(self, name: str) -> int | None:
        """Which layer a parameter belongs to, counted from 0."""
        match = re.match(re.escape(self.path) + r"\.(\d+)\.", name)
        return self.layers.index(int(match[1])) if match and int(match[1]) in self.layers else None

    def rest(self, name: str) -> str:
        return name[len(self.path) + 1 :].partition(".")[2]

    def name(self, layer: int, rest: str) -> str:
        return f"{self.path}.{self.layers[layer]}.{rest}"


def _repeated(model: nn.Module) -> _Stack:
    """The list of modules with equal parameters that holds the most of them."""
    found: dict[tuple[str, Any], list[int]] = defaultdict(list)
    for path, module in model.named_modules():
        head, _, last = path.rpartition(".")
        shapes = tuple((name, tuple(p.shape)) for name, p in module.named_parameters())
        if last.isdigit() and shapes:
            found[head, shapes].append(int(last))
    lists = [
        (len(members) * sum(torch.Size(shape).numel() for _, shape in shapes), head, members)
        for (head, shapes), members in found.items()
        if len(members) > 1
    ]
    if not lists:
        raise CorrespondenceError(
            f"{type(model).__name__} has no list of alike layers (nn.ModuleList or nn.Sequential), so its depth cannot "
            "be matched.\n  what to do: fuse models of equal depth"
        )
    _, path, members = max(lists, key=lambda item: (item[0], -len(item[1])))
    return _Stack(path, tuple(sorted(members)))


def _check_alike(target: nn.Module, other: nn.Module, ours: _Stack, theirs: _Stack) -> None:
    """But for the layers' number, both models have tensors of the same names and shapes."""

    def outline(model: nn.Module, stack: _Stack) -> dict[str, tuple[int, ...]]:
        shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
        first = {stack.rest(name) and f"(layer).{stack.rest(name)}": shape for name, shape in shapes.items()
                 if stack.index(name) == 0}  # fmt: skip
        return {name: shape for name, shape in shapes.items() if stack.index(name) is None} | first

    left, right = outline(target, ours), outline(other, theirs)
    unlike = [name for name in {**left, **right} if left.get(name) != right.get(name)]
    if ours.path != theirs.path or unlike:
        name = unlike[0] if unlike else ours.path
        raise CorrespondenceError(
            f"the models differ in more than depth: {name!r} is {left.get(name, 'absent')} in the target and "
            f"{right.get(name, 'absent')} in the other.\n"
            f"  layers: {len(ours.layers)} in {ours.path!r}, {len(theirs.layers)} in {theirs.path!r}\n"
            "  what to do: models of other names go through translate first; widths must agree"
        )


def _check_monotone(layers: Mapping[int, int], n: int, m: int) -> None:
    ordered = sorted(layers.items())
    inside = all(0 <= i < n and 0 <= j < m for i, j in ordered)
    rising = all(a[1] < b[1] for a, b in itertools.pairwise(ordered))
    if not ordered or not inside or not rising:
        raise CorrespondenceError(
            f"layers: {dict(layers)} is no monotone matching of {n} layers with {m}.\n"
            "  what to do: map layers of the target (from 0) to layers of the other, both increasing"
        )


# -------------------------------------------------------------------- alignment


def _similarity(target: nn.Module, other: nn.Module, ours: _Stack, theirs: _Stack, data: Sequence[Any]) -> Tensor:
    """Linear centred kernel alignment of all pairs of layers, shape (target's, other's)."""
    if not data:
        raise CorrespondenceError(
            "layers of models of different depth are matched by their activations.\n"
            "  what to do: give data (a few batches), or layers={target's layer: other's layer}"
        )
    left, right = (_activations(model, stack, data) for model, stack in ((target, ours), (other, theirs)))
    grams = [[x.T @ x for x in side] for side in (left, right)]
    norms = [[float(g.norm()) for g in side] for side in grams]
    return torch.tensor([
        [float((y.T @ x).norm()) ** 2 / max(norms[0][i] * norms[1][j], 1e-30) for j, y in enumerate(right)]
        for i, x in enumerate(left)
    ])  # fmt: skip


def _activations(model: nn.Module, stack: _Stack, data: Sequence[Any]) -> list[Tensor]:
    """The centred outputs of every layer, one row for each sample and position, at most ROWS of them."""
    seen: list[list[Tensor]] = [[] for _ in stack.layers]
    model = copy.deepcopy(model).eval()

    def keep(place: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            value = output if isinstance(output, Tensor) else next(x for x in output if isinstance(x, Tensor))
            rows = value.flatten(2).transpose(1, 2) if value.dim() == 4 else value
            seen[place].append(rows.detach().double().flatten(0, -2))

        return hook

    for place, index in enumerate(stack.layers):
        model.get_submodule(f"{stack.path}.{index}").register_forward_hook(keep(place))
    with torch.no_grad():
        for item in data:
            batch = as_batch(item)
            model(*batch.args, **batch.kwargs)
    rows = [torch.cat(parts) for parts in seen]
    return [x[:: max(1, len(x) // ROWS)] - x[:: max(1, len(x) // ROWS)].mean(0) for x in rows]


def _monotone(similarity: Tensor) -> dict[int, int]:
    """The increasing matching of the largest sum, in which every layer of the shallower model has a partner."""
    if similarity.shape[0] > similarity.shape[1]:
        return {i: j for j, i in _monotone(similarity.T).items()}
    n, m = similarity.shape
    best = torch.full((n + 1, m + 1), -torch.inf, dtype=torch.float64)
    best[0] = 0
    for i in range(1, n + 1):
        for j in range(i, m + 1):
            best[i, j] = max(best[i, j - 1], best[i - 1, j - 1] + similarity[i - 1, j - 1])
    chosen, j = {}, m
    for i in range(n, 0, -1):
        while best[i, j] == best[i, j - 1]:
            j -= 1
        chosen[i - 1] = j - 1
        j -= 1
    return dict(sorted(chosen.items()))
