"""Fit one contraction: a step from the averaged weight towards the least-squares solution, judged on held-out rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from graphfuse.calibrate.regression import Regression
from graphfuse.calibrate.solve import Moments, Rows


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a contraction reads and gives, and what it should give: one tensor for each batch.

    ``rows`` has the weight of every row, shape (rows,); None: all count the same. ``share`` is the weight of all rows
    where there are several bodies of evidence.
    """

    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    targets: Sequence[Tensor]
    rows: Sequence[Tensor] | None = None
    share: float = field(default=1.0, kw_only=True)


@dataclass(frozen=True, eq=False)
class Fitted:
    """The change of a weight, and of its offset when it has one; None when the averaged weight stays.

    ``before`` and ``after`` are squared errors on the held-out rows, as shares of the squared targets there; ``after``
    is that of the solution from the other rows, before the held-out ones were added.
    """

    weight: Tensor | None
    offset: Tensor | None
    step: float
    before: float
    after: float
    ridge: float | None = None


def fit(
    regression: Regression,
    evidence: Evidence | Sequence[Evidence],
    ridges: Sequence[float],
    holdout: float,
    offset: bool,
) -> Fitted:
    """Solve for the change of a weight that makes the outputs most like the targets.

    Parameters
    ----------
    regression : Regression
        How tensors are made of rows.
    evidence : Evidence or sequence of Evidence
        Everything that is known at the node.
    ridges : sequence of float
        Pulls towards the averaged weight, relative to the Gram matrix's mean diagonal: the one that is best on the
        held-out rows is used, the first where there are none.
    holdout : float
        Share of the inputs that decides how far to go. Whole batches when there are enough, else the last rows of each.
    offset : bool
        Whether an offset (a bias) is solved for too.

    Returns
    -------
    Fitted
        After the held-out rows have set the step, the solution is that of all rows.
    """
    fitted = held = None
    for each in [evidence] if isinstance(evidence, Evidence) else evidence:
        one, two = _parts(regression, each, holdout, offset)
        fitted, held = _sum(fitted, one), _sum(held, two)
    if fitted is None:
        return Fitted(None, None, 0.0, 0.0, 0.0)
    judge = fitted if held is None else held
    scale = max(float(judge.tt), 1e-300)
    before = float(judge.rr) / scale
    tried = [(pull, fitted.solve(pull, offset)) for pull in (ridges if held is not None else ridges[:1])]
    steps = [(pull, judge.step(one), one) for pull, one in tried if one is not None]
    if not steps:
        return Fitted(None, None, 0.0, before, before)
    ridge, step, solution = min(steps, key=lambda found: judge.error(found[2], found[1]))
    after = judge.error(solution, step) / scale
    if held is not None:
        solution = (fitted + held).solve(ridge, offset)
    if solution is None or step == 0:
        return Fitted(None, None, 0.0, before, before)
    solution = solution * step
    if not offset:
        return Fitted(regression.weight(solution), None, step, before, after, ridge)
    return Fitted(regression.weight(solution[:, :-1]), solution[:, -1].flatten(), step, before, after, ridge)


def _parts(
    regression: Regression, evidence: Evidence, holdout: float, offset: bool
) -> tuple[Moments | None, Moments | None]:
    """Moments of the rows that are fitted and of those that are held out."""
    fitted = held = None
    count = len(evidence.inputs)
    whole = count * holdout >= 1
    for i in range(count):
        share = float(int((i + 1) * holdout) == int(i * holdout)) if whole else 1 - holdout
        seen, cut = 0, round(regression.outputs(evidence.outputs[i]).shape[1] * share)
        for rows in _rows(regression, evidence, i):
            here = min(max(cut - seen, 0), len(rows))
            fitted = _add(fitted, rows.take(0, here), offset)
            held = _add(held, rows.take(here, len(rows)), offset)
            seen += len(rows)
    return fitted, held


def _rows(regression: Regression, evidence: Evidence, i: int) -> Iterator[Rows]:
    start = 0
    for x, y, t in regression.pieces(evidence.inputs[i], evidence.outputs[i], evidence.targets[i]):
        weight = evidence.rows[i][start : start + x.shape[1]] if evidence.rows is not None else None
        if evidence.share != 1:
            weight = evidence.share * (x.new_ones(x.shape[1]) if weight is None else weight)
        yield Rows(x, t - y, t, weight)
        start += x.shape[1]


def _add(total: Moments | None, rows: Rows, offset: bool) -> Moments | None:
    return _sum(total, Moments.of(rows, offset)) if len(rows) else total


def _sum(total: Moments | None, more: Moments | None) -> Moments | None:
    return more if total is None else total if more is None else total + more
