"""How alike two layers are by what they compute, and the monotone matching of the largest sum.

Source: Kornblith et al., Similarity of Neural Network Representations Revisited (arXiv 1905.00414), equation 5.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from graphfuse.capture import duplicate
from graphfuse.lockstep import Batch

ROWS = 1024  # activations of a layer that are looked at


def grams_of(
    model: nn.Module, layers: Sequence[str], data: Iterable[Batch], share: int
) -> dict[str, list[Tensor | None]]:
    """For each layer the Gram matrices, shape (rows, rows), of its outputs and of what it adds to its inputs.

    No more than ``share`` rows of a batch are looked at, but one at least.
    """
    seen: dict[str, list[list[Tensor]]] = {layer: [[], []] for layer in layers}
    model, share = duplicate(model).eval(), max(1, share)

    def keep(layer: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            value = output if isinstance(output, Tensor) else next(x for x in output if isinstance(x, Tensor))
            given = (x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.shape == value.shape)
            source = next(given, None)
            for place, found in enumerate((value, None if source is None else value - source)):
                if found is not None:
                    seen[layer][place].append(_rows(found, share))

        return hook

    for layer in layers:
        model.get_submodule(layer).register_forward_hook(keep(layer), with_kwargs=True)
    with torch.no_grad():
        for batch in data:
            model(*batch.args, **batch.kwargs)
    return {layer: [gram(torch.cat(parts)) if parts else None for parts in found] for layer, found in seen.items()}


def _rows(value: Tensor, share: int) -> Tensor:
    """Evenly chosen rows of activations: one for each sample and position, channels along them."""
    return chosen_rows(
        value.movedim(1, -1) if value.dim() > 3 else value.reshape(len(value), -1, value.shape[-1]), share
    )


def chosen_rows(value: Tensor, share: int) -> Tensor:
    """No more than so many rows along the last dim, evenly chosen, in float64."""
    rows = value.detach().flatten(0, -2).double()
    return rows[:: max(1, -(-len(rows) // share))]


def gram(rows: Tensor) -> Tensor:
    """The Gram matrix, shape (rows, rows), of rows less their mean."""
    centred = rows - rows.mean(0)
    return centred @ centred.T


def likeness(mine: Sequence[Tensor | None], other: Sequence[Tensor | None]) -> float:
    """Mean centred kernel alignment of two layers; 0 where one is constant, or their activations do not compare."""
    values = []
    for x, y in zip(mine, other, strict=True):
        if x is not None and y is not None:
            scale = float(x.norm() * y.norm())
            values.append(float((x * y).sum()) / scale if x.shape == y.shape and scale > 0 else 0.0)
    return sum(values) / max(len(values), 1)


def monotone(similarity: Tensor) -> dict[int, int] | None:
    """The increasing matching of the largest sum, in which every layer of the shallower model has a partner.

    Parameters
    ----------
    similarity : Tensor, shape (n, m)
        Minus infinity for layers that must not be paired. None is returned where that leaves no matching.
    """
    if similarity.shape[0] > similarity.shape[1]:
        found = monotone(similarity.T)
        return None if found is None else dict(sorted((i, j) for j, i in found.items()))
    n, m = similarity.shape
    values = similarity.tolist()
    best = [[0.0] * (m + 1), *([-torch.inf] * (m + 1) for _ in range(n))]
    for i in range(1, n + 1):
        for j in range(i, m + 1):
            best[i][j] = max(best[i][j - 1], best[i - 1][j - 1] + values[i - 1][j - 1])
    if best[n][m] == -torch.inf:
        return None
    chosen, j = {}, m
    for i in range(n, 0, -1):
        while best[i][j] == best[i][j - 1]:
            j -= 1
        chosen[i - 1] = j - 1
        j -= 1
    return dict(sorted(chosen.items()))
