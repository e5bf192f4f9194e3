"""The grammar of rule signatures: how the dims of an op's outputs follow from the dims of its inputs.

``x[... i], w[o i], b[o]? -> [... o]`` says of ``linear`` all that labelling has to know. Operands stand in the order of
the op's schema arguments; their names are for the reader. Trailing arguments may be left out.

===================  ==================================================================================================
``x[n c]``           a tensor argument with one name for each dim; equal names are one axis
``_``                an argument that plays no part (or an output without elements)
``b[o]?``            the argument may be None or absent
``xs[n c]+``         a list of tensors, each with these dims
``...``              any number of leading dims, unified between operands by numpy broadcasting
``*s``               zero or more dims; every ``*`` of a signature stands for the same number of dims
``(g i)``            the row-major product of axes; sizes that shapes do not tell come from the entry's ``sizes``
``y!``               positions along the dim matter: its axis is fixed (one ``!`` marks the name everywhere)
``1``, ``*1``        a dim of size 1, without an axis; as many of them as a starred name has dims
``-> [...]; _``      several outputs are separated by semicolons
===================  ==================================================================================================

A name that occurs in an output only is a new fixed axis. An operand with fewer dims than its pattern lacks the leading
ones, and a dim of size 1 against a larger one is broadcast.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

ELLIPSIS = "..."
_TOKEN = re.compile(r"\s*(?:(?P<symbol>->|\.\.\.|[\[\](),;?!*+1])|(?P<name>[A-Za-z_][A-Za-z0-9_]*))")


class SignatureError(ValueError):
    """A signature does not parse; the message repeats the pattern and points at the position."""


@dataclass(frozen=True, slots=True)
class Name:
    """One name of a dim; ``variadic`` for ``*s`` and ``...``."""

    text: str
    fixed: bool = False
    variadic: bool = False


Slot = tuple[Name, ...]
"""One dim of a pattern: a product of names, empty for ``1``."""


ONES: Slot = (Name("1", variadic=True),)
"""The slot ``*1``."""


@dataclass(frozen=True, slots=True)
class Operand:
    """The pattern of one tensor; ``several`` for a list of such tensors."""

    title: str
    slots: tuple[Slot, ...]
    optional: bool = False
    several: bool = False

    @property
    def names(self) -> frozenset[str]:
        """Every name in the pattern."""
        return frozenset(name.text for slot in self.slots if slot != ONES for name in slot)


@dataclass(frozen=True, slots=True)
class Signature:
    """A parsed signature; None stands for an argument or an output that plays no part."""

    text: str
    inputs: tuple[Operand | None, ...]
    outputs: tuple[Operand | None, ...]

    @property
    def names(self) -> frozenset[str]:
        """Every name in the signature."""
        return self.input_names | self.output_names

    @property
    def input_names(self) -> frozenset[str]:
        """The names that some input has."""
        return frozenset().union(*(operand.names for operand in self.inputs if operand))

    @property
    def output_names(self) -> frozenset[str]:
        """The names that some output has."""
        return frozenset().union(*(operand.names for operand in self.outputs if operand))

    @property
    def variadic_names(self) -> frozenset[str]:
        """The names written with a star."""
        return frozenset(name.text for name in self._all_names() if name.variadic) - {ELLIPSIS, "1"}

    @property
    def fixed_names(self) -> frozenset[str]:
        """The names marked with ``!`` anywhere."""
        return frozenset(name.text for name in self._all_names() if name.fixed)

    def _all_names(self) -> Iterator[Name]:
        for operand in (*self.inputs, *self.outputs):
            if operand is not None:
                yield from (name for slot in operand.slots for name in slot)


def parse(text: str) -> Signature:
    """Read a signature.

    Parameters
    ----------
    text : str
        For example ``"x[... i], w[o i], b[o]? -> [... o]"``.

    Raises
    ------
    SignatureError
        With the position of the first mistake and the pattern repeated.

    Examples
    --------
    >>> parse("x[... i], w[o i], b[o]? -> [... o]").output_names == {"...", "o"}
    True
    """
    return _Parser(text).signature()


class _Parser:
    """Recursive descent over the tokens of one signature."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(_tokens(text))
        self.index = 0

    @property
    def token(self) -> str:
        return self.tokens[self.index][0]

    def fail(self, message: str) -> SignatureError:
        return _error(self.text, self.tokens[self.index][1], message)

    def accept(self, token: str) -> bool:
        if self.token != token:
            return False
        self.index += 1
        return True

    def expect(self, token: str) -> None:
        if not self.accept(token):
            raise self.fail(f"expected {token!r}, got {self.token or 'the end'!r}")

    def word(self) -> str:
        if not re.match(r"[A-Za-z_]", self.token):
            raise self.fail(f"expected a name, got {self.token or 'the end'!r}")
        self.index += 1
        return self.tokens[self.index - 1][0]

    def signature(self) -> Signature:
        inputs = [] if self.token == "->" else self.operands(",")
        self.expect("->")
        outputs = self.operands(";")
        if self.token:
            raise self.fail(f"unexpected {self.token!r}")
        return Signature(self.text, tuple(inputs), tuple(outputs))

    def operands(self, separator: str) -> list[Operand | None]:
        operands = [self.operand()]
        while self.accept(separator):
            operands.append(self.operand())
        return operands

    def operand(self) -> Operand | None:
        title = "" if self.token == "[" else self.word()
        if title == "_" and self.token != "[":
            return None
        self.expect("[")
        slots: list[Slot] = []
        while not self.accept("]"):
            if any(name.variadic and name.text == self.token.lstrip("*") for slot in slots for name in slot):
                raise self.fail(f"a second {self.token!r} in one operand")
            slots.append(self.slot())
        several = self.accept("+")
        return Operand(title, tuple(slots), self.accept("?"), several)

    def slot(self) -> Slot:
        if self.accept("1"):
            return ()
        if self.accept(ELLIPSIS):
            return (Name(ELLIPSIS, self.accept("!"), variadic=True),)
        if self.accept("*"):
            if self.accept("1"):
                return ONES
            return (Name(self.word(), self.accept("!"), variadic=True),)
        if not self.accept("("):
            return (Name(self.word(), self.accept("!")),)
        names: list[Name] = []
        while not self.accept(")"):
            names.append(Name(self.word(), self.accept("!")))
        return tuple(names)


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    position = 0
    stop = len(text.rstrip())
    while position < stop:
        match = _TOKEN.match(text, position)
        if match is None:
            skipped = len(text[position:]) - len(text[position:].lstrip())
            raise _error(text, position + skipped, f"unknown character {text[position + skipped]!r}")
        position = match.end()
        token = match.group("symbol") or match.group("name")
        yield token, position - len(token)
    yield "", stop


def _error(text: str, position: int, message: str) -> SignatureError:
    return SignatureError(f"{message} at position {position}\n    {text}\n    {' ' * position}^")
