from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.graph.groups import Role
from secateur.graph.labels import SlotTable, Value, role_of


def test_slots_are_numbered_by_tensor_and_dimension():
    slots = SlotTable({"a": (2, 3), "b": (4,)})
    assert slots.span("a", 0).tolist() == [0, 1]
    assert slots.span("a", 1).tolist() == [2, 3, 4]
    assert slots.span("b", 0).tolist() == [5, 6, 7, 8]
    assert slots.fresh(2).tolist() == [9, 10]
    assert slots.size == 11


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=40))
def test_components_are_those_of_union_find(pairs: list[tuple[int, int]]):
    slots = SlotTable({"a": (20,)})
    parent = list(range(20))

    def root(slot: int) -> int:
        while parent[slot] != slot:
            slot = parent[slot]
        return slot

    for left, right in pairs:
        slots.join(np.array([left]), np.array([right]))
        parent[root(left)] = root(right)
    found = slots.components()
    for one in range(20):
        for other in range(20):
            assert (found[one] == found[other]) == (root(one) == root(other))


def test_labels_of_different_lengths_cannot_be_joined():
    slots = SlotTable({"a": (3,), "b": (2,)})
    with pytest.raises(ValueError, match="shapes"):
        slots.join(slots.span("a", 0), slots.span("b", 0))


def test_the_first_reason_and_the_first_role_count():
    slots = SlotTable({"a": (2,), "b": (2,), "c": (2,)})
    slots.join(slots.span("a", 0), slots.span("b", 0))
    slots.freeze(slots.span("b", 0)[:1], "early")
    slots.freeze(slots.span("a", 0), "late")
    component = slots.components()
    reason, texts = slots.reasons(component)
    assert [texts[reason[component[slot]]] for slot in range(4)] == ["early", "late", "early", "late"]
    slots.set_role(slots.span("a", 0), Role.CONSUMER)
    slots.set_role(slots.span("a", 0), Role.PRODUCER)
    role, rank = slots.roles()
    assert role[:2].tolist() == [1, 1]
    assert rank[:2].tolist() == [0, 0]
    assert role[4:].tolist() == [-1, -1]


def test_what_is_read_and_not_written_is_written_by_the_tensors_that_hold_it():
    slots = SlotTable({"table": (2,), "weight": (2,), "other": (2,)})
    slots.join(slots.span("table", 0), slots.span("weight", 0))
    slots.set_role(slots.span("weight", 0), Role.CONSUMER)
    roles = [None if index < 0 else role_of(index) for index in slots.roles()[0].tolist()]
    assert roles == [Role.PRODUCER] * 2 + [Role.CONSUMER] * 2 + [None] * 2
    assert slots.removable()[slots.components()].tolist() == [True] * 4 + [False] * 2
    slots.join(slots.span("table", 0), slots.span("other", 0))
    slots.set_role(slots.span("other", 0), Role.PRODUCER)
    assert slots.roles()[0][:2].tolist() == [-1, -1]


def test_a_final_reason_comes_before_earlier_ones():
    slots = SlotTable({"w": (3,)})
    slots.freeze(np.array([0, 1]), "early")
    slots.freeze(np.array([1, 2]), "final", final=True)
    slots.freeze(np.array([2]), "late", final=True)
    component = slots.components()
    reason, texts = slots.reasons(component)
    assert [texts[reason[component[slot]]] for slot in range(3)] == ["early", "final", "final"]


def test_nothing_frozen_means_no_reason():
    slots = SlotTable({"a": (3,)})
    assert slots.reasons(slots.components())[0].tolist() == [-1, -1, -1]


def test_channels_are_numbered_again_after_every_change():
    slots = SlotTable({"a": (2,), "b": (2,)})
    assert slots.removable().tolist() == [False] * 4
    slots.set_role(slots.span("a", 0), Role.PRODUCER)
    assert slots.removable().tolist() == [True, True, False, False]
    slots.join(slots.span("a", 0), slots.span("b", 0))
    assert slots.components().tolist() == [0, 1, 0, 1]
    assert slots.removable().tolist() == [True, True]
    slot = slots.fresh(1)
    assert slots.components()[slot].tolist() == [2]
    slots.freeze(slots.span("b", 0)[1:], "fixed")
    assert slots.removable().tolist() == [True, False, False]


def test_replaced_leaves_the_value_as_it_was():
    value = Value.plain((2, 3))
    assert value.replaced(1, np.arange(3)).labels[1] is not None
    assert value.labels == (None, None)
