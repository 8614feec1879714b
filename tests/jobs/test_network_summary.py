from __future__ import annotations

import copy
import time

import pytest
import torch
from torch import Tensor, nn

import secateur as sec
from secateur.budget import Budget
from secateur.criteria import score
from secateur.errors import DataError
from secateur.jobs.network_summary import NetworkSummary, layer_costs, module_times, summarise
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
        cuts.append(Cut(number, 2, plan, cut(smaller, plan, inputs)))
        graph = graph.after(plan)
    return model, smaller, cuts, inputs


@pytest.mark.parametrize(
    "name",
    ["secateur:resnet20", pytest.param("mobilenet_v3_small", marks=pytest.mark.slow), "squeezenet1_1"],
)
def test_the_layers_that_are_left_cost_what_the_cut_network_does_when_it_is_traced_anew(name: str) -> None:
    model, smaller, cuts, inputs = twice_cut(name)
    found = summarise(model, smaller, cuts, inputs, inputs, 0)
    anew = layer_costs(smaller, sec.trace(smaller, inputs))
    for layer in found.layers:
        if layer.name in anew:
            assert (layer.after.params, layer.after.macs) == (anew[layer.name].params, anew[layer.name].macs)
        else:
            assert (layer.after.params, layer.after.macs) == (0, 0)
    assert sum(layer.after.macs for layer in found.layers) == found.cost_after["macs"]
    assert found.cost_before["params"] == sum(p.numel() for p in model.parameters())


def test_fates_tell_which_channels_of_the_original_are_left() -> None:
    model, smaller, cuts, inputs = twice_cut("secateur:resnet20")
    found = summarise(model, smaller, cuts, inputs, inputs, 0)
    before, after = model.state_dict(), smaller.state_dict()
    seen = set()
    for group in found.groups:
        kept = [channel for channel, number in enumerate(group.removed_by) if number == 0] or list(
            range(group.before)
        )
        assert len(kept) == group.after
        seen |= set(group.removed_by)
        if "conv1" in group.name and "." in group.name:  # its filters are a group of their own
            bias = f"{group.name.replace('conv1', 'bn1')}.running_mean"
            torch.testing.assert_close(after[bias], before[bias][kept])
            assert after[f"{group.name}.weight"].shape[0] == len(kept)
    assert seen == {0, 1, 2}


def test_a_network_that_was_not_cut_has_a_summary_too() -> None:
    model = sec.build("secateur:digits", classes=10)
    inputs = torch.randn(2, 1, 8, 8)
    found = summarise(model, model, [], inputs, inputs, 0)
    assert found.cost_before == found.cost_after
    assert all(group.before == group.after and not group.removed_by for group in found.groups)
    assert NetworkSummary.from_json(found.model_dump_json()) == found


@pytest.mark.parametrize(
    "text", ["", "{}", '{"format": 2}', '{"format": 1, "groups": [{}]}', '{"format": 1, "groups": 1}']
)
def test_other_text_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(DataError, match=r"not a summary of a network \(.+\)$"):
        NetworkSummary.from_json(text)


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small"])
def test_the_layers_add_up_to_the_network(name: str) -> None:
    model = sec.build(name, classes=7)
    graph = sec.trace(model, torch.zeros(2, 3, 32, 32))
    found = layer_costs(model, graph).values()
    assert sum(layer.macs for layer in found) == graph.cost().macs
    assert sum(layer.params for layer in found) == graph.cost().params


def test_a_convolution_costs_what_the_closed_form_says() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, groups=2))
    [(name, layer)] = layer_costs(model, sec.trace(model, torch.zeros(3, 4, 9, 9))).items()
    assert layer.macs == 6 * (4 // 2) * 3 * 3 * 4 * 4
    assert layer.params == 6 * (4 // 2) * 3 * 3 + 6
    assert name == "0"


class Slow(nn.Module):
    """Takes so many milliseconds, of which its child takes a part."""

    def __init__(self, own: float, child: nn.Module | None = None) -> None:
        super().__init__()
        self.own = own
        self.child = child

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.own / 1e3)
        return x if self.child is None else self.child(self.child(x))


def test_a_module_is_charged_for_itself_and_not_for_its_children() -> None:
    net = Slow(20.0, Slow(30.0))
    (found,), _ = module_times([net], torch.ones(1), seconds=0)
    assert list(found) == ["", "child"]
    # Sleep is never shorter; on a busy machine it is longer.
    assert 20 <= found[""] < 20 + 25
    assert 60 <= found["child"] < 60 + 50  # called twice


def test_the_sum_is_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10**6))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Linear(2, 2)))
    (own,), _ = module_times([net], torch.ones(1, 2), seconds=0)
    # Five modules read the clock at both ends, one second a reading: nine from the first to the last.
    assert sum(own.values()) == 9000.0
    assert own["0"] == own["1.0"] == own["1.1"] == 1000.0


def test_networks_are_left_as_they_were() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout())
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    module_times([net, nn.ReLU()], torch.randn(4, 3), seconds=0)
    assert net.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_no_clock_survives_a_failure() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(3, 3))
    with pytest.raises(RuntimeError):
        module_times([net], torch.ones(1, 2), seconds=0)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
