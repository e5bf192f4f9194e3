"""Two models side by side: how alike their layers are on the same inputs, and how well their units can be matched."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graphfuse.aligning import matched
from graphfuse.alignment import Alignment, prepare
from graphfuse.errors import DataError
from graphfuse.matching.similarity import ROWS, chosen_rows, gram, likeness
from graphfuse.prepared import Config, Prepared, Progress
from graphfuse.symmetry import Contraction
from graphfuse.tables import Table


@dataclass(frozen=True)
class LayerLikeness:
    """A layer (its module path in the first model) and the linear centred kernel alignment of its outputs, 0 to 1."""

    layer: str
    cka: float


@dataclass(frozen=True)
class AxisLikeness:
    """How well an axis' units match: unit i with unit i (None where the sizes differ), and as they were aligned.

    Both are means of what units were compared by, 1 at best; ``moved`` is the share of units that have another partner.
    """

    axis: str
    role: str
    sizes: tuple[int, int]
    before: float | None
    after: float
    moved: float


@dataclass(frozen=True)
class ModelComparison:
    """What :func:`compare` found: ``layers`` in the order of the graph, and ``axes``."""

    layers: tuple[LayerLikeness, ...]
    axes: tuple[AxisLikeness, ...]
    inputs: int
    method: str
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values for programs."""
        return asdict(self)

    @property
    def tables(self) -> tuple[Table, Table]:
        """Layers, and axes."""
        layers = tuple((one.layer, f"{one.cka:.3f}") for one in self.layers)
        axes = tuple(
            (
                one.axis, str(one.sizes[0]), str(one.sizes[1]), "-" if one.before is None else f"{one.before:.3f}",
                f"{one.after:.3f}", f"{one.moved:.0%}",
            )
            for one in self.axes
        )  # fmt: skip
        return (
            Table(f"likeness of layers on {self.inputs} inputs", ("layer", "linear CKA"), layers),
            Table(
                f"matching by {self.method}", ("axis", "size", "other", "before", "after", "moved"), axes, self.notes
            ),
        )

    def __str__(self) -> str:
        return "\n".join(map(str, self.tables))

    def _repr_html_(self) -> str:
        return "".join(table.html() for table in self.tables)


def compare(
    a: nn.Module,
    b: nn.Module,
    data: Iterable[Any],
    *,
    config: Config = None,
    rules: Iterable[Any] = (),
    progress: Progress | None = None,
) -> ModelComparison:
    """Compare two models that do the same computation, on the same inputs.

    Layers are compared by linear centred kernel alignment (Kornblith et al. 2019, arXiv 1905.00414, equation 5), which
    no rotation of the units changes; it says how alike they are at best. Units are compared by an alignment.

    Parameters
    ----------
    a, b : nn.Module
        Names, widths and depth may differ, as for ``fuse``.
    data : iterable of batches
        Unlabelled inputs.
    config : FuseConfig, dict or path of a YAML file, optional
        How they are aligned; ``target`` is 0.
    rules :
        Further rule packs for tracing.
    progress : callable, optional
        Called with (stage, done, total).

    Raises
    ------
    CorrespondenceError
        The models are not of one architecture.
    DataError
        The data yields nothing, or does not fit the models.

    Examples
    --------
    >>> a, b = (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)) for _ in range(2))
    >>> [one.layer for one in compare(a, b, [torch.randn(64, 4)]).layers]
    ['0', '2']
    """
    prepared = prepare([a, b], data=data, config=config, rules=rules, progress=progress)
    if prepared.config.target:
        raise DataError("compare shows the second model in the order of the first.\n  what to do: leave target at 0")
    alignment = matched(prepared, progress)
    layers = _layers(prepared, progress)
    notes = tuple(dict.fromkeys([*alignment.notes, *prepared.lockstep.notes]))
    return ModelComparison(layers, _axes(alignment), sum(x.count for x in prepared.data), alignment.method, notes)


def _axes(alignment: Alignment) -> tuple[AxisLikeness, ...]:
    part = alignment.models[1]
    return tuple(
        AxisLikeness(axis.name, axis.role, (axis.size, part.sizes[axis.id]), found.before, found.value, found.moved)
        for axis in alignment.axes
        if (found := part.agreement.get(axis.id)) is not None
    )


@torch.no_grad()
def _layers(prepared: Prepared, progress: Progress | None) -> tuple[LayerLikeness, ...]:
    graph, lockstep = prepared.correspondence.graph, prepared.lockstep
    wanted = {one.node: one for one in graph.contractions if one.node in lockstep.shared}
    share = max(1, ROWS // len(prepared.data))
    seen: dict[str, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
    for i, batch in enumerate(prepared.data, start=1):
        for moment in lockstep.run(batch, wanted):
            for rows, value in zip(seen[moment.node], moment.values, strict=True):
                rows.append(chosen_rows(_channels_last(value, wanted[moment.node], prepared.states[0]), share))
        if progress is not None:
            progress("compare", i, len(prepared.data))
    return tuple(
        LayerLikeness(
            one.weight.rpartition(".")[0] or one.weight, likeness(*([gram(torch.cat(x))] for x in seen[node]))
        )
        for node, one in wanted.items()
        if node in seen
    )


def _channels_last(value: Tensor, layer: Contraction, state: Mapping[str, Tensor]) -> Tensor:
    """What a layer writes, its units along the last dim; those of a convolution come before the places."""
    places = state[layer.weight].dim() - 2 if layer.kind == "convolution" else 0
    return value.movedim(-1 - places, -1)
