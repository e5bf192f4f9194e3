"""The settings of a whole alignment and fusion: a dict, a YAML file, or None for the defaults.

An unknown key or a bad value raises :class:`~graphfuse.errors.ConfigError` with the nearest valid key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from graphfuse.config.base import RUN_KEYS, Settings, section
from graphfuse.config.calibrate import CalibrateConfig
from graphfuse.config.costs import CostConfig, FilterConfig, Measure, Metric
from graphfuse.config.flow import FlowConfig
from graphfuse.config.reading import Document, checked, read
from graphfuse.config.refine import RefineConfig
from graphfuse.config.transport import RoleConfig, Scale, Solver, expect_share

Method = Literal["default", "weights", "activations", "both", "blend", "auto"]
Scheme = Literal["anchor", "barycenter", "cycle"]
Driver = Literal["default", "coordinate", "flow"]


class FuseConfig(Settings):
    """All settings of an alignment and a fusion."""

    method: Method = Field(
        "default",
        description="What units are compared by: their weights, their activations on data, both or a blend. both: "
        "sweeps by weights, from what activations found and from scratch, and activations alone (see also driver); "
        "kept is what, once "
        "calibrated, comes nearest to the models' mean outputs on held-out inputs (where no calibration fits outputs: "
        "what correlates best with them). default: both when data is given (activations where a filter or cost speaks "
        "of them, and with driver flow), else weights. auto: all of these and more are tried within the time budget, "
        "scored on held-out inputs, and the best is refined; what calibrate.method and refine.what say but for their "
        "defaults is kept. Source: for both kinds of evidence, Singh and Jaggi (arXiv 1910.05653) and Git Re-Basin "
        "(arXiv 2209.04836), section 3.",
    )
    budget: float = Field(120, gt=0, description="Seconds that method auto may take, roughly.")
    symmetry: Literal["permutation", "full"] = Field(
        "full",
        description="Which maps are considered. permutation: units are matched with units; full: axes between norms "
        "and inside attention heads are rotated where their class allows it (gains of norms are folded first). Source: "
        "Schönemann's Procrustes problem (Psychometrika 1966); for folding, SliceGPT (arXiv 2401.15024), section 3.",
    )
    scaling: bool = Field(
        False,
        description="With symmetry full: units of axes that admit positive scales (before a ReLU) are brought to one "
        "scale before they are matched: to the same root mean square activation, or without activations to the scale "
        "at which a unit's incoming and outgoing weights have the same norm. Source: Stock et al., Equi-normalization "
        "of Neural Networks (arXiv 1902.10416).",
    )
    linear: bool = Field(
        False,
        description="With symmetry full: axes that admit any invertible map (inside attention heads: q.k and v.o) are "
        "brought to the basis in which the weights on both sides have the same second moments, before they are "
        "rotated, so that the map is a general one. Source: the balanced factors of a product, Srebro et al., "
        "Maximum-margin matrix factorization (NeurIPS 2004).",
    )
    driver: Driver = Field(
        "default",
        description="coordinate: one map for each axis, from all that it touches, in sweeps; flow: maps on edges, one "
        "pass in the order of the graph, each from what its producer alone shows (symmetry is then permutation). "
        "default: coordinate, and where method both has to choose and widths differ, flow by activations with solver "
        "sinkhorn is among its solutions, unless cost, solver or keep are set. Source: Git Re-Basin (arXiv "
        "2209.04836), algorithm 1; for flow, Imfeld et al. (arXiv 2310.05719), section 4.",
    )
    flow: FlowConfig = section(FlowConfig, "How maps flow when driver is flow.")
    solver: Solver = Field(
        "assignment",
        description="assignment: one to one (exact optimal transport where the widths differ); emd: exact optimal "
        "transport; sinkhorn: entropic optimal transport in the log domain; unbalanced: entropic, with marginals that "
        "are only held by a penalty; partial: exact for the share of the mass that matches best, the rest spread out. "
        "Source: Peyré and Cuturi, Computational Optimal Transport (2019), sections 3.5, 4.4 and 10.2; for partial, "
        "see share.",
    )
    regularization: float = Field(
        0.05, gt=0, description="Entropic regularisation of solvers sinkhorn and unbalanced, as scale says."
    )
    scale: Scale = Field(
        "range",
        description="What the regularisation is. range: relative to the range of the costs of each problem (largest "
        "minus smallest); absolute: in units of the cost; entropy: the mean entropy of a unit's partners that is aimed "
        "at (0: one partner, 1: all alike), for which each problem gets its own. Source: Cuturi (NeurIPS 2013); for "
        "entropy, the perplexity of van der Maaten and Hinton (JMLR 2008).",
    )
    mass: float = Field(
        1.0, gt=0,
        description="Solver unbalanced: weight of the marginals' KL divergence, in units of the cost for scale "
        "absolute, else of its range. Source: Chizat et al. (Math. Comp. 2018).",
    )  # fmt: skip
    share: float = Field(
        0.9, gt=0, le=1,
        description="Solver partial: share of the mass that is matched. Source: Chapel et al., Partial Optimal "
        "Transport (NeurIPS 2020).",
    )  # fmt: skip
    metric: Metric = Field(
        "auto",
        description="How two units are compared. auto: correlation for activations (euclidean where cost.activations "
        "says what is done to them), squared distance for weights. Source: for correlation, Li et al., Convergent "
        "Learning (arXiv 1511.07543); for distances, Singh and Jaggi (arXiv 1910.05653).",
    )
    blend: float = Field(
        0.5, ge=0, le=1, description="Share of the activations in method blend; the rest are the weights."
    )
    sweeps: int = Field(20, ge=1, description="Upper bound of sweeps over the axes when matching by weights.")
    anneal: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.1, 0.05, 0.02, 0.01),
        description="Entropic regularisation of the first sweeps when matching by weights, one for each; they keep "
        "early mistakes from being locked in. Empty: none. Source: Gold and Rangarajan, A graduated assignment "
        "algorithm for graph matching (PAMI 1996).",
    )
    tolerance: float = Field(
        1e-6, ge=0, description="A sweep that raises the objective by less than this share is the last one."
    )
    target: int = Field(0, ge=0, description="Index of the model whose width and structure the result has.")
    scheme: Scheme = Field(
        "anchor",
        description="How several models are matched. anchor: each with the target. barycenter: each with the mean of "
        "the others, again and again, so that none is privileged; widths may differ. cycle: the same with one-to-one "
        "maps only (no rotations either), which agree around every cycle of models; refused where that cannot be had. "
        "Source: Agueh and Carlier, Barycenters in the Wasserstein Space (SIAM J. Math. Anal. 2011); for cycle, "
        "Crisostomi et al., C2M3 (arXiv 2405.17897).",
    )
    rounds: int = Field(10, ge=1, description="Upper bound of the rounds of schemes barycenter and cycle.")
    keep: float = Field(
        0.0, ge=0,
        description="Partial fusion: how much wider than the target the result's hidden axes (roles hidden and gate) "
        "are, as a share of their size; the units that match worst have room there, and are kept from both models "
        "instead of being averaged. 1: with two models, all of them. Other roles only where roles says so. Source: "
        "Stoica et al., ZipIt! (arXiv 2305.03053); Nasery et al., PLeaS (arXiv 2407.02447).",
    )  # fmt: skip
    weights: tuple[Annotated[float, Field(ge=0)], ...] | None = Field(
        None, description="One weight for each model in the average; by default all equal. They are scaled to sum to 1."
    )
    outputs: tuple[str, ...] = Field(
        (),
        description="Names of the outputs that are used, as in trace; hidden states that a model also returns need not "
        "keep their coordinates. Empty: all of them.",
    )
    samples: int = Field(
        512, ge=1, description="Inputs of the data that are used: whole batches until at least this many are seen."
    )
    names: dict[str, str | tuple[str, ...]] = Field(
        default_factory=dict,
        description="What is known of models whose parameters have other names: parameter or module path of the target "
        "-> that of the other (a tuple for the parts of a fused one). The rest is found.",
    )
    layers: dict[int | str, int | str] = Field(
        default_factory=dict,
        description="Which layer of the target is which of a model of another depth, both increasing: numbers from 0, "
        "or module paths. By default layers are matched by their activations.",
    )
    seed: int = Field(0, ge=0, description="Seed of the order in which axes are visited.")
    roles: dict[str, RoleConfig] = Field(
        default_factory=dict, description="Settings for single roles (residual, heads, hidden, ...) or axes (heads.0)."
    )
    cost: CostConfig = section(CostConfig, "What it costs to match two units.")
    filter: FilterConfig = section(FilterConfig, "Which activations are compared.")
    calibrate: CalibrateConfig = section(CalibrateConfig, "What is done after averaging.")
    refine: RefineConfig = section(RefineConfig, "What is optimised by gradient.")

    @model_validator(mode="after")
    def _weights_are_usable(self) -> Self:
        if self.weights is not None and not sum(self.weights) > 0:
            raise ValueError("weights must not all be zero")
        return self

    @model_validator(mode="after")
    def _schemes_are_possible(self) -> Self:
        if self.scheme != "anchor" and self.driver == "flow":
            raise ValueError(f"scheme {self.scheme} matches whole axes; use driver coordinate, or scheme anchor")
        if self.method == "both" and self.driver == "flow":
            raise ValueError("method both goes on in sweeps, and driver flow makes one pass; use another method")
        solvers = [self.solver, *(role.solver for role in self.roles.values() if role.solver is not None)]
        if self.scheme == "cycle" and any(solver != "assignment" for solver in solvers):
            raise ValueError("scheme cycle needs one-to-one maps; use solver assignment, or scheme barycenter")
        if self.scheme == "cycle" and self.cost.importance != "uniform":
            raise ValueError(
                "scheme cycle needs one-to-one maps, and units of unequal masses have none; use cost.importance "
                "uniform, or scheme barycenter"
            )
        return self

    @model_validator(mode="after")
    def _keeping_is_possible(self) -> Self:
        if self.keeps:
            if self.driver == "flow":
                raise ValueError("keep needs one map for each axis; use driver coordinate")
            if self.refine.what in ("maps", "both"):
                raise ValueError("keep fixes which units are merged; use refine.what weights")
            if self.calibrate.method in ("repair", "regmean"):
                raise ValueError("keep goes with calibrate.method least_squares or batch_norm")
        return self

    @property
    def rotating(self) -> bool:
        """Whether axes are aligned by rotations where their class allows it."""
        return self.symmetry == "full" and self.driver != "flow" and self.scheme != "cycle"

    @property
    def keeps(self) -> bool:
        """Whether any axis is to grow, so that units are kept apart."""
        return bool(self.keep) or any(role.keep for role in self.roles.values())

    @property
    def reads(self) -> int:
        """Inputs of the data that are read at all."""
        what = self.refine.what
        refines = self.method == "auto" if what == "default" else what != "none"
        return max(self.samples, self.refine.samples or 0) if refines else self.samples

    def metric_for(self, method: str) -> Measure:
        """How units are compared by ``weights``, or else by activations."""
        if self.metric != "auto":
            return self.metric
        if method == "weights":
            return "squared"
        return "correlation" if self.cost.activations == "raw" else "euclidean"

    def shares(self, count: int) -> tuple[float, ...]:
        """Each of so many models' weight in the average; they sum to one."""
        given = self.weights or (1.0,) * count
        return tuple(weight / sum(given) for weight in given)

    @model_validator(mode="after")
    def _entropies_are_shares(self) -> Self:
        for name in ("", *self.roles):
            settings = self.for_axis(name, name)
            if settings.scale == "entropy" and settings.regularization:
                expect_share(settings.regularization)
        return self

    @classmethod
    def parse(cls, value: FuseConfig | Mapping[str, Any] | str | Path | None = None) -> FuseConfig:
        """A config from a dict, a YAML file, another config, or None (the defaults).

        Of the file of a whole run (:class:`RunConfig`) only the settings of the fusion are taken.

        Raises
        ------
        ConfigError
            The file cannot be read, a key is unknown (with the nearest valid key), or a value is not allowed.

        Examples
        --------
        >>> FuseConfig.parse({"solver": "sinkhorn"}).regularization
        0.05
        """
        if isinstance(value, FuseConfig):
            return value
        if isinstance(value, str | Path):
            found = read(value)
            if isinstance(
                found.value, dict
            ):  # what a run's file says of models and data is said in Python by arguments
                own = {key: one for key, one in found.value.items() if key not in RUN_KEYS}
                found = replace(found, value=own)
            return checked(cls, found)
        return checked(cls, Document(value))

    def for_axis(self, name: str, role: str) -> RoleConfig:
        """Settings of one axis: those given under its name, else under its role, else the defaults.

        What follows ``@`` in a name tells the maps of one axis apart, and has no settings of its own.
        """
        given = self.roles.get(name.partition("@")[0]) or self.roles.get(role) or RoleConfig.model_validate({})
        return RoleConfig(
            align=given.align,
            solver=given.solver or self.solver,
            regularization=given.regularization or self.regularization,
            scale=given.scale or self.scale,
            mass=given.mass or self.mass,
            share=given.share or self.share,
            keep=given.keep if given.keep is not None else self.keep if role in ("hidden", "gate") else 0.0,
        )
