"""Every trap of wiring, held against an answer that does not come from the engine.

The answer: the original network with the removed channels' columns zeroed in the weights that
read them, run by PyTorch as it is. Where a soft-max or a normalisation looks at all channels
together, the expected result is computed by hand.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils import parametrize

from secateur.graph import ChannelGraph, Role, trace
from secateur.graph.channel_graph import Keep
from secateur.graph.checking.compare import largest_difference
from secateur.graph.cutting.tensors import by_tensor, copy_with, cut_tensor, named_tensors, positions_left
from tests.graph.networks import NAMES, build
from tests.graph.outputs import evaluate

BY_STATISTIC = {"layerscale", "softmaxoverchannels"}
"""Networks in which channels meet outside weights."""

EXPECTED_GROUPS = {
    "residual": {"stem": 8, "inner": 6},
    "dense": {"a": 4, "b": 6},
    "flattened": {"conv": 7, "one": 11},
    "depthwise": {"expand": 6, "project": 5},
    "grouped-groups": {"before": 4},
    "grouped-places": {"before": 6, "grouped": 6},
    "channelshuffle": {"conv": 3},
    "swappedhalves": {"conv": 4},
    "flipped": {"conv": 4},
    "rolled": {},
    "squeezeexcite": {"conv": 8, "down": 4},
    "layerscale": {"stem": 8, "wide": 16},
    "softmaxoverchannels": {"conv": 8},
    "pixelshuffled": {"conv": 2},
    "paddedshortcut": {"stem": 8},
    "selectivekernels": {"one": 6},
    "shared": {"stem": 6},
    "transposed": {"down": 6, "up": 5},
    "auxiliary": {"stem": 8, "aux.0": 6},
}


def cut(model: torch.nn.Module, graph: ChannelGraph, keep: dict[str, list[int]]) -> torch.nn.Module:
    after = graph.after(Keep(keep))
    kept = by_tensor(positions_left(graph, after))
    tensors = {name: cut_tensor(tensor, kept.get(name, {})) for name, tensor in named_tensors(model).items()}
    return copy_with(model, tensors, graph.attributes_after(Keep(keep)))


def zeroed(model: torch.nn.Module, graph: ChannelGraph, keep: dict[str, list[int]]) -> torch.nn.Module:
    """The original with zeros where weights read removed channels."""
    silent = copy.deepcopy(model)
    tensors = named_tensors(silent)
    with torch.no_grad():
        for name, kept in keep.items():
            gone = np.setdiff1d(np.arange(graph[name].channels), kept)
            for member in graph[name].roles(Role.CONSUMER):
                index = torch.as_tensor(member.slots[gone].ravel())
                weight_of(silent, tensors, member.tensor).index_fill_(member.dim, index, 0.0)
    return silent


def weight_of(model: torch.nn.Module, tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """A weight as the forward pass uses it: a computed one takes the place of what it is computed from."""
    path, computed, _ = name.partition(".parametrizations.")
    if not computed:
        return tensors[name]
    module = model.get_submodule(path)
    if parametrize.is_parametrized(module):
        assert isinstance(module, torch.nn.Conv2d)
        plain = torch.nn.Conv2d(module.in_channels, module.out_channels, module.kernel_size)
        plain.weight.data, plain.bias = module.weight.data, module.bias
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, plain)
    return model.get_submodule(path).weight.data


@pytest.mark.parametrize("name", NAMES)
def test_the_groups_are_what_a_person_would_find(name: str) -> None:
    graph = trace(build(name), torch.randn(2, 3, 8, 8))
    assert {group.name: group.channels for group in graph.prunable} == EXPECTED_GROUPS[name]
    assert all(group.reason for group in graph.frozen)


@pytest.mark.parametrize("name", [name for name in NAMES if EXPECTED_GROUPS[name]])
@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_a_cut_equals_the_network_with_zeroed_columns(name: str, data: st.DataObject) -> None:
    model, x = build(name).eval(), torch.randn(2, 3, 8, 8)
    graph = trace(model, x)
    keep = {
        group.name: sorted(
            data.draw(st.sets(st.integers(0, group.channels - 1), min_size=1, max_size=group.channels))
        )
        for group in graph.prunable
    }
    small = cut(model, graph, keep)
    reference = (
        by_hand(name, model, keep, x) if name in BY_STATISTIC else evaluate(zeroed(model, graph, keep), x)
    )
    assert largest_difference(reference, evaluate(small, x)) < 1e-5


def by_hand(
    name: str, model: torch.nn.Module, keep: dict[str, list[int]], x: torch.Tensor
) -> tuple[torch.Tensor]:
    """Networks whose channels meet in a statistic, written out with the kept channels only."""
    with torch.no_grad():
        if name == "softmaxoverchannels":
            kept = keep["conv"]
            y = model.conv(x)[:, kept].softmax(1)
            return (F.conv2d(y, model.head.weight[:, kept], model.head.bias),)
        stem, wide = keep["stem"], keep["wide"]
        x = model.stem(x)
        y = model.depth(x)[:, stem].permute(0, 2, 3, 1)
        y = F.layer_norm(y, (len(stem),), model.norm.weight[stem], model.norm.bias[stem])
        y = F.gelu(F.linear(y, model.wide.weight[wide][:, stem], model.wide.bias[wide]))
        y = F.linear(y, model.narrow.weight[stem][:, wide], model.narrow.bias[stem]).permute(0, 3, 1, 2)
        z = x[:, stem] + model.scale[stem] * y
        return (F.conv2d(z, model.head.weight[:, stem], model.head.bias),)


@pytest.mark.parametrize("name", [name for name in NAMES if EXPECTED_GROUPS[name]])
def test_a_cut_network_trains(name: str) -> None:
    model, x = build(name), torch.randn(2, 3, 8, 8)
    graph = trace(model, x)
    keep = {group.name: list(range(0, group.channels, 2)) for group in graph.prunable}
    small = cut(model, graph, keep).train()
    optimizer = torch.optim.SGD(small.parameters(), 0.1)
    before = [parameter.detach().clone() for parameter in small.parameters()]
    outputs = small(x)
    loss = sum(item.square().mean() for item in (outputs if isinstance(outputs, tuple) else (outputs,)))
    loss.backward()
    optimizer.step()
    assert all(parameter.grad is not None for parameter in small.parameters())
    moved = [not torch.equal(old, new) for old, new in zip(before, small.parameters(), strict=True)]
    assert sum(moved) > len(moved) // 2
    assert all(math.isfinite(float(parameter.detach().sum())) for parameter in small.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_readers_name_their_module_and_weight(name: str) -> None:
    model = build(name)
    graph = trace(model, torch.randn(2, 3, 8, 8))
    tensors, modules = named_tensors(model), dict(model.named_modules())
    assert graph.readers or not EXPECTED_GROUPS[name]
    for reader in graph.readers:
        weight = tensors[reader.tensor]
        assert modules[reader.module].weight is weight
        assert len(reader.group) == len(reader.channel)
        groups = getattr(modules[reader.module], "groups", 1)
        side = 0 if isinstance(modules[reader.module], torch.nn.ConvTranspose2d) else 1
        assert len(reader.group) == weight.shape[side] * groups
