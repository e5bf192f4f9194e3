"""Recurrent networks as ATen has them: whole LSTM, GRU and RNN layers, and their cells."""

from __future__ import annotations

from graphfuse.axes import Dim, Sum, SymmetryClass, dualised
from graphfuse.errors import RuleError
from graphfuse.rulebook.op import Label, Op
from graphfuse.rulebook.structural.table import Table

RECURRENT = Table()


def _gates(name: str) -> int:
    return 4 if "lstm" in name else 3 if "gru" in name else 1


def _hidden(op: Op, size: int) -> tuple[Dim, Dim]:
    """A layer's hidden axis, and the rows of its weights: the same axis once for each gate."""
    leaf = op.algebra.leaf(size)
    op.algebra.meet((leaf,), SymmetryClass.PERMUTATION)
    gates = _gates(op.name)
    return (leaf,), (leaf,) if gates == 1 else (Sum(((leaf,),) * gates),)


def _tie(op: Op, weights: list[Label], came: Dim, hidden: Dim, said: Dim, rows: Dim, names: list[str]) -> None:
    """One layer and direction: W_ih [gates h, in], W_hh [gates h, out], biases [gates h], W_hr [out, h]."""
    op.algebra.unify(came, dualised(weights[0].dims[1]))
    op.algebra.unify(said, dualised(weights[1].dims[1]))
    for weight, name in zip(weights, names, strict=True):
        if weight.rank == 2 and name not in names[:2]:
            op.algebra.unify(said, weight.dims[0])
            op.algebra.unify(hidden, dualised(weight.dims[1]))
            op.consume(name, 1)
        else:
            op.algebra.unify(rows, weight.dims[0])
        op.algebra.limit(weight.dims)
    for name in names[:2]:
        op.consume(name, 1)


@RECURRENT("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(op: Op) -> list[Label]:
    """Stacked layers: one hidden axis for each layer and direction, shared by its gates, states and outputs.

    With a projection the cell keeps the hidden axis, and what the layer says has an axis of its own.
    """
    x, params = op.label("input"), list(op.args["params"])
    states = op.args["hx"] if isinstance(op.args["hx"], list | tuple) else [op.args["hx"]]
    layers, both, first = op.args["num_layers"], op.args["bidirectional"], op.args["batch_first"]
    directions = 2 if both else 1
    per, uneven = divmod(len(params), layers * directions)
    biases = 2 if op.args["has_biases"] else 0
    if uneven or per not in (2 + biases, 3 + biases):
        raise RuleError(f"{op.name}: {len(params)} weights for {layers} layers in {directions} directions")
    came, cells, outputs = x.dims[-1], [], []
    for layer in range(layers):
        said: list[Dim] = []
        for direction in range(directions):
            start = (layer * directions + direction) * per
            weights = params[start : start + per]
            hidden, rows = _hidden(op, weights[0].shape[0] // _gates(op.name))
            output = (op.algebra.leaf(weights[1].shape[1]),) if per == 3 + biases else hidden
            op.algebra.meet(output, SymmetryClass.PERMUTATION)
            names = [f"params.{i}" for i in range(start, start + per)]
            _tie(op, weights, came, hidden, output, rows, names)
            said.append(output)
            cells.append(hidden)
        came = said[0] if directions == 1 else (Sum(tuple(said)),)
        outputs += said
    time = 1 if first else 0
    if x.rank == 3:
        op.algebra.separate(x.dims, x.dims[time])
        op.algebra.fix(x.dims[time], "time")
        batch = (x.dims[1 - time],)
    else:
        op.algebra.fix(x.dims[0], "time")
        batch = ()
    kept = [op.algebra.join([((), *batch, axis) for axis in axes], 0) for axes in (outputs, cells)]
    for state, label in zip(kept, states, strict=False):
        op.algebra.broadcast([state, label.dims])
    return [Label((*x.dims[:-1], came)), *(Label(state) for state, _ in zip(kept, states, strict=False))]


@RECURRENT("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell(op: Op) -> Label | list[Label]:
    """One step of one layer."""
    x = op.label("input")
    states: list[Label] = list(op.args["hx"]) if isinstance(op.args["hx"], list | tuple) else [op.label("hx")]
    names = ["w_ih", "w_hh", "b_ih", "b_hh"]
    weights = [op.args[name] for name in names if isinstance(op.args.get(name), Label)]
    hidden, rows = _hidden(op, weights[1].shape[1])
    _tie(op, weights, x.dims[-1], hidden, hidden, rows, names[: len(weights)])
    for state in states:
        op.algebra.unify(state.dims[-1], hidden)
    result = Label((*states[0].dims[:-1], hidden))
    return [result] * len(states) if op.several else result
