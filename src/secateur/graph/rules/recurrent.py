"""Recurrent layers: hidden units, the same in all gates, layers and directions, are the channels."""

from __future__ import annotations

import math

import numpy as np

from secateur.graph.groups import IntArray, Role
from secateur.graph.labels import Labels, Value
from secateur.graph.rules import rule
from secateur.graph.site import Site

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@rule("aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu")
def recurrent(site: Site) -> list[Value]:
    """Rows of the weights are gates times hidden units; columns read the input or the hidden state.

    The module has one hidden size for all layers and directions, so one unit goes out of all of them. Packed
    sequences and projected outputs are not taken apart: what touches them is frozen.
    """
    parts = site.values("params") if site.has("input") and site.has("params") else []
    directions = 2 if site.option_or("bidirectional", False) else 1
    per_layer = 4 if site.option_or("has_biases", True) else 2
    layers = int(site.option_or("num_layers", 0)) * directions
    if not parts or len(parts) != layers * per_layer:
        return _frozen(site)
    gates = _GATES[site.operator]
    hidden = _rows(parts[1], gates)[0]
    value = site.value("input")
    steps = math.prod(value.shape[:-1])
    incoming: Labels = value.labels[-1]
    for layer in range(0, layers, directions):
        for place in range(layer * per_layer, (layer + directions) * per_layer, per_layer):
            _join_gates(site, parts[place : place + per_layer], gates, hidden)
            columns = parts[place].labels[1]
            site.claim(columns, Role.CONSUMER)
            site.join(columns, incoming, f"reads values that are not channels ({site.place})")
            _join_columns(site, parts[place + 1].labels[1], hidden)
            # What stays inside the operator is masked at the columns that read it.
            site.read_item("params", place + 1, 1, hidden)
            if layer:
                site.read_item("params", place, 1, columns)
            site.work(steps * gates, columns if incoming is not None else parts[place].shape[1], hidden)
            site.work(steps * gates, hidden, hidden)
        if layer == 0:
            site.read("input", -1, incoming)
            site.attribute("input_size", incoming)
        incoming = np.concatenate([hidden] * directions)
    site.attribute("hidden_size", hidden)
    return _results(site, value, incoming, hidden)


def _rows(weight: Value, gates: int) -> IntArray:
    """Labels of the rows, one row of the answer for each gate."""
    labels = weight.labels[0]
    assert labels is not None, "a parameter has labels"
    return labels.reshape(gates, -1)


def _join_gates(site: Site, parts: list[Value], gates: int, hidden: IntArray) -> None:
    """All gates of all weights and biases of one direction have the same hidden units."""
    for part in parts:
        site.claim(part.labels[0], Role.PRODUCER if len(part.shape) > 1 else Role.CARRIER)
        for row in _rows(part, gates):
            site.join(row, hidden)


def _join_columns(site: Site, columns: Labels, hidden: IntArray) -> None:
    site.claim(columns, Role.CONSUMER)
    site.join(columns, hidden)


def _results(site: Site, value: Value, outgoing: Labels, hidden: IntArray) -> list[Value]:
    """The states of all steps, and the last ones of each layer and direction."""
    site.made_here("hx", hidden)
    for state in site.values("hx") if site.operator == "lstm" else [site.value("hx")]:
        site.join(state.labels[-1], hidden)
    shapes = site.shapes
    first = Value(shapes[0], (*value.labels[:-1], outgoing))
    return [first, *(Value(shape, (*(None,) * (len(shape) - 1), hidden)) for shape in shapes[1:])]


def _frozen(site: Site) -> list[Value]:
    for item in site.tensors():
        for labels in item.labels:
            site.freeze(labels, f"this form of recurrence is not taken apart ({site.place})")
    return [Value.plain(shape) for shape in site.shapes]
