"""Sizes as linear forms, compared with the arithmetic that the code does after a cut."""

from __future__ import annotations

import operator

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from secateur.graph.groups import Role
from secateur.graph.labels import SlotTable
from secateur.graph.propagation.known_sizes import KnownSizes, Solution
from secateur.graph.propagation.linear_forms import Form
from secateur.graph.propagation.size_source import Computed, FromAttribute, FromTensor, Source, attributes_in

SHAPES = {"a": (6,), "b": (4,), "c": (6,)}
ATTRIBUTE = FromAttribute("net", "width", None, 6)
UNKNOWN = FromAttribute("net", "depth", None, 5)
OPERATORS = {"add": operator.add, "sub": operator.sub, "mul": operator.mul, "floordiv": operator.floordiv}

sizes = st.sampled_from([*(FromTensor("", name, 0, 0) for name in SHAPES), ATTRIBUTE])
expressions = st.recursive(
    sizes | st.integers(1, 4),
    lambda inner: st.builds(Computed, st.sampled_from(sorted(OPERATORS)), inner, inner),
    max_leaves=5,
)


def known(*, coupled: bool = True) -> KnownSizes:
    """Three tensors of which the first and last are coupled; the attribute counts the first."""
    slots = SlotTable(SHAPES)
    for name in SHAPES:
        slots.set_role(slots.span(name, 0), Role.PRODUCER)
    if coupled:
        slots.join(slots.span("a", 0), slots.span("c", 0))
    slots.freeze(slots.span("b", 0)[:1], "fixed")
    solutions = {ATTRIBUTE.key: Solution(slots.span("a", 0), "")}
    return KnownSizes(slots, {}, {UNKNOWN.key: -1}, solutions)


def computed(source: Source | int, counts: dict[str, int]) -> int | None:
    """What the code computes where so many channels are left; ``None`` where a quotient is rounded."""
    match source:
        case int():
            return source
        case FromTensor():
            return counts[source.tensor]
        case FromAttribute():
            return counts["a"]
        case Computed():
            left, right = computed(source.left, counts), computed(source.right, counts)
            if left is None or right is None:
                return None
            if source.operator == "floordiv" and (right == 0 or left % right):
                return None
            return OPERATORS[source.operator](left, right)
    raise AssertionError(source)


def evaluated(form: Form, kept: np.ndarray) -> float:
    return form.rest + float(form.weights[kept[form.keys]].sum())


@given(expressions, st.sets(st.integers(0, 9)))
def test_a_form_is_what_the_code_computes_after_every_cut(source: Source | int, gone: set[int]) -> None:
    table = known()
    channel = table.slots.components()
    kept = ~np.isin(np.arange(channel.max() + 1), list(gone)) | ~table.slots.removable()
    form = table.form(source, "")
    counts = {name: int(kept[channel[table.slots.span(name, 0)]].sum()) for name in SHAPES}
    wanted = computed(source, counts)
    assume(form is not None and wanted is not None and not table.quotients)
    assert form is not None
    assert evaluated(form, kept) == pytest.approx(wanted, abs=1e-9)  # thirds are sums of rounded numbers
    assert form.value == computed(source, {name: shape[0] for name, shape in SHAPES.items()})


def test_a_quotient_of_two_sizes_that_change_is_an_equation() -> None:
    table = known()
    twice = Computed("mul", FromTensor("", "a", 0, 0), 2)
    form = table.form(Computed("floordiv", twice, FromTensor("", "c", 0, 0)), "view in 'net'")
    assert form is not None
    assert (form.fixed, form.rest, table.quotients) == (True, 2, [])  # both change alike, whatever is cut
    loose = known(coupled=False)
    form = loose.form(Computed("floordiv", twice, FromTensor("", "c", 0, 0)), "view in 'net'")
    assert form is not None
    assert (form.fixed, form.rest) == (True, 2)
    [quotient] = loose.quotients
    assert (quotient.value, quotient.place) == (2, "view in 'net'")
    assert loose.form(Computed("floordiv", FromTensor("", "b", 0, 0), ATTRIBUTE), "") is None  # 4 / 6


def test_an_unknown_attribute_is_a_variable() -> None:
    table = known()
    form = table.form(Computed("add", UNKNOWN, FromTensor("", "a", 0, 0)), "")
    assert form is not None
    assert (form.unknowns, form.value) == ([-1], 11)
    assert table.attribute(-1) == UNKNOWN.key
    assert table.layouts(UNKNOWN, "") == []
    assert list(attributes_in(Computed("mul", UNKNOWN, Computed("sub", ATTRIBUTE, 2)))) == [
        UNKNOWN,
        ATTRIBUTE,
    ]


def test_a_product_may_lay_out_its_labels_in_any_order() -> None:
    table = known()
    own = table.slots.span("b", 0).tolist()
    size = FromTensor("", "b", 0, 0)
    nested = Computed("mul", Computed("mul", 2, size), 3)
    found = {tuple(vector.tolist()) for vector in table.layouts(nested, "")}
    twice = [np.repeat(own, 2), np.tile(own, 2)]
    assert found == {
        tuple(vector.tolist()) for one in twice for vector in (np.repeat(one, 3), np.tile(one, 3))
    }
    assert table.layouts(Computed("mul", UNKNOWN, size), "") == []
