"""Align models and, of several solutions, take the one that fuses best."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from graphfuse.alignment import Alignment, match
from graphfuse.calibrate.judge import judge_of
from graphfuse.prepared import Config, Prepared, Progress, prepare


def align(
    models: Sequence[nn.Module],
    args: tuple[Any, ...] | Tensor = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    data: Iterable[Any] | None = None,
    config: Config = None,
    rules: Iterable[Any] = (),
    progress: Progress | None = None,
) -> Alignment:
    """Find, for each model, which of its units play the roles of the target's units.

    Parameters
    ----------
    models : sequence of nn.Module
        Two or more that do the same computation; hidden widths may differ. Where names or layouts differ from those of
        the target, a model is first translated into them. They are left as they are.
    args, kwargs :
        Example inputs, as the models take them. With data they are not needed: its first batch is used.
    data : iterable of batches, optional
        Unlabelled inputs. A batch is a tensor, a tuple (positional arguments) or a dict (keyword arguments).
    config : FuseConfig, dict or path of a YAML file, optional
    rules :
        Further rule packs for tracing.
    progress : callable, optional
        Called with (stage, done, total).

    Returns
    -------
    Alignment
        ``print`` shows how well each axis is matched; ``apply`` moves a checkpoint, ``save`` and ``load`` keep it.

    Raises
    ------
    CorrespondenceError
        The models are not of one architecture.
    DataError
        There are fewer than two models, no inputs, or inputs that do not fit.
    CheckpointError
        A model holds values that are not finite.
    ConfigError
        A setting is unknown or cannot be used here.

    Examples
    --------
    >>> import torch
    >>> a, b = (torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)) for _ in range(2))
    >>> sorted(align([a, b], torch.zeros(1, 4)).apply(b.state_dict(), model=1))
    ['0.bias', '0.weight', '2.bias', '2.weight']
    """
    prepared = prepare(models, args, kwargs, data=data, config=config, rules=rules, progress=progress)
    return matched(prepared, progress)


def matched(prepared: Prepared, progress: Progress | None = None) -> Alignment:
    """Match prepared models; solutions are judged by what they are worth after calibration, where there will be one."""
    return match(prepared, progress, judge_of(prepared))
