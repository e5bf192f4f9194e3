"""Models of other names, layouts or depth in the form of the target, so that all that follows goes name for name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from graphfuse.capture import signature_of, state_of
from graphfuse.config import FuseConfig
from graphfuse.correspond import expect_same_names
from graphfuse.errors import CorrespondenceError
from graphfuse.folding import Fold, Folded, fold_gains, foldable
from graphfuse.lockstep import Batch
from graphfuse.matching.depth import DepthMatch, match_depth
from graphfuse.matching.stacks import of_depth, renamed, unequal
from graphfuse.matching.translate import call_of, same_program, translate
from graphfuse.rulebook import RuleBook
from graphfuse.symmetry import SymmetryGraph, trace


@dataclass(frozen=True, eq=False)
class Form:
    """One model in the target's form: its module, and how its layers correspond if it is of another depth."""

    model: nn.Module
    depth: DepthMatch | None = None
    notes: tuple[str, ...] = ()

    @property
    def state(self) -> dict[str, Tensor]:
        """The model's state under the target's names."""
        state = state_of(self.model)
        return self.depth.state(state) if self.depth else state

    @property
    def layers(self) -> dict[str, str | None]:
        """What each layer of the model is called in the target, where depths differ."""
        return self.depth.names if self.depth else {}

    def absent(self, target: SymmetryGraph) -> frozenset[str]:
        """Tensors of the target that the model has no counterpart of."""
        layers = self.depth.alone if self.depth else ()
        names = state_of(target.model)
        return frozenset(name for name in names for layer in layers if name.startswith(f"{layer}."))


@dataclass(eq=False)
class Tracer:
    """Traces each model once for each shape of its inputs, under the target's names once its form is known.

    With ``folds``, graphs are without the gains of norms; ``outputs`` are those that are used.
    """

    book: RuleBook
    depths: dict[int, DepthMatch] = field(default_factory=dict)
    folds: bool = False
    outputs: tuple[str, ...] = ()
    _known: dict[Any, SymmetryGraph] = field(default_factory=dict)

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> SymmetryGraph:
        graph, found = self.own(model, args, kwargs), self.depths.get(id(model))
        return found.graph(graph) if found else graph

    def own(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> SymmetryGraph:
        """The graph under the model's own names."""
        key = (id(model), signature_of(args, kwargs))
        if key not in self._known:
            graph = trace(model, args, kwargs, rules=self.book, outputs=self.outputs)
            self._known[key] = fold_gains(graph, rules=self.book).graph if self.folds else graph
        return self._known[key]

    def fold(self, models: Sequence[nn.Module], calls: Sequence[tuple[Any, Any]]) -> list[Folded]:
        """Fold the gains of models that were traced on these inputs; from now on, graphs are without them."""
        found = []
        for model, (args, kwargs) in zip(models, calls, strict=True):
            folded = fold_gains(self._known[id(model), signature_of(args, kwargs)], rules=self.book)
            self._known[id(folded.graph.model), signature_of(args, kwargs)] = folded.graph
            if id(model) in self.depths:
                self.depths[id(folded.graph.model)] = self.depths[id(model)]
            found.append(folded)
        self.folds = True
        return found


def forms_of(
    models: Sequence[nn.Module],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    data: Sequence[Batch],
    config: FuseConfig,
    tracer: Tracer,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[Form, ...]:
    """The form of each model, the target's own first of all; afterwards the tracer knows them.

    Raises
    ------
    CorrespondenceError
        A model is not the same computation as the target, or its layers cannot be matched; shows the two nearest.
    """
    target = models[config.target]
    reference = tracer(target, args, kwargs)
    forms = []
    for k, model in enumerate(models):
        form = Form(model)
        if model is not target:
            graph = tracer(model, *call_of(target, model, args, kwargs))
            if not same_program(reference, graph):
                form = _form(reference, graph, data, config, tracer, k, progress)
        if form.depth:
            tracer.depths[id(form.model)] = form.depth
        forms.append(form)
        if progress is not None:
            progress("trace", k + 1, len(models))
    return tuple(forms)


def _form(
    reference: SymmetryGraph,
    graph: SymmetryGraph,
    data: Sequence[Batch],
    config: FuseConfig,
    tracer: Tracer,
    k: int,
    progress: Callable[[str, int, int], None] | None,
) -> Form:
    target, model = reference.model, graph.model
    if unequal(target, model):
        return _of_other_depth(target, model, data, config, k, progress)
    try:
        found = translate(reference, graph, names=config.names, rules=tracer.book, progress=progress)
        return Form(found.model, notes=_of(k, found.notes))
    except CorrespondenceError as error:
        reason = error
    try:
        expect_same_names(reference, graph, config.target, k)
    except CorrespondenceError as plain:
        resized = of_depth(target, model)
        if resized is None:
            raise CorrespondenceError(f"{plain}\nLooked for another way to match model {k}: {reason}") from None
    else:
        return Form(model)  # the same names: what is wrong, if anything, is told better name for name
    form = tracer(resized, reference.args, reference.kwargs)
    try:
        found = translate(form, graph, names=config.names, rules=tracer.book, progress=progress)
    except CorrespondenceError as error:
        raise CorrespondenceError(
            f"model {k} has another depth and other names than model {config.target}; with as many layers they are not "
            f"the same computation either: {error}"
        ) from None
    deep = _of_other_depth(target, found.model, data, config, k, progress)
    return Form(deep.model, deep.depth, (*_of(k, found.notes), *deep.notes))


def _of_other_depth(
    target: nn.Module,
    model: nn.Module,
    data: Sequence[Batch],
    config: FuseConfig,
    k: int,
    progress: Callable[[str, int, int], None] | None,
) -> Form:
    found = match_depth(target, model, data, layers=config.layers, progress=progress)
    return Form(model, found, _of(k, found.notes))


def _of(k: int, notes: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"model {k}: {note}" for note in notes)


def without_gains(
    forms: Sequence[Form], calls: Sequence[tuple[Any, Any]], tracer: Tracer, target: int
) -> tuple[tuple[Form, ...], tuple[Fold, ...]]:
    """The forms with the gains of their norms folded into what reads them, and the target's folds.

    ``calls`` are the example inputs of each model. Where models differ in what can be folded, nothing is.
    """
    graphs = [tracer.own(form.model, *call) for form, call in zip(forms, calls, strict=True)]
    gains = [{fold.gain for fold in foldable(graph, rules=tracer.book)} for graph in graphs]
    for form, own in zip(forms, gains, strict=True):
        if {renamed(gain, form.layers) for gain in own} - {None} != gains[target] - form.absent(graphs[target]):
            return tuple(forms), ()
    found = tracer.fold([form.model for form in forms], calls)
    return tuple(replace(f, model=x.graph.model) for f, x in zip(forms, found, strict=True)), found[target].folds
