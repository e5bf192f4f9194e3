"""The schema of rule packs: what a YAML file of rules may say. Data only; reading a pack executes no code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from graphfuse.axes import SymmetryClass
from graphfuse.config import nearest
from graphfuse.rulebook.pointwise import Elementwise, IndexUse
from graphfuse.rulebook.signature import Signature, parse

Kind = Literal[
    "linear", "matmul", "convolution", "norm", "attention", "embedding", "pointwise", "pooling", "resampling",
    "rearrangement", "reduction", "other",
]  # fmt: skip
"""The family of an op; roles are derived from it and contractions found by it."""

Scalar = None | bool | int | float | str


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_class(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    known = [name.lower() for name in SymmetryClass.__members__]
    if value not in known:
        raise ValueError(f"no symmetry class is called {value!r}; {nearest(value, known)}")
    return SymmetryClass[value.upper()]


def _as_signature(value: Any) -> Any:
    return parse(value) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_as_list)]
ClassName = Annotated[SymmetryClass, BeforeValidator(_as_class)]
SignatureText = Annotated[Signature, BeforeValidator(_as_signature)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, arbitrary_types_allowed=True)


class TensorExample(_Model):
    """A random tensor of an example: normal, or uniform between ``low`` and ``high`` (integers below ``high``)."""

    shape: tuple[int, ...]
    dtype: Literal["float", "int", "bool"] = "float"
    low: float | None = None
    high: float | None = None


ExampleValue = TensorExample | Scalar | list[TensorExample | Scalar]


class Example(_Model):
    """Arguments with which the self-check calls an op; ``op`` names the ops of the entry that they are for.

    For a module, ``build`` are the keyword arguments that make it, and ``of`` is its class where the entry has a ``*``.
    """

    op: Names = ()
    of: str | None = None
    build: dict[str, Any] = Field(default_factory=dict)
    args: tuple[ExampleValue, ...] = ()
    kwargs: dict[str, ExampleValue] = Field(default_factory=dict)


class PointwiseSpec(_Model):
    """An elementwise op: see :class:`graphfuse.rulebook.pointwise.Elementwise`."""

    operands: Names = ()
    shared: ClassName = Field(SymmetryClass.PERMUTATION, alias="class")
    alone: ClassName | dict[str, ClassName] = SymmetryClass.PERMUTATION
    index: IndexUse = "fix"
    gains: Names = ()

    def elementwise(self) -> Elementwise:
        """The same as the plain value that the rule reads."""
        return Elementwise(self.operands, self.shared, self.alone, self.index, self.gains)


class Special(_Model):
    """What is different where the arguments fit ``when``; anything left out is as in the entry.

    ``when`` maps an argument to the value it must have (each element of it, for a list argument), or a name of the
    signature to the size that its dims must have; a list gives alternatives.
    """

    when: dict[str, Scalar | list[Scalar]] = Field(min_length=1)
    signature: SignatureText | None = None
    classes: dict[str, ClassName] | None = Field(None, alias="class")
    mixes: Names | None = None
    pointwise: PointwiseSpec | None = None


class Contracts(_Model):
    """Which arguments hold the data, the weight and the bias of an op that contracts data with a parameter."""

    input: str
    weight: str
    bias: str | None = None


class Statistics(_Model):
    """Which arguments hold running statistics: buffers that move with the axes of the op."""

    mean: str
    var: str


class Entry(_Model):
    """One rule: an op, or several that share a signature; or the modules of one class, each taken as one op.

    ``module`` is ``package.Class``, or ``*.Class`` wherever it is defined.
    """

    op: str | None = None
    module: str | None = None
    ops: Names = ()
    kind: Kind = "other"
    signature: SignatureText | None = None
    pointwise: PointwiseSpec | None = None
    classes: dict[str, ClassName] = Field(default_factory=dict, alias="class")
    mixes: Names = ()
    sizes: dict[str, str | int] = Field(default_factory=dict)
    windows: dict[str, str] = Field(default_factory=dict)
    special: tuple[Special, ...] = ()
    contracts: Contracts | None = None
    statistics: Statistics | None = None
    gains: Names = ()
    offsets: Names = ()
    stacked: str | None = None
    fixed_because: dict[str, str] = Field(default_factory=dict)
    example: Example | tuple[Example, ...] = ()
    source: str = ""
    replace: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Every op that the entry is for; a module's is made from its name."""
        if self.module:
            return ("module." + self.module.replace("*", "any").replace(".", "__"),)
        return (self.op, *self.ops) if self.op else self.ops

    @property
    def title(self) -> str:
        """What the entry is for, as it says it."""
        return f"module {self.module}" if self.module else ", ".join(self.names)

    @property
    def has_rule(self) -> bool:
        """Whether the entry says how dims are related; if not, it only adds facts to an op whose rule is in Python."""
        return self.signature is not None or self.pointwise is not None

    @property
    def examples(self) -> tuple[Example, ...]:
        """The entry's examples."""
        return (self.example,) if isinstance(self.example, Example) else self.example

    @model_validator(mode="after")
    def _consistent(self) -> Entry:
        if not self.names:
            raise ValueError("no op is named; write 'op: aten.linear.default', 'ops: [...]' or 'module: package.Class'")
        if self.module is not None:
            self._check_module(self.module)
        for name in self.names:
            if len(name.split(".")) not in (2, 3) or not all(name.split(".")):
                raise ValueError(f"{name!r} is no op; write namespace.name or namespace.name.overload")
        if self.signature is not None and self.pointwise is not None:
            raise ValueError("an entry has either a 'signature' or 'pointwise', not both")
        if not (self.has_rule or self.contracts or self.statistics or self.stacked):
            raise ValueError("the entry says nothing; it needs a 'signature' or 'pointwise'")
        if self.contracts and self.kind not in ("linear", "matmul", "convolution"):
            raise ValueError(f"'contracts' needs kind linear, matmul or convolution, not {self.kind!r}")
        for where, names, signature in self._uses_of_names():
            for name in names:
                if name not in signature.names:
                    hint = nearest(name, sorted(signature.names))
                    raise ValueError(f"{where}: no dim is called {name!r} in {signature.text!r}; {hint}")
        return self

    def _check_module(self, name: str) -> None:
        if self.op or self.ops:
            raise ValueError("an entry is for ops or for a module, not both")
        package, _, word = name.rpartition(".")
        if not word.isidentifier() or not (package == "*" or all(map(str.isidentifier, package.split(".")))):
            raise ValueError(f"{name!r} is no class; write package.Class, or *.Class wherever it is defined")
        titles = [operand.title for operand in self.signature.inputs if operand] if self.signature else []
        if self.signature is None or None in (*self.signature.inputs, *self.signature.outputs) or not all(titles):
            raise ValueError("a module needs a 'signature' that names each operand (argument, parameter or buffer)")
        if any(operand.several for operand in self.signature.inputs if operand):
            raise ValueError("an operand of a module is one tensor, not a list")
        if len(set(titles)) < len(titles):
            raise ValueError(f"an operand is named twice in {self.signature.text!r}")

    def _uses_of_names(self) -> Iterator[tuple[str, tuple[str, ...], Signature]]:
        signature = self.signature
        if signature is None:
            said = {"class": self.classes, "mixes": self.mixes, "sizes": self.sizes, "windows": self.windows}
            for word, value in said.items():
                if value:
                    raise ValueError(f"{word!r} belongs to a signature; an elementwise op says it under 'pointwise'")
            return
        yield "class", tuple(self.classes), signature
        yield "mixes", self.mixes, signature
        yield "sizes", tuple(self.sizes), signature
        yield "windows", (*self.windows, *self.windows.values()), signature
        for special in self.special:
            own = special.signature or signature
            yield "special.class", tuple(special.classes or ()), own
            yield "special.mixes", special.mixes or (), own


class PackFile(_Model):
    """A whole pack."""

    version: Literal[1]
    source: str = ""
    rules: tuple[Entry, ...]
