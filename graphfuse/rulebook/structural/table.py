"""The table in which a family of structural rules is written down."""

from __future__ import annotations

from collections.abc import Callable

from graphfuse.rulebook.op import Label, Op, Rule


class Table(dict[str, Rule]):
    """Rules in Python by op, all overloads of one name together: ``aten.view``.

    ``namespace`` is that of the ops (``mine`` for ``torch.ops.mine.shift``); with ``replace`` the table's rules win
    over any that graphfuse or a pack has for the same op.

    >>> rules = Table("mine")
    >>> @rules("shift")
    ... def shift(op):
    ...     return op.label("x")
    >>> list(rules)
    ['mine.shift']
    """

    def __init__(self, namespace: str = "aten", replace: bool = False) -> None:
        super().__init__()
        self.namespace, self.replace = namespace, replace

    def __call__(self, *names: str) -> Callable[[Rule], Rule]:
        """Decorator: the rule serves the ops of these names."""

        def add(rule: Rule) -> Rule:
            self.update({f"{self.namespace}.{name}": rule for name in names})
            return rule

        return add


def first_tensor(op: Op) -> Label:
    """The op's first tensor argument."""
    return next(op.labels())


def dim_list(op: Op, rank: int, *names: str) -> list[int]:
    """The dims named by an argument (an int, a list, or absent for all of them), counted from the front."""
    value = next((op.args[name] for name in names if op.args.get(name) is not None), None)
    if value is None or (isinstance(value, list | tuple) and not value):
        return list(range(rank))
    return [d + rank if d < 0 else d for d in (value if isinstance(value, list | tuple) else [value])]
