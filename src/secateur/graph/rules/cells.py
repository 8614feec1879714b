"""Propagate labels through recurrent cells: the hidden units, shared by all gates, are the channels."""

from __future__ import annotations

import math

from secateur.graph.groups import Role
from secateur.graph.labels import Labels, Value
from secateur.graph.propagation.rule_context import RuleContext
from secateur.graph.rules import rule
from secateur.graph.rules.recurrent import SPECIAL

_GATES = {"lstm_cell": 4, "gru_cell": 3, "rnn_tanh_cell": 1, "rnn_relu_cell": 1}


@rule("aten.lstm_cell", "aten.gru_cell", "aten.rnn_tanh_cell", "aten.rnn_relu_cell")
def cell(op: RuleContext) -> Value | list[Value]:
    """Join the rows of all gates per hidden unit, and the columns to the input or the previous state."""
    gates, value = _GATES[op.operator], op.value("input")
    inputs, states = op.value("w_ih"), op.value("w_hh")
    if inputs.labels[0] is None or states.labels[0] is None:
        return op.refuse(SPECIAL)
    hidden = states.labels[0].reshape(gates, -1)[0]
    for name in ("w_ih", "w_hh", "b_ih", "b_hh"):
        if op.has(name):
            own = op.value(name)
            op.set_role(own.labels[0], Role.PRODUCER if len(own.shape) > 1 else Role.CARRIER)
            if own.labels[0] is not None:
                op.join_rows([hidden, *own.labels[0].reshape(gates, -1)])
    incoming = value.labels[-1]
    for columns, read in ((inputs.labels[1], incoming), (states.labels[1], hidden)):
        op.set_role(columns, Role.CONSUMER)
        op.join(read, columns, f"reads values that are not channels ({op.place})")
    op.read("input", -1, incoming, "w_ih")
    op.attribute("input_size", incoming)
    op.attribute("hidden_size", hidden)
    _states(op, hidden)
    steps = math.prod(value.shape[:-1])
    op.add_macs(steps * gates, inputs.shape[1] if incoming is None else incoming, hidden)
    op.add_macs(steps * gates, hidden, hidden)
    if op.operator == "lstm_cell":
        return [Value(shape, (*(None,) * (len(shape) - 1), hidden)) for shape in op.shapes]
    return Value(op.shape, (*(None,) * (len(op.shape) - 1), hidden))


def _states(op: RuleContext, hidden: Labels) -> None:
    """Join the previous state to the hidden units; an initial constant adopts them."""
    assert hidden is not None, "a parameter has labels"
    op.tie_zeros("hx", hidden)
    places = (0, 1) if op.operator == "lstm_cell" else (None,)
    for place in places:
        op.join(op.adopt("hx", -1, hidden, place), hidden)
    if op.operator == "lstm_cell":
        op.read_item("hx", 0, -1, hidden)
    else:
        op.read("hx", -1, hidden, "w_hh")
