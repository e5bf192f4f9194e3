"""Texts as labelled data: each token is what the model should have predicted from those before it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from graphfuse.errors import DataError
from graphfuse.evaluation.metrics import IGNORED, scores_of
from graphfuse.lockstep import Batch, as_batch
from graphfuse.teacher import run_model


def next_tokens(model: nn.Module, data: Iterable[Any], output: str | None = None) -> Iterator[tuple[Batch, Tensor]]:
    """Batches of token ids with the following token of each as its target; the last one of a sequence does not count.

    Raises
    ------
    DataError
        A batch is not one tensor of ids, (sequences, places), or the model is not causal: it sees what it should
        predict.
    """
    for i, item in enumerate(data):
        batch = as_batch(item)
        ids = _ids(batch)
        if not i:
            _expect_causal(model, batch, ids, output)
        yield batch, torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], IGNORED)], 1)


def _ids(batch: Batch) -> Tensor:
    found = [value for value in (*batch.args, *batch.kwargs.values()) if isinstance(value, Tensor)]
    if len(found) == 1 and found[0].dim() == 2 and not found[0].is_floating_point():
        return found[0]
    raise DataError(
        "the data has no labels, and is not token ids alone, whose next token would be the label.\n"
        "  what to do: give labelled data; see graphfuse evaluate --help"
    )


@torch.no_grad()
def _expect_causal(model: nn.Module, batch: Batch, ids: Tensor, output: str | None) -> None:
    """Another last token must not change what is predicted before it."""

    def scores(given: Tensor) -> Tensor:
        swapped = Batch(
            tuple(given if value is ids else value for value in batch.args),
            {name: given if value is ids else value for name, value in batch.kwargs.items()},
        )
        return scores_of(run_model(model, None, swapped), output)

    other = ids.clone()
    other[:, -1] = ids[:, 0]
    other[:, -1] += (other[:, -1] == ids[:, -1]).to(ids)  # another token, whatever it was
    other[:, -1] %= max(int(ids.max()), 1) + 1
    before, after = scores(ids), scores(other)
    fits = before.dim() == 3 and before.shape[:2] == ids.shape
    if not fits or not torch.allclose(before[:, :-1], after[:, :-1], rtol=1e-3, atol=1e-4):
        raise DataError(
            f"{type(model).__name__} does not predict each token from those before it, so text alone is no labelled "
            "data for it.\n  what to do: give data with labels; see graphfuse evaluate --help"
        )
