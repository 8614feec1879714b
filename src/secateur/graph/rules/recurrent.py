"""Propagate labels through recurrent layers, whose hidden units, the same in all gates, are the channels."""

from __future__ import annotations

import math

import numpy as np

from secateur.graph.groups import IntArray, Role
from secateur.graph.labels import Labels, Value
from secateur.graph.propagation.rule_context import RuleContext
from secateur.graph.rules import rule

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}

SPECIAL = "packed sequences, projections and other special forms of recurrent layers are not supported"
"""Why recurrent layers and cells are frozen whose weights are not those of a plain layer."""


@rule("aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu")
def recurrent(op: RuleContext) -> Value | list[Value]:
    """Join rows of the weights to hidden units, once a gate, and columns to the input or hidden state.

    The module has one hidden size for all layers and directions, so one unit goes out of all of them. Packed
    sequences and projected outputs are not supported: what touches them is frozen.
    """
    parts = op.values("params") if op.has("input") and op.has("params") else []
    directions = 2 if op.option_or("bidirectional", False) else 1
    per_layer = 4 if op.option_or("has_biases", True) else 2
    layers = int(op.option_or("num_layers", 0)) * directions
    if not parts or len(parts) != layers * per_layer:
        return op.refuse(SPECIAL)
    gates = _GATES[op.operator]
    hidden = _rows(parts[1], gates)[0]
    value = op.value("input")
    steps = math.prod(value.shape[:-1])
    incoming: Labels = value.labels[-1]
    for layer in range(0, layers, directions):
        for place in range(layer * per_layer, (layer + directions) * per_layer, per_layer):
            _join_gates(op, parts[place : place + per_layer], gates, hidden)
            columns = parts[place].labels[1]
            op.set_role(columns, Role.CONSUMER)
            op.join(columns, incoming, f"reads values that are not channels ({op.place})")
            _join_columns(op, parts[place + 1].labels[1], hidden)
            # What stays inside the operator is masked at the columns that read it.
            op.read_item("params", place + 1, 1, hidden)
            if layer:
                op.read_item("params", place, 1, columns)
            inputs = parts[place].shape[1] if incoming is None else parts[place].extents[1]
            op.add_macs(steps * gates, inputs, hidden)
            op.add_macs(steps * gates, hidden, hidden)
        if layer == 0:
            op.read("input", -1, incoming)
            op.attribute("input_size", incoming)
        incoming = np.concatenate([hidden] * directions)
    op.attribute("hidden_size", hidden)
    return _results(op, value, incoming, hidden)


def _rows(weight: Value, gates: int) -> IntArray:
    """Return the labels of the rows, one row of the result for each gate."""
    labels = weight.labels[0]
    assert labels is not None, "a parameter has labels"
    return labels.reshape(gates, -1)


def _join_gates(op: RuleContext, parts: list[Value], gates: int, hidden: IntArray) -> None:
    """Join the hidden units of all gates of all weights and biases of one direction."""
    for part in parts:
        op.set_role(part.labels[0], Role.PRODUCER if len(part.shape) > 1 else Role.CARRIER)
        op.join_rows([hidden, *_rows(part, gates)])


def _join_columns(op: RuleContext, columns: Labels, hidden: IntArray) -> None:
    op.set_role(columns, Role.CONSUMER)
    op.join(columns, hidden)


def _results(op: RuleContext, value: Value, outgoing: Labels, hidden: IntArray) -> list[Value]:
    """Make the states of all steps, and the last ones of each layer and direction."""
    op.tie_zeros("hx", hidden)
    for state in op.values("hx") if op.operator == "lstm" else [op.value("hx")]:
        op.join(state.labels[-1], hidden)
    shapes = op.shapes
    first = Value(shapes[0], (*value.labels[:-1], outgoing))
    return [first, *(Value(shape, (*(None,) * (len(shape) - 1), hidden)) for shape in shapes[1:])]
