from __future__ import annotations

import copy

import pytest
import torch

import secateur as sec
from secateur.budget import Budget
from secateur.criteria import score
from secateur.errors import DataError
from secateur.jobs.layers import layers
from secateur.jobs.portrait import Portrait
from secateur.jobs.portray import portray
from secateur.recipes import Cut
from secateur.recipes.cutting import cut


def twice_cut(name: str) -> tuple[torch.nn.Module, torch.nn.Module, list[Cut], torch.Tensor]:
    """A network, what two cuts leave of it, and these."""
    model = sec.build(name, classes=5)
    inputs = torch.randn(2, 3, 32, 32)
    graph, smaller = sec.trace(model, inputs), copy.deepcopy(model)
    cuts = []
    for number, share in enumerate((0.85, 0.8), start=1):
        plan = sec.make_plan(graph, score(smaller, graph, "magnitude"), Budget(macs=share))
        cuts.append(Cut(number, 2, plan, cut(smaller, plan, inputs)[1]))
        graph = graph.after(plan)
    return model, smaller, cuts, inputs


@pytest.mark.parametrize("name", ["secateur:resnet20", "mobilenet_v3_small", "squeezenet1_1"])
def test_the_layers_that_are_left_cost_what_the_cut_network_does_when_it_is_traced_anew(name: str) -> None:
    model, smaller, cuts, inputs = twice_cut(name)
    found = portray(model, smaller, cuts, inputs, inputs, 0)
    anew = {layer.name: layer for layer in layers(smaller, sec.trace(smaller, inputs))}
    for layer in found.layers:
        if layer.name in anew:
            assert (layer.after.params, layer.after.macs) == (anew[layer.name].params, anew[layer.name].macs)
        else:
            assert (layer.after.params, layer.after.macs) == (0, 0)
    assert sum(layer.after.macs for layer in found.layers) == found.cost_after["macs"]
    assert found.cost_before["params"] == sum(p.numel() for p in model.parameters())


def test_fates_tell_which_channels_of_the_original_are_left() -> None:
    model, smaller, cuts, inputs = twice_cut("secateur:resnet20")
    found = portray(model, smaller, cuts, inputs, inputs, 0)
    before, after = model.state_dict(), smaller.state_dict()
    seen = set()
    for group in found.groups:
        kept = [channel for channel, fate in enumerate(group.fate) if fate == 0] or list(range(group.before))
        assert len(kept) == group.after
        seen |= set(group.fate)
        if "conv1" in group.name and "." in group.name:  # its filters are a group of their own
            bias = f"{group.name.replace('conv1', 'bn1')}.running_mean"
            torch.testing.assert_close(after[bias], before[bias][kept])
            assert after[f"{group.name}.weight"].shape[0] == len(kept)
    assert seen == {0, 1, 2}


def test_a_network_that_was_not_cut_has_a_portrait_too() -> None:
    model = sec.build("secateur:digits", classes=10)
    inputs = torch.randn(2, 1, 8, 8)
    found = portray(model, model, [], inputs, inputs, 0)
    assert found.cost_before == found.cost_after
    assert all(group.before == group.after and not group.fate for group in found.groups)
    assert Portrait.from_dict(found.to_dict()) == found


@pytest.mark.parametrize(
    "data", [{}, {"format": 2}, {"format": 1, "groups": [{}]}, {"format": 1, "groups": 1}]
)
def test_other_data_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(DataError):
        Portrait.from_dict(data)
