"""An alignment: for each model, maps along every free axis into the target's coordinates. Savable, and reusable."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from graphfuse import archive
from graphfuse.axes import Layout, SymmetryClass, walk_leaves
from graphfuse.carry import transform
from graphfuse.cells import shape_of
from graphfuse.errors import CheckpointError, DataError
from graphfuse.folding import Fold, fold_state
from graphfuse.maps import AxisMap
from graphfuse.matching import renamed
from graphfuse.plain import layout_in, layout_out
from graphfuse.relative import relative
from graphfuse.symmetry import Axis, TensorLabel, Touch
from graphfuse.tables import Table
from graphfuse.transport.family import Agreement

KIND = "alignment"


@dataclass(frozen=True, eq=False)
class Aligned:
    """One model's share of an alignment; the target's own has no maps, unless it was matched with a mean by couplings.

    ``sizes`` has the size of every axis in this model, by the target's axis numbers; ``agreement`` how well each axis
    is matched (left out where nothing was known about it). For a model of another depth, ``absent`` are the target's
    tensors that it has no counterpart of, and ``layers`` says what each of its layers is called in the target (None:
    nothing corresponds to it).
    """

    sizes: Mapping[int, int]
    maps: Mapping[int, AxisMap] = field(default_factory=dict)
    agreement: Mapping[int, Agreement] = field(default_factory=dict)
    sweeps: int = 0
    absent: frozenset[str] = frozenset()
    layers: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def in_place(self) -> float | None:
        """Share of the units that are matched with the target's unit of their index; None where widths differ."""
        entries = [(self.sizes[id], found) for id, found in self.agreement.items() if found.before is not None]
        units = sum(size for size, _ in entries)
        return sum(size * (1 - found.moved) for size, found in entries) / units if units else None


@dataclass(frozen=True, eq=False)
class Alignment:
    """Maps from each model into the coordinates of the target.

    It knows the layout of every parameter and moved buffer, so it applies to any checkpoint of the same architecture.
    ``folds`` are gains that go into the layers that read them before anything is carried.
    Where maps differ from place to place (``driver`` flow), ``axes`` has one entry for each map, and ``labels`` says
    which tensor has which; ``nodes`` says it of the target's activations. ``driver`` is coordinate or flow.
    """

    target: int
    method: str
    axes: tuple[Axis, ...]
    labels: Mapping[str, TensorLabel]
    aliases: Mapping[str, str]
    models: tuple[Aligned, ...]
    folds: tuple[Fold, ...] = ()
    notes: tuple[str, ...] = ()
    nodes: Mapping[str, tuple[Layout | None, ...]] = field(default_factory=dict)
    driver: str = "coordinate"

    def apply(self, state: Mapping[str, Tensor], model: int = 1) -> dict[str, Tensor]:
        """A checkpoint of one of the models, in the target's coordinates.

        Parameters
        ----------
        state :
            State-dict name -> tensor, tied names included or not, as that model calls its layers. Tensors that do not
            move with any axis are returned as they are; layers to which none of the target corresponds are left out.
        model : int
            Whose coordinates the checkpoint has: an index into the models that were aligned.

        Raises
        ------
        DataError
            There is no such model.
        CheckpointError
            A parameter is missing or has another shape.
        """
        if not 0 <= model < len(self.models):
            raise DataError(f"there is no model {model} in this alignment; it has {len(self.models)} models, from 0")
        part = self.models[model]
        self._expect(state, part, model)
        called = {own: name for own in state if (name := renamed(own, part.layers)) is not None}
        first = {self.aliases.get(name, name): tensor for own, tensor in state.items() if (name := called.get(own))}
        moved = self._folded(first)
        for name, label in self.labels.items():
            if name in moved and part.maps:
                moved[name] = transform(
                    moved[name], label.dims, label.consumed, part.maps, part.sizes, gains=label.gains
                )
        return {name: moved[self.aliases.get(name, name)] for name in called.values()}

    def _folded(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A state with its gains folded, which are ones in the target's size then; what changes is copied."""
        for fold in self.folds:
            for name in (fold.gain, *(name for name, _ in fold.into), *fold.offsets, *fold.biases):
                if name in state:
                    state[name] = state[name].clone()
        fold_state(self.folds, state)
        for fold in self.folds:
            if fold.gain in state:
                (weight, dim), gain = fold.into[0], state[fold.gain]
                size = shape_of(self.labels[weight].dims, {})[dim]
                state[fold.gain] = gain.new_ones([size if n > 1 else n for n in gain.shape])
        return state

    def between(self, a: int, b: int) -> dict[int, AxisMap]:
        """Axis number -> map that brings model ``b`` into the order of model ``a``: through the target's, so that
        going by way of a third model comes to the same.

        Raises
        ------
        DataError
            There is no such model, or a map is a coupling and has no inverse.
        """
        if not all(0 <= k < len(self.models) for k in (a, b)):
            raise DataError(f"there are no models {a} and {b} in this alignment; it has {len(self.models)}, from 0")
        first, second = self.models[a], self.models[b]
        try:
            return relative(first.maps, second.maps, [axis.id for axis in self.axes], self.models[self.target].sizes)
        except ValueError as error:
            raise DataError(
                f"models {a} and {b} cannot be related to each other: {error}.\n"
                "  what to do: align models of equal widths with solver assignment"
            ) from error

    def _expect(self, state: Mapping[str, Tensor], part: Aligned, model: int) -> None:
        called = {own: renamed(own, part.layers) for own in state}
        names = {self.aliases.get(name, name) for name in called.values() if name is not None}
        wanted = [*self.labels, *(fold.gain for fold in self.folds)]
        missing = [name for name in wanted if name not in names and name not in part.absent]
        if missing:
            raise CheckpointError(
                f"the checkpoint lacks {len(missing)} of {len(self.labels)} tensors, the first is {missing[0]!r}.\n"
                f"  what to do: give the whole state dict of a model like model {model} of this alignment"
            )
        for own, tensor in state.items():
            name = called[own] or ""
            label = self.labels.get(self.aliases.get(name, name))
            if label is not None and tuple(tensor.shape) != shape_of(label.dims, part.sizes):
                raise CheckpointError(
                    f"{own!r} has another shape than in model {model} of this alignment.\n"
                    f"  got: {tuple(tensor.shape)}\n  expected: {shape_of(label.dims, part.sizes)}"
                )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the alignment to one .safetensors file (no pickle), all or nothing.

        Raises
        ------
        OutputError
            The file cannot be written.
        """
        tensors = {}
        for k, part in enumerate(self.models):
            for id, found in part.maps.items():
                tensors[f"{k}.{id}.{found.kind}"] = found.values
                for side, scale in zip("ab", found.scales or (), strict=False):
                    tensors[f"{k}.{id}.scale_{side}"] = scale.contiguous()
        archive.write(path, KIND, _encode(self), tensors)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Alignment:
        """Read an alignment that :meth:`save` wrote.

        Raises
        ------
        CheckpointError
            The file is missing, or is no alignment.
        """
        document, tensors = archive.read(path, KIND)
        try:
            return _decode(document, tensors)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise CheckpointError(
                f"{path}: the alignment in it is damaged: {type(error).__name__}: {error}\n  what to do: save it again"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """Plain values for programs: the axes, and for each model how well they are matched."""
        return {
            "target": self.target,
            "method": self.method,
            "driver": self.driver,
            "axes": [
                {"id": a.id, "name": a.name, "role": a.role, "size": a.size, "context": list(a.context)}
                for a in self.axes
            ],
            "models": [
                {
                    "sizes": {a.name: part.sizes[a.id] for a in self.axes},
                    "agreement": {a.name: part.agreement[a.id].to_json() for a in self.axes if a.id in part.agreement},
                    "in_place": part.in_place,
                    "sweeps": part.sweeps,
                    "absent": sorted(part.absent),
                    "layers": dict(part.layers),
                }
                for part in self.models
            ],
            "notes": list(self.notes),
        }

    @property
    def tables(self) -> tuple[Table, ...]:
        """For each model that was moved, how well its axes are matched."""
        columns = ("axis", "size", "from", "agreement", "before", "moved")
        return tuple(
            Table(f"model {k}:", columns, tuple(self._row(axis, part) for axis in self.axes))
            for k, part in enumerate(self.models)
            if k != self.target or part.maps
        )

    @property
    def _summary(self) -> str:
        return f"alignment of {len(self.models)} models onto model {self.target}, by {self.method}"

    def __str__(self) -> str:
        lines = [self._summary]
        for table in self.tables:
            head, *rest = str(table).splitlines()
            lines += [head, *(f"  {line}" for line in rest)]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        head = Table(self._summary, (), (), self.notes)
        return "".join(table.html() for table in (*self.tables, head))

    __repr__ = __str__

    @staticmethod
    def _row(axis: Axis, part: Aligned) -> tuple[str, ...]:
        found = part.agreement.get(axis.id)
        sizes = (axis.name, str(axis.size), str(part.sizes[axis.id]))
        if found is None:
            return (*sizes, "-", "-", "-")
        before = f"{found.before:.3f}" if found.before is not None else "-"
        return (*sizes, f"{found.value:.3f}", before, f"{found.moved:.0%}")


# ---------------------------------------------------------------- as a document


def _encode(alignment: Alignment) -> dict[str, Any]:
    return {
        "target": alignment.target,
        "method": alignment.method,
        "driver": alignment.driver,
        "axes": [[a.id, a.name, a.role, a.size, int(a.symmetry), list(a.context)] for a in alignment.axes],
        "labels": [
            [x.name, list(x.shape), layout_out(x.dims), list(x.consumed), list(x.gains)]
            for x in alignment.labels.values()
        ],
        "aliases": dict(alignment.aliases),
        "folds": [[f.gain, [list(x) for x in f.into], list(f.offsets), list(f.biases)] for f in alignment.folds],
        "models": [
            {
                "sizes": [[id, size] for id, size in part.sizes.items()],
                "maps": [[id, list(found.context), list(found.along)] for id, found in part.maps.items()],
                "agreement": [[id, x.value, x.before, x.moved] for id, x in part.agreement.items()],
                "sweeps": part.sweeps,
                "absent": sorted(part.absent),
                "layers": dict(part.layers),
            }
            for part in alignment.models
        ],
        "notes": list(alignment.notes),
        "nodes": {
            name: [None if dims is None else layout_out(dims) for dims in parts]
            for name, parts in alignment.nodes.items()
        },
    }


def _decode(document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Alignment:
    labels = {
        name: TensorLabel(name, tuple(shape), layout_in(dims), tuple(consumed), tuple(gains))
        for name, shape, dims, consumed, gains in document["labels"]
    }
    touches: dict[int, dict[Touch, None]] = {}
    for label in labels.values():
        for d, dim in enumerate(label.dims):
            for leaf in walk_leaves(dim):
                touches.setdefault(leaf.id, {})[Touch(label.name, d)] = None
    return Alignment(
        target=int(document["target"]),
        method=str(document["method"]),
        driver=str(document.get("driver", "coordinate")),
        axes=tuple(
            Axis(id, name, role, size, SymmetryClass(symmetry), tuple(context), tuple(touches.get(id, ())))
            for id, name, role, size, symmetry, context in document["axes"]
        ),
        labels=labels,
        aliases=dict(document["aliases"]),
        folds=tuple(
            Fold(gain, tuple((name, dim) for name, dim in into), tuple(offsets), tuple(biases))
            for gain, into, offsets, biases in document["folds"]
        ),
        models=tuple(_aligned(k, part, tensors) for k, part in enumerate(document["models"])),
        notes=tuple(document["notes"]),
        nodes={
            name: tuple(None if dims is None else layout_in(dims) for dims in parts)
            for name, parts in document["nodes"].items()
        },
    )


def _aligned(k: int, part: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Aligned:
    maps = {}
    for id, context, along in part["maps"]:
        plan, index, matrix = (tensors.get(f"{k}.{id}.{kind}") for kind in ("plan", "index", "matrix"))
        a, b = (tensors.get(f"{k}.{id}.scale_{side}") for side in "ab")
        scales = (a, b) if a is not None and b is not None else None
        maps[id] = AxisMap(id, tuple(context), tuple(along), plan, index, matrix, scales)
    return Aligned(
        sizes=dict(part["sizes"]),
        maps=maps,
        agreement={id: Agreement(value, before, moved) for id, value, before, moved in part["agreement"]},
        sweeps=int(part["sweeps"]),
        absent=frozenset(part["absent"]),
        layers=dict(part["layers"]),
    )
