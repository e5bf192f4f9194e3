"""Verification by brute force: random maps on every free axis must leave the function as it was.

Fresh networks hide wrong claims behind gains of one and biases of zero, so every parameter and moved buffer first gets
random values. Everything runs in float64, on the module itself rather than on the captured graph.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from graphfuse.capture import duplicate, state_of
from graphfuse.errors import VerifyError
from graphfuse.groups import Elements, is_sampled, sample_elements, transformed
from graphfuse.outputs import is_wanted, output_names, tensors_in
from graphfuse.permutations import Permutations, permuted, sample
from graphfuse.symmetry import Axis, SymmetryGraph
from graphfuse.tables import Table

logger = logging.getLogger(__name__)

TOLERANCE = 1e-6
NARROW = (torch.float32, torch.float16, torch.bfloat16)
NOTICED = 1e-3  # of the tolerance; far above rounding errors, so that faint paths count as noticed
PROBES = 6
NOTICING = 0.5  # where fewer probes notice, weights nearer to the model's own are tried
SHARES = (1.0, 0.1, 0.0)  # of the way from the model's own weights to random ones
MASKED = 1e30  # what a model writes where nothing shall be chosen says nothing of the size of its outputs


@dataclass(frozen=True)
class Verification:
    """What verification found.

    ``max_error`` is the largest change of an output, relative to the largest output. ``sensitivity`` is the share of
    probes that noticed when one tensor's maps were left out: near zero, the check proved nothing. ``repeatable`` is
    False for models that are random or keep state in eval mode; those are not passed. ``blamed`` names the axes whose
    maps change the function.
    """

    max_error: float
    tolerance: float
    trials: int
    axes: int
    sensitivity: float
    repeatable: bool
    blamed: tuple[Axis, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every trial left the outputs unchanged, on a model that repeats itself."""
        return self.repeatable and self.max_error <= self.tolerance

    def to_json(self) -> dict[str, Any]:
        """Plain values for programs."""
        return {
            "ok": self.ok, "max_error": self.max_error, "tolerance": self.tolerance, "trials": self.trials,
            "free_axes": self.axes, "sensitivity": self.sensitivity, "repeatable": self.repeatable,
            "blamed": [axis.name for axis in self.blamed], "notes": list(self.notes),
        }  # fmt: skip

    def _repr_html_(self) -> str:
        rows = tuple((axis.name, str(axis.size), ", ".join(map(str, axis.touches))) for axis in self.blamed)
        return Table(str(self), ("axis to blame", "size", "touches") if rows else (), rows, self.notes).html()

    def __str__(self) -> str:
        if not self.repeatable:
            return "not verified: the model is random or keeps state in eval mode; two equal runs differ"
        verdict = "verified" if self.ok else "WRONG"
        text = f"{verdict}: {self.axes} free axes, {self.trials} trials, largest relative change {self.max_error:.1e}"
        blame = f"; to blame: {', '.join(axis.name for axis in self.blamed)}" if self.blamed else ""
        empty = " (no wrong map was noticed, so this proves nothing)" if not self.sensitivity else ""
        return f"{text}, sensitivity {self.sensitivity:.0%}{empty}{blame}"


def verify(
    graph: SymmetryGraph,
    trials: int = 3,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
    *,
    classes: bool = False,
) -> Verification:
    """Check a symmetry graph by running its model with permuted parameters.

    Parameters
    ----------
    graph : SymmetryGraph
    trials : int
        How many random elements of the group are tried.
    seed : int
        Of the random weights and maps; same seed, same result.
    progress : callable, optional
        Called with ("verify", trials done, trials).
    classes : bool
        Draw from each axis' full symmetry class (signs, scales, rotations, invertible maps), not permutations alone.

    Raises
    ------
    VerifyError
        The model holds no values (meta device), or does not run.
    """
    check = _check(graph, seed)
    if not check.repeatable:
        return Verification(float("nan"), check.tolerance, 0, len(graph.axes), 0.0, False, notes=check.notes)
    if classes:
        check.notes += _unsampled(graph)
    worst, blamed = 0.0, ()
    for trial in range(trials):
        maps = sample(graph, check.generator)
        elements = sample_elements(graph, check.generator) if classes else {}
        error = check.error(maps, elements)
        if error > check.tolerance and not blamed:
            ids = check.blame(maps, elements, sorted(maps))
            blamed = tuple(graph.axis(id) for id in ids)
        worst = max(worst, error)
        if progress is not None:
            progress("verify", trial + 1, trials)
    found = Verification(worst, check.tolerance, trials, len(graph.axes), check.noticed, True, blamed, check.notes)
    logger.log(logging.INFO if found.ok else logging.WARNING, "%s", found)
    return found


def _check(graph: SymmetryGraph, seed: int) -> _Check:
    """With weights as far from the model's own as it runs with, and as its outputs still notice wrong maps with.

    Random weights may predict absurd lengths, or drive a sigmoid to where nothing changes it any more.
    """
    checks: list[_Check] = []
    reasons: list[str] = []
    for share in SHARES:
        try:
            checks.append(_Check(graph, seed, share))
        except VerifyError as error:
            reasons.append(str(error).splitlines()[0])
            if share == SHARES[-1] and not checks:
                raise
            continue
        if not checks[-1].repeatable or checks[-1].noticed >= NOTICING:
            break
        reasons.append(f"with weights further off, {checks[-1].noticed:.0%} of the probes were noticed")
    best = max(checks, key=lambda check: check.noticed)
    if best.share < 1:
        best.notes += (f"checked near the model's own weights; {reasons[0]}",)
    return best


def _unsampled(graph: SymmetryGraph) -> tuple[str, ...]:
    names = [axis.name for axis in graph.axes if not is_sampled(graph, axis)]
    return (f"too large for matrices, checked by scales and signs: {', '.join(names)}",) if names else ()


class _Check:
    """A float64 copy of the model with random weights, and its outputs on the example inputs."""

    def __init__(self, graph: SymmetryGraph, seed: int, share: float) -> None:
        self.graph, self.share = graph, share
        self.generator = torch.Generator().manual_seed(seed)
        if any(tensor.is_meta for tensor in state_of(graph.model).values()):
            raise VerifyError(
                f"{type(graph.model).__name__} holds no values (meta device), so it cannot be run.\n"
                "  what to do: verify a small model of the same architecture with real weights"
            )
        self.notes: tuple[str, ...] = ()
        self.tolerance, self.widened = TOLERANCE, False
        self.model, self.args, self.kwargs = self._double()
        self.state = self._weights()
        self.before = self._run(self.state)
        seen = [t.abs()[t.abs() < MASKED] for t in self.before]
        self.scale = max((float(t.max()) for t in seen if t.numel()), default=0.0) or 1.0
        again = self.change(self.state, seed=1)  # other random numbers: a model that draws some is found out
        self.repeatable = again <= self.tolerance * 1e-3
        self.noticed = self._sensitivity(sample(graph, self.generator)) if self.repeatable else 0.0

    def _double(self) -> tuple[nn.Module, tuple[Any, ...], Mapping[str, Any]]:
        graph = self.graph
        model = duplicate(graph.model).cpu().eval()
        args, kwargs = _to((graph.args, dict(graph.kwargs)), None)
        wide = duplicate(model).double()._apply(lambda t: t.cdouble() if t.is_complex() else t)
        try:
            with torch.no_grad(), _widened():
                wide(*(pair := _to((args, kwargs), torch.float64))[0], **pair[1])
            self.widened = True
            return wide, *pair
        except Exception as error:
            torch.compiler.reset()  # what is compiled where it runs remembers that it failed
            self.notes += (f"run in its own precision, not float64: {type(error).__name__}: {error}",)
            self.tolerance = 1e-3
            return model, args, kwargs

    def _weights(self) -> dict[str, Tensor]:
        state = state_of(self.model)
        if self.graph.captured.method == "make_fx":  # the branches taken are those of the model's own weights
            return state
        variances = {entry.var for entry in self.graph.statistics}
        moved = {name: randomised(state[name], self.generator, name in variances) for name in self.graph.tensors}
        if self.share < 1:
            inexact = [name for name, t in moved.items() if t.is_floating_point() or t.is_complex()]
            moved |= {name: state[name].lerp(moved[name], self.share) for name in inexact}
        return {**state, **moved}

    def _run(self, state: Mapping[str, Tensor], seed: int = 0) -> list[Tensor]:
        names = {**dict.fromkeys(state), **self.graph.captured.aliases}
        given = {name: state[canonical or name] for name, canonical in names.items()}
        try:
            precision = _widened() if self.widened else contextlib.nullcontext()
            with torch.no_grad(), torch.random.fork_rng(devices=[]), precision:
                torch.manual_seed(seed)
                result = torch.func.functional_call(self.model, given, self.args, dict(self.kwargs))
        except Exception as error:
            raise VerifyError(f"the model does not run with random weights: {type(error).__name__}: {error}") from error
        leaves, spec = pytree.tree_flatten(result)
        kept = [
            t for t, name in zip(leaves, output_names(spec), strict=True) if is_wanted(name, self.graph.captured.wanted)
        ]
        tensors = [t.detach() for leaf in kept for t in tensors_in(leaf)]
        return [torch.view_as_real(t.to(torch.complex128)) if t.is_complex() else t.double() for t in tensors]

    def change(self, state: Mapping[str, Tensor], seed: int = 0) -> float:
        """Largest change of an output under another state, relative to the largest output; inf where shapes differ."""
        worst = 0.0
        for old, new in zip(self.before, self._run(state, seed), strict=True):
            if old.shape != new.shape:
                return float("inf")
            if old.numel():
                difference = torch.where(old.eq(new) | (old.isnan() & new.isnan()), 0.0, (old - new).abs())
                worst = max(worst, float(difference.nan_to_num(float("inf")).max()))
        return worst / self.scale

    def error(self, maps: Permutations, elements: Elements) -> float:
        """Change of the outputs under these maps."""
        return self.change(transformed(self.graph, permuted(self.graph, self.state, maps), elements))

    def blame(self, maps: Permutations, elements: Elements, ids: Sequence[int]) -> list[int]:
        """The axes whose maps change the function, by bisection; axes that only fail together are named together."""
        chosen = {id: elements[id] for id in ids if id in elements}
        if self.error({id: maps[id] for id in ids}, chosen) <= self.tolerance:
            return []
        if len(ids) == 1:
            return list(ids)
        middle = len(ids) // 2
        found = self.blame(maps, elements, ids[:middle]) + self.blame(maps, elements, ids[middle:])
        return found or list(ids)

    def _sensitivity(self, maps: Mapping[int, Tensor]) -> float:
        """Leave the maps out of one tensor at a time: the share of tensors for which the outputs then change."""
        whole = permuted(self.graph, self.state, maps)
        names = [name for name in self.graph.tensors if not torch.equal(whole[name], self.state[name])]
        probes = names[:: max(1, len(names) // PROBES)][:PROBES]
        noticed = [self.change({**whole, name: self.state[name]}) > NOTICED * self.tolerance for name in probes]
        return sum(noticed) / len(noticed) if noticed else 1.0


def randomised(tensor: Tensor, generator: torch.Generator, positive: bool = False) -> Tensor:
    """Random values of the tensor's own scale, but large enough for the signal to survive a deep network.

    ``positive`` is for variances.
    """
    if tensor.is_complex():
        return torch.view_as_complex(randomised(torch.view_as_real(tensor), generator))
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return tensor
    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.dtype)
    if positive:
        return noise.abs() * 0.5 + 0.6
    mean = float(tensor.double().mean())
    spread = float(tensor.double().std()) if tensor.numel() > 1 else 0.0
    if tensor.dim() > 1:
        return mean + max(spread, (2 * tensor.shape[0] / tensor.numel()) ** 0.5) * noise
    if spread > 1e-3 * max(abs(mean), 0.05):
        return tensor + 0.5 * spread * noise
    return mean * (1 + 0.3 * noise) if abs(mean) > 0.05 else mean + 0.3 * noise


class _Wide(TorchDispatchMode):
    """Ops that a model asks to compute in a narrower floating type compute in float64."""

    supports_higher_order_operators = True  # control flow in sub-graphs, which computes as its operands are

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {
            key: torch.float64 if isinstance(value, torch.dtype) and value in NARROW else value
            for key, value in (kwargs or {}).items()
        }
        if func is torch.ops.aten._grouped_mm.default and len(args) == 3 and not kwargs.get("bias"):
            return _grouped(*args)  # has no kernel for float64
        return func(*args, **kwargs)


def _grouped(rows: Tensor, stack: Tensor, offsets: Tensor) -> Tensor:
    """Rows [r, i] in blocks that end at ``offsets``, each times its own of the weights [e, i, o]."""
    ends = offsets.tolist()
    blocks = [rows[start:end] @ weight for start, end, weight in zip([0, *ends], ends, stack, strict=False)]
    return torch.cat([*blocks, rows.new_zeros(len(rows) - ends[-1], stack.shape[-1])])


@contextlib.contextmanager
def _widened() -> Iterator[None]:
    """Everything in float64, also what a model casts by itself (norms that compute in float32, say)."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Wide():
            yield
    finally:
        torch.set_default_dtype(usual)


def _to(tree: Any, dtype: torch.dtype | None) -> Any:
    def move(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = value.detach().cpu()
        if dtype is None or not (value.is_floating_point() or value.is_complex()):
            return value
        return value.to(dtype.to_complex() if value.is_complex() else dtype)

    return pytree.tree_map(move, tree)
