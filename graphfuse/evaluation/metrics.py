"""What outputs are judged by, and which metric suits them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from graphfuse.config import nearest
from graphfuse.errors import ConfigError, DataError, kind_of
from graphfuse.outputs import is_wanted, output_names

IGNORED = -100
"""A target that does not count, as in torch's cross entropy."""


@dataclass(frozen=True)
class Metric:
    """A number for outputs and targets, over any number of batches.

    ``part`` is what is kept of one batch, ``total`` makes the number of all that was kept; ``higher`` says whether more
    is better.
    """

    name: str
    part: Callable[[Tensor, Tensor], Any]
    total: Callable[[Sequence[Any]], float]
    higher: bool = True

    @classmethod
    def of(cls, function: Callable[[Tensor, Tensor], Any], higher: bool = True, name: str | None = None) -> Metric:
        """A metric from a function of all outputs and all targets, each laid end to end along its first dim."""

        def total(parts: Sequence[tuple[Tensor, Tensor]]) -> float:
            outputs, targets = zip(*parts, strict=True)
            return float(function(torch.cat(outputs), torch.cat(targets)))

        return cls(
            name or getattr(function, "__name__", "metric"), lambda outputs, targets: (outputs, targets), total, higher
        )


def _accuracy(outputs: Tensor, targets: Tensor) -> tuple[float, int]:
    counted = targets != IGNORED
    right = outputs.argmax(class_dim(outputs, targets)) == targets
    return float((right & counted).sum()), int(counted.sum())


def _entropy(outputs: Tensor, targets: Tensor) -> tuple[float, int]:
    scores = outputs.movedim(class_dim(outputs, targets), 1).float()
    total = F.cross_entropy(scores, targets.long(), ignore_index=IGNORED, reduction="sum")
    return float(total), int((targets != IGNORED).sum())


def _squares(outputs: Tensor, targets: Tensor) -> tuple[float, int]:
    if outputs.squeeze().shape != targets.squeeze().shape:
        raise DataError(
            f"mse needs targets of the outputs' shape.\n  outputs: {tuple(outputs.shape)}\n  targets: "
            f"{tuple(targets.shape)}\n  what to do: choose another metric"
        )
    return float((outputs.float().reshape(targets.shape) - targets.float()).square().sum()), targets.numel()


def _mean(parts: Sequence[tuple[float, int]]) -> float:
    return sum(total for total, _ in parts) / max(sum(count for _, count in parts), 1)


METRICS = {
    "accuracy": Metric("accuracy", _accuracy, _mean),
    "loss": Metric("loss", _entropy, _mean, higher=False),
    "perplexity": Metric("perplexity", _entropy, lambda parts: math.exp(min(_mean(parts), 700.0)), higher=False),
    "mse": Metric("mse", _squares, _mean, higher=False),
}
"""``loss`` is the cross entropy in nats, ``perplexity`` its exponential, ``accuracy`` a share between 0 and 1."""

Named = str | Metric | Callable[[Tensor, Tensor], Any]


def metrics_for(given: Named | Sequence[Named] | None, outputs: Tensor, targets: Tensor) -> tuple[Metric, ...]:
    """The metrics that were asked for, or those that suit the first outputs and targets.

    Accuracy and loss for one class each, loss and perplexity for one class at each place of a sequence, mean squared
    error for numbers.

    Raises
    ------
    ConfigError
        There is no metric of such a name.
    DataError
        None suits.
    """
    if given is not None:
        return tuple(_named(one) for one in ([given] if isinstance(given, str | Metric) or callable(given) else given))
    if not targets.is_floating_point() and _class_dim(outputs, targets) is not None:
        sequence = targets.dim() > 1 and class_dim(outputs, targets) == targets.dim()
        return tuple(METRICS[name] for name in (("loss", "perplexity") if sequence else ("accuracy", "loss")))
    if outputs.squeeze().shape == targets.squeeze().shape:
        return (METRICS["mse"],)
    raise DataError(
        f"no metric suits outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} {targets.dtype}.\n  what "
        "to do: give a metric: accuracy, loss, perplexity, mse or a function of outputs and targets; or name the output"
    )


def _named(given: Named) -> Metric:
    if isinstance(given, Metric):
        return given
    if not isinstance(given, str):
        return Metric.of(given)
    if given not in METRICS:
        raise ConfigError(f"there is no metric {given!r}; {nearest(given, list(METRICS))}")
    return METRICS[given]


def class_dim(outputs: Tensor, targets: Tensor) -> int:
    """The dim of the outputs that runs over classes.

    Raises
    ------
    DataError
        The targets do not name one class for each place.
    """
    found = _class_dim(outputs, targets)
    if found is None:
        raise DataError(
            "the targets do not name one class for each output.\n"
            f"  outputs: {tuple(outputs.shape)}\n  targets: {tuple(targets.shape)} {targets.dtype}\n"
            "  expected: integers in the shape of the outputs without their dim of classes"
        )
    return found


def _class_dim(outputs: Tensor, targets: Tensor) -> int | None:
    for dim in (outputs.dim() - 1, 1):
        fits = 0 < dim < outputs.dim() and outputs.shape[dim] > 1
        if fits and (*outputs.shape[:dim], *outputs.shape[dim + 1 :]) == targets.shape:
            return dim
    return None


def scores_of(value: Any, output: str | None = None) -> Tensor:
    """The tensor among a model's outputs that is judged: the one named, else ``logits``, else the first.

    Raises
    ------
    ConfigError
        There is none of this name.
    DataError
        The model returns no floating-point tensor.
    """
    leaves, spec = pytree.tree_flatten(value)
    found = [
        (name, leaf)
        for name, leaf in zip(output_names(spec), leaves, strict=True)
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]
    if not found:
        raise DataError(f"the model returns no floating-point tensor to be judged, but {kind_of(value)}")
    names = [name for name, _ in found]
    wanted = output or ("logits" if "logits" in names else names[0])
    chosen = next((leaf for name, leaf in found if is_wanted(name, [wanted])), None)
    if chosen is None:
        raise ConfigError(f"the model returns no {output!r}; {nearest(wanted, names)}")
    return chosen
