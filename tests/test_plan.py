from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import UsageError
from secateur.graph import ChannelGraph, trace
from secateur.graph.groups import Group, Member, Role
from secateur.plan import AttributeValue, PruningPlan, plan_from
from tests.fakes import FakeGraph, chain, graphs
from tests.graph.networks import build


@st.composite
def plans(draw: st.DrawFn) -> PruningPlan:
    graph = draw(graphs())
    keep = {
        group.name: tuple(
            draw(st.permutations(range(group.channels)))[: draw(st.integers(1, group.channels))]
        )
        for group in graph.prunable
    }
    return PruningPlan(graph, keep)


@pytest.fixture(scope="module")
def dense() -> ChannelGraph:
    """Group a (4 channels) is read by b and, twice, by c; group b (6) by c alone; c is frozen."""
    return trace(build("dense"), torch.zeros(1, 3, 5, 5))


@given(plans())
def test_kept_and_removed_make_up_the_group(plan: PruningPlan):
    assert plan.keep.keys() == plan.removed.keys()
    for name, kept in plan.keep.items():
        assert sorted((*kept, *plan.removed[name])) == list(range(plan.graph[name].channels))
        assert kept == tuple(sorted(kept))
        assert kept
        assert plan.removed[name]
    assert plan.channels_removed == sum(len(gone) for gone in plan.removed.values())


@given(plans())
def test_kept_slots_are_those_of_a_search(plan: PruningPlan):
    expected = {
        (tensor, dim): set(range(size))
        for tensor, shape in plan.graph.tensors.items()
        for dim, size in enumerate(shape)
    }
    cut = set()
    for name, gone in plan.removed.items():
        for member in plan.graph[name].members:
            cut.add((member.tensor, member.dim))
            for channel in gone:
                expected[member.tensor, member.dim] -= set(member.slots[channel].tolist())
    assert {place: kept.tolist() for place, kept in plan.kept_slots.items()} == {
        place: sorted(expected[place]) for place in cut
    }


@given(plans())
def test_costs_are_counted_costs(plan: PruningPlan):
    assert plan.cost_after == plan.graph.counted(plan)
    assert plan.cost_before == plan.graph.cost()


@given(plans())
def test_a_plan_survives_json_pickle_and_copying(plan: PruningPlan):
    data = json.loads(json.dumps(plan.to_dict()))
    for again in (
        PruningPlan.from_dict(plan.graph, data),
        pickle.loads(pickle.dumps(plan)),
        copy.deepcopy(plan),
    ):
        assert again == plan
        assert hash(again) == hash(plan)
        assert again.removed == plan.removed


def test_a_plan_is_immutable():
    plan = PruningPlan(chain(3), {"g0": (0,)})
    with pytest.raises(TypeError):
        plan.keep["g0"] = (1,)  # type: ignore[index]
    with pytest.raises(AttributeError):
        plan.keep = {}  # type: ignore[misc]


def test_groups_that_lose_nothing_are_left_out():
    graph = chain(3, 2, frozen=frozenset({1}))
    assert PruningPlan(graph, {"g0": (2, 0, 1), "g1": (1, 0)}) == PruningPlan(graph, {})
    assert PruningPlan(graph, {}).kept_slots == {}


def test_groups_come_in_the_order_of_the_network():
    plan = PruningPlan(chain(3, 3), {"g1": (0,), "g0": (1, 0)})
    assert dict(plan.keep) == {"g0": (0, 1), "g1": (0,)}
    assert list(plan.keep) == ["g0", "g1"]


@pytest.mark.parametrize("channels", [[0, 2], range(0, 3, 2), np.array([2, 0]), torch.tensor([0, 2]), {0, 2}])
def test_channels_of_many_types(channels: Any):
    assert PruningPlan(chain(3), {"g0": channels}).keep["g0"] == (0, 2)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"g7": (0,)}, "no channel group 'g7'"),
        ({"g1": (0,)}, "group 'g1' must stay whole: is made up"),
        ({"g0": ()}, "group 'g0' would lose all its 3 channels: keep at least one"),
        ({"g0": (0, 3)}, "group 'g0' has channels 0 to 2; there is no 3"),
        ({"g0": (-1, 1)}, "group 'g0' has channels 0 to 2; there is no -1"),
        ({"g0": (1, 1)}, "the channels of 'g0' name 1 twice"),
        ({"g0": (0.5,)}, "the channels of 'g0' must be a list of integers"),
        ({"g0": [True, False, True]}, "the channels of 'g0' must be a list of integers"),
        ({"g0": "01"}, "the channels of 'g0' must be a list of integers"),
        ({"g0": None}, "the channels of 'g0' must be a list of integers"),
        ({"g0": [[0], [1]]}, "the channels of 'g0' must be a list of integers"),
    ],
)
def test_plans_that_make_no_sense(keep: Any, message: str):
    with pytest.raises(UsageError, match=message):
        PruningPlan(chain(3, 3, frozen=frozenset({1})), keep)


def test_stored_plans_that_do_not_fit():
    data = PruningPlan(chain(3, 4), {"g1": (1, 2)}).to_dict()
    with pytest.raises(UsageError, match="another network: its group 'g1' has 4 channels, here it has 5"):
        PruningPlan.from_dict(chain(3, 5), data)
    with pytest.raises(
        UsageError, match="another network: its group 'g1' has 4 channels, here it is not there"
    ):
        PruningPlan.from_dict(chain(3), data)
    for junk in (
        {},
        {"groups": 3},
        {"groups": {"g0": {}}},
        {"groups": {"g0": {"channels": "x", "keep": []}}},
        [],
    ):
        with pytest.raises(UsageError, match="not a stored plan"):
            PruningPlan.from_dict(chain(3), junk)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="must be a list of integers"):
        PruningPlan.from_dict(chain(3), {"groups": {"g0": {"channels": 3, "keep": "all"}}})


def test_a_plan_reads_well():
    plan = PruningPlan(chain(1000, 20, positions=9), {"g0": range(400), "g1": range(5)})
    assert str(plan) == (
        "removes 615 of 1,020 prunable channels\n"
        "\n"
        "              before    after   left\n"
        "parameters    24.0 k   3.60 k  15.0%\n"
        "MACs           207 k   28.8 k  13.9%\n"
        "size         96.1 kB  14.4 kB  15.0%\n"
        "activations  36.7 kB  14.6 kB  39.7%\n"
        "\n"
        "group  before  after   left\n"
        "g0      1,000    400  40.0%\n"
        "g1         20      5  25.0%"
    )
    nothing = PruningPlan(chain(2), {})
    assert str(nothing).startswith("removes 0 of 2 prunable channels\n")
    assert "group" not in str(nothing)


def test_edits_are_the_attributes_that_change(dense: ChannelGraph):
    plan = PruningPlan(dense, {"a": (0, 3), "b": (1, 2, 4)})
    assert set(plan.attributes) == {
        AttributeValue("a", "out_channels", None, 2),
        AttributeValue("b", "in_channels", None, 2),
        AttributeValue("b", "out_channels", None, 3),
        AttributeValue("c", "in_channels", None, 7),
    }
    assert PruningPlan(dense, {}).attributes == ()


def test_a_plan_for_what_a_plan_leaves(dense: ChannelGraph):
    first = PruningPlan(dense, {"a": (0, 3), "b": (1, 2, 4)})
    second = PruningPlan(dense.after(first), {"b": (0, 2)})
    both = PruningPlan(dense, {"a": (0, 3), "b": (1, 4)})
    assert second.cost_before == first.cost_after
    assert second.cost_after == both.cost_after
    for (tensor, dim), kept in second.kept_slots.items():
        assert first.kept_slots[tensor, dim][kept].tolist() == both.kept_slots[tensor, dim].tolist()


def test_plan_from_module_outputs(dense: ChannelGraph):
    plan = plan_from(dense, {"a": [3, 1], "b": np.array([0])})
    assert plan.removed == {"a": (1, 3), "b": (0,)}
    # The network joins b, a and a again.
    assert plan.kept_slots["c.weight", 1].tolist() == [1, 2, 3, 4, 5, 6, 8, 10, 12]


def test_plan_from_a_position_of_a_coupled_module():
    graph = trace(build("residual"), torch.zeros(1, 3, 5, 5))
    for module in ("stem", "outer", "norm"):
        plan = plan_from(graph, {module: [2]})
        assert plan.removed == {"stem": (2,)}
        assert {place for place, _ in plan.kept_slots} >= {
            "stem.weight",
            "outer.weight",
            "norm.bias",
            "head.weight",
        }
    assert plan_from(graph, {"stem": [2], "outer": [2, 5]}).removed == {"stem": (2, 5)}


def one_layer(*groups: tuple[str, list[list[int]]]) -> FakeGraph:
    """A layer of seven outputs whose positions belong to chosen groups."""
    graph = chain(7)
    graph.__dict__["groups"] = tuple(
        Group(name, (Member("l0.weight", 0, Role.PRODUCER, np.array(slots)),)) for name, slots in groups
    )
    return graph


def test_plan_from_positions_of_several_groups():
    graph = one_layer(("l0", [[0], [1], [2]]), ("l0#2", [[5], [3], [4], [6]]))
    plan = plan_from(graph, {"l0": [1, 5]})
    assert plan.removed == {"l0": (1,), "l0#2": (0,)}
    assert plan.kept_slots["l0.weight", 0].tolist() == [0, 2, 3, 4, 6]
    # No module has the name of the second group, so these are its channels.
    assert plan_from(graph, {"l0#2": [1]}).kept_slots["l0.weight", 0].tolist() == [0, 1, 2, 4, 5, 6]


def test_plan_from_a_position_without_channel():
    with pytest.raises(UsageError, match="position 6 of 'l0' cannot be removed: it belongs to no"):
        plan_from(one_layer(("l0", [[0], [1], [2]])), {"l0": [0, 6]})


def test_plan_from_positions_of_one_channel():
    # The grouped convolution behind it loses whole groups, so outputs go in pairs.
    graph = trace(build("grouped-groups"), torch.zeros(1, 3, 5, 5))
    for positions in ([2], [3], [2, 3]):
        plan = plan_from(graph, {"before": positions})
        assert plan.removed["before"] == (1,)
        assert plan.kept_slots["before.weight", 0].tolist() == [0, 1, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ({"d": [0]}, "no channel group 'd'"),
        ({"a": [4]}, "'a' has 4 positions, 0 to 3; there is no 4"),
        ({"a": [-1]}, "there is no -1"),
        ({"a": [1, 1]}, "the positions of 'a' name 1 twice"),
        ({"a": [0.5]}, "the positions of 'a' must be a list of integers"),
        ({"a": range(4)}, "group 'a' would lose all its 4 channels"),
        ({"c": [0]}, "group 'c' must stay whole: is an output of the network"),
    ],
)
def test_plan_from_what_cannot_be_removed(dense: ChannelGraph, remove: Any, message: str):
    with pytest.raises(UsageError, match=message):
        plan_from(dense, remove)


def test_plan_from_nothing(dense: ChannelGraph):
    assert plan_from(dense, {}) == plan_from(dense, {"a": []}) == PruningPlan(dense, {})


def test_fake_graphs_are_consistent():
    graph = FakeGraph((3, 2), frozenset(), chain(3, 2).layers)
    assert graph.counted(PruningPlan(graph, {})) == graph.cost()
