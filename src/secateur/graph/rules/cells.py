"""Recurrent cells: the hidden units, shared by all gates, are the channels."""

from __future__ import annotations

import math

from secateur.graph.groups import Role
from secateur.graph.labels import Labels, Value
from secateur.graph.rules import rule
from secateur.graph.site import Site

_GATES = {"lstm_cell": 4, "gru_cell": 3, "rnn_tanh_cell": 1, "rnn_relu_cell": 1}


@rule("aten.lstm_cell", "aten.gru_cell", "aten.rnn_tanh_cell", "aten.rnn_relu_cell")
def cell(site: Site) -> Value | list[Value]:
    """Join the rows of all gates per hidden unit, and the columns to the input or the previous state."""
    gates, value = _GATES[site.operator], site.value("input")
    inputs, states = site.value("w_ih"), site.value("w_hh")
    if inputs.labels[0] is None or states.labels[0] is None:
        return _frozen(site)
    hidden = states.labels[0].reshape(gates, -1)[0]
    for name in ("w_ih", "w_hh", "b_ih", "b_hh"):
        if site.has(name):
            own = site.value(name)
            site.claim(own.labels[0], Role.PRODUCER if len(own.shape) > 1 else Role.CARRIER)
            if own.labels[0] is not None:
                for row in own.labels[0].reshape(gates, -1):
                    site.join(row, hidden)
    incoming = value.labels[-1]
    for columns, read in ((inputs.labels[1], incoming), (states.labels[1], hidden)):
        site.claim(columns, Role.CONSUMER)
        site.join(read, columns, f"reads values that are not channels ({site.place})")
    site.read("input", -1, incoming, "w_ih")
    site.attribute("input_size", incoming)
    site.attribute("hidden_size", hidden)
    _states(site, hidden)
    steps = math.prod(value.shape[:-1])
    site.work(steps * gates, inputs.shape[1] if incoming is None else incoming, hidden)
    site.work(steps * gates, hidden, hidden)
    if site.operator == "lstm_cell":
        return [Value(shape, (*(None,) * (len(shape) - 1), hidden)) for shape in site.shapes]
    return Value(site.shape, (*(None,) * (len(site.shape) - 1), hidden))


def _states(site: Site, hidden: Labels) -> None:
    """Join the previous state to the hidden units; an initial constant adopts them."""
    assert hidden is not None, "a parameter has labels"
    site.made_here("hx", hidden)
    places = (0, 1) if site.operator == "lstm_cell" else (None,)
    for place in places:
        site.join(site.adopt("hx", -1, hidden, place), hidden)
    if site.operator == "lstm_cell":
        site.read_item("hx", 0, -1, hidden)
    else:
        site.read("hx", -1, hidden, "w_hh")


def _frozen(site: Site) -> Value | list[Value]:
    for item in site.tensors():
        for labels in item.labels:
            site.freeze(labels, f"this form of recurrence is not taken apart ({site.place})")
    several = site.operator == "lstm_cell"
    return [Value.plain(shape) for shape in site.shapes] if several else Value.plain(site.shape)
