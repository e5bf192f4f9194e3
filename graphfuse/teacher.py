"""What a refinement aims at: the parents' mean outputs on unlabelled inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from graphfuse.errors import DataError
from graphfuse.frontend import evaluating
from graphfuse.lockstep import Batch, rows_of

Aim = Literal["squared", "divergence", "correlation"]
"""How far outputs are from a teacher's. squared: relative to their variance; divergence: Kullback-Leibler, of logits
over the last dim; correlation: one minus it, over the last dim, so that shifts and scales do not count. Of outputs with
nothing to compare along their last dim the squares are taken."""


def outputs_of(value: Any) -> list[Tensor]:
    """The floating tensors that a model returns, in flat order."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def run_model(model: nn.Module, state: Mapping[str, Tensor] | None, batch: Batch) -> Any:
    """What a model returns in eval mode, with another state if one is given (tied names share one tensor)."""
    with evaluating(model):
        if state is None:
            return model(*batch.args, **batch.kwargs)
        return torch.func.functional_call(model, dict(state), batch.args, dict(batch.kwargs), tie_weights=True)


ROOM = 1 << 30
"""Bytes of mean outputs that are kept; those of further batches are made anew whenever they are asked for."""


@dataclass(frozen=True, eq=False)
class Teacher:
    """Inputs with the parents' mean outputs.

    ``targets`` has, for each batch, one tensor for each floating output, or None where ``models`` have to be run;
    ``scales`` the variance of each output.
    """

    models: Sequence[nn.Module]
    shares: Sequence[float]
    batches: Sequence[Batch]
    targets: Sequence[Sequence[Tensor] | None]
    scales: Sequence[float]
    loss: Aim

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        models: Sequence[nn.Module],
        shares: Sequence[float],
        batches: Sequence[Batch],
        loss: Aim,
    ) -> Teacher:
        """Run all parents that have a share.

        Raises
        ------
        DataError
            They return no floating tensors, or such of different shapes.
        """
        kept: list[Sequence[Tensor] | None] = []
        spreads: list[_Spread] = []
        room = ROOM
        for batch in batches:
            found = _mean_outputs(models, shares, batch)
            spreads = spreads or [_Spread() for _ in found]
            for spread, value in zip(spreads, found, strict=True):
                spread.add(value)
            room -= sum(value.numel() * value.element_size() for value in found)
            kept.append(found if room >= 0 else None)
        scales = tuple(spread.variance or 1.0 for spread in spreads)
        return cls(tuple(models), tuple(shares), tuple(batches), tuple(kept), scales, loss)

    @torch.no_grad()
    def distance(self, model: nn.Module, state: Mapping[str, Tensor] | None = None) -> float:
        """The mean loss of a model, or of another state of it, over all batches; infinite where it is no number."""
        found = held_out(self, lambda batch: run_model(model, state, batch))
        return found if math.isfinite(found) else math.inf

    def measure(self, value: Any, i: int, rows: Tensor | None = None) -> Tensor:
        """The loss of what the model returned on batch ``i``, or on some of its rows."""
        got, wanted, whole = outputs_of(value), self.targets[i], self.batches[i]
        if wanted is None:
            wanted = _mean_outputs(self.models, self.shares, whole if rows is None else rows_of(whole, rows))
        elif rows is not None:
            wanted = [t[rows] if t.dim() and t.shape[0] == whole.count else t for t in wanted]
        terms = [self._term(x, y, s) for x, y, s in zip(got, wanted, self.scales, strict=True) if x.shape == y.shape]
        if not terms:
            raise DataError("the model's outputs have other shapes than those of its parents, on the same inputs")
        return torch.stack(terms).mean()

    def _term(self, got: Tensor, wanted: Tensor, scale: float) -> Tensor:
        several = got.dim() > 0 and got.shape[-1] > 1
        if self.loss == "correlation" and several:
            x, y = (tensor.float() - tensor.float().mean(-1, keepdim=True) for tensor in (got, wanted))
            return 1 - F.cosine_similarity(x, y, dim=-1).mean()
        if self.loss == "divergence" and several:
            share = F.kl_div(
                got.float().log_softmax(-1), wanted.float().log_softmax(-1), log_target=True, reduction="sum"
            )
            return share / (got.numel() // got.shape[-1])
        return (got.float() - wanted.float()).square().mean() / scale

    def draw(self, size: int, generator: torch.Generator) -> tuple[int, Tensor | None, Batch]:
        """A random batch, or random rows of one where it is larger than ``size``."""
        counts = torch.tensor([float(batch.count) for batch in self.batches])
        i = int(torch.multinomial(counts, 1, generator=generator))
        batch = self.batches[i]
        if batch.count <= size:
            return i, None, batch
        rows = torch.randperm(batch.count, generator=generator)[:size]
        return i, rows, rows_of(batch, rows)


@torch.no_grad()
def _mean_outputs(models: Sequence[nn.Module], shares: Sequence[float], batch: Batch) -> list[Tensor]:
    runs = [(s, outputs_of(run_model(model, None, batch))) for s, model in zip(shares, models, strict=True) if s]
    shapes = {tuple(tensor.shape for tensor in own) for _, own in runs}
    if len(shapes) > 1 or shapes == {()}:
        what = "have different shapes" if len(shapes) > 1 else "are not floating numbers"
        raise DataError(f"the parents' outputs {what} on the same inputs, so there is no mean to aim at")
    return [sum(s * own[i] for s, own in runs) for i in range(len(runs[0][1]))]  # pyright: ignore


@dataclass
class _Spread:
    """The variance of values that come one batch after another (Chan, Golub and LeVeque, 1979)."""

    count: int = 0
    mean: float = 0.0
    square: float = 0.0

    def add(self, values: Tensor) -> None:
        """Take further values."""
        if not values.numel():
            return
        wide = values.double()
        mean = float(wide.mean())
        total, gap = self.count + wide.numel(), mean - self.mean
        self.square += float((wide - mean).square().sum()) + gap**2 * self.count * wide.numel() / total
        self.mean, self.count = self.mean + gap * wide.numel() / total, total

    @property
    def variance(self) -> float:
        """Of all values."""
        return self.square / max(self.count, 1)


@torch.no_grad()
def held_out(teacher: Teacher, outputs: Callable[[Batch], Any]) -> float:
    """The mean loss over all batches of a teacher, each input counting the same."""
    losses = [(batch.count, float(teacher.measure(outputs(batch), i))) for i, batch in enumerate(teacher.batches)]
    return sum(count * value for count, value in losses) / sum(count for count, _ in losses)
