"""Every setting of the config is obeyed: with another value, all else being equal, the result is another one."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from models import MLP
from test_align import scaled
from test_flow import Patches
from test_schemes import Normed
from torch import Tensor, nn

import graphfuse
from graphfuse.alignment import Prepared, match, prepare
from graphfuse.capture import state_of
from graphfuse.config import FuseConfig
from graphfuse.config.base import Settings
from graphfuse.config.costs import Window
from graphfuse.config.reading import sections

Path_ = tuple[str, ...]


class Masked(nn.Module):
    """Nine patches, each by itself, and a padding mask."""

    def __init__(self) -> None:
        super().__init__()
        self.net = MLP((5, 12, 10, 3))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return (self.net(x) * mask.unsqueeze(-1)).mean(1)


class Skipped(nn.Module):
    """A batch norm, and a branch beside a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.norm, self.up = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 12)
        self.down, self.head = nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.inp(x)))
        return self.head(x + self.down(torch.tanh(self.up(x))))


def drawn(*shape: int) -> list[Tensor]:
    """Four batches, always the same."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(shape, generator=generator) for _ in range(4)]


def masked() -> list[tuple[Tensor, Tensor]]:
    return [(x, (x[..., 0] > -0.5).float()) for x in drawn(16, 9, 5)]


KINDS: dict[str, tuple[Callable[[int], nn.Module], Callable[[], list[Any]]]] = {
    "net": (Normed, lambda: drawn(32, 3)),
    "mlp": (lambda seed: scaled(MLP((5, 24, 20, 3)), seed), lambda: drawn(32, 5)),
    "tokens": (lambda seed: scaled(Masked(), seed), masked),
    "vit": (lambda seed: scaled(Patches(12, 3), seed), lambda: drawn(16, 3, 8, 8)),
    "deep": (lambda seed: scaled(MLP((5, *[30] * 6, 3)), seed), lambda: drawn(32, 5)),
    "skipped": (lambda seed: scaled(Skipped(), seed), lambda: drawn(24, 5)),
}


@dataclass(frozen=True)
class Case:
    """Values of one setting; no two may give the same with what is set beside it.

    ``whole`` fuses, for what is read after the maps are known; otherwise maps are compared.
    """

    path: Path_
    values: Sequence[Any]
    kind: str = "net"
    beside: Mapping[str, Any] = field(default_factory=dict)
    whole: bool = False
    count: int = 2

    @property
    def key(self) -> str:
        """The setting's name; NAME stands for a role or axis."""
        return ".".join("NAME" if i == 1 and self.path[0] == "roles" else part for i, part in enumerate(self.path))


SOFT = {"method": "activations", "solver": "sinkhorn", "symmetry": "permutation"}
WEIGHTS = {**SOFT, "method": "weights"}
HARD = {"method": "weights", "symmetry": "permutation"}
FLOW = {**SOFT, "driver": "flow"}
AVERAGE = {**SOFT, "calibrate": {"method": "batch_norm"}}
LEAST = {**SOFT, "solver": "assignment"}
REFINED = {**AVERAGE, "solver": "assignment", "refine": {"what": "weights", "steps": 3}}
LEARNED = {**AVERAGE, "solver": "assignment", "refine": {"what": "maps", "steps": 3, "maps_rate": 1.0}}
SOLVERS = ("assignment", "emd", "sinkhorn", "unbalanced", "partial")


def solving(path: Path_) -> list[Case]:
    """What is said of solvers, of all axes or of some."""
    beside = {"symmetry": "permutation", "method": "activations"}
    own = functools.partial(setting, beside, path)
    return [
        Case((*path, "solver"), SOLVERS, beside=own(share=0.6)),
        Case((*path, "regularization"), (0.02, 0.2), beside=own(solver="sinkhorn")),
        Case((*path, "scale"), ("range", "absolute", "entropy"),
             beside=own(solver="sinkhorn", regularization=0.3)),
        Case((*path, "mass"), (0.1, 1.0), beside=own(solver="unbalanced")),
        Case((*path, "share"), (0.5, 0.9), beside=own(solver="partial")),
    ]  # fmt: skip


def setting(beside: Mapping[str, Any], path: Path_, **given: Any) -> dict[str, Any]:
    """Settings with those at a path added."""
    if not path:
        return {**beside, **given}
    return {**beside, path[0]: setting(beside.get(path[0], {}), path[1:], **given)}


MATCHED = [
    Case(("method",), ("weights", "activations", "both", "blend"), beside=HARD),
    Case(("blend",), (0.1, 0.9), beside={**SOFT, "method": "blend"}),
    Case(("metric",), ("correlation", "cosine", "euclidean", "squared"), beside=SOFT),
    Case(("cost", "activations"), ("raw", "centred", "standardised", "normalised"),
         beside={**SOFT, "metric": "euclidean"}),
    Case(("cost", "site"), ("pre", "post"), beside=SOFT),
    Case(("cost", "bias"), (True, False), beside=WEIGHTS),
    Case(("cost", "clip"), (None, 0.2, 0.5), beside=SOFT),
    Case(("cost", "normalize"), ("none", "max", "mean", "median", "log"),
         beside={**SOFT, "metric": "squared", "scale": "absolute"}),
    Case(("cost", "importance"), ("uniform", "activations", "weights"), beside=SOFT),
    Case(("filter", "tokens"), ("all", "first", {"start": 2}), "tokens", SOFT),
    Case(("filter", "tokens", "start"), (0, 3), "tokens", setting(SOFT, ("filter", "tokens"), stop=8)),
    Case(("filter", "tokens", "stop"), (5, 8), "tokens", setting(SOFT, ("filter", "tokens"), start=1)),
    Case(("filter", "tokens", "centre"), (1, 3), "tokens", SOFT),
    Case(("filter", "mask"), (None, "mask", "~mask"), "tokens", SOFT),
    Case(("filter", "loss"), (None, {"below": 0.5}), "tokens", SOFT),
    Case(("filter", "loss", "below"), (0.3, 0.9), "tokens", SOFT),
    Case(("filter", "loss", "score"), ("entropy", lambda y: y.amax(-1)), "tokens",
         setting(SOFT, ("filter", "loss"), below=0.5)),
    Case(("samples",), (32, 128), beside=SOFT),
    Case(("target",), (0, 1), beside=SOFT),
    Case(("roles", "hidden", "align"), (True, False), beside=SOFT),
    Case(("roles", "hidden.0", "align"), (True, False), beside=SOFT),
    *solving(()),
    *solving(("roles", "hidden")),
    *solving(("roles", "hidden.1")),
]  # fmt: skip
"""What every driver knows; sources, filters, solvers and masses are to be the same whichever it is."""

ALONE = [
    Case(("cost", "gains"), (True, False), beside=WEIGHTS),  # no producer of a map that flows
    Case(("driver",), ("coordinate", "flow"), "vit", SOFT),
    Case(("flow", "residual"),
         ("shared", "mean", "weighted_scalar", "weighted_matrix", "only_residual", "no_residual"), "vit", FLOW),
    Case(("flow", "qk"), ("separate", "joint", "tied"), "vit", FLOW),
    Case(("flow", "heads"), ("nested", "within", "free"), "vit", FLOW),
    Case(("flow", "embeddings"), ("own", "follow"), "vit", FLOW),
    Case(("symmetry",), ("permutation", "full"), "vit", {"method": "weights"}),
    Case(("scaling",), (False, True), "vit", {"method": "weights"}),
    Case(("linear",), (False, True), "vit", {"method": "weights"}),
    Case(("scheme",), ("anchor", "barycenter", "cycle"), "vit", {"method": "weights"}, count=3),  # a cycle rotates not
    Case(("rounds",), (1, 10), "deep", {**HARD, "scheme": "barycenter"}, count=3),
    Case(("sweeps",), (1, 20), "mlp", {**HARD, "anneal": []}),
    Case(("anneal",), ((), (0.2, 0.1)), "mlp", HARD),
    Case(("tolerance",), (0.0, 0.9), "deep", {**HARD, "anneal": []}),
    Case(("seed",), (0, 1), "mlp", {**HARD, "anneal": [], "sweeps": 2}),
    Case(("weights",), (None, (0.2, 0.8), (1.0, 0.0)), "mlp", AVERAGE, whole=True),
    Case(("keep",), (0.0, 0.5), "mlp", {**AVERAGE, "solver": "assignment"}, whole=True),
    Case(("roles", "hidden", "keep"), (0.0, 0.5), "mlp", {**AVERAGE, "solver": "assignment"}, whole=True),
    Case(("roles", "hidden.0", "keep"), (0.0, 0.5), "mlp", {**AVERAGE, "solver": "assignment"}, whole=True),
    Case(("calibrate", "method"), ("least_squares", "batch_norm", "repair", "regmean"), "skipped", LEAST, whole=True),
    *(Case(("calibrate", key), values, "skipped", LEAST, whole=True) for key, values in (
        ("batch_norm", (True, False)), ("ridge", ((1e-2, 1e-3, 1e-4, 1e-5), 1.0, (1.0, 1e-3))),
        ("holdout", (0.2, 0.0, 0.5)), ("drift", (True, False)), ("sensitivity", (0.5, 0.0, 1.0)))),
    Case(("refine", "what"), ("none", "maps", "weights", "both"), "skipped", LEARNED, whole=True),
    *(Case(("refine", key), values, "skipped", REFINED, whole=True) for key, values in (
        ("steps", (3, 1)), ("rate", (1e-2, 1e-3)), ("batch", (64, 8)), ("loss", ("squared", "divergence")),
        ("holdout", (0.2, 0.5)))),
    *(Case(("refine", key), values, "skipped", LEARNED, whole=True) for key, values in (
        ("maps_rate", (1.0, 0.1)), ("straight_through", (True, False)))),
    Case(("refine", "samples"), (None, 1000), "skipped", {**REFINED, "samples": 1}, whole=True),
    Case(("refine", "samples"), (None, 1000), "skipped", {**LEARNED, "samples": 1}, whole=True),
    Case(("refine", "temperature"), (0.1, 0.5), "skipped",
         setting(LEARNED, ("refine",), straight_through=False), whole=True),
]  # fmt: skip

ELSEWHERE = {
    "budget": "test_refine.py::test_auto_tries_no_more_than_its_budget_allows",
    "refine.seconds": "test_refine.py::test_a_time_budget_ends_a_descent",
    "outputs": "test_outputs.py::test_fusing_moves_what_only_unused_outputs_show",
    "names": "test_matching.py::test_what_is_ambiguous_is_shown_and_can_be_said_by_hand",
    "layers": "test_depth.py::test_layers_by_hand",
}
"""Settings of time, and of how models correspond: their tests."""
ALIASES = {"auto", "default"}
"""Values that stand for others."""


# ---------------------------------------------------------------------- results


@functools.cache
def ready(kind: str, rotating: bool, samples: int, target: int, count: int) -> Prepared:
    build, data = KINDS[kind]
    config = {"symmetry": "full" if rotating else "permutation", "samples": samples, "target": target}
    return prepare([build(seed) for seed in range(count)], data=data(), config=config)


def maps(case: Case, config: FuseConfig) -> list[Tensor]:
    """All maps, each as it is kept."""
    prepared = ready(case.kind, config.rotating, config.samples, config.target, case.count)
    assert config.method in ("weights", "activations", "both", "blend")
    found = match(replace(prepared, config=config, method=config.method))
    return [value for part in found.models for entry in part.maps.values() for value in (
        entry.values, *(entry.scales or ()))]  # fmt: skip


def weights(case: Case, config: FuseConfig) -> list[Tensor]:
    """The fused model's weights."""
    return fused(case.kind, config.model_dump_json())


@functools.cache
def fused(kind: str, config: str) -> list[Tensor]:
    build, data = KINDS[kind]
    settings = FuseConfig.model_validate_json(config)
    result = graphfuse.fuse([build(seed) for seed in range(2)], data=data(), config=settings)
    return list(state_of(result.model).values())


def same(one: Sequence[Tensor], two: Sequence[Tensor]) -> bool:
    pairs = zip(one, two, strict=False)
    return len(one) == len(two) and all(
        a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a.double(), b.double(), rtol=0, atol=1e-6)
        for a, b in pairs
    )


def differ(case: Case, more: Mapping[str, Any]) -> None:
    *path, last = case.path
    found = {
        str(value): (weights if case.whole else maps)(
            case, FuseConfig.parse(setting({**case.beside, **more}, tuple(path), **{last: value}))
        )
        for value in case.values
    }
    for a, b in itertools.combinations(found, 2):
        assert not same(found[a], found[b]), f"{case.key}: {a} and {b} give the same"


def named(cases: Sequence[Case]) -> list[Any]:
    return [pytest.param(case, id=".".join(case.path)) for case in cases]


# ------------------------------------------------------------------------ tests


@pytest.mark.parametrize("driver", ["coordinate", "flow"])
@pytest.mark.parametrize("case", named(MATCHED))
def test_what_is_compared_and_how_it_is_solved_is_obeyed_by_either_driver(case: Case, driver: str) -> None:
    if driver == "flow" and "both" in case.values:
        case = replace(case, values=[value for value in case.values if value != "both"])  # sweeps alone
    differ(case, {"driver": driver})


@pytest.mark.parametrize("case", named(ALONE))
def test_every_other_setting_is_obeyed(case: Case) -> None:
    differ(case, {})


def leaves(model: type[Settings], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every key and its annotation; a section counts where it may also be left out."""
    inner = dict(sections(model))
    for name, entry in model.model_fields.items():
        kind = inner.get(name)
        if kind is None or (entry.annotation is not kind and name != "roles"):
            yield f"{path}{name}", entry.annotation
        if kind is not None:
            yield from leaves(kind, f"{path}{name}.NAME." if name == "roles" else f"{path}{name}.")


def test_no_setting_and_no_value_is_left_out() -> None:
    keys, cases = dict(leaves(FuseConfig)), [*MATCHED, *ALONE]
    assert {case.key for case in cases} | ELSEWHERE.keys() == keys.keys()
    assert {f"filter.tokens.{name}" for name in Window.model_fields} <= keys.keys()
    for case in cases:
        kinds = [kind for kind in (keys[case.key], *get_args(keys[case.key])) if get_origin(kind) is Literal]
        valid = {value for kind in kinds for value in get_args(kind)} - ALIASES
        assert {value for value in case.values if isinstance(value, str)} >= valid, case.key
    for place in ELSEWHERE.values():
        file, _, name = place.partition("::")
        assert f"def {name}(" in (Path(__file__).parent / file).read_text()


def described(model: type[Settings], path: str = "") -> Iterator[tuple[str, str]]:
    """Every key that chooses between ways, and what is said of it and of its section."""
    for name, entry in model.model_fields.items():
        kinds = (entry.annotation, *get_args(entry.annotation))
        if any(get_origin(kind) is Literal for kind in kinds):
            yield f"{path}{name}", f"{entry.description} {model.__doc__}"
    for name, kind in sections(model):
        if name != "roles":  # said of the whole config
            yield from described(kind, f"{path}{name}.")


def test_every_choice_names_its_source() -> None:
    assert [key for key, said in described(FuseConfig) if "Source" not in said and "arXiv" not in said] == []
